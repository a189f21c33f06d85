//! Tables that several threads change: faults install mappings without a lock, walkers read
//! without one, and a cursor changes a range under the caller's.

use super::cursor::Cursor;
use super::encode::{Encode, Leaves};
use super::frames::FrameSource;
use super::gather::Slots;
use super::mappings::{Mapping, Mappings};
use super::memory::TableMemory;
use super::page::Served;
use super::walkers::{Guard, Walkers};
use super::word::Faulting;
use super::{Error, Tables};
use crate::address::Address;
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
    /// With break-before-make, what a cursor removed stays frozen until its gather is completed: a
    /// later cursor that meets it says [`Error::Frozen`], and succeeds after that
    /// ([`Completed::reclaim`](super::Completed::reclaim) thaws). Whoever keeps others off should do so
    /// until then, or at least until nobody removes the same addresses once more.
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
    /// [`Error::NoFrame`] and [`Error::OutOfReach`], with nothing changed; of the address and output.
    #[inline]
    pub fn fault<S: FrameSource>(
        &self,
        source: &S,
        address: I,
        output: O,
        level: u8,
        leaves: &Leaves,
    ) -> Result<Served, Error> {
        self.tables.serve::<S, Faulting>(source, address, output, level, leaves)
    }
}
