//! The published claims, from the makers and from those who used their processors.

mod density;
mod makers;
mod plain;

use super::{Band, Make, Row, Verdict, judge};
use crate::cost::Estimate;

pub(super) use self::density::{saved, saved_list};
pub(super) use self::makers::{MICRO, up_to_row};

const VMWARE_EPT: &str = "VMware, Performance Evaluation of Intel EPT Hardware Assist, 2009; \
    https://blogs.vmware.com/performance/2009/03/performance-evaluation-of-intel-ept-hardware-assist-.html";
const VMWARE_RVI: &str = "VMware, Performance Evaluation of AMD RVI Hardware Assist, 2009; \
    https://blogs.vmware.com/performance/2009/03/performance-evaluation-of-amd-rvi-hardware-assist.html";
const VMMARK: &str = "VMware, Comparing Hardware Virtualization Performance Utilizing VMmark v1.1, 2009; \
    https://blogs.vmware.com/performance/2009/02/comparing-hardware-virtualization-performance-utilizing-vmmark-v11.html";
const RED_HAT: &str = "Red Hat Magazine, 20 November 2007: Red Hat Enterprise Linux 5.1 utilizes nested \
    paging on AMD Barcelona processor";
const MICROSOFT: &str = "Microsoft, Running WS08 Terminal Server as a virtualized guest under Windows \
    Server 2008 R2 Hyper-V, 24 June 2009";
const ARTICLE: &str = "a 2009 article on Hyper-V, read only as a copy at second hand; no page of \
    Microsoft's own with these numbers was found";
const DEFINITION: &str =
    "AMD, Nested Paging (APM 2 15.25); Intel SDM 3C 30.3; repeated in encyclopedias";

/// An "up to" claim is met where some workload of its class reaches the figure; a value beyond 1.5
/// times the figure (the factor of an assumed parameter) contradicts the "up to".
const fn up_to(low: f64, high: f64) -> Band {
    Band::new(low, 1.5 * high)
}

/// Which rows there are, in order.
pub(super) fn rows() -> impl Iterator<Item = &'static (&'static [&'static str], Make)> {
    makers::ROWS.iter().chain(density::ROWS).chain(plain::ROWS)
}

/// What rows are filled from.
pub(super) const EMPTY: Row = Row {
    id: "",
    claim: "",
    source: "",
    known: "",
    setup: String::new(),
    quantity: "-",
    value: None,
    band: None,
    verdict: Verdict::NotComparable,
    reading: String::new(),
    reason: String::new(),
};

/// Fills in verdict and value. The row's own reason is for a value out of range.
pub(super) fn judged(row: Row, value: Estimate) -> Row {
    let Some(band) = row.band else { return Row { value: Some(value), ..row } };
    let verdict = judge(&value, &band);
    let reason = match verdict {
        Verdict::OutOfRange if row.reason.is_empty() => "No reason is known.".to_owned(),
        Verdict::OutOfRange => row.reason,
        Verdict::TooUncertain => format!(
            "The ends of its range, {:.2} and {:.2}, differ by more than a factor of two: what is assumed of \
             exits and handlers (--details names it) may be 1.5 times more or less. Its centre, {:.2}, lies {} \
             the band.",
            value.low,
            value.high,
            value.value,
            match value.value {
                value if value < band.low => "below",
                value if band.holds(value) => "in",
                _ => "above",
            }
        ),
        Verdict::InRange | Verdict::NotComparable => String::new(),
    };
    Row { value: Some(value), verdict, reason, ..row }
}

/// A row whose recordings are not there.
pub(super) fn missing(row: Row, workloads: &[&str]) -> Row {
    Row {
        verdict: Verdict::NotComparable,
        reading: format!(
            "Recording {} is not here; give its directory with --recordings.",
            workloads.iter().map(|name| format!("{name}.slat")).collect::<Vec<_>>().join(" or ")
        ),
        ..row
    }
}

fn shown(value: &Estimate) -> String {
    format!("{:.2} ({:.2} to {:.2})", value.value, value.low, value.high)
}
