//! The system physical memory of a simulated machine, as far as tables need it: the guest's table
//! pages at their places, the hypervisor's own tables, and the data caches that both pass through.

mod lines;
mod tables;

use std::ops::Range;

use slat::{Access, EntryLayout, Memory, Outside, Purpose, Reached, Spa, Value};
use slat_mmu::array::BadGeometry;
use slat_mmu::shadow::{GuestTables, Kept, Place, Table};

pub use self::lines::Known;
use self::lines::{LineCaches, ServedBy};
pub use self::tables::{GuestPages, MAX_MEMORY, MemoryError};
use crate::preset::Caches;

/// Where the first virtual machine's memory begins: GPA 0 lies here, and the whole guest behind it in
/// order.
const GUEST_BASE: u64 = 1 << 40;
/// Where the hypervisor's tables for it begin.
const HOST_BASE: u64 = 1 << 44;
/// How far apart virtual machines lie that share the cores, so that caches by physical address tell
/// their lines and table entries apart: 8 machines are within 48 bits.
const APART: u64 = 1 << 45;

/// System physical memory.
#[derive(Debug)]
pub struct Physical {
    guest: GuestPages,
    /// The hypervisor's tables, from [`Physical::host_base`] on.
    pub host: Vec<Table>,
    lines: LineCaches,
    /// Walks ask the second level of the caches first.
    walks_skip_first: bool,
    /// Data accesses that the first level did not serve, by who did: the second level, the third,
    /// memory.
    pub data: [u64; 3],
    /// Reads of the guest's own tables by who served them: L1, L2, L3, memory.
    pub guest_reads: [u64; 4],
    /// Reads of the hypervisor's: nested or shadow tables.
    pub host_reads: [u64; 4],
    /// log2 of the pages that the host backs the guest with.
    pub backed: u8,
    /// Where everything of this virtual machine is, from [`GUEST_BASE`] on.
    start: u64,
}

impl Physical {
    /// Memory without tables behind the caches of so many cores, of a guest with these physical addresses; `vm`, below 8,
    /// numbers guests that share the caches.
    /// `walks_skip_first`: reads of table entries pass the first level by.
    ///
    /// # Errors
    /// Where a cache cannot have its geometry.
    pub fn new(
        caches: &Caches,
        walks_skip_first: bool,
        backed: u8,
        vm: u8,
        cores: u8,
        guest: Range<u64>,
    ) -> Result<Physical, BadGeometry> {
        Ok(Physical {
            guest: GuestPages::new(guest),
            host: Vec::new(),
            lines: LineCaches::new(caches, cores)?,
            walks_skip_first,
            data: [0; 3],
            guest_reads: [0; 4],
            host_reads: [0; 4],
            backed,
            start: u64::from(vm) * APART,
        })
    }

    /// Counts from zero on.
    pub fn forget(&mut self) {
        self.data = [0; 3];
        self.guest_reads = [0; 4];
        self.host_reads = [0; 4];
    }

    /// Where GPA 0 lies.
    #[inline]
    pub fn guest_base(&self) -> u64 {
        self.start + GUEST_BASE
    }

    /// Where the hypervisor's tables begin.
    #[inline]
    pub fn host_base(&self) -> u64 {
        self.start + HOST_BASE
    }

    /// Takes the other's data caches and gives it its own.
    pub fn exchange_caches(&mut self, other: &mut Physical) {
        std::mem::swap(&mut self.lines, &mut other.lines);
    }

    /// The entry of a guest's table, by its guest-physical address.
    pub fn guest_entry(&self, gpa: u64) -> Option<u64> {
        self.guest.entry(gpa)
    }

    /// Pages of 4 KiB of the guest's memory.
    pub fn guest_pages(&self) -> u64 {
        self.guest.pages()
    }

    /// Whether the page is one of the guest's tables.
    pub fn is_guest_table(&self, gpa: u64) -> bool {
        self.guest.holds(gpa)
    }

    /// The most table pages that the guest had at once.
    pub fn most_guest_tables(&self) -> usize {
        self.guest.most()
    }

    /// What follows is this core's: each has its own first two levels of the caches.
    #[inline(always)]
    pub fn on(&mut self, core: u8) {
        self.lines.on(core);
    }

