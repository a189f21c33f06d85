//! RISC-V page-table entries of RV64's schemes, both stages (privileged architecture, "Sv39",
//! "Svpbmt", "Svadu"). [`Sv32`] has 32-bit entries, and says most of it the same way.

pub use super::narrow::Sv32;
use super::{Change, Effect, Encode, Refused};
use crate::format::Format;
use crate::format::riscv::{Scheme, Sv, bits};
use crate::memory_type::riscv::Pbmt;
use crate::translate::Permissions;

const RWX: u64 = bits::R | bits::W | bits::X;

/// log2 of the only range that Svnapot has, and where its entries encode that.
const NAPOT_SHIFT: u32 = 16;
const NAPOT_PPN: u64 = 0xf << 10;
const NAPOT_SIZE: u64 = 8 << 10;

#[inline(always)]
const fn when(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

/// What a RISC-V leaf says besides its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// What the page permits; something, and no write without read.
    pub permissions: Permissions,
    /// A user page. G-stage leaves must be.
    pub user: bool,
    /// In every address space; ignored in G-stage.
    pub global: bool,
    /// Memory type (Svpbmt).
    pub memory: Pbmt,
    /// Accessed from the start, as it must be where hardware does not set it (Svade).
    pub accessed: bool,
    /// Dirty from the start, likewise.
    pub dirty: bool,
    /// Bits left to software (9:8; 60:59 with Svrsw60t59b), in place.
    pub software: u64,
}

impl Attributes {
    /// A user page with these permissions and the memory's own type, accessed and dirty.
    pub fn new(permissions: Permissions) -> Attributes {
        Attributes {
            permissions,
            user: true,
            global: false,
            memory: Pbmt::Pma,
            accessed: true,
            dirty: true,
            software: 0,
        }
    }
}

/// R, W and X, where they make a leaf.
fn rights(permissions: Permissions) -> Result<u64, Refused> {
    let Permissions { read, write, execute } = permissions;
    if !read && (write || !execute) {
        return Err(Refused::Permissions(permissions));
    }
    Ok(when(read, bits::R) | when(write, bits::W) | when(execute, bits::X))
}

fn software(format: &Sv) -> u64 {
    bits::RSW | when(format.features().software_bits, bits::RSW_HIGH)
}

fn memory_bits(memory: Pbmt) -> u64 {
    (0..3u8)
        .find(|encoding| Pbmt::from_encoding(*encoding) == Some(memory))
        .map_or(0, |encoding| u64::from(encoding) << bits::PBMT_SHIFT)
}

impl Encode for Sv {
    type Word = u64;
    type Attributes = Attributes;
    type Memory = Pbmt;

    fn root(&self, table: u64) -> u64 {
        table
    }

    fn top(&self) -> u8 {
        self.scheme().levels().saturating_sub(1)
    }

    /// A G-stage root is four pages long.
    fn input_bits(&self) -> u32 {
        if self.scheme() == Scheme::Bare {
            return 0;
        }
        let top = self.top();
        self.shift(top) + self.index_bits(top) + if self.stage() == 2 { 2 } else { 0 }
    }

    #[inline(always)]
    fn place(&self, base: u64, _: u8) -> u64 {
        base >> 12 << 10
    }

    #[inline(always)]
    fn stride(&self, level: u8) -> Option<u64> {
        Some(1 << (self.shift(level) - 2))
    }

    fn leaf(&self, attributes: &Attributes, _: u8) -> Result<u64, Refused> {
        if self.stage() == 2 && !attributes.user {
            return Err(Refused::Supervisor);
        }
        if attributes.memory != Pbmt::Pma && !self.features().memory_types {
            return Err(Refused::MemoryType);
        }
        let own = software(self);
        if attributes.software & !own != 0 {
            return Err(Refused::SoftwareBits(attributes.software & !own));
        }
        Ok(bits::V
            | rights(attributes.permissions)?
            | when(attributes.user, bits::U)
            | when(attributes.global, bits::G)
            | memory_bits(attributes.memory)
            | when(attributes.accessed, bits::A)
            | when(attributes.dirty, bits::D)
            | attributes.software)
    }

