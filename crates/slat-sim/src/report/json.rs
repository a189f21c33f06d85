//! The comparison for machines: JSON as `docs/json.md` specifies it, and CSV.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{FIXED, Report};
use crate::compare::Outcome;
use crate::machine::Cause;

impl Report {
    /// The JSON that `docs/json.md` specifies for `slat compare`.
    pub fn json(&self) -> Value {
        let scheme = |(nth, outcome): (usize, &Outcome)| {
            let mut value = scheme_json(outcome);
            value["lacking"] = self.lacks(outcome).into();
            value["misses_over_time"] = self
                .timeline
                .rates(nth)
                .into_iter()
                .map(|(accesses, rate)| json!([accesses, rate]))
                .collect();
            value
        };
        let all = || self.outcomes.iter().enumerate();
        let schemes: Vec<Value> =
            all().filter(|(_, outcome)| outcome.what_if.is_none()).map(scheme).collect();
        let what_ifs: Vec<Value> =
            all().filter(|(_, outcome)| outcome.what_if.is_some()).map(scheme).collect();
        let advice: Vec<Value> = self
            .advice()
            .iter()
            .map(|advice| {
                json!({
                    "text": advice.text,
                    "predicted": advice.predicted,
                    "from": advice.from,
                    "unit": advice.unit.name(),
                })
            })
            .collect();
        json!({
            "version": 1,
            "workload": self.workload,
            "origin": self.origin,
            "behaviour": FIXED,
            "notes": self.notes,
            "processor": self.processor.name,
            "hypervisor": self.hypervisor,
            "start": if self.cold_start { "cold" } else { "running" },
            "schemes": schemes,
            "what_ifs": what_ifs,
            "advice": advice,
        })
    }

    /// What [`Report::csv`] has in each column.
    pub const CSV_HEADER: &str = "workload,scheme,transcribed,host_page_bytes,time_vs_native,time_low,\
        time_high,accesses,lookups,tlb_misses,references,exits,guest_table_bytes,host_table_bytes,\
        unexplained,lacking,cycles_per_access,cycles_per_access_low,cycles_per_access_high\n";

    /// One line a scheme, comma-separated; what they are is said by [`Report::CSV_HEADER`], which comes
    /// once before all workloads.
    pub fn csv(&self) -> String {
        let mut out = String::new();
        for outcome in self.schemes() {
            let host = outcome.host_shift.map(|shift| 1u64 << shift);
            let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.6}"));
            let counts = outcome.counts();
            let _ = writeln!(
                out,
                "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
                quoted(&self.workload),
                outcome.scheme.name(),
                outcome.transcribed,
                host.map_or(String::new(), |bytes| bytes.to_string()),
                number(outcome.time.map(|time| time.value)),
                number(outcome.time.map(|time| time.low)),
                number(outcome.time.map(|time| time.high)),
                counts.accesses,
                counts.lookups,
                counts.walks,
                outcome.references(),
                outcome.exits(),
                outcome.guest_table_bytes,
                outcome.host_table_bytes,
                counts.unexplained,
                self.lacks(outcome),
                number(Some(outcome.per_access.value)),
                number(Some(outcome.per_access.low)),
                number(Some(outcome.per_access.high)),
            );
        }
        out
    }
}

/// A field of CSV (RFC 4180): quoted where it has to be.
fn quoted(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\"")).into()
    } else {
        text.into()
    }
}

fn scheme_json(outcome: &Outcome) -> Value {
    let counts = outcome.counts();
    let exits: Map<String, Value> = Cause::ALL
        .iter()
        .map(|&cause| (cause.name().to_owned(), counts.exits[cause as usize].into()))
        .collect();
    let shares = &outcome.shares;
    let by_exit: Map<String, Value> =
        shares.exits.iter().map(|(name, estimate)| ((*name).to_owned(), json!(estimate))).collect();
    let events = &outcome.events;
    json!({
        "name": outcome.scheme.name(),
        "transcribed": outcome.transcribed,
        "what_if": outcome.what_if.map(|what_if| what_if.name()),
        "large_pages": outcome.large_pages.map(|pages| {
            json!({ "made": pages.made, "stay_split": pages.stay_split })
        }),
        "host_page_bytes": outcome.host_shift.map(|shift| 1u64 << shift),
        "time_vs_native": outcome.time,
        "cycles_per_access": outcome.per_access,
        "accesses": counts.accesses,
        "instructions": counts.instructions,
        "lookups": counts.lookups,
        "second_tlb_hits": counts.second_hits,
        "tlb_misses": counts.walks,
        "walks": counts.walks,
        "references": outcome.references(),
        "grid": counts.grid,
        "served": {
            "guest": events.guest_reads,
            "host": events.host_reads,
            "data": events.data,
            "page_walk_cache": outcome.references().saturating_sub(outcome.reads()),
        },
        "splintered": counts.splintered,
        "unexplained": counts.unexplained,
        "exits": exits,
        "process_switches": counts.process_switches,
        "cycles": {
            "instructions": shares.instructions,
            "data": shares.data,
            "waiting": shares.waiting,
            "second_tlb": shares.second_tlb,
            "guest_walk": shares.guest_walk,
            "host_walk": shares.host_walk,
            "process_switches": shares.process_switches,
            "exits": by_exit,
        },
        "walk_duration": {
            "guest": shares.guest_walk_duration,
            "host": shares.host_walk_duration,
        },
        "table_bytes": {
            "guest": outcome.guest_table_bytes,
            "host": outcome.host_table_bytes,
        },
    })
}
