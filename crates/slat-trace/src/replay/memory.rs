//! The guest's tables, as a stream gives them.

use slat::memory::EntrySize;
use slat::{EntryLayout, Gpa, Memory, Outside, Reached, Value};

use crate::event::Event;

/// Pages of tables that are kept: 1 GiB of them, more than any guest that can be recorded has.
const MOST_PAGES: usize = 1 << 18;
const LOW_BITS: u32 = 10;
/// Guest-physical addresses of 44 bits, as far as frames in a stream reach.
const MOST_HIGH: u64 = 1 << (44 - 12 - LOW_BITS);

type Page = [u64; 512];

/// More pages became tables than any guest that can be recorded has, or at addresses where it has
/// no memory: the stream is not one of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page {gpa:#x} cannot be a table: outside of 44 bits, or after 262144 others")]
pub struct TooManyTables {
    /// The address of the page.
    pub gpa: u64,
}

/// The pages that are translation tables, and their content at this point of the stream.
#[derive(Clone, Debug, Default)]
pub struct TableMemory {
    /// By the high bits of the page number, then the low ones: which page, plus 1.
    directory: Vec<Option<Box<[u32; 1 << LOW_BITS]>>>,
    pages: Vec<Page>,
}

impl TableMemory {
    /// No tables.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry at `gpa`, and the number of its page, of those that are or were tables.
    #[inline]
    pub(super) fn locate(&self, gpa: u64) -> Option<(usize, u64)> {
        let number = gpa >> 12;
        let low = self.directory.get((number >> LOW_BITS) as usize)?.as_ref()?;
        let index = low[(number & ((1 << LOW_BITS) - 1)) as usize];
        let index = (index as usize).wrapping_sub(1);
        Some((index, self.pages.get(index)?[(gpa >> 3 & 511) as usize]))
    }

    fn make(&mut self, gpa: u64) -> Result<&mut Page, TooManyTables> {
        let number = gpa >> 12;
        let high = number >> LOW_BITS;
        if high >= MOST_HIGH {
            return Err(TooManyTables { gpa });
        }
        let high = high as usize;
        if self.directory.len() <= high {
            self.directory.resize(high + 1, None);
        }
        let low = self.directory[high].get_or_insert_with(|| Box::new([0; 1 << LOW_BITS]));
        let index = &mut low[(number & ((1 << LOW_BITS) - 1)) as usize];
        if *index == 0 {
            if self.pages.len() == MOST_PAGES {
                return Err(TooManyTables { gpa });
            }
            self.pages.push([0; 512]);
            *index = self.pages.len() as u32;
        }
        Ok(&mut self.pages[*index as usize - 1])
    }

    /// Applies an event; those that do not concern the content of tables do nothing.
    ///
    /// # Errors
    ///
    /// Where a stream, damaged or hostile, makes more tables than a guest has.
    #[inline]
    pub fn apply(&mut self, event: &Event) -> Result<(), TooManyTables> {
        match *event {
            Event::TablePage { gpa, fresh, .. } => {
                let page = self.make(gpa)?;
                if fresh {
                    *page = [0; 512];
                }
            }
            Event::TableEntry { gpa, value } | Event::TableStore { gpa, value } => {
                self.make(gpa)?[(gpa >> 3 & 511) as usize] = value;
            }
            _ => {}
        }
        Ok(())
    }

    /// The entry at `gpa`, a multiple of 8, if the page is or was a table.
    #[inline]
    #[must_use]
    pub fn entry(&self, gpa: u64) -> Option<u64> {
        self.locate(gpa).map(|(_, entry)| entry)
    }

    /// How many pages are or were tables.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.len()
    }
}

/// The tables while a walk reads them: what it reads is noted.
pub(super) struct Watched<'a> {
    tables: &'a TableMemory,
    /// Of each entry that was read the address and the number of its page.
    reads: [(u64, usize); MOST_READS],
    len: usize,
}

/// More entries than one stage of any format reads.
const MOST_READS: usize = 8;

impl<'a> Watched<'a> {
    pub(super) fn new(tables: &'a TableMemory) -> Self {
        Self { tables, reads: [(0, 0); MOST_READS], len: 0 }
    }

    /// What was read, in order; None if it was more than any walk reads.
    pub(super) fn reads(&self) -> Option<&[(u64, usize)]> {
        self.reads.get(..self.len)
    }
}

impl Memory for Watched<'_> {
    type Address = Gpa;
    type Fault = Outside<Gpa>;

    #[inline]
    fn read(
        &mut self,
        address: Gpa,
        layout: EntryLayout,
        _: &slat::Access,
    ) -> Result<Value, Outside<Gpa>> {
        let outside = Outside { address, write: false };
        let (page, entry) = self.tables.locate(address.raw() & !7).ok_or(outside)?;
        if let Some(read) = self.reads.get_mut(self.len) {
            *read = (address.raw(), page);
        }
        self.len += 1;
        let value = match layout.size {
            EntrySize::Eight => entry,
            EntrySize::Four => entry >> (8 * (address.raw() & 4)) & 0xffff_ffff,
        };
        Ok(Value { value, reached: Reached::DIRECTLY })
    }

    /// A stream's tables change by its events alone.
    fn compare_exchange(
        &mut self,
        address: Gpa,
        _: EntryLayout,
        _: u64,
        _: u64,
        _: &slat::Access,
    ) -> Result<bool, Outside<Gpa>> {
        Err(Outside { address, write: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_follows_the_events() {
        let mut memory = TableMemory::new();
        let mut apply = |event| memory.apply(&event).unwrap();
        apply(Event::TablePage { gpa: 0x5000, level: 0, fresh: true });
        apply(Event::TableEntry { gpa: 0x5008, value: 7 });
        apply(Event::TableStore { gpa: 0x5ff8, value: 9 });
        apply(Event::TableRelease { gpa: 0x5000 });
        // Linked again: what is not told anew is as it was.
        apply(Event::TablePage { gpa: 0x5000, level: 1, fresh: false });
        assert_eq!(memory.entry(0x5008), Some(7));
        assert_eq!(memory.entry(0x5ff8), Some(9));
        assert_eq!(memory.entry(0x6000), None);
        memory.apply(&Event::TablePage { gpa: 0x5000, level: 0, fresh: true }).unwrap();
        assert_eq!(memory.entry(0x5008), Some(0));
        assert_eq!(memory.pages(), 1);
    }

    #[test]
    fn impossible_addresses_are_refused() {
        let mut memory = TableMemory::new();
        let event = Event::TableStore { gpa: 1 << 44, value: 0 };
        assert_eq!(memory.apply(&event), Err(TooManyTables { gpa: 1 << 44 }));
        assert_eq!(memory.entry(!7), None);
    }
}
