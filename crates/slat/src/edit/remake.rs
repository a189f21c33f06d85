//! Break-before-make by hand: two halves, and a token between them.
//!
//! Operations break and make by themselves, as many entries a time as there are slots. These are the
//! same halves for whoever replaces single leaves, on formats that need it (Arm ARM D8.17.1) and on
//! those that do not: [`Cursor::break_leaf`] freezes a leaf and gives a [`Broken`]; after an
//! invalidation, [`Broken::make`] puts the new entry there. Everything that the second half needs was
//! reserved by the first. Any number of leaves share one invalidation.
//!
//! ```
//! use slat::edit::arm64::{Memory, Stage2Attributes};
//! use slat::edit::{Arena, Broken, Gather, Leaves, Live, Remake, Slots, Step, Tables};
//! use slat::format::arm64::{Granule, Processor, Stage2};
//! use slat::invalidate::{By, Context};
//! use slat::{Gpa, Permissions, Spa};
//! # use core::sync::atomic::AtomicU64;
//! # let cells: Vec<AtomicU64> = (0..32 * 512).map(|_| AtomicU64::new(0)).collect();
//! # let arena = Arena::<u64>::new(0, &cells).unwrap();
//! # let processor = Processor { physical_bits: 40, ..Processor::default() };
//! # let format = Stage2::plain(Granule::Four, 40, &processor).unwrap();
//! # let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena)?;
//! # let all = Permissions { read: true, write: true, execute: true };
//! # let (mut ranges, mut detached) = ([Default::default(); 8], [Default::default(); 8]);
//! # let slots = Slots { ranges: &mut ranges, detached: &mut detached, pending: &mut [],
//! #     report: |leak| panic!("{leak}") };
//! # let context = Context::Stage2 { vmid: 7 };
//! let leaves = Leaves::new(&format, &Stage2Attributes::new(all, Memory::WRITE_BACK))?;
//! let mut cursor = tables.cursor::<_, Live>(&arena, context, slots, Gpa::new(0), 1 << 30)?;
//! # let mut map = cursor.map(Gpa::new(0), Spa::new(1 << 30), 4 << 20, &leaves)?;
//! # assert!(matches!(cursor.step(&mut map, 8)?, Step::Done));
//!
//! // The break half, twice: one block moves, another becomes a table of pages.
//! let to = Remake::Leaf { output: Spa::new(2 << 30), leaves: &leaves };
//! let moved = cursor.break_leaf(Gpa::new(0), to)?;
//! let divided = cursor.break_leaf(Gpa::new(2 << 20), Remake::Smaller)?;
//!
//! // One invalidation for both.
//! let gather = cursor.flush().unwrap();
//! let ready = gather.complete(&mut By(|_: &Gather<'_>| { /* TLBI, DSB */ })).unwrap();
//! let mut ready = ready.ready().unwrap();
//!
//! // The make half.
//! moved.make(&mut ready).unwrap();
//! divided.make(&mut ready).unwrap();
//! cursor.resume(ready)?;
//! # drop(cursor.finish());
//! assert_eq!(tables.translate(Gpa::new(0x5000)).unwrap().output, Spa::new((2 << 30) + 0x5000));
//! assert_eq!(tables.translate(Gpa::new(2 << 20)).unwrap().level, 0);
//! # Ok::<(), slat::edit::Error>(())
//! ```
//!
//! Made before the invalidation, it is refused; made without one, or twice, it does not compile:
//!
//! ```compile_fail
//! # use slat::edit::{Broken, Encode, Ready, TableMemory};
//! fn twice<F: Encode, I, O, M: TableMemory<F::Word>>(
//!     broken: Broken<'_, F, I, O, M>, proof: &mut Ready<'_>,
//! ) {
//!     let _ = broken.make(proof);
//!     let _ = broken.make(proof); // moved above
//! }
//! ```
//!
//! ```compile_fail
//! # use slat::edit::{Broken, Encode, Gather, TableMemory};
//! fn early<F: Encode, I, O, M: TableMemory<F::Word>>(
//!     broken: Broken<'_, F, I, O, M>, gather: &mut Gather<'_>,
//! ) {
//!     let _ = broken.make(gather); // a gather proves nothing yet
//! }
//! ```

