//! Views: several roots that share subtrees, one a virtual processor or a purpose, as altp2m and EPT
//! hooks need.
//!
//! A table that several entries point at is counted by the frame source ([`Counted`]). A change of
//! one view first gives that view tables of its own, from the root down to where it changes
//! ([`Views::own`], [`Own`]); a change of all goes through the tables they share
//! ([`Views::all`]). A table is detached when its last entry goes, whichever view that was of.

use core::sync::atomic::{AtomicU64, Ordering};

use super::cursor::{Advance, Cell, Cursor, Operation, Verb};
use super::encode::{Effect, Encode};
use super::frames::{Frame, FrameSource};
use super::gather::{Detached, Gather, Ready, Slots};
use super::memory::TableMemory;
use super::word::{Mode, Word};
use super::{Error, NotResumed, Step, Tables};
use crate::address::Address;
use crate::format::Decoded;
use crate::invalidate::Context;

/// A frame source that counts the entries which point at each table, in words that the caller lends:
/// one for every 4 KiB from `base` on.
#[derive(Debug)]
pub struct Counted<'a, S> {
    source: S,
    base: u64,
    words: &'a [AtomicU64],
}

impl<'a, S: FrameSource> Counted<'a, S> {
    /// Counts for the frames of `source`, of which the lowest is at `base`.
    pub const fn new(source: S, base: u64, words: &'a [AtomicU64]) -> Self {
        Counted { source, base, words }
    }

    /// How many entries point at the table (1 for a root); 0 where none does, or it is not counted.
    pub fn count(&self, table: u64) -> u64 {
        self.word(table).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn word(&self, table: u64) -> Option<&AtomicU64> {
        let number = table.checked_sub(self.base)? >> 12;
        self.words.get(usize::try_from(number).ok()?)
    }
}

impl<S: FrameSource> FrameSource for Counted<'_, S> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let frame = self.source.take(bytes)?;
        match self.word(frame.address()) {
            Some(word) => {
                word.store(1, Ordering::Release);
                Some(frame)
            }
            None => {
                self.source.put(frame);
                None
            }
        }
    }

    fn put(&self, frame: Frame) {
        if let Some(word) = self.word(frame.address()) {
            word.store(0, Ordering::Release);
        }
        self.source.put(frame);
    }

    fn share(&self, table: u64) -> bool {
        self.word(table).is_some_and(|word| word.fetch_add(1, Ordering::AcqRel) > 0)
    }

    fn is_shared(&self, table: u64) -> bool {
        self.count(table) > 1
    }

    fn release(&self, table: u64) -> bool {
        self.word(table).is_none_or(|word| word.fetch_sub(1, Ordering::AcqRel) <= 1)
    }
}

/// Which views, by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ViewSet(u64);

impl ViewSet {
    /// Whether view `number` is one of them.
    pub const fn contains(self, number: usize) -> bool {
        number < 64 && self.0 >> number & 1 != 0
    }

    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn insert(&mut self, number: usize) {
        self.0 |= 1u64.checked_shl(number as u32).unwrap_or(0);
    }
}

/// One view: its tables, and the id that hardware tags its translations with.
#[derive(Debug)]
pub struct View<F: Encode, I, O, M> {
    tables: Tables<F, I, O, M>,
    context: Context,
}

impl<F: Encode, I, O, M> View<F, I, O, M> {
    /// Its tables.
    pub fn tables(&self) -> &Tables<F, I, O, M> {
        &self.tables
    }

    /// Its id.
    pub fn context(&self) -> Context {
        self.context
    }
}

/// Several roots over shared tables, at most 64.
///
/// Changes exclude each other (`&mut self`); processors run on every view meanwhile. Gathers of
/// several changes may be under way at a time: a table that a view let go of counts as pointed at until
/// that view's own gather has been reclaimed, so that no other view changes it in place, or gives its
/// frame out, while hardware may still walk it. That takes a slot for a table.
///
/// The exception is break-before-make (Arm ARM D8.17.1): two changes of the same addresses, in one view
/// or in tables that views share, come one after the other, the second only when the gather of the
/// first has been completed. A change does not know of another's gather.
#[derive(Debug)]
pub struct Views<'v, F: Encode, I, O, M> {
    views: &'v mut [Option<View<F, I, O, M>>],
    /// A view was removed: processors may run on it until its gather is completed, which is not
    /// seen from here.
    ended: bool,
}

