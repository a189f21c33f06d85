//! What the walker says of an x86 probe.

use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::npt::Npt;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::format::x86::{Controls, Vendor};
use slat::format::{Decoded, Format};
use slat::observe::Step;
use slat::syndrome::x86 as syndrome;
use slat::{
    Access, Cause, Denied, Failed, Fault, Gpa, Gva, Kind, Privilege, Regime, Spa, Stage,
    TwoStageFailure, translate,
};

use super::layout::{self, bits};
use super::{Features, NPAE, RPAE, Second, X86, cr4};
use crate::contract::STATE;
use crate::lenient::Lenient;
use crate::probe::{Expectation, Outcome, Probe, Subject, Watcher};
use crate::world::{NoRam, World};

/// Bit 12 of EPT's large leaves.
const BIT_12: [u64; 5] = [0, 1 << 12, 1 << 12, 0, 0];

/// PK of an error code.
const PK: u64 = 1 << 5;

/// CR0.PE and CR0.PG.
const PROTECTED: u64 = 1 << 31 | 1;

/// The manual leaves open what comes of it.
const UNUSABLE: Outcome = Outcome::Other([0; 4]);

/// The state of a probe, decoded.
struct Machine<'a> {
    subject: &'a X86,
    state: &'a [u64; STATE],
    controls: Controls,
    regime: Regime,
    privilege: Privilege,
}

impl<'a> Machine<'a> {
    fn new(subject: &'a X86, state: &'a [u64; STATE]) -> Self {
        let (cr0, cr4, efer) = (state[3], state[5], state[6]);
        let mut regime = Regime::default();
        regime.x86.pkru = state[10] as u32;
        regime.x86.pkrs = (state[10] >> 32) as u32;
        regime.x86.alignment_check = state[9] & 1 << 18 != 0;
        let controls = Controls {
            write_protect: cr0 & 1 << 16 != 0,
            smep: cr4 & cr4::SMEP != 0,
            smap: cr4 & cr4::SMAP != 0,
            nxe: efer & 1 << 11 != 0,
            user_keys: cr4 & cr4::PKE != 0,
            supervisor_keys: cr4 & cr4::PKS != 0,
            shadow_stacks: false,
        };
        let user = state[8] >> (32 + 5) & 3 == 3;
        let privilege = if user { Privilege::User } else { Privilege::Supervisor };
        Machine { subject, state, controls, regime, privilege }
    }

    fn processor(&self) -> Processor {
        let features = &self.subject.features;
        Processor {
            physical_bits: features.physical_bits,
            gigabyte_pages: features.gigabyte,
            vendor: if features.amd { Vendor::Amd } else { Vendor::Intel },
            encryption_bit: None,
        }
    }

    fn pae(&self) -> bool {
        self.state[5] & cr4::PAE != 0
    }

    /// One access by the guest: both stages.
    fn access(
        &self,
        world: &mut World,
        watcher: &Watcher,
        address: u64,
        kind: Kind,
    ) -> Result<u64, Outcome> {
        let cr3 = self.state[4];
        let processor = self.processor();
        if !self.subject.features.unrestricted && self.state[3] & PROTECTED != PROTECTED {
            // SDM 3C 28.3.1.1 and A.7: CR0.PE and CR0.PG are fixed to 1 without unrestricted guests.
            return Err(Outcome::Refused);
        }
        if self.state[3] & 1 << 31 == 0 {
            return self.under(Flat::X86_UNPAGED, (), world, watcher, address, kind);
        }
        if layout::is_long(self.state) {
            let long = if self.state[5] & cr4::LA57 != 0 {
                Long::five(self.controls, processor)
            } else {
                Long::four(self.controls, processor)
            };
            return self.under(long, cr3, world, watcher, address, kind);
        }
        if self.pae() {
            let format = Pae::new(self.controls, processor);
            let root = if self.subject.features.second == Second::Ept {
                let registers: [u64; 4] = std::array::from_fn(|i| self.state[11 + i]);
                // SDM 3C 28.3.1.6: VM entry checks the PDPTEs.
                if registers.iter().any(|&pdpte| format.pdpte_reserved(pdpte) != 0) {
                    return Err(Outcome::Refused);
                }
                pae::Root::Registers(registers)
            } else {
                pae::Root::OnDemand(cr3)
            };
            return self.under(format, root, world, watcher, address, kind);
        }
        let large = self.state[5] & cr4::PSE != 0;
        let format = Legacy::new(self.controls, large, self.subject.features.physical_bits);
        self.under(format, cr3, world, watcher, address, kind)
    }

