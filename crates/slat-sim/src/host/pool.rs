//! The hypervisor's own memory, in which partitions' second-stage tables lie.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use slat::edit::{Cells, Frame, FrameSource, Word};

use super::spa::PAGE;

/// A stretch of system physical memory that is handed out as frames for tables.
#[derive(Debug)]
pub struct Pool {
    base: u64,
    cells: Vec<AtomicU64>,
    /// Bytes that were handed out from the start.
    next: Cell<u64>,
    /// Frames of one page that came back.
    free: RefCell<Vec<u64>>,
}

impl Pool {
    pub(super) fn new(base: u64, bytes: u64) -> Pool {
        let cells = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        Pool { base, cells, next: Cell::new(0), free: RefCell::default() }
    }

    /// The memory, as the editor takes it.
    pub(super) fn lend(&self) -> Cells<'_, u64> {
        Cells::new(self.base, &self.cells)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.cells.len() as u64 * 8
    }

    /// Bytes of it that are tables now.
    pub fn used(&self) -> u64 {
        self.next.get() - self.free.borrow().len() as u64 * PAGE
    }

    pub(super) fn contains(&self, spa: u64) -> bool {
        spa.checked_sub(self.base).is_some_and(|offset| offset < self.bytes())
    }

    fn cell(&self, spa: u64) -> &AtomicU64 {
        &self.cells[((spa - self.base) / 8) as usize]
    }

    pub(super) fn load(&self, spa: u64) -> u64 {
        u64::load(self.cell(spa), Ordering::Acquire)
    }

    pub(super) fn compare_exchange(&self, spa: u64, current: u64, new: u64) -> bool {
        u64::compare_exchange(self.cell(spa), current, new).is_ok()
    }
}

impl FrameSource for Pool {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let bytes = bytes.max(PAGE);
        if bytes == PAGE
            && let Some(address) = self.free.borrow_mut().pop()
        {
            return Some(Frame::new(address, bytes));
        }
        let skipped = self.next.get();
        let start = (self.base + skipped).checked_next_multiple_of(bytes)? - self.base;
        let end = start.checked_add(bytes).filter(|end| *end <= self.bytes())?;
        self.next.set(end);
        let gap = (skipped..start).step_by(PAGE as usize);
        self.free.borrow_mut().extend(gap.map(|offset| self.base + offset));
        Some(Frame::new(self.base + start, bytes))
    }

    fn put(&self, frame: Frame) {
        let pages = (0..frame.bytes()).step_by(PAGE as usize);
        self.free.borrow_mut().extend(pages.map(|offset| frame.address() + offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_aligned_and_come_back() {
        let pool = Pool::new(0x7000, 16 * PAGE);
        let one = pool.take(PAGE).unwrap();
        let two = pool.take(2 * PAGE).unwrap();
        assert_eq!(two.address() % (2 * PAGE), 0);
        assert_eq!(pool.used(), 3 * PAGE);
        pool.put(two);
        pool.put(one);
        assert_eq!(pool.used(), 0);
        let all: Vec<Frame> = std::iter::from_fn(|| pool.take(PAGE)).collect();
        let mut addresses: Vec<u64> = all.iter().map(Frame::address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 16, "every page once");
    }
}
