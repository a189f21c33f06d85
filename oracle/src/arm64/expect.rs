//! What the walker says of an AArch64 probe.

use slat::fault::Denied;
use slat::format::Decoded;
use slat::format::arm64::{Root, Stage1, Stage2, TranslationRegime, bits};
use slat::observe::Step;
use slat::regime::arm::State;
use slat::syndrome::arm64 as syndrome;
use slat::{
    Access, Cause, Failed, Gpa, Gva, Kind, MemoryType, Purpose, Regime, Spa, Stage, Updates,
    translate,
};

use super::{Arm64, SYNDROME, layout};
use crate::arm::{self, Asked, Guest, Return, UNUSABLE};
use crate::contract::STATE;
use crate::lenient::{Lenient, ROOT_UPPER};
use crate::probe::{Expectation, Outcome, Probe, Watcher};
use crate::world::World;

struct Machine<'a> {
    subject: &'a Arm64,
    state: &'a [u64; STATE],
}

impl Guest for Machine<'_> {
    const STUB: u64 = layout::STUB;
    const BYTES: u64 = 8;

    fn tag(address: u64) -> u64 {
        layout::tag(address)
    }

    fn access(
        &self,
        world: &mut World,
        watcher: &Watcher,
        address: u64,
        asked: Asked,
    ) -> Result<(u64, u64), Outcome> {
        let Asked { kind, privilege, at } = asked;
        let s = self.state;
        let processor = &self.subject.features.processor;
        let refused = |_| Outcome::REGISTERS;
        let format1 = Stage1::new(TranslationRegime::El10, s[4], s[3], s[10], processor);
        let format1 = format1.map_err(refused)?;
        let format2 = Stage2::new(s[9], s[10], 0, processor).map_err(refused)?;
        let mut regime = Regime { arm: State::new(s[7], s[10]), ..Regime::default() };
        // AT S12E1R and its like do not look at PSTATE.PAN.
        regime.arm.pan = s[11] & 1 << 22 != 0 && !at;
        let deviates = |name| self.subject.deviations.contains(&name);
        let any_block = deviates("block-at-any-level");
        let unread = |size: u64, tg0: u64, ds: bool| {
            let small = size & 7 < 6;
            match (deviates("upper-output-bits-unread") && small, ds, tg0 & 3) {
                (true, true, _) => 3 << 8,
                (true, false, 1) if processor.physical_bits == 52 => 0xF << 12,
                _ => 0,
            }
        };
        let (lpa2_1, lpa2_2) = (s[4] >> 59 & 1 != 0, s[9] >> 32 & 1 != 0);
        let unread1 = unread(s[4] >> 32, s[4] >> 14, lpa2_1);
        let unread2 = unread(s[9] >> 16, s[9] >> 14, lpa2_2);
        // Bits 5:2 of a root register are address bits 51:48 of LPA2.
        let unread_root = |unread| if unread == 3 << 8 { ROOT_UPPER } else { 0 };
        let root =
            Root { ttbr0: s[5] & !unread_root(unread1), ttbr1: s[6] & !unread_root(unread1) };
        let root2 = s[8] & !unread_root(unread2);
        let offsets = deviates("root-bits-are-an-offset");
        let offset = |register: u64, size: u64| {
            if offsets { (register, 64 - (size & 63) as u32) } else { (0, 0) }
        };
        let whole_address = deviates("whole-block-address-checked");
        let lenient1 = Lenient {
            any_block,
            lpa2: lpa2_1,
            whole_address,
            unread: unread1,
            clean_executes: deviates("clean-page-executable"),
            root_offsets: [offset(s[5], s[4]), offset(s[6], s[4] >> 16)],
            ..Lenient::exact(format1)
        };
        let lenient2 = Lenient {
            any_block,
            lpa2: lpa2_2,
            whole_address,
            unread: unread2,
            root_offsets: [offset(s[8], s[9]); 2],
            ..Lenient::exact(format2)
        };
        let stage1 = Stage::<_, Gva, Gpa>::new(lenient1, root).with_updates(Updates::OnSuccess);
        let stage2 = Stage::<_, Gpa, Spa>::new(lenient2, root2).with_updates(Updates::OnSuccess);
        let access = Access::new(kind, privilege);
        let address = Gva::new(address);
        let found = translate(&stage1, &stage2, world, address, &access, &regime, watcher);
        let found = found.map_err(|failed| match failed {
            Failed::Below(Failed::Here(mut fault)) => {
                if let Purpose::Table { level } | Purpose::Update { level } = fault.access.purpose
                    && deviates("table-fault-level")
                {
                    fault.level = level;
                }
                if fault.cause == Cause::Permission(Denied::TABLE_IN_DEVICE) {
                    if deviates("protected-walk-level") {
                        // The manual's level 0.
                        fault.level = 3;
                    }
                    if deviates("device-table-accessed") {
                        // Where hardware does not set the flag, a clear one is a fault of its own.
                        world.poke(fault.entry_address, fault.entry | bits::AF);
                    }
                }
                Failed::Below(Failed::Here(fault))
            }
            other => other,
        });
        match found {
            Ok(found) => {
                let spa = found.output().raw();
                if !at {
                    return Ok((spa, 0));
                }
                // MemAttr[1:0] of normal memory has a reserved encoding.
                let attributes2 = found.stage2.found.entry >> 2 & 15;
                if attributes2 & 3 == 0 && attributes2 != 0 {
                    return Err(UNUSABLE);
                }
                let MemoryType::Arm(mut attributes) =
                    found.memory_type(&lenient1, &lenient2, &regime)
                else {
                    return Err(UNUSABLE);
                };
                // The models asked have no FEAT_XS.
                attributes.xs = true;
                let par = syndrome::par_of_success(spa, &attributes);
                let mut value = par.value & par.defined;
                if deviates("device-combined-with-normal") && s[3] & 1 != 0 {
                    let index = found.stage1.found.entry >> 2 & 7;
                    value = arm::combined_as_device(value, s[7] >> (8 * index), attributes2);
                }
                Ok((spa, value))
            }
            Err(failed) if at => Err(match failed {
                Failed::Here(fault) => match syndrome::par_of_fault(&fault, false) {
                    Some(par) => Outcome::Stage1 { syndrome: par.value, address: 0 },
                    None => UNUSABLE,
                },
                Failed::Below(Failed::Here(fault)) => match syndrome::par_of_fault(&fault, true) {
                    Some(par) => Outcome::Stage2 { syndrome: par.value, address: 0, origin: 0 },
                    None => UNUSABLE,
                },
                Failed::Below(Failed::Below(_)) => Outcome::Bus { syndrome: 0 },
            }),
            Err(failed) => Err(match (&failed, syndrome::abort(&failed, &access)) {
                (Failed::Below(Failed::Below(_)), _) => Outcome::Bus { syndrome: 0 },
                (_, None) => UNUSABLE,
                (Failed::Here(_), Some(abort)) => Outcome::Stage1 {
                    syndrome: abort.esr.value & SYNDROME,
                    address: abort.far.choose().unwrap_or(0),
                },
                (Failed::Below(_), Some(abort)) => Outcome::Stage2 {
                    syndrome: abort.esr.value & SYNDROME,
                    address: abort.hpfar.choose().unwrap_or(0),
                    origin: abort.far.choose().unwrap_or(0),
                },
            }),
        }
    }

    fn vector(&self, _: Kind, user: bool) -> u64 {
        self.state[12] + if user { 0x400 } else { 0x200 }
    }
}

