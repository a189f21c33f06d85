//! Splitting: the same translation by smaller pages.

use core::sync::atomic::{Ordering, fence};

use super::Error;
use super::cursor::{Advance, Cell, Cursor, Operation, Verb};
use super::encode::{Effect, Encode};
use super::frames::FrameSource;
use super::map::fill;
use super::memory::TableMemory;
use super::word::{Mode, Word};
use crate::address::Address;
use crate::format::Decoded;

/// Splits larger pages of a range. Made by [`Cursor::split`].
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// The level that pages have at most when it is done.
    to: u8,
}

/// What became of a page that was to be divided.
pub(super) enum Divided {
    /// A table of smaller pages is in its place.
    Done,
    /// It is broken, and the table will be made after the invalidation.
    Broken,
    /// Not without an invalidation first.
    Invalidate,
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
    /// Splits every page of `bytes` bytes from `start` that is larger than a leaf of level `to`.
    /// The translation, permissions and type of every byte stay as they are; each part has the
    /// accessed and dirty state of the whole. Pages that stick out of the range are split as well.
    ///
    /// # Errors
    /// Of the range; stepping yields [`Error::NoFrame`] and [`Error::Grouped`].
    pub fn split(&self, start: I, bytes: u64, to: u8) -> Result<Operation<Split>, Error> {
        self.operation(start, bytes, Split { to })
    }

    /// Replaces the leaf `entry` of `level` at `at` by a table of leaves one level lower.
    #[inline]
    pub(super) fn divide(&mut self, at: u64, level: u8, entry: u64) -> Result<Divided, Error> {
        let tables = self.tables;
        let format = &tables.format;
        let base = match format.decode(entry, level) {
            Decoded::Leaf { .. } if format.group(entry, level).is_some() => {
                return Err(Error::Grouped { at: self.address(at), entry });
            }
            Decoded::Leaf { base, .. } => base,
            _ => return Err(self.obstacle(at, entry)),
        };
        let child = level - 1;
        let template = format.demote(entry, level);
        let last = base + ((1u64 << format.shift(level)) - (1u64 << format.shift(child)));
        let leaf = template & !format.place(base, child);
        let probe = leaf | format.place(last, child);
        if !matches!(format.decode(probe, child), Decoded::Leaf { base, .. } if base == last) {
            return Err(Error::OutsideOutput { output: last });
        }
        let breaks = F::BREAKS && format.breaks(entry, format.table(0, level), level);
        if breaks && !self.pending_room()? {
            return Ok(Divided::Invalidate);
        }
        let frame = self.frame(at, child)?;
        let cells = match tables.cells(frame.address(), child) {
            Ok(cells) => cells,
            Err(error) => {
                self.source.put(frame);
                return Err(error);
            }
        };
        fill(format, cells, leaf, base, child);
        tables.memory.publish(frame.address(), frame.bytes());
        let table = format.table(frame.address(), level);
        if breaks {
            self.break_entry(at, level, |cursor, was| {
                if was != entry {
                    inherit(format, cells, was);
                    cursor.tables.memory.publish(frame.address(), frame.bytes());
                }
                table
            });
            self.gather().tables_changed();
            return Ok(Divided::Broken);
        }
        let mut current = entry;
        loop {
            match X::replace::<F::Word>(self.cell(at, level), current, table) {
                Ok(()) => break,
                // Hardware set an accessed or dirty bit: every part gets it.
                Err(now) if (now ^ entry) & !format.history(entry) == 0 => {
                    inherit(format, cells, now);
                    current = now;
                }
                Err(now) => {
                    self.source.put(frame);
                    return Err(self.obstacle(at, now));
                }
            }
        }
        self.publish(at, level, 1);
        let start = at & !((1u64 << format.shift(level)) - 1);
        self.note(start, self.entry_end(at, level), 1 << level, Effect::Stale);
        Ok(Divided::Done)
    }
}

/// Adds the accessed and dirty state of `from` to every leaf of a table that nobody uses yet.
#[cold]
fn inherit<F: Encode>(format: &F, cells: &[Cell<F>], from: u64) {
    for cell in cells {
        let entry = F::Word::load(cell, Ordering::Relaxed);
        F::Word::store(cell, format.inherit(entry, from), Ordering::Relaxed);
    }
    fence(Ordering::Release);
}

impl<F: Encode> Verb<F> for Split {
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error> {
        let format = &cursor.tables.format;
        let (level, entry) = cursor.locate(at, self.to)?;
        let next = cursor.entry_end(at, level).min(end);
        if level <= self.to {
            // Whatever is in this table is small enough.
            return Ok(Advance::To(cursor.table_end(at, level).min(end)));
        }
        match format.decode(entry, level) {
            Decoded::Leaf { .. } => match cursor.divide(at, level, entry)? {
                Divided::Done => Ok(Advance::To(at)),
                // What is broken counts as done where its parts are small enough.
                Divided::Broken if level == self.to + 1 => Ok(Advance::To(next)),
                Divided::Broken | Divided::Invalidate => Ok(Advance::Invalidate),
            },
            _ if entry == format.frozen() => Err(cursor.obstacle(at, entry)),
            _ => Ok(Advance::To(next)),
        }
    }
}
