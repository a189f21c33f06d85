//! The words of the tables, explained.

use crate::text::wrapped;

/// A word of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Term {
    /// What it is called here.
    pub name: &'static str,
    /// How tables, pages and JSON have it.
    pub also: &'static [&'static str],
    /// What it means.
    pub text: &'static str,
}

const fn term(name: &'static str, also: &'static [&'static str], text: &'static str) -> Term {
    Term { name, also, text }
}

/// The words of the tables and what they mean.
pub const TERMS: &[Term] = &[
    term(
        "scheme",
        &["native", "shadow", "shadow-trap", "ept", "npt", "stage2", "g-stage"],
        "How the guest gets its memory. native: no virtual machine. shadow: the hypervisor keeps GVA-to-SPA tables (out-of-sync discipline); shadow-trap: the same, every store to a guest table traps. ept, npt, stage2, g-stage: the processor walks the guest's tables and the hypervisor's. With a star: transcribed; with a tilde: lacking.",
    ),
    term(
        "host-page",
        &["host"],
        "The page size with which the hypervisor backs the guest's memory; under shadow paging the largest of those asked for, up to 2M.",
    ),
    term(
        "time",
        &["time vs native"],
        "Run time divided by the run time without virtualization. Where the recording counts no instructions there is none, and the column has cycles/access.",
    ),
    term(
        "cycles/access",
        &["cycles per access"],
        "What translation and exits take, in cycles an access: second-level TLB hits, walks, and trips to the hypervisor. In place of time vs native where run times are not known.",
    ),
    term(
        "range",
        &["low", "high"],
        "Both ends of what the prices of events allow: measured ones may be off by a factor of 1.1, documented ones by 1.2, assumed ones by 1.5, each independently of the others. That sizes of TLBs and caches are assumed widens no range.",
    ),
    term(
        "tlb-miss",
        &["tlb miss %", "tlb misses"],
        "Lookups that neither TLB level served, in percent of all lookups. An access that crosses a page is two lookups.",
    ),
    term(
        "refs",
        &["refs/walk", "references"],
        "Table entries read from memory or the data caches, a walk. 24 for a cold walk of 4 over 4 levels, 4 natively.",
    ),
    term(
        "exits",
        &["exits/m acc", "exits/m accesses"],
        "Trips to the hypervisor, a million accesses: first touches of host pages under SLAT; table writes, CR3 loads, INVLPG and page faults under shadow paging; devices under both; with --share also the next virtual machine's turn.",
    ),
    term(
        "violation",
        &["first touches of host pages"],
        "An exit: the guest touched a host page that was not backed yet, under a second stage and from a cold start.",
    ),
    term(
        "table-write",
        &["page-table-write exits"],
        "An exit under shadow paging: the guest stored to a table that is shadowed, or to a page that was one and whose shadow the hypervisor has not given up yet.",
    ),
    term(
        "cr3",
        &["CR3-load exits"],
        "An exit under shadow paging: the guest loaded its root register.",
    ),
    term(
        "invlpg",
        &["INVLPG exits"],
        "An exit under shadow paging: the guest dropped a translation.",
    ),
    term(
        "true-fault",
        &["intercepted page faults"],
        "An exit under shadow paging: a page fault of the guest's own, which the hypervisor sees first and passes on.",
    ),
    term(
        "hidden-fault",
        &["faults that fill the shadow"],
        "An exit under shadow paging: the guest's tables permit the access, and the shadow did not have it yet.",
    ),
    term(
        "dirty",
        &["faults that set dirty bits"],
        "An exit under shadow paging: the first store to a clean page, which is kept read-only so that the guest's dirty bit can be set.",
    ),
    term(
        "emulation",
        &["stores that the hypervisor carries out"],
        "An exit under shadow paging: a supervisor's store to a read-only page, which a clear CR0.WP permits and the hypervisor carries out.",
    ),
    term("io", &["device exits"], "An exit under any hypervisor: the guest accessed a device."),
    term(
        "switch",
        &["switches between virtual machines"],
        "An exit with --share: another virtual machine's turn on the core.",
    ),
    term(
        "tables",
        &["tables kib", "table bytes"],
        "The most memory that tables took at once: the guest's own that the recording shows, and the hypervisor's. --cycles has them apart.",
    ),
    term(
        "grid",
        &["gL1", "gL2", "gL3", "gL4", "gL5", "gPA", "nL1", "nL2", "nL3", "nL4", "nL5", "G"],
        "Table entries that walks used, of which kind. A row is what was translated: the guest's table of that level (gL1 the smallest leaves' one), or the final address (gPA). A column is the level of the nested table read for it (nL1 to nL5), or the guest's own entry (G); under shadow paging and natively all is in G.",
    ),
    term(
        "served",
        &["L1", "L2", "L3", "memory"],
        "Which cache level held the table entries that walks read, or memory.",
    ),
    term(
        "instructions",
        &["instructions at base CPI"],
        "What the guest's instructions take where translation costs nothing and the first cache level holds all data: their number times the processor's base CPI.",
    ),
    term(
        "data",
        &["waiting for data"],
        "Waiting for data that the first cache level does not hold. Alike in all schemes, native too, and so no cost of translation; it makes translation weigh less.",
    ),
    term(
        "waiting",
        &["waiting for devices"],
        "Time in which the guest has nothing to run and a device works for it; the same in all schemes.",
    ),
    term(
        "second-tlb",
        &["second-level TLB hits", "second-level hits", "second tlb hits"],
        "Lookups that the first-level TLB missed and the second served.",
    ),
    term(
        "walks",
        &["guest walk", "host walk", "walks, guest's own entries", "walks, hypervisor's entries"],
        "TLB misses, each a walk. What they take is the share of their reads' time that is not hidden behind other work (exposed), by whose entries they read: the guest's own, or those of nested or shadow tables.",
    ),
    term(
        "walk-duration",
        &["walks last"],
        "How long walks last, hidden behind other work or not: what a processor's counters of walk cycles count. No part of the time, of which walks are.",
    ),
    term(
        "process-switches",
        &[],
        "With --share, natively: switches to another guest's processes in place of virtual machines' turns.",
    ),
    term(
        "splintered",
        &[],
        "Walks whose TLB entry is smaller than the guest's page, since the host's page is smaller, or since under shadow paging a table lies in the page.",
    ),
    term(
        "tags",
        &[],
        "Whether TLB entries carry the virtual machine (VPID, ASID, VMID), so that they survive exits.",
    ),
    term(
        "transcribed",
        &["*"],
        "The guest's tables were recorded on another architecture, and each entry was rewritten for this one: same pages, same rights, and the same levels, but that an AArch64 guest gets a fifth, which names its two roots. The guest's kernel would have behaved otherwise there.",
    ),
    term(
        "lacking",
        &["~", "lacks"],
        "The chosen processor has no second stage of this kind, or no pages so large in it: the row is a what-if at this processor's costs.",
    ),
    term(
        "what-if",
        &["what ifs"],
        "A change that the recording does not have, simulated beside the schemes: large pages where the guest fills 2 MiB (one that a store splits stays split until more of it is present than then, since a kernel gathers pages again seldom and late), PCIDs whose invalidations follow from the page-table stores, or tags.",
    ),
    term(
        "share",
        &[],
        "With --share the workloads take turns on the same cores. Each turn is an exit and the hypervisor's work to run another virtual machine. Natively it is a process switch: the preset's process_switch, and the loss of what is not global, unless address spaces have numbers (ASIDs, --pcid).",
    ),
];

/// A word without what separates its parts, in lower case.
fn plain(word: &str) -> String {
    let apart = |letter: &char| !matches!(letter, ' ' | '-' | '_' | '/' | ',');
    word.chars().filter(apart).collect::<String>().to_lowercase()
}

/// What `--explain` prints of one of [`TERMS`], in lines of at most 80 characters; `None` for another
/// word. Spaces, hyphens, strokes and capitals do not matter.
pub fn explained(term: &str) -> Option<String> {
    let wanted = plain(term);
    let named = |held: &&Term| plain(held.name) == wanted;
    let also = |held: &&Term| held.also.iter().any(|also| plain(also) == wanted);
    let found = TERMS.iter().find(named).or_else(|| TERMS.iter().find(also))?;
    Some(wrapped(&format!("{}: {}", found.name, found.text), 80).join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cause;

    #[test]
    fn every_column_cause_and_line_is_explained_as_it_is_printed() {
        let columns = [
            "scheme",
            "host page",
            "time vs native",
            "range",
            "TLB miss %",
            "refs/walk",
            "exits/M acc",
            "tables KiB",
            "cycles/access",
            "grid",
            "gPA",
            "nL1",
            "G",
            "splintered",
            "walk_duration",
            "instructions at base CPI",
            "waiting for data",
            "walks, guest's own entries",
            "~",
            "*",
        ];
        for column in columns {
            assert!(explained(column).is_some(), "{column}");
        }
        for cause in Cause::ALL {
            assert!(explained(cause.name()).is_some(), "{}", cause.name());
            assert!(explained(crate::report::exit_words(cause.name())).is_some());
        }
        assert_eq!(explained("refs/walk"), explained("REFS"));
        assert_eq!(explained("nonsense"), None);
        for term in TERMS {
            assert!(explained(term.name).unwrap().lines().all(|line| line.chars().count() <= 80));
        }
    }
}
