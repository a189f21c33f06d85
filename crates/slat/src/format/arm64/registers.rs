//! Fields of `TCR_ELx`, `VTCR_EL2` and `SCTLR_ELx`, and which of their settings are refused
//! (Arm ARM D24.2).

use super::granule::Granule;
use crate::register::{Refusal, Refused};

/// Bits `low..=high` of a register.
const fn field(value: u64, high: u32, low: u32) -> u64 {
    value >> low & (u64::MAX >> (63 - (high - low)))
}

/// Whether one bit is set.
const fn flag(value: u64, bit: u32) -> bool {
    value >> bit & 1 != 0
}

/// Bits of `SCTLR_ELx` that this library looks at.
pub(super) mod sctlr {
    pub(crate) const M: u64 = 1 << 0;
    pub(crate) const C: u64 = 1 << 2;
    pub(crate) const I: u64 = 1 << 12;
    pub(crate) const WXN: u64 = 1 << 19;
    pub(crate) const EE: u64 = 1 << 25;
    pub(crate) const EPAN: u64 = 1 << 57;
}

/// A field that is refused where a bit of it is set.
struct Refusable {
    bits: u64,
    why: Refusal,
}

/// The first of `fields` that `value` sets.
fn refuse(register: &'static str, value: u64, fields: &[Refusable]) -> Result<(), Refused> {
    match fields.iter().find(|field| value & field.bits != 0) {
        Some(field) => Err(Refused { register, value, bits: value & field.bits, why: field.why }),
        None => Ok(()),
    }
}

/// What `TCR_ELx` says of one half of the address space.
#[derive(Clone, Copy)]
pub(super) struct HalfFields {
    pub(super) tsz: u8,
    pub(super) granule: Granule,
    pub(super) shareability: u8,
    pub(super) disabled: bool,
    pub(super) tbi: bool,
    pub(super) tbid: bool,
    pub(super) hpd: bool,
    pub(super) e0pd: bool,
}

/// The fields of `TCR_ELx` that both layouts have.
#[derive(Clone, Copy)]
pub(super) struct Tcr {
    pub(super) lower: HalfFields,
    /// `None` in a regime without an upper half.
    pub(super) upper: Option<HalfFields>,
    pub(super) size: u64,
    pub(super) ha: bool,
    pub(super) hd: bool,
    pub(super) ds: bool,
}

const MTX: Refusal = Refusal::Unmodelled("FEAT_MTE_NO_ADDRESS_TAGS (MTX)");
const RES0: Refusal = Refusal::Reserved("a RES0 bit");

fn granule0(register: &'static str, value: u64) -> Result<Granule, Refused> {
    match field(value, 15, 14) {
        0 => Ok(Granule::Four),
        1 => Ok(Granule::SixtyFour),
        2 => Ok(Granule::Sixteen),
        _ => Err(Refused { register, value, bits: 3 << 14, why: Refusal::Reserved("TG0 0b11") }),
    }
}

impl Tcr {
    /// `TCR_EL1`, and `TCR_EL2` while `HCR_EL2.E2H` is set.
    ///
    /// Fields without effect on a translation are accepted: cacheability and shareability of the
    /// walk itself, `A1` and `AS` (ASIDs), `HWUnnn` (bits that translation ignores), `NFDn` (only
    /// non-fault SVE accesses), `TCMAn` (only tag checks).
    pub(super) fn two_halves(register: &'static str, value: u64) -> Result<Tcr, Refused> {
        refuse(
            register,
            value,
            &[
                Refusable { bits: 3 << 60, why: MTX },
                Refusable { bits: 3 << 62 | 1 << 35 | 1 << 6, why: RES0 },
            ],
        )?;
        let lower_disabled = flag(value, 7);
        let upper_disabled = flag(value, 23);
        // The granule of a half that is never walked does not matter; software leaves it 0.
        let granule0 = if lower_disabled { Granule::Four } else { granule0(register, value)? };
        let granule1 = match field(value, 31, 30) {
            1 => Granule::Sixteen,
            3 => Granule::SixtyFour,
            2 => Granule::Four,
            _ if upper_disabled => Granule::Four,
            _ => {
                let why = Refusal::Reserved("TG1 0b00");
                return Err(Refused { register, value, bits: 3 << 30, why });
            }
        };
        Ok(Tcr {
            lower: HalfFields {
                tsz: field(value, 5, 0) as u8,
                granule: granule0,
                shareability: field(value, 13, 12) as u8,
                disabled: lower_disabled,
                tbi: flag(value, 37),
                tbid: flag(value, 51),
                hpd: flag(value, 41),
                e0pd: flag(value, 55),
            },
            upper: Some(HalfFields {
                tsz: field(value, 21, 16) as u8,
                granule: granule1,
                shareability: field(value, 29, 28) as u8,
                disabled: upper_disabled,
                tbi: flag(value, 38),
                tbid: flag(value, 52),
                hpd: flag(value, 42),
                e0pd: flag(value, 56),
            }),
            size: field(value, 34, 32),
            ha: flag(value, 39),
            hd: flag(value, 40),
            ds: flag(value, 59),
        })
    }

