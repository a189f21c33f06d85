//! A reader in another language, written from `docs/recording-format.md` alone, reads the same.

use std::path::Path;
use std::process::Command;

use slat_trace::recording::{Options, Recording};
use slat_trace::{Batch, Kind, Source};

/// The number of accesses and events, and a checksum over all accesses.
fn read(path: &Path) -> String {
    let recording = Recording::open(path).unwrap();
    let mut reader = recording.reader(&Options { frames: true, ..Options::default() }).unwrap();
    let (mut accesses, mut events, mut sum) = (0, 0, crc32fast::Hasher::new());
    let mut batch = Batch::default();
    while reader.next(&mut batch).unwrap() {
        accesses += batch.accesses.len();
        events += batch.events.len();
        for access in &batch.accesses {
            let kind = match access.kind() {
                Kind::Load => "L",
                Kind::Store => "S",
                Kind::Fetch => "F",
            };
            let (va, len, frame) = (access.va, access.len(), access.frame);
            let line = format!(
                "{kind} {va:x} {len} {frame:x} {} {}\n",
                u8::from(access.user()),
                access.vcpu
            );
            sum.update(line.as_bytes());
        }
    }
    format!("{accesses} {events} {:08x}", sum.finalize())
}

#[test]
fn a_reader_written_from_the_document_reads_the_same() {
    let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if !there("python3") || !there("zstd") {
        eprintln!("skipped: python3 or zstd is missing");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["clear-refs.slat", "chase-4k.slat"] {
        let path = root.join("../../recordings").join(name);
        let script = root.join("tests/decode.py");
        let output = Command::new("python3").arg(script).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {wrong}");
        assert_eq!(said.trim(), read(&path), "{name}");
    }
}
