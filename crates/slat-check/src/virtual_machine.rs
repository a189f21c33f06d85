//! Is this machine itself a virtual one, and of which hypervisor?

use crate::gather::Facts;
use crate::machine::{Arch, Os};
use crate::report::{Answer, Verdict, VirtualMachine, evidence};

/// What surrounds the system.
pub(crate) struct Surroundings {
    pub(crate) virtual_machine: VirtualMachine,
    /// Xen runs below, and this system manages it.
    pub(crate) xen_control_domain: bool,
    /// As above, or Hyper-V's parent partition.
    pub(crate) manages_the_hypervisor: bool,
}

pub(crate) fn surroundings(facts: &Facts<'_>) -> Surroundings {
    let mut found = Vec::new();
    let signatures = facts.cpuid.hypervisor_signatures();
    let hyper_v = facts.cpuid.hyper_v();
    let slat_below = hyper_v.and_then(|hyper_v| hyper_v.slat_in_use);
    let around = |answer, reason: String, hypervisor: Option<String>, found| Surroundings {
        virtual_machine: VirtualMachine {
            verdict: Verdict::new(answer, reason, found),
            hypervisor,
            nested: None,
            slat_below,
        },
        xen_control_domain: false,
        manages_the_hypervisor: false,
    };

    for signature in &signatures {
        found.push(evidence("CPUID 0x40000000, signature", format!("{signature:?}")));
    }
    if let Some(in_use) = slat_below {
        found.push(evidence(
            "CPUID 0x40000006, EAX bit 3 (SLAT in use)",
            u8::from(in_use).to_string(),
        ));
    }
    if facts.file("/proc/xen/capabilities").is_some_and(|text| text.contains("control_d")) {
        found.push(evidence("/proc/xen/capabilities", "control_d"));
        let reason = "this is the control domain of Xen, from which the machine is managed";
        return Surroundings {
            xen_control_domain: true,
            manages_the_hypervisor: true,
            ..around(Answer::No, reason.into(), Some("Xen".into()), found)
        };
    }
    let by_cpuid = hyper_v.is_some_and(|hyper_v| hyper_v.parent_partition);
    if by_cpuid || facts.log.parent_partition.is_some() {
        if by_cpuid {
            found.push(evidence(
                "CPUID 0x40000003, EBX",
                "may create partitions and manage processors",
            ));
        }
        if let Some(line) = &facts.log.parent_partition {
            found.push(evidence("the kernel log", line));
        }
        let reason = "this is the parent partition of Hyper-V, from which the machine is managed";
        return Surroundings {
            manages_the_hypervisor: true,
            ..around(Answer::No, reason.into(), Some("Hyper-V".into()), found)
        };
    }
    if !signatures.is_empty() {
        let costume = signatures.len() > 1 && signatures[0] == "Microsoft Hv";
        let signature = if costume { &signatures[1] } else { &signatures[0] };
        let name = hypervisor_of(signature);
        let of =
            name.map_or_else(|| format!("one that calls itself {signature:?}"), str::to_string);
        let also = if costume { ", which shows Hyper-V's interface" } else { "" };
        let hypervisor = name.map_or_else(|| signature.clone(), str::to_string);
        return around(
            Answer::Yes,
            format!("its hypervisor is {of}{also}"),
            Some(hypervisor),
            found,
        );
    }

    if facts.sysctl("kern.hv_vmm_present").as_deref() == Some("1") {
        found.push(evidence("sysctl kern.hv_vmm_present", "1"));
        return around(Answer::Yes, "macOS says so".into(), None, found);
    }
    if let Some(kind) = facts.file("/sys/hypervisor/type") {
        found.push(evidence("/sys/hypervisor/type", &kind));
        let name = if kind == "xen" { "Xen".to_string() } else { kind };
        return around(Answer::Yes, format!("its hypervisor is {name}"), Some(name), found);
    }
    let vendor = facts.file("/sys/class/dmi/id/sys_vendor");
    let product = facts.file("/sys/class/dmi/id/product_name");
    if vendor.is_some() || product.is_some() {
        let both = format!(
            "{} {}",
            vendor.as_deref().unwrap_or_default(),
            product.as_deref().unwrap_or_default()
        );
        found.push(evidence("/sys/class/dmi/id, vendor and product", both.trim()));
        // A processor without the hypervisor bit under a cloud's name is one of its bare-metal machines.
        let bare = facts.cpuid.hypervisor_present() == Some(false);
        if let Some((name, cloud)) = hypervisor_by_product(&both)
            && !(cloud && bare)
        {
            return around(
                Answer::Yes,
                format!("its firmware tables name {name}"),
                Some(name.into()),
                found,
            );
        }
    }
    if let Some(line) = &facts.log.hypervisor {
        found.push(evidence("the kernel log", format!("Hypervisor detected: {line}")));
        return around(Answer::Yes, format!("its hypervisor is {line}"), Some(line.clone()), found);
    }
    let hypervisor_bit =
        facts.cpuid.hypervisor_present().or_else(|| facts.cpuinfo.flag("hypervisor"));
    if facts.system.arch == Arch::X86 {
        let source = match facts.cpuid.hypervisor_present() {
            Some(_) => "CPUID 1, ECX bit 31 (hypervisor)",
            None => "/proc/cpuinfo, flags (hypervisor)",
        };
        if let Some(bit) = hypervisor_bit {
            found.insert(0, evidence(source, u8::from(bit).to_string()));
        }
        return match hypervisor_bit {
            Some(true) => around(
                Answer::Yes,
                "it has a hypervisor that does not give its name".into(),
                None,
                found,
            ),
            Some(false) => around(Answer::No, "no hypervisor shows itself".into(), None, found),
            None => around(
                Answer::Unknown,
                "neither CPUID nor /proc/cpuinfo could be read".into(),
                None,
                found,
            ),
        };
    }

    if let Some(compatible) = facts.file("/proc/device-tree/hypervisor/compatible") {
        found.push(evidence("/proc/device-tree/hypervisor/compatible", printable(&compatible)));
        let name = ["xen", "kvm", "vmware"].into_iter().find(|name| compatible.contains(name)).map(
            |name| match name {
                "xen" => "Xen",
                "kvm" => "KVM",
                _ => "VMware",
            },
        );
        let reason = match name {
            Some(name) => format!("its hypervisor is {name}"),
            None => "its device tree names a hypervisor".into(),
        };
        return around(Answer::Yes, reason, name.map(str::to_string), found);
    }
    if let Some(compatible) = facts.file("/proc/device-tree/compatible") {
        found.push(evidence("/proc/device-tree/compatible", printable(&compatible)));
        // The machine that QEMU, Firecracker, crosvm and kvmtool make up.
        if ["linux,dummy-virt", "riscv-virtio", "qemu,"]
            .iter()
            .any(|name| compatible.contains(name))
        {
            return around(
                Answer::Yes,
                "its device tree describes a machine that exists in software only".into(),
                None,
                found,
            );
        }
        return around(
            Answer::No,
            "its device tree describes a physical board and no hypervisor".into(),
            None,
            found,
        );
    }
    if vendor.is_some() {
        return around(Answer::No, "its firmware names a physical machine".into(), None, found);
    }
    if facts.system.os == Os::Macos && facts.sysctl("kern.hv_vmm_present").is_some() {
        found.push(evidence("sysctl kern.hv_vmm_present", "0"));
        return around(Answer::No, "macOS says that it is not".into(), None, found);
    }
    around(Answer::Unknown, "nothing that would tell could be read".into(), None, found)
}

