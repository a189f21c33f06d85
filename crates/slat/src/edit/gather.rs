//! What a change leaves to be done: invalidations, and frames that come free only after them.
//!
//! ```text
//! Cursor --finish--> Gather --complete(invalidate)--> Completed --reclaim--> Reclaim --> Frame...
//!                      |                                  |                     |
//!                  dropped: leaks, reports            dropped: likewise      finish --> Ready
//! ```
//!
//! A frame cannot leave in any other way, which the compiler enforces:
//!
//! ```compile_fail
//! # use slat::edit::{Gather, FrameSource};
//! fn too_early(gather: Gather<'_>, source: &impl FrameSource) {
//!     for frame in gather.reclaim() { // a gather has no frames; only `Completed` has
//!         source.put(frame);
//!     }
//! }
//! ```
//!
//! and a gather that is silently ignored is reported by the compiler:
//!
//! ```compile_fail
//! #![deny(unused_must_use)]
//! # use slat::edit::{Cursor, Encode, FrameSource, Mode, TableMemory};
//! fn forgotten<F: Encode, I: slat::Address, O: slat::Address, M, S, X>(
//!     cursor: Cursor<'_, '_, F, I, O, M, S, X>,
//! ) where
//!     M: TableMemory<F::Word>,
//!     S: FrameSource,
//!     X: Mode,
//! {
//!     cursor.finish();
//! }
//! ```

#![expect(
    clippy::result_large_err,
    reason = "a refused token comes back by value, or it would leak"
)]

use core::fmt;

use super::encode::{Effect, Encode};
use super::frames::Frame;
use super::group::{around, member};
use super::memory::TableMemory;
use super::walkers::{Mark, Walkers};
use super::witness::Witness;
use super::word::Word;
use super::{Error, Tables};
use crate::format::{Decoded, MAX_LEVELS};
use crate::invalidate::{Context, Invalidate};
use core::sync::atomic::{AtomicU64, Ordering};

/// A range of addresses whose translations may be stale.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Stale {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub last: u64,
}

impl Stale {
    /// What covers no range.
    const NOTHING: Stale = Stale { start: u64::MAX, last: 0 };
}

/// A detached subtree: its root table, and the level of that table's entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Detached {
    pub(super) table: u64,
    pub(super) level: u8,
    /// First input address that it translated.
    pub(super) start: u64,
    /// Others may point at it, or at tables below it: the reference that went is given up when the
    /// frame would come out.
    pub(super) shared: bool,
}

/// An entry that is broken and waits for an invalidation before it is made anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    pub(super) at: u64,
    pub(super) level: u8,
    /// The first entry to make, as a leaf by itself where it is one of a group; 0 where entries
    /// were removed, and those that are still frozen become empty.
    pub(super) entry: u64,
    /// How many entries: more than one for the pages of a group, and for a run of removed ones, which
    /// 16 concatenated tables of 64 KiB make 2^17 long at most (Arm ARM D8.2.2).
    pub(super) count: u32,
    /// Whether they are made into a group.
    pub(super) grouped: bool,
}

impl Pending {
    /// The `index`-th entry to make.
    pub(super) fn entry_at<F: Encode>(&self, format: &F, index: u64) -> u64 {
        let Decoded::Leaf { base, .. } = format.decode(self.entry, self.level) else {
            return self.entry;
        };
        let leaf = member(format, self.entry, base, index, self.level);
        if self.grouped { format.grouped(leaf, self.level) } else { leaf }
    }
}

/// What was lost because a token was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leak {
    /// Whose translations.
    pub context: Context,
    /// Ranges that were never invalidated.
    pub ranges: usize,
    /// Subtrees whose frames will never be used again.
    pub subtrees: usize,
    /// Entries that stay frozen: every access to them faults and is tried again.
    pub frozen: usize,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a gather of {:?} was dropped: {} ranges not invalidated, {} subtrees lost, {} entries \
             frozen",
            self.context, self.ranges, self.subtrees, self.frozen
        )
    }
}

