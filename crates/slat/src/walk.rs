//! The walker. There is one: two-dimensional walks are this walk over a memory that is itself
//! walked ([`Nested`]).

use core::marker::PhantomData;

use crate::access::Access;
use crate::address::Address;
use crate::fault::Failed;
use crate::format::{Format, Found, Path};
use crate::memory::{EntryLayout, Memory, Reached, Value};
use crate::observe::Observer;
use crate::regime::Regime;

mod descent;
mod exact;
mod plain;

pub use descent::{Descent, Next};
use plain::Walk;

/// When a stage's accessed and dirty bits are written. Whether the stage maintains them at all is
/// state of its format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Updates {
    /// Never; what would be written is reported to the observer.
    #[default]
    Never,
    /// Entry by entry as the walk goes, even where it later fails.
    AsWalked,
    /// Once this stage's walk and permission check have succeeded.
    OnSuccess,
}

/// One stage of translation: a format, its root, and when accessed and dirty bits are written.
/// `I` is the space it translates from, `O` the one it translates to and holds its tables in.
pub struct Stage<F: Format, I, O> {
    /// How the tables are encoded.
    pub format: F,
    /// What the root registers hold.
    pub root: F::Root,
    /// When accessed and dirty bits are written.
    pub updates: Updates,
    /// How steps and faults name this stage: 1, 2, and 3 for the host's own under nested
    /// virtualization.
    pub number: u8,
    spaces: PhantomData<fn(I) -> O>,
}

impl<F: Format, I, O> Clone for Stage<F, I, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format, I, O> Copy for Stage<F, I, O> {}

impl<F: Format, I: Address, O: Address> Stage<F, I, O> {
    /// The stage with these tables, numbered as its format is, which never writes
    /// accessed and dirty bits.
    pub fn new(format: F, root: F::Root) -> Self {
        let number = format.stage();
        Stage { format, root, updates: Updates::Never, number, spaces: PhantomData }
    }

    /// The same stage, which writes accessed and dirty bits at this time.
    #[must_use]
    pub fn with_updates(self, updates: Updates) -> Self {
        Stage { updates, ..self }
    }

    /// The same stage, named by this number.
    #[must_use]
    pub fn with_number(self, number: u8) -> Self {
        Stage { number, ..self }
    }
}

/// What one stage's walk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped<O> {
    /// The address in the next space.
    pub output: O,
    /// The leaf.
    pub found: Found,
}

/// Walks one stage's tables in `memory` and checks that they permit `access`.
///
/// `input` is the address to translate; `regime` the state that belongs to no one stage; `observer`
/// sees every entry that is read (`&()` for nobody).
///
/// # Errors
/// [`Failed::Here`] where this stage faults, [`Failed::Below`] where `memory` does.
#[inline]
pub fn walk<F, I, O, M, W>(
    stage: &Stage<F, I, O>,
    memory: &mut M,
    input: I,
    access: &Access,
    regime: &Regime,
    observer: &W,
) -> Result<Mapped<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    let Stage { format, root, updates, number, .. } = stage;
    let (updates, access) = (*updates, access.by_fields());
    let from = None;
    format.visit(root, Walk { number, updates, from, memory, input, access, regime, observer })
}

/// Where a walk takes up what a cache of table entries remembers: the entries above `level` are not
/// read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partial {
    /// Level of the first entry to read.
    pub level: u8,
    /// Address of its table in the output space.
    pub table: u64,
    /// What the entries above said.
    pub path: Path,
}

/// As [`walk`], but begins at a table that a paging-structure cache remembers. Accessed bits of the
/// entries above are left as they are: a processor set them when it cached the entries.
///
/// # Errors
/// As [`walk`].
#[inline]
pub fn walk_from<F, I, O, M, W>(
    stage: &Stage<F, I, O>,
    from: &Partial,
    memory: &mut M,
    input: I,
    access: &Access,
    regime: &Regime,
    observer: &W,
) -> Result<Mapped<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    let Stage { format, root, updates, number, .. } = stage;
    let (updates, access) = (*updates, access.by_fields());
    let from = Some(from);
    format.visit(root, Walk { number, updates, from, memory, input, access, regime, observer })
}

/// A memory whose every access is first translated by a stage: what turns the one walker into a
/// two-dimensional one, and two of these into a three-dimensional one.
pub struct Nested<'a, F: Format, I, M: Memory, W> {
    stage: &'a Stage<F, I, M::Address>,
    memory: M,
    regime: &'a Regime,
    observer: &'a W,
}

impl<'a, F: Format, I: Address, M: Memory, W: Observer> Nested<'a, F, I, M, W> {
    /// The memory that `stage` presents to the stage above, itself held in `memory`.
    #[inline]
    pub fn new(
        stage: &'a Stage<F, I, M::Address>,
        memory: M,
        regime: &'a Regime,
        observer: &'a W,
    ) -> Self {
        Nested { stage, memory, regime, observer }
    }

    /// Translates one address for an access that is not to a table: the last step of a nested walk.
    ///
    /// # Errors
    /// As [`walk`].
    #[inline(always)]
    pub fn locate(
        &mut self,
        address: I,
        access: &Access,
    ) -> Result<Mapped<M::Address>, Failed<I, M::Fault>> {
        let mut memory = Lower(&mut self.memory);
        walk(self.stage, &mut memory, address, access, self.regime, self.observer)
    }

    /// As [`locate`](Nested::locate), with accessed and dirty bits written at this time.
    ///
    /// # Errors
    /// As [`walk`].
    pub fn locate_with(
        &mut self,
        address: I,
        access: &Access,
        updates: Updates,
    ) -> Result<Mapped<M::Address>, Failed<I, M::Fault>> {
        let stage = self.stage.with_updates(updates);
        walk(&stage, &mut self.memory, address, access, self.regime, self.observer)
    }

    /// The memory below.
    #[inline]
    pub fn below(&mut self) -> &mut M {
        &mut self.memory
    }
}

impl<F: Format, I: Address, M: Memory, W: Observer> Memory for Nested<'_, F, I, M, W> {
    type Address = I;
    type Fault = Failed<I, M::Fault>;

    const SHARED: bool = true;

    /// Part of the stage above's loop: a call would put descriptors and results into memory.
    #[inline(always)]
    fn read(
        &mut self,
        address: I,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        let mapped = self.locate(address, access)?;
        let read = self.memory.read(mapped.output, layout, access).map_err(Failed::Below)?;
        let leaf = if mapped.found.is_flat() { u64::MAX } else { mapped.found.entry };
        Ok(Value { value: read.value, reached: Reached { leaf } })
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        address: I,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        let mapped = self.locate(address, access)?;
        self.memory
            .compare_exchange(mapped.output, layout, current, new, access)
            .map_err(Failed::Below)
    }
}

/// The memory of the lower stage of [`Nested`].
struct Lower<'a, M>(&'a mut M);

impl<M: Memory> Memory for Lower<'_, M> {
    type Address = M::Address;
    type Fault = M::Fault;

    const SHARED: bool = true;

    #[inline(always)]
    fn read(
        &mut self,
        address: Self::Address,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        self.0.read(address, layout, access)
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        address: Self::Address,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        self.0.compare_exchange(address, layout, current, new, access)
    }
}
