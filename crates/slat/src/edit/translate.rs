//! What an address is mapped to: entries that are told at a glance by the shortest code, all others by
//! decoding.

use core::sync::atomic::Ordering;

use super::mappings::Leaf;
use super::{Encode, Mapping, TableMemory, Tables, Word};
use crate::address::Address;
use crate::format::Decoded;

/// Of what [`Tables::look`] finds: the output address, which no architecture has more bits of; the level
/// of the leaf; and that it is a whole group.
const OUTPUT: u64 = (1 << LEVEL) - 1;
const LEVEL: u32 = 60;
const GROUPED: u64 = 1 << 63;

impl<F: Encode, I: Address, O: Address, M: TableMemory<F::Word>> Tables<F, I, O, M> {
    /// What `address` is mapped to, whatever the access; `None` where it is not, or its entry is
    /// reserved.
    #[inline(always)]
    pub fn translate(&self, address: I) -> Option<Mapping<I, O>> {
        // By entries that are told at a glance, with the level known to the compiler.
        if address.raw() < self.quick
            && let Some(found) = self.glance(address.raw())
        {
            return Some(found);
        }
        let (found, entry) = self.look(address);
        if entry == 0 {
            return None;
        }
        let level = (found >> LEVEL & 7) as u8;
        let shift = match found & GROUPED {
            0 => self.format.shift(level),
            _ => self.format.group(entry, level)?,
        };
        let bytes = 1u64 << shift;
        let start = I::new(address.raw() & !(bytes - 1));
        Some(Mapping { start, bytes, output: O::new(found & OUTPUT), level, entry })
    }

    /// What the tables say, where nothing but plain entries of four levels lead there.
    #[inline(always)]
    fn glance(&self, input: u64) -> Option<Mapping<I, O>> {
        let entry = F::Word::load(self.root_cell::<3>(input)?, Ordering::Acquire);
        // Level by level, each with its own constants.
        let Some(next) = self.format.points_at(entry, 3) else {
            return self.plain(input, entry, 3);
        };
        let entry = F::Word::load(self.below(next, input, 2)?, Ordering::Acquire);
        let Some(next) = self.format.points_at(entry, 2) else {
            return self.plain(input, entry, 2);
        };
        let entry = F::Word::load(self.below(next, input, 1)?, Ordering::Acquire);
        let Some(next) = self.format.points_at(entry, 1) else {
            return self.plain(input, entry, 1);
        };
        let entry = F::Word::load(self.below(next, input, 0)?, Ordering::Acquire);
        self.plain(input, entry, 0)
    }

    /// What a plain leaf maps `input` to.
    #[inline(always)]
    fn plain(&self, input: u64, entry: u64, level: u8) -> Option<Mapping<I, O>> {
        let base = self.format.maps_to(entry, level)?;
        if self.format.group(entry, level).is_some() {
            return None;
        }
        let within = (1u64 << self.format.shift(level)) - 1;
        let (start, output) = (I::new(input & !within), O::new(base | input & within));
        Some(Mapping { start, bytes: within + 1, output, level, entry })
    }

    /// The root's entry for `input`; `TOP` is the root's level.
    #[inline(always)]
    pub(super) fn root_cell<const TOP: u8>(
        &self,
        input: u64,
    ) -> Option<&<F::Word as Word>::Atomic> {
        let index = (input >> self.format.shift(TOP)) as usize & self.root_mask as usize;
        self.memory.table(self.root, self.root_mask as usize + 1)?.get(index)
    }

    /// The entry for `input` in the table of `level` at `table`, which is not the root.
    #[inline(always)]
    pub(super) fn below(
        &self,
        table: u64,
        input: u64,
        level: u8,
    ) -> Option<&<F::Word as Word>::Atomic> {
        let count = 1 << self.format.index_bits(level);
        let index = (input >> self.format.shift(level)) as usize & (count - 1);
        self.memory.table(table, count)?.get(index)
    }

    /// What the tables say: the output address with the leaf's level and whether it is a whole group, and
    /// its entry, 0 for none. Two registers, so that nothing of a translation lies on the stack where it
    /// was found at a glance.
    #[inline(never)]
    fn look(&self, address: I) -> (u64, u64) {
        self.leaf(address).unwrap_or((0, 0))
    }

    #[inline(always)]
    fn leaf(&self, address: I) -> Option<(u64, u64)> {
        let input = self.strip(address.raw())?;
        let format = &self.format;
        let mut level = self.top;
        let mut cells = self.cells(self.root, level).ok()?;
        loop {
            let index = (input >> format.shift(level)) as usize & (cells.len() - 1);
            let entry = F::Word::load(cells.get(index)?, Ordering::Acquire);
            match format.decode(entry, level) {
                Decoded::Table { next } if level > 0 => {
                    level -= 1;
                    cells = self.cells(next, level).ok()?;
                }
                Decoded::Leaf { base, shift } => {
                    let leaf = Leaf::whole(format, cells, index, entry, level, base, shift);
                    let output = leaf.base | input & (leaf.bytes - 1);
                    let grouped = leaf.bytes > 1 << format.shift(level);
                    let grouped = if grouped { GROUPED } else { 0 };
                    return Some((output | u64::from(level) << LEVEL | grouped, leaf.entry));
                }
                _ => return None,
            }
        }
    }
}
