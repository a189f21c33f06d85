//! Page-run compaction: a stream in which accesses that cannot change any TLB collapse into their
//! predecessor.
//!
//! A program touches the same page many times in a row. The first of these accesses may miss, walk, and
//! set accessed and dirty bits; those behind it hit the entry that was used last, which changes no TLB
//! under any replacement policy that forgets nothing on a hit to its most recent entry: LRU, tree-PLRU,
//! FIFO and random alike. [`Compact`] keeps such a run as one [`PageRun`] with counts. A simulator of
//! TLBs alone gives the same result from it as from the full stream, to the last counter; a simulator
//! with a cache model needs the full stream, because caches see every access.
//!
//! A run is of one vCPU, one address space, one privilege and one class of access ([`Classes`]) within one 4 KiB page of virtual addresses. It stands where its first access stood, so that
//! the order of all first touches is kept across classes and vCPUs. It ends
//!
//! - at an access of its class to another page, with another privilege, or across a page border;
//! - at the first store after loads alone, which may have to set the dirty bit or fault; and, where fetches
//!   and data are of one class, at the first of the one after the other, whose permission is another;
//! - at any event of its vCPU: a switch of the root, of a control register or of privilege, an
//!   invalidation, an exception;
//! - at any store to a page table and any invalidation, whichever vCPU makes it.
//!
//! What it is exact for is asked by [`Hierarchy`]; what it is not exact for is refused with the reason.
//!
//! ```
//! use slat_trace::compact::{Classes, Compacting, Hierarchy, RunBatch};
//! use slat_trace::{Access, Batch, Kind};
//!
//! let mut batch = Batch::default();
//! for i in 0..100 {
//!     batch.accesses.push(Access::new(Kind::Fetch, 0x1000 + 4 * i, 4));
//!     batch.accesses.push(Access::new(Kind::Load, 0x7000 + 8 * (i % 7), 8));
//! }
//! let classes = Hierarchy::default().classes()?;
//! assert_eq!(classes, Classes::Split);
//! let mut runs = RunBatch::default();
//! Compacting::new(classes).compact(&batch, &mut runs);
//! assert_eq!(runs.runs.len(), 2);
//! assert_eq!((runs.runs[0].fetches, runs.runs[1].loads), (100, 100));
//! # Ok::<(), slat_trace::compact::Refused>(())
//! ```

mod cache;

use std::fmt;

pub use cache::{Runs, RunsError};

use crate::{Access, At, Batch, Event, Kind, Machine, Source};

/// What has to be known of a simulated TLB hierarchy to tell whether compaction is exact for it.
///
/// The default is the usual one: first levels apart for fetches and data, nothing inclusive, nothing shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Whether fetches and data accesses look into TLBs of their own first.
    pub split_first_level: bool,
    /// Whether loads and stores look into TLBs of their own first, too.
    pub split_stores: bool,
    /// Whether pages of some size that occurs are not kept in the first level at all, so that every access
    /// to them goes on to an outer one.
    pub pass_by: bool,
    /// Whether dropping an entry from an outer level drops it from the first level, too.
    pub inclusive: bool,
    /// Whether a hit in the first level also touches an outer level, as with parallel lookup.
    pub outer_sees_hits: bool,
    /// Whether several vCPUs look into the same first level, as hardware threads may.
    pub shared: bool,
    /// Whether anything but a miss brings entries into the first level.
    pub prefetches: bool,
    /// Whether something that is not in the stream drops entries at moments of its own, as a hypervisor
    /// does that scans, logs or migrates pages after so many accesses.
    pub interventions: bool,
}

impl Default for Hierarchy {
    fn default() -> Self {
        Hierarchy {
            split_first_level: true,
            split_stores: false,
            pass_by: false,
            inclusive: false,
            outer_sees_hits: false,
            shared: false,
            prefetches: false,
            interventions: false,
        }
    }
}

/// Which accesses may be in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classes {
    /// Fetches, and apart from them loads and stores: for first levels that are split so.
    Split,
    /// Fetches, loads and stores, each apart: for first levels of which stores have their own.
    SplitStores,
    /// All accesses: for a unified first level. A fetch between two loads of one page ends their run.
    Unified,
}

