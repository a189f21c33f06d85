//! Leaves are kept off tables, so that stores to those trap.
//!
//! A leaf over a frame whose table is shadowed is read-only, and none is larger than 4 KiB where a shadowed
//! table lies under it (Linux KVM's `rmap_write_protect` and `account_shadowed`). A store there is carried
//! out by the hypervisor. When the table goes out of sync, its leaves become writable in the same exit;
//! when its shadow is dropped, by a fault at the next store.

use alloc::vec::Vec;

use super::{A, ADDRESS, D, GuestTables, P, PS, Pager, RW, Table, US, XD};

/// In a leaf: it would be writable, and dirty, if its frame were not a table's. A bit that processors ignore
/// (Intel SDM 3A 5.5.4, bits 11:9).
pub(super) const HELD: u64 = 1 << 9;

/// A large leaf that went because a table under it was shadowed.
pub(super) struct Split {
    /// The table that it was in, and its index there.
    pub(super) at: (u32, usize),
    /// What it was.
    pub(super) leaf: u64,
}

impl Pager {
    /// The same pager, which keeps leaves off tables; not for guests with 32-bit paging, whose tables
    /// count as several ([`super::Widened`]).
    #[must_use]
    pub fn with_protection(self) -> Pager {
        Pager { protects: true, ..self }
    }

    /// Whether stores to this guest physical address trap.
    pub fn traps(&self, gpa: u64) -> bool {
        self.protects
            && self
                .by_frame
                .get(&(gpa >> 12))
                .is_some_and(|pages| pages.iter().any(|&page| !self.pages[page as usize].unsync))
    }

    /// Whether some shadowed table lies in these `1 << shift` bytes, so that no leaf may be as large.
    pub(super) fn meets_table(&self, gpa: u64, shift: u32) -> bool {
        let first = gpa >> shift << (shift - 12);
        self.protects && self.by_frame.range(first..first + (1 << (shift - 12))).next().is_some()
    }

    /// What the flags of a leaf over this address become. A read-only dirty page would be a shadow stack,
    /// to which some stores are permitted (Intel SDM 3A 5.6.1).
    pub(super) fn guarded(&self, gpa: u64, flags: u64) -> u64 {
        if flags & (RW | D) != 0 && self.traps(gpa) { held(flags) } else { flags }
    }

    /// The page is a table again, and what it holds was told anew: its shadow, if one was kept, is compared
    /// with that before it is used.
    pub fn renew(&mut self, gpa: u64) {
        if self.by_frame.contains_key(&(gpa >> 12)) {
            self.renewed.push(gpa >> 12);
        }
    }

    /// Does what is due since the guest's memory was last at hand: compares tables that were renewed, and
    /// makes leaves over tables that are newly shadowed read-only. Returns the large ones that went.
    pub(super) fn settle(&mut self, tables: &mut [Table], guest: &impl GuestTables) -> Vec<Split> {
        let mut split = Vec::new();
        for frame in core::mem::take(&mut self.renewed) {
            for page in self.by_frame.get(&frame).cloned().unwrap_or_default() {
                self.compare_renewed(tables, guest, page);
            }
        }
        for frame in core::mem::take(&mut self.unprotected) {
            let Some(pages) = self.by_frame.get(&frame) else { continue };
            let Some(super::Place { spa, .. }) = guest.place(frame << 12) else { continue };
            for &page in pages {
                self.pages[page as usize].spa = Some(spa);
            }
            let traps = self.traps(frame << 12);
            for (page, index) in self.leaves_of(tables, spa, 12) {
                let (level, index) = (self.pages[page as usize].level, usize::from(index));
                let leaf = &mut tables[page as usize][index];
                if level > 0 {
                    split.push(Split { at: (page, index), leaf: *leaf });
                    self.drop_leaf(tables, page, index);
                } else if *leaf & (RW | D) != 0 && traps {
                    *leaf = held(*leaf);
                    self.flush_due = true;
                }
            }
        }
        split
    }

    /// A table went out of sync: leaves over its frame are writable again, unless another level's shadow of
    /// the same frame needs the traps.
    pub(super) fn open(&mut self, tables: &mut [Table], frame: u64) {
        if !self.protects || self.traps(frame << 12) {
            return;
        }
        let pages = self.by_frame.get(&frame).into_iter().flatten();
        let Some(spa) = pages.filter_map(|&page| self.pages[page as usize].spa).next() else {
            return;
        };
        for (page, index) in self.leaves_of(tables, spa, 12) {
            let leaf = &mut tables[page as usize][usize::from(index)];
            if *leaf & HELD != 0 {
                *leaf = *leaf & !HELD | RW | D;
            }
        }
    }

    /// Drops of a table what the guest's own no longer says.
    fn compare_renewed(&mut self, tables: &mut [Table], guest: &impl GuestTables, page: u32) {
        let (gfn, level) = (self.pages[page as usize].gfn, self.pages[page as usize].level);
        for index in 0..512 {
            let held = tables[page as usize][index];
            if held & P == 0 {
                continue;
            }
            if self.is_leaf(held, page) {
                self.compare(tables, guest, page, gfn, index);
                continue;
            }
            let now = guest.entry(gfn << 12 | (index as u64) << 3);
            let child = self.pages[self.page_of(held) as usize].gfn;
            let large = level > 0 && now & PS != 0;
            // A table that splits a large page goes with any change, and is filled anew.
            let same = now & P != 0 && !large && child == (now & ADDRESS) >> 12;
            // U/S takes from supervisors what it gives to users, as in a leaf.
            let widened = held & RW & !now != 0 || now & XD & !held != 0 || (now ^ held) & US != 0;
            if !same || widened || now & A == 0 {
                self.zap(tables, page, index);
            }
        }
    }
}

/// A leaf over a table: stores to it trap.
const fn held(leaf: u64) -> u64 {
    let held = if leaf & RW != 0 { HELD } else { 0 };
    leaf & !(RW | D) | held
}
