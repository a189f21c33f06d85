//! Mapping: leaves where nothing was.

use core::sync::atomic::Ordering;

use super::Error;
use super::cursor::{Advance, Cell, Cursor, Operation, Verb};
use super::encode::{Effect, Encode, Leaves};
use super::fill::lay;
use super::frames::{Frame, FrameSource};
use super::group::count;
use super::hollow::{Given, give_way};
use super::memory::TableMemory;
use super::word::{Mode, Word};
use crate::address::Address;
use crate::format::{Decoded, MAX_LEVELS};

/// Maps a range to consecutive output addresses. Made by [`Cursor::map`].
#[derive(Clone, Copy, Debug)]
pub struct Map<'l> {
    leaves: &'l Leaves,
    /// Output address less input address.
    delta: u64,
    /// Everything before this input is known to be unoccupied.
    verified: u64,
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
    /// Maps `bytes` bytes from `start` to `output` and what follows it, by the largest pages among
    /// `leaves` that fit ([`Leaves::up_to`] chooses smaller ones, [`Leaves::grouped`] makes groups).
    /// All of the range must be unoccupied: that is checked before anything changes. Tables without a single occupied entry
    /// give way to larger pages.
    ///
    /// # Errors
    /// Of the range or the output range; stepping yields [`Error::Occupied`],
    /// [`Error::Frozen`], [`Error::NoFrame`], [`Error::OutOfReach`], and [`Error::NoSlot`] where a table
    /// is to give way and no slot was lent for it (with break-before-make, and one for the entry).
    #[inline(always)]
    pub fn map<'l>(
        &self,
        start: I,
        output: O,
        bytes: u64,
        leaves: &'l Leaves,
    ) -> Result<Operation<Map<'l>>, Error> {
        let output = output.raw();
        let format = &self.tables.format;
        let page = 1u64 << format.shift(0);
        if output & (page - 1) != 0 {
            return Err(Error::Misaligned { value: output });
        }
        let mut operation = self.operation(start, bytes, Map { leaves, delta: 0, verified: 0 })?;
        let last = output.checked_add(bytes - page);
        let fits = last.is_some_and(|last| {
            if (output | last) & !format.varying(0) == 0 && format.stride(0) == Some(page) {
                return true;
            }
            let entry = leaves.at(0) | format.place(last, 0);
            matches!(format.decode(entry, 0), Decoded::Leaf { base, .. } if base == last)
        });
        if !fits {
            return Err(Error::OutsideOutput { output: last.unwrap_or(u64::MAX) });
        }
        let (at, end) = operation.span();
        operation.verb.delta = output.wrapping_sub(at);
        // What lies in one lowest table is verified and written in one go.
        if bytes == page || (at ^ (end - 1)) >> self.tables.reach(0) == 0 {
            operation.verb.verified = end;
        } else {
            operation.verb.verified = at;
        }
        Ok(operation)
    }

    /// Whether every cell is empty; else the first that is not.
    #[inline(always)]
    fn vacant(&self, cells: &[Cell<F>], at: u64, level: u8) -> Result<(), Error> {
        for (index, cell) in cells.iter().enumerate() {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            if entry != 0 {
                let at = at + ((index as u64) << self.tables.format.shift(level));
                return Err(self.obstacle(at, entry));
            }
        }
        Ok(())
    }
}

