//! The pages of a gather, where they are few enough to be named one by one.

use crate::edit::{Gather, Stale};

/// One address in each page of a gather, by the smallest page that changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pages<'a> {
    ranges: &'a [Stale],
    shift: u32,
}

impl<'a> Pages<'a> {
    /// log2 of the smallest page that changed; `page` is log2 of the format's smallest, `stride` its
    /// index bits a level. An invalidation at any address of a larger page drops that.
    pub(super) fn shift(gather: &Gather<'_>, page: u32, stride: u32) -> u32 {
        page + stride * gather.levels().trailing_zeros().min(2)
    }

    /// The pages, unless they are more than `most`.
    pub(super) fn few(
        gather: &'a Gather<'_>,
        page: u32,
        stride: u32,
        most: u64,
    ) -> Option<Pages<'a>> {
        let pages = Pages { ranges: gather.ranges(), shift: Pages::shift(gather, page, stride) };
        let mut count = 0u64;
        for range in pages.ranges {
            count =
                count.checked_add((range.last >> pages.shift) - (range.start >> pages.shift))?;
            count = count.checked_add(1)?;
        }
        (count <= most).then_some(pages)
    }

    /// Calls `act` with the first address of each.
    pub(super) fn for_each(self, mut act: impl FnMut(u64)) {
        for range in self.ranges {
            for page in range.start >> self.shift..=range.last >> self.shift {
                act(page << self.shift);
            }
        }
    }
}
