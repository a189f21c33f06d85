//! Lent memory as a table walk that is not coherent sees it: each entry as it was last published.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use slat::edit::{Arena, TableMemory, Word};

/// First address.
pub(crate) const BASE: u64 = 0x1000;
/// What a frame holds when it is handed out: anything.
const GARBAGE: u64 = 0xdead_beef_dead_bee7;

#[derive(Debug)]
pub(crate) struct Lent<'a, W: Word> {
    arena: &'a Arena<'a, W>,
    published: RefCell<Vec<u64>>,
}

impl<'a, W: Word> Lent<'a, W> {
    pub(crate) fn new(arena: &'a Arena<'a, W>, words: u64) -> Self {
        Lent { arena, published: RefCell::new(vec![0; words as usize]) }
    }

    /// Fills a frame with whatever, for everybody.
    pub(crate) fn spoil(&self, address: u64, bytes: u64) {
        let cells =
            TableMemory::<W>::table(self.arena, address, (bytes / W::SIZE.bytes()) as usize);
        cells.unwrap().iter().for_each(|cell| W::store(cell, GARBAGE, Ordering::Relaxed));
        self.publish(address, bytes);
    }

    /// The entry that hardware finds at `address`.
    pub(crate) fn seen(&self, address: u64) -> u64 {
        self.published.borrow()[((address - BASE) / W::SIZE.bytes()) as usize]
    }
}

// SAFETY: the cells are the arena's.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl<W: Word> TableMemory<W> for Lent<'_, W> {
    fn table(&self, address: u64, entries: usize) -> Option<&[W::Atomic]> {
        TableMemory::<W>::table(self.arena, address, entries)
    }

    fn publish(&self, address: u64, bytes: u64) {
        let cells = self.table(address, (bytes / W::SIZE.bytes()) as usize).unwrap();
        let first = ((address - BASE) / W::SIZE.bytes()) as usize;
        let mut published = self.published.borrow_mut();
        for (seen, cell) in published[first..].iter_mut().zip(cells) {
            *seen = W::load(cell, Ordering::Relaxed);
        }
    }
}
