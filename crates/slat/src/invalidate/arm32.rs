//! Arm in AArch32 state, ARMv7 and later: TLB maintenance by MCR to coprocessor 15, with the barriers
//! around it (Arm ARM, DDI 0487, G5.9 and G8.2; ARMv7-A: DDI 0406C, B3.10, B4.2.2 and B4.2.3).
//!
//! `TLBIALL` of Hyp mode takes both stages of the current VMID (table G5-23): nothing there takes the
//! combined translations of a VMID alone, as AArch64's `VMALLE1` does. A change of stage 2 is therefore
//! one `TLBIALL`. By address it is worth naming only where the caller knows which virtual addresses the
//! combined translations have: those of a [guest without a stage 1](Capabilities::flat_stage1).

use super::{Context, Pages};
use crate::edit::Gather;
use crate::format::arm32::Version;

/// What the processor can do, and how far the invalidation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The manual that it follows. ARMv7 has operations neither for the last level alone nor by
    /// intermediate physical address.
    pub version: Version,
    /// The tables of PL1&0 are short descriptors: a section is 1 MiB.
    pub short_descriptors: bool,
    /// Broadcast to the inner-shareable domain; otherwise this CPU alone.
    pub broadcast: bool,
    /// Leaves of PL1&0 may be global (`nG` clear). `TLBIASID` passes them by, so that a whole ASID is
    /// `TLBIALL`; and the entries above them, which never are global, may be held under any ASID
    /// (G5.9.5), so that a changed table is named for all.
    pub global_pages: bool,
    /// The guest's stage 1 has been off since its VMID was last invalidated, and is kept so (`HCR.DC`,
    /// or `HCR.TVM` and a hypervisor that refuses): the virtual addresses of its combined translations
    /// are the intermediate physical ones.
    pub flat_stage1: bool,
    /// Branch predictors must be told of changed mappings: ARMv7 with `ID_MMFR1.BPred` other than 4.
    pub branch_predictor: bool,
    /// More operations than this become one of the whole VMID, ASID or Hyp mode.
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
    /// `MCR`, with [`Operation::encoding`].
    Mcr {
        /// Which.
        operation: Operation,
        /// The value of `Rt`; 0 where it is ignored.
        operand: u32,
    },
}

/// The operations that a plan uses; each has an inner-shareable form (of the same name with `IS`) and a
/// local one, of which [`Capabilities::broadcast`] decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `TLBIALL`: from Hyp mode both stages of the current VMID, from PL1 its stage 1.
    TlbiAll,
    /// `TLBIMVA`: stage 1, one address and ASID, any level.
    TlbiMva,
    /// `TLBIMVAL`: likewise, last level (Armv8).
    TlbiMval,
    /// `TLBIMVAA`: stage 1, one address of every ASID, any level.
    TlbiMvaa,
    /// `TLBIASID`: stage 1, one ASID, not its global pages.
    TlbiAsid,
    /// `TLBIIPAS2`: stage 2 of the current VMID, any level (Armv8).
    TlbiIpas2,
    /// `TLBIIPAS2L`: likewise, last level (Armv8).
    TlbiIpas2l,
    /// `TLBIALLNSNH`: both stages of every VMID, Hyp mode's own excepted.
    TlbiAllnsnh,
    /// `TLBIALLH`: all of Hyp mode's own.
    TlbiAllh,
    /// `TLBIMVAH`: Hyp mode's own, one address, any level.
    TlbiMvah,
    /// `TLBIMVALH`: likewise, last level (Armv8).
    TlbiMvalh,
    /// `BPIALL`: the branch predictors.
    Bpiall,
}

/// Where an operation is in the coprocessor's space: `MCR coproc, opc1, Rt, CRn, CRm, opc2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoding {
    /// Coprocessor: 15.
    pub coproc: u8,
    /// First opcode: 4 for what Hyp mode alone has.
    pub opc1: u8,
    /// Primary register: 8 for TLBs, 7 for branch predictors.
    pub crn: u8,
    /// Secondary register: the scope.
    pub crm: u8,
    /// Second opcode.
    pub opc2: u8,
}

