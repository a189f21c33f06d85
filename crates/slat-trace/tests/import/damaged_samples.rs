//! Damaged copies of real traces: those of the repository, and each of the samples if they are there.
//!
//! What is packed, and drmemtrace, tells each cut and (but for unused bits of a packer's header) each flip. Texts,
//! gem5 packets and records of ChampSim have no checksums: a cut between two records or a flipped digit gives another
//! trace that is as good. Of them, what precedes the damage must come out, and an error must say where it is.

use std::path::{Path, PathBuf};

use slat_trace::import::{Format, ImportError, Options, Place, Reference, Trace};
use slat_trace::made_tables::{Damage, MadeTables, Policy};

use crate::counts::{fixtures, samples};
use crate::samples::{drain, read, read_file};

const THREADS: &str = "drmemtrace/drmemtrace.threadsig.x64.tracedir";

/// The files of a directory that are traces, in the order of their names.
fn members(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(".trace.zip"));
    paths.sort();
    paths
}

/// Every file, and how many places of it are damaged: few where it takes long to unpack.
fn real_traces() -> Vec<(PathBuf, usize)> {
    let bundled = ["gups_head100k.lk.gz", "gups_100k.champsim.xz"];
    let mut all: Vec<_> = bundled.map(|name| (fixtures().join(name), 9)).into();
    let Some(directory) = samples() else { return all };
    for (name, places) in [
        ("drmemtrace/drmemtrace.allasm_x86_64.trace.zip", 100),
        ("drmemtrace/drmemtrace.simple_app.trace.zip", 9),
        ("drmemtrace/drmemtrace.small.x64.trace", 300),
        ("drmemtrace/offline-legacy-trace.gz", 9),
        ("mm_1M.champsim.xz", 2),
        ("tgen-simple-mem.trc", 71),
        ("ramulator2_example_inst.trace", 106),
    ] {
        all.push((directory.join(name), places));
    }
    all.extend(members(&directory.join(THREADS)).into_iter().map(|path| (path, 3)));
    all
}

/// Whether damage of it never goes unnoticed: not even a flipped bit, or at least no cut.
fn tells(path: &Path) -> (bool, bool) {
    let packed = ["gz", "xz", "zip"].iter().any(|end| path.extension().is_some_and(|e| e == *end));
    (packed, packed || path.to_string_lossy().contains("drmemtrace"))
}

/// Only what is packed needs a file.
fn read_copy(path: &Path, bytes: &[u8]) -> (Vec<Reference>, Option<ImportError>) {
    if tells(path).0 { read_file(bytes) } else { read(bytes.to_vec(), &Options::default()) }
}

/// The place is within what was read.
fn check_place(error: &ImportError, file: usize, of: &str) {
    match error.place {
        Place::Whole => panic!("{of}: no place in {error}"),
        Place::Byte { offset, in_file: None } => assert!(offset <= file as u64, "{of}: {error}"),
        Place::Byte { in_file: Some(in_file), .. } => {
            assert!(in_file <= file as u64, "{of}: {error}");
        }
        Place::Line(_) | Place::Access(_) => {}
    }
}

fn check_cut(path: &Path, bytes: &[u8], expected: &[Reference], cut: usize) {
    let of = format!("{} cut at {cut}", path.display());
    let (references, error) = read_copy(path, &bytes[..cut]);
    assert!(references.len() <= expected.len(), "{of}");
    match error {
        Some(error) => check_place(&error, cut, &of),
        None => assert!(!tells(path).1, "{of} went unnoticed"),
    }
    // The last number of a text may have been cut.
    let sure = references.len() - usize::from(!references.is_empty() && !tells(path).1);
    assert!(references[..sure] == expected[..sure], "{of}");
}

fn check_flip(path: &Path, bytes: &[u8], expected: &[Reference], at: usize, bit: u8) {
    let of = format!("{} with bit {bit} of byte {at} flipped", path.display());
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1 << bit;
    let (references, error) = read_copy(path, &flipped);
    match error {
        Some(error) => check_place(&error, bytes.len(), &of),
        None => assert!(!tells(path).0 || references == expected, "{of} went unnoticed"),
    }
}

