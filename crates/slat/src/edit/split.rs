//! Splitting: the same translation by smaller pages.

use core::sync::atomic::Ordering;

use super::cursor::{Advance, Cell, Cursor, Operation, Verb};
use super::encode::{Effect, Encode};
use super::fill::fill;
use super::frames::{Frame, FrameSource};
use super::memory::TableMemory;
use super::sync::fence;
use super::word::{Mode, Word};
use super::{Error, Tables};
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
    /// accessed and dirty state of the whole. Groups count as larger pages and are unfolded. What
    /// sticks out of the range is split as well.
    ///
    /// # Errors
    /// Of the range; stepping yields [`Error::NoFrame`], [`Error::OutOfReach`], [`Error::Grouped`],
    /// [`Error::Indivisible`], and [`Error::NoSlot`] where a page must be broken and no slot was lent for
    /// that.
    pub fn split(&self, start: I, bytes: u64, to: u8) -> Result<Operation<Split>, Error> {
        self.operation(start, bytes, Split { to })
    }

    /// A table of leaves one level lower that say what the leaf `entry` of `level` at `at` says,
    /// which maps to `base`.
    #[inline]
    pub(super) fn children(
        &self,
        at: u64,
        level: u8,
        entry: u64,
        base: u64,
    ) -> Result<Children<'t, F>, Error> {
        let tables = self.tables;
        let format = &tables.format;
        let child = level - 1;
        let template = format.demote(entry, level);
        if format.decode(template, child) == Decoded::Empty {
            return Err(Error::Indivisible { at: self.address(at), entry });
        }
        let last = base + ((1u64 << format.shift(level)) - (1u64 << format.shift(child)));
        let leaf = template & !format.place(base, child);
        let probe = leaf | format.place(last, child);
        if !matches!(format.decode(probe, child), Decoded::Leaf { base, .. } if base == last) {
            return Err(Error::OutsideOutput { output: last });
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
        Ok(Children { frame, cells, leaf: entry, level })
    }

    /// Replaces the leaf `entry` of `level` at `at` by a table of leaves one level lower.
    #[inline]
    pub(super) fn divide(&mut self, at: u64, level: u8, entry: u64) -> Result<Divided, Error> {
        let tables = self.tables;
        let format = &tables.format;
        let base = match format.decode(entry, level) {
            Decoded::Leaf { .. } if format.group(entry, level).is_some() => {
                return Ok(match self.unfold(at, level, entry)? {
                    // Its pages are not divided yet.
                    Divided::Broken => Divided::Invalidate,
                    done => done,
                });
            }
            Decoded::Leaf { base, .. } => base,
            _ => return Err(self.obstacle(at, entry)),
        };
        let breaks = F::BREAKS && format.breaks(entry, format.table(0, level), level);
        if breaks && !self.pending_room()? {
            return Ok(Divided::Invalidate);
        }
        let mut children = self.children(at, level, entry, base)?;
        let table = children.entry(format);
        if breaks {
            self.break_entry(at, level, |was| {
                children.inherit(tables, was);
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
                    children.inherit(tables, now);
                    current = now;
                }
                Err(now) => {
                    self.source.put(children.frame);
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

/// A table that says what a leaf says, not linked yet.
pub(super) struct Children<'t, F: Encode> {
    frame: Frame,
    cells: &'t [Cell<F>],
    /// The leaf, of this level.
    leaf: u64,
    level: u8,
}

impl<F: Encode> Children<'_, F> {
    /// The entry that links it.
    pub(super) fn entry(&self, format: &F) -> u64 {
        format.table(self.frame.address(), self.level)
    }

    /// The leaf was `now` when it was replaced: every part gets its accessed and dirty state.
    #[inline]
    pub(super) fn inherit<I, O, M: TableMemory<F::Word>>(
        &mut self,
        tables: &Tables<F, I, O, M>,
        now: u64,
    ) {
        if now != self.leaf {
            self.leaf = now;
            self.inherit_all(tables);
        }
    }

    #[cold]
    fn inherit_all<I, O, M: TableMemory<F::Word>>(&self, tables: &Tables<F, I, O, M>) {
        for cell in self.cells {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            let entry = tables.format.inherit(entry, self.leaf);
            F::Word::store(cell, entry, Ordering::Relaxed);
        }
        fence(Ordering::Release);
        tables.memory.publish(self.frame.address(), self.frame.bytes());
    }
}

/// Unfolds the first group of a table that lies in a range, or passes the table.
#[inline(never)]
fn ungroup<F, I, O, M, S, X>(
    cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
    at: u64,
    end: u64,
    level: u8,
    shift: u32,
) -> Result<Advance, Error>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    let format = &cursor.tables.format;
    let page = 1u64 << format.shift(level);
    // The range may begin and end amid pages of this level.
    let first = at & !(page - 1);
    let cells = cursor.run(first, cursor.entry_end(end - 1, level), level);
    let entries = cells.iter().map(|cell| F::Word::load(cell, Ordering::Acquire));
    let mut places = entries.zip((first..).step_by(page as usize));
    let found = places.find(|(entry, _)| {
        format.group(*entry, level).is_some()
            && matches!(format.decode(*entry, level), Decoded::Leaf { .. })
    });
    let Some((entry, place)) = found else {
        return Ok(Advance::To(cursor.table_end(at, level).min(end)));
    };
    let next = ((place | ((1u64 << shift) - 1)) + 1).min(end);
    Ok(match cursor.unfold(place, level, entry)? {
        // What is broken counts as done: its pages are made by themselves.
        Divided::Done | Divided::Broken => Advance::To(next),
        Divided::Invalidate if place > at => Advance::To(place),
        Divided::Invalidate => Advance::Invalidate,
    })
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
            // Whatever is in this table is small enough, but for groups.
            return match format.group_shift(level) {
                Some(shift) => ungroup(cursor, at, end, level, shift),
                None => Ok(Advance::To(cursor.table_end(at, level).min(end))),
            };
        }
        match format.decode(entry, level) {
            Decoded::Leaf { .. } => match cursor.divide(at, level, entry)? {
                // Its parts are small enough, where it was no group that was unfolded.
                Divided::Done if level == self.to + 1 && format.group(entry, level).is_none() => {
                    Ok(Advance::To(next))
                }
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