/// A stretch of addresses whose lowest table is one and the same for some views.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<I> {
    /// First address.
    pub start: I,
    /// How many bytes.
    pub bytes: u64,
    /// The views that share it: a change in one of them ([`Views::all`]) is a change in all, and
    /// accessed and dirty bits that are found there are of all of them together.
    pub views: ViewSet,
    /// One of them.
    pub view: usize,
}

/// A view that is none any more.
#[derive(Debug)]
pub struct Ended<'g, F: Encode, I, O, M> {
    /// The view, for [`Completed::reclaim`](super::Completed::reclaim), which wants to see its tables.
    pub view: View<F, I, O, M>,
    /// Once it is completed no processor may run on the view.
    pub gather: Gather<'g>,
}

/// Gives a view tables of its own where it is to be changed. Made by [`Cursor::own`].
#[derive(Clone, Copy, Debug)]
pub struct Own {
    edges: bool,
}

impl<'v, F, I, O, M> Views<'v, F, I, O, M>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word> + Clone,
{
    /// Views in `slots` (all `None`, at most 64 are used), the first of them `tables`, whose frames
    /// came from a source that counts.
    ///
    /// # Errors
    /// [`Error::NoSlot`] where there are no slots.
    pub fn new(
        slots: &'v mut [Option<View<F, I, O, M>>],
        tables: Tables<F, I, O, M>,
        context: Context,
    ) -> Result<Self, Error> {
        let most = slots.len().min(64);
        let views = &mut slots[..most];
        *views.first_mut().ok_or(Error::NoSlot)? = Some(View { tables, context });
        Ok(Views { views, ended: false })
    }

    /// The view of this number.
    pub fn get(&self, view: usize) -> Option<&View<F, I, O, M>> {
        self.views.get(view)?.as_ref()
    }

    /// All views.
    pub fn set(&self) -> ViewSet {
        let mut set = ViewSet::default();
        for (number, view) in self.views.iter().enumerate() {
            if view.is_some() {
                set.insert(number);
            }
        }
        set
    }

    /// A new view that says what `from` says, with a root of its own over the same tables. No
    /// processor has to be told of it.
    ///
    /// # Errors
    /// [`Error::NoSlot`] where no slot is free or `from` is none, [`Error::NoFrame`], and
    /// [`Error::Uncounted`] where the source keeps no counts.
    pub fn fork<S: FrameSource>(
        &mut self,
        from: usize,
        context: Context,
        source: &S,
    ) -> Result<usize, Error> {
        let number = self.views.iter().position(Option::is_none).ok_or(Error::NoSlot)?;
        let tables = &self.get(from).ok_or(Error::NoSlot)?.tables;
        let bytes = tables.table_bytes(tables.top);
        let frame = source.take(bytes).ok_or(Error::NoFrame { at: 0, bytes })?;
        let copied = tables
            .cells(frame.address(), tables.top)
            .and_then(|cells| duplicate(tables, source, tables.root, tables.top, cells, false));
        if let Err(error) = copied {
            source.put(frame);
            return Err(error);
        }
        tables.memory.publish(frame.address(), bytes);
        let tables = Tables::adopt(*tables.format(), frame.address(), tables.memory.clone())?;
        self.views[number] = Some(View { tables, context });
        Ok(number)
    }

    /// Begins a change of one view, of `bytes` bytes from `start`: gives it tables of its own there.
    ///
    /// # Errors
    /// As [`Tables::cursor`]; [`Error::NoSlot`] where there is no such view.
    pub fn own<'t, 'g, S: FrameSource, X: Mode>(
        &'t mut self,
        view: usize,
        source: &'t S,
        slots: Slots<'g>,
        start: I,
        bytes: u64,
    ) -> Result<Owned<'t, 'g, F, I, O, M, S, X>, Error> {
        const { assert!(!X::SHARED, "views are changed by one thread at a time") };
        let View { tables, context } =
            self.views.get_mut(view).and_then(Option::as_mut).ok_or(Error::NoSlot)?;
        let cursor = tables.cursor::<S, X>(source, *context, slots, start, bytes)?;
        let own = cursor.own(start, bytes, false)?;
        Ok(Owned { cursor, own })
    }

