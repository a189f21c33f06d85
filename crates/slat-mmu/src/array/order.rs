//! The order of a set's slots, by use or by age.
//!
//! Each slot has a stamp, a use writes one, and the least of a set is looked for when it is asked for:
//! that of up to [`BLOCK`] slots by comparing them all. Above the blocks of a larger set stands a tree
//! of lower bounds: each node once held the least of the block below it, and since stamps only grow it
//! is never more than that, and names a slot below it. The bounds on the way from the slot that the
//! root names up to it are put right until the root is that slot's stamp: at most once for each time
//! that a slot below was used.
//!
//! Stamps are kept as positive floating-point numbers, which compare as their bits do: their least is
//! one instruction for two of them on every x86-64, that of integers many.

use alloc::boxed::Box;
use alloc::vec;

/// Sets have a multiple of so many slots, which are compared side by side.
pub(super) const LANES: usize = 4;
/// The most slots, or nodes, below a node.
const BLOCK: usize = 64;
/// Stamp of no slot, and bound of no node: it is never the least.
const NEVER: f64 = f64::INFINITY;
/// The bits of time 0: no stamp is subnormal.
const START: u64 = 1 << 62;

type Lanes = [f64; LANES];

/// When the slots of an array were used or stored.
#[derive(Clone, Debug)]
pub(super) struct Ages {
    /// By slot: when, and in the bits below that the slot's number. Time 0 is before all: where it is
    /// empty.
    stamps: Box<[Lanes]>,
    /// By set, where it has more than one block: the bounds of its blocks, then those of blocks of
    /// bounds, up to the root.
    bounds: Box<[Lanes]>,
    /// `Lanes` of a set in each.
    stamp_lanes: usize,
    bound_lanes: usize,
    ways: usize,
    now: u64,
    /// One unit of time: a power of two above every slot's number. Some 2^40 of them fit in the largest
    /// array (2^20 sets of one way), hours of nothing but hits, and 2^51 in a TLB of 1536.
    unit: u64,
}

/// The least of some numbers.
#[inline(always)]
fn least(all: &[Lanes]) -> f64 {
    let lesser = |one: f64, other: f64| if one < other { one } else { other };
    let mut least = [NEVER; LANES];
    for lanes in all {
        for (least, lane) in least.iter_mut().zip(lanes) {
            *least = lesser(*lane, *least);
        }
    }
    let [a, b, c, d] = least;
    lesser(lesser(a, c), lesser(b, d))
}

impl Ages {
    pub(super) fn new(sets: usize, ways: usize) -> Ages {
        let stamp_lanes = ways.div_ceil(LANES);
        let (mut bound_lanes, mut nodes) = (0, ways);
        while nodes > BLOCK || bound_lanes > 0 && nodes > 1 {
            nodes = nodes.div_ceil(BLOCK);
            bound_lanes += nodes.div_ceil(LANES);
        }
        let mut ages = Ages {
            stamps: vec![[NEVER; LANES]; sets * stamp_lanes].into(),
            bounds: vec![[NEVER; LANES]; sets * bound_lanes].into(),
            stamp_lanes,
            bound_lanes,
            ways,
            now: START,
            unit: (sets * stamp_lanes * LANES).next_power_of_two() as u64,
        };
        ages.clear(sets);
        ages
    }

    /// Every slot is empty.
    pub(super) fn clear(&mut self, sets: usize) {
        for set in 0..sets {
            let first = set * self.stamp_lanes * LANES;
            (first..first + self.ways).for_each(|slot| self.empty(set, slot));
        }
    }

    /// A slot is used, or stored.
    #[inline(always)]
    pub(super) fn renew(&mut self, slot: usize) {
        self.now += self.unit;
        self.stamps[slot / LANES][slot % LANES] = f64::from_bits(self.now | slot as u64);
    }

