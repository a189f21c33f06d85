//! Stage 1: the regimes EL1&0, EL2&0 and EL2 (Arm ARM D8.1 to D8.5).

use core::fmt;

use super::granule::{Geometry, Granule, root_address, size_encoding};
use super::registers::{HalfFields, Tcr, sctlr};
use super::{Processor, bits};
use crate::access::{Access, Flavor, Kind, Privilege, Stage1Page};
use crate::fault::{Cause, Denied, Reserved, Why};
use crate::format::{Decoded, Format, Found, Start};
use crate::memory::{ByteOrder, EntryLayout, EntrySize};
use crate::memory_type::arm::{Attributes, Caches, Shareability};
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::regime::arm::hcr;
use crate::register::{Refusal, Refused};

/// Whose stage 1 it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum TranslationRegime {
    /// A guest's (or a host's without virtualization): EL1&0.
    El10,
    /// A hypervisor's own, without EL0: EL2 while `HCR_EL2.E2H` is clear.
    El2,
    /// A hosting hypervisor's, with EL0: EL2&0.
    El20,
}

impl TranslationRegime {
    /// Whether EL0 runs under it.
    const fn has_user(self) -> bool {
        !matches!(self, TranslationRegime::El2)
    }
}

/// The root registers, as they are. ASIDs and `CnP` are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Root {
    /// `TTBR0_ELx`.
    pub ttbr0: u64,
    /// `TTBR1_ELx`; ignored in the EL2 regime.
    pub ttbr1: u64,
}

impl From<u64> for Root {
    /// The lower half's root alone.
    fn from(ttbr0: u64) -> Root {
        Root { ttbr0, ttbr1: 0 }
    }
}

/// One half of the input space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Half {
    geometry: Geometry,
    /// Input size; 0 where `TxSZ` is out of range, so that every access faults.
    input_bits: u8,
    root_level: u8,
    /// Bits 51:48 of the root are in bits 5:2 of its register.
    wide_root: bool,
    /// `EPDn`.
    disabled: bool,
    /// `TBIn`: bits 63:56 are a tag.
    tagged: bool,
    /// `TBIDn`: only in data addresses.
    tagged_data_only: bool,
    /// `E0PDn`: EL0 may not use this half.
    no_user: bool,
    /// `HPDn`: table permissions are ignored.
    flat_permissions: bool,
    /// `SHn`, for leaves whose `SH` is part of the address.
    shareability: Shareability,
}

impl Half {
    fn new(fields: &HalfFields, tcr: &Tcr, processor: &Processor) -> Half {
        let physical_bits = processor.physical_bits.clamp(32, 52);
        let granule = fields.granule;
        let geometry = Geometry::new(granule, tcr.ds, tcr.size, physical_bits, processor.lpa2);
        // AArch64.S1MinTxSZ, AArch64.MaxTxSZ.
        let large = granule == Granule::SixtyFour && processor.large_virtual_addresses;
        let least = if large || geometry.is_lpa2() { 12 } else { 16 };
        let most = granule.max_tsz(processor.small_tables);
        let input_bits = if (least..=most).contains(&fields.tsz) { 64 - fields.tsz } else { 0 };
        // AArch64.S1StartLevel, in levels above the last.
        let indexed = u32::from(input_bits).saturating_sub(1 + granule.bits());
        let root_level = (indexed / granule.stride()) as u8;
        Half {
            geometry,
            input_bits,
            root_level,
            wide_root: geometry.root_is_wide(tcr.size),
            disabled: fields.disabled,
            tagged: fields.tbi,
            tagged_data_only: fields.tbid && processor.instruction_tags,
            no_user: fields.e0pd && processor.e0pd,
            flat_permissions: fields.hpd && processor.hierarchical_disable,
            shareability: Shareability::from_encoding(fields.shareability),
        }
    }

    /// The bits of `input` that are not a tag (`AArch64.AddrTop`).
    #[inline]
    fn untagged(&self, access: &Access) -> u64 {
        let tag = self.tagged && !(self.tagged_data_only && access.kind == Kind::Execute);
        if tag { u64::MAX >> 8 } else { u64::MAX }
    }
}

