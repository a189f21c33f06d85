//! A comparison, for people and for machines.

mod advice;
mod json;
mod screen;
mod terms;

use slat_mmu::shadow::Discipline;

use crate::compare::{Outcome, Scheme, Timeline, WhatIf};
use crate::preset::{Processor, SecondStage};

pub use self::advice::{Advice, Unit};
pub use self::terms::{TERMS, Term, explained};

/// A finished comparison and what it was made of.
#[derive(Clone, Debug)]
pub struct Report {
    /// The workload's name.
    pub workload: String,
    /// Where it is from: `recorded`, `generated`, `imported`.
    pub origin: &'static str,
    /// What has to be known to judge the results: how tables were made, for example.
    pub notes: Vec<String>,
    /// The processor.
    pub processor: Processor,
    /// The hypervisor whose handlers cost what its preset says, where one was chosen.
    pub hypervisor: Option<String>,
    /// Whether the virtual machine had just started ([`crate::compare::Options::cold_start`]).
    pub cold_start: bool,
    /// One outcome a scheme, native first, and what-ifs after them.
    pub outcomes: Vec<Outcome>,
    /// Misses over time.
    pub timeline: Timeline,
}

impl Report {
    /// The outcomes of schemes as they are, without what-ifs.
    pub fn schemes(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.what_if.is_none())
    }

    /// One self-contained page for a browser.
    pub fn html(&self) -> String {
        crate::html::page(self)
    }

    /// A sentence for each outcome that cannot be right: its tables refuse accesses that the guest
    /// made.
    pub fn refused(&self) -> impl Iterator<Item = String> {
        self.outcomes.iter().filter(|outcome| outcome.counts().unexplained > 0).map(|outcome| {
            let name = outcome.scheme.name();
            let what_if = outcome.what_if.map_or("", WhatIf::name);
            let host = outcome.host_shift.map_or(String::new(), |shift| {
                format!(" over {} host pages", page_name(shift))
            });
            let space = if what_if.is_empty() { "" } else { ", " };
            format!(
                "Wrong: {name}{host}{space}{what_if}: the simulated tables refuse {} of the accesses that \
                 the guest made, so nothing of it can be trusted. Please report it.",
                outcome.counts().unexplained
            )
        })
    }

    /// Whether the processor has a second stage.
    fn has_slat(&self) -> bool {
        self.processor.second_stage.value != SecondStage::None
    }

    /// Whether it has one with leaves of this size (log2).
    fn has_page(&self, shift: u8) -> bool {
        let largest = self.processor.virtualization.as_ref().map(|can| can.largest_page.value);
        self.has_slat() && largest.is_none_or(|largest| shift <= largest.shift())
    }

    /// Whether the outcome is of a second stage, or of pages of one, that the processor has not: a what-if
    /// at the costs of this processor.
    pub fn lacks(&self, outcome: &Outcome) -> bool {
        let (own, shift) = match outcome.scheme {
            Scheme::Native | Scheme::Shadow(_) => return false,
            Scheme::Ept(shift) => (SecondStage::Ept, shift),
            Scheme::Npt(shift) => (SecondStage::Npt, shift),
            Scheme::Arm(shift) => (SecondStage::Arm, shift),
            // No preset is of a RISC-V processor.
            Scheme::RiscV(_) => return true,
        };
        self.processor.second_stage.value != own || !self.has_page(shift)
    }

    /// What marks an outcome's row: a star where it is transcribed, a tilde where the processor lacks it.
    pub(crate) fn mark(&self, outcome: &Outcome) -> &'static str {
        match (outcome.transcribed, self.lacks(outcome)) {
            (true, true) => "*~",
            (true, false) => "*",
            (false, true) => "~",
            (false, false) => "",
        }
    }

    /// What the marks of the rows mean, one sentence each that is used.
    pub(crate) fn marks(&self) -> Vec<&'static str> {
        let star = self.schemes().any(|outcome| outcome.transcribed);
        let tilde = self.schemes().any(|outcome| self.lacks(outcome));
        [
            (star, "* transcribed: the recorded tables, rewritten for that architecture"),
            (tilde, "~ a what-if: this processor has no such second stage, or no pages so large"),
        ]
        .into_iter()
        .filter_map(|(used, text)| used.then_some(text))
        .collect()
    }

    /// Whether run times are known; else rows have cycles of translation an access.
    pub(crate) fn timed(&self) -> bool {
        self.schemes().any(|outcome| outcome.time.is_some())
    }

    fn outcome(&self, scheme: Scheme) -> Option<&Outcome> {
        self.schemes().find(|outcome| outcome.scheme == scheme)
    }

    fn what_if(&self, what_if: WhatIf) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.what_if == Some(what_if))
    }

    /// The second stage of the recording's own architecture with this host page size: the processor's own
    /// where it has one.
    fn nested(&self, shift: u8) -> Option<&Outcome> {
        let own = match self.processor.second_stage.value {
            SecondStage::Npt => Scheme::Npt(shift),
            SecondStage::Arm => Scheme::Arm(shift),
            SecondStage::Ept | SecondStage::None => Scheme::Ept(shift),
        };
        [own, Scheme::Ept(shift), Scheme::Npt(shift), Scheme::Arm(shift)]
            .into_iter()
            .find_map(|scheme| self.outcome(scheme).filter(|outcome| !outcome.transcribed))
    }

    /// Shadow paging of the recording's own architecture.
    fn shadow(&self) -> Option<&Outcome> {
        let shadow = self.outcome(Scheme::Shadow(Discipline::OutOfSync));
        shadow.filter(|outcome| !outcome.transcribed)
    }
}

/// What an exit's cause is in plain words.
pub(crate) fn exit_words(name: &str) -> &'static str {
    match name {
        "violation" => "first touches of host pages",
        "table-write" => "page-table-write exits",
        "cr3" => "CR3-load exits",
        "invlpg" => "INVLPG exits",
        "true-fault" => "intercepted page faults",
        "hidden-fault" => "faults that fill the shadow",
        "dirty" => "faults that set dirty bits",
        "emulation" => "stores that the hypervisor carries out",
        "io" => "device exits",
        "switch" => "switches between virtual machines",
        _ => "other exits",
    }
}

/// A page size (log2) as people say it.
pub fn page_name(shift: u8) -> &'static str {
    match shift {
        12 => "4K",
        14 => "16K",
        16 => "64K",
        21 => "2M",
        25 => "32M",
        29 => "512M",
        30 => "1G",
        _ => "?",
    }
}

/// What the guest does under a scheme that is slower, said of every comparison.
pub(crate) const FIXED: &str =
    "The guest does what was recorded under every scheme: it does not react.";

fn decimal(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}
