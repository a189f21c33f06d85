//! An audit of arbitrary bytes as tables of every second stage and some first ones: no panic, an end
//! within its budget, and what it counted is what it reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat::audit::{Ground, Owner, Policy, audit};
use slat::format::any::AnyFormat;
use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor as X86};
use slat::{Regime, SliceMemory, Spa};

/// Answers by the bits of what it is asked.
struct Any(u64);

impl Ground for Any {
    fn owner(&mut self, base: u64, bytes: u64) -> Owner {
        assert!(bytes.is_power_of_two());
        match (base ^ self.0) >> 12 & 7 {
            0..4 => Owner::Guest,
            4 => Owner::Shared,
            5 => Owner::Other,
            6 => Owner::Tables,
            _ => Owner::Nobody,
        }
    }
    fn first_visit(&mut self, table: u64, _: u8) -> bool {
        (table ^ self.0) >> 13 & 7 != 0
    }
}

fuzz_target!(|input: (u8, u64, u8, Vec<u8>)| {
    let (which, root, policy, mut bytes) = input;
    let features = Features { mode_based_execute: policy & 8 != 0, ..Features::default() };
    let processor = Processor { physical_bits: 48, ..Processor::default() };
    let stage2 = |granule| Stage2::plain(granule, 40, &processor).unwrap();
    let riscv = RiscvFeatures { napot: true, memory_types: true, ..RiscvFeatures::default() };
    let format = match which % 9 {
        0 => AnyFormat::Ept(Ept::four(features), root),
        1 => AnyFormat::Ept(Ept::five(features), root),
        2 => AnyFormat::Npt(Npt::four(true, X86::default()), root),
        3 => AnyFormat::Npt(Npt::pae(true, X86::default()), root),
        4 => AnyFormat::Npt(Npt::legacy(true, 40), root),
        5 => AnyFormat::Arm64Stage2(stage2(Granule::Four), root),
        6 => AnyFormat::Arm64Stage2(stage2(Granule::SixtyFour), root),
        7 => AnyFormat::Sv(Sv::stage2(Scheme::Sv39, riscv), root),
        _ => AnyFormat::Long(Long::four(Controls::default(), X86::default()), root),
    };
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let policy = Policy {
        logging: policy & 1 != 0,
        write_xor_execute: policy & 2 != 0,
        no_executable_large: policy & 4 != 0,
        table_budget: 3,
        most_tables: 20,
        ..Policy::default()
    };
    let mut count = 0;
    let regime = Regime::default();
    let summary = audit(&format, &(), &mut memory, &regime, &policy, &mut Any(root), &mut |found| {
        let _ = found.to_string();
        count += 1;
    });
    if let Ok(summary) = summary {
        assert_eq!(summary.findings, count);
        assert!(summary.tables <= 20);
    }
});
