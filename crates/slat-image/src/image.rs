//! An opened image: reads by physical address.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use bytes::Bytes;
use slat::Address;

use crate::error::OpenError;
use crate::layout::Range;
use crate::memory::{Overlay, ReadOnly};
use crate::open::Options;

/// The physical memory of a machine, as it was when the image was made.
///
/// Memory is a list of ranges with holes between them. A read says `None` where the image has
/// nothing: that is not the same as zero. Reads need no lock and no `&mut`; an image can be shared
/// between threads.
#[derive(Clone)]
pub struct Image {
    /// The range that most reads go to, checked first: a copy of the largest of `ranges`.
    largest: Range,
    /// All ranges: sorted, disjoint, none empty.
    ranges: Box<[Range]>,
    machine: Option<Machine>,
}

/// The kind of processor whose memory an image is, where the image says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Machine {
    /// x86, 32 or 64 bits (`EM_386`, `EM_X86_64`).
    X86,
    /// Arm, AArch32 state (`EM_ARM`).
    Arm,
    /// Arm, AArch64 state (`EM_AARCH64`).
    Aarch64,
    /// RISC-V, 32 or 64 bits (`EM_RISCV`).
    RiscV,
    /// Another, by its ELF number.
    Other(u16),
}

impl Machine {
    /// The machine that an ELF header's `e_machine` names.
    pub(crate) fn from_elf(number: u16) -> Machine {
        match number {
            3 | 62 => Machine::X86,
            40 => Machine::Arm,
            183 => Machine::Aarch64,
            243 => Machine::RiscV,
            other => Machine::Other(other),
        }
    }
}

impl Image {
    /// Opens the image in `file`, whatever its format; [`Options`] has more to say about how.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no image, or is damaged.
    pub fn open(file: impl AsRef<Path>) -> Result<Image, OpenError> {
        Options::new().open(file)
    }

    /// The image that has `content` from physical address `base` on, and nothing else.
    ///
    /// `None` if `content` is empty or runs past the end of the address space.
    pub fn from_raw(base: u64, content: Vec<u8>) -> Option<Image> {
        let last = (content.len() as u64).checked_sub(1)?;
        base.checked_add(last)?;
        Some(Image::new(vec![Range { start: base, bytes: Bytes::from(content) }], None))
    }

    /// The image of these ranges: at least one, sorted, disjoint.
    pub(crate) fn new(ranges: Vec<Range>, machine: Option<Machine>) -> Image {
        debug_assert!(ranges.windows(2).all(|pair| pair[0].last() < pair[1].start));
        let largest = ranges
            .iter()
            .max_by_key(|range| range.bytes.len())
            .cloned()
            .unwrap_or(Range { start: 0, bytes: Bytes::new() });
        Image { largest, ranges: ranges.into(), machine }
    }

    /// The image as the memory under a walk, which nothing can be stored to.
    ///
    /// `A` is the space that the image's addresses are in: [`Spa`](slat::Spa) for the memory of a
    /// machine, [`Gpa`](slat::Gpa) for that of a guest alone.
    pub fn read_only<A: Address>(&self) -> ReadOnly<'_, A> {
        ReadOnly::new(self)
    }

    /// The image as the memory under a walk, with stores kept beside it: the image stays as it is.
    pub fn overlay<A: Address>(&self) -> Overlay<'_, A> {
        Overlay::new(self)
    }

    /// The kind of processor, if the image says (an ELF core does, raw memory does not).
    pub fn machine(&self) -> Option<Machine> {
        self.machine
    }

    /// The ranges of physical addresses that the image has, ascending and disjoint.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = RangeInclusive<u64>> {
        self.ranges.iter().map(|range| range.start..=range.last())
    }

    /// How many bytes of memory the image has, holes not counted.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(|range| range.bytes.len() as u64).sum()
    }

    /// The 4 bytes at `address`, least significant first; `None` unless all are in the image.
    #[inline]
    pub fn read_u32(&self, address: u64) -> Option<u32> {
        self.read_array(address).map(u32::from_le_bytes)
    }

    /// The 8 bytes at `address`, least significant first; `None` unless all are in the image.
    ///
    /// `address` need not be aligned.
    #[inline]
    pub fn read_u64(&self, address: u64) -> Option<u64> {
        self.read_array(address).map(u64::from_le_bytes)
    }

    /// The `N` bytes at `address`; `None` unless all are in the image.
    #[inline]
    pub fn read_array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        match self.largest.from(address).first_chunk() {
            Some(bytes) => Some(*bytes),
            None => self.read_array_elsewhere(address),
        }
    }

    /// The words of 8 bytes, at multiples of 8, that the largest range has, and the address of the
    /// first.
    pub(crate) fn words(&self) -> (u64, &[[u8; 8]]) {
        match self.largest.start.checked_next_multiple_of(8) {
            Some(start) => (start, self.largest.from(start).as_chunks().0),
            None => (0, &[]),
        }
    }

    /// [`read_array`](Image::read_array) for what is not wholly in the largest range.
    #[cold]
    #[inline(never)]
    fn read_array_elsewhere<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        if let Some(bytes) = self.contiguous(address).first_chunk() {
            return Some(*bytes);
        }
        let mut bytes = [0; N];
        self.read(address, &mut bytes).then_some(bytes)
    }

    /// Fills `buffer` with the memory from `address` on.
    ///
    /// `false` if a byte of it is not in the image: then `buffer` has what came before that byte.
    #[must_use = "the buffer is only filled if the image has all of it"]
    pub fn read(&self, mut address: u64, mut buffer: &mut [u8]) -> bool {
        while !buffer.is_empty() {
            let here = self.contiguous(address);
            let size = here.len().min(buffer.len());
            if size == 0 {
                return false;
            }
            let (now, later) = buffer.split_at_mut(size);
            now.copy_from_slice(&here[..size]);
            buffer = later;
            match address.checked_add(size as u64) {
                Some(next) => address = next,
                None => return buffer.is_empty(),
            }
        }
        true
    }

    /// The memory from `address` up to the end of its range, without copying; empty in a hole.
    ///
    /// The next range may begin where this one ends.
    pub fn contiguous(&self, address: u64) -> &[u8] {
        let index = self.ranges.partition_point(|range| range.last() < address);
        self.ranges.get(index).map_or(&[], |range| range.from(address))
    }

    /// The 4 KiB page at `address` (which must be a multiple of 4096), without copying.
    ///
    /// `None` unless all of the page is in one range of the image.
    pub fn page(&self, address: u64) -> Option<&[u8; 4096]> {
        if !address.is_multiple_of(4096) {
            return None;
        }
        self.contiguous(address).first_chunk()
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for range in self.ranges() {
            list.entry(&format_args!("{:#x}..={:#x}", range.start(), range.end()));
        }
        list.finish()
    }
}
