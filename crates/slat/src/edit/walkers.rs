//! Software walkers, and the proof that none of them still looks at a detached table.
//!
//! A walker announces itself in a slot while it walks. A table that has been detached can still be
//! seen by walkers that began before; once each of those has left, no later one can reach it.

use core::num::NonZeroU64;
use core::sync::atomic::Ordering;

use super::sync::{AtomicU64, constructor, fence};

/// A slot in which no walker is.
const IDLE: u64 = 0;

/// The walkers of one set of tables, in slots that the caller lends (one a thread, say).
///
/// ```
/// use slat::edit::Walkers;
/// use core::sync::atomic::AtomicU64;
///
/// let slots = [const { AtomicU64::new(0) }; 2];
/// let walkers = Walkers::new(&slots);
/// let early = walkers.enter().unwrap();
/// let since = walkers.mark();
/// assert!(!walkers.have_left(since), "it may still look at what was detached before the mark");
/// let late = walkers.enter().unwrap();
/// drop(early);
/// assert!(walkers.have_left(since), "who came after the mark cannot");
/// # drop(late);
/// ```
#[derive(Debug)]
pub struct Walkers<'w> {
    epoch: AtomicU64,
    slots: &'w [AtomicU64],
}

/// A point in time, for [`Walkers::have_left`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark(NonZeroU64);

impl<'w> Walkers<'w> {
    constructor! {
        /// No walkers yet; `slots`, all 0, bounds how many there can be at a time.
        pub fn new(slots: &'w [AtomicU64]) -> Self {
            Walkers { epoch: AtomicU64::new(1), slots }
        }
    }

    /// Announces a walker until the guard is dropped. `None` where every slot is taken.
    pub fn enter(&self) -> Option<Guard<'_>> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let slot = self.slots.iter().find(|slot| {
            slot.load(Ordering::Relaxed) == IDLE
                && slot.compare_exchange(IDLE, epoch, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })?;
        // The announcement comes before every read of the walk, in the one order of SeqCst: either
        // `have_left` sees it, or the walk sees what was detached before the mark as detached.
        fence(Ordering::SeqCst);
        Some(Guard { slot })
    }

    /// Ends an epoch: walkers that enter from now on cannot reach what is detached already.
    pub fn mark(&self) -> Mark {
        fence(Ordering::SeqCst);
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        // The first epoch is 1.
        Mark(NonZeroU64::new(epoch).unwrap_or(NonZeroU64::MIN))
    }

    /// Whether every walker that was under way at the mark has left.
    pub fn have_left(&self, since: Mark) -> bool {
        fence(Ordering::SeqCst);
        self.slots.iter().all(|slot| {
            let epoch = slot.load(Ordering::SeqCst);
            epoch == IDLE || epoch >= since.0.get()
        })
    }
}

/// One walker's announcement; dropping it withdraws it.
#[derive(Debug)]
#[must_use = "the walker has left once this is dropped"]
pub struct Guard<'w> {
    slot: &'w AtomicU64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.slot.store(IDLE, Ordering::Release);
    }
}
