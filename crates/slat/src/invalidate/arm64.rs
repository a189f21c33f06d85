//! Arm: TLBI by address, by range and by VMID, with the barriers around them (Arm ARM D8.16, C5.5).
//!
//! A change of stage 2 needs two: `IPAS2` drops the stage-2 translations, and only the
//! `VMALLE1` after it, once that is complete, drops the combined ones that were made from them.

use super::{Context, Pages};
use crate::edit::Gather;
use crate::format::arm64::Granule;

/// What the processor can do, and how far the invalidation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The tables' granule. Tables of AArch32 state are [`arm32`](super::arm32)'s.
    pub granule: Granule,
    /// The tables use 52-bit addresses by `DS`: range operands count in 64 KiB.
    pub lpa2: bool,
    /// Range operations (FEAT_TLBIRANGE).
    pub ranges: bool,
    /// Level hints (FEAT_TTL).
    pub level_hints: bool,
    /// Broadcast to the inner-shareable domain; otherwise this CPU alone.
    pub broadcast: bool,
    /// Stage-1 leaves may be global (`nG` clear). `ASIDE1` passes them by, so that a whole ASID is
    /// `VMALLE1`; and the entries above them, which never are global, may be held under any ASID
    /// (D8.16.1), so that a changed table is named for all.
    pub global_pages: bool,
    /// More operations than this become one of the whole VMID or ASID.
    pub most_operations: u64,
}

/// One instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// `DSB ISHST` (or `NSHST`): the stores to the tables are seen by walks.
    DsbStores,
    /// `DSB ISH` (or `NSH`): what came before is complete.
    Dsb,
    /// `ISB`.
    Isb,
    /// `TLBI`.
    Tlbi {
        /// Which.
        operation: Operation,
        /// The register operand; 0 where it takes none.
        operand: u64,
    },
}

/// The operations of TLBI that a plan uses; each has an inner-shareable and a local form, of which
/// [`Capabilities::broadcast`] decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `IPAS2E1`: stage 2 of the current VMID, any level.
    Ipas2e1,
    /// `IPAS2LE1`: likewise, last level.
    Ipas2le1,
    /// `RIPAS2E1`: a range of them.
    Ripas2e1,
    /// `RIPAS2LE1`: a range, last level.
    Ripas2le1,
    /// `VMALLE1`: stage 1, and what was combined from it, of the current VMID.
    Vmalle1,
    /// `VMALLS12E1`: both stages of the current VMID.
    Vmalls12e1,
    /// `VAE1`: stage 1, one address and ASID, any level.
    Vae1,
    /// `VALE1`: likewise, last level.
    Vale1,
    /// `RVAE1`: a range of them.
    Rvae1,
    /// `RVALE1`: a range, last level.
    Rvale1,
    /// `VAAE1`: stage 1, one address of every ASID, any level.
    Vaae1,
    /// `RVAAE1`: a range of them.
    Rvaae1,
    /// `ASIDE1`: one ASID.
    Aside1,
    /// `ALLE1`: stages 1 and 2 of every VMID.
    Alle1,
    /// `VAE2`: EL2's own, one address, any level.
    Vae2,
    /// `VALE2`: likewise, last level.
    Vale2,
    /// `RVAE2`: a range of them.
    Rvae2,
    /// `RVALE2`: a range, last level.
    Rvale2,
    /// `ALLE2`: all of EL2's own.
    Alle2,
}

/// Emits what completes `gather`, to be executed with the gather's VMID in `VTTBR_EL2` (and, for
/// [`Context::Stage1`] of a guest, `HCR_EL2.TGE` clear); for [`Context::El2`] and [`Context::All`] at
/// EL2.
pub fn plan(gather: &Gather<'_>, capabilities: &Capabilities, mut emit: impl FnMut(Instruction)) {
    if gather.is_empty() {
        return;
    }
    let tlbi = |operation, operand| Instruction::Tlbi { operation, operand };
    emit(Instruction::DsbStores);
    match gather.context() {
        Context::Stage2 { .. } => {
            if operations(gather, capabilities) > capabilities.most_operations {
                emit(tlbi(Operation::Vmalls12e1, 0));
                emit(Instruction::Dsb);
            } else {
                let (one, range) = if gather.tables_changed() {
                    (Operation::Ipas2e1, Operation::Ripas2e1)
                } else {
                    (Operation::Ipas2le1, Operation::Ripas2le1)
                };
                by_address(gather, capabilities, |address| match address {
                    Covered::One { address, hint } => {
                        emit(tlbi(one, hint << 44 | address >> 12 & 0xff_ffff_ffff));
                    }
                    Covered::Range(operand) => emit(tlbi(range, operand)),
                });
                emit(Instruction::Dsb);
                emit(tlbi(Operation::Vmalle1, 0));
                emit(Instruction::Dsb);
            }
        }
        Context::Stage1 { asid, .. } => {
            let id = u64::from(asid) << 48;
            if operations(gather, capabilities) > capabilities.most_operations {
                emit(if capabilities.global_pages {
                    tlbi(Operation::Vmalle1, 0)
                } else {
                    tlbi(Operation::Aside1, id)
                });
            } else {
                let (id, one, range) = match gather.tables_changed() {
                    false => (id, Operation::Vale1, Operation::Rvale1),
                    true if capabilities.global_pages => (0, Operation::Vaae1, Operation::Rvaae1),
                    true => (id, Operation::Vae1, Operation::Rvae1),
                };
                by_virtual_address(gather, capabilities, id, one, range, &mut emit);
            }
            emit(Instruction::Dsb);
        }
        Context::El2 => {
            if operations(gather, capabilities) > capabilities.most_operations {
                emit(tlbi(Operation::Alle2, 0));
            } else {
                let (one, range) = match gather.tables_changed() {
                    false => (Operation::Vale2, Operation::Rvale2),
                    true => (Operation::Vae2, Operation::Rvae2),
                };
                by_virtual_address(gather, capabilities, 0, one, range, &mut emit);
            }
            emit(Instruction::Dsb);
        }
        _ => {
            emit(tlbi(Operation::Alle1, 0));
            emit(tlbi(Operation::Alle2, 0));
            emit(Instruction::Dsb);
        }
    }
    emit(Instruction::Isb);
}

