//! Walking a recording's own tables for each of its accesses.

use std::fmt;

use slat::format::arm64::{self, Stage1, TranslationRegime};
use slat::format::x86::{self, Controls};
use slat::{Gpa, Gva, Privilege, Regime, Stage, walk};

use super::memory::{TableMemory, TooManyTables, Watched};
use super::walks::{Key, Use, Walks};
use crate::event::{Access, Arch, Batch, Control, Event, Kind, Machine, Root};

/// An access that the recorded machine and the walk of the recorded tables disagree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The number of the access in the stream, counted from 0.
    pub number: u64,
    /// The access, with the page that the machine used.
    pub access: Access,
    /// The guest-physical address that the walk arrived at, or why it did not.
    pub walked: Result<u64, String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Access { va, vcpu, .. } = self.access;
        let kind = match self.access.kind() {
            Kind::Load => "load",
            Kind::Store => "store",
            Kind::Fetch => "fetch",
        };
        let machine = self.access.gpa().unwrap_or(u64::MAX);
        write!(f, "access {}: vCPU {vcpu} {kind} at {va:#x}: ", self.number)?;
        match &self.walked {
            Ok(walked) => write!(f, "the machine used {machine:#x}, the tables say {walked:#x}"),
            Err(why) => write!(f, "the machine used {machine:#x}, the tables say: {why}"),
        }
    }
}

/// The registers of a vCPU that decide about translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Registers {
    /// Whether the stream has said anything of them: all zero is a state as well.
    told: bool,
    roots: [u64; 3],
    controls: [u64; 6],
}

/// How a vCPU translates.
#[derive(Clone, Copy)]
enum Translation {
    X86(Stage<x86::long::Long, Gva, Gpa>),
    Aarch64(Stage<Stage1, Gva, Gpa>),
    /// Nothing is known of its registers yet, or they say what the library does not model.
    Unknown,
}

struct Vcpu {
    registers: Registers,
    translation: Translation,
    regime: Regime,
    /// The number of its registers.
    context: u16,
}

/// Walks the tables of a stream for every access with a known page, and compares.
///
/// Accesses are taken to have been permitted, since the machine made them: a walk that ends in a
/// fault is a mismatch, whether for want of an entry or of a right. The stream does not say when
/// SMAP or PAN were suspended, so those two are not asked.
///
/// A walk depends on the page, the kind of access, the privilege, the registers and the entries that it reads.
/// Its result is used again until one of them changes.
pub struct Verifier {
    arch: Arch,
    vcpus: Vec<Vcpu>,
    memory: TableMemory,
    number: u64,
    walked: u64,
    mismatches: u64,
    by_shift: [u64; 64],
    kept: Vec<Mismatch>,
    walks: Walks<Registers>,
}

/// So many accesses are looked up at once; each has a bit in a word.
const AT_ONCE: usize = 64;

/// So many mismatches are kept to be shown.
const KEPT: usize = 16;

impl Verifier {
    /// A verifier for a stream of `machine` from its beginning.
    #[must_use]
    pub fn new(machine: &Machine) -> Self {
        let mut regime = Regime::default();
        regime.x86.alignment_check = true;
        let mut walks = Walks::new();
        let (context, _) = walks.context(Registers::default());
        let vcpu = || Vcpu {
            registers: Registers::default(),
            translation: Translation::Unknown,
            regime: regime.clone(),
            context,
        };
        Self {
            arch: machine.arch,
            vcpus: (0..machine.vcpus).map(|_| vcpu()).collect(),
            memory: TableMemory::new(),
            number: 0,
            walked: 0,
            mismatches: 0,
            by_shift: [0; 64],
            kept: Vec::new(),
            walks,
        }
    }

