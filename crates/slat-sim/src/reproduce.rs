//! The published results, each beside what this system gives.
//!
//! Every row's parameters are those of the processor presets and of the recordings; the band that a
//! value is judged by is fixed from the source. No parameter is fitted to any row.

use serde::Serialize;
use slat_trace::recording::{self, Recording};

use crate::compare::{CompareError, Estimate};
use crate::generated::GeneratedError;
use crate::preset::PresetError;

mod checks;
mod claims;
mod references;
mod report;
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
        use self::report::short;
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
    /// What to know before repeating it.
    pub reading: String,
    /// Why the value is out of the band, or too uncertain; else empty.
    pub reason: String,
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
    /// There is no such row.
    #[error("no row `{wanted}`; there are {ids}")]
    NoRow {
        /// What was asked for.
        wanted: String,
        /// All rows.
        ids: String,
    },
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
    /// Accesses of a generated guest, of which the first third is not counted; more where a workload goes
    /// through phases ([`crate::generated::Generated::life`]), in proportion to the default.
    pub generated: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { recorded: 32_000_000, generated: 3_000_000 }
    }
}

/// Makes the rows of one entry of the list.
type Make = fn(&mut Runs<'_>) -> Result<Vec<Row>, ReproduceError>;

/// All rows' makers with the ids of what they make: claims first, then acceptance checks.
fn makers() -> impl Iterator<Item = &'static (&'static [&'static str], Make)> {
    claims::rows().chain(checks::ROWS)
}

/// The ids of all rows, in order.
pub fn ids() -> impl Iterator<Item = &'static str> {
    makers().flat_map(|(ids, _)| ids.iter().copied())
}

/// Whether a row is meant by `wanted`: its id, or that without its last letter.
fn is_meant(id: &str, wanted: &str) -> bool {
    let group = id.trim_end_matches(|last: char| last.is_ascii_lowercase());
    id.eq_ignore_ascii_case(wanted) || group.eq_ignore_ascii_case(wanted)
}

/// Computes every row, or those that `only` names if it names any: by their ids, such as `C10` or
/// `3a`, or by the number alone for all rows of one, such as `3`. `progress` is told what is run next.
///
/// # Errors
/// Where a recording is there and cannot be used, or there is no such row.
pub fn reproduce<'a>(
    open: &'a mut Open<'a>,
    only: &[String],
    effort: Effort,
    progress: &'a mut dyn FnMut(&str),
) -> Result<Report, ReproduceError> {
    if let Some(wanted) = only.iter().find(|wanted| !ids().any(|id| is_meant(id, wanted))) {
        return Err(ReproduceError::NoRow {
            wanted: wanted.clone(),
            ids: ids().collect::<Vec<_>>().join(", "),
        });
    }
    let meant = |id: &str| only.is_empty() || only.iter().any(|wanted| is_meant(id, wanted));
    let mut runs = Runs::new(open, effort, progress);
    let mut rows = Vec::new();
    for (ids, make) in makers() {
        if ids.iter().any(|id| meant(id)) {
            rows.extend(make(&mut runs)?.into_iter().filter(|row| meant(row.id)));
        }
    }
    Ok(Report { rows, effort })
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
