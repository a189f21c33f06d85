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
            return self.apart().with_updates(format, root);
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
        let layout = format.layout();
        // Reads the entry at `place`, which is of this level, and goes on to the next one or returns.
        macro_rules! pass {
            ($place:ident, $level:expr, $input:ident) => {
                let level = $level;
                let entry_address = $place.entry_address;
                let access = self.access.table_read(level, self.input.raw());
                let read = match self.memory.read(O::new(entry_address), layout, &access) {
                    Ok(read) => read,
                    Err(below) => {
                        cold_path();
                        return Err(Failed::Below(below));
                    }
                };
                let entry = read.value;
                $place.path.via &= read.reached.leaf;
                if let Some(next) = format.plain_table(entry, level) {
                    self.saw(level, entry_address, entry, Decoded::Table { next });
                    $place.level = level;
                    $place.descend(format, layout, entry, next, $input);
                } else {
                    if let Some((base, shift)) = format.plain_leaf(entry, level) {
                        let (path, kind) = ($place.path, self.access.kind);
                        let input_raw = self.input.raw();
                        let found =
                            Found { entry, level, base, shift, path, input: input_raw, kind };
                        if format.plainly_permits(&found, &self.access, self.regime) {
                            self.saw(level, entry_address, entry, Decoded::Leaf { base, shift });
                            let output = O::new(base | ($input & ((1u64 << shift) - 1)));
                            return Ok(Mapped { output, found });
                        }
                    }
                    otherwise!(Some(Met { place: $place, entry }));
                }
            };
        }
        if F::UNROLLED && !M::SHARED && level == 3 && self.from.is_none() {
            // Where the compiler knows the level, its shift and its masks are constants.
            // The address itself is at hand already.
            let raw = self.input.raw();
            let index = index(format, 3, raw);
            let mut place = Place::new(layout, table, index, level, Path::START);
            pass!(place, 3, raw);
            pass!(place, 2, raw);
            pass!(place, 1, raw);
            pass!(place, 0, raw);
            // No format takes an entry of level 0 for a table.
            otherwise!(None);
        }
        let mut place = self.first(format, table, level, input);
        loop {
            pass!(place, place.level, input);
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
    /// Where the walk begins: at the root, or where a cache remembers a lower table.
    #[inline(always)]
    pub(super) fn first<F: Format>(&self, format: &F, table: u64, level: u8, input: u64) -> Place {
        let layout = format.layout();
        match self.from {
            Some(from) if from.level < level => {
                let index = index(format, from.level, input);
                Place::new(layout, from.table, index, from.level, from.path)
            }
            Some(from) => {
                let index = input >> format.shift(level);
                Place::new(layout, from.table, index, level, from.path)
            }
            None => Place::new(layout, table, input >> format.shift(level), level, Path::START),
        }
    }

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
