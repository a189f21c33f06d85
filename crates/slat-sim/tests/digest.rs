//! Stretches of hits that are run at once end as those that are run access by access, to the last
//! counter.

use slat_sim::compare::{Facts, Options, Outcome, Scheme, WhatIf, compare, share};
use slat_sim::generated::Generated;
use slat_sim::preset::Processor;
use slat_trace::Source;
use slat_trace::recording::{self, Reader, Recording};

/// The first block of a bundled recording.
fn recorded(name: &str) -> Reader {
    let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
    let recording = Recording::open(path).unwrap();
    recording.reader(&recording::Options { blocks: 0..1, ..Default::default() }).unwrap()
}

/// Runs a workload both ways; what it comes to.
fn alike<S: Source>(open: impl Fn() -> S, processor: &str, options: &Options) -> Vec<Outcome> {
    let processor = Processor::bundled(processor).unwrap();
    let run = |one_by_one| {
        let options = Options { one_by_one, ..options.clone() };
        compare(&mut open(), &processor, &options, |_| true).unwrap()
    };
    let outcomes = run(false);
    assert!(outcomes.iter().all(|outcome| outcome.events.counts.accesses > 100_000));
    assert_eq!(outcomes, run(true), "{}", processor.name);
    outcomes
}

/// Host pages of 4 KiB and 2 MiB.
fn options() -> Options {
    Options { host_pages: vec![12, 21], ..Options::default() }
}

/// Caches of 32 sets, of two ways and of twelve, TLBs with arrays by page size and shared ones, with
/// stores apart and without.
#[test]
fn recordings_end_alike() {
    let cold = Options { cold_start: true, tagged: Some(false), ..options() };
    for (processor, name, options) in [
        ("skylake-sp", "clear-refs", &options()),
        ("vt-x-2005", "fork-smp2", &cold),
        ("zen-3", "chase-2m", &options()),
        ("cortex-a15", "clear-refs", &cold),
        ("ice-lake", "fork-smp2", &options()),
    ] {
        alike(|| recorded(name), processor, options);
    }
}

/// Counting begins in the middle of a stretch, which is run access by access then.
#[test]
fn what_is_warmed_up_ends_alike() {
    let warm = |warm_up| Options { warm_up, ..options() };
    let one = alike(|| recorded("clear-refs"), "zen-3", &warm(50_001));
    let other = alike(|| recorded("clear-refs"), "zen-3", &warm(50_002));
    let accesses = |outcomes: &[Outcome]| outcomes[0].events.counts.accesses;
    assert_eq!(accesses(&one), accesses(&other) + 1);
}

/// Machines whose events are rewritten: tables of other architectures, and larger pages.
#[test]
fn transcribed_recordings_end_alike() {
    let only = |schemes: &[Scheme]| Options { schemes: Some(schemes.to_vec()), ..options() };
    for (name, schemes) in [
        ("fork", [Scheme::Arm(21), Scheme::RiscV(21)]),
        ("fork-aarch64", [Scheme::Npt(21), Scheme::RiscV(21)]),
    ] {
        let outcomes = alike(|| recorded(name), "neoverse-n1", &only(&schemes));
        assert!(outcomes.iter().all(|outcome| outcome.transcribed), "{name}");
    }
    let large = Options { what_ifs: true, ..only(&[Scheme::Ept(21)]) };
    let outcomes = alike(|| recorded("chase-4k"), "skylake-sp", &large);
    assert!(outcomes.iter().any(|outcome| outcome.what_if == Some(WhatIf::HugePages)));
}

/// Address spaces that keep what they had.
#[test]
fn address_spaces_with_pcids_end_alike() {
    let schemes = Some(vec![Scheme::Native, Scheme::Ept(21), Scheme::Npt(21)]);
    let pcids = Options { pcid: true, schemes, ..options() };
    let open = || recorded("fork-pti");
    let kept = alike(open, "skylake-sp", &pcids);
    let dropped = alike(open, "skylake-sp", &Options { pcid: false, ..pcids });
    let walks = |outcomes: &[Outcome]| outcomes[0].events.counts.walks;
    assert!(walks(&kept) < walks(&dropped));
}

/// Guests that fault, and a guest that shares its cores with none, in slices.
#[test]
fn generated_guests_end_alike() {
    for (guest, processor) in [("oltp", "skylake-sp"), ("compile", "zen-3"), ("gups", "ice-lake")] {
        let open = || Generated::open(guest, 120_000).unwrap();
        let at_once = alike(open, processor, &options());
        let processor = Processor::bundled(processor).unwrap();
        let facts = |_: &Generated| Facts::RECORDED;
        let slices = share(&mut [open()], 999, &processor, &options(), facts, |_| true);
        assert_eq!(at_once, slices.unwrap().remove(0), "{guest}");
    }
}
