//! Every bit of every descriptor at every level, against a description of the bits that shares
//! nothing with the code under test; and every combination of rights and accesses.

use slat::format::arm32::{Lpae, Processor, Registers, Short, Stage2, Version, sctlr, ttbcr};
use slat::format::{Decoded, Format, Found, Path};
use slat::regime::arm::{State, hcr};
use slat::{Access, Cause, Denied, Kind, Privilege, Purpose, Regime, Why};

use crate::naive::{AP_2, AP_3, Asked, Rules, cut, permitted};

const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Execute];

fn short(sctlr: u32, dacr: u32) -> Short {
    let registers = Registers { sctlr: sctlr | sctlr::M, dacr, ..Registers::default() };
    Short::new(&registers, &Processor::default()).unwrap()
}

fn found(entry: u64, level: u8, tables: u64) -> Found {
    Found {
        entry,
        level,
        base: 0,
        shift: 12,
        path: Path { and: tables, or: tables, via: u64::MAX },
        input: 0,
        kind: Kind::Read,
    }
}

/// The fields of each short descriptor, bit 0 first: `p` is the output address, `h` and `H` its bits
/// 39:36 and 35:32, `a` is AP[0] then AP[1], `A` AP[2], `X` XN, `P` PXN, `D` domain, `T` TEX.
const TABLE: &str = "10PnzDDDDipppppppppppppppppppppp";
const SECTION: &str = "P1BCXDDDDiaaTTTASG0npppppppppppp";
const SUPERSECTION: &str = "P1BCXhhhhiaaTTTASG1nHHHHpppppppp";
const LARGE: &str = "10BCaazzzASGTTTXpppppppppppppppp";
const SMALL: &str = "X1BCaaTTTASGpppppppppppppppppppp";

fn layout(entry: u64, level: u8) -> Option<&'static str> {
    match (level, entry & 3) {
        (_, 0) => None,
        (1, 1) => Some(TABLE),
        (1, _) if entry & 0x4_0000 == 0 => Some(SECTION),
        (1, _) => Some(SUPERSECTION),
        (_, 1) => Some(LARGE),
        _ => Some(SMALL),
    }
}

fn letters(entry: u64, layout: &str, letter: char) -> u64 {
    let bits = layout.chars().enumerate().filter(|(_, at)| *at == letter);
    bits.enumerate().fold(0, |value, (place, (bit, _))| value | (entry >> bit & 1) << place)
}

/// The output address, without the offset's zeros: `p` is at the top of its 32 bits.
fn output(entry: u64, layout: &str) -> u64 {
    let width = layout.chars().filter(|at| *at == 'p').count();
    letters(entry, layout, 'p') << (32 - width)
        | letters(entry, layout, 'H') << 32
        | letters(entry, layout, 'h') << 36
}

const SHORT_BASES: [u64; 8] = [
    0x0000_0000,
    0x0012_3401,
    0x0012_0002,
    0xa5b4_0c06,
    0x3fff_fffd,
    0x0012_0031,
    0x0012_3032,
    0xffff_fffe,
];

#[test]
fn every_bit_of_every_short_descriptor() {
    let mut compared = 0;
    for level in 0..2u8 {
        let entries = SHORT_BASES.iter().flat_map(|base| {
            let flipped = (0..32).map(move |bit| base ^ 1 << bit);
            let pairs =
                (0..32).flat_map(move |bit| (0..bit).map(move |two| base ^ 1 << bit ^ 1 << two));
            std::iter::once(*base).chain(flipped).chain(pairs)
        });
        for entry in entries {
            let decoded = short(0, 0).decode(entry, level);
            let layout = layout(entry, level);
            let expected = match layout {
                None => Decoded::Empty,
                Some(TABLE) => Decoded::Table { next: output(entry, TABLE) },
                Some(leaf) => {
                    let shift = match leaf {
                        SECTION => 20,
                        SUPERSECTION => 24,
                        LARGE => 16,
                        _ => 12,
                    };
                    Decoded::Leaf { base: output(entry, leaf), shift }
                }
            };
            assert_eq!(decoded, expected, "level {level} {entry:#x}");
            let Some(layout) = layout.filter(|layout| *layout != TABLE) else { continue };
            rights_of_short(entry, level, layout);
            compared += 1;
        }
    }
    assert!(compared > 3000);
}

