//! Of QEMU's 32-bit Arm processors.

use super::{Deviation, Model, Shows};
use crate::probe::Outcome;

/// These deviations.
pub(super) static ALL: &[Deviation] = &[
    Deviation {
        name: "domain-checked-first",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.6.4, G5.11.6; AArch32.S1TranslateSD (the domain) after AArch32.S1WalkSD \
                  (ARMv7: DDI 0406C B3.12, B3.19)",
        what: "The domain of a short descriptor is checked when the walk is over, after translation \
               and access flag faults; the model checks it at the first descriptor, before it reads \
               the second.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "wxn-ignored-for-short",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.6.3, G8.2 (SCTLR.WXN, UWXN); AArch32.S1SDHasPermissionsFault",
        what: "WXN and UWXN forbid execution of writable pages in both formats; the model looks at \
               them for long descriptors only.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "manager-needs-no-access-flag",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.6.5, G5.11.6; AArch32.S1WalkSD (the access flag) before the domain in \
                  AArch32.S1TranslateSD (ARMv7: DDI 0406C B3.12)",
        what: "With SCTLR.AFE a clear access flag faults whatever the domain's rights; the model \
               does not look at it where the domain is a manager's.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "execute-never-before-access-flag",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.6.5, G5.11.6; AArch32.S1WalkSD (the access flag) before \
                  AArch32.S1SDHasPermissionsFault (ARMv7: DDI 0406C B3.12)",
        what: "With SCTLR.AFE an access flag fault comes before permission faults; the model checks XN \
               and PXN of short descriptors first.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "pan-forbids-fetches",
        models: &[Model::Qemu10Arm],
        section: "Arm ARM G5.6.2 (PAN: data accesses); AArch32.S1LDHasPermissionsFault, \
                  AArch32.S1SDHasPermissionsFault",
        what: "PSTATE.PAN forbids privileged data accesses to pages that PL0 may access; the model \
               forbids fetches from them as well.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "xnx-executes-unreadable",
        models: &[Model::Qemu10Arm],
        section: "Arm ARM G5.6.3, G5.6.6; AArch32.S2HasPermissionsFault",
        what: "In AArch32 state stage 2 lets nobody execute what it does not let read; with FEAT_XNX \
               the model does, as in AArch64 state.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "hpfar-of-32-bits",
        models: &[Model::Qemu10Arm],
        section: "Arm ARM G8.2 (HPFAR: bits 31:4 are IPA[39:12])",
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
        section: "Arm ARM G8.2 (IFSR)",
        what: "IFSR has no domain, bits 7:4 are zero; the model puts it there.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "short-attributes-unknown",
        models: &[Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM G5.7.2, G5.7.3, G8.2 (PAR)",
        what: "A short descriptor's TEX, C and B name memory attributes, which PAR reports after they \
               were combined with those of stage 2; the model reports Device-nGnRnE for all.",
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
];
