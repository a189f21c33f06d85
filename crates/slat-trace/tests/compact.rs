//! Page runs give the same TLBs as the full stream: every counter, every walk in its order, every entry.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use slat_trace::compact::{Classes, Compacting, Hierarchy, Refused, RunBatch};
use slat_trace::{Access, Batch, Event, Invalidation, Kind, Root};

/// Who goes when a set is full.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Replacement {
    Lru,
    Fifo,
    TreePlru,
    Random,
}

/// Page number, whether it is a 2 MiB page, and the address space: an ASID or a PCID.
type Tag = (u64, bool, u8);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    tag: Tag,
    dirty: bool,
    /// What it is known to permit: a bit for each kind of access by each privilege.
    rights: u8,
}

/// A set-associative TLB as one would write it without any thought of speed.
#[derive(Clone, Debug, PartialEq)]
struct Tlb {
    replacement: Replacement,
    ways: usize,
    sets: Vec<Vec<Option<Entry>>>,
    /// LRU and FIFO: way numbers, the next victim first. PLRU: the bits of the tree.
    order: Vec<VecDeque<usize>>,
    bits: Vec<Vec<bool>>,
    draws: u64,
}

impl Tlb {
    fn new(sets: usize, ways: usize, replacement: Replacement) -> Self {
        Tlb {
            replacement,
            ways,
            sets: vec![vec![None; ways]; sets],
            order: vec![(0..ways).collect(); sets],
            bits: vec![vec![false; ways]; sets],
            draws: 0,
        }
    }

    fn set(&self, tag: Tag) -> usize {
        tag.0 as usize % self.sets.len()
    }

    fn touch(&mut self, set: usize, way: usize, filled: bool) {
        match self.replacement {
            Replacement::Lru => move_to_back(&mut self.order[set], way),
            Replacement::Fifo if filled => move_to_back(&mut self.order[set], way),
            Replacement::TreePlru => {
                let (mut node, mut low, mut high) = (0, 0, self.ways);
                while high - low > 1 {
                    let middle = low.midpoint(high);
                    let right = way >= middle;
                    self.bits[set][node] = !right;
                    (low, high) = if right { (middle, high) } else { (low, middle) };
                    node = (2 * node + 1 + usize::from(right)) % self.ways;
                }
            }
            _ => {}
        }
    }

