//! AMD's events.

use super::{Event, Events, event};

/// What no AMD list has.
const MISSING: &str = "No event counts the cycles of walks, nested ones or others, so that \
     walk_duration cannot be measured. Page sizes are those of TLB entries: the smaller of \
     guest's and host's.";

const INSTRUCTIONS: &[Event] = &[event("ex_ret_instr", "instructions", "-")];
const HIT_4K: Event =
    event("ls_l1_d_tlb_miss.tlb_reload_4k_l2_hit", "second_tlb_hits, of data, 4K", "-");
const HIT_2M: Event =
    event("ls_l1_d_tlb_miss.tlb_reload_2m_l2_hit", "second_tlb_hits, of data, 2M", "-");
const HIT_1G: Event =
    event("ls_l1_d_tlb_miss.tlb_reload_1g_l2_hit", "second_tlb_hits, of data, 1G", "-");
const MISS_4K: Event = event("ls_l1_d_tlb_miss.tlb_reload_4k_l2_miss", "walks, of data, 4K", "-");
const MISS_2M: Event = event("ls_l1_d_tlb_miss.tlb_reload_2m_l2_miss", "walks, of data, 2M", "-");
const MISS_1G: Event = event("ls_l1_d_tlb_miss.tlb_reload_1g_l2_miss", "walks, of data, 1G", "-");
/// Second-level hits, by the size of the entry.
const HITS: &[Event] = &[
    HIT_4K,
    event("ls_l1_d_tlb_miss.tlb_reload_coalesced_page_hit", "second_tlb_hits, of data, 4K", "-"),
    HIT_2M,
    HIT_1G,
];
/// Second-level misses likewise.
const MISSES: &[Event] = &[
    MISS_4K,
    event("ls_l1_d_tlb_miss.tlb_reload_coalesced_page_miss", "walks, of data, 4K", "-"),
    MISS_2M,
    MISS_1G,
];
const TABLE_WALKER: &[Event] = &[
    event("ls_tablewalker.dside", "walks, of data", "not stated"),
    event("ls_tablewalker.iside", "walks, of fetches", "not stated"),
];

pub(super) const ZEN_1: Events = Events {
    processors: &["Zen 1"],
    source: "Linux tools/perf/pmu-events/arch/x86/amdzen1/memory.json; pages of 32K are \
             neighbours that a TLB entry joins",
    events: &[
        INSTRUCTIONS,
        &[
            HIT_4K,
            event("ls_l1_d_tlb_miss.tlb_reload_32k_l2_hit", "second_tlb_hits, of data, 4K", "-"),
            HIT_2M,
            HIT_1G,
            MISS_4K,
            event("ls_l1_d_tlb_miss.tlb_reload_32k_l2_miss", "walks, of data, 4K", "-"),
            MISS_2M,
            MISS_1G,
        ],
        TABLE_WALKER,
    ],
    missing: MISSING,
};

pub(super) const ZEN_2_AND_3: Events = Events {
    processors: &["Zen 2", "Zen 3"],
    source: "Linux tools/perf/pmu-events/arch/x86/amdzen2/memory.json and amdzen3/memory.json, where \
             these events have the same names; coalesced pages are neighbours that a TLB entry joins",
    events: &[INSTRUCTIONS, HITS, MISSES, TABLE_WALKER],
    missing: MISSING,
};

pub(super) const ZEN_4: Events = Events {
    processors: &["Zen 4"],
    source: "Linux tools/perf/pmu-events/arch/x86/amdzen4/memory.json; the other Zen events of the table \
             walker are not in this list; coalesced pages are four neighbours that a TLB entry joins",
    events: &[
        INSTRUCTIONS,
        HITS,
        &[
            event("ls_l1_d_tlb_miss.all_l2_miss", "walks, of data", "-"),
            event("bp_l1_tlb_miss_l2_tlb_hit", "second_tlb_hits, of fetches", "-"),
            event("bp_l1_tlb_miss_l2_tlb_miss.all", "walks, of fetches", "-"),
        ],
    ],
    missing: MISSING,
};