    /// The slot of a set that was renewed longest ago, or its first empty one.
    #[inline(always)]
    pub(super) fn oldest(&mut self, set: usize) -> usize {
        let first = set * self.stamp_lanes;
        if self.bound_lanes == 0 {
            return self.named(least(&self.stamps[first..first + self.stamp_lanes]));
        }
        self.oldest_of_many(set)
    }

    /// The slot that a stamp or bound names.
    #[inline(always)]
    fn named(&self, stamp: f64) -> usize {
        (stamp.to_bits() & (self.unit - 1)) as usize
    }

    #[inline(never)]
    fn oldest_of_many(&mut self, set: usize) -> usize {
        loop {
            let root = self.bounds[(set + 1) * self.bound_lanes - 1][0];
            let slot = self.named(root);
            if self.stamps[slot / LANES][slot % LANES] == root {
                return slot;
            }
            self.climb(set, slot, |node, below| *node = least(below));
        }
    }

    /// A slot of a set is empty from now on.
    pub(super) fn empty(&mut self, set: usize, slot: usize) {
        let stamp = f64::from_bits(START | slot as u64);
        self.stamps[slot / LANES][slot % LANES] = stamp;
        self.climb(set, slot, |node, _| {
            if stamp < *node {
                *node = stamp;
            }
        });
    }

    /// Passes the nodes from a slot of a set to the root: each with what is below it.
    fn climb(&mut self, set: usize, slot: usize, mut pass: impl FnMut(&mut f64, &[Lanes])) {
        let first = set * self.stamp_lanes;
        let mut below = &self.stamps[first..first + self.stamp_lanes];
        let mut above = &mut self.bounds[set * self.bound_lanes..(set + 1) * self.bound_lanes];
        let mut place = slot - first * LANES;
        while !above.is_empty() {
            place /= BLOCK;
            let (start, end) = (place * (BLOCK / LANES), (place + 1) * (BLOCK / LANES));
            let nodes = (below.len() * LANES).div_ceil(BLOCK);
            let (level, rest) = above.split_at_mut(nodes.div_ceil(LANES));
            pass(&mut level[place / LANES][place % LANES], &below[start..end.min(below.len())]);
            (below, above) = (level, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Array, Geometry};

    /// Used in the opposite order of what they were stored in, every bound is out of date.
    #[test]
    fn a_set_used_backwards_evicts_in_order() {
        const WAYS: u32 = 1 << 12;
        let mut array = Array::<u64>::new(Geometry::full(WAYS)).unwrap();
        for key in 1..=u64::from(WAYS) {
            assert_eq!(array.insert(key, key, key), None);
        }
        for key in (1..=u64::from(WAYS)).rev() {
            assert_eq!(array.find(key, [key; 2]), Some(&mut { key }));
        }
        for (key, new) in (1..=u64::from(WAYS)).rev().zip(u64::from(WAYS) + 1..) {
            assert_eq!(array.insert(new, new, new), Some((key, key)));
        }
    }

    /// What was dropped makes room first, wherever it is in the tree, lowest slot first.
    #[test]
    fn dropped_slots_are_the_oldest() {
        for ways in [1, 3, 8, 9, 64, 65, 600] {
            let mut array = Array::<u64>::new(Geometry::full(ways)).unwrap();
            (1..=u64::from(ways)).for_each(|key| assert_eq!(array.insert(key, key, key), None));
            let dropped = [u64::from(ways), 1 + u64::from(ways) / 2];
            for key in dropped {
                array.remove(key, key);
            }
            let mut places = dropped.map(|key| key as usize - 1).to_vec();
            places.sort_unstable();
            places.dedup();
            for (new, place) in (1000..).zip(places) {
                assert_eq!(array.insert(new, new, 0), None, "{ways} ways");
                assert_eq!(array.slot_of(new, new), Some(place), "{ways} ways");
            }
            assert!(array.insert(2000, 2000, 0).is_some(), "{ways} ways");
        }
    }
}
