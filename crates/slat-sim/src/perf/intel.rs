//! Intel's events.

use super::{Event, Events, event};

const INST_RETIRED: &[Event] = &[event("inst_retired.any", "instructions", "-")];
const STLB_HIT: &[Event] = &[
    event("dtlb_load_misses.stlb_hit", "second_tlb_hits, of loads", "-"),
    event("dtlb_store_misses.stlb_hit", "second_tlb_hits, of stores", "-"),
    event("itlb_misses.stlb_hit", "second_tlb_hits, of fetches", "-"),
];
const CAUSES_A_WALK: &[Event] = &[
    event("dtlb_load_misses.miss_causes_a_walk", "walks, of loads", "-"),
    event("dtlb_store_misses.miss_causes_a_walk", "walks, of stores", "-"),
    event("itlb_misses.miss_causes_a_walk", "walks, of fetches", "-"),
];
const WALK_DURATION: &[Event] = &[
    event("dtlb_load_misses.walk_duration", "walk_duration, of loads", "not stated"),
    event("dtlb_store_misses.walk_duration", "walk_duration, of stores", "not stated"),
    event("itlb_misses.walk_duration", "walk_duration, of fetches", "not stated"),
];
const EPT_CYCLES: &[Event] = &[event("ept.walk_cycles", "walk_duration.host", "alone")];
/// Of the first generation with a second-level TLB, loads and stores together.
const DATA_AND_FETCHES: &[Event] = &[
    event("dtlb_misses.stlb_hit", "second_tlb_hits, of data", "-"),
    event("dtlb_misses.walk_completed", "walks, of data", "-"),
    event("itlb_misses.walk_completed", "walks, of fetches", "-"),
];

pub(super) const SKYLAKE: Events = Events {
    processors: &["Skylake-SP"],
    source: "Linux tools/perf/pmu-events/arch/x86/skylakex/virtual-memory.json",
    events: &[
        INST_RETIRED,
        STLB_HIT,
        CAUSES_A_WALK,
        &[
            event("dtlb_load_misses.walk_pending", "walk_duration.guest, of loads", "left out"),
            event("dtlb_store_misses.walk_pending", "walk_duration.guest, of stores", "left out"),
            event("itlb_misses.walk_pending", "walk_duration.guest, of fetches", "left out"),
            event("ept.walk_pending", "walk_duration.host", "alone"),
        ],
    ],
    missing: "The walk_pending events leave EPT walks out on this core (\"EPT page walk duration are \
              excluded in Skylake\"), so that their share of all cycles understates translation in a \
              virtual machine: add ept.walk_pending. References per walk have no event since Haswell.",
};

pub(super) const HASWELL: Events = Events {
    processors: &["Haswell"],
    source: "Linux tools/perf/pmu-events/arch/x86/haswell/virtual-memory.json",
    events: &[
        INST_RETIRED,
        STLB_HIT,
        CAUSES_A_WALK,
        WALK_DURATION,
        EPT_CYCLES,
        &[
            event("page_walker_loads.dtlb_l1", "served.guest[0], of data", "left out"),
            event("page_walker_loads.dtlb_l2", "served.guest[1], of data", "left out"),
            event("page_walker_loads.dtlb_l3", "served.guest[2], of data", "left out"),
            event("page_walker_loads.dtlb_memory", "served.guest[3], of data", "left out"),
            event("page_walker_loads.ept_dtlb_l1", "served.host[0], of data", "alone"),
            event("page_walker_loads.ept_dtlb_l2", "served.host[1], of data", "alone"),
            event("page_walker_loads.ept_dtlb_l3", "served.host[2], of data", "alone"),
            event("page_walker_loads.ept_dtlb_memory", "served.host[3], of data", "alone"),
        ],
    ],
    missing: "Intel does not state whether walk_duration holds the EPT part; compare it with \
              ept.walk_cycles. Virtual machines often see none of these events.",
};

pub(super) const SANDY_BRIDGE: Events = Events {
    processors: &["Sandy Bridge"],
    source: "Linux tools/perf/pmu-events/arch/x86/sandybridge/virtual-memory.json",
    events: &[INST_RETIRED, STLB_HIT, CAUSES_A_WALK, WALK_DURATION, EPT_CYCLES],
    missing: "Intel does not state whether walk_duration holds the EPT part; compare it with \
              ept.walk_cycles. References per walk have no event.",
};

pub(super) const NEHALEM: Events = Events {
    processors: &["Nehalem"],
    source: "Linux tools/perf/pmu-events/arch/x86/nehalemep/virtual-memory.json",
    events: &[INST_RETIRED, DATA_AND_FETCHES],
    missing: "No event counts the cycles of walks, so that walk_duration cannot \
              be measured. Second-level hits of fetches and references per walk have no event.",
};

pub(super) const WESTMERE: Events = Events {
    processors: &["Westmere"],
    source: "Linux tools/perf/pmu-events/arch/x86/westmereep-dp/virtual-memory.json",
    events: &[
        INST_RETIRED,
        DATA_AND_FETCHES,
        &[
            event("dtlb_misses.walk_cycles", "walk_duration, of data", "not stated"),
            event("itlb_misses.walk_cycles", "walk_duration, of fetches", "not stated"),
        ],
        EPT_CYCLES,
    ],
    missing: "Intel does not state whether the other walk_cycles hold the EPT part. Second-level hits \
              of fetches and references per walk have no event.",
};

pub(super) const ICE_LAKE: Events = Events {
    processors: &["Ice Lake", "Sapphire Rapids"],
    source: "Linux tools/perf/pmu-events/arch/x86/icelakex/virtual-memory.json and \
             sapphirerapids/virtual-memory.json, where these events have the same names",
    events: &[
        INST_RETIRED,
        STLB_HIT,
        &[
            event("dtlb_load_misses.walk_completed", "walks, of loads", "-"),
            event("dtlb_store_misses.walk_completed", "walks, of stores", "-"),
            event("itlb_misses.walk_completed", "walks, of fetches", "-"),
            event("dtlb_load_misses.walk_pending", "walk_duration, of loads", "not stated"),
            event("dtlb_store_misses.walk_pending", "walk_duration, of stores", "not stated"),
            event("itlb_misses.walk_pending", "walk_duration, of fetches", "not stated"),
        ],
    ],
    missing: "walk_pending adds up walks that are outstanding at a time. Its text no longer says that EPT \
              walks are excluded, as Skylake's does, nor that they are included, and there is no EPT \
              event beside it. References per walk have no event.",
};
