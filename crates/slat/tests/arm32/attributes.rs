//! Memory attributes of short descriptors: the manual's tables of TEX, C and B, and TEX remap.

#![allow(clippy::unusual_byte_groupings, reason = "TEX, then C and B")]

use slat::format::arm32::{Processor, Registers, Short, sctlr};
use slat::format::{Format, Found, Path};
use slat::memory_type::StageType;
use slat::regime::arm::State;
use slat::{Kind, Regime};

fn short(sctlr: u32) -> Short {
    let sctlr = sctlr | sctlr::M | sctlr::C | sctlr::I;
    Short::new(&Registers { sctlr, ..Registers::default() }, &Processor::default()).unwrap()
}

/// What a leaf with these fields says, by each of the four kinds of leaf.
fn said(format: &Short, texcb: u64, s: u64, regime: &Regime, kind: Kind) -> String {
    let (tex, cb) = (texcb >> 2, texcb & 3);
    let leaves = [
        (1, 20, 2 | cb << 2 | tex << 12 | s << 16),
        (1, 24, 2 | 1 << 18 | cb << 2 | tex << 12 | s << 16),
        (0, 16, 1 | cb << 2 | tex << 12 | s << 10),
        (0, 12, 2 | cb << 2 | tex << 6 | s << 10),
    ];
    let mut all = leaves.map(|(level, shift, entry)| {
        let found = Found { entry, level, base: 0, shift, path: Path::START, input: 0, kind };
        match format.memory_type(&found, regime) {
            StageType::Arm(attributes) => attributes.to_string(),
            other => panic!("{other:?}"),
        }
    });
    all.sort();
    assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
    all[0].clone()
}

/// "Normal" with these outer and inner caches, as the library prints it.
fn normal(outer: &str, inner: &str, shareability: &str) -> String {
    if (outer, inner) == ("NC", "NC") {
        "Normal NC, OSH".to_owned()
    } else if outer == inner {
        format!("Normal {outer}, {shareability}")
    } else {
        format!("Normal outer {outer} inner {inner}, {shareability}")
    }
}

/// Two bits of cacheability, of Arm ARM G5.7.2.
const CACHES: [&str; 4] = ["NC", "WB RWA", "WT RA", "WB RA"];

#[test]
fn tex_c_and_b_without_remap() {
    let format = short(0);
    let regime = Regime::default();
    for texcb in 0..32u64 {
        for s in 0..2u64 {
            let shareability = if s == 1 { "OSH" } else { "NSH" };
            let expected = match texcb {
                0b000_00 => "Device-nGnRnE, OSH".to_owned(),
                0b000_01 | 0b010_00 => "Device-nGnRE, OSH".to_owned(),
                0b000_10 => normal("WT RA", "WT RA", shareability),
                0b000_11 => normal("WB RA", "WB RA", shareability),
                0b001_00 => normal("NC", "NC", shareability),
                0b001_11 => normal("WB RWA", "WB RWA", shareability),
                16.. => {
                    let (outer, inner) = (texcb >> 2 & 3, texcb & 3);
                    normal(CACHES[outer as usize], CACHES[inner as usize], shareability)
                }
                // Reserved or IMPLEMENTATION DEFINED.
                _ => normal("NC", "NC", shareability),
            };
            assert_eq!(said(&format, texcb, s, &regime, Kind::Read), expected, "{texcb:#b} {s}");
        }
    }
}

#[test]
fn tex_remap() {
    let format = short(sctlr::TRE);
    for region in 0..8u32 {
        for kind in 0..4u32 {
            for caches in 0..16u32 {
                for flags in 0..8u32 {
                    // NS0, NS1 and this region's NOS; every other region says the opposite.
                    let (ns0, ns1, nos) = (flags & 1, flags >> 1 & 1, flags >> 2);
                    let (inner, outer) = (caches & 3, caches >> 2);
                    let others = 3 << (2 * region);
                    let prrr = (kind << (2 * region))
                        | (((!kind & 3) * 0x5555) & !others)
                        | ns0 << 18
                        | ns1 << 19
                        | nos << (24 + region)
                        | ((1 - nos) * (0xff << 24 & !(1 << (24 + region))));
                    let nmrr = inner << (2 * region)
                        | outer << (16 + 2 * region)
                        | (((!inner & 3) * 0x5555) & !others)
                        | ((((!outer & 3) * 0x5555) & !others) << 16);
                    let mair = u64::from(nmrr) << 32 | u64::from(prrr);
                    let regime = Regime { arm: State::new(mair, 0), ..Regime::default() };
                    for s in 0..2u64 {
                        let shared = [ns0, ns1][s as usize] == 1;
                        let shareability = match (shared, nos) {
                            (false, _) => "NSH",
                            (true, 0) => "OSH",
                            (true, _) => "ISH",
                        };
                        let expected = match kind {
                            _ if region == 6 => "Normal NC, OSH".to_owned(),
                            0 => "Device-nGnRnE, OSH".to_owned(),
                            1 => "Device-nGnRE, OSH".to_owned(),
                            2 => {
                                normal(CACHES[outer as usize], CACHES[inner as usize], shareability)
                            }
                            _ => "Normal NC, OSH".to_owned(),
                        };
                        // TEX[2:1] belong to software.
                        for software in 0..4u64 {
                            let texcb = u64::from(region) | software << 3;
                            let seen = said(&format, texcb, s, &regime, Kind::Read);
                            assert_eq!(seen, expected, "{region} {prrr:#x} {nmrr:#x} {s}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn caches_that_are_off() {
    let regime = Regime::default();
    let registers = Registers { sctlr: sctlr::M, ..Registers::default() };
    let off = Short::new(&registers, &Processor::default()).unwrap();
    let write_back = 0b001_11;
    for kind in [Kind::Read, Kind::Execute] {
        assert_eq!(said(&off, write_back, 0, &regime, kind), "Normal NC, OSH");
        assert_eq!(said(&short(0), write_back, 0, &regime, kind), "Normal WB RWA, NSH");
    }
    // Device memory stays device memory for data; instructions see it as non-cacheable.
    assert_eq!(said(&off, 0, 0, &regime, Kind::Read), "Device-nGnRnE, OSH");
    assert_eq!(said(&short(0), 0, 0, &regime, Kind::Execute), "Normal NC, OSH");
}

#[test]
fn a_stage_that_is_off() {
    let flat = Found {
        entry: 0,
        level: 0,
        base: 0,
        shift: 64,
        path: Path::START,
        input: 0,
        kind: Kind::Read,
    };
    let fetch = Found { kind: Kind::Execute, ..flat };
    let make = |sctlr| {
        Short::new(&Registers { sctlr, ..Registers::default() }, &Processor::default()).unwrap()
    };
    let say = |format: &Short, found: &Found, hcr: u64| {
        let regime = Regime { arm: State::new(0, hcr), ..Regime::default() };
        match format.memory_type(found, &regime) {
            StageType::Arm(attributes) => attributes.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(say(&make(0), &flat, 0), "Device-nGnRnE, OSH");
    assert_eq!(say(&make(0), &fetch, 0), "Normal NC, OSH");
    assert_eq!(say(&make(sctlr::I), &fetch, 0), "Normal WT RA, OSH");
    let default_cacheable = slat::regime::arm::hcr::DC;
    assert_eq!(say(&make(0), &flat, default_cacheable), "Normal WB RWA, NSH");
}
