//! `satp`, `vsatp`, `hgatp`: every mode, and what is refused by which name.

use slat::format::riscv::{Mask, Root, Scheme, Width, hgatp, satp, vsatp};
use slat::register::Refusal;

#[test]
fn every_mode_of_rv64() {
    for mode in 0..16u64 {
        let scheme = match mode {
            0 => Some(Scheme::Bare),
            8 => Some(Scheme::Sv39),
            9 => Some(Scheme::Sv48),
            10 => Some(Scheme::Sv57),
            _ => None,
        };
        let value = mode << 60;
        for decoded in
            [satp(value, Width::Rv64), vsatp(value, Width::Rv64), hgatp(value, Width::Rv64)]
        {
            assert_eq!(decoded.ok().map(|root| root.scheme), scheme, "mode {mode}");
        }
    }
}

#[test]
fn fields() {
    // What a hart with every bit implemented reads back.
    assert_eq!(
        satp(0x8fff_ffff_ffff_ffff, Width::Rv64),
        Ok(Root { scheme: Scheme::Sv39, table: 0xff_ffff_ffff_f000, id: 0xffff })
    );
    assert_eq!(
        hgatp(0x93ff_ffff_ffff_ffff, Width::Rv64),
        Ok(Root { scheme: Scheme::Sv48, table: 0xff_ffff_ffff_c000, id: 0x3fff })
    );
    assert_eq!(
        vsatp(0xffff_ffff, Width::Rv32),
        Ok(Root { scheme: Scheme::Sv32, table: 0x3_ffff_f000, id: 0x1ff })
    );
    assert_eq!(
        hgatp(0x9fff_ffff, Width::Rv32),
        Ok(Root { scheme: Scheme::Sv32, table: 0x3_ffff_c000, id: 0x7f })
    );
}

/// Smmpm, Ssnpm: PMM 0 masks nothing, 2 seven bits, 3 sixteen; 1 is reserved.
#[test]
fn pointer_masks() {
    let masks = [0, 1, 2, 3, 4].map(Mask::from_pmm);
    assert_eq!(masks, [Some(Mask::Off), None, Some(Mask::Seven), Some(Mask::Sixteen), None]);
    assert_eq!([Mask::Off, Mask::Seven, Mask::Sixteen].map(Mask::bits), [0, 7, 16]);
}

#[test]
fn refusals_name_the_register_and_the_setting() {
    let refused = hgatp(1 << 60, Width::Rv64).unwrap_err();
    assert_eq!((refused.register, refused.bits), ("hgatp", 0xf << 60));
    assert!(matches!(refused.why, Refusal::Reserved(_)));
    let refused = satp(11 << 60, Width::Rv64).unwrap_err();
    assert_eq!(refused.why, Refusal::Reserved("MODE 11 (Sv64)"));
    // hgatp has no such mode, not even one to come, and none for custom use.
    for mode in [11, 14, 15] {
        let refused = hgatp(mode << 60, Width::Rv64).unwrap_err();
        assert_eq!(refused.why, Refusal::Reserved("this MODE"), "{mode}");
    }
    let refused = satp(15 << 60, Width::Rv64).unwrap_err();
    assert!(matches!(refused.why, Refusal::Unmodelled(_)));
    // Bare leaves no room for other fields.
    let refused = vsatp(0xffff, Width::Rv64).unwrap_err();
    assert_eq!((refused.register, refused.bits), ("vsatp", 0xffff));
    assert!(hgatp(0x3ff << 44, Width::Rv64).is_err() && satp(1, Width::Rv32).is_err());
    // Bits that hgatp does not have.
    assert_eq!(hgatp(8 << 60 | 1 << 58, Width::Rv64).unwrap_err().bits, 3 << 58);
    assert_eq!(hgatp(1 << 31 | 1 << 29, Width::Rv32).unwrap_err().bits, 3 << 29);
    assert!(satp(1 << 32, Width::Rv32).is_err());
    assert_eq!(
        hgatp(7 << 60, Width::Rv64).unwrap_err().to_string(),
        "hgatp 0x7000000000000000: this MODE is reserved (bits 0xf000000000000000)"
    );
}
