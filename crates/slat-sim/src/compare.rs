//! One recording under every scheme, in one pass: each batch is decoded once and run by all
//! machines.

mod build;
mod outcome;
mod scheme;
mod share;
mod timeline;

use rayon::prelude::*;
pub use slat_mmu::shadow::Discipline;
use slat_trace::{Batch, Source};

pub use self::outcome::{Outcome, Shares};
pub use self::scheme::Scheme;
pub use self::share::share;
pub use self::timeline::Timeline;
pub use crate::cost::{Estimate, Facts};

use self::build::{Runs, Setting};
use crate::cost::Prices;
use crate::machine::{Part, Start};
use crate::memory::TooMuchMemory;
use crate::preset::Processor;
use crate::transcribe::Transcribed;

/// A comparison that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The recording could not be read further.
    #[error("{0}")]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// The guest does not fit.
    #[error(transparent)]
    Memory(#[from] TooMuchMemory),
    /// The preset's arrays cannot be built.
    #[error(transparent)]
    Geometry(#[from] slat_mmu::array::BadGeometry),
    /// The trace has no tables of its own.
    #[error(
        "this trace has no page tables of its own; turn it into a recording with `slat import` first"
    )]
    NoTables,
    /// There is nothing in it.
    #[error("the recording holds no accesses, or ends before the warm-up does")]
    Empty,
    /// Guests of several architectures on one core.
    #[error("virtual machines that share a core must have one architecture")]
    Mixed,
}

/// What is compared, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// log2 of the page sizes that the host backs guests with.
    pub host_pages: Vec<u8>,
    /// Whether TLB entries are tagged by virtual machine; `None` for what the processor has.
    pub tagged: Option<bool>,
    /// The virtual machine has just started: no host page is backed and no shadow table filled when
    /// the recording begins. Otherwise all memory is backed, and the shadow holds what the guest's
    /// tables say was accessed.
    pub cold_start: bool,
    /// What if the x86 guest used PCIDs, natively and under a second stage
    /// ([`crate::machine::pcid`]).
    pub pcid: bool,
    /// Also run what-ifs, for advice.
    pub what_ifs: bool,
    /// Schemes of other architectures too, for which the recording is transcribed.
    pub transcribed: bool,
    /// Only these schemes; `None` for all that the recording can run under. Run times need native.
    pub schemes: Option<Vec<Scheme>>,
    /// So many accesses are run before counting begins: what starts up is left out.
    pub warm_up: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            host_pages: vec![12, 21, 30],
            tagged: None,
            cold_start: false,
            pcid: false,
            what_ifs: false,
            transcribed: false,
            schemes: None,
            warm_up: 0,
        }
    }
}

/// A change that the recording does not have, run beside the schemes under the second stage alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhatIf {
    /// The x86 guest used PCIDs ([`crate::machine::pcid`]).
    Pcid,
    /// TLB entries were tagged by virtual machine.
    Tags,
}

impl WhatIf {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            WhatIf::Pcid => "pcid",
            WhatIf::Tags => "tags",
        }
    }
}

/// What was compared.
#[derive(Clone, Debug)]
pub struct Compared {
    /// One outcome a scheme, native first.
    pub outcomes: Vec<Outcome>,
    /// Misses over time, schemes in the order of the outcomes.
    pub timeline: Timeline,
    /// What could not be done, and why.
    pub notes: Vec<String>,
}

/// Runs the whole of a recording under every scheme. `progress` is told the accesses done so far, a
/// batch at a time, and says whether to go on.
///
/// # Errors
/// Where the recording or the preset cannot be used.
pub fn compare<S: Source>(
    source: &mut S,
    processor: &Processor,
    options: &Options,
    progress: impl FnMut(u64) -> bool,
) -> Result<Vec<Outcome>, CompareError> {
    Ok(compare_with(source, processor, options, |_| Facts::RECORDED, progress)?.outcomes)
}