    fn under<F: Format>(
        &self,
        format: F,
        root: F::Root,
        world: &mut World,
        watcher: &Watcher,
        address: u64,
        kind: Kind,
    ) -> Result<u64, Outcome> {
        let features = &self.subject.features;
        let updates = self.subject.updates;
        let first = Stage::<F, Gva, Gpa>::new(format, root).with_updates(updates);
        let root = self.state[7];
        let access = Access::new(kind, self.privilege);
        let address = Gva::new(address);
        let regime = &self.regime;
        if features.second == Second::Ept {
            let ept = Ept::four(ept::Features {
                physical_bits: features.physical_bits,
                execute_only: features.execute_only,
                two_megabyte_pages: features.ept_large.0,
                gigabyte_pages: features.ept_large.1,
                accessed_dirty: root & 0x40 != 0,
                ..ept::Features::default()
            });
            let deviating = Lenient {
                unchecked_updates: self.subject.deviates("table-update-unchecked"),
                ignored: if self.subject.deviates("large-leaf-bit-12") { BIT_12 } else { [0; 5] },
                ..Lenient::exact(ept)
            };
            let second = Stage::<_, Gpa, Spa>::new(deviating, root).with_updates(updates);
            let found = translate(&first, &second, world, address, &access, regime, watcher);
            return self.conclude(found.map(|f| f.output().raw()), |fault| {
                if matches!(fault.cause, Cause::Reserved(_)) {
                    return Outcome::Misconfigured { address: fault.input.raw() };
                }
                let code = syndrome::ept_violation(fault, &ept, features.advanced).unwrap_or(0);
                Outcome::Stage2 {
                    syndrome: code,
                    address: fault.input.raw(),
                    origin: fault.access.origin.unwrap_or(0),
                }
            });
        }
        let processor = self.processor();
        let npt = match features.second {
            Second::Npt5 => Npt::five(true, processor),
            Second::NptPae => Npt::pae(true, processor),
            Second::Npt32 => Npt::legacy(true, features.physical_bits),
            Second::Npt4 | Second::Ept => Npt::four(true, processor),
        };
        let second = Stage::<_, Gpa, Spa>::new(npt, root).with_updates(updates);
        let found = translate(&first, &second, world, address, &access, regime, watcher);
        if let Err(Failed::Below(Failed::Here(Fault { cause: Cause::InputSize, .. }))) = found
            && features.second != Second::Npt5
        {
            // The APM does not say what becomes of guest physical addresses beyond the width of
            // the nested tables.
            return Err(UNUSABLE);
        }
        self.conclude(found.map(|f| f.output().raw()), |fault| Outcome::Stage2 {
            syndrome: syndrome::nested_page_fault(fault, &npt),
            address: fault.input.raw(),
            origin: 0,
        })
    }

    fn conclude(
        &self,
        found: Result<u64, TwoStageFailure<Gva, Gpa, NoRam>>,
        second: impl FnOnce(&Fault<Gpa>) -> Outcome,
    ) -> Result<u64, Outcome> {
        found.map_err(|failed| match failed {
            Failed::Here(fault) => {
                let flagged = syndrome::fetch_flagged(&self.controls, self.pae());
                let both = Denied::KEY.with(Denied::USER, true);
                let hidden = match fault.cause {
                    Cause::Permission(denied)
                        if denied.contains(both)
                            && self.subject.deviates("key-reported-alone-only") =>
                    {
                        PK
                    }
                    _ => 0,
                };
                match syndrome::page_fault(&fault, flagged) {
                    Some(code) => {
                        Outcome::Stage1 { syndrome: code & !hidden, address: fault.input.raw() }
                    }
                    None => Outcome::General,
                }
            }
            Failed::Below(Failed::Here(fault)) => second(&fault),
            Failed::Below(Failed::Below(NoRam { address })) => Outcome::Bus { syndrome: address },
        })
    }
}

