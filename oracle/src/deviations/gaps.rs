//! What no model is asked, and what of an answer is not compared: neither is a deviation that a run counts.

/// Something that the comparison leaves out.
pub(super) struct Gap {
    /// Which models.
    pub(super) models: &'static str,
    /// What is left out.
    pub(super) what: &'static str,
    /// Why.
    pub(super) why: &'static str,
}

/// What is not asked.
pub(super) static NOT_ASKED: &[Gap] = &[
    Gap {
        models: "QEMU 10 (AArch64, 32-bit Arm)",
        what: "address translation instructions that meet a fault of stage 2",
        why: "the model ends with a failed assertion; 7.2 is asked",
    },
    Gap {
        models: "QEMU (32-bit Arm)",
        what: "address translation instructions that meet a domain fault",
        why: "the model ends with a failed assertion",
    },
    Gap {
        models: "QEMU 7.2 (AArch64)",
        what: "a stage 1 of 4K tables that begins at level -1",
        why: "its faults end with a failed assertion; 10 is asked",
    },
    Gap {
        models: "QEMU 7.2 (AArch64)",
        what: "a stage 2 that begins at level -1 with 4K tables or at level 0 with 16K tables",
        why: "the model refuses what LPA2 allows; 10 is asked",
    },
    Gap {
        models: "QEMU 7.2 (AArch64)",
        what: "an output size (VTCR_EL2.PS) of less than 44 bits with the highest start level",
        why: "the model compares the start level with the output size instead of the processor's; 10 is asked",
    },
    Gap {
        models: "QEMU (x86)",
        what: "nested paging under a 32-bit host",
        why: "the model takes guest physical addresses for system physical ones there, whatever the nested \
              tables say; Bochs is asked",
    },
    Gap {
        models: "QEMU, Bochs (x86)",
        what: "guest physical addresses beyond the width of the nested tables",
        why: "AMD's manual does not say what comes of them (5-level tables hold all of them)",
    },
    Gap {
        models: "all",
        what: "accesses that reach a device, the monitor or its queue, and guests that would run on in memory \
               without a trap or fault for ever",
        why: "the answer would say nothing; each run counts them as not asked",
    },
    Gap {
        models: "all",
        what: "walks in which an accessed or dirty bit changes what the second stage says",
        why: "the answer depends on what a processor keeps of a walk; each run counts them as not asked",
    },
];

/// What is not compared.
pub(super) static NOT_COMPARED: &[Gap] = &[
    Gap {
        models: "QEMU (x86)",
        what: "whether INT3 ends a run as a breakpoint or as the #GP that an empty IDT gives",
        why: "the trap was reached either way; EAX tells where",
    },
    Gap {
        models: "QEMU (AArch64, 32-bit Arm)",
        what: "bits 24:14 of ESR_EL2, ESR_EL1 and HSR, and IL of HSR in Armv7",
        why: "they describe the instruction, or are not valid",
    },
    Gap {
        models: "QEMU (AArch64, 32-bit Arm)",
        what: "level, S1PTW and address of an external abort",
        why: "the walker hands on what the memory says of it and has no syndrome for it",
    },
    Gap {
        models: "QEMU (AArch64, 32-bit Arm)",
        what: "bits 9 and 10 of PAR after a translation that succeeded, HPFAR where no address is valid, \
               DFSR's domain where it is not defined",
        why: "they are NS, IMPLEMENTATION DEFINED, UNKNOWN",
    },
    Gap {
        models: "QEMU (32-bit Arm)",
        what: "the level that is reported of a stage-2 fault on a table of short descriptors",
        why: "both releases report another one (`table-fault-level`)",
    },
    Gap {
        models: "all but QEMU (AArch64, 32-bit Arm)",
        what: "memory types",
        why: "no model reports them; `oracle/golden/uncovered.txt` names the tests that hold the walker to \
              them",
    },
];
