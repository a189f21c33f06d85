//! Keeping a combined table true while either half changes.

use core::ops::RangeInclusive;

use super::compose::{Combine, Composed, Seen};
use super::install::Zapped;
use super::reverse::{Key, What};
use super::{Backed, Combined, Track};
use crate::address::{Gpa, L2Gpa, Spa};
use crate::edit::{Cursor, Error, FrameSource, Mapping, Mode, Step, TableMemory, Tables};

/// How far [`Combined::resync`] or [`Combined::fill`] has come through its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pass {
    at: u64,
    end: u64,
}

impl Pass {
    /// Over `bytes` bytes from `start`.
    pub fn new(start: L2Gpa, bytes: u64) -> Pass {
        Pass { at: start.raw(), end: start.raw().saturating_add(bytes) }
    }

    /// Over everything that tables of this format translate.
    pub fn whole<F: Combine>(format: &F) -> Pass {
        Pass { at: 0, end: 1 << format.input_bits() }
    }

    /// Whether it is through.
    pub fn is_done(&self) -> bool {
        self.at >= self.end
    }
}

/// A record that was dealt with.
enum Fate<'g> {
    Gone,
    Stays,
    Invalidate(Step<'g>),
}

impl<F: Combine> Combined<'_, F> {
    /// The guest hypervisor invalidated (INVEPT, TLBI, HFENCE.GVMA, a flush of its guest's ASID):
    /// compares each combined leaf of the pass with what the tables say now, and removes those that
    /// say something else, or the same by way of other pages. At most `budget` leaves are looked at, then
    /// it yields.
    ///
    /// # Errors
    /// Of the editor; nothing at or after the pass's place has been looked at.
    pub fn resync<'g, B, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        backed: &mut B,
        pass: &mut Pass,
        budget: u32,
    ) -> Result<Step<'g>, Error>
    where
        B: Backed,
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let tables = cursor.tables();
        let format = tables.format();
        for _ in 0..budget {
            let leaf = match pass.end.checked_sub(pass.at) {
                None | Some(0) => None,
                Some(bytes) => tables.mappings(L2Gpa::new(pass.at), bytes)?.next(),
            };
            let Some(leaf) = leaf else {
                pass.at = pass.end;
                return Ok(Step::Done);
            };
            let (start, end) = (leaf.start.raw(), leaf.start.raw() + leaf.bytes);
            let seen = Seen::default();
            let composed = self.agreeing(format, backed, &leaf, &seen)?;
            // The same leaf may follow from other pages now, whose changes would not be traced to it.
            let stays = composed.is_some_and(|composed| self.is_noted(&composed, &seen));
            if !stays && let Zapped::Invalidate(step) = self.zap(cursor, start, end - 1)? {
                return Ok(step);
            }
            pass.at = end;
        }
        Ok(if pass.is_done() { Step::Done } else { Step::Yield })
    }

    /// Reports every combined leaf that does not say what the two stages say, and changes nothing: an
    /// audit, between two sync points of which there should be nothing to report (CVE-2026-23401,
    /// CVE-2026-23402). Returns how many leaves there are.
    ///
    /// # Errors
    /// Of the editor.
    pub fn audit<B, M>(
        &self,
        tables: &Tables<F, L2Gpa, Spa, M>,
        backed: &mut B,
        mut report: impl FnMut(&Mapping<L2Gpa, Spa>),
    ) -> Result<u64, Error>
    where
        B: Backed,
        M: TableMemory<F::Word>,
    {
        let whole = 1u64 << tables.format().input_bits();
        let mut leaves = 0;
        for leaf in tables.mappings(L2Gpa::new(0), whole)? {
            leaves += 1;
            if self.agreeing(tables.format(), backed, &leaf, &Seen::default())?.is_none() {
                report(&leaf);
            }
        }
        Ok(leaves)
    }

    /// What the two stages say of a combined leaf's addresses, where the leaf says the same.
    fn agreeing<B: Backed>(
        &self,
        format: &F,
        backed: &mut B,
        leaf: &Mapping<L2Gpa, Spa>,
        seen: &Seen,
    ) -> Result<Option<Composed>, Error> {
        Ok(self.probe(format, backed, leaf.start, seen)?.0.filter(|composed| {
            let differing = (composed.entry ^ leaf.entry) & !format.history(leaf.entry);
            composed.level == leaf.level && differing == 0
        }))
    }

    /// Makes every leaf of the pass that the tables have and the combined table lacks, without
    /// waiting for L2's faults. No accessed or dirty bit is set for it. At most `budget` places are
    /// looked at, then it yields. It ends early where the records run out, as
    /// [`is_done`](Pass::is_done) tells.
    ///
    /// # Errors
    /// Of the editor, [`Error::NoFrame`] among them.
    pub fn fill<'g, B, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        backed: &mut B,
        track: &mut impl Track,
        pass: &mut Pass,
        budget: u32,
    ) -> Result<Step<'g>, Error>
    where
        B: Backed,
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let tables = cursor.tables();
        let format = tables.format();
        for _ in 0..budget {
            if pass.is_done() {
                break;
            }
            let at = L2Gpa::new(pass.at);
            if let Some(leaf) = tables.translate(at) {
                pass.at = leaf.start.raw() + leaf.bytes;
                continue;
            }
            let seen = Seen::default();
            let (composed, reach) = self.probe(format, backed, at, &seen)?;
            if let Some(composed) = composed {
                if !self.has_room(cursor, track, pass.at, &seen) {
                    return Ok(Step::Done);
                }
                if self.link(track, pass.at, &seen) {
                    continue;
                }
                match self.install(cursor, &composed)? {
                    Step::Done => {}
                    step => return Ok(step),
                }
            }
            pass.at = (pass.at | ((1u64 << reach) - 1)) + 1;
        }
        Ok(if pass.is_done() { Step::Done } else { Step::Yield })
    }

    /// The guest hypervisor wrote `bytes` bytes at `address`, in a page that [`Track`] was told of:
    /// removes what followed from the entries there. Of a write elsewhere nothing follows.
    ///
    /// # Errors
    /// Of the editor.
    pub fn guest_wrote<'g, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        track: &mut impl Track,
        address: Gpa,
        bytes: u64,
    ) -> Result<Step<'g>, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        if self.reverse.len() == 0 {
            return self.drop_all(cursor, track);
        }
        let first = address.raw();
        let Some(last) = bytes.checked_sub(1).map(|less| first.saturating_add(less)) else {
            return Ok(Step::Done);
        };
        let size = self.stack.upper.format.layout().size.bytes();
        let act = |this: &mut Self,
                   cursor: &mut Cursor<'_, 'g, F, _, _, M, S, X>,
                   key: Key,
                   start| {
            let What::Table(_) = key.what else { return Ok(Fate::Stays) };
            let format = cursor.tables().format();
            let from = first.saturating_sub(key.address).min(4095) / size;
            let to = (last - key.address).min(4095) / size;
            if let Some((first, last)) = this.range_of(format, key.what, start, from..=to)
                && let Zapped::Invalidate(step) = this.zap(cursor, first, last)?
            {
                return Ok(Fate::Invalidate(step));
            }
            Ok(if this.leads_anywhere(cursor, key.what, start)? { Fate::Stays } else { Fate::Gone })
        };
        self.for_records(cursor, track, first..=last, act)
    }

    /// The host changed what its second stage says of the guest-physical addresses `range`: removes
    /// what followed from it. To be completed before what the host's own gather waits for: until
    /// then L2 may reach frames that the host has unmapped.
    ///
    /// # Errors
    /// Of the editor.
    pub fn host_changed<'g, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        track: &mut impl Track,
        range: RangeInclusive<Gpa>,
    ) -> Result<Step<'g>, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        if self.reverse.len() == 0 {
            return self.drop_all(cursor, track);
        }
        let act =
            |this: &mut Self, cursor: &mut Cursor<'_, 'g, F, _, _, M, S, X>, key: Key, start| {
                let format = cursor.tables().format();
                let entries = 0..=this.entries_in_page() - 1;
                if let Some((first, last)) = this.range_of(format, key.what, start, entries)
                    && let Zapped::Invalidate(step) = this.zap(cursor, first, last)?
                {
                    return Ok(Fate::Invalidate(step));
                }
                Ok(Fate::Gone)
            };
        self.for_records(cursor, track, range.start().raw()..=range.end().raw(), act)
    }

    /// Removes everything. The root table stays where it is, in use by processors that run L2
    /// (XSA-438: a root shadow that was dropped while a processor still ran on it).
    ///
    /// # Errors
    /// Of the editor.
    pub fn drop_all<'g, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        track: &mut impl Track,
    ) -> Result<Step<'g>, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let last = (1u64 << cursor.tables().format().input_bits()) - 1;
        if let Zapped::Invalidate(step) = self.zap(cursor, 0, last)? {
            return Ok(step);
        }
        for index in 0..self.reverse.len() {
            if let Some((Key { address, what: What::Table(_) }, _)) = self.reverse.at(index) {
                track.untrack(Gpa::new(address));
            }
        }
        self.reverse.clear();
        Ok(Step::Done)
    }

    /// Has `act` deal with every record of a page in `range`, and forgets those that are gone.
    fn for_records<'g, M, S, X>(
        &mut self,
        cursor: &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
        track: &mut impl Track,
        range: RangeInclusive<u64>,
        mut act: impl FnMut(
            &mut Self,
            &mut Cursor<'_, 'g, F, L2Gpa, Spa, M, S, X>,
            Key,
            u64,
        ) -> Result<Fate<'g>, Error>,
    ) -> Result<Step<'g>, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let format = *cursor.tables().format();
        let mut deal = |this: &mut Self, index| -> Result<Option<Step<'g>>, Error> {
            let Some((key, start)) = this.reverse.at(index) else { return Ok(None) };
            match act(this, cursor, key, start)? {
                Fate::Stays => {}
                Fate::Gone => this.forget(track, index),
                Fate::Invalidate(step) => return Ok(Some(step)),
            }
            Ok(None)
        };
        let (first, last) = (*range.start(), *range.end());
        if first > last {
            return Ok(Step::Done);
        }
        let top = format.top();
        // By their keys where that is less work than looking at every record.
        let pages = (last >> 12) - (first >> 12) + 1;
        if pages.saturating_mul(2 * (u64::from(top) + 1)) < self.reverse.len() as u64 {
            for level in 0..=top.max(self.stack.upper.format.top()) {
                for (what, shift) in
                    [(What::Leaf(level), format.shift(level)), (What::Table(level), 12)]
                {
                    for number in first >> shift..=last >> shift {
                        let key = Key { address: number << shift, what };
                        let mut found = self.reverse.first(key);
                        while let Some(index) = found {
                            found = self.reverse.after(index);
                            if let Some(step) = deal(self, index)? {
                                return Ok(step);
                            }
                        }
                    }
                }
            }
            return Ok(Step::Done);
        }
        for index in 0..self.reverse.len() {
            let Some((key, _)) = self.reverse.at(index) else { continue };
            if key.address <= last
                && self.last_of(&format, key.what, key.address) >= first
                && let Some(step) = deal(self, index)?
            {
                return Ok(step);
            }
        }
        Ok(Step::Done)
    }

    fn forget(&mut self, track: &mut impl Track, index: usize) {
        if let Some((Key { address, what }, _)) = self.reverse.at(index) {
            self.reverse.forget(index);
            // The page may hold tables of other levels, or be one for other addresses.
            let held = |level| self.reverse.first(Key { address, what: What::Table(level) });
            if matches!(what, What::Table(_)) && !(0..8).any(|level| held(level).is_some()) {
                track.untrack(Gpa::new(address));
            }
        }
    }

    /// Whether any combined leaf follows from the record.
    fn leads_anywhere<M, S, X>(
        &self,
        cursor: &Cursor<'_, '_, F, L2Gpa, Spa, M, S, X>,
        what: What,
        start: u64,
    ) -> Result<bool, Error>
    where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        let tables = cursor.tables();
        let entries = 0..=self.entries_in_page() - 1;
        let Some((first, last)) = self.range_of(tables.format(), what, start, entries) else {
            return Ok(false);
        };
        let mut leaves = tables.mappings(L2Gpa::new(first), last - first + 1)?;
        Ok(match what {
            What::Leaf(level) => leaves.next().is_some_and(|leaf| leaf.level == level),
            _ => leaves.next().is_some(),
        })
    }

    /// Forgets records from which nothing follows any more.
    pub(super) fn sweep<M, S, X>(
        &mut self,
        cursor: &Cursor<'_, '_, F, L2Gpa, Spa, M, S, X>,
        track: &mut impl Track,
    ) where
        M: TableMemory<F::Word>,
        S: FrameSource,
        X: Mode,
    {
        for index in 0..self.reverse.len() {
            if let Some((key, start)) = self.reverse.at(index)
                && let Ok(false) = self.leads_anywhere(cursor, key.what, start)
            {
                self.forget(track, index);
            }
        }
    }
}
