//! The shadow pager: what a hypervisor without SLAT keeps. Tables from GVA to SPA, in 4- or 5-level
//! x86 form, derived from the guest's tables and kept true to them by traps.
//!
//! Two disciplines: every store to a tracked table page traps; or level-0 tables go *out of sync*
//! at their first store and are compared with the guest's when the architecture obliges the shadow
//! to be true (CR3 load, INVLPG).
//!
//! | guest paging | the pager's `root_level` | roots |
//! |---|---|---|
//! | 4-level, 5-level | 3, 4 | the table that CR3 names |
//! | PAE | 1 | the table that each present PDPTE names, as loaded to the registers |
//! | 32-bit | 3 | [`Widened::root`] of CR3: see [`Widened`] |
//!
//! Several vCPUs share the tables. What a change drops must leave the TLBs of all of them before the
//! host uses the page otherwise (a *remote flush*): [`Pager::take_flush`] says so after each call. It is
//! due even where the guest asked for less, as by INVLPG of one of two addresses that share a table:
//! the leaf is gone, so that nobody could find the other address's translation later.
//!
//! A vCPU runs on the root that [`Pager::root`] gave it, and may be walking any table below. So a table
//! that is dropped is emptied at once and stays out of use until the flush is taken up; where a root is
//! among them, [`Flush::Roots`] has every vCPU ask for its root again.
//!
//! The host may keep pages of its own read-only or away ([`GuestTables::place`]), and is asked where an
//! access meets one ([`Filled::Host`]).
//!
//! How a store to a table is noticed is the caller's business ([`Pager::store`]), unless the pager keeps
//! leaves off tables itself ([`Pager::with_protection`]). That a guest gives a table up is noticed by
//! nobody: its shadow stays until stores to the page, which is plain data then, trap often enough.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

mod fill;
mod host;
mod legacy;
mod protect;
mod sync;
mod tables;

pub use legacy::Widened;
use tables::Shadowed;

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
    /// A supervisor with `CR0.WP` clear stored to a read-only page: the processor runs with WP set, so
    /// that the hypervisor carries the store out.
    Emulation,
}

/// How many causes of exits there are.
pub const EXITS: usize = 7;

/// What a pager has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Exits by [`Exit`].
    pub exits: [u64; EXITS],
    /// Hidden faults that found their leaf in place: a link above it was missing.
    pub relinked: u64,
    /// Leaves filled ahead of their use, beside one that was used.
    pub prefetched: u64,
    /// Level-0 tables that went out of sync.
    pub unsynced: u64,
    /// Tables that were compared and are tracked again.
    pub synchronized: u64,
    /// Leaves that were dropped.
    pub leaves_dropped: u64,
    /// Tables that were made.
    pub tables_made: u64,
    /// Tables that were dropped.
    pub tables_dropped: u64,
    /// Of those, tables that were dropped for the stores that trapped on them.
    pub flooded: u64,
    /// Flushes of all vCPUs that were taken up.
    pub remote_flushes: u64,
}

impl Counts {
    /// Exits of this cause.
    pub fn of(&self, exit: Exit) -> u64 {
        self.exits[exit as usize]
    }
}

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The protection key.
const KEY: u64 = 0xf << 59;

/// One table of the shadow: 512 entries.
pub type Table = [u64; 512];

/// The guest's memory, as the pager needs it.
pub trait GuestTables {
    /// The table entry at this guest physical address; 0 where nothing is known of it.
    fn entry(&self, gpa: u64) -> u64;

    /// Sets accessed and dirty bits in the entry there.
    ///
    /// # Errors
    /// Where the host keeps that page read-only and has to act first ([`Filled::Host`]): nothing is set, and
    /// the error says where in the guest's memory that is.
    fn touch(&mut self, gpa: u64, bits: u64) -> Result<(), Kept>;

    /// Where a guest physical address lies; `None` where the host has put nothing.
    fn place(&self, gpa: u64) -> Option<Place>;
}

/// The host keeps the page at this guest physical address read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept(pub u64);

/// Where a guest physical address lies in the host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The system physical address.
    pub spa: u64,
    /// log2 of the page that the host backs it with.
    pub shift: u8,
    /// Whether the guest may store to that page without the host's doing: not while its next store is to be
    /// logged, nor while it is shared. Where this turns `false`, what was filled before has to be made
    /// read-only by [`Pager::protect_host`].
    pub writable: bool,
}

impl Place {
    /// An address in a page of `1 << shift` bytes that the guest may store to.
    pub const fn writable(spa: u64, shift: u8) -> Place {
        Place { spa, shift, writable: true }
    }
}

/// What every vCPU has to do before it runs the guest again, and before any other call of the pager.
#[must_use = "tables that were dropped are used again"]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Flush {
    /// Its TLB and its caches of intermediate levels are emptied.
    Tlb,
    /// The same, and it asks for its root again ([`Pager::root`]): the one that it runs on may be another
    /// table soon.
    Roots,
}