    fn victim(&mut self, set: usize) -> usize {
        if let Some(free) = self.sets[set].iter().position(Option::is_none) {
            return free;
        }
        match self.replacement {
            Replacement::Lru | Replacement::Fifo => self.order[set][0],
            Replacement::Random => {
                self.draws += 1;
                (self.draws.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % self.ways
            }
            Replacement::TreePlru => {
                let (mut node, mut low, mut high) = (0, 0, self.ways);
                while high - low > 1 {
                    let middle = low.midpoint(high);
                    let right = self.bits[set][node];
                    (low, high) = if right { (middle, high) } else { (low, middle) };
                    node = (2 * node + 1 + usize::from(right)) % self.ways;
                }
                low
            }
        }
    }

    fn lookup(&mut self, tag: Tag) -> Option<&mut Entry> {
        let set = self.set(tag);
        let way =
            self.sets[set].iter().position(|entry| entry.is_some_and(|entry| entry.tag == tag))?;
        self.touch(set, way, false);
        self.sets[set][way].as_mut()
    }

    /// Puts an entry in and returns the one that had to go.
    fn fill(&mut self, entry: Entry) -> Option<Entry> {
        let set = self.set(entry.tag);
        self.drop_tag(entry.tag);
        let way = self.victim(set);
        let gone = self.sets[set][way].replace(entry);
        self.touch(set, way, true);
        gone
    }

    fn drop_tag(&mut self, tag: Tag) {
        let set = self.set(tag);
        for entry in &mut self.sets[set] {
            if entry.is_some_and(|entry| entry.tag == tag) {
                *entry = None;
            }
        }
    }

    fn flush(&mut self) {
        self.sets.iter_mut().for_each(|set| set.fill(None));
    }

    fn drop_space(&mut self, asid: u8) {
        for entry in self.sets.iter_mut().flatten() {
            if entry.is_some_and(|entry| entry.tag.2 == asid) {
                *entry = None;
            }
        }
    }
}

fn move_to_back(order: &mut VecDeque<usize>, way: usize) {
    order.retain(|&other| other != way);
    order.push_back(way);
}

#[derive(Clone, Copy, Debug)]
struct Geometry {
    classes: Classes,
    /// Whether the first levels do not keep 2 MiB pages.
    pass_by: bool,
    inclusive: bool,
    /// Whether entries carry their address space, so that a switch of the root drops none.
    tagged: bool,
    /// Whether a walk learns no more rights than those of the access that it is for.
    gradual: bool,
    first: (usize, usize, Replacement),
    second: (usize, usize, Replacement),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Counters {
    /// By privilege: the kernel's, the user's.
    first_hits: [[u64; 3]; 2],
    second_hits: [u64; 3],
    walks: [u64; 3],
    dirty_updates: u64,
    /// Every walk: vCPU, page, kind. Their order is what the paging-structure caches and the nested TLB see.
    log: Vec<(u8, u64, Kind)>,
}

/// First-level TLBs for loads, stores and fetches as far as they are apart, a second level for both, and the bits of the page table.
#[derive(Clone, Debug, PartialEq)]
struct Core {
    first: [Tlb; 3],
    second: Tlb,
    /// 0 where entries do not carry it.
    asid: u8,
}

impl Core {
    fn all(&mut self) -> impl Iterator<Item = &mut Tlb> {
        self.first.iter_mut().chain([&mut self.second])
    }
}

struct Model {
    geometry: Geometry,
    cores: Vec<Core>,
    dirty: BTreeSet<(u64, bool)>,
    counters: Counters,
}

/// Every other 2 MiB is one page.
fn tag(va: u64, asid: u8) -> Tag {
    if va >> 21 & 1 == 1 { (va >> 21, true, asid) } else { (va >> 12, false, asid) }
}

/// What an access needs, and what its walk shows: who can store can load.
fn rights(access: &Access) -> (u8, u8) {
    let (needs, shows) = match access.kind() {
        Kind::Load => (0b001, 0b001),
        Kind::Store => (0b010, 0b011),
        Kind::Fetch => (0b100, 0b100),
    };
    let by = 3 * u8::from(access.user());
    (needs << by, shows << by)
}

impl Model {
    fn new(geometry: Geometry) -> Self {
        let tlb = |(sets, ways, replacement)| Tlb::new(sets, ways, replacement);
        let core = Core {
            first: std::array::from_fn(|_| tlb(geometry.first)),
            second: tlb(geometry.second),
            asid: 0,
        };
        Model {
            geometry,
            cores: vec![core; 2],
            dirty: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    fn access(&mut self, access: &Access) {
        self.page(access, access.va);
        if access.crosses() {
            self.page(access, access.va + u64::from(access.len()) - 1);
        }
    }

    fn page(&mut self, access: &Access, va: u64) {
        let kind = access.kind();
        let (store, which) = (kind == Kind::Store, kind as usize);
        let class = match (self.geometry.classes, kind) {
            (Classes::Split | Classes::SplitStores, Kind::Fetch) => 2,
            (Classes::SplitStores, Kind::Store) => 1,
            _ => 0,
        };
        let core = &mut self.cores[usize::from(access.vcpu)];
        let tag = tag(va, core.asid);
        let kept = !(self.geometry.pass_by && tag.1);
        let (needs, mut shown) = rights(access);
        // A store through an entry that is not known dirty walks again to set the bit, and so does an access
        // that an entry is not known to permit.
        let hits = |entry: &Entry| (!store || entry.dirty) && entry.rights & needs == needs;
        if let Some(entry) = core.first[class].lookup(tag) {
            shown |= entry.rights;
            if hits(entry) {
                self.counters.first_hits[usize::from(access.user())][which] += 1;
                return;
            }
        } else if let Some(&mut found) = core.second.lookup(tag) {
            shown |= found.rights;
            if hits(&found) {
                self.counters.second_hits[which] += 1;
                if kept {
                    core.first[class].fill(found);
                }
                return;
            }
        }
        self.counters.walks[which] += 1;
        self.counters.log.push((access.vcpu, tag.0, kind));
        let page = (tag.0, tag.1);
        if store && self.dirty.insert(page) {
            self.counters.dirty_updates += 1;
        }
        let rights = if self.geometry.gradual { shown } else { u8::MAX };
        let entry = Entry { tag, dirty: self.dirty.contains(&page), rights };
        if let Some(gone) = core.second.fill(entry)
            && self.geometry.inclusive
        {
            core.first.iter_mut().for_each(|tlb| tlb.drop_tag(gone.tag));
        }
        if kept {
            core.first[class].fill(entry);
        }
    }

    fn event(&mut self, vcpu: u8, event: &Event) {
        match *event {
            Event::Root { value, .. } if self.geometry.tagged => {
                self.cores[usize::from(vcpu)].asid = (value >> 12) as u8 & 3;
            }
            Event::Root { .. } => self.cores[usize::from(vcpu)].all().for_each(Tlb::flush),
            // As a broadcast: every vCPU drops it.
            Event::Invalidate(Invalidation::Invlpg { va }) => {
                for core in &mut self.cores {
                    let tag = tag(va, core.asid);
                    core.all().for_each(|tlb| tlb.drop_tag(tag));
                }
            }
            Event::Invalidate(Invalidation::Invpcid { pcid, .. }) => {
                let core = &mut self.cores[usize::from(vcpu)];
                core.all().for_each(|tlb| tlb.drop_space(pcid as u8));
            }
            Event::Invalidate(Invalidation::Tlbi { operand, .. }) => {
                let all = self.cores.iter_mut().flat_map(Core::all);
                all.for_each(|tlb| tlb.drop_space((operand >> 48) as u8));
            }
            // The guest cleans a page and relies on nothing: entries may keep their dirty bit.
            Event::TableStore { value, .. } => {
                let (page, large, _) = tag(value, 0);
                self.dirty.remove(&(page, large));
            }
            _ => {}
        }
    }

    fn full(mut self, batches: &[Batch]) -> Self {
        for run in batches.iter().flat_map(Batch::runs) {
            run.events.iter().for_each(|at| self.event(at.vcpu, &at.event));
            run.accesses.iter().for_each(|access| self.access(access));
        }
        self
    }

    fn compacted(self, batches: &[Batch], classes: Classes) -> (Self, usize) {
        let mut compacting = Compacting::new(classes);
        let mut runs = RunBatch::default();
        let model = std::cell::RefCell::new(self);
        let mut count = 0;
        for batch in batches {
            compacting.compact(batch, &mut runs);
            count += runs.runs.len();
            runs.visit(
                |at| model.borrow_mut().event(at.vcpu, &at.event),
                |run| {
                    let mut model = model.borrow_mut();
                    model.access(&run.first);
                    let mut again = [run.loads, run.stores, run.fetches].map(u64::from);
                    again[run.first.kind() as usize] -= 1;
                    (0..3).for_each(|kind| {
                        model.counters.first_hits[usize::from(run.first.user())][kind] +=
                            again[kind]
                    });
                },
            );
        }
        (model.into_inner(), count)
    }
}

/// What happens next in a made-up stream.
#[derive(Clone, Debug)]
enum Next {
    Access { vcpu: u8, kind: u8, page: u64, offset: u64, len: u16, user: bool, again: u8 },
    Event { vcpu: u8, kind: u8, page: u64 },
    EndOfBatch,
}

fn next() -> impl Strategy<Value = Next> {
    let access =
        (0u8..2, 0u8..3, 0u64..12, 0u64..4096, 1u16..20, prop::bool::weighted(0.9), 0u8..5)
            .prop_map(|(vcpu, kind, page, offset, len, user, again)| Next::Access {
                vcpu,
                kind,
                page,
                offset,
                len,
                user,
                again,
            });
    let event =
        (0u8..2, 0u8..7, 0u64..12).prop_map(|(vcpu, kind, page)| Next::Event { vcpu, kind, page });
    prop_oneof![40 => access, 3 => event, 1 => Just(Next::EndOfBatch)]
}

/// Twelve pages: some in 4 KiB regions, in few sets, some in 2 MiB regions.
fn va(page: u64) -> u64 {
    if page < 8 { page << 12 } else { (2 * page + 1) << 21 | (page % 3) << 12 }
}

fn batches(stream: &[Next]) -> Vec<Batch> {
    let mut batches = vec![Batch::default()];
    for next in stream {
        let batch = batches.last_mut().unwrap();
        match *next {
            Next::EndOfBatch => batches.push(Batch::default()),
            Next::Access { vcpu, kind, page, offset, len, user, again } => {
                for i in 0..=u64::from(again) {
                    // Loads and stores of one page in turns.
                    let kind = match kind {
                        2 => Kind::Fetch,
                        kind if (u64::from(kind) + i) % 3 == 1 => Kind::Store,
                        _ => Kind::Load,
                    };
                    let access = Access::new(kind, va(page) + offset, len).on(vcpu).with_user(user);
                    batch.accesses.push(access);
                }
            }
            Next::Event { vcpu, kind, page } => {
                let event = match kind {
                    0 => Event::Root { root: Root::Cr3, value: page << 12 },
                    1 => Event::Invalidate(Invalidation::Invlpg { va: va(page) }),
                    2 => Event::TableStore { gpa: 0x1000, value: va(page) },
                    3 => Event::Mode { user: page % 2 == 0 },
                    4 => {
                        let (kind, pcid, va) = (1, page % 4, 0);
                        Event::Invalidate(Invalidation::Invpcid { kind, pcid, va })
                    }
                    // TLBI ASIDE1IS.
                    5 => Event::Invalidate(Invalidation::Tlbi {
                        operation: 0x41a,
                        operand: (page % 4) << 48,
                    }),
                    _ => Event::ExceptionReturn,
                };
                batch.event(vcpu, event);
            }
        }
    }
    batches
}

fn hierarchy() -> impl Strategy<Value = Hierarchy> {
    (any::<bool>(), any::<bool>()).prop_map(|(split_first_level, split_stores)| Hierarchy {
        split_first_level,
        split_stores,
        ..Hierarchy::default()
    })
}

fn replacement() -> impl Strategy<Value = Replacement> {
    prop_oneof![
        Just(Replacement::Lru),
        Just(Replacement::Fifo),
        Just(Replacement::TreePlru),
        Just(Replacement::Random)
    ]
}

fn level(most_ways: u32) -> impl Strategy<Value = (usize, usize, Replacement)> {
    (0u32..3, 0..=most_ways, replacement())
        .prop_map(|(sets, ways, policy)| (1 << sets, 1 << ways, policy))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn runs_are_exact_for_every_geometry_and_policy(
        stream in proptest::collection::vec(next(), 1..300),
        hierarchy in hierarchy(),
        (tagged, gradual) in any::<(bool, bool)>(),
        first in level(3),
        second in level(4),
    ) {
        let classes = hierarchy.classes().unwrap();
        let (pass_by, inclusive) = (false, false);
        let geometry = Geometry { classes, pass_by, inclusive, tagged, gradual, first, second };
        let batches = batches(&stream);
        let full = Model::new(geometry).full(&batches);
        let (compacted, _) = Model::new(geometry).compacted(&batches, classes);
        prop_assert_eq!(&full.counters, &compacted.counters);
        prop_assert!(full.cores == compacted.cores);
        prop_assert!(full.dirty == compacted.dirty);
    }

    #[test]
    fn no_access_and_no_event_is_lost(
        stream in proptest::collection::vec(next(), 1..300),
        hierarchy in hierarchy(),
    ) {
        let classes = hierarchy.classes().unwrap();
        for batch in batches(&stream) {
            let mut runs = RunBatch::default();
            Compacting::new(classes).compact(&batch, &mut runs);
            let of = |kind| batch.accesses.iter().filter(|access| access.kind() == kind).count() as u64;
            let sum = |count: fn(&slat_trace::compact::PageRun) -> u32| runs.runs.iter().map(|r| u64::from(count(r))).sum::<u64>();
            prop_assert_eq!(sum(|run| run.loads), of(Kind::Load));
            prop_assert_eq!(sum(|run| run.stores), of(Kind::Store));
            prop_assert_eq!(sum(|run| run.fetches), of(Kind::Fetch));
            prop_assert_eq!(
                runs.events.iter().map(|at| at.event).collect::<Vec<_>>(),
                batch.events.iter().map(|at| at.event).collect::<Vec<_>>()
            );
        }
    }
}

fn access(kind: Kind, page: u64) -> Access {
    Access::new(kind, page << 12, 4)
}

fn one_batch(accesses: &[Access]) -> Vec<Batch> {
    vec![Batch { accesses: accesses.to_vec(), ..Batch::default() }]
}

#[test]
fn repeated_pages_collapse_across_classes() {
    let mut all = Vec::new();
    for _ in 0..1000 {
        all.extend([access(Kind::Fetch, 1), access(Kind::Load, 2), access(Kind::Fetch, 1)]);
    }
    let mut runs = RunBatch::default();
    Compacting::new(Classes::Split).compact(&one_batch(&all)[0], &mut runs);
    assert_eq!(runs.runs.len(), 2);
    assert_eq!((runs.runs[0].fetches, runs.runs[1].loads), (2000, 1000));
    Compacting::new(Classes::Unified).compact(&one_batch(&all)[0], &mut runs);
    assert_eq!(
        runs.runs.len(),
        2001,
        "a unified TLB sees them in turns, but for the two fetches that meet"
    );
}

#[test]
fn the_first_store_after_loads_is_a_run_of_its_own() {
    let all =
        [Kind::Load, Kind::Load, Kind::Store, Kind::Load, Kind::Store].map(|kind| access(kind, 5));
    let mut runs = RunBatch::default();
    Compacting::new(Classes::Split).compact(&one_batch(&all)[0], &mut runs);
    let counts: Vec<_> = runs.runs.iter().map(|run| (run.loads, run.stores)).collect();
    assert_eq!(counts, [(2, 0), (1, 2)]);
}

/// The refusals are not mere caution: here is what would go wrong.
#[test]
fn an_inclusive_hierarchy_would_be_wrong() {
    // One entry in the second level: a fetch miss evicts the data page from it, and so from the first.
    let geometry = Geometry {
        classes: Classes::Split,
        pass_by: false,
        inclusive: true,
        tagged: false,
        gradual: false,
        first: (1, 4, Replacement::Lru),
        second: (1, 1, Replacement::Lru),
    };
    let all = [access(Kind::Load, 1), access(Kind::Fetch, 2), access(Kind::Load, 1)];
    let full = Model::new(geometry).full(&one_batch(&all));
    let (compacted, _) = Model::new(geometry).compacted(&one_batch(&all), Classes::Split);
    assert_eq!((full.counters.walks, compacted.counters.walks), ([2, 0, 1], [1, 0, 1]));
    let refused = Hierarchy { inclusive: true, ..Hierarchy::default() }.classes().unwrap_err();
    assert_eq!(refused, Refused::Inclusive);
    assert!(refused.to_string().contains("inclusive outer TLB drops entries"));
}

/// The streams are such that address spaces and rights matter: else the test above would say nothing of them.
#[test]
fn address_spaces_and_gradual_rights_make_a_difference_to_the_streams() {
    let base = Geometry {
        classes: Classes::Split,
        pass_by: false,
        inclusive: false,
        tagged: false,
        gradual: false,
        first: (2, 4, Replacement::Lru),
        second: (4, 4, Replacement::Lru),
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut by_space, mut by_rights) = (0, 0);
    for _ in 0..100 {
        let stream = proptest::collection::vec(next(), 100..300).new_tree(&mut runner).unwrap();
        let batches = batches(&stream.current());
        let walks = |geometry| Model::new(geometry).full(&batches).counters.walks;
        by_space += u32::from(walks(base) != walks(Geometry { tagged: true, ..base }));
        by_rights += u32::from(walks(base) != walks(Geometry { gradual: true, ..base }));
    }
    assert!(by_space > 50 && by_rights > 50, "{by_space}, {by_rights}");
}

#[test]
fn split_classes_would_be_wrong_for_a_unified_first_level() {
    let geometry = Geometry {
        classes: Classes::Unified,
        pass_by: false,
        inclusive: false,
        tagged: false,
        gradual: false,
        first: (1, 2, Replacement::Lru),
        second: (1, 1, Replacement::Lru),
    };
    let all =
        [(Kind::Fetch, 1), (Kind::Load, 2), (Kind::Fetch, 1), (Kind::Load, 3), (Kind::Fetch, 1)]
            .map(|(kind, page)| access(kind, page));
    let full = Model::new(geometry).full(&one_batch(&all));
    let (split, _) = Model::new(geometry).compacted(&one_batch(&all), Classes::Split);
    assert!(full.cores != split.cores);
    let (unified, _) = Model::new(geometry).compacted(&one_batch(&all), Classes::Unified);
    assert!(full.cores == unified.cores && full.counters == unified.counters);
}

#[test]
fn joint_loads_and_stores_would_be_wrong_where_stores_have_a_tlb_of_their_own() {
    let geometry = Geometry {
        classes: Classes::SplitStores,
        pass_by: false,
        inclusive: false,
        tagged: false,
        gradual: false,
        first: (1, 2, Replacement::Lru),
        second: (1, 1, Replacement::Lru),
    };
    let all = [Kind::Store, Kind::Load].map(|kind| access(kind, 1));
    let full = Model::new(geometry).full(&one_batch(&all));
    let (joint, _) = Model::new(geometry).compacted(&one_batch(&all), Classes::Split);
    assert_eq!((full.counters.second_hits[0], joint.counters.second_hits[0]), (1, 0));
    let (apart, _) = Model::new(geometry).compacted(&one_batch(&all), Classes::SplitStores);
    assert!(full.cores == apart.cores && full.counters == apart.counters);
}

#[test]
fn pages_that_pass_the_first_level_by_would_be_wrong() {
    // Page 512 is in a 2 MiB page: its second load is the last use in the second level.
    let geometry = Geometry {
        classes: Classes::Split,
        pass_by: true,
        inclusive: false,
        tagged: false,
        gradual: false,
        first: (1, 4, Replacement::Lru),
        second: (1, 2, Replacement::Lru),
    };
    let all = [(Kind::Load, 512), (Kind::Fetch, 1), (Kind::Load, 512), (Kind::Fetch, 2)]
        .map(|(kind, page)| access(kind, page));
    let full = Model::new(geometry).full(&one_batch(&all));
    let (compacted, _) = Model::new(geometry).compacted(&one_batch(&all), Classes::Split);
    assert!(full.cores != compacted.cores);
    let refused = Hierarchy { pass_by: true, ..Hierarchy::default() }.classes().unwrap_err();
    assert!(refused == Refused::PassBy && refused.to_string().contains("every size that occurs"));
}

#[test]
fn every_refusal_has_its_reason() {
    let base = Hierarchy::default();
    for (hierarchy, refused, says) in [
        (Hierarchy { outer_sees_hits: true, ..base }, Refused::OuterSeesHits, "touch an outer TLB"),
        (Hierarchy { shared: true, ..base }, Refused::Shared, "vCPUs share"),
        (Hierarchy { prefetches: true, ..base }, Refused::Prefetches, "prefetches fill"),
        (Hierarchy { interventions: true, ..base }, Refused::Interventions, "moments of its own"),
    ] {
        let error = hierarchy.classes().unwrap_err();
        assert_eq!(error, refused);
        assert!(
            error.to_string().contains(says) && error.to_string().contains("use the full stream")
        );
    }
    assert_eq!(Hierarchy { split_first_level: false, ..base }.classes(), Ok(Classes::Unified));
}
