//! The file of page runs beside a recording, with any content behind its header.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use slat_trace::compact::{Hierarchy, RunBatch, Runs};
use slat_trace::recording::{Encoder, Packer};
use slat_trace::{Arch, Machine};

/// Magic, version, classes, length and checksum of the recording.
const HEADER: usize = 28;

/// A recording, where its page runs are kept, and the header of that file.
struct Beside {
    _directory: tempfile::TempDir,
    recording: PathBuf,
    runs: PathBuf,
    header: Vec<u8>,
}

fn beside() -> &'static Beside {
    static BESIDE: OnceLock<Beside> = OnceLock::new();
    BESIDE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (recording, runs) = (directory.path().join("F"), directory.path().join("F.runs"));
        let machine = Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: None };
        let mut packer = Packer::new(Vec::new(), &machine, &Vec::new(), 1).expect("memory");
        let mut encoder = Encoder::new(1);
        let block = encoder.define(0x1000, 4, 1);
        encoder.execute(0, block, 0x40_1000);
        encoder.access(0, false, 3, 0x50_0000, 5);
        packer.push(&encoder.finish()).expect("memory");
        std::fs::write(&recording, packer.finish().expect("memory").0).expect("room");
        let made = Runs::open(&recording, &Hierarchy::default()).expect("runs");
        assert!(made.are_cached());
        let header = std::fs::read(&runs).expect("the cache")[..HEADER].to_vec();
        Beside { _directory: directory, recording, runs, header }
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let beside = beside();
    let mut file = beside.header.clone();
    if how & 1 == 0 {
        file.extend_from_slice(bytes);
    } else {
        // A block whose checksum and compression are right.
        let stored = zstd::bulk::compress(bytes, 1).expect("memory");
        let raw = (bytes.len() as u32).to_le_bytes();
        let sum = crc32fast::hash(&[&raw[..], &stored[..]].concat());
        file.extend(raw);
        file.extend((stored.len() as u32).to_le_bytes());
        file.extend(sum.to_le_bytes());
        file.extend(stored);
        file.extend([0; 12]);
    }
    std::fs::write(&beside.runs, file).expect("room");
    let mut runs = Runs::open(&beside.recording, &Hierarchy::default()).expect("the recording is whole");
    let mut batch = RunBatch::default();
    while let Ok(true) = runs.next(&mut batch) {
        let (mut events, mut accesses) = (0, 0u64);
        batch.visit(|_| events += 1, |run| accesses += run.accesses());
        assert_eq!(events, batch.events.len());
    }
});
