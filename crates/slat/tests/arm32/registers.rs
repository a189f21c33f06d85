//! Register values: what is refused, by which name.

use slat::format::Format;
use slat::format::arm32::{Lpae, Processor, Registers, Root, Short, Stage2, sctlr, ttbcr};
use slat::regime::arm::hcr;
use slat::register::Refusal;
use slat::{Access, ByteOrder, Regime};

const ON: Registers = Registers { ttbcr: 0, ttbcr2: 0, sctlr: sctlr::M, dacr: 0, hcr: 0 };

#[test]
fn every_bit_of_ttbcr() {
    for bit in 0..32 {
        let value = 1u32 << bit;
        let short = Short::new(&Registers { ttbcr: value, ..ON }, &Processor::default());
        // N, PD0, PD1.
        assert_eq!(short.is_ok(), matches!(bit, 0..=2 | 4 | 5), "short: {bit}");
        let long = Registers { ttbcr: value | ttbcr::EAE, ..ON };
        let long = Lpae::new(&long, &Processor::default());
        let reserved = matches!(bit, 3..=5 | 14 | 15 | 19..=21);
        assert_eq!(long.is_err(), reserved, "long: {bit}");
        if let Err(refused) = long {
            assert_eq!((refused.register, refused.bits), ("ttbcr", u64::from(value)));
            assert!(matches!(refused.why, Refusal::Reserved(_)));
        }
    }
}

#[test]
fn the_other_format_is_named() {
    let processor = Processor::default();
    let refused = Lpae::new(&ON, &processor).unwrap_err();
    assert!(matches!(refused.why, Refusal::Contradiction(_)));
    let refused = Short::new(&Registers { ttbcr: ttbcr::EAE, ..ON }, &processor).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "ttbcr 0x80000000: EAE is set, which selects long descriptors (bits 0x80000000)"
    );
}

#[test]
fn a_stage_that_is_off_is_not_refused() {
    let garbage = Registers { ttbcr: !0, ttbcr2: !0, ..Registers::default() };
    let processor = Processor::default();
    assert!(!Lpae::new(&garbage, &processor).unwrap().is_enabled());
    assert!(!Short::new(&garbage, &processor).unwrap().is_enabled());
    assert!(!Stage2::new(!0, 0, 0, &processor).unwrap().is_enabled());
    assert!(!Lpae::hyp(!0, 0, &processor).unwrap().is_enabled());
    // DC and TGE switch stage 1 off, DC stage 2 on.
    for bits in [hcr::DC, hcr::TGE] {
        let registers = Registers { hcr: bits, ..ON };
        assert!(!Short::new(&registers, &processor).unwrap().is_enabled());
    }
    assert!(Stage2::new(1 << 31 | 1 << 6, hcr::DC, 0, &processor).unwrap().is_enabled());
}

#[test]
fn every_bit_of_ttbcr2_htcr_and_vtcr() {
    let processor = Processor::default();
    for bit in 0..32 {
        let value = 1u32 << bit;
        let registers = Registers { ttbcr: ttbcr::EAE | ttbcr::T2E, ttbcr2: value, ..ON };
        let accepted = matches!(bit, 9..=18);
        assert_eq!(Lpae::new(&registers, &processor).is_ok(), accepted, "ttbcr2: {bit}");
        // Without T2E it is not in effect.
        let registers = Registers { ttbcr: ttbcr::EAE, ..registers };
        assert!(Lpae::new(&registers, &processor).is_ok());
        let accepted = matches!(bit, 0..=2 | 8..=13 | 23..=28 | 30 | 31);
        assert_eq!(Lpae::hyp(value, sctlr::M, &processor).is_ok(), accepted, "htcr: {bit}");
        // T0SZ's sign and S go together.
        let vtcr = if matches!(bit, 3 | 4) { 0x18 } else { value };
        let accepted = matches!(bit, 0..=4 | 6..=13 | 25..=28 | 31);
        assert_eq!(Stage2::new(vtcr, hcr::VM, 0, &processor).is_ok(), accepted, "vtcr: {bit}");
    }
    let refused = Stage2::new(1 << 4, hcr::VM, 0, &processor).unwrap_err();
    assert!(refused.to_string().contains("S is not the sign of T0SZ"));
}

/// Of HTCR, T0SZ alone says how many bits an address has (Arm ARM G8.2, HTCR.T0SZ: 32 less that).
#[test]
fn hyp_mode_has_the_input_size_of_htcr() {
    let (access, regime) = (Access::default(), Regime::default());
    let root = Root { ttbr0: 0x4000, ttbr1: 0 };
    for size in 0..8 {
        let htcr = 1 << 31 | 1 << 23 | 3 << 12 | 5 << 8 | size;
        let format = Lpae::hyp(htcr, sctlr::M, &Processor::default()).unwrap();
        let reaches = |input| format.begin(&root, input, &access, &regime).is_ok();
        let beyond = 1u64 << (32 - size);
        assert!(reaches(beyond - 1), "T0SZ {size}");
        assert!(size == 0 || !reaches(beyond), "T0SZ {size}");
    }
}

#[test]
fn hypervisors_control() {
    for ipa_bits in 25..=40 {
        let vtcr = Stage2::control(ipa_bits);
        let stage = Stage2::new(vtcr, hcr::VM, 0, &Processor::V7).unwrap();
        assert_eq!(stage.input_bits(), ipa_bits);
        assert_eq!(stage.root_level(), Some(if ipa_bits > 34 { 2 } else { 1 }));
    }
}

/// `SCTLR.EE` for PL1&0's tables, `HSCTLR.EE` for Hyp mode's own and stage 2's (Arm ARM G8.2).
#[test]
fn byte_orders() {
    const EE: u32 = 1 << 25;
    let processor = Processor::default();
    let orders = |ee: u32| {
        let long = Registers { ttbcr: ttbcr::EAE, sctlr: sctlr::M | ee, ..ON };
        let short = Registers { sctlr: sctlr::M | ee, ..ON };
        [
            Short::new(&short, &processor).unwrap().layout(),
            Lpae::new(&long, &processor).unwrap().layout(),
            Lpae::hyp(0, sctlr::M | ee, &processor).unwrap().layout(),
            Stage2::new(0x40, hcr::VM, ee, &processor).unwrap().layout(),
        ]
    };
    for (ee, order) in [(0, ByteOrder::Little), (EE, ByteOrder::Big)] {
        let layouts = orders(ee);
        assert!(layouts.iter().all(|layout| layout.order == order), "{ee:#x}: {layouts:?}");
        assert_eq!(layouts.map(|layout| layout.size.bytes()), [4, 8, 8, 8]);
    }
}
