//! The first line, and what to do.

use crate::gather::Facts;
use crate::judge::{Cause, Judgement};
use crate::machine::{Arch, Os, Unread};
use crate::report::{Answer, VirtualMachine};

/// The answer in one plain sentence, and a second where the first alone would mislead.
pub(crate) fn headline(
    facts: &Facts<'_>,
    judgement: &Judgement,
    vm: &VirtualMachine,
) -> (String, Option<String>) {
    let in_vm = vm.verdict.answer == Answer::Yes;
    let called = judgement.technology.map(|name| format!(" ({name})")).unwrap_or_default();
    let device_works = facts.kvm.as_ref().is_ok_and(|kvm| kvm.works());
    let software_remark = |software: &Option<String>| {
        let module = software.as_deref()?;
        let works = if device_works { "/dev/kvm works, but" } else { "KVM runs, but" };
        let module = if module == "kvm" { String::new() } else { format!(" ({module})") };
        Some(format!("{works} this kernel's KVM{module} shadows page tables in software."))
    };
    let below = (in_vm && vm.slat_below == Some(true)).then(|| {
        "The hypervisor below uses SLAT for this virtual machine; it is just not passed on."
            .to_string()
    });
    match &judgement.cause {
        Cause::UsedBy(user) if in_vm => (
            format!("Yes: this virtual machine is offered SLAT{called}, and {user} uses it."),
            None,
        ),
        Cause::UsedBy(user) => {
            let remark = (*user == "Hyper-V").then(|| {
                "Tools that ask Windows may say no here, because Hyper-V hides SLAT from the Windows \
                 above it."
                    .to_string()
            });
            (format!("Yes: this machine has SLAT{called}, and {user} uses it."), remark)
        }
        Cause::ParameterOff { parameter, .. } => (
            format!("No: this machine has SLAT{called}, but KVM runs without it."),
            Some(format!("KVM's parameter {parameter} is N.")),
        ),
        Cause::NothingRuns { .. }
            if judgement.processor.answer == Answer::Yes
                && judgement.firmware.answer == Answer::Yes =>
        {
            let what = match facts.system.os {
                Os::Linux => "KVM does not run",
                Os::Windows => "Hyper-V does not run",
                _ => "no hypervisor runs",
            };
            (format!("Not yet: SLAT{called} is here and switched on, but {what}."), None)
        }
        Cause::NothingRuns { .. } => {
            let what = match judgement.processor.answer {
                Answer::Yes => "the processor has SLAT, but nothing here uses it",
                _ => "nothing here uses SLAT, and whether the processor has it is unclear",
            };
            (format!("No: {what}."), None)
        }
        Cause::DisabledByUser => {
            ("No: the kernel's command line forbids KVM, and SLAT with it.".to_string(), None)
        }
        Cause::FirmwareOff { software } => {
            let headline = match judgement.processor.answer {
                Answer::Yes => "the processor has SLAT, but its virtualization is switched off.",
                _ => "the processor's virtualization is switched off, and SLAT with it.",
            };
            let switch = "The switch is in the machine's firmware setup (BIOS, UEFI).".to_string();
            (format!("No: {headline}"), software_remark(software).or(Some(switch)))
        }
        Cause::ProcessorLacks { software } if in_vm => (
            "No: this virtual machine is offered virtualization, but without SLAT.".to_string(),
            software_remark(software).or(below),
        ),
        Cause::ProcessorLacks { software } => {
            ("No: this processor has no SLAT.".to_string(), software_remark(software))
        }
        Cause::HiddenInVm { software } => (
            "No: this is a virtual machine, and no hardware SLAT is visible inside it.".to_string(),
            software_remark(software).or(below),
        ),
        Cause::NoEl2 => (
            "No: the processor's SLAT is out of reach, for something below the kernel keeps it."
                .to_string(),
            None,
        ),
        Cause::Unclear => {
            (format!("Could not tell whether SLAT is in use: {}.", judgement.in_use.reason), None)
        }
    }
}

