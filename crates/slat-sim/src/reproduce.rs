//! The published results, each beside what this system gives.
//!
//! Every row's parameters are those of the processor presets and of the recordings; the band that a
//! value is judged by is fixed from the source. No parameter is fitted to any row.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};
use slat_trace::recording::{self, Recording};

use crate::compare::{CompareError, Estimate};
use crate::generated::GeneratedError;
use crate::preset::PresetError;
use crate::text::wrapped;

mod checks;
mod claims;
mod references;
mod runs;

use runs::Runs;

/// Opens a recording by its name (such as `fork`); `None` where there is none.
pub type Open<'a> = dyn FnMut(&str) -> Result<Option<Recording>, recording::Error> + 'a;

/// How a row came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Our value lies in the claim's band.
    InRange,
    /// It does not.
    OutOfRange,
    /// The ends of our range differ by more than a factor of two.
    TooUncertain,
    /// What the claim is about cannot be set up here, or its source does not say what it was.
    NotComparable,
}

impl Verdict {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Verdict::InRange => "in range",
            Verdict::OutOfRange => "out of range",
            Verdict::TooUncertain => "too uncertain",
            Verdict::NotComparable => "not comparable",
        }
    }
}

/// The values that a claim allows, ends included.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Band {
    /// The least.
    pub low: f64,
    /// The greatest; `None` where only a least value is claimed.
    pub high: Option<f64>,
}

impl Band {
    const fn new(low: f64, high: f64) -> Band {
        Band { low, high: Some(high) }
    }

    const fn at_least(low: f64) -> Band {
        Band { low, high: None }
    }

    fn holds(&self, value: f64) -> bool {
        value >= self.low && self.high.is_none_or(|high| value <= high)
    }

    fn text(&self) -> String {
        match self.high {
            Some(high) if high == self.low => short(high),
            Some(high) => format!("{} to {}", short(self.low), short(high)),
            None => format!("over {}", short(self.low)),
        }
    }
}

/// One claim beside our result.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// `C` and a number: a claim; a number alone: an acceptance check.
    pub id: &'static str,
    /// The claim in a line.
    pub claim: &'static str,
    /// Who claims it, and where.
    pub source: &'static str,
    /// What is really known of it: test bed, wording, what could not be read.
    pub known: &'static str,
    /// What was run here.
    pub setup: String,
    /// What our value is, with its unit.
    pub quantity: &'static str,
    /// Our value.
    pub value: Option<Estimate>,
    /// The claim's band in the same unit.
    pub band: Option<Band>,
    /// How it came out.
    pub verdict: Verdict,
    /// Why, or what to know before repeating it.
    pub reading: String,
}

/// The verdict on a value: a range whose ends differ by more than a factor of two is too uncertain,
/// else the central value decides.
fn judge(value: &Estimate, band: &Band) -> Verdict {
    if value.low <= 0.0 && value.high > value.low || value.high > 2.0 * value.low.abs() {
        Verdict::TooUncertain
    } else if band.holds(value.value) {
        Verdict::InRange
    } else {
        Verdict::OutOfRange
    }
}

/// A row that could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum ReproduceError {
    /// A recording could not be opened.
    #[error("recording `{workload}`: {error}")]
    Recording {
        /// Its name.
        workload: String,
        /// What is wrong with it.
        error: Box<recording::Error>,
    },
    /// A recording could not be run.
    #[error("recording `{workload}`: {error}")]
    Compare {
        /// Its name.
        workload: String,
        /// What is wrong.
        error: CompareError,
    },
    /// A bundled preset is not valid.
    #[error(transparent)]
    Preset(#[from] PresetError),
    /// A workload cannot be generated.
    #[error(transparent)]
    Generated(#[from] GeneratedError),
}

/// All rows.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// Claims first, then acceptance checks.
    pub rows: Vec<Row>,
    /// What was run for them.
    pub effort: Effort,
}

/// How much is run for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Accesses of a recording at most.
    pub recorded: u64,
    /// Accesses of a generated guest, of which the first third is not counted.
    pub generated: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { recorded: 32_000_000, generated: 3_000_000 }
    }
}

/// Computes every row. `progress` is told what is run next.
///
/// # Errors
/// Where a recording is there and cannot be used.
pub fn reproduce<'a>(
    open: &'a mut Open<'a>,
    effort: Effort,
    progress: &'a mut dyn FnMut(&str),
) -> Result<Report, ReproduceError> {
    let mut runs = Runs::new(open, effort, progress);
    let mut rows = claims::rows(&mut runs)?;
    rows.extend(checks::rows(&mut runs)?);
    Ok(Report { rows, effort })
}

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
            "{:<4}{:<44}{:>13}{:>9}{:>15} verdict",
            "row", "claim", "published", "ours", "range"
        );
        for row in &self.rows {
            let lines = wrapped(row.claim, 43);
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
                "{:<4}{:<44}{band:>13}{value:>9}{range:>15} {}",
                row.id,
                lines[0],
                row.verdict.words()
            );
            for line in &lines[1..] {
                let _ = writeln!(out, "    {line}");
            }
            if details {
                for (name, text) in [
                    ("source", row.source),
                    ("known", row.known),
                    ("set-up", &row.setup),
                    ("value", row.quantity),
                    ("reading", &row.reading),
                ] {
                    if text.is_empty() {
                        continue;
                    }
                    for (nth, line) in wrapped(text, 84).iter().enumerate() {
                        let name = if nth == 0 { name } else { "" };
                        let _ = writeln!(out, "    {name:<9}{line}");
                    }
                }
                out.push('\n');
            }
        }
        let _ = writeln!(
            out,
            "{} in range, {} out of range, {} too uncertain, {} not comparable. Why: --details\n\
             Recordings are run up to {} M accesses, generated guests for {} M.",
            self.count(Verdict::InRange),
            self.count(Verdict::OutOfRange),
            self.count(Verdict::TooUncertain),
            self.count(Verdict::NotComparable),
            self.effort.recorded / 1_000_000,
            self.effort.generated / 1_000_000,
        );
        out
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
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if value.fract() == 0.0 || magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64, low: f64, high: f64) -> Estimate {
        Estimate { value, low, high }
    }

    #[test]
    fn the_central_value_decides_unless_the_range_is_wide() {
        let band = Band::new(1.8, 2.2);
        assert_eq!(judge(&estimate(2.0, 1.5, 2.9), &band), Verdict::InRange);
        assert_eq!(judge(&estimate(2.3, 1.7, 2.9), &band), Verdict::OutOfRange);
        assert_eq!(judge(&estimate(2.0, 1.4, 2.9), &band), Verdict::TooUncertain);
        assert_eq!(judge(&estimate(3.0, 3.0, 3.0), &Band::at_least(1.0)), Verdict::InRange);
    }
}
