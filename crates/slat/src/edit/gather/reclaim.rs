//! After the invalidation: entries are made, and frames come out.

use core::sync::atomic::Ordering;

use super::{Break, Detached, Inner, Slots};
use crate::edit::encode::{Effect, Encode};
use crate::edit::frames::Frame;
use crate::edit::group::around;
use crate::edit::memory::TableMemory;
use crate::edit::walkers::Mark;
use crate::edit::witness::Witness;
use crate::edit::word::Word;
use crate::edit::{Error, FrameSource, Tables};
use crate::format::{Decoded, MAX_LEVELS};

/// The proof that hardware has let go. Frames come out when software walkers have, too.
#[derive(Debug)]
#[must_use = "detached tables are lost if this is dropped"]
pub struct Completed<'g> {
    pub(super) inner: Inner<'g>,
    pub(super) since: Option<Mark>,
}

impl<'g> Completed<'g> {
    /// Number of detached subtrees whose frames wait.
    pub fn detached(&self) -> usize {
        self.inner.detached as usize
    }

    /// The frames of the detached tables, one by one, once no software walker is left that could
    /// look at them. `tables` are those that the gather came from.
    ///
    /// Entries that were broken or removed are made before walkers are waited for, since one of them
    /// may wait for just those: also where the cursor is gone, and also where this is refused.
    ///
    /// # Errors
    /// The proof, to try again later, where such a walker is still under way, or where `tables`
    /// are others.
    pub fn reclaim<'t, F: Encode, I, O, M: TableMemory<F::Word>>(
        mut self,
        tables: &'t Tables<F, I, O, M>,
    ) -> Result<Reclaim<'t, 'g, F, I, O, M>, Completed<'g>> {
        if self.inner.root != tables.root {
            return Err(self);
        }
        // What cannot be made waits for the cursor, which says why.
        let _ = self.inner.make(tables, 0);
        self.inner.detach_lost(tables);
        if self.inner.detached > 0
            && let Some(walkers) = self.inner.walkers
        {
            let since = *self.since.get_or_insert_with(|| walkers.mark());
            if !walkers.have_left(since) {
                return Err(self);
            }
        }
        Ok(Reclaim { inner: self.inner, tables, path: [Scan::NONE; MAX_LEVELS], depth: 0 })
    }

    /// Goes on with the storage where no table was detached. Broken entries are made by
    /// [`Cursor::resume`](crate::edit::Cursor::resume) then.
    ///
    /// # Errors
    /// The proof, where tables wait for [`reclaim`](Completed::reclaim).
    #[inline(always)]
    pub fn ready(self) -> Result<Ready<'g>, Completed<'g>> {
        if self.inner.detached > 0 {
            return Err(self);
        }
        Ok(Ready { inner: self.inner })
    }
}

/// A place in a detached subtree.
#[derive(Clone, Copy, Debug)]
struct Scan {
    table: u64,
    index: u64,
    start: u64,
    level: u8,
}

impl Scan {
    const NONE: Scan = Scan { table: 0, index: 0, start: 0, level: 0 };
}

/// Gives out the frames of detached tables, children first, each when it is asked for; nothing
/// else reads or writes them any more.
#[derive(Debug)]
#[must_use = "frames that are not taken out are lost"]
pub struct Reclaim<'t, 'g, F: Encode, I, O, M> {
    inner: Inner<'g>,
    tables: &'t Tables<F, I, O, M>,
    path: [Scan; MAX_LEVELS],
    depth: usize,
}