fn rights_of_short(entry: u64, level: u8, layout: &str) {
    // A page has its domain and PXN in the table above it.
    for table in [0x1u64, 0x1 | 7 << 5, 0x1 | 1 << 2] {
        let holder = if level == 0 { (table, TABLE) } else { (entry, layout) };
        let domain = letters(holder.0, holder.1, 'D');
        let pxn = letters(holder.0, holder.1, 'P') == 1;
        let xn = letters(entry, layout, 'X') == 1;
        let ap = letters(entry, layout, 'A') << 2 | letters(entry, layout, 'a');
        for set in 0..16u32 {
            let on = |bit: u32| set >> bit & 1 != 0;
            let (wxn, uwxn, afe, pan) = (on(0), on(1), on(2), on(3));
            let mut control = 0;
            for (set, bit) in [(wxn, sctlr::WXN), (uwxn, sctlr::UWXN), (afe, sctlr::AFE)] {
                control |= if set { bit } else { 0 };
            }
            let regime = Regime { arm: State { pan, ..State::new(0, 0) }, ..Regime::default() };
            for manager in [0b00u32, 0b01, 0b10, 0b11] {
                // Every other domain has another right.
                let dacr = (((manager ^ 1) * 0x5555_5555) & !(3 << (2 * domain)))
                    | manager << (2 * domain);
                let format = short(control, dacr);
                for kind in KINDS {
                    for pl0 in [false, true] {
                        let privilege = if pl0 { Privilege::User } else { Privilege::Supervisor };
                        let found = found(entry, level, if level == 0 { table } else { 0 });
                        let seen = format.check(&found, &Access::new(kind, privilege), &regime);
                        let asked = Asked { kind, pl0 };
                        let rights = if afe { AP_2[(ap >> 1) as usize] } else { AP_3[ap as usize] };
                        let rules = Rules { wxn, uwxn, pan };
                        let expected = if afe && ap & 1 == 0 {
                            Err(Cause::AccessFlag)
                        } else {
                            match manager {
                                3 => Ok(()),
                                1 if permitted(rights, xn, pxn, rules, asked) => Ok(()),
                                1 => Err(Cause::Permission(Denied::NONE)),
                                _ => Err(Cause::Permission(Denied::DOMAIN)),
                            }
                        };
                        let same = match (expected, seen) {
                            (
                                Err(Cause::Permission(Denied::NONE)),
                                Err(Cause::Permission(denied)),
                            ) => !denied.is_empty() && !denied.contains(Denied::DOMAIN),
                            (expected, seen) => expected == seen,
                        };
                        assert!(
                            same,
                            "{entry:#x} {table:#x} {asked:?} {rules:?} afe {afe} \
                             {manager:#b}: {seen:?} for {expected:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Bases of long descriptors: invalid, tables and leaves, with every field empty or full.
const LONG_BASES: [u64; 7] = [
    0x0,
    0x0000_0012_3456_7003,
    0x0000_0012_3456_7001,
    0x0000_00ff_ffff_f7ff,
    0x0000_00ff_ffff_f7fd,
    0x0070_0012_3456_77c3,
    0xf800_0012_3456_7003,
];

/// What the manual says of a long descriptor, as far as decoding goes. Bit 0 first, `p` output
/// address, `b` output address beyond 40 bits.
const LONG: &str = "vtaaaaaaaaaappppppppppppppppppppppppppppbbbbbbbbzzzzzzzzzzzzzzzz";

fn long_described(entry: u64, level: u8, version: Version) -> Result<Decoded, Why> {
    let pages: u64 = 512u64.pow(level.into());
    let valid = letters(entry, LONG, 'v') == 1;
    let table_or_page = letters(entry, LONG, 't') == 1;
    if !valid {
        return Ok(Decoded::Empty);
    }
    if level == 0 && !table_or_page {
        return Err(Why::Encoding);
    }
    if letters(entry, LONG, 'b') != 0 && version == Version::V8 {
        return Err(Why::AddressSize);
    }
    let page = letters(entry, LONG, 'p');
    Ok(if table_or_page && level > 0 {
        Decoded::Table { next: page * 4096 }
    } else {
        let size = pages * 4096;
        Decoded::Leaf { base: page / pages * size, shift: size.ilog2() as u8 }
    })
}

fn processor(version: Version) -> Processor {
    Processor { version, ..Processor::default() }
}

fn lpae(sctlr: u32, version: Version) -> Lpae {
    let registers =
        Registers { ttbcr: ttbcr::EAE, sctlr: sctlr | sctlr::M, ..Registers::default() };
    Lpae::new(&registers, &processor(version)).unwrap()
}

#[test]
fn every_bit_of_every_long_descriptor() {
    for version in [Version::V7, Version::V8] {
        let stage1 = lpae(0, version);
        let hyp = Lpae::hyp(0, sctlr::M, &processor(version)).unwrap();
        let stage2 = Stage2::new(1 << 6, hcr::VM, 0, &processor(version)).unwrap();
        for level in 0..3u8 {
            for base in LONG_BASES {
                for one in 0..65u32 {
                    for two in 0..=one.min(63) {
                        let mut entry = base;
                        entry ^= 1u64.checked_shl(one).unwrap_or(0);
                        entry ^= if two < one { 1 << two } else { 0 };
                        let expected = long_described(entry, level, version);
                        let seen = stage1.decode(entry, level);
                        match (expected, seen) {
                            (Err(why), Decoded::Reserved(reserved)) => {
                                assert_eq!(why, reserved.why, "level {level} {entry:#x}");
                                assert_eq!(reserved.bits & !entry & !3, 0, "{entry:#x}");
                            }
                            (expected, seen) => {
                                assert_eq!(expected, Ok(seen), "level {level} {entry:#x}");
                            }
                        }
                        assert_eq!(hyp.decode(entry, level), seen);
                        assert_eq!(stage2.decode(entry, level), seen);
                    }
                }
            }
        }
    }
}

/// Every leaf field and every table field that decides a right.
fn long_entries() -> impl Iterator<Item = (u64, u64)> {
    (0..0x20u64).flat_map(|leaf| {
        (0..0x10u64).map(move |table| {
            let entry = 3 | (leaf & 3) << 6 | (leaf >> 2 & 1) << 10 | (leaf >> 3) << 53;
            (entry, 3 | table << 59)
        })
    })
}

#[test]
fn every_right_of_pl1_and_pl0() {
    for (entry, table) in long_entries() {
        for set in 0..8u32 {
            let on = |bit: u32| set >> bit & 1 != 0;
            let (wxn, uwxn, pan) = (on(0), on(1), on(2));
            let control = if wxn { sctlr::WXN } else { 0 } | if uwxn { sctlr::UWXN } else { 0 };
            let regime = Regime { arm: State { pan, ..State::new(0, 0) }, ..Regime::default() };
            let format = lpae(control, Version::V8);
            for kind in KINDS {
                for pl0 in [false, true] {
                    let privilege = if pl0 { Privilege::User } else { Privilege::Supervisor };
                    let access = Access::new(kind, privilege);
                    let seen = format.check(&found(entry, 0, table), &access, &regime);
                    let bit = |value: u64, bit: u32| value >> bit & 1 == 1;
                    let rights = cut(entry >> 6 & 3, table >> 61 & 3);
                    let (xn, pxn) = (bit(entry | table >> 6, 54), bit(entry | table >> 6, 53));
                    let rules = Rules { wxn, uwxn, pan };
                    let expected = if !bit(entry, 10) {
                        Some(Cause::AccessFlag)
                    } else if permitted(rights, xn, pxn, rules, Asked { kind, pl0 }) {
                        None
                    } else {
                        Some(Cause::Permission(Denied::NONE))
                    };
                    let seen = seen.err().map(|cause| match cause {
                        Cause::Permission(_) => Cause::Permission(Denied::NONE),
                        other => other,
                    });
                    assert_eq!(seen, expected, "{entry:#x} {table:#x} {access:?} {rules:?}");
                }
            }
        }
    }
}

#[test]
fn every_right_of_hyp_mode() {
    for (entry, table) in long_entries() {
        for (wxn, flat) in [(false, false), (true, false), (false, true), (true, true)] {
            let control = sctlr::M | if wxn { sctlr::WXN } else { 0 };
            let htcr = if flat { 1 << 24 } else { 0 };
            let format = Lpae::hyp(htcr, control, &Processor::default()).unwrap();
            let tables = if flat { 0 } else { table };
            for kind in KINDS {
                let access = Access::new(kind, Privilege::Supervisor);
                // AP[1], APTable[0], PXN and PXNTable mean nothing; neither does PAN.
                let regime =
                    Regime { arm: State { pan: true, ..State::new(0, 0) }, ..Regime::default() };
                let seen = format.check(&found(entry, 0, table), &access, &regime);
                let read_only = entry >> 7 & 1 == 1 || tables >> 62 & 1 == 1;
                let xn = entry >> 54 & 1 == 1 || tables >> 60 & 1 == 1 || wxn && !read_only;
                let expected = entry >> 10 & 1 == 1
                    && match kind {
                        Kind::Read => true,
                        Kind::Write => !read_only,
                        Kind::Execute => !xn,
                    };
                assert_eq!(seen.is_ok(), expected, "{entry:#x} {table:#x} {kind:?} {wxn}");
            }
        }
    }
}

#[test]
fn every_right_of_stage_2() {
    for fields in 0..0x100u64 {
        let entry = 3 | (fields & 3) << 6 | (fields >> 2 & 1) << 10 | (fields >> 3 & 3) << 53;
        let device = fields >> 5 & 1 == 1;
        let entry = entry | if device { 0 } else { 0xf << 2 };
        let (xnx, ptw) = (fields >> 6 & 1 == 1, fields >> 7 & 1 == 1);
        let processor = Processor { execute_never_extension: xnx, ..Processor::default() };
        let control = hcr::VM | if ptw { hcr::PTW } else { 0 };
        let format = Stage2::new(1 << 6, control, 0, &processor).unwrap();
        let regime = Regime { arm: State::new(0, control), ..Regime::default() };
        let (r, w, af) = (fields & 1 == 1, fields & 2 == 2, fields & 4 == 4);
        for (kind, purpose) in [
            (Kind::Read, Purpose::Final),
            (Kind::Write, Purpose::Final),
            (Kind::Execute, Purpose::Final),
            (Kind::Read, Purpose::Table { level: 0 }),
            (Kind::Write, Purpose::Update { level: 0 }),
        ] {
            for pl0 in [false, true] {
                let privilege = if pl0 { Privilege::User } else { Privilege::Supervisor };
                let access = Access { purpose, ..Access::new(kind, privilege) };
                let seen = format.check(&found(entry, 0, 3), &access, &regime);
                let executable = match (fields >> 3 & 3, xnx) {
                    (0b00, _) | (0b01, false) => true,
                    (0b01, true) => pl0,
                    (0b11, true) => !pl0,
                    _ => false,
                };
                let walk_ok = r && !(ptw && device);
                let expected = af
                    && match (kind, purpose) {
                        (Kind::Read, Purpose::Final) => r,
                        (Kind::Write, Purpose::Final) => w,
                        (Kind::Execute, _) => r && executable,
                        (Kind::Write, _) => walk_ok && w,
                        (Kind::Read, _) => walk_ok,
                    };
                assert_eq!(seen.is_ok(), expected, "{entry:#x} {access:?} xnx {xnx} ptw {ptw}");
            }
        }
    }
}

#[test]
fn hardware_sets_the_access_flag_of_short_descriptors_alone() {
    let registers = Registers { sctlr: sctlr::M | sctlr::AFE | sctlr::HA, ..Registers::default() };
    let able = Processor { hardware_access_flag: true, ..Processor::V7 };
    let access = Access::default();
    let sets = Short::new(&registers, &able).unwrap();
    assert_eq!(sets.touched(2, 1, true, &access), 2 | 1 << 10);
    assert_eq!(sets.touched(2, 0, true, &access), 2 | 1 << 4);
    assert_eq!(sets.touched(1, 1, false, &access), 1);
    for other in [
        Short::new(&registers, &Processor::V7).unwrap(),
        Short::new(&Registers { sctlr: sctlr::M | sctlr::HA, ..registers }, &able).unwrap(),
    ] {
        assert_eq!(other.touched(2, 1, true, &access), 2);
    }
    assert_eq!(lpae(sctlr::HA | sctlr::AFE, Version::V7).touched(3, 0, true, &access), 3);
}
