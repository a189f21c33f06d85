//! What a format is: how one radix tree is encoded. Bits and nothing else; no allocation, no policy.
//!
//! A format is a value, since level counts, widths and capabilities are chosen at run time, and it
//! is used through generics, so that every walk is compiled for its format alone.

use core::fmt;

use crate::access::{Access, Kind};
use crate::fault::{Cause, Reserved};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

pub mod any;
pub mod arm32;
pub mod arm64;
pub mod ept;
pub mod flat;
mod masks;
pub mod npt;
pub mod riscv;
pub mod x86;

/// The most levels that any format has (Arm with 52-bit input and 4K granule, x86 with LA57).
pub const MAX_LEVELS: usize = 5;

/// What an entry decodes to, from the raw entry and its level alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// Translates nothing and has no content that the hardware looks at.
    Empty,
    /// Points at the table one level below.
    Table {
        /// Address of the next table in the output space.
        next: u64,
    },
    /// Ends the walk.
    Leaf {
        /// First output address of the page or block.
        base: u64,
        /// log2 of the size of the page or block in bytes.
        shift: u8,
    },
    /// An encoding that the format reserves. It never translates.
    Reserved(Reserved),
    /// Intel HLAT: the walk restarts at the ordinary root (SDM 3A 5.5.5).
    Restart,
}

/// How a walk begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At a table.
    Table {
        /// Address of the root table in the output space.
        table: u64,
        /// Level of its entries.
        level: u8,
        /// The input as the tables see it: tags stripped, cut to the input width. The root's index
        /// is everything of it from the root's shift up.
        input: u64,
    },
    /// The stage is off: the output is the input, and no table is read.
    Flat {
        /// The output address.
        output: u64,
    },
}

/// What a walk has gathered from the table entries on its way, the leaf's excepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// AND of the raw table entries.
    pub and: u64,
    /// OR of the raw table entries.
    pub or: u64,
    /// AND of [`crate::memory::Reached::leaf`] over every entry that was read.
    pub via: u64,
}

impl Path {
    /// No entry seen.
    pub const START: Path = Path { and: u64::MAX, or: 0, via: u64::MAX };
}

/// The leaf that a walk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The raw leaf entry; 0 where the stage is off.
    pub entry: u64,
    /// The leaf's level.
    pub level: u8,
    /// First output address of the page or block.
    pub base: u64,
    /// log2 of its size; 64 where the stage is off.
    pub shift: u8,
    /// What the table entries above said.
    pub path: Path,
    /// The input address as software gave it.
    pub input: u64,
    /// The kind of access the walk was made for: Arm's memory attributes differ between data and
    /// instructions.
    pub kind: Kind,
}

impl Found {
    /// What a stage that is off finds.
    #[inline]
    pub(crate) const fn flat(input: u64, kind: Kind) -> Found {
        Found { entry: 0, level: 0, base: 0, shift: 64, path: Path::START, input, kind }
    }

    /// A copy made field by field, as [`Access::by_fields`] makes it.
    #[inline(always)]
    #[must_use]
    pub const fn by_fields(&self) -> Self {
        let Found { entry, level, base, shift, path: Path { and, or, via }, input, kind } = *self;
        Found { entry, level, base, shift, path: Path { and, or, via }, input, kind }
    }

    /// Whether the stage is off, so that there is no entry.
    #[inline]
    pub const fn is_flat(&self) -> bool {
        self.shift >= 64
    }
}

/// What is done with a format that is known only where the value is: see [`Format::visit`].
pub trait Visitor: Sized {
    /// What it comes to.
    type Output;

    /// Called with a format and its root.
    fn visit<F: Format>(self, format: &F, root: &F::Root) -> Self::Output;

    /// The same visitor, about to be passed to a function that is not inlined.
    #[inline(always)]
    #[must_use]
    fn apart(self) -> Self {
        self
    }
}

/// Calls `visitor` by a call of its own, which keeps what is done with one format out of what is done
/// with another.
#[inline(always)]
pub(crate) fn apart<F: Format, V: Visitor>(format: &F, root: &F::Root, visitor: V) -> V::Output {
    #[inline(never)]
    fn call<F: Format, V: Visitor>(format: &F, root: &F::Root, visitor: V) -> V::Output {
        format.visit(root, visitor)
    }
    call(format, root, visitor.apart())
}

/// A format: how one radix tree is encoded.
///
/// Levels count from 0 at the smallest leaf, as everywhere in this library;
/// [`Format::arch_level`] gives the manual's own number.
pub trait Format: Copy {
    /// What the architecture's root registers hold, decoded: a table address for most formats.
    type Root: Copy;

    /// Whether the encoding of tables depends on the half of the input space that is walked
    /// (AArch64 with `TG0` other than `TG1`), so that [`Format::half`] must be asked first.
    const HALVES: bool = false;

    /// Whether the shifts of levels are the same for all values of the format, and tables of four levels
    /// see the address's own lower bits, as many as they translate, whatever [`Format::begin`] makes of
    /// those above: a walk of four levels gains by code of its own for each.
    const UNROLLED: bool = false;

    /// The format as the tables for `input` use it: to be asked before any other method where
    /// [`Format::HALVES`] holds. Walks do so themselves.
    #[must_use]
    fn half(&self, input: u64) -> Self {
        let _ = input;
        *self
    }