/// As [`compare`]; `facts` says of the source, when it was read, what is known beside its stream.
///
/// # Errors
/// As [`compare`].
pub fn compare_with<S: Source>(
    source: &mut S,
    processor: &Processor,
    options: &Options,
    facts: impl Fn(&S) -> Facts,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Compared, CompareError> {
    let mut run = Run::new(source, processor, options, 0)?;
    let mut timeline = Timeline::default();
    // A batch is decoded while the machines run the one before it.
    let mut batch = Batch::default();
    let mut done = 0;
    let mut waited = 0;
    let mut cold = options.warm_up > 0;
    let failed = |error: S::Error| CompareError::Source(Box::new(error));
    while source.next(&mut batch).map_err(failed)? {
        run.run(&batch)?;
        done += batch.accesses.len() as u64;
        if cold && done >= options.warm_up {
            cold = false;
            waited = facts(source).waited_ns;
            run.machines.iter_mut().for_each(|machine| machine.forget());
            timeline = Timeline::after(done);
        }
        timeline.add(done, run.machines.iter().map(|machine| machine.walks()));
        if !progress(done) {
            break;
        }
    }
    if done == 0 || cold {
        return Err(CompareError::Empty);
    }
    let mut known = facts(source);
    known.waited_ns -= waited;
    let outcomes = run.outcomes(processor, &known);
    Ok(Compared { outcomes, timeline, notes: run.notes })
}

/// The machines of one guest.
struct Run {
    schemes: Vec<(Scheme, Option<WhatIf>)>,
    machines: Vec<Box<dyn Runs>>,
    transcribed: Vec<Transcribed>,
    arch: slat_trace::Arch,
    notes: Vec<String>,
}

impl Run {
    /// `vm` tells guests apart that share a machine.
    fn new<S: Source>(
        source: &S,
        processor: &Processor,
        options: &Options,
        vm: u8,
    ) -> Result<Run, CompareError> {
        let machine = source.machine();
        if !machine.tables {
            return Err(CompareError::NoTables);
        }
        let setting = Setting {
            processor,
            arch: machine.arch,
            cores: machine.vcpus,
            start: Start {
                tagged: options.tagged.unwrap_or(processor.tagged_tlb.value),
                cold: options.cold_start,
                pcid: options.pcid,
                vm,
            },
            memory: machine.memory.clone().unwrap_or(0..1 << 30),
        };
        let schemes = Run::schemes(options, machine.arch, setting.start);
        let machines = schemes
            .iter()
            .map(|&(scheme, what_if)| {
                let mut setting = setting.clone();
                match what_if {
                    Some(WhatIf::Pcid) => setting.start.pcid = true,
                    Some(WhatIf::Tags) => setting.start.tagged = true,
                    None => {}
                }
                setting.machine(scheme)
            })
            .collect::<Result<Vec<_>, CompareError>>()?;
        let transcribed = schemes
            .iter()
            .filter(|(scheme, _)| scheme.transcribes(machine.arch))
            .filter_map(|&(scheme, _)| Transcribed::target(scheme))
            .collect::<std::collections::BTreeSet<_>>();
        let transcribed = transcribed.into_iter().map(Transcribed::new).collect();
        Ok(Run { schemes, machines, transcribed, arch: machine.arch, notes: Vec::new() })
    }

    /// What is run, in order.
    fn schemes(
        options: &Options,
        arch: slat_trace::Arch,
        start: Start,
    ) -> Vec<(Scheme, Option<WhatIf>)> {
        let x86 = arch == slat_trace::Arch::X86_64;
        let mut schemes = Scheme::all(arch, &options.host_pages, options.transcribed);
        if let Some(wanted) = &options.schemes {
            // A scheme that transcribes is run where it is asked for by name.
            schemes.retain(|scheme| wanted.contains(scheme));
            let more = wanted.iter().copied().filter(|scheme| x86 && scheme.transcribes(arch));
            for scheme in more {
                if !schemes.contains(&scheme) {
                    schemes.push(scheme);
                }
            }
        }
        let mut all: Vec<_> = schemes.iter().map(|&scheme| (scheme, None)).collect();
        // Their effect shows beside 2 MiB host pages, or else the smallest.
        let nested = schemes
            .iter()
            .copied()
            .filter(|scheme| !scheme.transcribes(arch))
            .filter(|scheme| !matches!(scheme, Scheme::Native | Scheme::Shadow(_)))
            .min_by_key(|scheme| (scheme.host_shift() != Some(21), scheme.host_shift()));
        if let Some(scheme) = nested.filter(|_| options.what_ifs) {
            if x86 && !start.pcid {
                all.push((scheme, Some(WhatIf::Pcid)));
            }
            if !start.tagged {
                all.push((scheme, Some(WhatIf::Tags)));
            }
        }
        all
    }

    fn run(&mut self, batch: &Batch) -> Result<(), TooMuchMemory> {
        for transcribed in &mut self.transcribed {
            transcribed.take(&batch.events);
        }
        let (arch, transcribed) = (self.arch, &self.transcribed);
        let own = Part::of(batch);
        let parts: Vec<Part<'_>> = self
            .schemes
            .iter()
            .map(|&(scheme, _)| {
                let target = Transcribed::target(scheme).filter(|_| scheme.transcribes(arch));
                let events = target.and_then(|target| {
                    transcribed.iter().find(|transcribed| transcribed.is_for(target))
                });
                events.map_or(own, |transcribed| Part { events: transcribed.events(), ..own })
            })
            .collect();
        self.machines.par_iter_mut().zip(&parts).try_for_each(|(machine, part)| machine.run(part))
    }

    fn outcomes(&mut self, processor: &Processor, facts: &Facts) -> Vec<Outcome> {
        for transcribed in &self.transcribed {
            self.notes.extend(transcribed.note());
        }
        let prices = Prices::new(processor, facts);
        let mut outcomes: Vec<Outcome> = self
            .schemes
            .iter()
            .zip(&self.machines)
            .map(|(&(scheme, what_if), machine)| {
                let mut outcome = Outcome::new(scheme, machine.as_ref(), &prices, facts);
                outcome.what_if = what_if;
                outcome.transcribed = scheme.transcribes(self.arch);
                outcome
            })
            .collect();
        outcome::relate(&mut outcomes);
        outcomes
    }
}
