//! The walker gives the answers that hardware models gave, without an emulator at hand.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use slat_oracle::golden::{Replay, replay};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(golden())
        .expect("oracle/golden is in the repository")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "zst"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Replays the files, as many at once as there are processors, until one disagrees.
fn replay_all(files: &[(String, Vec<u8>)]) -> Vec<(&String, Replay)> {
    let (next, disagrees) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut done = Vec::new();
        while !disagrees.load(Relaxed) {
            let place = next.fetch_add(1, Relaxed);
            let Some((_, bytes)) = files.get(place) else { break };
            let result = replay(bytes).unwrap();
            disagrees.fetch_or(!result.disagreements.is_empty(), Relaxed);
            done.push((place, result));
        }
        done
    };
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut results: Vec<(usize, Replay)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(place, result)| (&files[place].0, result)).collect()
}

#[test]
fn every_blessed_answer_is_the_walkers() {
    let files = files();
    let (mut probes, mut masked, mut counted) = (0, 0, String::new());
    let results = replay_all(&files);
    for (name, result) in results {
        let first = result.disagreements.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(result.disagreements.is_empty(), "{name}:\n{first}");
        assert_eq!(result.unusable, 0, "{name}");
        assert_eq!(result.refused, 0, "{name}: registers that are valid are refused");
        let explained: u64 = result.masked.values().sum();
        assert_eq!(result.agree + explained, result.probes, "{name}");
        probes += result.probes;
        masked += explained;
        for (names, count) in &result.masked {
            let _ = writeln!(counted, "{name} {count} {names}");
        }
    }
    assert!(probes >= 200_000, "{probes} probes are too few");
    assert!(masked * 3 < probes, "{masked} of {probes} explained by deviations are too many");
    let (listed, _) = listed();
    assert!(
        listed == counted,
        "deviations explain other probes than before: a walker that deviates as a model does needs no \
         explanation there. Where it is right, oracle/golden/{LIST} should say:\n{counted}"
    );
}

/// The file that says how many probes of which file are explained by what, and which deviations none shows.
const LIST: &str = "masked.txt";

/// The lines of that file: of probes, and of deviations that none shows.
fn listed() -> (String, Vec<String>) {
    let text = std::fs::read_to_string(golden().join(LIST)).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let (unseen, counted): (Vec<&str>, Vec<&str>) =
        lines.partition(|line| line.starts_with("unseen "));
    let counted = counted.iter().map(|line| format!("{line}\n")).collect();
    (counted, unseen.into_iter().map(str::to_owned).collect())
}

#[test]
fn every_deviation_is_shown_by_some_probe_or_listed_as_unseen() {
    let (counted, unseen) = listed();
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    for line in counted.lines() {
        let (_, names) = line.split_once(".zst ").unwrap().1.split_once(' ').unwrap();
        shown.extend(names.split(" + "));
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for line in &unseen {
        let (name, why) = line.trim_start_matches("unseen ").split_once(": ").unwrap();
        assert!(!why.is_empty(), "{name}: why does no probe show it?");
        assert!(names.insert(name), "{name} is listed twice");
    }
    for deviation in slat_oracle::deviations::all() {
        let (is_shown, is_listed) = (shown.remove(deviation.name), names.remove(deviation.name));
        assert!(is_shown != is_listed, "{}: shown {is_shown}", deviation.name);
    }
    assert!(shown.is_empty() && names.is_empty(), "no deviations: {shown:?} {names:?}");
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

#[test]
fn the_document_of_deviations_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deviations.md");
    let written = std::fs::read_to_string(path).unwrap();
    let same = written == slat_oracle::deviations::document();
    assert!(same, "run cargo xtask oracle --bless --probes 0");
}
