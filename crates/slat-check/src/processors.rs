//! Processors by name: does a processor that one does not have in front of one have SLAT?
//!
//! ```
//! use slat_check::{Answer, processors::look_up};
//!
//! assert_eq!(look_up("Intel(R) Core(TM) i7-2600K CPU @ 3.40GHz").slat, Answer::Yes);
//! assert_eq!(look_up("Core 2 Duo E8400").slat, Answer::No);
//! assert_eq!(look_up("Celeron").slat, Answer::Unknown); // some have it, some have not
//! ```

mod name;
mod table;

use serde::Serialize;

use crate::report::Answer;

/// How far the table's word goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// The maker says so for the whole row, or the feature is part of the architecture.
    High,
    /// The maker says so for the models that were looked at, and nothing contradicts for the others.
    Medium,
}

/// What is known of a processor's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Known {
    /// The name that was asked for.
    pub asked: String,
    /// Whether it has SLAT.
    pub slat: Answer,
    /// The family that the name belongs to; `None` when the table does not know the name.
    pub family: Option<&'static str>,
    /// What the maker calls SLAT in that family.
    pub technology: Option<&'static str>,
    /// The year in which the family was first sold.
    pub since: Option<u16>,
    /// Intel: whether guests can run with paging off without emulation ("unrestricted guest"), which some
    /// hypervisors need besides EPT. Elsewhere SLAT brings that with it.
    pub unrestricted_guest: Answer,
    /// Whether TLB entries are tagged by virtual machine (VPID, ASID, VMID), so that they outlive a switch.
    pub tagged_tlb: Answer,
    /// What to know besides, or what makes the answer "unknown".
    pub note: Option<&'static str>,
    /// Where this stands.
    pub source: Option<&'static str>,
    /// How far it goes.
    pub confidence: Option<Confidence>,
}

impl Known {
    /// The answer in one plain sentence.
    pub fn headline(&self) -> String {
        let called = self.technology.map(|name| format!(" ({name})")).unwrap_or_default();
        match (self.slat, self.family) {
            (Answer::Yes, _) => format!("Yes: this processor has SLAT{called}."),
            (Answer::No, _) => "No: this processor has no SLAT.".to_string(),
            (Answer::Unknown, Some(_)) => "Unknown: this name alone does not tell.".to_string(),
            (Answer::Unknown, None) => {
                "Unknown: this name is not in the table of this program.".to_string()
            }
        }
    }
}

/// Looks a processor up by its name, as `/proc/cpuinfo` and shops spell it.
///
/// A name that fits no row, or a row whose models differ, gives [`Answer::Unknown`]: nothing is guessed.
pub fn look_up(name: &str) -> Known {
    let words = name::words(name);
    let row =
        table::rows().find(|row| row.patterns.iter().any(|pattern| name::fits(&words, pattern)));
    match row {
        Some(row) => Known {
            asked: name.to_string(),
            slat: row.slat,
            family: Some(row.family),
            technology: (row.slat == Answer::Yes).then_some(row.technology),
            since: Some(row.since),
            unrestricted_guest: row.unrestricted_guest,
            tagged_tlb: row.tagged_tlb,
            note: row.note,
            source: Some(row.source),
            confidence: Some(row.confidence),
        },
        None => Known {
            asked: name.to_string(),
            slat: Answer::Unknown,
            family: None,
            technology: None,
            since: None,
            unrestricted_guest: Answer::Unknown,
            tagged_tlb: Answer::Unknown,
            note: None,
            source: None,
            confidence: None,
        },
    }
}
