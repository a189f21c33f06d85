//! Single pages: what a fault asks for, and one page that goes, with a cursor and without.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use super::encode::{Encode, Leaves, Refused};
use super::frames::{Frame, FrameSource};
use super::gather::{Gather, Inner, Leak, Slots, Stale};
use super::memory::TableMemory;
use super::sync::fence;
use super::word::{Mode, Word};
use super::{Error, Tables};
use crate::address::Address;
use crate::format::Decoded;
use crate::invalidate::{Context, Invalidate};

mod near;

/// What a fault found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// Nothing was there; the page was installed, with the tables that lead to it where there were none.
    ///
    /// Where processors cache invalid entries ([`Encode::caches_invalid`]: RISC-V without Svvptc), the
    /// faulting one fences before it tries again, and does not name the address: a fence with one orders
    /// leaf entries alone, and the invalid entry that it holds may be that of a table (privileged
    /// architecture, "Supervisor Memory-Management Fence Instruction"). A cursor notes that in its gather
    /// ([`Cursor::fault`](super::Cursor::fault)).
    Installed {
        /// Its level.
        level: u8,
    },
    /// Something is there already: another fault was faster, or the access was denied.
    ///
    /// Where invalid entries are cached, the faulting processor fences here as well: it may hold the one
    /// that was there before, and would fault for ever.
    Present {
        /// The entry.
        entry: u64,
        /// Its level.
        level: u8,
    },
}

/// A page that was removed by itself, and that hardware may still use.
///
/// [`complete`](Removed::complete) it; dropped, it reports. The tables are borrowed until then, so
/// that nothing is mapped there while an older translation may be held, which break-before-make
/// forbids (Arm ARM D8.17.1):
///
/// ```compile_fail
/// # use slat::edit::{Encode, Error, FrameSource, Gather, Leaves, Live, TableMemory, Tables};
/// # use slat::{Address, invalidate::{By, Context}};
/// fn early<F: Encode, I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource>(
///     tables: &mut Tables<F, I, O, M>, source: &S, at: I, output: O, leaves: &Leaves,
/// ) -> Result<(), Error> {
///     let removed = tables.remove::<Live>(at, Context::All, |_| {})?;
///     tables.fault::<S, Live>(source, at, output, 0, leaves)?; // still borrowed
///     removed.map(|removed| removed.complete(&mut By(|_: &Gather<'_>| ())));
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "hardware may use the page until its invalidation is completed"]
pub struct Removed<'t> {
    tables: PhantomData<&'t mut ()>,
    context: Context,
    root: u64,
    start: u64,
    bytes: u64,
    entry: u64,
    report: fn(Leak),
}

