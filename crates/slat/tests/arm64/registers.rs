//! Register values: what each field does, and what is refused.

use slat::format::arm64::{Granule, Processor, Root, Stage1, Stage2, TranslationRegime};
use slat::format::{Format, Start};
use slat::regime::arm::hcr;
use slat::register::{Refusal, Refused};
use slat::{Access, ByteOrder, Cause, Kind, Privilege, Regime, Why};

use TranslationRegime::{El2, El10, El20};

/// 39 bits in each half, 4K, 48 bits out.
const TCR: u64 = 25 | 25 << 16 | 2 << 30 | 5 << 32;
const TCR_EL2: u64 = 25 | 5 << 16;

fn stage1(regime: TranslationRegime, tcr: u64) -> Result<Stage1, Refused> {
    let hcr = if regime == El20 { hcr::E2H } else { 0 };
    Stage1::new(regime, tcr, 1, hcr, &Processor::default())
}

fn begin(stage1: &Stage1, input: u64, access: &Access) -> Result<Start, (u8, Cause)> {
    let root = Root { ttbr0: 0x1000, ttbr1: 0x2000 };
    stage1.begin(&root, input, access, &Regime::default())
}

fn table(stage1: &Stage1, input: u64) -> Option<(u64, u64)> {
    match begin(stage1, input, &Access::default()) {
        Ok(Start::Table { table, input, .. }) => Some((table, input)),
        _ => None,
    }
}

#[test]
fn every_bit_of_tcr_el1_is_followed_accepted_or_refused() {
    for bit in 0..64u32 {
        let outcome = stage1(El10, TCR ^ 1 << bit);
        let why = match bit {
            6 | 35 | 62 | 63 => "RES0",
            60 | 61 => "MTX",
            // TG1 0b00, where TG1 was 0b10.
            31 => "TG1",
            _ => {
                outcome.unwrap_or_else(|refused| panic!("bit {bit}: {refused}"));
                continue;
            }
        };
        let refused = outcome.expect_err("refused");
        assert!(refused.to_string().contains(why), "bit {bit}: {refused}");
        assert_eq!(refused.register, "tcr_el1");
    }
}

