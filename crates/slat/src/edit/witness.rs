//! Who sees the leaves that an operation changes.

/// Sees each leaf that an operation removes, ages or cleans, with the bits that it had at that
/// moment: the accessed and dirty state of a live entry exists nowhere else afterwards.
///
/// `()` sees nothing and costs nothing; a closure is made one by [`Watch`].
pub trait Witness {
    /// Whether it looks at all.
    const WATCHES: bool;

    /// A leaf of `level` at input address `start`, and the entry as it was.
    fn leaf(&mut self, start: u64, level: u8, entry: u64);
}

impl Witness for () {
    const WATCHES: bool = false;

    #[inline(always)]
    fn leaf(&mut self, _: u64, _: u8, _: u64) {}
}

impl<W: Witness + ?Sized> Witness for &mut W {
    const WATCHES: bool = W::WATCHES;

    #[inline(always)]
    fn leaf(&mut self, start: u64, level: u8, entry: u64) {
        (**self).leaf(start, level, entry);
    }
}

/// A closure as a witness.
#[derive(Clone, Copy, Debug)]
pub struct Watch<C>(pub C);

impl<C: FnMut(u64, u8, u64)> Witness for Watch<C> {
    const WATCHES: bool = true;

    #[inline(always)]
    fn leaf(&mut self, start: u64, level: u8, entry: u64) {
        (self.0)(start, level, entry);
    }
}