impl<'t> Removed<'t> {
    /// The leaf as it was at the last, with its accessed and dirty state.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Has `invalidate` do what is due.
    ///
    /// # Errors
    /// The token, with what `invalidate` failed of.
    #[inline(always)]
    pub fn complete<V: Invalidate>(
        self,
        invalidate: &mut V,
    ) -> Result<(), (Removed<'t>, V::Error)> {
        let mut ranges = [Stale { start: self.start, last: self.start + (self.bytes - 1) }];
        let slots =
            Slots { ranges: &mut ranges, detached: &mut [], pending: &mut [], report: |_| {} };
        let gather = Gather { inner: Inner::of_page(slots, self.context, self.root) };
        let outcome = invalidate.invalidate(&gather);
        gather.forget();
        match outcome {
            Ok(()) => {
                core::mem::forget(self);
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}

impl Drop for Removed<'_> {
    #[cold]
    fn drop(&mut self) {
        (self.report)(Leak { context: self.context, ranges: 1, subtrees: 0, frozen: 0 });
    }
}

impl<F: Encode, I: Address, O: Address, M: TableMemory<F::Word>> Tables<F, I, O, M> {
    /// Serves a fault at `address` where nobody else changes the tables: as
    /// [`Walker::fault`](super::Walker::fault) does where others do.
    ///
    /// ```
    /// # use slat::edit::{Arena, Leaves, Quiet, Served, Tables, ept::Attributes};
    /// # use slat::format::ept::{Ept, Features};
    /// # use slat::{Gpa, Permissions, Spa, memory_type::x86::Type};
    /// # use core::sync::atomic::AtomicU64;
    /// # let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    /// # let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
    /// # let format = Ept::four(Features::default());
    /// # let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena)?;
    /// # let all = Permissions { read: true, write: true, execute: true };
    /// # let leaves = Leaves::new(&format, &Attributes::new(all, Type::Wb))?;
    /// let served =
    ///     tables.fault::<_, Quiet>(&arena, Gpa::new(0x5123), Spa::new(0x9000), 0, &leaves)?;
    /// assert_eq!(served, Served::Installed { level: 0 });
    /// assert_eq!(tables.translate(Gpa::new(0x5123)).unwrap().output, Spa::new(0x9123));
    /// # Ok::<(), slat::edit::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Walker::fault`](super::Walker::fault).
    #[inline(always)]
    pub fn fault<S: FrameSource, X: Mode>(
        &mut self,
        source: &S,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        self.serve::<S, X>(source, address, output, level, leaves)
    }

    /// Removes the smallest page at `address`. `None` where nothing is there. `report` is told where
    /// the token is dropped.
    ///
    /// # Errors
    /// [`Error::OutsideInput`], [`Error::Misaligned`]; [`Error::Occupied`] where the page is part of
    /// a larger one or of a group, [`Error::Frozen`]: a [`Cursor`](super::Cursor) takes those.
    #[inline(always)]
    pub fn remove<X: Mode>(
        &mut self,
        address: I,
        context: Context,
        report: fn(Leak),
    ) -> Result<Option<Removed<'_>>, Error> {
        let start = address.raw();
        let (root, bytes) = (self.root, 1u64 << self.format.shift(0));
        let entry = if start & (bytes - 1) == 0
            && start < self.quick
            && let Some((table, cell)) = self.page_below::<3>(start)
            && let Some(entry) = self.plain_page(cell)
        {
            self.take_out::<X>(start, table, cell, entry)
        } else {
            match self.remove_far::<X>(start) {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        Ok(Some(Removed { tables: PhantomData, context, root, start, bytes, entry, report }))
    }

    /// Removes the smallest page at `start`, whatever it is, and returns its entry.
    #[inline(never)]
    fn remove_far<X: Mode>(&self, start: u64) -> Result<Option<u64>, Error> {
        let format = &self.format;
        if start & ((1u64 << format.shift(0)) - 1) != 0 {
            return Err(Error::Misaligned { value: start });
        }
        let input = self.strip(start).ok_or(Error::OutsideInput { at: start })?;
        let (table, cell) = match self.page_anywhere(input) {
            Some(found) => found,
            None => match self.lowest(input)? {
                (table, cell, 0) => (table, cell),
                (_, cell, _) => {
                    return self.nothing_at(start, F::Word::load(cell, Ordering::Relaxed));
                }
            },
        };
        let entry = F::Word::load(cell, Ordering::Relaxed);
        if entry == 0 || entry == format.frozen() || format.group(entry, 0).is_some() {
            return self.nothing_at(start, entry);
        }
        Ok(Some(self.take_out::<X>(start, table, cell, entry)))
    }

    /// Removes the page at `start` from `cell` of the table at `table`, where `entry` was seen.
    #[inline(always)]
    fn take_out<X: Mode>(
        &self,
        start: u64,
        table: u64,
        cell: &<F::Word as Word>::Atomic,
        entry: u64,
    ) -> u64 {
        let entry = X::exchange::<F::Word>(cell, entry, 0);
        self.publish_one(table, start);
        entry
    }

    /// The entry in `cell`, where that is plainly a smallest page by itself.
    #[inline(always)]
    pub(super) fn plain_page(&self, cell: &<F::Word as Word>::Atomic) -> Option<u64> {
        let entry = F::Word::load(cell, Ordering::Relaxed);
        let plain =
            self.format.maps_to(entry, 0).is_some() && self.format.group(entry, 0).is_none();
        plain.then_some(entry)
    }

    /// No smallest page by itself is there: why not.
    #[cold]
    fn nothing_at(&self, at: u64, entry: u64) -> Result<Option<u64>, Error> {
        if entry == 0 {
            Ok(None)
        } else if entry == self.format.frozen() {
            Err(Error::Frozen { at })
        } else {
            Err(Error::Occupied { at, entry })
        }
    }

    /// The lowest table on the way to `input`, the entry there, and its level.
    #[cold]
    pub(super) fn lowest(
        &self,
        input: u64,
    ) -> Result<(u64, &<F::Word as Word>::Atomic, u8), Error> {
        let format = &self.format;
        let (mut table, mut level) = (self.root, self.top);
        loop {
            let cells = self.cells(table, level)?;
            let cell = &cells[(input >> format.shift(level)) as usize & (cells.len() - 1)];
            match format.decode(F::Word::load(cell, Ordering::Acquire), level) {
                Decoded::Table { next } if level > 0 => (table, level) = (next, level - 1),
                _ => return Ok((table, cell, level)),
            }
        }
    }

    /// The table of smallest pages that translates `input`, and the entry there, where plain table
    /// entries lead to it.
    #[inline(never)]
    fn page_anywhere(&self, input: u64) -> Option<(u64, &<F::Word as Word>::Atomic)> {
        match self.top {
            2 => self.page_below::<2>(input),
            3 => self.page_below::<3>(input),
            4 => self.page_below::<4>(input),
            _ => None,
        }
    }

    #[inline(always)]
    fn page_below<const TOP: u8>(&self, input: u64) -> Option<(u64, &<F::Word as Word>::Atomic)> {
        let mut cell = self.root_cell::<TOP>(input)?;
        let (mut level, mut table) = (TOP, self.root);
        while level > 0 {
            table = self.format.points_at(F::Word::load(cell, Ordering::Acquire), level)?;
            level -= 1;
            cell = self.below(table, input, level)?;
        }
        Some((table, cell))
    }

    /// Tells the memory that the entry for `address` in the table of level 0 has been written.
    #[inline(always)]
    fn publish_one(&self, table: u64, address: u64) {
        let index = (address >> self.format.shift(0)) & ((1u64 << self.format.index_bits(0)) - 1);
        self.publish_entry(table, index);
    }

    /// Tells the memory that an entry of a table has been written.
    #[inline(always)]
    fn publish_entry(&self, table: u64, index: u64) {
        let bytes = F::Word::SIZE.bytes();
        self.memory.publish(table + index * bytes, bytes);
    }

    /// Installs the page of `level` around `address`, unless something is there.
    #[inline(always)]
    pub(super) fn serve<S: FrameSource, X: Mode>(
        &self,
        source: &S,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        let format = &self.format;
        let (raw, base) = (address.raw(), output.raw());
        if level == 0
            && base & self.beyond == 0
            && raw < self.quick
            && let Some((table, cell)) = self.page_below::<3>(raw)
            && X::install::<F::Word>(cell, leaves.at(0) | format.place(base, 0))
        {
            self.publish_one(table, raw);
            return Ok(Served::Installed { level: 0 });
        }
        self.serve_far::<S, X>(source, address, output, level, leaves)
    }

    /// The same, in tables of whatever levels.
    #[inline(never)]
    fn serve_far<S: FrameSource, X: Mode>(
        &self,
        source: &S,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        let format = &self.format;
        let (raw, base) = (address.raw(), output.raw());
        if level == 0
            && base & self.beyond == 0
            && raw >= self.quick
            && let Some(input) = self.strip(raw)
            && let Some((table, cell)) = self.page_anywhere(input)
            && X::install::<F::Word>(cell, leaves.at(0) | format.place(base, 0))
        {
            self.publish_one(table, raw);
            return Ok(Served::Installed { level: 0 });
        }
        self.serve_any::<S, X>(source, address, output, level, leaves)
    }

    #[inline(never)]
    fn serve_any<S: FrameSource, X: Mode>(
        &self,
        source: &S,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        let format = &self.format;
        let raw = address.raw();
        let input = self.strip(raw).ok_or(Error::OutsideInput { at: raw })?;
        if level > self.top {
            return Err(Error::Refused(Refused::Level(level)));
        }
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
        let mut at = self.top;
        let mut table = self.root;
        let mut cells = self.cells(table, at)?;
        loop {
            let index = (input >> format.shift(at)) as usize & (cells.len() - 1);
            let cell = &cells[index];
            let entry = F::Word::load(cell, Ordering::Acquire);
            match format.decode(entry, at) {
                Decoded::Table { next } if at > 0 => {
                    at -= 1;
                    table = next;
                    cells = self.cells(table, at)?;
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
                if X::replace::<F::Word>(cell, 0, leaf).is_ok() {
                    self.publish_entry(table, index as u64);
                    return Ok(Served::Installed { level: at });
                }
                continue;
            }
            let below = at - 1;
            let frame = self.take(source, raw, below)?;
            match self.link::<X>(cell, &frame, below) {
                Ok(true) => self.publish_entry(table, index as u64),
                Ok(false) => source.put(frame),
                Err(error) => {
                    source.put(frame);
                    return Err(error);
                }
            }
        }
    }

    /// Links an empty table, unless somebody was faster.
    fn link<X: Mode>(
        &self,
        cell: &<F::Word as Word>::Atomic,
        frame: &Frame,
        level: u8,
    ) -> Result<bool, Error> {
        self.clear(frame, level)?;
        fence(Ordering::Release);
        self.memory.publish(frame.address(), frame.bytes());
        let entry = self.format.table(frame.address(), level + 1);
        Ok(X::replace::<F::Word>(cell, 0, entry).is_ok())
    }
}