/// Stage 1 of one regime: `arm64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage1 {
    regime: TranslationRegime,
    enabled: bool,
    halves: [Half; 2],
    /// Which half's tables [`Format::decode`] and its like speak of.
    active: u8,
    /// The tables of both halves are encoded alike.
    same_geometry: bool,
    physical_bits: u8,
    order: ByteOrder,
    /// `HA`: hardware sets access flags.
    sets_access_flag: bool,
    /// `HD`: hardware makes `DBM` leaves writable.
    sets_dirty_state: bool,
    write_execute_never: bool,
    enhanced_pan: bool,
    changes_size_live: bool,
    caches: Caches,
}

/// What EL1 (or the regime's only level) and EL0 may do, before PAN and WXN.
#[derive(Clone, Copy)]
struct Rights {
    read_only: bool,
    user: bool,
    privileged_execute_never: bool,
    user_execute_never: bool,
}

impl Stage1 {
    /// Stage 1 as the registers have it: `TCR_ELx`, `SCTLR_ELx` and `HCR_EL2` (0 where EL2 is not
    /// in use).
    ///
    /// `TxSZ` out of range is not refused: every access then faults, as the manual says.
    ///
    /// # Errors
    /// Settings that are reserved or enable what is not modelled, by name; and an `HCR_EL2` that
    /// contradicts `regime`.
    ///
    /// ```
    /// use slat::format::arm64::{Processor, Stage1, TranslationRegime};
    /// let tcr = 25 | 25 << 16 | 2 << 30 | 2 << 32; // 39 bits each, 4K, 40 bits out
    /// let make = |tcr| Stage1::new(TranslationRegime::El10, tcr, 1, 0, &Processor::default());
    /// assert!(make(tcr).is_ok());
    /// let refused = make(tcr | 1 << 60).unwrap_err();
    /// assert!(refused.to_string().contains("MTX"));
    /// ```
    pub fn new(
        regime: TranslationRegime,
        tcr: u64,
        sctlr: u64,
        hcr: u64,
        processor: &Processor,
    ) -> Result<Stage1, Refused> {
        let contradiction = |bits, what| {
            Err(Refused {
                register: "hcr_el2",
                value: hcr,
                bits,
                why: Refusal::Contradiction(what),
            })
        };
        let e2h = hcr & hcr::E2H != 0;
        // AArch64.S1Enabled.
        let enabled = sctlr & sctlr::M != 0
            && (regime != TranslationRegime::El10 || hcr & (hcr::DC | hcr::TGE) == 0);
        let decoded = match regime {
            TranslationRegime::El10 if hcr & hcr::NV1 != 0 => {
                return Err(Refused {
                    register: "hcr_el2",
                    value: hcr,
                    bits: hcr::NV1,
                    why: Refusal::Unmodelled("FEAT_NV's EL1&0 permissions (NV1)"),
                });
            }
            TranslationRegime::El10 if hcr & hcr::NV2 != 0 => {
                return Err(Refused {
                    register: "hcr_el2",
                    value: hcr,
                    bits: hcr::NV2,
                    why: Refusal::Unmodelled("FEAT_NV2's accesses of registers in memory (NV2)"),
                });
            }
            TranslationRegime::El2 if e2h => {
                return contradiction(hcr::E2H, "E2H is set, so that the regime is EL2&0");
            }
            TranslationRegime::El20 if !e2h => {
                return contradiction(hcr::E2H, "E2H is clear, so that the regime is EL2");
            }
            TranslationRegime::El10 => Tcr::two_halves("tcr_el1", tcr),
            TranslationRegime::El20 => Tcr::two_halves("tcr_el2", tcr),
            TranslationRegime::El2 => Tcr::one_half("tcr_el2", tcr),
        };
        let tcr = match decoded {
            Ok(tcr) => tcr,
            Err(refused) if enabled => return Err(refused),
            // Of a stage that is off, only the tags' size matters.
            Err(_) if regime.has_user() => {
                Tcr::two_halves("tcr", tcr & (3 << 37 | 3 << 51) | 1 << 31)?
            }
            Err(_) => Tcr::one_half("tcr", tcr & (1 << 20 | 1 << 29))?,
        };
        let lower = Half::new(&tcr.lower, &tcr, processor);
        let upper = tcr.upper.map_or(lower, |fields| Half::new(&fields, &tcr, processor));
        let ha = tcr.ha && processor.hardware_access_flag;
        Ok(Stage1 {
            regime,
            enabled,
            halves: [lower, upper],
            active: 0,
            same_geometry: lower.geometry == upper.geometry,
            physical_bits: processor.physical_bits.clamp(32, 52),
            order: if sctlr & sctlr::EE != 0 { ByteOrder::Big } else { ByteOrder::Little },
            sets_access_flag: ha,
            sets_dirty_state: ha && tcr.hd && processor.hardware_dirty_state,
            write_execute_never: sctlr & sctlr::WXN != 0,
            enhanced_pan: sctlr & sctlr::EPAN != 0 && processor.enhanced_pan,
            changes_size_live: processor.bbm_level >= 2,
            caches: Caches { data: sctlr & sctlr::C != 0, instructions: sctlr & sctlr::I != 0 },
        })
    }

