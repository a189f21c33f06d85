//! macOS, which offers virtual machines through its Hypervisor framework.
//!
//! The framework needs EPT with unrestricted guest on Intel, and stage 2 on Apple silicon; `kern.hv_support`
//! says whether the kernel offers it.

use super::{Cause, HIDDEN, Judgement, NOTHING_TO_SWITCH_ON};
use crate::gather::Facts;
use crate::machine::Arch;
use crate::report::{Answer, Detail, Verdict, evidence};
use crate::virtual_machine::Surroundings;

pub(super) fn judge(facts: &Facts<'_>, around: &Surroundings) -> Judgement {
    let in_vm = around.virtual_machine.verdict.answer == Answer::Yes;
    let technology = match facts.system.arch {
        Arch::X86 => Some("EPT"),
        Arch::Arm => Some("Stage 2"),
        _ => None,
    };
    let support = facts.sysctl("kern.hv_support");
    let found: Vec<_> =
        support.iter().map(|says| evidence("sysctl kern.hv_support", says)).collect();
    let on = match support.as_deref() {
        Some("1") => Answer::Yes,
        Some("0") => Answer::No,
        _ => Answer::Unknown,
    };
    let in_use = Verdict::new(
        on,
        match on {
            Answer::Yes => "macOS offers its Hypervisor framework, which always uses SLAT",
            Answer::No => "macOS does not offer its Hypervisor framework",
            Answer::Unknown => "sysctl kern.hv_support could not be read",
        },
        found.clone(),
    );
    let vmx = facts.sysctl("machdep.cpu.features").map(|features| {
        features.split_ascii_whitespace().any(|feature| feature.eq_ignore_ascii_case("VMX"))
    });
    let processor = match (on, facts.system.arch) {
        (Answer::Yes, _) => Verdict::new(Answer::Yes, "it has SLAT", found.clone()),
        (_, _) if in_vm => Verdict::new(Answer::Unknown, HIDDEN, found.clone()),
        (_, Arch::Arm) => Verdict::new(
            Answer::Yes,
            "every Apple silicon processor that macOS runs on has stage 2",
            found.clone(),
        ),
        (Answer::No, _) => {
            let mut found = found.clone();
            if let Some(vmx) = vmx {
                found.push(evidence(
                    "sysctl machdep.cpu.features",
                    if vmx { "lists VMX" } else { "does not list VMX" },
                ));
            }
            Verdict::new(Answer::No, "it lacks EPT or unrestricted guest", found)
        }
        _ => Verdict::new(Answer::Unknown, "neither macOS nor the processor said", found.clone()),
    };
    // Macs have no firmware switch.
    let firmware = match on {
        Answer::Yes => Verdict::new(Answer::Yes, "Macs leave it on", found.clone()),
        Answer::No if processor.answer == Answer::No => {
            Verdict::new(Answer::No, NOTHING_TO_SWITCH_ON, Vec::new())
        }
        _ => Verdict::new(Answer::Unknown, "macOS does not tell", Vec::new()),
    };
    let cause = match on {
        Answer::Yes => Cause::UsedBy("macOS"),
        Answer::No if in_vm => Cause::HiddenInVm { software: None },
        Answer::No if processor.answer == Answer::No => Cause::ProcessorLacks { software: None },
        Answer::No => Cause::NothingRuns { module: None },
        Answer::Unknown => Cause::Unclear,
    };
    let nested = in_vm.then(|| {
        let reason = match on {
            Answer::Yes => "nested SLAT is offered to it",
            Answer::No => "nested virtualization is not offered to it",
            Answer::Unknown => "what it is offered could not be read",
        };
        Verdict::new(on, reason, found)
    });
    let details = vmx
        .map(|vmx| Detail {
            name: "VT-x",
            value: super::yes_no(vmx),
            source: "sysctl machdep.cpu.features".into(),
        })
        .into_iter()
        .collect();
    Judgement { technology, processor, firmware, in_use, cause, nested, details }
}
