//! Page runs from the cache beside a recording are those made from it.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use slat_trace::Kind;
use slat_trace::compact::{Compact, Hierarchy, PageRun, RunBatch, Runs, RunsError};
use slat_trace::import::Options;
use slat_trace::made_tables::{Damage, MadeTables, Policy};
use slat_trace::recording::{self, Encoder, Packer, Recording};
use slat_trace::{Arch, At, Control, Event, Exception, Invalidation, Machine, Root};

use crate::samples::{accesses, drmemtrace, plain};

/// A recording of a made-up trace in a directory of its own.
fn recorded(directory: &Path, bytes: &[&[u8]]) -> PathBuf {
    let traces: Vec<_> = (0..bytes.len()).map(|i| directory.join(format!("trace-{i}"))).collect();
    traces.iter().zip(bytes).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    let mut made =
        MadeTables::open(&traces, &Options::default(), Policy::default(), Damage::Refuse).unwrap();
    let (file, _) = made.record(Vec::new(), &Vec::new(), 1, |_| ControlFlow::Continue(())).unwrap();
    let path = directory.join("trace.slat");
    fs::write(&path, file).unwrap();
    path
}

type Everything = (Vec<PageRun>, Vec<At>, u64);

fn add(all: &mut Everything, runs: &RunBatch) {
    let before = all.0.len() as u32;
    all.0.extend(&runs.runs);
    all.1.extend(runs.events.iter().map(|at| At { before: at.before + before, ..*at }));
    all.2 += runs.instructions;
}

fn from_runs(mut source: Runs) -> Everything {
    let (mut all, mut runs) = (Everything::default(), RunBatch::default());
    while source.next(&mut runs).unwrap() {
        add(&mut all, &runs);
    }
    assert!(!source.next(&mut runs).unwrap());
    all
}

fn from_recording(path: &Path, hierarchy: &Hierarchy) -> Everything {
    let reader = Recording::open(path).unwrap().reader(&recording::Options::default()).unwrap();
    let mut source = Compact::new(reader, hierarchy).unwrap();
    let (mut all, mut runs) = (Everything::default(), RunBatch::default());
    while source.next(&mut runs).unwrap() {
        add(&mut all, &runs);
    }
    all
}

fn cache(path: &Path) -> PathBuf {
    path.with_extension("slat.runs")
}

#[test]
fn the_cache_says_what_the_recording_says() {
    let directory = tempfile::tempdir().unwrap();
    let one = drmemtrace(1, 1000, &accesses(60_000));
    let two = plain(&accesses(30_000));
    let path = recorded(directory.path(), &[&one, &two]);
    let base = Hierarchy::default();
    let unified = Hierarchy { split_first_level: false, ..base };
    let split_stores = Hierarchy { split_stores: true, ..base };
    for hierarchy in [base, unified, split_stores] {
        let expected = from_recording(&path, &hierarchy);
        assert!(expected.0.len() > 1000 && expected.1.len() > 100);
        for _ in 0..2 {
            let runs = Runs::open(&path, &hierarchy).unwrap();
            assert!(runs.are_cached());
            assert_eq!(runs.machine().vcpus, 2);
            assert!(from_runs(runs) == expected);
        }
    }
    for name in ["trace.slat.runs", "trace.slat.unified-runs", "trace.slat.split-runs"] {
        assert!(directory.path().join(name).exists());
    }
}

