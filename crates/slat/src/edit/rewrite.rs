//! Replacing one leaf by another that maps the same.

use super::Error;
use super::cursor::Cursor;
use super::encode::Encode;
use super::frames::FrameSource;
use super::memory::TableMemory;
use super::word::Mode;
use crate::address::Address;

impl<F, I, O, M, S, X> Cursor<'_, '_, F, I, O, M, S, X>
where
    F: Encode,
    I: Address,
    O: Address,
    M: TableMemory<F::Word>,
    S: FrameSource,
    X: Mode,
{
    /// Replaces the leaf `old` of `level` at `at` by `new`, a leaf of the same output and size, and
    /// returns whether it did: not where somebody has changed it meanwhile, where it is one of a
    /// group, or where the change needs break-before-make.
    pub(crate) fn rewrite(&mut self, at: I, level: u8, old: u64, new: u64) -> Result<bool, Error> {
        self.attended()?;
        let tables = self.tables;
        let format = &tables.format;
        let at = tables.strip(at.raw()).ok_or(Error::OutsideInput { at: at.raw() })?;
        if format.group(old, level).is_some() || F::BREAKS && format.breaks(old, new, level) {
            return Ok(false);
        }
        let (found, entry) = self.locate(at, level)?;
        if found != level || entry != old {
            return Ok(false);
        }
        if X::replace::<F::Word>(self.cell(at, level), old, new).is_err() {
            return Ok(false);
        }
        self.publish(at, level, 1);
        let start = at & !((1u64 << format.shift(level)) - 1);
        let effect = format.effect(old & !new, new & !old, level);
        self.note(start, self.entry_end(at, level), 1 << level, effect);
        Ok(true)
    }
}
