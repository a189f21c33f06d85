//! Arm's events.

use super::{Events, event};

const MISSING: &str = "No event counts the cycles of walks, so that cycles.guest_walk and \
    cycles.host_walk cannot be measured, and none tells the stages apart: whether a walk of both \
    stages counts once is not stated.";

/// Cores whose own lists were not read.
pub(super) const COMMON: Events = Events {
    processors: &["Cortex-A57", "Cortex-A72", "Cortex-A76"],
    source: "the architecture's common events (Arm ARM D13.11); dtlb_walk and itlb_walk only from \
             Cortex-A75 on, as remembered; not read for each core",
    events: &[
        event("inst_retired", "instructions", "-"),
        event("l1d_tlb_refill", "second_tlb_hits + walks, of data", "-"),
        event("l1i_tlb_refill", "second_tlb_hits + walks, of fetches", "-"),
        event("dtlb_walk", "walks, of data", "not stated"),
        event("itlb_walk", "walks, of fetches", "not stated"),
    ],
    missing: MISSING,
};

pub(super) const NEOVERSE: Events = Events {
    processors: &["Neoverse N1", "Neoverse N2", "Neoverse V1", "Neoverse V2"],
    source: "Linux tools/perf/pmu-events/arch/arm64/arm/, neoverse-n1, neoverse-v1 and neoverse-n2-v2, \
             tlb.json: refills that end in a fault are not counted, and a walk counts that finds a part \
             of its translation",
    events: &[
        event("inst_retired", "instructions", "-"),
        event("l1d_tlb_refill", "second_tlb_hits + walks, of data", "-"),
        event("l1i_tlb_refill", "second_tlb_hits + walks, of fetches", "-"),
        event("l2d_tlb_refill", "walks", "-"),
        event("dtlb_walk", "walks, of data", "not stated"),
        event("itlb_walk", "walks, of fetches", "not stated"),
    ],
    missing: MISSING,
};
