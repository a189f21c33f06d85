//! Changing what leaves say: permissions, memory type, accessed and dirty state.

use core::sync::atomic::Ordering;

use super::Error;
use super::cursor::{Advance, Cell, Cursor, Operation, Verb};
use super::encode::{Change, Encode};
use super::frames::FrameSource;
use super::group::{count, member, survey};
use super::memory::TableMemory;
use super::split::Divided;
use super::witness::Witness;
use super::word::{Mode, Word};
use crate::address::Address;
use crate::format::{Decoded, MAX_LEVELS};
use crate::translate::Permissions;

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
    /// yields [`Error::NoFrame`], [`Error::Grouped`], [`Error::Frozen`], and [`Error::NoSlot`] where an
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

/// Makes the change and returns the entry as it was at that moment.
#[inline(always)]
fn change_one<W: Word, X: Mode>(cell: &W::Atomic, entry: u64, change: Change) -> u64 {
    if !X::LIVE {
        W::store(cell, change.apply(entry), Ordering::Relaxed);
        return entry;
    }
    if change.set == 0 {
        return W::fetch_and(cell, !change.clear);
    }
    if change.clear == 0 {
        return W::fetch_or(cell, change.set);
    }
    let mut entry = entry;
    while let Err(now) = W::compare_exchange(cell, entry, change.apply(entry)) {
        entry = now;
    }
    entry
}

/// Changes a run whose entries are leaves that differ in address and history alone, as most runs
/// are: what one of them says then holds for all. `None` where they are not.
#[inline(always)]
fn uniform<F: Encode, X: Mode>(
    format: &F,
    cells: &[Cell<F>],
    change: Change,
    level: u8,
) -> Option<Changed> {
    let varying = format.varying(level);
    let first = F::Word::load(cells.first()?, Ordering::Relaxed);
    let mut differing = 0;
    for cell in cells {
        differing |= F::Word::load(cell, Ordering::Relaxed) ^ first;
    }
    let new = change.apply(first);
    if differing & !varying != 0
        || (change.clear | change.set) & varying != 0
        || new == first
        || !matches!(format.decode(first, level), Decoded::Leaf { .. })
        || format.group(first, level).is_some()
        || F::BREAKS && format.breaks(first, new, level)
    {
        return None;
    }
    for cell in cells {
        if X::LIVE {
            change_one::<F::Word, X>(cell, F::Word::load(cell, Ordering::Relaxed), change);
        } else {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            F::Word::store(cell, change.apply(entry), Ordering::Relaxed);
        }
    }
    Some(Changed {
        lost: first & !new,
        gained: new & !first,
        first: 0,
        last: cells.len() - 1,
        count: cells.len(),
    })
}

/// What changed in one run of cells.
struct Changed {
    lost: u64,
    gained: u64,
    first: usize,
    last: usize,
    /// How many cells were worked on; fewer than there are where something is in the way.
    count: usize,
}

impl<W: Witness> Adjust<W> {
    #[inline(always)]
    fn selects<F: Encode>(&self, format: &F, entry: u64) -> bool {
        match self.which {
            Which::All => true,
            Which::Accessed => format.is_accessed(entry),
            Which::Dirty => format.is_dirty(entry),
        }
    }

    /// Changes the leaves of a run until something else than a leaf or nothing is met.
    #[inline(always)]
    fn change_run<F: Encode, X: Mode>(
        &mut self,
        format: &F,
        cells: &[Cell<F>],
        start: u64,
        level: u8,
    ) -> Changed {
        let change = self.changes[usize::from(level)];
        let shift = format.shift(level);
        if self.which == Which::All
            && !W::WATCHES
            && let Some(changed) = uniform::<F, X>(format, cells, change, level)
        {
            return changed;
        }
        let mut changed = Changed { lost: 0, gained: 0, first: usize::MAX, last: 0, count: 0 };
        let mut index = 0;
        while let Some(cell) = cells.get(index) {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            match format.decode(entry, level) {
                Decoded::Leaf { .. } => {
                    if let Some(group) = format.group(entry, level) {
                        let at = start + ((index as u64) << shift);
                        let rest = &cells[index..];
                        match self.change_group::<F, X>(format, rest, at, group, level) {
                            Some((lost, gained)) => {
                                let next = index + count(format, group, level);
                                if lost | gained != 0 {
                                    changed.lost |= lost;
                                    changed.gained |= gained;
                                    changed.first = changed.first.min(index);
                                    changed.last = next - 1;
                                }
                                index = next;
                                changed.count = next;
                                continue;
                            }
                            None => break,
                        }
                    }
                    let new = change.apply(entry);
                    if new != entry && self.selects(format, entry) {
                        if F::BREAKS && format.breaks(entry, new, level) {
                            break;
                        }
                        let was = change_one::<F::Word, X>(cell, entry, change);
                        let new = change.apply(was);
                        changed.lost |= was & !new;
                        changed.gained |= new & !was;
                        changed.first = changed.first.min(index);
                        changed.last = index;
                        if W::WATCHES {
                            self.witness.leaf(start + ((index as u64) << shift), level, was);
                        }
                    }
                }
                Decoded::Empty if entry == format.frozen() => break,
                Decoded::Table { .. } if level > 0 => break,
                _ => {}
            }
            index += 1;
            changed.count = index;
        }
        changed
    }

    /// Changes every entry of the group that begins with the first of `cells`, and returns which
    /// bits were lost and gained. `None`, with nothing changed, where that is not the whole of a
    /// group or it must be broken.
    #[inline(never)]
    fn change_group<F: Encode, X: Mode>(
        &mut self,
        format: &F,
        cells: &[Cell<F>],
        start: u64,
        shift: u32,
        level: u8,
    ) -> Option<(u64, u64)> {
        if start & ((1u64 << shift) - 1) != 0 {
            return None;
        }
        let cells = cells.get(..count(format, shift, level))?;
        let leaf = survey(format, cells, shift, level)?;
        let change = self.changes[usize::from(level)];
        let new = change.apply(leaf);
        if new == leaf || !self.selects(format, leaf) {
            return Some((0, 0));
        }
        if F::BREAKS && format.breaks(leaf, new, level) {
            return None;
        }
        // In place only where the entries of a group change in the same bits as leaves do.
        let first = F::Word::load(cells.first()?, Ordering::Relaxed);
        let alone = change.apply(format.ungrouped(first, 0, level));
        if format.grouped(alone, level) != change.apply(first) {
            return None;
        }
        let (mut lost, mut gained, mut sum) = (0, 0, leaf);
        for (index, cell) in cells.iter().enumerate() {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            let was = change_one::<F::Word, X>(cell, entry, change);
            let now = change.apply(was);
            lost |= was & !now;
            gained |= now & !was;
            sum = format.inherit(sum, format.ungrouped(was, index as u64, level));
        }
        self.tell(format, start, sum, cells.len(), level);
        Some((lost, gained))
    }

    /// Shows the witness every page of a group, as the group was.
    fn tell<F: Encode>(&mut self, format: &F, start: u64, leaf: u64, count: usize, level: u8) {
        if let Decoded::Leaf { base, .. } = format.decode(leaf, level)
            && W::WATCHES
        {
            for index in 0..count as u64 {
                let at = start + (index << format.shift(level));
                self.witness.leaf(at, level, member(format, leaf, base, index, level));
            }
        }
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
