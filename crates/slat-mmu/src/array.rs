//! One associative array: the storage of every TLB and walk cache.
//!
//! Keys are compared, values are returned; what a key means is its user's business. Any number of
//! sets and ways; a set count that is no power of two is indexed by remainder.

use alloc::boxed::Box;
use alloc::vec;

mod geometry;
mod order;

pub use geometry::{BadGeometry, Geometry, MAX_ENTRIES, Replacement};
use order::{Ages, LANES};

/// The key of an empty slot: no user may store it.
const EMPTY: u64 = 0;
/// No slot: the end of a chain.
const NONE: u32 = u32::MAX;

/// Chains for each entry.
const CHAINS: usize = 4;

/// One place of an array.
#[derive(Clone, Copy, Debug)]
struct Slot<T> {
    key: u64,
    value: T,
    /// The next slot of its chain, and the chain.
    next: u32,
    chain: u32,
}

/// An associative array of values under non-zero 64-bit keys.
///
/// Held entries are found by chains of those whose index folds to the same bits, so that a lookup
/// compares one key or none, however many ways there are. A use writes one stamp.
#[derive(Clone, Debug)]
pub struct Array<T> {
    slots: Box<[Slot<T>]>,
    /// The first slot of each chain; a power of two of them.
    chains: Box<[u32]>,
    /// How many low bits of a product are not its chain.
    chain_shift: u32,
    /// When slots were used (LRU) or stored (FIFO).
    ages: Ages,
    /// Where sets have no order: how many slots of each are held.
    used: Box<[u32]>,
    /// Tree pseudo-LRU: the nodes of each set as bits.
    trees: Box<[u64]>,
    sets: usize,
    /// One less than there are sets, and whether that is a mask.
    mask: u64,
    is_masked: bool,
    entries: usize,
    ways: usize,
    /// From one set's first slot to the next one's.
    stride: usize,
    replacement: Replacement,
    is_lru: bool,
    /// The state of the random sequence.
    random: u64,
}

impl<T: Copy + Default> Array<T> {
    /// An empty array.
    ///
    /// # Errors
    /// Where no array can have this geometry.
    pub fn new(geometry: Geometry) -> Result<Array<T>, BadGeometry> {
        geometry.check()?;
        let entries = geometry.entries as usize;
        let ways = geometry.ways as usize;
        let sets = entries / ways;
        let ordered = matches!(geometry.replacement, Replacement::Lru | Replacement::Fifo);
        let stride = if ordered { ways.next_multiple_of(LANES) } else { ways };
        // Few chains hold more than one entry. A shift is less than 64.
        let chains = (CHAINS * entries).next_power_of_two().max(2);
        let slot = Slot { key: EMPTY, value: T::default(), next: NONE, chain: 0 };
        let tree = geometry.replacement == Replacement::TreePlru;
        Ok(Array {
            slots: vec![slot; sets * stride].into(),
            chains: vec![NONE; chains].into(),
            chain_shift: 64 - chains.ilog2(),
            ages: Ages::new(if ordered { sets } else { 0 }, ways),
            used: vec![0; if ordered { 0 } else { sets }].into(),
            trees: vec![0; if tree { sets } else { 0 }].into(),
            sets,
            mask: sets.saturating_sub(1) as u64,
            is_masked: sets.count_ones() <= 1,
            entries,
            ways,
            stride,
            replacement: geometry.replacement,
            is_lru: geometry.replacement == Replacement::Lru,
            random: match geometry.replacement {
                Replacement::Random(seed) => seed | 1,
                _ => 0,
            },
        })
    }

