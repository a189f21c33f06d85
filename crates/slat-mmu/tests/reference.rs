//! Arrays and TLBs beside a slow model that is obviously right: explicit ways, explicit order of
//! use, explicit trees. Every hit, miss and eviction must be the same.

use std::collections::BTreeMap;

use slat::Kind;
use slat::memory_type::TypeBits;
use slat_mmu::array::{Array, Geometry, Replacement};
use slat_mmu::tlb::{Asked, BankConfig, Entry, Rights, Served, Space, Tag, Tlb, TlbConfig, Types};

/// A small generator of its own, so that streams are the same everywhere.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

/// One set of a slow array.
struct SlowSet<K, V> {
    ways: Vec<Option<(K, V)>>,
    /// LRU: ways from the least to the most recently used. FIFO: from the first in to the last.
    order: Vec<usize>,
    /// By the span of ways below a node: whether the next victim is in its upper half.
    tree: BTreeMap<(usize, usize), bool>,
}

struct SlowArray<K, V> {
    sets: Vec<SlowSet<K, V>>,
    replacement: Replacement,
    /// State of the random sequence, in more bits than it needs.
    random: u128,
}

impl<K: Copy + PartialEq, V: Copy> SlowArray<K, V> {
    fn new(geometry: Geometry) -> Self {
        let Geometry { entries, ways, replacement } = geometry;
        let set = || SlowSet {
            ways: vec![None; ways as usize],
            order: Vec::new(),
            tree: BTreeMap::new(),
        };
        let random = match replacement {
            Replacement::Random(seed) => u128::from(seed | 1),
            _ => 0,
        };
        let sets = (0..entries / ways).map(|_| set()).collect();
        SlowArray { sets, replacement, random }
    }

    fn set(&mut self, index: u64) -> Option<&mut SlowSet<K, V>> {
        let count = self.sets.len() as u64;
        if count == 0 { None } else { self.sets.get_mut((index % count) as usize) }
    }

    fn used(&mut self, index: u64, way: usize) {
        let replacement = self.replacement;
        let Some(set) = self.set(index) else { return };
        match replacement {
            Replacement::Lru => {
                set.order.retain(|&other| other != way);
                set.order.push(way);
            }
            Replacement::TreePlru => {
                let (mut low, mut high) = (0, set.ways.len());
                while high - low > 1 {
                    let middle = low.midpoint(high);
                    let upper = way >= middle;
                    set.tree.insert((low, high), !upper);
                    if upper { low = middle } else { high = middle }
                }
            }
            Replacement::Fifo | Replacement::Random(_) => {}
        }
    }

    fn find(&mut self, index: u64, matches: impl Fn(&K) -> bool) -> Option<V> {
        let set = self.set(index)?;
        let way = set.ways.iter().position(|way| way.is_some_and(|(key, _)| matches(&key)))?;
        let value = set.ways[way].map(|(_, value)| value);
        self.used(index, way);
        value
    }

    fn insert(&mut self, index: u64, key: K, value: V) -> Option<(K, V)> {
        let replacement = self.replacement;
        let random = self.random;
        let set = self.set(index)?;
        let mut evicted = None;
        let held = set.ways.iter().position(|way| way.is_some_and(|(held, _)| held == key));
        let way = held.unwrap_or_else(|| {
            let free = set.ways.iter().position(Option::is_none);
            let way = free.unwrap_or_else(|| match replacement {
                Replacement::Lru | Replacement::Fifo => set.order[0],
                Replacement::TreePlru => {
                    let (mut low, mut high) = (0, set.ways.len());
                    while high - low > 1 {
                        let middle = low.midpoint(high);
                        let upper = set.tree.get(&(low, high)).copied().unwrap_or(false);
                        if upper { low = middle } else { high = middle }
                    }
                    low
                }
                Replacement::Random(_) => ((random >> 33) % set.ways.len() as u128) as usize,
            });
            evicted = set.ways[way];
            if replacement == Replacement::Fifo {
                set.order.retain(|&other| other != way);
                set.order.push(way);
            }
            way
        });
        set.ways[way] = Some((key, value));
        if held.is_none() {
            self.random = (self.random * 6364136223846793005 + 1442695040888963407) % (1 << 64);
        }
        self.used(index, way);
        evicted
    }

    fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        for way in self.sets.iter_mut().flat_map(|set| &mut set.ways) {
            if way.is_some_and(|(key, value)| !keep(&key, &value)) {
                *way = None;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (K, V)> + '_ {
        self.sets.iter().flat_map(|set| set.ways.iter().copied().flatten())
    }
}

const POLICIES: [Replacement; 4] =
    [Replacement::Lru, Replacement::Fifo, Replacement::TreePlru, Replacement::Random(7)];

/// Sets and ways of real arrays, and odd ones: no power of two of sets, of ways, of either.
const SHAPES: [(u32, u32); 14] = [
    (1, 1),
    (4, 4),
    (64, 4),
    (64, 64),
    (12, 12),
    (24, 8),
    (40, 4),
    (48, 12),
    (56, 7),
    (96, 6),
    (1536, 12),
    (1536, 6),
    (1024, 8),
    (100, 100),
];

fn geometries() -> impl Iterator<Item = Geometry> {
    SHAPES
        .iter()
        .flat_map(|&(entries, ways)| {
            POLICIES.map(|replacement| Geometry { entries, ways, replacement })
        })
        .filter(|geometry| geometry.check().is_ok())
}

#[test]
fn arrays_hit_miss_and_evict_as_the_model() {
    let mut evictions = 0;
    for geometry in geometries() {
        let mut array = Array::<u64>::new(geometry).unwrap();
        let mut model = SlowArray::<u64, u64>::new(geometry);
        let mut stream = Stream(0x9e37_79b9 ^ u64::from(geometry.entries));
        let pages = u64::from(geometry.entries) * 3 / 2 + 2;
        for step in 0..u64::from(geometry.entries) * 12 + 2000 {
            let page = stream.below(pages);
            let (key, other) = (page << 1 | 1, page << 1 | pages << 1 | 1);
            let context = (geometry, step, page);
            match stream.below(32) {
                0 => {
                    let removed = array.remove(page, key);
                    let held = model.set(page).unwrap();
                    let way = held.ways.iter_mut().find(|way| way.is_some_and(|(k, _)| k == key));
                    assert_eq!(removed, way.and_then(Option::take).map(|(_, v)| v), "{context:?}");
                }
                1 if step % 97 == 0 => {
                    let residue = stream.below(3);
                    array.retain(|key, _| key % 3 != residue);
                    model.retain(|key, _| key % 3 != residue);
                }
                2..=13 => {
                    let evicted = array.insert(page, key, step);
                    evictions += u64::from(evicted.is_some());
                    assert_eq!(evicted, model.insert(page, key, step), "{context:?}");
                }
                14 | 15 => {
                    let held = model.set(page).unwrap().ways.iter().flatten();
                    let found = held.into_iter().find(|(k, _)| *k == key).map(|(_, value)| value);
                    assert_eq!(array.peek(page, key), found, "{context:?}");
                }
                _ => {
                    let seen = array.look(page, [key, other]).copied();
                    let found = array.find(page, [key, other]).copied();
                    assert_eq!(seen, found, "{context:?}");
                    // The first of the two that is held.
                    let expected = model
                        .find(page, |&held| held == key)
                        .or_else(|| model.find(page, |&held| held == other));
                    assert_eq!(found, expected, "{context:?}");
                }
            }
        }
        let mut held: Vec<_> = array.iter().map(|(key, value)| (key, *value)).collect();
        let mut expected: Vec<_> = model.iter().collect();
        held.sort_unstable();
        expected.sort_unstable();
        assert_eq!(held, expected, "{geometry:?}");
    }
    assert!(evictions > 10_000, "the streams evict: {evictions}");
}

#[test]
fn arrays_that_cannot_be_are_refused() {
    for (entries, ways) in [(10, 4), (4, 0), (3, 2)] {
        let geometry = Geometry { entries, ways, replacement: Replacement::Lru };
        assert!(Array::<u8>::new(geometry).is_err(), "{geometry:?}");
    }
    for ways in [3, 12, 128] {
        let geometry = Geometry { entries: ways, ways, replacement: Replacement::TreePlru };
        assert!(Array::<u8>::new(geometry).is_err(), "{geometry:?}");
    }
    let mut none = Array::<u8>::new(Geometry::NONE).unwrap();
    assert_eq!(none.insert(0, 1, 1), None);
    assert_eq!(none.find(0, [1, 1]), None);
}

/// What a slow TLB finds an entry by.
type Key = (u64, u8, u16);

struct SlowLevel(Vec<(SlowArray<Key, Entry>, Vec<u8>)>);

impl SlowLevel {
    fn new(banks: &[BankConfig]) -> Self {
        let bank = |config: &BankConfig| {
            let shifts = config.shifts.iter().copied().filter(|&shift| shift != 0).collect();
            (SlowArray::new(config.geometry), shifts)
        };
        SlowLevel(banks.iter().map(bank).collect())
    }