/// Names every page by `one` or `range`, under the ASID of `id`.
fn by_virtual_address(
    gather: &Gather<'_>,
    capabilities: &Capabilities,
    id: u64,
    one: Operation,
    range: Operation,
    emit: &mut impl FnMut(Instruction),
) {
    by_address(gather, capabilities, |address| {
        let (operation, operand) = match address {
            // VA[55:12] in bits 43:0: what is above is neither address nor level hint.
            Covered::One { address, hint } => (one, hint << 44 | address >> 12 & 0xfff_ffff_ffff),
            Covered::Range(operand) => (range, operand),
        };
        emit(Instruction::Tlbi { operation, operand: id | operand });
    });
}

enum Covered {
    One { address: u64, hint: u64 },
    Range(u64),
}

/// `TTL` and `TG`: 1 for 4K, 2 for 16K, 3 for 64K.
const fn granule_field(granule: Granule) -> u64 {
    match granule {
        Granule::Four => 1,
        Granule::Sixteen => 2,
        Granule::SixtyFour => 3,
    }
}

/// The level hint: the manual's level where all leaves are of one level and no table changed.
fn level_hint(gather: &Gather<'_>, capabilities: &Capabilities) -> u64 {
    if !capabilities.level_hints
        || gather.tables_changed()
        || !gather.levels().is_power_of_two()
        || gather.levels() > 4
    {
        return 0;
    }
    3 - u64::from(gather.levels().trailing_zeros())
}

/// How many TLBI by address it takes.
fn operations(gather: &Gather<'_>, capabilities: &Capabilities) -> u64 {
    let mut count = 0u64;
    let limit = capabilities.most_operations;
    for range in gather.ranges() {
        let shift =
            Pages::shift(gather, capabilities.granule.bits(), capabilities.granule.stride());
        let pages = (range.last >> shift) - (range.start >> shift);
        if !capabilities.ranges && pages >= limit {
            return u64::MAX;
        }
        if capabilities.ranges && pages >> 22 >= limit {
            return u64::MAX;
        }
    }
    by_address(gather, capabilities, |_| count += 1);
    count
}

/// The operands that cover every range, each rounded out to whole pages.
fn by_address(gather: &Gather<'_>, capabilities: &Capabilities, mut cover: impl FnMut(Covered)) {
    let granule = capabilities.granule.bits();
    let shift = Pages::shift(gather, granule, capabilities.granule.stride());
    let level = level_hint(gather, capabilities);
    let hint = if level == 0 { 0 } else { granule_field(capabilities.granule) << 2 | level };
    // Range operands name their base in granules, or in 64 KiB with 52-bit addresses by `DS`.
    let base_shift = if capabilities.lpa2 { 16 } else { granule };
    for range in gather.ranges() {
        let mut address = range.start >> shift << shift;
        loop {
            let left = ((range.last - address) >> granule) + 1;
            let aligned = address & ((1u64 << base_shift) - 1) == 0;
            if !capabilities.ranges || left < 2 || !aligned {
                cover(Covered::One { address, hint });
                match address.checked_add(1 << shift) {
                    Some(next) if next <= range.last => address = next,
                    _ => break,
                }
                continue;
            }
            // (NUM + 1) << (5 * SCALE + 1) granules from the base.
            let scale = ((left.ilog2() - 1) / 5).min(3);
            let unit = 5 * scale + 1;
            let number = (left >> unit).min(32);
            let operand = granule_field(capabilities.granule) << 46
                | u64::from(scale) << 44
                | (number - 1) << 39
                | level << 37
                | address >> base_shift & 0x1f_ffff_ffff;
            cover(Covered::Range(operand));
            match address.checked_add(number << unit << granule) {
                Some(next) if next <= range.last => address = next,
                _ => break,
            }
        }
    }
}