/// The storage of a gather, lent by the caller.
///
/// Too few range slots make ranges wider; too few table slots make an operation stop for an
/// invalidation more often. One of each is enough for every operation to proceed.
#[derive(Debug)]
pub struct Slots<'g> {
    /// Ranges to invalidate.
    pub ranges: &'g mut [Stale],
    /// Detached subtrees.
    pub detached: &'g mut [Detached],
    /// Broken entries; needed by formats with break-before-make alone.
    pub pending: &'g mut [Pending],
    /// Is told when a token is dropped without its duty done. Nothing is freed then.
    pub report: fn(Leak),
}

/// What must be invalidated, and the tables that come free only when it has been.
#[derive(Debug)]
#[must_use = "hardware may act on older entries until this is completed; dropped, it leaks its frames"]
pub struct Gather<'g> {
    pub(super) inner: Inner<'g>,
}

/// The content of every token of this chain. Dropping it with something in it is reported.
#[derive(Debug)]
pub(super) struct Inner<'g> {
    slots: Option<Slots<'g>>,
    context: Context,
    root: u64,
    walkers: Option<&'g Walkers<'g>>,
    ranges: usize,
    /// The newest range; before there is one, nothing.
    newest: Stale,
    detached: usize,
    pending: usize,
    levels: u8,
    effect: Effect,
    /// Table entries have changed, so that walk caches may be stale.
    tables: bool,
    /// Tells this storage's gathers from every other's, once that may be asked; else 0.
    id: u64,
    /// How many of them have been completed.
    completed: u64,
}

/// When a leaf was broken by hand: in which gather.
#[derive(Clone, Copy, Debug)]
pub(super) struct Break {
    id: u64,
    completed: u64,
    pub(super) context: Context,
    pub(super) report: fn(Leak),
}

static IDS: AtomicU64 = AtomicU64::new(1);

impl<'g> Inner<'g> {
    #[inline(always)]
    pub(super) fn new(
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
            newest: Stale::NOTHING,
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
    pub(super) fn of_page(slots: Slots<'g>, context: Context, root: u64) -> Self {
        let mut inner = Inner::new(slots, context, root, None);
        (inner.ranges, inner.levels, inner.effect) = (1, 1, Effect::Stale);
        inner
    }

    /// What tells this storage's gathers from every other's.
    pub(super) fn identify(&mut self) -> u64 {
        if self.id == 0 {
            self.id = IDS.fetch_add(1, Ordering::Relaxed);
        }
        self.id
    }

    /// The mark of a break that is about to happen.
    pub(super) fn about_to_break(&mut self) -> Break {
        self.identify();
        let report = self.slots.as_ref().map_or((|_| {}) as fn(Leak), |slots| slots.report);
        Break { id: self.id, completed: self.completed, context: self.context, report }
    }

    /// Notes that translations of `start..=last`, of leaves of `levels` (bit n for level n), may be
    /// stale.
    #[inline(always)]
    pub(super) fn note(&mut self, start: u64, last: u64, levels: u8, effect: Effect) {
        self.levels |= levels;
        self.effect = self.effect.max(effect);
        if start < self.newest.start || last > self.newest.last {
            self.widen(start, last);
        }
    }

    /// Notes a range that the newest one does not cover.
    #[inline(never)]
    fn widen(&mut self, start: u64, last: u64) {
        let Some(slots) = &mut self.slots else { return };
        if let Some(newest) = self.ranges.checked_sub(1).and_then(|at| slots.ranges.get_mut(at)) {
            let adjacent = newest.last.checked_add(1) == Some(start);
            if adjacent || (start >= newest.start && start <= newest.last) {
                newest.last = newest.last.max(last);
                self.newest = *newest;
                return;
            }
        }
        if let Some(slot) = slots.ranges.get_mut(self.ranges) {
            *slot = Stale { start, last };
            self.newest = *slot;
            self.ranges += 1;
            return;
        }
        // No slot is left: the newest range grows over this one as well. Without a single slot the
        // gather means everything.
        if let Some(newest) = slots.ranges.last_mut() {
            newest.start = newest.start.min(start);
            newest.last = newest.last.max(last);
            self.newest = *newest;
        }
    }

    /// Whether anything of `start..=last` waits for its invalidation.
    #[inline(always)]
    pub(super) fn is_stale(&self, start: u64, last: u64) -> bool {
        self.effect != Effect::None && self.overlaps(start, last)
    }

    fn overlaps(&self, start: u64, last: u64) -> bool {
        match &self.slots {
            Some(slots) if !slots.ranges.is_empty() => slots.ranges[..self.ranges]
                .iter()
                .any(|range| range.start <= last && range.last >= start),
            _ => true,
        }
    }

    /// Whether another detached table can be noted.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| self.detached < slots.detached.len())
    }

