//! Masks that tell the plain entries of a format from the others.

/// Which bits decide that an entry is an ordinary table, whatever its level above 0, or an ordinary
/// leaf of its level, and the values of those bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) struct Masks {
    table: Test,
    /// By level. Eight, so that an index needs no check; no format has more than five.
    leaves: [Test; 8],
}

/// An entry passes where its bits under `mask` are `value`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
struct Test {
    mask: u64,
    value: u64,
}

impl Test {
    /// No entry passes.
    const NONE: Test = Test { mask: 0, value: 1 };

    #[inline(always)]
    const fn passes(self, entry: u64) -> bool {
        entry & self.mask == self.value
    }
}

impl Masks {
    /// Nothing is plain.
    pub(super) const NONE: Masks = Masks { table: Test::NONE, leaves: [Test::NONE; 8] };

    /// A table entry of every level above 0 has the bits `ones` and none of `zeros`; no leaf is plain
    /// yet.
    pub(super) const fn table(ones: u64, zeros: u64) -> Masks {
        Masks { table: Test { mask: ones | zeros, value: ones }, ..Masks::NONE }
    }

    /// The same masks; a leaf of `level` has the bits `ones` and none of `zeros`.
    pub(super) const fn with_leaf(mut self, level: u8, ones: u64, zeros: u64) -> Masks {
        self.leaves[level as usize & 7] = Test { mask: ones | zeros, value: ones };
        self
    }

    #[inline(always)]
    pub(super) const fn is_table(&self, entry: u64, level: u8) -> bool {
        self.table.passes(entry) && level > 0
    }

    #[inline(always)]
    pub(super) const fn is_leaf(&self, entry: u64, level: u8) -> bool {
        self.leaves[level as usize & 7].passes(entry)
    }
}
