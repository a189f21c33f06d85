//! Processors without a list of events in perf's tree: the names that the kernel maps for each itself.

use super::{Event, Events, event};

const INSTRUCTIONS: Event = event("instructions", "instructions", "-");
const LOADS: &str = "dTLB-load-misses";
const STORES: &str = "dTLB-store-misses";
const FETCHES: &str = "iTLB-load-misses";

/// Both levels missed; all page sizes.
pub(super) const AMD: Events = Events {
    processors: &["AMD-V 2006", "Barcelona", "Bulldozer"],
    source: "Linux arch/x86/events/amd/core.c: event 46H, missed by both levels of the data TLB, and 85H, \
             by both of the instruction TLB",
    events: &[&[
        INSTRUCTIONS,
        event(LOADS, "walks, of data", "-"),
        event(FETCHES, "walks, of fetches", "-"),
    ]],
    missing: "Second-level hits are event 45H with a bit for each page size (perf stat -e r745), of data \
              alone. No event counts the cycles of walks, so that walk_duration cannot be measured.",
};

pub(super) const CORE_2: Events = Events {
    processors: &["Core 2"],
    source: "Linux arch/x86/events/intel/core.c, core2: DTLB_MISSES.MISS_LD and MISS_ST, ITLBMISSES; \
             PAGE_WALKS.CYCLES, event 0CH, from the Intel SDM's list of this core",
    events: &[&[
        INSTRUCTIONS,
        event(LOADS, "walks, of loads", "-"),
        event(STORES, "walks, of stores", "-"),
        event(FETCHES, "walks, of fetches", "-"),
        event("r20c", "walk_duration", "none here"),
    ]],
    missing: "There is no second-level TLB beside the loads' small first one, which is not simulated, and no \
              EPT.",
};

pub(super) const NETBURST: Events = Events {
    processors: &["VT-x 2005"],
    source: "Linux arch/x86/events/intel/p4.c: replayed loads and stores that missed, and ITLB_REFERENCE",
    events: &[&[
        INSTRUCTIONS,
        event(LOADS, "walks, of loads", "-"),
        event(STORES, "walks, of stores", "-"),
        event(FETCHES, "walks, of fetches", "-"),
    ]],
    missing: "Misses are counted of instructions that retire. No event counts the cycles of walks here, so \
              that walk_duration cannot be measured.",
};

/// Refills of the first level.
pub(super) const CORTEX_A15: Events = Events {
    processors: &["Cortex-A15"],
    source: "Linux arch/arm/kernel/perf_event_v7.c: events 4CH and 4DH, refills of the first level by loads and \
             by stores, and 02H, by fetches",
    events: &[&[
        INSTRUCTIONS,
        event(LOADS, "second_tlb_hits + walks, of loads", "-"),
        event(STORES, "second_tlb_hits + walks, of stores", "-"),
        event(FETCHES, "second_tlb_hits + walks, of fetches", "-"),
    ]],
    missing: "No event counts walks or their cycles: only refills of the first level, which the second \
              served or a walk, so that walks and walk_duration cannot be measured.",
};
