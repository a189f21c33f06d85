//! Linux on x86: EPT (Intel) and NPT (AMD).
//!
//! Sources in the order in which they are trusted: the parameters of the running KVM; the flags that the
//! kernel prints; CPUID; model-specific registers; the kernel log; the processor's name.

mod details;
mod firmware;
mod processor;

use super::{Cause, Judgement, device};
use crate::facts::kvm::Kvm;
use crate::gather::Facts;
use crate::report::{Answer, Evidence, Verdict, evidence};
use crate::virtual_machine::Surroundings;

/// The two ways in which an x86 processor runs virtual machines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Intel,
    Amd,
}

impl Kind {
    /// The flag for running virtual machines at all.
    fn base_flag(self) -> &'static str {
        match self {
            Kind::Intel => "vmx",
            Kind::Amd => "svm",
        }
    }

    fn slat_flag(self) -> &'static str {
        match self {
            Kind::Intel => "ept",
            Kind::Amd => "npt",
        }
    }

    fn technology(self) -> &'static str {
        match self {
            Kind::Intel => "EPT",
            Kind::Amd => "NPT",
        }
    }

    fn module(self) -> &'static str {
        match self {
            Kind::Intel => "kvm_intel",
            Kind::Amd => "kvm_amd",
        }
    }

    fn base_name(self) -> &'static str {
        match self {
            Kind::Intel => "VT-x",
            Kind::Amd => "AMD-V",
        }
    }
}

/// Which of KVM's modules runs, if any.
enum Running {
    Nothing,
    Hardware(Kind),
    /// A module of another name, which may shadow in software.
    Other(String),
    Unclear(&'static str),
}

struct X86<'f> {
    facts: &'f Facts<'f>,
    in_vm: bool,
    /// A hypervisor below decides what this system sees, as in a virtual machine; so it is in Xen's
    /// control domain and Hyper-V's parent partition too.
    masked: bool,
    kind: Option<Kind>,
}

pub(super) fn judge(facts: &Facts<'_>, around: &Surroundings) -> Judgement {
    let in_vm = around.virtual_machine.verdict.answer == Answer::Yes;
    let x86 =
        X86 { facts, in_vm, masked: in_vm || around.manages_the_hypervisor, kind: kind(facts) };
    let running = x86.running();
    let (in_use, cause) = x86.in_use(&running, around);
    let processor = x86.processor(&in_use);
    let firmware = x86.firmware(&in_use, &processor);
    let cause = x86.refine(cause, &in_use, &processor, &firmware);
    let in_use = x86.refine_reason(in_use, &cause);
    let nested = in_vm.then(|| x86.nested(&processor));
    Judgement {
        technology: x86.kind.map(Kind::technology),
        details: x86.details(),
        processor,
        firmware,
        in_use,
        cause,
        nested,
    }
}

/// Intel's way or AMD's: by what the processor shows, else by its vendor. Zhaoxin and VIA build Intel's,
/// Hygon builds AMD's.
fn kind(facts: &Facts<'_>) -> Option<Kind> {
    if facts.cpuinfo.flag("vmx") == Some(true) {
        return Some(Kind::Intel);
    }
    if facts.cpuinfo.flag("svm") == Some(true) {
        return Some(Kind::Amd);
    }
    let vendor = facts.cpuinfo.vendor.clone().or_else(|| facts.cpuid.vendor())?;
    match vendor.trim() {
        "GenuineIntel" | "CentaurHauls" | "Shanghai" => Some(Kind::Intel),
        "AuthenticAMD" | "HygonGenuine" => Some(Kind::Amd),
        _ => None,
    }
}

