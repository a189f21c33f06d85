//! What a kernel does when memory runs low: it takes pages that were not used lately from their
//! processes, writes them to its virtual disk, and reads them back at the next touch.

use slat_trace::{Event, Kind};

use super::tables::{Slot, bits};
use super::{Kernel, fault::flags_of};
use crate::generated::costs;

/// Pages that one round takes.
const ROUND: u64 = 32;

/// Nanoseconds of one request to the virtual disk: a fast flash disk's.
const DISK: u64 = 80_000;

/// The disk's doorbell (a virtio device's notify register behind a PCI bridge's window).
const DOORBELL: u64 = 0xfebd_1000;

impl Kernel {
    /// Takes pages until a round is full, each page at most twice looked at: a page that was accessed
    /// since loses its accessed bit and goes to the end.
    pub(super) fn reclaim(&mut self) {
        let mut taken = 0;
        for _ in 0..2 * self.pages.len() {
            if taken == ROUND {
                break;
            }
            let Some((process, page)) = self.pages.pop_front() else { break };
            let (process, va) = (process as usize, page << 12);
            if !self.processes[process].alive {
                continue;
            }
            let leaf = self.tables.leaf(self.processes[process].root, va);
            let frame = (leaf.entry & bits::ADDRESS) >> 12;
            if leaf.level != 0 || leaf.entry & bits::P == 0 || self.frames.users(frame) != 1 {
                continue;
            }
            if leaf.entry & bits::A != 0 {
                self.store(leaf.slot, leaf.entry & !bits::A);
                self.forget(process, va);
                self.pages.push_back((process as u32, page));
                continue;
            }
            self.path(costs::RECLAIM, 1);
            self.swapped += 1;
            // Not present; the slot's number where the address was (Linux has other bits of it).
            self.store(leaf.slot, self.swapped << 12 | 1 << 9);
            if process == self.current {
                self.invalidate_page(va);
            } else {
                self.forget(process, va);
            }
            self.frames.give_back(frame, false);
            taken += 1;
        }
        if taken > 0 {
            // One request writes them all, and nobody waits for it.
            self.path(costs::IO, 1);
            self.ring();
        }
    }

    /// A touched page comes back from the disk, and the process waits for it.
    pub(super) fn swap_in(&mut self, va: u64, slot: Slot) {
        self.path(costs::FAULT_ANONYMOUS, 1);
        self.request(DISK);
        let Some(area) = self.processes[self.current].area(va) else { return };
        let frame = self.frame();
        for line in 0..64 {
            self.physical(Kind::Store, (frame << 12) + 64 * line);
        }
        self.store(slot, frame << 12 | flags_of(&area) | bits::RW | bits::D);
        self.pages.push_back((self.current as u32, va >> 12));
    }

    /// A request to a device whose answer takes so many nanoseconds, in which nothing else runs.
    pub(super) fn request(&mut self, nanoseconds: u64) {
        self.path(costs::IO, 1);
        self.ring();
        if !self.quiet {
            self.waited += nanoseconds;
        }
    }

    fn ring(&mut self) {
        let va = 0xffff_c900_0000_0000 + (DOORBELL & 0xfff);
        self.event(Event::Io { va, gpa: DOORBELL, len: 2, store: true });
    }
}
