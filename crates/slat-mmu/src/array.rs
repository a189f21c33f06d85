//! One associative array: the storage of every TLB and walk cache.
//!
//! Keys are compared, values are returned; what a key means is its user's business. Any number of
//! sets and ways; a set count that is no power of two is indexed by remainder.

use alloc::vec;
use alloc::vec::Vec;

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

/// A geometry that no array can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadGeometry {
    /// The entries do not divide into sets of so many ways.
    NotWholeSets(Geometry),
    /// Tree pseudo-LRU with ways that are no power of two, or more than 64.
    NoTree(Geometry),
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
        let tree = self.ways.is_power_of_two() && self.ways <= 64;
        if self.replacement == Replacement::TreePlru && !tree {
            return Err(BadGeometry::NoTree(self));
        }
        Ok(())
    }
}

/// The key of an empty slot: no user may store it.
const EMPTY: u64 = 0;

/// An associative array of values under non-zero 64-bit keys.
#[derive(Clone, Debug)]
pub struct Array<T> {
    keys: Vec<u64>,
    /// LRU: time of the last use. FIFO: time of insertion. Tree: bits in the set's first slot.
    stamps: Vec<u64>,
    values: Vec<T>,
    sets: u64,
    /// `sets - 1` where that is a mask.
    mask: Option<u64>,
    ways: usize,
    replacement: Replacement,
    clock: u64,
}

impl<T: Copy + Default> Array<T> {
    /// An empty array.
    ///
    /// # Errors
    /// Where no array can have this geometry.
    pub fn new(geometry: Geometry) -> Result<Array<T>, BadGeometry> {
        geometry.check()?;
        let entries = geometry.entries as usize;
        let sets = u64::from(geometry.entries / geometry.ways);
        Ok(Array {
            keys: vec![EMPTY; entries],
            stamps: vec![0; entries],
            values: vec![T::default(); entries],
            sets,
            mask: (sets.is_power_of_two()).then(|| sets - 1),
            ways: geometry.ways as usize,
            replacement: geometry.replacement,
            clock: match geometry.replacement {
                Replacement::Random(seed) => seed | 1,
                _ => 0,
            },
        })
    }

    /// How many entries it can hold.
    pub fn capacity(&self) -> usize {
        self.keys.len()
    }

    #[inline(always)]
    fn set(&self, index: u64) -> usize {
        let set = match self.mask {
            Some(mask) => index & mask,
            None => index % self.sets,
        };
        set as usize * self.ways
    }

    /// The value under one of two keys in the set of `index`, counted as a use. A TLB gives the key
    /// of the address space and that of global entries; equal keys ask for one.
    #[inline(always)]
    pub fn find(&mut self, index: u64, keys: [u64; 2]) -> Option<&mut T> {
        if self.keys.is_empty() {
            return None;
        }
        let first = self.set(index);
        let set = &self.keys[first..first + self.ways];
        let way = set.iter().position(|&key| key == keys[0] || key == keys[1])?;
        self.touch(first, way);
        Some(&mut self.values[first + way])
    }

    /// The value under `key`, without counting a use.
    pub fn peek(&self, index: u64, key: u64) -> Option<&T> {
        if self.keys.is_empty() {
            return None;
        }
        let first = self.set(index);
        let way = self.keys[first..first + self.ways].iter().position(|&held| held == key)?;
        Some(&self.values[first + way])
    }

    #[inline(always)]
    fn touch(&mut self, first: usize, way: usize) {
        match self.replacement {
            Replacement::Lru => {
                self.clock += 1;
                self.stamps[first + way] = self.clock;
            }
            Replacement::TreePlru => self.point_away(first, way),
            Replacement::Fifo | Replacement::Random(_) => {}
        }
    }

    /// Makes every node on the way's path point to the other side.
    fn point_away(&mut self, first: usize, way: usize) {
        let mut tree = self.stamps[first];
        let mut node = 1usize;
        let mut half = self.ways / 2;
        let mut rest = way;
        while half > 0 {
            let right = rest >= half;
            // A set bit sends the next victim to the right.
            if right {
                tree &= !(1 << node);
                rest -= half;
            } else {
                tree |= 1 << node;
            }
            node = 2 * node + usize::from(right);
            half /= 2;
        }
        self.stamps[first] = tree;
    }

    fn pointed_at(&self, first: usize) -> usize {
        let tree = self.stamps[first];
        let mut node = 1usize;
        let mut half = self.ways / 2;
        let mut way = 0;
        while half > 0 {
            let right = tree >> node & 1 != 0;
            if right {
                way += half;
            }
            node = 2 * node + usize::from(right);
            half /= 2;
        }
        way
    }

    /// Stores `value` under `key` (not 0) in the set of `index`, and returns the entry that made
    /// room. A value already under this key is replaced in place.
    pub fn insert(&mut self, index: u64, key: u64, value: T) -> Option<(u64, T)> {
        debug_assert_ne!(key, EMPTY);
        if self.keys.is_empty() {
            return None;
        }
        let first = self.set(index);
        let set = &self.keys[first..first + self.ways];
        let held = set.iter().position(|&held| held == key);
        let free = || set.iter().position(|&held| held == EMPTY);
        let (way, is_new) = match held {
            Some(way) => (way, false),
            None => (free().unwrap_or_else(|| self.victim(first)), true),
        };
        if is_new && matches!(self.replacement, Replacement::Random(_)) {
            self.advance();
        }
        let slot = first + way;
        let evicted =
            (is_new && self.keys[slot] != EMPTY).then(|| (self.keys[slot], self.values[slot]));
        self.keys[slot] = key;
        self.values[slot] = value;
        if is_new && self.replacement == Replacement::Fifo {
            self.clock += 1;
            self.stamps[slot] = self.clock;
        }
        self.touch(first, way);
        evicted
    }

    /// The way of a full set that makes room.
    fn victim(&self, first: usize) -> usize {
        match self.replacement {
            Replacement::Lru | Replacement::Fifo => {
                let stamps = &self.stamps[first..first + self.ways];
                let oldest = stamps.iter().enumerate().min_by_key(|&(_, stamp)| stamp);
                oldest.map_or(0, |(way, _)| way)
            }
            Replacement::TreePlru => self.pointed_at(first),
            Replacement::Random(_) => (self.clock >> 33) as usize % self.ways,
        }
    }

    /// The next state of the random sequence (Knuth's MMIX generator).
    fn advance(&mut self) {
        self.clock = self.clock.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    }

    /// Drops what `drop` says of (key, value), and returns how many that were.
    pub fn retain(&mut self, mut keep: impl FnMut(u64, &T) -> bool) -> usize {
        let mut dropped = 0;
        for (key, value) in self.keys.iter_mut().zip(&self.values) {
            if *key != EMPTY && !keep(*key, value) {
                *key = EMPTY;
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops the value under `key`, if it is there.
    pub fn remove(&mut self, index: u64, key: u64) -> Option<T> {
        if self.keys.is_empty() {
            return None;
        }
        let first = self.set(index);
        let way = self.keys[first..first + self.ways].iter().position(|&held| held == key)?;
        self.keys[first + way] = EMPTY;
        Some(self.values[first + way])
    }

    /// Everything that is held, as (key, value).
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.keys.iter().zip(&self.values).filter(|(key, _)| **key != EMPTY).map(|(k, v)| (*k, v))
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.keys.fill(EMPTY);
    }
}
