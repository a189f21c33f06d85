//! How the next address of an access is told: as predicted, or how it differs.

use super::super::bytes::{Bytes, Short, unzigzag};
use super::{Site, length};

impl Site {
    /// Goes to the next address, which `length` says how to find.
    #[inline(always)]
    pub(crate) fn go(
        &mut self,
        length: u8,
        differences: &mut Bytes<'_>,
        moved: &mut u64,
    ) -> Result<(), Short> {
        let Length { bytes, how, mask, keep } = LENGTHS[usize::from(length & 15)];
        if length > length::ALONG {
            return Err(Short);
        }
        let coded = differences.partial(usize::from(bytes), mask)?;
        // Which it is cannot be foreseen: all are made, and one is picked. What is picked from does not
        // wait for the address before.
        let ways = [self.stride, *moved, unzigzag(coded), coded];
        let va = (self.last & keep).wrapping_add(ways[usize::from(how & 3)]);
        *moved = va.wrapping_sub(self.last);
        (self.last, self.stride) = (va, *moved);
        Ok(())
    }
}

/// What a byte of the lengths says: how many bytes there are in the differences and a mask of them, which
/// of the four ways it is (the stride, along, a difference, the whole address), and a mask for the last
/// address.
#[derive(Clone, Copy)]
struct Length {
    bytes: u8,
    how: u8,
    mask: u64,
    keep: u64,
}

const LENGTHS: [Length; 16] = {
    let mut all = [Length { bytes: 0, how: 0, mask: 0, keep: u64::MAX }; 16];
    let mut bytes = 1;
    while bytes <= length::LONGEST {
        let mask = (1 << (8 * bytes)) - 1;
        all[bytes as usize] = Length { bytes, how: 2, mask, keep: u64::MAX };
        bytes += 1;
    }
    all[length::WHOLE as usize] = Length { bytes: 8, how: 3, mask: u64::MAX, keep: 0 };
    all[length::ALONG as usize] = Length { bytes: 0, how: 1, mask: 0, keep: u64::MAX };
    all
};
