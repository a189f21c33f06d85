//! From what was read to the three verdicts on the processor, its firmware and its kernel.

mod arm;
mod macos;
mod riscv;
mod windows;
mod x86;

use crate::facts::kvm::Kvm;
use crate::gather::Facts;
use crate::machine::{Arch, Os, Unread};
use crate::processors;
use crate::report::{Answer, Detail, Evidence, Verdict, evidence};
use crate::virtual_machine::Surroundings;

/// Reasons that several judgements give.
const HIDDEN: &str = "none is visible from inside this virtual machine; what the physical processor has \
    cannot be read from here";
const FIRMWARE_OUT_OF_SIGHT: &str =
    "the switch is in the physical machine's firmware, which cannot be read from here";
const NOTHING_TO_SWITCH_ON: &str = "there is nothing that it could switch on";

/// The verdicts, and why the last one came out as it did.
pub(crate) struct Judgement {
    /// What the vendor calls it.
    pub(crate) technology: Option<&'static str>,
    pub(crate) processor: Verdict,
    pub(crate) firmware: Verdict,
    pub(crate) in_use: Verdict,
    pub(crate) cause: Cause,
    /// In a virtual machine: whether SLAT is offered inside it.
    pub(crate) nested: Option<Verdict>,
    pub(crate) details: Vec<Detail>,
}

/// The one thing that decides what the first line says and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It is used, by this (KVM, Hyper-V, macOS).
    UsedBy(&'static str),
    /// KVM runs on hardware that has SLAT and does without: the module's parameter says so.
    ParameterOff { module: &'static str, parameter: &'static str },
    /// Nothing that would use it runs: the module to load, where there is one.
    NothingRuns { module: Option<&'static str> },
    /// The kernel's command line forbids KVM.
    DisabledByUser,
    /// The firmware switched virtualization off; KVM runs all the same when `software` names its module.
    FirmwareOff { software: Option<String> },
    /// The processor has none; KVM runs all the same when `software` names its module.
    ProcessorLacks { software: Option<String> },
    /// A virtual machine that shows none; KVM runs all the same when `software` names its module.
    HiddenInVm { software: Option<String> },
    /// Arm: what ran before the kernel kept the hypervisor's privilege to itself.
    NoEl2,
    /// Could not tell.
    Unclear,
}

pub(crate) fn judge(facts: &Facts<'_>, around: &Surroundings) -> Judgement {
    match (facts.system.os, facts.system.arch) {
        (Os::Linux, Arch::X86) => x86::judge(facts, around),
        (Os::Linux, Arch::Arm) => arm::judge(facts, around),
        (Os::Linux, Arch::Riscv) => riscv::judge(facts, around),
        (Os::Windows, _) => windows::judge(facts, around),
        (Os::Macos, _) => macos::judge(facts, around),
        _ => nothing_known(&format!(
            "this program does not know how to ask {} on this kind of processor",
            match facts.system.os {
                Os::Linux => "Linux",
                _ => "this operating system",
            }
        )),
    }
}

/// A judgement that knows nothing, for one reason.
fn nothing_known(reason: &str) -> Judgement {
    let unknown = || Verdict::new(Answer::Unknown, reason, Vec::new());
    Judgement {
        technology: None,
        processor: unknown(),
        firmware: unknown(),
        in_use: unknown(),
        cause: Cause::Unclear,
        nested: None,
        details: Vec::new(),
    }
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_string()
}

/// What the table of processors says of this one's name, when nothing better is left.
fn by_name(facts: &Facts<'_>, why: &str, mut found: Vec<Evidence>) -> Verdict {
    let Some(name) = facts.processor_name() else {
        return Verdict::new(Answer::Unknown, why, found);
    };
    let known = processors::look_up(&name);
    if let Some(family) = known.family {
        found.push(evidence(format!("its name, {name}"), family));
    }
    let reason = match known.slat {
        Answer::Yes => format!("{why}, but processors of this name have SLAT"),
        Answer::No => format!("{why}, and processors of this name have no SLAT"),
        Answer::Unknown => why.to_string(),
    };
    Verdict::new(known.slat, reason, found)
}

/// What `/dev/kvm` says of itself.
fn device(facts: &Facts<'_>) -> Evidence {
    let says = match &facts.kvm {
        Ok(Kvm { create_vm: Some(Ok(())), api: Some(api), .. }) => format!("works (API {api})"),
        Ok(Kvm { create_vm: Some(Err(why)), .. }) => {
            format!("answers, but makes no virtual machine: {why}")
        }
        Ok(_) => "answers, but not as KVM does".to_string(),
        Err(Unread::Absent) => "does not exist".to_string(),
        Err(why) => why.to_string(),
    };
    evidence("/dev/kvm", says)
}
