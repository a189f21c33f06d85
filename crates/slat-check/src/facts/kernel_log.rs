//! The kernel log: why something is missing, and on Arm and RISC-V which mode KVM runs in.
//!
//! The log is a ring: a line that is not there may have been overwritten, so that absence says nothing.

/// What the kernel log says, as far as it was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelLog {
    /// The line with which the kernel reported VMX or SVM as switched off by the firmware.
    pub(crate) disabled_by_firmware: Option<String>,
    /// The line with which kvm_amd reports nested paging, and whether it is on.
    pub(crate) nested_paging: Option<(bool, String)>,
    /// Arm: the line with which KVM reports its mode, and the mode.
    pub(crate) arm_mode: Option<(ArmMode, String)>,
    /// Arm: the line that says that the kernel was not given EL2, or that KVM found none.
    pub(crate) no_el2: Option<String>,
    /// Arm: the line that says that the processors started at EL2.
    pub(crate) started_at_el2: Option<String>,
    /// Arm and RISC-V: the line that says that the command line disabled KVM.
    pub(crate) disabled_by_user: Option<String>,
    /// Arm: the widest intermediate physical address, in bits.
    pub(crate) ipa_bits: Option<u64>,
    /// RISC-V: whether KVM found the hypervisor extension, and the line.
    pub(crate) riscv_extension: Option<(bool, String)>,
    /// RISC-V: the G-stage format, such as `Sv48x4`.
    pub(crate) gstage_format: Option<String>,
    /// Arm and RISC-V: width of the tags that tell virtual machines apart in the TLB.
    pub(crate) vmid_bits: Option<u64>,
    /// The line that says that this is Hyper-V's parent partition (which Linux calls root).
    pub(crate) parent_partition: Option<String>,
    /// The hypervisor that the kernel says it runs under.
    pub(crate) hypervisor: Option<String>,
}

/// How KVM runs on AArch64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArmMode {
    /// The whole kernel runs at EL2 (Virtualization Host Extensions).
    Vhe,
    /// The kernel runs at EL1, a part of KVM at EL2.
    NVhe,
    /// As nVHE, and the part at EL2 keeps virtual machines' memory from the kernel too.
    Protected,
}

impl KernelLog {
    pub(crate) fn parse(text: &str) -> KernelLog {
        let mut log = KernelLog::default();
        for line in text.lines() {
            log.take(without_time(line));
        }
        log
    }

    fn take(&mut self, line: &str) {
        let lower = line.to_ascii_lowercase();
        let says = |what: &str| lower.contains(what);
        let keep = |slot: &mut Option<String>| {
            slot.get_or_insert_with(|| shortened(line));
        };
        // arch/x86/kernel/cpu/{feat_ctl,amd,hygon}.c, arch/x86/kvm/{vmx/vmx,svm/svm}.c; older KVM said
        // "kvm: disabled by bios". SGX, TXT and others are disabled by BIOS too, and do not matter.
        if (says("disabled by bios") || says("(by bios)"))
            && (says("vmx") || says("svm") || says("kvm"))
        {
            keep(&mut self.disabled_by_firmware);
        }
        // arch/x86/kvm/svm/svm.c
        if says("nested paging enabled") {
            self.nested_paging.get_or_insert_with(|| (true, shortened(line)));
        } else if says("nested paging disabled") {
            self.nested_paging.get_or_insert_with(|| (false, shortened(line)));
        }
        // arch/arm64/kvm/arm.c
        if says("mode initialized successfully") {
            let mode = if says("protected") {
                Some(ArmMode::Protected)
            } else if says("nvhe") || says("hyp mode") {
                Some(ArmMode::NVhe)
            } else if says("vhe") {
                Some(ArmMode::Vhe)
            } else {
                None
            };
            if let Some(mode) = mode {
                self.arm_mode.get_or_insert_with(|| (mode, shortened(line)));
            }
        }
        if says("hyp mode not available") || says("all cpu(s) started at el1") {
            keep(&mut self.no_el2);
        }
        if says("all cpu(s) started at el2") {
            keep(&mut self.started_at_el2);
        }
        if says("kvm disabled from command line") {
            keep(&mut self.disabled_by_user);
        }
        if let Some(bits) = after(&lower, "ipa size limit:").and_then(leading_number) {
            self.ipa_bits.get_or_insert(bits);
        }
        // arch/riscv/kvm/main.c
        if says("hypervisor extension available") {
            self.riscv_extension.get_or_insert_with(|| (true, shortened(line)));
        } else if says("hypervisor extension not available") {
            self.riscv_extension.get_or_insert_with(|| (false, shortened(line)));
        }
        let format = after(&lower, "g-stage page table mode is ").or_else(|| {
            lower.split_once(" g-stage page table format").and_then(|(b, _)| after(b, "using "))
        });
        if let Some(format) = format.and_then(|format| format.split_ascii_whitespace().next())
            && let known @ ("sv32x4" | "sv39x4" | "sv48x4" | "sv57x4") = format
        {
            self.gstage_format.get_or_insert_with(|| format!("Sv{}", &known[2..]));
        }
        let vmid = after(&lower, "vmid ")
            .filter(|_| says("bits available"))
            .or_else(|| says("-bit vmid").then(|| after(&lower, "]: ")).flatten());
        if let Some(bits) = vmid.and_then(leading_number) {
            self.vmid_bits.get_or_insert(bits);
        }
        // arch/x86/kernel/cpu/mshyperv.c
        if says("running as root partition") {
            keep(&mut self.parent_partition);
        }
        // arch/x86/kernel/cpu/hypervisor.c
        if let Some(at) = lower.find("hypervisor detected: ") {
            let name = line.get(at + "hypervisor detected: ".len()..).unwrap_or_default().trim();
            if !name.is_empty() {
                self.hypervisor.get_or_insert_with(|| shortened(name));
            }
        }
    }
}

