//! The simulations that rows share, each run once.

use std::collections::HashMap;

use slat_mmu::shadow::Discipline;
use slat_trace::recording::{self, Recording};

use super::{Effort, Open, ReproduceError};
use crate::compare::{Estimate, Facts, Options, Outcome, Scheme, compare_with, share};
use crate::cost::{Cycles, propagate};
use crate::generated::{self, Generated};
use crate::hypervisor::Hypervisor;
use crate::preset::{Confidence, PageSize, Processor, SecondStage};

/// The outcomes of one workload on one processor.
#[derive(Clone, Debug)]
pub(super) struct Run(Vec<Outcome>);

impl Run {
    pub(super) fn scheme(&self, scheme: Scheme) -> Option<&Outcome> {
        self.0.iter().find(|outcome| outcome.scheme == scheme)
    }

    pub(super) fn native(&self) -> Option<&Outcome> {
        self.scheme(Scheme::Native)
    }

    /// Shadow tables under this discipline.
    pub(super) fn shadow_of(&self, discipline: Discipline) -> Option<&Outcome> {
        self.scheme(Scheme::Shadow(discipline))
    }

    /// Shadow tables that may be out of step until the guest invalidates: what KVM and Xen do.
    pub(super) fn shadow(&self) -> Option<&Outcome> {
        self.shadow_of(Discipline::OutOfSync)
    }

    /// The host's second stage of this processor's maker, with pages of this size (log2).
    pub(super) fn nested(&self, shift: u8) -> Option<&Outcome> {
        self.scheme(Scheme::Ept(shift)).or_else(|| self.scheme(Scheme::Npt(shift)))
    }
}

/// Runs made so far, by workload and machine.
pub(super) struct Runs<'a> {
    open: &'a mut Open<'a>,
    progress: &'a mut dyn FnMut(&str),
    effort: Effort,
    made: HashMap<(String, String), Option<Run>>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(
        open: &'a mut Open<'a>,
        effort: Effort,
        progress: &'a mut dyn FnMut(&str),
    ) -> Self {
        Runs { open, progress, effort, made: HashMap::new() }
    }

    /// This workload on this bundled processor; `None` where there is no such recording.
    pub(super) fn on(
        &mut self,
        workload: &str,
        preset: &str,
    ) -> Result<Option<Run>, ReproduceError> {
        let processor = Processor::bundled(preset)?;
        let options = schemes(workload, &processor);
        self.with(workload, preset, &processor, &options)
    }

    /// The same, exits handled as this bundled hypervisor does, over no larger host pages than it has
    /// there: rows say by [`largest_page`] which.
    pub(super) fn under(
        &mut self,
        workload: &str,
        preset: &str,
        hypervisor: &str,
    ) -> Result<Option<Run>, ReproduceError> {
        let mut processor = Processor::bundled(preset)?;
        processor.cycles = Hypervisor::bundled(hypervisor)?.cycles(&processor.cycles);
        let key = format!("{preset} {hypervisor}");
        let largest = largest_page(preset, hypervisor)?.shift();
        let mut options = schemes(workload, &processor);
        options.host_pages.retain(|&shift| shift <= largest);
        if let Some(schemes) = &mut options.schemes {
            schemes.retain(|scheme| scheme.host_shift().is_none_or(|shift| shift <= largest));
        }
        self.with(workload, &key, &processor, &options)
    }

    /// This workload on a processor that goes by `key` here.
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
        let run = if workload.starts_with(generated::PREFIX) {
            Some(Run(generated(workload, processor, options, self.effort)?))
        } else {
            match (self.open)(workload).map_err(|error| failed(workload, error))? {
                None => None,
                Some(recording) => {
                    let most = self.effort.recorded;
                    Some(Run(recorded(&recording, workload, processor, options, most)?))
                }
            }
        };
        self.made.insert(key, run.clone());
        Ok(run)
    }

    /// Two guests of this recording that take turns of so many accesses on the cores of one processor;
    /// `None` where there is no such recording.
    pub(super) fn sharing(
        &mut self,
        workload: &str,
        preset: &str,
        options: &Options,
        turn: usize,
    ) -> Result<Option<Vec<Run>>, ReproduceError> {
        let processor = Processor::bundled(preset)?;
        (self.progress)(&format!("{workload} twice on {}", processor.name));
        let recording = (self.open)(workload).map_err(|error| failed(workload, error))?;
        let Some(recording) = recording else { return Ok(None) };
        let reader = || {
            let options = recording::Options::default();
            recording.reader(&options).map_err(|error| failed(workload, error))
        };
        let mut guests = [reader()?, reader()?];
        let (facts, most) = (Facts::recorded(&recording), self.effort.recorded);
        share(&mut guests, turn, &processor, options, |_| facts, |done| done < 2 * most)
            .map(|all| Some(all.into_iter().map(Run).collect()))
            .map_err(|error| ReproduceError::Compare { workload: workload.to_owned(), error })
    }
}