#[test]
fn every_bit_of_tcr_el2_is_followed_accepted_or_refused() {
    for bit in 0..64u32 {
        let outcome = stage1(El2, TCR_EL2 ^ 1 << bit);
        let refused = match bit {
            6 | 7 | 19 | 34.. => Some("RES0"),
            33 => Some("MTX"),
            _ => None,
        };
        match (outcome, refused) {
            (Ok(_), None) => {}
            (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{bit}: {error}"),
            (outcome, _) => panic!("bit {bit}: {outcome:?}"),
        }
    }
}

#[test]
fn every_bit_of_vtcr_is_followed_accepted_or_refused() {
    let vtcr = 25 | 1 << 6 | 5 << 16;
    for bit in 0..64u32 {
        let outcome = Stage2::new(vtcr ^ 1 << bit, hcr::VM, 0, &Processor::default());
        let refused = match bit {
            34 | 35 | 41 => Some("FEAT_THE"),
            36 => Some("FEAT_S2PIE"),
            37 => Some("FEAT_S2POE"),
            38 => Some("FEAT_D128"),
            40 => Some("FEAT_GCS"),
            44 => Some("FEAT_HAFT"),
            45 => Some("FEAT_HDBSS"),
            20 | 23 | 24 | 39 | 42 | 43 | 46.. => Some("RES0"),
            _ => None,
        };
        match (outcome, refused) {
            (Ok(_), None) => {}
            (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{bit}: {error}"),
            (outcome, _) => panic!("bit {bit}: {outcome:?}"),
        }
        // While stage 2 is off, nothing in it matters.
        let off = Stage2::new(vtcr ^ 1 << bit, 0, 0, &Processor::default()).unwrap();
        assert!(!off.is_enabled());
    }
}

#[test]
fn reserved_granules_matter_only_where_they_are_used() {
    assert_eq!(stage1(El10, TCR | 3 << 14).unwrap_err().why, Refusal::Reserved("TG0 0b11"));
    assert!(stage1(El10, TCR | 3 << 14 | 1 << 7).is_ok(), "EPD0");
    let without_tg1 = TCR & !(3 << 30);
    assert_eq!(stage1(El10, without_tg1).unwrap_err().why, Refusal::Reserved("TG1 0b00"));
    assert!(stage1(El10, without_tg1 | 1 << 23).is_ok(), "EPD1");
    let off = Stage1::new(El10, without_tg1, 0, 0, &Processor::default()).unwrap();
    assert!(!off.is_enabled());
}

#[test]
fn hcr_and_the_regime_must_agree() {
    let new = |regime, tcr, hcr| Stage1::new(regime, tcr, 1, hcr, &Processor::default());
    assert!(matches!(new(El2, TCR_EL2, hcr::E2H).unwrap_err().why, Refusal::Contradiction(_)));
    assert!(matches!(new(El20, TCR, 0).unwrap_err().why, Refusal::Contradiction(_)));
    let refused = new(El10, TCR, hcr::NV1).unwrap_err();
    assert!(refused.to_string().contains("FEAT_NV"), "{refused}");
    // DC and TGE switch EL1&0's stage 1 off, not EL2's.
    for bit in [hcr::DC, hcr::TGE] {
        assert!(!new(El10, TCR, bit).unwrap().is_enabled());
        assert!(new(El2, TCR_EL2, bit).unwrap().is_enabled());
    }
    // DC switches stage 2 on; EL2&0 hosting EL0 switches it off.
    let second = |hcr| Stage2::new(25 | 1 << 6 | 5 << 16, hcr, 0, &Processor::default()).unwrap();
    assert!(second(hcr::DC).is_enabled());
    assert!(second(hcr::VM | hcr::E2H).is_enabled());
    assert!(second(hcr::VM | hcr::TGE).is_enabled());
    assert!(!second(hcr::VM | hcr::E2H | hcr::TGE).is_enabled());
}

#[test]
fn halves_tags_and_disabled_walks() {
    const LOW: u64 = 0x12_3456_7000;
    const HIGH: u64 = !0 << 39 | LOW;
    let plain = stage1(El10, TCR).unwrap();
    assert_eq!(table(&plain, LOW), Some((0x1000, LOW)));
    assert_eq!(table(&plain, HIGH), Some((0x2000, LOW)));
    for outside in [1 << 39, !0 << 40, 1 << 63, 1 << 55 | LOW, HIGH & !(1 << 60)] {
        let error = begin(&plain, outside, &Access::default());
        assert_eq!(error, Err((3, Cause::InputSize)), "{outside:#x}");
    }
    // Tags: TBI0, TBI1; TBID takes them from fetches.
    let tagged = stage1(El10, TCR | 3 << 37).unwrap();
    assert_eq!(table(&tagged, 0xa5 << 56 | LOW), Some((0x1000, LOW)));
    assert_eq!(table(&tagged, HIGH & !(0xff << 56)), Some((0x2000, LOW)));
    let data_only = stage1(El10, TCR | 3 << 37 | 3 << 51).unwrap();
    let fetch = Access::new(Kind::Execute, Privilege::Supervisor);
    assert_eq!(table(&data_only, 0xa5 << 56 | LOW), Some((0x1000, LOW)));
    let error = begin(&data_only, 0xa5 << 56 | LOW, &fetch);
    assert_eq!(error, Err((3, Cause::InputSize)));
    // EPD and E0PD, each for its half.
    for (bit, high) in [(7, false), (23, true)] {
        let disabled = stage1(El10, TCR | 1 << bit).unwrap();
        assert_eq!(table(&disabled, LOW).is_some(), high);
        assert_eq!(table(&disabled, HIGH).is_some(), !high);
    }
    let user = Access::new(Kind::Read, Privilege::User);
    for (bit, address) in [(55, LOW), (56, HIGH)] {
        let no_user = stage1(El10, TCR | 1 << bit).unwrap();
        assert!(begin(&no_user, address, &Access::default()).is_ok());
        assert_eq!(begin(&no_user, address, &user), Err((3, Cause::Disabled)));
    }
    // EL2 has one half: bit 55 is out of range like any other.
    let el2 = stage1(El2, TCR_EL2).unwrap();
    assert_eq!(table(&el2, LOW), Some((0x1000, LOW)));
    assert_eq!(begin(&el2, HIGH, &Access::default()), Err((3, Cause::InputSize)));
}

#[test]
fn halves_with_granules_of_their_own() {
    let mixed = stage1(El10, TCR & !(3 << 30) | 3 << 30).unwrap();
    assert_eq!(mixed.half(0).geometry().granule(), Granule::Four);
    assert_eq!(mixed.half(!0).geometry().granule(), Granule::SixtyFour);
    assert_eq!(mixed.half(0).shift(1), 21);
    assert_eq!(mixed.half(!0).shift(1), 29);
    // Which half's tables a value speaks of; with one granule, of both.
    for (stage, other) in [(mixed, false), (stage1(El10, TCR).unwrap(), true)] {
        for (half, another) in [(0, !0), (!0, 0)] {
            assert!(stage.half(half).speaks_of(half));
            assert_eq!(stage.half(half).speaks_of(another), other);
        }
    }
}

#[test]
fn byte_orders() {
    let big = Stage1::new(El10, TCR, 1 | 1 << 25, 0, &Processor::default()).unwrap();
    assert_eq!(big.layout().order, ByteOrder::Big);
    let big = Stage2::new(25 | 1 << 6, hcr::VM, 1 << 25, &Processor::default()).unwrap();
    assert_eq!(big.layout().order, ByteOrder::Big);
}

#[test]
fn input_sizes_by_granule_and_processor() {
    let all = Processor::default();
    let old = Processor {
        physical_bits: 48,
        large_virtual_addresses: false,
        lpa2: false,
        small_tables: false,
        ..all
    };
    for (granule, bits, new, before) in [
        (Granule::Four, 52, true, false),
        (Granule::Four, 49, true, false),
        (Granule::Four, 48, true, true),
        (Granule::Four, 25, true, true),
        (Granule::Four, 24, true, false),
        (Granule::Four, 16, true, false),
        (Granule::Four, 15, false, false),
        (Granule::Sixteen, 52, true, false),
        (Granule::Sixteen, 16, true, false),
        (Granule::SixtyFour, 52, true, false),
        (Granule::SixtyFour, 48, true, true),
        (Granule::SixtyFour, 17, true, false),
        (Granule::SixtyFour, 16, false, false),
    ] {
        assert_eq!(Stage1::plain(granule, bits, &all).is_ok(), new, "{granule:?} {bits}");
        assert_eq!(Stage1::plain(granule, bits, &old).is_ok(), before, "{granule:?} {bits}");
    }
}

/// Every IPA size that a processor has is reachable with at most 16 concatenated tables, and the
/// root is as large as the size and the level say.
#[test]
fn stage_2_sizes() {
    for physical_bits in [32u8, 36, 40, 42, 44, 48, 52] {
        let processor = Processor { physical_bits, ..Processor::default() };
        for granule in [Granule::Four, Granule::Sixteen, Granule::SixtyFour] {
            for ipa_bits in 18..=52u8 {
                let stage = Stage2::plain(granule, ipa_bits, &processor);
                assert_eq!(stage.is_ok(), ipa_bits <= physical_bits, "{granule:?} {ipa_bits}");
                let Ok(stage) = stage else { continue };
                let index = u32::from(ipa_bits) - stage.shift(stage.root_level());
                assert!((1..=granule.stride() + 4).contains(&index), "{granule:?} {ipa_bits}");
                assert_eq!(stage.root_shift(), index + 3);
            }
        }
    }
}

/// `VTCR_EL2.PS`: the smallest size that the processor's addresses fit; 52 bits only where the granule can say
/// them. The other fields: a walk that is inner shareable and write-back, and `T0SZ`.
#[test]
fn stage_2_control_is_made_for_the_processor() {
    let fixed = 1 << 31 | 3 << 12 | 5 << 8;
    let (four, sixty_four) = (Granule::Four, Granule::SixtyFour);
    for (granule, physical_bits, ipa_bits, ps, rest) in [
        (four, 32, 32, 0, 32),
        (four, 33, 32, 1, 32),
        (four, 36, 36, 1, 1 << 6 | 28),
        (four, 40, 40, 2, 1 << 6 | 24),
        (four, 42, 40, 3, 1 << 6 | 24),
        (four, 44, 44, 4, 2 << 6 | 20),
        (four, 45, 40, 5, 1 << 6 | 24),
        (four, 48, 40, 5, 1 << 6 | 24),
        (four, 52, 48, 5, 2 << 6 | 16),
        (four, 52, 52, 6, 1 << 32 | 2 << 6 | 12),
        // No processor has that many; it would take a root of level -1.
        (four, 52, 56, 6, 1 << 33 | 1 << 32 | 8),
        (sixty_four, 48, 48, 5, 1 << 14 | 2 << 6 | 16),
        (sixty_four, 52, 40, 6, 1 << 14 | 1 << 6 | 24),
    ] {
        let processor = Processor { physical_bits, ..Processor::default() };
        let control = Stage2::control(granule, ipa_bits, &processor);
        let expected = fixed | ps << 16 | rest;
        assert_eq!(control, expected, "{granule:?} {physical_bits} {ipa_bits}: {control:#x}");
    }
}

/// `SL0`, `SL2` and `T0SZ`, against what `VTCR_EL2.SL0` and `SL2` say of each granule, and the sizes that
/// each start level resolves.
#[test]
fn every_start_level() {
    let processor = Processor::default();
    // Granule's TG0, DS, SL2, SL0, the level, and the lowest and highest input size.
    let valid: [(u64, u64, u64, u64, u8, u8, u8); 15] = [
        (0, 0, 0, 0, 1, 22, 34),
        (0, 0, 0, 1, 2, 31, 43),
        (0, 0, 0, 2, 3, 40, 48),
        (0, 0, 0, 3, 0, 16, 25),
        (0, 1, 0, 0, 1, 22, 34),
        (0, 1, 0, 2, 3, 40, 52),
        (0, 1, 1, 0, 4, 49, 52),
        (2, 0, 0, 0, 0, 16, 29),
        (2, 0, 0, 1, 1, 26, 40),
        (2, 0, 0, 2, 2, 37, 48),
        (2, 1, 0, 2, 2, 37, 51),
        (2, 1, 0, 3, 3, 48, 52),
        (1, 0, 0, 0, 0, 17, 33),
        (1, 0, 0, 1, 1, 30, 46),
        (1, 0, 0, 2, 2, 43, 52),
    ];
    for (tg0, ds, sl2, sl0, level, lowest, highest) in valid {
        for t0sz in 0..64u64 {
            let vtcr = t0sz | sl0 << 6 | tg0 << 14 | 6 << 16 | ds << 32 | sl2 << 33;
            let stage = Stage2::new(vtcr, hcr::VM, 0, &processor).unwrap();
            let begun = stage.begin(&0, 0, &Access::default(), &Regime::default());
            let size = 64 - t0sz as u8;
            let expected = if (lowest..=highest).contains(&size) {
                Ok(Start::Table { table: 0, level, input: 0 })
            } else {
                Err((3, Cause::Geometry))
            };
            assert_eq!(begun, expected, "vtcr {vtcr:#x}: {size} bits");
        }
    }
    let invalid: [(u64, u64, u64, u64); 5] =
        [(0, 1, 1, 1), (0, 1, 1, 2), (0, 1, 1, 3), (2, 0, 0, 3), (1, 0, 0, 3)];
    for (tg0, ds, sl2, sl0) in invalid {
        for t0sz in 0..64u64 {
            let vtcr = t0sz | sl0 << 6 | tg0 << 14 | 6 << 16 | ds << 32 | sl2 << 33;
            let stage = Stage2::new(vtcr, hcr::VM, 0, &processor).unwrap();
            let begun = stage.begin(&0, 0, &Access::default(), &Regime::default());
            assert_eq!(begun, Err((3, Cause::Geometry)), "vtcr {vtcr:#x}");
        }
    }
}

#[test]
fn roots_beyond_the_output_size() {
    let access = Access::default();
    let regime = Regime::default();
    // 40 bits out: a root beyond is an address size fault at level 0.
    let stage = Stage2::new(25 | 1 << 6 | 2 << 16, hcr::VM, 0, &Processor::default()).unwrap();
    let begun = stage.begin(&(1 << 40), 0, &access, &regime);
    let Err((3, Cause::Reserved(reserved))) = begun else { panic!("{begun:?}") };
    assert_eq!((reserved.why, reserved.bits), (Why::AddressSize, 1 << 40));
    // VMID and CnP are no part of the address, nor are bits below the root's size.
    let begun = stage.begin(&(0xffff << 48 | 0x7abc_d001), 0, &access, &regime);
    assert_eq!(begun, Ok(Start::Table { table: 0x7abc_d000, level: 2, input: 0 }));
    // 52 bits, 64K: bits 5:2 are the root's bits 51:48.
    let wide = Stage2::new(16 | 2 << 6 | 1 << 14 | 6 << 16, hcr::VM, 0, &Processor::default());
    let begun = wide.unwrap().begin(&(0x4_0000 | 0xa << 2), 0, &access, &regime);
    assert_eq!(begun, Ok(Start::Table { table: 0xa << 48 | 0x4_0000, level: 2, input: 0 }));
}

/// A stage that is off passes addresses on, tags stripped; beyond the physical width it faults.
#[test]
fn stage_1_off() {
    let processor = Processor { physical_bits: 40, ..Processor::default() };
    let off = Stage1::new(El10, TCR | 1 << 37, 0, 0, &processor).unwrap();
    let flat = |input| begin(&off, input, &Access::default());
    assert_eq!(flat(0xff_ffff_f123), Ok(Start::Flat { output: 0xff_ffff_f123 }));
    assert_eq!(flat(0x77 << 56 | 0x123), Ok(Start::Flat { output: 0x123 }));
    let Err((3, Cause::Reserved(reserved))) = flat(1 << 40) else { panic!() };
    assert_eq!((reserved.why, reserved.bits), (Why::AddressSize, 1 << 40));
    // The upper half has no tag here: TBI1 is clear.
    assert!(flat(1 << 55).is_err());
}
