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

use super::{Controls, Vendor, bits, describe_flags, touched, type_bits, type_in};
use crate::access::{Access, Flavor, Kind, Privilege, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::masks::Masks;
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
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
    /// AMD SME/SEV: the position of the C-bit, which is no address bit and may be set
    /// (APM 2 7.10.1). `physical_bits` is then the reduced width.
    pub encryption_bit: Option<u8>,
}

impl Default for Processor {
    /// 52 physical bits, 1 GiB pages, Intel.
    fn default() -> Self {
        Processor {
            physical_bits: 52,
            gigabyte_pages: true,
            vendor: Vendor::Intel,
            encryption_bit: None,
        }
    }
}

/// 4- or 5-level paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Long {
    root_level: u8,
    controls: Controls,
    /// Bits that must be zero in a table entry, by level.
    table_reserved: [u64; 8],
    /// Bits that must be zero in a leaf, by level.
    leaf_reserved: [u64; 8],
    /// The bit that makes a present entry a leaf, by level: at level 0 every one is.
    leaf_bit: [u64; 8],
    masks: Masks,
    /// Address bits of an entry.
    address: u64,
    /// High bits of an address that are not translated.
    unused: u64,
    /// The highest bit that is, of which they are copies.
    sign: u64,
    linear: Linear,
    /// Whether `linear` asks for anything.
    has_linear: bool,
    /// Data accesses are subject to protection keys or to `linear`.
    rare_data: bool,
    /// Fetches are subject to `linear`.
    rare_fetches: bool,
}

/// What is done to a linear address before paging (Intel SDM 3A 4.3 and 4.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Linear {
    /// Linear-address masking of user pointers (CR3 bits 62:61).
    pub mask_user: Masking,
    /// Linear-address masking of supervisor pointers (`CR4.LAM_SUP`): of the width of the paging
    /// mode.
    pub mask_supervisor: bool,
    /// Linear-address-space separation (`CR4.LASS`).
    pub separation: bool,
}

/// Linear-address masking of user pointers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Masking {
    /// Off.
    #[default]
    Off,
    /// Bits 62:48 are ignored (LAM48).
    From48,
    /// Bits 62:57 are ignored (LAM57).
    From57,
}

