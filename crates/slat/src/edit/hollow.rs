//! Tables that give way: those without a single occupied entry to a larger page, those that are
//! removed to nothing. They are looked through and frozen within the budget of a step.

use core::sync::atomic::Ordering;

use super::Error;
use super::cursor::Cursor;
use super::encode::Encode;
use super::frames::FrameSource;
use super::memory::TableMemory;
use super::pending::Pending;
use super::unmap::{breaks, gone};
use super::word::{Mode, Word};
use crate::address::Address;
use crate::format::Decoded;

/// What a subtree holds.
#[derive(PartialEq)]
enum Found {
    /// Nothing.
    Nothing,
    /// Entries that wait for another's invalidation, at the first place that is not empty.
    Frozen,
    Something,
    /// More tables than the step may look at.
    TooMuch,
}

/// What one freeze did, so that it can be undone.
#[derive(Default)]
struct Frozen {
    entries: u32,
    tables: u32,
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
    /// Whether a table of `level` can be looked through with all below it, if it is one of the two
    /// lowest, in what is left of the step.
    pub(super) fn affords(&self, level: u8) -> bool {
        let below = if level == 0 { 0 } else { self.tables.entries(level) };
        self.left as usize > below
    }

    /// Whether a step that has not worked on anything yet may do more than this one.
    pub(super) fn is_worn(&self) -> bool {
        self.left.saturating_add(1) < self.budget
    }

    /// Counts tables that the step has worked on.
    fn spend(&mut self, tables: u32) {
        self.left = self.left.saturating_sub(tables);
    }

    /// Whether the entry of `level` links a table that other views may point at as well, itself or by
    /// a table below it. Above the two lowest levels that is not looked for, but taken for granted.
    #[inline(never)]
    pub(super) fn is_kept(&self, entry: u64, level: u8) -> bool {
        let format = &self.tables.format;
        let Decoded::Table { next } = format.decode(entry, level) else { return false };
        let shared = |cell| match format.decode(F::Word::load(cell, Ordering::Acquire), 1) {
            Decoded::Table { next } => self.source.is_shared(next),
            _ => false,
        };
        match level {
            0 => false,
            1 => self.source.is_shared(next),
            2 => {
                self.source.is_shared(next)
                    || self.tables.cells(next, 1).unwrap_or(&[]).iter().any(shared)
            }
            _ => true,
        }
    }

    /// What a table of `level` holds, with all below it, looking at no more than `left` tables.
    fn holds(&self, table: u64, level: u8, left: &mut u32) -> Result<Found, Error> {
        let Some(less) = left.checked_sub(1) else { return Ok(Found::TooMuch) };
        *left = less;
        for cell in self.tables.cells(table, level)? {
            let entry = F::Word::load(cell, Ordering::Acquire);
            let found = match self.tables.format.decode(entry, level) {
                Decoded::Table { next } if level > 0 => self.holds(next, level - 1, left)?,
                _ if entry == 0 => Found::Nothing,
                _ if entry == self.tables.format.frozen() => Found::Frozen,
                _ => Found::Something,
            };
            if found != Found::Nothing {
                return Ok(found);
            }
        }
        Ok(Found::Nothing)
    }

    /// Freezes every empty entry of a table and of all below it, so that no fault can install
    /// anything there any more, and counts the tables against the step.
    ///
    /// # Errors
    /// [`Error::NotLent`] where a table below is not in the memory, with nothing frozen.
    pub(super) fn freeze_empty(&mut self, table: u64, level: u8) -> Result<(), Error> {
        self.are_lent(table, level)?;
        let mut frozen = Frozen::default();
        self.freeze_below(table, level, true, &mut frozen)?;
        self.spend(frozen.tables);
        Ok(())
    }

