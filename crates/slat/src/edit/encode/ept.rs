//! EPT entries: Intel SDM 3C tables 30-1 to 30-7.

use super::{Change, Effect, Encode, Refused};
use crate::format::Format;
use crate::format::ept::{Ept, bits};
use crate::format::x86::long::{ADDRESS, address_bits};
use crate::memory_type::x86::Type;
use crate::translate::Permissions;

/// Bits that every EPT leaf leaves to software (SDM 3C table 30-7: bits 56:52 and 11; bit 62 is
/// left as well, above bits whose meaning controls switch).
const SOFTWARE: u64 = address_bits(52, 56) | 1 << 62 | 1 << 11;

const PERMISSIONS: u64 = bits::R | bits::W | bits::X | bits::XU;

/// What an EPT leaf says besides its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// What the page permits. With mode-based execute control, `execute` is that of
    /// supervisor-mode linear addresses.
    pub permissions: Permissions,
    /// Execution from user-mode linear addresses; ignored without mode-based execute control.
    pub user_execute: bool,
    /// Memory type.
    pub memory: Memory,
    /// Accesses that violate cause a VM exit rather than #VE.
    pub suppress_ve: bool,
    /// Accessed from the start.
    pub accessed: bool,
    /// Dirty from the start.
    pub dirty: bool,
    /// Bits that the format leaves to software (62, 56:52 and 11), in place.
    pub software: u64,
}

/// The memory type of an EPT leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Bits 5:3.
    pub memory_type: Type,
    /// The guest's PAT does not matter (bit 6).
    pub ignore_pat: bool,
}

impl Attributes {
    /// These permissions (user and supervisor execution alike) and this memory type, which the
    /// guest's PAT may weaken; nothing else set.
    pub fn new(permissions: Permissions, memory_type: Type) -> Attributes {
        Attributes {
            permissions,
            user_execute: permissions.execute,
            memory: Memory { memory_type, ignore_pat: false },
            suppress_ve: false,
            accessed: false,
            dirty: false,
            software: 0,
        }
    }
}

/// The encoding of a memory type in bits 5:3 (SDM 3C 30.3.7).
fn memory_bits(memory: Memory) -> Result<u64, Refused> {
    let encoding: u64 = match memory.memory_type {
        Type::Uc => 0,
        Type::Wc => 1,
        Type::Wt => 4,
        Type::Wp => 5,
        Type::Wb => 6,
        Type::UcMinus => return Err(Refused::MemoryType),
    };
    let ignore = if memory.ignore_pat { bits::IGNORE_PAT } else { 0 };
    Ok(encoding << bits::MEMORY_TYPE_SHIFT | ignore)
}

/// `bit` where `on`, else 0.
#[inline(always)]
const fn when(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

impl Ept {
    /// The bits by which an entry can be present.
    #[inline(always)]
    fn presence(&self) -> u64 {
        if self.features().mode_based_execute { PERMISSIONS } else { PERMISSIONS & !bits::XU }
    }
}

impl Encode for Ept {
    type Word = u64;
    type Attributes = Attributes;
    type Memory = Memory;

    fn root(&self, table: u64) -> u64 {
        table
    }

    #[inline(always)]
    fn input(&self, _: u64, address: u64) -> Option<u64> {
        if address >> self.input_bits() == 0 { Some(address) } else { None }
    }

    #[inline(always)]
    fn varying(&self, level: u8) -> u64 {
        self.leaf_address(level) | bits::A | bits::D
    }

    fn top(&self) -> u8 {
        self.root_level()
    }

    #[inline(always)]
    fn input_bits(&self) -> u32 {
        self.shift(self.root_level() + 1)
    }

    #[inline(always)]
    fn place(&self, base: u64, _: u8) -> u64 {
        base
    }

    #[inline(always)]
    fn stride(&self, level: u8) -> Option<u64> {
        Some(1 << self.shift(level))
    }

    fn leaf(&self, attributes: &Attributes, level: u8) -> Result<u64, Refused> {
        let Permissions { read, write, execute } = attributes.permissions;
        let permissions = when(read, bits::R)
            | when(write, bits::W)
            | when(execute, bits::X)
            | when(attributes.user_execute && self.features().mode_based_execute, bits::XU);
        if permissions == 0 {
            return Err(Refused::Permissions(attributes.permissions));
        }
        if attributes.software & !SOFTWARE != 0 {
            return Err(Refused::SoftwareBits(attributes.software & !SOFTWARE));
        }
        Ok(permissions
            | memory_bits(attributes.memory)?
            | when(level > 0, bits::PS)
            | when(attributes.accessed, bits::A)
            | when(attributes.dirty, bits::D)
            | when(attributes.suppress_ve, bits::SUPPRESS_VE)
            | attributes.software)
    }

    fn attributes(&self, entry: u64, _: u8) -> Attributes {
        let encoding = (entry >> bits::MEMORY_TYPE_SHIFT) as u8 & 7;
        Attributes {
            permissions: self.permissions_of(entry, 0),
            user_execute: entry & bits::XU != 0,
            memory: Memory {
                memory_type: Type::from_encoding(encoding).unwrap_or(Type::Uc),
                ignore_pat: entry & bits::IGNORE_PAT != 0,
            },
            suppress_ve: entry & bits::SUPPRESS_VE != 0,
            accessed: entry & bits::A != 0,
            dirty: entry & bits::D != 0,
            software: entry & SOFTWARE,
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
        next & ADDRESS | self.presence()
    }

    /// Not present under either meaning of bit 10; #VE suppressed, so that a guest never sees a
    /// half-made change.
    #[inline(always)]
    fn frozen(&self) -> u64 {
        bits::SUPPRESS_VE | 1 << 11
    }

    #[inline(always)]
    fn demote(&self, entry: u64, level: u8) -> u64 {
        if level == 1 { entry & !bits::PS } else { entry }
    }

    #[inline(always)]
    fn promote(&self, entry: u64, _: u8) -> u64 {
        entry | bits::PS
    }

    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        let Permissions { read, write, execute } = permissions;
        // SDM 3C 30.3.3.1: write without read is a misconfiguration, and so is execute-only where
        // the processor lacks it; nothing at all would make the entry not present.
        let executes = execute && (read || self.features().execute_only);
        if !read && (write || !executes) {
            return Err(Refused::Permissions(permissions));
        }
        let execute = if self.features().mode_based_execute { bits::X | bits::XU } else { bits::X };
        let set = when(read, bits::R) | when(write, bits::W) | when(executes, execute);
        Ok(Change { clear: self.presence() & !set, set })
    }

    fn retype(&self, memory: Memory, _: u8) -> Result<Change, Refused> {
        let set = memory_bits(memory)?;
        Ok(Change { clear: (address_bits(3, 5) | bits::IGNORE_PAT) & !set, set })
    }

    fn hardware_dirty(&self) -> bool {
        self.features().accessed_dirty
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

    /// SDM 3C 30.4.3.4: software should use INVEPT after narrowing; an EPT violation itself
    /// invalidates what it used (30.4.3.1), so that widening needs none.
    #[inline(always)]
    fn effect(&self, lost: u64, gained: u64, _: u8) -> Effect {
        let software = SOFTWARE | bits::A;
        if lost & !software != 0 || gained & !(software | bits::D | PERMISSIONS) != 0 {
            Effect::Stale
        } else if lost & bits::A != 0 {
            Effect::Aged
        } else {
            Effect::None
        }
    }
}
