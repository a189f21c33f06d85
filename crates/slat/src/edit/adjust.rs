//! Changing what leaves say: permissions, memory type, accessed and dirty state.

use super::Error;
use super::cursor::{Advance, Cursor, Operation, Verb};
use super::encode::{Change, Encode};
use super::frames::FrameSource;
use super::group::count;
use super::memory::TableMemory;
use super::split::Divided;
use super::witness::Witness;
use super::word::Mode;
use crate::address::Address;
use crate::format::{Decoded, MAX_LEVELS};
use crate::translate::Permissions;

mod run;

/// Which leaves an [`Adjust`] changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// All.
    All,
    /// Those accessed since they were last aged.
    Accessed,
    /// Those written through since they were last cleaned.
    Dirty,
}

/// Changes bits of the leaves of a range. Made by [`Cursor::protect`], [`Cursor::retype`],
/// [`Cursor::clean`] and [`Cursor::age`].
#[derive(Clone, Copy, Debug)]
pub struct Adjust<W> {
    /// By level.
    changes: [Change; MAX_LEVELS],
    which: Which,
    witness: W,
}

impl<W> Adjust<W> {
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
    /// Gives every leaf of `bytes` bytes from `start` these permissions; holes stay holes, and all
    /// else that a leaf says stays, accessed and dirty state included. A page of which only a part
    /// is asked for is split, unless it has the permissions already. `witness` sees each leaf that
    /// changes, as it was.
    ///
    /// # Errors
    /// Of the range; [`Error::Refused`] where the format cannot encode the permissions; stepping
    /// yields those of a [`split`](Cursor::split), [`Error::Frozen`], and [`Error::NoSlot`] where an
    /// entry must be broken and no slot was lent for that.
    #[inline]
    pub fn protect<W: Witness>(
        &self,
        start: I,
        bytes: u64,
        permissions: Permissions,
        witness: W,
    ) -> Result<Operation<Adjust<W>>, Error> {
        let format = &self.tables.format;
        self.adjust(start, bytes, Which::All, witness, |level| {
            Ok(format.permit(permissions, level)?)
        })
    }

    /// Gives every leaf of `bytes` bytes from `start` this memory type, otherwise as
    /// [`protect`](Cursor::protect).
    ///
    /// # Errors
    /// As [`protect`](Cursor::protect).
    pub fn retype<W: Witness>(
        &self,
        start: I,
        bytes: u64,
        memory: F::Memory,
        witness: W,
    ) -> Result<Operation<Adjust<W>>, Error> {
        let format = &self.tables.format;
        self.adjust(start, bytes, Which::All, witness, |level| Ok(format.retype(memory, level)?))
    }

    /// Clears the dirty state of every dirty leaf of `bytes` bytes from `start`; `witness` sees
    /// each of them. A write before the gather is completed may go unseen, one after it cannot: the
    /// page that `witness` saw is to be copied after that.
    ///
    /// # Errors
    /// As [`protect`](Cursor::protect).
    pub fn clean<W: Witness>(
        &self,
        start: I,
        bytes: u64,
        witness: W,
    ) -> Result<Operation<Adjust<W>>, Error> {
        let change = self.tables.format.clean();
        self.adjust(start, bytes, Which::Dirty, witness, |_| Ok(change))
    }

    /// Clears the accessed state of every accessed leaf of `bytes` bytes from `start`; `witness`
    /// sees each of them. The gather may be waived.
    ///
    /// # Errors
    /// As [`protect`](Cursor::protect).
    pub fn age<W: Witness>(
        &self,
        start: I,
        bytes: u64,
        witness: W,
    ) -> Result<Operation<Adjust<W>>, Error> {
        let change = self.tables.format.age();
        self.adjust(start, bytes, Which::Accessed, witness, |_| Ok(change))
    }

