//! Putting a combined leaf into its table, and taking what is there out.

use super::Combined;
use super::compose::{Combine, Composed};
use super::reverse::{Key, What};
use crate::address::{L2Gpa, Spa};
use crate::edit::{Cursor, Error, FrameSource, Mode, Step, TableMemory};

/// What became of a range that was to be emptied.
pub(super) enum Zapped<'g> {
    /// It is empty.
    Done,
    /// Not without an invalidation first.
    Invalidate(Step<'g>),
}

impl<F: Combine> Combined<'_, F> {
    /// Puts the leaf where it belongs. What was there is first removed: a leaf that hardware may use
    /// is never overwritten by another translation (CVE-2026-23401, CVE-2026-23402).
    pub(super) fn install<'g, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        composed: &Composed,
    ) -> Result<Step<'g>, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let tables = cursor.tables();
        let format = tables.format();
        let Composed { start, between, base, level, entry, .. } = *composed;
        let at = L2Gpa::new(start);
        let bytes = 1u64 << format.shift(level);
        // Before the leaf is there: a change of the host's half finds it from the first moment.
        self.reverse.note(Key { address: between, what: What::Leaf(level) }, start);
        if let Some(there) = tables.translate(at)
            && there.level == level
            && there.output == Spa::new(base)
        {
            // A leaf to the same place may gain or lose permissions as it stands.
            let same = (there.entry ^ entry) & !format.history(entry) == 0;
            if same || cursor.rewrite(at, level, there.entry, entry)? {
                return Ok(Step::Done);
            }
        }
        if let Zapped::Invalidate(step) = self.zap(cursor, start, start + (bytes - 1))? {
            return Ok(step);
        }
        let leaves = composed.leaves.up_to(level);
        let mut map = cursor.map(at, Spa::new(base), bytes, &leaves)?;
        cursor.step(&mut map, u32::MAX)
    }

    /// Removes every leaf that translates any of `first..=last`, the whole of it.
    pub(super) fn zap<'g, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        first: u64,
        last: u64,
    ) -> Result<Zapped<'g>, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let tables = cursor.tables();
        let (mut start, mut end) = (first, last + 1);
        for edge in [first, last] {
            if let Some(leaf) = tables.translate(L2Gpa::new(edge)) {
                start = start.min(leaf.start.raw());
                end = end.max(leaf.start.raw() + leaf.bytes);
            }
        }
        let page = (1u64 << tables.format().shift(0)) - 1;
        (start, end) = (start & !page, (end + page) & !page);
        let bytes = end - start;
        if tables.mappings(L2Gpa::new(start), bytes)?.next().is_none() {
            return Ok(Zapped::Done);
        }
        let mut unmap = cursor.unmap(L2Gpa::new(start), bytes, ())?;
        match cursor.step(&mut unmap, u32::MAX)? {
            Step::Done => Ok(Zapped::Done),
            step => Ok(Zapped::Invalidate(step)),
        }
    }
}
