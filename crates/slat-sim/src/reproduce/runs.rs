//! The simulations that rows share, each run once.

use std::collections::HashMap;

use slat_mmu::shadow::Discipline;
use slat_trace::recording::{self, Recording};

use super::{Open, ReproduceError};
use crate::compare::{CycleShares, Estimate, Options, Outcome, Scheme, compare};
use crate::preset::Processor;

/// Recordings are run up to here: a bound on the time that the command takes.
pub(super) const MOST_ACCESSES: u64 = 32_000_000;

/// The outcomes of one recording on one processor.
#[derive(Clone, Debug)]
pub(super) struct Run(Vec<Outcome>);

impl Run {
    pub(super) fn scheme(&self, scheme: Scheme) -> Option<&Outcome> {
        self.0.iter().find(|outcome| outcome.scheme == scheme)
    }

    pub(super) fn native(&self) -> Option<&Outcome> {
        self.scheme(Scheme::Native)
    }

    /// Shadow tables that may be out of step until the guest invalidates: what KVM and Xen do.
    pub(super) fn shadow(&self) -> Option<&Outcome> {
        self.scheme(Scheme::Shadow(Discipline::OutOfSync))
    }

    /// Shadow tables every store to whose guest tables traps.
    pub(super) fn shadow_trap(&self) -> Option<&Outcome> {
        self.scheme(Scheme::Shadow(Discipline::TrapAll))
    }
}

/// Runs made so far, by recording and machine.
pub(super) struct Runs<'a> {
    open: &'a mut Open<'a>,
    progress: &'a mut dyn FnMut(&str),
    made: HashMap<(String, String), Option<Run>>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(open: &'a mut Open<'a>, progress: &'a mut dyn FnMut(&str)) -> Self {
        Runs { open, progress, made: HashMap::new() }
    }

    /// This recording on this bundled processor; `None` where there is no such recording.
    pub(super) fn on(
        &mut self,
        workload: &str,
        preset: &str,
    ) -> Result<Option<Run>, ReproduceError> {
        let processor = Processor::bundled(preset)?;
        self.with(workload, preset, &processor, &Options::default())
    }

    /// This recording on a processor that goes by `key` here.
    pub(super) fn with(
        &mut self,
        workload: &str,
        key: &str,
        processor: &Processor,
        options: &Options,
    ) -> Result<Option<Run>, ReproduceError> {
        let key = (workload.to_owned(), format!("{key} {options:?}"));
        if let Some(run) = self.made.get(&key) {
            return Ok(run.clone());
        }
        (self.progress)(&format!("{workload} on {}", processor.name));
        let run = match (self.open)(workload).map_err(|error| failed(workload, error))? {
            None => None,
            Some(recording) => Some(Run(outcomes(&recording, workload, processor, options)?)),
        };
        self.made.insert(key, run.clone());
        Ok(run)
    }
}

fn failed(workload: &str, error: recording::Error) -> ReproduceError {
    ReproduceError::Recording { workload: workload.to_owned(), error: Box::new(error) }
}

fn outcomes(
    recording: &Recording,
    workload: &str,
    processor: &Processor,
    options: &Options,
) -> Result<Vec<Outcome>, ReproduceError> {
    let mut reader = recording
        .reader(&recording::Options::default())
        .map_err(|error| failed(workload, error))?;
    compare(&mut reader, processor, options, |done| done < MOST_ACCESSES)
        .map_err(|error| ReproduceError::Compare { workload: workload.to_owned(), error })
}

/// Which cycles of a run count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    All,
    /// Not those of exits: what is left once every page has been touched.
    WithoutExits,
    /// Only those of page walks.
    Walks,
}

fn beyond(cycles: &CycleShares, part: Part, end: fn(&Estimate) -> f64) -> f64 {
    let walks = end(&cycles.guest_walk) + end(&cycles.host_walk);
    let exits = || cycles.exits.iter().map(|(_, estimate)| end(estimate)).sum::<f64>();
    match part {
        Part::All => walks + end(&cycles.second_tlb) + exits(),
        Part::WithoutExits => walks + end(&cycles.second_tlb),
        Part::Walks => walks,
    }
}

/// How many times as long one run takes as another. The ends of the range take the instructions at
/// one end of theirs and all other parameters at the other, for both runs alike.
pub(super) fn ratio(one: &Outcome, other: &Outcome, part: Part) -> Estimate {
    let at = |instructions: fn(&Estimate) -> f64, end: fn(&Estimate) -> f64| {
        let base = |outcome: &Outcome| match part {
            Part::Walks => 0.0,
            _ => instructions(&outcome.cycles.instructions),
        };
        let time = |outcome: &Outcome| base(outcome) + beyond(&outcome.cycles, part, end);
        time(one) / time(other)
    };
    let value = at(|e| e.value, |e| e.value);
    let ends = [at(|e| e.high, |e| e.low), at(|e| e.low, |e| e.high)];
    Estimate { value, low: ends[0].min(ends[1]).min(value), high: ends[0].max(ends[1]).max(value) }
}

/// The share of a run's time that its exits take.
pub(super) fn exit_share(outcome: &Outcome) -> Estimate {
    let at = |instructions: fn(&Estimate) -> f64, end: fn(&Estimate) -> f64| {
        let cycles = &outcome.cycles;
        let all = beyond(cycles, Part::All, end);
        let rest = beyond(cycles, Part::WithoutExits, end);
        (all - rest) / (instructions(&cycles.instructions) + all)
    };
    let value = at(|e| e.value, |e| e.value);
    let ends = [at(|e| e.high, |e| e.low), at(|e| e.low, |e| e.high)];
    Estimate { value, low: ends[0].min(ends[1]), high: ends[0].max(ends[1]) }
}

/// Table entries read a walk.
pub(super) fn references_per_walk(outcome: &Outcome) -> f64 {
    let references: u64 = outcome.counts.grid.iter().flatten().sum();
    references as f64 / outcome.counts.walks.max(1) as f64
}

/// A count: nothing about it is uncertain.
pub(super) fn exactly(value: f64) -> Estimate {
    Estimate { value, low: value, high: value }
}
