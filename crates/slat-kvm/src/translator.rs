//! KVM's own walker of stage 1, asked by `KVM_TRANSLATE`.
//!
//! It walks as a supervisor's read would: KVM checks no permission there, and reports none (it answers
//! `writeable` and not `usermode` whatever the tables say). It looks at no address's upper bits, so that
//! who asks has to see to canonical addresses; and it sets accessed bits on its way.

use std::io;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::Unavailable;
use crate::processor::{PagingState, Processor};
use crate::region::Region;

/// A machine with some memory from physical address 0 and one processor that never runs.
#[derive(Debug)]
pub struct Translator {
    // The machine goes before the memory that it was given.
    vcpu: VcpuFd,
    _vm: VmFd,
    region: Region,
    processor: Processor,
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
            region.give_to(&vm)?;
            let vcpu = vm.create_vcpu(0)?;
            let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
            vcpu.set_cpuid2(&cpuid)?;
            let processor = Processor::of(&cpuid);
            Ok(Translator { vcpu, _vm: vm, region, processor })
        };
        make().map_err(Unavailable::Failed)
    }

    /// The processor that the guest has.
    pub fn processor(&self) -> Processor {
        self.processor
    }

    /// Stores a word of memory at an address that is a multiple of 8.
    ///
    /// # Panics
    /// Where the machine has no such memory.
    pub fn store(&self, at: u64, value: u64) {
        self.region.store(at, value);
    }

    /// The word of memory at a multiple of 8.
    ///
    /// # Panics
    /// Where the machine has no such memory.
    pub fn load(&self, at: u64) -> u64 {
        self.region.load(at)
    }

    /// Sets the registers, and reads them back: whether they are what was asked. KVM may take a mode that
    /// it does not support and silently leave it (kvm_pvm clears CR0.PG outside long mode).
    ///
    /// # Errors
    /// Where KVM refuses them outright.
    pub fn set(&self, state: PagingState) -> io::Result<bool> {
        let mut sregs: kvm_sregs = self.vcpu.get_sregs()?;
        state.put(&mut sregs);
        let long = state.efer >> 10 & 1 != 0;
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
        Ok(PagingState::of(&self.vcpu.get_sregs()?) == state)
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
