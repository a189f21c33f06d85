//! Views: several roots that share subtrees, one a virtual processor or a purpose, as altp2m and EPT
//! hooks need.
//!
//! A table that several entries point at is counted by the frame source ([`Counted`]). A change of
//! one view first gives that view tables of its own, from the root down to where it changes
//! ([`Views::own`], [`Own`]); a change of all goes through the tables they share
//! ([`Views::all`]). A table is detached when its last entry goes, whichever view that was of.

use core::sync::atomic::Ordering;

use super::cursor::{Cell, Cursor};
use super::encode::{Effect, Encode};
use super::frames::FrameSource;
use super::gather::{Detached, Gather, Inner, Slots};
use super::memory::TableMemory;
use super::word::{Mode, Word};
use super::{Error, Tables};
use crate::address::Address;
use crate::format::Decoded;
use crate::invalidate::Context;

mod counted;
mod own;

pub use counted::Counted;
pub use own::{Own, Owned};

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
    /// [`Error::NoSlot`] where no slot is free or `from` is none, [`Error::NoFrame`],
    /// [`Error::OutOfReach`], and [`Error::Uncounted`] where the source keeps no counts.
    pub fn fork<S: FrameSource>(
        &mut self,
        from: usize,
        context: Context,
        source: &S,
    ) -> Result<usize, Error> {
        let number = self.views.iter().position(Option::is_none).ok_or(Error::NoSlot)?;
        let tables = &self.get(from).ok_or(Error::NoSlot)?.tables;
        let frame = tables.take(source, 0, tables.top)?;
        let copied = tables
            .cells(frame.address(), tables.top)
            .and_then(|cells| duplicate(tables, source, tables.root, tables.top, cells, false));
        if let Err(error) = copied {
            source.put(frame);
            return Err(error);
        }
        tables.memory.publish(frame.address(), frame.bytes());
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
    pub fn remove<'g>(
        &mut self,
        view: usize,
        slots: Slots<'g>,
    ) -> Result<Ended<'g, F, I, O, M>, Error> {
        if slots.detached.is_empty() {
            return Err(Error::NoSlot);
        }
        let slot = self.views.get_mut(view).ok_or(Error::NoSlot)?;
        let taken = slot.take().ok_or(Error::NoSlot)?;
        let Tables { top, root, .. } = taken.tables;
        let bits = taken.tables.format.input_bits();
        // The sign of the last address may be extended, and the whole view is invalidated anyway.
        let start = taken.tables.address_of(0);
        let plain = taken.tables.inputs == 1u64.checked_shl(bits).unwrap_or(0);
        let last = if plain { taken.tables.inputs - 1 } else { u64::MAX };
        let mut inner = Inner::new(slots, taken.context, root, None);
        inner.note(if plain { start } else { 0 }, last, !0, Effect::Stale);
        // Tables below it may be other views': its reference is given up with the frame.
        inner.detach(Detached { table: root, level: top, start, shared: true });
        self.ended = true;
        Ok(Ended { view: taken, gather: Gather { inner } })
    }

    /// Divides `bytes` bytes from `start` into stretches with one lowest table each, every place of such a
    /// table once, and names the views that share it. What all views must be asked (harvests of
    /// accessed and dirty bits) or told is done once a segment, in the segment's view.
    ///
    /// # Errors
    /// [`Error::OutsideInput`] where the range is not wholly translatable, and those of `each`.
    pub fn segments(
        &self,
        start: I,
        bytes: u64,
        mut each: impl FnMut(Segment<I>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(less) = bytes.checked_sub(1) else { return Ok(()) };
        // The last byte of all is that of an upper half: what comes after it is no number.
        let last = start.raw().checked_add(less).ok_or(Error::OutsideInput { at: u64::MAX })?;
        for (number, view) in self.views.iter().enumerate() {
            let Some(view) = view else { continue };
            let mut at = start.raw();
            loop {
                let lowest = |view: &View<F, I, O, M>| {
                    let input = view.tables.strip(at).ok_or(Error::OutsideInput { at })?;
                    view.tables.lowest(input).map(|(table, _, level)| (table, level, input))
                };
                let (table, level, input) = lowest(view)?;
                let end =
                    at.saturating_add(view.tables.stretch(table, level, input)? - 1).min(last);
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
                    let bytes = end - at + 1;
                    each(Segment { start: I::new(at), bytes, views, view: number })?;
                }
                if end == last {
                    break;
                }
                at = end + 1;
            }
        }
        Ok(())
    }
}

impl<F: Encode, I, O, M: TableMemory<F::Word>> Tables<F, I, O, M> {
    /// How many bytes from `input` on the table of `level` at `table` is the lowest for: up to an entry
    /// that points at a table, or to its end.
    fn stretch(&self, table: u64, level: u8, input: u64) -> Result<u64, Error> {
        let format = &self.format;
        let cells = self.cells(table, level)?;
        let page = 1u64 << format.shift(level);
        let index = (input / page) as usize & (cells.len() - 1);
        let is_lowest = |cell: &&Cell<F>| {
            let entry = F::Word::load(cell, Ordering::Acquire);
            level == 0 || !matches!(format.decode(entry, level), Decoded::Table { .. })
        };
        let others = cells[index + 1..].iter().take_while(is_lowest).count() as u64;
        Ok((others + 1) * page - input % page)
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
