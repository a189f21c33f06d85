//! What the caches need to know of the part of a walk that they do not take entry by entry.

use core::cell::Cell;

use slat::format::Decoded;
use slat::{Observer, Step, Update};

use super::config::LEVELS;

/// Sees the tables that one stage's walk passes, its leaf and what it sets, and hands all on to
/// another observer.
pub(super) struct Passed<'a, W> {
    /// By the level of the entry: it, and the table that it names.
    tables: [Cell<(u64, u64)>; LEVELS],
    /// The levels of those that were passed, as bits.
    levels: Cell<u32>,
    /// Level of the entry that sent the walk to the ordinary root (HLAT, Intel SDM 3A 5.5.5).
    restarted: Cell<Option<u8>>,
    /// The highest level of an entry that was read of the tables that the walk has begun with.
    highest: Cell<Option<u8>>,
    /// Where the last entry was read.
    leaf_at: Cell<u64>,
    /// The last entry that was updated: before, after, and its level.
    updated: Cell<Option<(u64, u64, u8)>>,
    next: &'a W,
}

impl<'a, W: Observer> Passed<'a, W> {
    #[inline(always)]
    pub(super) fn new(next: &'a W) -> Self {
        Passed {
            tables: [const { Cell::new((0, 0)) }; LEVELS],
            levels: Cell::new(0),
            restarted: Cell::new(None),
            highest: Cell::new(None),
            leaf_at: Cell::new(0),
            updated: Cell::new(None),
            next,
        }
    }

    /// The tables that were passed, from the top: the level of the entry, it, and the table that it
    /// names. Those of the ordinary root are not among them after a restart: an entry of them serves
    /// only addresses that the hypervisor's tables send there.
    #[inline(always)]
    pub(super) fn tables(&self) -> impl Iterator<Item = (u8, u64, u64)> {
        let mut left = self.levels.get();
        core::iter::from_fn(move || {
            let level = left.checked_ilog2()?;
            left &= !(1 << level);
            let (entry, next) = self.tables.get(level as usize)?.get();
            Some((level as u8, entry, next))
        })
    }

    /// The highest level of an entry that was read, those of the ordinary root excepted.
    pub(super) fn highest(&self) -> Option<u8> {
        self.highest.get()
    }

    /// Where the last entry was read.
    pub(super) fn leaf_at(&self) -> u64 {
        self.leaf_at.get()
    }

    /// The last entry that was updated: before, after, and its level.
    pub(super) fn updated(&self) -> Option<(u64, u64, u8)> {
        self.updated.get()
    }

    /// The level of the entry that sent the walk to the ordinary root, if one did.
    #[inline(always)]
    pub(super) fn restarted(&self) -> Option<u8> {
        self.restarted.get()
    }
}

impl<W: Observer> Observer for Passed<'_, W> {
    const WATCHES: bool = W::WATCHES;

    #[inline(always)]
    fn step(&self, step: &Step) {
        self.next.step(step);
        self.leaf_at.set(step.entry_address);
        if self.restarted.get().is_some() {
            return;
        }
        self.highest.set(self.highest.get().max(Some(step.level)));
        // A walk goes down, and starts over where another processor changed an entry under its
        // update: what it passed at this level or below is of the attempt before.
        let level = usize::from(step.level);
        let above = self.levels.get() & !1 << level;
        self.levels.set(above);
        match step.decoded {
            Decoded::Table { next } => {
                if let Some(slot) = self.tables.get(level) {
                    slot.set((step.entry, next));
                    self.levels.set(above | 1 << level);
                }
            }
            Decoded::Restart => self.restarted.set(Some(step.level)),
            _ => {}
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