/// The shadow tables of one virtual machine.
#[derive(Clone, Debug)]
pub struct Pager {
    discipline: Discipline,
    root_level: u8,
    base: u64,
    pages: Vec<Shadowed>,
    free: Vec<u32>,
    /// Dropped since the last flush was taken up: some processor may still walk through them.
    dropped: Vec<u32>,
    /// Shadow tables by guest frame: one a level that the frame is used at.
    by_frame: BTreeMap<u64, Vec<u32>>,
    unsync: Vec<u32>,
    /// Reverse maps: leaves by the first system physical page that they map.
    leaves: BTreeMap<u64, Vec<(u32, u16)>>,
    /// Leaves by level.
    sizes: [usize; 3],
    most: usize,
    prefetches: u8,
    /// Whether user pages and supervisor pages have protection keys.
    keys: [bool; 2],
    /// An entry was dropped, or lost a right, since the last flush was taken up.
    flush_due: bool,
    /// A root was among what was dropped.
    roots_due: bool,
    /// Leaves are kept off tables.
    protects: bool,
    /// Frames whose tables are shadowed and whose leaves are not read-only yet.
    unprotected: Vec<u64>,
    /// Frames whose shadows have to be compared with what the guest's tables say now.
    renewed: Vec<u64>,
    /// More live tables than these are dropped, the oldest first.
    limit: usize,
    counts: Counts,
}

/// A table above level 0 that this many stores trapped on with no fault through it between is no
/// longer used as one, or is being written as a whole: its shadow is dropped, and stores to it are
/// free (the write-flooding rule of Linux KVM's shadow MMU).
const FLOOD: u8 = 3;

/// Tables that are dropped at once where there are too many (Linux KVM's KVM_REFILL_PAGES).
const REFILL: usize = 25;

/// What a store to a table page led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// The store trapped.
    pub exits: bool,
    /// Something that translated was dropped: what the TLB of any vCPU holds of it has to go too.
    pub dropped: bool,
}

/// What a guest access found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The guest's tables do not permit it: the fault is the guest's.
    True,
    /// The shadow now has an entry; the exit was for this cause.
    Hidden(Exit),
    /// The host has to act at this guest physical address first, in the same exit: to put memory there
    /// where nothing is, else to let the guest store to it. Then the access is filled anew, which counts
    /// the exit.
    Host {
        /// Where the access goes, or the table entry in which its accessed or dirty bit is to be set.
        gpa: u64,
    },
    /// The hypervisor carries the store out itself, at this guest physical address, in the same exit.
    Carried {
        /// Where the store goes.
        gpa: u64,
        /// [`Exit::Emulation`], which is counted; or [`Exit::TableWrite`], which [`Pager::store`] or
        /// [`Pager::store_data`] count, as the caller tells what was stored.
        exit: Exit,
    },
}

impl Pager {
    /// No tables. `root_level` is 3 or 4, or 1 for PAE; `base` is where `tables[0]` lies in system
    /// physical memory.
    pub fn new(discipline: Discipline, root_level: u8, base: u64) -> Pager {
        Pager {
            discipline,
            root_level,
            base,
            pages: Vec::new(),
            free: Vec::new(),
            dropped: Vec::new(),
            by_frame: BTreeMap::new(),
            unsync: Vec::new(),
            leaves: BTreeMap::new(),
            sizes: [0; 3],
            most: 0,
            prefetches: 1,
            keys: [false; 2],
            flush_due: false,
            roots_due: false,
            protects: false,
            unprotected: Vec::new(),
            renewed: Vec::new(),
            limit: usize::MAX,
            counts: Counts::default(),
        }
    }

    /// The same pager, which at a fault in a level-0 table also fills those of the aligned group of so
    /// many entries (a power of two up to 8) that the guest has accessed, up to the first that it has
    /// not. Linux KVM does so with 8.
    #[must_use]
    pub fn with_prefetch(self, entries: u8) -> Pager {
        Pager { prefetches: entries.clamp(1, 8).next_power_of_two(), ..self }
    }

    /// The same pager, of a guest that has set `CR4.PKE` or `CR4.PKS`: a supervisor's store that the key of
    /// a user page, or of a supervisor page, denies is permitted by a clear `CR0.WP` (Intel SDM 3A 5.6.2),
    /// and not by the processor, which runs with WP set.
    #[must_use]
    pub fn with_keys(self, of_users: bool, of_supervisors: bool) -> Pager {
        Pager { keys: [of_users, of_supervisors], ..self }
    }

    /// The same pager, which keeps so many tables at most: where more are live, [`Pager::fill`] drops the
    /// oldest first. Linux KVM has a fiftieth of the guest's pages, and 64 at least.
    #[must_use]
    pub fn with_limit(self, tables: usize) -> Pager {
        Pager { limit: tables.max(REFILL + 2 * usize::from(self.root_level) + 2), ..self }
    }

