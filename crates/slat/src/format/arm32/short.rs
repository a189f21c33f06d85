//! Short descriptors: PL1&0 without `TTBCR.EAE` (Arm ARM G5.4).

use core::fmt;

use super::{Control, Processor, RES0, Registers, Rights, Root, refuse, sctlr, ttbcr};
use crate::access::{Access, Kind, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::{ByteOrder, EntryLayout, EntrySize};
use crate::memory_type::arm::{Attributes, Cache, Device, Hints, Memory, Shareability};
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::register::{Refusal, Refused};

/// Bits of short descriptors (Arm ARM G5.4.1).
pub mod bits {
    /// Bits 1:0: 0b00 is invalid; at level 1, 0b01 is a table; at level 0, 0b01 is a large page.
    pub const TYPE: u64 = 3;
    /// At level 1: a section or supersection. At level 0: a small page.
    pub const LEAF: u64 = 1 << 1;
    /// A supersection, among sections.
    pub const SUPERSECTION: u64 = 1 << 18;
    /// `PXN` of sections.
    pub const SECTION_PXN: u64 = 1 << 0;
    /// `PXN` of tables.
    pub const TABLE_PXN: u64 = 1 << 2;
    /// `AP[0]` of sections: the access flag with `SCTLR.AFE`.
    pub const SECTION_AP0: u64 = 1 << 10;
    /// `AP[0]` of pages.
    pub const PAGE_AP0: u64 = 1 << 4;
}

/// Stage 1 with short descriptors: `arm-short`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Short {
    control: Control,
    /// `TTBCR.N`.
    upper_bits: u8,
    lower_disabled: bool,
    upper_disabled: bool,
    domains: u32,
    /// That of tables and sections which are made.
    domain: u8,
    /// `SCTLR.AFE`.
    access_flags: bool,
    /// `SCTLR.HA`.
    sets_access_flag: bool,
    /// `SCTLR.TRE`.
    remap: bool,
    order: ByteOrder,
}

/// The fields of a leaf, wherever its kind has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Leaf {
    /// `AP[2:0]`.
    permissions: u8,
    /// `TEX[2:0]`, `C`, `B`.
    attributes: u8,
    shareable: bool,
    not_global: bool,
    execute_never: bool,
    privileged_execute_never: bool,
    domain: u8,
}

/// Bits `low..=high` of a descriptor.
#[inline]
const fn field(entry: u64, high: u32, low: u32) -> u8 {
    (entry >> low & ((1 << (high - low + 1)) - 1)) as u8
}

impl Leaf {
    /// `table` is the descriptor of the level above, for a page.
    #[inline]
    fn new(entry: u64, level: u8, table: u64) -> Leaf {
        let flag = |bit: u32| entry >> bit & 1 != 0;
        let cb = field(entry, 3, 2);
        if level > 0 {
            let supersection = entry & bits::SUPERSECTION != 0;
            return Leaf {
                permissions: field(entry, 15, 15) << 2 | field(entry, 11, 10),
                attributes: field(entry, 14, 12) << 2 | cb,
                shareable: flag(16),
                not_global: flag(17),
                execute_never: flag(4),
                privileged_execute_never: entry & bits::SECTION_PXN != 0,
                domain: if supersection { 0 } else { domain(entry) },
            };
        }
        let small = entry & bits::LEAF != 0;
        let tex = if small { field(entry, 8, 6) } else { field(entry, 14, 12) };
        Leaf {
            permissions: field(entry, 9, 9) << 2 | field(entry, 5, 4),
            attributes: tex << 2 | cb,
            shareable: flag(10),
            not_global: flag(11),
            execute_never: if small { flag(0) } else { flag(15) },
            privileged_execute_never: table & bits::TABLE_PXN != 0,
            domain: domain(table),
        }
    }

    fn of(found: &Found) -> Leaf {
        Leaf::new(found.entry, found.level, found.path.or)
    }
}

/// `AP[0]` of a leaf.
const fn access_flag(level: u8) -> u64 {
    if level > 0 { bits::SECTION_AP0 } else { bits::PAGE_AP0 }
}

/// The domain of a table or section descriptor.
#[inline]
pub(crate) const fn domain(entry: u64) -> u8 {
    field(entry, 8, 5)
}

