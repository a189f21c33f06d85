//! Roots and control blocks are found in images of real hosts, and nothing else is.

use std::fs;
use std::path::{Path, PathBuf};

use slat_image::roots::{Block, Content, Kind, Root, blocks, find};
use slat_image::{Image, Options};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn slice(name: &str) -> Image {
    Image::open(repository().join(format!("fixtures/{name}.slice"))).unwrap()
}

/// The whole image that a slice was cut from, if it is on this machine (see `images.rs`).
fn whole(name: &str, base: u64) -> Option<Image> {
    let data = std::env::var_os("SLAT_DATA").map(PathBuf::from);
    let file = data.unwrap_or(repository().join("../shared/data")).join(format!("{name}.raw.zst"));
    if fs::metadata(&file).is_err() {
        eprintln!("skipped: no {} (SLAT_DATA names the directory of whole images)", file.display());
        return None;
    }
    Some(Options::new().base(base).open(file).unwrap())
}

/// Address, levels, concatenated tables with content, leaves of each root of a kind.
fn summary(image: &Image, kind: Kind) -> Vec<(u64, u8, u8, u64)> {
    let mut roots: Vec<_> = find(image, kind)
        .iter()
        .map(|root| (root.address, root.levels, root.root_tables, root.content.leaves))
        .collect();
    roots.sort();
    roots
}

fn check_npt(image: &Image) {
    let roots = find(image, Kind::Npt);
    assert_eq!(
        summary(image, Kind::Npt),
        [(0x4bb6000, 4, 1, 2583), (0x4ca4000, 4, 1, 2583)],
        "{roots:x?}"
    );
    for root in &roots {
        // 2576 pages of 4 KiB, 7 of 2 MiB, and one mark for MMIO, in 14 tables.
        let bytes = (2576 << 12) + (7 << 21);
        let expected = Content { tables: 14, leaves: 2583, normal: 2583, marked: 1, bytes };
        assert_eq!(root.content, expected);
    }
    let blocks = blocks(image, &roots);
    let blocks: Vec<_> = blocks.iter().map(|(root, block)| (root.address, *block)).collect();
    let [(0x4bb6000, Block::Vmcb { address: 0x2904000, asid: a, cr3: 0x1000 }), (0x4ca4000, b)] =
        blocks[..]
    else {
        panic!("{blocks:x?}")
    };
    let Block::Vmcb { address: 0x4c6b000, asid: b, cr3: 0x1000 } = b else { panic!("{b:x?}") };
    assert!(a != 0 && b != 0);
    assert_eq!(summary(image, Kind::Ept), [], "NPT tables are no EPT tables");
}

fn check_ept(image: &Image) {
    let roots = find(image, Kind::Ept);
    assert_eq!(
        summary(image, Kind::Ept),
        [(0x6905000, 4, 1, 2583), (0x696e000, 4, 1, 2583)],
        "{roots:x?}"
    );
    let blocks = blocks(image, &roots);
    let blocks: Vec<_> = blocks.iter().map(|(_, block)| *block).collect();
    let vmcs = |address, eptp| Block::Vmcs { address, revision: 0x2b, eptp, eptp_offset: 0x478 };
    assert_eq!(blocks, [vmcs(0x68bf000, 0x690505e), vmcs(0x6943000, 0x696e05e)]);
    assert_eq!(summary(image, Kind::Npt), [], "EPT tables are no NPT tables");
}

fn check_arm(image: &Image) {
    let roots = find(image, Kind::Arm64);
    assert_eq!(
        summary(image, Kind::Arm64),
        [(0x431fe000, 3, 1, 2583), (0x454ea000, 3, 1, 2583)],
        "{roots:x?}"
    );
    assert_eq!(blocks(image, &roots), []);
}

#[test]
fn npt_slice() {
    check_npt(&slice("npt-tdp"));
}

#[test]
fn npt_whole() {
    whole("npt-tdp", 0).iter().for_each(check_npt);
}

#[test]
fn ept_slice() {
    check_ept(&slice("ept-bochs"));
}

#[test]
fn ept_whole() {
    whole("ept-bochs", 0).iter().for_each(check_ept);
}

