//! A trace becomes a recording that says the same.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use slat_trace::import::{Format, Lane, Options, Reference, Trace};
use slat_trace::made_tables::{Damage, MadeTables, Pages, Policy, RecordError};
use slat_trace::open::{self, Opened};
use slat_trace::recording::{self, Recording};
use slat_trace::replay::Verifier;
use slat_trace::{Access, At, Batch, Kind, Source};

use crate::samples::{
    accesses, drain, drmemtrace, every_format, plain, ramulator, record, reference,
};

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn made(paths: &[&Path], policy: Policy) -> MadeTables {
    MadeTables::open(paths, &Options::default(), policy, Damage::Refuse).unwrap()
}

fn all<S: Source>(mut source: S) -> (Vec<Access>, Vec<At>, u64) {
    let (mut accesses, mut events, mut instructions) = (Vec::new(), Vec::new(), 0);
    let mut batch = Batch::default();
    while source.next(&mut batch).unwrap() {
        let before = accesses.len() as u32;
        events.extend(batch.events.iter().map(|at| At { before: at.before + before, ..*at }));
        accesses.extend(&batch.accesses);
        instructions += batch.instructions;
    }
    (accesses, events, instructions)
}

fn recorded(source: &mut MadeTables) -> Vec<u8> {
    let provenance = source.provenance();
    let (bytes, summary) =
        source.record(Vec::new(), &provenance, 3, |_| ControlFlow::Continue(())).unwrap();
    assert!(!summary.stopped);
    assert_eq!(summary.totals.accesses, summary.counts.accesses() + summary.split);
    assert_eq!(summary.totals.bytes, bytes.len() as u64);
    bytes
}

/// Walks the stream's own tables for every access, as `slat replay --verify` does.
fn verify<S: Source>(mut source: S) {
    let mut verifier = Verifier::new(source.machine());
    let (mut batch, mut accesses) = (Batch::default(), 0);
    while source.next(&mut batch).unwrap() {
        verifier.check(&batch).unwrap();
        accesses += batch.accesses.len() as u64;
    }
    assert_eq!(verifier.mismatches(), 0, "{}", verifier.first_mismatches()[0]);
    assert_eq!(verifier.walked(), accesses);
}

/// What a recording keeps of an access: all but its exact length.
fn kept(accesses: &[Access]) -> Vec<(Kind, u64, u8, u32, bool, bool)> {
    accesses.iter().map(|a| (a.kind(), a.va, a.vcpu, a.frame, a.user(), a.crosses())).collect()
}

fn round_trip(paths: &[&Path], policy: Policy) {
    let (expected, expected_events, expected_instructions) = all(made(paths, policy));
    let recording = Recording::from_bytes(recorded(&mut made(paths, policy))).unwrap();
    assert!(recording.damage().is_none());
    let options = recording::Options { frames: true, ..recording::Options::default() };
    let (accesses, events, instructions) = all(recording.reader(&options).unwrap());
    assert!(kept(&accesses) == kept(&expected));
    assert!(events == expected_events);
    assert_eq!(instructions, expected_instructions);
    verify(made(paths, policy));
    verify(recording.reader(&options).unwrap());
}

#[test]
fn every_format_survives_as_a_recording() {
    for (_, bytes, _) in every_format(3000) {
        let file = file(&bytes);
        round_trip(&[file.path()], Policy::default());
        round_trip(
            &[file.path()],
            Policy { pages: Pages::Transparent, fragmentation: 40, ..Policy::default() },
        );
    }
}

#[test]
fn several_vcpus_and_traces_survive() {
    let threads =
        [file(&drmemtrace(1, 1000, &accesses(500))), file(&drmemtrace(2, 1020, &accesses(300)))];
    round_trip(&[threads[0].path(), threads[1].path()], Policy::default());
    let mixed = [file(&plain(&accesses(2500))), file(&drmemtrace(2, 1020, &accesses(1300)))];
    round_trip(&[mixed[0].path(), mixed[1].path()], Policy::default());
}

#[test]
fn aarch64_survives() {
    let mut bytes = record(25, 0, 7);
    bytes.extend(record(28, 9, 0x08));
    for round in 0..50u64 {
        for (thread, process) in [(1, 10), (2, 20)] {
            bytes.extend(record(22, 4, thread));
            bytes.extend(record(24, 4, process));
            bytes.extend(record(10, 4, 0x40_0000 + 4 * round));
            // A tagged pointer, and data that crosses a page.
            bytes.extend(record(1, 8, 0xb400_ffff_8000_0ffc + round * 4096));
        }
    }
    bytes.extend(record(26, 0, 0));
    let file = file(&bytes);
    round_trip(&[file.path()], Policy::default());
    round_trip(&[file.path()], Policy { pages: Pages::Transparent, ..Policy::default() });
}

#[test]
fn real_traces_survive() {
    let transparent = Policy { pages: Pages::Transparent, ..Policy::default() };
    for name in ["gups_head100k.lk.gz", "gups_100k.champsim.xz"] {
        round_trip(&[&crate::counts::fixtures().join(name)], transparent);
    }
    let Some(samples) = crate::counts::samples() else { return };
    round_trip(&[&samples.join("drmemtrace/drmemtrace.threadsig.x64.tracedir")], transparent);
}

