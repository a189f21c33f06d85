//! AMD (APM 2 5.5.3, 15.16 and table 15-9; APM 3 INVLPGA, INVLPGB).

use super::{Addresses, Core, Item, What};

/// An operation that invalidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// MOV to CR3 in this ASID (0 is the host), to `pcid`.
    MovCr3 {
        /// Who executes it.
        asid: u32,
        /// The PCID in the new value.
        pcid: u16,
        /// Bit 63 of the operand, with `CR4.PCIDE` set.
        keep: bool,
    },
    /// A change of the paging mode in this ASID: of CR0.PG, or of CR4.PAE, PSE, PGE, or of CR4.PCIDE
    /// to 0.
    PagingMode {
        /// Who executes it.
        asid: u32,
    },
    /// INVPCID, with the types and descriptors of Intel's.
    Invpcid {
        /// Who executes it.
        asid: u32,
        /// 0 individual-address, 1 single-context, 2 all-context with globals, 3 without.
        kind: u64,
        /// Of the descriptor.
        pcid: u16,
        /// Of the descriptor.
        va: u64,
    },
    /// INVLPG in this ASID and PCID.
    Invlpg {
        /// Who executes it.
        asid: u32,
        /// The current PCID.
        pcid: u16,
        /// The linear address.
        va: u64,
    },
    /// INVLPGA.
    Invlpga {
        /// rAX.
        va: u64,
        /// ECX.
        asid: u32,
    },
    /// VMRUN with this TLB_CONTROL: 1 everything; 3 this ASID's; 7 this ASID's non-global ones.
    TlbControl {
        /// The field.
        value: u8,
        /// The VMCB's ASID.
        asid: u32,
    },
    /// INVLPGB, as each core carries it out; TLBSYNC waits until all have.
    Invlpgb {
        /// Address and flags.
        rax: u64,
        /// Count and stride.
        ecx: u32,
        /// ASID and PCID.
        edx: u32,
    },
}

/// Whether `operation` must invalidate `item`.
pub fn names(operation: &Operation, item: &Item) -> bool {
    let identity = item.identity;
    let global = identity.addresses == Addresses::Global;
    let in_space = |pcid: u16| identity.addresses == Addresses::Space(pcid);
    match *operation {
        Operation::MovCr3 { keep: true, .. } => false,
        Operation::MovCr3 { asid, pcid, keep: false } => identity.vm == asid && in_space(pcid),
        // Nested translations know no guest's mode.
        Operation::PagingMode { asid } => item.is_virtual() && identity.vm == asid,
        Operation::Invpcid { asid, kind, pcid, va } => {
            item.is_virtual()
                && identity.vm == asid
                && match kind {
                    0 => in_space(pcid) && item.covers(va),
                    1 => in_space(pcid),
                    2 => true,
                    3 => !global,
                    _ => false,
                }
        }
        Operation::Invlpg { asid, pcid, va } => {
            identity.vm == asid
                && match item.what {
                    What::Table => in_space(pcid),
                    What::Translation => (in_space(pcid) || global) && item.covers(va),
                }
        }
        Operation::Invlpga { va, asid } => {
            item.is_virtual() && identity.vm == asid && item.covers(va)
        }
        Operation::TlbControl { value, asid } => match value {
            1 => true,
            3 => identity.vm == asid,
            7 => identity.vm == asid && !global,
            _ => false,
        },
        Operation::Invlpgb { rax, ecx, edx } => invlpgb(rax, ecx, edx, item),
    }
}

/// rAX bit 0 address, 1 PCID, 2 ASID, 3 with globals, 4 final translation alone, 5 with nested
/// translations.
fn invlpgb(rax: u64, ecx: u32, edx: u32, item: &Item) -> bool {
    let identity = item.identity;
    let has = |bit: u32| rax >> bit & 1 != 0;
    if has(2) && identity.vm != edx & 0xffff {
        return false;
    }
    match identity.addresses {
        // By guest physical address there is no form.
        Addresses::GuestPhysical => return has(5) && !has(0),
        Addresses::Global if !has(3) => return false,
        Addresses::Space(pcid) if has(1) && u32::from(pcid) != edx >> 16 & 0xfff => return false,
        _ => {}
    }
    if has(4) && item.what == What::Table {
        return false;
    }
    let stride = if ecx >> 31 != 0 { 21 } else { 12 };
    !has(0) || item.overlaps(rax >> 12 << 12, (u64::from(ecx & 0xffff) + 1) << stride)
}

impl Core {
    /// Executes an operation of an AMD processor.
    pub fn amd(&mut self, operation: &Operation) {
        self.invalidate(|item| names(operation, item));
    }
}
