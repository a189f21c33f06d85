//! Sub-page write permissions: the table that decides a write to a 4 KiB page whose EPT leaf has
//! bit 61 set and is not writable (Intel SDM 3C 30.3.4).
//!
//! A tree of four levels indexed like EPT's. Its lowest entries hold no address but 32 write
//! permissions, one a 128-byte sub-page, in the even bits.

use crate::access::Access;
use crate::address::Address;
use crate::format::MAX_LEVELS;
use crate::memory::{EntryLayout, Memory};

/// How the table decides a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The sub-page is writable: the access goes on.
    Permitted,
    /// The sub-page is not writable: an EPT violation.
    Violation,
    /// An entry on the way is not valid: an SPP miss (exit reason 66, qualification bit 11 set).
    Miss,
    /// An entry on the way has reserved bits: an SPP misconfiguration (exit reason 66).
    Misconfiguration,
}

/// Asks the table at `root` (SPPTP bits 51:12) about a write to `gpa`. `physical_bits` is
/// MAXPHYADDR.
///
/// # Errors
/// The memory's own fault, where an entry cannot be read.
pub fn decide<M: Memory>(
    memory: &mut M,
    root: M::Address,
    gpa: u64,
    physical_bits: u8,
    access: &Access,
) -> Result<Decision, M::Fault> {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const VALID: u64 = 1;
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let reserved = !(ADDRESS & ((1u64 << physical_bits.clamp(32, 52)) - 1) | VALID);
    let mut table = root.raw() & ADDRESS;
    for level in (0..MAX_LEVELS as u8 - 1).rev() {
        let index = gpa >> (12 + 9 * u32::from(level)) & 0x1ff;
        let read = memory.read(
            M::Address::new(table + 8 * index),
            EntryLayout::LE64,
            &access.table_read(level, gpa),
        )?;
        let entry = read.value;
        if level == 0 {
            let sub_page = gpa >> 7 & 31;
            return Ok(match (entry & ODD, entry >> (2 * sub_page) & 1) {
                (0, 0) => Decision::Violation,
                (0, _) => Decision::Permitted,
                _ => Decision::Misconfiguration,
            });
        }
        if entry & VALID == 0 {
            return Ok(Decision::Miss);
        }
        if entry & reserved != 0 {
            return Ok(Decision::Misconfiguration);
        }
        table = entry & ADDRESS;
    }
    unreachable!("level 0 returns")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SliceMemory, Spa};

    fn ask(leaf: u64, gpa: u64, damage: Option<(u64, u64)>) -> Decision {
        let mut bytes = std::vec![0u8; 0x5000];
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        let mut set = |address: u64, entry: u64| {
            memory.poke(Spa::new(address), EntryLayout::LE64, entry).unwrap();
        };
        set(0x1000, 0x2001);
        set(0x2000, 0x3001);
        set(0x3000, 0x4001);
        set(0x4008, leaf);
        if let Some((address, entry)) = damage {
            set(address, entry);
        }
        decide(&mut memory, Spa::new(0x1000), gpa, 40, &Access::default()).unwrap()
    }

    #[test]
    fn each_sub_page_has_its_own_even_bit() {
        for sub_page in 0..32 {
            for other in 0..32 {
                let expected =
                    if sub_page == other { Decision::Permitted } else { Decision::Violation };
                assert_eq!(ask(1 << (2 * sub_page), 0x1000 + other * 128, None), expected);
            }
            let odd = 2 << (2 * sub_page);
            assert_eq!(ask(odd, 0x1000, None), Decision::Misconfiguration);
        }
    }

    #[test]
    fn each_bit_of_the_upper_levels() {
        for level in [0x1000u64, 0x2000, 0x3000] {
            let next = level + 0x1000;
            assert_eq!(ask(1, 0x1000, Some((level, next))), Decision::Miss);
            for bit in (1..12).chain(40..64) {
                let entry = next | 1 | 1 << bit;
                assert_eq!(ask(1, 0x1000, Some((level, entry))), Decision::Misconfiguration);
            }
        }
    }
}
