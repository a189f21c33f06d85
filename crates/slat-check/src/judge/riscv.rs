//! Linux on RISC-V: the G-stage of the hypervisor extension (H).
//!
//! KVM on RISC-V needs the extension and has no software fallback: where it runs, the G-stage is in use.
//! RISC-V privileged manual, "Hypervisor" Extension, "Two-Stage Address Translation".

use super::{Cause, FIRMWARE_OUT_OF_SIGHT, HIDDEN, Judgement, NOTHING_TO_SWITCH_ON, device};
use crate::facts::cpuinfo::isa_has_hypervisor;
use crate::gather::Facts;
use crate::report::{Answer, Detail, Evidence, Verdict, evidence};
use crate::virtual_machine::Surroundings;

pub(super) fn judge(facts: &Facts<'_>, around: &Surroundings) -> Judgement {
    let in_vm = around.virtual_machine.verdict.answer == Answer::Yes;
    let runs = facts.kvm_runs();
    let device = device(facts);
    let shown = processor(facts, runs, &device);
    let (in_use, cause) = match runs {
        Some(true) => (
            Verdict::new(
                Answer::Yes,
                "KVM runs, which on RISC-V always uses the G-stage",
                vec![device.clone()],
            ),
            Cause::UsedBy("KVM"),
        ),
        Some(false) => {
            let cause = match shown.answer {
                Answer::No if in_vm => Cause::HiddenInVm { software: None },
                Answer::No => Cause::ProcessorLacks { software: None },
                _ => Cause::NothingRuns { module: Some("kvm") },
            };
            (Verdict::new(Answer::No, "KVM does not run", vec![device.clone()]), cause)
        }
        None => (
            Verdict::new(
                Answer::Unknown,
                "neither /sys nor /dev/kvm tells whether KVM runs",
                vec![device.clone()],
            ),
            Cause::Unclear,
        ),
    };
    let nested = in_vm.then(|| {
        let reason = match shown.answer {
            Answer::Yes => "the hypervisor extension is offered to it",
            Answer::No => "no hypervisor extension is offered to it",
            Answer::Unknown => "what it is offered could not be read",
        };
        Verdict::new(shown.answer, reason, shown.evidence.clone())
    });
    let processor = match shown.answer {
        Answer::No if in_vm => Verdict::new(Answer::Unknown, HIDDEN, shown.evidence),
        _ => shown,
    };
    let firmware = match processor.answer {
        Answer::Yes => Verdict::new(
            Answer::Yes,
            "RISC-V has no switch for it: firmware that lists H leaves it on",
            processor.evidence.first().cloned().into_iter().collect(),
        ),
        Answer::No => Verdict::new(Answer::No, NOTHING_TO_SWITCH_ON, Vec::new()),
        Answer::Unknown if in_vm => {
            Verdict::new(Answer::Unknown, FIRMWARE_OUT_OF_SIGHT, Vec::new())
        }
        Answer::Unknown => Verdict::new(Answer::Unknown, processor.reason.clone(), Vec::new()),
    };
    Judgement {
        technology: Some("G-stage"),
        processor,
        firmware,
        in_use,
        cause,
        nested,
        details: details(facts),
    }
}

fn processor(facts: &Facts<'_>, runs: Option<bool>, device: &Evidence) -> Verdict {
    let mut found = Vec::new();
    if runs == Some(true) {
        found.push(device.clone());
    }
    let isa = facts.cpuinfo.isa.as_deref();
    if let Some(isa) = isa {
        let shown: String = isa.chars().take(60).collect();
        found.push(evidence("/proc/cpuinfo, isa", shown));
    }
    if let Some((_, line)) = &facts.log.riscv_extension {
        found.push(evidence("the kernel log", line));
    }
    let listed = isa.and_then(isa_has_hypervisor);
    let logged = facts.log.riscv_extension.as_ref().map(|(has, _)| *has);
    if runs == Some(true) || listed == Some(true) || logged == Some(true) {
        Verdict::new(Answer::Yes, "it has the hypervisor extension (H)", found)
    } else if listed == Some(false) || logged == Some(false) {
        Verdict::new(Answer::No, "its instruction set has no hypervisor extension (H)", found)
    } else if isa.is_some() {
        let reason = "the line that names its instruction set is not of the known form";
        Verdict::new(Answer::Unknown, reason, found)
    } else {
        let reason = "nothing that describes its instruction set could be read";
        Verdict::new(Answer::Unknown, reason, found)
    }
}

fn details(facts: &Facts<'_>) -> Vec<Detail> {
    let mut details = Vec::new();
    if let Some(format) = &facts.log.gstage_format {
        details.push(Detail {
            name: "G-stage format",
            value: format.clone(),
            source: "the kernel log".into(),
        });
    }
    if let Some(bits) = facts.log.vmid_bits {
        details.push(Detail {
            name: "virtual machine identifier (VMID) bits",
            value: bits.to_string(),
            source: "the kernel log".into(),
        });
    }
    details
}
