//! Where frames for tables come from, and where they go back to.

use core::sync::atomic::Ordering;

use super::memory::{Cells, TableMemory};
use super::sync::{AtomicU64, constructor};
use super::word::Word;

/// One frame of table memory: a right to use it, neither copied nor cloned.
///
/// A [`FrameSource`] makes frames; a [`Reclaim`](super::Reclaim) gives them back, and it does so
/// only after hardware and software have let go of them. That they are not copied is what makes
/// "freed twice" a compile error:
///
/// ```compile_fail
/// # use slat::edit::{Frame, FrameSource};
/// fn twice(source: &impl FrameSource, frame: Frame) {
///     source.put(frame);
///     source.put(frame); // moved above
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a frame that is dropped is lost to its source"]
pub struct Frame {
    address: u64,
    bytes: u64,
    zeroed: bool,
}

impl Frame {
    /// The frame of `bytes` bytes at `address`, which the caller owns alone. Its content does not
    /// matter.
    pub const fn new(address: u64, bytes: u64) -> Frame {
        Frame { address, bytes, zeroed: false }
    }

    /// The same, where every byte is zero already.
    pub const fn zeroed(address: u64, bytes: u64) -> Frame {
        Frame { address, bytes, zeroed: true }
    }

    /// Address in the space that tables are addressed in.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Size.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether every byte is known to be zero.
    pub const fn is_zeroed(&self) -> bool {
        self.zeroed
    }
}

/// Gives frames for tables, or says that it has none.
///
/// It takes `&self`, since concurrent faults share one. What was done with a frame before it is put
/// back must happen before what is done after it is taken again (a release and an acquire, as any
/// lock has): its old content is overwritten by plain stores.
pub trait FrameSource {
    /// A frame of `bytes` bytes, a power of two, aligned to its size; `None` where there is none.
    fn take(&self, bytes: u64) -> Option<Frame>;

    /// Takes a frame back that nothing uses any more.
    fn put(&self, frame: Frame);

    /// Counts one more entry that points at the table in the frame at `table`. `false` where this
    /// source keeps no counts: its tables cannot be shared by [`Views`](super::Views).
    #[inline(always)]
    fn share(&self, table: u64) -> bool {
        let _ = table;
        false
    }

    /// Whether more than one entry points at the table.
    #[inline(always)]
    fn is_shared(&self, table: u64) -> bool {
        let _ = table;
        false
    }

    /// Counts one entry less, and says whether it was the last: the table is then detached.
    #[inline(always)]
    fn release(&self, table: u64) -> bool {
        let _ = table;
        true
    }
}

impl<S: FrameSource + ?Sized> FrameSource for &S {
    #[inline]
    fn take(&self, bytes: u64) -> Option<Frame> {
        (**self).take(bytes)
    }

    #[inline]
    fn put(&self, frame: Frame) {
        (**self).put(frame);
    }

    #[inline]
    fn share(&self, table: u64) -> bool {
        (**self).share(table)
    }

    #[inline]
    fn is_shared(&self, table: u64) -> bool {
        (**self).is_shared(table)
    }

    #[inline]
    fn release(&self, table: u64) -> bool {
        (**self).release(table)
    }
}

/// The smallest frame that an [`Arena`] deals in, and log2 of it.
const UNIT: u64 = 1 << UNIT_SHIFT;
const UNIT_SHIFT: u32 = 12;
/// The list head: a unit's number plus one, below a count that changes with every exchange, so
/// that a head which was taken off and put back is not mistaken for one that stayed.
const NUMBER: u64 = (1 << 40) - 1;

