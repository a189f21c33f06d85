//! One recording under every scheme, in one pass: each batch is decoded once and run by all
//! machines.

mod build;
mod outcome;
mod run;
mod scheme;
mod share;
mod timeline;

pub use slat_mmu::shadow::Discipline;
use slat_trace::{Batch, Source};

pub use self::outcome::{Outcome, Shares};
pub use self::scheme::Scheme;
pub use self::share::share;
pub use self::timeline::Timeline;
pub use crate::cost::{Estimate, Facts};

use self::run::Run;
use crate::memory::MemoryError;
use crate::preset::Processor;

/// A comparison that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The recording could not be read further.
    #[error("{0}")]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// The guest does not fit.
    #[error(transparent)]
    Memory(#[from] MemoryError),
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
    /// Nothing is left to count.
    #[error(
        "the warm-up is {warm_up} accesses long, and the workload has {accesses}: nothing is left to \
         count; give a shorter warm-up"
    )]
    Short {
        /// Accesses of the warm-up.
        warm_up: u64,
        /// Accesses that there are.
        accesses: u64,
    },
    /// It was not to go on.
    #[error("stopped before the warm-up ended")]
    Stopped,
    /// Guests of several architectures on one core.
    #[error("virtual machines that share a core must have one architecture")]
    Mixed,
    /// Guests of different numbers of vCPUs on the same cores.
    #[error(
        "virtual machines that share cores must have the same number of virtual processors, and these \
         have {0} and {1}"
    )]
    Cores(u8, u8),
    /// A scheme of another architecture for guests that share a core.
    #[error(
        "virtual machines that share a core are not transcribed, and so cannot run under {}; give \
         schemes of their own architecture (`--scheme`)",
        .0.name()
    )]
    Shared(Scheme),
}

/// What is compared, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// log2 of the page sizes that the host backs guests with; under shadow tables
    /// [`Options::shadow_page`].
    pub host_pages: Vec<u8>,
    /// Whether TLB entries are tagged by virtual machine; `None` for what the processor has.
    pub tagged: Option<bool>,
    /// The virtual machine has just started: no host page is backed and no shadow table filled when
    /// the recording begins. Otherwise all memory is backed, and the shadow holds what the guest's
    /// tables say was accessed.
    pub cold_start: bool,
    /// What if the x86 guest used PCIDs, natively and under a second stage
    /// ([`crate::machine::pcid`]). Of an AArch64 guest, whose ASIDs are recorded, it changes nothing.
    pub pcid: bool,
    /// Also run what-ifs, for advice.
    pub what_ifs: bool,
    /// Schemes of other architectures too, for which the recording is transcribed.
    pub transcribed: bool,
    /// Only these schemes; `None` for all that the recording can run under. Run times need native.
    pub schemes: Option<Vec<Scheme>>,
    /// Exactly so many accesses are run before counting begins: what starts up is left out.
    pub warm_up: u64,
    /// Every access is run by itself, those too of stretches of hits that could be run at once: the
    /// outcome is the same, and later. A test compares the two.
    pub one_by_one: bool,
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
            one_by_one: false,
        }
    }
}

impl Options {
    /// log2 of the page size with which a host with shadow tables backs guests: the largest of
    /// [`Options::host_pages`], but for 1 GiB, of which shadow tables map 2 MiB parts.
    pub fn shadow_page(&self) -> u8 {
        self.host_pages.iter().copied().max().unwrap_or(21).min(21)
    }
}

/// A change that the recording does not have, run beside the schemes under the second stage alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhatIf {
    /// The x86 guest used large pages where it fills them ([`crate::transcribe`]).
    HugePages,
    /// The x86 guest used PCIDs ([`crate::machine::pcid`]).
    Pcid,
    /// TLB entries were tagged by virtual machine.
    Tags,
}

impl WhatIf {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            WhatIf::HugePages => "huge-pages",
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
    let mut batch = Batch::default();
    let mut done = 0;
    // Nanoseconds in which nothing ran: until now, and until counting began.
    let (mut waited, mut before) = (0, 0);
    let mut cold = options.warm_up > 0;
    let mut stopped = false;
    let failed = |error: S::Error| CompareError::Source(Box::new(error));
    while source.next(&mut batch).map_err(failed)? {
        run.take(&batch);
        let all = batch.accesses.len();
        let now = facts(source).waited_ns;
        let mut from = 0;
        if cold && done + all as u64 >= options.warm_up {
            cold = false;
            from = (options.warm_up - done) as usize;
            run.part(&batch, 0..from)?;
            // As instructions are, waits are spread evenly over a batch.
            before = waited + (now - waited) * from as u64 / all.max(1) as u64;
            run.machines.iter_mut().for_each(|machine| machine.forget());
            timeline = Timeline::after(options.warm_up);
        }
        if from < all || all == 0 {
            run.part(&batch, from..all)?;
        }
        waited = now;
        done += all as u64;
        timeline.add(done, run.machines.iter().map(|machine| machine.walks()));
        if !progress(done) {
            stopped = true;
            break;
        }
    }
    if done == 0 {
        return Err(CompareError::Empty);
    }
    if options.warm_up > 0 && done <= options.warm_up {
        return Err(match stopped {
            true => CompareError::Stopped,
            false => CompareError::Short { warm_up: options.warm_up, accesses: done },
        });
    }
    let mut known = facts(source);
    known.waited_ns -= before;
    let outcomes = run.outcomes(processor, &known);
    timeline.keep(&run.kept);
    Ok(Compared { outcomes, timeline, notes: run.notes })
}
