//! Lent table memory, as a processor reads it.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use slat::edit::{TableMemory, Word};
use slat::{Access, Address, EntryLayout, Memory, Outside, Reached, Value};

/// The memory of [`slat::edit`]'s tables, of entries `W` at addresses `A`, for
/// [`Checker::speculate`](super::Checker::speculate) and for walks.
#[derive(Debug)]
pub struct Words<'a, W, A, M> {
    memory: &'a M,
    kinds: PhantomData<(W, A)>,
}

impl<'a, W: Word, A: Address, M: TableMemory<W>> Words<'a, W, A, M> {
    /// This memory.
    pub fn new(memory: &'a M) -> Self {
        Words { memory, kinds: PhantomData }
    }
}

impl<W: Word, A: Address, M: TableMemory<W>> Memory for Words<'_, W, A, M> {
    type Address = A;
    type Fault = Outside<A>;

    fn read(&mut self, address: A, _: EntryLayout, _: &Access) -> Result<Value, Outside<A>> {
        let cells = self.memory.table(address.raw(), 1).ok_or(Outside { address, write: false })?;
        let cell = cells.first().ok_or(Outside { address, write: false })?;
        Ok(Value { value: W::load(cell, Ordering::Acquire), reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: A,
        _: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Outside<A>> {
        let cells = self.memory.table(address.raw(), 1).ok_or(Outside { address, write: true })?;
        let cell = cells.first().ok_or(Outside { address, write: true })?;
        Ok(W::compare_exchange(cell, current, new).is_ok())
    }
}
