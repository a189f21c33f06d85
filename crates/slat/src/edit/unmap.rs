//! Unmapping: nothing where leaves, or anything else, was.

use core::sync::atomic::Ordering;

use super::Error;
use super::cursor::{Advance, Cell, Cursor, Operation, Verb};
use super::encode::{Effect, Encode};
use super::frames::FrameSource;
use super::group::count;
use super::memory::TableMemory;
use super::pending::Pending;
use super::split::Divided;
use super::witness::Witness;
use super::word::{Mode, Word};
use crate::address::Address;
use crate::format::Decoded;

/// The highest level of a table that is detached as a whole while faults may fill it: freezing
/// reads every entry below.
const SHARED_DETACH: u8 = 1;

/// Entries of the largest group: 2 MiB of 16 KiB pages (Arm ARM D8.7).
const MOST_IN_GROUP: usize = 128;

/// Whether what is removed must not be made anew before its invalidation (Arm ARM D8.17.1), and
/// others would: it is then frozen until the cursor is resumed with the proof.
pub(super) const fn breaks<F: Encode, X: Mode>() -> bool {
    F::BREAKS && X::SHARED
}

/// What stands where an entry was removed.
#[inline(always)]
pub(super) fn gone<F: Encode, X: Mode>(format: &F) -> u64 {
    if breaks::<F, X>() { format.frozen() } else { 0 }
}

/// Removes everything in a range. Made by [`Cursor::unmap`].
#[derive(Clone, Copy, Debug)]
pub struct Unmap<W> {
    witness: W,
}

impl<W> Unmap<W> {
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
    /// Removes every occupied entry of `bytes` bytes from `start`: leaves, and values that
    /// translate nothing, alike. A page of which only a part is asked for is split. A table whose
    /// whole range goes is detached by one exchange, with all below it.
    ///
    /// `witness` sees each leaf that is removed by itself, with its last accessed and dirty bits;
    /// those of detached tables are seen by [`Reclaim::next_frame`](super::Reclaim::next_frame),
    /// after hardware has let go of them.
    ///
    /// While faults may map ([`Faulting`](super::Faulting)), what is removed from tables with
    /// break-before-make stays frozen until its invalidation: the last step is then
    /// [`Step::Invalidate`](super::Step) too, and [`Cursor::resume`] makes the entries empty. A table is
    /// frozen as a whole before it goes, so that a step whose budget is no more than the entries of a
    /// table of level 1 and one (513, where there are 512) takes out tables of smallest pages alone:
    /// those above stay linked, empty, and serve the next mapping.
    ///
    /// # Errors
    /// Of the range; stepping yields those of a [`split`](Cursor::split) for a part of a page or group,
    /// [`Error::NoSlot`], [`Error::Frozen`] and, for a part of a larger value that is no leaf,
    /// [`Error::Occupied`].
    #[inline(always)]
    pub fn unmap<W: Witness>(
        &self,
        start: I,
        bytes: u64,
        witness: W,
    ) -> Result<Operation<Unmap<W>>, Error> {
        self.operation(start, bytes, Unmap { witness })
    }
}

