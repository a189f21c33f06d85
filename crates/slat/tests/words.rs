//! What tools print of entries and formats: each word is there where its bit is set, and nowhere else.

use slat::format::Format;
use slat::format::arm32::{self, Lpae, Registers};
use slat::format::arm64::{self, Granule, Stage1, Stage2};
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::npt::Npt;
use slat::format::riscv::{self, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::hlat::Hlat;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::Pae;
use slat::regime::arm::hcr;

fn said<F: Format>(format: &F, entry: u64, level: u8) -> String {
    let mut text = String::new();
    format.describe(entry, level, &mut text).unwrap();
    text
}

/// For each bit: what is said where it is clear (nothing, mostly), and where it is set.
fn follow<F: Format>(format: &F, level: u8, base: u64, words: &[(u64, &str, &str)]) {
    for &(bit, clear, set) in words {
        let has = |entry: u64, word: &str| {
            let text = said(format, entry, level);
            word.is_empty() || text.split([' ', ';']).any(|said| said == word)
        };
        let (without, with) = (base & !bit, base | bit);
        let name = format.name();
        let lines = || format!("{}\n{}", said(format, without, level), said(format, with, level));
        assert!(has(with, set), "{name} level {level} lacks {set}:\n{}", lines());
        assert!(!has(without, set), "{name} level {level} has {set}:\n{}", lines());
        assert!(has(without, clear), "{name} level {level} lacks {clear}:\n{}", lines());
        assert!(clear.is_empty() || !has(with, clear), "{name}: {clear} stays:\n{}", lines());
    }
}

#[test]
fn of_x86() {
    let controls = Controls { nxe: true, ..Controls::default() };
    let always = [
        (1 << 1, "", "RW"),
        (1 << 2, "", "US"),
        (1 << 3, "", "PWT"),
        (1 << 4, "", "PCD"),
        (1 << 5, "", "A"),
    ];
    let leaf = [(1 << 6, "", "D"), (1 << 7, "", "PAT"), (1 << 8, "", "G")];
    let large = [(1 << 6, "", "D"), (1 << 12, "", "PAT"), (1 << 8, "", "G")];
    let long = Long::four(controls, Processor::default());
    let pae = Pae::new(controls, Processor::default());
    let legacy = Legacy::new(controls, true, 40);
    for words in [&always[..], &leaf, &[(1 << 63, "", "XD")]] {
        follow(&long, 0, 1, words);
        follow(&pae, 0, 1, words);
        follow(&Npt::four(true, Processor::default()), 0, 1, words);
    }
    for words in [&always[..], &large] {
        follow(&long, 1, 1 | 1 << 7, words);
        follow(&pae, 1, 1 | 1 << 7, words);
        follow(&legacy, 1, 1 | 1 << 7, words);
    }
    follow(&legacy, 0, 1, &leaf);
    // Bit 21 of a 4 MiB page is reserved.
    assert!(!said(&legacy, 1 | 1 << 7, 1).contains(';'));
    assert!(said(&legacy, 1 | 1 << 7 | 1 << 21, 1).contains("; "));
    // Of a table, bit 6 is ignored.
    assert_eq!(said(&long, 1 | 1 << 6, 1), "P");
    follow(&pae, 1, 1, &always);
    // PDPTEs of PAE have no rights, and no accessed bit.
    assert_eq!(said(&pae, 1 | 1 << 3, 2), "P");
    assert_eq!(said(&long, 0, 3), "not present");
}

#[test]
fn of_ept() {
    let features = ept::Features {
        mode_based_execute: true,
        accessed_dirty: true,
        ..ept::Features::default()
    };
    let ept = Ept::four(features);
    let leaf = 7 | 6 << 3;
    for (level, leaf) in [(0, leaf), (1, leaf | 1 << 7)] {
        let words = [
            (1 << 6, "", "IPAT"),
            (1 << 8, "", "A"),
            (1 << 9, "", "D"),
            (1 << 10, "", "XU"),
            (1 << 63, "", "suppress-VE"),
            (1, "-WX", "RWX"),
            (1 << 1, "R-X", "RWX"),
            (1 << 2, "RW-", "RWX"),
        ];
        follow(&ept, level, leaf, &words);
    }
    // Of a table, bits 6 and 9 have no meaning; with features off, bits 8 and 9 of a leaf have none.
    assert!(!said(&ept, 7 | 1 << 9, 1).contains('D'));
    let plain = Ept::four(ept::Features { accessed_dirty: false, ..features });
    assert!(!said(&plain, leaf | 3 << 8, 0).contains(['A', 'D']));
    assert_eq!(said(&ept, 0, 0), "not present");
}

#[test]
fn of_aarch64() {
    let processor = arm64::Processor::default();
    let stage1 = Stage1::plain(Granule::Four, 48, &processor).unwrap();
    let table = [
        (1 << 59, "", "PXNTable"),
        (1 << 60, "", "UXNTable"),
        (1 << 61, "", "APTable:no-EL0"),
        (1 << 62, "", "APTable:read-only"),
        (1 << 63, "", "NSTable"),
    ];
    follow(&stage1, 1, 3, &table);
    let leaf = [
        (1 << 6, "EL1", "EL0"),
        (1 << 7, "RW", "RO"),
        (1 << 10, "", "AF"),
        (1 << 11, "", "nG"),
        (1 << 50, "", "GP"),
        (1 << 51, "", "DBM"),
        (1 << 52, "", "contiguous"),
        (1 << 53, "", "PXN"),
        (1 << 54, "", "UXN"),
        (1 << 2, "Attr0", "Attr1"),
        (1 << 4, "Attr0", "Attr4"),
    ];
    follow(&stage1, 0, 3, &leaf);
    follow(&stage1, 1, 1, &leaf);
    follow(&stage1, 1, 1, &[(1 << 16, "", "nT"), (2, "block", "table")]);
    assert_eq!(said(&stage1, 0, 0), "invalid");
    assert_eq!(said(&stage1, 2, 0), "invalid");
    // A page has no block translation entry bit.
    assert!(!said(&stage1, 3 | 1 << 16, 0).contains("nT"));
    let stage2 = Stage2::plain(Granule::Four, 40, &processor).unwrap();
    let leaf = [
        (1 << 6, "-W", "RW"),
        (1 << 7, "R-", "RW"),
        (1 << 10, "", "AF"),
        (1 << 11, "", "FnXS"),
        (1 << 51, "", "DBM"),
        (1 << 52, "", "contiguous"),
        (1 << 53, "X", "X:EL0"),
        (1 << 54, "X", "XN"),
        (1 << 2, "MemAttr=0b0000", "MemAttr=0b0001"),
    ];
    follow(&stage2, 0, 3 | 3 << 6, &leaf);
    follow(&stage2, 1, 1 | 3 << 6, &leaf);
    follow(&stage2, 0, 3 | 3 << 53, &[(1 << 53, "XN", "X:EL1"), (1 << 54, "X:EL0", "X:EL1")]);
    follow(&stage2, 1, 1, &[(1 << 16, "", "nT"), (2, "block", "table")]);
    assert!(!said(&stage2, 3 | 1 << 16, 0).contains("nT"));
}

#[test]
fn of_aarch32() {
    let processor = arm32::Processor { execute_never_extension: true, ..Default::default() };
    let stage2 = arm32::Stage2::new(1 << 6, hcr::VM, 0, &processor).unwrap();
    let leaf = [
        (1 << 6, "-W", "RW"),
        (1 << 7, "R-", "RW"),
        (1 << 10, "", "AF"),
        (1 << 52, "", "contiguous"),
        (1 << 53, "X", "X:PL0"),
        (1 << 54, "X", "XN"),
        (1 << 2, "MemAttr=0b0000", "MemAttr=0b0001"),
    ];
    follow(&stage2, 0, 3 | 3 << 6, &leaf);
    follow(&stage2, 1, 1 | 3 << 6, &leaf);
    follow(&stage2, 1, 1, &[(2, "block", "table")]);
    let registers = Registers { ttbcr: 1 << 31, sctlr: arm32::sctlr::M, ..Registers::default() };
    let stage1 = Lpae::new(&registers, &processor).unwrap();
    let leaf = [
        (1 << 6, "PL1", "PL0"),
        (1 << 7, "RW", "RO"),
        (1 << 10, "", "AF"),
        (1 << 11, "", "nG"),
        (1 << 52, "", "contiguous"),
        (1 << 53, "", "PXN"),
        (1 << 54, "", "XN"),
    ];
    follow(&stage1, 0, 3, &leaf);
    follow(&stage1, 1, 1, &leaf);
    let table = [
        (1 << 59, "", "PXNTable"),
        (1 << 60, "", "XNTable"),
        (1 << 61, "", "APTable:no-PL0"),
        (1 << 62, "", "APTable:read-only"),
        (1 << 63, "", "NSTable"),
    ];
    follow(&stage1, 1, 3, &table);
    // Short descriptors; the PXN of a small page is its table's.
    let short = |sctlr| {
        let registers = Registers { sctlr: arm32::sctlr::M | sctlr, ..Registers::default() };
        arm32::Short::new(&registers, &processor).unwrap()
    };
    let section = [(1 << 4, "", "XN"), (1 << 16, "", "S"), (1 << 17, "", "nG"), (1, "", "PXN")];
    let small = [(1, "", "XN"), (1 << 10, "", "S"), (1 << 11, "", "nG")];
    follow(&short(0), 1, 2, &section);
    follow(&short(0), 0, 2, &small);
    follow(&short(0), 1, 1, &[(1 << 2, "", "PXN"), (1 << 5, "0", "1")]);
    assert!(!said(&short(0), 3, 0).contains("PXN"));
    follow(&short(arm32::sctlr::AFE), 1, 2, &[(1 << 10, "", "AF")]);
    follow(&short(arm32::sctlr::AFE), 0, 2, &[(1 << 4, "", "AF")]);
    assert_eq!(said(&short(0), 0, 1), "invalid");
}

#[test]
fn of_riscv() {
    let sv = Sv::stage1(Scheme::Sv39, riscv::Features::default());
    let words = [
        (1 << 1, "-WX", "RWX"),
        (1 << 3, "RW-", "RWX"),
        (1 << 4, "", "U"),
        (1 << 5, "", "G"),
        (1 << 6, "", "A"),
        (1 << 7, "", "D"),
        (1 << 8, "", "RSW=1"),
    ];
    follow(&sv, 0, 0xF, &words);
    assert_eq!(said(&sv, 0, 0), "not valid");
    assert_eq!(said(&sv, 1, 1), "pointer");
    // Svnapot and Svpbmt, which Sv32 has no bits for.
    let napot = 0xF | 8 << 10;
    let types = [(1 << 61, "", "PBMT=NC"), (1 << 62, "", "PBMT=IO")];
    for words in [&[(1 << 63, "", "N")][..], &types] {
        follow(&sv, 0, napot, words);
    }
    follow(&sv, 0, napot | 1 << 61, &[(1 << 62, "PBMT=NC", "PBMT=3")]);
    let narrow = Sv::stage1(Scheme::Sv32, riscv::Features::default());
    assert_eq!(said(&narrow, 0xF, 0), "RWX");
}

/// As the command line takes them, and the stage that each is of.
#[test]
fn formats_are_named() {
    let (controls, processor) = (Controls::default(), Processor::default());
    assert_eq!(Flat::X86_UNPAGED.name(), "x86-unpaged");
    assert_eq!(Legacy::new(controls, true, 40).name(), "x86-32");
    assert_eq!(Pae::new(controls, processor).name(), "x86-pae");
    assert_eq!(Long::four(controls, processor).name(), "x86-4");
    assert_eq!(Long::five(controls, processor).name(), "x86-5");
    assert_eq!(Ept::four(ept::Features::default()).name(), "ept4");
    assert_eq!(Ept::five(ept::Features::default()).name(), "ept5");
    assert_eq!(Npt::legacy(true, 40).name(), "npt-32");
    assert_eq!(Npt::pae(true, processor).name(), "npt-pae");
    assert_eq!(Npt::four(true, processor).name(), "npt4");
    assert_eq!(Npt::five(true, processor).name(), "npt5");
    let arm = arm64::Processor::default();
    assert_eq!(Stage1::plain(Granule::Four, 48, &arm).unwrap().name(), "arm64");
    assert_eq!(Stage2::plain(Granule::Four, 40, &arm).unwrap().name(), "arm64-s2");
    let arm = arm32::Processor::default();
    let registers = |ttbcr| Registers { ttbcr, sctlr: arm32::sctlr::M, ..Registers::default() };
    assert_eq!(arm32::Short::new(&registers(0), &arm).unwrap().name(), "arm-short");
    assert_eq!(Lpae::new(&registers(1 << 31), &arm).unwrap().name(), "arm-lpae");
    assert_eq!(arm32::Stage2::new(1 << 6, hcr::VM, 0, &arm).unwrap().name(), "arm-lpae-s2");
    let features = riscv::Features::default();
    for (scheme, first, second) in [
        (Scheme::Sv32, "sv32", "sv32x4"),
        (Scheme::Sv39, "sv39", "sv39x4"),
        (Scheme::Sv48, "sv48", "sv48x4"),
        (Scheme::Sv57, "sv57", "sv57x4"),
    ] {
        assert_eq!(Sv::stage1(scheme, features).name(), first);
        assert_eq!(Sv::stage2(scheme, features).name(), second);
        assert_eq!(Sv::stage1(scheme, features).stage(), 1);
        assert_eq!(Sv::stage2(scheme, features).stage(), 2);
    }
    let long = Long::four(controls, processor);
    let of_stage_1 = [
        Legacy::new(controls, true, 40).stage(),
        Pae::new(controls, processor).stage(),
        long.stage(),
        Hlat::new(long, 0).stage(),
        Stage1::plain(Granule::Four, 48, &arm64::Processor::default()).unwrap().stage(),
        arm32::Short::new(&registers(0), &arm).unwrap().stage(),
        Lpae::new(&registers(1 << 31), &arm).unwrap().stage(),
    ];
    assert_eq!(of_stage_1, [1; 7]);
    let of_stage_2 = [
        Ept::four(ept::Features::default()).stage(),
        Npt::legacy(true, 40).stage(),
        Npt::pae(true, processor).stage(),
        Npt::four(true, processor).stage(),
        Stage2::plain(Granule::Four, 40, &arm64::Processor::default()).unwrap().stage(),
        arm32::Stage2::new(1 << 6, hcr::VM, 0, &arm).unwrap().stage(),
    ];
    assert_eq!(of_stage_2, [2; 6]);
}