    /// `TCR_EL2` while `HCR_EL2.E2H` is clear.
    pub(super) fn one_half(register: &'static str, value: u64) -> Result<Tcr, Refused> {
        refuse(
            register,
            value,
            &[
                Refusable { bits: 1 << 33, why: MTX },
                Refusable { bits: !0 << 34 | 1 << 19 | 3 << 6, why: RES0 },
            ],
        )?;
        Ok(Tcr {
            lower: HalfFields {
                tsz: field(value, 5, 0) as u8,
                granule: granule0(register, value)?,
                shareability: field(value, 13, 12) as u8,
                disabled: false,
                tbi: flag(value, 20),
                tbid: flag(value, 29),
                hpd: flag(value, 24),
                e0pd: false,
            },
            upper: None,
            size: field(value, 18, 16),
            ha: flag(value, 21),
            hd: flag(value, 22),
            ds: flag(value, 32),
        })
    }
}

/// `VTCR_EL2`.
#[derive(Clone, Copy)]
pub(super) struct Vtcr {
    pub(super) tsz: u8,
    pub(super) granule: Granule,
    pub(super) shareability: u8,
    pub(super) sl0: u8,
    pub(super) sl2: bool,
    pub(super) size: u64,
    pub(super) ha: bool,
    pub(super) hd: bool,
    pub(super) ds: bool,
}

impl Vtcr {
    /// Accepts what has no effect on a Non-secure translation: cacheability of the walk, `VS`,
    /// `HWUnn`, `NSW` and `NSA`.
    pub(super) fn new(value: u64) -> Result<Vtcr, Refused> {
        const REGISTER: &str = "vtcr_el2";
        let unmodelled =
            |bit: u32, feature| Refusable { bits: 1 << bit, why: Refusal::Unmodelled(feature) };
        refuse(
            REGISTER,
            value,
            &[
                unmodelled(34, "FEAT_THE (AssuredOnly)"),
                unmodelled(35, "FEAT_THE (TL1)"),
                unmodelled(36, "permission indirection, FEAT_S2PIE (S2PIE)"),
                unmodelled(37, "permission overlay, FEAT_S2POE (S2POE)"),
                unmodelled(38, "VMSAv9-128, FEAT_D128 (D128)"),
                unmodelled(40, "guarded control stacks, FEAT_GCS (GCSH)"),
                unmodelled(41, "FEAT_THE (TL0)"),
                unmodelled(44, "access flags in tables, FEAT_HAFT (HAFT)"),
                unmodelled(45, "the dirty-state structure, FEAT_HDBSS (HDBSS)"),
                Refusable { bits: !0 << 46 | 3 << 42 | 1 << 39 | 3 << 23 | 1 << 20, why: RES0 },
            ],
        )?;
        Ok(Vtcr {
            tsz: field(value, 5, 0) as u8,
            granule: granule0(REGISTER, value)?,
            shareability: field(value, 13, 12) as u8,
            sl0: field(value, 7, 6) as u8,
            sl2: flag(value, 33),
            size: field(value, 18, 16),
            ha: flag(value, 21),
            hd: flag(value, 22),
            ds: flag(value, 32),
        })
    }
}
