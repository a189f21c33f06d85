//! Dirty logs: which pages were written since they were last copied.

use core::sync::atomic::{AtomicU64, Ordering};

use super::encode::Encode;
use super::witness::Witness;

/// Entries of a page-modification log (Intel SDM 3C 30.3.6).
const LOG_ENTRIES: u16 = 512;

/// A bit for each smallest page of a range, in words that the caller lends. Marked by any thread,
/// drained by any thread; a page that is marked while it is drained stays marked.
///
/// As a [`Witness`] of [`Cursor::clean`](super::Cursor::clean) it takes up every page that was
/// dirty; a fault on a write-protected page is entered by [`mark`](DirtyLog::mark).
///
/// ```
/// use slat::edit::DirtyLog;
/// use slat::format::ept::{Ept, Features};
/// use core::sync::atomic::AtomicU64;
///
/// let words = [const { AtomicU64::new(0) }; 2];
/// let log = DirtyLog::new(&Ept::four(Features::default()), 0x10_0000, &words);
/// log.mark(0x10_3000, 4096);
/// log.mark(0x10_3fff, 2); // reaches into the next page
/// let mut pages = vec![];
/// log.drain(|address| pages.push(address));
/// assert_eq!(pages, [0x10_3000, 0x10_4000]);
/// log.drain(|_| unreachable!("drained already"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DirtyLog<'a> {
    start: u64,
    /// log2 of the smallest page, and index bits of a level above it.
    page: u32,
    stride: u32,
    words: &'a [AtomicU64],
}

impl<'a> DirtyLog<'a> {
    /// A log of 64 smallest pages of `format` a word, the first at `start`.
    pub fn new<F: Encode>(format: &F, start: u64, words: &'a [AtomicU64]) -> Self {
        DirtyLog { start, page: format.shift(0), stride: format.index_bits(0), words }
    }

    /// Marks every page that has one of `bytes` bytes from `address`; what lies outside is not
    /// logged.
    pub fn mark(&self, address: u64, bytes: u64) {
        let Some(last) = bytes.checked_sub(1).map(|less| address.saturating_add(less)) else {
            return;
        };
        if last < self.start {
            return;
        }
        let pages = self.words.len() as u64 * 64;
        let first = address.saturating_sub(self.start) >> self.page;
        let last = (last - self.start) >> self.page;
        for page in first..=last.min(pages.saturating_sub(1)) {
            if let Some(word) = self.words.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Release);
            }
        }
    }

    /// Calls `act` with the address of every marked page, and unmarks it first.
    pub fn drain(&self, mut act: impl FnMut(u64)) {
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let page = index as u64 * 64 + u64::from(bits.trailing_zeros());
                act(self.start + (page << self.page));
                bits &= bits - 1;
            }
        }
    }

    /// Takes up a page-modification log and returns the index that it is to have again. `index` is
    /// the guest-state field after the VM exit: the processor writes at it and then counts down,
    /// so that it names the next free entry, or 0xffff when the log is full (SDM 3C 30.3.6).
    pub fn take_pml(&self, log: &[AtomicU64; LOG_ENTRIES as usize], index: u16) -> u16 {
        let first = if index >= LOG_ENTRIES { 0 } else { index + 1 };
        for entry in &log[usize::from(first)..] {
            self.mark(entry.load(Ordering::Acquire) & !0xfff, 1 << 12);
        }
        LOG_ENTRIES - 1
    }
}

impl Witness for DirtyLog<'_> {
    const WATCHES: bool = true;

    fn leaf(&mut self, start: u64, level: u8, _: u64) {
        self.mark(start, 1 << (self.page + self.stride * u32::from(level)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ept::{Ept, Features};
    use std::vec;
    use std::vec::Vec;

    fn drained(log: &DirtyLog<'_>) -> Vec<u64> {
        let mut pages = vec![];
        log.drain(|address| pages.push(address));
        pages
    }

    #[test]
    fn the_processors_log_is_taken_from_the_entry_after_the_index() {
        let words = [const { AtomicU64::new(0) }; 16];
        let log = DirtyLog::new(&Ept::four(Features::default()), 0, &words);
        let pml: [AtomicU64; 512] = core::array::from_fn(|n| AtomicU64::new((n as u64) << 12));
        assert_eq!(log.take_pml(&pml, 511), 511, "nothing was logged");
        assert!(drained(&log).is_empty());
        assert_eq!(log.take_pml(&pml, 509), 511);
        assert_eq!(drained(&log), [510 << 12, 511 << 12]);
        log.take_pml(&pml, 0xffff);
        assert_eq!(drained(&log).len(), 512, "a full log has wrapped below 0");
    }

    #[test]
    fn what_lies_outside_is_not_logged() {
        let words = [const { AtomicU64::new(0) }; 1];
        let log = DirtyLog::new(&Ept::four(Features::default()), 0x10_0000, &words);
        log.mark(0, 0x1000);
        log.mark(0x14_0000, 0x1000);
        log.mark(u64::MAX - 10, 100);
        log.mark(0x10_0000, 0);
        assert!(drained(&log).is_empty());
        log.mark(0xf_ffff, 2);
        log.mark(0x13_f000, u64::MAX);
        assert_eq!(drained(&log), [0x10_0000, 0x13_f000]);
    }
}
