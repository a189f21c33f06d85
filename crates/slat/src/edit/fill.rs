//! Writing consecutive leaves where nothing is.

use core::sync::atomic::Ordering;

use super::cursor::Cell;
use super::encode::{Encode, Leaves};
use super::group::count;
use super::sync::fence;
use super::word::Word;

/// Writes consecutive leaves, the first at output address `base`.
#[inline(always)]
pub(super) fn fill<F: Encode>(format: &F, cells: &[Cell<F>], leaf: u64, base: u64, level: u8) {
    // What the pages hold is visible before the entries are.
    fence(Ordering::Release);
    match format.stride(level) {
        Some(stride) => {
            let mut entry = leaf | format.place(base, level);
            // Four sums at a time: one alone would make each store wait for the one before.
            let (fours, rest) = cells.as_chunks::<4>();
            let mut sums = [0, 1, 2, 3u64].map(|n| entry.wrapping_add(n.wrapping_mul(stride)));
            for four in fours {
                for (cell, sum) in four.iter().zip(&mut sums) {
                    F::Word::store(cell, *sum, Ordering::Relaxed);
                    *sum = sum.wrapping_add(stride << 2);
                }
            }
            entry = sums[0];
            for cell in rest {
                F::Word::store(cell, entry, Ordering::Relaxed);
                entry = entry.wrapping_add(stride);
            }
        }
        None => {
            let mut base = base;
            for cell in cells {
                F::Word::store(cell, leaf | format.place(base, level), Ordering::Relaxed);
                base += 1 << format.shift(level);
            }
        }
    }
}

/// Writes consecutive leaves where nothing is, in groups wherever a whole one fits: `at` is the
/// first input address, `base` the first output address.
#[inline(always)]
pub(super) fn lay<F: Encode>(
    format: &F,
    cells: &[Cell<F>],
    leaves: &Leaves,
    at: u64,
    base: u64,
    level: u8,
) {
    let leaf = leaves.at(level);
    match format.group_shift(level) {
        Some(shift) if leaves.makes_groups() && (at ^ base) & ((1u64 << shift) - 1) == 0 => {
            lay_groups(format, cells, leaf, base, shift, level);
        }
        _ => fill(format, cells, leaf, base, level),
    }
}

#[inline(never)]
fn lay_groups<F: Encode>(
    format: &F,
    cells: &[Cell<F>],
    leaf: u64,
    base: u64,
    shift: u32,
    level: u8,
) {
    let page = 1u64 << format.shift(level);
    let whole = count(format, shift, level);
    let before = (base.wrapping_neg() & ((1u64 << shift) - 1)) / page;
    let (head, rest) = cells.split_at((before as usize).min(cells.len()));
    fill(format, head, leaf, base, level);
    let (groups, tail) = rest.split_at(rest.len() / whole * whole);
    let mut base = base + head.len() as u64 * page;
    fence(Ordering::Release);
    for cell in groups {
        let entry = format.grouped(leaf | format.place(base, level), level);
        F::Word::store(cell, entry, Ordering::Relaxed);
        base += page;
    }
    fill(format, tail, leaf, base, level);
}
