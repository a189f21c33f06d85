//! How a guest before paging ran.

use serde::{Deserialize, Serialize};

/// Instructions that were run in one way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stretch {
    /// The guest's mode: `real`, `protected` or `paged`.
    pub mode: String,
    /// How it ran: `directly`, `identity map`, `paged real mode`, `virtual-8086` or `emulated`.
    pub how: String,
    /// Why it was emulated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// How many instructions.
    pub instructions: u64,
}

/// How a guest before paging ran.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// In order.
    pub stretches: Vec<Stretch>,
    /// Exits in all.
    pub exits: u64,
}

impl Shown {
    /// Instructions that were run in this way.
    pub fn run(&self, how: &str) -> u64 {
        let so = self.stretches.iter().filter(|one| one.how == how);
        so.map(|one| one.instructions).sum()
    }

    pub(super) fn all(&self) -> u64 {
        self.stretches.iter().map(|one| one.instructions).sum()
    }

    /// In a sentence.
    pub(crate) fn summary(&self) -> String {
        let ways = ["directly", "identity map", "paged real mode", "virtual-8086", "emulated"];
        let parts: Vec<String> = ways
            .iter()
            .map(|how| (how, self.run(how)))
            .filter(|(_, count)| *count > 0)
            .map(|(how, count)| format!("{count} {how}"))
            .collect();
        let exits = if self.exits == 1 { "exit" } else { "exits" };
        format!("{} instructions: {}; {} {exits}", self.all(), parts.join(", "), self.exits)
    }
}
