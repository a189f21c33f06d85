//! AMD: TLB_CONTROL, INVLPGA, INVLPG, INVPCID, INVLPGB and TLBSYNC (APM 2 5.5.3 and 15.16, APM 3).
//!
//! Nested translations cannot be invalidated by guest-physical address: a change of nested tables
//! flushes the guest's ASID. TLB_CONTROL acts when VMRUN enters a guest, and no guest has ASID 0 (APM 2
//! 15.5.1): what the host itself translates goes by instructions that act at once.

use super::{Context, LinearOwner, Pages};
use crate::edit::Gather;

/// What the processor can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// TLB_CONTROL may flush one ASID (CPUID Fn8000_000A:EDX bit 6, FlushByAsid).
    pub flush_by_asid: bool,
    /// INVLPGB and TLBSYNC exist (Fn8000_0008:EBX bit 3) and the hypervisor uses them.
    pub invlpgb: bool,
    /// INVLPGB may include nested translations (Fn8000_0008:EBX bit 21).
    pub invlpgb_nested: bool,
    /// Most pages of one INVLPGB, less one (Fn8000_0008:EDX bits 15:0).
    pub invlpgb_most: u16,
    /// INVPCID exists (CPUID Fn7_0:EBX bit 10).
    pub invpcid: bool,
    /// The host's leaves may be global, so that INVPCID of one context is not enough.
    pub global_pages: bool,
    /// The host's tables are those of PAE paging, whose PDPTEs are registers natively: no invalidation
    /// reaches those, they are loaded again. In a guest under nested paging they are read on demand (APM
    /// 2 15.25.10).
    pub pae: bool,
    /// More pages than this are flushed with their whole ASID or PCID.
    pub most_pages: u64,
}

/// One instruction, or the field of a VMCB that VMRUN acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// The VMCBs that use this ASID get this TLB_CONTROL (offset 5Ch), and clear their clean bit,
    /// before the next VMRUN on each CPU that may hold it (APM 2 table 15-9).
    TlbControl {
        /// The ASID; `None` for every one.
        asid: Option<u32>,
        /// 1: everything; 3: this guest's.
        value: u8,
    },
    /// INVLPGA on this CPU.
    Invlpga {
        /// rAX: the virtual address.
        rax: u64,
        /// ECX: the ASID.
        ecx: u32,
    },
    /// INVLPGB, broadcast.
    Invlpgb {
        /// Address in bits 63:12; bit 0 address, 1 PCID, 2 ASID valid, 3 with global, 4 final
        /// translation alone, 5 with nested translations.
        rax: u64,
        /// Bits 15:0: pages after the first; bit 31: in steps of 2 MiB.
        ecx: u32,
        /// Bits 15:0: ASID; bits 27:16: PCID.
        edx: u32,
    },
    /// TLBSYNC: waits for the broadcasts of this CPU.
    Tlbsync,
    /// INVLPG on this CPU: the page in the host's current PCID, global or not.
    Invlpg {
        /// Any linear address in the page.
        address: u64,
    },
    /// INVPCID on this CPU, with the descriptor's low half first.
    Invpcid {
        /// 0 individual-address, 1 single-context, 2 all-context with global translations.
        kind: u64,
        /// PCID; linear address.
        descriptor: [u64; 2],
    },
    /// MOV to CR3 and CR4.PGE toggled, on this CPU: all of the host's, on processors without INVPCID, and
    /// the PDPTE registers with it.
    ReloadCr3,
}

const VA: u64 = 1 << 0;
const PCID: u64 = 1 << 1;
const ASID: u64 = 1 << 2;
const GLOBAL: u64 = 1 << 3;
const FINAL_ONLY: u64 = 1 << 4;
const NESTED: u64 = 1 << 5;

