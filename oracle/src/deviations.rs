//! Where hardware models differ from the manual, by name.
//!
//! This table is the only place: `docs/deviations.md` is written from it, and each run counts them.

use crate::probe::{Case, Outcome};

/// A hardware model, as far as deviations tell models apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// QEMU, x86.
    QemuX86,
    /// Bochs.
    Bochs,
    /// QEMU before 10, AArch64.
    QemuAarch64,
    /// QEMU 10 and later, AArch64.
    Qemu10Aarch64,
    /// QEMU before 10, 32-bit Arm.
    QemuArm,
    /// QEMU 10 and later, 32-bit Arm.
    Qemu10Arm,
    /// QEMU, RISC-V.
    QemuRiscv,
    /// KVM's own walker.
    Kvm,
}

/// How a deviation shows.
#[derive(Clone, Copy)]
pub enum Shows {
    /// In the report: undoes the deviation in the machine's answer, and says whether there was
    /// anything to undo.
    InReport(fn(&Case, &mut Seen) -> bool),
    /// In the walk: the walker has to be told to deviate in the same way, which
    /// [`crate::probe::Subject::deviating`] does.
    InWalk,
}

/// A way in which some models differ from the manual.
pub struct Deviation {
    /// Its name in tables.
    pub name: &'static str,
    /// Who differs so.
    pub models: &'static [Model],
    /// The manual's section that says otherwise, or that leaves it open.
    pub section: &'static str,
    /// What the manual says and what the model does.
    pub what: &'static str,
    /// How it shows.
    pub shows: Shows,
}

/// What a machine answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The outcome.
    pub outcome: Outcome,
    /// The compared words afterwards.
    pub words: Vec<u64>,
}

fn is_pae_guest(case: &Case) -> bool {
    let state = &case.probe.state;
    state[3] >> 31 == 1 && state[5] & 1 << 5 != 0 && state[6] & 1 << 10 == 0
}

