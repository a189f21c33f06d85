//! Walks that were made, to be used again while nothing that they depend on changes.
//!
//! A walk depends on the page, the kind of access, the privilege, the registers, and the entries that it read.
//! Registers and vCPUs that translate alike share a *context*. A table entry that changes voids the walks that
//! may have read it and no others: those of its index, where its page only ever ended walks of small pages;
//! else all. An entry that was not present voids nothing, as no walk that arrived has read it.

use std::collections::HashMap;
use std::hash::Hash;

use crate::event::Access;

/// As many pages as a program of 256 MiB has.
const WALKS: usize = 1 << 16;
/// Entries of a table, and so the ways to be told apart by the lowest index.
const INDICES: usize = 512;
/// Contexts that are told apart at a time.
const MOST_CONTEXTS: usize = 1 << (64 - CONTEXT_AT);
const CONTEXT_AT: u32 = 55;
const SHIFT_AT: u32 = 58;
const TIMES: u32 = 1 << (SHIFT_AT - 32);
/// The size of a page is kept as a shift less this.
const SIZE_FROM: u8 = 10;

/// Walks that agreed with the machine.
pub(super) struct Walks<R> {
    /// Of each two words. The first: the virtual page (52 bits), the privilege and the kind (3 bits), and the
    /// context. The second: the physical page (32 bits), the time, and the size of the page as a shift less 10.
    all: Box<[[u64; 2]; WALKS]>,
    /// By the lowest nine bits of the page: walks of an earlier time are void; that of none is 0.
    times: [u32; INDICES],
    /// The registers of each context.
    contexts: HashMap<R, u16>,
    /// Of each page of tables by its number: how walks that are kept have used it, and when that was noted.
    used: Vec<(u32, Use)>,
    /// Uses that were noted at an earlier time are void.
    uses_time: u32,
}

/// How walks used a page of tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Use {
    /// As the last table of a walk to a small page: each entry is of the pages whose lowest index is its own.
    Last,
    /// In another way.
    #[default]
    Other,
}

/// What a walk is known by, and where it would be.
#[derive(Clone, Copy, Default)]
pub(super) struct Key {
    what: u64,
    slot: usize,
}

impl<R: Copy + Eq + Hash> Walks<R> {
    pub(super) fn new() -> Self {
        Self {
            // Zeroed memory is not touched before it is used.
            all: vec![[0; 2]; WALKS].try_into().expect("as many as there are"),
            times: [1; INDICES],
            contexts: HashMap::new(),
            used: Vec::new(),
            uses_time: 1,
        }
    }

    /// The context of some registers. It may void all walks and all other contexts.
    pub(super) fn context(&mut self, registers: R) -> (u16, bool) {
        if let Some(&known) = self.contexts.get(&registers) {
            return (known, false);
        }
        let full = self.contexts.len() == MOST_CONTEXTS;
        if full {
            self.contexts.clear();
            self.forget();
        }
        let number = self.contexts.len() as u16;
        self.contexts.insert(registers, number);
        (number, full)
    }

    /// Voids all walks.
    pub(super) fn forget(&mut self) {
        (0..INDICES).for_each(|index| self.forget_index(index));
        self.uses_time = self.uses_time.wrapping_add(1);
        if self.uses_time == 0 {
            self.used.clear();
            self.uses_time = 1;
        }
    }

    /// Voids the walks for pages whose lowest index is `index`.
    fn forget_index(&mut self, index: usize) {
        self.times[index] += 1;
        if self.times[index] == TIMES {
            self.all.fill([0; 2]);
            self.times = [1; INDICES];
        }
    }

    /// Voids what depends on the entry `index` of the page of tables `page`, which was present and changes.
    pub(super) fn entry_changes(&mut self, page: usize, index: usize) {
        match self.used.get(page) {
            Some(&(time, used)) if time == self.uses_time => match used {
                Use::Last => self.forget_index(index),
                Use::Other => self.forget(),
            },
            // No walk that is kept has read it.
            _ => {}
        }
    }

    /// Voids what depends on any entry of the page of tables `page`.
    pub(super) fn page_changes(&mut self, page: usize) {
        if self.used.get(page).is_some_and(|&(time, _)| time == self.uses_time) {
            self.forget();
        }
    }

    /// Notes that a walk which is to be kept has used the page of tables `page`.
    pub(super) fn note_use(&mut self, page: usize, used: Use) {
        if self.used.len() <= page {
            self.used.resize(page + 1, (0, Use::default()));
        }
        let (time, known) = self.used[page];
        let other = time == self.uses_time && known == Use::Other;
        self.used[page] = (self.uses_time, if other { Use::Other } else { used });
    }

