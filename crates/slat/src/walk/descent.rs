//! A walk that its caller takes entry by entry.

use crate::access::Access;
use crate::address::Address;
use crate::fault::Failed;
use crate::format::{Format, Path, Start};
use crate::memory::Memory;
use crate::observe::Observer;
use crate::regime::Regime;

use super::exact::{Met, Place};
use super::plain::Walk;
use super::{Mapped, Partial, Stage, Updates};

/// What an entry came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next<O> {
    /// A table, where the walk goes on, as a cache of table entries may remember it.
    Table(Partial),
    /// A leaf that permits the access, and the end.
    Leaf(Mapped<O>),
    /// Anything else, for [`Descent::finish`] to decide: the entry as it was read.
    Other(u64),
}

/// A walk that its caller takes entry by entry, to do something in between: a software MMU fills its
/// caches of table entries so. It gives what [`walk`](crate::walk) and [`walk_from`](crate::walk_from)
/// give.
///
/// ```
/// use slat::format::x86::{Controls, long::{Long, Processor}};
/// use slat::{Access, Descent, EntryLayout, Gpa, Gva, Next, Regime, SliceMemory, Stage};
///
/// let mut bytes = [0; 0x4000];
/// let mut memory = SliceMemory::new(Gpa::new(0), &mut bytes);
/// for (table, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0xa007)] {
///     memory.poke(Gpa::new(table), EntryLayout::LE64, entry).unwrap();
/// }
/// let stage = Stage::new(Long::four(Controls::default(), Processor::default()), 0);
/// let (access, regime) = (Access::default(), Regime::default());
/// let mut walk =
///     Descent::new(&stage, &stage.format, None, Gva::new(0x123), &access, &regime, &()).unwrap();
/// let mut tables = Vec::new();
/// let output = loop {
///     match walk.step(&mut memory).unwrap() {
///         Next::Table(partial) => tables.push(partial.table),
///         Next::Leaf(mapped) => break mapped.output,
///         Next::Other(entry) => break walk.finish(entry, &mut memory, &()).unwrap().output,
///     }
/// };
/// assert_eq!(tables, [0x1000, 0x2000, 0x3000]);
/// assert_eq!(output.raw(), 0xa123);
/// ```
#[derive(Clone, Copy)]
pub struct Descent<'a, F: Format, I, O, W> {
    stage: &'a Stage<F, I, O>,
    format: &'a F,
    from: Option<&'a Partial>,
    input: I,
    access: Access,
    regime: &'a Regime,
    observer: &'a W,
    /// The input as the tables see it.
    within: u64,
    place: Place,
}

impl<'a, F: Format, I: Address, O: Address, W: Observer> Descent<'a, F, I, O, W> {
    /// The walk of `input`, from the root or from what a cache remembers; `format` is the stage's, or its
    /// [`half`](Format::half) for this input. `None` where there is no table to begin with: the stage is
    /// off, or the input is not translatable, of which [`walk`](crate::walk) says more.
    #[inline(always)]
    pub fn new(
        stage: &'a Stage<F, I, O>,
        format: &'a F,
        from: Option<&'a Partial>,
        input: I,
        access: &Access,
        regime: &'a Regime,
        observer: &'a W,
    ) -> Option<Self> {
        let access = access.by_fields();
        match format.begin(&stage.root, input.raw(), &access, regime) {
            Ok(Start::Table { table, level, input: within }) => {
                let place = Place::first(format, from, table, level, within);
                Some(Descent {
                    stage,
                    format,
                    from,
                    input,
                    access,
                    regime,
                    observer,
                    within,
                    place,
                })
            }
            Ok(Start::Flat { .. }) | Err(_) => None,
        }
    }

    /// Reads the next entry. Accessed and dirty bits that are to be written, or reported, are for
    /// [`Descent::finish`].
    ///
    /// # Errors
    /// Where `memory` fails.
    #[inline(always)]
    pub fn step<M: Memory<Address = O>>(&mut self, memory: &mut M) -> Result<Next<O>, M::Fault> {
        let watched = W::WATCHES || self.stage.updates != Updates::Never;
        let mut walk = self.walk(memory, self.observer);
        self.place.pass(self.format, self.within, &mut walk, watched)
    }

    /// What it began with, if not at the root.
    pub fn from(&self) -> Option<&'a Partial> {
        self.from
    }

    /// Where the entry is that [`Descent::step`] reads next, or has read last if that was the end.
    #[inline(always)]
    pub fn entry_address(&self) -> u64 {
        self.place.entry_address
    }

    /// Goes on from the entry that [`Descent::step`] has met to the end, with every rule and update.
    /// `observer` sees that entry and those that follow.
    ///
    /// # Errors
    /// As [`walk`](crate::walk).
    #[cold]
    pub fn finish<M: Memory<Address = O>, V: Observer>(
        self,
        entry: u64,
        memory: &mut M,
        observer: &V,
    ) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        let met = Some(Met { place: self.place, entry });
        let walk = self.walk(memory, observer);
        if V::WATCHES || self.stage.updates != Updates::Never {
            walk.with_updates(&self.stage.format, &self.stage.root, met)
        } else {
            walk.exact(&self.stage.format, &self.stage.root, met)
        }
    }

    /// A copy made field by field, as [`Access::by_fields`] makes it.
    #[inline(always)]
    #[must_use]
    pub fn by_fields(&self) -> Self {
        let Descent { stage, format, from, input, regime, observer, within, .. } = *self;
        let Place { level, entry_address, path: Path { and, or, via } } = self.place;
        let place = Place { level, entry_address, path: Path { and, or, via } };
        let access = self.access.by_fields();
        Descent { stage, format, from, input, access, regime, observer, within, place }
    }

    #[inline(always)]
    fn walk<'b, M, V>(&self, memory: &'b mut M, observer: &'b V) -> Walk<'b, I, M, V>
    where
        'a: 'b,
    {
        let Descent { stage: Stage { number, updates, .. }, from, input, regime, .. } = *self;
        let access = self.access.by_fields();
        Walk { number, updates: *updates, from, memory, input, access, regime, observer }
    }
}
