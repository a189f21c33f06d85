//! Every bit of every entry was met by golden vectors with both values and with the outcome that the manual
//! demands; what was not is listed, each with the test that holds the walker to the manual there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use slat_oracle::golden::{Replay, replay};

/// How often a bit had a value where the access passed, and where it did not.
#[derive(Clone, Copy, Default)]
struct Cell {
    passed: u64,
    failed: u64,
}

/// By format, stage and level: index `2 * bit + value`.
type Entries = BTreeMap<(String, u8, u8), [Cell; 128]>;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// All golden vectors, replayed once.
fn replays() -> &'static [Replay] {
    static REPLAYS: OnceLock<Vec<Replay>> = OnceLock::new();
    REPLAYS.get_or_init(|| {
        let files: Vec<Vec<u8>> = std::fs::read_dir(golden())
            .expect("oracle/golden is in the repository")
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "zst"))
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        std::thread::scope(|scope| {
            let jobs: Vec<_> =
                files.iter().map(|file| scope.spawn(|| replay(file).unwrap())).collect();
            jobs.into_iter().map(|job| job.join().unwrap()).collect()
        })
    })
}

/// What each level of each format has, met or not.
fn met() -> Entries {
    let mut met = Entries::new();
    for &(format, stage, levels) in LEVELS {
        for level in 0..levels {
            met.insert((format.to_owned(), stage, level), [Cell::default(); 128]);
        }
    }
    for (format, stage, level, counts) in replays().iter().flat_map(|replay| &replay.met) {
        let cells = met.get_mut(&(format.clone(), *stage, *level));
        let cells = cells.unwrap_or_else(|| panic!("{format} has no level {level} of {stage}"));
        for (kind, row) in counts.iter().enumerate() {
            // Done, and what the bus answered: the tables let the access pass.
            let passed = matches!(kind, 0 | 6);
            for (cell, count) in cells.iter_mut().zip(row) {
                let sum = if passed { &mut cell.passed } else { &mut cell.failed };
                *sum += u64::from(*count);
            }
        }
    }
    met
}

/// Every format that is asked: its name, its stage, and how many levels it has.
const LEVELS: &[(&str, u8, u8)] = &[
    ("x86-32", 1, 2),
    ("x86-pae", 1, 3),
    ("x86-4", 1, 4),
    ("x86-5", 1, 5),
    ("ept4", 2, 4),
    ("npt-32", 2, 2),
    ("npt-pae", 2, 3),
    ("npt4", 2, 4),
    ("npt5", 2, 5),
    ("4K", 1, 4),
    ("4K LPA2", 1, 5),
    ("16K", 1, 4),
    ("16K LPA2", 1, 4),
    ("64K", 1, 3),
    ("stage 2 4K", 2, 4),
    ("stage 2 4K LPA2", 2, 5),
    // Only LPA2 has a root of two entries there.
    ("stage 2 16K", 2, 3),
    ("stage 2 16K LPA2", 2, 4),
    ("stage 2 64K", 2, 3),
    ("arm-short", 1, 2),
    ("arm-short v8", 1, 2),
    ("arm-lpae", 1, 3),
    ("arm-lpae v8", 1, 3),
    ("arm-lpae-s2", 2, 3),
    ("arm-lpae-s2 v8", 2, 3),
    ("sv39", 1, 3),
    ("sv48", 1, 4),
    ("sv57", 1, 5),
    ("sv39x4", 2, 3),
    ("sv48x4", 2, 4),
    ("sv57x4", 2, 5),
];

/// Kinds of access: what a guest does, Arm's translations and RISC-V's loads and stores for a guest.
const RUN: &[&str] = &["read", "write", "execute"];
const AT: &[&str] = &["at s12e1r", "at s12e1w", "at s12e0r", "at s12e0w"];
const ATS12NSO: &[&str] = &["ats12nsopr", "ats12nsopw", "ats12nsour", "ats12nsouw"];
const HLV: &[&str] = &["hlv.d", "hsv.d", "hlvx.wu"];

/// What is asked of which pairs: first stages, second stages, kinds of access.
type Pairs = (&'static [&'static str], &'static [&'static str], [&'static [&'static str]; 2]);
const PAIRS: &[Pairs] = &[
    // No model asked has 5-level guests under these.
    (&["unpaged", "x86-32", "x86-pae", "x86-4"], &["ept4"], [RUN, &[]]),
    (&["unpaged", "x86-32", "x86-pae", "x86-4"], &["npt-32"], [RUN, &[]]),
    (&["unpaged", "x86-32", "x86-pae", "x86-4", "x86-5"], &["npt-pae", "npt4", "npt5"], [RUN, &[]]),
    (
        &["stage 1 off", "4K", "4K LPA2", "16K", "16K LPA2", "64K"],
        &["stage 2 4K", "stage 2 4K LPA2", "stage 2 16K", "stage 2 16K LPA2", "stage 2 64K"],
        [RUN, AT],
    ),
    (&["stage 1 off", "arm-short", "arm-lpae"], &["arm-lpae-s2"], [RUN, ATS12NSO]),
    (&["stage 1 off v8", "arm-short v8", "arm-lpae v8"], &["arm-lpae-s2 v8"], [RUN, ATS12NSO]),
    (&["bare", "sv39", "sv48", "sv57"], &["bare", "sv39x4", "sv48x4", "sv57x4"], [RUN, HLV]),
];