/// Emits what completes `gather`. `current_pcid` is the host's, which INVLPG acts on.
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
        Context::Npt { asid } if capabilities.invlpgb && capabilities.invlpgb_nested => {
            emit(Instruction::Invlpgb { rax: ASID | GLOBAL | NESTED, ecx: 0, edx: asid & 0xffff });
            emit(Instruction::Tlbsync);
        }
        Context::Npt { asid } => flush(capabilities, asid, emit),
        Context::Linear { owner: LinearOwner::Asid(asid), pcid } if capabilities.invlpgb => {
            broadcast(gather, capabilities, asid, pcid, true, &mut emit);
        }
        Context::Linear { owner: LinearOwner::Asid(asid), .. } => match few(gather, capabilities) {
            Some(pages) => {
                pages.for_each(|page| emit(Instruction::Invlpga { rax: page, ecx: asid }));
            }
            None => flush(capabilities, asid, emit),
        },
        Context::Linear { owner: LinearOwner::Native, .. }
            if capabilities.pae && gather.tables_changed() =>
        {
            emit(Instruction::ReloadCr3);
        }
        Context::Linear { owner: LinearOwner::Native, pcid } if capabilities.invlpgb => {
            broadcast(gather, capabilities, 0, pcid, false, &mut emit);
        }
        Context::Linear { owner: LinearOwner::Native, pcid } => {
            host(gather, capabilities, pcid, current_pcid, emit);
        }
        // Every context, or one that this processor knows no id of.
        _ => {
            emit(Instruction::TlbControl { asid: None, value: 1 });
            emit(whole_host(capabilities));
        }
    }
}

/// The pages of a gather, where they are all that it takes: INVLPG and INVLPGA may drop no more than
/// the page and the upper-level entries that lead to it (with EFER.TCE set, APM 2 3.1.7), and through a
/// changed table other addresses may be cached as well.
fn few<'a>(gather: &'a Gather<'_>, capabilities: &Capabilities) -> Option<Pages<'a>> {
    Pages::few(gather, 12, 9, capabilities.most_pages).filter(|_| !gather.tables_changed())
}

/// The host's own linear mappings, without broadcasts.
fn host(
    gather: &Gather<'_>,
    capabilities: &Capabilities,
    pcid: u16,
    current_pcid: u16,
    mut emit: impl FnMut(Instruction),
) {
    let id = u64::from(pcid & 0xfff);
    let single = capabilities.invpcid && !capabilities.global_pages;
    match few(gather, capabilities) {
        Some(pages) if pcid == current_pcid => {
            pages.for_each(|page| emit(Instruction::Invlpg { address: page }));
        }
        Some(pages) if single => {
            pages.for_each(|page| emit(Instruction::Invpcid { kind: 0, descriptor: [id, page] }));
        }
        _ if single => emit(Instruction::Invpcid { kind: 1, descriptor: [id, 0] }),
        _ => emit(whole_host(capabilities)),
    }
}

/// Everything of the host's.
fn whole_host(capabilities: &Capabilities) -> Instruction {
    if capabilities.invpcid && !capabilities.pae {
        Instruction::Invpcid { kind: 2, descriptor: [0, 0] }
    } else {
        Instruction::ReloadCr3
    }
}

/// A guest's ASID, when it is next entered.
fn flush(capabilities: &Capabilities, asid: u32, mut emit: impl FnMut(Instruction)) {
    emit(if capabilities.flush_by_asid {
        Instruction::TlbControl { asid: Some(asid), value: 3 }
    } else {
        Instruction::TlbControl { asid: None, value: 1 }
    });
}

fn broadcast(
    gather: &Gather<'_>,
    capabilities: &Capabilities,
    asid: u32,
    pcid: u16,
    guest: bool,
    emit: &mut impl FnMut(Instruction),
) {
    let edx = asid & 0xffff | u32::from(pcid & 0xfff) << 16;
    // A guest's PCIDs are its own business: all of them are included.
    let ids = if guest { ASID | GLOBAL } else { ASID | PCID | GLOBAL };
    let scope = if gather.tables_changed() { 0 } else { FINAL_ONLY };
    let shift = Pages::shift(gather, 12, 9).min(21);
    let stride = u32::from(shift == 21) << 31;
    match Pages::few(gather, 12, 9, capabilities.most_pages) {
        Some(_) if !gather.tables_changed() => {
            for range in gather.ranges() {
                let mut page = range.start >> shift;
                let last = range.last >> shift;
                while page <= last {
                    let more = (last - page).min(u64::from(capabilities.invlpgb_most));
                    let rax = page << shift | ids | VA | scope;
                    emit(Instruction::Invlpgb { rax, ecx: stride | more as u32, edx });
                    page += more + 1;
                }
            }
        }
        _ => emit(Instruction::Invlpgb { rax: ids, ecx: 0, edx }),
    }
    emit(Instruction::Tlbsync);
}
