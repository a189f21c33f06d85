//! Combined tables: two second stages in one, for nested virtualization.
//!
//! A guest hypervisor (L1) has a second stage of its own for its guest (L2): from [`L2Gpa`] to
//! [`Gpa`]. The processor can use one second stage, so that the host (L0) keeps tables from [`L2Gpa`]
//! to [`Spa`] that say what both say. [`Combined`] fills them as L2 faults, and keeps them true as
//! either half changes:
//!
//! | when | call |
//! |---|---|
//! | L2 faults on the combined table | [`Combined::serve`] |
//! | L1 wrote into one of its tables that [`Track`] was told of | [`Combined::guest_wrote`] |
//! | L1 executed INVEPT, TLBI or the like, or its ASID was flushed | [`Combined::resync`] |
//! | the host changed its second stage | [`Combined::host_changed`], before that change's own gather is completed |
//!
//! After each of them, and the completion of the cursor's gather, every combined leaf says exactly
//! what the composition of the two walks says: the smaller of the two pages, the permissions that both
//! grant, the type that both make, and nothing at all before the accessed bit of L1's leaf (and of
//! its tables) is set, nor a write before its dirty bit is. What has no combined leaf faults, and is
//! served or refused by the same composition. Both halves' marks are thus exact; hardware's marks in
//! combined tables mean nothing.
//!
//! Leaves and tables go through a [`Cursor`] over the combined table, and come out of its
//! [`Gather`](crate::edit::Gather): nothing is overwritten while hardware may use it, and no frame is
//! free before the invalidation. A [`Step::Invalidate`] means: complete it, [`Cursor::resume`], and
//! make the same call again.
//!
//! A refusal says whose the fault is ([`Unserved`]). What is L1's is a [`Fault`] of L1's own stage, as
//! [`crate::syndrome`] takes it, with L1's format: [`ept_violation`](crate::syndrome::x86::ept_violation)
//! (or exit reason 49 for a misconfiguration),
//! [`nested_page_fault`](crate::syndrome::x86::nested_page_fault),
//! [`arm64::stage2`](crate::syndrome::arm64::stage2),
//! [`Trapped::of_two_stages`](crate::syndrome::riscv::Trapped::of_two_stages).

use core::fmt;
use core::ops::RangeInclusive;

use crate::access::Access;
use crate::address::{Gpa, L2Gpa, Spa};
use crate::edit::{Cursor, Error, FrameSource, Mode, Step, TableMemory};
use crate::fault::{Failed, Fault};
use crate::format::{Format, MAX_LEVELS};
use crate::memory::Memory;
use crate::observe::Observer;
use crate::regime::Regime;
use crate::walk::{Mapped, Nested, Stage, Updates};

mod changes;
mod compose;
mod formats;
mod install;
mod reverse;

use compose::{Composed, Seen};
use reverse::{Key, Noted, Reverse, What};

pub use changes::Pass;
pub use compose::{Combine, Rights};
pub use reverse::Record;

/// The guest hypervisor's physical memory, as the host backs it: [`Nested`] over the host's second
/// stage, or a hypervisor's own accessor.
///
/// Reads and exchanges are those of the guest hypervisor's tables. They are the host's doing on the
/// guest hypervisor's behalf, so that write tracking must not stop them.
pub trait Backed: Memory<Address = Gpa> {
    /// Walks the host's second stage for the final access to `address`. Where that stage maintains
    /// accessed and dirty bits, they are set unless `updates` is [`Updates::Never`].
    ///
    /// # Errors
    /// The host's own fault: it pages in, emulates, and lets L2 try again.
    fn locate(
        &mut self,
        address: Gpa,
        access: &Access,
        updates: Updates,
    ) -> Result<Mapped<Spa>, Self::Fault>;
}

impl<F, M, W> Backed for Nested<'_, F, Gpa, M, W>
where
    F: Format,
    M: Memory<Address = Spa>,
    W: Observer,
{
    fn locate(
        &mut self,
        address: Gpa,
        access: &Access,
        updates: Updates,
    ) -> Result<Mapped<Spa>, Failed<Gpa, M::Fault>> {
        self.locate_with(address, access, updates)
    }
}

/// Is told which pages of the guest hypervisor hold tables that combined leaves depend on.
///
/// `()` tracks nothing: the guest hypervisor's invalidations are the sync points then
/// ([`Combined::resync`]), as its architecture demands them of it.
pub trait Track {
    /// From the return of this on, every write by the guest hypervisor (or its devices) to the 4 KiB
    /// page at `page` is reported by [`Combined::guest_wrote`] before L2 runs again.
    fn track(&mut self, page: Gpa);

    /// The page holds no table any more, as far as is known.
    fn untrack(&mut self, page: Gpa);
}

