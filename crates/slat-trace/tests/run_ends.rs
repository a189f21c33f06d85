//! Where page runs end, against the words that define them: for each access, what is between it and the one
//! before it is looked for again from the beginning.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use slat_trace::compact::{Classes, Compacting, PageRun, RunBatch};
use slat_trace::{Access, Batch, Control, Event, Exception, Invalidation, Kind, Root};

/// Why an access begins a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// No access of its class by its vCPU before it.
    First,
    Page,
    Privilege,
    Crossing,
    /// Nothing in the run shows that this is permitted, or the page dirty.
    Permission,
    /// An event of its own vCPU, and one of another, by number.
    Own(u8),
    Other(u8),
}

const EVENTS: u8 = 14;

fn event(number: u8) -> Event {
    let va = 0x1000;
    match number {
        0 => Event::TableStore { gpa: 0x8000, value: 7 },
        1 => Event::TablePage { gpa: 0x8000, level: 0, fresh: true },
        2 => Event::TableEntry { gpa: 0x8008, value: 7 },
        3 => Event::TableRelease { gpa: 0x8000 },
        4 => Event::Invalidate(Invalidation::Invlpg { va }),
        5 => Event::Invalidate(Invalidation::Invpcid { kind: 1, pcid: 3, va }),
        6 => Event::Invalidate(Invalidation::Tlbi { operation: 0x43b, operand: 1 }),
        7 => Event::Root { root: Root::Cr3, value: 0x9000 },
        8 => Event::Control { register: Control::Cr4, value: 0x20 },
        9 => Event::Exception(Exception {
            vector: 14,
            fault_va: va,
            stack_or_syndrome: 0,
            frame: [0; 6],
        }),
        10 => Event::ExceptionReturn,
        11 => Event::Mode { user: true },
        12 => Event::Io { va, gpa: 0xfee0_0000, len: 4, store: true },
        _ => Event::Msr { number: 0x277, value: 6 },
    }
}

/// Table changes and invalidations concern all vCPUs, all else the one it happens on.
fn ends_all(number: u8) -> bool {
    number <= 6
}

/// The class of an access: none but its own vCPU's accesses of its class matter to a run.
fn class(classes: Classes, kind: Kind) -> u8 {
    match (classes, kind) {
        (Classes::Unified, _) | (_, Kind::Load) => 0,
        (Classes::Split, Kind::Store) => 0,
        (Classes::SplitStores, Kind::Store) => 1,
        (_, Kind::Fetch) => 2,
    }
}

type Events = Vec<(u32, u8, u8)>;

/// Runs and the reasons for which they begin.
fn defined(
    accesses: &[Access],
    events: &Events,
    classes: Classes,
) -> (Vec<PageRun>, BTreeSet<End>) {
    let mut runs: Vec<PageRun> = Vec::new();
    let mut reasons = BTreeSet::new();
    // Of each access: the run it is in, and the kinds that led to it without an end but that of permission.
    let mut known: Vec<(usize, BTreeSet<u8>)> = Vec::new();
    for (i, access) in accesses.iter().enumerate() {
        let like = |other: &Access| {
            other.vcpu == access.vcpu
                && class(classes, other.kind()) == class(classes, access.kind())
        };
        let kind = access.kind() as u8;
        let ended = match accesses[..i].iter().rposition(like) {
            None => Err(End::First),
            Some(before) => {
                let last = accesses[before];
                let between = events.iter().find(|&&(at, vcpu, number)| {
                    (at as usize) > before
                        && at as usize <= i
                        && (vcpu == access.vcpu || ends_all(number))
                });
                match between {
                    Some(&(_, vcpu, number)) if vcpu == access.vcpu => Err(End::Own(number)),
                    Some(&(_, _, number)) => Err(End::Other(number)),
                    None if last.crosses() || access.crosses() => Err(End::Crossing),
                    None if last.va >> 12 != access.va >> 12 => Err(End::Page),
                    None if last.user() != access.user() => Err(End::Privilege),
                    None => Ok(known[before].clone()),
                }
            }
        };
        let (run, mut kinds) = match ended {
            Ok((run, kinds)) => {
                let stores = kinds.contains(&(Kind::Store as u8));
                let shown = kinds.contains(&kind) || access.kind() == Kind::Load && stores;
                if !shown {
                    reasons.insert(End::Permission);
                }
                (shown.then_some(run), kinds)
            }
            Err(end) => {
                reasons.insert(end);
                (None, BTreeSet::new())
            }
        };
        kinds.insert(kind);
        let run = run.unwrap_or_else(|| {
            runs.push(PageRun { first: *access, loads: 0, stores: 0, fetches: 0 });
            runs.len() - 1
        });
        match access.kind() {
            Kind::Load => runs[run].loads += 1,
            Kind::Store => runs[run].stores += 1,
            Kind::Fetch => runs[run].fetches += 1,
        }
        known.push((run, kinds));
    }
    (runs, reasons)
}

fn streams() -> impl Strategy<Value = (Vec<Access>, Events)> {
    let kind = prop_oneof![Just(Kind::Load), Just(Kind::Store), Just(Kind::Fetch)];
    let page = prop_oneof![6 => Just(0u64), 2 => Just(1), 1 => Just(2)];
    let offset = prop_oneof![9 => 0u64..4000, 1 => Just(4093u64)];
    let access = (kind, page, offset, 0u8..2, prop::bool::weighted(0.8)).prop_map(
        |(kind, page, offset, vcpu, user)| {
            Access::new(kind, page << 12 | offset, 8).on(vcpu).with_user(user)
        },
    );
    let happens = proptest::option::weighted(0.08, (0u8..2, 0..EVENTS));
    proptest::collection::vec((happens, access), 1..200).prop_map(|all| {
        let (mut accesses, mut events) = (Vec::new(), Vec::new());
        for (happens, access) in all {
            if let Some((vcpu, number)) = happens {
                events.push((accesses.len() as u32, vcpu, number));
            }
            accesses.push(access);
        }
        (accesses, events)
    })
}

fn batch(accesses: &[Access], events: &Events) -> Batch {
    let mut batch = Batch::default();
    let mut left = events.iter().peekable();
    for (i, access) in accesses.iter().enumerate() {
        while let Some((_, vcpu, number)) = left.next_if(|(at, ..)| *at as usize == i) {
            batch.event(*vcpu, event(*number));
        }
        batch.accesses.push(*access);
    }
    batch
}

const ALL: [Classes; 3] = [Classes::Split, Classes::SplitStores, Classes::Unified];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn runs_end_where_the_definition_says((accesses, events) in streams()) {
        for classes in ALL {
            let mut runs = RunBatch::default();
            Compacting::new(classes).compact(&batch(&accesses, &events), &mut runs);
            prop_assert_eq!(&runs.runs, &defined(&accesses, &events, classes).0, "{:?}", classes);
        }
    }
}

#[test]
fn streams_contain_every_reason() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..400 {
        let (accesses, events) = streams().new_tree(&mut runner).unwrap().current();
        ALL.iter().for_each(|&classes| seen.extend(defined(&accesses, &events, classes).1));
    }
    let mut all = BTreeSet::from([End::First, End::Page, End::Privilege, End::Crossing]);
    all.insert(End::Permission);
    all.extend((0..EVENTS).map(End::Own));
    all.extend((0..EVENTS).filter(|&number| ends_all(number)).map(End::Other));
    assert_eq!(seen, all);
}