/// A stretch of cells that hands itself out by frames: table memory and frame source in one,
/// without any other allocator.
///
/// ```
/// use slat::edit::{Arena, FrameSource};
/// use core::sync::atomic::AtomicU64;
///
/// let cells: Vec<AtomicU64> = (0..4 * 512).map(|_| AtomicU64::new(0)).collect();
/// let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
/// let root = arena.take(16 << 10).unwrap(); // 16 KiB, aligned to 16 KiB
/// assert_eq!(root.address() % (16 << 10), 0);
/// assert!(arena.take(4096).is_none());
/// arena.put(root);
/// assert!(arena.take(4096).is_some());
/// ```
#[derive(Debug)]
pub struct Arena<'a, W: Word> {
    cells: Cells<'a, W>,
    /// Bytes handed out from the start, in units.
    next: AtomicU64,
    /// Frames of one unit that came back, each holding the number of the next in its first cell.
    free: AtomicU64,
}

impl<'a, W: Word> Arena<'a, W> {
    constructor! {
        /// The arena over `cells`, of which the first lies at `base`, a multiple of 4096. `None`
        /// where it is not.
        pub fn new(base: u64, cells: &'a [W::Atomic]) -> Option<Self> {
            if !base.is_multiple_of(UNIT) {
                return None;
            }
            let cells = Cells::new(base, cells);
            Some(Arena { cells, next: AtomicU64::new(0), free: AtomicU64::new(0) })
        }
    }

    /// The cells.
    pub(super) const fn memory(&self) -> &Cells<'a, W> {
        &self.cells
    }

    /// Units that were never handed out.
    pub fn untouched(&self) -> u64 {
        (self.cells.bytes() >> UNIT_SHIFT).saturating_sub(self.next.load(Ordering::Relaxed))
    }

    /// The cell in which a free unit keeps the next one's number.
    fn link(&self, number: u64) -> Option<&W::Atomic> {
        let address = self.cells.base() + ((number - 1) << UNIT_SHIFT);
        self.cells.table(address, 1)?.first()
    }

    fn take_one(&self) -> Option<u64> {
        let mut head = self.free.load(Ordering::Acquire);
        while head & NUMBER != 0 {
            let next = W::load(self.link(head & NUMBER)?, Ordering::Relaxed);
            match self.exchange(head, next) {
                Ok(()) => return Some((head & NUMBER) - 1),
                Err(now) => head = now,
            }
        }
        None
    }

    /// Makes `number` the head of the list, if it still is `head`.
    fn exchange(&self, head: u64, number: u64) -> Result<(), u64> {
        let new = (head & !NUMBER).wrapping_add(NUMBER + 1) | number & NUMBER;
        self.free.compare_exchange(head, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }
}

impl<W: Word> FrameSource for Arena<'_, W> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let bytes = bytes.max(UNIT);
        if bytes == UNIT
            && let Some(unit) = self.take_one()
        {
            return Some(Frame::new(self.cells.base() + (unit << UNIT_SHIFT), bytes));
        }
        let units = bytes >> UNIT_SHIFT;
        let limit = self.cells.bytes() >> UNIT_SHIFT;
        let base = self.cells.base() >> UNIT_SHIFT;
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            let start = (base + next).checked_next_multiple_of(units)? - base;
            let end = start.checked_add(units).filter(|end| *end <= limit)?;
            match self.next.compare_exchange(next, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    // What alignment skipped is of use as single frames.
                    for unit in next..start {
                        self.put(Frame::new((base + unit) << UNIT_SHIFT, UNIT));
                    }
                    return Some(Frame::new((base + start) << UNIT_SHIFT, bytes));
                }
                Err(now) => next = now,
            }
        }
    }

    fn put(&self, frame: Frame) {
        let Some(offset) = frame.address().checked_sub(self.cells.base()) else { return };
        for unit in 0..frame.bytes().max(UNIT) >> UNIT_SHIFT {
            let number = (offset >> UNIT_SHIFT) + unit + 1;
            let Some(link) = self.link(number) else { return };
            let mut head = self.free.load(Ordering::Acquire);
            loop {
                W::store(link, head & NUMBER, Ordering::Relaxed);
                match self.exchange(head, number) {
                    Ok(()) => break,
                    Err(now) => head = now,
                }
            }
        }
    }
}