    fn find(&mut self, va: u64, space: Space) -> Option<Entry> {
        for (array, shifts) in &mut self.0 {
            for &shift in shifts.iter() {
                let page = va >> shift;
                let own = array.find(page, |&key| key == (page, shift, space.own.number()));
                let found = own.or_else(|| {
                    array.find(page, |&key| key == (page, shift, space.global.number()))
                });
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// Kept in the array for its size, if there is one.
    fn insert(&mut self, va: u64, tag: u16, entry: Entry) {
        for (array, shifts) in &mut self.0 {
            if shifts.contains(&entry.shift) {
                let page = va >> entry.shift;
                array.insert(page, (page, entry.shift, tag), entry);
                return;
            }
        }
    }

    /// Kept whole, or, in a level that smashes, the part that has a size of its.
    fn keep(&mut self, va: u64, tag: u16, mut entry: Entry, smashes: bool) {
        if smashes {
            let place = entry.base + (va & ((1 << entry.shift) - 1));
            let sizes = self.sizes();
            let Some(&shift) = sizes.iter().filter(|&&size| size <= entry.shift).max() else {
                return;
            };
            entry.base = place >> shift << shift;
            entry.shift = shift;
        }
        self.insert(va, tag, entry);
    }

    fn sizes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(_, shifts)| shifts.iter().copied()).collect()
    }

    fn retain(&mut self, keep: impl Fn(&Key, &Entry) -> bool) {
        for (array, _) in &mut self.0 {
            array.retain(&keep);
        }
    }
}

struct SlowTlb {
    fetch: SlowLevel,
    load: SlowLevel,
    store: Option<SlowLevel>,
    second: SlowLevel,
    largest: u8,
    first_smashes: bool,
    second_smashes: bool,
}

impl SlowTlb {
    fn new(config: &TlbConfig) -> Self {
        SlowTlb {
            fetch: SlowLevel::new(&config.fetch),
            load: SlowLevel::new(&config.load),
            store: config.store.as_deref().map(SlowLevel::new),
            second: SlowLevel::new(&config.second),
            largest: config.largest,
            first_smashes: config.first_smashes,
            second_smashes: config.second_smashes,
        }
    }

    fn first(&mut self, kind: Kind) -> &mut SlowLevel {
        match kind {
            Kind::Execute => &mut self.fetch,
            Kind::Read => &mut self.load,
            Kind::Write if self.store.is_some() => self.store.as_mut().unwrap(),
            Kind::Write => &mut self.load,
        }
    }

    fn find(&mut self, va: u64, space: Space, kind: Kind, user: bool) -> (Served, Option<Entry>) {
        let serves = |entry: &Entry| {
            let has = |right| entry.rights.has(right);
            has(Rights::may(kind, user)) && (kind != Kind::Write || has(Rights::DIRTY))
        };
        if let Some(entry) = self.first(kind).find(va, space).filter(serves) {
            return (Served::First, Some(entry));
        }
        match self.second.find(va, space).filter(serves) {
            Some(entry) => {
                let global = entry.rights.has(Rights::GLOBAL);
                let tag = if global { space.global } else { space.own };
                let smashes = self.first_smashes;
                self.first(kind).keep(va, tag.number(), entry, smashes);
                (Served::Second, Some(entry))
            }
            None => (Served::Miss, None),
        }
    }

    fn insert(&mut self, va: u64, space: Space, kind: Kind, mut entry: Entry) {
        // Pieces of it go with it.
        entry.leaf = entry.shift;
        // The largest size that is permitted and that one of the two levels has.
        let mut sizes = self.first(kind).sizes();
        sizes.extend(self.second.sizes());
        sizes.retain(|&size| size <= entry.shift && size <= self.largest);
        let Some(&shift) = sizes.iter().max() else { return };
        let place = entry.base + (va & ((1 << entry.shift) - 1));
        entry.base = place >> shift << shift;
        entry.shift = shift;
        let global = entry.rights.has(Rights::GLOBAL);
        let tag = if global { space.global } else { space.own }.number();
        let (first, second) = (self.first_smashes, self.second_smashes);
        self.first(kind).keep(va, tag, entry, first);
        self.second.keep(va, tag, entry, second);
    }

    fn levels(&mut self) -> impl Iterator<Item = &mut SlowLevel> {
        [Some(&mut self.fetch), Some(&mut self.load), self.store.as_mut(), Some(&mut self.second)]
            .into_iter()
            .flatten()
    }

    fn retain(&mut self, keep: impl Fn(&Key, &Entry) -> bool) {
        for level in self.levels() {
            level.retain(&keep);
        }
    }

