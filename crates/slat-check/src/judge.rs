//! From what was read to the three verdicts on the processor, its firmware and its kernel.

mod arm;
mod macos;
mod riscv;
mod windows;
mod x86;

use crate::gather::Facts;
use crate::machine::{Arch, Os};
use crate::report::{Answer, Detail, Verdict};
use crate::virtual_machine::Surroundings;

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
