//! KVM's own walker of stage 1, asked by `KVM_TRANSLATE`.
//!
//! It walks as a supervisor's read would: KVM checks no permission there, and reports none (it answers
//! `writeable` and not `usermode` whatever the tables say). It looks at no address's upper bits, so that
//! who asks has to see to canonical addresses; and it sets accessed bits on its way.

use std::io;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::Unavailable;
use crate::region::Region;

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

/// A machine with some memory from physical address 0 and one processor that never runs.
#[derive(Debug)]
pub struct Translator {
    // The machine goes before the memory that it was given.
    vcpu: VcpuFd,
    _vm: VmFd,
    region: Region,
    physical_bits: u8,
    gigabyte_pages: bool,
    amd: bool,
}

impl Translator {
    /// A machine with so many bytes of memory, a multiple of 2 MiB, all zeros.
    ///
    /// # Errors
    /// Where there is no KVM, or it makes no machine.
    pub fn new(bytes: u64) -> Result<Translator, Unavailable> {
        let kvm = Kvm::new().map_err(|error| Unavailable::from(error.errno()))?;
        let make = || -> io::Result<Translator> {
            let region = Region::new(bytes as usize, bytes as usize)?;
            let vm = kvm.create_vm()?;
            give(&vm, &region)?;
            let vcpu = vm.create_vcpu(0)?;
            let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
            vcpu.set_cpuid2(&cpuid)?;
            let leaf = |number| cpuid.as_slice().iter().find(|leaf| leaf.function == number);
            // CPUID 80000008H:EAX[7:0], 80000001H:EDX[26], and the letters of "AuthenticAMD".
            let physical_bits = leaf(0x8000_0008).map_or(36, |leaf| leaf.eax as u8);
            let gigabyte_pages = leaf(0x8000_0001).is_some_and(|leaf| leaf.edx >> 26 & 1 != 0);
            let amd = leaf(0).is_some_and(|leaf| leaf.ebx == 0x6874_7541);
            Ok(Translator { vcpu, _vm: vm, region, physical_bits, gigabyte_pages, amd })
        };
        make().map_err(Unavailable::Failed)
    }

    /// MAXPHYADDR of the processor.
    pub fn physical_bits(&self) -> u8 {
        self.physical_bits
    }

    /// Whether the processor has pages of 1 GiB.
    pub fn gigabyte_pages(&self) -> bool {
        self.gigabyte_pages
    }

    /// Whether the processor is AMD's, which reserves bit 8 of the topmost entries.
    pub fn is_amd(&self) -> bool {
        self.amd
    }

    /// Stores a word of memory at an address that is a multiple of 8.
    ///
    /// # Panics
    /// Where the machine has no such memory.
    pub fn store(&self, at: u64, value: u64) {
        self.region.store(at, value);
    }

    /// Sets the registers, and reads them back: whether they are what was asked. KVM may take a mode that
    /// it does not support and silently leave it (kvm_pvm clears CR0.PG outside long mode).
    ///
    /// # Errors
    /// Where KVM refuses them outright.
    pub fn set(&self, state: PagingState) -> io::Result<bool> {
        let PagingState { cr0, cr3, cr4, efer } = state;
        let mut sregs: kvm_sregs = self.vcpu.get_sregs()?;
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (cr0, cr3, cr4, efer);
        let long = efer >> 10 & 1 != 0;
        sregs.cs = kvm_segment {
            selector: 8,
            limit: u32::MAX,
            type_: 11,
            present: 1,
            s: 1,
            g: 1,
            l: u8::from(long),
            db: u8::from(!long),
            ..sregs.cs
        };
        self.vcpu.set_sregs(&sregs)?;
        let now = self.vcpu.get_sregs()?;
        Ok((now.cr0, now.cr3, now.cr4, now.efer) == (cr0, cr3, cr4, efer))
    }

    /// The guest physical address that KVM finds for this virtual address, if it finds one.
    ///
    /// # Errors
    /// Where KVM has no such request.
    pub fn translate(&self, address: u64) -> io::Result<Option<u64>> {
        let found = self.vcpu.translate_gva(address)?;
        Ok((found.valid != 0).then_some(found.physical_address))
    }
}

#[expect(unsafe_code, reason = "the kernel is given memory of this process")]
fn give(vm: &VmFd, region: &Region) -> io::Result<()> {
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: region.bytes(),
        userspace_addr: region.address(),
    };
    // SAFETY: the region is mapped, and outlives the machine: `Translator` drops it last. It is read
    // and written as atomics alone.
    unsafe { vm.set_user_memory_region(slot)? };
    Ok(())
}