    /// How many entries it can hold.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.entries
    }

    #[inline(always)]
    fn set(&self, index: u64) -> usize {
        (if self.is_masked { index & self.mask } else { index % (self.mask + 1) }) as usize
    }

    /// The chain of an index. Multiples of the golden ratio spread neighbours evenly (Knuth, The Art
    /// of Computer Programming 3, 6.4).
    #[inline(always)]
    fn chain(&self, index: u64) -> usize {
        (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.chain_shift) as usize
    }

    /// The slot that holds `key`.
    #[inline(always)]
    fn slot_of(&self, index: u64, key: u64) -> Option<usize> {
        self.slot_among(self.chain(index), key)
    }

    /// The slot of a chain that holds `key`.
    #[inline(always)]
    fn slot_among(&self, chain: usize, key: u64) -> Option<usize> {
        let mut at = self.chains[chain];
        while let Some(slot) = self.slots.get(at as usize) {
            if slot.key == key {
                return Some(at as usize);
            }
            at = slot.next;
        }
        None
    }

    /// The slot that holds the first of two keys, or else the second.
    #[inline(always)]
    fn slot_of_either(&self, index: u64, keys: [u64; 2]) -> Option<usize> {
        let mut at = self.chains[self.chain(index)];
        let mut global = NONE;
        while let Some(slot) = self.slots.get(at as usize) {
            if slot.key == keys[0] {
                return Some(at as usize);
            }
            if slot.key == keys[1] {
                global = at;
            }
            at = slot.next;
        }
        (global != NONE).then_some(global as usize)
    }

    /// The value under the first of two keys that is held in the set of `index`, counted as a use. A
    /// TLB gives the key of the address space and that of global entries; equal keys ask for one.
    #[inline(always)]
    pub fn find(&mut self, index: u64, keys: [u64; 2]) -> Option<&mut T> {
        self.slot_of_either(index, keys).map(|slot| self.touch(slot))
    }

    /// What [`Array::find`] finds, without counting a use.
    #[inline(always)]
    pub fn look(&self, index: u64, keys: [u64; 2]) -> Option<&T> {
        self.slot_of_either(index, keys).map(|slot| &self.slots[slot].value)
    }

    /// The value under `key`, without counting a use.
    pub fn peek(&self, index: u64, key: u64) -> Option<&T> {
        self.slot_of(index, key).map(|slot| &self.slots[slot].value)
    }

    /// Counts a use.
    #[inline(always)]
    fn touch(&mut self, slot: usize) -> &mut T {
        if self.is_lru {
            self.ages.renew(slot);
        } else if self.replacement == Replacement::TreePlru {
            self.point_away(slot);
        }
        &mut self.slots[slot].value
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
    #[inline(always)]
    pub fn insert(&mut self, index: u64, key: u64, value: T) -> Option<(u64, T)> {
        debug_assert_ne!(key, EMPTY);
        let chain = self.chain(index);
        if let Some(held) = self.slot_among(chain, key) {
            *self.touch(held) = value;
            return None;
        }
        let at = self.make_room(index, chain);
        let slot = self.slots.get_mut(at)?;
        let before = (slot.key, slot.value);
        (slot.key, slot.value) = (key, value);
        (before.0 != EMPTY).then_some(before)
    }

    /// As [`Array::insert`] of a key that is known not to be held, since it was just looked for.
    #[inline(always)]
    pub(crate) fn insert_missing(&mut self, index: u64, key: u64, value: T) {
        debug_assert!(key != EMPTY && self.peek(index, key).is_none());
        let chain = self.chain(index);
        let at = self.make_room(index, chain);
        if let Some(slot) = self.slots.get_mut(at) {
            (slot.key, slot.value) = (key, value);
        }
    }

    /// The slot for an entry that is not held, among others of its chain: what it still holds makes
    /// room. No slot for an array without entries.
    #[inline(never)]
    fn make_room(&mut self, index: u64, chain: usize) -> usize {
        let set = self.set(index);
        if set >= self.sets {
            return usize::MAX;
        }
        let at = match self.replacement {
            Replacement::Lru | Replacement::Fifo => {
                let oldest = self.ages.oldest(set);
                self.ages.renew(oldest);
                oldest
            }
            _ => self.choose(set),
        };
        if self.slots[at].key != EMPTY {
            self.unchain(at);
        }
        let next = core::mem::replace(&mut self.chains[chain], at as u32);
        let slot = &mut self.slots[at];
        (slot.next, slot.chain) = (next, chain as u32);
        at
    }

    /// The slot of a set without order that takes the next entry.
    fn choose(&mut self, set: usize) -> usize {
        let first = set * self.ways;
        let at = if (self.used[set] as usize) < self.ways {
            self.used[set] += 1;
            let slots = &self.slots[first..first + self.ways];
            first + slots.iter().position(|slot| slot.key == EMPTY).unwrap_or(0)
        } else if self.replacement == Replacement::TreePlru {
            first + self.pointed_at(self.trees[set])
        } else {
            first + (self.random >> 33) as usize % self.ways
        };
        if self.replacement == Replacement::TreePlru {
            self.point_away(at)
        } else {
            self.advance()
        }
        at
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

    fn empty(&mut self, at: usize) {
        self.unchain(at);
        let set = at / self.stride;
        self.slots[at].key = EMPTY;
        match self.replacement {
            Replacement::Lru | Replacement::Fifo => self.ages.empty(set, at),
            _ => self.used[set] -= 1,
        }
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
        self.ages.clear(self.sets);
        self.chains.fill(NONE);
        self.used.fill(0);
    }
}
