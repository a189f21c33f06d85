//! The comparison on a terminal: the first screen, and what `--grid` and `--cycles` add.

use std::fmt::Write as _;

use super::{Report, decimal, exit_words, page_name};
use crate::compare::{Estimate, Outcome, Scheme};
use crate::machine::GRID;
use crate::text::wrapped;

/// Columns of a terminal.
const WIDTH: usize = 80;
/// And lines.
const HEIGHT: usize = 24;

impl Report {
    /// The first line: what was compared.
    pub fn title(&self) -> String {
        let accesses = self.outcomes.first().map_or(0, |outcome| outcome.counts().accesses);
        let under = self.hypervisor.as_ref().map_or(String::new(), |name| format!(" under {name}"));
        format!(
            "{} ({}, {} M accesses{}) on {}{under}",
            self.workload,
            self.origin,
            decimal(accesses as f64 / 1e6),
            if self.cold_start { ", cold start" } else { "" },
            self.processor.name
        )
    }

    /// The sentence that a person can repeat.
    pub fn sentence(&self) -> String {
        let time = |outcome: Option<&Outcome>| outcome.and_then(|outcome| outcome.time);
        let nested = [21, 30, 12].into_iter().find_map(|shift| Some((self.nested(shift)?, shift)));
        let pages = nested.map_or("", |(_, shift)| page_name(shift));
        let lacks = nested.is_some_and(|(_, shift)| !self.has_page(shift));
        // What the processor lacks is told as a what-if.
        let what_if = match self.has_slat() {
            true => format!("SLAT and {pages} host pages, which this processor lacks,"),
            false => format!("SLAT, which this processor lacks, and {pages} host pages"),
        };
        match (time(nested.map(|(outcome, _)| outcome)), time(self.shadow())) {
            (Some(nested), Some(shadow)) if lacks => format!(
                "In a VM with shadow paging it runs {:.2} times as long as without a VM; with {what_if} \
                 it would run {:.2} times.",
                shadow.value, nested.value
            ),
            (Some(nested), None) if lacks => format!(
                "In a VM with {what_if} it would run {:.2} times as long as without a VM.",
                nested.value
            ),
            (Some(nested), Some(shadow)) => format!(
                "In a VM with SLAT and {pages} host pages it runs {:.2} times as long as without a VM; \
                 with shadow paging {:.2} times.",
                nested.value, shadow.value
            ),
            (Some(nested), None) => format!(
                "In a VM with SLAT and {pages} host pages it runs {:.2} times as long as without a VM.",
                nested.value
            ),
            _ => self.sentence_of_what_ran(),
        }
    }

    /// The sentence where no second stage of the guest's own architecture ran.
    fn sentence_of_what_ran(&self) -> String {
        let mut timed = self.schemes().filter(|outcome| outcome.time.is_some()).peekable();
        if timed.peek().is_none() {
            return "No run times: the recording counts no instructions, or native was not run. --cycles \
                    says what translation takes."
                .to_owned();
        }
        let Some(outcome) = timed.find(|outcome| outcome.scheme != Scheme::Native) else {
            return "Only native was run: there is nothing to compare it with.".to_owned();
        };
        let pages = match outcome.scheme {
            Scheme::Shadow(_) => String::new(),
            _ => format!(" with {} host pages", host_page(outcome)),
        };
        format!(
            "Under {}{pages}{} it runs {:.2} times as long as without a VM.",
            outcome.scheme.name(),
            if outcome.transcribed { ", transcribed," } else { "" },
            outcome.time.map_or(1.0, |time| time.value)
        )
    }

