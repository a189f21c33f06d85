//! The shadow tables themselves: which guest table each shadows, who links to it, and the entries.

use alloc::vec::Vec;

use super::{ADDRESS, P, PS, Pager, REFILL, Table};

#[derive(Clone, Debug)]
pub(super) struct Shadowed {
    /// Guest frame whose table this shadows; `u64::MAX` for one that splits a large guest page.
    pub(super) gfn: u64,
    pub(super) level: u8,
    pub(super) unsync: bool,
    pub(super) live: bool,
    /// Trapped stores since a fault last passed here.
    pub(super) stores: u8,
    /// Entries that link here: (table, index).
    pub(super) parents: Vec<(u32, u16)>,
    /// Where its frame lies, once leaves over it are read-only.
    pub(super) spa: Option<u64>,
    /// Tables that were made before.
    pub(super) made: u64,
}

impl Pager {
    pub(super) fn address(&self, page: u32) -> u64 {
        self.base + u64::from(page) * 4096
    }

    pub(super) fn page_of(&self, entry: u64) -> u32 {
        (((entry & ADDRESS) - self.base) >> 12) as u32
    }

    pub(super) fn allocate(&mut self, tables: &mut Vec<Table>, gfn: u64, level: u8) -> u32 {
        let shadowed = Shadowed {
            gfn,
            level,
            unsync: false,
            live: true,
            stores: 0,
            parents: Vec::new(),
            spa: None,
            made: self.counts.tables_made,
        };
        let page = match self.free.pop() {
            Some(page) => {
                tables[page as usize] = [0; 512];
                self.pages[page as usize] = shadowed;
                page
            }
            None => {
                tables.push([0; 512]);
                self.pages.push(shadowed);
                self.pages.len() as u32 - 1
            }
        };
        self.counts.tables_made += 1;
        self.most = self.most.max(self.live_tables());
        if gfn != u64::MAX {
            self.by_frame.entry(gfn).or_default().push(page);
            if self.protects {
                self.unprotected.push(gfn);
            }
        }
        page
    }

    /// Drops the oldest tables where there are more than the limit.
    pub(super) fn shrink(&mut self, tables: &mut [Table]) {
        if self.live_tables() <= self.limit {
            return;
        }
        let mut oldest: Vec<(u64, u32)> = (0..)
            .zip(&self.pages)
            .filter(|(_, page)| page.live)
            .map(|(number, page)| (page.made, number))
            .collect();
        oldest.sort_unstable();
        for (_, page) in oldest.into_iter().take(REFILL) {
            self.drop_table(tables, page);
        }
    }

    /// The shadow of the guest table in frame `gfn` used at `level`, made if it is not there.
    pub(super) fn shadow_of(&mut self, tables: &mut Vec<Table>, gfn: u64, level: u8) -> u32 {
        let known = self.by_frame.get(&gfn).and_then(|pages| {
            pages.iter().copied().find(|&page| self.pages[page as usize].level == level)
        });
        known.unwrap_or_else(|| self.allocate(tables, gfn, level))
    }

    /// Drops one entry: a leaf, or a link, and with it a table that splits a large page.
    pub(super) fn zap(&mut self, tables: &mut [Table], page: u32, index: usize) {
        let held = tables[page as usize][index];
        if held & P == 0 {
            return;
        }
        if self.is_leaf(held, page) {
            self.drop_leaf(tables, page, index);
            return;
        }
        tables[page as usize][index] = 0;
        // A processor's cache of this level would lead on to the child.
        self.flush_due = true;
        let child = self.page_of(held);
        let link = (page, index as u16);
        let shadowed = &mut self.pages[child as usize];
        shadowed.parents.retain(|&parent| parent != link);
        if shadowed.gfn == u64::MAX && shadowed.parents.is_empty() {
            self.drop_table(tables, child);
        }
    }

    /// Whether the leaf for an address below this shadow root is a piece of a larger page of the guest's.
    pub fn is_split(&self, tables: &[Table], root: u64, address: u64) -> bool {
        let mut page = ((root - self.base) >> 12) as u32;
        for level in (0..=self.root_level).rev() {
            let entry =
                tables[page as usize][(address >> (12 + 9 * u32::from(level)) & 0x1ff) as usize];
            if entry & P == 0 || self.is_leaf(entry, page) {
                break;
            }
            page = self.page_of(entry);
        }
        self.pages[page as usize].gfn == u64::MAX
    }

    /// Whether a present entry of this table is a leaf.
    pub(super) fn is_leaf(&self, entry: u64, page: u32) -> bool {
        self.pages[page as usize].level == 0 || entry & PS != 0
    }

    /// Installs a leaf where no entry is, or another leaf.
    pub(super) fn set_leaf(&mut self, tables: &mut [Table], page: u32, index: usize, entry: u64) {
        let held = core::mem::replace(&mut tables[page as usize][index], entry);
        if held & P != 0 && (held ^ entry) & ADDRESS == 0 {
            return;
        }
        if held & P != 0 {
            self.forget_leaf(held, page, index);
        }
        let level = self.pages[page as usize].level;
        self.sizes[usize::from(level).min(2)] += 1;
        self.leaves.entry((entry & ADDRESS) >> 12).or_default().push((page, index as u16));
    }

    /// Drops a leaf.
    pub(super) fn drop_leaf(&mut self, tables: &mut [Table], page: u32, index: usize) {
        let held = core::mem::take(&mut tables[page as usize][index]);
        self.counts.leaves_dropped += 1;
        self.forget_leaf(held, page, index);
    }

    fn forget_leaf(&mut self, held: u64, page: u32, index: usize) {
        self.flush_due = true;
        let level = self.pages[page as usize].level;
        self.sizes[usize::from(level).min(2)] -= 1;
        let frame = (held & ADDRESS) >> 12;
        if let Some(leaves) = self.leaves.get_mut(&frame) {
            leaves.retain(|&leaf| leaf != (page, index as u16));
            if leaves.is_empty() {
                self.leaves.remove(&frame);
            }
        }
    }

    pub(super) fn drop_table(&mut self, tables: &mut [Table], page: u32) {
        if !core::mem::take(&mut self.pages[page as usize].live) {
            return;
        }
        self.counts.tables_dropped += 1;
        self.flush_due = true;
        self.roots_due |= self.pages[page as usize].level == self.root_level;
        for index in 0..512 {
            self.zap(tables, page, index);
        }
        for (parent, index) in core::mem::take(&mut self.pages[page as usize].parents) {
            tables[parent as usize][usize::from(index)] = 0;
        }
        let gfn = self.pages[page as usize].gfn;
        if let Some(pages) = self.by_frame.get_mut(&gfn) {
            pages.retain(|&held| held != page);
            if pages.is_empty() {
                self.by_frame.remove(&gfn);
            }
        }
        self.unsync.retain(|&held| held != page);
        self.dropped.push(page);
    }
}