    /// Whether any table could ever be noted.
    pub(super) fn has_slots(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| !slots.detached.is_empty())
    }

    /// Notes a detached table; the caller has checked that there is room.
    #[inline]
    pub(super) fn detach(&mut self, detached: Detached) {
        self.tables = true;
        self.effect = Effect::Stale;
        if let Some(slot) =
            self.slots.as_mut().and_then(|slots| slots.detached.get_mut(self.detached))
        {
            *slot = detached;
            self.detached += 1;
        }
    }

    pub(super) fn has_pending_room(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| self.pending < slots.pending.len())
    }

    pub(super) fn has_pending_slots(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| !slots.pending.is_empty())
    }

    pub(super) fn pend(&mut self, pending: Pending) {
        if let Some(slot) =
            self.slots.as_mut().and_then(|slots| slots.pending.get_mut(self.pending))
        {
            *slot = pending;
            self.pending += 1;
        }
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// The entry that was broken last, to be made now.
    pub(super) fn pop_pending(&mut self) -> Option<Pending> {
        let at = self.pending.checked_sub(1)?;
        self.pending = at;
        self.slots.as_ref()?.pending.get(at).copied()
    }

    pub(super) fn tables_changed(&mut self) {
        self.tables = true;
    }

    #[inline(always)]
    fn is_clear(&self) -> bool {
        self.effect == Effect::None && self.detached == 0 && self.pending == 0
    }

    /// What a completed invalidation leaves: the tables, and the entries to be made.
    #[inline(always)]
    fn invalidated(&mut self) {
        self.completed += 1;
        self.ranges = 0;
        self.newest = Stale::NOTHING;
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
        if let Some(slots) = &self.slots {
            (slots.report)(Leak {
                context: self.context,
                ranges: if self.effect == Effect::None { 0 } else { self.ranges.max(1) },
                subtrees: self.detached,
                frozen: self.pending,
            });
        }
    }
}

impl<'g> Gather<'g> {
    /// Whose translations.
    pub fn context(&self) -> Context {
        self.inner.context
    }

    /// The ranges to invalidate, in the order in which they changed; everything, where the caller
    /// lent no slot at all and something is stale.
    pub fn ranges(&self) -> &[Stale] {
        const EVERYTHING: &[Stale] = &[Stale { start: 0, last: u64::MAX }];
        match &self.inner.slots {
            Some(slots) if !slots.ranges.is_empty() => &slots.ranges[..self.inner.ranges],
            _ if self.inner.effect == Effect::None => &[],
            _ => EVERYTHING,
        }
    }

    /// Whether there is nothing to invalidate.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.inner.effect == Effect::None
    }

    /// Whether all that is left undone is to make hardware set accessed bits again.
    pub fn is_waivable(&self) -> bool {
        self.inner.effect <= Effect::Aged && self.inner.detached == 0 && self.inner.pending == 0
    }

    /// Whether entries that point at tables have changed: leaf-only invalidations do not suffice.
    pub fn tables_changed(&self) -> bool {
        self.inner.tables
    }

    /// A set of the levels of leaves that have changed, bit n for level n.
    pub fn levels(&self) -> u8 {
        self.inner.levels
    }

    /// Number of detached subtrees.
    pub fn detached(&self) -> usize {
        self.inner.detached
    }

    /// Number of broken entries that wait to be made.
    pub fn broken(&self) -> usize {
        self.inner.pending
    }

    /// Ends a gather whose duty another token has.
    #[inline(always)]
    pub(super) fn forget(mut self) {
        self.inner.invalidated();
    }

    /// Has `invalidate` do what is due, and returns the proof that it did.
    ///
    /// # Errors
    /// The gather, unchanged, with what `invalidate` failed of.
    #[inline(always)]
    pub fn complete<V: Invalidate>(
        self,
        invalidate: &mut V,
    ) -> Result<Completed<'g>, (Gather<'g>, V::Error)> {
        if !self.is_empty()
            && let Err(error) = invalidate.invalidate(&self)
        {
            return Err((self, error));
        }
        let mut inner = self.inner;
        inner.invalidated();
        Ok(Completed { inner, since: None })
    }

    /// Lets pages look older than they are: completes a gather of cleared accessed bits without an
    /// invalidation.
    ///
    /// # Errors
    /// The gather, where more than that is due.
    pub fn waive(self) -> Result<Completed<'g>, Gather<'g>> {
        if !self.is_waivable() {
            return Err(self);
        }
        let mut inner = self.inner;
        inner.invalidated();
        Ok(Completed { inner, since: None })
    }
}

