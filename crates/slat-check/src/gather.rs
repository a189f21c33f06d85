//! Everything that the sources of one machine say, parsed, with what could not be read.

use std::cell::{Cell, RefCell};

use crate::facts::cpuid::Cpuid;
use crate::facts::cpuinfo::CpuInfo;
use crate::facts::kernel_log::KernelLog;
use crate::facts::kvm::Kvm;
use crate::facts::{number, parameter};
use crate::machine::{Arch, Machine, Os, Source, System, Unread};
use crate::report::Unreadable;

/// The parsed sources of one machine.
pub(crate) struct Facts<'m> {
    machine: &'m dyn Machine,
    pub(crate) system: System,
    pub(crate) cpuinfo: CpuInfo,
    pub(crate) cpuid: Cpuid,
    pub(crate) log: KernelLog,
    pub(crate) kvm: Result<Kvm, Unread>,
    /// `None` when `/sys/module` could not be read.
    pub(crate) modules: Option<Vec<String>>,
    unread: RefCell<Vec<Unreadable>>,
    /// Whether root would have read more.
    denied: Cell<bool>,
}

impl<'m> Facts<'m> {
    pub(crate) fn gather(machine: &'m dyn Machine) -> Facts<'m> {
        let system = machine.system();
        let mut facts = Facts {
            machine,
            system,
            cpuinfo: CpuInfo::default(),
            cpuid: Cpuid::default(),
            log: KernelLog::default(),
            kvm: Err(Unread::Absent),
            modules: None,
            unread: RefCell::default(),
            denied: Cell::new(false),
        };
        if let Ok(text) = machine.read(Source::Cpuid) {
            facts.cpuid = Cpuid::parse(&text);
            if facts.cpuid.vendor().is_none() {
                facts.note(Source::Cpuid, "holds no leaf 0 of the form that cpuid -r prints");
            }
        }
        if system.os == Os::Linux {
            let cpuinfo = Source::File("/proc/cpuinfo");
            match machine.read(cpuinfo) {
                Ok(text) => {
                    facts.cpuinfo = CpuInfo::parse(&text);
                    if facts.cpuinfo == CpuInfo::default() {
                        facts.note(cpuinfo, "holds no line that describes a processor");
                    } else if system.arch == Arch::X86 && facts.cpuinfo.flags.is_none() {
                        facts.note(cpuinfo, "has no list of flags that a processor would have");
                    }
                }
                Err(why) => facts.note(cpuinfo, why),
            }
            match machine.read(Source::Modules) {
                Ok(text) => facts.modules = Some(text.lines().map(str::to_string).collect()),
                Err(why) => facts.note(Source::Modules, why),
            }
            match machine.read(Source::KernelLog) {
                Ok(text) => facts.log = KernelLog::parse(&text),
                Err(why) => facts.note(Source::KernelLog, why),
            }
            facts.kvm = machine.read(Source::Kvm).map(|text| Kvm::parse(&text));
            match &facts.kvm {
                Ok(kvm) if *kvm == Kvm::default() => {
                    facts.note(Source::Kvm, "does not answer as KVM does");
                }
                Err(why) if *why != Unread::Absent => facts.note(Source::Kvm, why.clone()),
                _ => {}
            }
        }
        facts
    }

    fn note(&self, source: Source<'_>, reason: impl ToString) {
        let note = Unreadable { source: source.to_string(), reason: reason.to_string() };
        if note.reason == Unread::Denied.to_string() {
            self.denied.set(true);
        }
        let mut unread = self.unread.borrow_mut();
        if !unread.contains(&note) {
            unread.push(note);
        }
    }

    /// Whether something was kept from this user.
    pub(crate) fn denied(&self) -> bool {
        self.denied.get()
    }

    pub(crate) fn into_unread(self) -> Vec<Unreadable> {
        self.unread.into_inner()
    }

    /// A small file, trimmed, with NULs at its end removed (device trees have them). A missing one is
    /// normal and is not noted.
    pub(crate) fn file(&self, path: &str) -> Option<String> {
        match self.machine.read(Source::File(path)) {
            Ok(text) => {
                let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
                (!text.is_empty()).then(|| text.chars().take(200).collect())
            }
            Err(Unread::Absent) => None,
            Err(why) => {
                self.note(Source::File(path), why);
                None
            }
        }
    }

    /// A module's boolean parameter; `None` when there is none, or it cannot be read or understood.
    pub(crate) fn parameter(&self, module: &str, name: &str) -> Option<bool> {
        let path = format!("/sys/module/{module}/parameters/{name}");
        let text = self.file(&path)?;
        let value = parameter(&text);
        if value.is_none() {
            self.note(Source::File(&path), format!("holds {text:?} where Y or N is expected"));
        }
        value
    }

    /// A model-specific register, as root with the msr driver. That it cannot be read is normal.
    pub(crate) fn msr(&self, index: u32) -> Option<u64> {
        match self.machine.read(Source::Msr(index)) {
            Ok(text) => number(&text),
            Err(why) => {
                self.denied.set(self.denied.get() || why == Unread::Denied);
                None
            }
        }
    }

    /// `sysctl -n NAME`, trimmed.
    pub(crate) fn sysctl(&self, name: &str) -> Option<String> {
        match self.machine.read(Source::Sysctl(name)) {
            Ok(text) => Some(text.trim().to_string()),
            // sysctl fails for names that it does not know, as it does on older systems.
            Err(_) => None,
        }
    }

    /// Windows: `IsProcessorFeaturePresent(feature)`.
    pub(crate) fn processor_feature(&self, feature: u32) -> Option<bool> {
        let text = match self.machine.read(Source::ProcessorFeatures) {
            Ok(text) => text,
            Err(why) => {
                self.note(Source::ProcessorFeatures, why);
                return None;
            }
        };
        text.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let known = words.next() == Some("feature")
                && words.next().and_then(number) == Some(feature.into());
            match words.next() {
                Some("yes") if known => Some(true),
                Some("no") if known => Some(false),
                _ => None,
            }
        })
    }

    /// The processor's name, as it gives it or as Linux knows the core.
    pub(crate) fn processor_name(&self) -> Option<String> {
        self.cpuinfo
            .model_name
            .clone()
            .or_else(|| self.cpuid.name())
            .or_else(|| {
                let names: Vec<&str> = self
                    .cpuinfo
                    .arm_cores
                    .iter()
                    .filter_map(|&(implementer, part)| crate::arm_cores::name(implementer, part))
                    .collect();
                (!names.is_empty()).then(|| names.join(" + "))
            })
            .or_else(|| self.sysctl("machdep.cpu.brand_string"))
            .map(|name| name.chars().filter(|c| !c.is_control()).take(100).collect())
    }

    /// Whether KVM has registered its device, seen from outside a container's /dev too; `None` when
    /// neither /sys nor the device can be asked.
    pub(crate) fn kvm_runs(&self) -> Option<bool> {
        if self.kvm.as_ref().is_ok_and(Kvm::works) {
            return Some(true);
        }
        match self.machine.read(Source::File("/sys/class/misc/kvm/dev")) {
            // Miscellaneous devices have the major number 10.
            Ok(text) => text.starts_with("10:").then_some(true),
            // A device that may not be opened proves nothing: in some sandboxes all of /dev is closed.
            Err(Unread::Absent) if self.kvm == Err(Unread::Absent) && self.modules.is_some() => {
                Some(false)
            }
            Err(_) => None,
        }
    }
}
