//! A cursor over a range of tables, and operations that advance in bounded steps.

use core::marker::PhantomData;

use super::encode::{Effect, Encode};
use super::frames::{Frame, FrameSource};
use super::gather::{Break, Detached, Gather, Inner, Ready, Slots};
use super::memory::TableMemory;
use super::pending::Pending;
use super::walkers::Walkers;
use super::word::{Mode, Word};
use super::{Error, Tables};
use crate::address::Address;
use crate::format::{Decoded, MAX_LEVELS};
use crate::invalidate::Context;

mod operation;
mod place;

pub(super) use operation::Advance;
pub use operation::{NotResumed, Operation, Step, Verb};

/// The cell of one entry.
pub(super) type Cell<F> = <<F as Encode>::Word as Word>::Atomic;

/// Addresses, as software writes them, of the cursor's range under one table of level 1: none where
/// they are not known, or the gather is away.
#[derive(Clone, Copy, Debug, Default)]
struct Near {
    first: u64,
    bytes: u64,
    table: u64,
}

/// Changes one range of tables. Made by [`Tables::cursor`] or [`Shared::cursor`](super::Shared).
///
/// An operation is made (which checks it and changes nothing), and then stepped:
///
/// ```
/// # use slat::edit::*;
/// # use slat::{Address, invalidate::Invalidate};
/// # fn example<F: Encode, I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource>(
/// #     cursor: &mut Cursor<'_, '_, F, I, O, M, S, Live>, start: I, bytes: u64,
/// #     invalidate: &mut impl Invalidate, tables: &Tables<F, I, O, M>, source: &S,
/// # ) -> Result<(), Error> {
/// let mut operation = cursor.unmap(start, bytes, ())?;
/// loop {
///     match cursor.step(&mut operation, 16)? {
///         Step::Done => break,
///         Step::Yield => { /* let others run; operation.bytes_done() have changed */ }
///         Step::Invalidate(gather) => {
///             let Ok(completed) = gather.complete(invalidate) else { panic!("not flushed") };
///             let Ok(reclaim) = completed.reclaim(tables) else { panic!("still walked") };
///             cursor.resume(reclaim.into_source(source)?)?;
///         }
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the gather is lost with the cursor; finish it"]
pub struct Cursor<'t, 'g, F: Encode, I, O, M, S, X> {
    pub(super) tables: &'t Tables<F, I, O, M>,
    pub(super) source: &'t S,
    /// `None` while the caller has it for an invalidation.
    inner: Option<Inner<'g>>,
    /// What it changes changes for every view that shares the tables: no table that something else
    /// points at is taken out from above.
    pub(super) through: bool,
    /// The id of the gather that the caller has.
    given: u64,
    /// How many more tables the step may work on.
    pub(super) left: u32,
    /// How many it might, when it began.
    pub(super) budget: u32,
    /// The tables that translate `here`, valid from level `depth` up.
    path: [u64; MAX_LEVELS],
    depth: u8,
    here: u64,
    /// Where the next page is found at a glance.
    near: Near,
    /// The range, as software writes its addresses.
    first: u64,
    last: u64,
    /// What such an address is more than the tables' input.
    offset: u64,
    mode: PhantomData<X>,
}

