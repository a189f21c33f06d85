//! What a granule decides: levels, block sizes, and where an entry holds its output address
//! (Arm ARM D8.2, D8.3).

use crate::fault::{Reserved, Why};
use crate::format::Decoded;
use crate::format::masks::Masks;

use super::bits;

/// The size of the smallest page and of every whole table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Granule {
    /// 4 KiB, 9 bits a level.
    Four,
    /// 16 KiB, 11 bits a level.
    Sixteen,
    /// 64 KiB, 13 bits a level.
    SixtyFour,
}

impl Granule {
    /// log2 of the page size.
    pub const fn bits(self) -> u32 {
        match self {
            Granule::Four => 12,
            Granule::Sixteen => 14,
            Granule::SixtyFour => 16,
        }
    }

    /// Index bits of a whole table.
    pub const fn stride(self) -> u32 {
        self.bits() - 3
    }

    /// The highest `TxSZ` (`AArch64.MaxTxSZ`), by whether small tables exist (FEAT_TTST).
    pub(super) const fn max_tsz(self, small_tables: bool) -> u8 {
        match (small_tables, self) {
            (false, _) => 39,
            (true, Granule::SixtyFour) => 47,
            (true, _) => 48,
        }
    }
}

/// Where an entry holds bits 51:48 of an output address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
enum High {
    /// Nowhere.
    None,
    /// Bits 15:12 (64K granule, FEAT_LPA).
    Lpa,
    /// 51:50 in bits 9:8, 49:48 in place (`DS`, FEAT_LPA2).
    Lpa2,
}

/// How the entries of one tree are encoded: its granule and where output addresses lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Geometry {
    granule: Granule,
    high: High,
    output_bits: u8,
    masks: Masks,
}

impl Geometry {
    /// The geometry of tables with this granule. `ds` is `TCR_ELx.DS`, `size` the output size field
    /// (`IPS`, `PS`); `physical_bits` and `lpa2` are the processor's.
    pub(in crate::format) fn new(
        granule: Granule,
        ds: bool,
        size: u64,
        physical_bits: u8,
        lpa2: bool,
    ) -> Geometry {
        let lpa = physical_bits >= 52;
        let high = match granule {
            Granule::SixtyFour if lpa => High::Lpa,
            Granule::Four | Granule::Sixteen if ds && lpa2 => High::Lpa2,
            _ => High::None,
        };
        // AArch64.PhysicalAddressSize: beyond 48 bits only where the granule can say so.
        let most = if granule == Granule::SixtyFour && lpa || lpa2 {
            physical_bits
        } else {
            physical_bits.min(48)
        };
        let output_bits = size_bits(size).min(most);
        let mut geometry = Geometry { granule, high, output_bits, masks: Masks::NONE };
        geometry.masks = geometry.plain();
        geometry
    }

    /// What most entries look like.
    fn plain(&self) -> Masks {
        let table = bits::VALID | bits::TABLE;
        let whole = (u64::MAX >> 12) & (!0 << self.granule.bits());
        let beyond = self.bits_of(whole & (!0 << self.output_bits));
        let mut masks = Masks::table(table, beyond).with_leaf(0, table, beyond);
        for level in 1..=4 {
            if self.has_blocks(level) {
                masks = masks.with_leaf(level, bits::VALID, bits::TABLE | beyond);
            }
        }
        masks
    }