    /// EL1&0 as a plain kernel sets it up: both halves of `input_bits` with this granule, caches on,
    /// nothing that hardware updates.
    ///
    /// # Errors
    /// Where `input_bits` is not a size that this granule and processor have.
    pub fn plain(
        granule: Granule,
        input_bits: u8,
        processor: &Processor,
    ) -> Result<Stage1, Refused> {
        let (tg0, tg1) = match granule {
            Granule::Four => (0u64, 2u64),
            Granule::Sixteen => (2, 1),
            Granule::SixtyFour => (1, 3),
        };
        let tsz = u64::from(64u8.saturating_sub(input_bits)) & 0x3f;
        let ds = u64::from(granule != Granule::SixtyFour && input_bits > 48);
        let ps = if granule == Granule::SixtyFour || ds != 0 {
            size_encoding(processor.physical_bits)
        } else {
            size_encoding(processor.physical_bits.min(48))
        };
        let tcr = tsz | tsz << 16 | tg0 << 14 | tg1 << 30 | ps << 32 | ds << 59;
        let sctlr = sctlr::M | sctlr::C | sctlr::I;
        let stage = Stage1::new(TranslationRegime::El10, tcr, sctlr, 0, processor)?;
        if stage.halves[0].input_bits != input_bits {
            let why = Refusal::Contradiction("the granule and processor have no such input size");
            return Err(Refused { register: "tcr_el1", value: tcr, bits: 0x3f, why });
        }
        Ok(stage)
    }

    /// The regime.
    pub fn regime(&self) -> TranslationRegime {
        self.regime
    }

    /// Whether a live block may change its size without break-before-make (FEAT_BBM level 2).
    #[inline]
    pub fn changes_size_live(&self) -> bool {
        self.changes_size_live
    }

    /// Whether the stage translates at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// How tables are encoded: those of the half that [`Format::half`] chose, else the lower one's.
    pub fn geometry(&self) -> &Geometry {
        &self.active().geometry
    }

    /// 0 or 1: the half that [`Format::half`] chose.
    #[inline]
    pub(crate) fn active_half(&self) -> u8 {
        self.active & 1
    }

    /// Input bits and root level of the chosen half; 0 bits where its registers are out of range.
    #[inline]
    pub(crate) fn root_geometry(&self) -> (u32, u8) {
        (u32::from(self.active().input_bits), self.active().root_level)
    }

    /// Whether hardware sets the dirty state of `DBM` leaves.
    #[inline]
    pub fn sets_dirty_state(&self) -> bool {
        self.sets_dirty_state
    }

    #[inline]
    fn active(&self) -> &Half {
        &self.halves[usize::from(self.active & 1)]
    }

    /// 1 where an input lies in the upper half (`AArch64.GetVARange`).
    #[inline]
    fn half_of(&self, input: u64) -> u8 {
        if self.regime.has_user() { (input >> 55) as u8 & 1 } else { 0 }
    }

    /// Whether the access has EL0's rights.
    #[inline]
    fn is_user(&self, access: &Access) -> bool {
        self.regime.has_user()
            && (access.privilege == Privilege::User || access.flavor == Flavor::Unprivileged)
    }

