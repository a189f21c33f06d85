//! A walk as most go: tables and a leaf without anything special, an access that the leaf permits.
//!
//! It asks a format only what [`Format::plain_table`], [`Format::plain_leaf`] and
//! [`Format::plainly_permits`] know, which is a few instructions a level, and keeps what it knows
//! in registers. The first answer that is not plainly yes hands the walk, with the entry that was
//! read, to [`Walk::exact`], which decides everything. Since those three never say more than
//! `decode` and `check`, both walks give the same answers.

use core::hint::cold_path;

use crate::access::Access;
use crate::address::Address;
use crate::fault::Failed;
use crate::format::{Decoded, Format, Found, Path, Start, Visitor};
use crate::memory::{EntryLayout, Memory};
use crate::observe::{Observer, Step};
use crate::regime::Regime;

use super::descent::Next;
use super::exact::{Met, Place};
use super::{Mapped, Partial, Updates};

/// One walk: all that it is asked, but the format and its root.
pub(super) struct Walk<'a, I, M, W> {
    /// How steps and faults name the stage: few walks read it.
    pub(super) number: &'a u8,
    pub(super) updates: Updates,
    pub(super) from: Option<&'a Partial>,
    pub(super) memory: &'a mut M,
    pub(super) input: I,
    /// By value: a plain walk then need not have it in memory.
    pub(super) access: Access,
    pub(super) regime: &'a Regime,
    pub(super) observer: &'a W,
}

impl<I, O, M, W> Visitor for Walk<'_, I, M, W>
where
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    type Output = Result<Mapped<O>, Failed<I, M::Fault>>;

    #[inline(always)]
    fn visit<F: Format>(self, format: &F, root: &F::Root) -> Self::Output {
        if W::WATCHES || self.updates != Updates::Never {
            cold_path();
            return self.apart().with_updates(format, root, None);
        }
        let half;
        let format = if F::HALVES && !format.speaks_of(self.input.raw()) {
            half = format.half(self.input.raw());
            &half
        } else {
            format
        };
        // The walk that decides everything.
        macro_rules! otherwise {
            ($met:expr) => {
                cold_path();
                return self.apart().exact(format, root, $met);
            };
        }
        let start = format.begin(root, self.input.raw(), &self.access, self.regime);
        let (table, level, input) = match start {
            Ok(Start::Table { table, level, input }) => (table, level, input),
            Ok(Start::Flat { output }) => {
                let found = Found::flat(self.input.raw(), self.access.kind);
                if format.plainly_permits(&found, &self.access, self.regime) {
                    return Ok(Mapped { output: O::new(output), found });
                }
                otherwise!(None);
            }
            Err(_) => {
                otherwise!(None);
            }
        };
        let mut walk = self;
        // Reads the entry at `place`, and goes on to the next one or returns.
        macro_rules! pass {
            ($place:ident, $within:ident) => {
                match $place.pass(format, $within, &mut walk, false) {
                    Ok(Next::Table(_)) => {}
                    Ok(Next::Leaf(mapped)) => return Ok(mapped),
                    Ok(Next::Other(entry)) => {
                        cold_path();
                        return walk.apart().exact(
                            format,
                            root,
                            Some(Met { place: $place, entry }),
                        );
                    }
                    Err(below) => {
                        cold_path();
                        return Err(Failed::Below(below));
                    }
                }
            };
        }
        if F::UNROLLED && !M::SHARED && level == 3 && walk.from.is_none() {
            // Where the compiler knows the level, its shift and its masks are constants.
            // The address itself is at hand already.
            let raw = walk.input.raw();
            let index = index(format, 3, raw);
            let mut place = Place::new(format.layout(), table, index, 3, Path::START);
            pass!(place, raw);
            pass!(place, raw);
            pass!(place, raw);
            pass!(place, raw);
            // No format takes an entry of level 0 for a table.
            cold_path();
            return walk.apart().exact(format, root, None);
        }
        let mut place = Place::first(format, walk.from, table, level, input);
        loop {
            pass!(place, input);
        }
    }

    /// Put together anew: only for a call need a walk be in memory.
    #[inline(always)]
    fn apart(self) -> Self {
        let Walk { number, updates, from, memory, input, access, regime, observer } = self;
        let access = access.by_fields();
        Walk { number, updates, from, memory, input, access, regime, observer }
    }
}

