//! TLBs: first-level arrays by kind of access, a second level behind them.
//!
//! An entry is found by page number, page size and tag. A tag stands for the combination that the
//! processor compares (VPID or ASID or VMID, and PCID or ASID): the owner of the tags maps each
//! combination to a small number, so that one comparison serves. Global entries are stored under
//! the tag that the owner reserves for the globals of the same virtual machine.

use alloc::vec::Vec;

use slat::Kind;

use crate::array::{BadGeometry, Geometry};

mod entry;
mod level;

pub use entry::{Asked, Entry, Rights, Space, Tag, Types};
pub use level::Held;
pub(crate) use level::Level;
use level::SMALL;

/// The most page sizes that a TLB tells apart.
pub const MAX_SIZES: usize = 4;

/// One array of a level, and the page sizes that it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BankConfig {
    /// The array.
    pub geometry: Geometry,
    /// log2 of each page size that it holds, 0 for none: pages of other sizes pass it by.
    pub shifts: [u8; MAX_SIZES],
}

impl BankConfig {
    /// No array.
    pub const NONE: BankConfig = BankConfig { geometry: Geometry::NONE, shifts: [0; MAX_SIZES] };

    /// An array for these page sizes (log2; the first [`MAX_SIZES`] of them).
    pub fn new(geometry: Geometry, sizes: &[u8]) -> BankConfig {
        let mut shifts = [0; MAX_SIZES];
        for (slot, &shift) in shifts.iter_mut().zip(sizes) {
            *slot = shift;
        }
        BankConfig { geometry, shifts }
    }
}

/// The TLBs of a core.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlbConfig {
    /// First level for fetches.
    pub fetch: Vec<BankConfig>,
    /// First level for loads; for stores too unless `store` says otherwise.
    pub load: Vec<BankConfig>,
    /// First level for stores, where it is apart.
    pub store: Option<Vec<BankConfig>>,
    /// Second level.
    pub second: Vec<BankConfig>,
    /// Pages above this size (log2) are kept as pages of this size (a 1 GiB page smashed to 2 MiB).
    pub largest: u8,
    /// Whether the first levels keep the part that was accessed of a page for whose size they have no
    /// array (Cortex-A15: all pages are kept in pieces of 4 KiB there); otherwise such a page passes them
    /// by.
    pub first_smashes: bool,
    /// Whether the second level keeps the part that was accessed of a page for whose size it has no
    /// array (Zen 2: 1 GiB pages are smashed to 2 MiB there); otherwise such a page passes it by.
    pub second_smashes: bool,
}

/// The TLBs of one core.
#[derive(Clone, Debug)]
pub struct Tlb {
    fetch: Level,
    load: Level,
    store: Option<Level>,
    second: Level,
    largest: u8,
    first_smashes: bool,
    second_smashes: bool,
}

/// Where a lookup was served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Served {
    /// The first level.
    First,
    /// The second level.
    Second,
    /// Nowhere: a walk is due.
    Miss,
}

impl Tlb {
    /// Empty TLBs.
    ///
    /// # Errors
    /// Where an array cannot have its geometry.
    pub fn new(config: &TlbConfig) -> Result<Tlb, BadGeometry> {
        Ok(Tlb {
            fetch: Level::new(&config.fetch)?,
            load: Level::new(&config.load)?,
            store: config.store.as_deref().map(Level::new).transpose()?,
            second: Level::new(&config.second)?,
            largest: config.largest,
            first_smashes: config.first_smashes,
            second_smashes: config.second_smashes,
        })
    }

    #[inline(always)]
    fn first(&mut self, kind: Kind) -> &mut Level {
        match (kind, &mut self.store) {
            (Kind::Execute, _) => &mut self.fetch,
            (Kind::Write, Some(store)) => store,
            _ => &mut self.load,
        }
    }

    /// Looks a plain access up: see [`Asked::new`].
    #[inline(always)]
    pub fn find(&mut self, va: u64, space: Space, kind: Kind, user: bool) -> (Served, Entry) {
        self.find_for(va, space, kind, Asked::new(kind, user))
    }

