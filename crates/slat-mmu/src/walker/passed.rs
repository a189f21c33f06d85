//! What the caches need to know of a walk.

use core::cell::Cell;

use slat::format::Decoded;
use slat::{Observer, Step, Update};

use super::config::LEVELS;

/// Sees the tables that one stage's walk passes, its leaf and what it sets, and hands all on to
/// another observer.
pub(super) struct Passed<'a, W> {
    pub(super) tables: [Cell<(u64, u64)>; LEVELS],
    pub(super) count: Cell<usize>,
    /// Where the last entry was read.
    pub(super) leaf_at: Cell<u64>,
    /// The last entry that was updated: before, after, and its level.
    pub(super) updated: Cell<Option<(u64, u64, u8)>>,
    next: &'a W,
}

impl<'a, W: Observer> Passed<'a, W> {
    #[inline(always)]
    pub(super) fn new(next: &'a W) -> Self {
        Passed {
            tables: [const { Cell::new((0, 0)) }; LEVELS],
            count: Cell::new(0),
            leaf_at: Cell::new(0),
            updated: Cell::new(None),
            next,
        }
    }
}

impl<W: Observer> Observer for Passed<'_, W> {
    const WATCHES: bool = W::WATCHES;

    #[inline(always)]
    fn step(&self, step: &Step) {
        self.next.step(step);
        self.leaf_at.set(step.entry_address);
        if let Decoded::Table { next } = step.decoded
            && let Some(slot) = self.tables.get(self.count.get())
        {
            slot.set((step.entry, next));
            self.count.set(self.count.get() + 1);
        }
    }

    #[inline]
    fn update(&self, update: &Update) {
        self.next.update(update);
        if update.stored {
            self.updated.set(Some((update.old, update.new, update.level)));
        }
    }
}
