//! Does the processor have EPT or NPT?

use super::{Kind, X86};
use crate::judge::HIDDEN;
use crate::report::{Answer, Evidence, Verdict, evidence};

impl X86<'_> {
    pub(super) fn processor(&self, in_use: &Verdict) -> Verdict {
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
                    "it has VT-x, and this kernel does not list whether EPT is with it",
                    found,
                )
            }
            Some(false) if self.in_vm => Verdict::new(Answer::Unknown, HIDDEN, found),
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
                    &format!("the kernel shows no details while {} is off", kind.base_name()),
                    found,
                ),
                None => self.by_name(
                    &format!("no {} is shown, and CPUID could not be read", kind.base_name()),
                    found,
                ),
            },
            None => self.by_name("the kernel's list of its features cannot be read", found),
        }
    }

    /// What the table of processors says, when nothing better is left; under a hypervisor the name need
    /// not be the processor's.
    fn by_name(&self, why: &str, found: Vec<Evidence>) -> Verdict {
        match self.masked {
            true => Verdict::new(Answer::Unknown, why, found),
            false => super::super::by_name(self.facts, why, found),
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
}
