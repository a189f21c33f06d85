//! How entries are made: what [`Format`] reads, written.

use core::fmt;

use super::word::Word;
use crate::access::Access;
use crate::fault::Reserved;
use crate::format::{Decoded, Format, MAX_LEVELS, Start};
use crate::regime::Regime;
use crate::translate::Permissions;

pub mod arm32;
pub mod arm64;
pub mod ept;
mod narrow;
pub mod riscv;
mod wrapped;
pub mod x86;

/// A change of an entry's bits: first those of `clear` are cleared, then those of `set` set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Bits to clear.
    pub clear: u64,
    /// Bits to set.
    pub set: u64,
}

impl Change {
    /// The entry after the change.
    #[inline(always)]
    pub const fn apply(self, entry: u64) -> u64 {
        entry & !self.clear | self.set
    }
}

/// What hardware may still do after an entry has changed in memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    /// Nothing that matters: at worst a fault that hardware itself resolves by walking again.
    None,
    /// It may go without setting an accessed bit again. The caller may waive the invalidation and
    /// accept that pages look older than they are.
    Aged,
    /// It may act on the older entry until that is invalidated.
    Stale,
}

/// Why attributes cannot be encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The format has no encoding for these permissions. To take all permissions away, unmap.
    Permissions(Permissions),
    /// The format, or the processor that it was made for, has no such memory type or index.
    MemoryType,
    /// The value that the attributes make is reserved on this processor.
    Reserved(Reserved),
    /// Bits outside those that the format leaves to software.
    SoftwareBits(u64),
    /// A leaf of this level, which there is not.
    Level(u8),
    /// A protection key above 15.
    Key(u8),
    /// A nested page that is not a user page: every guest access would fault (AMD APM 2 15.25.5).
    Supervisor,
    /// The page can only be made read-only by making it a shadow-stack page: it is dirty, and
    /// `CR4.CET` is set (Intel SDM 3A 5.6).
    ShadowStack,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Permissions(permissions) => {
                let letter = |granted: bool, letter| if granted { letter } else { '-' };
                write!(
                    f,
                    "the format cannot encode permissions {}{}{}; to take all away, unmap",
                    letter(permissions.read, 'r'),
                    letter(permissions.write, 'w'),
                    letter(permissions.execute, 'x'),
                )
            }
            Refused::MemoryType => f.write_str("the format has no such memory type"),
            Refused::Reserved(reserved) => write!(f, "the entry would be reserved: {reserved}"),
            Refused::SoftwareBits(bits) => {
                write!(f, "bits {bits:#x} are not left to software by the format")
            }
            Refused::Level(level) => write!(f, "there is no such leaf of level {level}"),
            Refused::Key(key) => write!(f, "protection key {key} is above 15"),
            Refused::Supervisor => f.write_str("a nested page must be a user page"),
            Refused::ShadowStack => f.write_str(
                "with CR4.CET set a dirty page that is made read-only becomes a shadow-stack page",
            ),
        }
    }
}

impl core::error::Error for Refused {}

/// Where any root may lie, of any format: aligned to the longest (16 tables of 64 KiB).
const SOME_ROOT: u64 = 1 << 20;

/// A format whose entries can be written.
///
/// Everything here is bits: where an entry lies, and when it may be stored, is the cursor's
/// business. What is written must decode to what was meant: [`Leaves::new`] checks every template by
/// [`Format::decode`].
pub trait Encode: Format + fmt::Debug {
    /// The integer that an entry is.
    type Word: Word;

    /// What a leaf says besides its address.
    type Attributes: Copy + PartialEq + fmt::Debug;

    /// The memory type in the format's own terms.
    type Memory: Copy + PartialEq + fmt::Debug;

    /// Whether some changes of a live entry need break-before-make ([`Encode::breaks`]).
    const BREAKS: bool = false;

    /// What the root register is to hold for the table at `table`.
    fn root(&self, table: u64) -> Self::Root;

    /// Width of the input that the tables translate, tags and sign extension excluded.
    fn input_bits(&self) -> u32 {
        let level = self.top();
        self.shift(level) + self.index_bits(level)
    }

    /// The tables' input that `address` is, without sign extension and tags, where the root at
    /// `table` translates it.
    #[inline]
    fn input(&self, table: u64, address: u64) -> Option<u64> {
        // Where there are two halves, the other half's register holds 0: a root that lies there could
        // not be told from it, so that the question is asked of another one.
        let table = if table == 0 { SOME_ROOT } else { table };
        let root = self.root(table);
        match self.begin(&root, address, &Access::default(), &Regime::default()) {
            Ok(Start::Table { table: found, level, input })
                if found == table && level == self.top() && input >> self.input_bits() == 0 =>
            {
                Some(input)
            }
            _ => None,
        }
    }

