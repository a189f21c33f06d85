//! Of QEMU's AArch64 processors, some of which its 32-bit ones share.

use super::{Deviation, Model, Shows};

/// These deviations.
pub(super) static ALL: &[Deviation] = &[
    Deviation {
        name: "table-fault-level",
        models: &[Model::QemuAarch64, Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM D8.15.1, D24.2 (ESR_ELx: DFSC, IFSC, S1PTW; PAR_EL1: FST, PTW); AArch64.S1Walk and \
                  AArch32.S1WalkSD return the fault record of stage 2",
        what: "A stage-2 fault on a stage-1 table reports the level of the stage-2 lookup that failed; \
               the model keeps the kind of the fault, and reports the level of the stage-1 table that \
               was to be read (7.2, and 10 for tables of short descriptors).",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "protected-walk-level",
        models: &[Model::Qemu10Aarch64, Model::Qemu10Arm],
        section: "Arm ARM D8.15.1, D24.2 (HCR_EL2.PTW); AArch64.S2CheckPermissions, \
                  AArch32.S2HasPermissionsFault",
        what: "With HCR_EL2.PTW, a stage-1 table in memory that stage 2 makes a device is a \
               permission fault at the level of the stage-2 leaf; the model reports level 0 (10, where the \
               table is of long descriptors).",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "upper-output-bits-unread",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64],
        section: "Arm ARM D8.3.1 (output addresses), D8.2.3 (roots); AArch64.LeafBase, \
                  AArch64.NextTableBase, AArch64.S1TTBaseAddress, AArch64.S2TTBaseAddress, AArch64.OAOutOfRange",
        what: "Bits 9:8 of LPA2's descriptors, 15:12 of 64K descriptors and 5:2 of LPA2's root \
               registers are address bits, also where TCR_EL1.IPS or VTCR_EL2.PS allows less than 52 bits, and an address size fault \
               results where they are not zero; the model ignores them then.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "root-bits-are-an-offset",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64],
        section: "Arm ARM D8.2.3 (table D8-10), D24.2 (TTBR0_EL1.BADDR); AArch64.S1TTBaseAddress, \
                  AArch64.S2TTBaseAddress",
        what: "Bits 5:2 of a root register that names 52-bit addresses are address bits 51:48, and the root \
               is aligned to 64 bytes at least; where it is smaller, the model takes those of the bits that \
               are not below its size for an offset into these 64 bytes as well.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "whole-block-address-checked",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64, Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM D8.3.1 (a block's address begins at the bit of its size); \
                  AArch64.LeafBase, AArch64.OAOutOfRange",
        what: "Of a block descriptor, address bits below the block's size are RES0 and no part of the \
               address whose size is checked; the model checks the whole field.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "device-combined-with-normal",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64, Model::QemuArm, Model::Qemu10Arm],
        section: "Arm ARM D8.6.5; S2CombineS1MemAttrs",
        what: "Normal memory of stage 1 under a device type of stage 2 becomes that device type; the \
               model also looks at the low bits of the normal type as if they were a device type, \
               and reports the stronger of both in PAR_EL1.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "device-table-accessed",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64],
        section: "Arm ARM D8.5.2 (updates of the access flag), D24.2 (HCR_EL2.PTW)",
        what: "Whether hardware sets the access flag of a descriptor that then denies the access is left \
               open. The model does not, but where HCR_EL2.PTW denies a stage-1 table in device memory it \
               does.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "clean-page-executable",
        models: &[Model::QemuAarch64, Model::Qemu10Aarch64],
        section: "Arm ARM D8.4.1 and D8.5.2 (AP[2] counts as clear for execute permission); \
                  AArch64.S1ApplyOutputPerms, AArch64.S1DirectBasePermissions",
        what: "A page that hardware will make dirty at the first store is a writable one from the \
               beginning, so that WXN, and at EL1 EL0's right to write, forbid its execution; the model \
               looks at AP[2] as it is in memory.",
        shows: Shows::InWalk,
    },
    Deviation {
        name: "block-at-any-level",
        models: &[Model::QemuAarch64],
        section: "Arm ARM D8.3.1 (sizes of blocks by level); AArch64.BlockDescSupported",
        what: "A block descriptor at a level that has no blocks is reserved and a translation fault; \
               the model takes it for a block (7.2).",
        shows: Shows::InWalk,
    },
];