impl Short {
    /// The stage as these registers have it. [`crate::regime::arm::State::mair`] holds
    /// `NMRR:PRRR`, which are the same registers as `MAIR1:MAIR0`.
    ///
    /// # Errors
    /// While the stage is on: reserved bits, and `TTBCR.EAE` set.
    ///
    /// ```
    /// use slat::format::arm32::{Processor, Registers, Short, ttbcr};
    /// let registers = Registers { sctlr: 1, dacr: 1, ..Registers::default() };
    /// assert!(Short::new(&registers, &Processor::default()).is_ok());
    /// let long = Registers { ttbcr: ttbcr::EAE, ..registers };
    /// let refused = Short::new(&long, &Processor::default()).unwrap_err();
    /// assert!(refused.to_string().contains("long descriptors"));
    /// ```
    pub fn new(registers: &Registers, processor: &Processor) -> Result<Short, Refused> {
        let control = Control::new(registers.sctlr, registers.hcr);
        let value = registers.ttbcr;
        let refused = |bits: u32, why| {
            Err(Refused { register: "ttbcr", value: value.into(), bits: bits.into(), why })
        };
        if control.enabled {
            if value & ttbcr::EAE != 0 {
                const LONG: Refusal =
                    Refusal::Contradiction("EAE is set, which selects long descriptors");
                return refused(ttbcr::EAE, LONG);
            }
            refuse("ttbcr", value, &[(!(ttbcr::N | ttbcr::PD0 | ttbcr::PD1 | ttbcr::EAE), RES0)])?;
        }
        let on = |bit: u32| registers.sctlr & bit != 0;
        Ok(Short {
            control,
            upper_bits: (value & ttbcr::N) as u8,
            lower_disabled: value & ttbcr::PD0 != 0,
            upper_disabled: value & ttbcr::PD1 != 0,
            domains: registers.dacr,
            domain: 0,
            access_flags: on(sctlr::AFE),
            sets_access_flag: on(sctlr::HA) && on(sctlr::AFE) && processor.hardware_access_flag,
            remap: on(sctlr::TRE),
            order: if on(sctlr::EE) { ByteOrder::Big } else { ByteOrder::Little },
        })
    }

    /// The same stage, where whoever edits it makes tables and sections of this domain, 0 to 15
    /// (Arm ARM G5.6.4). What is in the tables keeps its own; walks are as before.
    ///
    /// # Errors
    /// `domain`, where there is no such.
    pub fn in_domain(self, domain: u8) -> Result<Short, u8> {
        if domain < 16 { Ok(Short { domain, ..self }) } else { Err(domain) }
    }

    /// The domain of tables and sections that are made.
    pub fn domain(&self) -> u8 {
        self.domain
    }

    /// `TTBCR.N`: how many upper bits choose the table.
    pub(crate) fn upper_bits(&self) -> u8 {
        self.upper_bits
    }

    /// Whether the stage translates at all.
    pub fn is_enabled(&self) -> bool {
        self.control.enabled
    }

    /// `SCTLR.AFE`: `AP[0]` is the access flag, and permissions are of two bits.
    pub(crate) const fn has_access_flags(&self) -> bool {
        self.access_flags
    }

    /// What the permission bits grant. With `AFE` clear, the reserved `AP` 0b100 grants nothing.
    #[inline]
    fn rights(&self, leaf: &Leaf) -> Rights {
        let none = Rights {
            privileged_read: false,
            privileged_write: false,
            user_read: false,
            user_write: false,
            execute_never: leaf.execute_never,
            privileged_execute_never: leaf.privileged_execute_never,
        };
        let read_only = leaf.permissions & 4 != 0;
        let user = leaf.permissions & 2 != 0;
        let two_bits = Rights {
            execute_never: leaf.execute_never,
            privileged_execute_never: leaf.privileged_execute_never,
            ..Rights::of_two_bits(read_only, user)
        };
        match leaf.permissions & 7 {
            _ if self.access_flags => two_bits,
            0 | 4 => none,
            2 => Rights { user_write: false, ..two_bits },
            // 6 and 7 are both read-only for everybody.
            _ => two_bits,
        }
    }

