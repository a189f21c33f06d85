//! Which CPUs run a guest: who must be interrupted for an invalidation, and who may be left a note.
//!
//! A CPU that is outside the guest need not be interrupted, if it flushes before it enters again. Both
//! sides must not miss each other: a CPU that enters just now either reads the note, or is seen to
//! run. A [`Due`] is [complete](Running::is_complete) when every CPU has flushed or will before it next
//! enters, which is what [`Invalidate`](super::Invalidate) promises.
//!
//! ```
//! use core::sync::atomic::AtomicU64;
//! use slat::invalidate::running::Running;
//!
//! let cpus = [const { AtomicU64::new(0) }; 2];
//! let running = Running::new(&cpus);
//! assert!(!running.enter(0), "nothing is due yet");
//!
//! // CPU 1 changes the tables.
//! let due = running.require();
//! let mut interrupted = vec![];
//! running.for_each_late(due, |cpu| interrupted.push(cpu)); // an interrupt that forces a VM exit
//! assert_eq!(interrupted, [0], "CPU 1 is outside: it will read the note");
//! assert!(!running.is_complete(due));
//!
//! running.leave(0); // the VM exit
//! assert!(running.is_complete(due));
//! assert!(running.enter(0), "and here it executes INVEPT before VMRESUME");
//! assert!(running.enter(1));
//! ```

use core::sync::atomic::Ordering;

use crate::edit::sync::{AtomicU64, constructor, fence};

/// Bit 0 of a CPU's slot: it runs the guest. The bits above: up to which invalidation it has flushed.
const INSIDE: u64 = 1;

/// The CPUs of one guest (or of one id), in slots that the caller lends, all 0 at first.
#[derive(Debug)]
pub struct Running<'a> {
    /// How many invalidations have been asked for.
    due: AtomicU64,
    cpus: &'a [AtomicU64],
}

/// An invalidation that has been asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "it is complete when no CPU is late any more"]
pub struct Due(u64);

impl<'a> Running<'a> {
    constructor! {
        /// No CPU runs the guest yet.
        pub fn new(cpus: &'a [AtomicU64]) -> Self {
            Running { due: AtomicU64::new(0), cpus }
        }
    }

    /// CPU number `cpu` is about to enter the guest, and cannot be diverted from that any more but by
    /// the interrupts that [`Running::for_each_late`] asks for. True where it must flush first.
    ///
    /// # Panics
    /// Where there is no such slot.
    pub fn enter(&self, cpu: usize) -> bool {
        let slot = &self.cpus[cpu];
        let flushed = slot.load(Ordering::Relaxed) >> 1;
        let mut due = self.due.load(Ordering::Acquire);
        loop {
            slot.store(due << 1 | INSIDE, Ordering::Release);
            // Announced first, looked at then; `require` does both the other way round.
            fence(Ordering::SeqCst);
            match self.due.load(Ordering::Acquire) {
                now if now == due => return flushed < due,
                now => due = now,
            }
        }
    }

    /// CPU number `cpu` has left the guest.
    ///
    /// # Panics
    /// Where there is no such slot.
    pub fn leave(&self, cpu: usize) {
        let slot = &self.cpus[cpu];
        slot.store(slot.load(Ordering::Relaxed) & !INSIDE, Ordering::Release);
    }

    /// Asks for an invalidation: after the tables have changed.
    pub fn require(&self) -> Due {
        let due = Due(self.due.fetch_add(1, Ordering::AcqRel) + 1);
        fence(Ordering::SeqCst);
        due
    }

    /// Calls `interrupt` with every CPU that runs the guest and has not flushed since.
    pub fn for_each_late(&self, due: Due, mut interrupt: impl FnMut(usize)) {
        for (cpu, slot) in self.cpus.iter().enumerate() {
            if is_late(slot, due) {
                interrupt(cpu);
            }
        }
    }

    /// Whether every CPU has flushed since, or will before it next enters.
    pub fn is_complete(&self, due: Due) -> bool {
        self.cpus.iter().all(|slot| !is_late(slot, due))
    }
}

fn is_late(slot: &AtomicU64, due: Due) -> bool {
    let state = slot.load(Ordering::Acquire);
    state & INSIDE != 0 && state >> 1 < due.0
}

#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::thread;
    use std::boxed::Box;

    /// A CPU with an older translation enters while another gives the page away: whenever the
    /// invalidation is complete, it no longer uses the translation.
    #[test]
    fn interleavings_of_an_entry_and_an_invalidation() {
        loom::model(|| {
            let cpus: &'static [AtomicU64] = Box::leak(Box::new([AtomicU64::new(0)]));
            let running: &'static Running<'static> = Box::leak(Box::new(Running::new(cpus)));
            let freed: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
            let cpu = thread::spawn(move || {
                let mut cached = true;
                for _ in 0..2 {
                    if running.enter(0) {
                        cached = false;
                    }
                    if cached {
                        let gone = freed.load(Ordering::Acquire);
                        assert_eq!(gone, 0, "a stale translation is used");
                    }
                    running.leave(0);
                }
            });
            let due = running.require();
            if running.is_complete(due) {
                freed.store(1, Ordering::Release);
            }
            cpu.join().unwrap();
            assert!(running.is_complete(due), "it has left");
        });
    }
}
