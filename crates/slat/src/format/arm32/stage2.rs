//! Stage 2 under `VTCR` and `VTTBR` (Arm ARM G5.5): long descriptors, 25 to 40 bits of
//! input, concatenated roots.

use core::fmt;

use super::long::{self, Descriptors};
use super::{Processor, RES0, Version, refuse, sctlr};
use crate::access::{Access, Kind, Privilege, Purpose, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::arm64::{self, bits};
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::{ByteOrder, EntryLayout, EntrySize};
use crate::memory_type::arm::{self, Shareability};
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::regime::arm::{State, hcr};
use crate::register::{Refusal, Refused};

/// Stage 2: `arm-lpae-s2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2 {
    enabled: bool,
    descriptors: Descriptors,
    /// 25 to 40.
    input_bits: u8,
    /// `None` where `SL0` is reserved or does not fit `T0SZ`: every access faults.
    root_level: Option<u8>,
    order: ByteOrder,
    execute_never_extension: bool,
    /// The same descriptors in AArch64's terms.
    twin: arm64::Stage2,
}

impl Stage2 {
    /// Stage 2 as the registers have it: `VTCR`, `HCR` (`VM` or `DC` switches it on) and `HSCTLR`
    /// (only its byte order, `EE`).
    ///
    /// An `SL0` that is reserved or does not fit `T0SZ` is not refused: every access then faults,
    /// as the manual says.
    ///
    /// # Errors
    /// While the stage is on: reserved bits, and an `S` that is not the sign of `T0SZ`, which makes
    /// the input size UNPREDICTABLE.
    ///
    /// ```
    /// use slat::format::arm32::{Processor, Stage2};
    /// use slat::regime::arm::hcr;
    /// // 40 bits of input: T0SZ is -8, its sign in S too; the walk starts at the manual's level 1.
    /// let vtcr = 1 << 31 | 1 << 6 | 1 << 4 | 8;
    /// let stage = Stage2::new(vtcr, hcr::VM, 0, &Processor::default()).unwrap();
    /// assert_eq!((stage.input_bits(), stage.root_level()), (40, Some(2)));
    /// assert!(Stage2::new(vtcr & !(1 << 4), hcr::VM, 0, &Processor::default()).is_err());
    /// ```
    pub fn new(vtcr: u32, hcr: u64, hsctlr: u32, processor: &Processor) -> Result<Stage2, Refused> {
        let enabled = hcr & (hcr::VM | hcr::DC) != 0;
        if enabled {
            // Bit 31 is RES1, bits 28:25 hints.
            refuse("vtcr", vtcr, &[(3 << 29 | 0x7ff << 14 | 1 << 5, RES0)])?;
            if vtcr >> 4 & 1 != vtcr >> 3 & 1 {
                let why = Refusal::Contradiction("S is not the sign of T0SZ");
                let value = vtcr.into();
                return Err(Refused { register: "vtcr", value, bits: 0x18, why });
            }
        }
        // T0SZ is four bits, signed: 32 - T0SZ bits of input.
        let offset = (vtcr & 7) as u8;
        let input_bits = if vtcr & 8 != 0 { 40 - offset } else { 32 - offset };
        Ok(Stage2 {
            enabled,
            descriptors: Descriptors::new(processor.version),
            input_bits,
            root_level: start_level(vtcr >> 6 & 3, input_bits.into()),
            order: if hsctlr & sctlr::EE != 0 { ByteOrder::Big } else { ByteOrder::Little },
            execute_never_extension: processor.execute_never_extension,
            twin: {
                let execute_never_extension = processor.execute_never_extension;
                let processor = arm64::Processor { execute_never_extension, ..long::AARCH64 };
                arm64::Stage2::plain(arm64::Granule::Four, 40, &processor)?
            },
        })
    }

    /// The `VTCR` for `ipa_bits` (25 to 40) of input, as hypervisors choose it: the lowest start
    /// level that at most 16 concatenated tables allow, inner-shareable write-back walks.
    /// Sizes outside that range are cut to it.
    pub fn control(ipa_bits: u8) -> u32 {
        let ipa_bits = ipa_bits.clamp(25, 40);
        let t0sz = u32::from(32u8.wrapping_sub(ipa_bits) & 0xf);
        let sl0 = u32::from(ipa_bits > 34);
        1 << 31 | 3 << 12 | 5 << 8 | sl0 << 6 | (t0sz & 8) << 1 | t0sz
    }

    /// The manual that its processor follows.
    pub fn version(&self) -> Version {
        self.descriptors.version()
    }

    /// Whether the stage translates at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Bits of input, 25 to 40.
    pub fn input_bits(&self) -> u8 {
        self.input_bits
    }

    /// Level of the root, or `None` where the registers make every access fault.
    pub fn root_level(&self) -> Option<u8> {
        self.root_level
    }

    /// The same descriptors in AArch64's terms.
    pub(crate) fn twin(&self) -> &arm64::Stage2 {
        &self.twin
    }

    fn mem_attr(entry: u64) -> u8 {
        (entry >> bits::MEM_ATTR_SHIFT) as u8 & 0xf
    }

