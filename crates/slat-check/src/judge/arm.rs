//! Linux on Arm: stage 2.
//!
//! KVM on Arm has no software fallback: where it runs, stage 2 is in use. It runs where the kernel was
//! started at the hypervisor's privilege, EL2 (Arm ARM, D1.1 "Exception levels"), so that the firmware's
//! part is to hand EL2 over.

use super::{Cause, Judgement, NOTHING_TO_SWITCH_ON, device};
use crate::facts::kernel_log::ArmMode;
use crate::facts::kvm::Kvm;
use crate::gather::Facts;
use crate::processors;
use crate::report::{Answer, Detail, Evidence, Verdict, evidence};
use crate::virtual_machine::Surroundings;

pub(super) fn judge(facts: &Facts<'_>, around: &Surroundings) -> Judgement {
    let in_vm = around.virtual_machine.verdict.answer == Answer::Yes;
    let (in_use, cause) = in_use(facts, in_vm, around);
    let processor = processor(facts, &in_use);
    let firmware = firmware(facts, in_vm, &in_use, &processor);
    let cause = match cause {
        Cause::NothingRuns { .. } if processor.answer == Answer::No => {
            Cause::ProcessorLacks { software: None }
        }
        other => other,
    };
    Judgement {
        technology: Some("Stage 2"),
        nested: in_vm.then(|| nested(facts, &in_use)),
        details: details(facts),
        processor,
        firmware,
        in_use,
        cause,
    }
}

fn in_use(facts: &Facts<'_>, in_vm: bool, around: &Surroundings) -> (Verdict, Cause) {
    let mut found = vec![device(facts)];
    if let Some((_, line)) = &facts.log.arm_mode {
        found.push(evidence("the kernel log", line));
    }
    // The log of another boot or a bare line of text is weaker than the device; it decides only where
    // the device cannot be asked.
    match facts.kvm_runs() {
        Some(true) => {
            let mode = match facts.log.arm_mode.as_ref().map(|(mode, _)| mode) {
                Some(ArmMode::Vhe) => ", with the whole kernel at EL2 (VHE)",
                Some(ArmMode::NVhe) => ", with the kernel at EL1 and a part of it at EL2 (nVHE)",
                Some(ArmMode::Protected) => {
                    ", which keeps guests' memory from the kernel too (pKVM)"
                }
                None => "",
            };
            let reason = format!("KVM runs, which on Arm always uses stage 2{mode}");
            (Verdict::new(Answer::Yes, reason, found), Cause::UsedBy("KVM"))
        }
        None if facts.log.arm_mode.is_some() => {
            let reason = "KVM started, which on Arm always uses stage 2";
            (Verdict::new(Answer::Yes, reason, found), Cause::UsedBy("KVM"))
        }
        None => {
            let reason = "neither /sys nor /dev/kvm tells whether KVM runs";
            (Verdict::new(Answer::Unknown, reason, found), Cause::Unclear)
        }
        Some(false) if around.xen_control_domain => {
            found.push(evidence("/proc/xen/capabilities", "control_d"));
            let reason = "Xen runs below this system, and on Arm it always uses stage 2";
            (Verdict::new(Answer::Yes, reason, found), Cause::UsedBy("Xen"))
        }
        Some(false) => {
            let cause = if let Some(line) = &facts.log.disabled_by_user {
                found.push(evidence("the kernel log", line));
                Cause::DisabledByUser
            } else if let Some(line) = &facts.log.no_el2 {
                found.push(evidence("the kernel log", line));
                if in_vm { Cause::HiddenInVm { software: None } } else { Cause::NoEl2 }
            } else if in_vm && facts.log.started_at_el2.is_none() {
                Cause::HiddenInVm { software: None }
            } else {
                Cause::NothingRuns { module: None }
            };
            (Verdict::new(Answer::No, "KVM does not run", found), cause)
        }
    }
}

