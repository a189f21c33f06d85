//! The physical pages that QEMU has told, so that it is not asked at each access.
//!
//! What QEMU's translation buffer answers for a page stays the same until the guest changes an entry of
//! its tables or drops translations; both are seen as they happen, and void what they may concern. Between
//! a change of a present entry to another page and the next flush QEMU may answer either way, as a processor
//! may: in that time it is asked at each access.

use crate::tables::Changed;

/// Twice the entries of a table, so that a page is in one of two places by the entry that maps it.
const SLOTS: usize = 2 * ENTRIES;
const ENTRIES: usize = 512;
/// Above a page number of 52 bits is when it was noted.
const TIME_AT: u32 = 52;

#[derive(Clone, Copy, Default)]
struct Slot {
    /// The virtual page, and when it was noted; 0 for none, as no time is 0.
    key: u64,
    /// The physical page.
    frame: u32,
}

/// Pages of one vCPU.
pub(crate) struct KnownPages {
    slots: [Slot; SLOTS],
    /// Above a page number; what was noted at another time is void.
    time: u64,
    /// Whether nothing may be noted before the next flush.
    unsettled: bool,
}

impl KnownPages {
    pub(crate) fn new() -> Self {
        Self { slots: [Slot::default(); SLOTS], time: 1 << TIME_AT, unsettled: false }
    }

    /// The lowest nine bits are the entry of the last table, the one above them tells some that share it
    /// apart.
    #[inline(always)]
    fn slot(page: u64) -> usize {
        let apart = (page >> 9 ^ page >> 19 ^ page >> 28) & 1;
        (page & 511 | apart << 9) as usize
    }

    /// The physical page behind `va`, if it is known.
    #[inline(always)]
    pub(crate) fn of(&self, va: u64) -> Option<u32> {
        let page = va >> 12;
        let Slot { key, frame } = self.slots[Self::slot(page)];
        (key == (page | self.time)).then_some(frame)
    }

    /// Notes what QEMU told.
    #[inline]
    pub(crate) fn note(&mut self, va: u64, frame: u32) {
        if !self.unsettled {
            let page = va >> 12;
            self.slots[Self::slot(page)] = Slot { key: page | self.time, frame };
        }
    }

    fn forget(&mut self) {
        self.time = self.time.wrapping_add(1 << TIME_AT);
        if self.time == 0 {
            self.slots.fill(Slot::default());
            self.time = 1 << TIME_AT;
        }
    }

    /// The vCPU drops translations, one or all.
    pub(crate) fn flush(&mut self) {
        self.forget();
        self.unsettled = false;
    }

    /// The guest stored to an entry of a table.
    pub(crate) fn entry_changes(&mut self, Changed { level, index, moves }: Changed) {
        self.unsettled |= moves;
        if level > 0 || moves {
            return self.forget();
        }
        for slot in [index % ENTRIES, index % ENTRIES + ENTRIES] {
            self.slots[slot] = Slot::default();
        }
    }
}
