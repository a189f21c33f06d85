//! The sample traces of other tools against counts that were derived without this code.
//!
//! Two samples are in `fixtures/traces`. The others are not part of the repository: they are looked for in
//! `../shared/data/traces` beside the workspace, or where `SLAT_SAMPLE_TRACES` says; without them the tests
//! that need them say so and pass.
//!
//! How the counts came about (Python, standard library only):
//! - drmemtrace: `struct.iter_unpack('<HHQ', data)` over the members that `zipfile` (or `gzip`) unpacks;
//!   loads are type 0, stores type 1, fetches types 10 to 16, 31, 48 and 49 (none of the samples has
//!   bundles, type 17).
//! - lackey: `zcat FILE | cut -c1-2 | sort | uniq -c`: 78924 `I`, 14577 ` L`, 5169 ` S`, 1324 ` M`; an M
//!   is a load and a store.
//! - ChampSim: `struct.iter_unpack('<Q8B2Q4Q', lzma.open(FILE).read())`, operands that are not 0.
//! - gem5: by hand from the 71 bytes of the file, two messages behind the header.
//! - Ramulator: eight lines, one of which has a write-back, are eight loads and two stores.

use std::path::{Path, PathBuf};

use slat_trace::Kind;
use slat_trace::import::{Format, Options, Reference, Trace};
use slat_trace::made_tables::{Damage, MadeTables, Policy};

use crate::samples::drain;

pub(crate) fn samples() -> Option<PathBuf> {
    let directory = match std::env::var_os("SLAT_SAMPLE_TRACES") {
        Some(named) => PathBuf::from(named),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/traces"),
    };
    if directory.is_dir() {
        return Some(directory);
    }
    eprintln!("skipped: no sample traces in {} (set SLAT_SAMPLE_TRACES)", directory.display());
    None
}

/// The samples of this repository.
pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/traces")
}

struct Counted {
    fetches: usize,
    loads: usize,
    stores: usize,
}

fn count(references: &[Reference]) -> Counted {
    let of = |kind| references.iter().filter(|r| r.kind == kind).count();
    Counted { fetches: of(Kind::Fetch), loads: of(Kind::Load), stores: of(Kind::Store) }
}

fn check(directory: &Path, name: &str, format: Format, counts: (usize, usize, usize)) {
    let mut trace = Trace::open(&directory.join(name), &Options::default()).unwrap();
    assert_eq!(trace.format(), format, "{name}");
    let (references, error) = drain(&mut trace);
    assert!(error.is_none(), "{name}: {error:?}");
    let counted = count(&references);
    assert_eq!((counted.fetches, counted.loads, counted.stores), counts, "{name}");
    // What `slat import` reports.
    let paths = [directory.join(name)];
    let made = MadeTables::open(&paths, &Options::default(), Policy::default(), Damage::Refuse);
    let reported = made.unwrap().counts();
    let (fetches, loads, stores) = counts;
    let expected = [fetches, loads, stores].map(|count| count as u64);
    assert_eq!([reported.fetches, reported.loads, reported.stores], expected, "{name}");
}

fn check_sample(name: &str, format: Format, fetches: usize, loads: usize, stores: usize) {
    if let Some(samples) = samples() {
        check(&samples, name, format, (fetches, loads, stores));
    }
}

#[test]
fn lackey() {
    let counts = (78924, 14577 + 1324, 5169 + 1324);
    check(&fixtures(), "gups_head100k.lk.gz", Format::Lackey, counts);
}

#[test]
fn champsim() {
    check(&fixtures(), "gups_100k.champsim.xz", Format::ChampSim, (100_000, 21_746, 8_773));
    check_sample("mm_1M.champsim.xz", Format::ChampSim, 1_000_000, 190_228, 239_187);
}

#[test]
fn drmemtrace_files() {
    check_sample("drmemtrace/drmemtrace.allasm_x86_64.trace.zip", Format::Drmemtrace, 133, 0, 0);
    check_sample(
        "drmemtrace/drmemtrace.simple_app.trace.zip",
        Format::Drmemtrace,
        136_051,
        31_507,
        12_338,
    );
    check_sample("drmemtrace/drmemtrace.small.x64.trace", Format::Drmemtrace, 173, 42, 14);
    check_sample("drmemtrace/offline-legacy-trace.gz", Format::Drmemtrace, 78_753, 26_381, 16_308);
}

#[test]
fn drmemtrace_directory() {
    let name = "drmemtrace/drmemtrace.threadsig.x64.tracedir";
    check_sample(name, Format::Drmemtrace, 650_576, 172_208, 100_150);
    let Some(samples) = samples() else { return };
    let mut trace = Trace::open(&samples.join(name), &Options::default()).unwrap();
    let (references, _) = drain(&mut trace);
    assert_eq!(trace.lanes().len(), 9, "nine threads");
    assert!(references.iter().all(|r| r.space == 0), "of one process");
    let mut by_lane = [0; 9];
    references.iter().for_each(|r| by_lane[usize::from(r.lane)] += 1);
    by_lane.sort_unstable();
    // Per thread, as the nine files hold them.
    let expected = [31_914, 64_255, 68_848, 70_134, 87_170, 92_278, 110_605, 175_907, 221_823];
    assert_eq!(by_lane, expected);
}

#[test]
fn threads_by_themselves() {
    let name = "drmemtrace/drmemtrace.threadsig.x64.tracedir/drmemtrace.threadsig";
    for (thread, fetches, loads, stores) in [
        ("872805.4975", 22_052, 6_303, 3_559),
        ("872884.3060", 156_381, 41_274, 24_168),
        ("872894.3824", 123_958, 32_775, 19_174),
        ("872901.9125", 48_615, 12_833, 7_400),
        ("872902.5666", 61_550, 16_232, 9_388),
        ("872903.3218", 78_051, 20_590, 11_964),
        ("872904.7848", 45_355, 11_990, 6_910),
        ("872905.5783", 65_121, 17_160, 9_997),
        ("872906.1041", 49_493, 13_051, 7_590),
    ] {
        let name = format!("{name}.{thread}.trace.zip");
        check_sample(&name, Format::Drmemtrace, fetches, loads, stores);
    }
}

#[test]
fn gem5() {
    check_sample("tgen-simple-mem.trc", Format::Gem5, 0, 1, 1);
    let Some(samples) = samples() else { return };
    let mut trace = Trace::open(&samples.join("tgen-simple-mem.trc"), &Options::default()).unwrap();
    let (references, _) = drain(&mut trace);
    let seen: Vec<_> = references.iter().map(|r| (r.address, r.size)).collect();
    // 0xe7 0x8a 0x8d 0x09 and 0xef 0xfd 0x02, seven bits a byte, least significant first.
    let first = 0x67 | 0x0a << 7 | 0x0d << 14 | 0x09 << 21;
    let second = 0x6f | 0x7d << 7 | 0x02 << 14;
    assert_eq!(seen, [(first, 64), (second, 64)]);
}

#[test]
fn ramulator() {
    check_sample("ramulator2_example_inst.trace", Format::Ramulator, 0, 8, 2);
}
