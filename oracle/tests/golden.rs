//! The walker gives the answers that hardware models gave, without an emulator at hand.

use std::path::Path;

use slat_oracle::golden::{Replay, replay};

fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
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

#[test]
fn the_document_of_deviations_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deviations.md");
    let written = std::fs::read_to_string(path).unwrap();
    let same = written == slat_oracle::deviations::document();
    assert!(same, "run cargo xtask oracle --bless --probes 0");
}
