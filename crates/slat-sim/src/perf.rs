//! Which hardware events measure what a comparison counts, so that it can be held against a real
//! machine.

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

/// The events for a preset, by its name; `None` where they were not looked up.
pub fn events(processor: &str) -> Option<&'static Events> {
    [&SKYLAKE, &HASWELL]
        .into_iter()
        .find(|events| events.processors.iter().any(|name| name.eq_ignore_ascii_case(processor)))
}

/// What `--perf` prints.
pub fn text(processor: &str) -> String {
    let Some(found) = events(processor) else {
        return format!(
            "No events are known here for {processor}: its names and what they leave out were not \
             looked up.\nOn any x86 host with KVM, exits by cause: perf kvm stat record -a sleep 10 \
             && perf kvm stat report\n"
        );
    };
    let names: Vec<&str> = found.events.iter().map(|event| event.name).collect();
    let mut out = format!("perf stat -e {} -- COMMAND\n\n", names.join(","));
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    out.push_str(&format!("{:<width$}  {:<30} {}\n", "event", "ours (--json)", "nested walk"));
    for event in found.events {
        out.push_str(&format!("{:<width$}  {:<30} {}\n", event.name, event.ours, event.nested));
    }
    out.push_str(&format!(
        "\n{}\nExits by cause, on the host: perf kvm stat record -a sleep 10 && perf kvm stat \
         report\nNames and meanings: {}.\n",
        found.missing, found.source
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skylake_says_what_leaves_the_nested_walk_out() {
        let text = text("Skylake-SP");
        assert!(text.starts_with("perf stat -e inst_retired.any,dtlb_load_misses.stlb_hit,"));
        assert!(text.contains("EPT page walk duration are excluded in Skylake"));
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
        assert!(text("Zen 2").contains("not looked up"));
    }
}