    /// A cursor for what changes in every view that shares the tables of `view`: its gather is of
    /// every context, unless there is one view and no other was ever removed (a processor may run on
    /// that one until its gather is completed). A table that views share stays: what it maps is
    /// unmapped in it, larger pages are neither mapped nor collapsed in its place. Where other views
    /// have tables of their own, the same is to be done in them ([`Views::segments`] says where).
    ///
    /// # Errors
    /// As [`Tables::cursor`]; [`Error::NoSlot`] where there is no such view.
    pub fn all<'t, 'g, S: FrameSource, X: Mode>(
        &'t mut self,
        view: usize,
        source: &'t S,
        slots: Slots<'g>,
        start: I,
        bytes: u64,
    ) -> Result<Cursor<'t, 'g, F, I, O, M, S, X>, Error> {
        const { assert!(!X::SHARED, "views are changed by one thread at a time") };
        let several = self.set().len() > 1 || self.ended;
        let View { tables, context } =
            self.views.get_mut(view).and_then(Option::as_mut).ok_or(Error::NoSlot)?;
        let context = if several { Context::All } else { *context };
        let mut cursor = tables.cursor::<S, X>(source, context, slots, start, bytes)?;
        cursor.through = true;
        Ok(cursor)
    }

    /// Ends a view: its root is detached, and with it every table that no other view has.
    /// [`Reclaim::into_source`](super::Reclaim::into_source) tells which those are. What the other
    /// views are told afterwards ([`Views::all`]) is invalidated in every context: this view's
    /// processors may still hold it.
    ///
    /// # Errors
    /// [`Error::NoSlot`] where there is no such view, or `slots` has no place for a table.
    pub fn remove<'g, S: FrameSource>(
        &mut self,
        view: usize,
        source: &S,
        slots: Slots<'g>,
    ) -> Result<Ended<'g, F, I, O, M>, Error> {
        if slots.detached.is_empty() {
            return Err(Error::NoSlot);
        }
        let slot = self.views.get_mut(view).ok_or(Error::NoSlot)?;
        let mut taken = slot.take().ok_or(Error::NoSlot)?;
        let (top, root) = (taken.tables.top, taken.tables.root);
        let whole = 1u64 << taken.tables.format.input_bits();
        let context = taken.context;
        // A cursor over the first page: the root is detached as a whole.
        let page = 1u64 << taken.tables.format.shift(0);
        let mut cursor =
            taken.tables.cursor::<S, super::Live>(source, context, slots, I::new(0), page)?;
        cursor.note(0, whole, !0, Effect::Stale);
        // Tables below it may be other views': its reference is given up with the frame.
        cursor.gather().detach(Detached { table: root, level: top, start: 0, shared: true });
        let gather = cursor.finish();
        self.ended = true;
        Ok(Ended { view: taken, gather })
    }

    /// Divides `bytes` bytes from `start` into stretches with one lowest table each, every such table
    /// once, and names the views that share it. What all views must be asked (harvests of
    /// accessed and dirty bits) or told is done once a segment, in the segment's view.
    pub fn segments(
        &self,
        start: I,
        bytes: u64,
        mut each: impl FnMut(Segment<I>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = start.raw().checked_add(bytes).ok_or(Error::OutsideInput { at: u64::MAX })?;
        for (number, view) in self.views.iter().enumerate() {
            let Some(view) = view else { continue };
            let mut at = start.raw();
            while at < end {
                let lowest = |view: &View<F, I, O, M>| {
                    let input = view.tables.strip(at).ok_or(Error::OutsideInput { at })?;
                    view.tables.lowest(input).map(|(table, _, level)| (table, level))
                };
                let (table, level) = lowest(view)?;
                let reach = 1u64 << view.tables.reach(level).min(63);
                let next = (at & !(reach - 1)).saturating_add(reach).min(end);
                let mut views = ViewSet::default();
                for (other, with) in self.views.iter().enumerate() {
                    if let Some(with) = with
                        && lowest(with)?.0 == table
                    {
                        views.insert(other);
                    }
                }
                // The first view that has the table speaks for it.
                if views.0.trailing_zeros() as usize == number {
                    each(Segment { start: I::new(at), bytes: next - at, views, view: number })?;
                }
                at = next;
            }
        }
        Ok(())
    }
}

