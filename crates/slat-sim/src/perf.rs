//! Which hardware events measure what a comparison counts, so that it can be held against a real
//! machine.

use crate::text::wrapped;

/// One event and the count of ours that it equals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// As `perf stat -e` takes it.
    pub name: &'static str,
    /// Ours.
    pub ours: &'static str,
    /// Whether it leaves the nested dimension out, counts it alone, or counts all.
    pub nested: &'static str,
}

/// The events of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Events {
    /// Names of the presets that they hold for.
    pub processors: &'static [&'static str],
    /// Where the names and their meaning come from.
    pub source: &'static str,
    /// The events.
    pub events: &'static [Event],
    /// What cannot be measured.
    pub missing: &'static str,
}

const fn event(name: &'static str, ours: &'static str, nested: &'static str) -> Event {
    Event { name, ours, nested }
}

const SKYLAKE: Events = Events {
    processors: &["Skylake-SP"],
    source: "Linux tools/perf/pmu-events/arch/x86/skylakex/virtual-memory.json",
    events: &[
        event("inst_retired.any", "instructions", "-"),
        event("dtlb_load_misses.stlb_hit", "second_tlb_hits, of loads", "-"),
        event("dtlb_store_misses.stlb_hit", "second_tlb_hits, of stores", "-"),
        event("itlb_misses.stlb_hit", "second_tlb_hits, of fetches", "-"),
        event("dtlb_load_misses.miss_causes_a_walk", "walks, of loads", "-"),
        event("dtlb_store_misses.miss_causes_a_walk", "walks, of stores", "-"),
        event("itlb_misses.miss_causes_a_walk", "walks, of fetches", "-"),
        event("dtlb_load_misses.walk_pending", "cycles.guest_walk, of loads", "left out"),
        event("dtlb_store_misses.walk_pending", "cycles.guest_walk, of stores", "left out"),
        event("itlb_misses.walk_pending", "cycles.guest_walk, of fetches", "left out"),
        event("ept.walk_pending", "cycles.host_walk", "alone"),
    ],
    missing: "The walk_pending events leave EPT walks out on this core (\"EPT page walk duration are \
              excluded in Skylake\"), so that their share of all cycles understates translation in a \
              virtual machine: add ept.walk_pending. References per walk have no event since Haswell.",
};

const HASWELL: Events = Events {
    processors: &["Haswell"],
    source: "Linux tools/perf/pmu-events/arch/x86/haswell/virtual-memory.json",
    events: &[
        event("inst_retired.any", "instructions", "-"),
        event("dtlb_load_misses.stlb_hit", "second_tlb_hits, of loads", "-"),
        event("dtlb_store_misses.stlb_hit", "second_tlb_hits, of stores", "-"),
        event("itlb_misses.stlb_hit", "second_tlb_hits, of fetches", "-"),
        event("dtlb_load_misses.miss_causes_a_walk", "walks, of loads", "-"),
        event("dtlb_store_misses.miss_causes_a_walk", "walks, of stores", "-"),
        event("itlb_misses.miss_causes_a_walk", "walks, of fetches", "-"),
        event("dtlb_load_misses.walk_duration", "cycles of walks, of loads", "not stated"),
        event("dtlb_store_misses.walk_duration", "cycles of walks, of stores", "not stated"),
        event("itlb_misses.walk_duration", "cycles of walks, of fetches", "not stated"),
        event("ept.walk_cycles", "cycles.host_walk", "alone"),
        event("page_walker_loads.dtlb_l1", "served.guest[0], of data", "left out"),
        event("page_walker_loads.dtlb_l2", "served.guest[1], of data", "left out"),
        event("page_walker_loads.dtlb_l3", "served.guest[2], of data", "left out"),
        event("page_walker_loads.dtlb_memory", "served.guest[3], of data", "left out"),
        event("page_walker_loads.ept_dtlb_l1", "served.host[0], of data", "alone"),
        event("page_walker_loads.ept_dtlb_l2", "served.host[1], of data", "alone"),
        event("page_walker_loads.ept_dtlb_l3", "served.host[2], of data", "alone"),
        event("page_walker_loads.ept_dtlb_memory", "served.host[3], of data", "alone"),
    ],
    missing: "Intel does not state whether walk_duration holds the EPT part; compare it with \
              ept.walk_cycles. Virtual machines often see none of these events.",
};