use core::mem;

use super::cursor::Cursor;
use super::encode::{Encode, Leaves, Refused};
use super::frames::FrameSource;
use super::gather::{Break, Leak, Ready};
use super::memory::TableMemory;
use super::pending::Pending;
use super::word::Mode;
use super::{Error, Tables};
use crate::address::Address;
use crate::format::Decoded;

/// What a broken leaf is made into.
#[derive(Clone, Copy, Debug)]
pub enum Remake<'l, O> {
    /// A leaf of the same size (a group again, where it was one) that says what `leaves` say, at
    /// `output` and what follows it. The accessed and dirty state of the old one is in
    /// [`Broken::was`].
    Leaf {
        /// Output address of the first byte; a multiple of the size.
        output: O,
        /// What it says.
        leaves: &'l Leaves,
    },
    /// A table of leaves one level lower that say the same, with the same accessed and dirty state.
    Smaller,
}

/// A leaf that is broken: a frozen value stands in its place, nothing is translated by it, and who
/// faults there tries again. It waits for the invalidation of the gather that the cursor had then.
///
/// Dropped, it leaves the entry frozen and reports that.
#[derive(Debug)]
#[must_use = "the entry stays frozen until it is made"]
pub struct Broken<'t, F: Encode, I, O, M: TableMemory<F::Word>> {
    tables: &'t Tables<F, I, O, M>,
    to: Pending,
    start: u64,
    was: u64,
    since: Break,
}

impl<F: Encode, I: Address, O, M: TableMemory<F::Word>> Broken<'_, F, I, O, M> {
    /// First input address of the leaf.
    pub fn start(&self) -> I {
        I::new(self.start)
    }

    /// The leaf as it was at the last, with the state of its group.
    pub fn was(&self) -> u64 {
        self.was
    }
}

impl<F: Encode, I, O, M: TableMemory<F::Word>> Broken<'_, F, I, O, M> {
    /// Puts the new entry in place. It cannot fail for want of anything. Where the whole table in
    /// which the leaf was has been removed meanwhile, nothing is there to be made.
    ///
    /// Where processors cache invalid entries (RISC-V), they may hold the frozen one: that is noted in
    /// `proof`, and is of the next gather of the cursor that resumes with it.
    ///
    /// Make a token with the proof of its own gather. A later proof covers it as well, but if its place
    /// was removed, mapped anew and broken again before, it is that break which this token makes, with
    /// what it was to be itself.
    ///
    /// # Errors
    /// The token, where `proof` is of another gather than the one that the break is in, or was
    /// completed before it.
    pub fn make(self, proof: &mut Ready<'_>) -> Result<(), Self> {
        if !proof.covers(&self.since) {
            return Err(self);
        }
        let Pending { level, count, links, .. } = self.to;
        let format = &self.tables.format;
        let made = self.to.make(self.tables, 0);
        if format.caches_invalid() && made != Ok(false) {
            let bytes = u64::from(count) << format.shift(level);
            proof.note(self.start, self.start + (bytes - 1), 1 << level, links);
        }
        match made {
            // Its place is gone, and may be another's by now: whoever changed a frozen entry broke the
            // protocol, and keeps what they wrote.
            Ok(false) | Err(Error::Occupied { .. }) => {
                if links {
                    self.lose(0);
                }
            }
            Ok(true) => {}
            Err(_) => return Ok(()),
        }
        mem::forget(self);
        Ok(())
    }
}

impl<F: Encode, I, O, M: TableMemory<F::Word>> Drop for Broken<'_, F, I, O, M> {
    fn drop(&mut self) {
        self.lose(self.to.count as usize);
    }
}