#[test]
fn arm_slice() {
    check_arm(&slice("arm-nvhe"));
}

#[test]
fn arm_whole() {
    whole("arm-nvhe", 1 << 30).iter().for_each(check_arm);
}

#[test]
fn the_machine_says_which_kinds_are_looked_for() {
    assert_eq!(Kind::of(&slice("npt-tdp")), [Kind::Ept, Kind::Npt]);
    assert_eq!(Kind::of(&slice("arm-nvhe")), [Kind::Arm64]);
    let raw = Image::from_raw(0, vec![0; 4096]).unwrap();
    assert_eq!(Kind::of(&raw), [Kind::Ept, Kind::Npt, Kind::Arm64]);
}

/// An image of 4 KiB pages with these words in them: (page, index, word).
fn made(pages: usize, words: &[(u64, u64, u64)]) -> Image {
    let mut memory = vec![0; pages * 4096];
    for (page, index, word) in words {
        let at = (page * 4096 + index * 8) as usize;
        memory[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    Image::from_raw(0, memory).unwrap()
}

/// Tables that go round in circles, or that all point at one table below, end the search like any.
#[test]
fn circles_and_shared_tables_are_bounded() {
    // Every entry of every page points at the page itself.
    let circle: Vec<_> =
        (0..8).flat_map(|page| (0..512).map(move |index| (page, index, page << 12 | 7))).collect();
    assert_eq!(find(&made(8, &circle), Kind::Ept), []);
    // 512 * 512 * 512 * 512 ways to the same leaves.
    let mut shared = Vec::new();
    for index in 0..512 {
        shared.extend((1..5).map(|page| (page, index, (page + 1) << 12 | 7)));
        shared.push((5, index, 0x6000 | 0x37));
    }
    let roots = find(&made(8, &shared), Kind::Ept);
    let [Root { address: 0x1000, levels: 5, content, .. }] = roots[..] else {
        panic!("{roots:x?}")
    };
    assert_eq!(content.leaves, 1 << 45);
}

/// One entry that no hypervisor writes, anywhere below, and there is no root.
#[test]
fn one_impossible_entry_spoils_a_root() {
    let mut words = vec![(1, 0, 0x2007), (2, 0, 0x3007), (3, 0, 0x4007)];
    words.extend((0..100).map(|index| (4, index, (index + 16) << 12 | 0x37)));
    assert_eq!(summary(&made(8, &words), Kind::Ept), [(0x1000, 4, 1, 100)]);
    // Bits 7:3 of a table entry; memory type 7; a table outside of the image; a reserved 1 GiB leaf.
    for bad in [(1, 5, 0x200f), (4, 200, 0x103f), (2, 9, 0x9007), (2, 9, 0x1000 | 0xb7)] {
        let mut words = words.clone();
        words.push(bad);
        assert_eq!(summary(&made(8, &words), Kind::Ept), [], "{bad:x?}");
    }
    // Marks are no such entries: KVM's MMIO, and its suppressed #VE.
    for mark in [(4, 200, 0xd000_0000_0046), (4, 200, 1 << 63), (2, 9, 1 << 63)] {
        let mut words = words.clone();
        words.push(mark);
        assert_eq!(summary(&made(8, &words), Kind::Ept), [(0x1000, 4, 1, 100)], "{mark:x?}");
    }
}

/// Two root tables side by side are one root; from an odd page on they cannot be.
#[test]
fn concatenated_roots_are_joined() {
    let two_roots = |first: u64| {
        let mut words = vec![];
        for half in 0..2u64 {
            let (root, middle, last) = (first + half, 6 + half * 2, 7 + half * 2);
            words.push((root, 7, middle << 12 | 3));
            words.push((middle, 0, last << 12 | 3));
            // AF, inner-shareable, read and write, write-back.
            words.extend((0..100).map(|index| (last, index, (index + 16) << 12 | 0x7ff)));
        }
        summary(&made(16, &words), Kind::Arm64)
    };
    assert_eq!(two_roots(2), [(0x2000, 3, 2, 200)]);
    assert_eq!(two_roots(3), [(0x3000, 3, 1, 100), (0x4000, 3, 1, 100)]);
}
