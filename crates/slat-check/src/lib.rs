//! Does this machine have second-level address translation (SLAT), is it on, is it used?
//!
//! SLAT lets a processor itself translate the addresses of a virtual machine: EPT on Intel, NPT or RVI on
//! AMD, stage 2 on Arm, the G-stage on RISC-V. [`examine`] answers four questions apart from each other,
//! each with its evidence: does the processor have it, did the firmware leave it on, does the running
//! kernel use it, and is this a virtual machine. That `/dev/kvm` exists answers none of them.
//!
//! Everything is read through one [`Machine`], so that another machine's state can be judged as well:
//!
//! ```
//! use slat_check::{Answer, Recorded, ThisMachine, examine};
//!
//! let here = examine(&ThisMachine);
//! println!("{}", here.headline);
//!
//! let elsewhere = Recorded::parse(
//!     "slat check state 1\n\
//!      system linux x86\n\
//!      === file /proc/cpuinfo\n\
//!      vendor_id : GenuineIntel\n\
//!      flags : fpu vmx ept vpid\n\
//!      === file /sys/class/misc/kvm/dev\n\
//!      10:232\n\
//!      === modules\n\
//!      kvm\n\
//!      kvm_intel\n\
//!      === file /sys/module/kvm_intel/parameters/ept\n\
//!      Y\n",
//! )?;
//! assert_eq!(examine(&elsewhere).in_use.answer, Answer::Yes);
//! # Ok::<(), slat_check::StateError>(())
//! ```
//!
//! [`processors::look_up`] answers for a processor by its name.
#![deny(unsafe_code)]

mod arm_cores;
mod facts;
mod gather;
mod hypervisors;
mod judge;
mod machine;
pub mod processors;
mod recorded;
mod report;
mod summary;
pub mod text;
mod this_machine;
mod virtual_machine;

pub use hypervisors::requiring_slat_on_x86;
pub use machine::{Arch, Machine, Os, Source, System, Unread};
pub use recorded::{Recorded, StateError};
pub use report::{
    Answer, Detail, Evidence, Hypervisor, Report, Unreadable, Verdict, VirtualMachine,
};
pub use this_machine::ThisMachine;

/// Judges a machine by everything that it says of itself.
///
/// This never fails: what cannot be read or understood is in [`Report::unread`], and verdicts that hang
/// on it come out as [`Answer::Unknown`] with the reason.
pub fn examine(machine: &dyn Machine) -> Report {
    let facts = gather::Facts::gather(machine);
    let mut around = virtual_machine::surroundings(&facts);
    let judgement = judge::judge(&facts, &around);
    around.virtual_machine.nested = judgement.nested.clone();
    let (headline, remark) = summary::headline(&facts, &judgement, &around.virtual_machine);
    let advice = summary::advice(&facts, &judgement, &around.virtual_machine);
    Report {
        headline,
        remark,
        system: facts.system,
        processor_name: facts.processor_name(),
        technology: judgement.technology,
        hypervisors: hypervisors::hypervisors(facts.system, &judgement),
        processor: judgement.processor,
        firmware: judgement.firmware,
        in_use: judgement.in_use,
        virtual_machine: around.virtual_machine,
        details: judgement.details,
        advice,
        unread: facts.into_unread(),
    }
}
