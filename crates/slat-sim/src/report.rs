//! A comparison, for people and for machines.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::compare::{Estimate, Outcome, Scheme};
use crate::machine::{Cause, GRID};
use crate::preset::Processor;
use slat_mmu::shadow::Discipline;

/// A finished comparison and what it was made of.
#[derive(Clone, Debug)]
pub struct Report {
    /// The workload's name.
    pub workload: String,
    /// What has to be known to judge the results: how tables were made, for example.
    pub notes: Vec<String>,
    /// The processor.
    pub processor: Processor,
    /// Whether the virtual machine had just started ([`crate::compare::Options::cold_start`]).
    pub cold_start: bool,
    /// One outcome a scheme, native first.
    pub outcomes: Vec<Outcome>,
}

/// One thing to change, with its simulated effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// What to do, in plain words.
    pub text: String,
    /// The run time relative to native that it leads to.
    pub predicted: Option<f64>,
}

impl Report {
    fn outcome(&self, scheme: Scheme) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.scheme == scheme)
    }

    /// The second-stage schemes with this host page size.
    fn nested(&self, shift: u8) -> Option<&Outcome> {
        [Scheme::Ept(shift), Scheme::Npt(shift), Scheme::Arm(shift)]
            .into_iter()
            .find_map(|scheme| self.outcome(scheme))
    }

    fn shadow(&self) -> Option<&Outcome> {
        self.outcome(Scheme::Shadow(Discipline::OutOfSync))
    }

    /// The first line: what was compared.
    pub fn title(&self) -> String {
        let accesses = self.outcomes.first().map_or(0, |outcome| outcome.counts.accesses);
        format!(
            "{} ({} M accesses{}) on {}",
            self.workload,
            decimal(accesses as f64 / 1e6),
            if self.cold_start { ", cold start" } else { "" },
            self.processor.name
        )
    }

    /// The sentence that a person can repeat.
    pub fn sentence(&self) -> String {
        let time = |outcome: Option<&Outcome>| outcome.and_then(|outcome| outcome.time);
        match (time(self.nested(21)), time(self.shadow())) {
            (Some(nested), Some(shadow)) => format!(
                "In a VM with SLAT and 2M host pages it runs {:.2} times as long as without a VM; \
                 with shadow paging {:.2} times.",
                nested.value, shadow.value
            ),
            (Some(nested), None) => format!(
                "In a VM with SLAT and 2M host pages it runs {:.2} times as long as without a VM.",
                nested.value
            ),
            _ => "The recording counts no instructions, so that translation cycles are given \
                  instead of run times."
                .to_owned(),
        }
    }

    /// Where most of shadow paging's, or else of the second stage's, extra time goes.
    pub fn why(&self) -> Option<String> {
        let (outcome, scheme) = match self.shadow() {
            Some(shadow) => (shadow, "shadow"),
            None => (self.nested(21)?, "the second stage"),
        };
        let native = self.outcome(Scheme::Native)?;
        let extra = outcome.cycles.overhead() - native.cycles.overhead();
        let whole = native.cycles.instructions.value + native.cycles.overhead();
        if extra < 0.005 * whole {
            return Some(format!("under {scheme} it takes less than 0.5 % longer."));
        }
        let own = &outcome.cycles;
        let walks = own.guest_walk.value + own.host_walk.value
            - native.cycles.guest_walk.value
            - native.cycles.host_walk.value;
        let mut parts: Vec<(&str, f64)> = vec![("longer page walks", walks)];
        for (name, estimate) in &own.exits {
            parts.push((exit_words(name), estimate.value));
        }
        let (what, cycles) =
            parts.into_iter().max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        Some(format!("{:.0} % of the extra time under {scheme} is {what}.", 100.0 * cycles / extra))
    }

    /// What to change, best first.
    pub fn advice(&self) -> Vec<Advice> {
        let mut advice = Vec::new();
        let value = |outcome: &Outcome| outcome.time.map(|time| time.value);
        for (shift, option) in [(30u8, "1G"), (21, "2M")] {
            let (Some(larger), Some(small)) = (self.nested(shift), self.nested(12)) else {
                continue;
            };
            if let (Some(to), Some(from)) = (value(larger), value(small)) {
                advice.push(Advice {
                    text: format!(
                        "back the guest with {option} host pages (with 4K pages it is {from:.2})"
                    ),
                    predicted: Some(to),
                });
            }
        }
        if let (Some(shadow), Some(nested)) = (self.shadow(), self.nested(21))
            && let (Some(from), Some(to)) = (value(shadow), value(nested))
            && to < from
        {
            advice.push(Advice {
                text: format!("use the processor's SLAT (shadow paging takes {from:.2})"),
                predicted: Some(to),
            });
        }
        advice.sort_by(|one, other| {
            let key = |advice: &Advice| advice.predicted.unwrap_or(f64::MAX);
            key(one).total_cmp(&key(other))
        });
        advice
    }

    /// The first screen: at most 80 columns and 24 lines.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}", self.title());
        for line in wrapped(&self.sentence(), 80) {
            let _ = writeln!(out, "{line}");
        }
        for note in &self.notes {
            for line in wrapped(&format!("Note: {note}"), 80) {
                let _ = writeln!(out, "{line}");
            }
        }
        let _ = writeln!(
            out,
            "{:<12}{:>5}{:>9}  {:>11}{:>9}{:>9}{:>9}{:>9}",
            "scheme", "host", "time vs", "range", "TLB", "refs/", "exits/", "tables"
        );
        let _ = writeln!(
            out,
            "{:<12}{:>5}{:>9}  {:>11}{:>9}{:>9}{:>9}{:>9}",
            "", "page", "native", "", "miss %", "walk", "M acc", "KiB"
        );
        for outcome in &self.outcomes {
            let counts = &outcome.counts;
            let time = outcome.time;
            let _ = writeln!(
                out,
                "{:<12}{:>5}{:>9}  {:>11}{:>9}{:>9}{:>9}{:>9}",
                outcome.scheme.name(),
                outcome.scheme.host_shift().map_or("-", page_name),
                time.map_or("-".to_owned(), |time| format!("{:.2}", time.value)),
                time.map_or(String::new(), |time| format!("{:.2}-{:.2}", time.low, time.high)),
                format!("{:.3}", 100.0 * counts.walks as f64 / counts.lookups.max(1) as f64),
                format!("{:.2}", references(outcome) as f64 / counts.walks.max(1) as f64),
                format!("{:.0}", exits(outcome) as f64 * 1e6 / counts.accesses.max(1) as f64),
                (outcome.guest_table_bytes + outcome.host_table_bytes) / 1024,
            );
        }
        if let Some(why) = self.why() {
            for line in wrapped(&format!("Why: {why}"), 80) {
                let _ = writeln!(out, "{line}");
            }
        }
        if let Some(best) = self.advice().first() {
            let predicted =
                best.predicted.map_or(String::new(), |value| format!(", predicted {value:.2}"));
            for line in wrapped(&format!("Try: {}{predicted}.", best.text), 80) {
                let _ = writeln!(out, "{line}");
            }
        }
        let _ =
            writeln!(out, "More: --grid, --cycles, --explain TERM, --perf, --html FILE, --json");
        out
    }

    /// Table entries read per walk by guest level and nested level, one grid a scheme.
    pub fn grid(&self) -> String {
        let mut out = String::new();
        for outcome in &self.outcomes {
            let walks = outcome.counts.walks.max(1) as f64;
            let host = outcome.scheme.host_shift().map_or("-", page_name);
            let _ = writeln!(
                out,
                "{} (host page {host}): entries read per 1000 walks",
                outcome.scheme.name()
            );
            let _ = writeln!(
                out,
                "{:>6}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
                "", "nL5", "nL4", "nL3", "nL2", "nL1", "G"
            );
            for row in (0..GRID).rev() {
                let cells = &outcome.counts.grid[row];
                if cells.iter().all(|&cell| cell == 0) {
                    continue;
                }
                let name =
                    if row == GRID - 1 { "gPA".to_owned() } else { format!("gL{}", row + 1) };
                let _ = write!(out, "{name:>6}");
                for column in [4, 3, 2, 1, 0, 5] {
                    let _ = write!(out, "{:>9.1}", 1000.0 * cells[column] as f64 / walks);
                }
                let _ = writeln!(out);
            }
            let _ = writeln!(out);
        }
        out
    }

    /// Cycles by cause, a share of the scheme's whole time, with ranges.
    pub fn cycles(&self) -> String {
        let mut out = String::new();
        for outcome in &self.outcomes {
            let cycles = &outcome.cycles;
            let host = outcome.scheme.host_shift().map_or("-", page_name);
            let _ =
                writeln!(out, "{} (host page {host}): cycles in millions", outcome.scheme.name());
            let total = cycles.instructions.value + cycles.overhead();
            let mut line = |name: &str, estimate: &Estimate| {
                if estimate.value > 0.0 {
                    let _ = writeln!(
                        out,
                        "  {name:<28}{:>10.2}{:>7.1} %   {:.2} to {:.2}",
                        estimate.value / 1e6,
                        100.0 * estimate.value / total.max(1.0),
                        estimate.low / 1e6,
                        estimate.high / 1e6
                    );
                }
            };
            line("instructions at base CPI", &cycles.instructions);
            line("second-level TLB hits", &cycles.second_tlb);
            line("walks, guest's own entries", &cycles.guest_walk);
            line("walks, hypervisor's entries", &cycles.host_walk);
            for (name, estimate) in &cycles.exits {
                line(exit_words(name), estimate);
            }
        }
        out
    }

    /// One self-contained page for a browser.
    pub fn html(&self) -> String {
        crate::html::page(self)
    }

    /// The JSON that `docs/json.md` specifies for `slat compare`.
    pub fn json(&self) -> Value {
        let schemes: Vec<Value> = self.outcomes.iter().map(scheme_json).collect();
        let advice: Vec<Value> = self
            .advice()
            .iter()
            .map(|advice| json!({ "text": advice.text, "predicted": advice.predicted }))
            .collect();
        json!({
            "version": 1,
            "workload": self.workload,
            "notes": self.notes,
            "processor": self.processor.name,
            "start": if self.cold_start { "cold" } else { "running" },
            "schemes": schemes,
            "advice": advice,
        })
    }

    /// One line a scheme, comma-separated, with a header.
    pub fn csv(&self) -> String {
        let mut out = String::from(
            "scheme,host_page_bytes,time_vs_native,time_low,time_high,accesses,tlb_misses,walks,references,exits,table_bytes\n",
        );
        for outcome in &self.outcomes {
            let host = outcome.scheme.host_shift().map(|shift| 1u64 << shift);
            let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.6}"));
            let _ = writeln!(
                out,
                "{},{},{},{},{},{},{},{},{},{},{}",
                outcome.scheme.name(),
                host.map_or(String::new(), |bytes| bytes.to_string()),
                number(outcome.time.map(|time| time.value)),
                number(outcome.time.map(|time| time.low)),
                number(outcome.time.map(|time| time.high)),
                outcome.counts.accesses,
                outcome.counts.walks,
                outcome.counts.walks,
                references(outcome),
                exits(outcome),
                outcome.guest_table_bytes + outcome.host_table_bytes,
            );
        }
        out
    }
}

