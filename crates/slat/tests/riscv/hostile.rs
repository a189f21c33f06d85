//! Any registers over any memory: nothing panics, and walks are bounded.

use proptest::prelude::*;
use slat::format::Format;
use slat::format::riscv::{Features, Mask, Sv, Width, hgatp, vsatp};
use slat::regime::riscv::State;
use slat::syndrome::riscv::{Reports, Trapped, transform};
use slat::{
    Access, Flavor, Gpa, Gva, Kind, Privilege, Regime, Spa, Stage, Steps, Updates, translate,
};

use crate::naive::invent;
use crate::ram::Ram;

/// A field that is mostly a valid MODE.
fn register() -> impl Strategy<Value = u64> {
    let mode = prop_oneof![Just(8u64), Just(9), Just(10), 0..16u64];
    (any::<u64>(), mode, any::<bool>()).prop_map(|(bits, mode, low)| {
        let bits = if low { bits & 0xf } else { bits };
        bits & !(0xf << 60) & !(3 << 58) | mode << 60
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_registers_over_any_memory(
        seed: u64,
        vs in register(),
        g in register(),
        options: [u16; 2],
        rv32: bool,
        choice: u16,
        instruction: u32,
        address: u64,
    ) {
        let width = if rv32 { Width::Rv32 } else { Width::Rv64 };
        let cut = |value: u64| if rv32 { value >> 32 & !(3 << 29) } else { value };
        let (Ok(vs), Ok(g)) = (vsatp(cut(vs), width), hgatp(cut(g), width)) else {
            return Ok(());
        };
        let features = |options: u16| {
            let on = |bit: u32| options >> bit & 1 != 0;
            let mask = |low: u32| Mask::from_pmm((options >> low & 3) as u8).unwrap_or_default();
            Features {
                hardware_ad: on(0),
                napot: on(1),
                memory_types: on(2),
                shadow_stacks: on(3),
                software_bits: on(4),
                supervisor_mask: mask(5),
                user_mask: mask(7),
                ..Features::default()
            }
        };
        let format1 = Sv::stage1(vs.scheme, features(options[0]));
        let format2 = Sv::stage2(g.scheme, features(options[1]));
        let on = |bit: u32| choice >> bit & 1 != 0;
        let kind = [Kind::Read, Kind::Write, Kind::Execute][usize::from(choice >> 1) % 3];
        let privilege = if on(3) { Privilege::User } else { Privilege::Supervisor };
        let flavor =
            [Flavor::Plain, Flavor::Hlvx, Flavor::ShadowStack][usize::from(choice >> 4) % 3];
        let access = Access::new(kind, privilege).with_flavor(flavor);
        let riscv = State { sum: on(8), mxr: on(9), vsmxr: on(10) };
        let regime = Regime { riscv, ..Regime::default() };
        let steps = Steps::<64>::default();
        let mut ram = Ram { range: 0..1 << 50, words: Default::default(), fill: invent, seed };
        let outcome = translate(
            &Stage::<_, Gva, Gpa>::new(format1, vs.table).with_updates(Updates::OnSuccess),
            &Stage::<_, Gpa, Spa>::new(format2, g.table).with_updates(Updates::AsWalked),
            &mut ram,
            Gva::new(address),
            &access,
            &regime,
            &steps,
        );
        prop_assert!(steps.count() <= 1024 * (35 + 5));
        let mut text = String::new();
        for step in steps.iter() {
            let format = if step.stage == 1 { &format1 } else { &format2 };
            format.describe(step.entry, step.level, &mut text).unwrap();
        }
        match outcome {
            Ok(found) => {
                found.memory_type(&format1, &format2, &regime).to_string();
            }
            Err(failure) => {
                let trapped = Trapped {
                    address: Gva::new(address),
                    access: &access,
                    stage1: &format1,
                    regime: &regime,
                    transformed: Some(transform(instruction, choice as u8, width)),
                };
                let trap = trapped.of_two_stages(&failure);
                for reports in [Reports::ALL, Reports::NOTHING] {
                    prop_assert!(trap.is_none_or(|trap| trap.permits(&trap.registers(reports))));
                }
            }
        }
    }
}