/// The proof that hardware has let go. Frames come out when software walkers have, too.
#[derive(Debug)]
#[must_use = "detached tables are lost if this is dropped"]
pub struct Completed<'g> {
    inner: Inner<'g>,
    since: Option<Mark>,
}

impl<'g> Completed<'g> {
    /// Number of detached subtrees whose frames wait.
    pub fn detached(&self) -> usize {
        self.inner.detached
    }

    /// The frames of the detached tables, one by one, once no software walker is left that could
    /// look at them. `tables` are those that the gather came from.
    ///
    /// # Errors
    /// The proof, to try again later, where such a walker is still under way, or where `tables`
    /// are others.
    pub fn reclaim<'t, F: Encode, I, O, M: TableMemory<F::Word>>(
        mut self,
        tables: &'t Tables<F, I, O, M>,
    ) -> Result<Reclaim<'t, 'g, F, I, O, M>, Completed<'g>> {
        if self.inner.root != tables.root {
            return Err(self);
        }
        if self.inner.detached > 0
            && let Some(walkers) = self.inner.walkers
        {
            let since = *self.since.get_or_insert_with(|| walkers.mark());
            if !walkers.have_left(since) {
                return Err(self);
            }
        }
        Ok(Reclaim { inner: self.inner, tables, path: [Scan::NONE; MAX_LEVELS], depth: 0 })
    }

    /// Goes on with the storage where no table was detached.
    ///
    /// # Errors
    /// The proof, where tables wait for [`reclaim`](Completed::reclaim).
    #[inline(always)]
    pub fn ready(self) -> Result<Ready<'g>, Completed<'g>> {
        if self.inner.detached > 0 {
            return Err(self);
        }
        Ok(Ready { inner: self.inner })
    }
}

/// A place in a detached subtree.
#[derive(Clone, Copy, Debug)]
struct Scan {
    table: u64,
    index: u64,
    start: u64,
    level: u8,
}

impl Scan {
    const NONE: Scan = Scan { table: 0, index: 0, start: 0, level: 0 };
}

/// Gives out the frames of detached tables, children first, each when it is asked for; nothing
/// else reads or writes them any more.
#[derive(Debug)]
#[must_use = "frames that are not taken out are lost"]
pub struct Reclaim<'t, 'g, F: Encode, I, O, M> {
    inner: Inner<'g>,
    tables: &'t Tables<F, I, O, M>,
    path: [Scan; MAX_LEVELS],
    depth: usize,
}

