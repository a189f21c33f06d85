//! The tables of every scheme and both stages: they differ in numbers only.

use core::fmt;

use super::{Features, Mask, Scheme, bits};
use crate::access::{Access, Flavor, Kind, Privilege, Purpose, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::masks::Masks;
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::{EntryLayout, EntrySize};
use crate::memory_type::riscv::Pbmt;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

/// The rights of a leaf, in the order of its bits 3:1.
const RWX: u64 = bits::R | bits::W | bits::X;

/// A 64 KiB range of Svnapot: the only size there is.
const NAPOT_SHIFT: u32 = 16;

/// One stage of RISC-V translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sv {
    scheme: Scheme,
    stage: u8,
    features: Features,
    /// Bits that must be zero in every valid entry.
    always_reserved: u64,
    /// Bits that must be zero in a pointer to the next level.
    pointer_reserved: u64,
    masks: Masks,
}

impl Sv {
    /// `satp`'s or `vsatp`'s table.
    pub fn stage1(scheme: Scheme, features: Features) -> Sv {
        let wide = scheme != Scheme::Sv32;
        let unmasked = |mask| if wide { mask } else { Mask::Off };
        Sv::new(
            scheme,
            1,
            Features {
                supervisor_mask: unmasked(features.supervisor_mask),
                user_mask: unmasked(features.user_mask),
                ..features
            },
        )
    }

    /// `hgatp`'s table: the x4 variant of `scheme`. Zicfiss and pointer masking have no part in it.
    pub fn stage2(scheme: Scheme, features: Features) -> Sv {
        Sv::new(
            scheme,
            2,
            Features {
                shadow_stacks: false,
                supervisor_mask: Mask::Off,
                user_mask: Mask::Off,
                ..features
            },
        )
    }