    /// AArch64.S1DirectBasePermissions up to PAN, `AP[2]` already cleared by `DBM`.
    #[inline]
    fn rights(&self, found: &Found) -> Rights {
        let flat = self.halves[usize::from(self.half_of(found.input))].flat_permissions;
        let tables = if flat { 0 } else { found.path.or };
        let entry = found.entry;
        let writable_clean = self.sets_dirty_state && entry & bits::DBM != 0;
        let read_only = entry & bits::AP_READ_ONLY != 0 && !writable_clean
            || tables & bits::AP_TABLE_READ_ONLY != 0;
        if self.regime.has_user() {
            Rights {
                read_only,
                user: entry & bits::AP_USER != 0 && tables & bits::AP_TABLE_NO_USER == 0,
                privileged_execute_never: entry & bits::PXN != 0 || tables & bits::PXN_TABLE != 0,
                user_execute_never: entry & bits::UXN != 0 || tables & bits::UXN_TABLE != 0,
            }
        } else {
            let execute_never = entry & bits::UXN != 0 || tables & bits::UXN_TABLE != 0;
            Rights {
                read_only,
                user: false,
                privileged_execute_never: execute_never,
                user_execute_never: true,
            }
        }
    }

    /// Whether enhanced PAN counts the page as a user page because users can fetch from it.
    #[inline]
    fn guards_fetched(&self, rights: Rights) -> bool {
        self.enhanced_pan && self.regime.has_user() && !rights.user_execute_never
    }

    fn denied(&self, rights: Rights, access: &Access, pan: bool) -> Denied {
        let none = Denied::NONE;
        if self.is_user(access) {
            return match access.kind {
                Kind::Read => none.with(Denied::USER, !rights.user),
                Kind::Write => {
                    none.with(Denied::USER, !rights.user).with(Denied::WRITE, rights.read_only)
                }
                Kind::Execute => {
                    let writable = rights.user && !rights.read_only;
                    none.with(Denied::EXECUTE, rights.user_execute_never)
                        .with(Denied::WRITE_EXECUTE, self.write_execute_never && writable)
                }
            };
        }
        if access.kind == Kind::Execute {
            return none
                .with(Denied::EXECUTE, rights.privileged_execute_never)
                .with(Denied::SUPERVISOR_FETCH, rights.user && !rights.read_only)
                .with(Denied::WRITE_EXECUTE, self.write_execute_never && !rights.read_only);
        }
        let user_page = rights.user || self.guards_fetched(rights);
        none.with(Denied::WRITE, access.kind == Kind::Write && rights.read_only)
            .with(Denied::SUPERVISOR_DATA, pan && user_page && self.regime.has_user())
    }
}

impl Format for Stage1 {
    type Root = Root;

    const HALVES: bool = true;

    #[inline]
    fn half(&self, input: u64) -> Stage1 {
        Stage1 { active: self.half_of(input), ..*self }
    }

    #[inline]
    fn speaks_of(&self, input: u64) -> bool {
        self.same_geometry || self.active == self.half_of(input)
    }

    fn name(&self) -> &'static str {
        "arm64"
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
    fn begin(
        &self,
        root: &Root,
        input: u64,
        access: &Access,
        _: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        // Faults before the first table are reported at the manual's level 0.
        const LEVEL: u8 = 3;
        let upper = self.half_of(input) != 0;
        let half = &self.halves[usize::from(upper)];
        let untagged = half.untagged(access);
        if !self.enabled {
            let output = input & untagged;
            if output >> self.physical_bits != 0 {
                let bits = output >> self.physical_bits << self.physical_bits;
                let reserved = Reserved { why: Why::AddressSize, bits };
                return Err((LEVEL, Cause::Reserved(reserved)));
            }
            return Ok(Start::Flat { output });
        }
        if half.input_bits == 0 {
            return Err((LEVEL, Cause::Geometry));
        }
        // AArch64.VAIsOutOfRange.
        let beyond = (if upper { !input } else { input }) & untagged;
        if beyond >> half.input_bits != 0 {
            return Err((LEVEL, Cause::InputSize));
        }
        if half.disabled || half.no_user && self.is_user(access) {
            return Err((LEVEL, Cause::Disabled));
        }
        let register = if upper { root.ttbr1 } else { root.ttbr0 };
        let geometry = &half.geometry;
        let index_bits = u32::from(half.input_bits) - geometry.shift(half.root_level);
        let table = root_address(register, half.wide_root, index_bits);
        if table >> geometry.output_bits() != 0 {
            let bits = table >> geometry.output_bits() << geometry.output_bits();
            return Err((LEVEL, Cause::Reserved(Reserved { why: Why::AddressSize, bits })));
        }
        let input = input & (u64::MAX >> (64 - half.input_bits));
        Ok(Start::Table { table, level: half.root_level, input })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        self.geometry().shift(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        self.geometry().granule().stride()
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        self.geometry().decode(entry, level)
    }

    #[inline(always)]
    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        self.geometry().plain_table(entry, level)
    }

