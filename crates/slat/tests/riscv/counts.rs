//! Exact reference counts with real tables, and bounds on hostile ones.

use slat::format::riscv::{Features, Scheme, Sv};
use slat::{
    Access, Cause, Failed, Gpa, Gva, Kind, Privilege, References, Regime, Spa, Stage, Why,
    translate, walk,
};

use crate::ram::Ram;

const POINTER: u64 = 0x1;
const LEAF: u64 = 0xcf; // D A X W R V
const USER_LEAF: u64 = 0xdf;

/// Identity-maps the lowest pages from the root's level down to `leaf`, and returns the root.
fn identity(ram: &mut Ram, next: &mut u64, scheme: Scheme, leaf_level: u8, leaf: u64) -> u64 {
    let (entry, index_bits) = if scheme == Scheme::Sv32 { (4, 10) } else { (8, 9) };
    // Roots of the G-stage are 16 KiB: give every table that much.
    let mut frame = || {
        *next += 0x4000;
        *next - 0x4000
    };
    let root = frame();
    let mut table = root;
    for _ in leaf_level..scheme.levels() - 1 {
        let below = frame();
        ram.set(table, entry, below >> 2 | POINTER);
        table = below;
    }
    for i in 0..1 << index_bits {
        let page = i << (12 + index_bits * u64::from(leaf_level));
        ram.set(table + entry * i, entry, page >> 2 | leaf);
    }
    root
}

#[test]
fn every_pair_of_depths_and_page_sizes() {
    let mut pairs = 0;
    for schemes in [&[Scheme::Sv32][..], &[Scheme::Sv39, Scheme::Sv48, Scheme::Sv57]] {
        for &vs in schemes {
            for &g in schemes {
                for vs_leaf in 0..vs.levels() {
                    for g_leaf in 0..g.levels() {
                        count_one(vs, vs_leaf, g, g_leaf);
                        pairs += 1;
                    }
                }
            }
        }
    }
    assert_eq!(pairs, 2 * 2 + 12 * 12);
}

fn count_one(vs: Scheme, vs_leaf: u8, g: Scheme, g_leaf: u8) {
    let mut ram = Ram::zeroed(0..1 << 32);
    let mut next = 0x10_0000;
    let g_root = identity(&mut ram, &mut next, g, g_leaf, USER_LEAF);
    let vs_root = identity(&mut ram, &mut next, vs, vs_leaf, LEAF);
    let stage1 = Stage::<_, Gva, Gpa>::new(Sv::stage1(vs, Features::default()), vs_root);
    let stage2 = Stage::<_, Gpa, Spa>::new(Sv::stage2(g, Features::default()), g_root);
    let counted = References::default();
    let access = Access::new(Kind::Write, Privilege::Supervisor);
    let regime = Regime::default();
    let found = translate(&stage1, &stage2, &mut ram, Gva::new(0x5678), &access, &regime, &counted)
        .unwrap();
    assert_eq!(found.output(), Spa::new(0x5678));
    let index_bits = if g == Scheme::Sv32 { 10 } else { 9 };
    assert_eq!(found.shift(), 12 + index_bits * vs_leaf.min(g_leaf));
    let (v, h) = (u64::from(vs.levels() - vs_leaf), u64::from(g.levels() - g_leaf));
    assert_eq!(counted.count(), v * h + v + h, "{vs:?}/{vs_leaf} over {g:?}/{g_leaf}");
    match (vs, vs_leaf, g, g_leaf) {
        (Scheme::Sv39, 0, Scheme::Sv39, 0) => assert_eq!(counted.count(), 15),
        (Scheme::Sv48, 0, Scheme::Sv48, 0) => assert_eq!(counted.count(), 24),
        _ => {}
    }
}

