//! What events cost: cycles from counts, and how far the result may be off.
//!
//! A processor's time is taken apart into parts that add up: instructions at the base CPI; waiting
//! for data that the first cache level does not hold; hits of the second-level TLB; reads of the
//! guest's tables and of the hypervisor's; exits by cause; waiting for devices. Waiting for the
//! data itself is part of every scheme, native too, and is no cost of translation.
//!
//! **Ranges.** Each price may be off by its confidence's factor, up or down, independently of the others.
//! [`propagate`] moves each to both its ends alone and adds the deviations as those of independent errors
//! are added: by the root of the sum of their squares. Sizes and ways of TLBs, walk caches and data caches
//! decide about the counts, which are taken as they are: that those are assumed widens no range.

use serde::Serialize;
use slat_trace::recording::Recording;

use crate::machine::{CAUSES, Cause, Counts};
use crate::preset::{Confidence, Param, Processor};

/// A value with the range that follows from the confidence of the parameters behind it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Estimate {
    /// From the parameters' values.
    pub value: f64,
    /// The low end.
    pub low: f64,
    /// The high end.
    pub high: f64,
}

impl Estimate {
    /// A value about which nothing is uncertain.
    pub const fn exactly(value: f64) -> Estimate {
        Estimate { value, low: value, high: value }
    }
}

/// What is known of a workload beside its stream.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Facts {
    /// How sure its instruction counts are: measured in a recording.
    pub instructions: Confidence,
    /// Which share of a wait for data or for a walk is not hidden behind other work of the program;
    /// `None` for the processor preset's assumption.
    pub exposed: Option<f64>,
    /// Nanoseconds in which nothing ran.
    pub waited_ns: u64,
}

impl Facts {
    /// A recording's: its instructions are counted one by one, and nothing else is known.
    pub const RECORDED: Facts =
        Facts { instructions: Confidence::Counted, exposed: None, waited_ns: 0 };

    /// What is known of a recording: of the pointer chases also that they wait for each load.
    pub fn recorded(recording: &Recording) -> Facts {
        let mut provenance = recording.provenance().iter();
        let command = provenance.find(|(key, _)| key == "command");
        let chases = command.is_some_and(|(_, command)| command.starts_with("chase "));
        Facts { exposed: chases.then_some(1.0), ..Facts::RECORDED }
    }
}

/// What a range is made of: parameters that are independent of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Knob {
    Instructions,
    BaseCpi,
    SecondTlb,
    L1,
    L2,
    L3,
    Memory,
    Exposed,
    Exit,
    Violation,
    TableWrite,
    ShadowFault,
    Cr3,
    Invlpg,
    Io,
    Switch,
    ProcessSwitch,
    Frequency,
}

const KNOBS: usize = 18;

/// The prices of one run's events, each with the factor that it may be off by.
#[derive(Clone, PartialEq, Debug)]
pub struct Prices {
    values: [f64; KNOBS],
    factors: [f64; KNOBS],
    /// A workload that is known to wait for memory and keeps more in flight than there are walkers
    /// waits for walkers.
    least_walk: f64,
    /// How much of its waiting shows is known of the workload, and not assumed of the processor.
    exposed_known: bool,
}

impl Prices {
    /// The prices on this processor for a workload.
    pub fn new(processor: &Processor, facts: &Facts) -> Prices {
        let costs = &processor.cycles;
        let caches = &processor.caches;
        let of = |param: &Param<u32>| (f64::from(param.value), param.confidence);
        let exposed = match facts.exposed {
            Some(share) => (share, Confidence::Documented),
            None => (costs.exposed.value, costs.exposed.confidence),
        };
        // In the order of `Knob`.
        let all = [
            (1.0, facts.instructions),
            (costs.base_cpi.value, costs.base_cpi.confidence),
            of(&costs.second_tlb_hit),
            (f64::from(caches.l1.value.cycles), caches.l1.confidence),
            (f64::from(caches.l2.value.cycles), caches.l2.confidence),
            (f64::from(caches.l3.value.cycles), caches.l3.confidence),
            of(&caches.memory),
            exposed,
            of(&costs.exit),
            of(&costs.handle_violation),
            of(&costs.handle_table_write),
            of(&costs.handle_shadow_fault),
            of(&costs.handle_cr3),
            of(&costs.handle_invlpg),
            of(&costs.handle_io),
            of(&costs.handle_switch),
            of(costs.process_switch.as_ref().unwrap_or(&costs.handle_switch)),
            (costs.frequency_ghz.value, costs.frequency_ghz.confidence),
        ];
        let walkers = f64::from(costs.walkers.value.max(1));
        Prices {
            values: all.map(|(value, _)| value),
            factors: all.map(|(_, confidence)| confidence.factor()),
            least_walk: if facts.exposed.is_some() { 1.0 / walkers } else { 0.0 },
            exposed_known: facts.exposed.is_some(),
        }
    }

