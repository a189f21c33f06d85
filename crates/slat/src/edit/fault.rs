//! Tables that several threads change: faults install mappings without a lock, walkers read
//! without one, and a cursor changes a range under the caller's.

use core::sync::atomic::{Ordering, fence};

use super::cursor::Cursor;
use super::encode::{Encode, Leaves};
use super::frames::{Frame, FrameSource};
use super::gather::Slots;
use super::mappings::{Mapping, Mappings};
use super::memory::TableMemory;
use super::walkers::{Guard, Walkers};
use super::word::{Faulting, Word};
use super::{Error, Tables};
use crate::address::Address;
use crate::format::Decoded;
use crate::invalidate::Context;

/// Tables that several threads change at once.
#[derive(Debug)]
pub struct Shared<'w, F: Encode, I, O, M> {
    tables: Tables<F, I, O, M>,
    walkers: &'w Walkers<'w>,
}

impl<'w, F, I, O, M> Shared<'w, F, I, O, M>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
{
    /// Shares `tables`, whose walkers announce themselves in `walkers`.
    pub fn new(tables: Tables<F, I, O, M>, walkers: &'w Walkers<'w>) -> Self {
        Shared { tables, walkers }
    }

    /// The tables, once nobody shares them.
    pub fn into_tables(self) -> Tables<F, I, O, M> {
        self.tables
    }

    /// The tables, as [`Completed::reclaim`](super::Completed::reclaim) wants to see them.
    /// Read them through a [`Walker`].
    pub fn tables(&self) -> &Tables<F, I, O, M> {
        &self.tables
    }

    /// Announces a walker. `None` where all slots for walkers are taken.
    pub fn walker(&self) -> Option<Walker<'_, F, I, O, M>> {
        let guard = self.walkers.enter()?;
        Some(Walker { tables: &self.tables, _guard: guard })
    }

    /// A cursor over `bytes` bytes from `start`, while faults go on there and elsewhere.
    ///
    /// `exclusion` is the caller's lock guard, or whatever else keeps every other cursor off this
    /// range while it lives. Cursors on other ranges may work at the same time.
    ///
    /// # Errors
    /// As [`Tables::cursor`].
    pub fn cursor<'t, 'g, S: FrameSource, L: ?Sized>(
        &'t self,
        exclusion: &'t L,
        source: &'t S,
        context: Context,
        slots: Slots<'g>,
        start: I,
        bytes: u64,
    ) -> Result<Cursor<'t, 'g, F, I, O, M, S, Faulting>, Error>
    where
        'w: 'g,
    {
        let _ = exclusion;
        let walkers = Some(self.walkers);
        Cursor::new(&self.tables, source, context, slots, walkers, start.raw(), bytes)
    }
}

/// What a fault found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// Nothing was there; the page was installed. Where the format caches invalid entries
    /// (RISC-V without Svvptc) the faulting CPU fences before it tries again.
    Installed {
        /// Its level.
        level: u8,
    },
    /// Something is there already: another fault was faster, or the access was denied.
    Present {
        /// The entry.
        entry: u64,
        /// Its level.
        level: u8,
    },
}

/// A software walker: reads without a lock, and installs what faults ask for. While it lives no
/// table that it can see is given back.
#[derive(Debug)]
pub struct Walker<'t, F: Encode, I, O, M> {
    tables: &'t Tables<F, I, O, M>,
    _guard: Guard<'t>,
}

impl<F, I, O, M> Walker<'_, F, I, O, M>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
{
    /// As [`Tables::translate`].
    #[inline]
    pub fn translate(&self, address: I) -> Option<Mapping<I, O>> {
        self.tables.translate(address)
    }

    /// As [`Tables::mappings`].
    ///
    /// # Errors
    /// As there.
    pub fn mappings(&self, start: I, bytes: u64) -> Result<Mappings<'_, F, I, O, M>, Error> {
        self.tables.mappings(start, bytes)
    }

    /// Serves a fault at `address`: maps the page of `level` around it to `output` and what follows
    /// that, if nothing is mapped there. Where smaller pages exist around the address, the smaller
    /// page that belongs there is mapped instead. `output` is what the page's first byte maps to.
    ///
    /// # Errors
    /// [`Error::Frozen`] where a removal is under way: let the guest try again.
    /// [`Error::NoFrame`], with nothing changed; of the address and output.
    #[inline]
    pub fn fault<S: FrameSource>(
        &self,
        source: &S,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        let tables = self.tables;
        let format = &tables.format;
        let raw = address.raw();
        let input = tables.strip(raw).ok_or(Error::OutsideInput { at: raw })?;
        let mut want = level.min(leaves.largest());
        let page = (1u64 << format.shift(level)) - 1;
        let output = output.raw();
        if output & page != 0 {
            return Err(Error::Misaligned { value: output });
        }
        // What the byte at `input` maps to, and from there any smaller page.
        let byte = output.checked_add(input & page).ok_or(Error::OutsideOutput { output })?;
        while want > 0 && !leaves.has(want) {
            want -= 1;
        }
        let mut at = tables.top;
        let mut table = tables.root;
        let mut cells = tables.cells(table, at)?;
        loop {
            let index = (input >> format.shift(at)) as usize & (cells.len() - 1);
            let cell = &cells[index];
            let entry = F::Word::load(cell, Ordering::Acquire);
            match format.decode(entry, at) {
                Decoded::Table { next } if at > 0 => {
                    at -= 1;
                    table = next;
                    cells = tables.cells(table, at)?;
                    continue;
                }
                _ if entry == format.frozen() => return Err(Error::Frozen { at: raw }),
                _ if entry != 0 => return Ok(Served::Present { entry, level: at }),
                _ => {}
            }
            // Nothing is there. Larger pages than asked for are not made, smaller ones are where
            // tables for them exist.
            if at <= want && leaves.has(at) {
                let base = byte & !((1u64 << format.shift(at)) - 1);
                let leaf = leaves.at(at) | format.place(base, at);
                let fits = matches!(format.decode(leaf, at),
                    Decoded::Leaf { base: found, .. } if found == base);
                if !fits {
                    return Err(Error::OutsideOutput { output: base });
                }
                if F::Word::compare_exchange(cell, 0, leaf).is_ok() {
                    let bytes = <F::Word as Word>::SIZE.bytes();
                    tables.memory.publish(table + index as u64 * bytes, bytes);
                    return Ok(Served::Installed { level: at });
                }
                continue;
            }
            let below = at - 1;
            let bytes = tables.table_bytes(below);
            let frame = source.take(bytes).ok_or(Error::NoFrame { at: raw, bytes })?;
            match self.link(cell, &frame, below) {
                Ok(true) => {}
                Ok(false) => source.put(frame),
                Err(error) => {
                    source.put(frame);
                    return Err(error);
                }
            }
        }
    }

    /// Links an empty table, unless somebody was faster.
    fn link(
        &self,
        cell: &<F::Word as Word>::Atomic,
        frame: &Frame,
        level: u8,
    ) -> Result<bool, Error> {
        self.tables.clear(frame, level)?;
        fence(Ordering::Release);
        self.tables.memory.publish(frame.address(), frame.bytes());
        let entry = self.tables.format.table(frame.address(), level + 1);
        Ok(F::Word::compare_exchange(cell, 0, entry).is_ok())
    }
}
