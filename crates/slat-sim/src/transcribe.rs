//! A guest's tables in another architecture's words.
//!
//! x86-64, AArch64 with the 4K granule and 48 bits, and RISC-V cut an address alike: levels of 512
//! entries. So each table page stays where it is, and each entry is written anew in the other format.
//! Root loads and invalidations become those that the other architecture would need for the same
//! effect. Accessed and dirty flags are taken as set: the recording does not say what another kernel
//! would do about them.
//!
//! This file holds what is transcribed from x86; [`from_arm`] the way back, and [`huge`] the same
//! architecture with larger pages.

mod entries;
mod from_arm;
mod huge;

use std::ops::Range;

use slat::format::x86::bits;
use slat_trace::{Arch, At, Control, Event, Invalidation, Root};

use self::from_arm::FromArm;
use self::huge::Huge;
use crate::memory::MAX_MEMORY;

/// What a guest is rewritten into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Target {
    /// x86-64, with five levels for the two halves of an AArch64 address space.
    X86,
    /// AArch64, both halves of the address space.
    Aarch64,
    /// RISC-V, Sv48 or Sv57.
    RiscV,
    /// The same architecture, with large pages where the guest fills them.
    HugePages,
}

/// Large pages of a guest that is made to use them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LargePages {
    /// How many were made, of one range each.
    pub made: u64,
    /// How many of those a store split that were not made again.
    pub stay_split: u64,
}

/// Rewrites a recording's events.
pub trait Rewrites: Send + Sync {
    /// Takes a batch's events.
    fn take(&mut self, events: &[At]);
    /// What the last batch's became.
    fn events(&self) -> &[At];
    /// Why what ran on them is worth nothing.
    fn fails(&self) -> Option<&'static str>;
    /// What became of large pages, where it makes any.
    fn large_pages(&self) -> Option<LargePages> {
        None
    }
    /// Guest-physical memory behind the guest's that its tables use as well.
    fn memory(&self) -> Range<u64> {
        0..0
    }
}

/// What rewrites a guest of an architecture with so many cores, whose memory is `memory`, at most
/// [`MAX_MEMORY`].
///
/// # Errors
/// Why the guest cannot be rewritten: the target is not for it, or its memory leaves no room for the
/// tables that it needs besides.
pub fn rewriter(
    arch: Arch,
    target: Target,
    cores: u8,
    memory: &Range<u64>,
) -> Result<Box<dyn Rewrites>, &'static str> {
    Ok(match (arch, target) {
        (Arch::X86_64, Target::HugePages) => Box::new(Huge::new(own_memory(memory))),
        (Arch::X86_64, Target::Aarch64 | Target::RiscV) => {
            Box::new(Transcribed::new(target, cores))
        }
        (Arch::Aarch64, Target::X86 | Target::RiscV) => {
            let made = FromArm::new(target, cores, own_memory(memory));
            if made.memory().end > MAX_MEMORY {
                return Err("behind the guest's memory its tables do not fit into 64 GiB");
            }
            Box::new(made)
        }
        _ => return Err("its tables are not rewritten for that"),
    })
}

/// Guest-physical memory that a rewriter may use, behind the guest's.
fn own_memory(memory: &Range<u64>) -> Range<u64> {
    let start = memory.end.next_multiple_of(1 << 21);
    // As much again as the guest has, so that large pages find room.
    start..start + memory.end.saturating_sub(memory.start).max(1 << 21)
}

/// TCR_EL1 with 48 bits in both halves and 4K granules, 48 bits of output (Arm ARM D24.2.182).
const TCR: u64 = 16 | 16 << 16 | 2 << 30 | 5 << 32;
/// SCTLR_EL1 with M, C and I.
const SCTLR: u64 = 0x1005;
/// Every attribute index is Normal write-back memory.
const MAIR: u64 = 0xffff_ffff_ffff_ffff;

/// TLBI VMALLE1, ASIDE1 and VAAE1, on the core alone, as the recording names operations: op1, CRn, CRm,
/// op2.
const VMALLE1: u16 = 8 << 7 | 7 << 3;
const ASIDE1: u16 = 8 << 7 | 7 << 3 | 2;
const VAAE1: u16 = 8 << 7 | 7 << 3 | 3;

/// Where an x86 entry has its address (Intel SDM 3A 4.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// CR4.LA57: five levels (Intel SDM 3A 2.5).
const LA57: u64 = 1 << 12;

/// No level is known of a page.
const UNKNOWN: u8 = u8::MAX;

/// An x86 recording's events in another architecture.
#[derive(Clone, Debug)]
struct Transcribed {
    target: Target,
    /// Control registers by vCPU and [`Control`].
    controls: Vec<[u64; 6]>,
    /// Level of each table page, by frame.
    levels: Vec<u8>,
    /// The events of the last batch.
    events: Vec<At>,
    begun: bool,
    /// Tables of five levels were seen.
    too_deep: bool,
}

