//! Operations: what they do, and how far they came.

use core::fmt;

use super::Cursor;
use crate::address::Address;
use crate::edit::Error;
use crate::edit::encode::Encode;
use crate::edit::frames::FrameSource;
use crate::edit::gather::{Gather, Ready};
use crate::edit::memory::TableMemory;
use crate::edit::word::Mode;

/// How far a step came.
#[derive(Debug)]
#[must_use]
pub enum Step<'g> {
    /// The operation is complete.
    Done,
    /// It cannot go on before this is invalidated: [`Cursor::resume`] with the proof.
    Invalidate(Gather<'g>),
    /// The budget is spent; exactly [`Operation::bytes_done`] bytes have changed.
    Yield,
}

/// Why a cursor could not go on with a proof.
#[derive(Debug)]
pub struct NotResumed<'g> {
    /// Why.
    pub error: Error,
    /// The proof, where it is another cursor's: it is not lost.
    pub ready: Option<Ready<'g>>,
}

impl From<NotResumed<'_>> for Error {
    fn from(not: NotResumed<'_>) -> Error {
        not.error
    }
}

impl fmt::Display for NotResumed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl core::error::Error for NotResumed<'_> {}

/// An operation under way.
#[derive(Debug)]
pub struct Operation<V> {
    pub(in crate::edit) verb: V,
    pub(super) start: u64,
    pub(super) at: u64,
    pub(super) end: u64,
}

impl<V> Operation<V> {
    /// How many bytes from the start of its range have changed as asked; none after them have.
    pub fn bytes_done(&self) -> u64 {
        self.at - self.start
    }

    /// What is left of it, as input addresses.
    pub(in crate::edit) fn span(&self) -> (u64, u64) {
        (self.at, self.end)
    }

    /// Whether all have.
    pub fn is_done(&self) -> bool {
        self.at == self.end
    }

    /// What it does, with what it has learnt.
    pub fn verb(&self) -> &V {
        &self.verb
    }

    /// Ends it here and returns what it had learnt: a witness, for one.
    pub fn into_verb(self) -> V {
        self.verb
    }
}

/// Where an operation is after one table's worth of work.
#[derive(Debug)]
pub enum Advance {
    /// Everything before this input address is done.
    To(u64),
    /// Not without an invalidation.
    Invalidate,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::edit::Map<'_> {}
    impl<W> Sealed for crate::edit::Unmap<W> {}
    impl<W> Sealed for crate::edit::Adjust<W> {}
    impl Sealed for crate::edit::Split {}
    impl Sealed for crate::edit::Collapse {}
    impl<W> Sealed for crate::edit::Remap<W> {}
    impl Sealed for crate::edit::Own {}
}

/// What an [`Operation`] does. Implemented by this library's verbs alone.
pub trait Verb<F: Encode>: sealed::Sealed {
    /// Does at most one table's worth of work at `at`.
    ///
    /// # Errors
    /// Why `at` could not be passed.
    #[doc(hidden)]
    fn advance<I: Address, O: Address, M: TableMemory<F::Word>, S: FrameSource, X: Mode>(
        &mut self,
        cursor: &mut Cursor<'_, '_, F, I, O, M, S, X>,
        at: u64,
        end: u64,
    ) -> Result<Advance, Error>;
}
