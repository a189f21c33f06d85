//! Sizes and policies of arrays, and which of them can be.

/// How a full set chooses the entry that makes room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Replacement {
    /// Least recently used.
    #[default]
    Lru,
    /// First in, first out.
    Fifo,
    /// Tree pseudo-LRU: one bit a node. Needs a power of two of ways.
    TreePlru,
    /// Random, from this seed: the same seed gives the same choices.
    Random(u64),
}

/// Size and policy of an array.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Geometry {
    /// Entries in all; a multiple of `ways`. 0 for an array that does not exist.
    pub entries: u32,
    /// Entries a set; equal to `entries` for a fully associative array.
    pub ways: u32,
    /// Who makes room.
    pub replacement: Replacement,
}

/// The most entries of an array: as many as there are lines of 64 bytes in a cache of 1 GiB.
pub const MAX_ENTRIES: u32 = 1 << 24;

/// A geometry that no array can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadGeometry {
    /// The entries do not divide into sets of so many ways.
    NotWholeSets(Geometry),
    /// Tree pseudo-LRU with ways that are no power of two, or more than 64.
    NoTree(Geometry),
    /// More entries than an array may have.
    TooMany(Geometry),
}

impl core::fmt::Display for BadGeometry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            BadGeometry::NotWholeSets(Geometry { entries, ways, .. }) => {
                write!(f, "{entries} entries do not divide into sets of {ways} ways")
            }
            BadGeometry::NoTree(Geometry { ways, .. }) => {
                write!(f, "tree pseudo-LRU needs a power of two of at most 64 ways, not {ways}")
            }
            BadGeometry::TooMany(Geometry { entries, .. }) => {
                write!(f, "{entries} entries are more than {MAX_ENTRIES}")
            }
        }
    }
}

impl core::error::Error for BadGeometry {}

impl Geometry {
    /// No array.
    pub const NONE: Geometry = Geometry { entries: 0, ways: 1, replacement: Replacement::Lru };

    /// So many entries in sets of so many ways, least recently used out first.
    pub const fn lru(entries: u32, ways: u32) -> Geometry {
        Geometry { entries, ways, replacement: Replacement::Lru }
    }

    /// So many entries, fully associative, least recently used out first.
    pub const fn full(entries: u32) -> Geometry {
        Geometry::lru(entries, if entries == 0 { 1 } else { entries })
    }

    /// Whether an array can have it.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(self) -> Result<(), BadGeometry> {
        if self.ways == 0 || !self.entries.is_multiple_of(self.ways) {
            return Err(BadGeometry::NotWholeSets(self));
        }
        if self.entries > MAX_ENTRIES {
            return Err(BadGeometry::TooMany(self));
        }
        let tree = self.ways.is_power_of_two() && self.ways <= 64;
        if self.replacement == Replacement::TreePlru && !tree {
            return Err(BadGeometry::NoTree(self));
        }
        Ok(())
    }
}
