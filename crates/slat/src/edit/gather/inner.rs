//! What every token of a gather carries.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Detached, Leak, Pending, Slots, Stale};
use crate::edit::encode::{Effect, Encode};
use crate::edit::memory::TableMemory;
use crate::edit::walkers::Walkers;
use crate::edit::{Error, Tables};
use crate::format::Decoded;
use crate::invalidate::Context;

/// The content of every token of this chain. Dropping it with something in it is reported.
#[derive(Debug)]
pub(in crate::edit) struct Inner<'g> {
    pub(super) slots: Option<Slots<'g>>,
    pub(super) context: Context,
    pub(super) root: u64,
    pub(super) walkers: Option<&'g Walkers<'g>>,
    /// How many slots of each kind are taken. No wider than this, so that a token is moved in
    /// registers.
    pub(super) ranges: u32,
    pub(super) detached: u32,
    pub(super) pending: u32,
    pub(super) levels: u8,
    pub(super) effect: Effect,
    /// Table entries have changed, so that walk caches may be stale.
    pub(super) tables: bool,
    /// Tells this storage's gathers from every other's, once that may be asked; else 0.
    pub(super) id: u64,
    /// How many of them have been completed.
    pub(super) completed: u64,
}

/// When a leaf was broken by hand: in which gather.
#[derive(Clone, Copy, Debug)]
pub(in crate::edit) struct Break {
    pub(super) id: u64,
    pub(super) completed: u64,
    pub(in crate::edit) context: Context,
    pub(in crate::edit) report: fn(Leak),
}

static IDS: AtomicU64 = AtomicU64::new(1);

impl<'g> Inner<'g> {
    #[inline(always)]
    pub(in crate::edit) fn new(
        slots: Slots<'g>,
        context: Context,
        root: u64,
        walkers: Option<&'g Walkers<'g>>,
    ) -> Self {
        Inner {
            slots: Some(slots),
            context,
            root,
            walkers,
            ranges: 0,
            detached: 0,
            pending: 0,
            levels: 0,
            effect: Effect::None,
            tables: false,
            id: 0,
            completed: 0,
        }
    }

    /// Of one page of level 0, which is in the first range slot.
    #[inline(always)]
    pub(in crate::edit) fn of_page(slots: Slots<'g>, context: Context, root: u64) -> Self {
        let mut inner = Inner::new(slots, context, root, None);
        (inner.ranges, inner.levels, inner.effect) = (1, 1, Effect::Stale);
        inner
    }

    /// What tells this storage's gathers from every other's.
    pub(in crate::edit) fn identify(&mut self) -> u64 {
        if self.id == 0 {
            self.id = IDS.fetch_add(1, Ordering::Relaxed);
        }
        self.id
    }

    /// The mark of a break that is about to happen.
    pub(in crate::edit) fn about_to_break(&mut self) -> Break {
        self.identify();
        let report = self.slots.as_ref().map_or((|_| {}) as fn(Leak), |slots| slots.report);
        Break { id: self.id, completed: self.completed, context: self.context, report }
    }

    /// Notes that translations of `start..=last`, of leaves of `levels` (bit n for level n), may be
    /// stale.
    #[inline(always)]
    pub(in crate::edit) fn note(&mut self, start: u64, last: u64, levels: u8, effect: Effect) {
        self.levels |= levels;
        self.effect = self.effect.max(effect);
        let newest = self.newest().copied().unwrap_or(Stale::NOTHING);
        if start < newest.start || last > newest.last {
            self.widen(start, last);
        }
    }

    /// The newest range, if there is one.
    #[inline(always)]
    fn newest(&self) -> Option<&Stale> {
        self.slots.as_ref()?.ranges.get((self.ranges as usize).wrapping_sub(1))
    }

    /// Notes a range that the newest one does not cover.
    #[inline(never)]
    fn widen(&mut self, start: u64, last: u64) {
        let Some(slots) = &mut self.slots else { return };
        let taken = self.ranges as usize;
        if let Some(newest) = taken.checked_sub(1).and_then(|at| slots.ranges.get_mut(at)) {
            let adjacent = newest.last.checked_add(1) == Some(start);
            if adjacent || (start >= newest.start && start <= newest.last) {
                newest.last = newest.last.max(last);
                return;
            }
        }
        if let Some(slot) = slots.ranges.get_mut(taken) {
            *slot = Stale { start, last };
            self.ranges += 1;
            return;
        }
        // No slot is left: the newest range grows over this one as well. Without a single slot the
        // gather means everything.
        if let Some(newest) = slots.ranges.last_mut() {
            newest.start = newest.start.min(start);
            newest.last = newest.last.max(last);
        }
    }

    /// Whether anything of `start..=last` waits for its invalidation.
    #[inline(always)]
    pub(in crate::edit) fn is_stale(&self, start: u64, last: u64) -> bool {
        self.effect != Effect::None && self.overlaps(start, last)
    }

    fn overlaps(&self, start: u64, last: u64) -> bool {
        match &self.slots {
            Some(slots) if !slots.ranges.is_empty() => slots.ranges[..self.ranges as usize]
                .iter()
                .any(|range| range.start <= last && range.last >= start),
            _ => true,
        }
    }

