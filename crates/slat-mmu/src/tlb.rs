//! TLBs: first-level arrays by kind of access, a second level behind them.
//!
//! An entry is found by page number, page size and tag. A tag stands for the combination that the
//! processor compares (VPID or ASID or VMID, and PCID or ASID): the owner of the tags maps each
//! combination to a small number, so that one comparison serves. Global entries are stored under
//! the tag that the owner reserves for the globals of the same virtual machine.

use alloc::vec::Vec;

use slat::Kind;

use crate::array::{Array, BadGeometry, Geometry};

/// The most page sizes that a TLB tells apart.
pub const MAX_SIZES: usize = 4;

/// A tag: not 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Tag(u16);

impl Tag {
    /// The tag of this number, or `None` for 0.
    pub const fn new(number: u16) -> Option<Tag> {
        if number == 0 { None } else { Some(Tag(number)) }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// On whose behalf an access is looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Space {
    /// The tag of the current address space.
    pub own: Tag,
    /// The tag of global entries that it sees.
    pub global: Tag,
}

/// A translation as a TLB keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// First output address of the page that was kept.
    pub base: u64,
    /// log2 of its size.
    pub shift: u8,
    /// What it permits and how it was made.
    pub rights: Rights,
}

impl Entry {
    /// The part of `1 << shift` bytes, which is no more than the page, that holds `va`.
    #[inline]
    fn part(self, va: u64, shift: u8) -> Entry {
        let within = va & ((1u64 << self.shift) - 1) & (!0 << shift);
        Entry { base: self.base + within, shift, ..self }
    }
}

/// Rights and state of an entry: a set of flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Rights(u8);

impl Rights {
    /// Writes are permitted.
    pub const WRITE: Rights = Rights(1 << 0);
    /// Fetches are permitted.
    pub const EXECUTE: Rights = Rights(1 << 1);
    /// The page is a user page.
    pub const USER: Rights = Rights(1 << 2);
    /// Every dirty bit that a write would set is set.
    pub const DIRTY: Rights = Rights(1 << 3);
    /// The page is global.
    pub const GLOBAL: Rights = Rights(1 << 4);

    /// Whether all of `other` is in this set.
    #[inline(always)]
    pub const fn has(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set with `other` where `yes`.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, other: Rights, yes: bool) -> Rights {
        Rights(self.0 | if yes { other.0 } else { 0 })
    }

    /// Whether a hit may serve this access without another walk: a write needs a dirty writable
    /// entry, a user access a user page.
    #[inline(always)]
    pub const fn serves(self, kind: Kind, user: bool) -> bool {
        let by_kind = match kind {
            Kind::Read => true,
            Kind::Write => self.has(Rights(Rights::WRITE.0 | Rights::DIRTY.0)),
            Kind::Execute => self.has(Rights::EXECUTE),
        };
        by_kind && (!user || self.has(Rights::USER))
    }
}

/// One array of a level, and the page sizes that it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BankConfig {
    /// The array.
    pub geometry: Geometry,
    /// log2 of each page size that it holds, 0 for none: pages of other sizes pass it by.
    pub shifts: [u8; MAX_SIZES],
}

impl BankConfig {
    /// An array for these page sizes (log2).
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
}

#[derive(Clone, Debug)]
struct Bank {
    array: Array<Entry>,
    shifts: Vec<u8>,
    /// Which of `shifts` were ever stored, so that a lookup does not ask for others.
    used: Vec<bool>,
}

/// One level: some arrays, asked together.
#[derive(Clone, Debug)]
struct Level {
    banks: Vec<Bank>,
    /// Key bits of the last 4 KiB page found here and its entry: a repeated hit on it changes no
    /// replacement state, so that it needs no lookup.
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    page: u64,
    space: Space,
    entry: Entry,
}

/// The key of a page: page number, size class, tag.
#[inline(always)]
fn key(va: u64, shift: u8, class: usize, tag: Tag) -> u64 {
    (va >> shift) << 18 | (class as u64) << 16 | u64::from(tag.0)
}

impl Level {
    fn new(banks: &[BankConfig]) -> Result<Level, BadGeometry> {
        let banks = banks
            .iter()
            .map(|config| {
                let shifts: Vec<u8> =
                    config.shifts.iter().copied().filter(|&shift| shift != 0).collect();
                let used = shifts.iter().map(|_| false).collect();
                Ok(Bank { array: Array::new(config.geometry)?, shifts, used })
            })
            .collect::<Result<_, BadGeometry>>()?;
        Ok(Level { banks, last: None })
    }

