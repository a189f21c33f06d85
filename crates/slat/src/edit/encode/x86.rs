//! Entries of the x86 paging modes and of NPT: Intel SDM 3A chapter 5, AMD APM 2 5.2 to 5.4.

pub use super::narrow::Npt32;
use super::{Change, Effect, Encode, Refused};
use crate::format::Format;
use crate::format::npt::Npt;
use crate::format::x86::legacy::Legacy;
use crate::format::x86::long::{ADDRESS, Long, address_bits};
use crate::format::x86::pae::{self, Pae};
use crate::format::x86::{Controls, bits};
use crate::translate::Permissions;

/// Bits of a present 64-bit leaf that hardware ignores: 11:9 and, above the address, 58:52
/// (SDM 3A tables 5-17 to 5-20; reserved in PAE entries).
const SOFTWARE: u64 = address_bits(52, 58) | SOFTWARE_LOW;
const SOFTWARE_LOW: u64 = address_bits(9, 11);

const KEY: u64 = address_bits(59, 62);

/// What an x86 leaf says besides its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// What the page permits. A present x86 page is always readable.
    pub permissions: Permissions,
    /// A user page. Nested pages must be: every guest access is a user access (APM 2 15.25.5).
    pub user: bool,
    /// Kept over address-space switches.
    pub global: bool,
    /// Index into the PAT, 0 to 7.
    pub pat: Pat,
    /// Protection key, 0 to 15 (4- and 5-level paging).
    pub key: u8,
    /// Accessed from the start.
    pub accessed: bool,
    /// Dirty from the start.
    pub dirty: bool,
    /// Bits that the format leaves to software (58:52 and 11:9, without the former in PAE and
    /// 32-bit entries), in place.
    pub software: u64,
}

/// An index into the PAT register: the memory type of an x86 leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pat(pub u8);

impl Attributes {
    /// A user page with these permissions and PAT index 0, write-back after reset; nothing else.
    pub fn new(permissions: Permissions) -> Attributes {
        Attributes {
            permissions,
            user: true,
            global: false,
            pat: Pat(0),
            key: 0,
            accessed: false,
            dirty: false,
            software: 0,
        }
    }
}

