//! Of QEMU's RISC-V harts.

use super::{Deviation, Model, Shows, undo_one};
use crate::riscv;

/// These deviations.
pub(super) static ALL: &[Deviation] = &[
    Deviation {
        name: "hlvx-is-a-fetch",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Hypervisor extension, \"Hypervisor Virtual-Machine Load and \
                  Store Instructions\"",
        what: "HLVX is a load that asks for execute permission: vsstatus.SUM applies to it, and its \
               exceptions are those of a load; the model makes an instruction fetch of it, and reports \
               page faults instead of guest-page faults.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "mxr-for-implicit-reads",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Hypervisor extension, \"Two-Stage Address Translation\" and \
                  \"Hypervisor Virtual-Machine Load and Store Instructions\"",
        what: "MXR makes executable pages readable for explicit loads; the model applies it to \
               G-stage's check of VS-stage's table reads too.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "hlv-ignores-henvcfg",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Hypervisor extension, \"Hypervisor Environment Configuration \
                  Register\" and \"Machine Status Registers\" (MPRV)",
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
        section: "RISC-V privileged, Hypervisor extension, \"Guest Physical Address Translation\"",
        what: "Setting A and D in a VS-stage entry is an implicit store and needs G-stage's write \
               permission; the model does not ask for it.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "napot-checked-last",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Svnapot; \"Virtual Address Translation Process\", step 9",
        what: "An entry whose N and PPN form a reserved encoding faults, and is not updated; the model sets \
               A and D before it looks at N.",
        shows: Shows::InReport(|case, seen| {
            const N: u64 = 1 << 63;
            if case.expected.is_passed() {
                return false;
            }
            let allowed = riscv::accessed_by(&case.probe);
            undo_one(case, seen, |before, after, got| {
                let set = got ^ after;
                after == before && before & N != 0 && set & !allowed == 0 && got & set == set
            })
        }),
    },
    Deviation {
        name: "pbmt-3-accepted",
        models: &[Model::QemuRiscv],
        section: "RISC-V privileged, Svpbmt",
        what: "The encoding 3 of PBMT is reserved and faults; the model accepts it where PBMTE is set.",
        shows: Shows::InWalk,
    },
];
