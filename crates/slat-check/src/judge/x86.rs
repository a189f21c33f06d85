//! Linux on x86: EPT (Intel) and NPT (AMD).
//!
//! Sources in the order in which they are trusted: the parameters of the running KVM; the flags that the
//! kernel prints; CPUID; model-specific registers; the kernel log; the processor's name.

use super::{Cause, Judgement, yes_no};
use crate::facts::kvm::Kvm;
use crate::gather::Facts;
use crate::processors;
use crate::report::{Answer, Detail, Evidence, Verdict, evidence};
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
        let says = match &self.facts.kvm {
            Ok(kvm) => match (&kvm.create_vm, kvm.api) {
                (Some(Ok(())), Some(api)) => format!("works (API {api})"),
                (Some(Err(why)), _) => format!("answers, but makes no virtual machine: {why}"),
                _ => "answers, but not as KVM does".to_string(),
            },
            Err(crate::Unread::Absent) => "does not exist".to_string(),
            Err(why) => why.to_string(),
        };
        vec![evidence("/dev/kvm", says)]
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

    fn processor(&self, in_use: &Verdict) -> Verdict {
        let facts = self.facts;
        let Some(kind) = self.kind else {
            if self.base_shown() == Some(false) && !self.masked {
                return Verdict::new(
                    Answer::No,
                    "the processor shows neither VMX nor SVM",
                    self.flags_evidence().into_iter().collect(),
                );
            }
            return Verdict::new(
                Answer::Unknown,
                "nothing that describes the processor could be read",
                Vec::new(),
            );
        };
        let technology = kind.technology();
        let mut found: Vec<Evidence> =
            self.flags_evidence().into_iter().chain(self.cpuid_evidence()).collect();
        if in_use.answer == Answer::Yes {
            found.splice(0..0, in_use.evidence.first().cloned());
            return Verdict::new(Answer::Yes, format!("it has {technology}"), found);
        }
        let vmx_line = facts.cpuinfo.vmx_flag("ept");
        let listed = facts.cpuinfo.flag(kind.slat_flag()) == Some(true) || vmx_line == Some(true);
        if vmx_line == Some(true) {
            found.push(evidence("/proc/cpuinfo, vmx flags", "has ept"));
        }
        if listed {
            return Verdict::new(Answer::Yes, format!("it has {technology}"), found);
        }
        match kind {
            Kind::Intel => {
                if let Some((source, allowed)) = self.secondary_controls() {
                    let ept = allowed & 1 << 33 != 0;
                    found.push(evidence(source, format!("EPT bit (33) is {}", u8::from(ept))));
                    let reason = if ept { "it has EPT" } else { "it has VT-x, but no EPT" };
                    return Verdict::new(ept.into(), reason, found);
                }
            }
            Kind::Amd => {
                if let Some(svm) = facts.cpuid.svm_features() {
                    found.push(evidence(
                        "CPUID 0x8000000a, EDX bit 0 (NP)",
                        u8::from(svm.nested_paging).to_string(),
                    ));
                    let reason =
                        if svm.nested_paging { "it has NPT" } else { "it has AMD-V, but no NPT" };
                    return Verdict::new(svm.nested_paging.into(), reason, found);
                }
            }
        }
        match self.base_shown() {
            // The kernel lists its virtualization features and SLAT is not among them. On Intel's
            // that holds when other ones are listed: a kernel can be built not to list any.
            Some(true) => {
                let lists = kind == Kind::Amd
                    || facts.cpuinfo.vmx_flags.is_some()
                    || ["tpr_shadow", "vnmi", "flexpriority", "vpid"]
                        .iter()
                        .any(|flag| facts.cpuinfo.flag(flag) == Some(true));
                if lists {
                    let reason = if self.in_vm {
                        format!(
                            "this virtual machine offers {} without {technology}",
                            kind.base_name()
                        )
                    } else {
                        format!("it has {}, but no {technology}", kind.base_name())
                    };
                    return Verdict::new(Answer::No, reason, found);
                }
                self.by_name(
                    "it has VT-x, and this kernel does not list whether EPT is with it".into(),
                    found,
                )
            }
            Some(false) if self.in_vm => Verdict::new(
                Answer::Unknown,
                "none is visible from inside this virtual machine; what the physical processor has \
                 cannot be read from here",
                found,
            ),
            Some(false) if self.masked => Verdict::new(
                Answer::Unknown,
                "the hypervisor below keeps it from this system's sight",
                found,
            ),
            Some(false) => match self.base_in_cpuid() {
                Some(false) => Verdict::new(
                    Answer::No,
                    format!("it has no {}, which {technology} is a part of", kind.base_name()),
                    found,
                ),
                Some(true) => self.by_name(
                    format!("the kernel shows no details while {} is off", kind.base_name()),
                    found,
                ),
                None => self.by_name(
                    format!("no {} is shown, and CPUID could not be read", kind.base_name()),
                    found,
                ),
            },
            None => self.by_name("the kernel's list of its features cannot be read".into(), found),
        }
    }

    /// What the table of processors says, when nothing better is left.
    fn by_name(&self, why: String, mut found: Vec<Evidence>) -> Verdict {
        let known = (!self.masked)
            .then(|| self.facts.processor_name())
            .flatten()
            .map(|name| (processors::look_up(&name), name));
        match known {
            Some((known, name)) if known.slat != Answer::Unknown => {
                found.push(evidence(format!("its name, {name}"), known.family.unwrap_or_default()));
                let reason = match known.slat {
                    Answer::Yes => format!("{why}, but processors of this name have SLAT"),
                    _ => format!("{why}, and processors of this name have no SLAT"),
                };
                Verdict::new(known.slat, reason, found)
            }
            _ => Verdict::new(Answer::Unknown, why, found),
        }
    }

    /// IA32_VMX_PROCBASED_CTLS2: its upper half says what may be switched on (Intel SDM volume 3,
    /// appendix A.3.3). The processor's own, else the one that KVM offers to guests.
    fn secondary_controls(&self) -> Option<(&'static str, u64)> {
        if let Some(value) = self.facts.msr(0x48b) {
            return Some(("MSR 0x48b", value));
        }
        let value = *self.facts.kvm.as_ref().ok()?.msrs.get(&0x48b)?;
        // What KVM does not offer, the processor may have all the same.
        (value & 1 << 33 != 0).then_some(("/dev/kvm, MSR 0x48b as offered to guests", value))
    }

    fn firmware(&self, in_use: &Verdict, processor: &Verdict) -> Verdict {
        let facts = self.facts;
        let mut found: Vec<Evidence> = Vec::new();
        let Some(kind) = self.kind else {
            let reason = "without a kind of virtualization there is nothing to switch on";
            return match processor.answer {
                Answer::No => Verdict::new(Answer::No, reason, found),
                _ => Verdict::new(Answer::Unknown, processor.reason.clone(), found),
            };
        };
        let base = kind.base_name();
        if in_use.answer == Answer::Yes {
            found.extend(in_use.evidence.first().cloned());
            return Verdict::new(Answer::Yes, format!("{base} is in use"), found);
        }
        if let Some(line) = &facts.log.disabled_by_firmware {
            found.push(evidence("the kernel log", line));
            return Verdict::new(Answer::No, format!("{base} is switched off"), found);
        }
        let lock = self.lock(kind);
        let register_read = lock.is_some();
        if let Some((locked_off, says)) = lock {
            found.push(says);
            if locked_off {
                return Verdict::new(Answer::No, format!("{base} is switched off"), found);
            }
        }
        let flag = self.flags_evidence();
        match self.base_shown() {
            Some(true) => {
                found.extend(flag);
                let runs = facts.kvm_runs() == Some(true);
                if !runs && !register_read && self.flag_ignores_firmware(kind) {
                    let reason = format!(
                        "a kernel this old lists {} whether or not the firmware switched it off",
                        kind.base_flag()
                    );
                    return Verdict::new(Answer::Unknown, reason, found);
                }
                Verdict::new(Answer::Yes, format!("{base} is switched on"), found)
            }
            Some(false) if self.base_in_cpuid() == Some(true) => {
                found.extend(self.cpuid_evidence());
                found.extend(flag);
                let reason = format!(
                    "the processor has {base}, but the kernel withdrew it, as it does when the firmware \
                     switched it off"
                );
                Verdict::new(Answer::No, reason, found)
            }
            Some(false) if self.masked => Verdict::new(
                Answer::Unknown,
                "the switch is in the physical machine's firmware, which cannot be read from here",
                found,
            ),
            Some(false) if processor.answer == Answer::No => {
                Verdict::new(Answer::No, "there is nothing that it could switch on", found)
            }
            Some(false) => {
                found.extend(flag);
                Verdict::new(
                    Answer::Unknown,
                    format!("{base} is not shown: switched off, or not there"),
                    found,
                )
            }
            None => Verdict::new(Answer::Unknown, "the kernel's flags could not be read", found),
        }
    }

    /// What the register says with which the firmware locks virtualization: whether it is locked off.
    /// Intel SDM volume 3, "Enabling and Entering VMX Operation" (IA32_FEATURE_CONTROL: bit 0 lock, bit 2
    /// VMX outside SMX); AMD APM
    /// volume 2, 15.30.1 (VM_CR bit 4, SVMDIS).
    fn lock(&self, kind: Kind) -> Option<(bool, Evidence)> {
        match kind {
            Kind::Intel => {
                let value = self.facts.msr(0x3a)?;
                let (locked, on) = (value & 1 != 0, value & 1 << 2 != 0);
                let says = match (locked, on) {
                    (_, true) => "VMX is on (bit 2)",
                    (true, false) => "locked (bit 0) with VMX off (bit 2)",
                    (false, false) => "not locked (bit 0), VMX off (bit 2)",
                };
                Some((locked && !on, evidence("MSR 0x3a (IA32_FEATURE_CONTROL)", says)))
            }
            Kind::Amd => {
                let off = self.facts.msr(0xc001_0114)? & 1 << 4 != 0;
                let says = if off { "SVM is off (bit 4)" } else { "SVM is not off (bit 4)" };
                Some((off, evidence("MSR 0xc0010114 (VM_CR)", says)))
            }
        }
    }

    /// Before Linux 5.6 (vmx) and 6.7 (svm) the kernel listed the flag without asking the firmware's lock.
    fn flag_ignores_firmware(&self, kind: Kind) -> bool {
        let Some(release) = self.facts.file("/proc/sys/kernel/osrelease") else { return false };
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
        let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
            return false;
        };
        match kind {
            Kind::Intel => (major, minor) < (5, 6),
            Kind::Amd => (major, minor) < (6, 7),
        }
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

    fn details(&self) -> Vec<Detail> {
        let mut details = Vec::new();
        match self.kind {
            Some(Kind::Intel) => self.ept_details(&mut details),
            Some(Kind::Amd) => self.npt_details(&mut details),
            None => {}
        }
        for (module, parameter, name) in [
            ("kvm_intel", "nested", "nested virtualization for guests (kvm_intel)"),
            ("kvm_amd", "nested", "nested virtualization for guests (kvm_amd)"),
        ] {
            if matches!(self.running(), Running::Hardware(kind) if kind.module() == module)
                && let Some(value) = self.facts.parameter(module, parameter)
            {
                let source = format!("/sys/module/{module}/parameters/{parameter}");
                details.push(Detail { name, value: yes_no(value), source });
            }
        }
        details
    }

    /// Intel SDM volume 3, appendix A.10 (IA32_VMX_EPT_VPID_CAP) and A.3.3, from the processor's own
    /// registers; else the kernel's list; else what KVM offers to guests. KVM offers nothing that the
    /// processor lacks but pages of 2M and 1G, which it can break up, and leaves out much that it has:
    /// of its offer a "yes" counts, and not for those.
    fn ept_details(&self, details: &mut Vec<Detail>) {
        const CAPABILITIES: &str = "MSR 0x48c";
        const CONTROLS: &str = "MSR 0x48b";
        const CAPABILITIES_OFFERED: &str = "/dev/kvm, MSR 0x48c as offered to guests";
        const CONTROLS_OFFERED: &str = "/dev/kvm, MSR 0x48b as offered to guests";
        const LIST: &str = "/proc/cpuinfo, vmx flags";
        const FLAGS: &str = "/proc/cpuinfo, flags";
        let facts = self.facts;
        let offered = |index: u32| facts.kvm.as_ref().ok()?.msrs.get(&index).copied();
        let mut add = |name, value: String, source: &str| {
            details.push(Detail { name, value, source: source.to_string() });
        };
        let bit = |value: u64, at: u32| value & 1 << at != 0;
        let levels = |value: u64| {
            let mut levels = Vec::new();
            levels.extend(bit(value, 6).then_some("4"));
            levels.extend(bit(value, 7).then_some("5"));
            (!levels.is_empty()).then(|| levels.join(" or "))
        };
        let own = facts.msr(0x48c).filter(|value| *value != 0);
        if let Some(value) = own {
            let mut sizes = vec!["4K"];
            sizes.extend(bit(value, 16).then_some("2M"));
            sizes.extend(bit(value, 17).then_some("1G"));
            add("page sizes", sizes.join(", "), CAPABILITIES);
            levels(value).into_iter().for_each(|levels| add("levels", levels, CAPABILITIES));
        } else {
            if let Some(has) = facts.cpuinfo.vmx_flag("ept_1gb") {
                add("1G pages", yes_no(has), LIST);
            }
            if let Some(levels) = offered(0x48c).and_then(levels) {
                add("levels", levels, CAPABILITIES_OFFERED);
            } else if facts.cpuinfo.vmx_flag("ept_5level") == Some(true) {
                // Not in the list from its start (Linux 5.6): its absence says nothing.
                add("levels", "4 or 5".into(), LIST);
            }
        }
        let own_controls = facts.msr(0x48b).filter(|value| *value != 0);
        for (name, register, at, listed, flag) in [
            ("execute-only pages", 0x48c, 0, "ept_x_only", ""),
            ("accessed and dirty bits", 0x48c, 21, "ept_ad", "ept_ad"),
            ("TLB tagged by virtual machine (VPID)", 0x48b, 37, "vpid", "vpid"),
            ("unrestricted guest", 0x48b, 39, "unrestricted_guest", ""),
            ("page-modification log (PML)", 0x48b, 49, "pml", ""),
            ("execute by user and supervisor (MBEC)", 0x48b, 54, "ept_mode_based_exec", ""),
        ] {
            let (own, own_source, offer_source) = match register {
                0x48c => (own, CAPABILITIES, CAPABILITIES_OFFERED),
                _ => (own_controls, CONTROLS, CONTROLS_OFFERED),
            };
            if let Some(value) = own {
                add(name, yes_no(bit(value, at)), own_source);
            } else if let Some(has) = facts.cpuinfo.vmx_flag(listed) {
                add(name, yes_no(has), LIST);
            } else if facts.cpuinfo.flag(flag) == Some(true) {
                add(name, yes_no(true), FLAGS);
            } else if offered(register).is_some_and(|value| bit(value, at)) {
                add(name, yes_no(true), offer_source);
            }
        }
    }

    /// AMD APM volume 3, CPUID 0x8000_000a; volume 2, 15.25. Accessed and dirty bits are always kept.
    fn npt_details(&self, details: &mut Vec<Detail>) {
        let mut add = |name, value: String, source: &str| {
            details.push(Detail { name, value, source: source.to_string() });
        };
        let cpuid = &self.facts.cpuid;
        if let Some(svm) = cpuid.svm_features().filter(|svm| svm.nested_paging) {
            if let Some(pages_1g) = cpuid.pages_1g() {
                let sizes = if pages_1g { "4K, 2M, 1G" } else { "4K, 2M" };
                add("page sizes", sizes.into(), "CPUID 0x80000001, EDX bit 26");
            }
            const LEAF: &str = "CPUID 0x8000000a";
            add("address space identifiers (ASIDs)", svm.asids.to_string(), LEAF);
            add("flush by ASID", yes_no(svm.flush_by_asid), LEAF);
            add("guest mode execute trap (GMET)", yes_no(svm.guest_mode_execute_trap), LEAF);
        } else if self.facts.cpuinfo.flag("npt") == Some(true)
            && let Some(pages_1g) = self.facts.cpuinfo.flag("pdpe1gb")
        {
            let sizes = if pages_1g { "4K, 2M, 1G" } else { "4K, 2M" };
            add("page sizes", sizes.into(), "/proc/cpuinfo, flags");
        }
    }
}
