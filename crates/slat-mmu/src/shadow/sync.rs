//! Making the shadow true to the guest's tables when the architecture obliges it to be.

use super::{A, ADDRESS, D, Exit, GuestTables, KEY, P, PS, Pager, RW, Table, US, XD};

impl Pager {
    /// Compares every table that is out of sync with the guest's, drops what differs, and tracks
    /// stores again. Returns how many tables that were.
    pub fn synchronize(&mut self, tables: &mut [Table], guest: &impl GuestTables) -> usize {
        let unsync = core::mem::take(&mut self.unsync);
        for &page in &unsync {
            self.compare_all(tables, guest, page);
        }
        unsync.len()
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
    fn compare(
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
        let now = guest.entry(gfn << 12 | (index as u64) << 3);
        let same_place = now & P != 0 && guest.place(now & ADDRESS).0 & !0xfff == held & ADDRESS;
        let widened =
            held & (RW | US) & !now != 0 || now & XD & !held != 0 || (now ^ held) & KEY != 0;
        // A bit that the guest has cleared must be set by the next access again.
        let clean = now & A == 0 || held & RW != 0 && now & D == 0;
        if !same_place || widened || clean {
            self.drop_leaf(tables, page, index);
        }
    }
}