#[inline(always)]
const fn when(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

/// The PAT bit of a leaf of this level.
#[inline(always)]
const fn pat_bit(level: u8) -> u64 {
    if level == 0 { bits::PAT } else { bits::PAT_LARGE }
}

fn pat_bits(pat: Pat, level: u8) -> Result<u64, Refused> {
    if pat.0 > 7 {
        return Err(Refused::MemoryType);
    }
    Ok(when(pat.0 & 1 != 0, bits::PWT)
        | when(pat.0 & 2 != 0, bits::PCD)
        | when(pat.0 & 4 != 0, pat_bit(level)))
}

fn leaf(attributes: &Attributes, level: u8, nx: u64, software: u64) -> Result<u64, Refused> {
    let Permissions { read, write, execute } = attributes.permissions;
    if !read || !execute && nx == 0 {
        return Err(Refused::Permissions(attributes.permissions));
    }
    if attributes.key > 15 {
        return Err(Refused::Key(attributes.key));
    }
    if attributes.software & !software != 0 {
        return Err(Refused::SoftwareBits(attributes.software & !software));
    }
    Ok(bits::P
        | when(write, bits::RW)
        | when(attributes.user, bits::US)
        | when(!execute, nx)
        | pat_bits(attributes.pat, level)?
        | when(level > 0, bits::PS)
        | when(attributes.global, bits::G)
        | when(attributes.accessed, bits::A)
        | when(attributes.dirty, bits::D)
        | u64::from(attributes.key) << 59
        | attributes.software)
}

fn attributes(entry: u64, level: u8, software: u64) -> Attributes {
    let pat = u8::from(entry & bits::PWT != 0)
        | u8::from(entry & bits::PCD != 0) << 1
        | u8::from(entry & pat_bit(level) != 0) << 2;
    Attributes {
        permissions: permissions(entry),
        user: entry & bits::US != 0,
        global: entry & bits::G != 0,
        pat: Pat(pat),
        key: ((entry & KEY) >> 59) as u8,
        accessed: entry & bits::A != 0,
        dirty: entry & bits::D != 0,
        software: entry & software,
    }
}

fn permissions(entry: u64) -> Permissions {
    Permissions { read: true, write: entry & bits::RW != 0, execute: entry & bits::XD == 0 }
}

/// The leaf one level lower: at level 0 the page-size bit is the PAT bit.
#[inline(always)]
fn demote(entry: u64, level: u8) -> u64 {
    if level == 1 {
        entry & !(bits::PS | bits::PAT_LARGE) | when(entry & bits::PAT_LARGE != 0, bits::PAT)
    } else {
        entry
    }
}

#[inline(always)]
fn promote(entry: u64, level: u8) -> u64 {
    if level == 0 {
        entry & !bits::PAT | bits::PS | when(entry & bits::PAT != 0, bits::PAT_LARGE)
    } else {
        entry
    }
}

fn permit(permissions: Permissions, nx: u64, controls: &Controls) -> Result<Change, Refused> {
    let Permissions { read, write, execute } = permissions;
    if !read || !execute && nx == 0 {
        return Err(Refused::Permissions(permissions));
    }
    if !write && controls.shadow_stacks {
        return Err(Refused::ShadowStack);
    }
    let set = when(write, bits::RW) | when(!execute, nx);
    Ok(Change { clear: (bits::RW | nx) & !set, set })
}

fn retype(pat: Pat, level: u8) -> Result<Change, Refused> {
    let set = pat_bits(pat, level)?;
    Ok(Change { clear: (bits::PWT | bits::PCD | pat_bit(level)) & !set, set })
}

/// SDM 3A 5.10.4.2 and 5.10.4.3: invalidation is required after narrowing, and not after widening,
/// since a page fault invalidates what it used.
#[inline(always)]
fn effect(lost: u64, gained: u64, software: u64) -> Effect {
    let widening_loss = bits::XD | software | bits::A;
    let widening_gain = bits::RW | bits::US | bits::A | bits::D | software;
    if lost & !widening_loss != 0 || gained & !widening_gain != 0 {
        Effect::Stale
    } else if lost & bits::A != 0 {
        Effect::Aged
    } else {
        Effect::None
    }
}

const TABLE: u64 = bits::P | bits::RW | bits::US;

/// What all x86 modes encode alike.
macro_rules! alike {
    ($software:expr) => {
        type Attributes = Attributes;
        type Memory = Pat;

        fn attributes(&self, entry: u64, level: u8) -> Attributes {
            attributes(entry, level, $software)
        }

        fn permissions_of(&self, entry: u64, _: u8) -> Permissions {
            permissions(entry)
        }

        /// Not present; bit 9 is ignored in entries that are not.
        #[inline(always)]
        fn frozen(&self) -> u64 {
            1 << 9
        }

        fn retype(&self, memory: Pat, level: u8) -> Result<Change, Refused> {
            retype(memory, level)
        }

        fn hardware_dirty(&self) -> bool {
            true
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

        #[inline(always)]
        fn effect(&self, lost: u64, gained: u64, _: u8) -> Effect {
            effect(lost, gained, $software)
        }

        /// Nested tables' G means nothing: translations of theirs are a guest's, not an address space's.
        fn is_global(&self, leaf: u64, _: u8, _: u64) -> bool {
            self.stage() == 1 && leaf & bits::G != 0
        }
    };
}

/// The placing of addresses in 64-bit entries.
macro_rules! in_place {
    () => {
        #[inline(always)]
        fn place(&self, base: u64, _: u8) -> u64 {
            base
        }

        #[inline(always)]
        fn stride(&self, level: u8) -> Option<u64> {
            Some(1 << self.shift(level))
        }

        #[inline(always)]
        fn demote(&self, entry: u64, level: u8) -> u64 {
            demote(entry, level)
        }

        #[inline(always)]
        fn promote(&self, entry: u64, level: u8) -> u64 {
            promote(entry, level)
        }
    };
}

impl Encode for Long {
    type Word = u64;

    alike!(SOFTWARE);
    in_place!();

    fn root(&self, table: u64) -> u64 {
        table
    }

    #[inline(always)]
    fn varying(&self, level: u8) -> u64 {
        self.leaf_address(level) | bits::A | bits::D
    }

    fn leaf(&self, attributes: &Attributes, level: u8) -> Result<u64, Refused> {
        leaf(attributes, level, when(self.controls().nxe, bits::XD), SOFTWARE)
    }

    #[inline(always)]
    fn table(&self, next: u64, _: u8) -> u64 {
        next & ADDRESS | TABLE
    }

    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        permit(permissions, when(self.controls().nxe, bits::XD), self.controls())
    }
}

/// Software walks the tables from memory ([`pae::Root::OnDemand`]), and so do processors in guests under
/// NPT (AMD APM 2 15.25.10). All others have the four PDPTEs in registers, which a change of the root
/// table reaches when they are loaded again: gathers say that tables changed, also where one was linked,
/// and the planners load them where their `pae` is set. [`Tables::fault`](crate::edit::Tables::fault) and
/// [`Walker::fault`](crate::edit::Walker::fault), which have no gather, are for addresses whose PDPTE is
/// there already.
impl Encode for Pae {
    type Word = u64;

    alike!(SOFTWARE_LOW);
    in_place!();

    fn root(&self, table: u64) -> pae::Root {
        pae::Root::OnDemand(table)
    }

    /// SDM 3A 5.4.1.
    fn root_in_registers(&self) -> bool {
        true
    }

    fn leaf(&self, attributes: &Attributes, level: u8) -> Result<u64, Refused> {
        if attributes.key != 0 {
            return Err(Refused::Key(attributes.key));
        }
        leaf(attributes, level, when(self.controls().nxe, bits::XD), SOFTWARE_LOW)
    }

    /// PDPTEs have no R/W and U/S bits (SDM 3A table 5-8).
    #[inline(always)]
    fn table(&self, next: u64, level: u8) -> u64 {
        next & ADDRESS | if level == 2 { bits::P } else { TABLE }
    }

    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        permit(permissions, when(self.controls().nxe, bits::XD), self.controls())
    }
}