/// The largest pages with which this bundled hypervisor backs guests on this bundled processor.
pub(super) fn largest_page(preset: &str, hypervisor: &str) -> Result<PageSize, ReproduceError> {
    Ok(Hypervisor::bundled(hypervisor)?.largest_page(&Processor::bundled(preset)?))
}

/// What rows ask of a workload: the second stage is that of the processor's maker, or EPT where it has
/// none; 1 GiB host pages only for recordings.
fn schemes(workload: &str, processor: &Processor) -> Options {
    let nested = match processor.second_stage.value {
        SecondStage::Npt => Scheme::Npt,
        _ => Scheme::Ept,
    };
    let mut schemes = vec![
        Scheme::Native,
        Scheme::Shadow(Discipline::TrapAll),
        Scheme::Shadow(Discipline::OutOfSync),
        nested(12),
        nested(21),
    ];
    if !workload.starts_with(generated::PREFIX) {
        schemes.push(nested(30));
    }
    Options { schemes: Some(schemes), ..Options::default() }
}

fn failed(workload: &str, error: recording::Error) -> ReproduceError {
    ReproduceError::Recording { workload: workload.to_owned(), error: Box::new(error) }
}

fn recorded(
    recording: &Recording,
    workload: &str,
    processor: &Processor,
    options: &Options,
    most: u64,
) -> Result<Vec<Outcome>, ReproduceError> {
    let mut reader = recording
        .reader(&recording::Options::default())
        .map_err(|error| failed(workload, error))?;
    let facts = Facts::recorded(recording);
    compare_with(&mut reader, processor, options, |_| facts, |done| done < most)
        .map(|compared| compared.outcomes)
        .map_err(|error| ReproduceError::Compare { workload: workload.to_owned(), error })
}

fn generated(
    workload: &str,
    processor: &Processor,
    options: &Options,
    effort: Effort,
) -> Result<Vec<Outcome>, ReproduceError> {
    // The first third is the guest's start, and that of the hypervisor's shadow. Of a workload with phases
    // the rest is as long as all of them.
    let guest = Generated::open(workload, effort.generated)?;
    let whole = guest.life() * 3 / 2 * effort.generated / Effort::default().generated;
    let accesses = effort.generated.max(whole);
    let mut guest = guest.with_accesses(accesses);
    let options = Options { warm_up: accesses / 3, ..options.clone() };
    compare_with(&mut guest, processor, &options, Generated::facts, |_| true)
        .map(|compared| compared.outcomes)
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

fn part_of(cycles: &Cycles, part: Part) -> f64 {
    match part {
        Part::All => cycles.total(),
        Part::WithoutExits => cycles.total() - cycles.all_exits(),
        Part::Walks => cycles.walks(),
    }
}

/// How many times as long one run takes as another, by parts of them.
pub(super) fn ratio(one: &Outcome, other: &Outcome, part: Part) -> Estimate {
    one.times(other, |cycles| part_of(cycles, part))
}

/// The share of a run's time that its exits take.
pub(super) fn exit_share(outcome: &Outcome) -> Estimate {
    propagate([&outcome.prices], |[prices]| {
        let cycles = Cycles::of(&outcome.events, prices);
        cycles.all_exits() / cycles.total()
    })
}

/// Table entries read a walk.
pub(super) fn references_per_walk(outcome: &Outcome) -> f64 {
    outcome.references_per_walk()
}

/// What the exits of a run cost each, for print beside a ratio: `table-write 3,509, ...`.
pub(super) fn exit_prices(processor: &Processor) -> String {
    let costs = &processor.cycles;
    let each = [
        ("table store", &costs.handle_table_write),
        ("fault", &costs.handle_shadow_fault),
        ("CR3 load", &costs.handle_cr3),
        ("INVLPG", &costs.handle_invlpg),
    ];
    let how = |confidence: Confidence| match confidence {
        Confidence::Counted => "counted",
        Confidence::Measured => "measured",
        Confidence::Documented => "documented",
        Confidence::Assumed => "assumed",
    };
    let list: Vec<String> = each
        .iter()
        .map(|(name, param)| format!("{name} {} ({})", param.value, how(param.confidence)))
        .collect();
    format!(
        "cycles of an exit {} ({}), and of its handler: {}",
        costs.exit.value,
        how(costs.exit.confidence),
        list.join(", ")
    )
}

/// A count: nothing about it is uncertain.
pub(super) fn exactly(value: f64) -> Estimate {
    Estimate::exactly(value)
}
