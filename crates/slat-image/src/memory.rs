//! An image as the memory under a walk.

use std::collections::HashMap;
use std::hint::cold_path;
use std::marker::PhantomData;

use slat::{Access, Address, ByteOrder, EntryLayout, EntrySize, Memory, Outside, Reached, Value};

use crate::image::Image;

/// An image that nothing can be stored to: for walks that never update accessed and dirty bits.
///
/// A store answers [`Outside`] with `write` set. It is a reference, cheap to copy.
///
/// ```
/// use slat::{Access, EntryLayout, Memory, Spa};
/// let image = slat_image::Image::from_raw(0, vec![7; 4096]).unwrap();
/// let mut memory = image.read_only::<Spa>();
/// let (address, access) = (Spa::new(0x10), Access::default());
/// assert_eq!(memory.read(address, EntryLayout::LE32, &access).unwrap().value, 0x0707_0707);
/// assert!(memory.compare_exchange(address, EntryLayout::LE32, 0, 1, &access).is_err());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly<'a, A> {
    image: &'a Image,
    /// The aligned words of the range that most reads go to.
    words: &'a [[u8; 8]],
    /// Address of the first of them.
    start: u64,
    space: PhantomData<A>,
}

impl<'a, A> ReadOnly<'a, A> {
    pub(crate) fn new(image: &'a Image) -> Self {
        let (start, words) = image.words();
        ReadOnly { image, words, start, space: PhantomData }
    }

    /// The word at `address`, where it is one of `words`.
    #[inline(always)]
    fn word(&self, address: u64) -> Option<[u8; 8]> {
        // Turning the distance moves its lowest three bits to the top: where they are not 0, the
        // index is beyond any slice. So it is for an address below the start.
        let index = address.wrapping_sub(self.start).rotate_right(3);
        self.words.get(usize::try_from(index).ok()?).copied()
    }
}

impl<A: Address> ReadOnly<'_, A> {
    /// The entry at `address`, wherever it is.
    #[inline(never)]
    fn elsewhere(&self, address: A, layout: EntryLayout) -> Option<u64> {
        entry(self.image, address.raw(), layout)
    }
}

impl<A: Address> Memory for ReadOnly<'_, A> {
    type Address = A;
    type Fault = Outside<A>;

    /// Part of every walk's loop.
    #[inline(always)]
    fn read(&mut self, address: A, layout: EntryLayout, _: &Access) -> Result<Value, Outside<A>> {
        let value = match self.word(address.raw()) {
            Some(word) if layout.size == EntrySize::Eight => {
                number(word, layout.order, u64::from_le_bytes)
            }
            _ => {
                cold_path();
                self.elsewhere(address, layout).ok_or(Outside { address, write: false })?
            }
        };
        Ok(Value { value, reached: Reached::DIRECTLY })
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        address: A,
        _: EntryLayout,
        _: u64,
        _: u64,
        _: &Access,
    ) -> Result<bool, Outside<A>> {
        Err(Outside { address, write: true })
    }
}

/// An image with stores kept beside it: for walks that update accessed and dirty bits, and for what
/// they would find afterwards. The image itself stays as it is.
///
/// ```
/// use slat::{Access, EntryLayout, Memory, Spa};
/// let image = slat_image::Image::from_raw(0, vec![0; 4096]).unwrap();
/// let mut memory = image.overlay::<Spa>();
/// let (address, access) = (Spa::new(0x10), Access::default());
/// assert!(memory.compare_exchange(address, EntryLayout::LE64, 0, 0x67, &access).unwrap());
/// assert_eq!(memory.read(address, EntryLayout::LE64, &access).unwrap().value, 0x67);
/// assert_eq!(image.read_u64(0x10), Some(0));
/// ```
#[derive(Clone, Debug)]
pub struct Overlay<'a, A> {
    image: &'a Image,
    /// The 4 bytes at every multiple of 4 that was stored to.
    stored: HashMap<u64, [u8; 4]>,
    space: PhantomData<A>,
}

impl<'a, A: Address> Overlay<'a, A> {
    pub(crate) fn new(image: &'a Image) -> Self {
        Overlay { image, stored: HashMap::new(), space: PhantomData }
    }

    /// The entry at `address` as it is now.
    fn entry(&self, address: A, layout: EntryLayout) -> Option<u64> {
        let raw = address.raw();
        if self.stored.is_empty() {
            return entry(self.image, raw, layout);
        }
        let half = |raw: u64| match self.stored.get(&raw) {
            Some(bytes) => Some(*bytes),
            None => self.image.read_array(raw),
        };
        let low = half(raw)?;
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&low);
        match layout.size {
            EntrySize::Four => Some(number(low, layout.order, u32::from_le_bytes).into()),
            EntrySize::Eight => {
                bytes[4..].copy_from_slice(&half(raw.checked_add(4)?)?);
                Some(number(bytes, layout.order, u64::from_le_bytes))
            }
        }
    }
}

impl<A: Address> Memory for Overlay<'_, A> {
    type Address = A;
    type Fault = Outside<A>;

    #[inline]
    fn read(&mut self, address: A, layout: EntryLayout, _: &Access) -> Result<Value, Outside<A>> {
        let value = self.entry(address, layout).ok_or(Outside { address, write: false })?;
        Ok(Value { value, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: A,
        layout: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Outside<A>> {
        let outside = Outside { address, write: true };
        let raw = address.raw();
        let bytes = layout.size.bytes();
        // Entries are aligned (the trait says so): no two of them share part of a word.
        if !raw.is_multiple_of(bytes) {
            return Err(outside);
        }
        if self.entry(address, layout).ok_or(outside)? != current {
            return Ok(false);
        }
        let mut new = new.to_le_bytes();
        if layout.order == ByteOrder::Big {
            new[..bytes as usize].reverse();
        }
        let (words, _) = new[..bytes as usize].as_chunks::<4>();
        self.stored.extend((raw..).step_by(4).zip(words.iter().copied()));
        Ok(true)
    }
}

/// The entry at `address` of the image itself.
#[inline]
fn entry(image: &Image, address: u64, layout: EntryLayout) -> Option<u64> {
    match layout.size {
        EntrySize::Eight => {
            let bytes = image.read_array(address)?;
            Some(number(bytes, layout.order, u64::from_le_bytes))
        }
        EntrySize::Four => {
            let bytes = image.read_array(address)?;
            Some(number(bytes, layout.order, u32::from_le_bytes).into())
        }
    }
}

/// The number in `bytes`, by way of their little-endian order.
#[inline]
fn number<const N: usize, T>(mut bytes: [u8; N], order: ByteOrder, read: fn([u8; N]) -> T) -> T {
    if order == ByteOrder::Big {
        bytes.reverse();
    }
    read(bytes)
}