/// All deviations.
pub static ALL: &[Deviation] = &[
    Deviation {
        name: "reserved-without-present",
        models: &[Model::QemuX86],
        section: "AMD APM 2 8.4.2 and 15.25.6; Intel SDM 3A 5.7",
        what: "A fault for a reserved bit has both P and RSVD set in the error code; the model \
               leaves P clear.",
        shows: Shows::InReport(|_, seen| match &mut seen.outcome {
            Outcome::Stage1 { syndrome, .. } | Outcome::Stage2 { syndrome, .. }
                if *syndrome & 9 == 8 =>
            {
                *syndrome |= 1;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "accessed-bit-in-pdpte",
        models: &[Model::QemuX86],
        section: "AMD APM 2 5.2.3 (figure 5-10)",
        what: "PDPTEs of PAE paging have no accessed bit; the model sets bit 5 as it does at other \
               levels.",
        shows: Shows::InReport(|case, seen| {
            use crate::x86::{NPAE, RPAE};
            let mut undone = false;
            for (&(address, _, after), word) in case.compared.iter().zip(&mut seen.words) {
                if [RPAE, NPAE].contains(&(address & !31)) && *word == after | 1 << 5 {
                    undone |= *word != after;
                    *word = after;
                }
            }
            undone
        }),
    },
    Deviation {
        name: "pdptes-loaded-at-vmrun",
        models: &[Model::Bochs],
        section: "AMD APM 2 15.25.10",
        what: "Under NPT a PAE guest's PDPTEs are read one by one as translations need them; the \
               model loads all four at VMRUN, so that a nested fault on them is reported with the \
               address of the first.",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (
                Outcome::Stage2 { address: expected, .. },
                Outcome::Stage2 { syndrome, address, .. },
            ) if *syndrome >> 33 == 1 && is_pae_guest(case) && *address == expected & !31 => {
                *address = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "fetch-flagged-without-pae",
        models: &[Model::Bochs],
        section: "AMD APM 2 8.4.2 (bit 4) and 15.25.6",
        what: "Under a 32-bit host nothing can forbid execution (EFER.NXE works with CR4.PAE \
               only), and the I/D bit of EXITINFO1 stays clear; the model sets it by EFER.NXE alone.",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (Outcome::Stage2 { syndrome: expected, .. }, Outcome::Stage2 { syndrome, .. })
                if *syndrome == expected | 1 << 4
                    && expected & 1 << 4 == 0
                    && case.probe.state[7] == crate::x86::N32 =>
            {
                *syndrome = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "table-access-reported-as-write-only",
        models: &[Model::Bochs],
        section: "Intel SDM 3C table 29-7 (bits 0 and 1) and 30.3.5",
        what: "With EPT accessed and dirty flags, an access to a guest table counts as a write, and \
               a violation by it sets bits 0 and 1 of the exit qualification; the model sets bit 1 \
               only.",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (Outcome::Stage2 { syndrome: expected, .. }, Outcome::Stage2 { syndrome, .. })
                if *syndrome | 1 == expected
                    && *syndrome & 3 == 2
                    && expected & 0x180 == 0x80
                    && case.probe.state[7] & 0x40 != 0 =>
            {
                *syndrome = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "key-reported-alone-only",
        models: &[Model::QemuX86],
        section: "Intel SDM 3A 5.7 (bit 5), AMD APM 2 8.4.2 (bit 5)",
        what: "PK is set whenever the page's protection key denies the access, also where U/S denies \
               it too; the model then leaves PK clear.",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (Outcome::Stage1 { syndrome: expected, .. }, Outcome::Stage1 { syndrome, .. })
                if *syndrome | 1 << 5 == expected
                    && *syndrome & 1 << 5 == 0
                    && expected & 4 != 0 =>
            {
                *syndrome = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "table-update-unchecked",
        models: &[Model::Bochs],
        section: "Intel SDM 3C 30.3.3.2",
        what: "Setting accessed and dirty bits in a guest table is a data write and needs EPT's \
               write permission; without EPT accessed and dirty flags the model does not ask for \
               it.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "large-leaf-bit-12",
        models: &[Model::Bochs],
        section: "Intel SDM 3C tables 30-3 and 30-5, 30.3.3.1",
        what: "Bit 12 of a 2 MiB or 1 GiB EPT leaf is reserved and misconfigures it; the model \
               ignores it.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "pdpte-reserved-ignored",
        models: &[Model::QemuX86],
        section: "AMD APM 2 5.2.3 (figure 5-10)",
        what: "Bits 2:1 and 8:5 of a PAE PDPTE must be zero; the model ignores them where it \
               reads PDPTEs from memory.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "table-fault-level",
        models: &[Model::QemuAarch64, Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM D8.15.2 (faults on stage 1 table walks) and D24.2.41 (DFSC, IFSC, S1PTW), \
                  D24.2.139 (PAR_EL1.FST); AArch64.S1Walk keeps the fault record of stage 2",
        what: "A stage-2 fault on a stage-1 table reports the level of the stage-2 lookup that failed; \
               the model keeps the kind of the fault, and reports the level of the stage-1 table that \
               was to be read (7.2, and 10 for tables of short descriptors).",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "protected-walk-level",
        models: &[Model::Qemu10Aarch64, Model::Qemu10Arm],
        section: "Arm ARM D24.2.55 (HCR_EL2.PTW), D24.2.41; AArch64.S2Translate",
        what: "With HCR_EL2.PTW, a stage-1 table in memory that stage 2 makes a device is a \
               permission fault at the level of the stage-2 leaf; the model reports level 0 (10, where the \
               table is of long descriptors).",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "upper-output-bits-unread",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64],
        section: "Arm ARM D8.3.1, D8.2.6 (output addresses); AArch64.LeafBase, AArch64.OAOutOfRange",
        what: "Bits 9:8 of LPA2's descriptors, 15:12 of 64K descriptors and 5:2 of LPA2's root \
               registers are address bits, also where TCR_EL1.IPS or VTCR_EL2.PS allows less than 52 bits, and an address size fault \
               results where they are not zero; the model ignores them then.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "whole-block-address-checked",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64, Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM AArch64.LeafBase, AArch64.OAOutOfRange (D8.3.1: the block's address \
                  begins at the bit of its size)",
        what: "Of a block descriptor, address bits below the block's size are RES0 and no part of the \
               address whose size is checked; the model checks the whole field.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "domain-checked-first",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.4, AArch32.S1TranslateSD (ARMv7: DDI 0406C B3.12, B3.19: \
                  TranslationTableWalkSD, then CheckDomain)",
        what: "The domain of a short descriptor is checked when the walk is over, after translation \
               and access flag faults; the model checks it at the first descriptor, before it reads \
               the second.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "wxn-ignored-for-short",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.6.2, G8.2.126 (SCTLR.WXN, UWXN); AArch32.S1SDHasPermissionsFault",
        what: "WXN and UWXN forbid execution of writable pages in both formats; the model looks at \
               them for long descriptors only.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "manager-needs-no-access-flag",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.4.4, AArch32.S1TranslateSD (ARMv7: DDI 0406C B3.12)",
        what: "With SCTLR.AFE a clear access flag faults whatever the domain's rights; the model \
               does not look at it where the domain is a manager's.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "execute-never-before-access-flag",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.4.4, AArch32.S1TranslateSD (ARMv7: DDI 0406C B3.12)",
        what: "With SCTLR.AFE an access flag fault comes before permission faults; the model checks XN \
               and PXN of short descriptors first.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "pan-forbids-fetches",
        models: &[Model::Qemu10Arm],
        section: "Arm ARM G5.6.2 (PAN: data accesses), AArch32.S1LDHasPermissionsFault",
        what: "PSTATE.PAN forbids privileged data accesses to pages that PL0 may access; the model \
               forbids fetches from them as well.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "xnx-executes-unreadable",
        models: &[Model::Qemu10Arm],
        section: "Arm ARM G5.6.1 (stage 2: execution needs read permission), \
                  AArch32.S2HasPermissionsFault",
        what: "In AArch32 state stage 2 lets nobody execute what it does not let read; with FEAT_XNX \
               the model does, as in AArch64 state.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "hpfar-of-32-bits",
        models: &[Model::Qemu10Arm],
        section: "Arm ARM G8.2.67 (HPFAR: bits 31:4 are IPA[39:12])",
        what: "The emulator of 32-bit machines keeps 32 bits of the address it reports in HPFAR.",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (Outcome::Stage2 { address: expected, .. }, Outcome::Stage2 { address, .. })
                if *address == expected & 0xFF_FFF0 && *address != expected =>
            {
                *address = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "domain-in-ifsr",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G8.2.93 (IFSR)",
        what: "IFSR has no domain, bits 7:4 are zero; the model puts it there.",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (Outcome::Stage1 { syndrome: expected, .. }, Outcome::Stage1 { syndrome, .. })
                if case.probe.operation == 1
                    && *syndrome & 1 << 9 == 0
                    && *syndrome & !0xF0 == expected
                    && *syndrome != expected =>
            {
                *syndrome = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "short-attributes-unknown",
        models: &[Model::QemuArm],
        section: "Arm ARM G5.7 (memory region attributes), G8.2.123 (PAR)",
        what: "A short descriptor's TEX, C and B name memory attributes, which PAR reports after they \
               were combined with those of stage 2; the model reports Device-nGnRnE for all (7.2).",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (Outcome::Done { value: expected }, Outcome::Done { value })
                if case.probe.operation != 1
                    && case.probe.state[3] & 1 != 0
                    && !crate::arm32::is_long(&case.probe.state)
                    && *value == expected & 0xFF_FFFF_F000 | 1 << 11 | 2 << 7
                    && *value != expected =>
            {
                *value = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "device-combined-with-normal",
        models: &[Model::QemuAarch64, Model::QemuArm],
        section: "Arm ARM D8.6.5 (combining the memory types of both stages)",
        what: "Normal memory of stage 1 under a device type of stage 2 becomes that device type; the \
               model also looks at the low bits of the normal type as if they were a device type, \
               and reports Device-nGnRE in PAR_EL1 (7.2).",
        shows: Shows::InReport(|case, seen| match (case.expected, &mut seen.outcome) {
            (Outcome::Done { value: expected }, Outcome::Done { value })
                if case.probe.operation != 1
                    && *value >> 56 == 4
                    && matches!(expected >> 56, 8 | 12)
                    && (*value ^ expected) >> 56 << 56 == *value ^ expected =>
            {
                *value = expected;
                true
            }
            _ => false,
        }),
    },
    Deviation {
        name: "clean-page-executable",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64],
        section: "Arm ARM AArch64.S1DirectBasePermissions (AP[2] counts as clear where DBM is set and HD \
                  is in use; WXN and EL1's never executing what EL0 may write follow from that)",
        what: "A page that hardware will make dirty at the first store is a writable one from the \
               beginning, so that WXN, and at EL1 EL0's right to write, forbid its execution; the model \
               looks at AP[2] as it is in memory.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "block-at-any-level",
        models: &[Model::QemuAarch64],
        section: "Arm ARM D8.3.1 (tables of block sizes)",
        what: "A block descriptor at a level that has no blocks is reserved and a translation fault; \
               the model takes it for a block (7.2).",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "hlvx-is-a-fetch",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Hypervisor extension, \"Hypervisor Virtual-Machine Load and \
                  Store Instructions\"",
        what: "HLVX is a load that asks for execute permission: SUM applies to it, and its exceptions \
               are those of a load; the model makes an instruction fetch of it, and reports page \
               faults instead of guest-page faults.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "mxr-for-implicit-reads",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Hypervisor extension, \"Two-Stage Address Translation\"",
        what: "MXR makes executable pages readable for explicit loads; the model applies it to \
               G-stage's check of VS-stage's table reads too.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "hlv-ignores-henvcfg",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Hypervisor extension, \"Hypervisor Environment Configuration \
                  Register\"",
        what: "HLV, HSV and HLVX access memory as though V were 1, so that henvcfg governs VS-stage's \
               ADUE and PBMTE; the model takes menvcfg alone for them.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "table-without-memory",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, \"Virtual Address Translation Process\", step 2",
        what: "Where no memory answers the read of a table entry, the access ends with an access \
               fault; the model reports a page fault.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "g-stage-update-unchecked",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Hypervisor extension, \"Guest-Page Faults\"",
        what: "Setting A and D in a VS-stage entry is an implicit store and needs G-stage's write \
               permission; the model does not ask for it.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "pbmt-3-accepted",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Svpbmt",
        what: "The encoding 3 of PBMT is reserved and faults; the model accepts it where PBMTE is set.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "top-bit-8-ignored",
        models: &[Model::QemuX86, Model::Bochs],
        section: "AMD APM 2 5.3.3 (figures 5-18 and 5-19)",
        what: "Bit 8 of PML4E and PML5E must be zero; the model ignores it, as Intel's processors do.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "slot-of-the-switcher",
        models: &[Model::Kvm],
        section: "Intel SDM 3A 5.5 (4-level paging: every entry of the topmost table is the guest's)",
        what: "kvm_pvm keeps the topmost slot 256 of the address space for the code that switches to a \
               guest in user mode; to the guest its own entry there seems not present, and the error \
               code has I/D for a fetch also where EFER.NXE is clear.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "translate-ignores-upper-bits",
        models: &[Model::Kvm],
        section: "Intel SDM 3A 5.5.4; SDM 1 3.3.7.1 (canonical addresses)",
        what: "An address whose upper bits do not repeat its topmost translated bit has no translation; \
               KVM_TRANSLATE does not look at those bits.",
        shows: Shows::InWalk,
    },
];

impl Model {
    /// Its name in the document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Model::QemuX86 => "QEMU (x86)",
            Model::Bochs => "Bochs",
            Model::QemuAarch64 => "QEMU 7.2 (AArch64)",
            Model::Qemu10Aarch64 => "QEMU 10 (AArch64)",
            Model::QemuArm => "QEMU 7.2 (32-bit Arm)",
            Model::Qemu10Arm => "QEMU 10 (32-bit Arm)",
            Model::QemuRiscv => "QEMU (RISC-V)",
            Model::Kvm => "KVM",
        }
    }
}

/// The text of `docs/deviations.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(
        "# Where hardware models differ from the manuals\n\n\
         `cargo xtask oracle` compares the walker with hardware models that others wrote. Where the \
         two differ, the\nmanual decides. The differences below are the models'; each run counts \
         them by name, and any other\nfails it. This page is written from \
         `oracle/src/deviations.rs` by `cargo xtask oracle --bless`, and a\ntest holds it to that \
         table.\n\n\
         \"In the report\": the model's answer is corrected, then compared. \"In the walk\": the \
         walker is told to\ndiffer in the same way, and must then give exactly the model's \
         answer.\n",
    );
    for deviation in ALL {
        let models: Vec<&str> = deviation.models.iter().map(|model| model.name()).collect();
        let shows = match deviation.shows {
            Shows::InReport(_) => "in the report",
            Shows::InWalk => "in the walk",
        };
        text += &format!(
            "\n## {}\n\n{}, {shows}. Manual: {}.\n\n{}\n",
            deviation.name,
            models.join(", "),
            deviation.section,
            deviation.what
        );
    }
    text
}

/// Undoes every deviation of `model` that shows in the report, and returns the first that did.
pub(crate) fn undo(model: Model, case: &Case, seen: &mut Seen) -> Option<&'static Deviation> {
    let mut first = None;
    for deviation in ALL.iter().filter(|d| d.models.contains(&model)) {
        if let Shows::InReport(undo) = deviation.shows
            && undo(case, seen)
        {
            first = first.or(Some(deviation));
        }
    }
    first
}