/// The hypervisor of a CPUID signature.
fn hypervisor_of(signature: &str) -> Option<&'static str> {
    Some(match signature {
        "KVMKVMKVM" | "Linux KVM Hv" => "KVM",
        "Microsoft Hv" => "Hyper-V",
        "VMwareVMware" => "VMware",
        "XenVMMXenVMM" => "Xen",
        "VBoxVBoxVBox" => "VirtualBox",
        "prl hyperv" | "lrpepyh vr" => "Parallels",
        "bhyve bhyve" => "bhyve",
        "OpenBSDVMM58" => "OpenBSD vmm",
        "TCGTCGTCGTCG" => "QEMU (software emulation)",
        "ACRNACRNACRN" => "ACRN",
        "HAXMHAXMHAXM" => "HAXM",
        "___ NVMM ___" => "NVMM",
        "Jailhouse" => "Jailhouse",
        "QNXQVMBSQG" => "QNX",
        _ => return None,
    })
}

/// The hypervisor that firmware tables name, where they name one,
/// and whether that name is a cloud's, which its bare-metal machines carry too.
fn hypervisor_by_product(vendor_and_product: &str) -> Option<(&'static str, bool)> {
    if vendor_and_product.contains(".metal") || vendor_and_product.contains("-metal") {
        return None;
    }
    [
        ("VMware", "VMware", false),
        ("VirtualBox", "VirtualBox", false),
        ("innotek", "VirtualBox", false),
        ("Parallels", "Parallels", false),
        ("Apple Virtualization", "macOS", false),
        ("Xen", "Xen", false),
        ("Microsoft Corporation Virtual Machine", "Hyper-V", false),
        ("Amazon EC2", "Amazon's cloud (Nitro, a KVM)", true),
        ("Google Compute Engine", "Google's cloud (a KVM)", true),
        ("OpenStack", "OpenStack (KVM as a rule)", true),
        ("BHYVE", "bhyve", false),
        ("OpenBSD VMM", "OpenBSD vmm", false),
        ("QEMU", "QEMU or KVM", false),
        ("KVM", "KVM", false),
        ("Bochs", "Bochs", false),
    ]
    .into_iter()
    .find(|(part, ..)| vendor_and_product.contains(part))
    .map(|(_, name, cloud)| (name, cloud))
}

/// A device tree's list of strings, whose separators are NULs.
fn printable(list: &str) -> String {
    list.split('\0').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}
