//! Of QEMU's and Bochs's x86 processors, and of KVM.

use super::{Deviation, Model, Shows};
use crate::probe::{Case, Outcome};

fn is_pae_guest(case: &Case) -> bool {
    let state = &case.probe.state;
    state[3] >> 31 == 1 && state[5] & 1 << 5 != 0 && state[6] & 1 << 10 == 0
}

/// These deviations.
pub(super) static ALL: &[Deviation] = &[
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
        name: "gigabyte-leaf-accessed-early",
        models: &[Model::QemuX86],
        section: "AMD APM 2 5.4.2; Intel SDM 3A 5.8",
        what: "When accessed bits are set on the way to a fault is left open. The model sets those of tables \
               as it reads them and those of leaves when the access is allowed; but of a 1 GiB leaf as it \
               reads it.",
        shows: Shows::InWalk,
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
            ) if *syndrome >> 33 == 1
                && is_pae_guest(case)
                && expected & !31 == case.probe.state[4] & !31
                && *address == expected & !31 =>
            {
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
        section: "Intel SDM 3A 5.7 (bit 5) and 5.6.2",
        what: "PK is set whenever the page's protection key denies the access, also where U/S denies \
               it too, as a user's access to a supervisor page whose key IA32_PKRS closes; the model \
               then leaves PK clear.",
        shows: Shows::InWalk,
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
        name: "top-bit-8-ignored",
        models: &[Model::QemuX86, Model::Bochs],
        section: "AMD APM 2 5.3.3 (figures 5-19 and 5-20)",
        what: "Bit 8 of PML5E and PML4E must be zero; the model ignores it, as Intel's processors do.",
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
    Deviation {
        name: "large-pages-of-36-bits",
        models: &[Model::Kvm],
        section: "AMD APM 2 5.2.2 (figure 5-8); Intel SDM 3A 5.3 (table 5-4)",
        what: "A 4 MiB page of 32-bit paging has an address of as many bits as the processor has, up to 40: \
               the entry's bits 20:13 hold bits 39:32; KVM takes bits 20:17 for reserved, as if there were \
               36 (by its source; kvm_pvm keeps no 32-bit paging to ask).",
        shows: Shows::InWalk,
    },
];