impl Encode for Legacy {
    type Word = u32;

    alike!(SOFTWARE_LOW);

    fn root(&self, table: u64) -> u64 {
        table
    }

    /// PSE-36 (SDM 3A table 5-4): a 4 MiB leaf has address bits 39:32 in bits 20:13.
    #[inline(always)]
    fn place(&self, base: u64, level: u8) -> u64 {
        if level == 0 { base } else { base & 0xffc0_0000 | (base >> 32 & 0xff) << 13 }
    }

    #[inline(always)]
    fn stride(&self, level: u8) -> Option<u64> {
        if level == 0 { Some(1 << 12) } else { None }
    }

    fn leaf(&self, attributes: &Attributes, level: u8) -> Result<u64, Refused> {
        if attributes.key != 0 {
            return Err(Refused::Key(attributes.key));
        }
        leaf(attributes, level, 0, SOFTWARE_LOW)
    }

    #[inline(always)]
    fn table(&self, next: u64, _: u8) -> u64 {
        next & 0xffff_f000 | TABLE
    }

    #[inline(always)]
    fn demote(&self, entry: u64, level: u8) -> u64 {
        demote(entry, level) & !address_bits(13, 20)
    }

    #[inline(always)]
    fn promote(&self, entry: u64, level: u8) -> u64 {
        promote(entry, level)
    }

    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        permit(permissions, 0, self.controls())
    }
}

/// The 64-bit modes; nested tables of a 32-bit host are [`Npt32`].
impl Encode for Npt {
    type Word = u64;

    alike!(SOFTWARE_LOW);
    in_place!();

    fn root(&self, table: u64) -> u64 {
        table
    }

    fn leaf(&self, attributes: &Attributes, level: u8) -> Result<u64, Refused> {
        let Attributes { user, key, .. } = *attributes;
        if !user {
            return Err(Refused::Supervisor);
        }
        if key != 0 {
            return Err(Refused::Key(key));
        }
        leaf(attributes, level, when(self.nxe(), bits::XD), SOFTWARE_LOW)
    }

    /// The top level of a PAE host has no R/W and U/S bits.
    #[inline(always)]
    fn table(&self, next: u64, level: u8) -> u64 {
        let pointer = level == 2 && self.index_bits(2) == 2;
        next & ADDRESS | if pointer { bits::P } else { TABLE }
    }

    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        permit(permissions, when(self.nxe(), bits::XD), &Controls::default())
    }
}
