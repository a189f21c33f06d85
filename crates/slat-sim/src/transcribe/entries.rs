//! Entries of one architecture in another's words.

use slat::format::riscv::bits as riscv_bits;
use slat::format::x86::bits;

use super::ADDRESS;

/// An AArch64 stage-1 descriptor (Arm ARM D8.3.1, D8.3.2).
pub(super) fn arm64(entry: u64, address: u64, leaf: bool, level: u8) -> u64 {
    if !leaf {
        return address | 0b11;
    }
    let user = entry & bits::US != 0;
    let set = |bit: u32, on: bool| u64::from(on) << bit;
    address
        | if level == 0 { 0b11 } else { 0b01 }
        | set(6, user)
        | set(7, entry & bits::RW == 0)
        | 0b11 << 8
        | set(10, true)
        | set(11, entry & bits::G == 0)
        | set(53, user || entry & bits::XD != 0)
        | set(54, !user || entry & bits::XD != 0)
}

/// A RISC-V PTE (privileged ISA, 12.4).
pub(super) fn riscv(entry: u64, address: u64, leaf: bool) -> u64 {
    let pointer = address >> 2 | riscv_bits::V;
    if !leaf {
        return pointer;
    }
    let set = |bit: u64, on: bool| if on { bit } else { 0 };
    pointer
        | riscv_bits::R
        | riscv_bits::A
        | set(riscv_bits::W | riscv_bits::D, entry & bits::RW != 0)
        | set(riscv_bits::X, entry & bits::XD == 0)
        | set(riscv_bits::U, entry & bits::US != 0)
        | set(riscv_bits::G, entry & bits::G != 0)
}

/// The x86 entry (Intel SDM 3A 4.5) of an AArch64 stage-1 descriptor with the 4K granule (Arm ARM
/// D8.3); 0 where it is not valid.
///
/// A page whose access flag is clear, which traps on Arm, is one whose accessed bit hardware will
/// set; one that is clean and may become dirty by hardware (DBM) counts as read-only, as on Arm
/// without that extension.
pub(super) fn x86(entry: u64, level: u8) -> u64 {
    let set = |bit: u64, on: bool| if on { bit } else { 0 };
    if entry & 1 == 0 || level == 0 && entry & 2 == 0 {
        return 0;
    }
    let leaf = level == 0 || entry & 2 == 0;
    if !leaf {
        return entry & ADDRESS & 0xffff_ffff_ffff | bits::P | bits::RW | bits::US | bits::A;
    }
    let address = entry & 0xffff_ffff_f000 & (!0 << (12 + 9 * u32::from(level)));
    // What a program may only execute is its own as well.
    let user = entry & 1 << 6 != 0 || entry & 1 << 54 == 0;
    let never = if user { entry & 1 << 54 != 0 } else { entry & 1 << 53 != 0 };
    let writable = entry & 1 << 7 == 0;
    address
        | bits::P
        | bits::A
        | set(bits::PS, level > 0)
        | set(bits::US, user)
        | set(bits::RW | bits::D, writable)
        | set(bits::G, entry & 1 << 11 == 0)
        | set(bits::XD, never)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_place_and_rights() {
        // A user page, read-only, not executable; a kernel page of 2 MiB, global, writable.
        let user = 0x1234_5000 | bits::P | bits::US | bits::A | bits::XD;
        let kernel = 0x4020_0000 | bits::P | bits::RW | bits::PS | bits::G;
        assert_eq!(arm64(user, 0x1234_5000, true, 0), 0x1234_5000 | 0x60_0000_0000_0fc3);
        assert_eq!(arm64(kernel, 0x4020_0000, true, 1), 0x4020_0000 | 0x40_0000_0000_0701);
        assert_eq!(riscv(user, 0x1234_5000, true), 0x1234_5000 >> 2 | 0b0101_0011);
        assert_eq!(riscv(kernel, 0x4020_0000, true), 0x4020_0000 >> 2 | 0b1110_1111);
    }

    #[test]
    fn an_arm_entry_says_the_same_in_x86() {
        // Bits of AArch64 leaves: AP[1] user, AP[2] read-only, nG, PXN, UXN.
        let (user, read_only, own, pxn, uxn) = (1 << 6, 1 << 7, 1 << 11, 1 << 53, 1 << 54);
        let page = 0x4567_8000 | 0b11 | 1 << 10;
        let flags = |entry: u64, level| x86(entry, level) & !ADDRESS;
        let always = bits::P | bits::A;
        // A program's data, its text, the kernel's data and its text.
        assert_eq!(
            flags(page | user | own | pxn | uxn, 0),
            always | bits::US | bits::RW | bits::D | bits::XD
        );
        assert_eq!(flags(page | user | read_only | own | pxn, 0), always | bits::US);
        assert_eq!(flags(page | pxn | uxn, 0), always | bits::RW | bits::D | bits::XD | bits::G);
        assert_eq!(flags(page | read_only | uxn, 0), always | bits::G);
        assert_eq!(x86(page | user, 0) & ADDRESS, 0x4567_8000);
        // A block of 2 MiB, a table, nothing.
        let block = 0x8020_0000 | 0b01 | 1 << 10 | pxn | uxn;
        assert_eq!(x86(block, 1) & (bits::PS | ADDRESS), bits::PS | 0x8020_0000);
        assert_eq!(x86(0x1000 | 0b11, 2), 0x1000 | always | bits::RW | bits::US);
        assert_eq!((x86(0x1000 | 0b10, 0), x86(0x1000 | 0b01, 0)), (0, 0));
    }
}
