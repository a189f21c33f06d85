//! Long descriptors: those of AArch64 with the 4K granule and 40-bit addresses (Arm ARM G5.5).

use super::Version;
use crate::format::Decoded;
use crate::format::arm64::{Geometry, Granule, Processor};

/// log2 of the page size.
pub(super) const PAGE: u32 = 12;
/// Index bits of a whole table.
pub(super) const STRIDE: u32 = 9;
/// Output addresses have 40 bits.
pub(super) const OUTPUT_BITS: u32 = 40;
/// Bits 47:40 of a descriptor, of `TTBRn`, `HTTBR` and `VTTBR`.
pub(super) const BEYOND: u64 = 0xff << OUTPUT_BITS;

/// The encoding of `TCR_ELx.IPS` for 40 bits.
const FORTY_BITS: u64 = 2;

/// The AArch64 processor whose descriptors of the 4K granule these are.
pub(super) const AARCH64: Processor = Processor {
    physical_bits: OUTPUT_BITS as u8,
    large_virtual_addresses: false,
    lpa2: false,
    small_tables: false,
    hardware_access_flag: false,
    hardware_dirty_state: false,
    execute_never_extension: false,
    e0pd: false,
    hierarchical_disable: false,
    enhanced_pan: false,
    instruction_tags: false,
    bbm_level: 0,
};

/// How a processor of this version decodes long descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptors {
    geometry: Geometry,
    version: Version,
}

impl Descriptors {
    pub(super) fn new(version: Version) -> Descriptors {
        let geometry = Geometry::new(Granule::Four, false, FORTY_BITS, OUTPUT_BITS as u8, false);
        Descriptors { geometry, version }
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// AArch32.DecodeDescriptorTypeLD and the address size check.
    #[inline]
    pub(super) fn decode(&self, entry: u64, level: u8) -> Decoded {
        let entry = if self.version == Version::V7 { entry & !BEYOND } else { entry };
        self.geometry.decode(entry, level)
    }

    /// See [`crate::format::Format::span`].
    pub(super) fn span(&self, leaf: u64, level: u8) -> u32 {
        self.geometry.span(leaf, level)
    }

    /// The root that a register names, or `None` where its bits 47:40 make an address size fault.
    /// `input_bits` and `level` decide how large it is.
    #[inline]
    pub(super) fn root(&self, register: u64, input_bits: u32, level: u8) -> Option<u64> {
        if self.version == Version::V8 && register & BEYOND != 0 {
            return None;
        }
        let size = input_bits - shift(level) + 3;
        Some(register & ((1 << OUTPUT_BITS) - 1) & (!0 << size))
    }
}

/// The lowest input bit that indexes tables of `level`.
#[inline]
pub(super) const fn shift(level: u8) -> u32 {
    PAGE + STRIDE * level as u32
}