    fn new(scheme: Scheme, stage: u8, features: Features) -> Sv {
        let unless = |has: bool, bits: u64| if has { 0 } else { bits };
        let always_reserved = match scheme {
            Scheme::Bare | Scheme::Sv32 => 0,
            _ => {
                bits::RESERVED & !if features.software_bits { bits::RSW_HIGH } else { 0 }
                    | unless(features.napot, bits::N)
                    | unless(features.memory_types, bits::PBMT)
            }
        };
        let high = match scheme {
            Scheme::Bare | Scheme::Sv32 => 0,
            _ => bits::N | bits::PBMT,
        };
        let pointer_reserved = always_reserved | high | bits::U | bits::A | bits::D;
        let mut masks = Masks::table(bits::V, RWX | pointer_reserved);
        for level in 0..scheme.levels() {
            // A readable page of one entry. Its page number is aligned.
            let index_bits = if scheme == Scheme::Sv32 { 10 } else { 9 };
            let unaligned = ((1u64 << (index_bits * u32::from(level))) - 1) << 10;
            masks = masks.with_leaf(level, bits::V | bits::R, always_reserved | high | unaligned);
        }
        Sv { scheme, stage, features, always_reserved, pointer_reserved, masks }
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What is enabled.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The address that is translated where software used `input`: the upper bits that pointer
    /// masking ignores replaced by the sign, or by zero in Bare mode. It is also what the trap
    /// value register reports.
    #[inline]
    pub fn transformed(&self, input: u64, access: &Access, regime: &Regime) -> u64 {
        let mask = match access.privilege {
            Privilege::Supervisor => self.features.supervisor_mask,
            Privilege::User => self.features.user_mask,
        };
        // Explicit accesses only; not HLVX, and nothing while MXR is in effect.
        let exempt = access.kind == Kind::Execute
            || access.purpose != Purpose::Final
            || access.flavor == Flavor::Hlvx
            || regime.riscv.mxr
            || regime.riscv.vsmxr;
        if mask == Mask::Off || exempt {
            return input;
        }
        let unused = mask.bits();
        if self.scheme == Scheme::Bare {
            input << unused >> unused
        } else {
            ((input << unused) as i64 >> unused) as u64
        }
    }

    fn root_level(&self) -> u8 {
        self.scheme.levels().saturating_sub(1)
    }

    /// How many input bits the tables translate.
    fn input_bits(&self) -> u32 {
        let width = match self.scheme {
            Scheme::Bare => return 64,
            Scheme::Sv32 => 32,
            Scheme::Sv39 => 39,
            Scheme::Sv48 => 48,
            Scheme::Sv57 => 57,
        };
        if self.stage == 2 { width + 2 } else { width }
    }

    /// The address in an entry's PPN field: 44 bits of it, or 22 in Sv32.
    #[inline]
    fn address(&self, entry: u64) -> u64 {
        let ppn_bits = if self.scheme == Scheme::Sv32 { 22 } else { 44 };
        (entry >> 10 & ((1 << ppn_bits) - 1)) << 12
    }

    /// A valid entry with some of R, W and X.
    #[inline]
    fn leaf(&self, entry: u64, level: u8) -> Decoded {
        let reserved = |why, bits| Decoded::Reserved(Reserved { why, bits: entry & bits });
        let address = self.address(entry);
        let mut shift = self.shift(level);
        if self.scheme != Scheme::Sv32 {
            if entry & bits::PBMT == bits::PBMT {
                return reserved(Why::MemoryType, bits::PBMT);
            }
            if entry & bits::N != 0 {
                // Of the NAPOT encodings, PPN[3:0] = 1000 at level 0 alone is not reserved.
                let size = 0xf << 10;
                if level > 0 || entry & size != 8 << 10 {
                    return reserved(Why::Encoding, bits::N | size);
                }
                shift = NAPOT_SHIFT;
                return Decoded::Leaf { base: address >> shift << shift, shift: shift as u8 };
            }
        }
        let below = (1 << shift) - 1;
        if address & below != 0 {
            return reserved(Why::Misaligned, below >> 12 << 10);
        }
        Decoded::Leaf { base: address, shift: shift as u8 }
    }

    /// Steps 6 to 8 of the translation process: what the leaf's U, R, W and X deny.
    #[inline]
    fn denied(&self, entry: u64, access: &Access, regime: &Regime) -> Denied {
        let state = &regime.riscv;
        let explicit = access.purpose == Purpose::Final;
        let has = |bit: u64| entry & bit != 0;
        let fetch = access.kind == Kind::Execute;
        let by_mode = if self.stage == 2 || access.privilege == Privilege::User {
            Denied::NONE.with(Denied::USER, !has(bits::U))
        } else {
            Denied::NONE
                .with(Denied::SUPERVISOR_FETCH, has(bits::U) && fetch)
                .with(Denied::SUPERVISOR_DATA, has(bits::U) && !fetch && !state.sum)
        };
        let shadow_page = self.features.shadow_stacks && entry & RWX == bits::W;
        let shadow_access = access.flavor == Flavor::ShadowStack;
        if shadow_access && self.stage == 2 {
            // Shadow-stack instructions need a read-write page of the G-stage.
            return by_mode.with(Denied::READ, !has(bits::R)).with(Denied::WRITE, !has(bits::W));
        }
        if shadow_access {
            // A read-only page is a page fault, for copy-on-write; any other is fatal.
            let read_only = entry & RWX == bits::R;
            return by_mode
                .with(Denied::WRITE, read_only)
                .with(Denied::SHADOW_STACK, !shadow_page && !read_only);
        }
        let execute_only_readable =
            explicit && has(bits::X) && (state.mxr || self.stage == 1 && state.vsmxr);
        match access.kind {
            Kind::Read if access.flavor == Flavor::Hlvx => {
                by_mode.with(Denied::EXECUTE, !has(bits::X))
            }
            Kind::Read => {
                by_mode.with(Denied::READ, !has(bits::R) && !shadow_page && !execute_only_readable)
            }
            Kind::Write => {
                by_mode.with(Denied::SHADOW_STACK, shadow_page).with(Denied::WRITE, !has(bits::W))
            }
            Kind::Execute => by_mode
                .with(Denied::SHADOW_STACK, shadow_page)
                .with(Denied::EXECUTE, !shadow_page && !has(bits::X)),
        }
    }
}

impl Format for Sv {
    /// Address of the root table. A G-stage root is 16 KiB and its low two page-number bits read
    /// as zero.
    type Root = u64;

    fn name(&self) -> &'static str {
        match (self.stage, self.scheme) {
            (_, Scheme::Bare) => "bare",
            (1, Scheme::Sv32) => "sv32",
            (1, Scheme::Sv39) => "sv39",
            (1, Scheme::Sv48) => "sv48",
            (1, Scheme::Sv57) => "sv57",
            (_, Scheme::Sv32) => "sv32x4",
            (_, Scheme::Sv39) => "sv39x4",
            (_, Scheme::Sv48) => "sv48x4",
            (_, Scheme::Sv57) => "sv57x4",
        }
    }

    #[inline]
    fn stage(&self) -> u8 {
        self.stage
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        let size = if self.scheme == Scheme::Sv32 { EntrySize::Four } else { EntrySize::Eight };
        EntryLayout { size, order: self.features.order }
    }