impl Masking {
    /// What CR3 selects: `LAM_U57` (bit 61) counts before `LAM_U48` (bit 62).
    pub const fn from_cr3(cr3: u64) -> Masking {
        match (cr3 >> 61 & 1, cr3 >> 62 & 1) {
            (1, _) => Masking::From57,
            (_, 1) => Masking::From48,
            _ => Masking::Off,
        }
    }
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
        let encryption = match processor.encryption_bit {
            Some(bit @ 32..=51) => 1u64 << bit,
            _ => 0,
        };
        let address = ADDRESS & !encryption;
        let beyond = address & !((1u64 << processor.physical_bits.clamp(32, 52)) - 1);
        let always = beyond | if controls.nxe { 0 } else { bits::XD };
        // AMD APM 2 5.3.3: bits 8:7 of PML4E and PML5E must be zero; Intel ignores bit 8.
        let top = always | bits::PS | if processor.vendor == Vendor::Amd { bits::G } else { 0 };
        let gigabyte = if processor.gigabyte_pages { 0 } else { bits::PS };
        // Eight of each, so that an index needs no check; levels end at 4.
        let table_reserved = [0, always, always, top, top, !0, !0, !0];
        let large = [always | address_bits(13, 20), always | gigabyte | address_bits(13, 29)];
        let leaf_reserved = [always, large[0], large[1], !0, !0, !0, !0, !0];
        let leaf_bit = [bits::P, bits::PS, bits::PS, 0, 0, 0, 0, 0];
        let mut masks = Masks::table(bits::P, top).with_leaf(0, bits::P, always).with_leaf(
            1,
            bits::P | bits::PS,
            large[0],
        );
        if processor.gigabyte_pages {
            masks = masks.with_leaf(2, bits::P | bits::PS, large[1]);
        }
        Long {
            root_level,
            controls,
            table_reserved,
            leaf_reserved,
            leaf_bit,
            masks,
            address,
            unused: !0 << (12 + 9 * (root_level + 1)),
            sign: 1 << (11 + 9 * (root_level + 1)),
            linear: Linear::default(),
            has_linear: false,
            rare_data: controls.user_keys || controls.supervisor_keys,
            rare_fetches: false,
        }
    }

    /// The same paging with masking and separation of linear addresses.
    #[must_use]
    pub fn with_linear(self, linear: Linear) -> Long {
        let has_linear = linear != Linear::default();
        let keys = self.controls.user_keys || self.controls.supervisor_keys;
        Long { linear, has_linear, rare_data: keys || has_linear, rare_fetches: has_linear, ..self }
    }

    /// Masking and separation, where some is enabled. `licensed` is whether AC lets the supervisor
    /// access user pages. Takes no access descriptor, so that a walk need not have one in memory.
    #[cold]
    fn special(
        &self,
        input: u64,
        kind: Kind,
        privilege: Privilege,
        licensed: bool,
    ) -> Result<u64, Cause> {
        let Linear { mask_user, mask_supervisor, separation } = self.linear;
        let upper_half = input >> 63 != 0;
        if separation {
            // SDM 3A 4.4: by bit 63 of the pointer, before paging.
            let refused = match (privilege, kind) {
                (Privilege::User, _) => upper_half,
                (Privilege::Supervisor, Kind::Execute) => !upper_half,
                (Privilege::Supervisor, _) => !upper_half && self.controls.smap && !licensed,
            };
            if refused {
                return Err(Cause::AddressSpaceSeparation);
            }
        }
        // SDM 3A 4.3: data accesses only; bit 63 selects, and takes part in canonicality.
        if kind == Kind::Execute {
            return Ok(input);
        }
        let from = match (upper_half, mask_supervisor, mask_user) {
            (true, true, _) => 12 + 9 * (u32::from(self.root_level) + 1),
            (false, _, Masking::From48) => 48,
            (false, _, Masking::From57) => 57,
            _ => return Ok(input),
        };
        // The ignored bits become copies of the highest translated one; bit 63 must equal it.
        let extended = ((input << (64 - from)) as i64 >> (64 - from)) as u64;
        if extended >> 63 != input >> 63 {
            return Err(Cause::NonCanonical);
        }
        Ok(extended)
    }

    /// The level of the root.
    pub(crate) fn root_level(&self) -> u8 {
        self.root_level
    }

    /// Whether an address that is not sign-extended has bits beyond the tables' width.
    #[inline(always)]
    pub(crate) fn is_beyond(&self, input: u64) -> bool {
        input & self.unused != 0
    }

    /// The table that a root register names.
    #[inline]
    pub(crate) fn table_address(&self, root: u64) -> u64 {
        root & self.address
    }

    /// The bits of a leaf's address that may be set.
    #[inline(always)]
    pub(crate) fn leaf_address(&self, level: u8) -> u64 {
        ADDRESS & !self.leaf_reserved[usize::from(level.min(4))] & (!0 << self.shift(level))
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

/// The protection key of a leaf (SDM 3A 5.6.2).
const fn key(leaf: u64) -> u32 {
    (leaf >> 59 & 0xf) as u32
}

impl Format for Long {
    type Root = u64;

    const UNROLLED: bool = true;

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
    fn begin(
        &self,
        root: &u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        let input = if self.has_linear {
            let licensed = regime.x86.alignment_check && access.flavor != Flavor::Implicit;
            self.special(input, access.kind, access.privilege, licensed)
                .map_err(|cause| (self.root_level, cause))?
        } else {
            input
        };
        // Moved up by its lower half, the canonical space begins at 0 and has no upper bits.
        if input.wrapping_add(self.sign) & self.unused != 0 {
            return Err((self.root_level, Cause::NonCanonical));
        }
        let input = input & !self.unused;
        Ok(Start::Table { table: self.table_address(*root), level: self.root_level, input })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        12 + 9 * u32::from(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        9
    }

    #[inline(always)]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        if entry & bits::P == 0 {
            return Decoded::Empty;
        }
        let slot = usize::from(level & 7);
        if entry & self.leaf_bit[slot] != 0 {
            let reserved = entry & self.leaf_reserved[slot];
            if reserved != 0 {
                return Decoded::Reserved(Reserved { why: Why::Bits, bits: reserved });
            }
            let shift = self.shift(level);
            return Decoded::Leaf {
                base: entry & self.address & (!0 << shift),
                shift: shift as u8,
            };
        }
        let reserved = entry & self.table_reserved[slot];
        if reserved != 0 {
            return Decoded::Reserved(Reserved { why: Why::Bits, bits: reserved });
        }
        Decoded::Table { next: entry & self.address }
    }

    #[inline(always)]
    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        self.masks.is_table(entry, level).then_some(entry & self.address)
    }

    #[inline(always)]
    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        let shift = self.shift(level);
        let base = entry & self.address & (!0 << shift);
        self.masks.is_leaf(entry, level).then_some((base, shift as u8))
    }

    #[inline(always)]
    fn plainly_permits(&self, found: &Found, access: &Access, _: &Regime) -> bool {
        let rare = self.rare_fetches | self.rare_data & (access.kind != Kind::Execute);
        !rare && self.controls.plainly_permits(found, access)
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if self.has_linear {
            // Masking and separation tell kinds of access apart; a leaf may be asked about another
            // kind than the one it was found by.
            self.begin(&0, found.input, access, regime).map_err(|(_, cause)| cause)?;
        }
        let rights = self.controls.rights(found);
        let denied = self.controls.denied(rights, access, &regime.x86);
        let key = key(found.entry);
        denied
            .with(Denied::KEY, self.controls.key_denies(rights, key, access, &regime.x86))
            .into_result()
    }

    #[inline]
    fn key(&self, found: &Found) -> Option<u8> {
        Some(key(found.entry) as u8)
    }

    #[inline]
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
            Decoded::Leaf { .. } => {
                describe_flags(entry, Some(level), f)?;
                let key = key(entry);
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
