//! One associative array: the storage of every TLB and walk cache.
//!
//! Keys are compared, values are returned; what a key means is its user's business. Any number of
//! sets and ways; a set count that is no power of two is indexed by remainder.

use alloc::vec;
use alloc::vec::Vec;

mod geometry;

pub use geometry::{BadGeometry, Geometry, MAX_ENTRIES, Replacement};

/// The key of an empty slot: no user may store it.
const EMPTY: u64 = 0;
/// No slot: the end of a chain.
const NONE: u32 = u32::MAX;

/// One place of an array.
#[derive(Clone, Copy, Debug)]
struct Slot<T> {
    key: u64,
    value: T,
    /// The next slot of its chain, and the chain.
    next: u32,
    chain: u32,
    /// Its set's node among the links.
    set: u32,
}

/// Neighbours in a set's order of use (LRU) or of insertion, which is a ring: the set's own node lies
/// between the newest and the oldest.
#[derive(Clone, Copy, Debug)]
struct Link {
    older: u32,
    newer: u32,
}

/// An associative array of values under non-zero 64-bit keys.
///
/// Held entries are found by chains of those whose index folds to the same bits, so that a lookup
/// compares one key or none, however many ways there are; and the victim is the end of a list.
#[derive(Clone, Debug)]
pub struct Array<T> {
    slots: Vec<Slot<T>>,
    /// The first slot of each chain; a power of two of them.
    chains: Vec<u32>,
    /// By slot, and by set after those.
    links: Vec<Link>,
    /// How many slots of each set are held.
    used: Vec<u32>,
    /// Tree pseudo-LRU: the nodes of each set as bits.
    trees: Vec<u64>,
    /// `sets - 1` where that is a mask.
    mask: Option<u64>,
    ways: usize,
    replacement: Replacement,
    /// The state of the random sequence.
    random: u64,
}

/// Nodes that are each a ring of their own.
fn unlinked(nodes: usize) -> Vec<Link> {
    (0..nodes as u32).map(|node| Link { older: node, newer: node }).collect()
}

impl<T: Copy + Default> Array<T> {
    /// An empty array.
    ///
    /// # Errors
    /// Where no array can have this geometry.
    pub fn new(geometry: Geometry) -> Result<Array<T>, BadGeometry> {
        geometry.check()?;
        let entries = geometry.entries as usize;
        let sets = entries / geometry.ways as usize;
        let empty = |slot: usize| Slot {
            key: EMPTY,
            value: T::default(),
            next: NONE,
            chain: 0,
            set: (entries + slot / geometry.ways as usize) as u32,
        };
        let tree = geometry.replacement == Replacement::TreePlru;
        Ok(Array {
            slots: (0..entries).map(empty).collect(),
            chains: vec![NONE; (2 * entries).next_power_of_two()],
            links: unlinked(entries + sets),
            used: vec![0; sets],
            trees: vec![0; if tree { sets } else { 0 }],
            mask: (sets.is_power_of_two()).then(|| sets as u64 - 1),
            ways: geometry.ways as usize,
            replacement: geometry.replacement,
            random: match geometry.replacement {
                Replacement::Random(seed) => seed | 1,
                _ => 0,
            },
        })
    }

    /// How many entries it can hold.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    #[inline(always)]
    fn set(&self, index: u64) -> usize {
        match self.mask {
            Some(mask) => (index & mask) as usize,
            None => (index % self.used.len() as u64) as usize,
        }
    }

    /// The chain of an index. Neighbours differ in it, and so do pages that are a table apart.
    #[inline(always)]
    fn chain(&self, index: u64) -> usize {
        (index ^ (index >> 9) ^ (index >> 18)) as usize & (self.chains.len() - 1)
    }

    /// The slot that holds `key`.
    #[inline(always)]
    fn slot_of(&self, index: u64, key: u64) -> Option<usize> {
        let mut at = self.chains[self.chain(index)];
        while let Some(slot) = self.slots.get(at as usize) {
            if slot.key == key {
                return Some(at as usize);
            }
            at = slot.next;
        }
        None
    }

    /// The value under the first of two keys that is held in the set of `index`, counted as a use. A
    /// TLB gives the key of the address space and that of global entries; equal keys ask for one.
    #[inline(always)]
    pub fn find(&mut self, index: u64, keys: [u64; 2]) -> Option<&mut T> {
        let mut at = self.chains[self.chain(index)];
        let mut global = NONE;
        while let Some(slot) = self.slots.get(at as usize) {
            if slot.key == keys[0] {
                return Some(self.used(at as usize));
            }
            if slot.key == keys[1] {
                global = at;
            }
            at = slot.next;
        }
        (global != NONE).then(|| self.used(global as usize))
    }

    #[inline(always)]
    fn used(&mut self, slot: usize) -> &mut T {
        self.touch(slot);
        &mut self.slots[slot].value
    }

    /// The value under `key`, without counting a use.
    pub fn peek(&self, index: u64, key: u64) -> Option<&T> {
        self.slot_of(index, key).map(|slot| &self.slots[slot].value)
    }

    #[inline(always)]
    fn touch(&mut self, slot: usize) {
        match self.replacement {
            Replacement::Lru => {
                let Link { older, newer } = self.links[slot];
                let set = self.slots[slot].set;
                if newer != set {
                    let links = &mut self.links[..];
                    links[older as usize].newer = newer;
                    links[newer as usize].older = older;
                    let before = core::mem::replace(&mut links[set as usize].older, slot as u32);
                    links[before as usize].newer = slot as u32;
                    links[slot] = Link { older: before, newer: set };
                }
            }
            Replacement::TreePlru => self.point_away(slot),
            Replacement::Fifo | Replacement::Random(_) => {}
        }
    }