fn processor(facts: &Facts<'_>, in_use: &Verdict) -> Verdict {
    if in_use.answer == Answer::Yes {
        return Verdict::new(
            Answer::Yes,
            "it has stage 2",
            in_use.evidence.first().cloned().into_iter().collect(),
        );
    }
    if let Some(line) = &facts.log.started_at_el2 {
        return Verdict::new(
            Answer::Yes,
            "it has EL2, and stage 2 with it",
            vec![evidence("the kernel log", line)],
        );
    }
    let mut found: Vec<Evidence> = facts
        .cpuinfo
        .arm_cores
        .iter()
        .map(|(implementer, part)| {
            let name = crate::arm_cores::name(*implementer, *part).unwrap_or("a core unknown here");
            evidence(
                "/proc/cpuinfo",
                format!("implementer {implementer:#x}, part {part:#x}: {name}"),
            )
        })
        .collect();
    let known: Vec<_> = facts
        .cpuinfo
        .arm_cores
        .iter()
        .map(|&(implementer, part)| {
            crate::arm_cores::name(implementer, part)
                .map_or(Answer::Unknown, |name| processors::look_up(name).slat)
        })
        .collect();
    if !known.is_empty() && known.iter().all(|&slat| slat == Answer::Yes) {
        return Verdict::new(Answer::Yes, "processors of this kind have stage 2", found);
    }
    if !known.is_empty() && known.iter().all(|&slat| slat == Answer::No) {
        return Verdict::new(Answer::No, "processors of this kind have no stage 2", found);
    }
    if found.is_empty()
        && let Some(name) = &facts.cpuinfo.model_name
    {
        found.push(evidence("/proc/cpuinfo, model name", name));
    }
    Verdict::new(
        Answer::Unknown,
        "Arm processors do not tell programs, and this kind is not in the table of this program",
        found,
    )
}

fn firmware(facts: &Facts<'_>, in_vm: bool, in_use: &Verdict, processor: &Verdict) -> Verdict {
    if in_use.answer == Answer::Yes {
        let found = in_use.evidence.first().cloned().into_iter().collect();
        return Verdict::new(Answer::Yes, "the kernel was given EL2", found);
    }
    if let Some(line) = &facts.log.started_at_el2 {
        let found = vec![evidence("the kernel log", line)];
        return Verdict::new(Answer::Yes, "the kernel was given EL2", found);
    }
    if let Some(line) = &facts.log.no_el2 {
        let found = vec![evidence("the kernel log", line)];
        let reason = if in_vm {
            "the hypervisor below does not hand EL2 to this virtual machine"
        } else {
            "the kernel was started without EL2: firmware, or a hypervisor in it, kept that for itself"
        };
        return Verdict::new(Answer::No, reason, found);
    }
    if let Some(method) = facts.file("/proc/device-tree/psci/method") {
        let found = vec![evidence("/proc/device-tree/psci/method", &method)];
        // PSCI is called with SMC from EL2 (and from EL1 on machines without EL2 or hypervisor), with
        // HVC where a hypervisor answers.
        return Verdict::new(
            Answer::Unknown,
            match method.as_str() {
                "hvc" => {
                    "the firmware interface goes through a hypervisor, which hints that EL2 is taken"
                }
                "smc" => {
                    "the firmware interface hints that EL2 is free, which the kernel log would confirm"
                }
                _ => {
                    "whether the kernel was given EL2 stands in the kernel log, which says nothing here"
                }
            },
            found,
        );
    }
    if processor.answer == Answer::No {
        return Verdict::new(Answer::No, NOTHING_TO_SWITCH_ON, Vec::new());
    }
    Verdict::new(
        Answer::Unknown,
        "whether the kernel was given EL2 stands in the kernel log, which says nothing here",
        Vec::new(),
    )
}

fn nested(facts: &Facts<'_>, in_use: &Verdict) -> Verdict {
    if in_use.answer == Answer::Yes || facts.log.started_at_el2.is_some() {
        let found = in_use.evidence.first().cloned().into_iter().collect();
        return Verdict::new(Answer::Yes, "a virtual EL2 is offered to it", found);
    }
    match &facts.log.no_el2 {
        Some(line) => Verdict::new(
            Answer::No,
            "no virtual EL2 is offered to it",
            vec![evidence("the kernel log", line)],
        ),
        None => Verdict::new(Answer::Unknown, "the kernel log says nothing of EL2", Vec::new()),
    }
}

fn details(facts: &Facts<'_>) -> Vec<Detail> {
    let mut details = Vec::new();
    let mut add = |name, value: String, source: &str| {
        details.push(Detail { name, value, source: source.to_string() });
    };
    if let Some((mode, _)) = &facts.log.arm_mode {
        let mode = match mode {
            ArmMode::Vhe => "VHE",
            ArmMode::NVhe => "nVHE",
            ArmMode::Protected => "protected (pKVM)",
        };
        add("KVM's mode", mode.into(), "the kernel log");
    }
    let cap = facts.kvm.as_ref().ok().and_then(Kvm::ipa_bits);
    if let Some(bits) = cap {
        add("guest-physical address bits", bits.to_string(), "/dev/kvm, KVM_CAP_ARM_VM_IPA_SIZE");
    } else if let Some(bits) = facts.log.ipa_bits {
        add("guest-physical address bits", bits.to_string(), "the kernel log");
    }
    if let Some(bits) = facts.log.vmid_bits {
        add("virtual machine identifier (VMID) bits", bits.to_string(), "the kernel log");
    }
    details
}