impl Track for () {
    fn track(&mut self, _: Gpa) {}
    fn untrack(&mut self, _: Gpa) {}
}

/// The two stages that a combined table stands for.
#[derive(Clone)]
pub struct Stack<F: Format> {
    /// The guest hypervisor's second stage, as it believes to run it.
    pub upper: Stage<F, L2Gpa, Gpa>,
    /// State that the guest hypervisor's stage depends on: its PAT under NPT, its `HCR_EL2` on Arm.
    pub upper_regime: Regime,
    /// The format of the host's second stage for the guest hypervisor.
    pub lower: F,
    /// The host's state, with which the combined table is used.
    pub lower_regime: Regime,
}

/// Why an access of L2 could not be served, by whom has to hear of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unserved<B> {
    /// The guest hypervisor's tables do not permit it: an exit to L1.
    Violation(Fault<L2Gpa>),
    /// The guest hypervisor's tables hold a reserved encoding: an exit to L1, an EPT
    /// misconfiguration where they are EPT.
    Misconfigured(Fault<L2Gpa>),
    /// The host's own: its second stage does not permit the final access, or an access to the guest
    /// hypervisor's tables. L1 must not see it.
    Host(B),
    /// The combined table could not be changed, for want of a frame for example.
    Edit(Error),
}

impl<B> From<Error> for Unserved<B> {
    fn from(error: Error) -> Self {
        Unserved::Edit(error)
    }
}

impl<B: fmt::Debug> fmt::Display for Unserved<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unserved::Violation(fault) => write!(f, "the guest hypervisor's: {fault}"),
            Unserved::Misconfigured(fault) => write!(f, "the guest hypervisor's mistake: {fault}"),
            Unserved::Host(below) => write!(f, "the host's own: {below:?}"),
            Unserved::Edit(error) => error.fmt(f),
        }
    }
}

impl<B: fmt::Debug> core::error::Error for Unserved<B> {}

/// Keeps one combined table: that of one root of the guest hypervisor.
///
/// The table itself is an ordinary [`Tables`](crate::edit::Tables) from [`L2Gpa`] to [`Spa`], which
/// nothing else may change; it begins empty. The calls exclude each other (`&mut self`), processors
/// go on using it meanwhile.
pub struct Combined<'r, F: Format> {
    stack: Stack<F>,
    reverse: Reverse<'r>,
}

/// Records that one leaf and the tables that lead to it take at most.
const PATH: usize = MAX_LEVELS + 1;

/// How often the guest hypervisor's tables are read anew because some of them had not been tracked.
const READS: u32 = 8;