const SANDY_BRIDGE: Events = Events {
    processors: &["Sandy Bridge"],
    source: "Linux tools/perf/pmu-events/arch/x86/sandybridge/virtual-memory.json",
    events: &[
        event("inst_retired.any", "instructions", "-"),
        event("dtlb_load_misses.stlb_hit", "second_tlb_hits, of loads", "-"),
        event("dtlb_store_misses.stlb_hit", "second_tlb_hits, of stores", "-"),
        event("itlb_misses.stlb_hit", "second_tlb_hits, of fetches", "-"),
        event("dtlb_load_misses.miss_causes_a_walk", "walks, of loads", "-"),
        event("dtlb_store_misses.miss_causes_a_walk", "walks, of stores", "-"),
        event("itlb_misses.miss_causes_a_walk", "walks, of fetches", "-"),
        event("dtlb_load_misses.walk_duration", "cycles of walks, of loads", "not stated"),
        event("dtlb_store_misses.walk_duration", "cycles of walks, of stores", "not stated"),
        event("itlb_misses.walk_duration", "cycles of walks, of fetches", "not stated"),
        event("ept.walk_cycles", "cycles.host_walk", "alone"),
    ],
    missing: "Intel does not state whether walk_duration holds the EPT part; compare it with \
              ept.walk_cycles. References per walk have no event.",
};

const WESTMERE: Events = Events {
    processors: &["Nehalem", "Westmere"],
    source: "Linux tools/perf/pmu-events/arch/x86/westmereep-dp/virtual-memory.json; on Nehalem, \
             whose list was not read, the events of cycles are missing",
    events: &[
        event("inst_retired.any", "instructions", "-"),
        event("dtlb_misses.stlb_hit", "second_tlb_hits, of data", "-"),
        event("dtlb_misses.walk_completed", "walks, of data", "-"),
        event("itlb_misses.walk_completed", "walks, of fetches", "-"),
        event("dtlb_misses.walk_cycles", "cycles of walks, of data", "not stated"),
        event("itlb_misses.walk_cycles", "cycles of walks, of fetches", "not stated"),
        event("ept.walk_cycles", "cycles.host_walk", "alone"),
    ],
    missing: "Intel does not state whether the other walk_cycles hold the EPT part. Second-level hits \
              of fetches and references per walk have no event.",
};

const ICE_LAKE: Events = Events {
    processors: &["Ice Lake"],
    source: "Linux tools/perf/pmu-events/arch/x86/icelakex/virtual-memory.json",
    events: &[
        event("inst_retired.any", "instructions", "-"),
        event("dtlb_load_misses.stlb_hit", "second_tlb_hits, of loads", "-"),
        event("dtlb_store_misses.stlb_hit", "second_tlb_hits, of stores", "-"),
        event("itlb_misses.stlb_hit", "second_tlb_hits, of fetches", "-"),
        event("dtlb_load_misses.walk_completed", "walks, of loads", "-"),
        event("dtlb_store_misses.walk_completed", "walks, of stores", "-"),
        event("itlb_misses.walk_completed", "walks, of fetches", "-"),
        event("dtlb_load_misses.walk_pending", "cycles of walks, of loads", "not stated"),
        event("dtlb_store_misses.walk_pending", "cycles of walks, of stores", "not stated"),
        event("itlb_misses.walk_pending", "cycles of walks, of fetches", "not stated"),
    ],
    missing: "walk_pending adds up walks that are outstanding at a time. Its text no longer says that EPT \
              walks are excluded, as Skylake's does, nor that they are included, and there is no EPT \
              event beside it. References per walk have no event.",
};

const ZEN_2: Events = Events {
    processors: &["Zen 2"],
    source: "Linux tools/perf/pmu-events/arch/x86/amdzen2/memory.json",
    events: &[
        event("ex_ret_instr", "instructions", "-"),
        event("ls_l1_d_tlb_miss.tlb_reload_4k_l2_hit", "second_tlb_hits, of data, 4K", "-"),
        event("ls_l1_d_tlb_miss.tlb_reload_2m_l2_hit", "second_tlb_hits, of data, 2M", "-"),
        event("ls_l1_d_tlb_miss.tlb_reload_4k_l2_miss", "walks, of data, 4K", "-"),
        event("ls_l1_d_tlb_miss.tlb_reload_2m_l2_miss", "walks, of data, 2M", "-"),
        event("ls_l1_d_tlb_miss.tlb_reload_1g_l2_miss", "walks, of data, 1G", "-"),
        event("ls_tablewalker.dside", "walks, of data", "not stated"),
        event("ls_tablewalker.iside", "walks, of fetches", "not stated"),
    ],
    missing: "No event counts the cycles of walks, nested ones or others, so that cycles.guest_walk and \
              cycles.host_walk cannot be measured. Page sizes are those of TLB entries: the smaller of \
              guest's and host's.",
};