impl<'g, F: Encode, I, O, M: TableMemory<F::Word>> Reclaim<'_, 'g, F, I, O, M> {
    /// The next frame, of tables that nothing shares. Those that something may share, or may share
    /// tables below (the root of a removed view), stay for
    /// [`into_source`](Reclaim::into_source), which knows of them. `witness` sees every leaf that was
    /// in it, with the accessed and dirty bits that hardware left at the very last.
    ///
    /// # Errors
    /// [`Error::NotLent`] where a table is not in the memory; its subtree is lost.
    pub fn next_frame<W: Witness>(&mut self, witness: &mut W) -> Result<Option<Frame>, Error> {
        self.next_released(witness, None::<&fn(u64) -> bool>)
    }

    /// The next frame, passing by tables of which `last` says that another entry points at them.
    /// `None` knows of no such tables.
    fn next_released<W: Witness>(
        &mut self,
        witness: &mut W,
        last: Option<&impl Fn(u64) -> bool>,
    ) -> Result<Option<Frame>, Error> {
        let format = &self.tables.format;
        loop {
            let Some(at) = self.depth.checked_sub(1) else {
                let Some(left) = self.inner.detached.checked_sub(1) else { return Ok(None) };
                let Some(slots) = &self.inner.slots else { return Ok(None) };
                let Detached { table, level, start, shared } = slots.detached[left];
                if shared && last.is_none() {
                    return Ok(None);
                }
                self.inner.detached = left;
                if shared && last.is_some_and(|last| !last(table)) {
                    continue;
                }
                self.path[0] = Scan { table, index: 0, start, level };
                self.depth = 1;
                continue;
            };
            let Scan { table, index, start, level } = self.path[at];
            let count = self.tables.entries(level);
            if index as usize >= count || level == 0 && !W::WATCHES {
                self.depth = at;
                return Ok(Some(Frame::new(table, self.tables.table_bytes(level))));
            }
            let Some(cells) = self.tables.memory.table(table, count) else {
                self.depth = at;
                return Err(Error::NotLent { table });
            };
            for (index, cell) in cells.iter().enumerate().skip(index as usize) {
                let entry = F::Word::load(cell, Ordering::Acquire);
                let address = start + ((index as u64) << format.shift(level));
                match format.decode(entry, level) {
                    Decoded::Table { next } if level > 0 && last.is_none_or(|last| last(next)) => {
                        self.path[at].index = index as u64 + 1;
                        self.path[self.depth] =
                            Scan { table: next, index: 0, start: address, level: level - 1 };
                        self.depth += 1;
                        break;
                    }
                    Decoded::Leaf { .. } if W::WATCHES => {
                        let entry = format
                            .group(entry, level)
                            .and_then(|shift| around(format, cells, index, shift, level))
                            .map_or(entry, |(_, _, group)| format.inherit(entry, group));
                        witness.leaf(address, level, entry);
                    }
                    _ => {}
                }
                self.path[at].index = index as u64 + 1;
            }
        }
    }

    /// Gives every frame back to `source`.
    ///
    /// # Errors
    /// As [`next_frame`](Reclaim::next_frame); what was given back stays given back.
    pub fn into_source<S: super::FrameSource>(mut self, source: &S) -> Result<Ready<'g>, Error> {
        while let Some(frame) = self.next_released(&mut (), Some(&|table| source.release(table)))? {
            source.put(frame);
        }
        match self.finish() {
            Ok(ready) => Ok(ready),
            Err(_) => unreachable!("every frame was taken out"),
        }
    }

    /// The storage, once every frame has been taken out.
    ///
    /// # Errors
    /// `self`, where frames are left.
    pub fn finish(self) -> Result<Ready<'g>, Self> {
        if self.depth > 0 || self.inner.detached > 0 {
            return Err(self);
        }
        Ok(Ready { inner: self.inner })
    }
}

/// The proof of a completed invalidation with the storage, empty again: what
/// [`Cursor::resume`](super::Cursor::resume) goes on with.
#[derive(Debug)]
#[must_use = "a cursor waits for this"]
pub struct Ready<'g> {
    pub(super) inner: Inner<'g>,
}

impl<'g> Ready<'g> {
    /// Whether it is of the storage of this id.
    pub(super) fn is_of(&self, id: u64) -> bool {
        self.inner.id == id
    }

    /// Whether it proves an invalidation after this break.
    pub(super) fn covers(&self, broken: &Break) -> bool {
        self.inner.id == broken.id && self.inner.completed > broken.completed
    }

    /// The storage, for another cursor; `None` where broken entries wait to be made by
    /// [`Cursor::resume`](super::Cursor::resume).
    pub fn into_slots(mut self) -> Option<Slots<'g>> {
        if self.inner.pending > 0 {
            return None;
        }
        self.inner.slots.take()
    }
}
