//! The hypervisor's second-stage tables for a guest whose memory lies in one piece.

use slat_mmu::shadow::Table;

use crate::memory::Physical;

/// How leaf and table entries of one format are written.
#[derive(Clone, Copy, Debug)]
pub struct Encoding {
    /// Bits of a table entry besides the address.
    pub table: u64,
    /// Bits of a leaf of level 0.
    pub small: u64,
    /// Bits of a leaf above level 0.
    pub large: u64,
}

impl Encoding {
    /// EPT: readable, writable, executable; leaves write-back, accessed and dirty (SDM 3C 30.3.2).
    pub const EPT: Encoding = Encoding { table: 0x107, small: 0x337, large: 0x3b7 };
    /// NPT: present, writable, user, accessed; leaves dirty (APM 2 15.25).
    pub const NPT: Encoding = Encoding { table: 0x27, small: 0x67, large: 0xe7 };
    /// Arm Stage-2, 4K granule: tables; pages and blocks of Normal write-back memory, readable,
    /// writable, inner shareable, accessed (Arm ARM D8.3).
    pub const ARM: Encoding = Encoding { table: 0x3, small: 0x7ff, large: 0x7fd };
    /// RISC-V G-stage: valid; leaves readable, writable, executable, user, accessed and dirty.
    pub const RISCV: Encoding = Encoding { table: 0x1, small: 0xdf, large: 0xdf };
}

/// How a format keeps an address in an entry.
#[derive(Clone, Copy, Debug)]
pub enum Address {
    /// In place.
    InPlace,
    /// As a page number from bit 10 on (RISC-V).
    PageNumber,
}

impl Address {
    fn encode(self, address: u64) -> u64 {
        match self {
            Address::InPlace => address,
            Address::PageNumber => address >> 12 << 10,
        }
    }
}

/// Builds tables of four levels of 512 entries (the root may have more) in the hypervisor's part of
/// `memory` that map guest physical `start..end` with pages of `shift`, and returns where the root
/// lies. `root_level` is the root's level; `root_tables` how many tables it takes.
pub fn build(
    memory: &mut Physical,
    encoding: Encoding,
    address: Address,
    root_level: u8,
    root_tables: usize,
    shift: u8,
    range: std::ops::Range<u64>,
) -> u64 {
    let (guest_base, host_base) = (memory.guest_base(), memory.host_base());
    let host = &mut memory.host;
    // Roots of several tables are aligned to their size.
    while !host.len().is_multiple_of(root_tables) {
        host.push([0; 512]);
    }
    let root = host.len();
    host.resize(root + root_tables, [0; 512]);
    let mut builder = Builder { host, guest_base, host_base, encoding, address };
    let size = 1u64 << shift;
    let mut gpa = range.start & !(size - 1);
    while gpa < range.end {
        builder.map(root, root_level, gpa, shift);
        gpa += size;
    }
    host_base + root as u64 * 4096
}

struct Builder<'a> {
    host: &'a mut Vec<Table>,
    guest_base: u64,
    host_base: u64,
    encoding: Encoding,
    address: Address,
}

impl Builder<'_> {
    fn map(&mut self, root: usize, root_level: u8, gpa: u64, shift: u8) {
        let mut table = root;
        let mut level = root_level;
        loop {
            let at = gpa >> (12 + 9 * u32::from(level));
            // The root's index is everything above; concatenated tables lie in a row.
            let (table_of, index) = if level == root_level {
                (table + (at >> 9) as usize, (at & 0x1ff) as usize)
            } else {
                (table, (at & 0x1ff) as usize)
            };
            if 12 + 9 * level == shift {
                let bits = if level == 0 { self.encoding.small } else { self.encoding.large };
                self.host[table_of][index] = self.address.encode(self.guest_base + gpa) | bits;
                return;
            }
            let held = self.host[table_of][index];
            table = if held == 0 {
                self.host.push([0; 512]);
                let next = self.host.len() - 1;
                let place = self.host_base + next as u64 * 4096;
                self.host[table_of][index] = self.address.encode(place) | self.encoding.table;
                next
            } else {
                let place = match self.address {
                    Address::InPlace => held & 0x000f_ffff_ffff_f000,
                    Address::PageNumber => held >> 10 << 12,
                };
                ((place - self.host_base) >> 12) as usize
            };
            level -= 1;
        }
    }
}
