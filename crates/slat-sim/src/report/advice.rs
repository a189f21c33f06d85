//! What takes the time, and what to change about it.

use super::{Report, exit_words};
use crate::compare::{Outcome, Scheme, WhatIf};
use crate::machine::Cause;
use crate::transcribe::LargePages;

/// One thing to change, with its simulated effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// What to do, in plain words.
    pub text: String,
    /// What it leads to, simulated in the same pass, in [`Advice::unit`].
    pub predicted: f64,
    /// The same without.
    pub from: f64,
    /// What the two are.
    pub unit: Unit,
}

/// What advice is measured by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Run time relative to native.
    Time,
    /// Cycles of translation and exits an access, where run times are not known.
    PerAccess,
}

impl Unit {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Time => "time-vs-native",
            Unit::PerAccess => "cycles-per-access",
        }
    }

    /// What stands behind the figures for people.
    pub const fn words(self) -> &'static str {
        match self {
            Unit::Time => "",
            Unit::PerAccess => " cycles an access",
        }
    }
}

/// Less of an effect than this is none: a share of native's time, or of the cycles an access.
const LEAST: f64 = 0.005;

impl Report {
    /// Where most of shadow paging's, or else of the second stage's, extra time goes.
    pub fn why(&self) -> Option<String> {
        let (outcome, scheme) = match self.shadow() {
            Some(shadow) => (shadow, "shadow"),
            None => (self.nested(21)?, "the second stage"),
        };
        let native = self.outcome(Scheme::Native)?;
        let extra = outcome.cycles.total() - native.cycles.total();
        if extra < LEAST * native.cycles.total() {
            return Some(format!("under {scheme} it takes less than 0.5 % longer."));
        }
        let own = &outcome.cycles;
        let mut parts = vec![
            ("longer page walks", own.walks() - native.cycles.walks()),
            ("data displaced from the caches", own.data - native.cycles.data),
            ("second-level TLB hits", own.second_tlb - native.cycles.second_tlb),
        ];
        for (nth, ((name, _), cycles)) in outcome.shares.exits.iter().zip(own.exits).enumerate() {
            // Natively a turn is not free either.
            let natively = match nth == Cause::Switch as usize {
                true => native.cycles.process_switches,
                false => 0.0,
            };
            parts.push((exit_words(name), cycles - natively));
        }
        parts.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        // Of what it adds: where something else takes less time than natively, that is more than `extra`.
        let added: f64 = parts.iter().map(|(_, cycles)| cycles.max(0.0)).sum();
        let share = |cycles: f64| 100.0 * cycles / added;
        let (what, most) = parts[0];
        let (next, second) = parts[1];
        let mut text = format!("{:.0} % of the extra time under {scheme} is {what}", share(most));
        if share(second) >= 10.0 {
            text.push_str(&format!(", {:.0} % {next}", share(second)));
        }
        text.push('.');
        Some(text)
    }

    /// What to change, most effective first; each was simulated in the same pass. On a processor
    /// without a second stage that is another processor alone, and host pages that it has not are no
    /// advice.
    pub fn advice(&self) -> Vec<Advice> {
        let here = |shift| self.nested(shift).filter(|_| self.has_page(shift));
        let base = here(21).or(here(12));
        let slat = match self.has_slat() {
            true => here(21),
            false => self.nested(21),
        };
        let huge = self.what_if(WhatIf::HugePages);
        let stay_split = match huge.and_then(|outcome| outcome.large_pages) {
            Some(LargePages { made, stay_split }) if stay_split > 0 => {
                format!("; {stay_split} of its {made} stay split after a store")
            }
            _ => String::new(),
        };
        let huge_pages = format!(
            "let the guest use transparent huge pages (a what-if: where it fills 2M{stay_split})"
        );
        let mut advice: Vec<Advice> = [
            self.change(
                here(12),
                here(30),
                "--host-page 1G: back the guest with 1G pages instead of 4K",
            ),
            self.change(
                here(12),
                here(21),
                "--host-page 2M: back the guest with 2M pages instead of 4K",
            ),
            self.change(
                here(21),
                here(30),
                "--host-page 1G: back the guest with 1G pages instead of 2M",
            ),
            self.change(
                self.shadow(),
                slat,
                if self.has_slat() {
                    "use the processor's SLAT instead of shadow paging"
                } else {
                    "a processor with SLAT instead of shadow paging (a what-if: this one has none)"
                },
            ),
            self.change(base, huge, &huge_pages),
            self.change(
                base,
                self.what_if(WhatIf::Pcid),
                "let the guest use PCIDs (a what-if, for x86 guests recorded without)",
            ),
            self.change(
                base,
                self.what_if(WhatIf::Tags),
                "--tags: a processor or hypervisor with VPIDs or ASIDs",
            ),
        ]
        .into_iter()
        .flatten()
        .collect();
        let gain = |advice: &Advice| advice.from - advice.predicted;
        advice.sort_by(|one, other| gain(other).total_cmp(&gain(one)));
        advice
    }

    fn change(&self, from: Option<&Outcome>, to: Option<&Outcome>, text: &str) -> Option<Advice> {
        let (from, to) = (from?, to?);
        let (from, predicted, unit) = match (from.time, to.time) {
            (Some(from), Some(to)) => (from.value, to.value, Unit::Time),
            _ => (from.per_access.value, to.per_access.value, Unit::PerAccess),
        };
        let least = match unit {
            Unit::Time => LEAST,
            Unit::PerAccess => LEAST * from,
        };
        let advice = Advice { text: text.to_owned(), predicted, from, unit };
        (predicted < from - least).then_some(advice)
    }
}