impl<I, M, W: Observer> Walk<'_, I, M, W> {
    /// Shows the observer one step.
    #[inline(always)]
    pub(super) fn saw(&self, level: u8, entry_address: u64, entry: u64, decoded: Decoded) {
        let (stage, access) = (*self.number, self.access);
        self.observer.step(&Step { stage, level, entry_address, entry, decoded, access });
    }
}

/// The index of `input` in a table of `level` that is not the root.
#[inline(always)]
fn index<F: Format>(format: &F, level: u8, input: u64) -> u64 {
    (input >> format.shift(level)) & ((1 << format.index_bits(level)) - 1)
}

impl Place {
    /// The entry with this index of `table`.
    #[inline(always)]
    fn new(layout: EntryLayout, table: u64, index: u64, level: u8, path: Path) -> Place {
        let entry_address = table.wrapping_add(index * layout.size.bytes());
        Place { level, entry_address, path }
    }

    /// Where a walk begins: at the root, or where a cache remembers a lower table.
    #[inline(always)]
    pub(super) fn first<F: Format>(
        format: &F,
        from: Option<&Partial>,
        table: u64,
        level: u8,
        within: u64,
    ) -> Place {
        let layout = format.layout();
        match from {
            Some(from) if from.level < level => {
                let index = index(format, from.level, within);
                Place::new(layout, from.table, index, from.level, from.path)
            }
            Some(from) => {
                let index = within >> format.shift(level);
                Place::new(layout, from.table, index, level, from.path)
            }
            None => Place::new(layout, table, within >> format.shift(level), level, Path::START),
        }
    }

    /// Reads the entry here and goes on to the table that it names, if it plainly is one. With `watched`
    /// only entries are plain in which the access would set no bit.
    #[inline(always)]
    pub(super) fn pass<F, I, O, M, W>(
        &mut self,
        format: &F,
        within: u64,
        walk: &mut Walk<'_, I, M, W>,
        watched: bool,
    ) -> Result<Next<O>, M::Fault>
    where
        F: Format,
        I: Address,
        O: Address,
        M: Memory<Address = O>,
        W: Observer,
    {
        let Place { level, entry_address, .. } = *self;
        let layout = format.layout();
        let access = walk.access.table_read(level, walk.input.raw());
        let read = walk.memory.read(O::new(entry_address), layout, &access)?;
        let entry = read.value;
        self.path.via &= read.reached.leaf;
        if let Some(next) = format.plain_table(entry, level) {
            if watched && format.touched(entry, level, false, &walk.access) != entry {
                return Ok(Next::Other(entry));
            }
            walk.saw(level, entry_address, entry, Decoded::Table { next });
            self.descend(format, layout, entry, next, within);
            return Ok(Next::Table(Partial { level: self.level, table: next, path: self.path }));
        }
        if let Some((base, shift)) = format.plain_leaf(entry, level) {
            let (path, kind) = (self.path, walk.access.kind);
            let found = Found { entry, level, base, shift, path, input: walk.input.raw(), kind };
            let touched = watched && format.touched(entry, level, true, &walk.access) != entry;
            if !touched && format.plainly_permits(&found, &walk.access, walk.regime) {
                walk.saw(level, entry_address, entry, Decoded::Leaf { base, shift });
                let output = O::new(base | (within & ((1u64 << shift) - 1)));
                return Ok(Next::Leaf(Mapped { output, found }));
            }
        }
        Ok(Next::Other(entry))
    }

    /// Goes on in the table that `entry` names, which is at `next`. The level is above 0.
    #[inline(always)]
    pub(super) fn descend<F: Format>(
        &mut self,
        format: &F,
        layout: EntryLayout,
        entry: u64,
        next: u64,
        input: u64,
    ) {
        format.join(&mut self.path, entry, self.level);
        let level = self.level - 1;
        *self = Place::new(layout, next, index(format, level, input), level, self.path);
    }
}
