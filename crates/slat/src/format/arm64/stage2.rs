//! Stage 2 (Arm ARM D8.2 to D8.6): every start level, concatenated roots.

use core::fmt;

use super::granule::{Geometry, Granule, root_address, size_encoding};
use super::registers::{Vtcr, sctlr};
use super::{Processor, bits};
use crate::access::{Access, Flavor, Kind, Privilege, Purpose, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::{ByteOrder, EntryLayout, EntrySize};
use crate::memory_type::arm::{self, Shareability, is_device};
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::regime::arm::hcr;
use crate::register::{Refusal, Refused};

/// Stage 2: `arm64-s2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2 {
    enabled: bool,
    geometry: Geometry,
    /// Input size; 0 where `T0SZ` and `SL0` are out of range or do not fit, so that every access
    /// faults.
    input_bits: u8,
    root_level: u8,
    wide_root: bool,
    order: ByteOrder,
    sets_access_flag: bool,
    sets_dirty_state: bool,
    execute_never_extension: bool,
    changes_size_live: bool,
    /// `SH0`, for leaves whose `SH` is part of the address.
    shareability: Shareability,
}

impl Stage2 {
    /// Stage 2 as the registers have it: `VTCR_EL2`, `HCR_EL2` (`VM` or `DC` switches it on) and
    /// `SCTLR_EL2` (only its byte order, `EE`).
    ///
    /// A `T0SZ` and `SL0` that are out of range or do not fit each other are not refused: every
    /// access then faults, as the manual says.
    ///
    /// # Errors
    /// Settings that are reserved or enable what is not modelled, by name, while stage 2 is on.
    ///
    /// ```
    /// use slat::format::arm64::{Granule, Processor, Stage2};
    /// use slat::regime::arm::hcr;
    /// let processor = Processor { physical_bits: 40, ..Processor::default() };
    /// let vtcr = Stage2::control(Granule::Four, 40, &processor);
    /// assert!(Stage2::new(vtcr, hcr::VM, 0, &processor).is_ok());
    /// let refused = Stage2::new(vtcr | 1 << 38, hcr::VM, 0, &processor).unwrap_err();
    /// assert!(refused.to_string().contains("FEAT_D128"));
    /// ```
    pub fn new(vtcr: u64, hcr: u64, sctlr: u64, processor: &Processor) -> Result<Stage2, Refused> {
        let hosted = hcr & (hcr::E2H | hcr::TGE) == hcr::E2H | hcr::TGE;
        let enabled = hcr & (hcr::VM | hcr::DC) != 0 && !hosted;
        let fields = Vtcr::new(if enabled { vtcr } else { 0 })?;
        let physical_bits = processor.physical_bits.clamp(32, 52);
        let granule = fields.granule;
        let geometry =
            Geometry::new(granule, fields.ds, fields.size, physical_bits, processor.lpa2);
        let start = start_level(&fields, &geometry, physical_bits, processor);
        let input_bits = match start {
            Some(level) if fits(&fields, &geometry, level, physical_bits, processor) => {
                64 - fields.tsz
            }
            _ => 0,
        };
        let ha = fields.ha && processor.hardware_access_flag;
        Ok(Stage2 {
            enabled,
            geometry,
            input_bits,
            root_level: start.unwrap_or(0),
            wide_root: geometry.root_is_wide(fields.size),
            order: if sctlr & sctlr::EE != 0 { ByteOrder::Big } else { ByteOrder::Little },
            sets_access_flag: ha,
            sets_dirty_state: ha && fields.hd && processor.hardware_dirty_state,
            execute_never_extension: processor.execute_never_extension,
            changes_size_live: processor.bbm_level >= 2,
            shareability: Shareability::from_encoding(fields.shareability),
        })
    }

    /// The `VTCR_EL2` for `ipa_bits` of input with this granule, as hypervisors choose it: the
    /// lowest start level that at most 16 concatenated tables allow, the processor's whole output
    /// size, inner-shareable write-back walks, nothing that hardware updates. `T0SZ` and `SL0` are
    /// what they are for `ipa_bits` out of range too; [`Stage2::plain`] refuses those.
    pub fn control(granule: Granule, ipa_bits: u8, processor: &Processor) -> u64 {
        let ds = u64::from(granule != Granule::SixtyFour && ipa_bits > 48);
        let above_root = u32::from(ipa_bits).saturating_sub(granule.bits() + 4 + 1);
        // Level-0 roots of the 4K granule came with small tables.
        let least = u32::from(granule == Granule::Four && !processor.small_tables);
        let level = (above_root / granule.stride()).clamp(least, 4) as u8;
        let (tg0, sl0, sl2) = match granule {
            Granule::Four => match level {
                0 => (0u64, 3, 0u64),
                1 => (0, 0, 0),
                2 => (0, 1, 0),
                3 => (0, 2, 0),
                _ => (0, 0, 1),
            },
            Granule::Sixteen => (2, u64::from(level.min(3)), 0),
            Granule::SixtyFour => (1, u64::from(level.min(2)), 0),
        };
        let most = if granule == Granule::SixtyFour || ds != 0 { 52 } else { 48 };
        let ps = size_encoding(processor.physical_bits.min(most));
        let tsz = u64::from(64u8.saturating_sub(ipa_bits)) & 0x3f;
        1 << 31 | sl2 << 33 | ds << 32 | ps << 16 | tg0 << 14 | 3 << 12 | 5 << 8 | sl0 << 6 | tsz
    }