impl<F: Encode, W: Witness> Verb<F> for Unmap<W> {
    #[inline(always)]
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error> {
        let tables = cursor.tables;
        let format = &tables.format;
        let mut floor = 0;
        let highest = match () {
            () if X::SHARED && cursor.affords(SHARED_DETACH) => SHARED_DETACH + 1,
            () if X::SHARED => 1,
            // Whether a table of pages is shared is seen at a glance.
            () if cursor.through => 1,
            () => tables.top,
        };
        while floor < highest.min(tables.top) && cursor.covers(at, end, floor + 1) {
            floor += 1;
        }
        if X::SHARED
            && highest <= SHARED_DETACH
            && tables.top > SHARED_DETACH
            && cursor.is_worn()
            && cursor.covers(at, end, SHARED_DETACH + 1)
        {
            // The next step may take out as a whole what this one has too little left for.
            cursor.left = 0;
            return Ok(Advance::To(at));
        }
        let (mut level, mut entry) = cursor.locate(at, floor)?;
        if cursor.through && cursor.is_kept(entry, level) {
            floor = 0;
            (level, entry) = cursor.locate(at, floor)?;
        }
        if level > floor && !cursor.covers(at, end, level) {
            return part(cursor, at, end, level, entry);
        }
        if breaks::<F, X>() && !cursor.pending_room()? {
            return Ok(Advance::Invalidate);
        }
        let gone = gone::<F, X>(format);
        let cells = cursor.run(at, end, level);
        let shift = format.shift(level);
        let mut reached = at;
        let mut removed = None;
        let mut rest = cells;
        // Where it ends before the last cell: up to where entries went, and why. Whatever ends it,
        // what went is noted.
        let stop = 'cells: loop {
            let Some((cell, others)) = rest.split_first() else { break None };
            // What a fault has linked is followed.
            let entry = F::Word::load(cell, Ordering::Acquire);
            if entry == 0
                && breaks::<F, X>()
                && removed.is_some()
                && F::Word::compare_exchange(cell, 0, gone).is_err()
            {
                continue; // A fault was faster.
            }
            rest = others;
            if entry != 0 {
                if level > 0
                    && let Decoded::Table { next } = format.decode(entry, level)
                {
                    if level > floor || cursor.through && cursor.source.is_shared(next) {
                        // Larger than what may be detached at once: go into it.
                        break None;
                    }
                    if X::SHARED && reached > at && !cursor.affords(level - 1) {
                        break None;
                    }
                    match take_table(cursor, cell, reached, next, level) {
                        Ok(true) if breaks::<F, X>() => removed = removed.or(Some(reached)),
                        Ok(true) => {}
                        Ok(false) => break Some((reached, Ok(Advance::Invalidate))),
                        Err(error) => break Some((reached, Err(error))),
                    }
                } else {
                    if entry == format.frozen() {
                        if reached == at {
                            return Err(Error::Frozen { at: cursor.address(at) });
                        }
                        break None;
                    }
                    if let Some(shift) = format.group(entry, level)
                        && let Decoded::Leaf { .. } = format.decode(entry, level)
                    {
                        let bytes = 1u64 << shift;
                        if reached & (bytes - 1) == 0 && end - reached >= bytes {
                            let index = cells.len() - others.len() - 1;
                            let group = &cells[index..index + count(format, shift, level)];
                            // What is no leaf among them goes as it would by itself.
                            for (number, cell) in (0u64..).zip(group) {
                                let place = reached + (number << format.shift(level));
                                let entry = F::Word::load(cell, Ordering::Acquire);
                                let next = match format.decode(entry, level) {
                                    Decoded::Table { next } if level > 0 => Some(next),
                                    _ => None,
                                };
                                if next.is_some() && cursor.through {
                                    // Others may point at it: it stays, and so does the group.
                                    let at = cursor.address(place);
                                    break 'cells Some((
                                        reached,
                                        Err(Error::Grouped { at, entry }),
                                    ));
                                }
                                // What went from the group's first part is frozen as well.
                                if entry == format.frozen() {
                                    let at = cursor.address(place);
                                    break 'cells Some((place, Err(Error::Frozen { at })));
                                }
                                let Some(next) = next else { continue };
                                match take_table(cursor, cell, place, next, level) {
                                    Ok(true) if breaks::<F, X>() => {
                                        removed = removed.or(Some(place));
                                    }
                                    Ok(true) => {}
                                    Ok(false) => {
                                        break 'cells Some((place, Ok(Advance::Invalidate)));
                                    }
                                    Err(error) => break 'cells Some((place, Err(error))),
                                }
                            }
                            rest = &cells[index + group.len()..];
                            self.remove_group::<F, X>(
                                format,
                                group,
                                cursor.address(reached),
                                level,
                            );
                            removed = removed.or(Some(reached));
                            reached += bytes;
                            continue;
                        }
                        if reached == at {
                            return Ok(match cursor.unfold(at, level, entry)? {
                                Divided::Done => Advance::To(at),
                                Divided::Broken | Divided::Invalidate => Advance::Invalidate,
                            });
                        }
                        break None;
                    }
                    let was = X::exchange::<F::Word>(cell, entry, gone);
                    removed = removed.or(Some(reached));
                    if W::WATCHES
                        && let Decoded::Leaf { .. } = format.decode(was, level)
                    {
                        self.witness.leaf(cursor.address(reached), level, was);
                    }
                }
            }
            reached += 1 << shift;
        };
        let (touched, stop) = stop.unwrap_or((reached, Ok(Advance::To(reached))));
        finish::<F, I, O, M, S, X>(cursor, at, touched, level, removed);
        if reached > at { Ok(Advance::To(reached)) } else { stop }
    }
}

