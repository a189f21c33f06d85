//! What the host does to its own pages under a guest: reverse maps find the leaves that map them.

use alloc::vec::Vec;

use super::protect::HELD;
use super::{ADDRESS, D, PS, Pager, RW, Table};

impl Pager {
    /// The host takes the page of `1 << shift` bytes at system physical address `spa` away (to move it,
    /// to page it out): every leaf that maps some of it is dropped. Returns how many. All vCPUs have to
    /// flush before the page is used otherwise, if [`Pager::take_flush`] says so.
    pub fn unmap_host(&mut self, tables: &mut [Table], spa: u64, shift: u8) -> usize {
        let leaves = self.leaves_of(tables, spa, shift);
        for &(page, index) in &leaves {
            self.drop_leaf(tables, page, usize::from(index));
        }
        // The guest's tables that lay there lie elsewhere, and leaves over that place are to be kept off them.
        for page in self.pages.iter_mut().filter(|page| page.live) {
            if page.spa.is_some_and(|at| at >> shift == spa >> shift) {
                page.spa = None;
                self.unprotected.push(page.gfn);
            }
        }
        leaves.len()
    }

    /// Makes every leaf that maps some of the page read-only. Returns how many were writable;
    /// [`Pager::take_flush`] as above. Together with [`super::Place::writable`], which the host says
    /// `false` of from before this call on, the next store to the page is seen ([`super::Filled::Host`]) by
    /// whichever address it goes.
    pub fn protect_host(&mut self, tables: &mut [Table], spa: u64, shift: u8) -> usize {
        let leaves = self.leaves_of(tables, spa, shift);
        let mut writable = 0;
        for (page, index) in leaves {
            let leaf = &mut tables[page as usize][usize::from(index)];
            writable += usize::from(*leaf & RW != 0);
            self.flush_due |= *leaf & (RW | D) != 0;
            // Without D, since a read-only dirty page is a shadow stack.
            *leaf &= !(RW | D | HELD);
        }
        writable
    }

    /// Every leaf that maps some of a page of the host.
    pub(super) fn leaves_of(&self, tables: &[Table], spa: u64, shift: u8) -> Vec<(u32, u16)> {
        let first = spa >> shift << shift >> 12;
        let last = first + ((1 << (shift - 12)) - 1);
        // Leaves inside it, and larger ones that it lies in.
        let inside = self.leaves.range(first..=last).flat_map(|(_, leaves)| leaves);
        let above =
            [21u32, 30].into_iter().filter(|&size| size > u32::from(shift)).filter_map(|size| {
                let start = first >> (size - 12) << (size - 12);
                (start < first).then(|| self.leaves.get(&start)).flatten()
            });
        inside
            .chain(above.flatten())
            .copied()
            .filter(|&(page, index)| {
                let leaf = tables[page as usize][usize::from(index)];
                let level = u32::from(self.pages[page as usize].level);
                let size = if level == 0 || leaf & PS != 0 { 12 + 9 * level } else { 12 };
                (leaf & ADDRESS) >> 12 <= last
                    && ((leaf & ADDRESS) >> 12) + ((1 << (size - 12)) - 1) >= first
            })
            .collect()
    }
}