impl Operation {
    /// How it is encoded, inner-shareable or local.
    pub const fn encoding(self, broadcast: bool) -> Encoding {
        // TLBIIPAS2 has scopes of its own, and so has BPIALL.
        let (opc1, crn, [inner, local], opc2) = match self {
            Operation::TlbiAll => (0, 8, [3, 7], 0),
            Operation::TlbiMva => (0, 8, [3, 7], 1),
            Operation::TlbiAsid => (0, 8, [3, 7], 2),
            Operation::TlbiMvaa => (0, 8, [3, 7], 3),
            Operation::TlbiMval => (0, 8, [3, 7], 5),
            Operation::TlbiIpas2 => (4, 8, [0, 4], 1),
            Operation::TlbiIpas2l => (4, 8, [0, 4], 5),
            Operation::TlbiAllh => (4, 8, [3, 7], 0),
            Operation::TlbiMvah => (4, 8, [3, 7], 1),
            Operation::TlbiAllnsnh => (4, 8, [3, 7], 4),
            Operation::TlbiMvalh => (4, 8, [3, 7], 5),
            Operation::Bpiall => (0, 7, [1, 5], 6),
        };
        Encoding { coproc: 15, opc1, crn, crm: if broadcast { inner } else { local }, opc2 }
    }
}

/// Emits what completes `gather`. For stage 2 and for a guest's stage 1 it is executed in Hyp mode, with
/// the gather's VMID in `VTTBR`; for the host's own stage 1 at PL1; for [`Context::El2`] and
/// [`Context::All`] in Hyp mode.
pub fn plan(gather: &Gather<'_>, capabilities: &Capabilities, mut emit: impl FnMut(Instruction)) {
    if gather.is_empty() {
        return;
    }
    let v8 = capabilities.version == Version::V8;
    let last_level = v8 && !gather.tables_changed();
    let most = capabilities.most_operations;
    let mcr = |operation, operand| Instruction::Mcr { operation, operand };
    emit(Instruction::DsbStores);
    match gather.context() {
        Context::Stage2 { .. } => {
            // Each page twice, and by 4 KiB: a TLB may hold a block in such pieces, which the
            // operation for one virtual address need not take together where no stage 1 says how
            // large its page is.
            match Pages::few(gather, PAGE, 0, most / 2).filter(|_| v8 && capabilities.flat_stage1) {
                Some(pages) => {
                    let operation =
                        if last_level { Operation::TlbiIpas2l } else { Operation::TlbiIpas2 };
                    // IPA[39:12] in bits 27:0.
                    pages.for_each(|at| emit(mcr(operation, (at >> PAGE) as u32 & 0xfff_ffff)));
                    // No virtual address is above 4 GiB.
                    if gather.ranges().iter().any(|range| range.start >> 32 == 0) {
                        emit(Instruction::Dsb);
                        pages.for_each(|at| {
                            if let Ok(at) = u32::try_from(at) {
                                emit(mcr(Operation::TlbiMvaa, at));
                            }
                        });
                    }
                }
                None => emit(mcr(Operation::TlbiAll, 0)),
            }
        }
        Context::Stage1 { asid, .. } => {
            let id = u32::from(asid & 0xff);
            let stride = if capabilities.short_descriptors { SHORT_STRIDE } else { LONG_STRIDE };
            match Pages::few(gather, PAGE, stride, most) {
                // VA[31:12] in bits 31:12, and the ASID in bits 7:0.
                Some(pages) if last_level => {
                    pages.for_each(|at| emit(mcr(Operation::TlbiMval, at as u32 | id)));
                }
                Some(pages) if gather.tables_changed() && capabilities.global_pages => {
                    pages.for_each(|at| emit(mcr(Operation::TlbiMvaa, at as u32)));
                }
                Some(pages) => {
                    pages.for_each(|at| emit(mcr(Operation::TlbiMva, at as u32 | id)));
                }
                None if capabilities.global_pages => emit(mcr(Operation::TlbiAll, 0)),
                None => emit(mcr(Operation::TlbiAsid, id)),
            }
        }
        Context::El2 => match Pages::few(gather, PAGE, LONG_STRIDE, most) {
            Some(pages) => {
                let operation = if last_level { Operation::TlbiMvalh } else { Operation::TlbiMvah };
                pages.for_each(|at| emit(mcr(operation, at as u32)));
            }
            None => emit(mcr(Operation::TlbiAllh, 0)),
        },
        _ => {
            emit(mcr(Operation::TlbiAllnsnh, 0));
            emit(mcr(Operation::TlbiAllh, 0));
        }
    }
    if capabilities.branch_predictor {
        emit(mcr(Operation::Bpiall, 0));
    }
    emit(Instruction::Dsb);
    emit(Instruction::Isb);
}

/// log2 of the smallest page, and index bits a level below the root.
const PAGE: u32 = 12;
const LONG_STRIDE: u32 = 9;
const SHORT_STRIDE: u32 = 8;
