//! Generated guests: their streams must be what a recording of such a guest would be.

use slat_sim::compare::{Facts, Options, Scheme, compare_with};
use slat_sim::generated::{self, Generated, GeneratedError};
use slat_sim::preset::Processor;
use slat_trace::replay::{Counts, Verifier};
use slat_trace::{Batch, Source};

/// Small enough to be quick, large enough that each workload does all it does.
fn small(name: &str) -> String {
    match name {
        "gups" | "chase" | "btree" => format!("gen:{name},size=16"),
        "jbb" => "gen:jbb,heap=16".to_owned(),
        "oltp" => "gen:oltp,cache=8,servers=4,work=4000".to_owned(),
        "terminal" => "gen:terminal,sessions=2,programs=2,start=40,tasks=6,work=20000".to_owned(),
        "compile" => "gen:compile,faults=60,work=4000".to_owned(),
        other => format!("gen:{other}"),
    }
}

fn all_of(specification: &str, accesses: u64) -> (Vec<Batch>, Generated) {
    let mut guest = Generated::open(specification, accesses).expect("a workload");
    let mut batches = Vec::new();
    let mut batch = Batch::default();
    while guest.next(&mut batch).expect("memory suffices") {
        batches.push(batch.clone());
    }
    (batches, guest)
}

#[test]
fn every_access_goes_where_the_guests_own_tables_say() {
    for name in generated::names() {
        let specification = small(name);
        let (batches, guest) = all_of(&specification, 120_000);
        let mut verifier = Verifier::new(guest.machine());
        let mut counts = Counts::default();
        for batch in &batches {
            verifier.check(batch).expect("few tables");
            counts.add(batch);
        }
        assert!(counts.accesses() >= 120_000, "{specification}");
        assert_eq!(verifier.walked(), counts.accesses(), "{specification}");
        assert_eq!(verifier.mismatches(), 0, "{specification}: {:?}", verifier.first_mismatches());
    }
}

#[test]
fn all_schemes_agree_with_what_the_guest_did() {
    let processor = Processor::bundled("nehalem").expect("it is bundled");
    let options =
        Options { transcribed: true, pcid: true, host_pages: vec![12, 21], ..Options::default() };
    for name in generated::names() {
        let specification = small(name);
        let mut guest = Generated::open(&specification, 60_000).expect("a workload");
        let compared =
            compare_with(&mut guest, &processor, &options, Generated::facts, |_| true).expect(name);
        for outcome in &compared.outcomes {
            let counts = outcome.counts();
            assert_eq!(counts.unexplained, 0, "{specification} {:?}", outcome.scheme);
            assert!(counts.walks > 0 && counts.instructions > 0, "{specification}");
        }
    }
}

#[test]
fn a_seed_makes_a_stream_and_another_seed_another() {
    let stream = |specification: &str| {
        let (batches, _) = all_of(specification, 50_000);
        batches.into_iter().flat_map(|batch| batch.accesses).collect::<Vec<_>>()
    };
    assert_eq!(stream("gen:oltp,seed=3,cache=8"), stream("gen:oltp,seed=3,cache=8"));
    assert_ne!(stream("gen:oltp,seed=3,cache=8"), stream("gen:oltp,seed=4,cache=8"));
}

#[test]
fn a_guest_that_runs_out_of_memory_swaps() {
    // 96 MiB of pages in a guest with 128 MiB, half of which are its kernel's.
    let (batches, guest) = all_of("gen:jbb,heap=96,memory=128", 400_000);
    let mut counts = Counts::default();
    let mut verifier = Verifier::new(guest.machine());
    for batch in &batches {
        counts.add(batch);
        verifier.check(batch).expect("few tables");
    }
    assert!(counts.io > 100, "{counts:?}");
    assert!(guest.facts().waited_ns > 0);
    assert_eq!(verifier.mismatches(), 0, "{:?}", verifier.first_mismatches());
}

#[test]
fn large_pages_of_the_guest_are_large_in_its_tables() {
    let walks = |specification: &str| {
        let (batches, guest) = all_of(specification, 50_000);
        let mut verifier = Verifier::new(guest.machine());
        batches.iter().for_each(|batch| verifier.check(batch).expect("few tables"));
        (verifier.through_pages_of(12), verifier.through_pages_of(21))
    };
    let (small, _) = walks("gen:chase,size=64");
    let (few, large) = walks("gen:chase,size=64,huge=1");
    assert!(small > 45_000 && few < 40_000 && large > 20_000, "{small} {few} {large}");
}

#[test]
fn what_cannot_be_generated_is_refused_with_the_choices() {
    let refused = |text: &str| Generated::open(text, 1).expect_err(text).to_string();
    assert!(refused("gen:gusp").contains("gups"));
    assert!(refused("gen:gups,sise=3").contains("size"));
    assert!(refused("gen:gups,size").contains("key=value"));
    assert!(refused("gen:gups,size=0").contains("from 1 to"));
    assert!(refused("gen:gups,size=18446744073709551615M").contains("from 1 to"));
    let error = all_of_error("gen:jbb,heap=16384,memory=128,huge=1");
    assert!(error.to_string().contains("memory=MiB"), "{error}");
}

fn all_of_error(specification: &str) -> GeneratedError {
    let mut guest = Generated::open(specification, 1_000).expect("a workload");
    guest.next(&mut Batch::default()).expect_err("it cannot fit")
}

#[test]
fn fork_under_shadow_paging_exits_and_under_slat_does_not() {
    let processor = Processor::bundled("nehalem").expect("it is bundled");
    let mut guest = Generated::open("gen:fcw", 300_000).expect("a workload");
    let options = Options { host_pages: vec![21], ..Options::default() };
    let facts = |_: &Generated| Facts::RECORDED;
    let compared =
        compare_with(&mut guest, &processor, &options, facts, |_| true).expect("it runs");
    let exits = |wanted: fn(&Scheme) -> bool| {
        compared.outcomes.iter().find(|outcome| wanted(&outcome.scheme)).expect("ran").exits()
    };
    assert_eq!(exits(|scheme| matches!(scheme, Scheme::Ept(_))), 0);
    assert_eq!(exits(|scheme| matches!(scheme, Scheme::Native)), 0);
    let shadow = exits(|scheme| scheme.name() == "shadow");
    let trap = exits(|scheme| scheme.name() == "shadow-trap");
    assert!(trap > shadow && shadow > 100, "{trap} {shadow}");
}
