//! Frames whose tables are counted.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::edit::frames::{Frame, FrameSource};

/// A frame source that counts the entries which point at each table, in words that the caller lends:
/// one for every 4 KiB from `base` on.
#[derive(Debug)]
pub struct Counted<'a, S> {
    source: S,
    base: u64,
    words: &'a [AtomicU64],
}

impl<'a, S: FrameSource> Counted<'a, S> {
    /// Counts for the frames of `source`, of which the lowest is at `base`.
    pub const fn new(source: S, base: u64, words: &'a [AtomicU64]) -> Self {
        Counted { source, base, words }
    }

    /// How many entries point at the table (1 for a root); 0 where none does, or it is not counted.
    pub fn count(&self, table: u64) -> u64 {
        self.word(table).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn word(&self, table: u64) -> Option<&AtomicU64> {
        let number = table.checked_sub(self.base)? >> 12;
        self.words.get(usize::try_from(number).ok()?)
    }
}

impl<S: FrameSource> FrameSource for Counted<'_, S> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let frame = self.source.take(bytes)?;
        match self.word(frame.address()) {
            Some(word) => {
                word.store(1, Ordering::Release);
                Some(frame)
            }
            None => {
                self.source.put(frame);
                None
            }
        }
    }

    fn put(&self, frame: Frame) {
        if let Some(word) = self.word(frame.address()) {
            word.store(0, Ordering::Release);
        }
        self.source.put(frame);
    }

    fn share(&self, table: u64) -> bool {
        self.word(table).is_some_and(|word| word.fetch_add(1, Ordering::AcqRel) > 0)
    }

    fn is_shared(&self, table: u64) -> bool {
        self.count(table) > 1
    }

    fn release(&self, table: u64) -> bool {
        self.word(table).is_none_or(|word| word.fetch_sub(1, Ordering::AcqRel) <= 1)
    }
}