    /// Whether a table and all below it are in the memory. What faults add meanwhile is: they fill
    /// it first.
    fn are_lent(&self, table: u64, level: u8) -> Result<(), Error> {
        let cells = self.tables.cells(table, level)?;
        if level > 0 {
            for cell in cells {
                let entry = F::Word::load(cell, Ordering::Acquire);
                if let Decoded::Table { next } = self.tables.format.decode(entry, level) {
                    self.are_lent(next, level - 1)?;
                }
            }
        }
        Ok(())
    }

    /// Freezes the empty entries of a table, then those of the tables below it. Unless `all` is to be
    /// passed by, it ends at whatever is neither, and returns `false`.
    fn freeze_below(
        &self,
        table: u64,
        level: u8,
        all: bool,
        frozen: &mut Frozen,
    ) -> Result<bool, Error> {
        let format = &self.tables.format;
        let cells = self.tables.cells(table, level)?;
        frozen.tables += 1;
        for cell in cells {
            let mut entry = F::Word::load(cell, Ordering::Acquire);
            if entry == 0 {
                match F::Word::compare_exchange(cell, 0, format.frozen()) {
                    Ok(()) => {
                        frozen.entries += 1;
                        continue;
                    }
                    Err(now) => entry = now,
                }
            }
            let below = matches!(format.decode(entry, level), Decoded::Table { .. } if level > 0);
            if !all && !below {
                return Ok(false);
            }
        }
        if level > 0 {
            for cell in cells {
                let entry = F::Word::load(cell, Ordering::Acquire);
                if let Decoded::Table { next } = format.decode(entry, level)
                    && !self.freeze_below(next, level - 1, all, frozen)?
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Empties the first `left` frozen entries of a table and of those below it, in the order in which
    /// [`Cursor::freeze_below`] freezes them.
    #[cold]
    fn thaw(&self, table: u64, level: u8, left: &mut u32) -> Result<(), Error> {
        let format = &self.tables.format;
        let cells = self.tables.cells(table, level)?;
        for cell in cells {
            if *left > 0 && F::Word::load(cell, Ordering::Acquire) == format.frozen() {
                *left -= 1;
                let _ = F::Word::compare_exchange(cell, format.frozen(), 0);
            }
        }
        for cell in cells.iter().filter(|_| level > 0) {
            let entry = F::Word::load(cell, Ordering::Acquire);
            if let Decoded::Table { next } = format.decode(entry, level)
                && *left > 0
            {
                self.thaw(next, level - 1, left)?;
            }
        }
        Ok(())
    }
}

/// Whether a table gave way to a leaf.
pub(super) enum Given {
    /// The leaf is there, or will be made after the invalidation.
    Way,
    /// It holds something.
    No,
    /// Not yet: a part of it went, or somebody else changed the entry.
    Again,
    /// Not without an invalidation first.
    Invalidate,
}

/// Puts `leaf` where `entry` links the table at `next`, if nothing is in that.
pub(super) fn give_way<F, I, O, M, S, X>(
    cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
    at: u64,
    level: u8,
    entry: u64,
    next: u64,
    leaf: u64,
) -> Result<Given, Error>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    let allowed = cursor.left.saturating_add(1);
    let mut left = allowed;
    match cursor.holds(next, level - 1, &mut left)? {
        Found::Nothing => {}
        Found::Something => return Ok(Given::No),
        Found::Frozen => return Err(Error::Frozen { at: cursor.address(at) }),
        Found::TooMuch => return prune(cursor, at, level - 1, next),
    }
    cursor.spend(allowed - left);
    if !X::SHARED {
        return supplant(cursor, at, level, entry, next, leaf);
    }
    // No fault may fill it any more, and none has since it was looked at.
    let mut frozen = Frozen::default();
    let hollow = cursor.freeze_below(next, level - 1, false, &mut frozen);
    let outcome = match hollow {
        Ok(true) => supplant(cursor, at, level, entry, next, leaf),
        Ok(false) => Ok(Given::Again),
        Err(error) => Err(error),
    };
    if !matches!(outcome, Ok(Given::Way)) {
        cursor.thaw(next, level - 1, &mut frozen.entries)?;
    }
    outcome
}

/// Puts `leaf` where `entry` links the table at `next`, and detaches that.
pub(super) fn supplant<F, I, O, M, S, X>(
    cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
    at: u64,
    level: u8,
    entry: u64,
    next: u64,
    leaf: u64,
) -> Result<Given, Error>
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
    if !cursor.room()? {
        return Ok(Given::Invalidate);
    }
    if F::BREAKS && format.breaks(entry, leaf, level) {
        if !cursor.pending_room()? {
            return Ok(Given::Invalidate);
        }
        cursor.break_entry(at, level, |_| leaf);
        cursor.detach(at, next, level - 1);
        return Ok(Given::Way);
    }
    let mut entry = entry;
    loop {
        match X::replace::<F::Word>(cursor.cell(at, level), entry, leaf) {
            Ok(()) => break,
            // Hardware may set an accessed bit in a table entry.
            Err(now) if format.decode(now, level) == (Decoded::Table { next }) => entry = now,
            Err(_) => return Ok(Given::Again),
        }
    }
    cursor.publish(at, level, 1);
    cursor.detach(at, next, level - 1);
    Ok(Given::Way)
}

/// Takes empty tables out from under the one of `level` at `table`, which translates `at`, until the
/// step has spent its budget: then so few may be left that the next step looks through them all.
#[cold]
fn prune<F, I, O, M, S, X>(
    cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
    at: u64,
    level: u8,
    table: u64,
) -> Result<Given, Error>
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
    let mut taken = false;
    loop {
        if !cursor.room()? || breaks::<F, X>() && !cursor.pending_room()? {
            return Ok(Given::Invalidate);
        }
        // The first table without tables below it, and where it is linked.
        let (mut above, mut place, mut depth) = (None, at, level);
        let mut lowest = table;
        while depth > 0 {
            let cells = tables.cells(lowest, depth)?;
            let entries = cells.iter().map(|cell| F::Word::load(cell, Ordering::Acquire));
            let found = (0u64..).zip(entries).find_map(|(index, entry)| {
                match format.decode(entry, depth) {
                    Decoded::Table { next } => Some((index, entry, next)),
                    _ => None,
                }
            });
            let Some((index, entry, next)) = found else { break };
            place += index << format.shift(depth);
            above = Some((depth, entry));
            (lowest, depth) = (next, depth - 1);
        }
        let Some((linked, entry)) = above else { return Ok(Given::Again) };
        match cursor.holds(lowest, depth, &mut 1)? {
            Found::Nothing => {}
            // Frozen where tables were taken out of it, it may be.
            _ if taken => return Ok(Given::Again),
            Found::Frozen => return Err(Error::Frozen { at: cursor.address(place) }),
            _ => return Ok(Given::No),
        }
        let mut frozen = Frozen::default();
        if X::SHARED && !cursor.freeze_below(lowest, depth, false, &mut frozen)? {
            cursor.thaw(lowest, depth, &mut frozen.entries)?;
            return Ok(Given::Again);
        }
        cursor.locate(place, linked)?;
        let mut entry = entry;
        while let Err(now) =
            X::replace::<F::Word>(cursor.cell(place, linked), entry, gone::<F, X>(format))
        {
            if format.decode(now, linked) != (Decoded::Table { next: lowest }) {
                cursor.thaw(lowest, depth, &mut frozen.entries)?;
                return Ok(Given::Again);
            }
            // Hardware may set an accessed bit in a table entry.
            entry = now;
        }
        cursor.publish(place, linked, 1);
        cursor.detach(place, lowest, depth);
        if breaks::<F, X>() {
            let level = linked;
            cursor.gather().pend(Pending { at: place, level, count: 1, ..Pending::default() });
        }
        taken = true;
        cursor.spend(1);
        if cursor.left == 0 {
            return Ok(Given::Again);
        }
    }
}
