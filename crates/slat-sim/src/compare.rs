//! One recording under every scheme, in one pass: each batch is decoded once and run by all
//! machines.

use rayon::prelude::*;
use serde::Serialize;
use slat::format::Format;
use slat::format::arm64::{self, Granule, Stage2};
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::npt::Npt;
use slat::format::x86::Vendor;
use slat::format::x86::long;
use slat::{Gpa, Spa, Stage};
use slat_mmu::shadow::Discipline;
use slat_trace::{Arch, Batch, Source};

use crate::guest::{Aarch64, Guest, X86};
use crate::machine::{Cause, Counts, Hypervisor, Machine, Start};
use crate::memory::{Dimension, Physical, TooMuchMemory};
use crate::nested::{Address, Encoding, build};
use crate::preset::{Param, Processor};

/// A way to give a guest its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Scheme {
    /// No virtualization.
    Native,
    /// Shadow tables, under this discipline.
    Shadow(Discipline),
    /// Intel EPT, the host backing the guest with pages of this size (log2).
    Ept(u8),
    /// AMD NPT.
    Npt(u8),
    /// Arm Stage-2.
    Arm(u8),
}

impl Scheme {
    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Native => "native",
            Scheme::Shadow(Discipline::TrapAll) => "shadow-trap",
            Scheme::Shadow(Discipline::OutOfSync) => "shadow",
            Scheme::Ept(_) => "ept",
            Scheme::Npt(_) => "npt",
            Scheme::Arm(_) => "stage2",
        }
    }

    /// log2 of the host's page size; `None` natively.
    pub const fn host_shift(self) -> Option<u8> {
        match self {
            Scheme::Native => None,
            Scheme::Shadow(_) => Some(21),
            Scheme::Ept(shift) | Scheme::Npt(shift) | Scheme::Arm(shift) => Some(shift),
        }
    }

    /// Every scheme that this architecture's recordings can run under, the host backing with these
    /// page sizes (log2).
    pub fn all(arch: Arch, sizes: &[u8]) -> Vec<Scheme> {
        let mut schemes = vec![Scheme::Native];
        match arch {
            Arch::X86_64 => {
                schemes.push(Scheme::Shadow(Discipline::TrapAll));
                schemes.push(Scheme::Shadow(Discipline::OutOfSync));
                schemes.extend(sizes.iter().map(|&shift| Scheme::Ept(shift)));
                schemes.extend(sizes.iter().map(|&shift| Scheme::Npt(shift)));
            }
            Arch::Aarch64 => schemes.extend(sizes.iter().map(|&shift| Scheme::Arm(shift))),
        }
        schemes
    }
}

/// A value with the range that follows from the confidence of the parameters behind it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Estimate {
    /// From the parameters' values.
    pub value: f64,
    /// All parameters at the end that makes it low.
    pub low: f64,
    /// All parameters at the end that makes it high.
    pub high: f64,
}

impl Estimate {
    fn of(events: u64, param: &Param<u32>) -> Estimate {
        let value = events as f64 * f64::from(param.value);
        let factor = param.confidence.factor();
        Estimate { value, low: value / factor, high: value * factor }
    }

    fn plus(self, other: Estimate) -> Estimate {
        Estimate {
            value: self.value + other.value,
            low: self.low + other.low,
            high: self.high + other.high,
        }
    }
}

/// Cycles by cause.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CycleShares {
    /// Instructions at the base CPI.
    pub instructions: Estimate,
    /// Second-level TLB hits.
    pub second_tlb: Estimate,
    /// Reads of the guest's own tables.
    pub guest_walk: Estimate,
    /// Reads of nested or shadow tables.
    pub host_walk: Estimate,
    /// Exits, by cause.
    pub exits: Vec<(&'static str, Estimate)>,
}

impl CycleShares {
    fn total(&self) -> Estimate {
        let translation = self.second_tlb.plus(self.guest_walk).plus(self.host_walk);
        let exits = self.exits.iter().map(|(_, estimate)| *estimate);
        exits.fold(self.instructions.plus(translation), Estimate::plus)
    }

    /// Everything but the instructions.
    pub fn overhead(&self) -> f64 {
        self.total().value - self.instructions.value
    }
}

/// What one scheme came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// The scheme.
    pub scheme: Scheme,
    /// What was counted.
    pub counts: Counts,
    /// Reads of the guest's own tables.
    pub guest_reads: Dimension,
    /// Reads of nested or shadow tables.
    pub host_reads: Dimension,
    /// Bytes of guest tables that were seen.
    pub guest_table_bytes: u64,
    /// Bytes of the hypervisor's tables: nested ones, or the most shadow tables at once.
    pub host_table_bytes: u64,
    /// Cycles by cause.
    pub cycles: CycleShares,
    /// Run time relative to native; `None` where the recording counts no instructions.
    pub time: Option<Estimate>,
}

/// A comparison that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The recording could not be read further.
    #[error("{0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
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
    #[error("the recording holds no accesses")]
    Empty,
}

