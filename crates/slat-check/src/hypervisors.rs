//! Which hypervisors need SLAT, why, and which could run on this machine.
//!
//! Sources, as of 2025: KVM: `arch/x86/kvm/mmu/` (shadow pager) and `arch/{arm64,riscv}/kvm/main.c` or
//! `arm.c` (no other way); Xen: "HAP" and "shadow" in its command-line documentation; Hyper-V: "System
//! requirements for Hyper-V on Windows Server" and "Client Hyper-V"; VMware: "Processor requirements for host
//! systems" of Workstation 14 and later; VirtualBox: user manual, "Changelog" of 6.1.0 and "Nested paging";
//! bhyve: FreeBSD handbook, "Virtualization"; vmm(4) of OpenBSD; Parallels: "System requirements".

use crate::judge::{Cause, Judgement};
use crate::machine::{Arch, Os, System};
use crate::report::{Answer, Hypervisor};

/// What the hardware gives to a hypervisor here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gives {
    Slat,
    VirtualizationOnly,
    Nothing,
    Unclear,
}

struct Product {
    name: &'static str,
    requires: bool,
    why: &'static str,
    /// The systems that it runs on, `None` where it brings its own.
    on: Option<Os>,
    /// How to name that system.
    system: &'static str,
}

const X86: &[Product] = &[
    Product {
        name: "KVM",
        requires: false,
        why: "does without SLAT by shadowing page tables in software, which is slower",
        on: Some(Os::Linux),
        system: "Linux",
    },
    Product {
        name: "Xen",
        requires: false,
        why: "does without SLAT by shadowing",
        on: None,
        system: "Xen",
    },
    Product {
        name: "Hyper-V",
        requires: true,
        why: "needs SLAT since Windows 8 and Server 2016; WSL 2 and Sandbox build on it",
        on: Some(Os::Windows),
        system: "Windows",
    },
    Product {
        name: "VMware",
        requires: true,
        why: "needs SLAT: current versions are made for processors of 2011 and later",
        on: None,
        system: "VMware",
    },
    Product {
        name: "VirtualBox",
        requires: false,
        why: "does without SLAT by shadowing, but needs VT-x or AMD-V since 6.1",
        on: None,
        system: "VirtualBox",
    },
    Product {
        name: "bhyve",
        requires: true,
        why: "needs SLAT: it has no shadow page tables",
        on: Some(Os::Other),
        system: "FreeBSD",
    },
    Product {
        name: "OpenBSD vmm",
        requires: true,
        why: "needs SLAT: it runs guests with EPT or RVI (NPT) only",
        on: Some(Os::Other),
        system: "OpenBSD",
    },
    Product {
        name: "Parallels",
        requires: true,
        why: "needs SLAT, which all Macs have that current versions run on",
        on: Some(Os::Macos),
        system: "macOS",
    },
];

const ARM: &[Product] = &[
    Product {
        name: "KVM",
        requires: true,
        why: "needs SLAT: on Arm it has no other way",
        on: Some(Os::Linux),
        system: "Linux",
    },
    Product {
        name: "Xen",
        requires: true,
        why: "needs SLAT: on Arm it has no other way",
        on: None,
        system: "Xen",
    },
    Product {
        name: "Hyper-V",
        requires: true,
        why: "needs SLAT: on Arm it has no other way",
        on: Some(Os::Windows),
        system: "Windows",
    },
    Product {
        name: "VMware",
        requires: true,
        why: "needs SLAT: on Arm (ESXi, Fusion) it has no other way",
        on: None,
        system: "VMware",
    },
    Product {
        name: "VirtualBox",
        requires: true,
        why: "needs SLAT: on Arm (since 7.1) it has no other way",
        on: Some(Os::Windows),
        system: "Windows or macOS",
    },
    Product {
        name: "bhyve",
        requires: true,
        why: "needs SLAT: on Arm (since FreeBSD 15) it has no other way",
        on: Some(Os::Other),
        system: "FreeBSD",
    },
    Product {
        name: "Parallels",
        requires: true,
        why: "needs SLAT, which all Macs of this kind have",
        on: Some(Os::Macos),
        system: "macOS",
    },
];