#[test]
fn data_without_fetches_fills_more_than_one_block_of_the_file() {
    // Beyond the four million accesses after which a block of the file is closed.
    let (text, expected) = ramulator(&accesses(3000));
    let text = text.repeat(2200);
    let count = expected.len() * 2200;
    assert!(count > 1 << 22);
    let file = file(&text);
    let recording =
        Recording::from_bytes(recorded(&mut made(&[file.path()], Policy::default()))).unwrap();
    assert_eq!(recording.accesses(), count as u64);
    assert_eq!(recording.blocks().len(), 2);
}

#[test]
fn an_access_out_of_reach_of_a_recordings_lengths_is_one_a_page() {
    let trace = [reference(Kind::Fetch, 0x40_0000, 4), reference(Kind::Store, 0x1000_0e00, 10_000)];
    let file = file(&plain(&trace));
    let recording =
        Recording::from_bytes(recorded(&mut made(&[file.path()], Policy::default()))).unwrap();
    let options = recording::Options { frames: true, ..recording::Options::default() };
    let (accesses, ..) = all(recording.reader(&options).unwrap());
    let places: Vec<_> = accesses[1..].iter().map(|a| (a.va, a.len())).collect();
    assert_eq!(places, [(0x1000_0e00, 128), (0x1000_1000, 1), (0x1000_2000, 1), (0x1000_3000, 1)]);
    let frames: Vec<_> = accesses.iter().map(|a| a.frame).collect();
    let mut distinct = frames.clone();
    distinct.dedup();
    assert!(frames == distinct && !frames.contains(&Access::NO_FRAME));
}

#[test]
fn a_recording_says_where_it_comes_from() {
    let file = file(&plain(&accesses(50)));
    let bytes = recorded(&mut made(&[file.path()], Policy::default()));
    let recording = Recording::from_bytes(bytes).unwrap();
    let value = |key: &str| {
        recording
            .provenance()
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
            .unwrap_or_default()
    };
    assert!(value("created-by").starts_with("slat import "));
    assert_eq!(value("format"), "plain");
    assert!(value("tables").contains("guest tables were made"));
    assert_eq!(value("trace"), file.path().display().to_string());
}

#[test]
fn a_stopped_import_is_a_whole_shorter_recording() {
    let file = file(&plain(&accesses(100_000)));
    let mut source = made(&[file.path()], Policy::default());
    let stop = |written| {
        if written >= 40_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let (bytes, summary) = source.record(Vec::new(), &Vec::new(), 3, stop).unwrap();
    assert!(summary.stopped && (40_000..100_000).contains(&summary.counts.accesses()));
    let recording = Recording::from_bytes(bytes).unwrap();
    assert!(recording.damage().is_none());
    assert_eq!(recording.accesses(), summary.counts.accesses());
}

#[test]
fn more_threads_than_a_recording_has_vcpus_are_refused() {
    let mut crowd = record(25, 0, 7);
    for thread in 0..65 {
        crowd.extend(record(22, 4, thread));
        crowd.extend(record(0, 8, 0x1000));
    }
    crowd.extend(record(26, 0, 0));
    let file = file(&crowd);
    let mut source = made(&[file.path()], Policy::default());
    let error =
        source.record(Vec::new(), &Vec::new(), 3, |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, RecordError::TooManyVcpus(65)), "{error}");
    let options = Options { lanes: slat_trace::import::LaneBy::One, ..Options::default() };
    let mut source =
        MadeTables::open(&[file.path()], &options, Policy::default(), Damage::Refuse).unwrap();
    source.record(Vec::new(), &Vec::new(), 3, |_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn recordings_and_traces_open_alike() {
    let trace = file(&plain(&accesses(500)));
    let recording = file(&recorded(&mut made(&[trace.path()], Policy::default())));
    let with_frames = open::Options {
        recording: recording::Options { frames: true, ..recording::Options::default() },
        ..open::Options::default()
    };
    let from_trace = open::open(trace.path(), &with_frames).unwrap();
    let from_recording = open::open(recording.path(), &with_frames).unwrap();
    assert!(
        matches!(from_trace, Opened::Trace(_))
            && matches!(from_recording, Opened::Recording { .. })
    );
    assert_eq!((from_trace.accesses(), from_recording.accesses()), (500, 500));
    assert_eq!(from_trace.notes(), from_recording.notes());
    assert_eq!(from_trace.machine(), from_recording.machine());
    assert_eq!(kept(&all(from_trace).0), kept(&all(from_recording).0));

    let neither = file(b"neither this nor that\n");
    let error = open::open(neither.path(), &open::Options::default()).err().unwrap().to_string();
    assert!(error.contains("no line of a known text format"), "{error}");
    let missing = open::open(Path::new("no/such/file"), &open::Options::default()).err().unwrap();
    assert!(missing.to_string().contains("no/such/file"));
}

#[test]
fn several_traces_take_turns() {
    let one: Vec<Reference> = accesses(2500);
    let two: Vec<Reference> = accesses(700);
    let files = [file(&plain(&one)), file(&plain(&two))];
    let paths = [files[0].path(), files[1].path()];
    let mut trace = Trace::open_all(&paths, &Options::default()).unwrap();
    assert_eq!(trace.format(), Format::Plain);
    let (references, error) = drain(&mut trace);
    assert!(error.is_none());
    let other = |r: &Reference| Reference { lane: 1, space: 1, ..*r };
    let expected: Vec<_> = one[..1000]
        .iter()
        .copied()
        .chain(two.iter().map(other))
        .chain(one[1000..].iter().copied())
        .collect();
    assert!(references == expected);
    assert_eq!(trace.lanes(), [Lane::Only, Lane::Only]);
    assert!(trace.notes()[0].contains("take turns"));
}
