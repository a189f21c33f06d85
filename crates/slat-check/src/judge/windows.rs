//! Windows.
//!
//! Windows and its tools answer "no SLAT" while Hyper-V runs, because then Windows itself runs on top of
//! Hyper-V and the processor's feature is hidden from it. Hyper-V's own leaves tell better.

use super::{Cause, FIRMWARE_OUT_OF_SIGHT, HIDDEN, Judgement, by_name, nothing_known};
use crate::gather::Facts;
use crate::machine::Arch;
use crate::report::{Answer, Evidence, Verdict, evidence};
use crate::virtual_machine::Surroundings;

/// `PF_SECOND_LEVEL_ADDRESS_TRANSLATION` and `PF_VIRT_FIRMWARE_ENABLED` (winnt.h).
const SLAT: u32 = 20;
const FIRMWARE: u32 = 21;

const SLAT_SOURCE: &str = "IsProcessorFeaturePresent(20), SLAT";
const FIRMWARE_SOURCE: &str = "IsProcessorFeaturePresent(21), firmware";

pub(super) fn judge(facts: &Facts<'_>, around: &Surroundings) -> Judgement {
    let slat = facts.processor_feature(SLAT);
    let firmware = facts.processor_feature(FIRMWARE);
    let says = |yes| if yes { "yes" } else { "no" };
    let slat_said: Vec<Evidence> =
        slat.map(|yes| evidence(SLAT_SOURCE, says(yes))).into_iter().collect();
    let firmware_said: Vec<Evidence> =
        firmware.map(|yes| evidence(FIRMWARE_SOURCE, says(yes))).into_iter().collect();
    let technology = technology(facts);

    if let Some(hyper_v) = facts.cpuid.hyper_v().filter(|hyper_v| hyper_v.parent_partition) {
        let leaf = |says: &str| evidence("CPUID 0x40000006, EAX bit 3 (SLAT in use)", says);
        let mut found = vec![evidence("CPUID 0x40000003", "this is Hyper-V's parent partition")];
        let (answer, reason) = match hyper_v.slat_in_use {
            Some(true) => {
                found.insert(0, leaf("1"));
                (Answer::Yes, "Hyper-V runs below Windows and says that it uses SLAT")
            }
            Some(false) => {
                found.insert(0, leaf("0"));
                (Answer::No, "Hyper-V runs below Windows and says that it does without SLAT")
            }
            None => (Answer::Unknown, "Hyper-V runs below Windows and does not say how"),
        };
        found.extend(slat_said.clone());
        let in_use = Verdict::new(answer, reason, found.clone());
        let cause = match answer {
            Answer::Yes => Cause::UsedBy("Hyper-V"),
            Answer::No => Cause::NothingRuns { module: None },
            Answer::Unknown => Cause::Unclear,
        };
        let processor = match answer {
            Answer::Yes if slat == Some(false) => Verdict::new(
                Answer::Yes,
                "it has SLAT; tools that say no ask Windows, from which Hyper-V hides it",
                found,
            ),
            Answer::Yes => Verdict::new(Answer::Yes, "it has SLAT", found),
            _ => by_name(facts, "Hyper-V hides the processor's features from Windows", found),
        };
        let firmware = Verdict::new(
            Answer::Yes,
            "Hyper-V could not run otherwise",
            [vec![evidence("CPUID 0x40000000", "Microsoft Hv")], firmware_said].concat(),
        );
        let details = Vec::new();
        return Judgement { technology, processor, firmware, in_use, cause, nested: None, details };
    }

    let in_vm = around.virtual_machine.verdict.answer == Answer::Yes;
    if slat.is_none() && firmware.is_none() && facts.cpuid.is_empty() {
        return nothing_known("neither Windows nor the processor could be asked");
    }
    let processor = match slat {
        Some(true) => Verdict::new(Answer::Yes, "Windows sees SLAT", slat_said),
        Some(false) if in_vm => Verdict::new(Answer::Unknown, HIDDEN, slat_said),
        Some(false) if facts.cpuid.hypervisor_present() == Some(true) => Verdict::new(
            Answer::Unknown,
            "a hypervisor runs below Windows and may hide it",
            slat_said,
        ),
        Some(false) if firmware == Some(false) => {
            by_name(facts, "Windows sees none, but virtualization is switched off", slat_said)
        }
        Some(false) => Verdict::new(Answer::No, "Windows sees none", slat_said),
        None => by_name(facts, "Windows does not say", slat_said),
    };
    let firmware_verdict = match firmware {
        Some(true) => {
            Verdict::new(Answer::Yes, "virtualization is switched on", firmware_said.clone())
        }
        Some(false) if in_vm => {
            Verdict::new(Answer::Unknown, FIRMWARE_OUT_OF_SIGHT, firmware_said.clone())
        }
        Some(false) => {
            Verdict::new(Answer::No, "virtualization is switched off", firmware_said.clone())
        }
        None => Verdict::new(Answer::Unknown, "Windows does not say", Vec::new()),
    };
    let hypervisor = facts
        .cpuid
        .hypervisor_present()
        .map(|bit| evidence("CPUID 1, ECX bit 31 (hypervisor)", u8::from(bit).to_string()));
    let in_use = match facts.cpuid.hypervisor_present() {
        None if facts.system.arch == Arch::X86 => {
            Verdict::new(Answer::Unknown, "the processor could not be asked", Vec::new())
        }
        None => Verdict::new(
            Answer::Unknown,
            "on this kind of processor Windows does not tell programs whether Hyper-V runs",
            Vec::new(),
        ),
        Some(true) if !in_vm => Verdict::new(
            Answer::Unknown,
            "a hypervisor runs below Windows and does not tell",
            hypervisor.into_iter().collect(),
        ),
        Some(_) => {
            Verdict::new(Answer::No, "Hyper-V does not run here", hypervisor.into_iter().collect())
        }
    };
    let cause = match (in_use.answer, &processor.answer, &firmware_verdict.answer) {
        (Answer::Unknown, ..) => Cause::Unclear,
        _ if in_vm && slat != Some(true) => Cause::HiddenInVm { software: None },
        (_, Answer::No, _) => Cause::ProcessorLacks { software: None },
        (_, _, Answer::No) => Cause::FirmwareOff { software: None },
        _ => Cause::NothingRuns { module: None },
    };
    let nested = in_vm.then(|| match slat {
        Some(true) => {
            Verdict::new(Answer::Yes, "nested SLAT is offered to it", processor.evidence.clone())
        }
        Some(false) => Verdict::new(
            Answer::No,
            "nested virtualization is not offered to it",
            processor.evidence.clone(),
        ),
        None => Verdict::new(Answer::Unknown, "what it is offered could not be read", Vec::new()),
    });
    Judgement {
        technology,
        processor,
        firmware: firmware_verdict,
        in_use,
        cause,
        nested,
        details: Vec::new(),
    }
}

fn technology(facts: &Facts<'_>) -> Option<&'static str> {
    match facts.cpuid.vendor()?.as_str() {
        "GenuineIntel" => Some("EPT"),
        "AuthenticAMD" => Some("NPT"),
        _ => None,
    }
}
