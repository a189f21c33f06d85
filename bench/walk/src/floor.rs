//! Walks written by hand for one format, as bounds.
//!
//! Both read through a slice, so that a table outside the memory is noticed (a library must), and
//! both fold present bit and page size into every step. [`bare`] leaves out all that makes a
//! translation right: reserved bits, permissions, the check of the input's width, and any word about
//! why there is none. [`checked`] has those of 4-level x86 for a user's read, and still says nothing
//! of a failure.

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const P: u64 = 1;
const US: u64 = 4;
const PS: u64 = 0x80;

#[inline]
fn entry(memory: &[u8], address: u64) -> Option<u64> {
    let bytes = memory.get(address as usize..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

/// Four levels: present bit and page size, nothing else.
#[inline]
pub fn bare(memory: &[u8], root: u64, address: u64) -> Option<u64> {
    let mut table = root;
    let mut shift = 39;
    loop {
        let entry = entry(memory, table + (address >> shift & 0x1ff) * 8)?;
        if entry & P == 0 {
            return None;
        }
        if shift == 12 || entry & PS != 0 {
            let offset = (1u64 << shift) - 1;
            return Some(entry & ADDRESS & !offset | address & offset);
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

/// [`bare`] over [`bare`].
#[inline]
pub fn bare_nested(memory: &[u8], nested: u64, root: u64, address: u64) -> Option<u64> {
    let mut table = root;
    let mut shift = 39;
    loop {
        let at = bare(memory, nested, table + (address >> shift & 0x1ff) * 8)?;
        let entry = entry(memory, at)?;
        if entry & P == 0 {
            return None;
        }
        if shift == 12 || entry & PS != 0 {
            let offset = (1u64 << shift) - 1;
            return bare(memory, nested, entry & ADDRESS & !offset | address & offset);
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

/// Four levels, with reserved bits, the user's right to read, and the input's width.
#[inline]
pub fn checked(memory: &[u8], root: u64, address: u64, physical_bits: u32) -> Option<u64> {
    if address >> 48 != 0 {
        return None;
    }
    let beyond = ADDRESS & !((1u64 << physical_bits) - 1);
    let mut table = root;
    let mut shift = 39;
    let mut and = US;
    loop {
        let entry = entry(memory, table + (address >> shift & 0x1ff) * 8)?;
        if entry & P == 0 {
            return None;
        }
        and &= entry;
        if shift == 12 || entry & PS != 0 {
            let offset = (1u64 << shift) - 1;
            let unused = offset & ADDRESS & !0x1000;
            if shift > 30 || and == 0 || entry & (beyond | unused) != 0 {
                return None;
            }
            return Some(entry & ADDRESS & !offset | address & offset);
        }
        if entry & beyond != 0 {
            return None;
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}
