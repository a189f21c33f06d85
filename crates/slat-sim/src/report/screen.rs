//! The comparison on a terminal: the first screen, and what `--grid` and `--cycles` add.

use std::fmt::Write as _;

use super::{FIXED, Report, Unit, decimal, exit_words, page_name};
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
            return self.sentence_without_times();
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

    /// The sentence where no run times are known: what translation and exits take.
    fn sentence_without_times(&self) -> String {
        let native = self.outcome(Scheme::Native);
        let why = match native.is_some_and(|native| native.counts().instructions == 0) {
            true => "the recording counts no instructions",
            false => "native was not run",
        };
        let nested = [21, 30, 12].into_iter().find_map(|shift| Some((self.nested(shift)?, shift)));
        let each = [
            nested.map(|(outcome, shift)| {
                (format!("in a VM with SLAT and {} host pages", page_name(shift)), outcome)
            }),
            self.shadow().map(|outcome| ("with shadow paging".to_owned(), outcome)),
            native.map(|outcome| ("without a VM".to_owned(), outcome)),
        ];
        let list: Vec<String> = each
            .into_iter()
            .flatten()
            .map(|(name, outcome)| format!("{name} {:.2}", outcome.per_access.value))
            .collect();
        if list.is_empty() {
            return format!("No run times: {why}. Translation and exits are in cycles an access.");
        }
        format!(
            "No run times: {why}. Translation and exits take, in cycles an access, {}.",
            list.join(", ")
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
            "scheme",
            "host",
            if self.timed() { "time vs" } else { "cycles/" },
            "range",
            "TLB",
            "refs/",
            "exits/",
            "tables"
        );
        let _ = writeln!(
            out,
            "{:<12}{:>5}{:>9}  {:>11}{:>9}{:>9}{:>9}{:>9}",
            "",
            "page",
            if self.timed() { "native" } else { "access" },
            "",
            "miss %",
            "walk",
            "M acc",
            "KiB"
        );
        for outcome in self.schemes() {
            self.row(&mut out, outcome);
        }
        for mark in self.marks() {
            say(&mut out, mark);
        }
        say(&mut out, FIXED);
        for refused in self.refused() {
            say(&mut out, &refused);
        }
        if let Some(why) = self.why() {
            say(&mut out, &format!("Why: {why}"));
        }
        // As much advice as the screen has room for.
        for (nth, advice) in self.advice().iter().enumerate() {
            let text = format!(
                "Try: {}, predicted {:.2} for {:.2}{}.",
                advice.text,
                advice.predicted,
                advice.from,
                advice.unit.words()
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
            let text = match advice.unit {
                Unit::Time => format!(
                    "{}: {:.3} times native's time becomes {:.3}.",
                    advice.text, advice.from, advice.predicted
                ),
                Unit::PerAccess => format!(
                    "{}: {:.3} cycles an access become {:.3}.",
                    advice.text, advice.from, advice.predicted
                ),
            };
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

    /// Cycles by cause, a share of the scheme's whole time, with ranges and the counts behind them; how long
    /// walks last, hidden or not, with and without the nested dimension; and the memory of tables.
    pub fn cycles(&self) -> String {
        let mut out = String::new();
        for outcome in self.schemes() {
            let (shares, counts) = (&outcome.shares, outcome.counts());
            let _ = writeln!(
                out,
                "{}{} (host page {}): cycles in millions",
                outcome.scheme.name(),
                self.mark(outcome),
                host_page(outcome)
            );
            let total = outcome.cycles.total();
            let mut line = |name: &str, count: Option<u64>, estimate: &Estimate| {
                if estimate.value > 0.0 {
                    let share = 100.0 * estimate.value / total.max(1.0);
                    let range = format!("{:.2} to {:.2}", estimate.low / 1e6, estimate.high / 1e6);
                    let _ = write!(
                        out,
                        "  {name:<36}{:>9.2}{share:>6.1} %  {range:<16}",
                        estimate.value / 1e6
                    );
                    let _ = writeln!(out, "{}", count.map_or(String::new(), |n| n.to_string()));
                    let trimmed = out.trim_end().len();
                    out.truncate(trimmed);
                    out.push('\n');
                }
            };
            line("instructions at base CPI", None, &shares.instructions);
            line("waiting for data", None, &shares.data);
            line("waiting for devices", None, &shares.waiting);
            line("process switches", Some(counts.process_switches), &shares.process_switches);
            line("second-level TLB hits", Some(counts.second_hits), &shares.second_tlb);
            line("walks, guest's own entries", None, &shares.guest_walk);
            line("walks, hypervisor's entries", None, &shares.host_walk);
            for ((name, estimate), exits) in shares.exits.iter().zip(counts.exits) {
                line(exit_words(name), Some(exits), estimate);
            }
            let [guest, host] = outcome.cycles.walk_duration.map(|cycles| cycles / 1e6);
            let nested = !matches!(outcome.scheme, Scheme::Native | Scheme::Shadow(_));
            let apart = match nested {
                true => format!(", {guest:.2} M of it without the nested dimension"),
                false => String::new(),
            };
            let _ = writeln!(
                out,
                "  {} walks last {:.2} M in all, hidden or not{apart}",
                counts.walks,
                guest + host
            );
            if counts.splintered > 0 {
                let _ = writeln!(out, "  {} walks splintered", counts.splintered);
            }
            let _ = writeln!(
                out,
                "  tables take at most {} KiB of the guest's and {} KiB of the hypervisor's memory",
                outcome.guest_table_bytes / 1024,
                outcome.host_table_bytes / 1024
            );
        }
        out.push_str("Behind the ranges, how often it was.\n");
        out
    }

    fn row(&self, out: &mut String, outcome: &Outcome) {
        let counts = outcome.counts();
        let value = match self.timed() {
            true => outcome.time,
            false => Some(outcome.per_access),
        };
        let _ = writeln!(
            out,
            "{:<12}{:>5}{:>9}  {:>11}{:>9}{:>9}{:>9}{:>9}",
            format!("{}{}", outcome.scheme.name(), self.mark(outcome)),
            host_page(outcome),
            value.map_or("-".to_owned(), |value| format!("{:.2}", value.value)),
            value.map_or(String::new(), |value| format!("{:.2}-{:.2}", value.low, value.high)),
            format!("{:.3}", 100.0 * counts.walks as f64 / counts.lookups.max(1) as f64),
            format!("{:.2}", outcome.references_per_walk()),
            format!("{:.0}", outcome.exits() as f64 * 1e6 / counts.accesses.max(1) as f64),
            (outcome.guest_table_bytes + outcome.host_table_bytes) / 1024,
        );
    }
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
