//! RISC-V, both stages, with any registers over any memory: no panic, a bounded number of reads, and
//! whatever decodes can be described and reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat::format::Format;
use slat::format::riscv::{Features, Mask, Sv, Width, hgatp, vsatp};
use slat::regime::riscv::State;
use slat::syndrome::riscv::{Reports, Trapped, transform};
use slat::{
    Access, ByteOrder, Flavor, Gpa, Gva, Kind, Privilege, Regime, SliceMemory, Spa, Stage, Steps,
    Updates, translate,
};

fuzz_target!(|input: ([u64; 3], [u16; 2], u16, u32, Vec<u8>)| {
    let ([vsatp_value, hgatp_value, address], options, choice, instruction, mut bytes) = input;
    let on = |bit: u32| choice >> bit & 1 != 0;
    let width = if on(0) { Width::Rv32 } else { Width::Rv64 };
    let Ok(vs) = vsatp(vsatp_value, width) else { return };
    let Ok(g) = hgatp(hgatp_value, width) else { return };
    let features = |options: u16| {
        let on = |bit: u32| options >> bit & 1 != 0;
        let mask = |low: u32| Mask::from_pmm((options >> low & 3) as u8).unwrap_or_default();
        Features {
            hardware_ad: on(0),
            napot: on(1),
            memory_types: on(2),
            shadow_stacks: on(3),
            software_bits: on(4),
            order: if on(5) { ByteOrder::Big } else { ByteOrder::Little },
            supervisor_mask: mask(6),
            user_mask: mask(8),
        }
    };
    let format1 = Sv::stage1(vs.scheme, features(options[0]));
    let format2 = Sv::stage2(g.scheme, features(options[1]));
    let kind = [Kind::Read, Kind::Write, Kind::Execute][usize::from(choice >> 1) % 3];
    let privilege = if on(3) { Privilege::User } else { Privilege::Supervisor };
    let flavor =
        [Flavor::Plain, Flavor::Hlvx, Flavor::ShadowStack][usize::from(choice >> 4) % 3];
    let access = Access::new(kind, privilege).with_flavor(flavor);
    let riscv = State { sum: on(8), mxr: on(9), vsmxr: on(10) };
    let regime = Regime { riscv, ..Regime::default() };
    let steps = Steps::<64>::default();
    let outcome = translate(
        &Stage::<_, Gva, Gpa>::new(format1, vs.table).with_updates(Updates::OnSuccess),
        &Stage::<_, Gpa, Spa>::new(format2, g.table).with_updates(Updates::AsWalked),
        &mut SliceMemory::new(Spa::new(0), &mut bytes),
        Gva::new(address),
        &access,
        &regime,
        &steps,
    );
    // 5 levels over 5, then the update's own walk; entries that are of both stages start a walk over.
    assert!(steps.count() <= 1024 * (35 + 5), "{} steps", steps.count());
    let mut text = String::new();
    for step in steps.iter() {
        let format = if step.stage == 1 { &format1 } else { &format2 };
        assert!(format.describe(step.entry, step.level, &mut text).is_ok());
    }
    match outcome {
        Ok(found) => {
            let _ = found.memory_type(&format1, &format2, &regime).to_string();
        }
        Err(failure) => {
            let transformed = Some(transform(instruction, choice as u8, width));
            let trapped = Trapped {
                address: Gva::new(address),
                access: &access,
                stage1: &format1,
                regime: &regime,
                transformed,
            };
            if let Some(trap) = trapped.of_two_stages(&failure) {
                for reports in [Reports::ALL, Reports::NOTHING] {
                    assert!(trap.permits(&trap.registers(reports)));
                }
            }
        }
    }
});