    #[inline]
    fn adjust<W: Witness>(
        &self,
        start: I,
        bytes: u64,
        which: Which,
        witness: W,
        change: impl Fn(u8) -> Result<Change, Error>,
    ) -> Result<Operation<Adjust<W>>, Error> {
        let mut changes = [Change::default(); MAX_LEVELS];
        for level in 0..=self.tables.top {
            changes[usize::from(level)] = change(level)?;
        }
        self.operation(start, bytes, Adjust { changes, which, witness })
    }
}

impl<F: Encode, W: Witness> Verb<F> for Adjust<W> {
    #[inline]
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error> {
        let format = &cursor.tables.format;
        let (level, entry) = cursor.locate(at, 0)?;
        if level > 0 && !cursor.covers(at, end, level) {
            return self.part(cursor, at, end, level, entry);
        }
        let cells = cursor.run(at, end, level);
        let changed = self.change_run::<F, X>(format, cells, cursor.address(at), level);
        let shift = format.shift(level);
        if changed.first <= changed.last {
            let first = at + ((changed.first as u64) << shift);
            let last = at + ((changed.last as u64 + 1) << shift);
            cursor.publish(first, level, changed.last + 1 - changed.first);
            let effect = format.effect(changed.lost, changed.gained, level);
            cursor.note(first, last, 1 << level, effect);
        }
        if changed.count > 0 {
            return Ok(Advance::To(at + ((changed.count as u64) << shift)));
        }
        self.obstructed(cursor, at, end, level, entry)
    }
}

impl<W: Witness> Adjust<W> {
    /// Only a part of what the entry translates is asked for.
    #[inline(never)]
    fn part<F, I, O, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
        level: u8,
        entry: u64,
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
        let next = Ok(Advance::To(cursor.entry_end(at, level).min(end)));
        if entry == format.frozen() {
            return Err(cursor.obstacle(at, entry));
        }
        let Decoded::Leaf { .. } = format.decode(entry, level) else { return next };
        let said = cursor.with_group(at, level, entry)?;
        let same = self.changes[usize::from(level)].apply(said) == said;
        if same || !self.selects(format, said) {
            return next;
        }
        Ok(match cursor.divide(at, level, entry)? {
            Divided::Done => Advance::To(at),
            Divided::Broken | Divided::Invalidate => Advance::Invalidate,
        })
    }

    /// The first entry of a run could not be changed in place.
    #[inline(never)]
    fn obstructed<F, I, O, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
        level: u8,
        entry: u64,
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
        let change = self.changes[usize::from(level)];
        match format.decode(entry, level) {
            Decoded::Leaf { .. } if let Some(shift) = format.group(entry, level) => {
                let said = cursor.with_group(at, level, entry)?;
                let bytes = 1u64 << shift;
                if change.apply(said) == said || !self.selects(format, said) {
                    return Ok(Advance::To(((at | (bytes - 1)) + 1).min(end)));
                }
                if at & (bytes - 1) != 0 || end - at < bytes {
                    // A part of it is to differ from the rest.
                    return Ok(match cursor.unfold(at, level, entry)? {
                        Divided::Done => Advance::To(at),
                        Divided::Broken | Divided::Invalidate => Advance::Invalidate,
                    });
                }
                if !cursor.pending_room()? {
                    return Ok(Advance::Invalidate);
                }
                let was = cursor.break_group(at, level, shift, true, |was| change.apply(was));
                let count = count(format, shift, level);
                self.tell(format, cursor.address(at), was, count, level);
                Ok(Advance::To(at + bytes))
            }
            Decoded::Leaf { .. } => {
                // Only what must be broken is left.
                if !cursor.pending_room()? {
                    return Ok(Advance::Invalidate);
                }
                let was = cursor.break_entry(at, level, |was| change.apply(was));
                if W::WATCHES {
                    self.witness.leaf(cursor.address(at), level, was);
                }
                Ok(Advance::To(cursor.entry_end(at, level)))
            }
            _ => Err(cursor.obstacle(at, entry)),
        }
    }
}