/// Only frames that were donated, each kept in a slot that the caller lends: tables without any
/// allocator, as where every table is accounted to whoever gave it.
///
/// ```
/// use slat::edit::{Donated, Frame, FrameSource};
/// use core::sync::atomic::AtomicU64;
///
/// let slots = [const { AtomicU64::new(0) }; 8];
/// let donated = Donated::new(4096, &slots);
/// assert!(donated.take(4096).is_none(), "nothing was given yet");
/// donated.put(Frame::new(0x9000, 4096));
/// assert_eq!(donated.take(4096).unwrap().address(), 0x9000);
/// ```
#[derive(Debug)]
pub struct Donated<'a> {
    bytes: u64,
    /// Address plus one, or 0.
    slots: &'a [AtomicU64],
}

impl<'a> Donated<'a> {
    /// No frames yet; all that come will be of `bytes` bytes. Each of `slots`, which hold 0, keeps
    /// one.
    pub const fn new(bytes: u64, slots: &'a [AtomicU64]) -> Self {
        Donated { bytes, slots }
    }

    /// How many frames are there now.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a frame in.
    ///
    /// # Errors
    /// The frame, where it is of another size or every slot is taken.
    pub fn donate(&self, frame: Frame) -> Result<(), Frame> {
        if frame.bytes() != self.bytes {
            return Err(frame);
        }
        for slot in self.slots {
            let (order, on_failure) = (Ordering::Release, Ordering::Relaxed);
            if slot.compare_exchange(0, frame.address() + 1, order, on_failure).is_ok() {
                return Ok(());
            }
        }
        Err(frame)
    }
}

impl FrameSource for Donated<'_> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        if bytes != self.bytes {
            return None;
        }
        self.slots.iter().find_map(|slot| match slot.swap(0, Ordering::Acquire) {
            0 => None,
            address => Some(Frame::new(address - 1, bytes)),
        })
    }

    /// A frame that finds no slot is lost; lend as many slots as frames were donated.
    fn put(&self, frame: Frame) {
        let _ = self.donate(frame);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn cells(units: usize) -> Vec<AtomicU64> {
        (0..units * 512).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn an_arena_hands_out_every_unit_once() {
        let cells = cells(37);
        // A base that is aligned to nothing but the unit.
        let arena = Arena::<u64>::new(0x7000, &cells).unwrap();
        let mut seen = BTreeSet::new();
        let mut take = |bytes| {
            let frame: Frame = arena.take(bytes)?;
            assert_eq!(frame.address() % bytes, 0);
            for unit in 0..bytes / UNIT {
                assert!(seen.insert(frame.address() + unit * UNIT), "handed out twice");
            }
            Some(frame)
        };
        let mut frames = Vec::new();
        frames.extend(take(16 << 10));
        frames.extend(take(8 << 10));
        while let Some(frame) = take(UNIT) {
            frames.push(frame);
        }
        assert_eq!(seen.len(), 37, "what alignment skipped is handed out as well");
        for frame in frames {
            arena.put(frame);
        }
        let again: BTreeSet<u64> =
            core::iter::from_fn(|| arena.take(UNIT)).map(|frame| frame.address()).collect();
        assert_eq!(again, seen);
    }

    #[test]
    fn threads_never_share_a_frame() {
        let cells = cells(64);
        let arena = Arena::<u64>::new(0, &cells).unwrap();
        let owners: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..4000 {
                        let frames: Vec<Frame> =
                            (0..1 + round % 3).filter_map(|_| arena.take(UNIT)).collect();
                        for frame in frames {
                            let owner = &owners[(frame.address() / UNIT) as usize];
                            assert_eq!(owner.swap(1, Ordering::AcqRel), 0, "two owners");
                            owner.store(0, Ordering::Release);
                            arena.put(frame);
                        }
                    }
                });
            }
        });
        assert_eq!(core::iter::from_fn(|| arena.take(UNIT)).count(), 64, "none was lost");
    }
}