impl<'r, F: Combine> Combined<'r, F> {
    /// Combines `stack` in tables of the format `target`.
    ///
    /// `records` is the storage of the reverse map: one a leaf and one a page of the guest hypervisor's
    /// tables. Where they run out, the combined table is dropped and filled anew; without any (fewer
    /// than six), every change of the host's half drops it, and nothing is tracked.
    ///
    /// # Errors
    /// Why `target` cannot say what the two stages say, in words.
    pub fn new(
        stack: Stack<F>,
        target: &F,
        records: &'r mut [Record],
    ) -> Result<Self, &'static str> {
        target.conforms(&stack.upper.format, &stack.lower)?;
        if target.input_bits() < stack.upper.format.input_bits() {
            return Err("the guest hypervisor's input width needs at least as wide a table");
        }
        let most = if records.len() < PATH { 0 } else { records.len() };
        let records = &mut records[..most];
        Ok(Combined { stack, reverse: Reverse::new(records) })
    }

    /// The two stages.
    pub fn stack(&self) -> &Stack<F> {
        &self.stack
    }

    /// Whether a change can be traced to the leaves that follow from it: records were lent.
    pub fn is_traceable(&self) -> bool {
        self.reverse.len() > 0
    }

    /// Serves a fault of L2 on the combined table: `access` at `address`, with its purpose where it
    /// was one to a table of L2. Accessed and dirty bits are set in both halves as the access sets
    /// them. [`Step::Done`] means that L2 may try again.
    ///
    /// # Errors
    /// See [`Unserved`]. Nothing has changed in the combined table.
    pub fn serve<'g, B, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        backed: &mut B,
        track: &mut impl Track,
        address: L2Gpa,
        access: &Access,
    ) -> Result<Step<'g>, Unserved<B::Fault>>
    where
        B: Backed,
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let target = *cursor.tables().format();
        for _ in 0..READS {
            let seen = Seen::default();
            let composed =
                self.compose(&target, backed, address, access, Updates::OnSuccess, &seen)?;
            if let Some(step) = self.make_room(cursor, track, address.raw(), &seen)? {
                return Ok(step);
            }
            if self.link(track, address.raw(), &seen) {
                // What was read before it was tracked may have changed.
                continue;
            }
            let Some(composed) = composed else { break };
            return Ok(self.install(cursor, &composed)?);
        }
        Err(Unserved::Edit(Error::Frozen { at: address.raw() }))
    }

    /// Notes the pages by which the guest hypervisor's stage was walked, and has new ones tracked.
    /// Returns whether there were any. There is room for them.
    fn link(&mut self, track: &mut impl Track, address: u64, seen: &Seen) -> bool {
        let mut any = false;
        for (level, entry) in seen.entries() {
            let (page, start) = self.page_of(level, entry, address);
            let key = Key { address: page, what: What::Table(level) };
            if self.reverse.note(key, start) == Noted::New {
                track.track(Gpa::new(page));
                any = true;
            }
        }
        any
    }

    /// The 4 KiB page of an entry of the guest hypervisor's stage that was read on the way to
    /// `address`, and the first address that an entry at the page's beginning would translate (as a
    /// number that may wrap, where tables are smaller than pages).
    fn page_of(&self, level: u8, entry: u64, address: u64) -> (u64, u64) {
        let format = &self.stack.upper.format;
        let shift = format.shift(level);
        let index = (entry & 0xfff) / format.layout().size.bytes();
        (entry & !0xfff, (address >> shift << shift).wrapping_sub(index << shift))
    }

    /// Makes room in the reverse map for one more leaf and its tables: forgets what is of no use any
    /// more, or drops everything.
    fn make_room<'g, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        track: &mut impl Track,
        address: u64,
        seen: &Seen,
    ) -> Result<Option<Step<'g>>, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        if self.has_room(cursor, track, address, seen) {
            return Ok(None);
        }
        Ok(match self.drop_all(cursor, track)? {
            Step::Done => None,
            step => Some(step),
        })
    }

    /// Whether the reverse map has room for one more leaf and its tables (or none is kept).
    fn has_room<M, S, X>(
        &mut self,
        cursor: &Cursor<'_, '_, F, L2Gpa, Spa, M, S, X>,
        track: &mut impl Track,
        address: u64,
        seen: &Seen,
    ) -> bool
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let needed = |this: &Self| 1 + this.unknown_tables(address, seen);
        if self.reverse.len() > 0 && self.reverse.free() < needed(self) {
            self.sweep(cursor, track);
        }
        self.reverse.len() == 0 || self.reverse.free() >= needed(self)
    }

    /// How many pages by which the guest hypervisor's stage was walked are not noted for `address`.
    fn unknown_tables(&self, address: u64, seen: &Seen) -> usize {
        let unknown = |&(level, entry): &(u8, u64)| {
            let (page, start) = self.page_of(level, entry, address);
            !self.reverse.knows(Key { address: page, what: What::Table(level) }, start)
        };
        seen.entries().filter(unknown).count()
    }

    /// Whether everything that a leaf follows from is noted (or nothing ever is).
    fn is_noted(&self, composed: &Composed, seen: &Seen) -> bool {
        let Composed { start, between, level, .. } = *composed;
        self.reverse.len() == 0
            || self.reverse.knows(Key { address: between, what: What::Leaf(level) }, start)
                && self.unknown_tables(start, seen) == 0
    }

    /// The last guest-physical address that a record depends on.
    fn last_of(&self, target: &F, what: What, address: u64) -> u64 {
        let shift = match what {
            What::Leaf(level) => target.shift(level),
            _ => 12,
        };
        address | ((1u64 << shift) - 1)
    }

    /// The nested guest-physical addresses that follow from entries `first..=last` of a record's
    /// page, or from the whole of a leaf; `None` where there are none.
    fn range_of(
        &self,
        target: &F,
        what: What,
        start: u64,
        entries: RangeInclusive<u64>,
    ) -> Option<(u64, u64)> {
        let (first, last) = match what {
            What::Nothing => return None,
            What::Leaf(level) => (start, start | ((1u64 << target.shift(level)) - 1)),
            What::Table(level) => {
                let shift = self.stack.upper.format.shift(level);
                let at = |entry: u64| start.wrapping_add(entry << shift);
                (at(*entries.start()), at(*entries.end()) | ((1u64 << shift) - 1))
            }
        };
        let end = 1u64 << target.input_bits();
        // A table that is smaller than its page: what wraps is not its own.
        let first = if first > last { 0 } else { first };
        (first < end).then(|| (first, last.min(end - 1)))
    }

    /// Entries in a page of the guest hypervisor's tables.
    fn entries_in_page(&self) -> u64 {
        4096 / self.stack.upper.format.layout().size.bytes()
    }
}

impl<F: Format + fmt::Debug> fmt::Debug for Combined<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Combined")
            .field("upper", &self.stack.upper.format)
            .field("lower", &self.stack.lower)
            .field("records", &self.reverse.len())
            .finish_non_exhaustive()
    }
}
