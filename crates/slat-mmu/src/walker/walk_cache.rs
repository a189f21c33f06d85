//! Caches of intermediate entries by input address.

use slat::Partial;
use slat::format::{Format, Path};

use super::config::{LEVELS, WalkCacheConfig};
use crate::array::{Array, BadGeometry};
use crate::tlb::Tag;

/// An intermediate entry: the table that it names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) from: Partial,
    /// Where stage 2 has placed the table's page; `u64::MAX` where it was not asked.
    pub(super) placed: u64,
    /// log2 of the bytes that the entry translates.
    pub(super) shift: u8,
}

impl Default for Table {
    fn default() -> Self {
        Table {
            from: Partial { level: 0, table: 0, path: Path::START },
            placed: u64::MAX,
            shift: 0,
        }
    }
}

/// Something that the caches hold, as maintenance sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Number of the tag it is stored under.
    pub tag: u16,
    /// A table entry; otherwise a translation of the nested TLB.
    pub is_table: bool,
    /// First input address that it translates.
    pub start: u64,
    /// log2 of how many bytes.
    pub shift: u8,
    /// log2 of the size of the leaf that a translation was made from ([`Entry::leaf`](crate::tlb::Entry::leaf));
    /// 0 for a table entry.
    pub leaf: u8,
}

/// Where a level's entries are: nowhere, or in the array of this number.
const NOWHERE: u8 = u8::MAX;

#[derive(Clone, Debug)]
pub(super) struct WalkCache {
    /// By level, and the shared one.
    arrays: [Array<Table>; LEVELS],
    array_of: [u8; LEVELS - 1],
    /// The tables that the current walk has passed, from the top: kept once it has succeeded.
    passed: [Table; LEVELS],
    /// How many.
    count: usize,
}

#[inline(always)]
fn key(prefix: u64, level: u8, tag: Tag) -> u64 {
    prefix << 19 | u64::from(level) << 16 | u64::from(tag.number())
}

impl WalkCache {
    pub(super) fn new(config: &WalkCacheConfig) -> Result<WalkCache, BadGeometry> {
        let [a, b, c, d] = config.levels;
        let own = |level: usize| match (config.levels[level].entries, config.shared.entries) {
            (0, 0) => NOWHERE,
            (0, _) => LEVELS as u8 - 1,
            _ => level as u8,
        };
        Ok(WalkCache {
            array_of: [own(0), own(1), own(2), own(3)],
            arrays: [
                Array::new(a)?,
                Array::new(b)?,
                Array::new(c)?,
                Array::new(d)?,
                Array::new(config.shared)?,
            ],
            passed: [Table::default(); LEVELS],
            count: 0,
        })
    }

    /// A walk begins.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        self.count = 0;
    }

    /// It passes a table.
    #[inline(always)]
    pub(super) fn pass(&mut self, from: Partial) {
        if let Some(slot) = self.passed.get_mut(self.count) {
            *slot = Table { from, placed: u64::MAX, shift: 0 };
            self.count += 1;
        }
    }

    /// It has read an entry of this level anew: of what it passed before, what is above stays.
    pub(super) fn pass_again(&mut self, level: u8) {
        let above = |table: &&Table| table.from.level >= level;
        self.count = self.passed.iter().take(self.count).take_while(above).count();
    }

    /// What the entries above the next one said, of a walk that has begun with `from`.
    pub(super) fn path(&self, from: Option<&Partial>) -> Path {
        let last = self.count.checked_sub(1).and_then(|last| self.passed.get(last));
        last.map(|table| &table.from).or(from).map_or(Path::START, |from| from.path)
    }

    /// It has found what it looked for: the tables that it passed, which [`WalkCache::find`] has not found,
    /// are kept, with their places as `placed`
    /// says by the addresses of their pages.
    #[inline(always)]
    pub(super) fn keep<F: Format>(
        &mut self,
        format: &F,
        input: u64,
        tag: Tag,
        placed: impl Fn(u64) -> u64,
    ) {
        for nth in 0..self.count {
            let Some(&table) = self.passed.get(nth) else { return };
            let placed = placed(table.from.table & !0xfff);
            self.insert(format, input, tag, Table { placed, ..table });
        }
    }

    /// The array for tables of this level.
    #[inline(always)]
    fn array(&mut self, level: u8) -> Option<&mut Array<Table>> {
        let array = *self.array_of.get(usize::from(level))?;
        self.arrays.get_mut(usize::from(array))
    }

    /// The lowest table that a cached entry names for this input.
    #[inline(always)]
    pub(super) fn find<F: Format>(
        &mut self,
        format: &F,
        input: u64,
        tags: [Tag; 2],
    ) -> Option<Table> {
        for level in 0..LEVELS as u8 - 1 {
            let Some(array) = self.array(level) else { continue };
            let prefix = input >> (format.shift(level + 1) & 63);
            let keys = tags.map(|tag| key(prefix, level, tag));
            if let Some(table) = array.find(prefix, keys) {
                return Some(*table);
            }
        }
        None
    }

    #[inline(always)]
    fn insert<F: Format>(&mut self, format: &F, input: u64, tag: Tag, table: Table) {
        let level = table.from.level;
        if let Some(array) = self.array(level) {
            let shift = format.shift(level + 1);
            let prefix = input >> (shift & 63);
            let table = Table { shift: shift as u8, ..table };
            array.insert_missing(prefix, key(prefix, level, tag), table);
        }
    }

    pub(super) fn retain(&mut self, keep: &mut impl FnMut(&Kept) -> bool) {
        for array in &mut self.arrays {
            array.retain(|key, &Table { shift, .. }| {
                let start = key >> 19 << shift;
                keep(&Kept { tag: key as u16, is_table: true, start, shift, leaf: 0 })
            });
        }
    }
}
