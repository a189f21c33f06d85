//! Stage 1's memory: second-stage translations through the nested TLB and its walk cache.

use core::hint::cold_path;

use slat::format::{Decoded, Format};
use slat::{
    Access, Descent, EntryLayout, Failed, Gpa, Kind, Mapped, Memory, Next, Observer, Privilege,
    Reached, Regime, Spa, Stage, Value,
};

use super::coalesce::joined;
use super::config::LEVELS;
use super::page_walk::{Cached, PageWalk};
use super::rest::rest;
use super::rights::entry_of;
use super::walk_cache::WalkCache;
use crate::array::Array;
use crate::tlb::{Entry, Level, Rights, Space, Tag};

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
    pub(super) places: &'a mut Places,
    /// Where the last entry was read.
    pub(super) last: Spa,
}

/// Table pages that a walk has read: where they are to the guest, and where stage 2 has placed them.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pages: [(u64, u64); LEVELS],
    count: usize,
}

impl Places {
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    #[inline(always)]
    fn push(&mut self, gpa: u64, spa: u64) {
        if let Some(slot) = self.pages.get_mut(self.count) {
            *slot = (gpa & !0xfff, spa & !0xfff);
            self.count += 1;
        }
    }

    /// Where a page was placed; `u64::MAX` for one that was not read.
    #[inline(always)]
    pub(super) fn of(&self, page: u64) -> u64 {
        let read = self.pages.iter().take(self.count);
        read.clone().find(|(gpa, _)| *gpa == page).map_or(u64::MAX, |(_, spa)| *spa)
    }
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
    #[inline(always)]
    fn walk(
        &mut self,
        gpa: Gpa,
        access: &Access,
        asked: Rights,
    ) -> Result<Entry, Failed<Gpa, M::Fault>> {
        let (stage2, regime, observer) = (self.stage2, self.regime, self.observer);
        let format = &stage2.format;
        let cached = self.walk_cache.find(format, gpa.raw(), [self.vm; 2]);
        let from = cached.as_ref().map(|table| &table.from);
        self.walk_cache.begin();
        let Some(mut walk) = Descent::new(stage2, format, from, gpa, access, regime, observer)
        else {
            return self.without_tables(gpa, access.by_fields(), asked).map(Entry::by_fields);
        };
        loop {
            let next = walk.step(&mut self.nested_memory());
            match next {
                Ok(Next::Table(partial)) => self.walk_cache.pass(partial),
                Ok(Next::Leaf(mapped)) => {
                    let at = walk.entry_address();
                    return Ok(self.found(&mapped, gpa, at, access, asked));
                }
                Ok(Next::Other(entry)) => {
                    let rest = self.rest(walk.by_fields(), entry, gpa, access.by_fields(), asked);
                    return rest.map(Entry::by_fields);
                }
                Err(below) => {
                    cold_path();
                    return Err(Failed::Below(below));
                }
            }
        }
    }

