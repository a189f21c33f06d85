//! VMSAv8-64 descriptors: Arm ARM D8.3 (formats), D8.5 (hardware updates), D8.17 (break-before-make).

use super::{Change, Effect, Encode, Refused};
use crate::format::Format;
use crate::format::arm64::stage1::Root;
use crate::format::arm64::{Geometry, Stage1, Stage2, TranslationRegime, bits};
use crate::translate::Permissions;

/// Bits 58:55 of a leaf are left to software.
const SOFTWARE: u64 = 0xf << 55;
const SH: u64 = 3 << bits::SH_SHIFT;
const S2AP: u64 = bits::S2AP_READ | bits::S2AP_WRITE;
const S2_XN: u64 = bits::XN | bits::XNX;

#[inline(always)]
const fn when(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

/// Whether output addresses lie in one piece in an entry.
#[inline(always)]
const fn in_one_piece(geometry: &Geometry) -> bool {
    geometry.output_bits() <= 48 || geometry.bits_of(1 << 48) == 0
}

/// Descriptor type of a leaf.
#[inline(always)]
const fn leaf_type(level: u8) -> u64 {
    if level == 0 { bits::VALID | bits::TABLE } else { bits::VALID }
}

/// Shareability where it is in the leaf.
fn shareability(geometry: &Geometry, encoding: u8) -> Result<u64, Refused> {
    if encoding > 3 || encoding == 1 {
        return Err(Refused::MemoryType);
    }
    Ok(if geometry.is_lpa2() { 0 } else { u64::from(encoding) << bits::SH_SHIFT })
}

/// What both stages encode alike.
macro_rules! alike {
    () => {
        type Word = u64;
        type Memory = Memory;

        const BREAKS: bool = true;

        #[inline(always)]
        fn place(&self, base: u64, _: u8) -> u64 {
            self.geometry().bits_of(base)
        }

        #[inline(always)]
        fn stride(&self, level: u8) -> Option<u64> {
            if in_one_piece(self.geometry()) { Some(1 << self.shift(level)) } else { None }
        }

        #[inline(always)]
        fn table(&self, next: u64, _: u8) -> u64 {
            self.geometry().bits_of(next) | bits::VALID | bits::TABLE
        }

        /// Invalid; every other bit is ignored.
        #[inline(always)]
        fn frozen(&self) -> u64 {
            1 << 2
        }

        /// A block becomes a page at level 0; `nT` is a block's alone.
        #[inline(always)]
        fn demote(&self, entry: u64, level: u8) -> u64 {
            if level == 1 { entry & !bits::NT | bits::TABLE } else { entry }
        }

        #[inline(always)]
        fn promote(&self, entry: u64, level: u8) -> u64 {
            if level == 0 { entry & !bits::TABLE } else { entry }
        }

        fn hardware_dirty(&self) -> bool {
            self.sets_dirty_state()
        }

        #[inline(always)]
        fn is_accessed(&self, entry: u64) -> bool {
            entry & bits::AF != 0
        }

        fn age(&self) -> Change {
            Change { clear: bits::AF, set: 0 }
        }

        #[inline(always)]
        fn group_shift(&self, level: u8) -> Option<u32> {
            self.geometry().contiguous_shift(level)
        }

        #[inline(always)]
        fn group(&self, entry: u64, level: u8) -> Option<u32> {
            if entry & bits::CONTIGUOUS != 0 {
                self.geometry().contiguous_shift(level)
            } else {
                None
            }
        }

        #[inline(always)]
        fn grouped(&self, leaf: u64, _: u8) -> u64 {
            leaf | bits::CONTIGUOUS
        }

        #[inline(always)]
        fn ungrouped(&self, entry: u64, _: u64, _: u8) -> u64 {
            entry & !bits::CONTIGUOUS
        }

        /// D8.17.1: a live entry changes by break-before-make but for the bits of
        /// [`Self::BBM_SAFE`] (permissions, access flag, dirty state). At FEAT_BBM level 2 the size
        /// may change directly, too, where every other thing that it says stays.
        #[inline(always)]
        fn breaks(&self, old: u64, new: u64, level: u8) -> bool {
            if old & new & bits::VALID == 0 {
                return false;
            }
            if level > 0 && (old | new) & bits::TABLE != 0 {
                // Between a block and a table; between tables it is another address.
                return !self.changes_size_live() || (old & new & bits::TABLE) != 0;
            }
            let size = if self.changes_size_live() { bits::CONTIGUOUS } else { 0 };
            (old ^ new) & !(Self::BBM_SAFE | size) != 0
        }
    };
}

/// What an Arm stage-2 leaf says besides its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Attributes {
    /// What the page permits; `execute` at EL1. Nothing at all is a valid encoding.
    pub permissions: Permissions,
    /// Execution at EL0: the same as at EL1 without FEAT_XNX.
    pub user_execute: bool,
    /// Memory attributes.
    pub memory: Memory,
    /// `DBM`: hardware with `VTCR_EL2.HD` records a write by making the leaf writable. A writable
    /// leaf with it starts clean unless `dirty` is set.
    pub tracked: bool,
    /// Access flag set from the start.
    pub accessed: bool,
    /// Dirty from the start; of tracked leaves only.
    pub dirty: bool,
    /// Bits left to software (58:55), in place.
    pub software: u64,
}

