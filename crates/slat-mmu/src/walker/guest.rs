//! Stage 1's memory: second-stage translations through the nested TLB and its walk cache.

use slat::format::{Decoded, Format, Path};
use slat::{
    Access, EntryLayout, Failed, Gpa, Kind, Memory, Observer, Partial, Privilege, Purpose, Reached,
    Regime, Spa, Stage, Value, walk_from,
};

use super::coalesce::joined;
use super::config::LEVELS;
use super::page_walk::{Cached, PageWalk};
use super::passed::Passed;
use super::rights::entry_of;
use super::walk_cache::{Table, WalkCache};
use crate::array::Array;
use crate::tlb::{Entry, Level, Rights, Space, Tag};

/// Table pages that were read: where they are to the guest, and where stage 2 has placed them.
pub(super) type Places = [(u64, u64); LEVELS];

pub(super) struct GuestMemory<'a, F1, F2: Format, M, W> {
    pub(super) format: &'a F1,
    pub(super) stage2: &'a Stage<F2, Gpa, Spa>,
    pub(super) walk_cache: &'a mut WalkCache,
    pub(super) nested_tlb: &'a mut Level,
    pub(super) page_walk: &'a mut Array<Cached>,
    pub(super) page_walk_nested: bool,
    pub(super) memory: &'a mut M,
    pub(super) regime: &'a Regime,
    pub(super) vm: Tag,
    pub(super) observer: &'a W,
    pub(super) dirtied: &'a mut Dirtied,
    pub(super) coalesces: u8,
    /// A table page whose place is known from a combined mapping: GPA and SPA of the page.
    pub(super) known: Option<(u64, u64)>,
    pub(super) places: Places,
    pub(super) read: usize,
    /// Where the last entry was read.
    pub(super) last: Spa,
}

/// Guest physical pages whose dirty flag of stage 2 the last walk has set.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirtied {
    pages: [u64; LEVELS + 1],
    count: usize,
}

impl Dirtied {
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    pub(super) fn pages(&self) -> &[u64] {
        &self.pages[..self.count]
    }

    fn push(&mut self, gpa: u64) {
        if let Some(slot) = self.pages.get_mut(self.count) {
            *slot = gpa & !0xfff;
            self.count += 1;
        }
    }
}

