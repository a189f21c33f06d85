//! AMD's page walk cache, in front of the memory that a walk reads.
//!
//! It is not coherent with stores of software: what the processor invalidates is dropped. Entries are
//! found by physical address alone, and know besides only which virtual machine's walk has read them: a
//! flush is of one ASID (AMD APM 2 15.16.1), and takes all upper levels of it, whether or not they lead
//! to the page that it names (`EFER.TCE` clear, 3.1.7).

use slat::{Access, EntryLayout, Memory, Purpose, Reached, Spa, Value};

use crate::array::Array;
use crate::tlb::Tag;

/// An entry as a page walk cache keeps it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cached {
    entry: u64,
    /// The tag of the machine whose walks have read it; 0 where those of several have.
    vm: u16,
}

impl Cached {
    /// Whether it may stay where `keep` says which machines' entries do: one of several goes with any's.
    pub(super) fn stays(&self, keep: &mut impl FnMut(u16) -> bool) -> bool {
        self.vm != 0 && keep(self.vm)
    }
}

/// Memory behind a page walk cache. `is_table` says of an entry and its level whether it points at a
/// table: others are not kept.
pub(super) struct PageWalk<'a, M, K> {
    pub(super) memory: &'a mut M,
    pub(super) cache: &'a mut Array<Cached>,
    /// The machine that walks.
    pub(super) vm: Tag,
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
        if let Some(cached) = self.cache.find(key, [key, key]) {
            if cached.vm != self.vm.number() {
                cached.vm = 0;
            }
            return Ok(Value { value: cached.entry, reached: Reached::DIRECTLY });
        }
        let read = self.memory.read(address, layout, access)?;
        if let Purpose::Table { level } = access.purpose
            && (self.is_table)(read.value, level)
        {
            self.cache.insert(key, key, Cached { entry: read.value, vm: self.vm.number() });
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