#[test]
fn a_bare_stage_reads_nothing() {
    let mut ram = Ram::zeroed(0..1 << 32);
    let mut next = 0x10_0000;
    let g_root = identity(&mut ram, &mut next, Scheme::Sv48, 0, USER_LEAF);
    let vs_root = identity(&mut ram, &mut next, Scheme::Sv39, 0, LEAF);
    let features = Features::default();
    for (vs, g, expected) in [
        (Scheme::Bare, Scheme::Bare, 0),
        (Scheme::Bare, Scheme::Sv48, 4),
        (Scheme::Sv39, Scheme::Bare, 3),
    ] {
        let stage1 = Stage::<_, Gva, Gpa>::new(Sv::stage1(vs, features), vs_root);
        let stage2 = Stage::<_, Gpa, Spa>::new(Sv::stage2(g, features), g_root);
        let counted = References::default();
        let (access, regime) = (Access::default(), Regime::default());
        let found =
            translate(&stage1, &stage2, &mut ram, Gva::new(0x5678), &access, &regime, &counted)
                .unwrap();
        assert_eq!(found.output(), Spa::new(0x5678));
        assert_eq!(counted.count(), expected);
    }
}

#[test]
fn the_root_of_a_g_stage_has_four_pages() {
    for (scheme, width) in
        [(Scheme::Sv32, 34), (Scheme::Sv39, 41), (Scheme::Sv48, 50), (Scheme::Sv57, 59)]
    {
        let format = Sv::stage2(scheme, Features::default());
        let entry = if scheme == Scheme::Sv32 { 4 } else { 8 };
        let top = scheme.levels() - 1;
        let mut ram = Ram::zeroed(0..1 << 40);
        // The last entry of the root is a leaf; its neighbours are empty. A root address with
        // stray low bits is taken as the aligned one.
        let last = 0x8000 + 0x4000 - entry;
        ram.set(last, entry, USER_LEAF);
        let stage = Stage::<_, Gpa, Spa>::new(format, 0x8000 | 0x3000);
        let (access, regime) = (Access::default(), Regime::default());
        let highest = (1u64 << width) - 1;
        let found = walk(&stage, &mut ram, Gpa::new(highest), &access, &regime, &()).unwrap();
        assert_eq!(found.found.level, top);
        assert_eq!(found.output.raw(), highest & ((1 << found.found.shift) - 1));
        let outside = walk(&stage, &mut ram, Gpa::new(highest + 1), &access, &regime, &());
        let Err(Failed::Here(fault)) = outside else { panic!("{scheme:?}: {outside:?}") };
        assert_eq!((fault.cause, fault.level), (Cause::InputSize, top));
    }
}

#[test]
fn virtual_addresses_are_sign_extended() {
    for (scheme, width) in [(Scheme::Sv39, 39), (Scheme::Sv48, 48), (Scheme::Sv57, 57)] {
        let mut ram = Ram::zeroed(0..1 << 40);
        for i in 0..512 {
            ram.set(0x8000 + 8 * i, 8, LEAF);
        }
        let stage = Stage::<_, Gva, Spa>::new(Sv::stage1(scheme, Features::default()), 0x8000);
        let regime = Regime::default();
        let mut at = |address: u64| {
            walk(&stage, &mut ram, Gva::new(address), &Access::default(), &regime, &())
        };
        let half = 1u64 << (width - 1);
        assert!(at(half - 1).is_ok() && at(half.wrapping_neg()).is_ok() && at(!0).is_ok());
        for address in [half, half.wrapping_neg() - 1, 1 << 63, 1 << 62, !half] {
            let Err(Failed::Here(fault)) = at(address) else { panic!("{scheme:?} {address:#x}") };
            assert_eq!(fault.cause, Cause::InputSize);
        }
    }
}

#[test]
fn cyclic_tables_end() {
    for scheme in [Scheme::Sv32, Scheme::Sv39, Scheme::Sv48, Scheme::Sv57] {
        let entry = if scheme == Scheme::Sv32 { 4 } else { 8 };
        let mut ram = Ram::zeroed(0..1 << 40);
        for i in 0..0x4000 / entry {
            ram.set(0x8000 + entry * i, entry, 0x8000 >> 2 | POINTER);
        }
        let counted = References::default();
        let stage = Stage::<_, Gpa, Spa>::new(Sv::stage2(scheme, Features::default()), 0x8000);
        let (access, regime) = (Access::default(), Regime::default());
        let ended = walk(&stage, &mut ram, Gpa::new(0x1234), &access, &regime, &counted);
        let Err(Failed::Here(fault)) = ended else { panic!("{ended:?}") };
        assert!(matches!(fault.cause, Cause::Reserved(r) if r.why == Why::Encoding));
        assert_eq!((fault.level, counted.count()), (0, scheme.levels().into()));
    }
}