    /// See [`crate::format::Format::plain_table`].
    #[inline(always)]
    pub(in crate::format) const fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        if self.masks.is_table(entry, level) {
            Some(self.address(entry, self.granule.bits()))
        } else {
            None
        }
    }

    /// See [`crate::format::Format::plain_leaf`].
    #[inline(always)]
    pub(in crate::format) const fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        if self.masks.is_leaf(entry, level) {
            let shift = self.shift(level);
            Some((self.address(entry, shift), shift as u8))
        } else {
            None
        }
    }

    /// The granule.
    pub const fn granule(&self) -> Granule {
        self.granule
    }

    /// Bits that an output address may have; more is an address size fault.
    pub const fn output_bits(&self) -> u8 {
        self.output_bits
    }

    /// Whether `DS` is in effect, so that shareability comes from the control register.
    pub const fn is_lpa2(&self) -> bool {
        matches!(self.high, High::Lpa2)
    }

    /// Whether bits 51:48 of a root are in bits 5:2 of its register (`AArch64.S1TTBaseAddress`).
    /// `size` is the output size field.
    pub(super) fn root_is_wide(&self, size: u64) -> bool {
        match self.high {
            High::None => false,
            High::Lpa => size == 6,
            High::Lpa2 => true,
        }
    }

    /// The lowest input bit that indexes tables of `level`.
    #[inline]
    pub const fn shift(&self, level: u8) -> u32 {
        self.granule.bits() + level as u32 * self.granule.stride()
    }

    /// Whether blocks exist at `level` (`AArch64.BlockDescSupported`).
    #[inline]
    const fn has_blocks(&self, level: u8) -> bool {
        match (self.granule, level) {
            (_, 1) | (Granule::Four, 2) => true,
            (Granule::Four, 3) | (Granule::Sixteen, 2) => matches!(self.high, High::Lpa2),
            (Granule::SixtyFour, 2) => matches!(self.high, High::Lpa),
            _ => false,
        }
    }

    /// log2 of the range that a contiguous leaf of `level` says is mapped alike, or `None` where the
    /// bit has no meaning (Arm ARM D8.7).
    pub const fn contiguous_shift(&self, level: u8) -> Option<u32> {
        let entries = match (self.granule, level) {
            (Granule::Four, 0..=2) => 4,
            (Granule::Sixteen, 0) => 7,
            (Granule::Sixteen, 1) | (Granule::SixtyFour, 0 | 1) => 5,
            _ => return None,
        };
        Some(self.shift(level) + entries)
    }

    /// See [`crate::format::Format::span`].
    #[inline]
    pub(in crate::format) const fn span(&self, leaf: u64, level: u8) -> u32 {
        match self.contiguous_shift(level) {
            Some(shift) if leaf & bits::CONTIGUOUS != 0 => shift,
            _ => self.shift(level),
        }
    }

    /// The output address that an entry holds, from bit `low` up.
    #[inline]
    const fn address(&self, entry: u64, low: u32) -> u64 {
        let base = entry & 0x0000_ffff_ffff_ffff & (!0 << low);
        match self.high {
            High::None => base,
            High::Lpa => base | (entry >> 12 & 0xf) << 48,
            High::Lpa2 => base | (entry >> 8 & 3) << 50 | entry & 3 << 48,
        }
    }

    /// The bits of an entry that hold these bits of its address.
    #[inline]
    pub(crate) const fn bits_of(&self, address: u64) -> u64 {
        let low = address & 0x0000_ffff_ffff_ffff;
        match self.high {
            High::None => low,
            High::Lpa => low | (address >> 48 & 0xf) << 12,
            High::Lpa2 => low | (address >> 50 & 3) << 8 | address & 3 << 48,
        }
    }

    /// What an entry says (`AArch64.DecodeDescriptorType`), both stages alike.
    #[inline]
    pub(in crate::format) fn decode(&self, entry: u64, level: u8) -> Decoded {
        if entry & bits::VALID == 0 {
            return Decoded::Empty;
        }
        let is_table = level > 0 && entry & bits::TABLE != 0;
        let shift = if is_table {
            self.granule.bits()
        } else {
            let why = match level {
                0 if entry & bits::TABLE == 0 => Some(Why::Encoding),
                0 => None,
                _ if self.has_blocks(level) => None,
                _ => Some(Why::LeafLevel),
            };
            if let Some(why) = why {
                return Decoded::Reserved(Reserved { why, bits: bits::VALID | bits::TABLE });
            }
            self.shift(level)
        };
        let address = self.address(entry, shift);
        if address >> self.output_bits != 0 {
            let beyond = address >> self.output_bits << self.output_bits;
            let bits = self.bits_of(beyond);
            return Decoded::Reserved(Reserved { why: Why::AddressSize, bits });
        }
        if is_table {
            Decoded::Table { next: address }
        } else {
            Decoded::Leaf { base: address, shift: shift as u8 }
        }
    }
}

/// The address size that `TCR_ELx.IPS`, `TCR_EL2.PS` and `VTCR_EL2.PS` encode. 0b111 is 56 bits,
/// which only 128-bit descriptors have, and is cut to the processor's.
const fn size_bits(size: u64) -> u8 {
    match size & 7 {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        6 => 52,
        _ => 56,
    }
}

/// The encoding of the smallest size that has at least `physical_bits` bits.
pub(super) const fn size_encoding(physical_bits: u8) -> u64 {
    match physical_bits {
        0..=32 => 0,
        33..=36 => 1,
        37..=40 => 2,
        41..=42 => 3,
        43..=44 => 4,
        45..=48 => 5,
        _ => 6,
    }
}

/// The table that a root register names. `register` is `TTBRn_ELx` or `VTTBR_EL2`, `index_bits` the
/// root's (concatenated tables included): bits below the root's size are not part of the address.
#[inline]
pub(super) fn root_address(register: u64, wide: bool, index_bits: u32) -> u64 {
    let size = index_bits + 3;
    if wide {
        let address = register & 0x0000_ffff_ffff_ffc0 | (register >> 2 & 0xf) << 48;
        address & (!0 << size)
    } else {
        register & 0x0000_ffff_ffff_fffe & (!0 << size)
    }
}