    /// Stage 2 with the [`Stage2::control`] for these sizes.
    ///
    /// # Errors
    /// Where `ipa_bits` is not a size that this granule and processor have.
    pub fn plain(granule: Granule, ipa_bits: u8, processor: &Processor) -> Result<Stage2, Refused> {
        let vtcr = Stage2::control(granule, ipa_bits, processor);
        let stage = Stage2::new(vtcr, hcr::VM, 0, processor)?;
        if stage.input_bits != ipa_bits {
            let why = Refusal::Contradiction("the granule and processor have no such input size");
            return Err(Refused { register: "vtcr_el2", value: vtcr, bits: 0x3f, why });
        }
        Ok(stage)
    }

    /// Whether the stage translates at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// How tables are encoded.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Level of the root.
    pub fn root_level(&self) -> u8 {
        self.root_level
    }

    /// log2 of the number of bytes that the root takes, concatenated tables included; 0 where the
    /// geometry faults every access.
    pub fn root_shift(&self) -> u32 {
        u32::from(self.input_bits).saturating_sub(self.geometry.shift(self.root_level)) + 3
    }

    /// Whether hardware sets the dirty state of `DBM` leaves.
    #[inline]
    pub fn sets_dirty_state(&self) -> bool {
        self.sets_dirty_state
    }

    /// Whether a live block may change its size without break-before-make (FEAT_BBM level 2).
    #[inline]
    pub fn changes_size_live(&self) -> bool {
        self.changes_size_live
    }

    /// Whether EL1's and EL0's execution are told apart (FEAT_XNX).
    #[inline]
    pub fn tells_execution_apart(&self) -> bool {
        self.execute_never_extension
    }

    fn mem_attr(entry: u64) -> u8 {
        (entry >> bits::MEM_ATTR_SHIFT) as u8 & 0xf
    }
}

/// The start level that `SL0` and `SL2` ask for, as this library counts, or `None` where they are
/// invalid (`AArch64.S2StartLevel`, `AArch64.S2InvalidSL`).
fn start_level(
    fields: &Vtcr,
    geometry: &Geometry,
    physical_bits: u8,
    processor: &Processor,
) -> Option<u8> {
    let lpa2 = geometry.is_lpa2();
    match (geometry.granule(), fields.sl0) {
        (Granule::Four, sl0) => match (fields.sl2 && lpa2, sl0) {
            (false, 0) => Some(1),
            (false, 1) => Some(2),
            (false, 2) => (physical_bits >= 44).then_some(3),
            (false, _) => processor.small_tables.then_some(0),
            (true, 0) => Some(4),
            (true, _) => None,
        },
        (Granule::Sixteen, 3) => lpa2.then_some(3),
        (Granule::Sixteen, 2) => (physical_bits >= 42).then_some(2),
        (Granule::SixtyFour, 3) => None,
        (Granule::SixtyFour, 2) => (physical_bits >= 44).then_some(2),
        (_, sl0) => Some(sl0),
    }
}

/// Whether `T0SZ` is in range (`AArch64.S2MinTxSZ`, `AArch64.MaxTxSZ`) and fits the start level
/// (`AArch64.S2InconsistentSL`).
fn fits(
    fields: &Vtcr,
    geometry: &Geometry,
    level: u8,
    physical_bits: u8,
    processor: &Processor,
) -> bool {
    let granule = geometry.granule();
    let most_bits = if granule == Granule::SixtyFour || geometry.is_lpa2() {
        physical_bits
    } else {
        physical_bits.min(48)
    };
    if !(64 - most_bits..=granule.max_tsz(processor.small_tables)).contains(&fields.tsz) {
        return false;
    }
    let least = geometry.shift(level) + 1;
    let most = least + granule.stride() - 1 + 4;
    (least..=most).contains(&u32::from(64 - fields.tsz))
}

impl Format for Stage2 {
    /// `VTTBR_EL2`; VMID and `CnP` are ignored.
    type Root = u64;

    fn name(&self) -> &'static str {
        "arm64-s2"
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
        // Faults before the first table are reported at the manual's level 0.
        const LEVEL: u8 = 3;
        if !self.enabled {
            return Ok(Start::Flat { output: input });
        }
        if self.input_bits == 0 {
            return Err((LEVEL, Cause::Geometry));
        }
        if input >> self.input_bits != 0 {
            return Err((LEVEL, Cause::InputSize));
        }
        let index_bits = u32::from(self.input_bits) - self.geometry.shift(self.root_level);
        let table = root_address(*root, self.wide_root, index_bits);
        if table >> self.geometry.output_bits() != 0 {
            let bits = table >> self.geometry.output_bits() << self.geometry.output_bits();
            return Err((LEVEL, Cause::Reserved(Reserved { why: Why::AddressSize, bits })));
        }
        Ok(Start::Table { table, level: self.root_level, input })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        self.geometry.shift(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        self.geometry.granule().stride()
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        self.geometry.decode(entry, level)
    }