    /// Makes a slot, which is in no order, the newest of its set.
    #[inline(always)]
    fn link(&mut self, slot: usize) {
        let set = self.slots[slot].set;
        let before = core::mem::replace(&mut self.links[set as usize].older, slot as u32);
        self.links[before as usize].newer = slot as u32;
        self.links[slot] = Link { older: before, newer: set };
    }

    /// Takes a slot out of its set's order.
    #[inline(always)]
    fn unlink(&mut self, slot: usize) {
        let Link { older, newer } = self.links[slot];
        self.links[older as usize].newer = newer;
        self.links[newer as usize].older = older;
    }

    /// Whether sets keep an order.
    #[inline(always)]
    fn is_ordered(&self) -> bool {
        matches!(self.replacement, Replacement::Lru | Replacement::Fifo)
    }

    /// Makes every node on the way's path point to the other side. Ways are a power of two.
    fn point_away(&mut self, slot: usize) {
        let way = slot & (self.ways - 1);
        let tree = &mut self.trees[slot / self.ways];
        let mut node = 1usize;
        let mut half = self.ways / 2;
        let mut rest = way;
        while half > 0 {
            let right = rest >= half;
            // A set bit sends the next victim to the right.
            if right {
                *tree &= !(1 << node);
                rest -= half;
            } else {
                *tree |= 1 << node;
            }
            node = 2 * node + usize::from(right);
            half /= 2;
        }
    }

    fn pointed_at(&self, tree: u64) -> usize {
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
    #[inline]
    pub fn insert(&mut self, index: u64, key: u64, value: T) -> Option<(u64, T)> {
        debug_assert_ne!(key, EMPTY);
        if let Some(held) = self.slot_of(index, key) {
            self.slots[held].value = value;
            self.touch(held);
            return None;
        }
        self.insert_new(index, key, value)
    }

    /// As [`insert`](Array::insert), of a key that is not held.
    fn insert_new(&mut self, index: u64, key: u64, value: T) -> Option<(u64, T)> {
        if self.slots.is_empty() {
            return None;
        }
        let set = self.set(index);
        let mut evicted = None;
        let slot = if (self.used[set] as usize) < self.ways {
            self.used[set] += 1;
            let first = set * self.ways;
            let slots = &self.slots[first..first + self.ways];
            first + slots.iter().position(|slot| slot.key == EMPTY).unwrap_or(0)
        } else {
            let slot = self.victim(set);
            let Slot { key, value, .. } = self.slots[slot];
            evicted = Some((key, value));
            self.unchain(slot);
            if self.is_ordered() {
                self.unlink(slot);
            }
            slot
        };
        let chain = self.chain(index);
        let next = core::mem::replace(&mut self.chains[chain], slot as u32);
        let place = &mut self.slots[slot];
        (place.key, place.value) = (key, value);
        (place.next, place.chain) = (next, chain as u32);
        match self.replacement {
            Replacement::Lru | Replacement::Fifo => self.link(slot),
            Replacement::TreePlru => self.point_away(slot),
            Replacement::Random(_) => self.advance(),
        }
        evicted
    }

    /// Takes a slot out of its chain.
    #[inline(always)]
    fn unchain(&mut self, slot: usize) {
        let Slot { next, chain, .. } = self.slots[slot];
        let mut at = self.chains[chain as usize];
        if at as usize == slot {
            self.chains[chain as usize] = next;
            return;
        }
        while let Some(before) = self.slots.get_mut(at as usize) {
            if before.next as usize == slot {
                before.next = next;
                return;
            }
            at = before.next;
        }
    }

    /// The slot of a full set that makes room.
    #[inline(always)]
    fn victim(&self, set: usize) -> usize {
        match self.replacement {
            Replacement::Lru | Replacement::Fifo => {
                self.links[self.slots.len() + set].newer as usize
            }
            Replacement::TreePlru => set * self.ways + self.pointed_at(self.trees[set]),
            Replacement::Random(_) => set * self.ways + (self.random >> 33) as usize % self.ways,
        }
    }

    /// The next state of the random sequence (Knuth's MMIX generator).
    fn advance(&mut self) {
        self.random =
            self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    }

    /// Drops what `keep` does not keep of (key, value), and returns how many that were.
    pub fn retain(&mut self, mut keep: impl FnMut(u64, &T) -> bool) -> usize {
        let mut dropped = 0;
        for slot in 0..self.slots.len() {
            let Slot { key, value, .. } = &self.slots[slot];
            if *key != EMPTY && !keep(*key, value) {
                self.empty(slot);
                dropped += 1;
            }
        }
        dropped
    }

    fn empty(&mut self, slot: usize) {
        self.unchain(slot);
        if self.is_ordered() {
            self.unlink(slot);
        }
        self.slots[slot].key = EMPTY;
        self.used[slot / self.ways] -= 1;
    }

    /// Drops the value under `key`, if it is there.
    pub fn remove(&mut self, index: u64, key: u64) -> Option<T> {
        let slot = self.slot_of(index, key)?;
        self.empty(slot);
        Some(self.slots[slot].value)
    }

    /// Everything that is held, as (key, value).
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let held = self.slots.iter().filter(|slot| slot.key != EMPTY);
        held.map(|slot| (slot.key, &slot.value))
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.key = EMPTY);
        self.chains.fill(NONE);
        for (node, link) in (0..).zip(&mut self.links) {
            *link = Link { older: node, newer: node };
        }
        self.used.fill(0);
    }
}
