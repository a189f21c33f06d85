//! The guest's table pages, at their places in guest physical memory.

use std::collections::BTreeMap;
use std::ops::Range;

use slat_mmu::shadow::Table;

/// Where simulated guest memory ends: more is refused (64 GiB).
pub const MAX_MEMORY: u64 = 1 << 36;

/// The most table pages of a guest, 256 MiB of them: so many map 128 GiB by 4 KiB pages.
const MOST: usize = 1 << 16;

/// Guest memory that cannot be simulated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemoryError {
    /// There is too much of it.
    #[error("the guest uses physical address {0:#x}; at most 64 GiB of guest memory are simulated")]
    TooMuch(u64),
    /// A table where no memory is.
    #[error(
        "the recording has a page table at {gpa:#x}, which is outside the guest's memory, {:#x} to {:#x}: it is \
         damaged, or its header is wrong",
        .memory.start, .memory.end
    )]
    Outside {
        /// The table's guest-physical address.
        gpa: u64,
        /// The guest's memory.
        memory: Range<u64>,
    },
    /// More tables than any guest needs.
    #[error(
        "the recording has more than {MOST} page tables at once, which map 128 GiB by the smallest pages: \
         it is damaged"
    )]
    TooManyTables,
}

/// The guest's table pages. Of a page that is a table no longer only what is not zero is kept, in case it
/// becomes one again with what it held: mostly that is nothing.
#[derive(Debug)]
pub struct GuestPages {
    memory: Range<u64>,
    /// Number of the page of each guest frame, plus one; 0 where none is a table.
    frames: Vec<u32>,
    pages: Vec<Table>,
    free: Vec<u32>,
    /// What pages held that are tables no longer, by frame: index and entry.
    kept: BTreeMap<u64, Box<[(u16, u64)]>>,
    live: usize,
    most: usize,
}

impl GuestPages {
    /// None yet, of a guest with this memory, which ends at [`MAX_MEMORY`] at most.
    pub(super) fn new(memory: Range<u64>) -> GuestPages {
        // Zeroed by the system where it is touched, so that a large guest costs nothing by itself.
        let frames = vec![0; (memory.end.min(MAX_MEMORY) >> 12) as usize];
        GuestPages {
            memory,
            frames,
            pages: Vec::new(),
            free: Vec::new(),
            kept: BTreeMap::new(),
            live: 0,
            most: 0,
        }
    }

    /// Pages of the guest's memory, whatever they hold.
    pub(super) fn pages(&self) -> u64 {
        (self.memory.end.saturating_sub(self.memory.start)) >> 12
    }

    /// The most that were tables at once.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Whether the page is a table.
    #[inline]
    pub(super) fn holds(&self, gpa: u64) -> bool {
        self.page(gpa).is_some()
    }

    #[inline]
    fn page(&self, gpa: u64) -> Option<usize> {
        match self.frames.get((gpa >> 12) as usize) {
            None | Some(0) => None,
            Some(&page) => Some(page as usize - 1),
        }
    }

    /// The entry at this guest-physical address, if the page is a table.
    #[inline]
    pub(super) fn entry(&self, gpa: u64) -> Option<u64> {
        self.page(gpa).map(|page| self.pages[page][(gpa >> 3 & 0x1ff) as usize])
    }

    /// The same, to be changed.
    #[inline]
    pub(super) fn entry_mut(&mut self, gpa: u64) -> Option<&mut u64> {
        self.page(gpa).map(|page| &mut self.pages[page][(gpa >> 3 & 0x1ff) as usize])
    }

