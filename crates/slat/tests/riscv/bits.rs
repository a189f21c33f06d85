//! Every bit of every entry at every level, against a description of the bits that shares nothing
//! with the code under test; and every combination of rights and accesses.

use slat::format::riscv::{Features, Scheme, Sv};
use slat::format::{Decoded, Format, Found, Path};
use slat::regime::riscv::State;
use slat::{Access, ByteOrder, Flavor, Kind, Privilege, Regime, Why};

use crate::naive::{self, Outcome};

/// What the manual says each bit of a 64-bit entry is. Index: bit number.
const FIELDS: &str = "VRWXUGADssPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPPrrrrrttMMN";

fn bits_named(entry: u64, name: char, wide: bool) -> Vec<bool> {
    let width = if wide { 64 } else { 32 };
    FIELDS
        .chars()
        .enumerate()
        .filter(|&(bit, field)| bit < width && field == name)
        .map(|(bit, _)| (entry & (1 << bit)) > 0)
        .collect()
}

fn number(bits: &[bool]) -> u64 {
    bits.iter().rev().fold(0, |number, &bit| number * 2 + u64::from(bit))
}

/// What the entry must decode to: `Err` with every reason that makes it reserved.
fn described(entry: u64, level: u8, scheme: Scheme, f: &Features) -> Result<Decoded, Vec<Why>> {
    let wide = scheme != Scheme::Sv32;
    let flag = |name| bits_named(entry, name, wide)[0];
    if !flag('V') {
        return Ok(Decoded::Empty);
    }
    let any = |name| bits_named(entry, name, wide).contains(&true);
    let (r, w, x) = (flag('R'), flag('W'), flag('X'));
    let pointer = !r && !w && !x;
    let ppn = number(&bits_named(entry, 'P', wide));
    let mut reasons = Vec::new();
    if any('r')
        || any('t') && !f.software_bits
        || any('M') && (pointer || !f.memory_types)
        || any('N') && (pointer || !f.napot)
        || pointer && (flag('U') || flag('A') || flag('D'))
    {
        reasons.push(Why::Bits);
    }
    if w && !r && (x || !f.shadow_stacks) {
        reasons.push(Why::WriteWithoutRead);
    }
    if bits_named(entry, 'M', wide) == [true, true] && !pointer {
        reasons.push(Why::MemoryType);
    }
    if pointer && level == 0 {
        reasons.push(Why::Encoding);
    }
    let napot = any('N');
    if napot && !pointer && (level > 0 || ppn % 16 != 8) {
        reasons.push(Why::Encoding);
    }
    let pages_of_leaf = (if wide { 512u64 } else { 1024 }).pow(level.into());
    if !pointer && !ppn.is_multiple_of(pages_of_leaf) {
        reasons.push(Why::Misaligned);
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    Ok(if pointer {
        Decoded::Table { next: ppn * 4096 }
    } else if napot {
        Decoded::Leaf { base: (ppn - 8) * 4096, shift: 16 }
    } else {
        let size = pages_of_leaf * 4096;
        Decoded::Leaf { base: ppn * 4096, shift: size.ilog2() as u8 }
    })
}

fn all_features() -> impl Iterator<Item = Features> {
    (0..16u32).map(|set| Features {
        napot: set & 1 != 0,
        memory_types: set & 2 != 0,
        shadow_stacks: set & 4 != 0,
        software_bits: set & 8 != 0,
        ..Features::default()
    })
}

/// Entries to start from: a pointer, leaves of several rights, large, NAPOT and typed ones.
const BASES: [u64; 9] = [
    0x0,
    0x1,
    0x2000_0401,
    0xcf,
    0x2000_04df,
    0x45,
    0x8000_0000_0000_20cb,
    0x2000_0000_0000_00cf,
    0x003f_ffff_ffff_fc5b,
];

#[test]
fn every_bit_of_every_entry() {
    let mut compared = 0;
    for scheme in [Scheme::Sv32, Scheme::Sv39, Scheme::Sv48, Scheme::Sv57] {
        let width = if scheme == Scheme::Sv32 { 32 } else { 64 };
        for (set, features) in all_features().enumerate() {
            for (format, features) in [
                (Sv::stage1(scheme, features), features),
                (Sv::stage2(scheme, features), Features { shadow_stacks: false, ..features }),
            ] {
                for level in 0..scheme.levels() {
                    let mut compare = |entry: u64| {
                        let entry = if width == 32 { entry & 0xffff_ffff } else { entry };
                        let decoded = format.decode(entry, level);
                        match (described(entry, level, scheme, &features), decoded) {
                            (Err(reasons), Decoded::Reserved(found)) => {
                                assert!(reasons.contains(&found.why), "{entry:#x} {found:?}");
                                assert_eq!(found.bits & !entry, 0, "{entry:#x} {found:?}");
                                assert_ne!(found.bits, 0, "{entry:#x} {found:?}");
                            }
                            (expected, found) => assert_eq!(
                                expected,
                                Ok(found),
                                "{} level {level} entry {entry:#x} {features:?}",
                                format.name()
                            ),
                        }
                        compared += 1;
                    };
                    for base in BASES {
                        compare(base);
                        for bit in 0..width {
                            compare(base ^ 1 << bit);
                            // Pairs where all or none of the extensions is there.
                            let pairs = if set == 0 || set == 15 { bit } else { 0 };
                            for other in 0..pairs {
                                compare(base ^ 1 << bit ^ 1 << other);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(compared > 1_000_000);
}

#[test]
fn every_right_and_every_access() {
    let mut compared = 0;
    for set in 0..1u32 << 6 {
        let on = |bit: u32| set >> bit & 1 != 0;
        let (stage, hardware_ad, shadow_stacks) = (u8::from(on(0)) + 1, on(1), on(2));
        let regime =
            Regime { riscv: State { sum: on(3), mxr: on(4), vsmxr: on(5) }, ..Regime::default() };
        let features = Features { hardware_ad, shadow_stacks, ..Features::default() };
        let make = if stage == 1 { Sv::stage1 } else { Sv::stage2 };
        let format = make(Scheme::Sv39, features);
        for low in 0..256u64 {
            if !matches!(format.decode(low, 0), Decoded::Leaf { .. }) {
                continue;
            }
            let found = Found {
                entry: low,
                level: 0,
                base: 0,
                shift: 12,
                path: Path::START,
                input: 0,
                kind: Kind::Read,
            };
            for kind in [Kind::Read, Kind::Write, Kind::Execute] {
                for privilege in [Privilege::Supervisor, Privilege::User] {
                    for flavor in [Flavor::Plain, Flavor::Hlvx, Flavor::ShadowStack] {
                        if kind != Kind::Read && flavor == Flavor::Hlvx
                            || kind == Kind::Execute && flavor != Flavor::Plain
                        {
                            continue;
                        }
                        let access = Access::new(kind, privilege).with_flavor(flavor);
                        let checked = format.check(&found, &access, &regime);
                        let expected = naive::permission(
                            low,
                            stage == 2,
                            &features,
                            &access,
                            &regime.riscv,
                            true,
                        );
                        assert_eq!(
                            checked.is_ok(),
                            expected == Outcome::Allowed,
                            "stage {stage} entry {low:#x} {access:?} {regime:?}: {checked:?}"
                        );
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 50_000);
}

#[test]
fn accessed_and_dirty_are_set_in_leaves_alone() {
    let on = Features { hardware_ad: true, ..Features::default() };
    for make in [Sv::stage1, Sv::stage2] {
        for (hardware, features) in [(true, on), (false, Features::default())] {
            let format = make(Scheme::Sv48, features);
            let (read, write) =
                (Access::default(), Access::new(Kind::Write, Privilege::Supervisor));
            for level in 0..4 {
                let set = |bits: u64| 0x1f | if hardware { bits } else { 0 };
                assert_eq!(format.touched(0x1f, level, true, &read), set(0x40));
                assert_eq!(format.touched(0x1f, level, true, &write), set(0xc0));
                assert_eq!(format.touched(0x1, level, false, &write), 0x1);
            }
        }
    }
}

#[test]
fn byte_order_is_state_of_the_stage() {
    let features = Features { order: ByteOrder::Big, ..Features::default() };
    let layout = Sv::stage1(Scheme::Sv32, features).layout();
    assert_eq!((layout.size.bytes(), layout.order), (4, ByteOrder::Big));
    assert_eq!(Sv::stage2(Scheme::Sv39, features).layout().size.bytes(), 8);
}
