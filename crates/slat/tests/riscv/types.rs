//! Page-based memory types of both stages together (Svpbmt).

use slat::format::riscv::{Features, Scheme, Sv};
use slat::format::{Format, Found, Path};
use slat::memory_type::effective;
use slat::{Kind, Regime};

/// What each pair makes: the G-stage overrides the PMA, the VS-stage the result.
const TABLE: [(u64, u64, &str); 9] = [
    (0, 0, "PMA"),
    (0, 1, "NC"),
    (0, 2, "IO"),
    (1, 0, "NC"),
    (1, 1, "NC"),
    (1, 2, "NC"),
    (2, 0, "IO"),
    (2, 1, "IO"),
    (2, 2, "IO"),
];

#[test]
fn vs_stage_overrides_g_stage() {
    let regime = Regime::default();
    let stage1 = |scheme| Sv::stage1(scheme, Features::default());
    let stage2 = |scheme| Sv::stage2(scheme, Features::default());
    let leaf = |pbmt: u64| Found {
        entry: pbmt << 61 | 0xdf,
        level: 0,
        base: 0,
        shift: 12,
        path: Path::START,
        input: 0,
        kind: Kind::Read,
    };
    let flat = Found { entry: 0, shift: 64, ..leaf(0) };
    let say = |one, two| effective(one, two, 0, &regime).to_string();
    for (vs, g, expected) in TABLE {
        let one = stage1(Scheme::Sv39).memory_type(&leaf(vs), &regime);
        let two = stage2(Scheme::Sv48).memory_type(&leaf(g), &regime);
        assert_eq!(say(one, two), expected);
        // A stage that is Bare requests nothing.
        let bare1 = stage1(Scheme::Bare).memory_type(&flat, &regime);
        let bare2 = stage2(Scheme::Bare).memory_type(&flat, &regime);
        assert_eq!(say(bare1, two), ["PMA", "NC", "IO"][g as usize]);
        assert_eq!(say(one, bare2), ["PMA", "NC", "IO"][vs as usize]);
    }
    // 32-bit entries have no such field.
    let narrow = stage1(Scheme::Sv32).memory_type(&leaf(0), &regime);
    assert_eq!(narrow.to_string(), "PMA");
}
