//! Filling the shadow: what a fault finds in the guest's tables.

use alloc::vec;
use alloc::vec::Vec;

use slat::format::{Decoded, Format, MAX_LEVELS};
use slat::{
    Access, EntryLayout, Failed, Flavor, Gpa, Gva, Kind, Memory, Privilege, Reached, Regime, Stage,
    Steps, Value, walk,
};

use super::protect::{HELD, Split};
use super::tables::Shadowed;
use super::{A, ADDRESS, D, Exit, Filled, GuestTables, KEY, Kept, P, PS, Pager, RW, Table, US, XD};

/// The most entries that [`Pager::fill_accessed`] follows: tables that name themselves end there.
const FILL_LIMIT: u64 = 1 << 22;

/// The guest's tables as the memory of a walk.
struct Walked<'a, G>(&'a mut G);

impl<G: GuestTables> Memory for Walked<'_, G> {
    type Address = Gpa;
    type Fault = Kept;

    fn read(&mut self, at: Gpa, _: EntryLayout, _: &Access) -> Result<Value, Self::Fault> {
        Ok(Value { value: self.0.entry(at.raw()), reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        at: Gpa,
        _: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Self::Fault> {
        let same = self.0.entry(at.raw()) == current;
        if same {
            self.0.touch(at.raw(), new & !current)?;
        }
        Ok(same)
    }
}

impl Pager {
    /// Fills the shadow for an access that found no entry, or one that does not permit it.
    ///
    /// The guest's tables are walked as its processor would walk them: `stage1` has the guest's
    /// controls and root, and sets accessed and dirty bits. The processor that walks the shadow runs
    /// with CR0.WP set; supervisor stores to read-only pages of a guest that has cleared its own are
    /// for the caller to carry out ([`Filled::Carried`]), and so are stores to tables whose leaves
    /// [`Pager::with_protection`] holds. For shadow-stack loads goes what is said of stores, since a leaf that
    /// permits them permits shadow-stack stores too.
    pub fn fill<F: Format>(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &mut impl GuestTables,
        stage1: &Stage<F, Gva, Gpa>,
        regime: &Regime,
        address: u64,
        access: &Access,
    ) -> Filled {
        let _ = self.settle(tables, guest);
        self.shrink(tables);
        let filled = self.fill_one(tables, guest, stage1, regime, address, access);
        let _ = self.settle(tables, guest);
        filled
    }

    fn fill_one<F: Format>(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &mut impl GuestTables,
        stage1: &Stage<F, Gva, Gpa>,
        regime: &Regime,
        address: u64,
        access: &Access,
    ) -> Filled {
        let steps = Steps::<MAX_LEVELS>::default();
        let gva = Gva::new(address);
        let mapped = match walk(stage1, &mut Walked(guest), gva, access, regime, &steps) {
            Ok(mapped) => mapped,
            Err(Failed::Below(Kept(gpa))) => return Filled::Host { gpa },
            Err(Failed::Here(_)) => {
                self.exit(Exit::TrueFault);
                return Filled::True;
            }
        };
        let gpa = mapped.output.raw();
        let on_stack = access.flavor == Flavor::ShadowStack;
        let write = access.kind == Kind::Write || on_stack;
        if guest.place(gpa).is_none_or(|place| write && !place.writable) {
            return Filled::Host { gpa };
        }
        let mut page = None;
        for step in steps.iter() {
            let (at, level, entry) = (step.entry_address, step.level, step.entry);
            let index = (at >> 3 & 0x1ff) as usize;
            let table = match page {
                Some(page) => page,
                None => self.shadow_of(tables, at >> 12, level),
            };
            self.pages[table as usize].stores = 0;
            if let Decoded::Table { next } = step.decoded {
                let child = self.linked(tables, guest, (table, index), next >> 12, level - 1);
                // Each entry has its own rights: the same table may be reached by paths that differ.
                tables[table as usize][index] =
                    self.address(child) | P | A | entry & (RW | US | XD);
                page = Some(child);
                continue;
            }
            let page = stage1.format.page(&mapped.found, regime);
            if write && !on_stack && (!page.writable || self.key_denies(entry, page.user, regime)) {
                // Permitted by CR0.WP alone.
                self.exit(Exit::Emulation);
                return Filled::Carried { gpa, exit: Exit::Emulation };
            }
            // A clean page is kept read-only: its first store must set the guest's dirty bit.
            let writable = if write || entry & D != 0 { entry & RW | D } else { 0 };
            let flags = P | A | entry & (US | XD | KEY) | writable;
            let had = self.leaf(tables, guest, table, index, level, entry, address, flags);
            if write && self.traps(gpa) {
                return Filled::Carried { gpa, exit: Exit::TableWrite };
            }
            let only_dirty = write && had & P != 0 && had & (RW | HELD) == 0 && entry & RW != 0;
            if had == tables[table as usize][index] && had & P != 0 {
                self.counts.relinked += 1;
            }
            if level == 0 && self.prefetches > 1 {
                self.prefetch(tables, guest, stage1, table, index);
            }
            let exit = if only_dirty { Exit::Dirty } else { Exit::HiddenFault };
            self.exit(exit);
            return Filled::Hidden(exit);
        }
        // Stage 1 is off, and there is nothing to shadow.
        Filled::True
    }

    /// Whether a key denies stores to this leaf's page where `CR0.WP` is set.
    fn key_denies(&self, entry: u64, user: bool, regime: &Regime) -> bool {
        let [of_users, of_supervisors] = self.keys;
        let (keys, register) = match user {
            true => (of_users, regime.x86.pkru),
            false => (of_supervisors, regime.x86.pkrs),
        };
        let write_disable = 2 * ((entry & KEY) >> KEY.trailing_zeros()) + 1;
        keys && register >> write_disable & 1 != 0
    }

    /// Fills the neighbours of a level-0 leaf that the guest has accessed.
    fn prefetch<F: Format>(
        &mut self,
        tables: &mut [Table],
        guest: &impl GuestTables,
        stage1: &Stage<F, Gva, Gpa>,
        page: u32,
        own: usize,
    ) {
        let gfn = self.pages[page as usize].gfn;
        let first = own & !(usize::from(self.prefetches) - 1);
        if gfn == u64::MAX {
            return;
        }
        for index in first..first + usize::from(self.prefetches) {
            if tables[page as usize][index] & P != 0 {
                continue;
            }
            let entry = guest.entry(gfn << 12 | (index as u64) << 3);
            let Decoded::Leaf { base, .. } = stage1.format.decode(entry, 0) else { return };
            if entry & A == 0 {
                return;
            }
            let writable = if entry & D != 0 { entry & RW | D } else { 0 };
            let Some(place) = guest.place(base) else { continue };
            let writable = self.guarded(base, if place.writable { writable } else { 0 });
            let leaf = place.spa & ADDRESS | P | A | entry & (US | XD | KEY) | writable;
            self.set_leaf(tables, page, index, leaf);
            self.counts.prefetched += 1;
        }
    }

    /// Fills the shadow with every page of the guest root in frame `root` that its entry says was
    /// accessed, writable where it is dirty: what a hypervisor has after it ran the guest for a
    /// while. Tables that are shadowed already, as a kernel's that all roots share, are left as they are.
    /// The other parameters are those of [`Pager::fill`].
    pub fn fill_accessed<F: Format>(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &mut impl GuestTables,
        stage1: &Stage<F, Gva, Gpa>,
        regime: &Regime,
        root: u64,
    ) {
        // Nobody faulted for these.
        let exits = self.counts.exits;
        self.fill_below(tables, guest, stage1, regime, root);
        self.counts.exits = exits;
    }

    fn fill_below<F: Format>(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &mut impl GuestTables,
        stage1: &Stage<F, Gva, Gpa>,
        regime: &Regime,
        root: u64,
    ) {
        let mut left = FILL_LIMIT;
        let found = self.accessed_tables(guest, root & ADDRESS, &mut left);
        // All tables come before the leaves, which are small where a table lies under them.
        for &(table, level, _) in &found {
            self.shadow_of(tables, table >> 12, level);
        }
        let split = self.settle(tables, guest);
        let unused = 64 - (12 + 9 * (u32::from(self.root_level) + 1));
        for (table, level, base) in found {
            let shift = 12 + 9 * level;
            for index in 0..512u64 {
                let entry = guest.entry(table + 8 * index);
                if entry & (P | A) != P | A || level > 2 || level > 0 && entry & PS == 0 {
                    continue;
                }
                let dirty = entry & (RW | D) == RW | D;
                let kind = if dirty { Kind::Write } else { Kind::Read };
                let access = Access::new(kind, Privilege::Supervisor);
                // Pieces as small as the host's pages and the tables under them want them.
                let gpa = entry & ADDRESS & (!0 << shift);
                let mut pieces = vec![(base | index << shift, gpa, shift)];
                while let Some((address, gpa, shift)) = pieces.pop() {
                    let large = guest.place(gpa).is_none_or(|place| place.shift >= shift);
                    let small = !large || self.meets_table(gpa, shift.into());
                    if shift > 12 && small {
                        let piece = |nth: u64| {
                            let offset = nth << (shift - 9);
                            (address + offset, gpa + offset, shift - 9)
                        };
                        pieces.extend((0..512).map(piece));
                        continue;
                    }
                    if left == 0 {
                        return;
                    }
                    left -= 1;
                    let canonical = ((address << unused) as i64 >> unused) as u64;
                    // What the tables do not permit stays out.
                    self.fill_one(tables, guest, stage1, regime, canonical, &access);
                }
            }
        }
        for Split { at: (page, index), leaf } in split {
            self.fill_split(tables, guest, page, index, leaf);
        }
    }

    /// The tables below a root that were accessed and have no shadow: address, level, and the first
    /// address that they translate.
    fn accessed_tables(
        &self,
        guest: &impl GuestTables,
        root: u64,
        left: &mut u64,
    ) -> Vec<(u64, u8, u64)> {
        let mut found = vec![(root, self.root_level, 0u64)];
        let mut next = 0;
        while let Some(&(table, level, base)) = found.get(next) {
            next += 1;
            for index in 0..if level > 0 { 512u64 } else { 0 } {
                let entry = guest.entry(table + 8 * index);
                let leaf = level <= 2 && entry & PS != 0;
                if entry & (P | A) != P | A || leaf || *left == 0 {
                    continue;
                }
                *left -= 1;
                let child = entry & ADDRESS;
                let shadows = self.by_frame.get(&(child >> 12)).into_iter().flatten();
                if !shadows.copied().any(|page| self.pages[page as usize].level == level - 1) {
                    found.push((child, level - 1, base | index << (12 + 9 * level)));
                }
            }
        }
        found
    }

    /// Fills what a large leaf mapped in small pages, of which one holds a table now.
    fn fill_split(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &impl GuestTables,
        page: u32,
        index: usize,
        leaf: u64,
    ) {
        let Shadowed { gfn, level, live, .. } = self.pages[page as usize];
        if !live || level != 1 || gfn == u64::MAX || tables[page as usize][index] & P != 0 {
            return;
        }
        let entry = guest.entry(gfn << 12 | (index as u64) << 3);
        if entry & (P | PS) == P | PS {
            let flags = leaf & !(ADDRESS | PS);
            for nth in 0..512u64 {
                self.leaf(tables, guest, page, index, level, entry, nth << 12, flags);
            }
        }
    }

    /// The table that the entry at (table, index) links to, made and linked if it is another one or
    /// none.
    fn linked(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &impl GuestTables,
        (page, index): (u32, usize),
        gfn: u64,
        level: u8,
    ) -> u32 {
        let held = tables[page as usize][index];
        if held & P != 0 && held & PS == 0 {
            let child = self.page_of(held);
            if self.pages[child as usize].gfn == gfn {
                return child;
            }
        }
        self.zap(tables, page, index);
        let child = self.shadow_of(tables, gfn, level);
        // While it was not linked here, INVLPG could not reach it and what is below it from here:
        // that is made true before it is.
        let (below, others) = self.unsync.iter().partition(|&&unsync| self.is_below(unsync, child));
        self.unsync = others;
        let below: Vec<u32> = below;
        for unsync in below {
            self.compare_all(tables, guest, unsync);
        }
        self.pages[child as usize].parents.push((page, index as u16));
        child
    }

    /// Whether some path from `above` leads to `page`.
    pub(super) fn is_below(&self, page: u32, above: u32) -> bool {
        // Each table once: a guest can make 512 links to a table at every level, and so 2^27 paths.
        let mut seen = vec![false; self.pages.len()];
        let mut left = vec![page];
        while let Some(page) = left.pop() {
            if page == above {
                return true;
            }
            for &(parent, _) in &self.pages[page as usize].parents {
                if !core::mem::replace(&mut seen[parent as usize], true) {
                    left.push(parent);
                }
            }
        }
        false
    }

    /// Installs a leaf, as large as both the guest's and the host's pages allow, and returns the one
    /// that was there.
    #[expect(clippy::too_many_arguments, reason = "one entry's place and content")]
    fn leaf(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &impl GuestTables,
        page: u32,
        index: usize,
        level: u8,
        entry: u64,
        address: u64,
        flags: u64,
    ) -> u64 {
        let shift = 12 + 9 * u32::from(level);
        let gpa = entry & ADDRESS & (!0 << shift) | address & ((1 << shift) - 1);
        // A piece of a large page where the host has put nothing.
        let Some(place) = guest.place(gpa) else { return 0 };
        let small = level == 0;
        if small || u32::from(place.shift) >= shift && !self.meets_table(gpa, shift) {
            let flags = if place.writable { flags } else { flags & !(RW | D) };
            let flags = if small { self.guarded(gpa, flags) } else { flags };
            let base = place.spa & (!0 << shift);
            let large = if level > 0 { PS } else { 0 };
            let held = tables[page as usize][index];
            let linked = held & P != 0 && held & PS == 0 && level > 0;
            if linked {
                self.zap(tables, page, index);
            }
            self.set_leaf(tables, page, index, base | flags | large);
            return if linked { 0 } else { held };
        }
        // The host's pages are smaller: the guest's large page splits.
        let held = tables[page as usize][index];
        let child = if held & P != 0 && held & PS == 0 {
            self.page_of(held)
        } else {
            self.zap(tables, page, index);
            let child = self.allocate(tables, u64::MAX, level - 1);
            self.pages[child as usize].parents.push((page, index as u16));
            child
        };
        tables[page as usize][index] = self.address(child) | P | RW | US | A;
        let below = level - 1;
        let at = (address >> (12 + 9 * u32::from(below)) & 0x1ff) as usize;
        self.leaf(tables, guest, child, at, below, gpa | P, address, flags)
    }
}
