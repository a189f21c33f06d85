//! AArch64: the VMSAv8-64 translation system (Arm ARM, DDI 0487, chapter D8).
//!
//! | level | manual | 4K granule | 16K | 64K |
//! |---|---|---|---|---|
//! | 4 | -1 | 51:48 | | |
//! | 3 | 0 | 47:39, block 512 GiB with `DS` | 51:47 | |
//! | 2 | 1 | 38:30, block 1 GiB | 46:36, block 64 GiB with `DS` | 51:42, block 4 TiB with 52-bit PA |
//! | 1 | 2 | 29:21, block 2 MiB | 35:25, block 32 MiB | 41:29, block 512 MiB |
//! | 0 | 3 | 20:12, page | 24:14, page | 28:16, page |
//!
//! [`stage1`] has the regimes EL1&0, EL2 and EL2&0; [`stage2`] the second stage. Both are made of
//! register values, so that what the registers say is decided in one place; what they enable and
//! this library does not model is refused by name.

mod granule;
mod registers;
pub mod stage1;
pub mod stage2;

pub use granule::{Geometry, Granule};
pub use stage1::{Root, Stage1, TranslationRegime};
pub use stage2::Stage2;

/// Bits of descriptors (Arm ARM D8.3).
pub mod bits {
    /// The descriptor is valid.
    pub const VALID: u64 = 1 << 0;
    /// A table above level 0, a page at level 0; clear in a block.
    pub const TABLE: u64 = 1 << 1;
    /// Bits 4:2 of a stage-1 leaf: index into MAIR.
    pub const ATTR_INDEX_SHIFT: u32 = 2;
    /// Bits 5:2 of a stage-2 leaf: memory attributes.
    pub const MEM_ATTR_SHIFT: u32 = 2;
    /// `AP[1]` of a stage-1 leaf: EL0 may access.
    pub const AP_USER: u64 = 1 << 6;
    /// `AP[2]` of a stage-1 leaf: read-only.
    pub const AP_READ_ONLY: u64 = 1 << 7;
    /// `S2AP[0]`: readable.
    pub const S2AP_READ: u64 = 1 << 6;
    /// `S2AP[1]`: writable.
    pub const S2AP_WRITE: u64 = 1 << 7;
    /// Bits 9:8 of a leaf: shareability; part of the address with `DS`.
    pub const SH_SHIFT: u32 = 8;
    /// Access flag (leaves).
    pub const AF: u64 = 1 << 10;
    /// Not global (stage-1 leaves).
    pub const NG: u64 = 1 << 11;
    /// Stage 2 clears the XS attribute (stage-2 leaves).
    pub const FNXS: u64 = 1 << 11;
    /// Block translation entry (blocks).
    pub const NT: u64 = 1 << 16;
    /// Guarded page (stage-1 leaves).
    pub const GP: u64 = 1 << 50;
    /// Dirty bit modifier: hardware may make the leaf writable.
    pub const DBM: u64 = 1 << 51;
    /// Contiguous.
    pub const CONTIGUOUS: u64 = 1 << 52;
    /// Privileged execute-never (stage-1 leaves of a regime with EL0).
    pub const PXN: u64 = 1 << 53;
    /// Unprivileged execute-never; execute-never in a regime without EL0 (stage-1 leaves).
    pub const UXN: u64 = 1 << 54;
    /// `XN[0]` of a stage-2 leaf (FEAT_XNX).
    pub const XNX: u64 = 1 << 53;
    /// `XN[1]` of a stage-2 leaf.
    pub const XN: u64 = 1 << 54;
    /// `PXNTable` (stage-1 tables).
    pub const PXN_TABLE: u64 = 1 << 59;
    /// `UXNTable`, `XNTable` (stage-1 tables).
    pub const UXN_TABLE: u64 = 1 << 60;
    /// `APTable[0]`: no EL0 access below (stage-1 tables).
    pub const AP_TABLE_NO_USER: u64 = 1 << 61;
    /// `APTable[1]`: nothing below is writable (stage-1 tables).
    pub const AP_TABLE_READ_ONLY: u64 = 1 << 62;
    /// `NSTable` (stage-1 tables; ignored in Non-secure state).
    pub const NS_TABLE: u64 = 1 << 63;
}

/// What a processor can do, as far as translation depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Processor {
    /// `ID_AA64MMFR0_EL1.PARange` in bits: 32 to 52. 52 is FEAT_LPA.
    pub physical_bits: u8,
    /// 52-bit input addresses with the 64K granule (FEAT_LVA).
    pub large_virtual_addresses: bool,
    /// `DS`: 52-bit addresses with the 4K and 16K granules, at both stages (FEAT_LPA2).
    pub lpa2: bool,
    /// `TxSZ` up to 48 (FEAT_TTST).
    pub small_tables: bool,
    /// `HA` has an effect (FEAT_HAFDBS).
    pub hardware_access_flag: bool,
    /// `HD` has an effect (FEAT_HAFDBS, its second half).
    pub hardware_dirty_state: bool,
    /// Stage 2 tells EL1's and EL0's execution apart (FEAT_XNX).
    pub execute_never_extension: bool,
    /// `E0PDn` have an effect (FEAT_E0PD).
    pub e0pd: bool,
    /// `HPDn` have an effect (FEAT_HPDS).
    pub hierarchical_disable: bool,
    /// `SCTLR_ELx.EPAN` has an effect (FEAT_PAN3).
    pub enhanced_pan: bool,
    /// `TBIDn` have an effect (FEAT_PAuth).
    pub instruction_tags: bool,
    /// `ID_AA64MMFR2_EL1.BBM`: 2 where the size of a block may change without break-before-make,
    /// by software that is ready for TLB conflict aborts. Levels 0 and 1 change it by
    /// break-before-make (Arm ARM D8.17.2); `nT`, which level 1 permits as well, is not used.
    pub bbm_level: u8,
}

impl Default for Processor {
    /// Every feature that asks nothing of software, 52-bit physical addresses.
    fn default() -> Self {
        Processor {
            physical_bits: 52,
            large_virtual_addresses: true,
            lpa2: true,
            small_tables: true,
            hardware_access_flag: true,
            hardware_dirty_state: true,
            execute_never_extension: true,
            e0pd: true,
            hierarchical_disable: true,
            enhanced_pan: true,
            instruction_tags: true,
            bbm_level: 0,
        }
    }
}