impl Map<'_> {
    /// The level of the largest page at `at`.
    #[inline(always)]
    fn level<F: Encode>(&self, format: &F, at: u64, end: u64) -> u8 {
        let mut level = self.leaves.largest();
        while level > 0 {
            let bytes = 1u64 << format.shift(level);
            let aligned = (at | at.wrapping_add(self.delta)) & (bytes - 1) == 0;
            if aligned && end - at >= bytes && self.leaves.has(level) {
                break;
            }
            level -= 1;
        }
        level
    }

    /// Makes the missing tables down to `target`, the lowest of them with its leaves in place.
    #[inline(never)]
    fn grow<F, I, O, M, S, X>(
        &self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
        level: u8,
        target: u8,
    ) -> Result<Advance, Error>
    where
        F: Encode,
        I: Address,
        O: Address,
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let tables = cursor.tables;
        let format = &tables.format;
        // All frames before the first store: what fails here has changed nothing.
        let mut frames: [Option<Frame>; MAX_LEVELS] = [const { None }; MAX_LEVELS];
        let give_back = |frames: [Option<Frame>; MAX_LEVELS], source: &S| {
            frames.into_iter().flatten().for_each(|frame| source.put(frame));
        };
        for below in target..level {
            match cursor.frame(at, below) {
                Ok(frame) => frames[usize::from(below)] = Some(frame),
                Err(error) => {
                    give_back(frames, cursor.source);
                    return Err(error);
                }
            }
        }
        // From the bottom up, so that the one store that links them links them all.
        let shift = format.shift(target);
        let mut upper = None;
        let mut reached = at;
        for below in target..level {
            let Some(frame) = &frames[usize::from(below)] else { break };
            let cells = match tables.cells(frame.address(), below) {
                Ok(cells) => cells,
                Err(error) => {
                    give_back(frames, cursor.source);
                    return Err(error);
                }
            };
            let index = cursor.index(at, below);
            let count = match upper {
                None => ((end - at) >> shift).min((cells.len() - index) as u64) as usize,
                Some(_) => 1,
            };
            let (before, rest) = cells.split_at(index);
            let (written, after) = rest.split_at(count);
            if !frame.is_zeroed() {
                for cells in [before, after] {
                    for cell in cells {
                        F::Word::store(cell, 0, Ordering::Relaxed);
                    }
                }
            }
            match upper {
                None => {
                    let base = at.wrapping_add(self.delta);
                    lay(format, written, self.leaves, at, base, target);
                    reached = at + ((count as u64) << shift);
                }
                Some(entry) => F::Word::store(&written[0], entry, Ordering::Relaxed),
            }
            tables.memory.publish(frame.address(), frame.bytes());
            upper = Some(format.table(frame.address(), below + 1));
        }
        let Some(entry) = upper else { return Ok(Advance::To(at)) };
        match X::replace::<F::Word>(cursor.cell(at, level), 0, entry) {
            Ok(()) => {
                cursor.publish(at, level, 1);
                let in_register = level == tables.top && format.root_in_registers();
                if in_register || format.caches_invalid() {
                    cursor.note(at, reached, 1 << target, Effect::Stale);
                    cursor.gather().tables_changed();
                }
                Ok(Advance::To(reached))
            }
            Err(_) => {
                // A fault was faster; its table takes the leaves.
                give_back(frames, cursor.source);
                Ok(Advance::To(at))
            }
        }
    }
}

impl<F: Encode> Verb<F> for Map<'_> {
    #[inline(always)]
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error> {
        if self.verified < end {
            self.verified = verify(cursor, self.verified, end)?;
            return Ok(Advance::To(at));
        }
        if F::BREAKS && cursor.is_stale(at, end) {
            // What was unmapped may still be held: making it anew would be the make without a break
            // (Arm ARM D8.17.1).
            return Ok(Advance::Invalidate);
        }
        let tables = cursor.tables;
        let mut target = self.level(&tables.format, at, end);
        let (mut level, mut entry) = cursor.locate(at, target)?;
        while cursor.through && level == target && cursor.is_kept(entry, level) {
            // A table of several views cannot give way in all of them: it takes smaller pages.
            target -= 1;
            while !self.leaves.has(target) {
                target -= 1;
            }
            (level, entry) = cursor.locate(at, target)?;
        }
        if level > target {
            if entry != 0 {
                return Err(cursor.obstacle(at, entry));
            }
            return self.grow(cursor, at, end, level, target);
        }
        let cells = cursor.run(at, end, level);
        let base = at.wrapping_add(self.delta);
        let shift = tables.format.shift(level);
        if X::SHARED || level > 0 {
            return self.install(cursor, cells, at, level);
        }
        cursor.vacant(cells, at, level)?;
        lay(&tables.format, cells, self.leaves, at, base, level);
        cursor.publish(at, level, cells.len());
        let reached = at + ((cells.len() as u64) << shift);
        if tables.format.caches_invalid() {
            cursor.note(at, reached, 1 << level, Effect::Stale);
        }
        Ok(Advance::To(reached))
    }
}