    /// The table that an entry above level 0 points at, where that can be told faster than by
    /// [`Format::decode`]; whenever this is some table, `decode` says so as well.
    #[inline(always)]
    fn points_at(&self, entry: u64, level: u8) -> Option<u64> {
        self.plain_table(entry, level)
    }

    /// The first output address that a leaf of `level` maps, where that can be told faster than by
    /// [`Format::decode`]; whenever this is some address, `decode` says so as well, and the leaf is
    /// of its level's own size.
    #[inline(always)]
    fn maps_to(&self, entry: u64, level: u8) -> Option<u64> {
        match self.plain_leaf(entry, level) {
            Some((base, shift)) if u32::from(shift) == self.shift(level) => Some(base),
            _ => None,
        }
    }

    /// The bits in which another entry of `level` may differ from a leaf and be a leaf as well,
    /// whatever they are: address bits within the width, accessed and dirty state.
    #[inline(always)]
    fn varying(&self, level: u8) -> u64 {
        let _ = level;
        0
    }

    /// The level of the root table.
    fn top(&self) -> u8 {
        match self.begin(&self.root(0), 0, &Access::default(), &Regime::default()) {
            Ok(Start::Table { level, .. }) => level,
            _ => 0,
        }
    }

    /// The bits by which a leaf of `level` names the output address `base`, a multiple of the
    /// leaf's size.
    fn place(&self, base: u64, level: u8) -> u64;

    /// What the next page's [`Encode::place`] is greater by, or `None` where placed addresses are
    /// not consecutive.
    fn stride(&self, level: u8) -> Option<u64>;

    /// A leaf of `level` at output address 0.
    ///
    /// # Errors
    /// Where the format has no encoding for the attributes.
    fn leaf(&self, attributes: &Self::Attributes, level: u8) -> Result<u64, Refused>;

    /// What a leaf of `level` says besides its address.
    fn attributes(&self, entry: u64, level: u8) -> Self::Attributes;

    /// The permissions that a leaf alone grants (to user accesses, where the format has both).
    fn permissions_of(&self, entry: u64, level: u8) -> Permissions;

    /// The entry of `level` that points at the table at `next` and restricts nothing.
    fn table(&self, next: u64, level: u8) -> u64;

    /// A value that translates nothing, is not zero, and stands where an entry is about to be
    /// removed or remade: who meets it tries again.
    fn frozen(&self) -> u64;

    /// The leaf of the level below that says the same of the first part of this one; 0 where no
    /// leaf does.
    fn demote(&self, entry: u64, level: u8) -> u64;

    /// The leaf of the level above that says the same; its address bits below that level's size
    /// are clear in a leaf that may be promoted.
    fn promote(&self, entry: u64, level: u8) -> u64;

    /// How a leaf's permissions become `permissions`.
    ///
    /// # Errors
    /// Where the format cannot encode them in an entry that stays a leaf.
    fn permit(&self, permissions: Permissions, level: u8) -> Result<Change, Refused>;

    /// How a leaf's memory type becomes `memory`.
    ///
    /// # Errors
    /// Where the format has no such type.
    fn retype(&self, memory: Self::Memory, level: u8) -> Result<Change, Refused>;

    /// Whether hardware sets a dirty state in leaves, so that one may appear at any time.
    fn hardware_dirty(&self) -> bool;

    /// Whether the leaf has been accessed since it was last aged.
    fn is_accessed(&self, entry: u64) -> bool;

    /// Whether the leaf has been written through since it was last cleaned.
    fn is_dirty(&self, entry: u64) -> bool;

    /// How a leaf becomes one that has not been accessed.
    fn age(&self) -> Change;

    /// How a leaf becomes one that has not been written through.
    fn clean(&self) -> Change;

    /// How a leaf becomes one that has been written through.
    fn soil(&self) -> Change;

    /// The leaf with the accessed and dirty state of `from` added to its own.
    fn inherit(&self, entry: u64, from: u64) -> u64;

    /// The bits in which another leaf may differ from this one and still say the same: accessed and
    /// dirty state.
    fn history(&self, entry: u64) -> u64;

    /// log2 of the range of a group of leaves of `level`, where the format and the processor have
    /// such groups: contiguous entries (Arm), NAPOT ranges (RISC-V). Several entries then say one
    /// thing; they change together or not at all, and their accessed and dirty state is the OR over
    /// them.
    #[inline(always)]
    fn group_shift(&self, level: u8) -> Option<u32> {
        let _ = level;
        None
    }

    /// log2 of the range of the group that the leaf belongs to, if it does.
    #[inline(always)]
    fn group(&self, entry: u64, level: u8) -> Option<u32> {
        let _ = (entry, level);
        None
    }

    /// The entry by which a group says what `leaf` says of its page.
    #[inline(always)]
    fn grouped(&self, leaf: u64, level: u8) -> u64 {
        let _ = level;
        leaf
    }

