//! The memory that hardware walks, lent by the caller.

#![allow(unsafe_code, reason = "the one contract that the compiler cannot check is named here")]

use super::frames::Arena;
use super::word::Word;

/// Memory in which table entries lie, of `W` each, at addresses of the tables' output space.
///
/// This trait is where a caller lends memory that hardware walks and writes. It is the only
/// `unsafe` item of the crate.
///
/// # Safety
///
/// While the value lives, for every frame that a [`FrameSource`](super::FrameSource) used with it
/// hands out:
///
/// * [`table`](TableMemory::table) returns the same cells for the same address every time, and
///   different cells for frames that do not overlap;
/// * software reads and writes those cells through these atomics alone. Hardware may walk them and
///   set accessed and dirty bits;
/// * nothing else lives there: no data of this program, no memory that a guest can write.
pub unsafe trait TableMemory<W: Word> {
    /// The `entries` cells from `address` on, or `None` where no such memory was lent.
    fn table(&self, address: u64, entries: usize) -> Option<&[W::Atomic]>;

    /// Called after the entries in `bytes` bytes from `address` have been written and before they
    /// are relied upon: before a new table is linked, and after entries in linked tables changed.
    ///
    /// Nothing by default, which is right on x86. On Arm it is `DSB ISHST`, after a clean to the
    /// point of unification or coherency where table walks are not coherent (Arm ARM D8.2.6,
    /// `TCR_ELx.IRGN`); on RISC-V `FENCE W, W` suffices.
    #[inline(always)]
    fn publish(&self, address: u64, bytes: u64) {
        let _ = (address, bytes);
    }
}

// SAFETY: every duty is the inner implementation's.
unsafe impl<W: Word, M: TableMemory<W> + ?Sized> TableMemory<W> for &M {
    #[inline(always)]
    fn table(&self, address: u64, entries: usize) -> Option<&[W::Atomic]> {
        (**self).table(address, entries)
    }

    #[inline(always)]
    fn publish(&self, address: u64, bytes: u64) {
        (**self).publish(address, bytes);
    }
}

/// Cells that the caller owns, the first of them at a given address: what an
/// [`Arena`](super::Arena) hands out, and tables in tests.
#[derive(Debug)]
pub struct Cells<'a, W: Word> {
    base: u64,
    cells: &'a [W::Atomic],
}

impl<'a, W: Word> Cells<'a, W> {
    /// The memory whose first cell is at `base`.
    pub const fn new(base: u64, cells: &'a [W::Atomic]) -> Self {
        Cells { base, cells }
    }

    /// Address of the first cell.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u64 {
        self.cells.len() as u64 * W::SIZE.bytes()
    }
}

// SAFETY: the cells are borrowed for as long as the value lives, and the same address always
// names the same cell.
unsafe impl<W: Word> TableMemory<W> for Cells<'_, W> {
    #[inline(always)]
    fn table(&self, address: u64, entries: usize) -> Option<&[W::Atomic]> {
        let offset = address.checked_sub(self.base)?;
        let first = usize::try_from(offset / W::SIZE.bytes()).ok()?;
        self.cells.get(first..first.checked_add(entries)?)
    }
}

// SAFETY: as its cells; what is free is handed out to nobody else.
unsafe impl<W: Word> TableMemory<W> for Arena<'_, W> {
    #[inline(always)]
    fn table(&self, address: u64, entries: usize) -> Option<&[W::Atomic]> {
        self.memory().table(address, entries)
    }
}
