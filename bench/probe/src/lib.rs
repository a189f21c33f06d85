//! The limit of a software MMU, for benchmarks to be put beside: the arrays of a processor's TLBs and
//! walk caches with tags alone. It has no tables to read, no rights and no translations, and adds up the
//! references that a walk would make. A page of 4 KiB is taken for each access; what a walk does not find
//! in a cache is asked for and put in as the walk of both stages would.

use slat::Kind;
use slat_mmu::array::{Array, BadGeometry, Geometry};
use slat_mmu::tlb::{BankConfig, TlbConfig};
use slat_mmu::walker::{WalkCacheConfig, WalkerConfig};

/// Bits of an index of each level above pages of 4 KiB.
const INDEX_BITS: usize = 9;
/// Levels of tables above the smallest, which caches of table entries keep.
const LEVELS: usize = 3;
/// An entry that a walk would read.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    /// Of the hypervisor's tables.
    pub of_host: bool,
    /// Its level, from 0 for entries of 4 KiB.
    pub level: usize,
    /// Its number among all of its level.
    pub number: u64,
}

impl Reference {
    /// An address for it, in a row with those of its level and far from others'.
    pub fn address(self) -> u64 {
        let Reference { of_host, level, number } = self;
        (2 | u64::from(of_host)) << 50 | (level as u64) << 40 | number << 3 & ((1 << 40) - 1)
    }
}

/// No page: keys of pages are odd.
const NO_PAGE: u64 = 0;

#[inline(always)]
fn key(number: u64) -> u64 {
    number << 1 | 1
}

/// One array for pages.
struct Pages(Array<u64>);

impl Pages {
    /// The array of a level for pages of 4 KiB, or one without entries.
    fn of(banks: &[BankConfig]) -> Result<Pages, BadGeometry> {
        let bank = banks.iter().find(|bank| bank.shifts.contains(&12));
        Ok(Pages(Array::new(bank.map_or(Geometry::NONE, |bank| bank.geometry))?))
    }

    #[inline(always)]
    fn holds(&mut self, page: u64) -> bool {
        self.0.find(page, [key(page); 2]).is_some()
    }

    #[inline(always)]
    fn put(&mut self, page: u64) {
        self.0.insert(page, key(page), page);
    }
}

/// A first level, and the page that it found last, which is not looked for again.
struct First {
    pages: Pages,
    last: u64,
}

impl First {
    fn of(banks: &[BankConfig]) -> Result<First, BadGeometry> {
        Ok(First { pages: Pages::of(banks)?, last: NO_PAGE })
    }

    #[inline(always)]
    fn holds(&mut self, page: u64) -> bool {
        if self.last == key(page) {
            return true;
        }
        let holds = self.pages.holds(page);
        if holds {
            self.last = key(page);
        }
        holds
    }

    #[inline(always)]
    fn put(&mut self, page: u64) {
        self.last = NO_PAGE;
        self.pages.put(page);
    }
}

/// The caches of table entries of one stage, by level.
struct Tables {
    levels: [Array<u64>; LEVELS],
    /// The lowest level that has tables.
    lowest: usize,
}

impl Tables {
    fn new(config: &WalkCacheConfig, lowest: usize) -> Result<Tables, BadGeometry> {
        let [a, b, c, _] = config.levels;
        Ok(Tables { levels: [Array::new(a)?, Array::new(b)?, Array::new(c)?], lowest })
    }

    /// How many levels of a page's walk no cache knows, which all know from now on; `read` is told of the
    /// entries that are read.
    #[inline]
    fn unknown(&mut self, page: u64, of_host: bool, read: &mut impl FnMut(Reference)) -> usize {
        let entry = |level: usize| {
            Reference { of_host, level, number: page >> (INDEX_BITS * level) }
        };
        read(entry(self.lowest));
        for (level, array) in self.levels.iter_mut().enumerate().skip(self.lowest) {
            let prefix = page >> (INDEX_BITS * (level + 1));
            if array.find(prefix, [key(prefix); 2]).is_some() {
                return level - self.lowest;
            }
            array.insert(prefix, key(prefix), prefix);
            read(entry(level + 1));
        }
        LEVELS - self.lowest
    }
}

/// Tags alone: as many arrays as the MMU has, asked in the same order.
pub struct Probe {
    fetch: First,
    load: First,
    store: Option<First>,
    second: Pages,
    guest: Tables,
    host: Tables,
    nested: Option<Pages>,
}

impl Probe {
    /// The limit of an MMU with these TLBs and caches of table entries by level, whose second stage maps
    /// pages of this size (log2).
    ///
    /// # Errors
    /// Where an array cannot have its geometry.
    pub fn new(
        tlb: &TlbConfig,
        walker: &WalkerConfig,
        host_shift: u8,
    ) -> Result<Probe, BadGeometry> {
        let lowest = usize::from(host_shift - 12) / INDEX_BITS;
        let nested = walker.nested_tlb;
        Ok(Probe {
            fetch: First::of(&tlb.fetch)?,
            load: First::of(&tlb.load)?,
            store: tlb.store.as_deref().map(First::of).transpose()?,
            second: Pages::of(&tlb.second)?,
            guest: Tables::new(&walker.stage1, 0)?,
            host: Tables::new(&walker.stage2, lowest)?,
            nested: match nested.geometry.entries {
                0 => None,
                _ => Some(Pages::of(&[nested])?),
            },
        })
    }

    /// One access: how many references its walk makes, each of which `read` is told of.
    #[inline]
    pub fn access(&mut self, va: u64, kind: Kind, mut read: impl FnMut(Reference)) -> u64 {
        let page = va >> 12;
        let first = match (kind, &mut self.store) {
            (Kind::Execute, _) => &mut self.fetch,
            (Kind::Write, Some(store)) => store,
            _ => &mut self.load,
        };
        if first.holds(page) {
            return 0;
        }
        let mut references = 0;
        if !self.second.holds(page) {
            let nested = self.nested.as_mut();
            references = walk(&mut self.guest, &mut self.host, nested, page, &mut read);
            self.second.put(page);
        }
        first.put(page);
        references
    }
}

/// A walk of both stages: how many entries it reads.
#[inline]
fn walk(
    guest: &mut Tables,
    host: &mut Tables,
    nested: Option<&mut Pages>,
    page: u64,
    read: &mut impl FnMut(Reference),
) -> u64 {
    let unknown = guest.unknown(page, false, read);
    let mut references = 1 + unknown as u64;
    let mut nested = nested;
    // Each table that no cache knew has a place to be found, the highest first.
    for level in (0..unknown).rev() {
        let table = page >> (INDEX_BITS * (level + 1)) | 1 << (40 + level);
        if let Some(nested) = &mut nested {
            if nested.holds(table) {
                continue;
            }
            nested.put(table);
        }
        references += 1 + host.unknown(table, true, read) as u64;
    }
    references + 1 + host.unknown(page, true, read) as u64
}