impl Map<'_> {
    /// Writes leaves one by one: where faults may be faster, or an empty table may have to give way.
    #[inline(never)]
    fn install<F, I, O, M, S, X>(
        &self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        cells: &[Cell<F>],
        start: u64,
        level: u8,
    ) -> Result<Advance, Error>
    where
        F: Encode,
        I: Address,
        O: Address,
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let tables = cursor.tables;
        let format = &tables.format;
        let mut at = start;
        let mut rest = cells;
        while let Some((cell, others)) = rest.split_first() {
            if let Some(made) = self.group::<F, X>(format, rest, at, level) {
                let end = at + ((made as u64) << format.shift(level));
                cursor.publish(at, level, made);
                if format.caches_invalid() {
                    cursor.note(at, end, 1 << level, Effect::Stale);
                }
                rest = &rest[made..];
                at = end;
                continue;
            }
            rest = others;
            let base = at.wrapping_add(self.delta);
            let leaf = self.leaves.at(level) | format.place(base, level);
            match X::replace::<F::Word>(cell, 0, leaf) {
                Ok(()) => {
                    cursor.publish(at, level, 1);
                    if format.caches_invalid() {
                        let end = cursor.entry_end(at, level);
                        cursor.note(at, end, 1 << level, Effect::Stale);
                    }
                }
                Err(entry) => match format.decode(entry, level) {
                    Decoded::Table { .. } if at > start && cursor.through => {
                        return Ok(Advance::To(at));
                    }
                    // Each table that is looked through counts.
                    Decoded::Table { .. } if at > start && !cursor.affords(0) => {
                        return Ok(Advance::To(at));
                    }
                    Decoded::Table { next } if level > 0 => {
                        let given = match give_way(cursor, at, level, entry, next, leaf) {
                            // The next step meets it first.
                            Err(_) if at > start => return Ok(Advance::To(at)),
                            given => given?,
                        };
                        match given {
                            Given::Way => {}
                            Given::No => return stopped(cursor, start, at, entry),
                            Given::Again => return Ok(Advance::To(at)),
                            Given::Invalidate if at > start => return Ok(Advance::To(at)),
                            Given::Invalidate => return Ok(Advance::Invalidate),
                        }
                    }
                    _ => return stopped(cursor, start, at, entry),
                },
            }
            at = cursor.entry_end(at, level);
        }
        Ok(Advance::To(at))
    }
}

impl Map<'_> {
    /// Makes a group of the first of `cells`, at input `at`, where a whole one fits and nothing is in
    /// its place, and returns how many entries it has.
    #[inline]
    fn group<F: Encode, X: Mode>(
        &self,
        format: &F,
        cells: &[Cell<F>],
        at: u64,
        level: u8,
    ) -> Option<usize> {
        let shift = format.group_shift(level).filter(|_| self.leaves.makes_groups())?;
        let base = at.wrapping_add(self.delta);
        if (at | base) & ((1u64 << shift) - 1) != 0 {
            return None;
        }
        let cells = cells.get(..count(format, shift, level))?;
        // Frozen first: a group of which a fault has taken a page must never be seen.
        for (index, cell) in cells.iter().enumerate() {
            if X::replace::<F::Word>(cell, 0, format.frozen()).is_err() {
                for cell in &cells[..index] {
                    F::Word::store(cell, 0, Ordering::Release);
                }
                return None;
            }
        }
        lay(format, cells, self.leaves, at, base, level);
        Some(cells.len())
    }
}

/// Reports what was done before an obstacle; the next step meets it first.
#[cold]
fn stopped<F, I, O, M, S, X>(
    cursor: &Cursor<'_, '_, F, I, O, M, S, X>,
    start: u64,
    at: u64,
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
    if at > start { Ok(Advance::To(at)) } else { Err(cursor.obstacle(at, entry)) }
}

/// Checks one table's worth of entries from `at` on for being unoccupied. Returns how far.
#[inline(never)]
fn verify<F, I, O, M, S, X>(
    cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
    at: u64,
    end: u64,
) -> Result<u64, Error>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    let (level, entry) = cursor.locate(at, 0)?;
    if level > 0 {
        if entry != 0 {
            return Err(cursor.obstacle(at, entry));
        }
        return Ok(cursor.entry_end(at, level).min(end));
    }
    let cells = cursor.run(at, end, 0);
    cursor.vacant(cells, at, 0)?;
    Ok(at + ((cells.len() as u64) << cursor.tables.format.shift(0)))
}