/// Memory attributes of an Arm leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Stage 2: `MemAttr`, 0 to 15, by the meaning that `HCR_EL2.FWB` gives it. Stage 1: the index
    /// into MAIR, 0 to 7.
    pub attributes: u8,
    /// `SH`: 0 none, 2 outer, 3 inner. With `DS` it is the control register's, and not here.
    pub shareability: u8,
}

impl Memory {
    /// Stage 2 without FWB: normal, write-back inside and outside, inner shareable.
    pub const WRITE_BACK: Memory = Memory { attributes: 0xf, shareability: 3 };
    /// Stage 2: Device-nGnRE.
    pub const DEVICE: Memory = Memory { attributes: 1, shareability: 0 };
}

impl Stage2Attributes {
    /// These permissions (EL1's and EL0's alike) and memory attributes; access flag set, as
    /// hypervisors without hardware access flags must have it.
    pub fn new(permissions: Permissions, memory: Memory) -> Stage2Attributes {
        Stage2Attributes {
            permissions,
            user_execute: permissions.execute,
            memory,
            tracked: false,
            accessed: true,
            dirty: false,
            software: 0,
        }
    }
}

fn stage2_memory(geometry: &Geometry, memory: Memory) -> Result<u64, Refused> {
    if memory.attributes > 15 {
        return Err(Refused::MemoryType);
    }
    Ok(u64::from(memory.attributes) << bits::MEM_ATTR_SHIFT
        | shareability(geometry, memory.shareability)?)
}

impl Stage2 {
    /// The bits in which a live leaf may change directly; all others take break-before-make.
    pub const BBM_SAFE: u64 = bits::AF | S2AP | S2_XN | bits::DBM | SOFTWARE;
}

impl Encode for Stage2 {
    type Attributes = Stage2Attributes;

    alike!();

    fn root(&self, table: u64) -> u64 {
        table & 0x0000_ffff_ffff_ffff | (table >> 48 & 0xf) << 2
    }

    fn top(&self) -> u8 {
        self.root_level()
    }

    fn input_bits(&self) -> u32 {
        match self.root_shift() {
            bits @ 4.. => bits - 3 + self.shift(self.root_level()),
            _ => 0,
        }
    }