/// Whether a walk whose steps these are ended where stage 2 was to read an entry: no leaf of stage 2 led on.
fn in_walk_of_stage2(steps: &[Step]) -> bool {
    !steps
        .last()
        .is_some_and(|step| step.stage == 2 && matches!(step.decoded, Decoded::Leaf { .. }))
}

pub(super) fn expect(
    subject: &Arm64,
    probe: &Probe,
    world: &mut World,
    watcher: &Watcher,
) -> Expectation {
    let state = &probe.state;
    let machine = Machine { subject, state };
    let mut expectation = arm::expect(&machine, probe, world, watcher);
    if probe.operation == 1 {
        // An external abort goes to EL1's vectors, unless it is of stage 2's own walk; HVC is undefined at
        // EL0 and goes there too.
        let user = arm::is_user(state);
        let goes = match expectation.outcome {
            Outcome::Bus { .. } => !in_walk_of_stage2(&watcher.steps()),
            outcome => outcome.is_done() && user,
        };
        let vector = machine.vector(Kind::Execute, user);
        expectation.unusable |=
            goes && arm::returns(&machine, world, watcher, vector, true) != Return::Comes;
    }
    expectation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deviations::{Model, Seen};
    use crate::engine::{Verdict, judge, names};
    use crate::golden::questions;
    use crate::probe::complete;

    /// A fetch that stage 1 refuses, of a guest whose upper half's root lies in what stage 2 makes a device:
    /// the fetch of the vector is denied by HCR_EL2.PTW, and QEMU 10.0 sets the access flag of that device's
    /// leaf (met in a run of a million probes).
    #[test]
    fn flags_that_the_vector_sets_are_explained() {
        const LEAF: u64 = 0x4311_0010;
        let file = include_bytes!("../../golden/stage2-qemu10-0-max.zst");
        let (subject, _) = questions(file, 0).unwrap();
        let mut state = [0; STATE];
        (state[0], state[1]) = (0x1_0305_cfd8, 0x1_0305_cfd8);
        (state[3], state[4], state[5], state[6]) =
            (0x30d0_1805, 0x5_7519_b526, 0x4313_0000, 0x4316_0000);
        (state[7], state[8], state[9], state[10]) =
            (0x0444_bbff, 0x4310_0000, 0x8026_7595, 0x8000_0005);
        (state[11], state[12]) = (0x3c5, layout::STUB_EL1);
        let words = vec![(0x4310_0000, 0x4311_0003), (LEAF, 0x41)];
        let probe = Probe { operation: 1, state, words };
        let world = &mut subject.template();
        let case = complete(subject.as_ref(), world, probe, &mut Vec::new()).unwrap();
        let outcome = Outcome::Stage1 { syndrome: 0x8600_0004, address: state[0] };
        assert_eq!(case.expected, outcome);
        let words: Vec<u64> = case.compared.iter().map(|&(_, _, after)| after).collect();
        let judged = |words: Vec<u64>| {
            let (world, seen) = (&mut subject.template(), Seen { outcome, words });
            match judge(Model::Qemu10Aarch64, subject.as_ref(), world, &case, &seen) {
                Verdict::Agree => "agrees".to_owned(),
                Verdict::Masked(deviations) => names(&deviations),
                Verdict::Disagree => "disagrees".to_owned(),
            }
        };
        let flagged = |leaf: u64| -> Vec<u64> {
            let flag = |&(at, ..): &(u64, u64, u64)| if at == leaf { bits::AF } else { 0 };
            words.iter().zip(&case.compared).map(|(word, compared)| word | flag(compared)).collect()
        };
        assert_eq!(judged(words.clone()), "agrees");
        assert_eq!(judged(flagged(LEAF)), "device-table-accessed");
        assert_eq!(judged(flagged(0x4310_0000)), "disagrees");
    }
}