    /// The first screen: at most 80 columns, and 24 lines unless there is much to note.
    pub fn text(&self) -> String {
        let mut out = String::new();
        say(&mut out, &self.title());
        say(&mut out, &self.sentence());
        for note in &self.notes {
            say(&mut out, &format!("Note: {note}"));
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
        for outcome in self.schemes() {
            row(&mut out, outcome);
        }
        if self.schemes().any(|outcome| outcome.transcribed) {
            say(&mut out, "* transcribed: the recorded tables, rewritten for that architecture");
        }
        for refused in self.refused() {
            say(&mut out, &refused);
        }
        if let Some(why) = self.why() {
            say(&mut out, &format!("Why: {why}"));
        }
        // As much advice as the screen has room for.
        for (nth, advice) in self.advice().iter().enumerate() {
            let text = format!(
                "Try: {}, predicted {:.2} for {:.2}.",
                advice.text, advice.predicted, advice.from
            );
            let lines = out.lines().count() + wrapped(&text, WIDTH).len() + 1;
            if nth > 0 && lines > HEIGHT {
                break;
            }
            say(&mut out, &text);
        }
        say(
            &mut out,
            "More: --advice, --grid, --cycles, --explain TERM, --perf, --html FILE, --json",
        );
        out
    }

    /// All advice, each with its simulated effect.
    pub fn advice_text(&self) -> String {
        let mut out = String::new();
        for advice in self.advice() {
            let text = format!(
                "{}: {:.3} times native's time becomes {:.3}.",
                advice.text, advice.from, advice.predicted
            );
            for (nth, line) in wrapped(&text, WIDTH - 2).iter().enumerate() {
                let _ = writeln!(out, "{} {line}", if nth == 0 { "-" } else { " " });
            }
        }
        if out.is_empty() {
            out.push_str("Nothing that was simulated makes it faster by 0.5 % or more.\n");
        }
        out
    }

    /// Table entries read per walk by guest level and nested level, one grid a scheme, and by which
    /// cache they were served.
    pub fn grid(&self) -> String {
        let mut out = String::new();
        for outcome in self.schemes() {
            let counts = outcome.counts();
            let walks = counts.walks.max(1) as f64;
            let _ = writeln!(
                out,
                "{} (host page {}): entries read per 1000 walks",
                outcome.scheme.name(),
                host_page(outcome)
            );
            let _ = writeln!(
                out,
                "{:>6}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
                "", "nL5", "nL4", "nL3", "nL2", "nL1", "G"
            );
            for row in (0..GRID - 1).rev().chain([GRID - 1]) {
                let cells = &counts.grid[row];
                if cells.iter().all(|&cell| cell == 0) {
                    continue;
                }
                let name =
                    if row == GRID - 1 { "gPA".to_owned() } else { format!("gL{}", row + 1) };
                let _ = write!(out, "{name:>6}");
                for column in [4, 3, 2, 1, 0, 5] {
                    let _ = write!(out, "{:>9.1}", 1000.0 * cells[column] as f64 / walks);
                }
                out.push('\n');
            }
            let held = outcome.references().saturating_sub(outcome.reads());
            if held > 0 {
                let _ = writeln!(
                    out,
                    "  of these the page walk cache held {:.1}",
                    1000.0 * held as f64 / walks
                );
            }
            for (name, served) in [
                ("guest's", &outcome.events.guest_reads),
                ("hypervisor's", &outcome.events.host_reads),
            ] {
                let all: u64 = served.iter().sum();
                if all > 0 {
                    let share = |nth: usize| 100.0 * served[nth] as f64 / all as f64;
                    let _ = writeln!(
                        out,
                        "  {name} entries served by L1 {:.1} %, L2 {:.1} %, L3 {:.1} %, memory {:.1} %",
                        share(0),
                        share(1),
                        share(2),
                        share(3)
                    );
                }
            }
            out.push('\n');
        }
        out
    }

    /// Cycles by cause, a share of the scheme's whole time, with ranges; walk cycles with and without
    /// the nested dimension.
    pub fn cycles(&self) -> String {
        let mut out = String::new();
        for outcome in self.schemes() {
            let shares = &outcome.shares;
            let _ = writeln!(
                out,
                "{} (host page {}): cycles in millions",
                outcome.scheme.name(),
                host_page(outcome)
            );
            let total = outcome.cycles.total();
            let mut line = |name: &str, estimate: &Estimate| {
                if estimate.value > 0.0 {
                    let _ = writeln!(
                        out,
                        "  {name:<33}{:>10.2}{:>7.1} %   {:.2} to {:.2}",
                        estimate.value / 1e6,
                        100.0 * estimate.value / total.max(1.0),
                        estimate.low / 1e6,
                        estimate.high / 1e6
                    );
                }
            };
            line("instructions at base CPI", &shares.instructions);
            line("waiting for data", &shares.data);
            line("waiting for devices", &shares.waiting);
            line("process switches", &shares.process_switches);
            line("second-level TLB hits", &shares.second_tlb);
            line("walks, guest's own entries", &shares.guest_walk);
            line("walks, hypervisor's entries", &shares.host_walk);
            for (name, estimate) in &shares.exits {
                line(exit_words(name), estimate);
            }
            let cycles = &outcome.cycles;
            let _ = writeln!(
                out,
                "  walks take {:.2} M with the nested dimension, {:.2} M without",
                cycles.walks() / 1e6,
                cycles.guest_walk / 1e6
            );
            if outcome.counts().splintered > 0 {
                let _ = writeln!(out, "  {} walks splintered", outcome.counts().splintered);
            }
        }
        out
    }
}

fn row(out: &mut String, outcome: &Outcome) {
    let counts = outcome.counts();
    let time = outcome.time;
    let mark = if outcome.transcribed { "*" } else { "" };
    let _ = writeln!(
        out,
        "{:<12}{:>5}{:>9}  {:>11}{:>9}{:>9}{:>9}{:>9}",
        format!("{}{mark}", outcome.scheme.name()),
        host_page(outcome),
        time.map_or("-".to_owned(), |time| format!("{:.2}", time.value)),
        time.map_or(String::new(), |time| format!("{:.2}-{:.2}", time.low, time.high)),
        format!("{:.3}", 100.0 * counts.walks as f64 / counts.lookups.max(1) as f64),
        format!("{:.2}", outcome.references_per_walk()),
        format!("{:.0}", outcome.exits() as f64 * 1e6 / counts.accesses.max(1) as f64),
        (outcome.guest_table_bytes + outcome.host_table_bytes) / 1024,
    );
}

fn host_page(outcome: &Outcome) -> &'static str {
    outcome.host_shift.map_or("-", page_name)
}

fn say(out: &mut String, text: &str) {
    for line in wrapped(text, WIDTH) {
        out.push_str(&line);
        out.push('\n');
    }
}
