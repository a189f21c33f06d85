//! Arm's events.

use super::{Event, Events, event};

const MISSING: &str = "No event counts the cycles of walks, so that \
    walk_duration cannot be measured, and none tells the stages apart: whether a walk of both \
    stages counts once is not stated.";

const REFILLS: &[Event] = &[
    event("inst_retired", "instructions", "-"),
    event("l1d_tlb_refill", "second_tlb_hits + walks, of data", "-"),
    event("l1i_tlb_refill", "second_tlb_hits + walks, of fetches", "-"),
];
const WALKS: &[Event] = &[
    event("dtlb_walk", "walks, of data", "not stated"),
    event("itlb_walk", "walks, of fetches", "not stated"),
];

/// Cores older than the events of walks.
pub(super) const WITHOUT_WALKS: Events = Events {
    processors: &["Cortex-A57", "Cortex-A72"],
    source: "the architecture's common events (Arm ARM D13.11); dtlb_walk and itlb_walk are not in Linux \
             tools/perf/pmu-events/arch/arm64/arm/cortex-a57-a72/, whose list has this core's own events",
    events: &[REFILLS],
    missing: "No event counts walks or their cycles: only refills of the first level, which the second \
              served or a walk, so that walks and walk_duration cannot be measured.",
};

/// A core whose own list was not read.
pub(super) const COMMON: Events = Events {
    processors: &["Cortex-A76"],
    source: "the architecture's common events (Arm ARM D13.11); dtlb_walk and itlb_walk from Cortex-A75 \
             on, as remembered; not read for this core",
    events: &[REFILLS, WALKS],
    missing: MISSING,
};

pub(super) const NEOVERSE: Events = Events {
    processors: &["Neoverse N1", "Neoverse N2", "Neoverse V1", "Neoverse V2"],
    source: "Linux tools/perf/pmu-events/arch/arm64/arm/, neoverse-n1, neoverse-v1 and neoverse-n2-v2, \
             tlb.json: refills that end in a fault are not counted, and a walk counts that finds a part \
             of its translation",
    events: &[REFILLS, &[event("l2d_tlb_refill", "walks", "-")], WALKS],
    missing: MISSING,
};
