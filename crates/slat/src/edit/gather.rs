//! What a change leaves to be done: invalidations, and frames that come free only after them.
//!
//! ```text
//! Cursor --finish--> Gather --complete(invalidate)--> Completed --reclaim--> Reclaim --> Frame...
//!                      |                                  |                     |
//!                  dropped: leaks, reports            dropped: likewise      finish --> Ready
//! ```
//!
//! A frame cannot leave in any other way, which the compiler enforces:
//!
//! ```compile_fail
//! # use slat::edit::{Gather, FrameSource};
//! fn too_early(gather: Gather<'_>, source: &impl FrameSource) {
//!     for frame in gather.reclaim() { // a gather has no frames; only `Completed` has
//!         source.put(frame);
//!     }
//! }
//! ```
//!
//! and a gather that is silently ignored is reported by the compiler:
//!
//! ```compile_fail
//! #![deny(unused_must_use)]
//! # use slat::edit::{Cursor, Encode, FrameSource, Mode, TableMemory};
//! fn forgotten<F: Encode, I: slat::Address, O: slat::Address, M, S, X>(
//!     cursor: Cursor<'_, '_, F, I, O, M, S, X>,
//! ) where
//!     M: TableMemory<F::Word>,
//!     S: FrameSource,
//!     X: Mode,
//! {
//!     cursor.finish();
//! }
//! ```

#![expect(
    clippy::result_large_err,
    reason = "a refused token comes back by value, or it would leak"
)]

use core::fmt;

use super::encode::Effect;
use super::pending::Pending;
use crate::invalidate::{Context, Invalidate};

mod inner;
mod reclaim;

pub(super) use inner::{Break, Inner};
pub use reclaim::{Completed, Ready, Reclaim};

/// A range of addresses whose translations may be stale.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Stale {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub last: u64,
}

impl Stale {
    /// What covers no range.
    const NOTHING: Stale = Stale { start: u64::MAX, last: 0 };
}

/// A detached subtree: its root table, and the level of that table's entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Detached {
    pub(super) table: u64,
    pub(super) level: u8,
    /// First input address that it translated.
    pub(super) start: u64,
    /// Others may point at it, or at tables below it: the reference that went is given up when the
    /// frame would come out.
    pub(super) shared: bool,
}

/// What was lost because a token was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leak {
    /// Whose translations.
    pub context: Context,
    /// Ranges that were never invalidated.
    pub ranges: usize,
    /// Subtrees whose frames will never be used again.
    pub subtrees: usize,
    /// Entries that stay frozen, those of groups and runs one by one: every access to them faults and
    /// is tried again.
    pub frozen: usize,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a gather of {:?} was dropped: {} ranges not invalidated, {} subtrees lost, {} entries \
             frozen",
            self.context, self.ranges, self.subtrees, self.frozen
        )
    }
}

/// The storage of a gather, lent by the caller.
///
/// Too few range slots make ranges wider; too few table slots make an operation stop for an
/// invalidation more often. One of each is enough for every operation to proceed.
#[derive(Debug)]
pub struct Slots<'g> {
    /// Ranges to invalidate.
    pub ranges: &'g mut [Stale],
    /// Detached subtrees.
    pub detached: &'g mut [Detached],
    /// Broken entries; needed by formats with break-before-make alone. Each holds an entry, a whole
    /// group, or a run of entries that were removed from one table.
    pub pending: &'g mut [Pending],
    /// Is told when a token is dropped without its duty done. Nothing is freed then.
    pub report: fn(Leak),
}

/// What must be invalidated, and the tables that come free only when it has been.
#[derive(Debug)]
#[must_use = "hardware may act on older entries until this is completed; dropped, it leaks its frames"]
pub struct Gather<'g> {
    pub(super) inner: Inner<'g>,
}

impl<'g> Gather<'g> {
    /// Whose translations.
    pub fn context(&self) -> Context {
        self.inner.context
    }

    /// The ranges to invalidate, in the order in which they changed; everything, where the caller
    /// lent no slot at all and something is stale.
    pub fn ranges(&self) -> &[Stale] {
        const EVERYTHING: &[Stale] = &[Stale { start: 0, last: u64::MAX }];
        match &self.inner.slots {
            Some(slots) if !slots.ranges.is_empty() => &slots.ranges[..self.inner.ranges as usize],
            _ if self.inner.effect == Effect::None => &[],
            _ => EVERYTHING,
        }
    }

    /// Whether there is nothing to invalidate.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.inner.effect == Effect::None
    }

    /// Whether all that is left undone is to make hardware set accessed bits again.
    pub fn is_waivable(&self) -> bool {
        self.inner.effect <= Effect::Aged && self.inner.detached == 0 && self.inner.pending == 0
    }

    /// Whether entries that point at tables have changed: leaf-only invalidations do not suffice.
    pub fn tables_changed(&self) -> bool {
        self.inner.tables
    }

    /// A set of the levels of leaves that have changed, bit n for level n.
    pub fn levels(&self) -> u8 {
        self.inner.levels
    }

    /// Number of detached subtrees.
    pub fn detached(&self) -> usize {
        self.inner.detached as usize
    }

    /// How many slots for broken entries are taken. Each is an entry or a whole group that was broken,
    /// or a run of entries that were removed from one table while faults may map, with the holes
    /// between them: all of these are frozen until they are made. [`Broken`](super::Broken) tokens
    /// take none.
    pub fn broken(&self) -> usize {
        self.inner.waiting().len()
    }

    /// Ends a gather whose duty another token has.
    #[inline(always)]
    pub(super) fn forget(mut self) {
        self.inner.invalidated();
    }

    /// Has `invalidate` do what is due, and returns the proof that it did.
    ///
    /// # Errors
    /// The gather, unchanged, with what `invalidate` failed of.
    #[inline(always)]
    pub fn complete<V: Invalidate>(
        self,
        invalidate: &mut V,
    ) -> Result<Completed<'g>, (Gather<'g>, V::Error)> {
        if !self.is_empty()
            && let Err(error) = invalidate.invalidate(&self)
        {
            return Err((self, error));
        }
        let mut inner = self.inner;
        inner.invalidated();
        Ok(Completed { inner, since: None })
    }

    /// Lets pages look older than they are: completes a gather of cleared accessed bits without an
    /// invalidation.
    ///
    /// # Errors
    /// The gather, where more than that is due.
    pub fn waive(self) -> Result<Completed<'g>, Gather<'g>> {
        if !self.is_waivable() {
            return Err(self);
        }
        let mut inner = self.inner;
        inner.invalidated();
        Ok(Completed { inner, since: None })
    }
}