impl<F1: Format, F2: Format, M: Memory<Address = Spa>, W: Observer> GuestMemory<'_, F1, F2, M, W> {
    /// Walks stage 2 for one address, from the lowest table that its walk cache names; `asked` are
    /// the rights that are worth knowing.
    #[inline]
    pub(super) fn walk(
        &mut self,
        gpa: Gpa,
        access: &Access,
        asked: Rights,
    ) -> Result<Entry, Failed<Gpa, M::Fault>> {
        let format = &self.stage2.format;
        let from = self.walk_cache.find(format, gpa.raw(), [self.vm; 2]).map(|table| table.from);
        let passed = Passed::new(self.observer);
        let mut memory = PageWalk {
            enabled: self.page_walk_nested,
            cache: &mut *self.page_walk,
            vm: self.vm,
            memory: &mut *self.memory,
            is_table: |entry, level| matches!(format.decode(entry, level), Decoded::Table { .. }),
        };
        let (stage2, regime) = (self.stage2, self.regime);
        let mapped = match &from {
            Some(from) => walk_from(stage2, from, &mut memory, gpa, access, regime, &passed)?,
            None => slat::walk(stage2, &mut memory, gpa, access, regime, &passed)?,
        };
        let mut path = from.map_or(Path::START, |from| from.path);
        for (level, entry, next) in passed.tables() {
            format.join(&mut path, entry, level);
            let from = Partial { level: level - 1, table: next, path };
            let table = Table { from, placed: u64::MAX, shift: 0 };
            self.walk_cache.insert(format, gpa.raw(), self.vm, table);
        }
        if let Some((old, new, level)) = passed.updated.get() {
            // What a read would not have set is the dirty flag.
            let read = Access { kind: Kind::Read, purpose: Purpose::Final, ..*access };
            if format.touched(old, level, true, &read) != new {
                self.dirtied.push(gpa.raw());
            }
        }
        let mut entry = entry_of(format, &mapped, access, regime, asked);
        if access.purpose.is_table() {
            entry.rights = entry.rights.with(Rights::TABLES, true);
        }
        if self.coalesces != 0 && mapped.found.level == 0 && !mapped.found.is_flat() {
            let at = Spa::new(passed.leaf_at.get());
            let found = &mapped.found;
            entry.shift = joined(format, self.memory, at, found, access, self.coalesces);
            entry.base = found.base >> entry.shift << entry.shift;
        }
        Ok(entry)
    }

    /// The translation of `gpa` by the nested TLB, or by a walk that the nested TLB then keeps. It
    /// serves an entry that has `right`.
    #[inline]
    pub(super) fn nested(
        &mut self,
        gpa: Gpa,
        access: &Access,
        right: Rights,
        asked: Rights,
    ) -> Result<Entry, Failed<Gpa, M::Fault>> {
        if self.nested_tlb.is_none() {
            return self.walk(gpa, access, asked);
        }
        let raw = gpa.raw();
        let space = Space { own: self.vm, global: self.vm };
        if let Some(mut entry) = self.nested_tlb.find(raw, space) {
            let of_user = access.page.is_some_and(|page| page.user);
            let held_for = if of_user { Rights::FOR_USERS } else { Rights::FOR_SUPERVISORS };
            if !entry.rights.has(held_for) {
                entry.rights = entry.rights.without(Rights::FETCH);
            }
            if entry.rights.has(right) {
                return Ok(entry);
            }
        }
        let entry = self.walk(gpa, access, asked)?;
        if let Some(shift) = self.nested_tlb.size_within(entry.shift) {
            self.nested_tlb.insert(raw, self.vm, entry.part(raw, shift));
        }
        Ok(entry)
    }

    /// The place of a table entry.
    #[inline]
    fn place(&mut self, gpa: Gpa, access: &Access) -> Result<Spa, Failed<Gpa, M::Fault>> {
        let raw = gpa.raw();
        let reads = access.kind == Kind::Read;
        if reads
            && let Some((page, place)) = self.known
            && raw >> 12 == page >> 12
        {
            return Ok(Spa::new(place | raw & 0xfff));
        }
        let user = access.privilege == Privilege::User;
        let write = Rights::may(Kind::Write, user).with(Rights::DIRTY, true);
        let right = Rights::TABLES.with(write, !reads);
        let place = self.nested(gpa, access, right, Rights::default())?.place(raw);
        if let Some(slot) = self.places.get_mut(self.read) {
            *slot = (raw & !0xfff, place & !0xfff);
        }
        self.read += 1;
        Ok(Spa::new(place))
    }
}

impl<F1: Format, F2: Format, M: Memory<Address = Spa>, W: Observer> Memory
    for GuestMemory<'_, F1, F2, M, W>
{
    type Address = Gpa;
    type Fault = Failed<Gpa, M::Fault>;

    #[inline(always)]
    fn read(
        &mut self,
        gpa: Gpa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        self.last = self.place(gpa, access)?;
        let format = self.format;
        let mut memory = PageWalk {
            enabled: self.page_walk.capacity() != 0,
            cache: &mut *self.page_walk,
            vm: self.vm,
            memory: &mut *self.memory,
            is_table: |entry, level| matches!(format.decode(entry, level), Decoded::Table { .. }),
        };
        let read = memory.read(self.last, layout, access).map_err(Failed::Below)?;
        Ok(Value { value: read.value, reached: Reached::DIRECTLY })
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        gpa: Gpa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        let spa = self.place(gpa, access)?;
        let mut memory = PageWalk {
            enabled: self.page_walk.capacity() != 0,
            cache: &mut *self.page_walk,
            vm: self.vm,
            memory: &mut *self.memory,
            is_table: |_, _| false,
        };
        memory.compare_exchange(spa, layout, current, new, access).map_err(Failed::Below)
    }
}