    /// Whether tables for `input` are encoded as this value says already, so that
    /// [`Format::half`] need not be asked.
    #[inline]
    fn speaks_of(&self, input: u64) -> bool {
        let _ = input;
        !Self::HALVES
    }

    /// Calls `visitor` with this format and its root; a value that is one of several formats calls
    /// it with the one that it is, so that a walk finds that out once.
    #[inline(always)]
    fn visit<V: Visitor>(&self, root: &Self::Root, visitor: V) -> V::Output {
        visitor.visit(self, root)
    }

    /// The name that `slat walk` and JSON use, such as `x86-4`.
    fn name(&self) -> &'static str;

    /// 1 for a guest's own (or a native) table, 2 for a hypervisor's.
    fn stage(&self) -> u8;

    /// Size and byte order of an entry.
    fn layout(&self) -> EntryLayout;

    /// Where the walk of `input` begins.
    ///
    /// # Errors
    /// The cause and the level it is reported at, where the input is not translatable at all.
    fn begin(
        &self,
        root: &Self::Root,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)>;

    /// The lowest input bit that indexes tables of this level.
    fn shift(&self, level: u8) -> u32;

    /// Number of index bits of a table of this level that is not the root.
    fn index_bits(&self, level: u8) -> u32;

    /// What an entry of this level says. Total: every value decodes, and a leaf or reserved
    /// encoding never decodes to a table. A level-0 entry is never a table.
    fn decode(&self, entry: u64, level: u8) -> Decoded;

    /// The next table, where `entry` plainly is a table entry. `None` says nothing. Never more than
    /// [`Format::decode`] says, and nothing at level 0.
    #[inline(always)]
    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        match self.decode(entry, level) {
            Decoded::Table { next } if level > 0 => Some(next),
            _ => None,
        }
    }

    /// Base and shift, where `entry` plainly is a leaf. `None` says nothing. Never more than
    /// [`Format::decode`] says.
    #[inline(always)]
    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        match self.decode(entry, level) {
            Decoded::Leaf { base, shift } => Some((base, shift)),
            _ => None,
        }
    }

    /// Whether the leaf plainly permits the access. `false` says nothing. Never more than
    /// [`Format::check`] says.
    #[inline(always)]
    fn plainly_permits(&self, found: &Found, access: &Access, regime: &Regime) -> bool {
        self.check(found, access, regime).is_ok()
    }

    /// Adds a table entry to what the walk has gathered.
    #[inline]
    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        let _ = level;
        path.and &= entry;
        path.or |= entry;
    }

    /// Whether the found leaf permits the access.
    ///
    /// # Errors
    /// [`Cause::Permission`] with every rule that denies it, or another cause of the format.
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause>;

    /// The entry as the hardware would leave it after this access went through it: with accessed
    /// and dirty bits set where this stage maintains them, else unchanged.
    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64;

    /// The leaf once software has answered the faults by which it sets accessed bits, and those by which
    /// it sets dirty bits if `dirty`, where hardware sets none: what such a leaf permits is permitted at
    /// the second attempt.
    #[inline]
    fn settled(&self, leaf: u64, level: u8, dirty: bool) -> u64 {
        let _ = (level, dirty);
        leaf
    }

    /// log2 of the range in bytes that the leaf says is mapped alike, which a TLB may hold as one: more
    /// than its own where it is one of a contiguous group.
    #[inline]
    fn span(&self, leaf: u64, level: u8) -> u32 {
        match self.decode(leaf, level) {
            Decoded::Leaf { shift, .. } => shift.into(),
            _ => self.shift(level),
        }
    }

    /// The bits of the leaf that say its memory type, as a TLB keeps them.
    fn type_bits(&self, found: &Found) -> TypeBits;

    /// The memory type or attributes that this stage gives accesses of this kind through a leaf with
    /// these bits.
    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType;

    /// The memory type or attributes that this stage gives the page.
    #[inline]
    fn memory_type(&self, found: &Found, regime: &Regime) -> StageType {
        self.type_of(self.type_bits(found), found.kind, regime)
    }

    /// The level's number in the architecture's manual.
    fn arch_level(&self, level: u8) -> i8;

    /// Writes what the entry's bits mean, in the manual's words, on one line.
    ///
    /// # Errors
    /// Those of the writer.
    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result;

    /// The format to walk with after [`Decoded::Restart`], which it never decodes to; `None` where
    /// this one does not either.
    #[must_use]
    fn after_restart(&self) -> Option<Self> {
        None
    }

    /// Whether a page that is no user page is guarded as one: enhanced PAN (Arm's FEAT_PAN3) keeps
    /// privileged data accesses off pages that users can only fetch from.
    #[inline(always)]
    fn guards(&self, found: &Found) -> bool {
        let _ = found;
        false
    }

    /// The protection key of the found page, which data accesses obey beside its rights where keys are on: a
    /// TLB keeps it, and a register says at each access what it denies (Intel SDM 3A 5.6.2 and 5.10.2.2).
    /// `None` for formats without keys.
    #[inline]
    fn key(&self, found: &Found) -> Option<u8> {
        let _ = found;
        None
    }

    /// What the second stage is told of the page this stage found: the architectural user and
    /// write permissions, not those of one access.
    fn page(&self, found: &Found, regime: &Regime) -> crate::access::Stage1Page;
}
