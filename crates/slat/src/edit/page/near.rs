//! Single pages by a cursor, which finds those near the last one faster.

use core::sync::atomic::Ordering;

use super::Served;
use crate::address::Address;
use crate::edit::Error;
use crate::edit::cursor::{Cell, Cursor};
use crate::edit::encode::{Effect, Encode, Leaves};
use crate::edit::frames::FrameSource;
use crate::edit::memory::TableMemory;
use crate::edit::pending::Pending;
use crate::edit::unmap::{breaks, gone};
use crate::edit::word::{Mode, Word};

impl<'t, 'g, F, I, O, M, S, X> Cursor<'t, 'g, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    /// Serves a fault at `address`, as [`Walker::fault`](crate::edit::Walker::fault) does. A cursor finds
    /// pages near the last one faster.
    ///
    /// # Errors
    /// As there; [`Error::OutsideInput`] outside the cursor's range.
    #[inline(always)]
    pub fn fault(
        &mut self,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        let (at, base) = (address.raw(), output.raw());
        let tables = self.tables;
        if level == 0
            && !F::BREAKS
            && !tables.format.caches_invalid()
            && base & tables.beyond == 0
            && let Some((table, cell)) = self.page_near(at)
            && X::install::<F::Word>(cell, leaves.at(0) | tables.format.place(base, 0))
        {
            tables.publish_one(table, at);
            return Ok(Served::Installed { level: 0 });
        }
        self.fault_far(address, output, level, leaves)
    }

    /// The same, wherever the page is.
    #[inline(never)]
    fn fault_far(
        &mut self,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        self.attended()?;
        let at = self.input_within(address)?;
        let tables = self.tables;
        let format = &tables.format;
        if F::BREAKS {
            // What was removed may still be held, as in `map` (Arm ARM D8.17.1).
            let within = (1u64 << format.shift(level.min(tables.top))) - 1;
            if self.is_stale(at & !within, (at | within) + 1) {
                return Err(Error::Frozen { at: address.raw() });
            }
        }
        let base = output.raw();
        if level == 0
            && base & tables.beyond == 0
            && !format.caches_invalid()
            && let Some((table, cell)) = self.page_far(at)
            && X::install::<F::Word>(cell, leaves.at(0) | format.place(base, 0))
        {
            tables.publish_one(table, at);
            return Ok(Served::Installed { level: 0 });
        }
        let held = format.caches_invalid()
            || format.root_in_registers() && tables.lowest(at)?.2 == tables.top;
        let served = tables.serve_any::<S, X>(self.source, address, output, level, leaves)?;
        if let Served::Installed { level } = served
            && held
        {
            let bytes = 1u64 << format.shift(level);
            self.note(at & !(bytes - 1), (at | (bytes - 1)) + 1, 1 << level, Effect::Stale);
            self.tables_changed();
        }
        Ok(served)
    }

    /// Removes the smallest page at `address` and returns its entry as it was at the last; 0 where
    /// nothing was there.
    ///
    /// While faults may map, the entry stays frozen in tables with break-before-make until the
    /// cursor is resumed with the proof ([`Cursor::flush`]).
    ///
    /// # Errors
    /// [`Error::OutsideInput`], [`Error::Misaligned`]; [`Error::Occupied`] where the page is part of
    /// a larger one or of a group, [`Error::Frozen`]: [`Cursor::unmap`] takes those.
    /// [`Error::NoSlot`] where there is no slot (any more) in which to note a frozen entry: flush.
    #[inline(always)]
    pub fn remove(&mut self, address: I) -> Result<u64, Error> {
        let at = address.raw();
        let bytes = 1u64 << self.tables.format.shift(0);
        if at & (bytes - 1) == 0
            && let Some((table, cell)) = self.page_near(at)
            && let Some(entry) = self.tables.plain_page(cell)
        {
            return self.take_out(at, table, cell, entry);
        }
        // Apart, so that what is found at a glance stays in registers.
        match self.remove_far(address) {
            Ok(entry) => Ok(entry),
            Err(error) => Err(error),
        }
    }

    /// The same, wherever the page is.
    #[inline(never)]
    fn remove_far(&mut self, address: I) -> Result<u64, Error> {
        self.attended()?;
        let at = self.input_within(address)?;
        let bytes = 1u64 << self.tables.format.shift(0);
        if at & (bytes - 1) != 0 {
            return Err(Error::Misaligned { value: address.raw() });
        }
        if let Some((table, cell)) = self.page_far(at)
            && let Some(entry) = self.removable(cell)
        {
            if entry == 0 {
                return Ok(0);
            }
            return self.take_out(address.raw(), table, cell, entry);
        }
        self.remove_slowly(at)
    }

    /// The entry in `cell`, where it is nothing or a page by itself.
    #[inline(always)]
    fn removable(&self, cell: &Cell<F>) -> Option<u64> {
        let format = &self.tables.format;
        let entry = F::Word::load(cell, Ordering::Relaxed);
        (entry != format.frozen() && format.group(entry, 0).is_none()).then_some(entry)
    }

    /// Removes the page at `address` from `cell`, of the table at `table`, where `entry` was seen.
    #[inline(always)]
    fn take_out(
        &mut self,
        address: u64,
        table: u64,
        cell: &Cell<F>,
        entry: u64,
    ) -> Result<u64, Error> {
        self.may_freeze()?;
        let entry = X::exchange::<F::Word>(cell, entry, gone::<F, X>(&self.tables.format));
        self.tables.publish_one(table, address);
        self.note_removed(address);
        Ok(entry)
    }

    /// Removes the page at `at` where it is one by itself after all, or says why not.
    #[cold]
    fn remove_slowly(&mut self, at: u64) -> Result<u64, Error> {
        let (level, entry) = self.locate(at, 0)?;
        if entry == 0 {
            return Ok(0);
        }
        let format = &self.tables.format;
        if level > 0 || entry == format.frozen() || format.group(entry, level).is_some() {
            return Err(self.obstacle(at, entry));
        }
        // Found by entries that are not plain.
        self.may_freeze()?;
        let entry = X::exchange::<F::Word>(self.cell(at, 0), entry, gone::<F, X>(format));
        self.publish(at, 0, 1);
        self.note_removed(self.address(at));
        Ok(entry)
    }

    /// Whether the entry that is removed can be noted, if that is due.
    #[inline(always)]
    fn may_freeze(&mut self) -> Result<(), Error> {
        if breaks::<F, X>() && !self.pending_room()? { Err(Error::NoSlot) } else { Ok(()) }
    }

    /// Notes that the smallest page at `address`, as software writes it, was removed.
    #[inline(always)]
    fn note_removed(&mut self, address: u64) {
        let last = address | ((1u64 << self.tables.format.shift(0)) - 1);
        let at = self.input(address);
        let gather = self.gather();
        gather.note(address, last, 1, Effect::Stale);
        if breaks::<F, X>() {
            gather.pend(Pending { at, count: 1, ..Pending::default() });
        }
    }
}
