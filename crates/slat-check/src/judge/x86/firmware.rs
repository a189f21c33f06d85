//! Did the firmware leave VT-x or AMD-V on?

use super::{Kind, X86};
use crate::judge::{FIRMWARE_OUT_OF_SIGHT, NOTHING_TO_SWITCH_ON};
use crate::report::{Answer, Evidence, Verdict, evidence};

impl X86<'_> {
    pub(super) fn firmware(&self, in_use: &Verdict, processor: &Verdict) -> Verdict {
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
            Some(false) if self.masked => {
                Verdict::new(Answer::Unknown, FIRMWARE_OUT_OF_SIGHT, found)
            }
            Some(false) if processor.answer == Answer::No => {
                Verdict::new(Answer::No, NOTHING_TO_SWITCH_ON, found)
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
}
