//! All rows, for people and for machines.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Report, Verdict};
use crate::text::wrapped;

impl Report {
    /// How many rows came out so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }

    /// One row a claim, at most 100 columns; with `details` also source, set-up and reading.
    pub fn text(&self, details: bool) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<5}{:<43}{:>13}{:>9}{:>15} verdict",
            "row", "claim", "published", "ours", "range"
        );
        for row in &self.rows {
            let lines = wrapped(row.claim, 42);
            let band = row.band.map_or("-".to_owned(), |band| band.text());
            let value = row.value.map_or("-".to_owned(), |value| short(value.value));
            let range = row
                .value
                .filter(|value| value.low != value.high)
                .map_or_else(String::new, |value| {
                    format!("{} to {}", short(value.low), short(value.high))
                });
            let _ = writeln!(
                out,
                "{:<5}{:<43}{band:>13}{value:>9}{range:>15} {}",
                row.id,
                lines[0],
                row.verdict.words()
            );
            for line in &lines[1..] {
                let _ = writeln!(out, "     {line}");
            }
            if details {
                for (name, text) in [
                    ("source", row.source),
                    ("known", row.known),
                    ("set-up", &row.setup),
                    ("value", row.quantity),
                    ("reading", &row.reading),
                    ("why", &row.reason),
                ] {
                    if text.is_empty() {
                        continue;
                    }
                    for (nth, line) in wrapped(text, 84).iter().enumerate() {
                        let name = if nth == 0 { name } else { "" };
                        let _ = writeln!(out, "     {name:<9}{line}");
                    }
                }
                out.push('\n');
            }
        }
        let _ = writeln!(
            out,
            "{} in range, {} out of range, {} too uncertain, {} not comparable. Sources and set-up: --details\n\
             Recordings are run up to {} M accesses, generated guests for {} M, gen:terminal for whole sessions.",
            self.count(Verdict::InRange),
            self.count(Verdict::OutOfRange),
            self.count(Verdict::TooUncertain),
            self.count(Verdict::NotComparable),
            self.effort.recorded / 1_000_000,
            self.effort.generated / 1_000_000,
        );
        if !details {
            self.reasons(&mut out);
        }
        out
    }

    /// Why rows are out of range, or too uncertain.
    fn reasons(&self, out: &mut String) {
        for verdict in [Verdict::OutOfRange, Verdict::TooUncertain] {
            let rows: Vec<_> = self.rows.iter().filter(|row| row.verdict == verdict).collect();
            if !rows.is_empty() {
                let _ = writeln!(out, "\nWhy {}:", verdict.words());
            }
            for row in rows {
                for (nth, line) in wrapped(&row.reason, 95).iter().enumerate() {
                    let id = if nth == 0 { row.id } else { "" };
                    let _ = writeln!(out, "{id:<5}{line}");
                }
            }
        }
    }

    /// The JSON that `docs/json.md` specifies for `slat reproduce`.
    pub fn json(&self) -> Value {
        json!({
            "version": 1,
            "rows": self.rows,
            "verdicts": {
                "in-range": self.count(Verdict::InRange),
                "out-of-range": self.count(Verdict::OutOfRange),
                "too-uncertain": self.count(Verdict::TooUncertain),
                "not-comparable": self.count(Verdict::NotComparable),
            },
        })
    }
}

/// A number with three or so digits.
pub(super) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if value.fract() == 0.0 || magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
