//! Random sequences of every operation on every format, against a model: a map from page to what it
//! is mapped to. Hardware sets accessed and dirty bits meanwhile, frames run out, budgets end and
//! operations are abandoned.

use proptest::prelude::*;
use slat::edit::{Live, Quiet};
use slat::format::arm32;
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage1, Stage2};
use slat::format::ept::Ept;
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::Pae;

mod model;

use model::{PAGE, PAGES, drive, operation, sequence};

fn ept_with(mode_based_execute: bool) -> Ept {
    Ept::four(slat::format::ept::Features {
        physical_bits: 40,
        accessed_dirty: true,
        mode_based_execute,
        ..Default::default()
    })
}

fn long() -> Long {
    let controls = Controls { write_protect: true, nxe: true, ..Controls::default() };
    Long::four(controls, Processor { physical_bits: 46, ..Processor::default() })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_on_every_format(ops in prop::collection::vec((operation(), drive()), 1..40)) {
        // The window lies across the end of a top-level entry, where the format has room for that.
        sequence::<_, Live>(ept_with(false), (1 << 39) - (4 << 20), &ops);
        sequence::<_, Quiet>(ept_with(true), (1 << 30) - (2 << 20), &ops);
        let five = Ept::five(Default::default());
        sequence::<_, Quiet>(five, (1 << 48) - (4 << 20), &ops);
        let npt = Npt::four(true, Processor::default());
        sequence::<_, Live>(npt, 0, &ops);
        // The top of the address space: nothing may be computed beyond its last byte.
        sequence::<_, Live>(long(), 0u64.wrapping_sub(PAGES * PAGE), &ops);
        sequence::<_, Live>(Npt::pae(true, Processor::default()), (1 << 32) - PAGES * PAGE, &ops);
        let controls = Controls { nxe: true, ..Controls::default() };
        sequence::<_, Live>(Pae::new(controls, Processor::default()), (1 << 30) - (4 << 20), &ops);
        let arm = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
        // Concatenated roots; hardware dirty state.
        let vtcr = Stage2::control(Granule::Four, 40, &arm) | 3 << 21;
        let tracked = Stage2::new(vtcr, slat::regime::arm::hcr::VM, 0, &arm).unwrap();
        assert!(tracked.sets_dirty_state());
        sequence::<_, Live>(tracked, (1 << 39) - (4 << 20), &ops);
        let plain = Stage2::plain(Granule::Four, 39, &arm).unwrap();
        sequence::<_, Live>(plain, (1 << 30) - (4 << 20), &ops);
        // 52-bit output addresses, in two pieces.
        let wide = Stage2::plain(Granule::Four, 52, &ArmProcessor::default()).unwrap();
        sequence::<_, Live>(wide, (1 << 48) - (4 << 20), &ops);
        let lower = Stage1::plain(Granule::Four, 48, &arm).unwrap();
        sequence::<_, Live>(lower, (1 << 39) - (4 << 20), &ops);
        let top = 0u64.wrapping_sub(PAGES * PAGE);
        sequence::<_, Quiet>(slat::format::Format::half(&lower, top), top, &ops);
        let adue = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
        sequence::<_, Live>(Sv::stage2(Scheme::Sv48, adue), (1 << 49) - (4 << 20), &ops);
        sequence::<_, Live>(Sv::stage1(Scheme::Sv39, adue), top, &ops);
        // AArch32: stage 2, long and short descriptors.
        let v8 = arm32::Processor::default();
        let hcr = slat::regime::arm::hcr::VM;
        let second = arm32::Stage2::new(arm32::Stage2::control(40), hcr, 0, &v8).unwrap();
        sequence::<_, Live>(second, (1 << 39) - (4 << 20), &ops);
        let long = arm32::Registers {
            ttbcr: arm32::ttbcr::EAE,
            sctlr: arm32::sctlr::M,
            ..arm32::Registers::default()
        };
        sequence::<_, Live>(arm32::Lpae::new(&long, &v8).unwrap(), (1 << 31) - (4 << 20), &ops);
        let registers = arm32::Registers { ttbcr: 0, dacr: 1, ..long };
        let short = arm32::Short::new(&registers, &v8).unwrap();
        sequence::<_, Live>(short, (1 << 32) - PAGES * PAGE, &ops);
        sequence::<_, Live>(Legacy::new(Controls::default(), true, 40), (1 << 32) - PAGES * PAGE, &ops);
    }
}