    /// Whether a knob is a fact of the workload, and the same whatever runs it.
    fn of_the_workload(&self, knob: usize) -> bool {
        knob == Knob::Instructions as usize || knob == Knob::Exposed as usize && self.exposed_known
    }

    /// The processor's clock, in GHz.
    pub fn frequency(&self) -> f64 {
        self.get(Knob::Frequency)
    }

    fn get(&self, knob: Knob) -> f64 {
        self.values[knob as usize]
    }

    fn moved(&self, knob: usize, up: bool) -> Prices {
        let mut moved = self.clone();
        let factor = self.factors[knob];
        let value = &mut moved.values[knob];
        *value = if up { *value * factor } else { *value / factor };
        if knob == Knob::Exposed as usize {
            *value = value.min(1.0);
        }
        moved
    }

    fn handler(&self, cause: Cause) -> f64 {
        let knob = match cause {
            Cause::Violation => Knob::Violation,
            Cause::TableWrite | Cause::Emulation => Knob::TableWrite,
            Cause::Cr3 => Knob::Cr3,
            Cause::Invlpg => Knob::Invlpg,
            Cause::TrueFault | Cause::HiddenFault | Cause::Dirty => Knob::ShadowFault,
            Cause::Io => Knob::Io,
            Cause::Switch => Knob::Switch,
        };
        self.get(knob)
    }
}

/// The events of one run that cost something.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Events {
    /// Instructions, second-level hits and exits.
    pub counts: Counts,
    /// Data accesses by who served them: L1, L2, L3, memory.
    pub data: [u64; 4],
    /// Reads of the guest's tables by who served them.
    pub guest_reads: [u64; 4],
    /// Reads of nested or shadow tables.
    pub host_reads: [u64; 4],
    /// Nanoseconds in which nothing ran.
    pub waited_ns: u64,
}

/// Cycles by cause.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Cycles {
    /// Instructions at the base CPI.
    pub instructions: f64,
    /// Waiting for data beyond the first cache level.
    pub data: f64,
    /// Second-level TLB hits.
    pub second_tlb: f64,
    /// Reads of the guest's own tables.
    pub guest_walk: f64,
    /// Reads of nested or shadow tables.
    pub host_walk: f64,
    /// Exits by cause.
    pub exits: [f64; CAUSES],
    /// Waiting for devices.
    pub waiting: f64,
    /// Process switches in place of turns of virtual machines.
    pub process_switches: f64,
    /// How long reads of the guest's own tables last, and of nested or shadow tables, whether they are
    /// hidden behind other work or not: what a processor's counters of walk cycles count. No part of the
    /// time, of which [`Cycles::guest_walk`] and [`Cycles::host_walk`] are.
    pub walk_duration: [f64; 2],
}

impl Cycles {
    /// What these events cost at these prices.
    pub fn of(events: &Events, prices: &Prices) -> Cycles {
        let counts = &events.counts;
        let latency = [Knob::L1, Knob::L2, Knob::L3, Knob::Memory].map(|knob| prices.get(knob));
        let exposed = prices.get(Knob::Exposed);
        let walking = exposed.max(prices.least_walk);
        let reads = |served: &[u64; 4]| -> f64 {
            served.iter().zip(latency).map(|(&reads, each)| reads as f64 * each).sum()
        };
        let beyond_l1 = |served: &[u64; 4]| -> f64 {
            let beyond = latency.map(|each| (each - latency[0]).max(0.0));
            served.iter().zip(beyond).map(|(&reads, each)| reads as f64 * each).sum()
        };
        Cycles {
            instructions: counts.instructions as f64
                * prices.get(Knob::Instructions)
                * prices.get(Knob::BaseCpi),
            data: exposed * beyond_l1(&events.data),
            second_tlb: counts.second_hits as f64 * prices.get(Knob::SecondTlb),
            guest_walk: walking * reads(&events.guest_reads),
            host_walk: walking * reads(&events.host_reads),
            exits: Cause::ALL.map(|cause| {
                counts.exits[cause as usize] as f64
                    * (prices.get(Knob::Exit) + prices.handler(cause))
            }),
            waiting: events.waited_ns as f64 * prices.get(Knob::Frequency),
            process_switches: counts.process_switches as f64 * prices.get(Knob::ProcessSwitch),
            walk_duration: [reads(&events.guest_reads), reads(&events.host_reads)],
        }
    }

