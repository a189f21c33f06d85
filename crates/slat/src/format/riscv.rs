//! RISC-V address translation: Sv32, Sv39, Sv48, Sv57 and Bare as a first stage (`satp`, or
//! `vsatp`: VS-stage), and their x4 variants and Bare as the second (`hgatp`: G-stage).
//!
//! Source: RISC-V privileged architecture, "Supervisor-Level ISA" version 1.13 (Sv32 to Sv57, and
//! the Sv extensions: Svade, Svadu, Svnapot, Svpbmt, Svrsw60t59b), "Extension for Hypervisor
//! Support" version 1.0 (two-stage address translation), Zicfiss 1.0 (shadow-stack memory
//! protection), pointer masking 1.0 (Ssnpm, Smnpm).
//!
//! | level | Sv32 | Sv39, Sv48, Sv57 | maps |
//! |---|---|---|---|
//! | 4 | | 56:48 | 256 TiB page |
//! | 3 | | 47:39 | 512 GiB page |
//! | 2 | | 38:30 | 1 GiB page |
//! | 1 | 31:22 | 29:21 | 4 MiB page (Sv32), 2 MiB page |
//! | 0 | 21:12 | 20:12 | 4 KiB page, 64 KiB by Svnapot |
//!
//! A G-stage root has two index bits more, and is four pages long. The manual numbers levels as
//! this library does.

use crate::memory::ByteOrder;

mod registers;
mod table;

pub use registers::{Root, Width, hgatp, satp, vsatp};
pub use table::Sv;

/// Bits of a page-table entry. Bits 62:61, 63 and 60:54 exist in 64-bit entries only.
pub mod bits {
    /// Valid.
    pub const V: u64 = 1 << 0;
    /// Readable.
    pub const R: u64 = 1 << 1;
    /// Writable.
    pub const W: u64 = 1 << 2;
    /// Executable.
    pub const X: u64 = 1 << 3;
    /// User. In G-stage every access is a user access.
    pub const U: u64 = 1 << 4;
    /// Global. Ignored in G-stage.
    pub const G: u64 = 1 << 5;
    /// Accessed (leaves).
    pub const A: u64 = 1 << 6;
    /// Dirty (leaves).
    pub const D: u64 = 1 << 7;
    /// Bits 9:8, for software.
    pub const RSW: u64 = 3 << 8;
    /// Bits 60:54 are reserved.
    pub const RESERVED: u64 = 0x7f << 54;
    /// Bits 60:59, for software with Svrsw60t59b.
    pub const RSW_HIGH: u64 = 3 << 59;
    /// Page-based memory type (leaves), with Svpbmt.
    pub const PBMT: u64 = 3 << 61;
    /// Shift of [`PBMT`].
    pub const PBMT_SHIFT: u32 = 61;
    /// The page belongs to a contiguous range (level-0 leaves), with Svnapot.
    pub const N: u64 = 1 << 63;
}

/// A translation scheme, the same for both stages: a G-stage table adds its two root bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Scheme {
    /// No translation.
    Bare,
    /// Two levels of 32-bit entries.
    Sv32,
    /// Three levels.
    Sv39,
    /// Four levels.
    Sv48,
    /// Five levels.
    Sv57,
}

impl Scheme {
    /// How many levels its tables have; 0 for [`Scheme::Bare`].
    pub const fn levels(self) -> u8 {
        match self {
            Scheme::Bare => 0,
            Scheme::Sv32 => 2,
            Scheme::Sv39 => 3,
            Scheme::Sv48 => 4,
            Scheme::Sv57 => 5,
        }
    }
}

/// How many upper bits of a load or store address pointer masking ignores (the `PMM` fields of
/// `senvcfg`, `menvcfg`, `henvcfg` and `hstatus.HUPMM`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Mask {
    /// None.
    #[default]
    Off,
    /// 7: `PMLEN = XLEN - 57`.
    Seven,
    /// 16: `PMLEN = XLEN - 48`.
    Sixteen,
}

impl Mask {
    /// The setting with this encoding; `None` for 1, which is reserved.
    pub const fn from_pmm(pmm: u8) -> Option<Mask> {
        match pmm {
            0 => Some(Mask::Off),
            2 => Some(Mask::Seven),
            3 => Some(Mask::Sixteen),
            _ => None,
        }
    }

    /// PMLEN.
    pub const fn bits(self) -> u32 {
        match self {
            Mask::Off => 0,
            Mask::Seven => 7,
            Mask::Sixteen => 16,
        }
    }
}

/// What the environment-configuration registers enable for one stage.
///
/// `menvcfg` governs `satp`'s tables and G-stage, `henvcfg` VS-stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Features {
    /// Svadu with `ADUE` set: hardware sets A and D. Otherwise Svade: a clear bit faults.
    pub hardware_ad: bool,
    /// Svnapot.
    pub napot: bool,
    /// Svpbmt with `PBMTE` set.
    pub memory_types: bool,
    /// Zicfiss with `SSE` set: shadow-stack pages exist. Never in G-stage.
    pub shadow_stacks: bool,
    /// Svrsw60t59b: bits 60:59 belong to software.
    pub software_bits: bool,
    /// Pointer masking of supervisor loads and stores (`menvcfg.PMM`, or `henvcfg.PMM` for VS).
    /// Stage 1 of RV64 only.
    pub supervisor_mask: Mask,
    /// Pointer masking of user loads and stores (`senvcfg.PMM`; `hstatus.HUPMM` for `HLV` and
    /// `HSV` in U-mode).
    pub user_mask: Mask,
    /// Byte order of entries: `mstatus.SBE` for `satp`'s and G-stage tables, `hstatus.VSBE` for
    /// VS-stage's.
    pub order: ByteOrder,
}

impl Default for Features {
    /// What profile RVA23S64 mandates of every hart: Svade, Svnapot, Svpbmt; little-endian.
    fn default() -> Self {
        Features {
            hardware_ad: false,
            napot: true,
            memory_types: true,
            shadow_stacks: false,
            software_bits: false,
            supervisor_mask: Mask::Off,
            user_mask: Mask::Off,
            order: ByteOrder::Little,
        }
    }
}