/// What to do next, most useful first.
pub(crate) fn advice(facts: &Facts<'_>, judgement: &Judgement, vm: &VirtualMachine) -> Vec<String> {
    let mut advice: Vec<String> = Vec::new();
    let mut add = |text: &str| advice.push(text.to_string());
    let linux = facts.system.os == Os::Linux;
    match &judgement.cause {
        Cause::UsedBy(_) => {}
        Cause::ParameterOff { module, parameter } => {
            add(&format!(
                "Look for \"options {module} {parameter}=0\" in /etc/modprobe.d and for \
                 \"{module}.{parameter}=0\" on the kernel's command line, and remove it."
            ));
            add(&format!(
                "Then reboot, or with no virtual machine running: sudo modprobe -r {module} && \
                 sudo modprobe {module} {parameter}=1"
            ));
        }
        Cause::NothingRuns { module: Some(module) } => {
            add(&format!("Load KVM: sudo modprobe {module}"));
            add("If that fails, the last lines of \"sudo dmesg\" say why.");
        }
        Cause::NothingRuns { module: None } if facts.system.os == Os::Windows => {
            add("To use it, turn on Hyper-V (or \"Virtual Machine Platform\" for WSL 2) under \
                 \"Turn Windows features on or off\".");
        }
        Cause::NothingRuns { module: None } if linux => {
            add(
                "Use a kernel with KVM (CONFIG_KVM); \"sudo dmesg\" says why one that has it did not start it.",
            );
        }
        Cause::NothingRuns { module: None } => {}
        Cause::DisabledByUser => {
            add("Remove kvm-arm.mode=none from the kernel's command line and reboot.");
        }
        Cause::FirmwareOff { .. } => {
            add(
                "Enter the firmware setup (F2, F10, F12, Del or Esc at power-on) and switch on \"Intel \
                 Virtualization Technology\", \"VT-x\", \"VMX\", \"SVM Mode\", \"AMD-V\" or \
                 \"Virtualization\"; it is often under Advanced, CPU or Security.",
            );
            add("Save, switch the machine off and on again, and repeat this check.");
            if linux {
                add(
                    "If the switch is on already: a kernel built without KVM locks virtualization off by \
                     itself.",
                );
            }
        }
        Cause::ProcessorLacks { .. } if vm.verdict.answer == Answer::Yes => {
            add(&nested_advice(vm));
        }
        Cause::ProcessorLacks { .. } => {
            add(
                "SLAT cannot be added: it is a part of the processor. Hypervisors that do without it are \
                 in the list above; QEMU without KVM emulates everything, slowly.",
            );
        }
        Cause::HiddenInVm { software } => {
            add(&nested_advice(vm));
            if software.is_some() {
                add(
                    "Virtual machines run here without it; programs that often change which memory they \
                     map are slowed down most.",
                );
            }
        }
        Cause::NoEl2 => {
            add(
                "Look for firmware or a boot option that starts the kernel at EL2; phones and some boards \
                 have none, because their own hypervisor stays there.",
            );
        }
        Cause::Unclear => {}
    }
    if linux {
        if let Err(Unread::Denied) = facts.kvm {
            add(
                "/dev/kvm is closed to you: to use it, join its group (\"ls -l /dev/kvm\" names it; as a rule: \
                 sudo usermod -aG kvm $USER) and log in again.",
            );
        }
        if judgement.in_use.answer != Answer::Yes && facts.denied() {
            add(match facts.system.arch {
                Arch::X86 => {
                    "As root this check reads more: the kernel log, and after \"modprobe msr\" the \
                     processor's own registers."
                }
                _ => "As root this check reads more: the kernel log.",
            });
        }
    }
    advice
}

/// How to have nested virtualization offered to this virtual machine.
fn nested_advice(vm: &VirtualMachine) -> String {
    let hypervisor = vm.hypervisor.as_deref().unwrap_or_default();
    let how = if hypervisor.contains("KVM") && !hypervisor.contains("cloud") {
        "On its host: load kvm_intel or kvm_amd with nested=1, and give the machine the host's processor \
         (QEMU: -cpu host; libvirt: host-passthrough)."
    } else if hypervisor == "Hyper-V" {
        "On its host: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true, with the \
         machine switched off."
    } else if hypervisor == "VMware" {
        "On its host: switch on \"Virtualize Intel VT-x/EPT or AMD-V/RVI\" in the machine's processor \
         settings."
    } else if hypervisor == "VirtualBox" {
        "On its host: VBoxManage modifyvm NAME --nested-hw-virt on, with the machine switched off."
    } else if hypervisor == "Xen" {
        "On its host: nestedhvm=1 in the machine's configuration (experimental in Xen)."
    } else if hypervisor == "Parallels" {
        "On its host: switch on \"Enable nested virtualization\" in the machine's CPU settings."
    } else {
        "Ask whoever runs the host to offer nested virtualization to this machine."
    };
    format!(
        "{how} In a cloud: choose a machine type with nested virtualization, or a bare-metal one."
    )
}
