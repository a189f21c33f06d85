//! A reader in another language, written from `docs/recording-format.md` alone, reads the same.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use slat_trace::recording::{Options, Recording};
use slat_trace::{Access, At, Batch, Event, Invalidation, Kind, Source};

/// A line that says all of an access, its numbers in hexadecimal.
fn access_line(access: &Access, out: &mut String) {
    let name = match access.kind() {
        Kind::Load => "read",
        Kind::Store => "write",
        Kind::Fetch => "fetch",
    };
    let (va, len, frame) = (access.va, access.len(), access.frame);
    let (user, vcpu) = (u8::from(access.user()), access.vcpu);
    writeln!(out, "{name} {va:x} {len:x} {frame:x} {user:x} {vcpu:x}").unwrap();
}

/// A line that says all of an event.
fn event_line(at: &At, out: &mut String) {
    let (name, numbers) = match at.event {
        Event::Root { root, value } => ("root", vec![root as u64, value]),
        Event::Control { register, value } => ("control", vec![register as u64, value]),
        Event::TablePage { gpa, level, fresh } => {
            ("table", vec![gpa, level.into(), u64::from(fresh)])
        }
        Event::TableEntry { gpa, value } => ("entry", vec![gpa, value]),
        Event::TableStore { gpa, value } => ("store", vec![gpa, value]),
        Event::TableRelease { gpa } => ("release", vec![gpa]),
        Event::Invalidate(Invalidation::Invlpg { va }) => ("invlpg", vec![va]),
        Event::Invalidate(Invalidation::Invpcid { kind, pcid, va }) => {
            ("invpcid", vec![kind, pcid, va])
        }
        Event::Invalidate(Invalidation::Tlbi { operation, operand }) => {
            ("tlbi", vec![operation.into(), operand])
        }
        Event::Exception(taken) => {
            let mut numbers = vec![taken.vector.into(), taken.fault_va, taken.stack_or_syndrome];
            numbers.extend(taken.frame);
            ("exception", numbers)
        }
        Event::ExceptionReturn => ("return", vec![]),
        Event::Mode { user } => ("mode", vec![u64::from(user)]),
        Event::Io { va, gpa, len, store } => {
            ("device", vec![va, gpa, len.into(), u64::from(store)])
        }
        Event::Msr { number, value } => ("msr", vec![number.into(), value]),
        ref other => panic!("{other:?} is not in the document"),
    };
    write!(out, "{name} {:x}", at.vcpu).unwrap();
    numbers.iter().for_each(|number| write!(out, " {number:x}").unwrap());
    out.push('\n');
}

/// The number of accesses and events and a checksum over what they say in their order: all, or the first ones.
fn read(path: &Path, most: usize) -> String {
    let recording = Recording::open(path).unwrap();
    let mut reader = recording.reader(&Options { frames: true, ..Options::default() }).unwrap();
    let (mut made, mut sum) = (0, crc32fast::Hasher::new());
    let (mut batch, mut lines) = (Batch::default(), String::new());
    while made < most && reader.next(&mut batch).unwrap() {
        for run in batch.runs() {
            for at in run.events.iter().take(most - made) {
                event_line(at, &mut lines);
                made += 1;
            }
            for access in run.accesses.iter().take(most - made) {
                access_line(access, &mut lines);
                made += 1;
            }
        }
        sum.update(lines.as_bytes());
        lines.clear();
    }
    format!("{made} {:08x}", sum.finalize())
}

#[test]
fn a_reader_written_from_the_document_reads_the_same() {
    let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if !there("python3") || !there("zstd") {
        eprintln!("skipped: python3 or zstd is missing");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Python takes seconds for a million: of the long ones, what comes first.
    for (name, most) in [
        ("clear-refs.slat", usize::MAX),
        ("chase-4k.slat", usize::MAX),
        ("fork-aarch64.slat", 400_000),
        ("fork-smp2.slat", 400_000),
    ] {
        let path = root.join("../../recordings").join(name);
        let script = root.join("tests/decode.py");
        let output =
            Command::new("python3").arg(script).arg(&path).arg(most.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {wrong}");
        assert_eq!(said.trim(), read(&path, most), "{name}");
    }
}
