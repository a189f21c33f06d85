//! What one scheme came to.

use serde::Serialize;

use super::build::Runs;
use super::{Scheme, WhatIf};
use crate::cost::{Cycles, Estimate, Events, Facts, Prices, propagate};
use crate::machine::{Cause, Counts};
use crate::transcribe::LargePages;

/// Cycles by cause, with their ranges.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Shares {
    /// Instructions at the base CPI.
    pub instructions: Estimate,
    /// Waiting for data beyond the first cache level: alike in all schemes but for what table lines
    /// displace.
    pub data: Estimate,
    /// Second-level TLB hits.
    pub second_tlb: Estimate,
    /// Reads of the guest's own tables.
    pub guest_walk: Estimate,
    /// Reads of nested or shadow tables.
    pub host_walk: Estimate,
    /// Exits, by cause.
    pub exits: Vec<(&'static str, Estimate)>,
    /// Waiting for devices.
    pub waiting: Estimate,
    /// Process switches in place of turns of virtual machines.
    pub process_switches: Estimate,
    /// How long reads of the guest's own tables last, hidden or not: no part of the time.
    pub guest_walk_duration: Estimate,
    /// The same of nested or shadow tables.
    pub host_walk_duration: Estimate,
}

/// What one scheme came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// The scheme.
    pub scheme: Scheme,
    /// log2 of the pages with which the host backs the guest; `None` natively.
    pub host_shift: Option<u8>,
    /// The guest's tables are another architecture's than those that were recorded.
    pub transcribed: bool,
    /// The change, where it is not the scheme as it is.
    pub what_if: Option<WhatIf>,
    /// What became of large pages, where the change is [`WhatIf::HugePages`].
    pub large_pages: Option<LargePages>,
    /// What happened.
    pub events: Events,
    /// What that costs.
    pub cycles: Cycles,
    /// The same with its ranges.
    pub shares: Shares,
    /// Bytes of the most guest tables at once that the recording shows.
    pub guest_table_bytes: u64,
    /// Bytes of the hypervisor's tables: nested ones, or the most shadow tables at once.
    pub host_table_bytes: u64,
    /// Run time relative to native; `None` where the recording counts no instructions, or native was not
    /// run.
    pub time: Option<Estimate>,
    /// Cycles of translation and exits an access.
    pub per_access: Estimate,
    /// What each event costs.
    pub prices: Prices,
}

impl Outcome {
    pub(super) fn new(
        scheme: Scheme,
        machine: &dyn Runs,
        prices: &Prices,
        facts: &Facts,
    ) -> Outcome {
        let memory = machine.memory();
        let counts = machine.counts();
        let [l2, l3, far] = memory.data;
        let beyond = l2 + l3 + far;
        let events = Events {
            data: [counts.lookups.saturating_sub(beyond), l2, l3, far],
            guest_reads: memory.guest_reads,
            host_reads: memory.host_reads,
            waited_ns: facts.waited_ns,
            counts,
        };
        let host_tables = match scheme {
            Scheme::Shadow(_) => machine.most_shadow_tables(),
            _ => memory.host.len(),
        };
        let part = |of: fn(&Cycles) -> f64| {
            propagate([prices], |[prices]| of(&Cycles::of(&events, prices)))
        };
        let shares = Shares {
            instructions: part(|cycles| cycles.instructions),
            data: part(|cycles| cycles.data),
            second_tlb: part(|cycles| cycles.second_tlb),
            guest_walk: part(|cycles| cycles.guest_walk),
            host_walk: part(|cycles| cycles.host_walk),
            exits: Cause::ALL
                .iter()
                .map(|&cause| {
                    let exit = |prices: &Prices| Cycles::of(&events, prices).exits[cause as usize];
                    (cause.name(), propagate([prices], |[prices]| exit(prices)))
                })
                .collect(),
            waiting: part(|cycles| cycles.waiting),
            process_switches: part(|cycles| cycles.process_switches),
            guest_walk_duration: part(|cycles| cycles.walk_duration[0]),
            host_walk_duration: part(|cycles| cycles.walk_duration[1]),
        };
        let accesses = events.counts.accesses.max(1) as f64;
        Outcome {
            scheme,
            host_shift: (scheme != Scheme::Native).then_some(memory.backed),
            transcribed: false,
            what_if: None,
            large_pages: None,
            guest_table_bytes: memory.most_guest_tables() as u64 * 4096,
            host_table_bytes: host_tables as u64 * 4096,
            cycles: Cycles::of(&events, prices),
            shares,
            per_access: propagate([prices], |[prices]| {
                Cycles::of(&events, prices).overhead() / accesses
            }),
            time: None,
            prices: prices.clone(),
            events,
        }
    }

    /// What was counted.
    pub fn counts(&self) -> &Counts {
        &self.events.counts
    }

    /// How many times as long a part of this run takes as of another.
    pub fn times(&self, other: &Outcome, part: impl Fn(&Cycles) -> f64) -> Estimate {
        propagate([&self.prices, &other.prices], |[own, others]| {
            part(&Cycles::of(&self.events, own)) / part(&Cycles::of(&other.events, others))
        })
    }

    /// Table entries that walks used: read, or held by a page walk cache.
    pub fn references(&self) -> u64 {
        self.counts().grid.iter().flatten().sum()
    }

    /// Table entries read, from the data caches or from memory.
    pub fn reads(&self) -> u64 {
        self.events.guest_reads.iter().chain(&self.events.host_reads).sum()
    }

    /// Table entries read a walk.
    pub fn references_per_walk(&self) -> f64 {
        self.reads() as f64 / self.counts().walks.max(1) as f64
    }

    /// All exits.
    pub fn exits(&self) -> u64 {
        self.counts().exits.iter().sum()
    }
}

/// Run times relative to native.
pub(super) fn relate(outcomes: &mut [Outcome]) {
    let Some(native) = outcomes.iter().find(|outcome| outcome.scheme == Scheme::Native).cloned()
    else {
        return;
    };
    if native.counts().instructions == 0 {
        return;
    }
    for outcome in outcomes {
        outcome.time = Some(outcome.times(&native, Cycles::total));
    }
}
