//! Table entries as atomics: hardware reads them, and sets bits in them, while software edits.

use core::sync::atomic::Ordering;

use super::sync::{AtomicU32, AtomicU64};
use crate::memory::EntrySize;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// The integer that one table entry is: `u64`, or `u32` for the short formats. Entries lie in
/// memory in little-endian order, whatever the order of the machine that edits them.
pub trait Word: sealed::Sealed + Copy + core::fmt::Debug + 'static {
    /// The cell in memory.
    type Atomic: Sync + core::fmt::Debug + 'static;

    /// Its size.
    const SIZE: EntrySize;

    /// The entry now.
    fn load(cell: &Self::Atomic, order: Ordering) -> u64;

    /// Replaces the entry whatever it is.
    fn store(cell: &Self::Atomic, entry: u64, order: Ordering);

    /// Replaces the entry and returns what it was.
    fn swap(cell: &Self::Atomic, entry: u64) -> u64;

    /// Replaces the entry if it is `current`.
    ///
    /// # Errors
    /// What it is instead.
    fn compare_exchange(cell: &Self::Atomic, current: u64, entry: u64) -> Result<(), u64>;

    /// Clears every bit that is not in `mask`, and returns what the entry was.
    fn fetch_and(cell: &Self::Atomic, mask: u64) -> u64;

    /// Sets every bit of `bits`, and returns what the entry was.
    fn fetch_or(cell: &Self::Atomic, bits: u64) -> u64;
}

macro_rules! word {
    ($word:ty, $atomic:ty, $size:expr, $meddle:expr) => {
        impl Word for $word {
            type Atomic = $atomic;

            const SIZE: EntrySize = $size;

            #[inline(always)]
            fn load(cell: &$atomic, order: Ordering) -> u64 {
                u64::from(<$word>::from_le(cell.load(order)))
            }

            #[inline(always)]
            fn store(cell: &$atomic, entry: u64, order: Ordering) {
                cell.store((entry as $word).to_le(), order);
            }

            #[inline(always)]
            fn swap(cell: &$atomic, entry: u64) -> u64 {
                u64::from(<$word>::from_le(cell.swap((entry as $word).to_le(), Ordering::AcqRel)))
            }

            #[inline(always)]
            fn compare_exchange(cell: &$atomic, current: u64, entry: u64) -> Result<(), u64> {
                #[cfg(all(test, not(loom)))]
                ($meddle)(cell);
                cell.compare_exchange(
                    (current as $word).to_le(),
                    (entry as $word).to_le(),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                )
                .map(|_| ())
                .map_err(|found| u64::from(<$word>::from_le(found)))
            }

            #[inline(always)]
            fn fetch_and(cell: &$atomic, mask: u64) -> u64 {
                let was = cell.fetch_and((mask as $word).to_le(), Ordering::AcqRel);
                u64::from(<$word>::from_le(was))
            }

            #[inline(always)]
            fn fetch_or(cell: &$atomic, bits: u64) -> u64 {
                let was = cell.fetch_or((bits as $word).to_le(), Ordering::AcqRel);
                u64::from(<$word>::from_le(was))
            }
        }
    };
}

word!(u64, AtomicU64, EntrySize::Eight, super::failures::meddle);
word!(u32, AtomicU32, EntrySize::Four, |_: &AtomicU32| ());

mod mode {
    pub trait Sealed {}
    impl Sealed for super::Quiet {}
    impl Sealed for super::Live {}
    impl Sealed for super::Faulting {}
}

/// Who else may change an entry while it is edited: [`Quiet`] nobody, [`Live`] hardware,
/// [`Faulting`] hardware and threads that serve faults.
pub trait Mode: mode::Sealed + 'static {
    /// Whether anyone may: every change of an occupied entry is then one atomic read-modify-write.
    const LIVE: bool;

    /// Whether other threads may map: tables are then frozen before they are unlinked.
    const SHARED: bool;

    /// Puts `entry` where `current` is.
    ///
    /// # Errors
    /// What is there instead.
    #[inline(always)]
    fn replace<W: Word>(cell: &W::Atomic, current: u64, entry: u64) -> Result<(), u64> {
        if Self::LIVE {
            return W::compare_exchange(cell, current, entry);
        }
        let found = W::load(cell, Ordering::Relaxed);
        if found != current {
            return Err(found);
        }
        W::store(cell, entry, Ordering::Release);
        Ok(())
    }

    /// Puts `entry` where nothing is; whether nothing was.
    #[inline(always)]
    fn install<W: Word>(cell: &W::Atomic, entry: u64) -> bool {
        Self::replace::<W>(cell, 0, entry).is_ok()
    }

    /// Puts `entry` where `seen` was seen, whatever is there now, and returns that: `seen`, where nobody
    /// else changes it.
    #[inline(always)]
    fn exchange<W: Word>(cell: &W::Atomic, seen: u64, entry: u64) -> u64 {
        if Self::LIVE {
            return W::swap(cell, entry);
        }
        W::store(cell, entry, Ordering::Release);
        seen
    }

    /// Puts `entry` there whatever it was, and returns that.
    #[inline(always)]
    fn swap<W: Word>(cell: &W::Atomic, entry: u64) -> u64 {
        if Self::LIVE {
            return W::swap(cell, entry);
        }
        let was = W::load(cell, Ordering::Relaxed);
        W::store(cell, entry, Ordering::Release);
        was
    }
}

/// Nobody but this cursor changes the tables: no other thread, and hardware sets no accessed or
/// dirty bits in them (they are off, or no CPU has the tables loaded). Plain stores are then exact.
#[derive(Clone, Copy, Debug)]
pub enum Quiet {}

impl Mode for Quiet {
    const LIVE: bool = false;
    const SHARED: bool = false;
}

/// Hardware may set accessed and dirty bits at any time.
#[derive(Clone, Copy, Debug)]
pub enum Live {}

impl Mode for Live {
    const LIVE: bool = true;
    const SHARED: bool = false;
}

/// Hardware may set accessed and dirty bits, and other threads may map at any time by
/// [`Walker::fault`](super::Walker::fault).
#[derive(Clone, Copy, Debug)]
pub enum Faulting {}

impl Mode for Faulting {
    const LIVE: bool = true;
    const SHARED: bool = true;
}
