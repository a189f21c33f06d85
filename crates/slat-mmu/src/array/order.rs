//! The order of a set's slots, by use or by age.
//!
//! It is kept lazily: a use stamps a slot where it stands. What is asked for is the oldest, and only
//! then are those put right that stand before it and were used since.

use super::{Array, Replacement, Slot};

impl<T: Copy + Default> Array<T> {
    /// The slot of a set that was used or stored longest ago, or an empty one, which is then the
    /// newest.
    #[inline(always)]
    pub(super) fn renew_oldest(&mut self, set: usize) -> usize {
        let mut at = self.oldest[set] as usize;
        while self.slots[at].stamp != self.slots[at].put {
            at = self.reorder(set, at);
        }
        self.now += 1;
        let slot = &mut self.slots[at];
        (slot.stamp, slot.put) = (self.now, self.now);
        self.oldest[set] = slot.newer;
        at
    }

    /// Puts the oldest slot of a set where its stamp belongs, and returns the one that now is.
    fn reorder(&mut self, set: usize, at: usize) -> usize {
        let Slot { stamp, older: newest, newer: next, .. } = self.slots[at];
        self.slots[at].put = stamp;
        let mut before = newest as usize;
        while before != at && self.slots[before].put > stamp {
            before = self.slots[before].older as usize;
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