#[test]
fn every_event_goes_through_the_cache() {
    let machine = Machine { arch: Arch::X86_64, vcpus: 3, tables: true, memory: None };
    let mut encoder = Encoder::new(3);
    let exception = Exception {
        vector: 14,
        fault_va: 1 << 40,
        stack_or_syndrome: 7,
        frame: [1, 2, 3, 4, 5, 6],
    };
    let events = [
        Event::Root { root: Root::Ttbr1, value: 0x5000 },
        Event::Control { register: Control::Tcr, value: u64::MAX },
        Event::TableStore { gpa: 0x1008, value: 0x8000_0000_0000_0067 },
        Event::TableRelease { gpa: 0x1000 },
        Event::Invalidate(Invalidation::Invlpg { va: 0x7fff_0000 }),
        Event::Invalidate(Invalidation::Invpcid { kind: 2, pcid: 5, va: 9 }),
        Event::Invalidate(Invalidation::Tlbi { operation: 0x1234, operand: 99 }),
        Event::Exception(exception),
        Event::ExceptionReturn,
        Event::Mode { user: true },
        Event::Io { va: 1, gpa: 2, len: 4, store: true },
        Event::Msr { number: 0xc000_0080, value: 0xd01 },
    ];
    let block = encoder.define(0x3000, 9, 3);
    for (i, event) in events.iter().enumerate() {
        let vcpu = (i % 3) as u8;
        encoder.execute(vcpu, block, 0x40_0000);
        encoder.access(vcpu, i % 2 == 0, 3, 0x1000 * i as u64, 7);
        encoder.event(vcpu, event, &[]);
        let page = Event::TablePage { gpa: 0x1000 * i as u64, level: 2, fresh: i % 2 == 0 };
        encoder.event(vcpu, &page, &[(0, 5), (7, 6), (511, u64::MAX)]);
    }
    let mut packer = Packer::new(Vec::new(), &machine, &vec![], 1).unwrap();
    packer.push(&encoder.finish()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.slat");
    fs::write(&path, packer.finish().unwrap().0).unwrap();

    let expected = from_recording(&path, &Hierarchy::default());
    assert_eq!(expected.1.len(), events.len() * 5);
    let runs = Runs::open(&path, &Hierarchy::default()).unwrap();
    assert!(runs.are_cached());
    let found = from_runs(runs);
    assert_eq!(found.1, expected.1);
    assert!(found == expected);
}

#[test]
fn a_cache_of_another_recording_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), &[&plain(&accesses(500))]);
    from_runs(Runs::open(&path, &Hierarchy::default()).unwrap());
    let before = fs::read(cache(&path)).unwrap();
    recorded(directory.path(), &[&plain(&accesses(600))]);
    let (runs, ..) = from_runs(Runs::open(&path, &Hierarchy::default()).unwrap());
    assert_eq!(runs.iter().map(PageRun::accesses).sum::<u64>(), 600);
    assert_ne!(fs::read(cache(&path)).unwrap(), before);
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), &[&plain(&accesses(3000))]);
    let expected = from_runs(Runs::open(&path, &Hierarchy::default()).unwrap());
    let whole = fs::read(cache(&path)).unwrap();
    for damage in 0..60 {
        let mut bytes = whole.clone();
        if damage % 2 == 0 {
            let at = damage * 997 % bytes.len();
            bytes[at] ^= 1 << (damage % 8);
        } else {
            bytes.truncate(damage * 991 % whole.len());
        }
        fs::write(cache(&path), bytes).unwrap();
        let runs = Runs::open(&path, &Hierarchy::default()).unwrap();
        assert!(runs.are_cached());
        assert!(from_runs(runs) == expected);
        assert!(fs::read(cache(&path)).unwrap() == whole);
    }
}

#[test]
fn where_no_cache_can_be_written_the_recording_serves() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), &[&plain(&accesses(500))]);
    fs::create_dir(cache(&path)).unwrap();
    let runs = Runs::open(&path, &Hierarchy::default()).unwrap();
    assert!(!runs.are_cached());
    assert!(from_runs(runs) == from_recording(&path, &Hierarchy::default()));
}

#[test]
fn damage_of_the_recording_is_told_every_time_and_never_cached() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), &[&plain(&accesses(500))]);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    for _ in 0..2 {
        let mut source = Runs::open(&path, &Hierarchy::default()).unwrap();
        assert!(!source.are_cached());
        let (mut runs, mut accesses) = (RunBatch::default(), 0);
        let error = loop {
            match source.next(&mut runs) {
                Ok(true) => accesses += runs.runs.iter().map(PageRun::accesses).sum::<u64>(),
                Ok(false) => panic!("the damage went unnoticed"),
                Err(error) => break error,
            }
        };
        assert_eq!(accesses, 500, "all blocks are whole");
        assert!(error.to_string().contains("trace.slat: the recording is cut off"), "{error}");
    }
    assert!(!cache(&path).exists());
}

#[test]
fn a_hierarchy_that_is_refused_gets_no_runs() {
    let directory = tempfile::tempdir().unwrap();
    let path = recorded(directory.path(), &[&plain(&accesses(10))]);
    let inclusive = Hierarchy { inclusive: true, ..Hierarchy::default() };
    assert!(matches!(Runs::open(&path, &inclusive), Err(RunsError::Refused(_))));
    let missing = Runs::open(Path::new("no/such.slat"), &Hierarchy::default()).err().unwrap();
    assert!(missing.to_string().contains("no/such.slat"), "{missing}");
    let kinds: Vec<Kind> = from_runs(Runs::open(&path, &Hierarchy::default()).unwrap())
        .0
        .iter()
        .map(|r| r.first.kind())
        .collect();
    assert!(kinds.contains(&Kind::Fetch) && kinds.contains(&Kind::Store));
}