    /// Whether another detached table can be noted.
    #[inline]
    pub(in crate::edit) fn has_room(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| (self.detached as usize) < slots.detached.len())
    }

    /// Whether any table could ever be noted.
    pub(in crate::edit) fn has_slots(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| !slots.detached.is_empty())
    }

    /// Notes a detached table; the caller has checked that there is room.
    #[inline]
    pub(in crate::edit) fn detach(&mut self, detached: Detached) {
        self.tables = true;
        self.effect = Effect::Stale;
        if let Some(slot) =
            self.slots.as_mut().and_then(|slots| slots.detached.get_mut(self.detached as usize))
        {
            *slot = detached;
            self.detached += 1;
        }
    }

    pub(in crate::edit) fn has_pending_room(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| (self.pending as usize) < slots.pending.len())
    }

    pub(in crate::edit) fn has_pending_slots(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| !slots.pending.is_empty())
    }

    pub(in crate::edit) fn pend(&mut self, pending: Pending) {
        if let Some(slot) =
            self.slots.as_mut().and_then(|slots| slots.pending.get_mut(self.pending as usize))
        {
            *slot = pending;
            self.pending += 1;
        }
    }

    pub(in crate::edit) fn pending(&self) -> usize {
        self.pending as usize
    }

    /// What waits to be made.
    pub(super) fn waiting(&self) -> &[Pending] {
        self.slots
            .as_ref()
            .and_then(|slots| slots.pending.get(..self.pending as usize))
            .unwrap_or(&[])
    }

    /// Number of entries that wait to be made, and of tables that nothing else knows of: that wait to be
    /// linked, or can be linked nowhere any more.
    pub(super) fn frozen(&self) -> (usize, usize) {
        self.waiting().iter().fold((0, 0), |(frozen, tables), pending| {
            let entries = if pending.lost { 0 } else { pending.count as usize };
            (frozen + entries, tables + usize::from(pending.links))
        })
    }

    /// Makes what waits, once it has been invalidated. What cannot be made goes on waiting, and so
    /// does a table that can be linked nowhere any more, for [`Inner::detach_lost`]: it is not tried
    /// again, since another may have broken an entry at the same place since.
    ///
    /// # Errors
    /// The last of those of [`Pending::make`].
    pub(in crate::edit) fn make<F: Encode, I, O, M: TableMemory<F::Word>>(
        &mut self,
        tables: &Tables<F, I, O, M>,
        offset: u64,
    ) -> Result<(), Error> {
        let (Some(slots), mut outcome, mut kept) = (&mut self.slots, Ok(()), 0) else {
            return Ok(());
        };
        // The oldest first: who waits below an entry that was removed later finds it frozen.
        for index in 0..self.pending as usize {
            let mut pending = slots.pending[index];
            if !pending.lost {
                match pending.make(tables, offset) {
                    Ok(false) if pending.links => pending.lost = true,
                    Ok(_) => continue,
                    Err(error) => outcome = Err(error),
                }
            }
            slots.pending[kept] = pending;
            kept += 1;
        }
        self.pending = kept as u32;
        outcome
    }

    /// Takes the tables that can be linked nowhere any more for detached ones, as far as there is
    /// room: nobody has ever seen them, and their leaves keep what hardware noted of the broken page.
    pub(super) fn detach_lost<F: Encode, I, O, M: TableMemory<F::Word>>(
        &mut self,
        tables: &Tables<F, I, O, M>,
    ) {
        let (Some(slots), mut kept) = (&mut self.slots, 0) else { return };
        let format = &tables.format;
        for index in 0..self.pending as usize {
            let pending @ Pending { at, level, .. } = slots.pending[index];
            if pending.lost
                && let Decoded::Table { next } = format.decode(pending.entry, level)
                && let Some(slot) = slots.detached.get_mut(self.detached as usize)
            {
                let start = tables.address_of(at & !((1u64 << format.shift(level)) - 1));
                *slot = Detached { table: next, level: level - 1, start, shared: false };
                self.detached += 1;
            } else {
                slots.pending[kept] = pending;
                kept += 1;
            }
        }
        self.pending = kept as u32;
    }

    /// Gives up what could not be made; `lost` is told of each table that can be linked nowhere.
    pub(in crate::edit) fn abandon(&mut self, lost: impl FnMut(&Pending)) {
        self.waiting().iter().filter(|pending| pending.links).for_each(lost);
        self.pending = 0;
    }

    pub(in crate::edit) fn tables_changed(&mut self) {
        self.tables = true;
    }

    #[inline(always)]
    pub(super) fn is_clear(&self) -> bool {
        self.effect == Effect::None && self.detached == 0 && self.pending == 0
    }

    /// What a completed invalidation leaves: the tables, and the entries to be made.
    #[inline(always)]
    pub(super) fn invalidated(&mut self) {
        self.completed += 1;
        self.ranges = 0;
        self.levels = 0;
        self.effect = Effect::None;
        self.tables = false;
    }
}

impl Drop for Inner<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.is_clear() {
            self.leak();
        }
    }
}

impl Inner<'_> {
    #[cold]
    fn leak(&self) {
        let (frozen, tables) = self.frozen();
        if let Some(slots) = &self.slots {
            (slots.report)(Leak {
                context: self.context,
                ranges: if self.effect == Effect::None { 0 } else { self.ranges.max(1) as usize },
                subtrees: self.detached as usize + tables,
                frozen,
            });
        }
    }
}