impl<'g, F: Encode, I, O, M: TableMemory<F::Word>> Reclaim<'_, 'g, F, I, O, M> {
    /// The next frame, of tables that nothing shares. Those that something may share, or may share
    /// tables below (the root of a removed view), stay for
    /// [`into_source`](Reclaim::into_source), which knows of them. `witness` sees every leaf that was
    /// in it, with the accessed and dirty bits that hardware left at the very last.
    ///
    /// # Errors
    /// [`Error::NotLent`] where a table is not in the memory; its subtree is lost.
    pub fn next_frame<W: Witness>(&mut self, witness: &mut W) -> Result<Option<Frame>, Error> {
        self.next_released(witness, None::<&fn(u64) -> bool>)
    }

    /// The next frame, passing by tables of which `last` says that another entry points at them.
    /// `None` knows of no such tables.
    fn next_released<W: Witness>(
        &mut self,
        witness: &mut W,
        last: Option<&impl Fn(u64) -> bool>,
    ) -> Result<Option<Frame>, Error> {
        let format = &self.tables.format;
        loop {
            let Some(at) = self.depth.checked_sub(1) else {
                let Some(left) = (self.inner.detached as usize).checked_sub(1) else {
                    return Ok(None);
                };
                let Some(slots) = &mut self.inner.slots else { return Ok(None) };
                if last.is_none() {
                    let own = slots.detached[..=left].iter().rposition(|table| !table.shared);
                    let Some(own) = own else { return Ok(None) };
                    slots.detached.swap(own, left);
                }
                let Detached { table, level, start, shared } = slots.detached[left];
                if shared && last.is_some_and(|last| !last(table)) {
                    self.inner.detached = left as u32;
                    continue;
                }
                self.path[0] = Scan { table, index: 0, start, level };
                self.depth = 1;
                continue;
            };
            let Scan { table, index, start, level } = self.path[at];
            let count = self.tables.entries(level);
            if index as usize >= count || level == 0 && !W::WATCHES {
                self.leave(at);
                return Ok(Some(Frame::new(table, self.tables.table_bytes(level))));
            }
            let Some(cells) = self.tables.memory.table(table, count) else {
                self.leave(at);
                return Err(Error::NotLent { table });
            };
            for (index, cell) in cells.iter().enumerate().skip(index as usize) {
                let entry = F::Word::load(cell, Ordering::Acquire);
                let address = start + ((index as u64) << format.shift(level));
                match format.decode(entry, level) {
                    Decoded::Table { next } if level > 0 && last.is_none_or(|last| last(next)) => {
                        self.path[at].index = index as u64 + 1;
                        self.path[self.depth] =
                            Scan { table: next, index: 0, start: address, level: level - 1 };
                        self.depth += 1;
                        break;
                    }
                    Decoded::Leaf { .. } if W::WATCHES => {
                        let entry = format
                            .group(entry, level)
                            .and_then(|shift| around(format, cells, index, shift, level))
                            .map_or(entry, |(_, _, group)| format.inherit(entry, group));
                        witness.leaf(address, level, entry);
                    }
                    _ => {}
                }
                self.path[at].index = index as u64 + 1;
            }
        }
    }

    /// Goes on above the table at depth `at`. A subtree counts as detached until its last table is out.
    fn leave(&mut self, at: usize) {
        self.depth = at;
        if at == 0 {
            self.inner.detached -= 1;
        }
    }

    /// Gives every frame back to `source`.
    ///
    /// # Errors
    /// As [`next_frame`](Reclaim::next_frame); what was given back stays given back.
    pub fn into_source<S: FrameSource>(mut self, source: &S) -> Result<Ready<'g>, Error> {
        while let Some(frame) = self.next_released(&mut (), Some(&|table| source.release(table)))? {
            source.put(frame);
        }
        match self.finish() {
            Ok(ready) => Ok(ready),
            Err(_) => unreachable!("every frame was taken out"),
        }
    }

    /// The storage, once every frame has been taken out.
    ///
    /// # Errors
    /// `self`, where frames are left.
    pub fn finish(self) -> Result<Ready<'g>, Self> {
        if self.inner.detached > 0 {
            return Err(self);
        }
        Ok(Ready { inner: self.inner })
    }
}

/// The proof of a completed invalidation with the storage, empty again: what
/// [`Cursor::resume`](crate::edit::Cursor::resume) goes on with.
#[derive(Debug)]
#[must_use = "a cursor waits for this"]
pub struct Ready<'g> {
    pub(in crate::edit) inner: Inner<'g>,
}

impl<'g> Ready<'g> {
    /// Whether it is of the storage of this id.
    pub(in crate::edit) fn is_of(&self, id: u64) -> bool {
        self.inner.id == id
    }

    /// Notes what a broken entry was made into, for the next gather.
    pub(in crate::edit) fn note(&mut self, start: u64, last: u64, levels: u8, tables: bool) {
        self.inner.note(start, last, levels, Effect::Stale);
        if tables {
            self.inner.tables_changed();
        }
    }

    /// Whether it proves an invalidation after this break.
    pub(in crate::edit) fn covers(&self, broken: &Break) -> bool {
        self.inner.id == broken.id && self.inner.completed > broken.completed
    }

    /// The storage, for another cursor; `None`, and reported, where broken entries wait to be made by
    /// [`Cursor::resume`](crate::edit::Cursor::resume), which [`Completed::reclaim`] would have made, or
    /// what [`Broken::make`](crate::edit::Broken::make) noted waits for a cursor.
    pub fn into_slots(mut self) -> Option<Slots<'g>> {
        if !self.inner.is_clear() {
            return None;
        }
        self.inner.slots.take()
    }
}
