//! EPT tables in plain memory, for bugs that are planted store by store.

use slat::Spa;
use slat::format::ept::{self, Ept};
use slat::invalidate::{Context, intel};
use slat_mmu::checker::{Checker, Finding};

/// A root at 0, one table of each level below, that of pages at 0x3000, and two frames that are free.
pub(crate) struct Plain {
    bytes: Vec<u8>,
    pub(crate) checker: Checker<Ept>,
}

pub(crate) const PLAIN: Context = Context::Ept { eptp: 0x1e };
pub(crate) const FLUSH: intel::Instruction =
    intel::Instruction::Invept { kind: 1, descriptor: [0x1e, 0] };

impl Plain {
    pub(crate) fn new() -> Plain {
        let features = ept::Features { accessed_dirty: true, ..Default::default() };
        let mut plain =
            Plain { bytes: vec![0; 6 * 4096], checker: Checker::new(Ept::four(features)) };
        plain.checker.run(PLAIN, 0);
        for (at, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007)] {
            plain.store(at, entry);
        }
        plain
    }

    pub(crate) fn store(&mut self, at: u64, entry: u64) {
        self.bytes[at as usize..][..8].copy_from_slice(&entry.to_le_bytes());
    }

    pub(crate) fn load(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes[at as usize..][..8].try_into().unwrap())
    }

    pub(crate) fn speculate(&mut self) {
        let mut memory = slat::SliceMemory::new(Spa::new(0), &mut self.bytes);
        self.checker.speculate(&mut memory);
    }

    pub(crate) fn complete(&mut self) -> Vec<Finding> {
        let mut memory = slat::SliceMemory::new(Spa::new(0), &mut self.bytes);
        self.checker.complete(&mut memory, PLAIN, 0..=u64::MAX)
    }
}