    /// AArch32.DefaultTEXDecode, AArch32.RemappedTEXDecode. Reserved and IMPLEMENTATION DEFINED
    /// encodings read as Normal non-cacheable. `None` where remapping registers are in use and not
    /// known.
    fn attributes(&self, texcb: u8, shareable: bool, regime: &Regime) -> Option<Attributes> {
        if self.remap {
            let mair = regime.arm.mair?;
            return Some(remapped(texcb, shareable, mair as u32, (mair >> 32) as u32));
        }
        let shareability = if shareable { Shareability::Outer } else { Shareability::Non };
        let device = |kind| Attributes::new(Memory::Device(kind), Shareability::Outer);
        let both = |cache| Memory::Normal { outer: cache, inner: cache };
        let memory = match texcb {
            0b00000 => return Some(device(Device::nGnRnE)),
            0b00001 | 0b01000 => return Some(device(Device::nGnRE)),
            0b00010 => both(cache(2)),
            0b00011 => both(cache(3)),
            0b00111 => both(cache(1)),
            encoding if encoding & 0x10 != 0 => {
                Memory::Normal { outer: cache(encoding >> 2), inner: cache(encoding) }
            }
            _ => Memory::NON_CACHEABLE,
        };
        Some(normal(memory, shareability))
    }
}

/// Normal memory; that which no cache holds is outer shareable.
fn normal(memory: Memory, shareability: Shareability) -> Attributes {
    Attributes::new(memory, shareability).effective()
}

/// DecodeSDFAttr: a two-bit cacheability.
const fn cache(encoding: u8) -> Cache {
    let read_allocate = Hints { write_allocate: false, ..Hints::ALLOCATE };
    match encoding & 3 {
        0 => Cache::NonCacheable,
        1 => Cache::WriteBack(Hints::ALLOCATE),
        2 => Cache::WriteThrough(read_allocate),
        _ => Cache::WriteBack(read_allocate),
    }
}

/// TEX remap: `TEX[0]`, `C` and `B` choose a region of `PRRR` and `NMRR`.
fn remapped(texcb: u8, shareable: bool, prrr: u32, nmrr: u32) -> Attributes {
    let region = u32::from(texcb & 7);
    let pair = |register: u32, low: u32| (register >> (2 * region + low)) as u8 & 3;
    let device = |kind| Attributes::new(Memory::Device(kind), Shareability::Outer);
    match pair(prrr, 0) {
        // Region 6 is IMPLEMENTATION DEFINED.
        _ if region == 6 => normal(Memory::NON_CACHEABLE, Shareability::Outer),
        0 => device(Device::nGnRnE),
        1 => device(Device::nGnRE),
        2 => {
            // NS0 and NS1 say what S means; NOS whether that is the inner domain only.
            let shared = prrr >> (18 + u32::from(shareable)) & 1 != 0;
            let inner_only = prrr >> (24 + region) & 1 != 0;
            let shareability = match (shared, inner_only) {
                (false, _) => Shareability::Non,
                (true, false) => Shareability::Outer,
                (true, true) => Shareability::Inner,
            };
            let memory =
                Memory::Normal { outer: cache(pair(nmrr, 16)), inner: cache(pair(nmrr, 0)) };
            normal(memory, shareability)
        }
        _ => normal(Memory::NON_CACHEABLE, Shareability::Outer),
    }
}

impl Format for Short {
    /// `TTBR0` and `TTBR1`; cacheability of the walk is ignored.
    type Root = Root;

