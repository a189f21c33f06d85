//! The table of processors. The first row that fits decides, so that exceptions stand before their rule.
//!
//! Sources that many rows share:
//! * "Intel ARK": the maker's product pages, line "Intel VT-x with Extended Page Tables (EPT)".
//! * "Intel SDM": volume 3, "VMX Support for Address Translation"; EPT and VPID came with Nehalem, the
//!   unrestricted guest with Westmere.
//! * "AMD BKDG 10h": BIOS and Kernel Developer's Guide for family 10h, CPUID 0x8000_000a; AMD APM volume 2, 15.25.
//! * "Arm ARM": D1 "Exception levels" and D8 "Stage 2"; cores by their technical reference manuals.

mod amd;
mod arm;
mod intel;
mod riscv;

use super::Confidence;
use crate::report::Answer;

use Answer::{No, Unknown, Yes};
use Confidence::High;

pub(super) struct Row {
    pub(super) family: &'static str,
    /// As [`super::name::fits`] reads them.
    pub(super) patterns: &'static [&'static str],
    pub(super) slat: Answer,
    pub(super) technology: &'static str,
    /// The year of the first model.
    pub(super) since: u16,
    pub(super) unrestricted_guest: Answer,
    pub(super) tagged_tlb: Answer,
    pub(super) note: Option<&'static str>,
    pub(super) source: &'static str,
    pub(super) confidence: Confidence,
}

/// A row of Intel's with SLAT; tagged TLBs (VPID) came with EPT.
const fn ept(
    family: &'static str,
    since: u16,
    unrestricted_guest: Answer,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Yes,
        technology: "EPT",
        since,
        unrestricted_guest,
        tagged_tlb: Yes,
        note: None,
        source,
        confidence,
    }
}

/// A row of AMD's with SLAT; tagged TLBs (ASIDs) came before it, and a guest's real mode needs no more.
const fn npt(
    family: &'static str,
    since: u16,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Yes,
        technology: "NPT",
        since,
        unrestricted_guest: Yes,
        tagged_tlb: Yes,
        note: None,
        source,
        confidence,
    }
}

/// A row of Arm's with SLAT; VMIDs are part of stage 2, and so are guests with paging off.
const fn stage2(
    family: &'static str,
    since: u16,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Yes,
        technology: "Stage 2",
        since,
        unrestricted_guest: Yes,
        tagged_tlb: Yes,
        note: Some(
            "The machine's firmware must leave EL2, the hypervisor's privilege, to the system.",
        ),
        source,
        confidence,
    }
}

/// A row without SLAT.
const fn none(
    family: &'static str,
    since: u16,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: No,
        technology: "",
        since,
        unrestricted_guest: No,
        tagged_tlb: No,
        note: None,
        source,
        confidence,
    }
}

/// A row whose models differ, or of which too little is known.
const fn unclear(
    family: &'static str,
    since: u16,
    note: &'static str,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Unknown,
        technology: "",
        since,
        unrestricted_guest: Unknown,
        tagged_tlb: Unknown,
        note: Some(note),
        source,
        confidence: High,
    }
}

/// Every row, in the order in which they are tried.
pub(super) fn rows() -> impl Iterator<Item = &'static Row> {
    [VIRTUAL, intel::ROWS, amd::ROWS, arm::ROWS, riscv::ROWS].into_iter().flatten()
}

/// Names that virtual machines show.
static VIRTUAL: &[Row] = &[unclear(
    "a virtual processor",
    2005,
    "A hypervisor shows this name; it tells nothing of the processor below.",
    "QEMU, target/i386/cpu.c",
    &["qemu virtual", "common kvm", "virtualapple"],
)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processors::{look_up, name};

    /// A row that no name can reach, because earlier rows take all of its patterns, is a mistake; and so
    /// is a pattern that cannot fit anything.
    #[test]
    fn every_pattern_reaches_its_own_row() {
        for row in rows() {
            for pattern in row.patterns {
                let example = pattern.replace('#', "4").replace(['^', '*'], "");
                let known = look_up(&example);
                assert!(
                    name::fits(&name::words(&example), pattern),
                    "{pattern:?} does not fit its own example {example:?}"
                );
                // Rows for a brand without a model come after those with one and take what is left.
                assert_eq!(known.family, Some(row.family), "{pattern:?} as {example:?}");
            }
        }
    }

    #[test]
    fn every_row_has_a_source() {
        for row in rows() {
            assert!(!row.source.is_empty() && row.since >= 1990, "{}", row.family);
            assert_eq!(row.slat == Yes, !row.technology.is_empty(), "{}", row.family);
            assert_eq!(
                row.slat == Unknown,
                row.note.is_some() && row.technology.is_empty(),
                "{}",
                row.family
            );
        }
    }
}