    fn leaf(&self, attributes: &Stage2Attributes, level: u8) -> Result<u64, Refused> {
        let Stage2Attributes { permissions, user_execute, tracked, .. } = *attributes;
        let never = match (permissions.execute, user_execute) {
            (true, true) => 0,
            (false, false) => bits::XN,
            _ if !self.tells_execution_apart() => return Err(Refused::Permissions(permissions)),
            (false, true) => bits::XNX,
            (true, false) => bits::XN | bits::XNX,
        };
        if attributes.software & !SOFTWARE != 0 {
            return Err(Refused::SoftwareBits(attributes.software & !SOFTWARE));
        }
        // A tracked leaf is made writable by its first write.
        let clean = tracked && self.sets_dirty_state() && !attributes.dirty;
        Ok(leaf_type(level)
            | when(permissions.read, bits::S2AP_READ)
            | when(permissions.write && !clean, bits::S2AP_WRITE)
            | when(permissions.write && tracked, bits::DBM)
            | never
            | stage2_memory(self.geometry(), attributes.memory)?
            | when(attributes.accessed, bits::AF)
            | attributes.software)
    }

    fn attributes(&self, entry: u64, level: u8) -> Stage2Attributes {
        let apart = self.tells_execution_apart() && entry & bits::XNX != 0;
        let user_execute = (entry & bits::XN == 0) != (apart && entry & bits::XN != 0)
            && !(apart && entry & bits::XN != 0);
        Stage2Attributes {
            permissions: self.permissions_of(entry, level),
            user_execute,
            memory: Memory {
                attributes: (entry >> bits::MEM_ATTR_SHIFT) as u8 & 0xf,
                shareability: if self.geometry().is_lpa2() {
                    0
                } else {
                    (entry >> bits::SH_SHIFT) as u8 & 3
                },
            },
            tracked: entry & bits::DBM != 0,
            accessed: entry & bits::AF != 0,
            dirty: self.is_dirty(entry),
            software: entry & SOFTWARE,
        }
    }

    fn permissions_of(&self, entry: u64, _: u8) -> Permissions {
        let apart = self.tells_execution_apart() && entry & bits::XNX != 0;
        let tracked = self.sets_dirty_state() && entry & bits::DBM != 0;
        Permissions {
            read: entry & bits::S2AP_READ != 0,
            write: entry & bits::S2AP_WRITE != 0 || tracked,
            // XN, XNX: 00 both, 01 EL0 alone, 10 neither, 11 EL1 alone (D8.4.2).
            execute: (entry & bits::XN != 0) == apart,
        }
    }

    /// A leaf that loses write permission loses its dirty state with it, which are one bit: the
    /// witness sees that.
    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        let Permissions { read, write, execute } = permissions;
        let set =
            when(read, bits::S2AP_READ) | when(write, bits::S2AP_WRITE) | when(!execute, bits::XN);
        let tracking = when(!write, bits::DBM);
        Ok(Change { clear: (S2AP | S2_XN) & !set | tracking, set })
    }

    fn retype(&self, memory: Memory, _: u8) -> Result<Change, Refused> {
        let set = stage2_memory(self.geometry(), memory)?;
        let sh = if self.geometry().is_lpa2() { 0 } else { SH };
        Ok(Change { clear: (0xf << bits::MEM_ATTR_SHIFT | sh) & !set, set })
    }

    #[inline(always)]
    fn is_dirty(&self, entry: u64) -> bool {
        self.sets_dirty_state()
            && entry & (bits::DBM | bits::S2AP_WRITE) == bits::DBM | bits::S2AP_WRITE
    }

    fn clean(&self) -> Change {
        Change { clear: bits::S2AP_WRITE, set: 0 }
    }

    fn soil(&self) -> Change {
        Change { clear: 0, set: bits::AF | bits::S2AP_WRITE }
    }

    #[inline(always)]
    fn inherit(&self, entry: u64, from: u64) -> u64 {
        entry | from & self.history(entry)
    }

    #[inline(always)]
    fn history(&self, entry: u64) -> u64 {
        let tracked = self.sets_dirty_state() && entry & bits::DBM != 0;
        bits::AF | when(tracked, bits::S2AP_WRITE)
    }

    /// A leaf that permits too little may be cached as well as one that permits too much (D8.16);
    /// only an access flag that is clear is never cached.
    #[inline(always)]
    fn effect(&self, lost: u64, gained: u64, _: u8) -> Effect {
        let unseen = bits::AF | SOFTWARE;
        if (lost | gained) & !unseen != 0 {
            Effect::Stale
        } else if lost & bits::AF != 0 {
            Effect::Aged
        } else {
            Effect::None
        }
    }
}