impl<F: Encode, I, O, M: TableMemory<F::Word>> Broken<'_, F, I, O, M> {
    /// Reports that it was not made, and that `frozen` entries stay frozen.
    #[cold]
    fn lose(&self, frozen: usize) {
        (self.since.report)(Leak {
            context: self.since.context,
            ranges: 0,
            subtrees: usize::from(self.to.links),
            frozen,
        });
    }
}

impl<'t, 'g, F, I, O, M, S, X> Cursor<'t, 'g, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    /// The break half: freezes the leaf (or group) that maps `at`, once everything is there to make
    /// it anew as `to` says. See the [example](Broken).
    ///
    /// # Errors
    /// [`Error::OutsideInput`], [`Error::OutsideOutput`] and [`Error::Misaligned`] of the addresses;
    /// [`Error::Reserved`] where no leaf maps `at`; [`Error::Frozen`] where it is broken already;
    /// [`Error::NoFrame`] and [`Error::OutOfReach`]; [`Error::Refused`] where the leaf has no smaller,
    /// or `leaves` nothing of its size. Nothing has changed then.
    pub fn break_leaf(
        &mut self,
        at: I,
        to: Remake<'_, O>,
    ) -> Result<Broken<'t, F, I, O, M>, Error> {
        let since = self.about_to_break()?;
        let at = self.input_within(at)?;
        let tables = self.tables;
        let format = &tables.format;
        let (level, entry) = self.locate(at, 0)?;
        let Decoded::Leaf { base, .. } = format.decode(entry, level) else {
            return Err(match self.obstacle(at, entry) {
                Error::Occupied { at, entry } => Error::Reserved { at, entry },
                frozen => frozen,
            });
        };
        let said = self.with_group(at, level, entry)?;
        let group = format.group(entry, level);
        let shift = group.unwrap_or_else(|| format.shift(level));
        let start = at & !((1u64 << shift) - 1);
        let count = 1usize << (shift - format.shift(level));
        let mut children = None;
        let made = match to {
            Remake::Leaf { output, leaves } => {
                let output = output.raw();
                if output & ((1u64 << shift) - 1) != 0 {
                    return Err(Error::Misaligned { value: output });
                }
                if !leaves.has(level) {
                    return Err(Error::Refused(Refused::Level(level)));
                }
                let last = output
                    .checked_add((1u64 << shift) - (1u64 << format.shift(level)))
                    .ok_or(Error::OutsideOutput { output })?;
                for base in [output, last] {
                    let leaf = leaves.at(level) | format.place(base, level);
                    let fits = matches!(format.decode(leaf, level),
                        Decoded::Leaf { base: found, .. } if found == base);
                    if !fits {
                        return Err(Error::OutsideOutput { output: base });
                    }
                }
                leaves.at(level) | format.place(output, level)
            }
            Remake::Smaller if level == 0 || group.is_some() => {
                return Err(Error::Refused(Refused::Level(level)));
            }
            Remake::Smaller => children.insert(self.children(at, level, said, base)?).entry(format),
        };
        let links = children.is_some();
        let was = self.freeze(start, level, count);
        if let Some(mut children) = children {
            children.inherit(tables, was);
        }
        self.note_break(start, 1 << shift, level);
        Ok(Broken {
            tables,
            to: Pending {
                at: start,
                level,
                entry: made,
                count: count as u32,
                grouped: group.is_some(),
                links,
                lost: false,
            },
            start: self.address(start),
            was,
            since,
        })
    }

    /// Freezes `count` entries of the located table, the first at `at`. Returns what they said at
    /// the last: a leaf by itself, with the accessed and dirty state of all.
    pub(super) fn freeze(&self, at: u64, level: u8, count: usize) -> u64 {
        let format = &self.tables.format;
        let first = self.index(at, level);
        let mut sum = None;
        for (index, cell) in self.located(level)[first..first + count].iter().enumerate() {
            let was = X::swap::<F::Word>(cell, format.frozen());
            let leaf = if count > 1 { format.ungrouped(was, index as u64, level) } else { was };
            sum = Some(sum.map_or(leaf, |sum| format.inherit(sum, leaf)));
        }
        self.publish(at, level, count);
        sum.unwrap_or(0)
    }
}
