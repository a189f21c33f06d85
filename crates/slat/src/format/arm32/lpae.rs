//! Long descriptors as a stage 1: PL1&0 with `TTBCR.EAE`, and Hyp mode (Arm ARM G5.5).

use core::fmt;

use super::long::{self, Descriptors};
use super::{Control, Processor, RES0, Registers, Rights, Root, Version, refuse, sctlr, ttbcr};
use crate::access::{Access, Kind, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::arm64::{self, bits};
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::{ByteOrder, EntryLayout, EntrySize};
use crate::memory_type::arm::{Attributes, Shareability};
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::register::{Refusal, Refused};

/// What `TTBCR` or `HTCR` says of one half of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Half {
    /// `TnSZ`: how many upper bits of the address are not translated.
    size: u8,
    disabled: bool,
    /// `HPDn`: table permissions are ignored.
    flat_permissions: bool,
}

impl Half {
    fn input_bits(&self) -> u32 {
        32 - u32::from(self.size)
    }
}

/// Which half an address lies in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Range {
    Lower,
    Upper,
    /// In neither.
    Outside,
}

/// Stage 1 with long descriptors: `arm-lpae`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lpae {
    descriptors: Descriptors,
    control: Control,
    lower: Half,
    /// `None` in Hyp mode, which has one half and no PL0.
    upper: Option<Half>,
    order: ByteOrder,
    /// The same descriptors in AArch64's terms.
    twin: arm64::Stage1,
}

impl Lpae {
    /// PL1&0's stage 1 as these registers have it.
    ///
    /// # Errors
    /// Settings that are reserved, by name, and `TTBCR.EAE` clear, while the stage is on.
    ///
    /// ```
    /// use slat::format::arm32::{Lpae, Processor, Registers, ttbcr};
    /// let registers = Registers { ttbcr: ttbcr::EAE, sctlr: 1, ..Registers::default() };
    /// assert!(Lpae::new(&registers, &Processor::default()).is_ok());
    /// let short = Registers { ttbcr: 0, ..registers };
    /// let refused = Lpae::new(&short, &Processor::default()).unwrap_err();
    /// assert!(refused.to_string().contains("short descriptors"));
    /// ```
    pub fn new(registers: &Registers, processor: &Processor) -> Result<Lpae, Refused> {
        let control = Control::new(registers.sctlr, registers.hcr);
        let value = registers.ttbcr;
        if control.enabled {
            refuse("ttbcr", value, &[(7 << 19 | 3 << 14 | 7 << 3, RES0)])?;
            if value & ttbcr::EAE == 0 {
                let why = Refusal::Contradiction("EAE is clear, which selects short descriptors");
                let bits = ttbcr::EAE.into();
                return Err(Refused { register: "ttbcr", value: value.into(), bits, why });
            }
        }
        let two = if processor.hierarchical_disable && value & ttbcr::T2E != 0 {
            if control.enabled {
                // HPD0, HPD1 and the hints HWU59 to HWU62 of both halves.
                refuse("ttbcr2", registers.ttbcr2, &[(!(0x3ff << 9), RES0)])?;
            }
            registers.ttbcr2
        } else {
            0
        };
        let half = |size: u32, disabled: u32, hpd: u32| Half {
            size: (size & 7) as u8,
            disabled: value & disabled != 0,
            flat_permissions: two & hpd != 0,
        };
        Ok(Lpae {
            descriptors: Descriptors::new(processor.version),
            control,
            lower: half(value, ttbcr::EPD0, 1 << 9),
            upper: Some(half(value >> 16, ttbcr::EPD1, 1 << 10)),
            order: order(registers.sctlr),
            twin: arm64::Stage1::plain(arm64::Granule::Four, 39, &long::AARCH64)?,
        })
    }

    /// Hyp mode's own stage 1: `HTCR` and `HSCTLR`; its root is `HTTBR`, in [`Root::ttbr0`], and
    /// [`crate::regime::arm::State::mair`] holds `HMAIR1:HMAIR0`.
    ///
    /// # Errors
    /// Settings that are reserved, by name, while the stage is on.
    pub fn hyp(htcr: u32, hsctlr: u32, processor: &Processor) -> Result<Lpae, Refused> {
        let control = Control { user_write_execute_never: false, ..Control::new(hsctlr, 0) };
        if control.enabled {
            // Bits 31 and 23 are RES1, 30 IMPLEMENTATION DEFINED, 28:25 hints.
            let reserved = 1 << 29 | 0x7f << 16 | 3 << 14 | 0x1f << 3;
            refuse("htcr", htcr, &[(reserved, RES0)])?;
        }
        let flat_permissions = processor.hierarchical_disable && htcr & 1 << 24 != 0;
        Ok(Lpae {
            descriptors: Descriptors::new(processor.version),
            control,
            lower: Half { size: (htcr & 7) as u8, disabled: false, flat_permissions },
            upper: None,
            order: order(hsctlr),
            // RES1 bits, 40 bits out, 39 in: only the regime matters.
            twin: arm64::Stage1::new(
                arm64::TranslationRegime::El2,
                1 << 31 | 1 << 23 | 2 << 16 | 25,
                1,
                0,
                &long::AARCH64,
            )?,
        })
    }