/// Where the manual lets no access pass an entry: formats (as their names begin), levels, bits, value.
/// Of processors with 40 physical bits, address bits from there on are reserved.
const ENDS: &[(&[&str], std::ops::RangeInclusive<u8>, u64, usize)] = &[
    // Not present (Intel SDM 3A 5.5, AMD APM 2 5.2 and 5.3). Nested tables are walked as a user does.
    (&["x86-", "npt"], 0..=4, 1, 0),
    (&["npt4", "npt5"], 0..=4, 1 << 2, 0),
    (&["npt-"], 0..=1, 1 << 2, 0),
    // Bit 8 of AMD's uppermost tables (AMD APM 2 5.3.3); no other processor that is asked has 5 levels.
    (&["x86-5", "npt4", "npt5"], 3..=4, 1 << 8, 1),
    // No leaf so high, and PAE's PDPTEs have few bits.
    (&["x86-4", "x86-5", "npt4", "npt5"], 3..=4, 1 << 7, 1),
    (&["x86-pae", "npt-pae"], 2..=2, 0x1E6 | 0xFFF0_0000_0000_0000, 1),
    (&["x86-pae", "npt-pae"], 0..=1, 0x7FF0_0000_0000_0000, 1),
    // Memory types of tables, a leaf so high, addresses beyond 40 bits (SDM 3C tables 30-2 to 30-7).
    (&["ept4"], 3..=3, 0xF8, 1),
    (&["ept4"], 0..=3, 0x000F_FF00_0000_0000, 1),
    // AArch32 has no hardware that sets the access flag of long descriptors (Arm ARM G5.6.5).
    (&["arm-lpae"], 0..=0, 1 << 10, 0),
    // Invalid, and no blocks of pages' or of the largest tables' levels (Arm ARM D8.3.1, G5.4, G5.5).
    (&["4K", "16K", "64K", "stage 2", "arm-lpae"], 0..=4, 1, 0),
    (&["4K", "16K", "64K", "stage 2", "arm-lpae"], 0..=0, 2, 0),
    (&["16K", "stage 2 16K"], 3..=3, 2, 0),
    (&["4K LPA2", "stage 2 4K LPA2"], 4..=4, 2, 0),
    // Address size faults of Armv8: 40 bits.
    (&["arm-lpae v8", "arm-lpae-s2 v8"], 0..=2, 0x0000_FF00_0000_0000, 1),
    // Invalid, reserved, NAPOT above level 0; G-stage's pages are the user's (RISC-V privileged,
    // "Virtual Address Translation Process", Svnapot, "Two-Stage Address Translation").
    (&["sv"], 0..=4, 1, 0),
    (&["sv"], 0..=4, 0x1FC0_0000_0000_0000, 1),
    (&["sv"], 1..=4, 1 << 63, 1),
    (&["sv39x4", "sv48x4", "sv57x4"], 0..=0, 1 << 4, 0),
];

/// The bits of these entries through which, with this value, nothing passes.
fn ends(format: &str, level: u8, value: usize) -> u64 {
    let of = |names: &[&str]| names.iter().any(|name| format.starts_with(name));
    ENDS.iter()
        .filter(|(names, levels, _, v)| of(names) && levels.contains(&level) && *v == value)
        .fold(0, |bits, (_, _, more, _)| bits | more)
}

