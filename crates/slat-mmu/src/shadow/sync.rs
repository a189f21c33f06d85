//! Making the shadow true to the guest's tables when the architecture obliges it to be.

use alloc::vec::Vec;

use super::protect::HELD;
use super::{A, ADDRESS, D, Exit, GuestTables, KEY, P, PS, Pager, RW, Table, US, XD};

impl Pager {
    /// Compares every table that is out of sync with the guest's, drops what differs, and tracks
    /// stores again. Returns how many tables that were.
    pub fn synchronize(&mut self, tables: &mut [Table], guest: &impl GuestTables) -> usize {
        let unsync = core::mem::take(&mut self.unsync);
        for &page in &unsync {
            self.compare_all(tables, guest, page);
        }
        let _ = self.settle(tables, guest);
        unsync.len()
    }

    /// The same of those tables alone that some of these guest roots lead to: what a load of CR3 obliges a
    /// hypervisor to. Others, such as those of an address space that is gone, stay out of sync, and stores
    /// to them free.
    pub fn synchronize_below(
        &mut self,
        tables: &mut [Table],
        guest: &impl GuestTables,
        roots: &[u64],
    ) {
        let held = |pager: &Pager, root: u64| {
            let pages = pager.by_frame.get(&((root & ADDRESS) >> 12)).into_iter().flatten();
            pages.copied().find(|&page| pager.pages[page as usize].level == pager.root_level)
        };
        let roots: Vec<u32> = roots.iter().filter_map(|&root| held(self, root)).collect();
        let reached = |unsync: u32| roots.iter().any(|&root| self.is_below(unsync, root));
        let (below, others): (Vec<u32>, Vec<u32>) =
            self.unsync.iter().partition(|&&unsync| reached(unsync));
        self.unsync = others;
        for page in below {
            self.compare_all(tables, guest, page);
        }
        let _ = self.settle(tables, guest);
    }

    /// Makes one table that is out of sync true, and tracks stores to it again. The caller takes it
    /// off the list.
    pub(super) fn compare_all(
        &mut self,
        tables: &mut [Table],
        guest: &impl GuestTables,
        page: u32,
    ) {
        self.pages[page as usize].unsync = false;
        self.counts.synchronized += 1;
        let gfn = self.pages[page as usize].gfn;
        if self.protects {
            self.unprotected.push(gfn);
        }
        for index in 0..512 {
            self.compare(tables, guest, page, gfn, index);
        }
    }

    /// INVLPG: the entry of one address is made true.
    pub fn invalidate(
        &mut self,
        tables: &mut [Table],
        guest: &impl GuestTables,
        root: u64,
        address: u64,
    ) {
        self.exit(Exit::Invlpg);
        let mut page = ((root - self.base) >> 12) as u32;
        for level in (0..=self.root_level).rev() {
            let index = (address >> (12 + 9 * u32::from(level)) & 0x1ff) as usize;
            let entry = tables[page as usize][index];
            if entry & P == 0 {
                return;
            }
            if level == 0 || entry & PS != 0 {
                let gfn = self.pages[page as usize].gfn;
                if gfn == u64::MAX {
                    self.drop_leaf(tables, page, index);
                } else {
                    self.compare(tables, guest, page, gfn, index);
                }
                return;
            }
            page = self.page_of(entry);
        }
    }

    /// Drops a leaf that the guest's entry no longer justifies.
    pub(super) fn compare(
        &mut self,
        tables: &mut [Table],
        guest: &impl GuestTables,
        page: u32,
        gfn: u64,
        index: usize,
    ) {
        let held = tables[page as usize][index];
        if held & P == 0 {
            return;
        }
        // What is held from writing has the right to it.
        let held = if held & HELD != 0 { held | RW | D } else { held };
        let now = guest.entry(gfn << 12 | (index as u64) << 3);
        let level = u32::from(self.pages[page as usize].level);
        let is_leaf = now & P != 0 && (level == 0 || now & PS != 0);
        let place = guest.place(now & ADDRESS & (!0 << (12 + 9 * level)));
        let same_place = is_leaf && place.is_some_and(|at| at.spa & !0xfff == held & ADDRESS);
        // U/S takes from supervisors what it gives to users: SMEP and SMAP keep them from user pages.
        let widened =
            held & RW & !now != 0 || now & XD & !held != 0 || (now ^ held) & (US | KEY) != 0;
        // A bit that the guest has cleared must be set by the next access again.
        let clean = now & A == 0 || held & D & !now != 0;
        if !same_place || widened || clean {
            self.drop_leaf(tables, page, index);
        }
    }
}