    #[inline]
    fn begin(
        &self,
        root: &u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        let input = self.transformed(input, access, regime);
        if self.scheme == Scheme::Bare {
            return Ok(Start::Flat { output: input });
        }
        let width = self.input_bits();
        // RV64 addresses are sign-extended; RV32's and guest physical ones are not.
        let fits = if self.stage == 1 && self.scheme != Scheme::Sv32 {
            let unused = 64 - width;
            ((input << unused) as i64 >> unused) as u64 == input
        } else {
            input >> width == 0
        };
        let level = self.root_level();
        if !fits {
            return Err((level, Cause::InputSize));
        }
        let table = if self.stage == 2 { root & !0x3fff } else { root & !0xfff };
        Ok(Start::Table { table, level, input: input & ((1 << width) - 1) })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        12 + self.index_bits(level) * u32::from(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        if self.scheme == Scheme::Sv32 { 10 } else { 9 }
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        if entry & bits::V == 0 {
            return Decoded::Empty;
        }
        let reserved = |why, bits| Decoded::Reserved(Reserved { why, bits: entry & bits });
        if entry & self.always_reserved != 0 {
            return reserved(Why::Bits, self.always_reserved);
        }
        match entry & RWX {
            0 if entry & self.pointer_reserved != 0 => reserved(Why::Bits, self.pointer_reserved),
            0 if level == 0 => reserved(Why::Encoding, bits::V),
            0 => Decoded::Table { next: self.address(entry) },
            // A shadow-stack page, where there are such.
            bits::W if self.features.shadow_stacks => self.leaf(entry, level),
            rights if rights & (bits::R | bits::W) == bits::W => {
                reserved(Why::WriteWithoutRead, RWX)
            }
            _ => self.leaf(entry, level),
        }
    }

    #[inline(always)]
    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        self.masks.is_table(entry, level).then_some(self.address(entry))
    }

    #[inline(always)]
    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        let shift = self.shift(level) as u8;
        self.masks.is_leaf(entry, level).then_some((self.address(entry), shift))
    }

    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if found.is_flat() {
            // Shadow-stack instructions need a first stage (Zicfiss); nothing else is protected.
            let refused = self.stage == 1 && access.flavor == Flavor::ShadowStack;
            return Denied::NONE.with(Denied::SHADOW_STACK, refused).into_result();
        }
        let denied = self.denied(found.entry, access, regime);
        if !denied.is_empty() || self.features.hardware_ad {
            return denied.into_result();
        }
        let write = access.kind == Kind::Write;
        denied
            .with(Denied::ACCESSED, found.entry & bits::A == 0)
            .with(Denied::DIRTY, write && found.entry & bits::D == 0)
            .into_result()
    }

    #[inline]
    fn touched(&self, entry: u64, _: u8, is_leaf: bool, access: &Access) -> u64 {
        if !is_leaf || !self.features.hardware_ad {
            entry
        } else if access.kind == Kind::Write {
            entry | bits::A | bits::D
        } else {
            entry | bits::A
        }
    }

    /// "Svade".
    #[inline]
    fn settled(&self, leaf: u64, _: u8, dirty: bool) -> u64 {
        leaf | bits::A | if dirty { bits::D } else { 0 }
    }

    /// PBMT. Entries of Sv32 end below it.
    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        match self.scheme {
            _ if found.is_flat() => TypeBits::OFF,
            Scheme::Sv32 => TypeBits::new(0),
            _ => TypeBits::new((found.entry >> bits::PBMT_SHIFT) as u16 & 3),
        }
    }

    fn type_of(&self, bits: TypeBits, _: Kind, _: &Regime) -> StageType {
        let pbmt = bits.get().and_then(|bits| Pbmt::from_encoding(bits as u8));
        StageType::Pbmt(pbmt.unwrap_or_default())
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        if entry & bits::V == 0 {
            return f.write_str("not valid");
        }
        if entry & RWX == 0 {
            f.write_str("pointer")?;
        } else {
            for (bit, set) in [(bits::R, 'R'), (bits::W, 'W'), (bits::X, 'X')] {
                f.write_char(if entry & bit != 0 { set } else { '-' })?;
            }
        }
        for (bit, name) in [(bits::U, " U"), (bits::G, " G"), (bits::A, " A"), (bits::D, " D")] {
            if entry & bit != 0 {
                f.write_str(name)?;
            }
        }
        if entry & bits::RSW != 0 {
            write!(f, " RSW={}", (entry & bits::RSW) >> 8)?;
        }
        if self.features.shadow_stacks && entry & RWX == bits::W {
            f.write_str(" shadow-stack")?;
        }
        if self.scheme != Scheme::Sv32 {
            match Pbmt::from_encoding((entry >> bits::PBMT_SHIFT) as u8 & 3) {
                Some(Pbmt::Pma) => {}
                Some(pbmt) => write!(f, " PBMT={pbmt}")?,
                None => f.write_str(" PBMT=3")?,
            }
            if entry & bits::N != 0 {
                f.write_str(" N")?;
            }
        }
        if let Decoded::Reserved(reserved) = self.decode(entry, level) {
            write!(f, "; {reserved}")?;
        }
        Ok(())
    }

    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        if found.is_flat() {
            return Stage1Page::FLAT;
        }
        let shadow_stack = self.features.shadow_stacks && found.entry & RWX == bits::W;
        Stage1Page {
            user: found.entry & bits::U != 0,
            writable: found.entry & bits::W != 0 && !shadow_stack,
            executable: found.entry & bits::X != 0,
            shadow_stack,
            tables_via: found.path.via,
        }
    }
}
