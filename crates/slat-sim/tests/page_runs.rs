//! Page runs against the full stream on the TLBs that simulations use.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use proptest::prelude::*;
use slat_mmu::array::{Geometry, Replacement};
use slat_mmu::tlb::{BankConfig, Entry, Held, Rights, Served, Space, Tag, Tlb, TlbConfig};
use slat_sim::page_runs::hierarchy;
use slat_sim::preset::Processor;
use slat_trace::compact::{Classes, Compacting, RunBatch};
use slat_trace::recording::{Options, Recording};
use slat_trace::{Access, Batch, Event, Invalidation, Kind, Root, Source};

/// What a run through the TLBs leaves: how often each kind was served where, every walk, every entry.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    served: HashMap<(u8, usize), u64>,
    walks: Vec<u64>,
    held: Vec<(u16, u64, u8)>,
}

struct Machine {
    tlb: Tlb,
    dirty: BTreeSet<u64>,
    outcome: Outcome,
}

const SPACE: Space = match (Tag::new(1), Tag::new(2)) {
    (Some(own), Some(global)) => Space { own, global },
    _ => panic!("1 and 2 are tags"),
};

/// Of each four 2 MiB regions, two hold 4 KiB pages, one is a 2 MiB page, one is within a 1 GiB page.
fn shift(va: u64, with_1g: bool) -> u8 {
    match va >> 30 & 1 {
        1 if with_1g => 30,
        _ if va >> 21 & 1 == 1 => 21,
        _ => 12,
    }
}

impl Machine {
    fn new(config: &TlbConfig) -> Self {
        Machine {
            tlb: Tlb::new(config).unwrap(),
            dirty: BTreeSet::new(),
            outcome: Outcome::default(),
        }
    }

    fn access(&mut self, access: &Access, with_1g: bool) {
        self.page(access, access.va, with_1g);
        if access.crosses() {
            self.page(access, access.va + u64::from(access.len()) - 1, with_1g);
        }
    }

    fn page(&mut self, access: &Access, va: u64, with_1g: bool) {
        let kind = match access.kind() {
            Kind::Load => slat::Kind::Read,
            Kind::Store => slat::Kind::Write,
            Kind::Fetch => slat::Kind::Execute,
        };
        let (served, _) = self.tlb.find(va, SPACE, kind, access.user());
        self.served(access.kind(), served, 1);
        if served != Served::Miss {
            return;
        }
        self.outcome.walks.push(va >> 12);
        let shift = shift(va, with_1g);
        let page = va >> shift << shift;
        if kind == slat::Kind::Write {
            self.dirty.insert(page);
        }
        let rights = Rights::ALL.with(Rights::DIRTY, self.dirty.contains(&page));
        self.tlb.insert(
            va,
            SPACE,
            kind,
            Entry { base: page, shift, leaf: shift, rights, ..Entry::default() },
        );
    }

    fn served(&mut self, kind: Kind, served: Served, times: u64) {
        let place = match served {
            Served::First => 0,
            Served::Second => 1,
            Served::Miss => 2,
        };
        *self.outcome.served.entry((kind as u8, place)).or_default() += times;
    }

    fn event(&mut self, event: &Event) {
        match *event {
            Event::Root { .. } => self.tlb.retain(|_| false),
            Event::Invalidate(Invalidation::Invlpg { va }) => {
                self.tlb.retain(|held: &Held| !held.covers(va))
            }
            _ => {}
        }
    }

    fn finish(mut self) -> Outcome {
        self.outcome.served.retain(|_, count| *count > 0);
        self.outcome.held =
            self.tlb.iter().map(|held| (held.tag, held.va, held.entry.shift)).collect();
        self.outcome
    }
}

fn full(config: &TlbConfig, batches: &[Batch], with_1g: bool) -> Outcome {
    let mut machine = Machine::new(config);
    for run in batches.iter().flat_map(Batch::runs) {
        run.events.iter().for_each(|at| machine.event(&at.event));
        run.accesses.iter().for_each(|access| machine.access(access, with_1g));
    }
    machine.finish()
}

fn by_runs(config: &TlbConfig, classes: Classes, batches: &[Batch], with_1g: bool) -> Outcome {
    let (mut compacting, mut runs) = (Compacting::new(classes), RunBatch::default());
    let machine = std::cell::RefCell::new(Machine::new(config));
    for batch in batches {
        compacting.compact(batch, &mut runs);
        runs.visit(
            |at| machine.borrow_mut().event(&at.event),
            |run| {
                let mut machine = machine.borrow_mut();
                machine.access(&run.first, with_1g);
                let counts = [
                    (Kind::Load, run.loads),
                    (Kind::Store, run.stores),
                    (Kind::Fetch, run.fetches),
                ];
                for (kind, count) in counts {
                    let again = u64::from(count) - u64::from(kind == run.first.kind());
                    machine.served(kind, Served::First, again);
                }
            },
        );
    }
    machine.into_inner().finish()
}

