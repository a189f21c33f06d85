//! Guests with 32-bit paging: their tables, seen as tables of four levels.
//!
//! A 32-bit table has 1024 entries of 4 bytes, and a shadow table 512 of 8. So each guest table counts as
//! several, in the middle of an address space of frames that no guest has:
//!
//! | level | seen | entry *n* of part *q* says what |
//! |---|---|---|
//! | 0 | 2 halves of a page table | PTE 512 *q* + *n* says |
//! | 1 | 4 quarters of the page directory | half of PDE 256 *q* + *n* / 2 says: 2 of its 4 MiB |
//! | 2, 3 | one entry for each quarter; one for all | nothing: it permits everything |

use slat::format::x86::long::{Long, Processor};
use slat::format::x86::{Controls, legacy::Legacy};
use slat::format::{Decoded, Format};
use slat::{Gpa, Gva, Stage, Updates};

use super::{A, Exit, GuestTables, Kept, P, PS, Pager, Place, RW, Stored, Table, US};

/// PWT, PCD and D.
const OTHERS: u64 = 3 << 3 | 1 << 6;
/// A bit that is reserved in a leaf of 2 MiB (Intel SDM 3A table 5-19).
const RESERVED: u64 = 1 << 13;
/// What tells the frames of parts from frames of guests, whose tables lie below 4 GiB.
const PART: u64 = 1 << 39;

/// A guest's memory in which its 32-bit tables are tables of four levels, for a [`Pager`] of
/// `root_level` 3.
#[derive(Debug)]
pub struct Widened<'a, G> {
    guest: &'a mut G,
    format: Legacy,
}

/// The frame of part `part` of the table in a guest's frame.
const fn part(level: u64, frame: u64, part: u64) -> u64 {
    PART | level << 30 | (frame & 0xf_ffff) << 2 | part
}

impl<'a, G: GuestTables> Widened<'a, G> {
    /// The tables of this guest, in the format that its control registers choose.
    pub fn new(guest: &'a mut G, format: Legacy) -> Self {
        Widened { guest, format }
    }

    /// What the guest's CR3 is to the pager: in place of CR3 wherever it asks for one.
    pub const fn root(cr3: u64) -> u64 {
        part(3, cr3 >> 12, 0) << 12
    }

    /// Stage 1 for [`Pager::fill`], which walks the tables that this shows.
    pub fn stage(&self, cr3: u64) -> Stage<Long, Gva, Gpa> {
        let controls = Controls { shadow_stacks: false, ..*self.format.controls() };
        let long = Long::four(controls, Processor::default());
        Stage::new(long, Self::root(cr3)).with_updates(Updates::OnSuccess)
    }

    /// The format in which a processor walks the shadow: with `CR0.WP` set, whatever the guest has, so that
    /// it notices stores to pages that the pager keeps read-only.
    pub fn walked(&self) -> Long {
        let controls =
            Controls { write_protect: true, shadow_stacks: false, ..*self.format.controls() };
        Long::four(controls, Processor::default())
    }

    /// The guest's own entry behind an entry of a part: its address.
    fn own(at: u64) -> Option<(u64, u64)> {
        let (frame, index) = (at >> 12, at >> 3 & 0x1ff);
        if frame & PART == 0 {
            return None;
        }
        let (level, part, table) = (frame >> 30 & 7, frame & 3, (frame >> 2 & 0xf_ffff) << 12);
        let number = match level {
            0 => part * 512 + index,
            1 => part * 256 + index / 2,
            _ => return None,
        };
        Some((level, table + number * 4))
    }

    fn read(&self, at: u64) -> u64 {
        self.guest.entry(at & !7) >> (at % 8 * 8) & 0xffff_ffff
    }
}

impl<G: GuestTables> GuestTables for Widened<'_, G> {
    fn entry(&self, at: u64) -> u64 {
        let (frame, index) = (at >> 12, at >> 3 & 0x1ff);
        let all = P | RW | US | A;
        let Some((level, own)) = Self::own(at) else {
            return match (frame >> 30 & 7, index) {
                _ if frame & PART == 0 => self.guest.entry(at),
                (3, 0) => part(2, frame >> 2, 0) << 12 | all,
                (2, 0..4) => part(1, frame >> 2, index) << 12 | all,
                _ => 0,
            };
        };
        let entry = self.read(own);
        let flags = entry & (P | RW | US | A | OTHERS);
        match self.format.decode(entry, level as u8) {
            Decoded::Empty => 0,
            Decoded::Table { next } => part(0, next >> 12, index & 1) << 12 | flags,
            Decoded::Leaf { base, .. } if level == 0 => base | flags,
            Decoded::Leaf { base, .. } => base | (index & 1) << 21 | flags | PS,
            Decoded::Reserved(_) | Decoded::Restart => flags | PS | RESERVED,
        }
    }

    fn touch(&mut self, at: u64, bits: u64) -> Result<(), Kept> {
        match Self::own(at) {
            Some((_, own)) => self.guest.touch(own & !7, bits << (own % 8 * 8)),
            None if at >> 12 & PART == 0 => self.guest.touch(at, bits),
            // Levels that no guest has are accessed from the start.
            None => Ok(()),
        }
    }

    fn place(&self, gpa: u64) -> Option<Place> {
        self.guest.place(gpa)
    }
}

impl Pager {
    /// As [`Pager::store`], for a guest with 32-bit paging: it stored four bytes here.
    pub fn store_legacy(&mut self, tables: &mut [Table], gpa: u64) -> Stored {
        let (frame, number) = (gpa >> 12, gpa >> 2 & 0x3ff);
        let (half, index) = (number / 512, (number % 512) as usize);
        let pte = self.store_to(tables, part(0, frame, half), index..=index);
        let (quarter, index) = (number / 256, (number % 256) as usize * 2);
        let pde = self.store_to(tables, part(1, frame, quarter), index..=index + 1);
        let exits = pte.exits || pde.exits;
        if exits {
            self.exit(Exit::TableWrite);
        }
        Stored { exits, dropped: pte.dropped || pde.dropped }
    }

    /// As [`Pager::release`], for a guest with 32-bit paging.
    pub fn release_legacy(&mut self, tables: &mut [Table], gpa: u64) {
        for (level, parts) in [(0, 2), (1, 4), (2, 1), (3, 1)] {
            for number in 0..parts {
                self.release(tables, part(level, gpa >> 12, number) << 12);
            }
        }
    }
}