    fn name(&self) -> &'static str {
        "arm-short"
    }

    #[inline]
    fn stage(&self) -> u8 {
        1
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        EntryLayout { size: EntrySize::Four, order: self.order }
    }

    #[inline]
    fn begin(&self, root: &Root, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        const LEVEL: u8 = 1;
        if input >> 32 != 0 {
            return Err((LEVEL, Cause::InputSize));
        }
        if !self.control.enabled {
            return Ok(Start::Flat { output: input });
        }
        let upper_bits = u32::from(self.upper_bits);
        let lower = input >> (32 - upper_bits) == 0;
        let (register, disabled, smaller) = if lower {
            (root.ttbr0, self.lower_disabled, upper_bits)
        } else {
            (root.ttbr1, self.upper_disabled, 0)
        };
        if disabled {
            return Err((LEVEL, Cause::Disabled));
        }
        let table = register & 0xffff_ffff & (!0 << (14 - smaller));
        Ok(Start::Table { table, level: LEVEL, input })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        if level == 0 { 12 } else { 20 }
    }

    #[inline]
    fn index_bits(&self, level: u8) -> u32 {
        if level == 0 { 8 } else { 12 }
    }

    /// AArch32.DecodeDescriptorTypeSD.
    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        match (entry & bits::TYPE, level) {
            (0, _) => Decoded::Empty,
            (1, 0) => Decoded::Leaf { base: entry & 0xffff_0000, shift: 16 },
            (_, 0) => Decoded::Leaf { base: entry & 0xffff_f000, shift: 12 },
            (1, 1) => Decoded::Table { next: entry & 0xffff_fc00 },
            (_, 1) if entry & bits::SUPERSECTION != 0 => {
                // Bits 39:36 are in 8:5, bits 35:32 in 23:20.
                let high = (entry >> 5 & 0xf) << 36 | (entry >> 20 & 0xf) << 32;
                Decoded::Leaf { base: high | entry & 0xff00_0000, shift: 24 }
            }
            (_, 1) => Decoded::Leaf { base: entry & 0xfff0_0000, shift: 20 },
            _ => Decoded::Reserved(Reserved { why: Why::Encoding, bits: bits::TYPE }),
        }
    }

    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if found.is_flat() {
            return Ok(());
        }
        let leaf = Leaf::of(found);
        if self.access_flags && leaf.permissions & 1 == 0 && !self.sets_access_flag {
            return Err(Cause::AccessFlag);
        }
        match self.domains >> (2 * u32::from(leaf.domain)) & 3 {
            // A client: permissions count.
            1 => self.control.denied(self.rights(&leaf), access, regime).into_result(),
            // A manager may do anything.
            3 => Ok(()),
            // No access; 0b10 is reserved, and may behave so.
            _ => Denied::DOMAIN.into_result(),
        }
    }

    #[inline]
    fn touched(&self, entry: u64, level: u8, is_leaf: bool, _: &Access) -> u64 {
        if !is_leaf || !self.sets_access_flag {
            return entry;
        }
        entry | access_flag(level)
    }

    /// `AP[0]` is the access flag with `SCTLR.AFE` alone.
    #[inline]
    fn settled(&self, leaf: u64, level: u8, _: bool) -> u64 {
        if self.access_flags { leaf | access_flag(level) } else { leaf }
    }

    /// `TEX:C:B`, and `S` above them.
    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        if found.is_flat() {
            return TypeBits::OFF;
        }
        let leaf = Leaf::of(found);
        TypeBits::new(u16::from(leaf.attributes) | u16::from(leaf.shareable) << 5)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        let caches = &self.control.caches;
        let Some(bits) = bits.get() else {
            return StageType::Arm(caches.of_disabled_stage(kind, Some(&regime.arm)));
        };
        match self.attributes(bits as u8 & 0x1f, bits >> 5 & 1 != 0, regime) {
            Some(attributes) => StageType::Arm(caches.cut(attributes, kind)),
            None => StageType::Unspecified,
        }
    }

    fn arch_level(&self, level: u8) -> i8 {
        2 - level as i8
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        let shift = match self.decode(entry, level) {
            Decoded::Empty => return f.write_str("invalid"),
            Decoded::Table { .. } => {
                write!(f, "table domain {}", domain(entry))?;
                return f.write_str(if entry & bits::TABLE_PXN != 0 { " PXN" } else { "" });
            }
            Decoded::Leaf { shift, .. } => shift,
            _ => return f.write_str("reserved"),
        };
        let leaf = Leaf::new(entry, level, 0);
        match shift {
            12 => f.write_str("small page")?,
            16 => f.write_str("large page")?,
            20 => write!(f, "section domain {}", leaf.domain)?,
            _ => f.write_str("supersection domain 0")?,
        }
        let (tex, cb) = (leaf.attributes >> 2, leaf.attributes & 3);
        if self.access_flags {
            let (ap, af) = (leaf.permissions >> 1, leaf.permissions & 1);
            write!(f, " AP[2:1]={ap:#04b}{}", if af != 0 { " AF" } else { "" })?;
        } else {
            write!(f, " AP={:#05b}", leaf.permissions)?;
        }
        write!(f, " TEX={tex:#05b} CB={cb:#04b}")?;
        for (set, name) in [
            (leaf.shareable, " S"),
            (leaf.not_global, " nG"),
            // A page has its table's, which is not at hand.
            (leaf.privileged_execute_never, " PXN"),
            (leaf.execute_never, " XN"),
        ] {
            if set {
                f.write_str(name)?;
            }
        }
        Ok(())
    }

    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        if found.is_flat() {
            return Stage1Page::FLAT;
        }
        let leaf = Leaf::of(found);
        let rights = self.rights(&leaf);
        let manager = self.domains >> (2 * u32::from(leaf.domain)) & 3 == 3;
        Stage1Page {
            user: rights.user_read || manager,
            writable: rights.privileged_write || manager,
            executable: !rights.execute_never || manager,
            shadow_stack: false,
            tables_via: found.path.via,
        }
    }
}
