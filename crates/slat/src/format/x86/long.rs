//! 4-level and 5-level paging (Intel SDM 3A 5.5, AMD APM 2 5.3).
//!
//! | level | manual | maps | index bits |
//! |---|---|---|---|
//! | 4 | PML5E | | 56:48 |
//! | 3 | PML4E | | 47:39 |
//! | 2 | PDPTE | table or 1 GiB page | 38:30 |
//! | 1 | PDE | table or 2 MiB page | 29:21 |
//! | 0 | PTE | 4 KiB page | 20:12 |

use core::fmt;

use super::{Controls, Vendor, bits, describe_flags, leaf_type, touched};
use crate::access::{Access, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::EntryLayout;
use crate::memory_type::StageType;
use crate::regime::Regime;

/// Address bits of an entry before the physical width cuts them.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a processor can do, as far as the encoding of entries depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Processor {
    /// MAXPHYADDR, 32 to 52.
    pub physical_bits: u8,
    /// Whether 1 GiB pages exist (CPUID 80000001H:EDX bit 26).
    pub gigabyte_pages: bool,
    /// Whose manual decides reserved bits.
    pub vendor: Vendor,
}

impl Default for Processor {
    /// 52 physical bits, 1 GiB pages, Intel.
    fn default() -> Self {
        Processor { physical_bits: 52, gigabyte_pages: true, vendor: Vendor::Intel }
    }
}

/// 4- or 5-level paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Long {
    root_level: u8,
    controls: Controls,
    /// Bits that must be zero in a table entry, by level.
    table_reserved: [u64; 5],
    /// Bits that must be zero in a leaf, by level.
    leaf_reserved: [u64; 5],
}

impl Long {
    /// 4-level paging.
    pub fn four(controls: Controls, processor: Processor) -> Long {
        Long::with_root_level(3, controls, processor)
    }

    /// 5-level paging (`CR4.LA57`).
    pub fn five(controls: Controls, processor: Processor) -> Long {
        Long::with_root_level(4, controls, processor)
    }

    fn with_root_level(root_level: u8, controls: Controls, processor: Processor) -> Long {
        let beyond = ADDRESS & !((1u64 << processor.physical_bits.clamp(32, 52)) - 1);
        let always = beyond | if controls.nxe { 0 } else { bits::XD };
        // AMD APM 2 5.3.3: bits 8:7 of PML4E and PML5E must be zero; Intel ignores bit 8.
        let top = always | bits::PS | if processor.vendor == Vendor::Amd { bits::G } else { 0 };
        let gigabyte = if processor.gigabyte_pages { 0 } else { bits::PS };
        Long {
            root_level,
            controls,
            table_reserved: [0, always, always, top, top],
            leaf_reserved: [
                always,
                always | address_bits(13, 20),
                always | gigabyte | address_bits(13, 29),
                !0,
                !0,
            ],
        }
    }

    /// The table that a root register names.
    #[inline]
    pub(crate) fn table_address(&self, root: u64) -> u64 {
        root & ADDRESS
    }

    /// The access controls.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }
}

/// Bits `low..=high`.
pub(crate) const fn address_bits(low: u32, high: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

impl Format for Long {
    type Root = u64;

    fn name(&self) -> &'static str {
        if self.root_level == 3 { "x86-4" } else { "x86-5" }
    }

    #[inline]
    fn stage(&self) -> u8 {
        1
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        EntryLayout::LE64
    }

    #[inline]
    fn begin(&self, root: &u64, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        let unused = 64 - (12 + 9 * (u32::from(self.root_level) + 1));
        if ((input << unused) as i64 >> unused) as u64 != input {
            return Err((self.root_level, Cause::NonCanonical));
        }
        let input = input << unused >> unused;
        Ok(Start::Table { table: root & ADDRESS, level: self.root_level, input })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        12 + 9 * u32::from(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        9
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        if entry & bits::P == 0 {
            return Decoded::Empty;
        }
        let slot = usize::from(level.min(4));
        if level == 0 || (level <= 2 && entry & bits::PS != 0) {
            let reserved = entry & self.leaf_reserved[slot];
            if reserved != 0 {
                return Decoded::Reserved(Reserved { why: Why::Bits, bits: reserved });
            }
            let shift = self.shift(level);
            return Decoded::Leaf { base: entry & ADDRESS & (!0 << shift), shift: shift as u8 };
        }
        let reserved = entry & self.table_reserved[slot];
        if reserved != 0 {
            return Decoded::Reserved(Reserved { why: Why::Bits, bits: reserved });
        }
        Decoded::Table { next: entry & ADDRESS }
    }

    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        let rights = self.controls.rights(found);
        let denied = self.controls.denied(rights, access, &regime.x86);
        let key = (found.entry >> 59 & 0xf) as u32;
        denied
            .with(Denied::KEY, self.controls.key_denies(rights, key, access, &regime.x86))
            .into_result()
    }

    #[inline]
    fn touched(&self, entry: u64, _: u8, is_leaf: bool, access: &Access) -> u64 {
        touched(entry, is_leaf, access)
    }

    fn memory_type(&self, found: &Found, regime: &Regime) -> StageType {
        StageType::Pat(leaf_type(found.entry, found.level, regime.x86.pat))
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8 + 1
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        match self.decode(entry, level) {
            Decoded::Empty => f.write_str("not present"),
            Decoded::Leaf { .. } => {
                describe_flags(entry, Some(level), f)?;
                let key = entry >> 59 & 0xf;
                if key != 0 && (self.controls.user_keys || self.controls.supervisor_keys) {
                    write!(f, " key {key}")?;
                }
                Ok(())
            }
            Decoded::Reserved(reserved) => {
                describe_flags(entry, None, f)?;
                write!(f, "; {reserved}")
            }
            _ => describe_flags(entry, None, f),
        }
    }

    #[inline]
    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        self.controls.page(found)
    }
}
