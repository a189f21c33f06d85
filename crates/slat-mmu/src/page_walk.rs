//! AMD's page walk cache: table entries by the system physical address they lie at, in front of the
//! memory that a walk reads. A hit saves the read, and not the nested walk that found the address.
//!
//! The three designs of Bhargava et al. ("Accelerating Two-Dimensional Page Walks for Virtualized
//! Systems", ASPLOS 2008) differ in what they keep:
//!
//! | design | keeps |
//! |---|---|
//! | 1D | the guest's entries that point at tables |
//! | 2D | those and the nested tables' |
//! | 2D + nested TLB | the same, behind [`WalkerConfig::nested_tlb`](crate::walker::WalkerConfig) |

use slat::{Access, EntryLayout, Memory, Purpose, Spa, Value};

use crate::array::Array;

/// Memory behind a page walk cache. `keeps` says of an entry (its address, level and content)
/// whether the cache keeps it; leaves are not kept in any of the three designs.
///
/// The cache is not coherent with stores of software: it is [cleared](Array::clear) when the
/// processor invalidates.
#[derive(Debug)]
pub struct PageWalk<'a, M, K> {
    memory: &'a mut M,
    cache: &'a mut Array<u64>,
    keeps: K,
}

impl<'a, M: Memory<Address = Spa>, K: FnMut(Spa, u8, u64) -> bool> PageWalk<'a, M, K> {
    /// `memory` behind `cache`, which stays between walks.
    pub fn new(memory: &'a mut M, cache: &'a mut Array<u64>, keeps: K) -> Self {
        PageWalk { memory, cache, keeps }
    }
}

/// Entries are at multiples of 4; no key is 0.
fn key(address: Spa) -> u64 {
    (address.raw() >> 2) + 1
}

impl<M: Memory<Address = Spa>, K: FnMut(Spa, u8, u64) -> bool> Memory for PageWalk<'_, M, K> {
    type Address = Spa;
    type Fault = M::Fault;

    #[inline]
    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, M::Fault> {
        let key = key(address);
        if let Some(&mut value) = self.cache.find(key, [key, key]) {
            return Ok(Value { value, reached: slat::Reached::DIRECTLY });
        }
        let read = self.memory.read(address, layout, access)?;
        if let Purpose::Table { level } = access.purpose
            && (self.keeps)(address, level, read.value)
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
