//! AMD: TLB_CONTROL, INVLPGA, INVLPGB and TLBSYNC (APM 2 15.16, APM 3).
//!
//! Nested translations cannot be invalidated by guest-physical address: a change of nested tables
//! flushes the guest's ASID.

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
    /// More pages than this are flushed with their whole ASID.
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
}

const VA: u64 = 1 << 0;
const PCID: u64 = 1 << 1;
const ASID: u64 = 1 << 2;
const GLOBAL: u64 = 1 << 3;
const FINAL_ONLY: u64 = 1 << 4;
const NESTED: u64 = 1 << 5;

/// Emits what completes `gather`.
pub fn plan(gather: &Gather<'_>, capabilities: &Capabilities, mut emit: impl FnMut(Instruction)) {
    if gather.is_empty() {
        return;
    }
    match gather.context() {
        Context::Npt { asid } if capabilities.invlpgb && capabilities.invlpgb_nested => {
            emit(Instruction::Invlpgb { rax: ASID | GLOBAL | NESTED, ecx: 0, edx: asid & 0xffff });
            emit(Instruction::Tlbsync);
        }
        Context::Npt { asid } => flush(capabilities, asid, emit),
        Context::Linear { owner, pcid } => {
            let (asid, guest) = match owner {
                LinearOwner::Asid(asid) => (asid, true),
                _ => (0, false),
            };
            if capabilities.invlpgb {
                broadcast(gather, capabilities, asid, pcid, guest, &mut emit);
                return;
            }
            // INVLPGA drops the page and upper-level entries cached for it; with changed tables
            // other addresses may be cached through them as well.
            let pages = Pages::few(gather, 12, 9, capabilities.most_pages);
            match pages.filter(|_| !gather.tables_changed()) {
                Some(pages) => {
                    pages.for_each(|page| emit(Instruction::Invlpga { rax: page, ecx: asid }));
                }
                None => flush(capabilities, asid, emit),
            }
        }
        _ => emit(Instruction::TlbControl { asid: None, value: 1 }),
    }
}

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