    fn held(&mut self) -> Vec<(u16, u64, u64, u8)> {
        let mut held: Vec<_> = self
            .levels()
            .flat_map(|level| &level.0)
            .flat_map(|(array, _)| array.iter())
            .map(|((page, shift, tag), entry)| (tag, page << shift, entry.base, entry.shift))
            .collect();
        held.sort_unstable();
        held
    }
}

fn bank(entries: u32, ways: u32, replacement: Replacement, sizes: &[u8]) -> BankConfig {
    BankConfig::new(Geometry { entries, ways, replacement }, sizes)
}

/// TLBs of several makes: arrays by page size and shared ones, one level for stores apart or not,
/// 1 GiB pages kept, smashed in the first or the second level, or with no array of their own.
fn configs() -> Vec<TlbConfig> {
    let mut configs = Vec::new();
    for policy in POLICIES {
        let other = |ways: u32| {
            if policy == Replacement::TreePlru && !ways.is_power_of_two() {
                Replacement::Lru
            } else {
                policy
            }
        };
        configs.push(TlbConfig {
            fetch: vec![bank(16, 4, policy, &[12]), bank(4, 4, policy, &[21])],
            load: vec![
                bank(8, 4, policy, &[12]),
                bank(4, 4, policy, &[21]),
                bank(2, 2, policy, &[30]),
            ],
            store: Some(vec![bank(16, 16, policy, &[12, 21, 30])]),
            second: vec![bank(48, 12, other(12), &[12, 21]), bank(4, 4, policy, &[30])],
            largest: 30,
            first_smashes: false,
            second_smashes: false,
        });
        configs.push(TlbConfig {
            fetch: vec![bank(12, 12, other(12), &[12, 21])],
            load: vec![bank(12, 4, policy, &[12, 21])],
            store: None,
            second: vec![bank(1536, 12, other(12), &[12, 21])],
            largest: 21,
            first_smashes: false,
            second_smashes: false,
        });
        configs.push(TlbConfig {
            fetch: vec![bank(8, 8, policy, &[12])],
            load: vec![bank(8, 8, policy, &[12]), bank(2, 1, policy, &[21])],
            store: None,
            second: vec![bank(24, 8, policy, &[12, 16, 21])],
            largest: 30,
            first_smashes: false,
            second_smashes: true,
        });
        configs.push(TlbConfig {
            fetch: vec![bank(8, 8, policy, &[12])],
            load: vec![bank(8, 8, policy, &[12, 16])],
            store: Some(vec![bank(8, 8, policy, &[12])]),
            second: vec![bank(24, 8, policy, &[12, 21, 30])],
            largest: 30,
            first_smashes: true,
            second_smashes: false,
        });
    }
    configs
}

#[test]
fn tlbs_serve_and_keep_what_the_model_does() {
    let (mut served, mut repeated) = ([0u64; 3], 0);
    for (number, config) in configs().iter().enumerate() {
        let mut tlb = Tlb::new(config).unwrap();
        let mut model = SlowTlb::new(config);
        let mut stream = Stream(0x1234_5678 + number as u64);
        let tag = |n: u64| Tag::new(n as u16).unwrap();
        let mut last = 0;
        for step in 0..20_000u64 {
            // Most accesses stay on the page before: the filter of the last page is what serves.
            let page = match stream.below(8) {
                0..=3 => last,
                4 => stream.below(1 << 12),
                5 => 1 << 20 | stream.below(64) << 9 | stream.below(4),
                6 => 1 << 22 | stream.below(6) << 18 | stream.below(3) << 9,
                _ => stream.below(24),
            };
            repeated += u64::from(page == last);
            last = page;
            let va = page << 12 | stream.below(4096);
            let space = Space { own: tag(1 + stream.below(3)), global: tag(9) };
            let kind = [Kind::Read, Kind::Write, Kind::Execute][stream.below(3) as usize];
            let user = stream.below(2) == 0;
            if stream.below(200) == 0 {
                let gone = stream.below(4) as u16;
                match stream.below(3) {
                    0 => {
                        tlb.retain(|held| held.tag != gone);
                        model.retain(|&(_, _, tag), _| tag != gone);
                    }
                    1 => {
                        tlb.retain(|held| !held.covers(va));
                        model.retain(|&(page, shift, _), entry| {
                            page << shift >> entry.leaf != va >> entry.leaf
                        });
                    }
                    _ => {
                        tlb.retain(|held| held.entry.rights.has(Rights::GLOBAL));
                        model.retain(|_, entry| entry.rights.has(Rights::GLOBAL));
                    }
                }
            }
            let seen = tlb.look(va, space, kind, Asked::new(kind, user));
            let (by, entry) = tlb.find(va, space, kind, user);
            assert_eq!(seen, (by == Served::First).then_some(entry));
            let (expected_by, expected) = model.find(va, space, kind, user);
            assert_eq!(by, expected_by, "{number} {step} {va:#x}");
            served[by as usize] += 1;
            match expected {
                Some(expected) => assert_eq!(entry, expected, "{number} {step} {va:#x}"),
                None => {
                    // Size and globality belong to the page; rights change with each walk.
                    let shift = match page >> 20 {
                        0 => 12,
                        1..=3 => 21,
                        _ => 30,
                    };
                    let mut rights = Rights::may(kind, user)
                        .with(Rights::DIRTY, kind == Kind::Write || stream.below(2) == 0);
                    for other in [Kind::Read, Kind::Write, Kind::Execute] {
                        rights = rights.with(Rights::may(other, user), stream.below(2) == 0);
                        rights = rights.with(Rights::may(other, !user), stream.below(2) == 0);
                    }
                    let rights = rights.with(Rights::GLOBAL, va >> shift & 3 == 3);
                    let base = (step << 31) + (va >> shift << shift);
                    let base = base >> shift << shift;
                    let types = Types {
                        stage1: TypeBits::new(stream.below(8) as u16),
                        stage2: TypeBits::new(stream.below(16) as u16),
                    };
                    let entry = Entry { base, types, shift, rights, ..Entry::default() };
                    tlb.insert(va, space, kind, entry);
                    model.insert(va, space, kind, entry);
                }
            }
            if step % 128 == 0 {
                let mut held: Vec<_> = tlb
                    .iter()
                    .map(|held| (held.tag, held.va, held.entry.base, held.entry.shift))
                    .collect();
                held.sort_unstable();
                assert_eq!(held, model.held(), "{number} {step}");
            }
        }
    }
    assert!(served.iter().all(|&count| count > 5_000), "{served:?}");
    assert!(repeated > 50_000);
}

/// Nehalem's second level has no large pages: they pass it by, and are not kept there in pieces.
/// Sizes that no level has are kept as the next smaller one.
#[test]
fn sizes_without_an_array() {
    let config = TlbConfig {
        load: vec![bank(4, 4, Replacement::Lru, &[12]), bank(4, 4, Replacement::Lru, &[21])],
        second: vec![bank(8, 4, Replacement::Lru, &[12])],
        largest: 30,
        ..TlbConfig::default()
    };
    let space = Space { own: Tag::new(1).unwrap(), global: Tag::new(2).unwrap() };
    for (size, kept) in [(21, vec![(21, 0x4020_0000)]), (30, vec![(21, 0x4020_0000)])] {
        let mut tlb = Tlb::new(&config).unwrap();
        let base = 0x4020_0000u64 >> size << size;
        let entry = Entry { base, shift: size, ..Entry::default() };
        tlb.insert(0x20_3000, space, Kind::Read, entry);
        let held: Vec<_> = tlb.iter().map(|held| (held.entry.shift, held.entry.base)).collect();
        assert_eq!(held, kept);
    }
    let mut tlb = Tlb::new(&config).unwrap();
    let entry = Entry { base: 0x5_0000, shift: 16, ..Entry::default() };
    tlb.insert(0x1_3000, space, Kind::Read, entry);
    let held: Vec<_> = tlb.iter().map(|held| (held.entry.shift, held.entry.base)).collect();
    assert_eq!(held, [(12, 0x5_3000), (12, 0x5_3000)]);
}

#[test]
fn write_through_a_clean_entry_walks_again() {
    let config = TlbConfig {
        load: vec![bank(4, 4, Replacement::Lru, &[12])],
        second: vec![bank(8, 4, Replacement::Lru, &[12])],
        largest: 12,
        ..TlbConfig::default()
    };
    let mut tlb = Tlb::new(&config).unwrap();
    let space = Space { own: Tag::new(1).unwrap(), global: Tag::new(2).unwrap() };
    let clean = Rights::ALL;
    let entry = Entry { base: 0x5000, shift: 12, leaf: 12, rights: clean, ..Entry::default() };
    tlb.insert(0x1000, space, Kind::Read, entry);
    assert_eq!(tlb.find(0x1008, space, Kind::Read, false), (Served::First, entry));
    assert_eq!(tlb.find(0x1008, space, Kind::Write, false).0, Served::Miss);
    let dirty = Entry { rights: clean.with(Rights::DIRTY, true), ..entry };
    tlb.insert(0x1000, space, Kind::Write, dirty);
    assert_eq!(tlb.find(0x1008, space, Kind::Write, false), (Served::First, dirty));
}