    #[inline(always)]
    fn find(&mut self, va: u64, space: Space) -> Option<Entry> {
        let page = va >> 12;
        if let Some(last) = &self.last
            && last.page == page
            && last.space == space
        {
            return Some(last.entry);
        }
        let entry = self.find_in_banks(va, space)?;
        self.last = Some(Last { page, space, entry });
        Some(entry)
    }

    #[inline]
    fn find_in_banks(&mut self, va: u64, space: Space) -> Option<Entry> {
        for bank in &mut self.banks {
            for (class, &shift) in bank.shifts.iter().enumerate() {
                if !bank.used[class] {
                    continue;
                }
                let keys = [key(va, shift, class, space.own), key(va, shift, class, space.global)];
                if let Some(entry) = bank.array.find(va >> shift, keys) {
                    return Some(*entry);
                }
            }
        }
        None
    }

    /// Keeps an entry in the array for its size; one that no array is for passes by.
    fn insert(&mut self, va: u64, tag: Tag, entry: Entry) {
        self.last = None;
        for bank in &mut self.banks {
            if let Some(class) = bank.shifts.iter().position(|&shift| shift == entry.shift) {
                bank.used[class] = true;
                bank.array.insert(va >> entry.shift, key(va, entry.shift, class, tag), entry);
                return;
            }
        }
    }

    /// The largest page size of its arrays that is no larger than this (log2).
    fn size_within(&self, shift: u8) -> Option<u8> {
        let sizes = self.banks.iter().flat_map(|bank| bank.shifts.iter().copied());
        sizes.filter(|&size| size <= shift).max()
    }

    fn retain(&mut self, keep: &mut impl FnMut(&Held) -> bool) {
        self.last = None;
        for bank in &mut self.banks {
            let shifts = &bank.shifts;
            bank.array.retain(|key, entry| keep(&Held::of(key, entry, shifts)));
        }
    }
}

/// An entry as maintenance sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Number of the tag it is stored under.
    pub tag: u16,
    /// First input address of the page.
    pub va: u64,
    /// The entry.
    pub entry: Entry,
}

impl Held {
    fn of(key: u64, entry: &Entry, shifts: &[u8]) -> Held {
        let class = (key >> 16 & 3) as usize;
        let shift = shifts.get(class).copied().unwrap_or(entry.shift);
        Held { tag: key as u16, va: key >> 18 << shift, entry: *entry }
    }

    /// Whether the page holds this address. Input addresses are compared as TLBs do, without the
    /// bits that sign extension repeats.
    pub fn covers(&self, va: u64) -> bool {
        (self.va ^ va) & ((1 << 46) - 1) << 12 >> self.entry.shift << self.entry.shift == 0
    }
}

/// The TLBs of one core.
#[derive(Clone, Debug)]
pub struct Tlb {
    fetch: Level,
    load: Level,
    store: Option<Level>,
    second: Level,
    largest: u8,
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

    /// Looks an access up. An entry that cannot serve it (a write through a clean one, a right that
    /// it lacks) counts as a miss: the processor walks again.
    #[inline(always)]
    pub fn find(&mut self, va: u64, space: Space, kind: Kind, user: bool) -> (Served, Entry) {
        if let Some(entry) = self.first(kind).find(va, space)
            && entry.rights.serves(kind, user)
        {
            return (Served::First, entry);
        }
        self.find_second(va, space, kind, user)
    }

    #[inline(never)]
    fn find_second(&mut self, va: u64, space: Space, kind: Kind, user: bool) -> (Served, Entry) {
        match self.second.find(va, space) {
            Some(entry) if entry.rights.serves(kind, user) => {
                let tag = if entry.rights.has(Rights::GLOBAL) { space.global } else { space.own };
                self.first(kind).insert(va, tag, entry);
                (Served::Second, entry)
            }
            _ => (Served::Miss, Entry::default()),
        }
    }

    /// Keeps what a walk found, in each level that has an array for its size. `va` is any address of
    /// the page.
    pub fn insert(&mut self, va: u64, space: Space, kind: Kind, entry: Entry) {
        // A size that neither level has an array for is kept as the next smaller one that some has.
        let shift = entry.shift.min(self.largest);
        let first = self.first(kind).size_within(shift);
        let Some(shift) = first.max(self.second.size_within(shift)) else { return };
        let entry = entry.part(va, shift);
        let tag = if entry.rights.has(Rights::GLOBAL) { space.global } else { space.own };
        self.first(kind).insert(va, tag, entry);
        self.second.insert(va, tag, entry);
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
            .flat_map(|level| &level.banks)
            .flat_map(|bank| {
                bank.array.iter().map(|(key, entry)| Held::of(key, entry, &bank.shifts))
            })
    }
}