fn scheme_json(outcome: &Outcome) -> Value {
    let counts = &outcome.counts;
    let exits: Map<String, Value> = Cause::ALL
        .iter()
        .map(|&cause| (cause.name().to_owned(), counts.exits[cause as usize].into()))
        .collect();
    let cycles = &outcome.cycles;
    let by_exit: Map<String, Value> =
        cycles.exits.iter().map(|(name, estimate)| ((*name).to_owned(), json!(estimate))).collect();
    json!({
        "name": outcome.scheme.name(),
        "host_page_bytes": outcome.scheme.host_shift().map(|shift| 1u64 << shift),
        "time_vs_native": outcome.time,
        "accesses": counts.accesses,
        "instructions": counts.instructions,
        "lookups": counts.lookups,
        "second_tlb_hits": counts.second_hits,
        "tlb_misses": counts.walks,
        "walks": counts.walks,
        "references": references(outcome),
        "grid": counts.grid,
        "served": { "guest": outcome.guest_reads.served, "host": outcome.host_reads.served },
        "splintered": counts.splintered,
        "unexplained": counts.unexplained,
        "exits": exits,
        "cycles": {
            "instructions": cycles.instructions,
            "second_tlb": cycles.second_tlb,
            "guest_walk": cycles.guest_walk,
            "host_walk": cycles.host_walk,
            "exits": by_exit,
        },
        "table_bytes": {
            "guest": outcome.guest_table_bytes,
            "host": outcome.host_table_bytes,
        },
    })
}

