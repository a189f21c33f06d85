//! A partition's shadow tables, where the processor has no second stage or the hypervisor does not
//! use it: slat-mmu's pager on a stretch of the hypervisor's memory.

use slat::edit::Encode;
use slat::format::x86::long::Long;
use slat::{
    Access, EntryLayout, Gva, Memory, Outside, Reached, Regime, Spa, Stage, Updates, Value, walk,
};
use slat_mmu::shadow::{Discipline, Filled, Flush, GuestTables, Pager, Stored, Table};

use super::spa::PAGE;

/// Tables that one fill may take: one a level, and the pieces of a large page.
const FILL: usize = 8;

/// Shadow tables of one partition.
#[derive(Debug)]
pub struct Shadow {
    pager: Pager,
    tables: Vec<Table>,
    base: u64,
    limit: usize,
    /// The guest's root, and the shadow's that the processor has for it; none until it is loaded.
    loaded: Option<(u64, u64)>,
    /// How often all were dropped because the memory for them was full.
    pub zaps: u64,
    /// How often the processor had to drop what it may hold of them.
    pub flushes: u64,
}

/// The tables as the processor walks them.
struct Walked<'a> {
    base: u64,
    tables: &'a mut [Table],
}

impl Walked<'_> {
    fn entry(&mut self, address: Spa) -> Option<&mut u64> {
        let offset = address.raw().checked_sub(self.base)?;
        let table = self.tables.get_mut((offset / PAGE) as usize)?;
        Some(&mut table[(offset / 8 % 512) as usize])
    }
}

impl Memory for Walked<'_> {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(&mut self, address: Spa, _: EntryLayout, _: &Access) -> Result<Value, Outside<Spa>> {
        let entry = self.entry(address).ok_or(Outside { address, write: false })?;
        Ok(Value { value: *entry, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        _: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Outside<Spa>> {
        let entry = self.entry(address).ok_or(Outside { address, write: true })?;
        let same = *entry == current;
        if same {
            *entry = new;
        }
        Ok(same)
    }
}

impl Shadow {
    /// None yet; they lie in `bytes` bytes from `base`.
    pub(super) fn new(discipline: Discipline, base: u64, bytes: u64) -> Shadow {
        Shadow {
            pager: Pager::new(discipline, 3, base),
            tables: Vec::new(),
            base,
            limit: (bytes / PAGE) as usize,
            loaded: None,
            zaps: 0,
            flushes: 0,
        }
    }

    /// Where they lie, and in how many bytes.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.base, self.limit as u64 * PAGE)
    }

    /// How many are live.
    pub fn live(&self) -> usize {
        self.pager.live_tables()
    }

    /// Drops them all.
    pub(super) fn zap(&mut self) {
        self.pager.clear(&mut self.tables);
        self.flush();
    }

    /// Has the processor forget what was dropped. It keeps nothing but the root: each access walks.
    fn flush(&mut self) {
        let Some(flush) = self.pager.take_flush() else { return };
        self.flushes += 1;
        if flush == Flush::Roots {
            self.loaded = None;
        }
    }

    /// So many tables can be made without leaving the memory that is for them.
    fn make_room(&mut self, tables: usize) {
        if self.pager.live_tables() + tables > self.limit {
            self.zap();
            self.zaps += 1;
        }
    }

    /// The root that the processor walks from.
    fn root(&mut self, cr3: u64) -> u64 {
        if let Some((guest, root)) = self.loaded
            && guest == cr3
        {
            return root;
        }
        self.make_room(1);
        let root = self.pager.root(&mut self.tables, cr3);
        self.loaded = Some((cr3, root));
        root
    }

    /// What the processor finds: the system physical address.
    pub(super) fn walk(
        &mut self,
        format: Long,
        cr3: u64,
        gva: u64,
        access: &Access,
        regime: &Regime,
    ) -> Option<u64> {
        let root = self.root(cr3);
        let stage = Stage::<Long, Gva, Spa>::new(format, format.root(root))
            .with_updates(Updates::OnSuccess);
        let mut memory = Walked { base: self.base, tables: &mut self.tables };
        let found = walk(&stage, &mut memory, Gva::new(gva), access, regime, &());
        found.ok().map(|mapped| mapped.output.raw())
    }

    /// Fills in what an access needs.
    pub(super) fn fill(
        &mut self,
        guest: &mut impl GuestTables,
        stage1: &Stage<Long, Gva, slat::Gpa>,
        gva: u64,
        access: &Access,
        regime: &Regime,
    ) -> Filled {
        self.make_room(FILL);
        let filled = self.pager.fill(&mut self.tables, guest, stage1, regime, gva, access);
        self.flush();
        filled
    }

    /// What its leaves map, of 4 KiB or 2 MiB: system physical address, bytes, and whether it is writable.
    #[cfg(test)]
    pub(super) fn mapped(&self) -> impl Iterator<Item = (u64, u64, bool)> + '_ {
        use slat::format::x86::bits;
        let (base, bytes) = self.place();
        self.tables.iter().flatten().filter_map(move |&entry| {
            let spa = entry & 0x000f_ffff_ffff_f000;
            let leaf = entry & bits::P != 0 && !(base..base + bytes).contains(&spa);
            let size = if entry & bits::PS != 0 { 2 << 20 } else { PAGE };
            leaf.then_some((spa, size, entry & bits::RW != 0))
        })
    }

    /// The host takes the page at this system physical address away from the partition.
    pub(super) fn unmap(&mut self, spa: u64) {
        self.pager.unmap_host(&mut self.tables, spa, PAGE.trailing_zeros() as u8);
        self.flush();
    }

    /// Makes every leaf read-only, so that the next write to each page faults.
    pub(super) fn write_protect(&mut self) {
        // All that entries can address (Intel SDM 3A 5.5.4).
        self.pager.protect_host(&mut self.tables, 0, 52);
        self.flush();
    }

    /// The guest stored at this guest-physical address.
    pub(super) fn store(&mut self, gpa: u64) -> Stored {
        let stored = self.pager.store(&mut self.tables, gpa);
        self.flush();
        stored
    }

    /// The same of a guest whose tables are 32-bit.
    pub(super) fn store_legacy(&mut self, gpa: u64) -> Stored {
        let stored = self.pager.store_legacy(&mut self.tables, gpa & !3);
        self.flush();
        stored
    }

    /// The guest loaded CR3.
    pub(super) fn load_root(&mut self, guest: &impl GuestTables, cr3: u64) {
        self.pager.synchronize(&mut self.tables, guest);
        self.flush();
        self.loaded = None;
        self.root(cr3);
    }

    /// INVLPG.
    pub(super) fn invalidate(&mut self, guest: &impl GuestTables, cr3: u64, gva: u64) {
        let root = self.root(cr3);
        self.pager.invalidate(&mut self.tables, guest, root, gva);
        self.flush();
    }
}
