//! Collapsing: the same translation by a larger page.

use core::sync::atomic::Ordering;

use super::Error;
use super::cursor::{Advance, Cell, Cursor, Operation, Verb};
use super::encode::Encode;
use super::frames::FrameSource;
use super::group::count;
use super::hollow::{Given, supplant};
use super::memory::TableMemory;
use super::word::{Mode, Word};
use crate::address::Address;
use crate::format::Decoded;

/// Makes larger pages of smaller ones. Made by [`Cursor::collapse`].
#[derive(Clone, Copy, Debug)]
pub struct Collapse {
    to: u8,
    collapsed: u64,
}

impl Collapse {
    /// How many larger pages were made.
    pub fn collapsed(&self) -> u64 {
        self.collapsed
    }
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
    /// Makes one page of level `to` out of each table in the range whose entries are all leaves one
    /// level lower, consecutive, aligned, and alike but for accessed and dirty state; others stay
    /// as they are, and so does what sticks out of the range.
    ///
    /// The page is accessed if one of its parts was. It is dirty if one was, and, where hardware
    /// sets dirty state while this is done, also whenever it may be written: a part that is dirtied
    /// through an older translation could not be seen any more.
    ///
    /// # Errors
    /// Of the range; stepping yields [`Error::NoSlot`].
    pub fn collapse(&self, start: I, bytes: u64, to: u8) -> Result<Operation<Collapse>, Error> {
        self.operation(start, bytes, Collapse { to: to.clamp(1, self.tables.top), collapsed: 0 })
    }

    /// The leaf of `level` that says what the table at `next` says, if there is one.
    fn promoted(&self, next: u64, level: u8) -> Result<Option<u64>, Error> {
        let format = &self.tables.format;
        let child = level - 1;
        let cells = self.tables.cells(next, child)?;
        let Some(cell) = cells.first() else { return Ok(None) };
        // What a group says, its entries say by themselves as well.
        let alone = |cell: &Cell<F>, index: u64| {
            let entry = F::Word::load(cell, Ordering::Acquire);
            match format.group(entry, child) {
                Some(shift) => {
                    let within = count(format, shift, child) as u64 - 1;
                    format.ungrouped(entry, index & within, child)
                }
                None => entry,
            }
        };
        let first = alone(cell, 0);
        let bytes = 1u64 << format.shift(child);
        let base = match format.decode(first, child) {
            Decoded::Leaf { base, shift }
                if u32::from(shift) == format.shift(child)
                    && base & ((1u64 << format.shift(level)) - 1) == 0 =>
            {
                base
            }
            _ => return Ok(None),
        };
        let rest = first & !format.place(base, child);
        let mut sum = first;
        for (index, cell) in cells.iter().enumerate() {
            let entry = alone(cell, index as u64);
            let expected = rest | format.place(base + index as u64 * bytes, child);
            if (entry ^ expected) & !format.history(first) != 0 {
                return Ok(None);
            }
            sum = format.inherit(sum, entry);
        }
        let mut leaf = format.promote(sum, child);
        if X::LIVE && format.hardware_dirty() && format.permissions_of(leaf, level).write {
            leaf = format.soil().apply(leaf);
        }
        Ok(match format.decode(leaf, level) {
            Decoded::Leaf { base: promoted, shift }
                if promoted == base && u32::from(shift) == format.shift(level) =>
            {
                Some(leaf)
            }
            _ => None,
        })
    }
}

impl<F: Encode> Verb<F> for Collapse {
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error> {
        let format = &cursor.tables.format;
        let (level, entry) = cursor.locate(at, self.to)?;
        let next_at = cursor.entry_end(at, level).min(end);
        if level > self.to || !cursor.covers(at, end, level) {
            return Ok(Advance::To(next_at));
        }
        let Decoded::Table { next } = format.decode(entry, level) else {
            return Ok(Advance::To(next_at));
        };
        if cursor.through && cursor.source.is_shared(next) {
            return Ok(Advance::To(next_at));
        }
        // What the entry restricts, holds of everything below it: a leaf in its place says less.
        if (entry ^ format.table(next, level)) & !format.history(entry) != 0 {
            return Ok(Advance::To(next_at));
        }
        let Some(leaf) = cursor.promoted(next, level)? else { return Ok(Advance::To(next_at)) };
        match supplant(cursor, at, level, entry, next, leaf)? {
            Given::Way => {
                self.collapsed += 1;
                Ok(Advance::To(next_at))
            }
            Given::Again | Given::No => Ok(Advance::To(at)),
            Given::Invalidate => Ok(Advance::Invalidate),
        }
    }
}