    /// The same descriptors in AArch64's terms.
    pub(crate) fn twin(&self) -> &arm64::Stage1 {
        &self.twin
    }

    /// Whether `TTBR1` translates an address of 32 bits.
    pub(crate) fn is_upper(&self, input: u64) -> bool {
        self.range(input) == Range::Upper
    }

    /// Bits of input of the upper half; those of the lower where there is none.
    pub(crate) fn upper_bits(&self) -> u32 {
        self.half(Range::Upper).input_bits()
    }

    /// Bits of input of the lower half.
    pub(crate) fn lower_bits(&self) -> u32 {
        self.lower.input_bits()
    }

    /// The manual that its processor follows.
    pub fn version(&self) -> Version {
        self.descriptors.version()
    }

    /// Whether the stage translates at all.
    pub fn is_enabled(&self) -> bool {
        self.control.enabled
    }

    /// Whether it is Hyp mode's.
    pub fn is_hyp(&self) -> bool {
        self.upper.is_none()
    }

    /// AArch32.GetVARange and AArch32.VAIsOutOfRange.
    #[inline]
    fn range(&self, input: u64) -> Range {
        let low = input >> self.lower.input_bits() == 0;
        let Some(upper) = &self.upper else {
            return if low { Range::Lower } else { Range::Outside };
        };
        let high = (!input & 0xffff_ffff) >> upper.input_bits() == 0;
        match (self.lower.size, upper.size) {
            (0, 0) => Range::Lower,
            (_, 0) if !low => Range::Upper,
            (0, _) if high => Range::Upper,
            (_, 0) | (0, _) => Range::Lower,
            _ if low => Range::Lower,
            _ if high => Range::Upper,
            _ => Range::Outside,
        }
    }

    #[inline]
    fn half(&self, range: Range) -> &Half {
        match &self.upper {
            Some(upper) if range == Range::Upper => upper,
            _ => &self.lower,
        }
    }

    #[inline]
    fn rights(&self, found: &Found) -> Rights {
        let half = self.half(self.range(found.input));
        let tables = if half.flat_permissions { 0 } else { found.path.or };
        let entry = found.entry;
        let read_only = entry & bits::AP_READ_ONLY != 0 || tables & bits::AP_TABLE_READ_ONLY != 0;
        // Hyp mode has no PL0: AP[1], APTable[0] and PXN mean nothing.
        let user =
            !self.is_hyp() && entry & bits::AP_USER != 0 && tables & bits::AP_TABLE_NO_USER == 0;
        Rights {
            execute_never: entry & bits::UXN != 0 || tables & bits::UXN_TABLE != 0,
            privileged_execute_never: !self.is_hyp()
                && (entry & bits::PXN != 0 || tables & bits::PXN_TABLE != 0),
            ..Rights::of_two_bits(read_only, user)
        }
    }

    /// AArch32.S1LDHasPermissionsFault, where PL0 does not exist.
    fn denied_to_hyp(&self, rights: Rights, access: &Access) -> Denied {
        let none = Denied::NONE;
        let never = rights.privileged_write && self.control.write_execute_never;
        match access.kind {
            Kind::Read => none,
            Kind::Write => none.with(Denied::WRITE, !rights.privileged_write),
            Kind::Execute => {
                none.with(Denied::EXECUTE, rights.execute_never).with(Denied::WRITE_EXECUTE, never)
            }
        }
    }
}

fn order(control: u32) -> ByteOrder {
    if control & sctlr::EE != 0 { ByteOrder::Big } else { ByteOrder::Little }
}

impl Format for Lpae {
    /// `TTBR0` and `TTBR1`, or `HTTBR`; ASIDs and `CnP` are ignored.
    type Root = Root;

