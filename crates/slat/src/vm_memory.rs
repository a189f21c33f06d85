//! [`Memory`] for any rust-vmm `GuestMemory` (feature `vm-memory`): a VMM explains its guest's
//! addresses from the memory it already has. `examples/kvm-gva.rs` does so from a vCPU's registers.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ::vm_memory::bitmap::BS;
use ::vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileMemory, VolatileSlice};

use crate::access::Access;
use crate::address::Gpa;
use crate::memory::{ByteOrder, EntryLayout, EntrySize, Memory, Outside, Reached, Value};

/// A guest's memory, addressed by [`Gpa`]. Entries are read and exchanged atomically, since the
/// guest may run.
#[derive(Debug)]
pub struct GuestTables<'a, M> {
    memory: &'a M,
}

impl<'a, M: GuestMemory> GuestTables<'a, M> {
    /// The tables in this memory.
    pub fn new(memory: &'a M) -> Self {
        GuestTables { memory }
    }

    /// `size` bytes in one piece.
    fn slice(
        &self,
        address: Gpa,
        size: usize,
        access: Permissions,
    ) -> Option<VolatileSlice<'_, BS<'_, M::Bitmap>>> {
        let at = GuestAddress(address.raw());
        let slice = self.memory.get_slices(at, size, access).ok()?.next()?.ok()?;
        (slice.len() == size).then_some(slice)
    }
}

impl<M: GuestMemory> Memory for GuestTables<'_, M> {
    type Address = Gpa;
    type Fault = Outside<Gpa>;

    fn read(
        &mut self,
        address: Gpa,
        layout: EntryLayout,
        _: &Access,
    ) -> Result<Value, Outside<Gpa>> {
        let outside = Outside { address, write: false };
        let size = layout.size.bytes() as usize;
        let slice = self.slice(address, size, Permissions::Read).ok_or(outside)?;
        let raw = match layout.size {
            EntrySize::Eight => {
                let entry = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| outside)?;
                in_order(entry.load(Ordering::Acquire), layout)
            }
            EntrySize::Four => {
                let entry = slice.get_atomic_ref::<AtomicU32>(0).map_err(|_| outside)?;
                in_order(entry.load(Ordering::Acquire).into(), layout)
            }
        };
        Ok(Value { value: raw, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Gpa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Outside<Gpa>> {
        let outside = Outside { address, write: true };
        let size = layout.size.bytes() as usize;
        let slice = self.slice(address, size, Permissions::ReadWrite).ok_or(outside)?;
        let (current, new) = (in_order(current, layout), in_order(new, layout));
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        Ok(match layout.size {
            EntrySize::Eight => slice
                .get_atomic_ref::<AtomicU64>(0)
                .map_err(|_| outside)?
                .compare_exchange(current, new, success, failure)
                .is_ok(),
            EntrySize::Four => slice
                .get_atomic_ref::<AtomicU32>(0)
                .map_err(|_| outside)?
                .compare_exchange(current as u32, new as u32, success, failure)
                .is_ok(),
        })
    }
}

/// From the machine's own order to the table's, or back: the same exchange of bytes.
fn in_order(value: u64, layout: EntryLayout) -> u64 {
    match (layout.size, layout.order) {
        (EntrySize::Eight, ByteOrder::Little) => u64::from_le(value),
        (EntrySize::Eight, ByteOrder::Big) => u64::from_be(value),
        (EntrySize::Four, ByteOrder::Little) => u32::from_le(value as u32).into(),
        (EntrySize::Four, ByteOrder::Big) => u32::from_be(value as u32).into(),
    }
}

#[cfg(test)]
mod tests {
    use ::vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    #[test]
    fn entries_of_both_sizes_and_orders() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
        memory.write_slice(&[1, 2, 3, 4, 5, 6, 7, 8], GuestAddress(0x1008)).unwrap();
        let mut tables = GuestTables::new(&memory);
        let access = Access::default();
        for (size, order, expected) in [
            (EntrySize::Eight, ByteOrder::Little, 0x0807_0605_0403_0201),
            (EntrySize::Eight, ByteOrder::Big, 0x0102_0304_0506_0708),
            (EntrySize::Four, ByteOrder::Little, 0x0403_0201),
            (EntrySize::Four, ByteOrder::Big, 0x0102_0304),
        ] {
            let layout = EntryLayout { size, order };
            let at = Gpa::new(0x1008);
            assert_eq!(tables.read(at, layout, &access).unwrap().value, expected);
            assert_eq!(tables.compare_exchange(at, layout, !expected, 0, &access), Ok(false));
            assert_eq!(tables.compare_exchange(at, layout, expected, expected, &access), Ok(true));
        }
        let outside = tables.read(Gpa::new(0x2000), EntryLayout::LE64, &access);
        assert_eq!(outside.unwrap_err().address, Gpa::new(0x2000));
    }
}
