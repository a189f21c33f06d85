//! The words of the tables, explained.

use crate::text::wrapped;

/// The words of the tables and what they mean.
pub const TERMS: &[(&str, &str)] = &[
    (
        "scheme",
        "How the guest gets its memory. native: no virtual machine. shadow: the hypervisor keeps GVA-to-SPA tables (out-of-sync discipline); shadow-trap: the same, every store to a guest table traps. ept, npt, stage2, g-stage: the processor walks the guest's tables and the hypervisor's. With a star: transcribed.",
    ),
    (
        "host-page",
        "The page size with which the hypervisor backs the guest's memory; under shadow paging the largest of those asked for, up to 2M.",
    ),
    (
        "time",
        "Run time divided by the run time without virtualization. The range follows from the confidence of the parameters: measured values may be off by a factor of 1.1, documented ones by 1.2, assumed ones by 1.5, each independently of the others.",
    ),
    (
        "tlb-miss",
        "Lookups that neither TLB level served, in percent of all lookups. An access that crosses a page is two lookups.",
    ),
    (
        "refs",
        "Table entries read from memory or the data caches, a walk. 24 for a cold walk of 4 over 4 levels, 4 natively.",
    ),
    (
        "exits",
        "Trips to the hypervisor, a million accesses: first touches of host pages under SLAT; table writes, CR3 loads, INVLPG and page faults under shadow paging; devices under both; with --share also the next virtual machine's turn.",
    ),
    (
        "tables",
        "Memory that tables take: the guest's own that the recording shows, and the hypervisor's.",
    ),
    (
        "splintered",
        "Walks whose TLB entry is smaller than the guest's page, since the host's page is smaller.",
    ),
    (
        "tags",
        "Whether TLB entries carry the virtual machine (VPID, ASID, VMID), so that they survive exits.",
    ),
    (
        "transcribed",
        "The guest's tables were recorded on another architecture, and each entry was rewritten for this one: same pages, same rights, and the same levels, but that an AArch64 guest gets a fifth, which names its two roots. The guest's kernel would have behaved otherwise there.",
    ),
    (
        "data",
        "Waiting for data that the first cache level does not hold. Alike in all schemes, native too, and so no cost of translation; it makes translation weigh less.",
    ),
    (
        "waiting",
        "Time in which the guest has nothing to run and a device works for it; the same in all schemes.",
    ),
    (
        "what-if",
        "A change that the recording does not have, simulated beside the schemes: large pages where the guest fills 2 MiB (one that a store splits stays split until more of it is present than then, since a kernel gathers pages again seldom and late), PCIDs whose invalidations follow from the page-table stores, or tags.",
    ),
    (
        "share",
        "With --share the workloads take turns on the same cores. Each turn is an exit and the hypervisor's work to run another virtual machine. Natively it is a process switch: the preset's process_switch, and the loss of what is not global, unless address spaces have numbers (ASIDs, --pcid).",
    ),
    ("second-tlb", "Lookups that the first-level TLB missed and the second served."),
];

/// What `--explain` prints of one of [`TERMS`], in lines of at most 80 characters; `None` for
/// another word.
pub fn explained(term: &str) -> Option<String> {
    let (name, text) = TERMS.iter().find(|(name, _)| *name == term)?;
    Some(wrapped(&format!("{name}: {text}"), 80).join("\n") + "\n")
}