    #[inline(always)]
    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        self.geometry.plain_table(entry, level)
    }

    #[inline(always)]
    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        self.geometry.plain_leaf(entry, level)
    }

    /// AArch64.S2DirectBasePermissions, AArch64.S2CheckPermissions.
    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if found.is_flat() {
            return Ok(());
        }
        let entry = found.entry;
        if entry & bits::AF == 0 && !self.sets_access_flag {
            return Err(Cause::AccessFlag);
        }
        let readable = entry & bits::S2AP_READ != 0;
        let writable =
            entry & bits::S2AP_WRITE != 0 || self.sets_dirty_state && entry & bits::DBM != 0;
        let denied = Denied::NONE;
        let denied = match access.kind {
            Kind::Read => denied.with(Denied::READ, !readable),
            // Hardware that updates a stage-1 entry also reads it, and so do atomics.
            Kind::Write => {
                let reads = matches!(access.purpose, Purpose::Update { .. })
                    || access.flavor == Flavor::Atomic;
                denied.with(Denied::READ, reads && !readable).with(Denied::WRITE, !writable)
            }
            Kind::Execute => {
                let xnx = self.execute_never_extension && entry & bits::XNX != 0;
                let never = match (entry & bits::XN != 0, xnx) {
                    (false, false) => false,
                    (false, true) => access.privilege == Privilege::Supervisor,
                    (true, false) => true,
                    (true, true) => access.privilege == Privilege::User,
                };
                denied.with(Denied::EXECUTE, never)
            }
        };
        let in_device = access.purpose.is_table()
            && regime.arm.protect_table_walks
            && is_device(Stage2::mem_attr(entry), &regime.arm);
        denied.with(Denied::TABLE_IN_DEVICE, in_device).into_result()
    }

    #[inline]
    fn touched(&self, entry: u64, _: u8, is_leaf: bool, access: &Access) -> u64 {
        if !is_leaf || !self.sets_access_flag {
            return entry;
        }
        let dirties = self.sets_dirty_state && access.kind == Kind::Write;
        let dirty = if dirties && entry & bits::DBM != 0 { bits::S2AP_WRITE } else { 0 };
        entry | bits::AF | dirty
    }

    #[inline]
    fn settled(&self, leaf: u64, _: u8, _: bool) -> u64 {
        leaf | bits::AF
    }

    #[inline]
    fn span(&self, leaf: u64, level: u8) -> u32 {
        self.geometry.span(leaf, level)
    }

    /// `MemAttr`, above it `SH` (of `VTCR_EL2` with FEAT_LPA2) and `FnXS`.
    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        if found.is_flat() {
            return TypeBits::OFF;
        }
        let shareability = if self.geometry.is_lpa2() {
            u16::from(self.shareability.encoding())
        } else {
            (found.entry >> bits::SH_SHIFT) as u16 & 3
        };
        let fnxs = u16::from(found.entry & bits::FNXS != 0);
        TypeBits::new(u16::from(Stage2::mem_attr(found.entry)) | shareability << 4 | fnxs << 6)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        let Some(bits) = bits.get() else { return StageType::Unspecified };
        let shareability = Shareability::from_encoding((bits >> 4) as u8);
        let (mem_attr, fnxs) = (bits as u8 & 0xf, bits >> 6 & 1 != 0);
        StageType::ArmStage2(arm::Stage2::new(mem_attr, shareability, fnxs, kind, &regime.arm))
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
            let xnx = self.execute_never_extension && entry & bits::XNX != 0;
            f.write_str(match (entry & bits::XN != 0, xnx) {
                (false, false) => " X",
                (false, true) => " X:EL0",
                (true, false) => " XN",
                (true, true) => " X:EL1",
            })?;
            write!(f, " MemAttr={:#06b}", Stage2::mem_attr(entry))?;
            if !self.geometry.is_lpa2() {
                let shareability = Shareability::from_encoding((entry >> bits::SH_SHIFT) as u8);
                write!(f, " {shareability}")?;
            }
            for (bit, name) in [
                (bits::AF, " AF"),
                (bits::FNXS, " FnXS"),
                (bits::DBM, " DBM"),
                (bits::CONTIGUOUS, " contiguous"),
            ] {
                if entry & bit != 0 {
                    f.write_str(name)?;
                }
            }
            if level > 0 && entry & bits::NT != 0 {
                f.write_str(" nT")?;
            }
        }
        match reserved {
            Some(reserved) => write!(f, "; {reserved}"),
            None => Ok(()),
        }
    }

    #[inline]
    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        Stage1Page {
            user: true,
            writable: found.entry & bits::S2AP_WRITE != 0,
            executable: found.entry & bits::XN == 0
                || self.execute_never_extension && found.entry & bits::XNX != 0,
            shadow_stack: false,
            tables_via: found.path.via,
        }
    }
}