    /// FEAT_XNX's `XN[0]`, where it exists.
    fn xnx(&self, entry: u64) -> bool {
        self.execute_never_extension && entry & bits::XNX != 0
    }
}

/// AArch32.S2StartLevel and AArch32.S2InconsistentSL, in levels above the last.
fn start_level(sl0: u32, input_bits: u32) -> Option<u8> {
    let level = match sl0 {
        0 => 1,
        1 => 2,
        _ => return None,
    };
    let least = long::shift(level) + 1;
    // Up to 16 concatenated tables.
    let most = least + long::STRIDE - 1 + 4;
    (least..=most).contains(&input_bits).then_some(level)
}

impl Format for Stage2 {
    /// `VTTBR`; the VMID and `CnP` are ignored.
    type Root = u64;

    fn name(&self) -> &'static str {
        "arm-lpae-s2"
    }

    #[inline]
    fn stage(&self) -> u8 {
        2
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        EntryLayout { size: EntrySize::Eight, order: self.order }
    }

    #[inline]
    fn begin(&self, root: &u64, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        // Faults before the first table are reported at the manual's level 1, an address size fault
        // of the root at its level 0.
        const LEVEL: u8 = 2;
        if !self.enabled {
            return Ok(Start::Flat { output: input });
        }
        if input >> self.input_bits != 0 {
            return Err((LEVEL, Cause::InputSize));
        }
        let Some(level) = self.root_level else {
            return Err((LEVEL, Cause::Geometry));
        };
        let Some(table) = self.descriptors.root(*root, self.input_bits.into(), level) else {
            let bits = *root & long::BEYOND;
            let cause = Cause::Reserved(Reserved { why: Why::AddressSize, bits });
            return Err((LEVEL + 1, cause));
        };
        Ok(Start::Table { table, level, input })
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

    /// AArch32.S2HasPermissionsFault. Unlike in AArch64 state, execution needs read permission.
    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if found.is_flat() {
            return Ok(());
        }
        let entry = found.entry;
        if entry & bits::AF == 0 {
            return Err(Cause::AccessFlag);
        }
        let readable = entry & bits::S2AP_READ != 0;
        let none = Denied::NONE;
        let denied = match access.kind {
            Kind::Read => none.with(Denied::READ, !readable),
            Kind::Write => {
                let update = matches!(access.purpose, Purpose::Update { .. });
                none.with(Denied::READ, update && !readable)
                    .with(Denied::WRITE, entry & bits::S2AP_WRITE == 0)
            }
            Kind::Execute => {
                let never = match (entry & bits::XN != 0, self.xnx(entry)) {
                    (xn, false) => xn,
                    (false, true) => access.privilege == Privilege::Supervisor,
                    (true, true) => access.privilege == Privilege::User,
                };
                none.with(Denied::READ, !readable).with(Denied::EXECUTE, never)
            }
        };
        let in_device = access.purpose.is_table()
            && regime.arm.protect_table_walks
            && Stage2::mem_attr(entry) & 0xc == 0;
        denied.with(Denied::TABLE_IN_DEVICE, in_device).into_result()
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

    /// `MemAttr`, and `SH` above it.
    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        if found.is_flat() {
            return TypeBits::OFF;
        }
        let shareability = (found.entry >> bits::SH_SHIFT) as u16 & 3;
        TypeBits::new(u16::from(Stage2::mem_attr(found.entry)) | shareability << 4)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        let Some(bits) = bits.get() else { return StageType::Unspecified };
        // AArch32 has no forced attributes (FEAT_S2FWB is of AArch64 state).
        let state = State { force_write_back: false, ..regime.arm.clone() };
        let shareability = Shareability::from_encoding((bits >> 4) as u8);
        let mem_attr = bits as u8 & 0xf;
        StageType::ArmStage2(arm::Stage2::new(mem_attr, shareability, false, kind, &state))
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
        if level > 0 && entry & bits::TABLE != 0 {
            f.write_str("table")?;
        } else {
            f.write_str(if level == 0 { "page " } else { "block " })?;
            f.write_char(if entry & bits::S2AP_READ != 0 { 'R' } else { '-' })?;
            f.write_char(if entry & bits::S2AP_WRITE != 0 { 'W' } else { '-' })?;
            f.write_str(match (entry & bits::XN != 0, self.xnx(entry)) {
                (false, false) => " X",
                (false, true) => " X:PL0",
                (true, false) => " XN",
                (true, true) => " X:PL1",
            })?;
            let shareability = Shareability::from_encoding((entry >> bits::SH_SHIFT) as u8);
            write!(f, " MemAttr={:#06b} {shareability}", Stage2::mem_attr(entry))?;
            if entry & bits::AF != 0 {
                f.write_str(" AF")?;
            }
            if entry & bits::CONTIGUOUS != 0 {
                f.write_str(" contiguous")?;
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
        Stage1Page {
            user: true,
            writable: found.entry & bits::S2AP_WRITE != 0,
            executable: found.entry & bits::XN == 0 || self.xnx(found.entry),
            shadow_stack: false,
            tables_via: found.path.via,
        }
    }
}