/// What an Arm stage-1 leaf says besides its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage1Attributes {
    /// What the page permits; `execute` at EL0, or at the only level. Always readable.
    pub permissions: Permissions,
    /// Execution at the higher level of a regime with EL0.
    pub privileged_execute: bool,
    /// EL0 may access it.
    pub user: bool,
    /// Memory attributes.
    pub memory: Memory,
    /// Tagged by the ASID.
    pub not_global: bool,
    /// `DBM`, as for stage 2.
    pub tracked: bool,
    /// Access flag set from the start.
    pub accessed: bool,
    /// Dirty from the start; of tracked leaves only.
    pub dirty: bool,
    /// Bits left to software (58:55), in place.
    pub software: u64,
}

impl Stage1Attributes {
    /// A page of EL0 with these permissions, index 0 of MAIR, inner shareable, tagged by its ASID;
    /// access flag set.
    pub fn new(permissions: Permissions) -> Stage1Attributes {
        Stage1Attributes {
            permissions,
            privileged_execute: false,
            user: true,
            memory: Memory { attributes: 0, shareability: 3 },
            not_global: true,
            tracked: false,
            accessed: true,
            dirty: false,
            software: 0,
        }
    }
}

fn stage1_memory(geometry: &Geometry, memory: Memory) -> Result<u64, Refused> {
    if memory.attributes > 7 {
        return Err(Refused::MemoryType);
    }
    Ok(u64::from(memory.attributes) << bits::ATTR_INDEX_SHIFT
        | shareability(geometry, memory.shareability)?)
}

/// Whether EL0 runs under the regime.
fn has_user(format: &Stage1) -> bool {
    format.regime() != TranslationRegime::El2
}

impl Stage1 {
    /// The bits in which a live leaf may change directly; all others, `nG` among them, take
    /// break-before-make.
    pub const BBM_SAFE: u64 = bits::AF
        | bits::AP_USER
        | bits::AP_READ_ONLY
        | bits::PXN
        | bits::UXN
        | bits::DBM
        | SOFTWARE;
}

impl Encode for Stage1 {
    type Attributes = Stage1Attributes;

    alike!();

    /// The root of the half that [`Format::half`] chose; the other half stays without.
    fn root(&self, table: u64) -> Root {
        let register = table & 0x0000_ffff_ffff_ffff | (table >> 48 & 0xf) << 2;
        match self.active_half() {
            0 => Root { ttbr0: register, ttbr1: 0 },
            _ => Root { ttbr0: 0, ttbr1: register },
        }
    }

    fn top(&self) -> u8 {
        self.root_geometry().1
    }

    fn input_bits(&self) -> u32 {
        self.root_geometry().0
    }

    fn leaf(&self, attributes: &Stage1Attributes, level: u8) -> Result<u64, Refused> {
        let Permissions { read, write, execute } = attributes.permissions;
        if !read {
            return Err(Refused::Permissions(attributes.permissions));
        }
        if attributes.software & !SOFTWARE != 0 {
            return Err(Refused::SoftwareBits(attributes.software & !SOFTWARE));
        }
        let access = if has_user(self) {
            when(attributes.user, bits::AP_USER)
                | when(!attributes.privileged_execute, bits::PXN)
                | when(attributes.not_global, bits::NG)
        } else {
            // AP[1] is RES1 in a regime without EL0 (D8.4.1).
            bits::AP_USER
        };
        let clean = attributes.tracked && self.sets_dirty_state() && !attributes.dirty;
        Ok(leaf_type(level)
            | access
            | when(!write || clean, bits::AP_READ_ONLY)
            | when(write && attributes.tracked, bits::DBM)
            | when(!execute, bits::UXN)
            | stage1_memory(self.geometry(), attributes.memory)?
            | when(attributes.accessed, bits::AF)
            | attributes.software)
    }