/// Why compaction is not exact for a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// See [`Hierarchy::pass_by`].
    PassBy,
    /// See [`Hierarchy::inclusive`].
    Inclusive,
    /// See [`Hierarchy::outer_sees_hits`].
    OuterSeesHits,
    /// See [`Hierarchy::shared`].
    Shared,
    /// See [`Hierarchy::prefetches`].
    Prefetches,
    /// See [`Hierarchy::interventions`].
    Interventions,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Refused::PassBy => {
                "the first level does not keep pages of every size that occurs, so that each access to such a \
                 page changes an outer TLB"
            }
            Refused::Inclusive => {
                "an inclusive outer TLB drops entries from the first level when it evicts, so that a repeated \
                 access to a page can miss"
            }
            Refused::OuterSeesHits => {
                "hits in the first level also touch an outer TLB, so that repeated accesses to a page change it"
            }
            Refused::Shared => {
                "vCPUs share a first-level TLB, so that another vCPU can evict an entry between two accesses to \
                 its page"
            }
            Refused::Prefetches => {
                "prefetches fill the first-level TLB, so that an entry can be evicted between two accesses to its \
                 page"
            }
            Refused::Interventions => {
                "something outside the stream drops entries at moments of its own, which may lie between two \
                 accesses to a page"
            }
        };
        write!(f, "page runs are not exact here: {why}; use the full stream")
    }
}

impl std::error::Error for Refused {}

impl Hierarchy {
    /// The classes for which compaction is exact.
    ///
    /// # Errors
    ///
    /// Where it is exact for none.
    pub fn classes(&self) -> Result<Classes, Refused> {
        if self.pass_by {
            return Err(Refused::PassBy);
        }
        if self.inclusive {
            return Err(Refused::Inclusive);
        }
        if self.outer_sees_hits {
            return Err(Refused::OuterSeesHits);
        }
        if self.shared {
            return Err(Refused::Shared);
        }
        if self.prefetches {
            return Err(Refused::Prefetches);
        }
        if self.interventions {
            return Err(Refused::Interventions);
        }
        Ok(match (self.split_first_level, self.split_stores) {
            (false, _) => Classes::Unified,
            (true, false) => Classes::Split,
            (true, true) => Classes::SplitStores,
        })
    }
}

/// Accesses of which only the first can change a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The first access. It alone has to be simulated; all others hit what it leaves.
    pub first: Access,
    /// Loads, with the first if it is one.
    pub loads: u32,
    /// Stores, with the first if it is one.
    pub stores: u32,
    /// Fetches, with the first if it is one.
    pub fetches: u32,
}

impl PageRun {
    fn of(first: Access) -> Self {
        let mut run = PageRun { first, loads: 0, stores: 0, fetches: 0 };
        *run.counter(first.kind()) = 1;
        run
    }

    fn counter(&mut self, kind: Kind) -> &mut u32 {
        match kind {
            Kind::Load => &mut self.loads,
            Kind::Store => &mut self.stores,
            Kind::Fetch => &mut self.fetches,
        }
    }

    /// How many accesses it stands for.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        u64::from(self.loads) + u64::from(self.stores) + u64::from(self.fetches)
    }
}

/// A buffer of consecutive runs and events, owned by the consumer and reused.
#[derive(Clone, Debug, Default)]
pub struct RunBatch {
    /// The runs, in the order of their first accesses.
    pub runs: Vec<PageRun>,
    /// The events in their order; `before` is an index into `runs` and never decreases.
    pub events: Vec<At>,
    /// As [`Batch::instructions`].
    pub instructions: u64,
}

impl RunBatch {
    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.events.clear();
        self.instructions = 0;
    }

    /// Calls one function with each event and another with each run, in order.
    pub fn visit(&self, mut event: impl FnMut(&At), mut run: impl FnMut(&PageRun)) {
        let mut events = self.events.iter().peekable();
        for (index, page_run) in self.runs.iter().enumerate() {
            while let Some(at) = events.next_if(|at| at.before as usize <= index) {
                event(at);
            }
            run(page_run);
        }
        events.for_each(event);
    }
}

