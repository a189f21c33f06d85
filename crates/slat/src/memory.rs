//! The memory under a walk: two operations, which may themselves be a walk.

use core::fmt;

use crate::access::Access;
use crate::address::Address;

/// Size of one table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum EntrySize {
    /// 32-bit entries.
    Four,
    /// 64-bit entries.
    Eight,
}

impl EntrySize {
    /// The size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        match self {
            EntrySize::Four => 4,
            EntrySize::Eight => 8,
        }
    }
}

/// Byte order of table entries (`SCTLR_ELx.EE`, `mstatus.SBE`; x86 is little-endian).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum ByteOrder {
    /// Least significant byte first.
    #[default]
    Little,
    /// Most significant byte first.
    Big,
}

/// Where an entry lies in its memory, and how to read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct EntryLayout {
    /// Four or eight bytes.
    pub size: EntrySize,
    /// The order of those bytes.
    pub order: ByteOrder,
}

impl EntryLayout {
    /// Eight bytes, little-endian: most formats.
    pub const LE64: EntryLayout = EntryLayout { size: EntrySize::Eight, order: ByteOrder::Little };
    /// Four bytes, little-endian: x86 32-bit paging, Sv32, Arm short descriptors.
    pub const LE32: EntryLayout = EntryLayout { size: EntrySize::Four, order: ByteOrder::Little };
}

/// The attributes by which a value was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Reached {
    /// The leaf entry of the stage below through which the value was read, or all ones where the
    /// memory is not itself translated (so that an AND over several keeps its meaning).
    pub leaf: u64,
}

impl Reached {
    /// Reached in memory that is not itself translated.
    pub const DIRECTLY: Reached = Reached { leaf: u64::MAX };
}

/// A value with the attributes it was reached by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    /// The entry; four-byte entries are zero-extended.
    pub value: u64,
    /// How it was reached.
    pub reached: Reached,
}

/// The memory that holds tables.
///
/// Reads take `&mut self` so that an implementation may keep counters or caches; memory that can
/// be read through a shared reference implements the trait for `&T`.
pub trait Memory {
    /// The space that this memory is addressed in.
    type Address: Address;
    /// Why an entry could not be reached.
    type Fault;

    /// Whether walks over this memory are part of a walk of several stages. Those are kept small: what
    /// a walk gains by code of its own for each level, they lose by there being so much of it.
    const SHARED: bool = false;

    /// Reads the entry at `address`, which is a multiple of its size.
    ///
    /// # Errors
    /// Where nothing is there, or a stage below faults.
    fn read(
        &mut self,
        address: Self::Address,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault>;

    /// Stores `new` at `address` if the entry there still is `current`, in one atomic step, and
    /// returns whether it did.
    ///
    /// # Errors
    /// Where nothing is there, it cannot be written, or a stage below faults.
    fn compare_exchange(
        &mut self,
        address: Self::Address,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault>;
}

impl<M: Memory + ?Sized> Memory for &mut M {
    type Address = M::Address;
    type Fault = M::Fault;

    const SHARED: bool = M::SHARED;

    #[inline]
    fn read(
        &mut self,
        address: Self::Address,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        (**self).read(address, layout, access)
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
        (**self).compare_exchange(address, layout, current, new, access)
    }
}

/// Nothing is at this system physical address: outside the memory, or a hole in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Outside<A> {
    /// The address of the entry.
    pub address: A,
    /// Whether it was to be written.
    pub write: bool,
}

impl<A: Address> fmt::Display for Outside<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.write { "cannot be written" } else { "is not in this memory" };
        write!(f, "{} {:#x} {what}", A::SPACE, self.address)
    }
}

impl<A: Address> core::error::Error for Outside<A> {}