pub(crate) fn references(outcome: &Outcome) -> u64 {
    outcome.counts.grid.iter().flatten().sum()
}

pub(crate) fn exits(outcome: &Outcome) -> u64 {
    outcome.counts.exits.iter().sum()
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
        _ => "other exits",
    }
}

/// A page size (log2) as people say it.
pub(crate) fn page_name(shift: u8) -> &'static str {
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

fn decimal(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// Lines of at most `width` characters, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().unwrap_or_else(|| unreachable!("one line is always there"));
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// The words of the tables and what they mean: what `--explain` prints.
pub const TERMS: &[(&str, &str)] = &[
    (
        "scheme",
        "How the guest gets its memory. native: no virtual machine. shadow: the hypervisor keeps GVA-to-SPA tables (out-of-sync discipline); shadow-trap: the same, every store to a guest table traps. ept, npt, stage2: the processor walks the guest's tables and the hypervisor's.",
    ),
    ("host-page", "The page size with which the hypervisor backs the guest's memory."),
    (
        "time",
        "Run time divided by the run time without virtualization. The range follows from the confidence of the processor preset's parameters: measured values may be off by a factor of 1.1, documented ones by 1.2, assumed ones by 1.5.",
    ),
    (
        "tlb-miss",
        "Lookups that neither TLB level served, in percent of all lookups. An access that crosses a page is two lookups.",
    ),
    (
        "refs",
        "Table entries read from memory or its caches, a walk. 24 for a cold walk of 4 over 4 levels, 4 natively.",
    ),
    (
        "exits",
        "Trips to the hypervisor, a million accesses: first touches of host pages under SLAT; table writes, CR3 loads, INVLPG and page faults under shadow paging.",
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
];
