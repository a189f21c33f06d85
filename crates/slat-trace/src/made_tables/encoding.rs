//! The entries and registers of made tables.
//!
//! x86-64: Intel SDM 3A 4.5 (4- and 5-level paging). AArch64: Arm ARM D8.3 (VMSAv8-64 descriptors, 4 KiB
//! granule, 48 bits). In both, a table has 512 entries of 8 bytes and level 0 maps 4 KiB.

use crate::{Arch, Control, Event, Root};

/// Bits of an address that index one table.
pub(super) const INDEX_BITS: u32 = 9;

/// Bytes of a page, as a shift.
pub(super) const PAGE_BITS: u32 = 12;

/// x86-64, SDM 3A tables 4-15 to 4-20.
mod x86 {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const LARGE: u64 = 1 << 7;
    pub(super) const EXECUTE_DISABLE: u64 = 1 << 63;

    /// PG, WP, NE, ET, MP, PE (SDM 3A 2.5).
    pub(super) const CR0: u64 = 0x8005_0023 | 1 << 4;
    /// PAE, PGE, OSFXSR, OSXMMEXCPT.
    pub(super) const CR4: u64 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10;
    /// Five levels.
    pub(super) const CR4_LA57: u64 = 1 << 12;
    /// SCE, LME, LMA, NXE (SDM 3A 2.2.1).
    pub(super) const EFER: u64 = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;
}

/// AArch64, Arm ARM D8.3.1 and D8.3.2.
mod arm {
    pub(super) const VALID: u64 = 1 << 0;
    pub(super) const TABLE_OR_PAGE: u64 = 1 << 1;
    /// AP\[2:1\] = 0b01: read and write, also for EL0.
    pub(super) const EL0: u64 = 1 << 6;
    pub(super) const INNER_SHAREABLE: u64 = 3 << 8;
    pub(super) const ACCESSED: u64 = 1 << 10;
    pub(super) const NOT_GLOBAL: u64 = 1 << 11;
    pub(super) const PRIVILEGED_EXECUTE_NEVER: u64 = 1 << 53;
    pub(super) const EXECUTE_NEVER: u64 = 1 << 54;

    /// T0SZ and T1SZ 16, write-back inner-shareable walks, 4 KiB granules (TG1 0b10), IPS 48 bits,
    /// AS (16-bit ASIDs), TBI0.
    pub(super) const TCR: u64 = 16
        | 0b11_0101 << 8
        | 16 << 16
        | 0b11_0101 << 24
        | 0b10 << 30
        | 0b101 << 32
        | 1 << 36
        | 1 << 37;
    /// M, C, I.
    pub(super) const SCTLR: u64 = 1 << 0 | 1 << 2 | 1 << 12;
    /// Attribute 0 is normal memory, write-back.
    pub(super) const MAIR: u64 = 0xff;
}

/// How the tables of one architecture and depth are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    pub(super) arch: Arch,
    /// Levels of the tables: the root is of level `levels - 1`.
    pub(super) levels: u8,
}

impl Encoding {
    /// Bits of an address that the tables translate.
    fn width(self) -> u32 {
        PAGE_BITS + INDEX_BITS * u32::from(self.levels)
    }

    /// The address as the tables see it; none when it is not one of a program under these tables.
    ///
    /// x86-64: a canonical address of either half. AArch64: an address of the lower half, its top byte
    /// ignored as Linux has it (TBI0).
    pub(super) fn normal(self, address: u64) -> Option<u64> {
        let above = 64 - self.width();
        match self.arch {
            Arch::X86_64 => {
                (((address as i64) << above >> above) as u64 == address).then_some(address)
            }
            Arch::Aarch64 => {
                let untagged = address & !(0xff << 56);
                (address >> 55 & 1 == 0 && untagged >> self.width() == 0).then_some(untagged)
            }
        }
    }

    /// Index into the table of `level` that translates `va`.
    pub(super) fn index(self, va: u64, level: u8) -> u64 {
        va >> (PAGE_BITS + INDEX_BITS * u32::from(level)) & ((1 << INDEX_BITS) - 1)
    }

    /// What all addresses below one table of `level` have in common.
    pub(super) fn prefix(self, va: u64, level: u8) -> u64 {
        let within = va & (u64::MAX >> (64 - self.width()));
        within >> (PAGE_BITS + INDEX_BITS * (u32::from(level) + 1))
    }