/// Memory in a byte slice, its first byte at a given address: the simplest memory there is, for
/// tests, examples and images that fit.
///
/// ```
/// use slat::{Access, EntryLayout, Memory, SliceMemory, Spa};
/// let mut bytes = [0u8; 4096];
/// bytes[8] = 7;
/// let mut memory = SliceMemory::new(Spa::new(0x1000), &mut bytes[..]);
/// let read = memory.read(Spa::new(0x1008), EntryLayout::LE64, &Access::default()).unwrap();
/// assert_eq!(read.value, 7);
/// assert!(memory.read(Spa::new(0x2000), EntryLayout::LE64, &Access::default()).is_err());
/// ```
#[derive(Debug)]
pub struct SliceMemory<'a, A> {
    base: A,
    bytes: &'a mut [u8],
}

impl<'a, A: Address> SliceMemory<'a, A> {
    /// The memory whose first byte, at `base`, is `bytes[0]`.
    pub fn new(base: A, bytes: &'a mut [u8]) -> Self {
        SliceMemory { base, bytes }
    }

    /// Stores an entry without asking anyone, as a test or a loader does.
    ///
    /// # Errors
    /// Where `address` lies outside.
    pub fn poke(&mut self, address: A, layout: EntryLayout, value: u64) -> Result<(), Outside<A>> {
        let slot = self.slot(address, layout, true)?;
        store(slot, layout, value);
        Ok(())
    }

    #[inline]
    fn slot(
        &mut self,
        address: A,
        layout: EntryLayout,
        write: bool,
    ) -> Result<&mut [u8], Outside<A>> {
        let outside = Outside { address, write };
        let offset = address.raw().checked_sub(self.base.raw()).ok_or(outside)?;
        let start = usize::try_from(offset).map_err(|_| outside)?;
        let end = start.checked_add(layout.size.bytes() as usize).ok_or(outside)?;
        self.bytes.get_mut(start..end).ok_or(outside)
    }
}

impl<A: Address> Memory for SliceMemory<'_, A> {
    type Address = A;
    type Fault = Outside<A>;

    #[inline]
    fn read(&mut self, address: A, layout: EntryLayout, _: &Access) -> Result<Value, Outside<A>> {
        let slot = self.slot(address, layout, false)?;
        Ok(Value { value: load(slot, layout), reached: Reached::DIRECTLY })
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        address: A,
        layout: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Outside<A>> {
        let slot = self.slot(address, layout, true)?;
        let same = load(slot, layout) == current;
        if same {
            store(slot, layout, new);
        }
        Ok(same)
    }
}

/// The entry in `slot`, which is as long as `layout` says.
#[inline]
fn load(slot: &[u8], layout: EntryLayout) -> u64 {
    match (layout.size, layout.order, slot) {
        (EntrySize::Eight, ByteOrder::Little, &[a, b, c, d, e, f, g, h]) => {
            u64::from_le_bytes([a, b, c, d, e, f, g, h])
        }
        (EntrySize::Eight, ByteOrder::Big, &[a, b, c, d, e, f, g, h]) => {
            u64::from_be_bytes([a, b, c, d, e, f, g, h])
        }
        (EntrySize::Four, ByteOrder::Little, &[a, b, c, d]) => {
            u32::from_le_bytes([a, b, c, d]).into()
        }
        (EntrySize::Four, ByteOrder::Big, &[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]).into(),
        _ => unreachable!("a slot has the size of its layout"),
    }
}

#[inline]
fn store(slot: &mut [u8], layout: EntryLayout, value: u64) {
    match (layout.size, layout.order) {
        (EntrySize::Eight, ByteOrder::Little) => slot.copy_from_slice(&value.to_le_bytes()),
        (EntrySize::Eight, ByteOrder::Big) => slot.copy_from_slice(&value.to_be_bytes()),
        (EntrySize::Four, ByteOrder::Little) => slot.copy_from_slice(&(value as u32).to_le_bytes()),
        (EntrySize::Four, ByteOrder::Big) => slot.copy_from_slice(&(value as u32).to_be_bytes()),
    }
}