    fn name(&self) -> &'static str {
        "arm-lpae"
    }

    #[inline]
    fn stage(&self) -> u8 {
        1
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        EntryLayout { size: EntrySize::Eight, order: self.order }
    }

    #[inline]
    fn begin(&self, root: &Root, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        // Faults before the first table are reported at the manual's level 1, an address size fault
        // of the root at its level 0.
        const LEVEL: u8 = 2;
        if input >> 32 != 0 {
            return Err((LEVEL, Cause::InputSize));
        }
        if !self.control.enabled {
            return Ok(Start::Flat { output: input });
        }
        let range = self.range(input);
        if range == Range::Outside {
            return Err((LEVEL, Cause::InputSize));
        }
        let half = self.half(range);
        if half.disabled {
            return Err((LEVEL, Cause::Disabled));
        }
        let input_bits = half.input_bits();
        let level = ((input_bits - 1 - long::PAGE) / long::STRIDE) as u8;
        let register = if range == Range::Upper { root.ttbr1 } else { root.ttbr0 };
        let Some(table) = self.descriptors.root(register, input_bits, level) else {
            let bits = register & long::BEYOND;
            let cause = Cause::Reserved(Reserved { why: Why::AddressSize, bits });
            return Err((LEVEL + 1, cause));
        };
        Ok(Start::Table { table, level, input: input & ((1 << input_bits) - 1) })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        long::shift(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        long::STRIDE
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        self.descriptors.decode(entry, level)
    }

    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if found.is_flat() {
            return Ok(());
        }
        if found.entry & bits::AF == 0 {
            return Err(Cause::AccessFlag);
        }
        let rights = self.rights(found);
        let denied = if self.is_hyp() {
            self.denied_to_hyp(rights, access)
        } else {
            self.control.denied(rights, access, regime)
        };
        denied.into_result()
    }

    /// AArch32 has no hardware updates of long descriptors.
    #[inline]
    fn touched(&self, entry: u64, _: u8, _: bool, _: &Access) -> u64 {
        entry
    }

    #[inline]
    fn settled(&self, leaf: u64, _: u8, _: bool) -> u64 {
        leaf | bits::AF
    }

    #[inline]
    fn span(&self, leaf: u64, level: u8) -> u32 {
        self.descriptors.span(leaf, level)
    }

    /// `AttrIndx`, and `SH` above it.
    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        if found.is_flat() {
            return TypeBits::OFF;
        }
        let index = (found.entry >> bits::ATTR_INDEX_SHIFT) as u16 & 7;
        TypeBits::new(index | ((found.entry >> bits::SH_SHIFT) as u16 & 3) << 3)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        let caches = &self.control.caches;
        let Some(bits) = bits.get() else {
            let governed = (!self.is_hyp()).then_some(&regime.arm);
            return StageType::Arm(caches.of_disabled_stage(kind, governed));
        };
        let Some(mair) = regime.arm.mair else { return StageType::Unspecified };
        let shareability = Shareability::from_encoding((bits >> 3) as u8);
        let attributes = Attributes::from_mair(mair, bits as u8, shareability);
        StageType::Arm(caches.cut(attributes, kind))
    }

    fn arch_level(&self, level: u8) -> i8 {
        3 - level as i8
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        let reserved = match self.decode(entry, level) {
            Decoded::Empty => return f.write_str("invalid"),
            Decoded::Reserved(reserved) => Some(reserved),
            _ => None,
        };
        let user = |name| if self.is_hyp() { "" } else { name };
        let names: [(u64, &str); 5] = if level > 0 && entry & bits::TABLE != 0 {
            f.write_str("table")?;
            [
                (bits::NS_TABLE, user(" NSTable")),
                (bits::AP_TABLE_READ_ONLY, " APTable:read-only"),
                (bits::AP_TABLE_NO_USER, user(" APTable:no-PL0")),
                (bits::UXN_TABLE, " XNTable"),
                (bits::PXN_TABLE, user(" PXNTable")),
            ]
        } else {
            f.write_str(if level == 0 { "page" } else { "block" })?;
            write!(f, " Attr{}", entry >> bits::ATTR_INDEX_SHIFT & 7)?;
            f.write_str(if entry & bits::AP_READ_ONLY != 0 { " RO" } else { " RW" })?;
            f.write_str(user(if entry & bits::AP_USER != 0 { " PL0" } else { " PL1" }))?;
            write!(f, " {}", Shareability::from_encoding((entry >> bits::SH_SHIFT) as u8))?;
            [
                (bits::AF, " AF"),
                (bits::NG, user(" nG")),
                (bits::CONTIGUOUS, " contiguous"),
                (bits::PXN, user(" PXN")),
                (bits::UXN, " XN"),
            ]
        };
        for (bit, name) in names {
            if entry & bit != 0 {
                f.write_str(name)?;
            }
        }
        match reserved {
            Some(reserved) => write!(f, "; {reserved}"),
            None => Ok(()),
        }
    }

    #[inline]
    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        if found.is_flat() {
            return Stage1Page::FLAT;
        }
        let rights = self.rights(found);
        Stage1Page {
            user: rights.user_read,
            writable: rights.privileged_write,
            executable: !rights.execute_never,
            shadow_stack: false,
            tables_via: found.path.via,
        }
    }
}