/// What is kept of the runs that are open, in one class of one vCPU.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Page, and privilege in the lowest bit.
    key: u64,
    /// Index of the run in the batch.
    run: u32,
    /// What the page is known to permit: a bit for loads, stores and fetches; none where no run is open.
    permitted: u8,
}

const CLOSED: Open = Open { key: 0, run: 0, permitted: 0 };

/// What an access needs to be permitted, and what it shows to be: who can store can load, but for
/// write-only pages of Arm's stage 2, which nothing that is simulated from recordings has.
const fn permission(kind: Kind) -> (u8, u8) {
    match kind {
        Kind::Load => (0b001, 0b001),
        Kind::Store => (0b010, 0b011),
        Kind::Fetch => (0b100, 0b100),
    }
}

/// Compacts batches, each for itself: at its end every run ends, which is exact, too.
#[derive(Clone, Debug)]
pub struct Compacting {
    classes: Classes,
    /// The open runs of each vCPU: of loads and with them what is not apart, of stores, of fetches.
    open: Vec<[Open; 3]>,
}

impl Compacting {
    /// For these classes.
    #[must_use]
    pub fn new(classes: Classes) -> Self {
        Compacting { classes, open: vec![[CLOSED; 3]; 256] }
    }

    /// Replaces the content of `into` by that of `batch`, compacted.
    pub fn compact(&mut self, batch: &Batch, into: &mut RunBatch) {
        into.clear();
        into.instructions = batch.instructions;
        self.end_all();
        for stretch in batch.runs() {
            for at in stretch.events {
                match at.event {
                    Event::TablePage { .. }
                    | Event::TableEntry { .. }
                    | Event::TableStore { .. }
                    | Event::TableRelease { .. }
                    | Event::Invalidate(_) => self.end_all(),
                    _ => self.open[usize::from(at.vcpu)] = [CLOSED; 3],
                }
                into.events.push(At { before: into.runs.len() as u32, ..*at });
            }
            for access in stretch.accesses {
                self.take(*access, into);
            }
        }
    }

    fn end_all(&mut self) {
        self.open.fill([CLOSED; 3]);
    }

    fn take(&mut self, access: Access, into: &mut RunBatch) {
        let kind = access.kind();
        let class = match (self.classes, kind) {
            (Classes::Split | Classes::SplitStores, Kind::Fetch) => 2,
            (Classes::SplitStores, Kind::Store) => 1,
            _ => 0,
        };
        let open = &mut self.open[usize::from(access.vcpu)][class];
        if access.crosses() {
            // Of two pages or more: it stands alone.
            *open = CLOSED;
            into.runs.push(PageRun::of(access));
            return;
        }
        let key = access.va >> 12 << 1 | u64::from(access.user());
        let (needs, shows) = permission(kind);
        let same = open.key == key;
        if same && open.permitted & needs != 0 {
            let run = &mut into.runs[open.run as usize];
            *run.counter(kind) += 1;
            return;
        }
        let permitted = if same { open.permitted } else { 0 } | shows;
        // The counts of a run stay below those of a batch, and that below 2^32.
        *open = Open { key, run: into.runs.len() as u32, permitted };
        into.runs.push(PageRun::of(access));
    }
}

/// A source, compacted.
#[derive(Debug)]
pub struct Compact<S> {
    source: S,
    batch: Batch,
    compacting: Compacting,
}

impl<S: Source> Compact<S> {
    /// The compacted stream of `source` for a hierarchy.
    ///
    /// # Errors
    ///
    /// Where compaction is not exact for the hierarchy.
    pub fn new(source: S, hierarchy: &Hierarchy) -> Result<Self, Refused> {
        let compacting = Compacting::new(hierarchy.classes()?);
        Ok(Compact { source, batch: Batch::default(), compacting })
    }

    /// The machine that the stream comes from.
    pub fn machine(&self) -> &Machine {
        self.source.machine()
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Clears `runs` and fills it with what comes next; false, and an empty batch, at the end.
    ///
    /// # Errors
    ///
    /// As [`Source::next`]; `runs` then holds what comes before the damage.
    pub fn next(&mut self, runs: &mut RunBatch) -> Result<bool, S::Error> {
        let outcome = self.source.next(&mut self.batch);
        self.compacting.compact(&self.batch, runs);
        outcome
    }
}
