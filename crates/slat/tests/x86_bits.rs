//! Every single bit of every x86, EPT and NPT entry, flipped at every level, against a table of
//! what the manuals say of that bit. The tables are written from the manuals' figures, not from the
//! formats under test.

use slat::format::ept::{Ept, Features};
use slat::format::npt::Npt;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::Pae;
use slat::format::x86::{Controls, Vendor};
use slat::format::{Decoded, Format};
use slat::{Reserved, Why};

/// What one bit of an entry is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Bit {
    /// Clearing it empties the entry.
    Present,
    /// It turns a table into a leaf and back.
    PageSize,
    /// Output address bit of the same number.
    Address,
    /// Output address bit 32 + n (PSE-36).
    HighAddress(u32),
    /// Must be zero.
    Reserved,
    /// It makes a memory type that does not exist.
    MemoryType,
    /// Anything else: rights, caching, software. Not decode's business.
    Other,
}

fn check(format: &impl Format, level: u8, entry: u64, bits: u32, rule: impl Fn(u32) -> Bit) {
    let name = format.name();
    let before = format.decode(entry, level);
    assert!(
        matches!(before, Decoded::Leaf { .. } | Decoded::Table { .. }),
        "{name} {level} {entry:#x}"
    );
    for bit in 0..bits {
        let flipped = entry ^ 1 << bit;
        let after = format.decode(flipped, level);
        let place = format!("{name} level {level} entry {entry:#x} bit {bit}: {after:?}");
        let moved = |by: u32| match before {
            Decoded::Leaf { base, shift } => Decoded::Leaf { base: base ^ 1 << by, shift },
            Decoded::Table { next } => Decoded::Table { next: next ^ 1 << by },
            _ => unreachable!(),
        };
        match rule(bit) {
            Bit::Present => assert_eq!(after, Decoded::Empty, "{place}"),
            Bit::Address => assert_eq!(after, moved(bit), "{place}"),
            Bit::HighAddress(to) => assert_eq!(after, moved(to), "{place}"),
            Bit::Reserved => match after {
                Decoded::Reserved(reserved) => assert_eq!(reserved.bits, 1 << bit, "{place}"),
                _ => panic!("{place}"),
            },
            Bit::MemoryType => assert!(
                matches!(after, Decoded::Reserved(Reserved { why: Why::MemoryType, .. })),
                "{place}"
            ),
            Bit::PageSize => assert!(
                matches!(
                    (before, after),
                    (Decoded::Leaf { .. }, Decoded::Table { .. })
                        | (Decoded::Table { .. }, Decoded::Leaf { .. })
                ),
                "{place}"
            ),
            Bit::Other => assert_eq!(after, before, "{place}"),
        }
    }
}

/// Intel SDM 3A figure 5-11 and tables 5-14 to 5-20; AMD APM 2 figures 5-19 to 5-34.
fn long_rule(
    level: u8,
    leaf: bool,
    width: u32,
    nxe: bool,
    gigabyte: bool,
    vendor: Vendor,
) -> impl Fn(u32) -> Bit {
    move |bit| match bit {
        0 => Bit::Present,
        7 if level >= 3 => Bit::Reserved,
        8 if level >= 3 && vendor == Vendor::Amd => Bit::Reserved,
        7 if level == 2 && !gigabyte => Bit::Reserved,
        7 if level > 0 => Bit::PageSize,
        13..=20 if leaf && level == 1 => Bit::Reserved,
        13..=29 if leaf && level == 2 => Bit::Reserved,
        12 if leaf && level > 0 => Bit::Other, // PAT
        12..=51 if bit < width => Bit::Address,
        12..=51 => Bit::Reserved,
        63 if !nxe => Bit::Reserved,
        _ => Bit::Other,
    }
}

#[test]
fn long_mode_bits() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for width in [36, 40, 46, 52] {
            for nxe in [false, true] {
                for gigabyte_pages in [false, true] {
                    let controls = Controls { nxe, ..Controls::default() };
                    let processor = Processor {
                        physical_bits: width as u8,
                        gigabyte_pages,
                        vendor,
                        ..Processor::default()
                    };
                    let long = Long::five(controls, processor);
                    for level in 0..=4 {
                        let rule =
                            |leaf| long_rule(level, leaf, width, nxe, gigabyte_pages, vendor);
                        if level > 0 {
                            check(&long, level, 0x27, 64, rule(false));
                        }
                        match level {
                            0 => check(&long, 0, 0x67, 64, rule(true)),
                            1 => check(&long, 1, 0xe7, 64, rule(true)),
                            2 if gigabyte_pages => check(&long, 2, 0xe7, 64, rule(true)),
                            _ => {}
                        }
                    }
                    // Nested tables have the same encoding.
                    if vendor == Vendor::Amd {
                        let npt = Npt::five(nxe, processor);
                        for level in 1..=4 {
                            let rule = long_rule(level, false, width, nxe, gigabyte_pages, vendor);
                            check(&npt, level, 0x27, 64, rule);
                        }
                        let rule = long_rule(0, true, width, nxe, gigabyte_pages, vendor);
                        check(&npt, 0, 0x67, 64, rule);
                    }
                }
            }
        }
    }
}