impl<'t, 'g, F, I, O, M, S, X> Cursor<'t, 'g, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    #[inline(always)]
    pub(super) fn new(
        tables: &'t Tables<F, I, O, M>,
        source: &'t S,
        context: Context,
        slots: Slots<'g>,
        walkers: Option<&'g Walkers<'g>>,
        first: u64,
        bytes: u64,
    ) -> Result<Self, Error> {
        let page = 1u64 << tables.format.shift(0);
        let last = bytes
            .checked_sub(1)
            .filter(|_| (first | bytes) & (page - 1) == 0)
            .ok_or(Error::Misaligned { value: if bytes == 0 { 0 } else { first | bytes } })
            .and_then(|less| first.checked_add(less).ok_or(Error::OutsideInput { at: u64::MAX }))?;
        let input = tables.strip(first).ok_or(Error::OutsideInput { at: first })?;
        let input_last = tables.strip(last).ok_or(Error::OutsideInput { at: last })?;
        if input_last.checked_sub(input) != Some(bytes - 1) {
            return Err(Error::OutsideInput { at: last });
        }
        Ok(Cursor {
            tables,
            source,
            inner: Some(Inner::new(slots, context, tables.root, walkers)),
            through: false,
            given: 0,
            left: 0,
            budget: 0,
            path: [tables.root; MAX_LEVELS],
            depth: tables.top,
            here: input,
            near: Near::default(),
            first,
            last,
            offset: first.wrapping_sub(input),
            mode: PhantomData,
        })
    }

    /// Advances `operation` by at most `budget` tables, each with its entries. A budget below the
    /// tables of a subtree that is to be frozen or looked through as a whole has it taken out table
    /// by table instead; where faults may map, the upper ones of it stay then ([`Cursor::unmap`]).
    ///
    /// # Errors
    /// Why the operation cannot pass [`Operation::bytes_done`]. Nothing beyond that has changed;
    /// the same operation may be stepped again once the cause is gone.
    pub fn step<V: Verb<F>>(
        &mut self,
        operation: &mut Operation<V>,
        budget: u32,
    ) -> Result<Step<'g>, Error> {
        if self.inner.is_none() {
            return Err(Error::AwaitingInvalidation);
        }
        (self.left, self.budget) = (budget, budget);
        while operation.at < operation.end {
            if self.left == 0 {
                return Ok(Step::Yield);
            }
            self.left -= 1;
            match operation.verb.advance(self, operation.at, operation.end) {
                Ok(Advance::To(at)) => operation.at = at,
                Ok(Advance::Invalidate) => return self.give(),
                // What this cursor froze itself thaws when it is resumed.
                Err(Error::Frozen { .. }) if F::BREAKS && self.gather().pending() > 0 => {
                    return self.give();
                }
                Err(error) => return Err(error),
            }
        }
        if F::BREAKS && self.gather().pending() > 0 {
            return self.give();
        }
        Ok(Step::Done)
    }

    /// Hands out what has been gathered so far, to be invalidated before the cursor goes on by
    /// [`resume`](Cursor::resume): for an operation with broken entries that is abandoned, say.
    /// `None` where the gather is away already.
    pub fn flush(&mut self) -> Option<Gather<'g>> {
        let mut inner = self.inner.take()?;
        self.near.bytes = 0;
        self.given = inner.identify();
        Some(Gather { inner })
    }

    /// The tables that it changes.
    pub fn tables(&self) -> &'t Tables<F, I, O, M> {
        self.tables
    }

    /// Hands the gather out.
    #[cold]
    fn give(&mut self) -> Result<Step<'g>, Error> {
        self.flush().map(Step::Invalidate).ok_or(Error::AwaitingInvalidation)
    }

    /// Goes on after [`Step::Invalidate`]: makes what was broken, and takes the storage back.
    ///
    /// # Errors
    /// [`Error::Foreign`] with the proof, where it is of a gather that another cursor gave out;
    /// [`Error::Occupied`] where somebody wrote to an entry that was broken, [`Error::NotLent`].
    #[expect(clippy::result_large_err, reason = "a refused token comes back by value")]
    pub fn resume(&mut self, ready: Ready<'g>) -> Result<(), NotResumed<'g>> {
        if self.inner.is_some() || !ready.is_of(self.given) {
            return Err(NotResumed { error: Error::Foreign, ready: Some(ready) });
        }
        let mut inner = ready.inner;
        let tables = self.tables;
        let outcome = inner.make(tables, self.offset);
        inner.abandon(|pending| {
            // A table of parts of a page that went with the table above: nobody has seen it.
            if let Decoded::Table { next } = tables.format.decode(pending.entry, pending.level) {
                self.source.put(Frame::new(next, tables.table_bytes(pending.level - 1)));
            }
        });
        self.inner = Some(inner);
        outcome.map_err(|error| NotResumed { error, ready: None })
    }

    /// What is to be invalidated, and the detached tables. An empty gather may be dropped.
    ///
    /// Entries that are broken or frozen ([`Gather::broken`]) are made by
    /// [`Completed::reclaim`](super::Completed::reclaim), whether the cursor is still there or not.
    /// Another cursor does not know of this gather: with break-before-make (Arm ARM D8.17.1) nothing
    /// may be mapped at its addresses before it is completed.
    #[inline(always)]
    pub fn finish(mut self) -> Gather<'g> {
        match self.inner.take() {
            Some(inner) => Gather { inner },
            // The caller has the gather: it is completed there.
            None => Gather {
                inner: Inner::new(
                    Slots { ranges: &mut [], detached: &mut [], pending: &mut [], report: |_| {} },
                    Context::All,
                    self.tables.root,
                    None,
                ),
            },
        }
    }

    /// The operation of `verb` on `bytes` bytes from `start`.
    #[inline(always)]
    pub(super) fn operation<V>(
        &self,
        start: I,
        bytes: u64,
        verb: V,
    ) -> Result<Operation<V>, Error> {
        let start = start.raw();
        let page = (1u64 << self.tables.format.shift(0)) - 1;
        if bytes == 0 || (start | bytes) & page != 0 {
            return Err(Error::Misaligned { value: if bytes == 0 { 0 } else { start | bytes } });
        }
        if start < self.first || start > self.last || bytes - 1 > self.last - start {
            let at = if start < self.first || start > self.last { start } else { self.last };
            return Err(Error::OutsideInput { at });
        }
        let at = self.input(start);
        Ok(Operation { verb, start: at, at, end: at + bytes })
    }

    /// The address that software writes for an input.
    #[inline(always)]
    pub(super) fn address(&self, input: u64) -> u64 {
        input.wrapping_add(self.offset)
    }

    /// The input that an address of this cursor's range is.
    #[inline(always)]
    pub(super) fn input(&self, address: u64) -> u64 {
        address.wrapping_sub(self.offset)
    }

    /// Refuses what changes entries while the gather is away: there is nowhere to note it.
    #[inline(always)]
    pub(super) fn attended(&self) -> Result<(), Error> {
        if self.inner.is_some() { Ok(()) } else { Err(Error::AwaitingInvalidation) }
    }

    /// The gather; the caller has checked that it is here.
    #[inline(always)]
    pub(super) fn gather(&mut self) -> &mut Inner<'g> {
        match &mut self.inner {
            Some(inner) => inner,
            None => unreachable!("no verb runs while the gather is away"),
        }
    }

    /// Notes that the translations of inputs `start..end` may be stale.
    #[inline(always)]
    pub(super) fn note(&mut self, start: u64, end: u64, levels: u8, effect: Effect) {
        if effect != Effect::None {
            let (first, last) = (self.address(start), self.address(end - 1));
            self.gather().note(first, last, levels, effect);
        }
    }

    /// Whether hardware may still act on older entries of `at..end`: with break-before-make they may
    /// not be made anew before that is invalidated.
    #[inline(always)]
    pub(super) fn is_stale(&mut self, at: u64, end: u64) -> bool {
        let (first, last) = (self.address(at), self.address(end - 1));
        self.gather().is_stale(first, last)
    }

    /// A frame for a table of this level.
    #[inline(always)]
    pub(super) fn frame(&self, at: u64, level: u8) -> Result<Frame, Error> {
        self.tables.take(self.source, self.address(at), level)
    }

    /// Why a leaf was expected and is not there.
    #[cold]
    pub(super) fn obstacle(&self, at: u64, entry: u64) -> Error {
        let at = self.address(at);
        if entry == self.tables.format.frozen() {
            Error::Frozen { at }
        } else {
            Error::Occupied { at, entry }
        }
    }

    /// Whether a table may be detached now; else what to do first.
    #[inline(always)]
    pub(super) fn room(&mut self) -> Result<bool, Error> {
        if self.gather().has_room() {
            Ok(true)
        } else if self.gather().has_slots() {
            Ok(false)
        } else {
            Err(Error::NoSlot)
        }
    }

    /// Whether an entry may be broken now; else what to do first.
    pub(super) fn pending_room(&mut self) -> Result<bool, Error> {
        if self.gather().has_pending_room() {
            Ok(true)
        } else if self.gather().has_pending_slots() {
            Ok(false)
        } else {
            Err(Error::NoSlot)
        }
    }

    /// The break half of break-before-make: freezes the entry, and has `make` compute, from what
    /// it was at the last, the entry to make after the invalidation. The caller has checked that
    /// there is room.
    pub(super) fn break_entry(&mut self, at: u64, level: u8, make: impl FnOnce(u64) -> u64) -> u64 {
        let was = self.freeze(at, level, 1);
        let entry = make(was);
        let format = &self.tables.format;
        let links = matches!(format.decode(entry, level), Decoded::Table { .. } if level > 0);
        let pending = Pending { at, level, entry, count: 1, links, ..Pending::default() };
        self.gather().pend(pending);
        let start = at & !((1u64 << self.tables.format.shift(level)) - 1);
        self.note(start, self.entry_end(at, level), 1 << level, Effect::Stale);
        was
    }

    /// Notes that a leaf of `level`, of `bytes` from `start`, was broken, be it into a table.
    pub(super) fn note_break(&mut self, start: u64, bytes: u64, level: u8) {
        self.note(start, start + bytes, 1 << level, Effect::Stale);
        self.gather().tables_changed();
    }

    /// The mark by which a proof tells that it came after a break.
    pub(super) fn about_to_break(&mut self) -> Result<Break, Error> {
        self.inner.as_mut().map(Inner::about_to_break).ok_or(Error::AwaitingInvalidation)
    }

    /// Notes that entries which point at tables have changed.
    pub(super) fn tables_changed(&mut self) {
        self.gather().tables_changed();
    }

    /// The input of the tables that an address of this cursor's range is.
    #[inline(always)]
    pub(super) fn input_within(&self, at: I) -> Result<u64, Error> {
        let at = at.raw();
        if at < self.first || at > self.last {
            return Err(Error::OutsideInput { at });
        }
        Ok(self.input(at))
    }

    /// Notes the table at `next`, whose entries are of `level`, as detached from under `at`.
    #[inline(always)]
    pub(super) fn detach(&mut self, at: u64, next: u64, level: u8) {
        let start = at & !((1u64 << self.tables.reach(level)) - 1);
        let end = start + (1u64 << self.tables.reach(level));
        let address = self.address(start);
        self.note(start, end, ((2u16 << level) - 1) as u8, Effect::Stale);
        // Where another entry points at it, the count goes down only when hardware has let go of it
        // by this one: whoever counts last may then give the frame out, whatever they invalidated.
        let shared = self.source.is_shared(next);
        if !shared {
            self.source.release(next);
        }
        self.gather().detach(Detached { table: next, level, start: address, shared });
    }
}
