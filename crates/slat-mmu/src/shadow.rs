//! The shadow pager: what a hypervisor without SLAT keeps. Tables from GVA to SPA, in 4- or 5-level
//! x86 form, derived from the guest's tables and kept true to them by traps.
//!
//! Two disciplines: every store to a tracked table page traps; or level-0 tables go *out of sync*
//! at their first store and are compared with the guest's when the architecture obliges the shadow
//! to be true (CR3 load, INVLPG).

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use slat::format::{Decoded, Format, MAX_LEVELS};
use slat::{
    Access, EntryLayout, Gpa, Gva, Kind, Memory, Privilege, Reached, Regime, Stage, Steps, Value,
    walk,
};

/// How stores to guest tables are noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Discipline {
    /// Each one exits and is emulated.
    TrapAll,
    /// The first store to a level-0 table exits; later ones are free until it is resynchronized.
    OutOfSync,
}

/// Why the guest left for the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Exit {
    /// It stored to a tracked table page.
    TableWrite,
    /// It loaded CR3.
    Cr3,
    /// It executed INVLPG.
    Invlpg,
    /// It took a page fault of its own.
    TrueFault,
    /// The shadow had no entry, or one with fewer rights, where the guest's tables have one.
    HiddenFault,
    /// It wrote through an entry that was kept read-only to learn of the first write.
    Dirty,
}

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One table of the shadow: 512 entries.
pub type Table = [u64; 512];

/// The guest's memory, as the pager needs it.
pub trait GuestTables {
    /// The table entry at this guest physical address; 0 where nothing is known of it.
    fn entry(&self, gpa: u64) -> u64;

    /// Sets accessed and dirty bits in the entry there.
    fn touch(&mut self, gpa: u64, bits: u64);

    /// Where a guest physical address lies: the system physical address, and log2 of the page that
    /// the host backs it with.
    fn place(&self, gpa: u64) -> (u64, u8);
}

/// The guest's tables as the memory of a walk.
struct Walked<'a, G>(&'a mut G);

impl<G: GuestTables> Memory for Walked<'_, G> {
    type Address = Gpa;
    type Fault = core::convert::Infallible;

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
            self.0.touch(at.raw(), new & !current);
        }
        Ok(same)
    }
}

#[derive(Clone, Debug)]
struct Shadowed {
    /// Guest frame whose table this shadows; `u64::MAX` for one that splits a large guest page.
    gfn: u64,
    level: u8,
    unsync: bool,
    live: bool,
    /// Trapped stores since a fault last passed here.
    stores: u8,
    /// Entries that link here: (table, index).
    parents: Vec<(u32, u16)>,
}

/// The shadow tables of one virtual machine.
#[derive(Clone, Debug)]
pub struct Pager {
    discipline: Discipline,
    root_level: u8,
    base: u64,
    pages: Vec<Shadowed>,
    free: Vec<u32>,
    /// Shadow tables by guest frame: one a level that the frame is used at.
    by_frame: BTreeMap<u64, Vec<u32>>,
    unsync: Vec<u32>,
    most: usize,
}

/// A table above level 0 that this many stores trapped on with no fault through it between is no
/// longer used as one, or is being written as a whole: its shadow is dropped, and stores to it are
/// free (the write-flooding rule of Linux KVM's shadow MMU).
const FLOOD: u8 = 3;

/// The most entries that [`Pager::fill_accessed`] follows: tables that name themselves end there.
const FILL_LIMIT: u64 = 1 << 22;

/// What a store to a table page led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// The store trapped.
    pub exits: bool,
    /// Something that translated was dropped: what a TLB holds of it has to go too.
    pub dropped: bool,
}

/// What a guest access found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The guest's tables do not permit it: the fault is the guest's.
    True,
    /// The shadow now has an entry; the exit was for this cause.
    Hidden(Exit),
}