    /// A data access.
    #[inline(always)]
    pub fn data(&mut self, spa: u64) {
        match self.lines.access(spa) {
            ServedBy::L1 => {}
            ServedBy::L2 => self.data[0] += 1,
            ServedBy::L3 => self.data[1] += 1,
            ServedBy::Memory => self.data[2] += 1,
        }
    }

    /// Which of some lines of a page the first data cache would serve at once, as bits.
    #[inline]
    pub fn look(&self, page: u64, lines: u64) -> Known {
        self.lines.look(page, lines)
    }

    /// As [`Physical::data`] of each of some lines, all of which [`Physical::look`] knows.
    pub fn touch(&mut self, page: u64, lines: u64) {
        self.lines.touch(page, lines);
    }

    /// All lines of a page whose order in the first data cache these lines can change.
    pub fn beside(&self, lines: u64) -> u64 {
        self.lines.beside(lines)
    }

    /// Makes the page of `gpa` a table: zeroed if `fresh`, else as it was when it last was one.
    ///
    /// # Errors
    /// Outside the guest's memory, and where it has too many tables.
    pub fn table_page(&mut self, gpa: u64, fresh: bool) -> Result<(), MemoryError> {
        self.guest.make(gpa, fresh)
    }

    /// The page of `gpa` is a table no longer.
    pub fn release_table(&mut self, gpa: u64) {
        self.guest.release(gpa);
    }

    /// Stores an entry of a guest table.
    ///
    /// # Errors
    /// As [`Physical::table_page`].
    pub fn store(&mut self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        self.guest.make(gpa, false)?;
        if let Some(entry) = self.guest.entry_mut(gpa) {
            *entry = value;
        }
        Ok(())
    }

    /// The guest's half of the memory, for the shadow pager, apart from the hypervisor's tables.
    pub fn split(&mut self) -> (&mut Vec<Table>, GuestHalf<'_>) {
        let base = self.guest_base();
        let backed = self.backed;
        let guest = GuestHalf { pages: &mut self.guest, base, backed };
        (&mut self.host, guest)
    }

    fn entry(&mut self, address: u64) -> Option<&mut u64> {
        if let Some(place) = address.checked_sub(self.host_base()) {
            let table = self.host.get_mut((place >> 12) as usize)?;
            return Some(&mut table[(address >> 3 & 0x1ff) as usize]);
        }
        self.guest.entry_mut(address.checked_sub(self.guest_base())?)
    }
}

/// The guest's tables alone.
pub struct GuestHalf<'a> {
    pages: &'a mut GuestPages,
    base: u64,
    backed: u8,
}

impl GuestTables for GuestHalf<'_> {
    fn entry(&self, gpa: u64) -> u64 {
        self.pages.entry(gpa).unwrap_or(0)
    }

    fn touch(&mut self, gpa: u64, bits: u64) -> Result<(), Kept> {
        if let Some(entry) = self.pages.entry_mut(gpa) {
            *entry |= bits;
        }
        Ok(())
    }

    fn place(&self, gpa: u64) -> Option<Place> {
        Some(Place::writable(self.base + gpa, self.backed))
    }
}

impl Memory for Physical {
    type Address = Spa;
    type Fault = Outside<Spa>;

    #[inline]
    fn read(
        &mut self,
        address: Spa,
        _: EntryLayout,
        access: &Access,
    ) -> Result<Value, Outside<Spa>> {
        let raw = address.raw();
        // Neighbours of an entry, which came with its line, are no reads of their own.
        if access.purpose == Purpose::Final {
            let entry = self.entry(raw).ok_or(Outside { address, write: false })?;
            return Ok(Value { value: *entry, reached: Reached::DIRECTLY });
        }
        let by = match self.walks_skip_first {
            true => self.lines.read_beyond_first(raw),
            false => self.lines.access(raw),
        };
        let of_host = raw >= self.host_base();
        let reads = if of_host { &mut self.host_reads } else { &mut self.guest_reads };
        reads[by as usize] += 1;
        let entry = self.entry(raw).ok_or(Outside { address, write: false })?;
        Ok(Value { value: *entry, reached: Reached::DIRECTLY })
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        address: Spa,
        _: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Outside<Spa>> {
        let entry = self.entry(address.raw()).ok_or(Outside { address, write: true })?;
        let same = *entry == current;
        if same {
            *entry = new;
        }
        Ok(same)
    }
}
