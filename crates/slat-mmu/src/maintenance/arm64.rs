//! Arm (Arm ARM D8.16, C5.5): TLBI as a core carries it out, for its own or another's; DSB waits
//! until all have.

use super::{Addresses, Core, Item, What};

/// Which stage and scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `VMALLE1`: stage 1 of the VMID, and what was combined from it.
    Vmalle1,
    /// `ASIDE1`: one ASID, not its global pages.
    Aside1(u16),
    /// `VAE1`, `RVAE1`: addresses of one ASID, and global ones.
    Vae1(u16, Range),
    /// `VAAE1`, `RVAAE1`: addresses of every ASID.
    Vaae1(Range),
    /// `IPAS2E1`, `RIPAS2E1`: stage 2 by intermediate physical address.
    Ipas2e1(Range),
    /// `VMALLS12E1`: both stages of the VMID.
    Vmalls12e1,
    /// `ALLE1`: both stages of every VMID.
    Alle1,
}

/// The addresses of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// How many bytes; a page for the forms by one address.
    pub bytes: u64,
    /// The `L` forms: last-level entries alone.
    pub last_level: bool,
}

impl Range {
    fn names(&self, item: &Item) -> bool {
        let level = !self.last_level || item.what == What::Translation;
        level && item.overlaps(self.start, self.bytes.max(1))
    }
}

/// Whether `operation`, with `vmid` in `VTTBR_EL2`, must invalidate `item`.
pub fn names(operation: &Operation, vmid: u16, item: &Item) -> bool {
    let identity = item.identity;
    let of = identity.vm == u32::from(vmid);
    let stage1 = of && item.is_virtual();
    let global = identity.addresses == Addresses::Global;
    let in_space = |asid: u16| identity.addresses == Addresses::Space(asid);
    match operation {
        Operation::Vmalle1 => stage1,
        Operation::Aside1(asid) => stage1 && in_space(*asid),
        Operation::Vae1(asid, range) => {
            // Entries above the last level are matched by ASID as well.
            stage1 && (in_space(*asid) || global) && range.names(item)
        }
        Operation::Vaae1(range) => stage1 && range.names(item),
        Operation::Ipas2e1(range) => of && !item.is_virtual() && range.names(item),
        Operation::Vmalls12e1 => of,
        Operation::Alle1 => true,
    }
}

impl Core {
    /// Executes a TLBI.
    pub fn arm64(&mut self, operation: &Operation, vmid: u16) {
        self.invalidate(|item| names(operation, vmid, item));
    }
}