    /// The leaf that says by itself what the `index`-th entry of a group says of its page.
    #[inline(always)]
    fn ungrouped(&self, entry: u64, index: u64, level: u8) -> u64 {
        let _ = (index, level);
        entry
    }

    /// What follows from a change in which valid leaves lost the bits `lost` and gained the bits
    /// `gained`.
    fn effect(&self, lost: u64, gained: u64, level: u8) -> Effect;

    /// Whether invalid entries may be cached, so that even mapping needs an invalidation.
    fn caches_invalid(&self) -> bool {
        false
    }

    /// Whether processors may hold the root's entries, invalid ones as well, in registers that are loaded
    /// with the root register: until that is loaded again, a table that was linked there is not seen, and
    /// one that was taken out is walked.
    fn root_in_registers(&self) -> bool {
        false
    }

    /// Whether a leaf of stage 1 may be kept for every address space, so that an invalidation of one by its
    /// PCID or ASID passes it by: G, with `CR4.PGE` set (Intel SDM 3A 5.10.2.4), nG clear (Arm ARM D8.16.4), G
    /// there or in an entry above it (RISC-V privileged architecture, "Sv32"). `above` is what those have
    /// together; of a table entry, the leaf is 0, and it is asked of all below it.
    fn is_global(&self, leaf: u64, level: u8, above: u64) -> bool {
        let _ = (leaf, level, above);
        false
    }

    /// Whether a live entry may not go from `old` to `new` directly: an invalid entry and an
    /// invalidation must come between (Arm's break-before-make).
    fn breaks(&self, old: u64, new: u64, level: u8) -> bool {
        let _ = (old, new, level);
        false
    }
}

/// Attributes made ready for one format: one leaf a level, each checked by decoding it.
///
/// ```
/// use slat::edit::{Leaves, ept::Attributes};
/// use slat::format::ept::{Ept, Features};
/// use slat::{Permissions, memory_type::x86::Type};
///
/// let format = Ept::four(Features { gigabyte_pages: false, ..Features::default() });
/// let writable = Permissions { read: true, write: true, execute: false };
/// let leaves = Leaves::new(&format, &Attributes::new(writable, Type::Wb)).unwrap();
/// assert_eq!(leaves.largest(), 1, "2 MiB pages at most");
///
/// // Writable but not readable is a misconfiguration, found before it reaches a table.
/// let wrong = Permissions { read: false, ..writable };
/// assert!(Leaves::new(&format, &Attributes::new(wrong, Type::Wb)).is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaves {
    entries: [u64; MAX_LEVELS],
    /// Bit n: leaves of level n exist.
    levels: u8,
    /// Whole runs become groups.
    groups: bool,
}

impl Leaves {
    /// The leaves that say `attributes`, of every level at which the format has leaves.
    ///
    /// # Errors
    /// Where level 0 has none.
    pub fn new<F: Encode>(format: &F, attributes: &F::Attributes) -> Result<Leaves, Refused> {
        let mut leaves = Leaves { entries: [0; MAX_LEVELS], levels: 0, groups: false };
        for level in 0..=format.top() {
            let entry = format.leaf(attributes, level).map(|bits| bits | format.place(0, level));
            let size = format.shift(level) as u8;
            match entry.map(|entry| (entry, format.decode(entry, level))) {
                Ok((entry, Decoded::Leaf { base: 0, shift })) if shift == size => {
                    leaves.entries[usize::from(level)] = entry;
                    leaves.levels |= 1 << level;
                }
                Ok((_, Decoded::Reserved(reserved))) if level == 0 => {
                    return Err(Refused::Reserved(reserved));
                }
                Err(refused) if level == 0 => return Err(refused),
                _ => {}
            }
        }
        Ok(leaves)
    }

    /// The highest level at which there is a leaf.
    pub fn largest(&self) -> u8 {
        7 - (self.levels | 1).leading_zeros() as u8
    }

    /// The same without leaves above `level`.
    #[must_use]
    pub fn up_to(self, level: u8) -> Leaves {
        let keep = (1u16 << (level.min(7) + 1)) - 1;
        Leaves { levels: self.levels & keep as u8, ..self }
    }

    /// The same, made into contiguous (Arm) or NAPOT (RISC-V) groups wherever a whole one fits, so
    /// that one TLB entry may serve all of it. Formats without groups map as ever.
    #[must_use]
    pub fn grouped(self) -> Leaves {
        Leaves { groups: true, ..self }
    }

    /// Whether whole runs become groups.
    #[inline]
    pub(super) fn makes_groups(&self) -> bool {
        self.groups
    }

    /// Whether there is a leaf of this level.
    #[inline]
    pub(crate) fn has(&self, level: u8) -> bool {
        self.levels >> level & 1 != 0
    }

    /// The leaf of this level at output address 0.
    #[inline]
    pub(crate) fn at(&self, level: u8) -> u64 {
        self.entries[usize::from(level)]
    }
}
