//! A partition's shadow tables, where the processor has no second stage or the hypervisor does not
//! use it: slat-mmu's pager on a stretch of the hypervisor's memory.

use slat::edit::Encode;
use slat::format::x86::long::Long;
use slat::{
    Access, EntryLayout, Gva, Memory, Outside, Reached, Regime, Spa, Stage, Updates, Value, walk,
};
use slat_mmu::shadow::{Discipline, Filled, GuestTables, Pager, Stored, Table};

use super::spa::PAGE;

const P: u64 = 1;
const RW: u64 = 1 << 1;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Tables that one fill may take: one a level, and the pieces of a large page.
const FILL: usize = 8;

/// Shadow tables of one partition.
#[derive(Debug)]
pub struct Shadow {
    pager: Pager,
    tables: Vec<Table>,
    discipline: Discipline,
    base: u64,
    limit: usize,
    /// How often all were dropped because the memory for them was full.
    pub zaps: u64,
    /// The most that were live at once.
    pub most: usize,
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
            discipline,
            base,
            limit: (bytes / PAGE) as usize,
            zaps: 0,
            most: 0,
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
        self.most = self.most.max(self.pager.most_tables());
        self.pager = Pager::new(self.discipline, 3, self.base);
        self.tables.clear();
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
        let root = self.pager.root(&mut self.tables, cr3);
        let stage = Stage::<Long, Gva, Spa>::new(format, format.root(root))
            .with_updates(Updates::OnSuccess);
        let mut memory = Walked { base: self.base, tables: &mut self.tables };
        let found = walk(&stage, &mut memory, Gva::new(gva), access, regime, &());
        found.ok().map(|mapped| mapped.output.raw())
    }

    /// Fills in what an access needs. With `logging`, nothing becomes writable that is not written
    /// to just now.
    pub(super) fn fill(
        &mut self,
        guest: &mut impl GuestTables,
        stage1: &Stage<Long, Gva, slat::Gpa>,
        gva: u64,
        access: &Access,
        regime: &Regime,
        logging: bool,
    ) -> Filled {
        if self.pager.live_tables() + FILL > self.limit {
            self.zap();
            self.zaps += 1;
        }
        let filled = self.pager.fill(&mut self.tables, guest, stage1, regime, gva, access);
        self.most = self.most.max(self.pager.most_tables());
        if logging && access.kind != slat::Kind::Write {
            let root = self.pager.root(&mut self.tables, stage1.root);
            if let Some(entry) = self.leaf(root, gva) {
                *entry &= !RW;
            }
        }
        filled
    }

    fn is_table(&self, entry: u64) -> bool {
        (entry & ADDRESS).checked_sub(self.base).is_some_and(|at| at < self.limit as u64 * PAGE)
    }

    /// The leaf for an address. Guest memory does not lie among the tables, so that the address in
    /// an entry tells a table.
    fn leaf(&mut self, root: u64, gva: u64) -> Option<&mut u64> {
        let (mut table, mut level) = (root, 3u32);
        loop {
            let number = ((table - self.base) / PAGE) as usize;
            let index = (gva >> (12 + 9 * level) & 0x1ff) as usize;
            let entry = self.tables.get(number)?[index];
            if entry & P == 0 {
                return None;
            }
            if !self.is_table(entry) {
                return self.tables.get_mut(number).map(|table| &mut table[index]);
            }
            table = entry & ADDRESS;
            level = level.checked_sub(1)?;
        }
    }

    /// Makes every leaf read-only, so that the next write to each page faults.
    pub(super) fn write_protect(&mut self) {
        let (base, bytes) = self.place();
        for entry in self.tables.iter_mut().flatten() {
            let table = (*entry & ADDRESS).checked_sub(base).is_some_and(|at| at < bytes);
            if *entry & P != 0 && !table {
                *entry &= !RW;
            }
        }
    }

    /// The guest stored at this guest-physical address.
    pub(super) fn store(&mut self, gpa: u64) -> Stored {
        self.pager.store(&mut self.tables, gpa)
    }

    /// The same of a guest whose tables are 32-bit.
    pub(super) fn store_legacy(&mut self, gpa: u64) -> Stored {
        self.pager.store_legacy(&mut self.tables, gpa & !3)
    }

    /// The guest loaded CR3.
    pub(super) fn load_root(&mut self, guest: &impl GuestTables, cr3: u64) {
        self.pager.synchronize(&mut self.tables, guest);
        self.pager.root(&mut self.tables, cr3);
    }

    /// INVLPG.
    pub(super) fn invalidate(&mut self, guest: &impl GuestTables, cr3: u64, gva: u64) {
        let root = self.pager.root(&mut self.tables, cr3);
        self.pager.invalidate(&mut self.tables, guest, root, gva);
    }
}
