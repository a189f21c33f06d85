//! The walker gives the answers that hardware models gave, without an emulator at hand.

use std::collections::BTreeMap;
use std::path::Path;

use slat_oracle::golden::{Replay, replay};

fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("oracle/golden is in the repository")
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn replay_all(files: &[(String, Vec<u8>)]) -> Vec<(&String, Replay)> {
    std::thread::scope(|scope| {
        let jobs: Vec<_> = files
            .iter()
            .map(|(name, bytes)| (name, scope.spawn(|| replay(bytes).unwrap())))
            .collect();
        jobs.into_iter().map(|(name, job)| (name, job.join().unwrap())).collect()
    })
}

#[test]
fn every_blessed_answer_is_the_walkers() {
    let files = files();
    let (mut probes, mut masked) = (0, 0);
    let results = replay_all(&files);
    for (name, result) in results {
        let first = result.disagreements.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(result.disagreements.is_empty(), "{name}:\n{first}");
        assert_eq!(result.unusable, 0, "{name}");
        probes += result.probes;
        masked += result.masked;
        assert_eq!(result.agree + result.masked, result.probes, "{name}");
    }
    assert!(probes >= 200_000, "{probes} probes are too few");
    assert!(masked * 3 < probes, "{masked} of {probes} explained by deviations are too many");
}

#[test]
fn damaged_files_are_refused() {
    let (_, bytes) = files().into_iter().min_by_key(|(_, bytes)| bytes.len()).unwrap();
    for cut in [0, 1, 10, bytes.len() / 2, bytes.len() - 1] {
        assert!(replay(&bytes[..cut]).is_err());
    }
    let nothing = zstd::bulk::compress(b"slat golden 2\n", 1).unwrap();
    assert!(replay(&nothing).is_err());
}

/// Bits that no golden vector has with both values in an entry of this format and level, each with
/// what holds the walker to the manual there instead.
const UNCOVERED: &[(&str, u8, u64, &str)] = &[
    ("stage 2 16K LPA2", 3, 1 << 29 | 1 << 32 | 1 << 36 | 1 << 42 | 1 << 48 | 1 << 49, BITS),
    ("stage 2 4K LPA2", 4, 1 << 36 | 1 << 38 | 1 << 39 | 1 << 41, BITS),
    ("sv48x4", 0, 1 << 32, BITS),
];

/// Output-address bits of formats that few probes are about: with the bit set, the entry led to a
/// device, so that the probe was not asked. These tests flip every bit of every entry.
const BITS: &str = "crates/slat/tests: x86_bits.rs, arm64/bits.rs, riscv/bits.rs";

#[test]
fn every_bit_of_every_entry_was_met_clear_and_set() {
    let files = files();
    let mut met: BTreeMap<(String, u8), [u64; 128]> = BTreeMap::new();
    for (_, result) in replay_all(&files) {
        for (format, level, counts) in result.met {
            let sums = met.entry((format, level)).or_insert([0; 128]);
            for kind in &counts {
                for (sum, count) in sums.iter_mut().zip(kind) {
                    *sum += u64::from(*count);
                }
            }
        }
    }
    let mut missing = Vec::new();
    for ((format, level), sums) in &met {
        let short = ["x86-32", "npt-32", "arm-short", "arm-short v8"].contains(&format.as_str());
        let bits = if short { 32 } else { 64 };
        let excused = UNCOVERED
            .iter()
            .filter(|(f, l, ..)| f == format && l == level)
            .fold(0, |bits, (_, _, more, _)| bits | more);
        for bit in 0..bits {
            if excused >> bit & 1 != 0 {
                continue;
            }
            for value in 0..2 {
                if sums[2 * bit + value] == 0 {
                    missing.push(format!("{format} level {level} bit {bit} = {value}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    for format in ["x86-4", "x86-5", "x86-pae", "x86-32", "ept4", "npt4", "npt5", "npt-pae"] {
        assert!(met.keys().any(|(met, _)| met == format), "{format} was never met");
    }
    for format in
        ["arm-short", "arm-lpae", "arm-lpae-s2", "4K", "16K", "64K", "4K LPA2", "16K LPA2"]
    {
        assert!(met.keys().any(|(met, _)| met == format), "{format} was never met");
    }
    for format in ["sv39", "sv48", "sv57", "sv39x4", "sv48x4", "sv57x4", "npt-32"] {
        assert!(met.keys().any(|(met, _)| met == format), "{format} was never met");
    }
}

#[test]
fn the_document_of_deviations_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deviations.md");
    let written = std::fs::read_to_string(path).unwrap();
    let same = written == slat_oracle::deviations::document();
    assert!(same, "run cargo xtask oracle --bless --probes 0");
}