/// The test that holds the walker to the manual's word on a bit of an entry: that of the rights, where the bit
/// decides one, else that of what each bit makes of the entry.
fn instead(format: &str, bit: usize) -> &'static str {
    let among = |bits: u64| bits >> bit & 1 != 0;
    let begins = |name: &str| format.starts_with(name);
    // R/W, U/S, XD; read, write, execute.
    if begins("x86-") || begins("npt") {
        return match format {
            _ if among(1 << 63 | 6) => "crates/slat/tests/x86_naive.rs the_naive_walker_agrees",
            "x86-32" | "npt-32" => "crates/slat/tests/x86_bits.rs legacy_bits",
            "x86-pae" | "npt-pae" => "crates/slat/tests/x86_bits.rs pae_bits",
            _ => "crates/slat/tests/x86_bits.rs long_mode_bits",
        };
    }
    if begins("ept") {
        return match () {
            () if among(7) => "crates/slat/tests/x86_bits.rs ept_rights_and_types",
            () => "crates/slat/tests/x86_bits.rs ept_bits",
        };
    }
    // R, W, X, U, A, D.
    if begins("sv") {
        return match () {
            () if among(0xDE) => "crates/slat/tests/riscv/bits.rs every_right_and_every_access",
            () => "crates/slat/tests/riscv/bits.rs every_bit_of_every_entry",
        };
    }
    // This test asks for rights as well.
    if begins("arm-short") {
        return "crates/slat/tests/arm32/bits.rs every_bit_of_every_short_descriptor";
    }
    // AP, AF, PXN and XN, and those of tables; S2AP, AF and XN.
    let (rights1, rights2) = (among(0xF860_0000_0000_04C0), among(0x0060_0000_0000_04C0));
    match format {
        _ if begins("arm-lpae-s2") && rights2 => {
            "crates/slat/tests/arm32/bits.rs every_right_of_stage_2"
        }
        _ if begins("arm-lpae") && !begins("arm-lpae-s2") && rights1 => {
            "crates/slat/tests/arm32/bits.rs every_right_of_pl1_and_pl0"
        }
        _ if begins("arm-lpae") => {
            "crates/slat/tests/arm32/bits.rs every_bit_of_every_long_descriptor"
        }
        _ if begins("stage 2") && rights2 => {
            "crates/slat/tests/arm64/bits.rs every_bit_of_stage_2_permits_as_described"
        }
        _ if !begins("stage 2") && rights1 => {
            "crates/slat/tests/arm64/bits.rs every_bit_of_stage_1_permits_as_described"
        }
        _ => "crates/slat/tests/arm64/bits.rs every_bit_of_every_entry_decodes_as_described",
    }
}

/// The file that lists what the golden vectors lack.
const LIST: &str = "uncovered.txt";

#[test]
fn every_bit_has_the_outcome_that_the_manual_demands() {
    let mut wrong = Vec::new();
    let mut lacking = String::new();
    let met = met();
    for ((format, stage, level), cells) in &met {
        let short = ["x86-32", "npt-32", "arm-short", "arm-short v8"].contains(&format.as_str());
        let bits = if short { 32 } else { 64 };
        for value in 0..2 {
            let ending = ends(format, *level, value);
            // By what is lacking and the test that holds the walker to it: which bits.
            let mut lacks: BTreeMap<(&str, &str), u64> = BTreeMap::new();
            for bit in 0..bits {
                let Cell { passed, failed } = cells[2 * bit + value];
                let ends = ending >> bit & 1 != 0;
                let mut lack = |what| {
                    *lacks.entry((what, instead(format, bit))).or_default() |= 1 << bit;
                };
                match (passed > 0, failed > 0) {
                    (true, _) if ends => {
                        wrong.push(format!("{format} level {level} bit {bit} = {value} passed"));
                    }
                    (true, _) => (),
                    (false, true) if ends => (),
                    (false, true) => lack("only-failing"),
                    (false, false) => lack("unmet"),
                }
            }
            for ((what, test), bits) in lacks {
                let name = format.replace(' ', "_");
                let line = format!("{name} stage-{stage} level-{level} ={value} {bits:#x} {what}");
                let _ = writeln!(lacking, "{line}: {test}");
            }
        }
    }
    assert!(wrong.is_empty(), "the manual lets nothing pass here:\n{}", wrong.join("\n"));
    let listed = std::fs::read_to_string(golden().join(LIST)).unwrap_or_default();
    let known: String = listed
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("feature "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(
        known == lacking,
        "what the golden vectors lack changed; where the tests that are named are right, \
         oracle/golden/{LIST} should say:\n{lacking}"
    );
}

#[test]
fn the_tests_that_are_named_exist() {
    let listed = std::fs::read_to_string(golden().join(LIST)).unwrap();
    for line in listed.lines().filter(|line| !line.starts_with('#')) {
        let (_, named) = line.rsplit_once(": ").unwrap_or_else(|| panic!("no test: {line}"));
        let (file, test) = named.split_once(' ').unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let source = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{file}: {why}"));
        let begins = format!("fn {test}(");
        let place = source.find(&begins).unwrap_or_else(|| panic!("{file} has no test {test}"));
        assert!(source[..place].trim_end().ends_with("#[test]"), "{file}: {test} is no test");
    }
}

#[test]
fn every_kind_of_access_was_made_through_every_pair_of_formats() {
    let mut lacking = Vec::new();
    for (firsts, seconds, kinds) in PAIRS {
        for (first, second) in firsts.iter().flat_map(|f| seconds.iter().map(move |s| (f, s))) {
            let pair = format!("{first} under {second}");
            for kind in kinds.concat() {
                let key = (pair.clone(), kind);
                let made: u64 = replays().iter().filter_map(|replay| replay.done.get(&key)).sum();
                if made == 0 {
                    lacking.push(format!("{kind}, {pair}"));
                }
            }
        }
    }
    assert!(lacking.is_empty(), "no access was made:\n{}", lacking.join("\n"));
}