pub(super) fn expect(
    subject: &X86,
    probe: &Probe,
    world: &mut World,
    watcher: &Watcher,
) -> Expectation {
    if !subject.deviates("pdpte-reserved-ignored") {
        return follow(subject, probe, world, watcher);
    }
    // Take the bits out of the PDPTEs in memory for the time of the walk.
    const IGNORED: u64 = 0x1E6;
    let pdptes: Vec<u64> =
        [RPAE, NPAE].into_iter().flat_map(|base| (0..4).map(move |i| base + 8 * i)).collect();
    let kept: Vec<u64> = pdptes.iter().map(|&at| world.word(at).unwrap_or(0) & IGNORED).collect();
    for &at in &pdptes {
        world.poke(at, world.word(at).unwrap_or(0) & !IGNORED);
    }
    let expectation = follow(subject, probe, world, watcher);
    for (&at, kept) in pdptes.iter().zip(kept) {
        world.poke(at, world.word(at).unwrap_or(0) | kept);
    }
    expectation
}

/// Runs the probe's instructions: the fetch, then the access.
fn follow(subject: &X86, probe: &Probe, world: &mut World, watcher: &Watcher) -> Expectation {
    let state = &probe.state;
    let machine = Machine::new(subject, state);
    let mut reached = None;
    let mut unusable = false;
    let mut run = || -> Result<u64, Outcome> {
        let (rip, rsi) = (state[0], state[1]);
        let fetched = machine.access(world, watcher, rip, Kind::Execute)?;
        if rip == rsi {
            reached = Some(fetched);
            world.visit(fetched);
            // Only a word that holds its own trap ends the run where it began.
            unusable = world.word(fetched) != Some(layout::tag(fetched));
            return Ok(layout::value(state, fetched));
        }
        if fetched & !0xFFF != layout::STUB {
            unusable = true;
            return Ok(0);
        }
        let kind = if layout::is_load(state) { Kind::Read } else { Kind::Write };
        let address = machine.access(world, watcher, rsi, kind)?;
        reached = Some(address);
        world.visit(address);
        if kind == Kind::Write {
            let mask = layout::value_mask(state);
            let old = world.word(address).unwrap_or(0);
            world.poke(address, old & !mask | state[2] & mask);
            return Ok(0);
        }
        Ok(world.word(address).unwrap_or(0) & layout::value_mask(state))
    };
    let outcome = match run() {
        Ok(value) => Outcome::Done { value },
        Err(outcome) => outcome,
    };
    if subject.deviates("gigabyte-leaf-accessed-early") {
        access_gigabyte_leaves(subject, state, world, &watcher.steps());
    }
    let unusable = unusable || outcome == UNUSABLE;
    // What was written where the code lies is fetched next; what comes of that is not the walk's.
    Expectation { outcome, reached, unusable, endless: false }
}

/// Sets the accessed bits of the 1 GiB leaves that these steps met, but for those with reserved bits.
fn access_gigabyte_leaves(subject: &X86, state: &[u64; STATE], world: &mut World, steps: &[Step]) {
    const LEAF: u64 = bits::P | bits::PS;
    let Features { second, physical_bits, .. } = subject.features;
    let long = [layout::is_long(state), matches!(second, Second::Npt4 | Second::Npt5)];
    // EFER.NXE: the guest's, and the monitor's own.
    let nxe = [state[6] & 1 << 11 != 0, true];
    let beyond = 0x000F_FFFF_FFFF_F000 & !((1 << physical_bits) - 1);
    let mut below = None;
    for step in steps {
        let stage = usize::from(step.stage - 1);
        if let (1, Decoded::Leaf { base, shift }) = (stage, step.decoded) {
            below = Some((base, (1u64 << shift) - 1));
        }
        let reserved = beyond | if nxe[stage] { 0 } else { 1 << 63 };
        if !long[stage]
            || step.level != 2
            || step.entry & LEAF != LEAF
            || step.entry & reserved != 0
        {
            continue;
        }
        // The guest's own entries lie where the second stage has just led.
        let at = match (stage, below) {
            (0, Some((base, offset))) => base | step.entry_address & offset,
            _ => step.entry_address,
        };
        world.poke(at, world.word(at).unwrap_or(0) | bits::A);
    }
}

pub(super) fn explain(subject: &X86, probe: &Probe) -> String {
    let s = &probe.state;
    let what = subject.access(probe);
    format!(
        "{what} {:#x} rip {:#x} cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} root2 {:#x} cs {:#x} ss {:#x} \
         rflags {:#x} pkru {:#x} pkrs {:#x} ({:?})",
        s[1],
        s[0],
        s[3],
        s[4],
        s[5],
        s[6],
        s[7],
        s[8] as u32,
        s[8] >> 32,
        s[9],
        s[10] as u32,
        s[10] >> 32,
        subject.features.second,
    )
}
