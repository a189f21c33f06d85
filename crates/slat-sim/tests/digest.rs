//! Stretches of hits that are run at once end as those that are run access by access, to the last
//! counter: a guest that shares its core with none is run without a digest.

use slat_sim::compare::{Facts, Options, Outcome, compare, share};
use slat_sim::generated::Generated;
use slat_sim::preset::Processor;
use slat_trace::Source;
use slat_trace::recording::{self, Reader, Recording};

/// The first blocks of a bundled recording.
fn recorded(name: &str, blocks: usize) -> Reader {
    let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
    let recording = Recording::open(path).unwrap();
    recording.reader(&recording::Options { blocks: 0..blocks, ..Default::default() }).unwrap()
}

fn at_once<S: Source>(mut source: S, processor: &Processor, options: &Options) -> Vec<Outcome> {
    compare(&mut source, processor, options, |_| true).unwrap()
}

/// In slices of so many accesses.
fn one_by_one<S: Source>(
    source: S,
    slice: usize,
    processor: &Processor,
    options: &Options,
) -> Vec<Outcome> {
    let facts = |_: &S| Facts::RECORDED;
    share(&mut [source], slice, processor, options, facts, |_| true).unwrap().remove(0)
}

/// Caches of 32 sets, of two ways and of twelve, TLBs with arrays by page size and shared ones.
const PROCESSORS: [&str; 5] = ["skylake-sp", "vt-x-2005", "zen-3", "cortex-a15", "ice-lake"];

#[test]
fn recordings_end_alike() {
    for (nth, processor) in PROCESSORS.into_iter().enumerate() {
        let processor = Processor::bundled(processor).unwrap();
        let mut options = Options::default();
        if nth % 2 == 1 {
            options = Options { cold_start: true, tagged: Some(false), ..options };
        }
        for name in ["clear-refs", "fork-smp2", "chase-2m"] {
            let alike = at_once(recorded(name, 1), &processor, &options);
            assert!(alike.iter().all(|outcome| outcome.events.counts.accesses > 100_000));
            let slow = one_by_one(recorded(name, 1), 1 << 20, &processor, &options);
            assert_eq!(alike, slow, "{name}");
        }
    }
}

#[test]
fn generated_guests_end_alike() {
    for (guest, processor) in [("oltp", "skylake-sp"), ("compile", "zen-3"), ("gups", "ice-lake")] {
        let processor = Processor::bundled(processor).unwrap();
        let open = || Generated::open(guest, 300_000).unwrap();
        let options = Options::default();
        let alike = at_once(open(), &processor, &options);
        assert_eq!(alike, one_by_one(open(), 999, &processor, &options), "{guest}");
    }
}