/// A machine of any guest and scheme.
trait Runs: Send {
    fn run(&mut self, batch: &Batch) -> Result<(), TooMuchMemory>;
    fn counts(&self) -> Counts;
    fn memory(&self) -> &Physical;
    fn most_shadow_tables(&self) -> usize;
}

impl<G: Guest, F2: Format + Send + Sync> Runs for Machine<G, F2>
where
    <G::Format as Format>::Root: Send,
    F2::Root: Send,
{
    fn run(&mut self, batch: &Batch) -> Result<(), TooMuchMemory> {
        Machine::run(self, batch)
    }

    fn counts(&self) -> Counts {
        Machine::counts(self)
    }

    fn memory(&self) -> &Physical {
        Machine::memory(self)
    }

    fn most_shadow_tables(&self) -> usize {
        Machine::most_shadow_tables(self)
    }
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
    /// Only these schemes; `None` for all that the recording can run under. Run times need native.
    pub schemes: Option<Vec<Scheme>>,
}

impl Default for Options {
    fn default() -> Self {
        Options { host_pages: vec![12, 21, 30], tagged: None, cold_start: false, schemes: None }
    }
}

/// Runs the whole of `source` under every scheme. `progress` is told the accesses done so far, a
/// batch at a time, and says whether to go on.
///
/// # Errors
/// Where the recording or the preset cannot be used.
pub fn compare<S: Source>(
    source: &mut S,
    processor: &Processor,
    options: &Options,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Vec<Outcome>, CompareError> {
    let machine = source.machine().clone();
    if !machine.tables {
        return Err(CompareError::NoTables);
    }
    let memory = machine.memory.clone().unwrap_or(0..1 << 30);
    let tagged = options.tagged.unwrap_or(processor.tagged_tlb.value);
    let start = Start { tagged, cold: options.cold_start };
    let mut schemes = Scheme::all(machine.arch, &options.host_pages);
    if let Some(wanted) = &options.schemes {
        schemes.retain(|scheme| wanted.contains(scheme));
    }
    let mut machines = schemes
        .iter()
        .map(|&scheme| make(scheme, machine.arch, machine.vcpus, processor, start, &memory))
        .collect::<Result<Vec<_>, CompareError>>()?;
    // A batch is decoded while the machines run the one before it.
    let mut batch = Batch::default();
    let mut next = Batch::default();
    let mut done = 0;
    let failed = |error: S::Error| CompareError::Source(Box::new(error));
    let mut more = source.next(&mut next).map_err(failed)?;
    while more {
        std::mem::swap(&mut batch, &mut next);
        let run = machines.par_iter_mut().try_for_each(|machine| machine.run(&batch));
        run?;
        done += batch.accesses.len() as u64;
        if !progress(done) {
            break;
        }
        more = source.next(&mut next).map_err(failed)?;
    }
    if done == 0 {
        return Err(CompareError::Empty);
    }
    let mut outcomes: Vec<Outcome> = schemes
        .iter()
        .zip(&machines)
        .map(|(&scheme, machine)| outcome(scheme, machine.as_ref(), processor))
        .collect();
    relate(&mut outcomes, processor);
    Ok(outcomes)
}

fn make(
    scheme: Scheme,
    arch: Arch,
    cores: u8,
    processor: &Processor,
    start: Start,
    range: &std::ops::Range<u64>,
) -> Result<Box<dyn Runs>, CompareError> {
    match arch {
        Arch::X86_64 => make_for::<X86>(scheme, cores, processor, start, range),
        Arch::Aarch64 => make_for::<Aarch64>(scheme, cores, processor, start, range),
    }
}

fn make_for<G: Guest>(
    scheme: Scheme,
    cores: u8,
    processor: &Processor,
    start: Start,
    range: &std::ops::Range<u64>,
) -> Result<Box<dyn Runs>, CompareError>
where
    G::Format: 'static,
    <G::Format as Format>::Root: Send,
{
    let backed = scheme.host_shift().unwrap_or(30);
    let mut memory = Physical::new(&processor.caches, backed)?;
    let boxed: Box<dyn Runs> = match scheme {
        Scheme::Native => {
            Box::new(Machine::<G, Flat>::new(processor, cores, memory, Hypervisor::Native, start)?)
        }
        Scheme::Shadow(discipline) => Box::new(Machine::<G, Flat>::new(
            processor,
            cores,
            memory,
            Hypervisor::Shadow(discipline),
            start,
        )?),
        Scheme::Ept(shift) => {
            let root = build(
                &mut memory.host,
                Encoding::EPT,
                Address::InPlace,
                3,
                1,
                shift,
                range.clone(),
            );
            let features = ept::Features {
                accessed_dirty: processor.second_stage_dirty.value,
                ..ept::Features::default()
            };
            let stage2 = Stage::<_, Gpa, Spa>::new(Ept::four(features), root);
            let hypervisor = Hypervisor::Nested(stage2);
            Box::new(Machine::<G, Ept>::new(processor, cores, memory, hypervisor, start)?)
        }
        Scheme::Npt(shift) => {
            let root = build(
                &mut memory.host,
                Encoding::NPT,
                Address::InPlace,
                3,
                1,
                shift,
                range.clone(),
            );
            let host = long::Processor { vendor: Vendor::Amd, ..long::Processor::default() };
            let stage2 = Stage::<_, Gpa, Spa>::new(Npt::four(true, host), root);
            let hypervisor = Hypervisor::Nested(stage2);
            Box::new(Machine::<G, Npt>::new(processor, cores, memory, hypervisor, start)?)
        }
        Scheme::Arm(shift) => {
            // 40 bits of input: two concatenated root tables of level 2.
            let root = build(
                &mut memory.host,
                Encoding::ARM,
                Address::InPlace,
                2,
                2,
                shift,
                range.clone(),
            );
            let format = Stage2::plain(Granule::Four, 40, &arm64::Processor::default())
                .unwrap_or_else(|_| unreachable!("40 bits with the 4K granule exist"));
            let hypervisor = Hypervisor::Nested(Stage::<_, Gpa, Spa>::new(format, root));
            Box::new(Machine::<G, Stage2>::new(processor, cores, memory, hypervisor, start)?)
        }
    };
    Ok(boxed)
}

fn outcome(scheme: Scheme, machine: &dyn Runs, processor: &Processor) -> Outcome {
    let counts = machine.counts();
    let memory = machine.memory();
    let costs = &processor.cycles;
    let reads = |dimension: &Dimension| -> Estimate {
        let caches = &processor.caches;
        let by = [
            (dimension.served[0], f64::from(caches.l1.value.cycles), caches.l1.confidence),
            (dimension.served[1], f64::from(caches.l2.value.cycles), caches.l2.confidence),
            (dimension.served[2], f64::from(caches.l3.value.cycles), caches.l3.confidence),
            (dimension.served[3], f64::from(caches.memory.value), caches.memory.confidence),
        ];
        by.iter().fold(Estimate { value: 0.0, low: 0.0, high: 0.0 }, |sum, (reads, each, how)| {
            let value = *reads as f64 * each;
            sum.plus(Estimate { value, low: value / how.factor(), high: value * how.factor() })
        })
    };
    let exits = Cause::ALL
        .iter()
        .map(|&cause| {
            let events = counts.exits[cause as usize];
            let handler = match cause {
                Cause::Violation => &costs.handle_violation,
                Cause::TableWrite | Cause::Emulation => &costs.handle_table_write,
                Cause::Cr3 => &costs.handle_cr3,
                Cause::Invlpg => &costs.handle_invlpg,
                Cause::TrueFault | Cause::HiddenFault | Cause::Dirty => &costs.handle_shadow_fault,
            };
            let cost = Estimate::of(events, &costs.exit).plus(Estimate::of(events, handler));
            (cause.name(), cost)
        })
        .collect();
    let cpi = &costs.base_cpi;
    let instructions = counts.instructions as f64 * cpi.value;
    let factor = cpi.confidence.factor();
    let cycles = CycleShares {
        instructions: Estimate {
            value: instructions,
            low: instructions / factor,
            high: instructions * factor,
        },
        second_tlb: Estimate::of(counts.second_hits, &costs.second_tlb_hit),
        guest_walk: reads(&memory.guest_reads),
        host_walk: reads(&memory.host_reads),
        exits,
    };
    let host_tables = match scheme {
        Scheme::Shadow(_) => machine.most_shadow_tables(),
        _ => memory.host.len(),
    };
    Outcome {
        scheme,
        guest_reads: memory.guest_reads,
        host_reads: memory.host_reads,
        guest_table_bytes: memory.guest_tables() as u64 * 4096,
        host_table_bytes: host_tables as u64 * 4096,
        cycles,
        time: None,
        counts,
    }
}

/// Run times relative to native. The ends of the range take translation and exits at one end of
/// their ranges and the instructions at the other, for the scheme and for native alike.
fn relate(outcomes: &mut [Outcome], _processor: &Processor) {
    let Some(native) = outcomes.iter().find(|outcome| outcome.scheme == Scheme::Native) else {
        return;
    };
    if native.counts.instructions == 0 {
        return;
    }
    let native = native.cycles.clone();
    for outcome in outcomes {
        let own = &outcome.cycles;
        let at = |instructions: f64, end: fn(&Estimate) -> f64| {
            let beyond = |cycles: &CycleShares| {
                let total = cycles.total();
                end(&total) - end(&cycles.instructions)
            };
            (instructions + beyond(own)) / (instructions + beyond(&native))
        };
        let value = own.total().value / native.total().value;
        let ends = [
            at(own.instructions.high, |estimate| estimate.low),
            at(own.instructions.low, |estimate| estimate.high),
        ];
        outcome.time = Some(Estimate {
            value,
            low: ends[0].min(ends[1]).min(value),
            high: ends[0].max(ends[1]).max(value),
        });
    }
}
