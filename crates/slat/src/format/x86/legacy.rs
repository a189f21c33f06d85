//! 32-bit paging with PSE and PSE-36 (Intel SDM 3A 5.3, AMD APM 2 5.2.1).
//!
//! | level | manual | maps | index bits |
//! |---|---|---|---|
//! | 1 | PDE | table or 4 MiB page | 31:22 |
//! | 0 | PTE | 4 KiB page | 21:12 |

use core::fmt;

use super::long::address_bits;
use super::{Controls, bits, describe_flags, touched, type_bits, type_in};
use crate::access::{Access, Kind, Stage1Page};
use crate::fault::{Cause, Reserved, Why};
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

/// 32-bit paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Legacy {
    controls: Controls,
    large_pages: bool,
    /// Reserved bits of a 4 MiB leaf.
    large_reserved: u64,
}

impl Legacy {
    /// 32-bit paging.
    ///
    /// `large_pages` is `CR4.PSE`. `physical_bits` is MAXPHYADDR where the processor has PSE-36,
    /// else 32: a 4 MiB leaf then has up to 40 address bits (SDM 3A table 5-4).
    pub fn new(controls: Controls, large_pages: bool, physical_bits: u8) -> Legacy {
        let extra = u32::from(physical_bits.clamp(32, 40)) - 32;
        // 32-bit entries have no bit 63.
        let controls =
            Controls { nxe: false, user_keys: false, supervisor_keys: false, ..controls };
        Legacy { controls, large_pages, large_reserved: address_bits(13 + extra, 21) }
    }

    /// The access controls.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }
}

impl Format for Legacy {
    type Root = u64;

    fn name(&self) -> &'static str {
        "x86-32"
    }

    fn stage(&self) -> u8 {
        1
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        EntryLayout::LE32
    }

    #[inline]
    fn begin(&self, root: &u64, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        if input >> 32 != 0 {
            return Err((1, Cause::InputSize));
        }
        Ok(Start::Table { table: root & 0xffff_f000, level: 1, input })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        12 + 10 * u32::from(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        10
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        if entry & bits::P == 0 {
            return Decoded::Empty;
        }
        if level == 0 {
            return Decoded::Leaf { base: entry & 0xffff_f000, shift: 12 };
        }
        if self.large_pages && entry & bits::PS != 0 {
            let reserved = entry & self.large_reserved;
            if reserved != 0 {
                return Decoded::Reserved(Reserved { why: Why::Bits, bits: reserved });
            }
            // PSE-36: bits 20:13 are address bits 39:32.
            let high = (entry >> 13 & 0xff) << 32;
            return Decoded::Leaf { base: entry & 0xffc0_0000 | high, shift: 22 };
        }
        Decoded::Table { next: entry & 0xffff_f000 }
    }

    #[inline(always)]
    fn plainly_permits(&self, found: &Found, access: &Access, _: &Regime) -> bool {
        self.controls.plainly_permits(found, access)
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        let rights = self.controls.rights(found);
        self.controls.denied(rights, access, &regime.x86).into_result()
    }

    fn touched(&self, entry: u64, _: u8, is_leaf: bool, access: &Access) -> u64 {
        touched(entry, is_leaf, access)
    }

    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        type_bits(found)
    }

    fn type_of(&self, bits: TypeBits, _: Kind, regime: &Regime) -> StageType {
        StageType::Pat(type_in(regime.x86.pat, bits))
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8 + 1
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        match self.decode(entry, level) {
            Decoded::Empty => f.write_str("not present"),
            Decoded::Reserved(reserved) => {
                describe_flags(entry, None, f)?;
                write!(f, "; {reserved}")
            }
            Decoded::Leaf { .. } => describe_flags(entry, Some(level), f),
            _ => describe_flags(entry, None, f),
        }
    }

    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        self.controls.page(found)
    }
}