const ARM: Events = Events {
    processors: &[
        "Cortex-A57",
        "Cortex-A72",
        "Cortex-A76",
        "Neoverse N1",
        "Neoverse N2",
        "Neoverse V1",
        "Neoverse V2",
    ],
    source: "the architecture's common events (Arm ARM D13.11); dtlb_walk and itlb_walk only from \
             Cortex-A75 on, as remembered; not read for each core",
    events: &[
        event("inst_retired", "instructions", "-"),
        event("l1d_tlb_refill", "second_tlb_hits + walks, of data", "-"),
        event("l1i_tlb_refill", "second_tlb_hits + walks, of fetches", "-"),
        event("dtlb_walk", "walks, of data", "counted once for both stages"),
        event("itlb_walk", "walks, of fetches", "counted once for both stages"),
    ],
    missing: "No common event counts the cycles of walks or tells the stages apart.",
};

/// The events for a preset, by its name; `None` where they were not looked up.
pub fn events(processor: &str) -> Option<&'static Events> {
    [&SKYLAKE, &HASWELL, &SANDY_BRIDGE, &WESTMERE, &ICE_LAKE, &ZEN_2, &ARM]
        .into_iter()
        .find(|events| events.processors.iter().any(|name| name.eq_ignore_ascii_case(processor)))
}

/// What `--perf` prints.
pub fn text(processor: &str) -> String {
    let say = |text: &str| wrapped(text, 80).join("\n") + "\n";
    let exits = "perf kvm stat record -a sleep 10 && perf kvm stat report";
    let Some(found) = events(processor) else {
        return say(&format!(
            "No events are known here for {processor}: its names and what they leave out were not \
             looked up."
        )) + &say(&format!("On any x86 host with KVM, exits by cause: {exits}"));
    };
    let names: Vec<&str> = found.events.iter().map(|event| event.name).collect();
    // One line, however long, that can be copied.
    let mut out = format!("perf stat -e {} -- COMMAND\n\n", names.join(","));
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    out.push_str(&format!("{:<width$}  {:<30} {}\n", "event", "ours (--json)", "nested walk"));
    for event in found.events {
        out.push_str(&format!("{:<width$}  {:<30} {}\n", event.name, event.ours, event.nested));
    }
    out.push('\n');
    out.push_str(&say(found.missing));
    out.push_str(&format!("Exits by cause, on the host:\n  {exits}\n"));
    out.push_str(&say(&format!("Names and meanings: {}.", found.source)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skylake_says_what_leaves_the_nested_walk_out() {
        let text = text("Skylake-SP");
        assert!(text.starts_with("perf stat -e inst_retired.any,dtlb_load_misses.stlb_hit,"));
        let words: Vec<&str> = text.split_whitespace().collect();
        assert!(words.join(" ").contains("EPT page walk duration are excluded in Skylake"));
        assert!(text.lines().skip(1).all(|line| line.chars().count() <= 80), "{text}");
        let left_out = events("skylake-sp").unwrap().events.iter();
        let left_out = left_out.filter(|event| event.nested == "left out");
        assert!(left_out.map(|event| event.name).eq([
            "dtlb_load_misses.walk_pending",
            "dtlb_store_misses.walk_pending",
            "itlb_misses.walk_pending"
        ]));
    }

    #[test]
    fn an_unknown_family_is_told_so() {
        assert!(text("Bulldozer").starts_with("No events are known"));
    }

    #[test]
    fn every_family_names_presets_that_are_there() {
        let names: Vec<String> = crate::preset::Processor::names()
            .map(|name| crate::preset::Processor::bundled(name).unwrap().name)
            .collect();
        for found in [&SKYLAKE, &HASWELL, &SANDY_BRIDGE, &WESTMERE, &ICE_LAKE, &ZEN_2, &ARM] {
            for processor in found.processors {
                assert!(names.iter().any(|name| name == processor), "{processor}");
            }
        }
    }
}
