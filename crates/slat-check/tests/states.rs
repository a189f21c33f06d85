//! Real-looking states of machines, each with its verdicts.

use slat_check::{Answer, Machine, Recorded, Report, Source, Unread, examine, text};

use Answer::{No, Unknown, Yes};

fn state(name: &str) -> Recorded {
    let path = format!("{}/tests/states/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let content = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"));
    Recorded::parse(&content).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn report(name: &str) -> Report {
    examine(&state(name))
}

/// The state; does the processor have it, did the firmware leave it on, is it in use, is this a virtual
/// machine, is it offered inside; and words of the first line.
type Row = (&'static str, Answer, Answer, Answer, Answer, Option<Answer>, &'static str);

const EXPECTED: &[Row] = &[
    // Intel
    ("intel-on", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (EPT), and KVM uses it."),
    ("intel-on-as-root", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (EPT)"),
    ("intel-on-user-may-not-open", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (EPT)"),
    ("intel-on-old-kernel", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (EPT)"),
    ("intel-on-in-a-container", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (EPT)"),
    ("intel-off-in-firmware", Yes, No, No, No, None, "virtualization is switched off"),
    ("intel-off-in-firmware-no-log", Yes, No, No, No, None, "virtualization is switched off"),
    ("intel-off-by-register-old-kernel", Yes, No, No, No, None, "virtualization is switched off"),
    ("intel-flag-on-old-kernel", Yes, Unknown, No, No, None, "nothing here uses it"),
    ("intel-ept-0", Yes, Yes, No, No, None, "but KVM runs without it"),
    ("intel-kvm-not-loaded", Yes, Yes, No, No, None, "Not yet: SLAT (EPT) is here"),
    ("intel-parameter-is-garbage", Yes, Yes, Unknown, No, None, "Could not tell"),
    ("intel-virtualbox", Yes, Yes, Unknown, No, None, "VirtualBox's driver is loaded"),
    ("intel-core-2", No, Yes, No, No, None, "No: this processor has no SLAT."),
    ("intel-pentium-off", Unknown, No, No, No, None, "switched off, and SLAT with it"),
    ("intel-no-vmx-at-all", No, No, No, No, None, "No: this processor has no SLAT."),
    // AMD
    ("amd-on", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (NPT), and KVM uses it."),
    ("amd-on-both-modules-built-in", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (NPT)"),
    ("amd-svm-off", Yes, No, No, No, None, "virtualization is switched off"),
    ("amd-svm-off-both-modules-built-in", Yes, No, No, No, None, "virtualization is switched off"),
    ("amd-npt-0", Yes, Yes, No, No, None, "but KVM runs without it"),
    ("amd-k8", No, Yes, No, No, None, "No: this processor has no SLAT."),
    // Virtual machines
    ("vm-without-nested", Unknown, Unknown, No, Yes, Some(No), "this is a virtual machine"),
    ("vm-with-nested", Yes, Yes, Yes, Yes, Some(Yes), "this virtual machine is offered SLAT (EPT)"),
    ("vm-with-nested-idle", Yes, Yes, No, Yes, Some(Yes), "Not yet"),
    (
        "vm-nested-without-ept",
        No,
        Yes,
        No,
        Yes,
        Some(No),
        "offered virtualization, but without SLAT",
    ),
    ("vmware-guest", Unknown, Unknown, No, Yes, Some(No), "this is a virtual machine"),
    ("hyper-v-guest", Unknown, Unknown, No, Yes, Some(No), "this is a virtual machine"),
    ("kvm-dressed-as-hyper-v", Unknown, Unknown, No, Yes, Some(No), "this is a virtual machine"),
    (
        "kvm-that-shadows-in-software",
        Unknown,
        Unknown,
        No,
        Yes,
        Some(No),
        "this is a virtual machine",
    ),
    ("kvm-that-shadows-on-bare-metal", Yes, No, No, No, None, "virtualization is switched off"),
    ("xen-control-domain", Unknown, Unknown, Unknown, No, None, "Xen runs below"),
    ("hyper-v-parent-partition", Yes, Yes, Yes, No, None, "and Hyper-V uses it"),
    // Arm
    ("arm-vhe", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (Stage 2)"),
    ("arm-nvhe", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (Stage 2)"),
    ("arm-protected", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (Stage 2)"),
    ("arm-no-el2", Yes, No, No, No, None, "something below the kernel keeps it"),
    ("arm-vm", Yes, No, No, Yes, Some(No), "this is a virtual machine"),
    ("arm-vm-with-nested", Yes, Yes, Yes, Yes, Some(Yes), "this virtual machine is offered SLAT"),
    ("arm-log-denied", Yes, Unknown, No, No, None, "nothing here uses it"),
    ("arm-kvm-forbidden", Yes, Yes, No, No, None, "command line forbids KVM"),
    ("arm-cortex-a9", No, No, No, No, None, "No: this processor has no SLAT."),
    // RISC-V
    ("riscv-h", Yes, Yes, Yes, No, None, "Yes: this machine has SLAT (G-stage)"),
    ("riscv-h-idle", Yes, Yes, No, No, None, "Not yet"),
    ("riscv-without-h", No, No, No, No, None, "No: this processor has no SLAT."),
    ("riscv-vm", Unknown, Unknown, No, Yes, Some(No), "this is a virtual machine"),
    // Recorded on Debian 12's kernel under an emulator that has these features
    (
        "recorded-amd-on",
        Yes,
        Yes,
        Yes,
        Yes,
        Some(Yes),
        "this virtual machine is offered SLAT (NPT)",
    ),
    ("recorded-amd-npt-0", Yes, Yes, No, Yes, Some(Yes), "but KVM runs without it"),
    ("recorded-amd-not-loaded", Yes, Unknown, No, Yes, Some(Yes), "nothing here uses it"),
    ("recorded-arm-vhe", Yes, Yes, Yes, Yes, Some(Yes), "this virtual machine is offered SLAT"),
    ("recorded-arm-nvhe", Yes, Yes, Yes, Yes, Some(Yes), "this virtual machine is offered SLAT"),
    ("recorded-arm-without-el2", Yes, No, No, Yes, Some(No), "this is a virtual machine"),
    // Nothing to go by
    ("nothing-exists", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    ("nothing-may-be-read", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    ("reading-fails", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    ("garbage", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    ("garbage-arm", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    ("garbage-riscv", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    ("unknown-architecture", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    // Other systems
    ("windows-with-hyper-v", Yes, Yes, Yes, No, None, "Hyper-V uses it"),
    ("windows-plain", Yes, Yes, No, No, None, "Not yet"),
    ("windows-off-in-firmware", Yes, No, No, No, None, "virtualization is switched off"),
    ("windows-core-2", No, Yes, No, No, None, "No: this processor has no SLAT."),
    ("windows-vm", Unknown, Unknown, No, Yes, Some(No), "this is a virtual machine"),
    ("windows-silent", Unknown, Unknown, Unknown, Unknown, None, "Could not tell"),
    ("mac-apple-silicon", Yes, Yes, Yes, No, None, "macOS uses it"),
    ("mac-apple-silicon-vm", Unknown, Unknown, No, Yes, Some(No), "this is a virtual machine"),
    ("mac-intel", Yes, Yes, Yes, No, None, "macOS uses it"),
    ("mac-core-2", No, No, No, No, None, "No: this processor has no SLAT."),
];

#[test]
fn every_state_gets_its_verdicts() {
    for &(name, processor, firmware, in_use, virtual_machine, nested, headline) in EXPECTED {
        let report = report(name);
        let got = (
            report.processor.answer,
            report.firmware.answer,
            report.in_use.answer,
            report.virtual_machine.verdict.answer,
            report.virtual_machine.nested.as_ref().map(|nested| nested.answer),
        );
        assert_eq!(
            got,
            (processor, firmware, in_use, virtual_machine, nested),
            "{name}: {report:#?}"
        );
        assert!(report.headline.contains(headline), "{name}: {}", report.headline);
        assert_eq!(report.exit_code(), in_use.exit_code(), "{name}");
    }
}

#[test]
fn no_state_is_forgotten() {
    let directory = format!("{}/tests/states", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut expected: Vec<&str> = EXPECTED.iter().map(|row| row.0).collect();
    files.sort();
    expected.sort_unstable();
    assert_eq!(files, expected);
}

/// A definite answer shows what it rests on, and "could not tell" says why.
#[test]
fn every_answer_has_its_reason() {
    for (name, ..) in EXPECTED {
        let report = report(name);
        for verdict in [&report.processor, &report.firmware, &report.in_use]
            .into_iter()
            .chain([&report.virtual_machine.verdict])
            .chain(&report.virtual_machine.nested)
        {
            assert!(!verdict.reason.is_empty(), "{name}");
            let nothing_to_switch = verdict.reason.contains("nothing that it could switch on");
            if verdict.answer != Unknown && !nothing_to_switch {
                assert!(!verdict.evidence.is_empty(), "{name}: {verdict:#?}");
            }
        }
    }
}

#[test]
fn the_text_fits_and_holds_nothing_that_moves_the_cursor() {
    for (name, ..) in EXPECTED {
        for width in [60, 80, 100] {
            let page =
                anstream::adapter::strip_str(&text::machine(&report(name), width)).to_string();
            for line in page.lines() {
                assert!(line.chars().count() <= width, "{name} at {width}: {line:?}");
                assert!(!line.chars().any(char::is_control), "{name}: {line:?}");
                assert_eq!(line, line.trim_end(), "{name} at {width}");
            }
            assert!(width < 80 || page.contains(text::WHAT_SLAT_IS), "{name}");
        }
    }
}

#[test]
fn software_kvm_is_not_taken_for_slat() {
    let report = report("kvm-that-shadows-in-software");
    assert_eq!(
        report.remark.as_deref(),
        Some("/dev/kvm works, but this kernel's KVM (kvm_pvm) shadows page tables in software.")
    );
    assert_eq!(report.virtual_machine.hypervisor.as_deref(), Some("KVM"));
    let kvm = report.hypervisors.iter().find(|hypervisor| hypervisor.name == "KVM").unwrap();
    assert_eq!((kvm.here, kvm.requires_slat), (Yes, false));
    let bhyve = report.hypervisors.iter().find(|hypervisor| hypervisor.name == "bhyve").unwrap();
    assert_eq!((bhyve.here, bhyve.requires_slat), (No, true));
}

#[test]
fn the_hypervisor_below_is_named() {
    for (name, hypervisor, slat_below) in [
        ("hyper-v-guest", Some("Hyper-V"), Some(true)),
        ("kvm-dressed-as-hyper-v", Some("KVM"), None),
        ("vmware-guest", Some("VMware"), None),
        ("vm-without-nested", Some("KVM"), None),
        ("arm-vm", Some("Hyper-V"), None),
        ("xen-control-domain", Some("Xen"), None),
        ("windows-with-hyper-v", Some("Hyper-V"), Some(true)),
        ("intel-on", None, None),
    ] {
        let below = report(name).virtual_machine;
        assert_eq!(
            (below.hypervisor.as_deref(), below.slat_below),
            (hypervisor, slat_below),
            "{name}"
        );
    }
}

#[test]
fn windows_explains_its_own_no() {
    let report = report("windows-with-hyper-v");
    assert!(report.remark.unwrap().contains("Tools that ask Windows may say no"));
    assert!(report.processor.reason.contains("Hyper-V hides it"));
}

#[test]
fn advice_fits_the_cause() {
    for (name, words) in [
        ("intel-off-in-firmware", "Intel Virtualization Technology"),
        ("amd-svm-off", "SVM Mode"),
        ("intel-ept-0", "options kvm_intel ept=0"),
        ("amd-npt-0", "modprobe kvm_amd npt=1"),
        ("intel-kvm-not-loaded", "sudo modprobe kvm_intel"),
        ("intel-on-user-may-not-open", "usermod -aG kvm"),
        ("vm-without-nested", "nested=1"),
        ("hyper-v-guest", "ExposeVirtualizationExtensions"),
        ("vmware-guest", "Virtualize Intel VT-x/EPT or AMD-V/RVI"),
        ("arm-no-el2", "EL2"),
        ("arm-kvm-forbidden", "kvm-arm.mode=none"),
        ("intel-off-in-firmware-no-log", "As root"),
        ("windows-plain", "Virtual Machine Platform"),
    ] {
        let report = report(name);
        assert!(
            report.advice.iter().any(|advice| advice.contains(words)),
            "{name}: {:?}",
            report.advice
        );
    }
    assert_eq!(report("intel-on").advice, Vec::<String>::new());
}

#[test]
fn details_are_read_from_the_best_source() {
    let details = |name: &str| -> Vec<(String, String)> {
        let details = report(name).details;
        details.into_iter().map(|detail| (detail.name.to_string(), detail.value)).collect()
    };
    let has = |name: &str, detail: &str, value: &str| {
        let details = details(name);
        assert!(details.contains(&(detail.into(), value.into())), "{name}: {details:?}");
    };
    // From the processor's own registers.
    has("intel-on-as-root", "page sizes", "4K, 2M, 1G");
    has("intel-on-as-root", "levels", "4");
    has("intel-on-as-root", "execute-only pages", "yes");
    has("intel-on-as-root", "unrestricted guest", "yes");
    // From the kernel's list, and from the registers that KVM offers to guests.
    has("intel-on", "1G pages", "yes");
    has("intel-on", "levels", "4");
    has("intel-kvm-not-loaded", "1G pages", "yes");
    has("intel-kvm-not-loaded", "TLB tagged by virtual machine (VPID)", "yes");
    has("amd-on", "page sizes", "4K, 2M, 1G");
    has("amd-on", "address space identifiers (ASIDs)", "32768");
    has("arm-vhe", "guest-physical address bits", "48");
    has("arm-vhe", "KVM's mode", "VHE");
    has("arm-nvhe", "KVM's mode", "nVHE");
    has("arm-nvhe", "virtual machine identifier (VMID) bits", "8");
    has("arm-protected", "KVM's mode", "protected (pKVM)");
    has("arm-protected", "guest-physical address bits", "40");
    has("riscv-h", "G-stage format", "Sv48x4");
    has("riscv-h", "virtual machine identifier (VMID) bits", "14");
}

#[test]
fn what_could_not_be_read_is_said() {
    let unread = |name: &str| -> Vec<(String, String)> {
        report(name).unread.into_iter().map(|unread| (unread.source, unread.reason)).collect()
    };
    let denied = unread("nothing-may-be-read");
    for source in ["/proc/cpuinfo", "/sys/module", "the kernel log", "/dev/kvm"] {
        assert!(denied.contains(&(source.into(), "permission denied".into())), "{denied:?}");
    }
    assert!(
        unread("reading-fails")
            .contains(&("/dev/kvm".into(), "Input/output error (os error 5)".into()))
    );
    let garbage = unread("intel-parameter-is-garbage");
    let parameter = "/sys/module/kvm_intel/parameters/ept".to_string();
    assert!(
        garbage.contains(&(parameter, "holds \"perhaps\" where Y or N is expected".into())),
        "{garbage:?}"
    );
    assert!(unread("garbage").iter().any(|(source, _)| source == "/proc/cpuinfo"));
    assert!(unread("garbage").iter().any(|(source, _)| source == "CPUID"));
}

/// What --save keeps gives the same report as the machine itself.
#[test]
fn a_recording_is_as_good_as_the_machine() {
    for (name, ..) in EXPECTED {
        let machine = state(name);
        let again = Recorded::parse(&Recorded::record(&machine).to_text()).unwrap();
        assert_eq!(examine(&again), examine(&machine), "{name}");
    }
}

/// Any one source that turns into nothing or noise must not break the check or make a "no" of a lack.
#[test]
fn sources_fail_one_by_one() {
    struct Without<'m> {
        machine: &'m dyn Machine,
        source: &'static str,
        instead: Result<String, Unread>,
    }
    impl Machine for Without<'_> {
        fn system(&self) -> slat_check::System {
            self.machine.system()
        }
        fn read(&self, source: Source<'_>) -> Result<String, Unread> {
            if source.to_string() == self.source {
                self.instead.clone()
            } else {
                self.machine.read(source)
            }
        }
    }
    let noise = "\u{fffd}\0\u{1b}[2J::: 0x 0x0: eax= \n".repeat(50);
    for (name, ..) in EXPECTED {
        let machine = state(name);
        let whole = examine(&machine);
        for source in [
            "/proc/cpuinfo",
            "/sys/module",
            "CPUID",
            "the kernel log",
            "/dev/kvm",
            "/sys/module/kvm_intel/parameters/ept",
            "/sys/module/kvm_amd/parameters/npt",
            "/sys/class/misc/kvm/dev",
            "/proc/sys/kernel/osrelease",
            "IsProcessorFeaturePresent",
            "sysctl kern.hv_support",
        ] {
            for instead in [
                Err(Unread::Denied),
                Err(Unread::Failed("broken".into())),
                Ok(String::new()),
                Ok(noise.clone()),
            ] {
                let report =
                    examine(&Without { machine: &machine, source, instead: instead.clone() });
                if whole.in_use.answer == Yes {
                    assert_ne!(
                        report.in_use.answer, No,
                        "{name} without {source} ({instead:?}): {report:#?}"
                    );
                }
                if whole.in_use.answer == No {
                    assert_ne!(
                        report.in_use.answer, Yes,
                        "{name} without {source} ({instead:?}): {report:#?}"
                    );
                }
            }
        }
    }
}

#[test]
fn this_machine_can_be_asked() {
    let report = examine(&slat_check::ThisMachine);
    assert!(report.exit_code() <= 2);
    assert!(!report.headline.is_empty());
    // Built for x86 or not, the program knows what it was built for.
    assert_eq!(report.system, slat_check::System::built_for());
}

#[test]
fn json_has_the_documented_fields() {
    let json = serde_json::to_value(report("vm-with-nested")).unwrap();
    for field in [
        "headline",
        "remark",
        "system",
        "processor_name",
        "technology",
        "processor",
        "firmware",
        "in_use",
        "virtual_machine",
        "details",
        "hypervisors",
        "advice",
        "unread",
    ] {
        assert!(json.get(field).is_some(), "{field}");
    }
    assert_eq!(json["in_use"]["answer"], "yes");
    assert_eq!(json["virtual_machine"]["answer"], "yes");
    assert_eq!(json["virtual_machine"]["nested"]["answer"], "yes");
    assert_eq!(json["system"]["os"], "linux");
    assert!(json["hypervisors"][0].get("here").is_some());
}
