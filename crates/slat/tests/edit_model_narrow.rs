//! Random sequences of every operation on formats of 32-bit entries, and on upper halves, against a model: a map from page to what it
//! is mapped to. Hardware sets accessed and dirty bits meanwhile, frames run out, budgets end and
//! operations are abandoned.

use proptest::prelude::*;
use slat::edit::arm32::Upper;
use slat::edit::{Live, Quiet, riscv, x86};
use slat::format::arm32;
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};

mod model;

use model::{PAGE, PAGES, drive, operation, sequence};

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_on_narrow_formats_and_upper_halves(
        ops in prop::collection::vec((operation(), drive()), 1..40)
    ) {
        let adue = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
        let window = PAGES * PAGE;
        // 34-bit inputs under a root of 16 KiB, and outputs above 4 GiB.
        let second = riscv::Sv32::new(Sv::stage2(Scheme::Sv32, adue)).unwrap();
        sequence::<_, Live>(second, (1 << 34) - window, &ops);
        let first = riscv::Sv32::new(Sv::stage1(Scheme::Sv32, adue)).unwrap();
        sequence::<_, Quiet>(first, (1 << 32) - window, &ops);
        let npt = x86::Npt32::new(Npt::legacy(true, 40)).unwrap();
        sequence::<_, Live>(npt, (1 << 32) - window, &ops);
        // TTBCR.N = 2: everything from 1 GiB on.
        let v8 = arm32::Processor::default();
        let registers = arm32::Registers {
            ttbcr: 2,
            sctlr: arm32::sctlr::M,
            dacr: 1 << 14,
            ..arm32::Registers::default()
        };
        let short = arm32::Short::new(&registers, &v8).unwrap().in_domain(7).unwrap();
        sequence::<_, Live>(Upper::<arm32::Short>::new(short).unwrap(), 1 << 30, &ops);
        sequence::<_, Live>(short, (1 << 30) - window, &ops);
        // TTBCR.T1SZ = 1: everything from 2 GiB on.
        let registers =
            arm32::Registers { ttbcr: arm32::ttbcr::EAE | 1 << 16, ..registers };
        let long = arm32::Lpae::new(&registers, &v8).unwrap();
        sequence::<_, Live>(Upper::<arm32::Lpae>::new(long).unwrap(), (1 << 32) - window, &ops);
    }
}
