//! One level of TLBs: some arrays, asked together.

use alloc::vec::Vec;

use super::entry::{Entry, Space, Tag};
use super::{BankConfig, MAX_SIZES};
use crate::array::{Array, BadGeometry};

#[derive(Clone, Debug)]
struct Bank {
    array: Array<Entry>,
    /// log2 of the page sizes that it holds; 0 for none.
    shifts: [u8; MAX_SIZES],
    /// Which of `shifts` were ever stored, as bits, so that a lookup does not ask for others.
    used: u8,
}

/// One level: some arrays, asked together.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    banks: Vec<Bank>,
    /// Page sizes that it holds, as bits by log2.
    sizes: u64,
    /// The first array's first size is 4 KiB.
    small_first: bool,
    /// The 4 KiB page found last and its entry: to find it again changes no order of replacement.
    last_page: u64,
    last: Entry,
}

/// log2 of the page size that most entries have.
pub(super) const SMALL: u8 = 12;

/// No page: keys have tags.
const NO_PAGE: u64 = 0;

/// The key of a page: page number, size class, tag.
#[inline(always)]
fn key(va: u64, shift: u8, class: usize, tag: Tag) -> u64 {
    (va >> shift) << 18 | (class as u64) << 16 | u64::from(tag.number())
}

impl Level {
    pub(crate) fn new(banks: &[BankConfig]) -> Result<Level, BadGeometry> {
        let banks = banks
            .iter()
            .map(|config| {
                let array = Array::new(config.geometry)?;
                Ok(Bank { array, shifts: config.shifts, used: 0 })
            })
            .collect::<Result<Vec<_>, BadGeometry>>()?;
        let shifts = banks.iter().flat_map(|bank| bank.shifts).filter(|&shift| shift != 0);
        let sizes = shifts.fold(0, |sizes, shift| sizes | 1 << shift);
        let small_first = banks.first().is_some_and(|bank| bank.shifts[0] == 12);
        Ok(Level { banks, sizes, small_first, last_page: NO_PAGE, last: Entry::default() })
    }

    #[inline(always)]
    pub(crate) fn find(&mut self, va: u64, space: Space) -> Option<Entry> {
        let page = key(va, 12, 0, space.own);
        if page == self.last_page {
            return Some(self.last);
        }
        // Most pages are the first array's first size, if that is 4 KiB: its key is at hand.
        if self.small_first
            && let Some(bank) = self.banks.first_mut()
            && let Some(entry) = bank.array.find(va >> 12, [page, key(va, 12, 0, space.global)])
        {
            (self.last_page, self.last) = (page, *entry);
            return Some(*entry);
        }
        let mut skip = u8::from(self.small_first);
        for bank in &mut self.banks {
            let mut left = bank.used & !skip;
            skip = 0;
            while left != 0 {
                let class = left.trailing_zeros() as usize % MAX_SIZES;
                left &= left - 1;
                let shift = bank.shifts[class] & 63;
                let keys = [key(va, shift, class, space.own), key(va, shift, class, space.global)];
                if let Some(entry) = bank.array.find(va >> shift, keys) {
                    (self.last_page, self.last) = (page, *entry);
                    return Some(*entry);
                }
            }
        }
        None
    }

    /// What [`Level::find`] finds, without counting a use.
    #[inline(always)]
    pub(crate) fn look(&self, va: u64, space: Space) -> Option<Entry> {
        // As `find` does, the first array's 4 KiB first.
        let page = key(va, 12, 0, space.own);
        if self.small_first
            && let Some(bank) = self.banks.first()
            && let Some(entry) = bank.array.look(va >> 12, [page, key(va, 12, 0, space.global)])
        {
            return Some(*entry);
        }
        let mut skip = u8::from(self.small_first);
        for bank in &self.banks {
            let mut left = bank.used & !skip;
            skip = 0;
            while left != 0 {
                let class = left.trailing_zeros() as usize % MAX_SIZES;
                left &= left - 1;
                let shift = bank.shifts[class] & 63;
                let keys = [key(va, shift, class, space.own), key(va, shift, class, space.global)];
                if let Some(entry) = bank.array.look(va >> shift, keys) {
                    return Some(*entry);
                }
            }
        }
        None
    }

    /// Keeps an entry in the array for its size; one that no array is for passes by.
    #[inline]
    pub(crate) fn insert(&mut self, va: u64, tag: Tag, entry: Entry) {
        self.last_page = NO_PAGE;
        if self.small_first
            && entry.shift == SMALL
            && let Some(bank) = self.banks.first_mut()
        {
            bank.used |= 1;
            bank.array.insert(va >> SMALL, key(va, SMALL, 0, tag), entry);
            return;
        }
        for bank in &mut self.banks {
            if let Some(class) = bank.shifts.iter().position(|&shift| shift == entry.shift) {
                bank.used |= 1 << class;
                bank.array.insert(va >> entry.shift, key(va, entry.shift, class, tag), entry);
                return;
            }
        }
    }

    /// The largest page size of its arrays that is no larger than this (log2).
    #[inline(always)]
    pub(crate) fn size_within(&self, shift: u8) -> Option<u8> {
        (self.sizes & ((2u64 << (shift & 63)).wrapping_sub(1)))
            .checked_ilog2()
            .map(|size| size as u8)
    }

    /// Whether its first array is for pages of 4 KiB.
    #[inline(always)]
    pub(super) fn keeps_small(&self) -> bool {
        self.small_first
    }

    /// Whether its arrays can hold no entry.
    #[inline(always)]
    pub(crate) fn is_none(&self) -> bool {
        self.sizes == 0
    }

    pub(crate) fn retain(&mut self, keep: &mut impl FnMut(&Held) -> bool) {
        self.last_page = NO_PAGE;
        for bank in &mut self.banks {
            let shifts = &bank.shifts;
            bank.array.retain(|key, entry| keep(&Held::of(key, entry, shifts)));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Held> + '_ {
        self.banks.iter().flat_map(|bank| {
            bank.array.iter().map(|(key, entry)| Held::of(key, entry, &bank.shifts))
        })
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
    fn of(key: u64, entry: &Entry, shifts: &[u8; MAX_SIZES]) -> Held {
        let shift = shifts[(key >> 16 & 3) as usize];
        Held { tag: key as u16, va: key >> 18 << shift, entry: *entry }
    }

    /// Whether an invalidation of this address names it: whether the page holds it, or the tables'
    /// larger page that it is a piece of ([`Entry::whole`]). Input addresses are compared as TLBs do,
    /// without the bits that sign extension repeats.
    pub fn covers(&self, va: u64) -> bool {
        let whole = self.entry.whole();
        (self.va ^ va) & ((1 << 46) - 1) << 12 >> whole << whole == 0
    }
}
