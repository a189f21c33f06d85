//! Explains a guest virtual address from a vCPU's registers, as a VMM would:
//! `cargo run -p slat --features vm-memory --example kvm-gva`.
//!
//! It makes a virtual machine with one page table and a vCPU that uses it, and asks the library
//! where an address leads. Without `/dev/kvm` it says so and ends.

use kvm_ioctls::Kvm;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::vm_memory::GuestTables;
use slat::{Access, Gpa, Gva, Regime, Stage, Steps, walk};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            return Ok(());
        }
    };
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    for (address, entry) in
        [(0x1000, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x4003), (0x4010, 0x9063)]
    {
        memory.write_obj(entry, GuestAddress(address))?;
    }
    let vcpu = kvm.create_vm()?.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, 0x1000, 0x20, 0xd00);

    // From here on it is what a VMM does with the registers of a guest that runs.
    let controls = Controls {
        write_protect: sregs.cr0 & 1 << 16 != 0,
        smep: sregs.cr4 & 1 << 20 != 0,
        smap: sregs.cr4 & 1 << 21 != 0,
        nxe: sregs.efer & 1 << 11 != 0,
        ..Controls::default()
    };
    let paging = Long::four(controls, Processor::default());
    let stage = Stage::<_, Gva, Gpa>::new(paging, sregs.cr3);
    let steps = Steps::<8>::default();
    let address = Gva::new(0x2123);
    let found = walk(
        &stage,
        &mut GuestTables::new(&memory),
        address,
        &Access::default(),
        &Regime::default(),
        &steps,
    );
    for step in steps.iter() {
        println!("level {} at GPA {:#x}: {:#x}", step.level, step.entry_address, step.entry);
    }
    match found {
        Ok(mapped) => println!("{address:?} is {:?}", mapped.output),
        Err(fault) => println!("{address:?}: {fault}"),
    }
    Ok(())
}
