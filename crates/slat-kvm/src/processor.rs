//! What KVM gives a guest for a processor, and the registers that decide how it translates.

use kvm_bindings::{CpuId, kvm_sregs};

/// What of a guest's processor its translation depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// MAXPHYADDR.
    pub physical_bits: u8,
    /// Pages of 1 GiB.
    pub gigabyte_pages: bool,
    /// AMD's, which reserves bit 8 of the topmost entries.
    pub amd: bool,
}

impl Processor {
    /// What these leaves say: CPUID 80000008H:EAX[7:0], 80000001H:EDX[26], and the letters of
    /// "AuthenticAMD".
    pub(crate) fn of(cpuid: &CpuId) -> Processor {
        let leaf = |number| cpuid.as_slice().iter().find(|leaf| leaf.function == number);
        Processor {
            physical_bits: leaf(0x8000_0008).map_or(36, |leaf| leaf.eax as u8),
            gigabyte_pages: leaf(0x8000_0001).is_some_and(|leaf| leaf.edx >> 26 & 1 != 0),
            amd: leaf(0).is_some_and(|leaf| leaf.ebx == 0x6874_7541),
        }
    }
}

/// The registers that decide how a guest's stage 1 translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

impl PagingState {
    pub(crate) fn of(sregs: &kvm_sregs) -> PagingState {
        PagingState { cr0: sregs.cr0, cr3: sregs.cr3, cr4: sregs.cr4, efer: sregs.efer }
    }

    pub(crate) fn put(self, sregs: &mut kvm_sregs) {
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (self.cr0, self.cr3, self.cr4, self.efer);
    }
}
