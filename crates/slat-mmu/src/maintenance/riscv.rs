//! RISC-V (privileged architecture, SFENCE.VMA, HFENCE.VVMA, HFENCE.GVMA; the HINVAL and SINVAL
//! forms of Svinval have the same scope once SFENCE.INVAL.IR has ordered them).

use super::{Addresses, Core, Item, What};

/// A fence; `None` is `x0`: every address, every id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// SFENCE.VMA of the host (or of a guest in VS-mode: then it is HFENCE.VVMA).
    SfenceVma {
        /// Virtual address.
        rs1: Option<u64>,
        /// ASID.
        rs2: Option<u16>,
    },
    /// HFENCE.VVMA under `hgatp.VMID`.
    HfenceVvma {
        /// Guest virtual address.
        rs1: Option<u64>,
        /// Guest ASID.
        rs2: Option<u16>,
    },
    /// HFENCE.GVMA.
    HfenceGvma {
        /// Guest physical address, shifted right by 2.
        rs1: Option<u64>,
        /// VMID.
        rs2: Option<u16>,
    },
}

/// What an [`Identity`](super::Identity) has for a guest under this VMID: one more, since 0 is the
/// host and VMID 0 is a guest's as well.
pub const fn vm(vmid: u16) -> u32 {
    vmid as u32 + 1
}

/// Whether `operation`, with `vmid` in `hgatp`, must invalidate `item`.
pub fn names(operation: &Operation, vmid: u16, item: &Item) -> bool {
    let identity = item.identity;
    let virtually = |own: u32, rs1: Option<u64>, rs2: Option<u16>| {
        // With an ASID, global mappings stay; with an address, entries that point at tables do.
        let space = match (identity.addresses, rs2) {
            (Addresses::GuestPhysical, _) | (Addresses::Global, Some(_)) => false,
            (Addresses::Space(held), Some(asid)) => held == asid,
            (_, None) => true,
        };
        identity.vm == own
            && space
            && rs1.is_none_or(|va| item.what == What::Translation && item.covers(va))
    };
    match *operation {
        Operation::SfenceVma { rs1, rs2 } => virtually(0, rs1, rs2),
        Operation::HfenceVvma { rs1, rs2 } => virtually(vm(vmid), rs1, rs2),
        Operation::HfenceGvma { rs1, rs2 } => {
            let of = identity.vm != 0 && rs2.is_none_or(|vmid| identity.vm == vm(vmid));
            of && match (identity.addresses, rs1) {
                (_, None) => true,
                (Addresses::GuestPhysical, Some(gpa)) => {
                    item.what == What::Translation && item.covers(gpa << 2)
                }
                // What was made through both stages does not know the guest physical addresses it
                // was made with: it goes with any. So do table entries, which are kept with the
                // place that stage 2 gives the table.
                (_, Some(_)) => true,
            }
        }
    }
}

impl Core {
    /// Executes a fence.
    pub fn riscv(&mut self, operation: &Operation, vmid: u16) {
        self.invalidate(|item| names(operation, vmid, item));
    }
}
