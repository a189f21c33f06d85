//! Groups: contiguous (Arm) and NAPOT (RISC-V) leaves, several entries that say one thing.
//!
//! A TLB may hold a group as one translation and hardware sets accessed and dirty bits in whichever
//! entry it happened to read. So a group counts as one block: its state is the OR over its entries,
//! what changes it changes every entry, and it is unfolded as a whole before a part of it may differ
//! (Arm ARM D8.7 and D8.17.1; privileged architecture, "Svnapot").

use core::sync::atomic::Ordering;

use super::Error;
use super::cursor::{Cell, Cursor};
use super::encode::{Effect, Encode};
use super::frames::FrameSource;
use super::memory::TableMemory;
use super::pending::Pending;
use super::split::Divided;
use super::word::{Mode, Word};
use crate::address::Address;
use crate::format::Decoded;

/// The leaf that says by itself what the first entry of a whole group says, with the accessed and
/// dirty state of all of them. `cells` are the group's. `None` where they do not say one thing.
pub(super) fn survey<F: Encode>(
    format: &F,
    cells: &[Cell<F>],
    shift: u32,
    level: u8,
) -> Option<u64> {
    let entry = |index: usize| {
        let entry = F::Word::load(&cells[index], Ordering::Acquire);
        let whole = format.group(entry, level) == Some(shift);
        whole.then(|| format.ungrouped(entry, index as u64, level))
    };
    let first = entry(0)?;
    let Decoded::Leaf { base, .. } = format.decode(first, level) else { return None };
    let mut sum = first;
    for index in 1..cells.len() {
        let leaf = entry(index)?;
        let expected = member(format, first, base, index as u64, level);
        if (leaf ^ expected) & !format.history(first) != 0 {
            return None;
        }
        sum = format.inherit(sum, leaf);
    }
    Some(sum)
}

/// The leaf of the `index`-th page after the one at `base`, of which `first` is the leaf.
#[inline(always)]
pub(super) fn member<F: Encode>(format: &F, first: u64, base: u64, index: u64, level: u8) -> u64 {
    let page = 1u64 << format.shift(level);
    first & !format.place(base, level) | format.place(base + index * page, level)
}

/// Whether the entry of a group has a leaf by itself that maps the same: of a supersection above
/// 4 GiB there is none (Arm ARM G5.4.1).
fn is_divisible<F: Encode>(format: &F, entry: u64, index: usize, shift: u32, level: u8) -> bool {
    let group = |entry| match format.decode(entry, level) {
        Decoded::Leaf { base, .. } => Some(base >> shift),
        _ => None,
    };
    group(entry) == group(format.ungrouped(entry, index as u64, level))
}

/// Entries of a group of this range and level.
#[inline(always)]
pub(super) fn count<F: Encode>(format: &F, shift: u32, level: u8) -> usize {
    1 << (shift - format.shift(level))
}

/// The group around the entry at `index` of a table, where it is whole: where its first entry lies,
/// how many there are, and what they say ([`survey`]).
pub(super) fn around<F: Encode>(
    format: &F,
    table: &[Cell<F>],
    index: usize,
    shift: u32,
    level: u8,
) -> Option<(usize, usize, u64)> {
    let count = count(format, shift, level);
    let first = index & !(count - 1);
    let leaf = survey(format, table.get(first..first + count)?, shift, level)?;
    Some((first, count, leaf))
}

impl<'t, 'g, F, I, O, M, S, X> Cursor<'t, 'g, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    /// What the leaf `entry` of the located table says, with the state of its whole group.
    ///
    /// # Errors
    /// [`Error::Grouped`] where the group does not say one thing.
    #[inline]
    pub(super) fn with_group(&self, at: u64, level: u8, entry: u64) -> Result<u64, Error> {
        let format = &self.tables.format;
        let Some(shift) = format.group(entry, level) else { return Ok(entry) };
        let index = self.index(at, level);
        match around(format, self.located(level), index, shift, level) {
            Some((first, _, leaf)) if is_divisible(format, entry, index - first, shift, level) => {
                Ok(format.inherit(format.ungrouped(entry, (index - first) as u64, level), leaf))
            }
            _ => Err(Error::Grouped { at: self.address(at), entry }),
        }
    }

    /// Makes the group around `at`, whose entry in the located table is `entry`, into leaves by
    /// themselves that say the same; each has the accessed and dirty state of the whole.
    ///
    /// # Errors
    /// [`Error::Grouped`] where the group does not say one thing, [`Error::NoSlot`].
    #[inline(never)]
    pub(super) fn unfold(&mut self, at: u64, level: u8, entry: u64) -> Result<Divided, Error> {
        let format = &self.tables.format;
        let torn = Error::Grouped { at: self.address(at), entry };
        let shift = format.group(entry, level).ok_or(torn)?;
        let (index, table) = (self.index(at, level), self.located(level));
        let (first, count, mut leaf) = around(format, table, index, shift, level).ok_or(torn)?;
        if !is_divisible(format, entry, index - first, shift, level) {
            return Err(torn);
        }
        let alone = format.ungrouped(entry, (index - first) as u64, level);
        if F::BREAKS && format.breaks(entry, alone, level) {
            if !self.pending_room()? {
                return Ok(Divided::Invalidate);
            }
            self.break_group(at, level, shift, false, |leaf| leaf);
            return Ok(Divided::Broken);
        }
        let Decoded::Leaf { base, .. } = format.decode(leaf, level) else { return Err(torn) };
        // Through a translation of the whole group that is dirty, hardware writes to every page of
        // it without saying so again; which entry it said it in may not be known yet.
        if X::LIVE && format.hardware_dirty() && format.permissions_of(leaf, level).write {
            leaf = format.soil().apply(leaf);
        }
        for (index, cell) in table[first..first + count].iter().enumerate() {
            let alone = member(format, leaf, base, index as u64, level);
            let mut current = F::Word::load(cell, Ordering::Relaxed);
            while let Err(now) =
                X::replace::<F::Word>(cell, current, format.inherit(alone, current))
            {
                current = now;
            }
        }
        let start = at & !((1u64 << shift) - 1);
        self.publish(start, level, count);
        self.note(start, start + (1u64 << shift), 1 << level, Effect::Stale);
        Ok(Divided::Done)
    }

    /// The break half of break-before-make for the whole group of `shift` around `at`, which the
    /// caller has surveyed, as it has checked that there is room. `make` computes, from what the
    /// group said at the last, its first leaf after the invalidation; `grouped` says whether it is a
    /// group again. Returns what it said at the last.
    pub(super) fn break_group(
        &mut self,
        at: u64,
        level: u8,
        shift: u32,
        grouped: bool,
        make: impl FnOnce(u64) -> u64,
    ) -> u64 {
        let start = at & !((1u64 << shift) - 1);
        let count = count(&self.tables.format, shift, level);
        let was = self.freeze(start, level, count);
        let entry = make(was);
        self.gather().pend(Pending {
            at: start,
            level,
            entry,
            count: count as u32,
            grouped,
            links: false,
            lost: false,
        });
        self.note(start, start + (1u64 << shift), 1 << level, Effect::Stale);
        was
    }
}