    fn attributes(&self, entry: u64, level: u8) -> Stage1Attributes {
        let user = has_user(self);
        Stage1Attributes {
            permissions: self.permissions_of(entry, level),
            privileged_execute: user && entry & bits::PXN == 0,
            user: user && entry & bits::AP_USER != 0,
            memory: Memory {
                attributes: (entry >> bits::ATTR_INDEX_SHIFT) as u8 & 7,
                shareability: if self.geometry().is_lpa2() {
                    0
                } else {
                    (entry >> bits::SH_SHIFT) as u8 & 3
                },
            },
            not_global: entry & bits::NG != 0,
            tracked: entry & bits::DBM != 0,
            accessed: entry & bits::AF != 0,
            dirty: self.is_dirty(entry),
            software: entry & SOFTWARE,
        }
    }

    fn permissions_of(&self, entry: u64, _: u8) -> Permissions {
        let tracked = self.sets_dirty_state() && entry & bits::DBM != 0;
        Permissions {
            read: true,
            write: entry & bits::AP_READ_ONLY == 0 || tracked,
            execute: entry & bits::UXN == 0,
        }
    }

    /// Execution is given or taken at both levels. As for stage 2, dirty state goes with write
    /// permission.
    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        let Permissions { read, write, execute } = permissions;
        if !read {
            return Err(Refused::Permissions(permissions));
        }
        let never = when(has_user(self), bits::PXN) | bits::UXN;
        let set = when(!write, bits::AP_READ_ONLY) | when(!execute, never);
        let tracking = when(!write, bits::DBM);
        Ok(Change { clear: (bits::AP_READ_ONLY | never) & !set | tracking, set })
    }

    fn retype(&self, memory: Memory, _: u8) -> Result<Change, Refused> {
        let set = stage1_memory(self.geometry(), memory)?;
        let sh = if self.geometry().is_lpa2() { 0 } else { SH };
        Ok(Change { clear: (7 << bits::ATTR_INDEX_SHIFT | sh) & !set, set })
    }

    #[inline(always)]
    fn is_dirty(&self, entry: u64) -> bool {
        self.sets_dirty_state() && entry & (bits::DBM | bits::AP_READ_ONLY) == bits::DBM
    }

    fn clean(&self) -> Change {
        Change { clear: 0, set: bits::AP_READ_ONLY }
    }

    fn soil(&self) -> Change {
        Change { clear: bits::AP_READ_ONLY, set: bits::AF }
    }

    #[inline(always)]
    fn inherit(&self, entry: u64, from: u64) -> u64 {
        let entry = entry | from & bits::AF;
        if self.is_dirty(from) && entry & bits::DBM != 0 {
            entry & !bits::AP_READ_ONLY
        } else {
            entry
        }
    }

    #[inline(always)]
    fn history(&self, entry: u64) -> u64 {
        let tracked = self.sets_dirty_state() && entry & bits::DBM != 0;
        bits::AF | when(tracked, bits::AP_READ_ONLY)
    }

    /// EL2 alone has no ASIDs, and nG no meaning.
    fn is_global(&self, leaf: u64, _: u8, _: u64) -> bool {
        has_user(self) && leaf & (bits::VALID | bits::NG) == bits::VALID
    }

    #[inline(always)]
    fn effect(&self, lost: u64, gained: u64, _: u8) -> Effect {
        let unseen = bits::AF | SOFTWARE;
        if (lost | gained) & !unseen != 0 {
            Effect::Stale
        } else if lost & bits::AF != 0 {
            Effect::Aged
        } else {
            Effect::None
        }
    }
}
