//! What this EPT or NPT can do, as far as it can be read.

use super::{Kind, Running, X86};
use crate::judge::yes_no;
use crate::report::Detail;

impl X86<'_> {
    pub(super) fn details(&self) -> Vec<Detail> {
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
