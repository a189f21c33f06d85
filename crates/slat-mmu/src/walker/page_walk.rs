//! AMD's page walk cache, in front of the memory that a walk reads.
//!
//! It is not coherent with stores of software: what the processor invalidates drops all of it.

use slat::{Access, EntryLayout, Memory, Purpose, Reached, Spa, Value};

use crate::array::Array;

/// Memory behind a page walk cache. `is_table` says of an entry and its level whether it points at a
/// table: others are not kept.
pub(super) struct PageWalk<'a, M, K> {
    pub(super) memory: &'a mut M,
    pub(super) cache: &'a mut Array<u64>,
    pub(super) enabled: bool,
    pub(super) is_table: K,
}

/// Entries are at multiples of 4; no key is 0.
#[inline(always)]
fn key(address: Spa) -> u64 {
    (address.raw() >> 2) + 1
}

impl<M: Memory<Address = Spa>, K: Fn(u64, u8) -> bool> Memory for PageWalk<'_, M, K> {
    type Address = Spa;
    type Fault = M::Fault;

    #[inline(always)]
    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, M::Fault> {
        if !self.enabled {
            return self.memory.read(address, layout, access);
        }
        let key = key(address);
        if let Some(&mut value) = self.cache.find(key, [key, key]) {
            return Ok(Value { value, reached: Reached::DIRECTLY });
        }
        let read = self.memory.read(address, layout, access)?;
        if let Purpose::Table { level } = access.purpose
            && (self.is_table)(read.value, level)
        {
            self.cache.insert(key, key, read.value);
        }
        Ok(read)
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, M::Fault> {
        // What the walker itself writes, or fails to, is read again.
        let key = key(address);
        self.cache.remove(key, key);
        self.memory.compare_exchange(address, layout, current, new, access)
    }
}