fn stream() -> impl Strategy<Value = Batch> {
    let access = (0u8..3, 0u64..20, 0u64..4096, 1u16..9, any::<bool>(), 0u8..6);
    let event = (0u8..12, 0u64..20);
    proptest::collection::vec((access, proptest::option::weighted(0.05, event)), 1..250).prop_map(
        |all| {
            // Few pages in few sets, in regions of all sizes.
            let va = |page: u64| (page % 3) << 30 | (page % 4) << 21 | (page / 4) << 12;
            let mut batch = Batch::default();
            for ((kind, page, offset, len, user, again), event) in all {
                for i in 0..=u64::from(again) {
                    let kind = match kind {
                        2 => Kind::Fetch,
                        kind if (u64::from(kind) + i) % 3 == 1 => Kind::Store,
                        _ => Kind::Load,
                    };
                    batch.accesses.push(Access::new(kind, va(page) + offset, len).with_user(user));
                }
                match event {
                    Some((0, _)) => batch.event(0, Event::Root { root: Root::Cr3, value: 0x1000 }),
                    Some((_, page)) => {
                        batch.event(0, Event::Invalidate(Invalidation::Invlpg { va: va(page) }));
                    }
                    None => {}
                }
            }
            batch
        },
    )
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let replacement = prop_oneof![
        Just(Replacement::Lru),
        Just(Replacement::Fifo),
        Just(Replacement::TreePlru),
        any::<u64>().prop_map(Replacement::Random)
    ];
    (0u32..3, 0u32..4, replacement).prop_map(|(sets, ways, replacement)| Geometry {
        entries: 1 << (sets + ways),
        ways: 1 << ways,
        replacement,
    })
}

/// A level in one array for all sizes or one for each.
fn level() -> impl Strategy<Value = Vec<BankConfig>> {
    prop_oneof![
        geometry().prop_map(|all| vec![BankConfig::new(all, &[12, 21, 30])]),
        [geometry(), geometry(), geometry()].prop_map(|each| {
            each.iter()
                .zip([12, 21, 30])
                .map(|(&geometry, size)| BankConfig::new(geometry, &[size]))
                .collect()
        }),
    ]
}

fn config() -> impl Strategy<Value = TlbConfig> {
    let store = proptest::option::of(level());
    let largest = prop_oneof![Just(21u8), Just(30)];
    let smashes = any::<[bool; 2]>();
    (level(), level(), store, level(), largest, smashes).prop_map(
        |(fetch, load, store, second, largest, [first_smashes, second_smashes])| TlbConfig {
            fetch,
            load,
            store,
            second,
            largest,
            first_smashes,
            second_smashes,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn runs_change_nothing_in_any_tlb(config in config(), batch in stream(), with_1g in any::<bool>()) {
        let classes = hierarchy(&config, &[12, 21, 30]).classes().unwrap();
        let batches = [batch];
        prop_assert_eq!(full(&config, &batches, with_1g), by_runs(&config, classes, &batches, with_1g));
    }

    #[test]
    fn runs_change_nothing_in_any_preset(batch in stream()) {
        let batches = [batch];
        for name in Processor::names() {
            let config = Processor::bundled(name).unwrap().tlb_config();
            if let Ok(classes) = hierarchy(&config, &[12, 21]).classes() {
                let runs = by_runs(&config, classes, &batches, false);
                prop_assert_eq!(full(&config, &batches, false), runs, "{}", name);
            }
        }
    }
}

/// The batches of a bundled recording of one vCPU, up to a million accesses.
fn recorded(name: &str) -> Vec<Batch> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings").join(name);
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.machine().vcpus, 1);
    let mut reader = recording.reader(&Options::default()).unwrap();
    let (mut batches, mut batch, mut accesses) = (Vec::new(), Batch::default(), 0);
    while accesses < 1_000_000 && reader.next(&mut batch).unwrap() {
        accesses += batch.accesses.len();
        batches.push(batch.clone());
    }
    batches
}

#[test]
fn runs_change_nothing_on_real_guests() {
    for name in ["clear-refs.slat", "fork.slat"] {
        let batches = recorded(name);
        for preset in Processor::names() {
            let config = Processor::bundled(preset).unwrap().tlb_config();
            let hierarchy = hierarchy(&config, &[12, 21]);
            let Ok(classes) = hierarchy.classes() else { continue };
            let full = full(&config, &batches, false);
            assert!(full.walks.len() > 1000, "{name}");
            assert!(full == by_runs(&config, classes, &batches, false), "{name} on {preset}");
        }
    }
}

#[test]
fn page_runs_serve_some_preset_and_not_pages_that_pass_by() {
    let configs: Vec<_> =
        Processor::names().map(|name| Processor::bundled(name).unwrap().tlb_config()).collect();
    assert!(configs.iter().any(|config| hierarchy(config, &[12, 21]).classes().is_ok()));
    let mut without_2m = configs[0].clone();
    without_2m.load = vec![BankConfig::new(Geometry::lru(64, 4), &[12])];
    assert!(hierarchy(&without_2m, &[12]).classes().is_ok());
    assert!(hierarchy(&without_2m, &[12, 21]).classes().is_err());
    // In pieces they do not.
    let in_pieces = TlbConfig { first_smashes: true, ..without_2m };
    assert!(hierarchy(&in_pieces, &[12, 21]).classes().is_ok());
}
