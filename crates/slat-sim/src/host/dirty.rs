//! The dirty log: which pages of a partition were written since it was last read.
//!
//! Three ways, as the processor and the hypervisor have it: dirty flags of the second stage, cleared
//! and read; write protection of the second stage; write protection of shadow entries. In each, a
//! large page is split first, so that what is logged is small.

use slat::edit::Error;

use super::partition::{Partition, Translation};
use super::spa::{PAGE, SystemMemory};

/// A bit for each page, by guest-physical page number.
#[derive(Clone, Debug, Default)]
pub(super) struct DirtyBits {
    words: Vec<u64>,
}

impl DirtyBits {
    fn new(end: u64) -> DirtyBits {
        DirtyBits { words: vec![0; (end / PAGE).div_ceil(64) as usize] }
    }

    pub(super) fn mark(&mut self, gpa: u64) {
        let page = gpa / PAGE;
        if let Some(word) = self.words.get_mut((page / 64) as usize) {
            *word |= 1 << (page % 64);
        }
    }

    /// Whether the page is marked.
    pub(super) fn has(&self, gpa: u64) -> bool {
        let page = gpa / PAGE;
        self.words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// The marked pages' addresses, which are unmarked.
    fn take(&mut self) -> Vec<u64> {
        let mut pages = Vec::new();
        for (index, word) in self.words.iter_mut().enumerate() {
            let mut bits = std::mem::take(word);
            while bits != 0 {
                pages.push((index as u64 * 64 + u64::from(bits.trailing_zeros())) * PAGE);
                bits &= bits - 1;
            }
        }
        pages
    }
}

/// How writes are logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoggedBy {
    /// The second stage's dirty flags.
    DirtyFlags,
    /// Faults on second-stage pages that are not writable.
    WriteProtection,
    /// Faults on shadow entries that are not writable.
    Shadow,
}

impl LoggedBy {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            LoggedBy::DirtyFlags => "dirty-flags",
            LoggedBy::WriteProtection => "write-protection",
            LoggedBy::Shadow => "shadow-write-protection",
        }
    }
}

impl Partition {
    /// How this partition's writes are logged.
    pub fn logged_by(&self) -> LoggedBy {
        match &self.translation {
            Translation::SecondStage(tables) if tables.has_dirty_flags() => LoggedBy::DirtyFlags,
            Translation::SecondStage(_) => LoggedBy::WriteProtection,
            Translation::Shadow(_) => LoggedBy::Shadow,
        }
    }

    /// Backed parts: start and size.
    fn parts(&self) -> Vec<(u64, u64)> {
        self.backing.values().map(|backing| (backing.gpa, backing.bytes)).collect()
    }

    /// Begins to log: from now on, every page that is written is told by [`Partition::dirty`].
    ///
    /// # Errors
    /// Where the hypervisor has no memory for the tables of small pages; nothing is logged then.
    pub(super) fn start_log(&mut self, memory: &SystemMemory) -> Result<(), Error> {
        let end = self.ranges.last().map_or(0, |(start, bytes)| start + bytes);
        self.log = Some(DirtyBits::new(end));
        let begun = self.split_for_log(memory).and_then(|()| self.dirty(memory).map(|_| ()));
        if begun.is_err() {
            // What was split until then becomes large again.
            self.stop_log(memory)?;
        }
        begun
    }

    fn split_for_log(&mut self, memory: &SystemMemory) -> Result<(), Error> {
        let parts = self.parts();
        match &mut self.translation {
            Translation::SecondStage(tables) => {
                for (gpa, bytes) in parts {
                    tables.split(memory.pool(), gpa, bytes, &mut self.flushes)?;
                }
            }
            // What was filled before is of large pages, and writable.
            Translation::Shadow(shadow) => shadow.zap(),
        }
        Ok(())
    }

    /// The pages that were written since this was last asked, or since logging began.
    ///
    /// # Errors
    /// Where the tables cannot be edited.
    pub(super) fn dirty(&mut self, memory: &SystemMemory) -> Result<Vec<u64>, Error> {
        let parts = self.parts();
        let Some(log) = &mut self.log else { return Ok(Vec::new()) };
        let pool = memory.pool();
        match &mut self.translation {
            Translation::SecondStage(tables) if tables.has_dirty_flags() => {
                for (gpa, bytes) in parts {
                    tables.clean(pool, gpa, bytes, &mut self.flushes, |at| log.mark(at))?;
                }
                Ok(log.take())
            }
            Translation::SecondStage(tables) => {
                for (gpa, bytes) in parts {
                    tables.let_write(pool, gpa, bytes, false, &mut self.flushes)?;
                }
                Ok(log.take())
            }
            Translation::Shadow(shadow) => {
                let pages = log.take();
                shadow.write_protect();
                Ok(pages)
            }
        }
    }

    /// These pages are still to be told.
    pub(super) fn mark(&mut self, pages: &[u64]) {
        if let Some(log) = &mut self.log {
            for page in pages {
                log.mark(*page);
            }
        }
    }

    /// Ends the log: pages are writable, and as large as they were.
    ///
    /// # Errors
    /// Where the tables cannot be edited.
    pub(super) fn stop_log(&mut self, memory: &SystemMemory) -> Result<(), Error> {
        if self.log.take().is_none() {
            return Ok(());
        }
        let pool = memory.pool();
        match &mut self.translation {
            Translation::SecondStage(tables) => {
                for backing in self.backing.values() {
                    // A page that is shared is not this partition's alone to write to.
                    if !tables.has_dirty_flags() && !self.shared.contains_key(&backing.gpa) {
                        tables.let_write(
                            pool,
                            backing.gpa,
                            backing.bytes,
                            true,
                            &mut self.flushes,
                        )?;
                    }
                    if backing.level > 0 {
                        tables.collapse(pool, backing, &mut self.flushes)?;
                    }
                }
            }
            Translation::Shadow(shadow) => shadow.zap(),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use slat::edit::FrameSource;

    use super::super::tests::{host, partition};
    use super::*;

    #[test]
    fn a_log_that_has_no_room_to_begin_leaves_pages_large() {
        for processor in ["nehalem", "haswell", "barcelona"] {
            let mut host = host(processor, "kvm-3.0", &[64 << 20]);
            host.power_on(&partition("a", 16 << 20)).unwrap();
            let pool = host.memory.pool();
            let mut taken: Vec<_> = std::iter::from_fn(|| pool.take(PAGE)).collect();
            // Room for three of the eight tables.
            for frame in taken.drain(..3) {
                pool.put(frame);
            }
            let used = pool.used();
            let (vm, memory) = host.both("a").unwrap();
            vm.start_log(memory).unwrap_err();
            assert_eq!(memory.pool().used(), used, "{processor}");
            assert!(vm.dirty(memory).unwrap().is_empty(), "nothing is logged");
            for frame in taken {
                host.memory.pool().put(frame);
            }
            host.run("a", 500).unwrap();
            assert_eq!(host.partition("a").unwrap().exits.total(), 0, "and all is writable");
        }
    }
}