/// Copies the table at `table` into `cells`, counting its children once more.
///
/// `live`: hardware may go on setting bits in the original until it has let go of it. What may be
/// written is dirty in the copy then: a bit that is set too late is lost to it.
fn duplicate<F, I, O, M, S>(
    tables: &Tables<F, I, O, M>,
    source: &S,
    table: u64,
    level: u8,
    cells: &[Cell<F>],
    live: bool,
) -> Result<(), Error>
where
    F: Encode,
    M: TableMemory<F::Word>,
    S: FrameSource,
{
    let format = &tables.format;
    let original = tables.cells(table, level)?;
    for (index, (from, to)) in original.iter().zip(cells).enumerate() {
        let mut entry = F::Word::load(from, Ordering::Acquire);
        let failed = match format.decode(entry, level) {
            Decoded::Table { next } if level > 0 && !source.share(next) => Some(Error::Uncounted),
            Decoded::Leaf { .. } => {
                if live && format.hardware_dirty() && format.permissions_of(entry, level).write {
                    entry = format.soil().apply(entry);
                }
                None
            }
            _ if entry == format.frozen() => {
                Some(Error::Frozen { at: (index as u64) << format.shift(level) })
            }
            _ => None,
        };
        if let Some(error) = failed {
            // What was counted is not pointed at after all.
            for to in &cells[..index] {
                let entry = F::Word::load(to, Ordering::Relaxed);
                if let Decoded::Table { next } = format.decode(entry, level)
                    && level > 0
                {
                    source.release(next);
                }
            }
            return Err(error);
        }
        F::Word::store(to, entry, Ordering::Relaxed);
    }
    Ok(())
}

/// A view that is getting tables of its own, and then changes.
#[derive(Debug)]
#[must_use = "the gather is lost with it; turn it into its cursor"]
pub struct Owned<'t, 'g, F: Encode, I, O, M, S, X> {
    cursor: Cursor<'t, 'g, F, I, O, M, S, X>,
    own: Operation<Own>,
}

impl<'t, 'g, F, I, O, M, S, X> Owned<'t, 'g, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    /// Copies at most `budget` tables. What has been copied translates as before.
    ///
    /// # Errors
    /// [`Error::NoFrame`], [`Error::Frozen`], [`Error::Uncounted`], and [`Error::NoSlot`] where no slot
    /// was lent for a detached table or, with break-before-make, for a broken entry.
    pub fn step(&mut self, budget: u32) -> Result<Step<'g>, Error> {
        self.cursor.step(&mut self.own, budget)
    }

    /// Goes on after [`Step::Invalidate`].
    ///
    /// # Errors
    /// As [`Cursor::resume`].
    #[expect(clippy::result_large_err, reason = "a refused token comes back by value")]
    pub fn resume(&mut self, ready: Ready<'g>) -> Result<(), NotResumed<'g>> {
        self.cursor.resume(ready)
    }

    /// The cursor, for changes of this view alone, once every table is its own.
    ///
    /// # Errors
    /// `self`, where some are not yet.
    #[expect(clippy::result_large_err, reason = "a refused token comes back by value")]
    pub fn into_cursor(self) -> Result<Cursor<'t, 'g, F, I, O, M, S, X>, Self> {
        if self.own.is_done() { Ok(self.cursor) } else { Err(self) }
    }

    /// Gives it up: what was copied stays copied.
    pub fn finish(self) -> Gather<'g> {
        self.cursor.finish()
    }
}

