//! Intel (SDM 3A 5.10.4.1, SDM 3C 30.4.3.1 and 30.4.3.3).

use super::{Addresses, Core, Item, What};

/// What the logical processor runs with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Current {
    /// VPID; 0 in VMX root operation and where VPIDs are off.
    pub vpid: u16,
    /// PCID; 0 where `CR4.PCIDE` is clear.
    pub pcid: u16,
    /// EPTP bits 51:12 where EPT is in use.
    pub ep4ta: Option<u64>,
}

/// An operation that invalidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// MOV to CR3 that selects `pcid`.
    MovCr3 {
        /// The PCID in the new value.
        pcid: u16,
        /// Bit 63 of the operand, with `CR4.PCIDE` set: nothing is invalidated.
        keep: bool,
    },
    /// INVLPG.
    Invlpg {
        /// The linear address.
        va: u64,
    },
    /// INVPCID.
    Invpcid {
        /// 0 individual-address, 1 single-context, 2 all-context with globals, 3 without.
        kind: u64,
        /// Of the descriptor.
        pcid: u16,
        /// Of the descriptor.
        va: u64,
    },
    /// MOV to CR4.
    MovCr4 {
        /// The value before.
        old: u64,
        /// The value after.
        new: u64,
    },
    /// MOV to CR0.
    MovCr0 {
        /// The value before.
        old: u64,
        /// The value after.
        new: u64,
    },
    /// A page fault: what would serve the address goes, so that a fault that the tables no longer
    /// justify comes once.
    PageFault {
        /// The linear address.
        va: u64,
    },
    /// An EPT violation (SDM 3C 30.4.3.1).
    EptViolation {
        /// The guest physical address.
        gpa: u64,
        /// The linear address, where it was the translation of one.
        va: Option<u64>,
    },
    /// VM entry or VM exit with "enable VPID" clear. With it set nothing is invalidated.
    TransitionWithoutVpid,
    /// INVVPID.
    Invvpid {
        /// 0 individual-address, 1 single-context, 2 all-context, 3 single-context without globals.
        kind: u64,
        /// Of the descriptor.
        vpid: u16,
        /// Of the descriptor.
        va: u64,
    },
    /// INVEPT.
    Invept {
        /// 1 single-context, 2 global.
        kind: u64,
        /// Of the descriptor.
        eptp: u64,
    },
}

/// `CR0.PG`.
const PG: u64 = 1 << 31;
/// `CR4.PAE`.
const PAE: u64 = 1 << 5;
/// `CR4.PGE`.
const PGE: u64 = 1 << 7;
/// `CR4.PCIDE`.
const PCIDE: u64 = 1 << 17;
/// `CR4.SMEP`.
const SMEP: u64 = 1 << 20;
/// EP4TA of an EPTP.
const EP4TA: u64 = 0x000f_ffff_ffff_f000;

/// Whether `operation` must invalidate `item`.
pub fn names(operation: &Operation, current: &Current, item: &Item) -> bool {
    let identity = item.identity;
    let global = identity.addresses == Addresses::Global;
    let in_space = |pcid: u16| identity.addresses == Addresses::Space(pcid);
    // Linear mappings, and combined ones of all EP4TAs, whether EPT is in use or not (30.4.3.1).
    let mine = item.is_virtual() && identity.vm == u32::from(current.vpid);
    match *operation {
        Operation::MovCr3 { keep: true, .. } => false,
        Operation::MovCr3 { pcid, keep: false } => mine && in_space(pcid),
        Operation::Invlpg { va } => {
            let here = in_space(current.pcid);
            mine && match item.what {
                // All paging-structure-cache entries of the current PCID go, whatever the address.
                What::Table => here,
                What::Translation => (here || global) && item.covers(va),
            }
        }
        Operation::Invpcid { kind, pcid, va } => {
            mine && match kind {
                0 => in_space(pcid) && item.covers(va),
                1 => in_space(pcid),
                2 => true,
                3 => !global,
                _ => false,
            }
        }
        Operation::MovCr4 { old, new } => {
            let changed = old ^ new;
            let all = changed & PGE != 0 || old & !new & PCIDE != 0;
            let own = changed & PAE != 0 || new & !old & SMEP != 0;
            mine && (all || own && (in_space(current.pcid) || global))
        }
        Operation::MovCr0 { old, new } => mine && old & !new & PG != 0,
        Operation::PageFault { va } => {
            mine && (in_space(current.pcid) || global) && item.covers(va)
        }
        Operation::EptViolation { gpa, va } => match identity.addresses {
            Addresses::GuestPhysical => identity.ep4ta == current.ep4ta && item.covers(gpa),
            _ => {
                let here = in_space(current.pcid) || global;
                let combined = identity.ep4ta.is_some() && identity.ep4ta == current.ep4ta;
                mine && combined && here && va.is_some_and(|va| item.covers(va))
            }
        },
        // Of VPID 0, for all PCIDs and all EP4TAs.
        Operation::TransitionWithoutVpid => item.is_virtual() && identity.vm == 0,
        Operation::Invvpid { kind, vpid, va } => {
            let of = identity.vm == u32::from(vpid);
            // VPID 0 is refused by types 0, 1 and 3 and passed over by type 2.
            item.is_virtual()
                && identity.vm != 0
                && match kind {
                    0 => of && item.covers(va),
                    1 => of,
                    2 => true,
                    3 => of && !global,
                    _ => false,
                }
        }
        Operation::Invept { kind, eptp } => match kind {
            1 => identity.ep4ta == Some(eptp & EP4TA),
            2 => identity.ep4ta.is_some(),
            _ => false,
        },
    }
}

impl Core {
    /// Executes an operation of an Intel processor.
    pub fn intel(&mut self, operation: &Operation, current: &Current) {
        self.invalidate(|item| names(operation, current, item));
    }
}