    /// The page is a table from now on: zero if `fresh`, else with what it held when it last was one.
    ///
    /// # Errors
    /// Outside the guest's memory, and where there are too many.
    pub(super) fn make(&mut self, gpa: u64, fresh: bool) -> Result<(), MemoryError> {
        if let Some(page) = self.page(gpa) {
            if fresh {
                self.pages[page] = [0; 512];
            }
            return Ok(());
        }
        if !self.memory.contains(&gpa) {
            return Err(MemoryError::Outside { gpa, memory: self.memory.clone() });
        }
        let frame = gpa >> 12;
        let held = self.kept.remove(&frame).filter(|_| !fresh).unwrap_or_default();
        if self.live + self.kept.len() >= MOST {
            return Err(MemoryError::TooManyTables);
        }
        let page = match self.free.pop() {
            Some(page) => page as usize,
            None => {
                self.pages.push([0; 512]);
                self.pages.len() - 1
            }
        };
        self.pages[page] = [0; 512];
        for &(index, entry) in &held {
            self.pages[page][usize::from(index)] = entry;
        }
        self.frames[frame as usize] = page as u32 + 1;
        self.live += 1;
        self.most = self.most.max(self.live);
        Ok(())
    }

    /// The page is a table no longer.
    pub(super) fn release(&mut self, gpa: u64) {
        let Some(page) = self.page(gpa) else { return };
        let held: Box<[(u16, u64)]> =
            (0..).zip(self.pages[page]).filter(|&(_, entry)| entry != 0).collect();
        if !held.is_empty() {
            self.kept.insert(gpa >> 12, held);
        }
        self.frames[(gpa >> 12) as usize] = 0;
        self.free.push(page as u32);
        self.live -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_come_and_go_take_the_place_of_one() {
        let mut pages = GuestPages::new(0..1 << 30);
        for nth in 0..10_000u64 {
            let gpa = nth << 12;
            pages.make(gpa, true).unwrap();
            *pages.entry_mut(gpa + 8).unwrap() = 7;
            // A guest clears what it frees.
            *pages.entry_mut(gpa + 8).unwrap() = 0;
            pages.release(gpa);
        }
        assert_eq!((pages.most(), pages.pages.len(), pages.kept.len()), (1, 1, 0));
        // The number of frames' own memory is 4 bytes a frame.
        assert_eq!(pages.frames.len(), 1 << 18);
    }

    #[test]
    fn a_table_again_holds_what_it_held_unless_it_is_fresh() {
        let mut pages = GuestPages::new(0..1 << 20);
        pages.make(0x5000, true).unwrap();
        *pages.entry_mut(0x5ff8).unwrap() = 9;
        pages.release(0x5000);
        assert_eq!((pages.entry(0x5ff8), pages.holds(0x5000)), (None, false));
        pages.make(0x6000, true).unwrap();
        assert_eq!(pages.entry(0x6ff8), Some(0));
        pages.make(0x5000, false).unwrap();
        assert_eq!((pages.entry(0x5ff8), pages.entry(0x5000)), (Some(9), Some(0)));
        pages.release(0x5000);
        pages.make(0x5000, true).unwrap();
        assert_eq!(pages.entry(0x5ff8), Some(0));
    }

    #[test]
    fn memory_that_is_not_there_and_a_million_tables_are_refused() {
        let mut pages = GuestPages::new(1 << 30..2 << 30);
        for gpa in [0, (1 << 30) - 8, 2 << 30, u64::MAX] {
            let error = pages.make(gpa, true).unwrap_err();
            assert_eq!(error, MemoryError::Outside { gpa, memory: 1 << 30..2 << 30 });
            assert!(error.to_string().contains("0x40000000 to 0x80000000"), "{error}");
        }
        let mut pages = GuestPages::new(0..MAX_MEMORY);
        let made = (0..1_000_000u64).take_while(|nth| pages.make(nth << 12, true).is_ok()).count();
        assert_eq!(made, MOST);
        assert_eq!(pages.make(1 << 35, true), Err(MemoryError::TooManyTables));
        // What was released and is not empty counts as well.
        *pages.entry_mut(0).unwrap() = 1;
        pages.release(0);
        assert_eq!(pages.make(1 << 35, true), Err(MemoryError::TooManyTables));
        pages.make(0, false).unwrap();
        assert_eq!(pages.entry(0), Some(1));
    }
}
