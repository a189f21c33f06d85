//! The memory under an explained walk: it says which access it could not serve, and keeps what is
//! written apart from the image.

use std::collections::BTreeMap;

use slat::{Access, ByteOrder, EntryLayout, Memory, Spa, Value};

/// A table entry that the memory does not have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missing {
    pub(super) address: u64,
    pub(super) access: Access,
}

/// A memory whose faults say which access failed, and whose writes stay here.
pub(super) struct Bus<M> {
    memory: M,
    /// The bytes that were written. A walk writes one entry a level.
    written: BTreeMap<u64, u8>,
}

impl<M> Bus<M> {
    /// Over this memory, nothing written.
    pub(super) fn new(memory: M) -> Bus<M> {
        Bus { memory, written: BTreeMap::new() }
    }
}

/// Where byte `number` of an entry, counted from its least significant one, lies from its start.
fn offset(layout: EntryLayout, number: u64) -> u64 {
    match layout.order {
        ByteOrder::Little => number,
        ByteOrder::Big => layout.size.bytes() - 1 - number,
    }
}

impl<M: Memory<Address = Spa>> Memory for Bus<M> {
    type Address = Spa;
    type Fault = Missing;

    #[inline]
    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Missing> {
        let missing = Missing { address: address.raw(), access: *access };
        let mut read = self.memory.read(address, layout, access).map_err(|_| missing)?;
        if !self.written.is_empty() {
            for number in 0..layout.size.bytes() {
                if let Some(&byte) = self.written.get(&(address.raw() + offset(layout, number))) {
                    let at = 8 * number;
                    read.value = read.value & !(0xff << at) | u64::from(byte) << at;
                }
            }
        }
        Ok(read)
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Missing> {
        if self.read(address, layout, access)?.value != current {
            return Ok(false);
        }
        for number in 0..layout.size.bytes() {
            let byte = (new >> (8 * number)) as u8;
            self.written.insert(address.raw() + offset(layout, number), byte);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slat::{EntrySize, SliceMemory};

    #[test]
    fn what_is_written_is_read_in_either_order_and_size() {
        let mut bytes: Vec<u8> = (0..16).collect();
        let access = Access::default();
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let layout = EntryLayout { size: EntrySize::Eight, order };
            let mut bus = Bus::new(SliceMemory::new(Spa::new(0x1000), &mut bytes));
            let first = bus.read(Spa::new(0x1008), layout, &access).unwrap().value;
            assert!(!bus.compare_exchange(Spa::new(0x1008), layout, !first, 7, &access).unwrap());
            assert!(bus.compare_exchange(Spa::new(0x1008), layout, first, 7, &access).unwrap());
            assert_eq!(bus.read(Spa::new(0x1008), layout, &access).unwrap().value, 7);
            let half = EntryLayout { size: EntrySize::Four, order };
            let (low, high) = if order == ByteOrder::Little { (8, 12) } else { (12, 8) };
            assert_eq!(bus.read(Spa::new(0x1000 + low), half, &access).unwrap().value, 7);
            assert_eq!(bus.read(Spa::new(0x1000 + high), half, &access).unwrap().value, 0);
            // The entry beside it is the image's.
            let beside = bus.read(Spa::new(0x1000), layout, &access).unwrap().value;
            let expected = if order == ByteOrder::Little {
                0x0706_0504_0302_0100
            } else {
                0x01_0203_0405_0607
            };
            assert_eq!(beside, expected);
        }
    }
}