const RISCV: &[Product] = &[Product {
    name: "KVM",
    requires: true,
    why: "needs SLAT: on RISC-V it has no other way",
    on: Some(Os::Linux),
    system: "Linux",
}];

/// The hypervisors for x86 by name, and whether their current versions need SLAT.
pub fn requiring_slat_on_x86() -> impl Iterator<Item = (&'static str, bool)> {
    X86.iter().map(|product| (product.name, product.requires))
}

pub(crate) fn hypervisors(system: System, judgement: &Judgement) -> Vec<Hypervisor> {
    let products = match system.arch {
        Arch::X86 => X86,
        Arch::Arm => ARM,
        Arch::Riscv => RISCV,
        Arch::Other => &[],
    };
    let gives = gives(judgement);
    products
        .iter()
        .map(|product| {
            let (here, because, remark) = here(product, system, gives, judgement);
            Hypervisor {
                name: product.name,
                requires_slat: product.requires,
                why: product.why,
                here,
                because,
                remark,
            }
        })
        .collect()
}

fn gives(judgement: &Judgement) -> Gives {
    match (&judgement.cause, judgement.processor.answer, judgement.firmware.answer) {
        (Cause::UsedBy(_), ..) => Gives::Slat,
        (Cause::HiddenInVm { .. } | Cause::FirmwareOff { .. } | Cause::NoEl2, ..) => Gives::Nothing,
        (_, Answer::Yes, Answer::Yes) => Gives::Slat,
        (_, Answer::No, Answer::Yes) => Gives::VirtualizationOnly,
        (_, Answer::No, Answer::No) => Gives::Nothing,
        _ => Gives::Unclear,
    }
}

/// Whether it could run here, what makes it so, and what of that is worth a person's time.
fn here(
    product: &Product,
    system: System,
    gives: Gives,
    judgement: &Judgement,
) -> (Answer, String, Option<String>) {
    let plain = |answer, because: &str| (answer, because.to_string(), None);
    let telling = |answer, because: &str| (answer, because.to_string(), Some(because.to_string()));
    // What is in use is the best proof of what can run.
    match &judgement.cause {
        Cause::UsedBy(user) if *user == product.name => return telling(Answer::Yes, "it runs"),
        Cause::ParameterOff { .. } if product.name == "KVM" => {
            return telling(Answer::Yes, "it runs without");
        }
        Cause::HiddenInVm { software: Some(_) }
        | Cause::ProcessorLacks { software: Some(_) }
        | Cause::FirmwareOff { software: Some(_) }
            if product.name == "KVM" =>
        {
            return telling(Answer::Yes, "it runs");
        }
        _ => {}
    }
    if product.name == "Parallels" && system.os != Os::Macos {
        return telling(Answer::No, "it runs on Macs only");
    }
    let elsewhere = product.on.is_some_and(|os| os != system.os || os == Os::Other);
    let yes = |because: &str| match elsewhere {
        true => {
            let under = format!("under {}", product.system);
            (Answer::Yes, format!("{because}, {under}"), Some(under))
        }
        false => plain(Answer::Yes, because),
    };
    match (gives, product.requires) {
        (Gives::Slat, _) => yes("SLAT is here"),
        (Gives::VirtualizationOnly, false) => yes("it does without"),
        (Gives::VirtualizationOnly, true) => plain(Answer::No, "there is no SLAT here"),
        // Xen on x86 has guests that know that they are guests and need nothing of the processor.
        (Gives::Nothing, false) if product.name == "Xen" => {
            telling(Answer::Yes, "here for paravirtualized guests only, which need neither")
        }
        (Gives::Nothing, requires) => match &judgement.cause {
            Cause::FirmwareOff { .. } => {
                plain(Answer::No, "virtualization is switched off in the firmware")
            }
            Cause::NoEl2 => plain(Answer::No, "something else keeps EL2"),
            _ if requires => plain(Answer::No, "there is no SLAT here"),
            _ => telling(Answer::No, "neither is here"),
        },
        (Gives::Unclear, _) => plain(Answer::Unknown, "could not tell what the hardware gives"),
    }
}
