//! Every bit of every entry was met by golden vectors with both values and with the outcome that the manual
//! demands; what was not is listed, each with the test that holds the walker to the manual there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use slat_oracle::golden::replay;

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

fn met() -> Entries {
    let files: Vec<Vec<u8>> = std::fs::read_dir(golden())
        .expect("oracle/golden is in the repository")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "zst"))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let replays: Vec<_> = std::thread::scope(|scope| {
        let jobs: Vec<_> = files.iter().map(|file| scope.spawn(|| replay(file).unwrap())).collect();
        jobs.into_iter().map(|job| job.join().unwrap()).collect()
    });
    let mut met = Entries::new();
    for (format, stage, level, counts) in replays.into_iter().flat_map(|replay| replay.met) {
        let cells = met.entry((format, stage, level)).or_insert([Cell::default(); 128]);
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

/// Where the manual lets no access pass an entry: formats (as their names begin), levels, bits, value.
/// Of processors with 40 physical bits, address bits from there on are reserved.
const ENDS: &[(&[&str], std::ops::RangeInclusive<u8>, u64, usize)] = &[
    // Not present (Intel SDM 3A 5.5, AMD APM 2 5.2 and 5.3). Nested tables are walked as a user does.
    (&["x86-", "npt"], 0..=4, 1, 0),
    (&["npt4", "npt5"], 0..=4, 1 << 2, 0),
    (&["npt-"], 0..=1, 1 << 2, 0),
    // No leaf so high, and PAE's PDPTEs have few bits.
    (&["x86-4", "x86-5", "npt4", "npt5"], 3..=4, 1 << 7, 1),
    (&["x86-pae", "npt-pae"], 2..=2, 0x1E6 | 0xFFF0_0000_0000_0000, 1),
    (&["x86-pae", "npt-pae"], 0..=1, 0x7FF0_0000_0000_0000, 1),
    // Memory types of tables, a leaf so high, addresses beyond 40 bits (SDM 3C tables 30-1 to 30-6).
    (&["ept4"], 3..=3, 0xF8, 1),
    (&["ept4"], 0..=3, 0x000F_FF00_0000_0000, 1),
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

/// The tests that flip every bit of every entry of a format, and what of it passes.
fn instead(format: &str) -> &'static str {
    match format {
        "x86-32" | "npt-32" => "crates/slat/tests/x86_bits.rs legacy_bits",
        "x86-pae" | "npt-pae" => "crates/slat/tests/x86_bits.rs pae_bits",
        "ept4" => "crates/slat/tests/x86_bits.rs ept_bits",
        name if name.starts_with("x86") || name.starts_with("npt") => {
            "crates/slat/tests/x86_bits.rs long_mode_bits"
        }
        name if name.starts_with("arm-short") => {
            "crates/slat/tests/arm32/bits.rs every_bit_of_every_short_descriptor"
        }
        name if name.starts_with("arm-lpae") => {
            "crates/slat/tests/arm32/bits.rs every_bit_of_every_long_descriptor"
        }
        name if name.starts_with("sv") => {
            "crates/slat/tests/riscv/bits.rs every_bit_of_every_entry"
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
            let (mut failing, mut unmet) = (0u64, 0u64);
            for bit in 0..bits {
                let Cell { passed, failed } = cells[2 * bit + value];
                let ends = ending >> bit & 1 != 0;
                match (passed > 0, failed > 0) {
                    (true, _) if ends => {
                        wrong.push(format!("{format} level {level} bit {bit} = {value} passed"));
                    }
                    (true, _) => (),
                    (false, true) if ends => (),
                    (false, true) => failing |= 1 << bit,
                    (false, false) => unmet |= 1 << bit,
                }
            }
            for (what, bits) in [("only-failing", failing), ("unmet", unmet)] {
                if bits != 0 {
                    let name = format.replace(' ', "_");
                    let test = instead(format);
                    let line = format!(
                        "{name} stage-{stage} level-{level} ={value} {bits:#x} {what}: {test}"
                    );
                    let _ = writeln!(lacking, "{line}");
                }
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
fn every_format_that_is_asked_was_met() {
    let met = met();
    for format in [
        "x86-4",
        "x86-5",
        "x86-pae",
        "x86-32",
        "ept4",
        "npt4",
        "npt5",
        "npt-pae",
        "npt-32",
        "arm-short",
        "arm-lpae",
        "arm-lpae-s2",
        "4K",
        "16K",
        "64K",
        "4K LPA2",
        "16K LPA2",
        "stage 2 4K",
        "stage 2 16K",
        "stage 2 64K",
        "stage 2 4K LPA2",
        "stage 2 16K LPA2",
        "sv39",
        "sv48",
        "sv57",
        "sv39x4",
        "sv48x4",
        "sv57x4",
    ] {
        assert!(met.keys().any(|(met, ..)| met == format), "{format} was never met");
    }
}
