//! Building the tables of a probe.

use crate::draft::{Draft, Site};
use crate::random::Random;
use crate::world::World;

/// How the tables of one stage are shaped and encoded.
pub(crate) struct Tree<'a> {
    /// 1 or 2.
    pub(crate) stage: u8,
    /// Where the root lies, in the machine's memory.
    pub(crate) root: u64,
    /// Level of the root.
    pub(crate) root_level: u8,
    /// log2 of the smallest page.
    pub(crate) page_shift: u32,
    /// Index bits of a table.
    pub(crate) index_bits: u32,
    /// Index bits of the root.
    pub(crate) root_bits: u32,
    /// Bits of an entry: 32 or 64.
    pub(crate) entry: u8,
    /// Makes an entry that points to a table at this level; the second argument is random.
    pub(crate) table: &'a dyn Fn(u64, u8, u64) -> u64,
    /// Makes a leaf of this level; the last argument is random.
    pub(crate) leaf: &'a dyn Fn(u64, u8, u64) -> u64,
    /// The table that an entry of this level points to, if it is a table.
    pub(crate) next: &'a dyn Fn(u64, u8) -> Option<u64>,
}

impl Tree<'_> {
    /// The lowest input bit that indexes tables of this level.
    pub(crate) fn shift(&self, level: u8) -> u32 {
        self.page_shift + self.index_bits * u32::from(level)
    }

    fn slot(&self, table: u64, level: u8, input: u64) -> u64 {
        let bits = if level == self.root_level { self.root_bits } else { self.index_bits };
        table + (input >> self.shift(level) & ((1 << bits) - 1)) * u64::from(self.entry / 8)
    }
}

/// The space that a stage's tables lie in: memory itself for the second stage, what the second stage
/// maps for the first.
pub(crate) trait Below {
    /// Where the root, which lies at `memory`, is in this space.
    fn root(&mut self, memory: u64) -> u64;
    /// Chooses where a new table, which lies at `memory`, is in this space.
    fn place(&mut self, builder: &mut Builder<'_>, memory: u64) -> u64;
    /// Makes the entry at `here` of this space be the one at `memory`.
    fn reach(&mut self, builder: &mut Builder<'_>, here: u64, memory: u64);
}

/// Memory itself.
pub(crate) struct Plain;

impl Below for Plain {
    fn root(&mut self, memory: u64) -> u64 {
        memory
    }

    fn place(&mut self, _: &mut Builder<'_>, memory: u64) -> u64 {
        memory
    }

    fn reach(&mut self, _: &mut Builder<'_>, _: u64, _: u64) {}
}

/// A draft under construction.
pub(crate) struct Builder<'a> {
    pub(crate) world: &'a World,
    pub(crate) random: &'a mut Random,
    pub(crate) draft: Draft,
    /// The next free address for tables.
    pub(crate) pool: std::ops::Range<u64>,
    /// Bits of an address that are the same in every space, so that leaves of any size keep them.
    pub(crate) low: u64,
    /// The bits above those of every address in the arena.
    pub(crate) high: u64,
}

impl Builder<'_> {
    /// A free table of `bytes` bytes, aligned to its size.
    pub(crate) fn take(&mut self, bytes: u64) -> u64 {
        let table = self.pool.start.next_multiple_of(bytes);
        self.pool.start = table + bytes;
        assert!(self.pool.start <= self.pool.end, "a probe needs fewer tables than the pool holds");
        table
    }

    /// Maps the page of `input` to that of `output` by a leaf of this level, or of another one where
    /// tables or leaves are in the way. `below` is the space that the tables lie in.
    pub(crate) fn map(
        &mut self,
        tree: &Tree<'_>,
        input: u64,
        output: u64,
        leaf: u8,
        below: &mut dyn Below,
    ) {
        let mut table = tree.root;
        let mut table_below = below.root(tree.root);
        let mut level = tree.root_level;
        loop {
            let address = tree.slot(table, level, input);
            below.reach(self, table_below + (address - table), address);
            let is_leaf = level == 0 || level == leaf;
            if !self.draft.sites.iter().any(|site| site.address == address) {
                let stage = tree.stage;
                self.draft.sites.push(Site {
                    stage,
                    level,
                    address,
                    bits: tree.entry,
                    leaf: is_leaf,
                });
            }
            let old = self.draft.entry(self.world, address, tree.entry);
            if let Some(next) = (tree.next)(old, level).filter(|_| level > 0) {
                table_below = next;
                table = next & self.low | self.high;
                level -= 1;
                continue;
            }
            let random = self.random.bits();
            if is_leaf {
                let base = output & !((1 << tree.shift(level)) - 1);
                let entry = (tree.leaf)(base, level, random);
                self.draft.set_entry(self.world, address, tree.entry, entry);
                return;
            }
            if old != 0 {
                // A larger leaf covers it, and maps it to the same place.
                return;
            }
            let bytes = u64::from(tree.entry / 8) << tree.index_bits;
            let page = self.take(bytes);
            table_below = below.place(self, page);
            let entry = (tree.table)(table_below, level, random);
            self.draft.set_entry(self.world, address, tree.entry, entry);
            table = page;
            level -= 1;
        }
    }
}