    /// All exits.
    pub fn all_exits(&self) -> f64 {
        self.exits.iter().sum()
    }

    /// Exits for the upkeep of shadow tables: not the guest's own page faults, nor devices.
    pub fn upkeep(&self) -> f64 {
        [
            Cause::TableWrite,
            Cause::Cr3,
            Cause::Invlpg,
            Cause::HiddenFault,
            Cause::Dirty,
            Cause::Emulation,
        ]
        .into_iter()
        .map(|cause| self.exits[cause as usize])
        .sum()
    }

    /// Walks of both dimensions.
    pub fn walks(&self) -> f64 {
        self.guest_walk + self.host_walk
    }

    /// What a machine that translated for nothing would take.
    pub fn work(&self) -> f64 {
        self.instructions + self.data + self.waiting + self.process_switches
    }

    /// Translation and exits.
    pub fn overhead(&self) -> f64 {
        self.second_tlb + self.walks() + self.all_exits()
    }

    /// All.
    pub fn total(&self) -> f64 {
        self.work() + self.overhead()
    }
}

/// A function of the prices of one or more runs on one processor, with its range: the same parameter moves
/// in all runs at once.
pub fn propagate<const N: usize>(
    prices: [&Prices; N],
    of: impl Fn([&Prices; N]) -> f64,
) -> Estimate {
    deviations(prices, 1, |_| 0, of)
}

/// The same of two runs on two processors: what is known of one says nothing of the other, so that each
/// parameter moves in each run alone; but for the workload's, its instructions and how much of its waiting
/// shows, where both runs have them from the workload.
pub fn propagate_apart(prices: [&Prices; 2], of: impl Fn([&Prices; 2]) -> f64) -> Estimate {
    deviations(prices, 2, |nth| nth, of)
}

