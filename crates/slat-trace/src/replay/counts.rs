//! How many of what.

use crate::event::{Access, Batch, Event, Invalidation, Kind, Root};

/// How many accesses and events of each sort a stream held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Data reads.
    pub loads: u64,
    /// Data writes.
    pub stores: u64,
    /// Block fetches.
    pub fetches: u64,
    /// Instructions in those blocks.
    pub instructions: u64,
    /// Accesses of all kinds with user privilege.
    pub user: u64,
    /// Accesses of all kinds that reach into a second page.
    pub crossing: u64,
    /// Loads of a root register.
    pub root_loads: u64,
    /// Stores to translation tables.
    pub table_stores: u64,
    /// Pages that became tables.
    pub table_pages: u64,
    /// Invalidation instructions.
    pub invalidations: u64,
    /// Invalidations of everything or of a whole address space.
    pub wide_invalidations: u64,
    /// Exceptions and interrupts.
    pub exceptions: u64,
    /// Changes of privilege.
    pub mode_changes: u64,
    /// Accesses to devices.
    pub io: u64,
}

impl Counts {
    /// All accesses.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.loads + self.stores + self.fetches
    }

    /// Adds what is in a batch.
    pub fn add(&mut self, batch: &Batch) {
        self.instructions += batch.instructions;
        let mut kinds = [0u64; 3];
        for access in &batch.accesses {
            self.add_access(access, &mut kinds);
        }
        let [loads, stores, fetches] = kinds;
        self.loads += loads;
        self.stores += stores;
        self.fetches += fetches;
        for at in &batch.events {
            self.add_event(&at.event);
        }
    }

    #[inline]
    fn add_access(&mut self, access: &Access, kinds: &mut [u64; 3]) {
        let kind = match access.kind() {
            Kind::Load => 0,
            Kind::Store => 1,
            Kind::Fetch => 2,
        };
        kinds[kind] += 1;
        self.user += u64::from(access.user());
        self.crossing += u64::from(access.crosses());
    }

    fn add_event(&mut self, event: &Event) {
        let counter = match event {
            Event::Root { root: Root::Cr3 | Root::Ttbr0 | Root::Ttbr1, .. } => &mut self.root_loads,
            Event::TableStore { .. } => &mut self.table_stores,
            Event::TablePage { .. } => &mut self.table_pages,
            Event::Invalidate(invalidation) => {
                self.wide_invalidations += u64::from(is_wide(invalidation));
                &mut self.invalidations
            }
            Event::Exception(_) => &mut self.exceptions,
            Event::Mode { .. } => &mut self.mode_changes,
            Event::Io { .. } => &mut self.io,
            _ => return,
        };
        *counter += 1;
    }
}

fn is_wide(invalidation: &Invalidation) -> bool {
    match *invalidation {
        Invalidation::Invlpg { .. } => false,
        Invalidation::Invpcid { kind, .. } => kind != 0,
        // op2 says what of EL1's is dropped: 0 all, 2 one ASID, 4 and 6 two stages (Arm ARM C5.5).
        Invalidation::Tlbi { operation, .. } => matches!(operation & 7, 0 | 2 | 4 | 6),
    }
}