#[test]
fn damaged_copies_of_real_traces_are_noticed() {
    for (path, places) in real_traces() {
        let bytes = std::fs::read(&path).unwrap();
        let (expected, error) = read_file(&bytes);
        assert!(error.is_none(), "{}: {error:?}", path.display());
        for part in 0..places {
            let at = bytes.len() * (part + 1) / (places + 1);
            check_cut(&path, &bytes, &expected, at);
            check_flip(&path, &bytes, &expected, at, (part % 8) as u8);
        }
    }
}

#[test]
fn every_byte_of_the_samples_that_are_small() {
    let Some(directory) = samples() else { return };
    for name in [
        "drmemtrace/drmemtrace.allasm_x86_64.trace.zip",
        "drmemtrace/drmemtrace.small.x64.trace",
        "tgen-simple-mem.trc",
        "ramulator2_example_inst.trace",
    ] {
        let path = directory.join(name);
        let bytes = std::fs::read(&path).unwrap();
        let (expected, _) = read_file(&bytes);
        for at in 0..bytes.len() {
            check_cut(&path, &bytes, &expected, at);
            let one = (at % 8) as u8;
            let bits = if tells(&path).0 { one..one + 1 } else { 0..8 };
            bits.for_each(|bit| check_flip(&path, &bytes, &expected, at, bit));
        }
    }
}

/// As `slat import` opens it.
#[test]
fn an_import_of_a_damaged_copy_says_where() {
    for (path, _) in real_traces() {
        let bytes = std::fs::read(&path).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &bytes[..bytes.len() / 2]).unwrap();
        let open = |damage| {
            MadeTables::open(&[file.path()], &Options::default(), Policy::default(), damage)
        };
        let of = format!("half of {}", path.display());
        match open(Damage::Refuse) {
            Err(error) => check_place(&error, bytes.len() / 2, &of),
            Ok(_) => assert!(!tells(&path).1, "{of} went unnoticed"),
        }
    }
}

#[test]
fn a_trace_without_accesses_ends_where_its_content_does() {
    let text = "==1== Lackey, an example Valgrind tool\n==1== Command: ./a.out\n";
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut packed, text.repeat(100).as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let file = |bytes: &[u8]| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        file
    };
    let (bare, packed) = (file(text.as_bytes()), (file(&packed), packed.len() as u64));
    let error = |paths: &[&Path]| {
        let options = Options { format: Some(Format::Lackey), ..Options::default() };
        MadeTables::open(paths, &options, Policy::default(), Damage::Refuse).unwrap_err()
    };
    let place = |path| error(&[path]).place;
    let len = text.len() as u64;
    assert_eq!(place(bare.path()), Place::Byte { offset: len, in_file: None });
    let inside = Place::Byte { offset: 100 * len, in_file: Some(packed.1) };
    assert_eq!(place(packed.0.path()), inside);
    let both = error(&[bare.path(), packed.0.path()]);
    assert_eq!(both.place, Place::Whole, "no offset of one is that of both");
    assert!(both.to_string().contains("the other 1 have no accesses"), "{both}");
}

#[test]
fn damage_of_one_thread_of_a_directory_names_its_file() {
    let Some(directory) = samples() else { return };
    let copy = tempfile::tempdir().unwrap();
    for path in members(&directory.join(THREADS)) {
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let third = members(copy.path()).swap_remove(2);
    let bytes = std::fs::read(&third).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    for damaged in [&bytes[..bytes.len() / 2], &flipped] {
        std::fs::remove_file(&third).unwrap();
        std::fs::write(&third, damaged).unwrap();
        let error = match Trace::open(copy.path(), &Options::default()) {
            Ok(mut trace) => drain(&mut trace).1.unwrap(),
            Err(error) => error,
        };
        assert_eq!(error.path, third, "{error}");
        check_place(&error, damaged.len(), "a damaged thread");
    }
}
