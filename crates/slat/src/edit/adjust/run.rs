//! A run of entries of one table, changed in place.

use core::sync::atomic::Ordering;

use super::{Adjust, Which};
use crate::edit::cursor::Cell;
use crate::edit::encode::{Change, Encode};
use crate::edit::group::{count, member, survey};
use crate::edit::witness::Witness;
use crate::edit::word::{Mode, Word};
use crate::format::Decoded;

/// Makes the change and returns the entry as it was at that moment.
#[inline(always)]
fn change_one<W: Word, X: Mode>(cell: &W::Atomic, entry: u64, change: Change) -> u64 {
    if !X::LIVE {
        W::store(cell, change.apply(entry), Ordering::Relaxed);
        return entry;
    }
    if change.set == 0 {
        return W::fetch_and(cell, !change.clear);
    }
    if change.clear == 0 {
        return W::fetch_or(cell, change.set);
    }
    let mut entry = entry;
    while let Err(now) = W::compare_exchange(cell, entry, change.apply(entry)) {
        entry = now;
    }
    entry
}

/// Changes a run whose entries are leaves that differ in address and history alone, as most runs
/// are: what one of them says then holds for all. `None` where they are not.
#[inline(always)]
fn uniform<F: Encode, X: Mode>(
    format: &F,
    cells: &[Cell<F>],
    change: Change,
    level: u8,
) -> Option<Changed> {
    let varying = format.varying(level);
    let first = F::Word::load(cells.first()?, Ordering::Relaxed);
    let mut differing = 0;
    for cell in cells {
        differing |= F::Word::load(cell, Ordering::Relaxed) ^ first;
    }
    let new = change.apply(first);
    if differing & !varying != 0
        || (change.clear | change.set) & varying != 0
        || new == first
        || !matches!(format.decode(first, level), Decoded::Leaf { .. })
        || format.group(first, level).is_some()
        || F::BREAKS && format.breaks(first, new, level)
    {
        return None;
    }
    for cell in cells {
        if X::LIVE {
            change_one::<F::Word, X>(cell, F::Word::load(cell, Ordering::Relaxed), change);
        } else {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            F::Word::store(cell, change.apply(entry), Ordering::Relaxed);
        }
    }
    Some(Changed {
        lost: first & !new,
        gained: new & !first,
        first: 0,
        last: cells.len() - 1,
        count: cells.len(),
    })
}

/// What changed in one run of cells.
pub(super) struct Changed {
    pub(super) lost: u64,
    pub(super) gained: u64,
    pub(super) first: usize,
    pub(super) last: usize,
    /// How many cells were worked on; fewer than there are where something is in the way.
    pub(super) count: usize,
}

impl<W: Witness> Adjust<W> {
    #[inline(always)]
    pub(super) fn selects<F: Encode>(&self, format: &F, entry: u64) -> bool {
        match self.which {
            Which::All => true,
            Which::Accessed => format.is_accessed(entry),
            Which::Dirty => format.is_dirty(entry),
        }
    }

    /// Changes the leaves of a run until something else than a leaf or nothing is met.
    #[inline(always)]
    pub(super) fn change_run<F: Encode, X: Mode>(
        &mut self,
        format: &F,
        cells: &[Cell<F>],
        start: u64,
        level: u8,
    ) -> Changed {
        let change = self.changes[usize::from(level)];
        let shift = format.shift(level);
        if self.which == Which::All
            && !W::WATCHES
            && let Some(changed) = uniform::<F, X>(format, cells, change, level)
        {
            return changed;
        }
        let mut changed = Changed { lost: 0, gained: 0, first: usize::MAX, last: 0, count: 0 };
        let mut index = 0;
        while let Some(cell) = cells.get(index) {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            match format.decode(entry, level) {
                Decoded::Leaf { .. } => {
                    if let Some(group) = format.group(entry, level) {
                        let at = start + ((index as u64) << shift);
                        let rest = &cells[index..];
                        match self.change_group::<F, X>(format, rest, at, group, level) {
                            Some((lost, gained)) => {
                                let next = index + count(format, group, level);
                                if lost | gained != 0 {
                                    changed.lost |= lost;
                                    changed.gained |= gained;
                                    changed.first = changed.first.min(index);
                                    changed.last = next - 1;
                                }
                                index = next;
                                changed.count = next;
                                continue;
                            }
                            None => break,
                        }
                    }
                    let new = change.apply(entry);
                    if new != entry && self.selects(format, entry) {
                        if F::BREAKS && format.breaks(entry, new, level) {
                            break;
                        }
                        let was = change_one::<F::Word, X>(cell, entry, change);
                        let new = change.apply(was);
                        changed.lost |= was & !new;
                        changed.gained |= new & !was;
                        changed.first = changed.first.min(index);
                        changed.last = index;
                        if W::WATCHES {
                            self.witness.leaf(start + ((index as u64) << shift), level, was);
                        }
                    }
                }
                Decoded::Empty if entry == format.frozen() => break,
                Decoded::Table { .. } if level > 0 => break,
                _ => {}
            }
            index += 1;
            changed.count = index;
        }
        changed
    }

    /// Changes every entry of the group that begins with the first of `cells`, and returns which
    /// bits were lost and gained. `None`, with nothing changed, where that is not the whole of a
    /// group or it must be broken.
    #[inline(never)]
    fn change_group<F: Encode, X: Mode>(
        &mut self,
        format: &F,
        cells: &[Cell<F>],
        start: u64,
        shift: u32,
        level: u8,
    ) -> Option<(u64, u64)> {
        if start & ((1u64 << shift) - 1) != 0 {
            return None;
        }
        let cells = cells.get(..count(format, shift, level))?;
        let leaf = survey(format, cells, shift, level)?;
        let change = self.changes[usize::from(level)];
        let new = change.apply(leaf);
        if new == leaf || !self.selects(format, leaf) {
            return Some((0, 0));
        }
        if F::BREAKS && format.breaks(leaf, new, level) {
            return None;
        }
        // In place only where the entries of a group change in the same bits as leaves do.
        let first = F::Word::load(cells.first()?, Ordering::Relaxed);
        let alone = change.apply(format.ungrouped(first, 0, level));
        if format.grouped(alone, level) != change.apply(first) {
            return None;
        }
        let (mut lost, mut gained, mut sum) = (0, 0, leaf);
        for (index, cell) in cells.iter().enumerate() {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            let was = change_one::<F::Word, X>(cell, entry, change);
            let now = change.apply(was);
            lost |= was & !now;
            gained |= now & !was;
            sum = format.inherit(sum, format.ungrouped(was, index as u64, level));
        }
        self.tell(format, start, sum, cells.len(), level);
        Some((lost, gained))
    }

    /// Shows the witness every page of a group, as the group was.
    pub(super) fn tell<F: Encode>(
        &mut self,
        format: &F,
        start: u64,
        leaf: u64,
        count: usize,
        level: u8,
    ) {
        if let Decoded::Leaf { base, .. } = format.decode(leaf, level)
            && W::WATCHES
        {
            for index in 0..count as u64 {
                let at = start + (index << format.shift(level));
                self.witness.leaf(at, level, member(format, leaf, base, index, level));
            }
        }
    }
}