/// `kinds` of processors, run `nth` being on `kind_of(nth)`.
fn deviations<const N: usize>(
    prices: [&Prices; N],
    kinds: usize,
    kind_of: impl Fn(usize) -> usize,
    of: impl Fn([&Prices; N]) -> f64,
) -> Estimate {
    let value = of(prices);
    let (mut below, mut above) = (0.0, 0.0);
    for knob in 0..KNOBS {
        let shared = prices.iter().all(|prices| prices.of_the_workload(knob));
        for kind in 0..if shared { 1 } else { kinds } {
            let (mut down, mut up) = (0.0f64, 0.0f64);
            for end in [false, true] {
                let moved: [Prices; N] = std::array::from_fn(|nth| match kind_of(nth) == kind {
                    true => prices[nth].moved(knob, end),
                    false if shared => prices[nth].moved(knob, end),
                    false => prices[nth].clone(),
                });
                let difference = of(moved.each_ref()) - value;
                down = down.min(difference);
                up = up.max(difference);
            }
            below += down * down;
            above += up * up;
        }
    }
    Estimate { value, low: value - f64::sqrt(below), high: value + f64::sqrt(above) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor() -> Processor {
        Processor::bundled("nehalem").unwrap()
    }

    #[test]
    fn a_range_is_as_wide_as_independent_errors_are() {
        let prices = Prices::new(&processor(), &Facts::RECORDED);
        let one = propagate([&prices], |[p]| p.get(Knob::BaseCpi));
        assert!((one.high / one.value - prices.factors[Knob::BaseCpi as usize]).abs() < 1e-9);
        // Two equal and independent parts: the error of the sum is 1/sqrt(2) of each one's.
        let scale = prices.get(Knob::Cr3) / prices.get(Knob::Invlpg);
        let sum = propagate([&prices], |[p]| p.get(Knob::Cr3) + scale * p.get(Knob::Invlpg));
        let each = prices.factors[Knob::Cr3 as usize] - 1.0;
        let expected = each / f64::sqrt(2.0);
        assert!((sum.high / sum.value - 1.0 - expected).abs() < 1e-9, "{sum:?}");
        // What does not depend on a parameter is certain.
        assert_eq!(propagate([&prices], |_| 7.0), Estimate::exactly(7.0));
    }

    #[test]
    fn two_processors_are_known_apart() {
        let of = |name| Prices::new(&Processor::bundled(name).unwrap(), &Facts::RECORDED);
        let (old, new) = (of("core-2"), of("nehalem"));
        let events = Events {
            counts: Counts { instructions: 1_000_000, ..Counts::default() },
            ..Events::default()
        };
        let ratio = |[one, other]: [&Prices; 2]| {
            Cycles::of(&events, one).total() / Cycles::of(&events, other).total()
        };
        // The same error in both cancels, and an error in each does not.
        let together = propagate([&old, &new], ratio);
        let apart = propagate_apart([&old, &new], ratio);
        let width = |estimate: &Estimate| estimate.high / estimate.low;
        assert!((width(&together) - 1.0).abs() < 1e-9, "{together:?}");
        assert_eq!(together.value, apart.value);
        let factors = [&old, &new].map(|prices| prices.factors[Knob::BaseCpi as usize]);
        assert!(factors.iter().all(|factor| apart.high / apart.value >= *factor), "{apart:?}");
        // What is counted of the workload is no matter of the processor, and the clock is one.
        let clocks =
            propagate_apart([&old, &new], |[one, other]| one.frequency() / other.frequency());
        assert!(clocks.high > clocks.value && clocks.low < clocks.value);
    }

    #[test]
    fn devices_and_the_guests_own_faults_are_no_upkeep() {
        let prices = Prices::new(&processor(), &Facts::RECORDED);
        let of = |causes: &[Cause]| {
            let mut events = Events::default();
            for &cause in causes {
                events.counts.exits[cause as usize] += 10;
            }
            Cycles::of(&events, &prices)
        };
        let shadow =
            [Cause::TableWrite, Cause::HiddenFault, Cause::Dirty, Cause::Cr3, Cause::Invlpg];
        let all = Cause::ALL;
        assert_eq!(of(&shadow).upkeep(), of(&shadow).all_exits());
        let upkeep = of(&all).upkeep() - of(&[Cause::Emulation]).upkeep();
        assert!((upkeep - of(&shadow).upkeep()).abs() < 1e-6);
        for cause in [Cause::Io, Cause::TrueFault, Cause::Switch, Cause::Violation] {
            assert_eq!(of(&[cause]).upkeep(), 0.0);
        }
    }

    #[test]
    fn how_long_walks_last_does_not_depend_on_what_hides_them() {
        let of = |exposed| {
            let facts = Facts { exposed: Some(exposed), ..Facts::RECORDED };
            let events = Events {
                guest_reads: [10, 20, 30, 40],
                host_reads: [1, 2, 3, 4],
                ..Events::default()
            };
            Cycles::of(&events, &Prices::new(&processor(), &facts))
        };
        let (whole, half) = (of(1.0), of(0.5));
        assert_eq!(whole.walk_duration, half.walk_duration);
        // Where nothing hides them, they take as long as they last.
        assert_eq!(whole.walk_duration, [whole.guest_walk, whole.host_walk]);
        assert_eq!(whole.total(), whole.walks());
    }

    #[test]
    fn waiting_for_data_is_no_overhead() {
        let prices = Prices::new(&processor(), &Facts::RECORDED);
        let events = Events { data: [0, 0, 0, 1_000], ..Events::default() };
        let cycles = Cycles::of(&events, &prices);
        assert!(cycles.data > 0.0);
        assert_eq!((cycles.overhead(), cycles.total()), (0.0, cycles.data));
    }

    #[test]
    fn independent_walks_wait_for_the_walker() {
        let facts = Facts { exposed: Some(0.25), ..Facts::RECORDED };
        let events = Events { guest_reads: [0, 0, 0, 10], ..Events::default() };
        let nehalem = Cycles::of(&events, &Prices::new(&processor(), &facts));
        let memory = f64::from(processor().caches.memory.value);
        // One walker: nothing of a walk is hidden behind another.
        assert_eq!(nehalem.guest_walk, 10.0 * memory);
    }
}
