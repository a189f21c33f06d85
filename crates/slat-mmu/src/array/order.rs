//! The order of a set's slots, by use or by age.
//!
//! It is kept lazily: a use stamps a slot where it stands. What is asked for is the oldest, and only
//! then are those put right that stand before it and were used since. Where many were, and far out of
//! order, the whole set is sorted instead.

use alloc::vec::Vec;

use super::{Array, Replacement, Slot};

impl<T: Copy + Default> Array<T> {
    /// The slot of a set that was used or stored longest ago, or an empty one, which is then the
    /// newest.
    #[inline(always)]
    pub(super) fn renew_oldest(&mut self, set: usize) -> usize {
        let mut at = self.oldest[set] as usize;
        let mut left = 4 * self.ways + 64;
        while self.slots[at].stamp != self.slots[at].put {
            at = if left > 0 { self.reorder(set, at, &mut left) } else { self.sort(set) };
        }
        self.now += 1;
        let slot = &mut self.slots[at];
        (slot.stamp, slot.put) = (self.now, self.now);
        self.oldest[set] = slot.newer;
        at
    }

    /// Puts the oldest slot of a set where its stamp belongs, and returns the one that now is. Each
    /// slot that is passed takes one from `left`.
    fn reorder(&mut self, set: usize, at: usize, left: &mut usize) -> usize {
        let Slot { stamp, older: newest, newer: next, .. } = self.slots[at];
        self.slots[at].put = stamp;
        let mut before = newest as usize;
        while before != at && self.slots[before].put > stamp {
            before = self.slots[before].older as usize;
            *left = left.saturating_sub(1);
        }
        // It is the oldest after all.
        if before == at {
            return at;
        }
        // What is before the oldest is the newest.
        self.oldest[set] = next;
        if before != newest as usize {
            self.unlink(at);
            self.link_after(before, at);
        }
        next as usize
    }

    /// Puts every slot of a set where its stamp belongs, and returns the oldest.
    #[cold]
    fn sort(&mut self, set: usize) -> usize {
        let first = set * self.ways;
        let mut order: Vec<usize> = (first..first + self.ways).collect();
        order.sort_unstable_by_key(|&slot| self.slots[slot].stamp);
        let mut older = order[self.ways - 1];
        for &slot in &order {
            self.slots[slot].put = self.slots[slot].stamp;
            self.slots[slot].older = older as u32;
            self.slots[older].newer = slot as u32;
            older = slot;
        }
        self.oldest[set] = order[0] as u32;
        order[0]
    }

    /// Puts a slot, which is in no ring, on the newer side of another.
    pub(super) fn link_after(&mut self, before: usize, at: usize) {
        let newer = core::mem::replace(&mut self.slots[before].newer, at as u32);
        self.slots[newer as usize].older = at as u32;
        (self.slots[at].older, self.slots[at].newer) = (before as u32, newer);
    }

    /// Takes a slot out of its ring.
    pub(super) fn unlink(&mut self, at: usize) {
        let Slot { older, newer, .. } = self.slots[at];
        self.slots[older as usize].newer = newer;
        self.slots[newer as usize].older = older;
    }

    /// Whether sets keep an order.
    #[inline(always)]
    pub(super) fn is_ordered(&self) -> bool {
        matches!(self.replacement, Replacement::Lru | Replacement::Fifo)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Geometry;
    use super::*;

    /// Used in the opposite order of what they were stored in, each slot would pass every other.
    #[test]
    fn a_set_used_backwards_is_sorted_and_evicts_in_order() {
        const WAYS: u32 = 1 << 12;
        let mut array = Array::<u64>::new(Geometry::full(WAYS)).unwrap();
        for key in 1..=u64::from(WAYS) {
            assert_eq!(array.insert(key, key, key), None);
        }
        for key in (1..=u64::from(WAYS)).rev() {
            assert_eq!(array.find(key, [key; 2]), Some(&mut { key }));
        }
        let mut left = 4 * array.ways + 64;
        let mut at = array.oldest[0] as usize;
        while left > 0 {
            at = array.reorder(0, at, &mut left);
        }
        let stamp = |array: &Array<u64>, at: usize| array.slots[at].stamp;
        assert_ne!(stamp(&array, at), array.slots[at].put, "not done within the bound");
        for (key, new) in (1..=u64::from(WAYS)).rev().zip(u64::from(WAYS) + 1..) {
            assert_eq!(array.insert(new, new, new), Some((key, key)));
        }
    }
}
