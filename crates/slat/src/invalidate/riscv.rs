//! RISC-V: SFENCE.VMA, HFENCE.VVMA, HFENCE.GVMA and their HINVAL forms (privileged architecture,
//! "Hypervisor Memory-Management Fence Instructions", "Svinval").
//!
//! Each acts on one hart: the plan is carried out on every hart that may hold the id, by SBI's
//! remote fences or before it next enters the guest.

use super::{Context, Pages};
use crate::edit::Gather;

/// What the hart can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Svinval: fences of single pages need not wait for each other.
    pub svinval: bool,
    /// The tables are Sv32's: 10 bits a level.
    pub sv32: bool,
    /// First-stage leaves may be global: a fence that names an ASID passes them by, so that every
    /// ASID is named (the supervisor chapter's "SFENCE.VMA": "except for global mappings").
    pub global_pages: bool,
    /// More pages than this are fenced with their whole id.
    pub most_pages: u64,
}

/// One instruction; `None` is `x0`: every address, every id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// `SFENCE.VMA` or, between the fences of Svinval, `SINVAL.VMA`.
    Vma {
        /// Whether it is the Svinval form.
        invalidate_only: bool,
        /// Virtual address.
        rs1: Option<u64>,
        /// ASID.
        rs2: Option<u16>,
    },
    /// `HFENCE.VVMA` or `HINVAL.VVMA`, under the VMID in `hgatp`.
    Vvma {
        /// Whether it is the Svinval form.
        invalidate_only: bool,
        /// Guest virtual address.
        rs1: Option<u64>,
        /// Guest ASID.
        rs2: Option<u16>,
    },
    /// `HFENCE.GVMA` or `HINVAL.GVMA`.
    Gvma {
        /// Whether it is the Svinval form.
        invalidate_only: bool,
        /// Guest physical address, shifted right by 2.
        rs1: Option<u64>,
        /// VMID.
        rs2: Option<u16>,
    },
    /// `SFENCE.W.INVAL`: stores come before the invalidations.
    WriteBeforeInvalidate,
    /// `SFENCE.INVAL.IR`: the invalidations come before later walks.
    InvalidateBeforeRead,
}

/// Emits what completes `gather`.
pub fn plan(gather: &Gather<'_>, capabilities: &Capabilities, mut emit: impl FnMut(Instruction)) {
    if gather.is_empty() {
        return;
    }
    let stride = if capabilities.sv32 { 10 } else { 9 };
    // An address orders leaf entries alone: changed pointers take every address.
    let pages = Pages::few(gather, 12, stride, capabilities.most_pages)
        .filter(|_| !gather.tables_changed());
    let context = gather.context();
    let space = |asid| (!capabilities.global_pages).then_some(asid);
    let one = |invalidate_only, address: Option<u64>| match context {
        Context::GStage { vmid } => {
            let rs1 = address.map(|address| address >> 2);
            Instruction::Gvma { invalidate_only, rs1, rs2: Some(vmid) }
        }
        Context::SStage { asid, vmid: Some(_) } => {
            Instruction::Vvma { invalidate_only, rs1: address, rs2: space(asid) }
        }
        Context::SStage { asid, vmid: None } => {
            Instruction::Vma { invalidate_only, rs1: address, rs2: space(asid) }
        }
        _ => Instruction::Gvma { invalidate_only, rs1: None, rs2: None },
    };
    match pages {
        Some(pages) if capabilities.svinval => {
            emit(Instruction::WriteBeforeInvalidate);
            pages.for_each(|page| emit(one(true, Some(page))));
            emit(Instruction::InvalidateBeforeRead);
        }
        Some(pages) => pages.for_each(|page| emit(one(false, Some(page)))),
        None => emit(one(false, None)),
    }
    if context == Context::All {
        // Of the VMID in `hgatp` alone: there is no such fence of every VMID.
        emit(Instruction::Vvma { invalidate_only: false, rs1: None, rs2: None });
        emit(Instruction::Vma { invalidate_only: false, rs1: None, rs2: None });
    }
}