/// Takes out the table at `next` that the entry at `at`, of `level`, in `cell` points at. Not where
/// there is no room to note it; on an error nothing has changed.
#[inline]
fn take_table<F, I, O, M, S, X>(
    cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
    cell: &Cell<F>,
    at: u64,
    next: u64,
    level: u8,
) -> Result<bool, Error>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    if !cursor.room()? {
        return Ok(false);
    }
    if X::SHARED {
        cursor.freeze_empty(next, level - 1)?;
    }
    X::swap::<F::Word>(cell, gone::<F, X>(&cursor.tables.format));
    cursor.publish(at, level, 1);
    cursor.detach(at, next, level - 1);
    Ok(true)
}

impl<W: Witness> Unmap<W> {
    /// Removes every entry of a group; the witness sees each page with the state of all.
    #[inline(never)]
    fn remove_group<F: Encode, X: Mode>(
        &mut self,
        format: &F,
        cells: &[Cell<F>],
        start: u64,
        level: u8,
    ) {
        let mut leaves = [0; MOST_IN_GROUP];
        let mut sum = None;
        for (index, cell) in cells.iter().enumerate() {
            let was = X::swap::<F::Word>(cell, gone::<F, X>(format));
            if let Decoded::Leaf { .. } = format.decode(was, level) {
                let leaf = format.ungrouped(was, index as u64, level);
                leaves[index] = leaf;
                sum = Some(sum.map_or(leaf, |sum| format.inherit(sum, leaf)));
            }
        }
        if let Some(sum) = sum
            && W::WATCHES
        {
            for (index, leaf) in leaves.iter().enumerate().filter(|(_, leaf)| **leaf != 0) {
                let at = start + ((index as u64) << format.shift(level));
                self.witness.leaf(at, level, format.inherit(*leaf, sum));
            }
        }
    }
}

/// Notes what was removed from one table: something at `removed`, and up to `reached`.
#[inline(always)]
fn finish<F, I, O, M, S, X>(
    cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
    at: u64,
    reached: u64,
    level: u8,
    removed: Option<u64>,
) where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    if reached > at {
        let count = (reached - at) >> cursor.tables.format.shift(level);
        cursor.publish(at, level, count as usize);
        if let Some(first) = removed {
            cursor.note(at, reached, 1 << level, Effect::Stale);
            if breaks::<F, X>() {
                let count = ((reached - first) >> cursor.tables.format.shift(level)) as u32;
                cursor.gather().pend(Pending { at: first, level, count, ..Pending::default() });
            }
        }
    }
}

/// Only a part of what the entry translates is asked for.
#[inline(never)]
fn part<F, I, O, M, S, X>(
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
    if entry == 0 {
        return Ok(Advance::To(cursor.entry_end(at, level).min(end)));
    }
    match cursor.divide(at, level, entry)? {
        Divided::Done => Ok(Advance::To(at)),
        Divided::Broken | Divided::Invalidate => Ok(Advance::Invalidate),
    }
}