    #[inline(always)]
    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        self.geometry().plain_leaf(entry, level)
    }

    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if found.is_flat() {
            return Ok(());
        }
        if found.entry & bits::AF == 0 && !self.sets_access_flag {
            return Err(Cause::AccessFlag);
        }
        self.denied(self.rights(found), access, regime.arm.pan).into_result()
    }

    #[inline]
    fn touched(&self, entry: u64, _: u8, is_leaf: bool, access: &Access) -> u64 {
        if !is_leaf || !self.sets_access_flag {
            return entry;
        }
        let dirties = self.sets_dirty_state && access.kind == Kind::Write;
        let clean = if dirties && entry & bits::DBM != 0 { bits::AP_READ_ONLY } else { 0 };
        (entry | bits::AF) & !clean
    }

    #[inline]
    fn settled(&self, leaf: u64, _: u8, _: bool) -> u64 {
        leaf | bits::AF
    }

    #[inline]
    fn span(&self, leaf: u64, level: u8) -> u32 {
        self.geometry().span(leaf, level)
    }

    /// `AttrIndx`, and `SH` above it (of `TCR_ELx` with FEAT_LPA2).
    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        if found.is_flat() {
            return TypeBits::OFF;
        }
        let half = &self.halves[usize::from(self.half_of(found.input))];
        let shareability = if half.geometry.is_lpa2() {
            u16::from(half.shareability.encoding())
        } else {
            (found.entry >> bits::SH_SHIFT) as u16 & 3
        };
        let index = (found.entry >> bits::ATTR_INDEX_SHIFT) as u16 & 7;
        TypeBits::new(index | shareability << 3)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        let Some(bits) = bits.get() else {
            let governed = self.regime == TranslationRegime::El10;
            let state = governed.then_some(&regime.arm);
            return StageType::Arm(self.caches.of_disabled_stage(kind, state));
        };
        let Some(mair) = regime.arm.mair else { return StageType::Unspecified };
        let shareability = Shareability::from_encoding((bits >> 3) as u8);
        let attributes = Attributes::from_mair(mair, bits as u8, shareability);
        StageType::Arm(self.caches.cut(attributes, kind))
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
            for (bit, name) in [
                (bits::NS_TABLE, " NSTable"),
                (bits::AP_TABLE_READ_ONLY, " APTable:read-only"),
                (bits::AP_TABLE_NO_USER, " APTable:no-EL0"),
                (bits::UXN_TABLE, if self.regime.has_user() { " UXNTable" } else { " XNTable" }),
                (bits::PXN_TABLE, if self.regime.has_user() { " PXNTable" } else { "" }),
            ] {
                if entry & bit != 0 {
                    f.write_str(name)?;
                }
            }
        } else {
            f.write_str(if level == 0 { "page" } else { "block" })?;
            write!(f, " Attr{}", entry >> bits::ATTR_INDEX_SHIFT & 7)?;
            f.write_str(if entry & bits::AP_READ_ONLY != 0 { " RO" } else { " RW" })?;
            if self.regime.has_user() {
                f.write_str(if entry & bits::AP_USER != 0 { " EL0" } else { " EL1" })?;
            }
            if !self.geometry().is_lpa2() {
                let shareability = Shareability::from_encoding((entry >> bits::SH_SHIFT) as u8);
                write!(f, " {shareability}")?;
            }
            for (bit, name) in [
                (bits::AF, " AF"),
                (bits::NG, if self.regime.has_user() { " nG" } else { "" }),
                (bits::GP, " GP"),
                (bits::DBM, " DBM"),
                (bits::CONTIGUOUS, " contiguous"),
                (bits::PXN, if self.regime.has_user() { " PXN" } else { "" }),
                (bits::UXN, if self.regime.has_user() { " UXN" } else { " XN" }),
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
    fn guards(&self, found: &Found) -> bool {
        !found.is_flat() && self.guards_fetched(self.rights(found))
    }

    #[inline]
    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        if found.is_flat() {
            return Stage1Page::FLAT;
        }
        let rights = self.rights(found);
        Stage1Page {
            user: rights.user,
            writable: !rights.read_only,
            executable: !rights.privileged_execute_never || !rights.user_execute_never,
            shadow_stack: false,
            tables_via: found.path.via,
        }
    }
}
