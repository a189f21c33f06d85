//! Where a cursor is: the tables on the way to an address, and cells in them.

use core::sync::atomic::Ordering;

use super::{Cell, Cursor, Near};
use crate::address::Address;
use crate::edit::Error;
use crate::edit::encode::Encode;
use crate::edit::frames::FrameSource;
use crate::edit::memory::TableMemory;
use crate::edit::word::{Mode, Word};
use crate::format::{Decoded, MAX_LEVELS};

impl<'t, F, I, O, M, S, X> Cursor<'t, '_, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    /// The index of `at` in a table of this level.
    #[inline(always)]
    pub(in crate::edit) fn index(&self, at: u64, level: u8) -> usize {
        (at >> self.tables.format.shift(level)) as usize & (self.tables.entries(level) - 1)
    }

    /// First input after the table of this level that translates `at`.
    #[inline(always)]
    pub(in crate::edit) fn table_end(&self, at: u64, level: u8) -> u64 {
        (at | ((1u64 << self.tables.reach(level)) - 1)) + 1
    }

    /// First input after the entry of this level that translates `at`.
    #[inline(always)]
    pub(in crate::edit) fn entry_end(&self, at: u64, level: u8) -> u64 {
        (at | ((1u64 << self.tables.format.shift(level)) - 1)) + 1
    }

    /// Whether an entry of this level at `at` begins there and ends by `end`.
    #[inline(always)]
    pub(in crate::edit) fn covers(&self, at: u64, end: u64, level: u8) -> bool {
        let bytes = 1u64 << self.tables.format.shift(level);
        at & (bytes - 1) == 0 && end - at >= bytes
    }

    /// Finds the lowest table, of level `floor` or above, on the way to `at`. Returns its level
    /// and the entry there, which is not a table unless the level is `floor`.
    #[inline(always)]
    pub(in crate::edit) fn locate(&mut self, at: u64, floor: u8) -> Result<(u8, u64), Error> {
        self.near.bytes = 0;
        let tables = self.tables;
        let mut level = self.depth;
        while level < tables.top && (level < floor || (at ^ self.here) >> tables.reach(level) != 0)
        {
            level += 1;
        }
        loop {
            let cells = tables.cells(self.path[usize::from(level)], level)?;
            let entry = match cells.get(self.index(at, level)) {
                Some(cell) => F::Word::load(cell, Ordering::Acquire),
                None => return Err(Error::NotLent { table: tables.root }),
            };
            if level > floor {
                let next = match tables.format.points_at(entry, level) {
                    Some(next) => Some(next),
                    None => match tables.format.decode(entry, level) {
                        Decoded::Table { next } => Some(next),
                        _ => None,
                    },
                };
                if let Some(next) = next {
                    level -= 1;
                    self.path[usize::from(level)] = next;
                    continue;
                }
            }
            self.depth = level;
            self.here = at;
            return Ok((level, entry));
        }
    }

    /// The cell of the smallest page at `address`, as software writes it, and the table that it is in:
    /// where it lies near the last one, under the same table of level 1, and plain table entries lead
    /// to it. It is in the cursor's range then, and the gather is not away.
    #[inline(always)]
    pub(in crate::edit) fn page_near(&self, address: u64) -> Option<(u64, &'t Cell<F>)> {
        let Near { first, bytes, table } = self.near;
        if address.wrapping_sub(first) >= bytes {
            return None;
        }
        let tables = self.tables;
        let cell = tables.below(table, address, 1)?;
        let next = tables.format.points_at(F::Word::load(cell, Ordering::Acquire), 1)?;
        tables.below(next, address, 0).map(|cell| (next, cell))
    }

    /// The cell of the smallest page at `at`, wherever that is.
    #[inline(always)]
    pub(in crate::edit) fn page_far(&mut self, at: u64) -> Option<(u64, &'t Cell<F>)> {
        match self.tables.top {
            2 => self.page_from::<2>(at),
            3 => self.page_from::<3>(at),
            4 => self.page_from::<4>(at),
            _ => None,
        }
    }

    /// The same, from the root, whose level is `TOP`.
    #[inline(always)]
    fn page_from<const TOP: u8>(&mut self, at: u64) -> Option<(u64, &'t Cell<F>)> {
        let tables = self.tables;
        let mut cell = tables.root_cell::<TOP>(at)?;
        let mut path = [tables.root; MAX_LEVELS];
        let mut level = TOP;
        while level > 0 {
            let next = tables.format.points_at(F::Word::load(cell, Ordering::Acquire), level)?;
            level -= 1;
            path[usize::from(level)] = next;
            cell = tables.below(next, at, level)?;
        }
        self.path = path;
        (self.depth, self.here) = (0, at);
        if TOP > 1 {
            let within = (1u64 << tables.reach(1)) - 1;
            let first = self.address(at & !within).max(self.first);
            let last = self.address(at | within).min(self.last);
            self.near = Near { first, bytes: last - first + 1, table: path[1] };
        }
        Some((path[0], cell))
    }

    /// The located table of this level. [`Cursor::locate`] has found that it is lent.
    #[inline(always)]
    pub(in crate::edit) fn located(&self, level: u8) -> &'t [Cell<F>] {
        self.tables.cells(self.path[usize::from(level)], level).unwrap_or(&[])
    }

    /// The cells of the located table of this level, from `at` on to `end` or the table's end.
    #[inline(always)]
    pub(in crate::edit) fn run(&self, at: u64, end: u64, level: u8) -> &'t [Cell<F>] {
        let index = self.index(at, level);
        let shift = self.tables.format.shift(level);
        let count = ((end - at) >> shift).min((self.tables.entries(level) - index) as u64);
        self.located(level).get(index..index + count as usize).unwrap_or(&[])
    }

    /// The cell of `at` in the located table of this level.
    #[inline(always)]
    pub(in crate::edit) fn cell(&self, at: u64, level: u8) -> &'t Cell<F> {
        &self.located(level)[self.index(at, level)]
    }

    /// Tells the memory that `count` entries of the located table have been written, from `at` on.
    #[inline(always)]
    pub(in crate::edit) fn publish(&self, at: u64, level: u8, count: usize) {
        let bytes = <F::Word as Word>::SIZE.bytes();
        let table = self.path[usize::from(level)];
        let first = table + self.index(at, level) as u64 * bytes;
        self.tables.memory.publish(first, count as u64 * bytes);
    }
}