impl X86<'_> {
    /// Whether the kernel shows vmx or svm; `None` when its flags could not be read.
    fn base_shown(&self) -> Option<bool> {
        let vmx = self.facts.cpuinfo.flag("vmx")?;
        let svm = self.facts.cpuinfo.flag("svm")?;
        Some(vmx || svm)
    }

    /// Whether CPUID reports VMX or SVM, which it does even where the firmware locked it.
    fn base_in_cpuid(&self) -> Option<bool> {
        match self.kind {
            Some(Kind::Intel) => self.facts.cpuid.vmx(),
            Some(Kind::Amd) => self.facts.cpuid.svm(),
            None => None,
        }
    }

    fn flags_evidence(&self) -> Option<Evidence> {
        self.facts.cpuinfo.flags.as_ref()?;
        let shown: Vec<&str> = ["vmx", "ept", "svm", "npt", "hypervisor"]
            .into_iter()
            .filter(|flag| self.facts.cpuinfo.flag(flag) == Some(true))
            .collect();
        let hidden: Vec<&str> = match self.kind {
            Some(kind) => vec![kind.base_flag(), kind.slat_flag()],
            None => vec!["vmx", "svm"],
        }
        .into_iter()
        .filter(|flag| self.facts.cpuinfo.flag(flag) == Some(false))
        .collect();
        let mut says = String::new();
        if !shown.is_empty() {
            says.push_str(&format!("has {}", shown.join(", ")));
        }
        if !hidden.is_empty() {
            let and = if says.is_empty() { "" } else { "; " };
            says.push_str(&format!("{and}has no {}", hidden.join(", no ")));
        }
        Some(evidence("/proc/cpuinfo, flags", says))
    }

    fn cpuid_evidence(&self) -> Option<Evidence> {
        let bit = u8::from(self.base_in_cpuid()?);
        Some(match self.kind? {
            Kind::Intel => evidence("CPUID 1, ECX bit 5 (VMX)", bit.to_string()),
            Kind::Amd => evidence("CPUID 0x80000001, ECX bit 2 (SVM)", bit.to_string()),
        })
    }

    /// Which module of KVM runs. A module that is built into the kernel has its directory and its
    /// parameters, at their defaults, even where it refused this processor: what counts is the one
    /// whose hardware is there while KVM's device exists.
    fn running(&self) -> Running {
        match self.facts.kvm_runs() {
            Some(false) => return Running::Nothing,
            Some(true) => {}
            None => return Running::Unclear("neither /sys nor /dev/kvm tells whether KVM runs"),
        }
        let Some(modules) = &self.facts.modules else {
            return Running::Unclear("/sys/module, which tells the kind of KVM, cannot be read");
        };
        let mut candidates: Vec<&str> = modules
            .iter()
            .map(String::as_str)
            .filter(|name| match *name {
                "kvm_intel" => {
                    self.facts.cpuinfo.flag("vmx") != Some(false) && self.kind != Some(Kind::Amd)
                }
                "kvm_amd" => {
                    self.facts.cpuinfo.flag("svm") != Some(false) && self.kind != Some(Kind::Intel)
                }
                other => other.starts_with("kvm_"),
            })
            .collect();
        if candidates.len() > 1 {
            // Loaded modules have this file, built-in ones do not.
            let live = |name: &&str| {
                self.facts.file(&format!("/sys/module/{name}/initstate")).as_deref() == Some("live")
            };
            let loaded: Vec<&str> = candidates.iter().copied().filter(live).collect();
            if loaded.len() == 1 {
                candidates = loaded;
            }
        }
        match candidates[..] {
            ["kvm_intel"] => Running::Hardware(Kind::Intel),
            ["kvm_amd"] => Running::Hardware(Kind::Amd),
            [other] => Running::Other(other.to_string()),
            [] => Running::Unclear("KVM runs, but no module in /sys/module tells which kind"),
            _ => Running::Unclear("more than one kind of KVM is in /sys/module"),
        }
    }

    /// Signs that KVM uses SLAT that hold whatever its module is called. They count only while KVM runs:
    /// a kernel with KVM built in shows tdp_mmu at its default even where KVM did not start.
    fn indirect(&self) -> Vec<Evidence> {
        let mut signs = Vec::new();
        if self.facts.kvm_runs() != Some(true) || self.base_shown() == Some(false) {
            return signs;
        }
        if self.facts.parameter("kvm", "tdp_mmu") == Some(true) {
            signs.push(evidence("/sys/module/kvm/parameters/tdp_mmu", "Y"));
        }
        if self.facts.kvm.as_ref().is_ok_and(Kvm::pre_fault) {
            signs.push(evidence(
                "/dev/kvm, KVM_CAP_PRE_FAULT_MEMORY",
                "yes, offered with SLAT only",
            ));
        }
        signs
    }

    fn in_use(&self, running: &Running, around: &Surroundings) -> (Verdict, Cause) {
        match running {
            Running::Hardware(kind) => self.in_use_by_hardware_kvm(*kind),
            Running::Other(module) => self.in_use_by_other_kvm(module),
            Running::Nothing => self.nothing_runs(around),
            Running::Unclear(why) => {
                let signs = self.indirect();
                if !signs.is_empty() {
                    let reason = "KVM runs and shows what it shows with SLAT only";
                    (Verdict::new(Answer::Yes, reason, signs), Cause::UsedBy("KVM"))
                } else if self.facts.kvm_runs() == Some(true) && self.base_shown() == Some(false) {
                    self.shadows_in_software("this kernel's KVM", None)
                } else if around.xen_control_domain {
                    self.nothing_runs(around)
                } else {
                    (Verdict::new(Answer::Unknown, *why, self.device_evidence()), Cause::Unclear)
                }
            }
        }
    }

    fn in_use_by_hardware_kvm(&self, kind: Kind) -> (Verdict, Cause) {
        let (module, parameter, technology) = (kind.module(), kind.slat_flag(), kind.technology());
        let source = format!("/sys/module/{module}/parameters/{parameter}");
        match self.facts.parameter(module, parameter) {
            Some(true) => {
                let mut found = vec![evidence(source, "Y")];
                found.extend(self.indirect());
                found.extend(self.device_evidence());
                let reason = format!("KVM ({module}) runs and uses {technology}");
                (Verdict::new(Answer::Yes, reason, found), Cause::UsedBy("KVM"))
            }
            Some(false) => {
                let mut found = vec![evidence(source, "N")];
                found.extend(self.device_evidence());
                let reason = format!("KVM ({module}) runs without {technology}");
                (Verdict::new(Answer::No, reason, found), Cause::ParameterOff { module, parameter })
            }
            None => {
                let mut signs = self.indirect();
                if kind == Kind::Amd
                    && let Some((true, line)) = &self.facts.log.nested_paging
                {
                    signs.push(evidence("the kernel log", line));
                }
                if signs.is_empty() {
                    let reason = format!(
                        "KVM ({module}) runs, but whether it uses {technology} stands in {source}, \
                         which could not be read"
                    );
                    (Verdict::new(Answer::Unknown, reason, self.device_evidence()), Cause::Unclear)
                } else {
                    let reason =
                        format!("KVM ({module}) runs and shows what it shows with SLAT only");
                    (Verdict::new(Answer::Yes, reason, signs), Cause::UsedBy("KVM"))
                }
            }
        }
    }

    fn in_use_by_other_kvm(&self, module: &str) -> (Verdict, Cause) {
        let signs = self.indirect();
        if !signs.is_empty() {
            let reason = format!("KVM ({module}) runs and shows what it shows with SLAT only");
            return (Verdict::new(Answer::Yes, reason, signs), Cause::UsedBy("KVM"));
        }
        if self.base_shown() == Some(false) || module == "kvm_pvm" {
            return self
                .shadows_in_software(&format!("this kernel's KVM ({module})"), Some(module));
        }
        let reason = format!(
            "KVM runs with a module that this program does not know ({module}), on a processor that \
             could use SLAT"
        );
        (Verdict::new(Answer::Unknown, reason, self.device_evidence()), Cause::Unclear)
    }

    fn shadows_in_software(&self, what: &str, module: Option<&str>) -> (Verdict, Cause) {
        let mut found = Vec::new();
        if let Some(module) = module {
            found.push(evidence("/sys/module", format!("KVM's module is {module}")));
        }
        if self.facts.parameter("kvm", "tdp_mmu") == Some(false) {
            found.push(evidence("/sys/module/kvm/parameters/tdp_mmu", "N"));
        }
        found.extend(self.device_evidence().into_iter().map(|mut device| {
            device.says.push_str("; that alone proves no SLAT");
            device
        }));
        let reason = format!("{what} shadows page tables in software");
        let software = Some(module.unwrap_or("kvm").to_string());
        (Verdict::new(Answer::No, reason, found), Cause::ProcessorLacks { software })
    }

    /// What the device says; it is never proof of SLAT.
    fn device_evidence(&self) -> Vec<Evidence> {
        vec![device(self.facts)]
    }

    fn nothing_runs(&self, around: &Surroundings) -> (Verdict, Cause) {
        if around.xen_control_domain {
            let reason = "Xen runs below this system, and its control domain cannot see whether Xen uses \
                          SLAT";
            let found = vec![evidence("/proc/xen/capabilities", "control_d")];
            return (Verdict::new(Answer::Unknown, reason, found), Cause::Unclear);
        }
        if around.manages_the_hypervisor {
            const LEAF: &str = "CPUID 0x40000006, EAX bit 3 (SLAT in use)";
            if around.virtual_machine.slat_below == Some(true) {
                let reason = "Hyper-V runs below this system and says that it uses SLAT";
                let found = vec![evidence(LEAF, "1")];
                return (Verdict::new(Answer::Yes, reason, found), Cause::UsedBy("Hyper-V"));
            }
            let reason = "Hyper-V runs below this system and does not say that it uses SLAT";
            return (Verdict::new(Answer::Unknown, reason, Vec::new()), Cause::Unclear);
        }
        let loaded =
            |start: &str| self.facts.modules.iter().flatten().any(|name| name.starts_with(start));
        for (start, product) in [("vboxdrv", "VirtualBox"), ("vmmon", "VMware")] {
            if loaded(start) && self.base_shown() == Some(true) {
                let reason = format!(
                    "{product}'s driver is loaded and decides for each virtual machine; it does not tell"
                );
                let found = vec![evidence("/sys/module", format!("{start} is loaded"))];
                return (Verdict::new(Answer::Unknown, reason, found), Cause::Unclear);
            }
        }
        let module = self.kind.map(Kind::module);
        let built_in = module
            .is_some_and(|module| self.facts.modules.iter().flatten().any(|name| name == module));
        let mut found = self.device_evidence();
        if let Some(module) = module {
            found.push(evidence(
                "/sys/module",
                if built_in {
                    format!("{module} is part of the kernel, but KVM did not start")
                } else {
                    format!("{module} is not loaded")
                },
            ));
        }
        (Verdict::new(Answer::No, "KVM does not run", found), Cause::NothingRuns { module })
    }

    /// The cause, once the other verdicts are known.
    fn refine(
        &self,
        cause: Cause,
        in_use: &Verdict,
        processor: &Verdict,
        firmware: &Verdict,
    ) -> Cause {
        if in_use.answer != Answer::No {
            return cause;
        }
        let software = match &cause {
            Cause::ProcessorLacks { software } => software.clone(),
            _ => None,
        };
        if self.in_vm && self.base_shown() == Some(false) {
            return Cause::HiddenInVm { software };
        }
        if firmware.answer == Answer::No && processor.answer != Answer::No {
            return Cause::FirmwareOff { software };
        }
        if processor.answer == Answer::No {
            let software = software.or_else(|| match cause {
                Cause::ParameterOff { module, .. } => Some(module.to_string()),
                _ => None,
            });
            return Cause::ProcessorLacks { software };
        }
        cause
    }

    /// What "KVM does not run" and "runs without" come from.
    fn refine_reason(&self, mut in_use: Verdict, cause: &Cause) -> Verdict {
        match cause {
            Cause::ProcessorLacks { software: None } => {
                in_use.reason = "without SLAT in the processor there is nothing to use".into();
            }
            Cause::FirmwareOff { software: None } => {
                in_use.reason =
                    format!("{}, because virtualization is switched off", in_use.reason);
            }
            Cause::HiddenInVm { software: None } => {
                in_use.reason = format!("{}, and none is offered to it", in_use.reason);
            }
            _ => {}
        }
        in_use
    }

    /// Whether this virtual machine offers SLAT to hypervisors inside it.
    fn nested(&self, processor: &Verdict) -> Verdict {
        let found: Vec<Evidence> = self.flags_evidence().into_iter().collect();
        match (self.base_shown(), processor.answer) {
            (Some(false), _) => {
                Verdict::new(Answer::No, "nested virtualization is not offered to it", found)
            }
            (_, Answer::Yes) => Verdict::new(Answer::Yes, "nested SLAT is offered to it", found),
            (_, Answer::No) => Verdict::new(
                Answer::No,
                "nested virtualization is offered to it, but without SLAT",
                found,
            ),
            _ => Verdict::new(Answer::Unknown, "what it is offered could not be read", found),
        }
    }
}