    /// The entry that points to the table at `gpa`.
    pub(super) fn table(self, gpa: u64) -> u64 {
        match self.arch {
            // As Linux writes it: accessed and dirty set.
            Arch::X86_64 => {
                gpa | x86::PRESENT | x86::WRITABLE | x86::USER | x86::ACCESSED | x86::DIRTY
            }
            Arch::Aarch64 => gpa | arm::VALID | arm::TABLE_OR_PAGE,
        }
    }

    /// The leaf of `level` (0 or 1) at `gpa`: user, writable, accessed; `dirty` when the first access stores.
    pub(super) fn leaf(self, gpa: u64, level: u8, dirty: bool, executable: bool) -> u64 {
        match self.arch {
            Arch::X86_64 => {
                let mut entry = gpa | x86::PRESENT | x86::WRITABLE | x86::USER | x86::ACCESSED;
                entry |= if dirty { x86::DIRTY } else { 0 };
                entry |= if level > 0 { x86::LARGE } else { 0 };
                entry | if executable { 0 } else { x86::EXECUTE_DISABLE }
            }
            Arch::Aarch64 => {
                let mut entry = gpa
                    | arm::VALID
                    | arm::EL0
                    | arm::INNER_SHAREABLE
                    | arm::ACCESSED
                    | arm::NOT_GLOBAL;
                entry |= arm::PRIVILEGED_EXECUTE_NEVER;
                entry |= if level == 0 { arm::TABLE_OR_PAGE } else { 0 };
                entry | if executable { 0 } else { arm::EXECUTE_NEVER }
            }
        }
    }

    /// The write that makes the tables at `gpa` those of the vCPU; `space` gives the ASID.
    pub(super) fn root(self, gpa: u64, space: u16) -> Event {
        match self.arch {
            Arch::X86_64 => Event::Root { root: Root::Cr3, value: gpa },
            // ASID 0 is left to nobody, as Linux does.
            Arch::Aarch64 => Event::Root {
                root: Root::Ttbr0,
                value: gpa | u64::from(space.wrapping_add(1)) << 48,
            },
        }
    }

    /// The control registers that the tables are meant for.
    pub(super) fn controls(self) -> Vec<Event> {
        let registers = match self.arch {
            Arch::X86_64 => {
                let la57 = if self.levels == 5 { x86::CR4_LA57 } else { 0 };
                [
                    (Control::Cr0, x86::CR0),
                    (Control::Cr4, x86::CR4 | la57),
                    (Control::Efer, x86::EFER),
                ]
            }
            Arch::Aarch64 => {
                [(Control::Tcr, arm::TCR), (Control::Mair, arm::MAIR), (Control::Sctlr, arm::SCTLR)]
            }
        };
        registers.map(|(register, value)| Event::Control { register, value }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normal_or_refused() {
        let four = Encoding { arch: Arch::X86_64, levels: 4 };
        let five = Encoding { arch: Arch::X86_64, levels: 5 };
        let arm = Encoding { arch: Arch::Aarch64, levels: 4 };
        let vsyscall = 0xffff_ffff_ff60_0000;
        assert_eq!(four.normal(vsyscall), Some(vsyscall));
        assert_eq!(four.normal(0x7fff_ffff_ffff), Some(0x7fff_ffff_ffff));
        assert_eq!((four.normal(1 << 47), five.normal(1 << 47)), (None, Some(1 << 47)));
        assert_eq!(five.normal(1 << 56), None);
        assert_eq!(arm.normal(0xb400_ffff_8000_1000), Some(0xffff_8000_1000));
        assert_eq!(arm.normal(vsyscall), None);
        assert_eq!(arm.normal(1 << 48), None);
    }

    #[test]
    fn prefixes_and_indices_take_an_address_apart() {
        let five = Encoding { arch: Arch::X86_64, levels: 5 };
        let va = 0xff12_3456_789a_bcde;
        for level in 0..5 {
            let below = five.prefix(va, level) << INDEX_BITS | five.index(va, level);
            let above = va & (u64::MAX >> 7);
            assert_eq!(below, above >> (PAGE_BITS + INDEX_BITS * u32::from(level)));
        }
        assert_eq!(five.prefix(va, 4), 0);
    }
}