impl Pager {
    /// No tables. `root_level` is 3 or 4; `base` is where `tables[0]` lies in system physical
    /// memory.
    pub fn new(discipline: Discipline, root_level: u8, base: u64) -> Pager {
        Pager {
            discipline,
            root_level,
            base,
            pages: Vec::new(),
            free: Vec::new(),
            by_frame: BTreeMap::new(),
            unsync: Vec::new(),
            most: 0,
        }
    }

    /// The most tables that were live at once.
    pub fn most_tables(&self) -> usize {
        self.most
    }

    /// The tables that are live.
    pub fn live_tables(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    fn address(&self, page: u32) -> u64 {
        self.base + u64::from(page) * 4096
    }

    fn page_of(&self, entry: u64) -> u32 {
        (((entry & ADDRESS) - self.base) >> 12) as u32
    }

    fn allocate(&mut self, tables: &mut Vec<Table>, gfn: u64, level: u8) -> u32 {
        let shadowed =
            Shadowed { gfn, level, unsync: false, live: true, stores: 0, parents: Vec::new() };
        let page = match self.free.pop() {
            Some(page) => {
                tables[page as usize] = [0; 512];
                self.pages[page as usize] = shadowed;
                page
            }
            None => {
                tables.push([0; 512]);
                self.pages.push(shadowed);
                self.pages.len() as u32 - 1
            }
        };
        self.most = self.most.max(self.live_tables());
        if gfn != u64::MAX {
            self.by_frame.entry(gfn).or_default().push(page);
        }
        page
    }

    /// The shadow of the guest table in frame `gfn` used at `level`, made if it is not there.
    fn shadow_of(&mut self, tables: &mut Vec<Table>, gfn: u64, level: u8) -> u32 {
        let known = self.by_frame.get(&gfn).and_then(|pages| {
            pages.iter().copied().find(|&page| self.pages[page as usize].level == level)
        });
        known.unwrap_or_else(|| self.allocate(tables, gfn, level))
    }

    /// The shadow root for a guest root: what the hardware's CR3 holds. Roots of other address
    /// spaces stay cached.
    pub fn root(&mut self, tables: &mut Vec<Table>, cr3: u64) -> u64 {
        let page = self.shadow_of(tables, (cr3 & ADDRESS) >> 12, self.root_level);
        self.address(page)
    }

    /// Fills the shadow for an access that found no entry, or one that does not permit it.
    ///
    /// The guest's tables are walked as its processor would walk them: `stage1` has the guest's
    /// controls and root, and sets accessed and dirty bits. The processor that walks the shadow runs
    /// with CR0.WP set; supervisor stores to read-only pages of a guest that has cleared its own are
    /// for the caller to emulate.
    pub fn fill<F: Format>(
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
        if walk(stage1, &mut Walked(guest), gva, access, regime, &steps).is_err() {
            return Filled::True;
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
            let write = access.kind == Kind::Write;
            // A clean page is kept read-only: its first store must set the guest's dirty bit.
            let writable = if write || entry & D != 0 { entry & RW | D } else { 0 };
            let flags = P | A | entry & (US | XD) | writable;
            let had = self.leaf(tables, guest, table, index, level, entry, address, flags);
            let only_dirty = write && had & P != 0 && had & RW == 0 && entry & RW != 0;
            return Filled::Hidden(if only_dirty { Exit::Dirty } else { Exit::HiddenFault });
        }
        // Stage 1 is off, and there is nothing to shadow.
        Filled::True
    }

    /// Fills the shadow with every page of the guest root in frame `root` that its entry says was
    /// accessed, writable where it is dirty: what a hypervisor has after it ran the guest for a
    /// while. The other parameters are those of [`Pager::fill`].
    pub fn fill_accessed<F: Format>(
        &mut self,
        tables: &mut Vec<Table>,
        guest: &mut impl GuestTables,
        stage1: &Stage<F, Gva, Gpa>,
        regime: &Regime,
        root: u64,
    ) {
        let mut left = FILL_LIMIT;
        let mut tables_left = vec![(root & ADDRESS, self.root_level, 0u64)];
        let unused = 64 - (12 + 9 * (u32::from(self.root_level) + 1));
        while let Some((table, level, base)) = tables_left.pop() {
            let shift = 12 + 9 * level;
            for index in 0..512u64 {
                let entry = guest.entry(table + 8 * index);
                if entry & (P | A) != P | A {
                    continue;
                }
                if left == 0 {
                    return;
                }
                left -= 1;
                let address = base | index << shift;
                if level > 0 && (level > 2 || entry & PS == 0) {
                    tables_left.push((entry & ADDRESS, level - 1, address));
                    continue;
                }
                let dirty = entry & (RW | D) == RW | D;
                let kind = if dirty { Kind::Write } else { Kind::Read };
                let access = Access::new(kind, Privilege::Supervisor);
                // A guest page larger than the host's is filled in the host's pieces.
                let piece = shift.min(guest.place(entry & ADDRESS).1.max(12));
                let pieces = (1u64 << (shift - piece)).min(left + 1);
                for nth in 0..pieces {
                    let address = address + (nth << piece);
                    let canonical = ((address << unused) as i64 >> unused) as u64;
                    // What the tables do not permit stays out.
                    self.fill(tables, guest, stage1, regime, canonical, &access);
                }
                left -= pieces - 1;
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
    fn is_below(&self, page: u32, above: u32) -> bool {
        let mut parents = self.pages[page as usize].parents.iter();
        page == above || parents.any(|&(parent, _)| self.is_below(parent, above))
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
        let (spa, backed) = guest.place(gpa);
        if u32::from(backed) >= shift {
            let base = spa & (!0 << shift);
            let large = if level > 0 { PS } else { 0 };
            let held = tables[page as usize][index];
            let linked = held & P != 0 && held & PS == 0 && level > 0;
            if linked {
                self.zap(tables, page, index);
            }
            tables[page as usize][index] = base | flags | large;
            return if linked { 0 } else { held };
        }
        // The host's pages are smaller: the guest's large page splits.
        let held = tables[page as usize][index];
        let child = if held & P != 0 && held & PS == 0 {
            self.page_of(held)
        } else {
            let child = self.allocate(tables, u64::MAX, level - 1);
            self.pages[child as usize].parents.push((page, index as u16));
            child
        };
        tables[page as usize][index] = self.address(child) | P | RW | US | A;
        let below = level - 1;
        let at = (address >> (12 + 9 * u32::from(below)) & 0x1ff) as usize;
        self.leaf(tables, guest, child, at, below, gpa | P, address, flags)
    }

    /// Drops one entry, and a table that splits a large page with it.
    fn zap(&mut self, tables: &mut Vec<Table>, page: u32, index: usize) {
        let held = core::mem::take(&mut tables[page as usize][index]);
        let level = self.pages[page as usize].level;
        if held & P == 0 || held & PS != 0 || level == 0 {
            return;
        }
        let child = self.page_of(held);
        let link = (page, index as u16);
        let shadowed = &mut self.pages[child as usize];
        shadowed.parents.retain(|&parent| parent != link);
        if shadowed.gfn == u64::MAX && shadowed.parents.is_empty() {
            self.drop_table(tables, child);
        }
    }

    fn drop_table(&mut self, tables: &mut Vec<Table>, page: u32) {
        if !core::mem::take(&mut self.pages[page as usize].live) {
            return;
        }
        for index in 0..512 {
            if tables[page as usize][index] & P != 0 {
                self.zap(tables, page, index);
            }
        }
        for (parent, index) in core::mem::take(&mut self.pages[page as usize].parents) {
            tables[parent as usize][usize::from(index)] = 0;
        }
        let gfn = self.pages[page as usize].gfn;
        if let Some(pages) = self.by_frame.get_mut(&gfn) {
            pages.retain(|&held| held != page);
            if pages.is_empty() {
                self.by_frame.remove(&gfn);
            }
        }
        self.unsync.retain(|&held| held != page);
        self.free.push(page);
    }

    /// The guest stored to a table page.
    pub fn store(&mut self, tables: &mut Vec<Table>, gpa: u64) -> Stored {
        let mut stored = Stored::default();
        let Some(pages) = self.by_frame.get(&(gpa >> 12)) else { return stored };
        let index = (gpa >> 3 & 0x1ff) as usize;
        for page in pages.clone() {
            let shadowed = &mut self.pages[page as usize];
            if shadowed.level == 0 && self.discipline == Discipline::OutOfSync {
                if !shadowed.unsync {
                    shadowed.unsync = true;
                    self.unsync.push(page);
                    stored.exits = true;
                }
                continue;
            }
            stored.exits = true;
            shadowed.stores = shadowed.stores.saturating_add(1);
            if shadowed.level > 0 && shadowed.stores >= FLOOD {
                self.drop_table(tables, page);
                stored.dropped = true;
            } else if tables[page as usize][index] & P != 0 {
                self.zap(tables, page, index);
                stored.dropped = true;
            }
        }
        stored
    }

    /// The guest no longer uses the frame as a table: its shadows go.
    pub fn release(&mut self, tables: &mut Vec<Table>, gpa: u64) {
        if let Some(pages) = self.by_frame.get(&(gpa >> 12)) {
            for page in pages.clone() {
                self.drop_table(tables, page);
            }
        }
    }

    /// Compares every table that is out of sync with the guest's, drops what differs, and tracks
    /// stores again. Returns how many tables that were.
    pub fn synchronize(&mut self, tables: &mut [Table], guest: &impl GuestTables) -> usize {
        let unsync = core::mem::take(&mut self.unsync);
        for &page in &unsync {
            self.compare_all(tables, guest, page);
        }
        unsync.len()
    }

    /// Makes one table that is out of sync true, and tracks stores to it again. The caller takes it
    /// off the list.
    fn compare_all(&mut self, tables: &mut [Table], guest: &impl GuestTables, page: u32) {
        self.pages[page as usize].unsync = false;
        let gfn = self.pages[page as usize].gfn;
        for index in 0..512 {
            self.compare(tables, guest, page, gfn, index);
        }
    }

    /// INVLPG: the entry of one address is made true.
    pub fn invalidate(
        &mut self,
        tables: &mut [Table],
        guest: &impl GuestTables,
        root: u64,
        address: u64,
    ) {
        let mut page = ((root - self.base) >> 12) as u32;
        for level in (0..=self.root_level).rev() {
            let index = (address >> (12 + 9 * u32::from(level)) & 0x1ff) as usize;
            let entry = tables[page as usize][index];
            if entry & P == 0 {
                return;
            }
            if level == 0 || entry & PS != 0 {
                let gfn = self.pages[page as usize].gfn;
                if gfn == u64::MAX {
                    tables[page as usize][index] = 0;
                } else {
                    self.compare(tables, guest, page, gfn, index);
                }
                return;
            }
            page = self.page_of(entry);
        }
    }

    /// Drops a leaf that the guest's entry no longer justifies.
    fn compare(
        &mut self,
        tables: &mut [Table],
        guest: &impl GuestTables,
        page: u32,
        gfn: u64,
        index: usize,
    ) {
        let held = tables[page as usize][index];
        if held & P == 0 {
            return;
        }
        let now = guest.entry(gfn << 12 | (index as u64) << 3);
        let same_place = now & P != 0 && guest.place(now & ADDRESS).0 & !0xfff == held & ADDRESS;
        let widened = held & (RW | US) & !now != 0 || now & XD & !held != 0;
        // A bit that the guest has cleared must be set by the next access again.
        let clean = now & A == 0 || held & RW != 0 && now & D == 0;
        if !same_place || widened || clean {
            tables[page as usize][index] = 0;
        }
    }
}
