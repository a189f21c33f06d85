//! The physical pages of the data accesses of a block of instructions.

use super::super::bytes::Bytes;
use super::super::layout::MAX_SHAPE;
use super::super::model::{Frames, Model};
use super::Inconsistent;
use crate::event::Access;

/// The stream of frames.
pub(super) struct FrameStream<'a>(pub(super) Bytes<'a>);

impl FrameStream<'_> {
    /// Fills in the physical pages of a block's data accesses; `listed` says whether some are in the stream.
    #[inline(always)]
    pub(super) fn fill(
        &mut self,
        listed: bool,
        model: &mut Model,
        made: &mut [Access],
    ) -> Result<(), Inconsistent> {
        let (known, last) = model.frames();
        let mut from = 0;
        if listed {
            loop {
                let skip = usize::try_from(self.0.varint()?).map_err(|_| Inconsistent)?;
                if skip == 0 {
                    break;
                }
                let at = from + (skip - 1).min(MAX_SHAPE);
                let page = made.get(at).ok_or(Inconsistent)?.va >> 12;
                fill_known(known, &mut made[from..at])?;
                let guess = last.to.wrapping_add(page).wrapping_sub(last.from);
                (last.from, last.to) = (page, self.0.difference(guess)?);
                made[at].frame = last.to as u32;
                known.set(page, made[at].frame);
                from = at + 1;
            }
        }
        fill_known(known, &mut made[from..])
    }
}

#[inline(always)]
fn fill_known(known: &Frames, accesses: &mut [Access]) -> Result<(), Inconsistent> {
    for access in accesses {
        access.frame = known.of(access.va >> 12).ok_or(Inconsistent)?;
    }
    Ok(())
}