    #[inline(always)]
    pub(super) fn key(access: &Access, context: u16) -> Key {
        let page = access.va >> 12;
        let class = u64::from(access.class());
        // Consecutive pages lie beside each other, the classes of one page and the contexts apart.
        let apart = class << 11 ^ u64::from(context).wrapping_mul(0x9e37);
        Key {
            what: page << 3 | class | u64::from(context) << CONTEXT_AT,
            slot: (page ^ page >> 16 ^ apart) as usize & (WALKS - 1),
        }
    }

    /// Has the place of a walk brought near, for what comes.
    #[inline(always)]
    pub(super) fn touch(&self, key: Key) -> u64 {
        self.all[key.slot & (WALKS - 1)][0]
    }

    /// The size of the page of an access, as a shift, if its walk is known to lead where the machine went; else
    /// 0. `key` is the access's.
    #[inline]
    pub(super) fn known(&self, key: Key, access: &Access) -> u8 {
        let (different, size) = self.look(key, access);
        if different == 0 { size + SIZE_FROM } else { 0 }
    }

    /// Whether the walk of an access is known to lead where the machine went, and the page has 4 KiB; and whether
    /// it is known, and the page has 2 MiB.
    #[inline(always)]
    pub(super) fn is_known(&self, key: Key, access: &Access) -> (bool, bool) {
        let (different, size) = self.look(key, access);
        // Both are computed whether it is known or not: a branch that is not foreseen would hold up the look
        // at the accesses behind it.
        let known = different == 0;
        (known & (size == 12 - SIZE_FROM), known & (size == 21 - SIZE_FROM))
    }

    #[inline(always)]
    fn look(&self, key: Key, access: &Access) -> (u64, u8) {
        let [what, whither] = self.all[key.slot & (WALKS - 1)];
        let different = what ^ key.what | (whither ^ self.whither(access)) << 6;
        (different, (whither >> SHIFT_AT) as u8)
    }

    #[inline(always)]
    fn whither(&self, access: &Access) -> u64 {
        let time = self.times[(access.va >> 12) as usize & (INDICES - 1)];
        u64::from(access.frame) | u64::from(time) << 32
    }

    pub(super) fn keep(&mut self, access: &Access, context: u16, shift: u8) {
        let Key { what, slot } = Self::key(access, context);
        let shift = u64::from(shift.saturating_sub(SIZE_FROM) & 63);
        self.all[slot] = [what, self.whither(access) | shift << SHIFT_AT];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Kind;

    fn access(page: u64) -> Access {
        Access::new(Kind::Load, page << 12, 8).with_frame(7)
    }

    fn known(walks: &Walks<u64>, context: u16, access: &Access) -> u8 {
        walks.known(Walks::<u64>::key(access, context), access)
    }

    #[test]
    fn a_walk_is_known_for_what_it_depends_on_alone() {
        let mut walks = Walks::new();
        let (context, _) = walks.context(1u64);
        let (other, _) = walks.context(2);
        walks.keep(&access(5), context, 12);
        assert_eq!(known(&walks, context, &access(5)), 12);
        assert_eq!(known(&walks, other, &access(5)), 0);
        assert_eq!(known(&walks, context, &access(5).with_frame(8)), 0);
        assert_eq!(known(&walks, context, &access(5).with_user(false)), 0);
        assert_eq!(known(&walks, context, &access(5 + (1 << 20))), 0);
    }

    #[test]
    fn an_entry_that_changes_voids_the_walks_that_may_have_read_it() {
        let mut walks = Walks::new();
        let (context, _) = walks.context(1u64);
        for page in [5, 6, 5 + 512] {
            walks.keep(&access(page), context, 12);
        }
        walks.note_use(9, Use::Last);
        walks.note_use(8, Use::Other);
        walks.entry_changes(3, 5);
        let all = |walks: &_| [5, 6, 517].map(|page| known(walks, context, &access(page)));
        assert_eq!(all(&walks), [12; 3], "no walk has used that page");
        walks.entry_changes(9, 5);
        assert_eq!(all(&walks), [0, 12, 0]);
        walks.entry_changes(8, 5);
        assert_eq!(all(&walks), [0; 3]);
        walks.keep(&access(6), context, 12);
        walks.entry_changes(8, 5);
        assert_eq!(known(&walks, context, &access(6)), 12, "its use was of walks now void");
        walks.note_use(9, Use::Other);
        walks.note_use(9, Use::Last);
        walks.entry_changes(9, 5);
        assert_eq!(known(&walks, context, &access(6)), 0, "used both ways");
    }

    #[test]
    fn contexts_beyond_what_can_be_told_apart_void_all() {
        let mut walks = Walks::new();
        let (first, _) = walks.context(0u64);
        walks.keep(&access(5), first, 12);
        for registers in 1..MOST_CONTEXTS as u64 {
            assert!(!walks.context(registers).1);
        }
        assert_eq!(known(&walks, 0, &access(5)), 12);
        assert_eq!(walks.context(u64::MAX), (0, true));
        assert_eq!(known(&walks, 0, &access(5)), 0);
    }
}
