//! Which hardware events measure what a comparison counts, so that it can be held against a real
//! machine.

mod amd;
mod arm;
mod generic;
mod intel;

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
    /// The events, in groups that families have in common.
    pub events: &'static [&'static [Event]],
    /// What cannot be measured.
    pub missing: &'static str,
}

impl Events {
    /// The events, in order.
    pub fn all(&self) -> impl Iterator<Item = &'static Event> + use<> {
        self.events.iter().copied().flatten()
    }
}

const fn event(name: &'static str, ours: &'static str, nested: &'static str) -> Event {
    Event { name, ours, nested }
}

/// All families whose lists were read.
const ALL: &[Events] = &[
    intel::NEHALEM,
    intel::WESTMERE,
    intel::SANDY_BRIDGE,
    intel::HASWELL,
    intel::SKYLAKE,
    intel::ICE_LAKE,
    amd::ZEN_1,
    amd::ZEN_2_AND_3,
    amd::ZEN_4,
    arm::WITHOUT_WALKS,
    arm::COMMON,
    arm::NEOVERSE,
    generic::AMD,
    generic::CORE_2,
    generic::NETBURST,
    generic::CORTEX_A15,
];

/// The events for a preset, by its name; `None` where they were not looked up.
pub fn events(processor: &str) -> Option<&'static Events> {
    ALL.iter()
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
    let names: Vec<&str> = found.all().map(|event| event.name).collect();
    // One line, however long, that can be copied.
    let mut out = format!("perf stat -e {} -- COMMAND\n\n", names.join(","));
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let ours = found.all().map(|event| event.ours.len()).max().unwrap_or(0);
    out.push_str(&format!("{:<width$}  {:<ours$}  {}\n", "event", "ours (--json)", "nested"));
    for event in found.all() {
        out.push_str(&format!("{:<width$}  {:<ours$}  {}\n", event.name, event.ours, event.nested));
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
        let left_out = events("skylake-sp").unwrap().all();
        let left_out = left_out.filter(|event| event.nested == "left out");
        assert!(left_out.map(|event| event.name).eq([
            "dtlb_load_misses.walk_pending",
            "dtlb_store_misses.walk_pending",
            "itlb_misses.walk_pending"
        ]));
    }

    #[test]
    fn every_processor_of_the_last_ten_years_has_events_and_says_what_of_walks_they_hold() {
        let named = ["ice-lake", "sapphire-rapids", "zen-1", "zen-2", "zen-3", "zen-4"];
        let arm = ["neoverse-n1", "neoverse-n2", "neoverse-v1", "neoverse-v2"];
        for name in named.into_iter().chain(arm) {
            let processor = crate::preset::Processor::bundled(name).unwrap();
            let found = events(&processor.name).unwrap_or_else(|| panic!("{name}"));
            assert!(found.source.starts_with("Linux tools/perf/pmu-events/arch/"), "{name}");
            assert!(found.all().any(|event| event.ours.starts_with("walks")), "{name}");
            let text = text(&processor.name);
            assert!(text.lines().skip(1).all(|line| line.chars().count() <= 100), "{text}");
        }
    }

    #[test]
    fn the_line_has_only_events_that_the_processor_has_and_all_that_it_has_of_reloads() {
        let line = |name| text(name).lines().next().unwrap().to_owned();
        for name in ["Cortex-A57", "Cortex-A72"] {
            assert!(
                line(name).contains("l1d_tlb_refill") && !line(name).contains("walk"),
                "{name}"
            );
        }
        assert!(line("Cortex-A76").contains("dtlb_walk,itlb_walk"));
        let nehalem = line("Nehalem");
        assert!(nehalem.contains("dtlb_misses.walk_completed"), "{nehalem}");
        assert!(!nehalem.contains("cycles") && !nehalem.contains("ept"), "{nehalem}");
        assert!(line("Westmere").contains("ept.walk_cycles"));
        assert_eq!(line("Zen 2"), line("Zen 3"));
        for reload in ["1g_l2_hit", "coalesced_page_hit", "coalesced_page_miss"] {
            assert!(line("Zen 2").contains(&format!("tlb_reload_{reload}")), "{reload}");
        }
    }

    #[test]
    fn an_unknown_family_is_told_so() {
        assert!(text("My own").starts_with("No events are known"));
    }

    #[test]
    fn every_preset_has_a_line_whose_events_are_counted_here() {
        for name in crate::preset::Processor::names() {
            let processor = crate::preset::Processor::bundled(name).unwrap();
            let found = events(&processor.name).unwrap_or_else(|| panic!("{name}"));
            let measured = ["instructions", "second_tlb_hits", "walks", "walk_duration", "served"];
            for event in found.all() {
                let ours = event.ours.split([',', '.', '[', ' ']).next().unwrap();
                assert!(measured.contains(&ours), "{name}: {}", event.ours);
            }
            let text = text(&processor.name);
            assert!(text.starts_with("perf stat -e "), "{text}");
            assert!(!text.contains("cycles.guest") && !text.contains("cycles.host"), "{text}");
        }
    }

    #[test]
    fn every_family_names_presets_that_are_there() {
        let names: Vec<String> = crate::preset::Processor::names()
            .map(|name| crate::preset::Processor::bundled(name).unwrap().name)
            .collect();
        for found in ALL {
            for processor in found.processors {
                assert!(names.iter().any(|name| name == processor), "{processor}");
            }
        }
    }
}