    /// What all vCPUs have to do now, since something that they may hold was dropped; the caller sees to it.
    /// From here on the tables that were dropped can become others.
    pub fn take_flush(&mut self) -> Option<Flush> {
        self.free.append(&mut self.dropped);
        let roots = core::mem::take(&mut self.roots_due);
        if !core::mem::take(&mut self.flush_due) {
            return None;
        }
        self.counts.remote_flushes += 1;
        Some(if roots { Flush::Roots } else { Flush::Tlb })
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The leaves that the tables hold, by level.
    pub fn leaves(&self) -> [usize; 3] {
        self.sizes
    }

    /// Bytes that it takes: the shadow tables themselves, live or kept for the next, and what the
    /// pager knows of them and of their leaves (an estimate: without the allocator's own).
    pub fn bytes(&self) -> usize {
        let parents: usize = self.pages.iter().map(|page| page.parents.len()).sum();
        let links = parents + self.leaves.values().map(Vec::len).sum::<usize>();
        self.pages.len() * (size_of::<Table>() + size_of::<Shadowed>())
            + (self.by_frame.len() + self.leaves.len()) * size_of::<(u64, Vec<u32>)>()
            + links * size_of::<(u32, u16)>()
    }

    fn exit(&mut self, exit: Exit) {
        self.counts.exits[exit as usize] += 1;
    }

    /// The most tables that were live at once.
    pub fn most_tables(&self) -> usize {
        self.most
    }

    /// The tables that are live.
    pub fn live_tables(&self) -> usize {
        self.pages.len() - self.free.len() - self.dropped.len()
    }

    /// The shadow root for a guest root (the table that CR3 or, with PAE, a PDPTE names): what the
    /// hardware's has. Roots of other address spaces stay cached.
    pub fn root(&mut self, tables: &mut Vec<Table>, cr3: u64) -> u64 {
        let page = self.shadow_of(tables, (cr3 & ADDRESS) >> 12, self.root_level);
        self.address(page)
    }

    /// The guest loaded CR3: every table that is out of sync below the guest's `roots` (the table that
    /// CR3 names, or with PAE those that the PDPTEs name) is made true, and the exit is counted. The new
    /// root is [`Pager::root`]'s.
    pub fn load_cr3(&mut self, tables: &mut [Table], guest: &impl GuestTables, roots: &[u64]) {
        self.exit(Exit::Cr3);
        self.synchronize_below(tables, guest, roots);
    }

    /// The guest stored to the eight bytes of a table page that this address is in. Of a store that is not
    /// aligned both eights are told.
    pub fn store(&mut self, tables: &mut [Table], gpa: u64) -> Stored {
        let index = (gpa >> 3 & 0x1ff) as usize;
        let stored = self.store_to(tables, gpa >> 12, index..=index);
        if stored.exits {
            self.exit(Exit::TableWrite);
        }
        stored
    }

    /// The guest stored to a page that was a table and is data now. The hypervisor does not know: the
    /// store traps like one to a table, until the page's shadow goes. At level 0 too three stores are
    /// enough for that where every store traps: a page that is written and never walked is no table.
    pub fn store_data(&mut self, tables: &mut [Table], gpa: u64) -> Stored {
        let mut stored = self.store(tables, gpa);
        for page in self.by_frame.get(&(gpa >> 12)).cloned().unwrap_or_default() {
            if self.pages[page as usize].stores >= FLOOD {
                self.drop_table(tables, page);
                self.counts.flooded += 1;
                stored.dropped = true;
            }
        }
        stored
    }

    /// One store to so many entries of the table page in this frame; the exit is for the caller to
    /// count.
    fn store_to(
        &mut self,
        tables: &mut [Table],
        frame: u64,
        indices: core::ops::RangeInclusive<usize>,
    ) -> Stored {
        let mut stored = Stored::default();
        let Some(pages) = self.by_frame.get(&frame) else { return stored };
        for page in pages.clone() {
            let shadowed = &mut self.pages[page as usize];
            if shadowed.level == 0 && self.discipline == Discipline::OutOfSync {
                if !shadowed.unsync {
                    shadowed.unsync = true;
                    self.unsync.push(page);
                    self.counts.unsynced += 1;
                    stored.exits = true;
                    self.open(tables, frame);
                }
                continue;
            }
            stored.exits = true;
            shadowed.stores = shadowed.stores.saturating_add(1);
            if shadowed.level > 0 && shadowed.stores >= FLOOD {
                self.drop_table(tables, page);
                self.counts.flooded += 1;
                stored.dropped = true;
                continue;
            }
            for index in indices.clone() {
                if tables[page as usize][index] & P != 0 {
                    self.zap(tables, page, index);
                    stored.dropped = true;
                }
            }
        }
        self.flush_due |= stored.dropped;
        stored
    }

    /// Every table goes: the memory for them is full, or entries have another meaning from now on, as after
    /// a change of `CR4.PSE`.
    pub fn clear(&mut self, tables: &mut [Table]) {
        (0..self.pages.len() as u32).for_each(|page| self.drop_table(tables, page));
    }

    /// The shadows of this frame's tables go, whoever says so: a host that takes the frame away. That the
    /// guest no longer uses it as a table is not known to any hypervisor ([`Pager::store_data`]).
    pub fn release(&mut self, tables: &mut [Table], gpa: u64) {
        if let Some(pages) = self.by_frame.get(&(gpa >> 12)) {
            for page in pages.clone() {
                self.drop_table(tables, page);
            }
        }
    }
}
