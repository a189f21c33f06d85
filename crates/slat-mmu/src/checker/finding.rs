//! What the checker reports.

use core::fmt;
use core::ops::RangeInclusive;

use slat::invalidate::Context;

/// What a processor may keep.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum What {
    /// A leaf: a translation by these tables alone (of a second stage: a guest-physical mapping).
    Translation,
    /// A translation of both stages that was made with this leaf: it is found by guest virtual
    /// address, so that invalidations by guest physical address do not reach it.
    Combined,
    /// An entry that points at a table.
    Table,
    /// An entry that translates nothing.
    Invalid,
    /// The root that a processor runs on: no invalidation makes it let go of that.
    Root,
}

/// One kept copy, as an invalidation sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// The id that it is tagged with.
    pub context: Context,
    /// What was kept.
    pub what: What,
    /// Level of the entry that was kept; of a root, of its entries.
    pub level: u8,
    /// First input address that it translates.
    pub start: u64,
    /// The last.
    pub last: u64,
    /// It is kept for every address space of its machine ([`slat::edit::Encode::is_global`]).
    pub global: bool,
}

impl Copy {
    /// Whether it translates any address of `range`.
    pub fn overlaps(&self, range: &RangeInclusive<u64>) -> bool {
        self.start <= *range.end() && self.last >= *range.start()
    }
}

/// Why a copy is not justified.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Why {
    /// The tables no longer translate some of its addresses.
    Unmapped,
    /// They translate some of them to another place.
    Moved,
    /// They permit less.
    Rights,
    /// They give another memory type.
    MemoryType,
    /// The entry is clean, and a store by this copy would not set its dirty bit.
    Dirty,
    /// The entry is not accessed, and a use of this copy would not set its accessed bit.
    Accessed,
    /// The table entry names another table now, or none, or restricts more.
    TableChanged,
    /// An entry that was invalid translates now, and this copy would still fault.
    NowMapped,
    /// The frame is in other hands.
    Freed,
}

/// A copy that is wrong to exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The copy.
    pub copy: Copy,
    /// Why it is wrong.
    pub why: Why,
    /// The leaf entry, or the address of the table that is named, or of the root.
    pub entry: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { copy, why, entry } = self;
        let what = match copy.what {
            What::Translation => "translation",
            What::Combined => "combined translation",
            What::Table => "table entry",
            What::Invalid => "invalid entry",
            What::Root => "root",
        };
        let why = match why {
            Why::Unmapped => "the tables no longer translate it",
            Why::Moved => "the tables translate it to another place",
            Why::Rights => "the tables permit less",
            Why::MemoryType => "the tables give another memory type",
            Why::Dirty => "a store by it would not set the dirty bit",
            Why::Accessed => "a use of it would not set the accessed bit",
            Why::TableChanged => "the entry names another table now, or none",
            Why::NowMapped => "the tables translate it now",
            Why::Freed => "the frame that it reaches was freed",
        };
        write!(
            f,
            "{}: a {what} of level {} for {:#x}..={:#x} ({entry:#x}) is still held: {why}",
            copy.context, copy.level, copy.start, copy.last
        )
    }
}
