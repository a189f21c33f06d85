//! Little-endian numbers and variable-length numbers, written to and read from byte strings.

/// Appends `value` in groups of seven bits, the least significant first; the top bit of a byte says
/// that another follows.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the difference of two numbers so that small ones of either sign are short.
#[inline]
pub(crate) fn put_difference(out: &mut Vec<u8>, value: u64, from: u64) {
    put_varint(out, zigzag(value.wrapping_sub(from)));
}

/// Maps 0, -1, 1, -2, ... (as two's complement) to 0, 1, 2, 3, ...
#[inline]
pub(crate) fn zigzag(difference: u64) -> u64 {
    difference << 1 ^ ((difference as i64) >> 63) as u64
}

/// The inverse of [`zigzag`].
#[inline]
pub(crate) fn unzigzag(value: u64) -> u64 {
    value >> 1 ^ (value & 1).wrapping_neg()
}

/// The input ended, or a number was longer than 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short;

/// A byte string that is read from its front.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Short)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of `len` bytes, at most 8; `mask` has as many.
    #[inline]
    pub(crate) fn partial(&mut self, len: usize, mask: u64) -> Result<u64, Short> {
        if let Some(word) = self.rest.first_chunk::<8>() {
            // Reading the whole word and cutting it costs no branch on the length.
            self.rest = &self.rest[len..];
            return Ok(u64::from_le_bytes(*word) & mask);
        }
        let head = self.take(len)?;
        let mut word = [0; 8];
        word[..len].copy_from_slice(head);
        Ok(u64::from_le_bytes(word))
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Short> {
        // Its length cannot be foreseen: four bytes are read and cut where the number ends.
        if let Some(four) = self.rest.first_chunk::<4>() {
            let four = u32::from_le_bytes(*four);
            let ends = !four & 0x8080_8080;
            if ends != 0 {
                let bytes = ends.trailing_zeros() / 8 + 1;
                let kept = four & (u32::MAX >> (32 - 8 * bytes));
                let value = kept & 0x7f
                    | kept >> 1 & 0x3f80
                    | kept >> 2 & 0x1f_c000
                    | kept >> 3 & 0xfe0_0000;
                self.rest = &self.rest[bytes as usize..];
                return Ok(value.into());
            }
        }
        self.varint_by_byte()
    }

    fn varint_by_byte(&mut self) -> Result<u64, Short> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                // The tenth byte has room for one bit.
                return if shift == 63 && byte > 1 { Err(Short) } else { Ok(value) };
            }
        }
        Err(Short)
    }

    #[inline]
    pub(crate) fn difference(&mut self, from: u64) -> Result<u64, Short> {
        Ok(from.wrapping_add(unzigzag(self.varint()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        let values = [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), 1 << 63, u64::MAX];
        let mut out = Vec::new();
        for value in values {
            put_varint(&mut out, value);
            put_difference(&mut out, value, 0x8000_0000_0000_0001);
        }
        let mut bytes = Bytes::new(&out);
        for value in values {
            assert_eq!(bytes.varint(), Ok(value));
            assert_eq!(bytes.difference(0x8000_0000_0000_0001), Ok(value));
        }
        assert!(bytes.is_empty());
        assert_eq!(bytes.varint(), Err(Short));
    }

    #[test]
    fn a_number_longer_than_sixty_four_bits_is_refused() {
        assert_eq!(Bytes::new(&[0xff; 10]).varint(), Err(Short));
        let mut ten = [0xff; 10];
        ten[9] = 1;
        assert_eq!(Bytes::new(&ten).varint(), Ok(u64::MAX));
        ten[9] = 2;
        assert_eq!(Bytes::new(&ten).varint(), Err(Short));
    }

    #[test]
    fn partial_numbers_read_the_same_near_the_end() {
        let data: Vec<u8> = (1..=12).collect();
        for len in 1..=8 {
            let mut long = Bytes::new(&data);
            let mut short = Bytes::new(&data[..len]);
            let mask = u64::MAX >> (64 - 8 * len);
            assert_eq!(long.partial(len, mask), short.partial(len, mask));
            assert_eq!(long.remaining(), 12 - len);
            assert_eq!(short.partial(1, 0xff), Err(Short));
        }
    }

    #[test]
    fn small_differences_of_either_sign_are_short() {
        for (difference, expected) in [(0i64, 0u64), (-1, 1), (1, 2), (-2, 3)] {
            assert_eq!(zigzag(difference as u64), expected);
            assert_eq!(unzigzag(expected), difference as u64);
        }
    }
}
