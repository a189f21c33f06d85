//! Tables of its own for a view that is to change.

use core::sync::atomic::Ordering;

use super::duplicate;
use crate::address::Address;
use crate::edit::cursor::{Advance, Cursor, Operation, Verb};
use crate::edit::encode::Encode;
use crate::edit::frames::{Frame, FrameSource};
use crate::edit::gather::{Gather, Ready};
use crate::edit::memory::TableMemory;
use crate::edit::word::{Mode, Word};
use crate::edit::{Error, NotResumed, Step, Tables};
use crate::format::Decoded;

/// Gives a view tables of its own where it is to be changed. Made by [`Cursor::own`].
#[derive(Clone, Copy, Debug)]
pub struct Own {
    edges: bool,
}

/// A view that is getting tables of its own, and then changes.
#[derive(Debug)]
#[must_use = "the gather is lost with it; turn it into its cursor"]
pub struct Owned<'t, 'g, F: Encode, I, O, M, S, X> {
    pub(super) cursor: Cursor<'t, 'g, F, I, O, M, S, X>,
    pub(super) own: Operation<Own>,
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
    /// [`Error::NoFrame`], [`Error::OutOfReach`], [`Error::Frozen`], [`Error::Uncounted`], and
    /// [`Error::NoSlot`] where no slot was lent for a detached table or, with break-before-make, for a
    /// broken entry.
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
    /// Of the range; stepping yields [`Error::NoFrame`], [`Error::OutOfReach`], [`Error::Frozen`],
    /// [`Error::Uncounted`], and [`Error::NoSlot`] where no slot was lent for a detached table or a broken entry.
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
