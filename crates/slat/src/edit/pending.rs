//! Entries that were broken or removed, and that are made anew after an invalidation.

use super::encode::Encode;
use super::group::member;
use super::memory::TableMemory;
use super::word::Word;
use super::{Error, Tables};
use crate::format::Decoded;

/// A broken entry, the broken entries of a group, or a run of removed ones: frozen, they wait for an
/// invalidation before they are made anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    pub(super) at: u64,
    pub(super) level: u8,
    /// The first entry to make, as a leaf by itself where it is one of a group; 0 where entries
    /// were removed, which become empty. Holes between them are frozen as well, so that whatever is
    /// frozen there is this slot's.
    pub(super) entry: u64,
    /// How many entries: more than one for the pages of a group, and for a run of removed ones, which
    /// 16 concatenated tables of 64 KiB make 2^17 long at most (Arm ARM D8.2.2).
    pub(super) count: u32,
    /// Whether they are made into a group.
    pub(super) grouped: bool,
    /// Whether a table is to be linked, which nobody else knows of.
    pub(super) links: bool,
    /// The table in which they were is gone, and with it their place: what would be made there now
    /// belongs to whoever has that place since.
    pub(super) lost: bool,
}

impl Pending {
    /// The `index`-th entry to make.
    pub(super) fn entry_at<F: Encode>(&self, format: &F, index: u64) -> u64 {
        let Decoded::Leaf { base, .. } = format.decode(self.entry, self.level) else {
            return self.entry;
        };
        let leaf = member(format, self.entry, base, index, self.level);
        if self.grouped { format.grouped(leaf, self.level) } else { leaf }
    }

    /// The make half of break-before-make. `false` where the entries are gone: their table was
    /// removed after they were. `offset` is what an address of software is more than the input.
    ///
    /// # Errors
    /// [`Error::Occupied`] where a writer ignored a frozen entry; [`Error::NotLent`].
    pub(super) fn make<F: Encode, I, O, M: TableMemory<F::Word>>(
        &self,
        tables: &Tables<F, I, O, M>,
        offset: u64,
    ) -> Result<bool, Error> {
        let format = &tables.format;
        let Pending { at, level, count, .. } = *self;
        let Some(table) = tables.table_on_the_way(at, level)? else { return Ok(false) };
        let cells = tables.cells(table, level)?;
        let first = (at >> format.shift(level)) as usize & (cells.len() - 1);
        let mut outcome = Ok(true);
        for (index, cell) in (0..u64::from(count)).zip(cells.iter().skip(first)) {
            let entry = self.entry_at(format, index);
            if let Err(found) = F::Word::compare_exchange(cell, format.frozen(), entry)
                && entry != 0
            {
                let at = at.wrapping_add(offset) + (index << format.shift(level));
                outcome = Err(Error::Occupied { at, entry: found });
            }
        }
        let bytes = F::Word::SIZE.bytes();
        tables.memory.publish(table + first as u64 * bytes, u64::from(count) * bytes);
        outcome
    }
}