    fn attributes(&self, entry: u64, level: u8) -> Attributes {
        let pbmt = (entry >> bits::PBMT_SHIFT) as u8 & 3;
        Attributes {
            permissions: self.permissions_of(entry, level),
            user: entry & bits::U != 0,
            global: entry & bits::G != 0,
            memory: Pbmt::from_encoding(pbmt).unwrap_or(Pbmt::Pma),
            accessed: entry & bits::A != 0,
            dirty: entry & bits::D != 0,
            software: entry & software(self),
        }
    }

    fn permissions_of(&self, entry: u64, _: u8) -> Permissions {
        Permissions {
            read: entry & bits::R != 0,
            write: entry & bits::W != 0,
            execute: entry & bits::X != 0,
        }
    }

    #[inline(always)]
    fn table(&self, next: u64, _: u8) -> u64 {
        next >> 12 << 10 | bits::V
    }

    /// Not valid; every other bit is ignored.
    #[inline(always)]
    fn frozen(&self) -> u64 {
        1 << 8
    }

    #[inline(always)]
    fn demote(&self, entry: u64, _: u8) -> u64 {
        entry
    }

    #[inline(always)]
    fn promote(&self, entry: u64, _: u8) -> u64 {
        entry
    }

    /// Without R, W and X a leaf would be a pointer: data read as a table.
    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        let set = rights(permissions)?;
        Ok(Change { clear: RWX & !set, set })
    }

    fn retype(&self, memory: Pbmt, _: u8) -> Result<Change, Refused> {
        if memory != Pbmt::Pma && !self.features().memory_types {
            return Err(Refused::MemoryType);
        }
        let set = memory_bits(memory);
        let field = when(self.features().memory_types, bits::PBMT);
        Ok(Change { clear: field & !set, set })
    }

    fn hardware_dirty(&self) -> bool {
        self.features().hardware_ad
    }

    #[inline(always)]
    fn is_accessed(&self, entry: u64) -> bool {
        entry & bits::A != 0
    }

    #[inline(always)]
    fn is_dirty(&self, entry: u64) -> bool {
        entry & bits::D != 0
    }

    fn age(&self) -> Change {
        Change { clear: bits::A, set: 0 }
    }

    fn clean(&self) -> Change {
        Change { clear: bits::D, set: 0 }
    }

    fn soil(&self) -> Change {
        Change { clear: 0, set: bits::A | bits::D }
    }

    #[inline(always)]
    fn inherit(&self, entry: u64, from: u64) -> u64 {
        entry | from & (bits::A | bits::D)
    }

    #[inline(always)]
    fn history(&self, _: u64) -> u64 {
        bits::A | bits::D
    }

    /// Svnapot: 64 KiB at level 0.
    #[inline(always)]
    fn group_shift(&self, level: u8) -> Option<u32> {
        if level == 0 && self.features().napot { Some(NAPOT_SHIFT) } else { None }
    }

    #[inline(always)]
    fn group(&self, entry: u64, level: u8) -> Option<u32> {
        if level == 0 && entry & bits::N != 0 { Some(NAPOT_SHIFT) } else { None }
    }

    /// `PPN[3:0]` is 1000 in every entry of the group ("Svnapot", table of encodings).
    #[inline(always)]
    fn grouped(&self, leaf: u64, _: u8) -> u64 {
        leaf & !NAPOT_PPN | NAPOT_SIZE | bits::N
    }

    #[inline(always)]
    fn ungrouped(&self, entry: u64, index: u64, _: u8) -> u64 {
        entry & !(bits::N | NAPOT_PPN) | index << 10 & NAPOT_PPN
    }

    /// A leaf may be cached whatever it permits, and goes on to fault until it is fenced
    /// ("Supervisor Memory-Management Fence Instruction").
    #[inline(always)]
    fn effect(&self, lost: u64, gained: u64, _: u8) -> Effect {
        if (lost & !bits::A | gained) & !(bits::RSW) != 0 {
            Effect::Stale
        } else if lost & bits::A != 0 {
            Effect::Aged
        } else {
            Effect::None
        }
    }

    /// Ignored in G-stage.
    fn is_global(&self, leaf: u64, _: u8, above: u64) -> bool {
        self.stage() == 1 && (leaf | above) & bits::G != 0
    }

    /// Without Svvptc an implementation may go on using an invalid entry until it is fenced.
    fn caches_invalid(&self) -> bool {
        true
    }
}