impl Transcribed {
    fn new(target: Target, cores: u8) -> Transcribed {
        Transcribed {
            target,
            controls: vec![[0; 6]; usize::from(cores)],
            levels: Vec::new(),
            events: Vec::new(),
            begun: false,
            too_deep: false,
        }
    }

    fn push(&mut self, at: &At, event: Event) {
        self.events.push(At { event, ..*at });
    }

    fn one(&mut self, at: &At) {
        match at.event {
            Event::Control { register, value } => self.control(at, register, value),
            Event::Root { value, .. } => self.root(at, value & ADDRESS),
            Event::TablePage { gpa, level, .. } => {
                self.too_deep |= level > 3 && self.target == Target::Aarch64;
                let frame = (gpa >> 12) as usize;
                if self.levels.len() <= frame {
                    // As much as the machines keep; they refuse what is beyond.
                    self.levels.resize((frame + 1).min(1 << 24), UNKNOWN);
                }
                if let Some(known) = self.levels.get_mut(frame) {
                    *known = level;
                }
                self.push(at, at.event);
            }
            Event::TableEntry { gpa, value } => {
                let value = self.entry(gpa, value);
                self.push(at, Event::TableEntry { gpa, value });
            }
            Event::TableStore { gpa, value } => {
                let value = self.entry(gpa, value);
                self.push(at, Event::TableStore { gpa, value });
            }
            Event::Invalidate(Invalidation::Invlpg { va }) => {
                let invalidation = match self.target {
                    Target::Aarch64 => {
                        Invalidation::Tlbi { operation: VAAE1, operand: va >> 12 & ((1 << 44) - 1) }
                    }
                    _ => Invalidation::Invlpg { va },
                };
                self.push(at, Event::Invalidate(invalidation));
            }
            _ => self.push(at, at.event),
        }
    }

    fn control(&mut self, at: &At, register: Control, value: u64) {
        if !self.begun && self.target == Target::Aarch64 {
            for vcpu in 0..self.controls.len() as u8 {
                for (register, value) in
                    [(Control::Mair, MAIR), (Control::Tcr, TCR), (Control::Sctlr, SCTLR)]
                {
                    self.push(&At { vcpu, ..*at }, Event::Control { register, value });
                }
            }
        }
        self.begun = true;
        // Sv57 where the guest has five levels.
        if self.target == Target::RiscV && register == Control::Cr4 {
            self.push(at, Event::Control { register, value: value & LA57 });
        }
        let Some(held) = self.controls.get_mut(usize::from(at.vcpu)) else { return };
        if std::mem::replace(&mut held[register as usize], value) == value {
            return;
        }
        // A change drops all of the vCPU's translations, global ones too: of CR4.PGE, kernels without
        // INVPCID make it for nothing else (Intel SDM 3A 5.10.4.1).
        self.push(
            at,
            Event::Invalidate(match self.target {
                Target::Aarch64 => Invalidation::Tlbi { operation: VMALLE1, operand: 0 },
                _ => Invalidation::Invpcid { kind: 2, pcid: 0, va: 0 },
            }),
        );
    }

    fn root(&mut self, at: &At, table: u64) {
        match self.target {
            // One table serves both halves: the lower one's entries lie in its first half, the upper
            // one's in its second. MOV to CR3 drops what is not global, and so must this.
            Target::Aarch64 => {
                self.push(at, Event::Root { root: Root::Ttbr1, value: table });
                self.push(at, Event::Root { root: Root::Ttbr0, value: table });
                let drop = Invalidation::Tlbi { operation: ASIDE1, operand: 0 };
                self.push(at, Event::Invalidate(drop));
            }
            _ => self.push(at, Event::Root { root: Root::Cr3, value: table }),
        }
    }

    fn entry(&self, gpa: u64, entry: u64) -> u64 {
        let level = self.levels.get((gpa >> 12) as usize).copied().unwrap_or(UNKNOWN);
        if entry & bits::P == 0 || level > 4 {
            return 0;
        }
        let leaf = level == 0 || entry & bits::PS != 0 && level < 3;
        let shift = if leaf { 12 + 9 * u32::from(level) } else { 12 };
        // A large leaf has PAT where the address would go on.
        let address = entry & ADDRESS & (!0 << shift);
        match self.target {
            Target::Aarch64 => entries::arm64(entry, address, leaf, level),
            _ => entries::riscv(entry, address, leaf),
        }
    }
}

impl Rewrites for Transcribed {
    fn take(&mut self, events: &[At]) {
        self.events.clear();
        for at in events {
            self.one(at);
        }
    }

    fn events(&self) -> &[At] {
        &self.events
    }

    fn fails(&self) -> Option<&'static str> {
        self.too_deep.then_some("AArch64 has at most 52 bits of address, and the guest uses 57")
    }
}