    /// Looks an access up. An entry that cannot serve it (a write through a clean one, a right that
    /// it lacks) counts as a miss: the processor walks again.
    #[inline(always)]
    pub fn find_for(&mut self, va: u64, space: Space, kind: Kind, asked: Asked) -> (Served, Entry) {
        if let Some(entry) = self.first(kind).find(va, space)
            && asked.of(entry.rights)
        {
            return (Served::First, entry);
        }
        self.find_second(va, space, kind, asked)
    }

    /// The entry of the first level that would serve an access, without counting a use.
    #[inline]
    pub fn look(&self, va: u64, space: Space, kind: Kind, asked: Asked) -> Option<Entry> {
        let level = match (kind, &self.store) {
            (Kind::Execute, _) => &self.fetch,
            (Kind::Write, Some(store)) => store,
            _ => &self.load,
        };
        level.look(va, space).filter(|entry| asked.of(entry.rights))
    }

    /// Whether stores have a first level of their own.
    pub fn keeps_stores_apart(&self) -> bool {
        self.store.is_some()
    }

    #[inline(never)]
    fn find_second(&mut self, va: u64, space: Space, kind: Kind, asked: Asked) -> (Served, Entry) {
        match self.second.find(va, space) {
            Some(entry) if asked.of(entry.rights) => {
                let size = self.first(kind).size_within(entry.shift);
                let part = smashed(entry, va, size, self.first_smashes);
                self.first(kind).insert(va, tag_of(entry, space), part);
                (Served::Second, entry)
            }
            _ => (Served::Miss, Entry::default()),
        }
    }

    /// Keeps what a walk found, in each level that has an array for its size. `va` is any address of
    /// the page.
    pub fn insert(&mut self, va: u64, space: Space, kind: Kind, entry: Entry) {
        // Nearly always: each level's first array is for pages of this size.
        let keep_small = self.largest >= SMALL && self.second.keeps_small();
        if entry.shift == SMALL && keep_small && self.first(kind).keeps_small() {
            let (entry, tag) = (entry.part(va, SMALL), tag_of(entry, space));
            self.first(kind).insert(va, tag, entry);
            self.second.insert(va, tag, entry);
            return;
        }
        // A size that neither level has an array for is kept as the next smaller one that some has.
        let shift = entry.shift.min(self.largest);
        let (first, second) = (self.first(kind).size_within(shift), self.second.size_within(shift));
        let Some(shift) = first.max(second) else { return };
        let entry = entry.part(va, shift);
        let tag = tag_of(entry, space);
        let part = smashed(entry, va, first, self.first_smashes);
        self.first(kind).insert(va, tag, part);
        self.second.insert(va, tag, smashed(entry, va, second, self.second_smashes));
    }

    /// Drops every entry that `keep` does not keep.
    pub fn retain(&mut self, mut keep: impl FnMut(&Held) -> bool) {
        self.fetch.retain(&mut keep);
        self.load.retain(&mut keep);
        if let Some(store) = &mut self.store {
            store.retain(&mut keep);
        }
        self.second.retain(&mut keep);
    }

    /// Every entry of every level.
    pub fn iter(&self) -> impl Iterator<Item = Held> + '_ {
        [Some(&self.fetch), Some(&self.load), self.store.as_ref(), Some(&self.second)]
            .into_iter()
            .flatten()
            .flat_map(Level::iter)
    }
}

/// What a level keeps of an entry, whose largest size that is no larger than the entry's is `size`.
#[inline(always)]
fn smashed(entry: Entry, va: u64, size: Option<u8>, smashes: bool) -> Entry {
    match size {
        Some(size) if smashes => entry.part(va, size),
        _ => entry,
    }
}

/// The tag that an entry is kept under.
#[inline(always)]
fn tag_of(entry: Entry, space: Space) -> Tag {
    if entry.rights.has(Rights::GLOBAL) { space.global } else { space.own }
}
