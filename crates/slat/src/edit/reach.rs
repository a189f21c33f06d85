//! Frames for tables that entries, and the root register, can point at.

use super::{Encode, Error, Frame, FrameSource, TableMemory, Tables};
use crate::format::Decoded;

impl<F: Encode, I, O, M: TableMemory<F::Word>> Tables<F, I, O, M> {
    /// A frame for a table of this level, which is for address `at` of the caller. What an entry, or
    /// the root register, cannot point at goes back: written into it, it would name another frame.
    #[inline]
    pub(super) fn take<S: FrameSource>(
        &self,
        source: &S,
        at: u64,
        level: u8,
    ) -> Result<Frame, Error> {
        let bytes = self.table_bytes(level);
        let Some(frame) = source.take(bytes) else { return Err(Error::NoFrame { at, bytes }) };
        if self.reaches(&frame, level) {
            return Ok(frame);
        }
        self.take_other(source, frame, level)
    }

    /// Whether an entry above `level`, or the root register, can point at the frame.
    #[inline]
    fn reaches(&self, frame: &Frame, level: u8) -> bool {
        let (next, above) = (frame.address(), level + 1);
        if level == self.top {
            self.roots_at(next)
        } else {
            self.format.decode(self.format.table(next, above), above) == Decoded::Table { next }
        }
    }

    /// Another frame than `refused`, which goes back only when others have been asked for: a source may
    /// give first what came back last.
    #[cold]
    fn take_other<S: FrameSource>(
        &self,
        source: &S,
        refused: Frame,
        level: u8,
    ) -> Result<Frame, Error> {
        const OTHERS: usize = 3;
        let bytes = self.table_bytes(level);
        let first = refused.address();
        let mut held = [const { None }; OTHERS];
        let mut found = None;
        for slot in &mut held {
            match source.take(bytes) {
                Some(frame) if self.reaches(&frame, level) => {
                    found = Some(frame);
                    break;
                }
                Some(frame) => *slot = Some(frame),
                None => break,
            }
        }
        held.into_iter().flatten().for_each(|frame| source.put(frame));
        source.put(refused);
        found.ok_or(Error::OutOfReach { frame: first })
    }

    /// Whether the root register can hold the table at `root`: walks begin there, if this stage has
    /// any, and its page is one that an entry can point at, as wide as the
    /// register.
    #[cold]
    pub(super) fn roots_at(&self, root: u64) -> bool {
        let (format, top) = (&self.format, self.top);
        let wide = top == 0
            || matches!(format.decode(format.table(root, top), top),
                Decoded::Table { next } if (next ^ root) >> format.shift(0) == 0);
        // One of these is in whichever half the format translates: lower, upper, or upper of 32 bits.
        let begins = |root: u64| {
            [0, u64::MAX, 0xffff_ffff].into_iter().any(|at| format.input(root, at).is_some())
        };
        wide && (begins(root) || !begins(0))
    }
}
