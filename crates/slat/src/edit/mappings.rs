//! Reading tables: what a range is mapped to.

use core::sync::atomic::Ordering;

use super::encode::Encode;
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
                            self.at = start + bytes;
                            let group = (1u64 << shift) - 1;
                            return Some(Mapping {
                                start: I::new(start.wrapping_add(self.offset)),
                                bytes,
                                output: O::new(base | start & group),
                                level,
                                entry,
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
