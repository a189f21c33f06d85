//! Intel: INVEPT, INVVPID, INVPCID, INVLPG (SDM 3C 30.4.3, SDM 2A and 3C chapter 33).
//!
//! Each acts on one logical processor: the plan is carried out on every one that may hold the
//! context, or before its next VM entry with it.

use super::{Context, LinearOwner, Pages};
use crate::edit::Gather;

/// What the processor can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// INVEPT of one context (IA32_VMX_EPT_VPID_CAP bit 25).
    pub invept_single: bool,
    /// INVVPID of one address (bit 40).
    pub invvpid_address: bool,
    /// INVVPID of one context (bit 41).
    pub invvpid_single: bool,
    /// INVPCID exists (CPUID.7.0:EBX bit 10).
    pub invpcid: bool,
    /// Leaves may be global, so that INVPCID of one context is not enough.
    pub global_pages: bool,
    /// The tables are those of PAE paging, whose PDPTEs are registers (SDM 3A 5.4.1): no invalidation
    /// reaches those, they are loaded again.
    pub pae: bool,
    /// More pages than this are flushed with their whole context.
    pub most_pages: u64,
}

impl Default for Capabilities {
    /// Everything exists, pages may be global, no tables are PAE's, up to 32 pages are flushed one by one.
    fn default() -> Self {
        Capabilities {
            invept_single: true,
            invvpid_address: true,
            invvpid_single: true,
            invpcid: true,
            global_pages: true,
            pae: false,
            most_pages: 32,
        }
    }
}

/// One instruction: the type in its register operand, and the 128-bit descriptor in memory, low
/// half first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// INVEPT.
    Invept {
        /// 1 single-context, 2 global.
        kind: u64,
        /// EPTP; zero.
        descriptor: [u64; 2],
    },
    /// INVVPID.
    Invvpid {
        /// 0 individual-address, 1 single-context, 2 all-context.
        kind: u64,
        /// VPID; linear address.
        descriptor: [u64; 2],
    },
    /// INVPCID.
    Invpcid {
        /// 0 individual-address, 1 single-context, 2 all-context with global translations.
        kind: u64,
        /// PCID; linear address.
        descriptor: [u64; 2],
    },
    /// INVLPG: the page in the current PCID, global or not.
    Invlpg {
        /// Any linear address in the page.
        address: u64,
    },
    /// MOV to CR3 and CR4.PGE toggled: everything, on processors without INVPCID, and the PDPTE
    /// registers with it.
    ReloadCr3,
    /// The guest's four PDPTEs are loaded again before it next runs: where it runs under EPT, the fields
    /// 280Ah to 2811h of its VMCSs are written from its table; without EPT every VM entry loads them
    /// (SDM 3C 28.3.2.4), so that an exit is enough.
    LoadPdptes {
        /// The guest; `None` for every one.
        vpid: Option<u16>,
    },
}

/// Emits the instructions that complete `gather`. `current_pcid` is what INVLPG acts on.
///
/// The context decides: an EPTP's guest-physical and combined mappings go by INVEPT, which has no
/// form for an address; linear mappings by INVVPID in a guest, else by INVLPG or INVPCID.
pub fn plan(
    gather: &Gather<'_>,
    capabilities: &Capabilities,
    current_pcid: u16,
    mut emit: impl FnMut(Instruction),
) {
    if gather.is_empty() {
        return;
    }
    match gather.context() {
        Context::Ept { eptp } if capabilities.invept_single => {
            emit(Instruction::Invept { kind: 1, descriptor: [eptp, 0] });
        }
        Context::Ept { .. } => emit(Instruction::Invept { kind: 2, descriptor: [0, 0] }),
        Context::Linear { owner: LinearOwner::Vpid(id), .. } => {
            // First, so that nothing is cached by way of older ones any more.
            if capabilities.pae && gather.tables_changed() {
                emit(Instruction::LoadPdptes { vpid: Some(id) });
            }
            let vpid = u64::from(id);
            // A changed table entry may be cached for any address below it.
            let pages = Pages::few(gather, 12, 9, capabilities.most_pages);
            match pages.filter(|_| capabilities.invvpid_address && !gather.tables_changed()) {
                Some(pages) => pages.for_each(|page| {
                    emit(Instruction::Invvpid { kind: 0, descriptor: [vpid, page] });
                }),
                None if capabilities.invvpid_single => {
                    emit(Instruction::Invvpid { kind: 1, descriptor: [vpid, 0] });
                }
                None => emit(Instruction::Invvpid { kind: 2, descriptor: [0, 0] }),
            }
        }
        Context::Linear { owner: LinearOwner::Native, pcid } => {
            linear(gather, capabilities, pcid, current_pcid, emit);
        }
        // Every context, or one that this processor knows no id of.
        _ => {
            if capabilities.pae {
                emit(Instruction::LoadPdptes { vpid: None });
            }
            emit(Instruction::Invept { kind: 2, descriptor: [0, 0] });
            emit(Instruction::Invvpid { kind: 2, descriptor: [0, 0] });
            if capabilities.invpcid && !capabilities.pae {
                emit(Instruction::Invpcid { kind: 2, descriptor: [0, 0] });
            } else {
                emit(Instruction::ReloadCr3);
            }
        }
    }
}

/// The host's own linear mappings.
fn linear(
    gather: &Gather<'_>,
    capabilities: &Capabilities,
    pcid: u16,
    current_pcid: u16,
    mut emit: impl FnMut(Instruction),
) {
    if capabilities.pae && gather.tables_changed() {
        emit(Instruction::ReloadCr3);
        return;
    }
    let id = u64::from(pcid & 0xfff);
    let pages = Pages::few(gather, 12, 9, capabilities.most_pages);
    match pages {
        // INVLPG also drops every paging-structure-cache entry of the current PCID (SDM 3A
        // 5.10.4.1), and global translations.
        Some(pages) if pcid == current_pcid => {
            pages.for_each(|page| emit(Instruction::Invlpg { address: page }));
        }
        Some(pages)
            if capabilities.invpcid && !capabilities.global_pages && !gather.tables_changed() =>
        {
            pages.for_each(|page| emit(Instruction::Invpcid { kind: 0, descriptor: [id, page] }));
        }
        _ if capabilities.invpcid && !capabilities.global_pages => {
            emit(Instruction::Invpcid { kind: 1, descriptor: [id, 0] });
        }
        _ if capabilities.invpcid => emit(Instruction::Invpcid { kind: 2, descriptor: [0, 0] }),
        _ => emit(Instruction::ReloadCr3),
    }
}
