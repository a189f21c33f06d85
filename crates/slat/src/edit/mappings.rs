//! Reading tables: what a range is mapped to.

use core::sync::atomic::Ordering;

use super::cursor::Cell;
use super::encode::Encode;
use super::group::{around, count};
use super::memory::TableMemory;
use super::word::Word;
use super::{Error, Tables};
use crate::address::Address;
use crate::format::Decoded;

/// One leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping<I, O> {
    /// First address that it maps.
    pub start: I,
    /// How many bytes, a power of two.
    pub bytes: u64,
    /// From [`Tables::translate`]: what the asked address is mapped to. From [`Tables::mappings`]:
    /// what `start` is mapped to.
    pub output: O,
    /// The leaf's level.
    pub level: u8,
    /// The leaf itself.
    pub entry: u64,
}

/// A leaf with the group that it belongs to.
pub(super) struct Leaf {
    /// The page's entry, with the accessed and dirty state of the whole group.
    pub(super) entry: u64,
    /// What it, or the group, maps: first output address and bytes.
    pub(super) base: u64,
    pub(super) bytes: u64,
}

impl Leaf {
    /// The leaf `entry` at `index` of a table, which decodes to `base` and `shift`.
    #[inline(always)]
    pub(super) fn whole<F: Encode>(
        format: &F,
        cells: &[Cell<F>],
        index: usize,
        entry: u64,
        level: u8,
        base: u64,
        shift: u8,
    ) -> Leaf {
        match format.group(entry, level) {
            None => Leaf { entry, base, bytes: 1 << shift },
            Some(shift) => Leaf::grouped(format, cells, index, entry, level, base, shift),
        }
    }

    #[cold]
    fn grouped<F: Encode>(
        format: &F,
        cells: &[Cell<F>],
        index: usize,
        entry: u64,
        level: u8,
        base: u64,
        shift: u32,
    ) -> Leaf {
        let page = 1u64 << format.shift(level);
        match around(format, cells, index, shift, level) {
            Some((_, _, group)) => Leaf {
                entry: format.inherit(entry, group),
                base: base & !((1u64 << shift) - 1),
                bytes: 1 << shift,
            },
            // It does not say one thing: each page is taken by itself, where its own entry has it. An
            // entry that names the range of the whole group maps its place in that (Arm ARM G5.4.1;
            // privileged architecture, "Svnapot").
            None => {
                let within = index as u64 & (count(format, shift, level) as u64 - 1);
                let names_group = matches!(format.decode(entry, level),
                    Decoded::Leaf { shift, .. } if u32::from(shift) > format.shift(level));
                let base = if names_group { base + within * page } else { base };
                Leaf { entry, base, bytes: page }
            }
        }
    }
}

/// The leaves of a range, in the order of their addresses. Made by [`Tables::mappings`].
#[derive(Debug)]
pub struct Mappings<'t, F: Encode, I, O, M> {
    tables: &'t Tables<F, I, O, M>,
    at: u64,
    end: u64,
    offset: u64,
}

impl<F: Encode, I: Address, O: Address, M: TableMemory<F::Word>> Tables<F, I, O, M> {
    /// The leaves that map something of `bytes` bytes from `start`; the first and the last may
    /// stick out.
    ///
    /// # Errors
    /// [`Error::OutsideInput`] where the range is not wholly translatable by these tables.
    pub fn mappings(&self, start: I, bytes: u64) -> Result<Mappings<'_, F, I, O, M>, Error> {
        let first = start.raw();
        let last = bytes.checked_sub(1).and_then(|less| first.checked_add(less));
        let last = last.ok_or(Error::OutsideInput { at: first })?;
        let at = self.strip(first).ok_or(Error::OutsideInput { at: first })?;
        let input_last = self.strip(last).ok_or(Error::OutsideInput { at: last })?;
        if input_last.checked_sub(at) != Some(bytes - 1) {
            return Err(Error::OutsideInput { at: last });
        }
        Ok(Mappings { tables: self, at, end: input_last + 1, offset: first.wrapping_sub(at) })
    }
}

impl<F: Encode, I: Address, O: Address, M: TableMemory<F::Word>> Iterator
    for Mappings<'_, F, I, O, M>
{
    type Item = Mapping<I, O>;

    fn next(&mut self) -> Option<Self::Item> {
        let tables = self.tables;
        let format = &tables.format;
        while self.at < self.end {
            let (mut level, mut table) = (tables.top, tables.root);
            // Descends to the lowest table that translates `at`, then reads on in it.
            loop {
                let cells = tables.cells(table, level).ok()?;
                let first = (self.at >> format.shift(level)) as usize & (cells.len() - 1);
                let mut down = None;
                for cell in cells.get(first..)? {
                    let entry = F::Word::load(cell, Ordering::Acquire);
                    let bytes = 1u64 << format.shift(level);
                    let start = self.at & !(bytes - 1);
                    match format.decode(entry, level) {
                        Decoded::Table { next } if level > 0 => {
                            down = Some(next);
                            break;
                        }
                        Decoded::Leaf { base, shift } => {
                            let index =
                                (self.at >> format.shift(level)) as usize & (cells.len() - 1);
                            let leaf = Leaf::whole(format, cells, index, entry, level, base, shift);
                            let start = self.at & !(leaf.bytes - 1);
                            self.at = start + leaf.bytes;
                            return Some(Mapping {
                                start: I::new(start.wrapping_add(self.offset)),
                                bytes: leaf.bytes,
                                output: O::new(leaf.base),
                                level,
                                entry: leaf.entry,
                            });
                        }
                        _ => self.at = start + bytes,
                    }
                    if self.at >= self.end {
                        return None;
                    }
                }
                match down {
                    Some(next) => {
                        level -= 1;
                        table = next;
                    }
                    None => break,
                }
            }
        }
        None
    }
}