    /// The memory under stage 2.
    #[inline(always)]
    fn nested_memory(&mut self) -> PageWalk<'_, M, impl Fn(u64, u8) -> bool> {
        let format = &self.stage2.format;
        PageWalk {
            enabled: self.page_walk_nested,
            cache: &mut *self.page_walk,
            vm: self.vm,
            memory: &mut *self.memory,
            is_table: |entry, level| matches!(format.decode(entry, level), Decoded::Table { .. }),
        }
    }

    /// What a walk has found whose leaf was read at `at`: the tables that it passed are kept.
    #[inline(always)]
    fn found(
        &mut self,
        mapped: &Mapped<Spa>,
        gpa: Gpa,
        at: u64,
        access: &Access,
        asked: Rights,
    ) -> Entry {
        let format = &self.stage2.format;
        self.walk_cache.keep(format, gpa.raw(), self.vm, |_| u64::MAX);
        let Entry { base, types, rights, shift, leaf } =
            entry_of(format, mapped, access, self.regime, asked);
        let rights = rights.with(Rights::TABLES, access.purpose.is_table());
        let found = &mapped.found;
        let shift = if self.coalesces != 0 && found.level == 0 && !found.is_flat() {
            let (at, pages) = (Spa::new(at), self.coalesces);
            joined(format, self.memory, at, found.by_fields(), access.by_fields(), pages)
        } else {
            shift
        };
        Entry { base: base >> shift << shift, types, rights, shift, leaf }
    }

    /// Stage 2 is off, or has no translation for such an address.
    #[inline(never)]
    fn without_tables(
        &mut self,
        gpa: Gpa,
        access: Access,
        asked: Rights,
    ) -> Result<Entry, Failed<Gpa, M::Fault>> {
        let access = &access;
        let (stage2, regime, observer) = (self.stage2, self.regime, self.observer);
        let mapped = {
            let mut memory = self.nested_memory();
            slat::walk(stage2, &mut memory, gpa, access, regime, observer)?
        };
        Ok(self.found(&mapped, gpa, 0, access, asked))
    }

    /// The rest of a walk that has met this entry.
    #[cold]
    #[inline(never)]
    fn rest(
        &mut self,
        walk: Descent<'_, F2, Gpa, Spa, W>,
        entry: u64,
        gpa: Gpa,
        access: Access,
        asked: Rights,
    ) -> Result<Entry, Failed<Gpa, M::Fault>> {
        let (format, observer, access) = (&self.stage2.format, self.observer, &access);
        // Not by `nested_memory`: the cache is lent as well.
        let mut memory = PageWalk {
            enabled: self.page_walk_nested,
            cache: &mut *self.page_walk,
            vm: self.vm,
            memory: &mut *self.memory,
            is_table: |entry, level| matches!(format.decode(entry, level), Decoded::Table { .. }),
        };
        let cache = &mut *self.walk_cache;
        let rest = rest(walk, format, entry, &mut memory, access, observer, cache)?;
        if rest.dirtied {
            self.dirtied.push(gpa.raw());
        }
        Ok(self.found(&rest.mapped, gpa, rest.at, access, asked))
    }

    /// The translation of `gpa` by a walk, or, with `held`, by the nested TLB, which keeps what a walk
    /// has found. It serves an entry that has `right`.
    #[inline(always)]
    pub(super) fn translate(
        &mut self,
        gpa: Gpa,
        access: &Access,
        right: Rights,
        asked: Rights,
        held: bool,
    ) -> Result<Entry, Failed<Gpa, M::Fault>> {
        let raw = gpa.raw();
        let space = Space { own: self.vm, global: self.vm };
        if held && let Some(mut entry) = self.nested_tlb.find(raw, space) {
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
        if held && let Some(shift) = self.nested_tlb.size_within(entry.shift) {
            self.nested_tlb.insert(raw, self.vm, entry.part(raw, shift));
        }
        Ok(entry)
    }

    /// Whether the nested TLB has a place for entries.
    #[inline(always)]
    pub(super) fn has_nested_tlb(&self) -> bool {
        !self.nested_tlb.is_none()
    }

    /// Where a table entry is that is to be read.
    #[inline(always)]
    fn place(&mut self, gpa: Gpa, access: &Access) -> Result<Spa, Failed<Gpa, M::Fault>> {
        let raw = gpa.raw();
        if let Some((page, place)) = self.known
            && raw >> 12 == page >> 12
        {
            return Ok(Spa::new(place | raw & 0xfff));
        }
        let held = self.has_nested_tlb();
        let entry = self.translate(gpa, access, Rights::TABLES, Rights::default(), held)?;
        let place = entry.place(raw);
        self.places.push(raw, place);
        Ok(Spa::new(place))
    }

    /// Where a table entry is that is to be written.
    #[cold]
    #[inline(never)]
    fn place_to_write(&mut self, gpa: Gpa, access: &Access) -> Result<Spa, Failed<Gpa, M::Fault>> {
        let user = access.privilege == Privilege::User;
        let right = Rights::may(Kind::Write, user).with(Rights::DIRTY.or(Rights::TABLES), true);
        let held = self.has_nested_tlb();
        let place = self.translate(gpa, access, right, Rights::default(), held)?.place(gpa.raw());
        self.places.push(gpa.raw(), place);
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
        let spa = self.place_to_write(gpa, access)?;
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
