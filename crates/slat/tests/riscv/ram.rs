//! Memory for tests: sparse, or made up entry by entry.

use std::collections::BTreeMap;
use std::ops::Range;

use slat::{Access, EntryLayout, EntrySize, Memory, Outside, Reached, Spa, Value};

/// Little-endian memory of 32-bit words. A word that was never stored is what `fill` says.
#[derive(Clone)]
pub(crate) struct Ram {
    pub(crate) range: Range<u64>,
    pub(crate) words: BTreeMap<u64, u32>,
    pub(crate) fill: fn(u64, u64) -> u32,
    pub(crate) seed: u64,
}

impl Ram {
    pub(crate) fn zeroed(range: Range<u64>) -> Ram {
        Ram { range, words: BTreeMap::new(), fill: |_, _| 0, seed: 0 }
    }

    pub(crate) fn word(&self, address: u64) -> u32 {
        self.words.get(&address).copied().unwrap_or_else(|| (self.fill)(self.seed, address))
    }

    pub(crate) fn get(&self, address: u64, bytes: u64) -> Option<u64> {
        if address < self.range.start || address + bytes > self.range.end {
            return None;
        }
        let high = if bytes == 8 { u64::from(self.word(address + 4)) << 32 } else { 0 };
        Some(high | u64::from(self.word(address)))
    }

    pub(crate) fn set(&mut self, address: u64, bytes: u64, value: u64) {
        self.words.insert(address, value as u32);
        if bytes == 8 {
            self.words.insert(address + 4, (value >> 32) as u32);
        }
    }
}

fn bytes(layout: EntryLayout) -> u64 {
    match layout.size {
        EntrySize::Four => 4,
        EntrySize::Eight => 8,
    }
}

impl Memory for Ram {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        _: &Access,
    ) -> Result<Value, Self::Fault> {
        let value =
            self.get(address.raw(), bytes(layout)).ok_or(Outside { address, write: false })?;
        Ok(Value { value, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Self::Fault> {
        let outside = Outside { address, write: true };
        let found = self.get(address.raw(), bytes(layout)).ok_or(outside)?;
        if found == current {
            self.set(address.raw(), bytes(layout), new);
        }
        Ok(found == current)
    }
}
