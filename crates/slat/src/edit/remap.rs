//! Remapping: the same pages at other output addresses.

use super::Error;
use super::cursor::{Advance, Cursor, Operation, Verb};
use super::encode::{Effect, Encode};
use super::frames::FrameSource;
use super::memory::TableMemory;
use super::split::Divided;
use super::witness::Witness;
use super::word::Mode;
use crate::address::Address;
use crate::format::Decoded;

/// Moves the pages of a range. Made by [`Cursor::remap`].
#[derive(Clone, Copy, Debug)]
pub struct Remap<W> {
    /// Output address less input address.
    delta: u64,
    witness: W,
}

impl<W> Remap<W> {
    /// The witness.
    pub fn into_witness(self) -> W {
        self.witness
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
    /// Makes every leaf of `bytes` bytes from `start` map to `output` and what follows it; holes
    /// stay holes, and all else that a leaf says stays. A page is split where only a part of it is
    /// asked for, or where its new place is not aligned to it; a group is unfolded. `witness` sees each leaf that
    /// changes, as it was: its dirty state is that of the old place.
    ///
    /// # Errors
    /// Of the ranges; stepping yields [`Error::OutsideOutput`], those of a
    /// [`split`](Cursor::split), [`Error::Frozen`], and [`Error::NoSlot`] where a page must be broken and
    /// no slot was lent for that.
    pub fn remap<W: Witness>(
        &self,
        start: I,
        output: O,
        bytes: u64,
        witness: W,
    ) -> Result<Operation<Remap<W>>, Error> {
        let output = output.raw();
        if output & ((1u64 << self.tables.format.shift(0)) - 1) != 0 {
            return Err(Error::Misaligned { value: output });
        }
        if output.checked_add(bytes.wrapping_sub(1)).is_none() {
            return Err(Error::OutsideOutput { output: u64::MAX });
        }
        let mut operation = self.operation(start, bytes, Remap { delta: 0, witness })?;
        operation.verb.delta = output.wrapping_sub(operation.span().0);
        Ok(operation)
    }
}

impl<F: Encode, W: Witness> Verb<F> for Remap<W> {
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error> {
        let format = &cursor.tables.format;
        let (level, entry) = cursor.locate(at, 0)?;
        let next = cursor.entry_end(at, level).min(end);
        let old = match format.decode(entry, level) {
            Decoded::Leaf { .. } if format.group(entry, level).is_some() => {
                return Ok(match cursor.unfold(at, level, entry)? {
                    Divided::Done => Advance::To(at),
                    Divided::Broken | Divided::Invalidate => Advance::Invalidate,
                });
            }
            Decoded::Leaf { base, .. } => base,
            _ if entry == format.frozen() => return Err(cursor.obstacle(at, entry)),
            _ => return Ok(Advance::To(next)),
        };
        let within = (1u64 << format.shift(level)) - 1;
        let base = at.wrapping_add(self.delta);
        if level > 0 && (!cursor.covers(at, end, level) || base & within != 0) {
            if old | at & within == base {
                return Ok(Advance::To(next));
            }
            return Ok(match cursor.divide(at, level, entry)? {
                Divided::Done => Advance::To(at),
                Divided::Broken | Divided::Invalidate => Advance::Invalidate,
            });
        }
        if old == base {
            return Ok(Advance::To(next));
        }
        let moved = |entry: u64| entry & !format.place(old, level) | format.place(base, level);
        let new = moved(entry);
        if !matches!(format.decode(new, level), Decoded::Leaf { base: found, .. } if found == base)
        {
            return Err(Error::OutsideOutput { output: base });
        }
        let was = if F::BREAKS && format.breaks(entry, new, level) {
            if !cursor.pending_room()? {
                return Ok(Advance::Invalidate);
            }
            cursor.break_entry(at, level, moved)
        } else {
            let mut entry = entry;
            while let Err(now) = X::replace::<F::Word>(cursor.cell(at, level), entry, moved(entry))
            {
                if (now ^ entry) & !format.history(entry) != 0 {
                    return Err(cursor.obstacle(at, now));
                }
                entry = now;
            }
            cursor.publish(at, level, 1);
            cursor.note(at, next, 1 << level, Effect::Stale);
            entry
        };
        if W::WATCHES {
            self.witness.leaf(cursor.address(at), level, was);
        }
        Ok(Advance::To(next))
    }
}