impl<F, I, O, M, S, X> Cursor<'_, '_, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    /// Replaces every table that translates some of `bytes` bytes from `start` and that another entry
    /// points at by a copy, from the root down; with `edges` only those that translate something
    /// else as well. Nothing is translated otherwise than before.
    ///
    /// Where hardware sets dirty bits, whatever may be written is dirty in the copy: hardware may still
    /// reach the original, until the gather is completed. With break-before-make each table that is
    /// copied takes an invalidation: its entry is broken, and points at the copy afterwards.
    ///
    /// # Errors
    /// Of the range; stepping yields [`Error::NoFrame`], [`Error::Frozen`], [`Error::Uncounted`], and
    /// [`Error::NoSlot`] where no slot was lent for a detached table or a broken entry.
    pub fn own(&self, start: I, bytes: u64, edges: bool) -> Result<Operation<Own>, Error> {
        self.operation(start, bytes, Own { edges })
    }

    /// Replaces the table `next` (of `level - 1`) that the entry at `at` points at by a copy.
    fn copy(&mut self, at: u64, level: u8, entry: u64, next: u64) -> Result<Advance, Error> {
        let tables = self.tables;
        let format = &tables.format;
        let child = level - 1;
        // The entry with another table, and with whatever else it says.
        let pointing = |entry: u64, table: u64| {
            let bits = |table| format.table(table, level) ^ format.table(0, level);
            entry & !bits(next) | bits(table)
        };
        let breaks = F::BREAKS;
        if !self.room()? || breaks && !self.pending_room()? {
            return Ok(Advance::Invalidate);
        }
        let frame = self.frame(at, child)?;
        let made = tables
            .cells(frame.address(), child)
            .and_then(|cells| duplicate(tables, self.source, next, child, cells, X::LIVE));
        if let Err(error) = made {
            self.source.put(frame);
            return Err(match error {
                Error::Frozen { .. } => Error::Frozen { at: self.address(at) },
                error => error,
            });
        }
        tables.memory.publish(frame.address(), frame.bytes());
        if breaks {
            self.break_entry(at, level, |was| pointing(was, frame.address()));
        } else {
            let mut entry = entry;
            loop {
                let new = pointing(entry, frame.address());
                match X::replace::<F::Word>(self.cell(at, level), entry, new) {
                    Ok(()) => break,
                    // Hardware may set an accessed bit.
                    Err(now) if format.decode(now, level) == (Decoded::Table { next }) => {
                        entry = now;
                    }
                    Err(now) => {
                        abandon(tables, self.source, frame, child);
                        return Err(self.obstacle(at, now));
                    }
                }
            }
            self.publish(at, level, 1);
        }
        self.detach(at, next, child);
        Ok(if breaks { Advance::Invalidate } else { Advance::To(at) })
    }
}

/// Gives back a copy that was never linked.
fn abandon<F, I, O, M, S>(tables: &Tables<F, I, O, M>, source: &S, frame: Frame, level: u8)
where
    F: Encode,
    M: TableMemory<F::Word>,
    S: FrameSource,
{
    for cell in tables.cells(frame.address(), level).unwrap_or(&[]) {
        let entry = F::Word::load(cell, Ordering::Relaxed);
        if let Decoded::Table { next } = tables.format.decode(entry, level)
            && level > 0
        {
            source.release(next);
        }
    }
    source.put(frame);
}

impl<F: Encode> Verb<F> for Own {
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error> {
        let top = cursor.tables.top;
        for level in (1..=top).rev() {
            let (found, entry) = cursor.locate(at, level)?;
            let next = match cursor.tables.format.decode(entry, found) {
                Decoded::Table { next } if found == level => next,
                _ if entry == cursor.tables.format.frozen() => {
                    return Err(cursor.obstacle(at, entry));
                }
                _ => return Ok(Advance::To(cursor.entry_end(at, found).min(end))),
            };
            if self.edges && cursor.covers(at, end, level) {
                return Ok(Advance::To(cursor.entry_end(at, level).min(end)));
            }
            if cursor.source.is_shared(next) {
                return cursor.copy(at, level, entry, next);
            }
        }
        Ok(Advance::To(cursor.table_end(at, 0).min(end)))
    }
}