    /// Checks the next batch of the stream.
    ///
    /// # Errors
    ///
    /// Where the stream makes more tables than a guest has.
    pub fn check(&mut self, batch: &Batch) -> Result<(), TooManyTables> {
        for run in batch.runs() {
            for at in run.events {
                self.apply(at.vcpu, &at.event)?;
            }
            match self.vcpus.len() {
                1 => self.check_part(run.accesses),
                _ => {
                    let parts = run.accesses.chunk_by(|a, b| a.vcpu == b.vcpu);
                    parts.for_each(|part| self.check_part(part));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, vcpu: u8, event: &Event) -> Result<(), TooManyTables> {
        match *event {
            Event::TableEntry { gpa, value } | Event::TableStore { gpa, value } => {
                // An entry that is not present is in no walk that arrived. The bit is the same for both
                // architectures (Intel SDM volume 3, 5.5.4; Arm ARM D8.3).
                let known = self.memory.locate(gpa);
                if let Some((page, _)) = known.filter(|(_, old)| old & 1 != 0 && *old != value) {
                    self.walks.entry_changes(page, (gpa >> 3 & 511) as usize);
                }
            }
            Event::TablePage { gpa, fresh: true, .. } => {
                if let Some((page, _)) = self.memory.locate(gpa) {
                    self.walks.page_changes(page);
                }
            }
            _ => {}
        }
        self.memory.apply(event)?;
        let Some(vcpu) = self.vcpus.get_mut(usize::from(vcpu)) else { return Ok(()) };
        match *event {
            Event::Root { root, value } => vcpu.registers.roots[root as usize] = value,
            Event::Control { register, value } => {
                vcpu.registers.controls[register as usize] = value;
            }
            _ => return Ok(()),
        }
        vcpu.registers.told = true;
        vcpu.regime.arm.mair = Some(vcpu.registers.controls[Control::Mair as usize]);
        vcpu.translation = match self.arch {
            Arch::X86_64 => x86_translation(&vcpu.registers),
            Arch::Aarch64 => aarch64_translation(&vcpu.registers),
        };
        let (context, all_void) = self.walks.context(vcpu.registers);
        vcpu.context = context;
        if all_void {
            for vcpu in &mut self.vcpus {
                vcpu.context = self.walks.context(vcpu.registers).0;
            }
        }
        Ok(())
    }

    /// Checks accesses of one vCPU without an event between them.
    fn check_part(&mut self, accesses: &[Access]) {
        for some in accesses.chunks(AT_ONCE) {
            self.check_some(some);
        }
    }

    fn check_some(&mut self, accesses: &[Access]) {
        let first = self.number;
        self.number += accesses.len() as u64;
        let Some(vcpu) = accesses.first().and_then(|a| self.vcpus.get(usize::from(a.vcpu))) else {
            return;
        };
        let context = vcpu.context;
        // Where accesses are scattered, each is looked up far away: as many as possible are to be under way at
        // once. So first there is nothing but the looks, and then what is known, without a branch.
        let (mut keys, mut looks) = ([Key::default(); AT_ONCE], 0);
        for (key, access) in keys.iter_mut().zip(accesses) {
            *key = Walks::<Registers>::key(access, context);
            looks ^= self.walks.touch(*key);
        }
        std::hint::black_box(looks);
        let (mut small, mut large, mut left) = (0, 0, 0u64);
        for (bit, (key, access)) in keys.iter().zip(accesses).enumerate() {
            let (is_small, is_large) = self.walks.is_known(*key, access);
            small += u64::from(is_small);
            large += u64::from(is_large);
            left |= u64::from(!(is_small | is_large)) << bit;
        }
        self.by_shift[12] += small;
        self.by_shift[21] += large;
        self.walked += small + large;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            let (number, access) = (first + at as u64, &accesses[at]);
            let Some(expected) = access.gpa() else { continue };
            self.walked += 1;
            let shift = self.walks.known(keys[at], access);
            if shift != 0 {
                self.by_shift[usize::from(shift & 63)] += 1;
                continue;
            }
            let wanted = wanted(access);
            let input = Gva::new(access.va);
            let regime = &vcpu.regime;
            let mut tables = Watched::new(&self.memory);
            let found = match &vcpu.translation {
                Translation::X86(stage) => walk(stage, &mut tables, input, &wanted, regime, &()),
                Translation::Aarch64(stage) => {
                    walk(stage, &mut tables, input, &wanted, regime, &())
                }
                Translation::Unknown => {
                    let why = "the registers are not known or not modelled".into();
                    self.mismatches += 1;
                    keep(&mut self.kept, number, *access, Err(why));
                    continue;
                }
            };
            match found {
                Ok(mapped) if mapped.output.raw() == expected => {
                    let shift = mapped.found.shift;
                    self.by_shift[usize::from(shift & 63)] += 1;
                    if let Some([upper @ .., (gpa, page)]) = tables.reads() {
                        upper.iter().for_each(|&(_, page)| self.walks.note_use(page, Use::Other));
                        let own = shift == 12 && (gpa >> 3 ^ access.va >> 12) & 511 == 0;
                        self.walks.note_use(*page, if own { Use::Last } else { Use::Other });
                        self.walks.keep(access, context, shift);
                    }
                }
                other => {
                    self.mismatches += 1;
                    let other = other.map(|mapped| mapped.output.raw());
                    keep(&mut self.kept, number, *access, other.map_err(|f| format!("{f:?}")));
                }
            }
        }
    }

    /// How many accesses were walked for.
    #[must_use]
    pub fn walked(&self) -> u64 {
        self.walked
    }

    /// How many accesses the machine and the tables disagree on.
    #[must_use]
    pub fn mismatches(&self) -> u64 {
        self.mismatches
    }

    /// The first few of them.
    #[must_use]
    pub fn first_mismatches(&self) -> &[Mismatch] {
        &self.kept
    }

    /// How many accesses went through leaves of 2^`shift` bytes (for example 12, 21, 30).
    #[must_use]
    pub fn through_pages_of(&self, shift: u8) -> u64 {
        self.by_shift[usize::from(shift & 63)]
    }

    /// The tables as they are at this point of the stream.
    #[must_use]
    pub fn tables(&self) -> &TableMemory {
        &self.memory
    }
}

#[cold]
fn keep(kept: &mut Vec<Mismatch>, number: u64, access: Access, walked: Result<u64, String>) {
    if kept.len() < KEPT {
        kept.push(Mismatch { number, access, walked });
    }
}

#[inline]
fn wanted(access: &Access) -> slat::Access {
    let kind = match access.kind() {
        Kind::Load => slat::Kind::Read,
        Kind::Store => slat::Kind::Write,
        Kind::Fetch => slat::Kind::Execute,
    };
    let privilege = if access.user() { Privilege::User } else { Privilege::Supervisor };
    slat::Access::new(kind, privilege)
}

fn x86_translation(registers: &Registers) -> Translation {
    let [cr0, cr4, efer, ..] = registers.controls;
    // Bits of CR0, CR4 and EFER: Intel SDM volume 3, 2.5 and 2.2.1.
    let controls = Controls {
        write_protect: cr0 >> 16 & 1 != 0,
        smep: cr4 >> 20 & 1 != 0,
        smap: cr4 >> 21 & 1 != 0,
        nxe: efer >> 11 & 1 != 0,
        // PKRU is not in a recording.
        ..Controls::default()
    };
    let processor = x86::long::Processor::default();
    let long = match cr4 >> 12 & 1 {
        0 => x86::long::Long::four(controls, processor),
        _ => x86::long::Long::five(controls, processor),
    };
    Translation::X86(Stage::new(long, registers.roots[Root::Cr3 as usize]))
}

fn aarch64_translation(registers: &Registers) -> Translation {
    let tcr = registers.controls[Control::Tcr as usize];
    let sctlr = registers.controls[Control::Sctlr as usize];
    let processor = arm64::Processor::default();
    match Stage1::new(TranslationRegime::El10, tcr, sctlr, 0, &processor) {
        Ok(stage) => Translation::Aarch64(Stage::new(
            stage,
            arm64::Root {
                ttbr0: registers.roots[Root::Ttbr0 as usize],
                ttbr1: registers.roots[Root::Ttbr1 as usize],
            },
        )),
        Err(_) => Translation::Unknown,
    }
}