/// The lines of a kernel log that [`KernelLog`] looks at, and their like: what a person who helps
/// would want to see, and nothing about disks and networks.
#[cfg(any(test, target_os = "linux"))]
pub(crate) fn relevant(text: &str) -> String {
    const WORDS: [&str; 12] = [
        "kvm",
        "vmx",
        "svm",
        "hypervisor",
        "nested paging",
        "by bios",
        "vhe",
        "hyp mode",
        "started at el",
        "hyper-v",
        "xen",
        "g-stage",
    ];
    const MOST_LINES: usize = 200;
    text.lines()
        .filter(|line| {
            let lower = line.to_ascii_lowercase();
            // The command line is quoted in the log, and it is nobody else's business.
            !lower.contains("command line:") && WORDS.iter().any(|word| lower.contains(word))
        })
        .take(MOST_LINES)
        .map(|line| format!("{}\n", shortened(line)))
        .collect()
}

/// A line without the time that dmesg puts before it.
fn without_time(line: &str) -> &str {
    match line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((time, rest)) if time.trim().parse::<f64>().is_ok() => rest.trim(),
        _ => line.trim(),
    }
}

/// A line as evidence: one that is too long to be a kernel message is cut.
fn shortened(line: &str) -> String {
    const MOST: usize = 200;
    line.chars().filter(|c| !c.is_control()).take(MOST).collect()
}

fn after<'l>(line: &'l str, words: &str) -> Option<&'l str> {
    line.split_once(words).map(|(_, rest)| rest)
}

fn leading_number(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_many_versions() {
        let log = |line: &str| KernelLog::parse(line);
        for line in [
            "[    0.123456] x86/cpu: VMX (outside TXT) disabled by BIOS",
            "kvm_intel: VMX not enabled (by BIOS) in MSR_IA32_FEAT_CTL on CPU 0",
            "kvm: disabled by bios",
            "[ 1.5] SVM disabled (by BIOS) in MSR_VM_CR",
        ] {
            assert!(log(line).disabled_by_firmware.is_some(), "{line}");
        }
        assert_eq!(log("x86/cpu: SGX disabled by BIOS").disabled_by_firmware, None);
        assert!(log("kvm_amd: Nested Paging enabled").nested_paging.unwrap().0);
        assert!(!log("kvm: Nested Paging disabled").nested_paging.unwrap().0);
        for (line, mode) in [
            ("kvm [1]: VHE mode initialized successfully", ArmMode::Vhe),
            ("kvm [1]: VHE+NV mode initialized successfully", ArmMode::Vhe),
            ("kvm [1]: Hyp mode initialized successfully", ArmMode::NVhe),
            ("kvm [1]: Hyp nVHE mode initialized successfully", ArmMode::NVhe),
            ("kvm [1]: Protected nVHE mode initialized successfully", ArmMode::Protected),
            ("kvm [1]: Protected hVHE mode initialized successfully", ArmMode::Protected),
        ] {
            assert_eq!(log(line).arm_mode.unwrap().0, mode, "{line}");
        }
        assert_eq!(log("kvm [1]: IPA Size Limit: 44 bits").ipa_bits, Some(44));
        assert_eq!(log("kvm [1]: 16-bit VMID").vmid_bits, Some(16));
        assert_eq!(log("kvm [1]: VMID 14 bits available").vmid_bits, Some(14));
        assert_eq!(
            log("kvm [1]: using Sv48x4 G-stage page table format").gstage_format.as_deref(),
            Some("Sv48x4")
        );
        assert_eq!(
            log("kvm [1]: highest G-stage page table mode is Sv57x4").gstage_format.as_deref(),
            Some("Sv57x4")
        );
        assert_eq!(log("[ 0.0] Hypervisor detected: KVM").hypervisor.as_deref(), Some("KVM"));
        assert!(!log("kvm [1]: hypervisor extension not available").riscv_extension.unwrap().0);
    }

    #[test]
    fn only_what_matters_is_kept() {
        let kept = relevant("Command line: secret kvm\nkvm: one\nsda: disk\n\u{7}kvm bell\n");
        assert_eq!(kept, "kvm: one\nkvm bell\n");
    }

    #[test]
    fn hostile_lines() {
        for line in [
            "ipa size limit:",
            "vmid  bits available",
            "]: -bit vmid",
            "hypervisor detected: ",
            "[",
            "[]",
            "[1.0]",
            "using  G-stage page table format",
            "\u{130}hypervisor detected: \u{130}x",
        ] {
            let _ = KernelLog::parse(line);
        }
    }
}