#[test]
fn pae_bits() {
    for width in [36u32, 40, 52] {
        for nxe in [false, true] {
            let processor = Processor { physical_bits: width as u8, ..Processor::default() };
            let pae = Pae::new(Controls { nxe, ..Controls::default() }, processor);
            // Nested tables have the same encoding (AMD APM 2 15.25.3).
            let npt = Npt::pae(nxe, processor);
            let rule = |level: u8, leaf: bool| {
                move |bit: u32| match (level, bit) {
                    (_, 0) => Bit::Present,
                    (2, 1..=2 | 5..=8) => Bit::Reserved,
                    (2, 63) => Bit::Reserved,
                    (1, 7) => Bit::PageSize,
                    (1, 13..=20) if leaf => Bit::Reserved,
                    (1, 12) if leaf => Bit::Other,
                    (_, 12..=62) if bit < width => Bit::Address,
                    (_, 12..=62) => Bit::Reserved,
                    (_, 63) if !nxe => Bit::Reserved,
                    _ => Bit::Other,
                }
            };
            check(&pae, 2, 0x1, 64, rule(2, false));
            check(&pae, 1, 0x27, 64, rule(1, false));
            check(&pae, 1, 0xe7, 64, rule(1, true));
            check(&pae, 0, 0x67, 64, rule(0, true));
            check(&npt, 2, 0x1, 64, rule(2, false));
            check(&npt, 1, 0x27, 64, rule(1, false));
            check(&npt, 1, 0xe7, 64, rule(1, true));
            check(&npt, 0, 0x67, 64, rule(0, true));
        }
    }
}

/// Every bit of 32-bit tables with large pages, by a processor of this width.
fn legacy_entries(format: &impl Format, width: u32) {
    let extra = width.min(40) - 32;
    check(format, 0, 0x67, 32, |bit| match bit {
        0 => Bit::Present,
        12.. => Bit::Address,
        _ => Bit::Other,
    });
    check(format, 1, 0x27, 32, |bit| match bit {
        0 => Bit::Present,
        7 => Bit::PageSize,
        12.. => Bit::Address,
        _ => Bit::Other,
    });
    check(format, 1, 0xe7, 32, |bit| match bit {
        0 => Bit::Present,
        7 => Bit::PageSize,
        13..=20 if bit - 13 < extra => Bit::HighAddress(bit + 19),
        13..=21 => Bit::Reserved,
        22.. => Bit::Address,
        _ => Bit::Other,
    });
}

#[test]
fn legacy_bits() {
    for width in [32u32, 36, 40, 52] {
        legacy_entries(&Legacy::new(Controls::default(), true, width as u8), width);
        // Nested tables have the same encoding (AMD APM 2 15.25.3).
        legacy_entries(&Npt::legacy(true, width as u8), width);
    }
    // Without CR4.PSE the bit means nothing.
    let without = |bit| match bit {
        0 => Bit::Present,
        12.. => Bit::Address,
        _ => Bit::Other,
    };
    check(&Legacy::new(Controls::default(), false, 40), 1, 0xa7, 32, without);
    check(&Npt::legacy(false, 40), 1, 0xa7, 32, without);
}

/// Intel SDM 3C tables 30-1 to 30-7, and 30.3.3.1.
#[test]
fn ept_bits() {
    for width in [39u32, 46, 52] {
        for mode_based_execute in [false, true] {
            for large in [false, true] {
                let ept = Ept::five(Features {
                    physical_bits: width as u8,
                    mode_based_execute,
                    gigabyte_pages: large,
                    two_megabyte_pages: large,
                    ..Features::default()
                });
                let address = |bit: u32| if bit < width { Bit::Address } else { Bit::Reserved };
                for level in 0..=4u8 {
                    if level > 0 {
                        // Only readable: so that bit 0 alone makes it present.
                        check(&ept, level, 0x1, 64, |bit| match bit {
                            0 => Bit::Present,
                            3..=6 => Bit::Reserved,
                            7 if level <= 2 && large => Bit::PageSize,
                            7 => Bit::Reserved,
                            12..=51 => address(bit),
                            _ => Bit::Other,
                        });
                    }
                    if level == 0 || large && level <= 2 {
                        let page_size = if level > 0 { 0x80 } else { 0 };
                        check(&ept, level, 0x1 | page_size, 64, |bit| match bit {
                            0 => Bit::Present,
                            // Type UC (0) becomes 2, which does not exist.
                            4 => Bit::MemoryType,
                            7 if level > 0 => Bit::PageSize,
                            12..=20 if level == 1 => Bit::Reserved,
                            12..=29 if level == 2 => Bit::Reserved,
                            12..=51 => address(bit),
                            _ => Bit::Other,
                        });
                    }
                }
            }
        }
    }
}

/// SDM 3C 30.3.3.1: every combination of R, W, X and XU, with every memory type.
#[test]
fn ept_rights_and_types() {
    for execute_only in [false, true] {
        for mode_based_execute in [false, true] {
            let features = Features { execute_only, mode_based_execute, ..Features::default() };
            let ept = Ept::four(features);
            for combination in 0..16u64 {
                for memory_type in 0..8u64 {
                    let (r, w, x) = (combination & 1, combination >> 1 & 1, combination >> 2 & 1);
                    let xu = combination >> 3 & u64::from(mode_based_execute);
                    let entry = r | w << 1 | x << 2 | combination >> 3 << 10 | memory_type << 3;
                    let decoded = ept.decode(entry, 0);
                    let place = format!("{entry:#x} {features:?}: {decoded:?}");
                    let why = match decoded {
                        Decoded::Empty => {
                            assert_eq!(r + w + x + xu, 0, "{place}");
                            continue;
                        }
                        Decoded::Reserved(reserved) => Some(reserved.why),
                        Decoded::Leaf { .. } => None,
                        _ => panic!("{place}"),
                    };
                    let expected = if r == 0 && w == 1 {
                        Some(Why::WriteWithoutRead)
                    } else if r == 0 && !execute_only {
                        Some(Why::ExecuteOnly)
                    } else if matches!(memory_type, 2 | 3 | 7) {
                        Some(Why::MemoryType)
                    } else {
                        None
                    };
                    assert_eq!(why, expected, "{place}");
                }
            }
        }
    }
}
