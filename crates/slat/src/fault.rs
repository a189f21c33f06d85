//! Why a translation ended.

use core::fmt;

use crate::access::Access;
use crate::address::Address;
use crate::format::Path;

/// Why one stage's walk ended without a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// x86: the linear address is not canonical (#GP or #SS, not #PF; Intel SDM 1 3.3.7.1).
    NonCanonical,
    /// x86: linear-address-space separation refused the address (Intel SDM 3A 4.4).
    AddressSpaceSeparation,
    /// The input lies outside the stage's input width.
    InputSize,
    /// Walks through this half are disabled (`TCR_ELx.EPD0`, `EPD1`).
    Disabled,
    /// The registers hold a geometry for which every translation faults (Arm `TxSZ`, `SL0`).
    Geometry,
    /// An entry translates nothing.
    Empty,
    /// An entry has an encoding that its format reserves.
    Reserved(Reserved),
    /// The access flag is clear and hardware does not set it.
    AccessFlag,
    /// The translation exists and denies the access.
    Permission(Denied),
    /// Intel HLAT asked for a restart; [`crate::walk`] obeys it and never returns it.
    Restart,
    /// Accessed or dirty bits could not be set: every compare-exchange lost against another writer.
    Contended,
}

/// What makes an encoding reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Why {
    /// Bits that must be zero are set.
    Bits,
    /// The encoding of these bits is reserved as a whole.
    Encoding,
    /// An output address beyond the physical address width.
    AddressSize,
    /// A block's output address is not a multiple of its size.
    Misaligned,
    /// A memory type that does not exist.
    MemoryType,
    /// Writable but not readable.
    WriteWithoutRead,
    /// Execute-only, which this processor does not support.
    ExecuteOnly,
    /// A leaf at a level where this processor has none.
    LeafLevel,
}

/// A reserved encoding, with its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Reserved {
    /// The reason.
    pub why: Why,
    /// The entry's bits that make it so.
    pub bits: u64,
}

/// The rules that denied an access: a set, since syndromes report several at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Denied(u32);

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $text:literal;)*) => {
        impl Denied {
            $($(#[$doc])* pub const $name: Denied = Denied(1 << $bit);)*

            /// The rules of this set, each as its name and a sentence's end in plain words.
            pub fn iter(self) -> impl Iterator<Item = (&'static str, &'static str)> {
                [$((Denied::$name, stringify!($name), $text)),*]
                    .into_iter()
                    .filter(move |(rule, ..)| self.contains(*rule))
                    .map(|(_, name, text)| (name, text))
            }
        }
    };
}

rules! {
    /// No read permission.
    READ = 0, "the page is not readable";
    /// No write permission.
    WRITE = 1, "the page is not writable";
    /// No execute permission.
    EXECUTE = 2, "the page is not executable";
    /// A user access to a supervisor page.
    USER = 3, "the page belongs to the supervisor";
    /// A supervisor fetch from a user page (SMEP; Arm PXN of user-writable pages; RISC-V U pages).
    SUPERVISOR_FETCH = 4, "the supervisor may not execute user pages";
    /// A supervisor data access to a user page (SMAP, PAN, SUM).
    SUPERVISOR_DATA = 5, "the supervisor may not access user pages now";
    /// A protection key.
    KEY = 6, "the page's protection key denies it";
    /// Shadow-stack rules.
    SHADOW_STACK = 7, "shadow-stack rules deny it";
    /// A writable page is never executable (WXN, UWXN).
    WRITE_EXECUTE = 8, "writable pages are not executable here (WXN)";
    /// An Arm domain (short descriptors).
    DOMAIN = 9, "the page's domain denies it";
    /// The accessed bit is clear and hardware does not set it (Svade).
    ACCESSED = 10, "the accessed bit is clear and hardware does not set it";
    /// The dirty bit is clear and hardware does not set it (Svade).
    DIRTY = 11, "the dirty bit is clear and hardware does not set it";
    /// A stage-1 table in device memory (`HCR_EL2.PTW`).
    TABLE_IN_DEVICE = 12, "stage-1 tables may not lie in device memory (HCR_EL2.PTW)";
    /// EPT guest-paging verification.
    GUEST_PAGING = 13, "a guest table was reached through a page without paging-write access";
    /// EPT sub-page write permissions.
    SUB_PAGE = 14, "the sub-page's write permission is clear";
    /// NPT guest-mode execute trap (GMET).
    GUEST_MODE = 15, "the guest's supervisor may not execute user nested pages (GMET)";
}

impl Denied {
    /// No rule: the access is allowed.
    pub const NONE: Denied = Denied(0);

    /// Whether no rule denies.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every rule of `other` is in this set.
    #[inline]
    pub const fn contains(self, other: Denied) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether some rule of `other` is in this set.
    #[inline]
    pub const fn intersects(self, other: Denied) -> bool {
        self.0 & other.0 != 0
    }

    /// This set with `rule` in it where `denies` holds.
    #[inline]
    #[must_use]
    pub const fn with(self, rule: Denied, denies: bool) -> Denied {
        Denied(self.0 | if denies { rule.0 } else { 0 })
    }

    /// This set without `rule`.
    #[inline]
    #[must_use]
    pub const fn without(self, rule: Denied) -> Denied {
        Denied(self.0 & !rule.0)
    }

    /// `Ok` for the empty set, else the cause.
    ///
    /// # Errors
    /// [`Cause::Permission`] where a rule denies.
    #[inline]
    pub const fn into_result(self) -> Result<(), Cause> {
        if self.is_empty() { Ok(()) } else { Err(Cause::Permission(self)) }
    }
}

impl fmt::Debug for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// One stage's own fault: what was translated, how far it came, and why it ended there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault<I> {
    /// Which stage, as its [`crate::Stage`] counts.
    pub stage: u8,
    /// The address that was being translated.
    pub input: I,
    /// The level at which the walk ended.
    pub level: u8,
    /// The last entry that was read; 0 where none was.
    pub entry: u64,
    /// Where that entry lies in the output space; 0 where none was read.
    pub entry_address: u64,
    /// What the table entries above it said.
    pub path: Path,
    /// Why.
    pub cause: Cause,
    /// The access that failed, as this stage saw it: its purpose tells a stage-2 fault on the final
    /// access from one on a stage-1 table.
    pub access: Access,
}

/// A failed walk over memory whose own faults are `B`.
///
/// Two stages fail with `Failed<Gva, Failed<Gpa, _>>`: `Here` is stage 1's own fault, `Below(Here)`
/// stage 2's, and `Below(Below)` is the bus's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed<I, B> {
    /// This stage's own fault.
    Here(Fault<I>),
    /// The memory below did not answer: a fault of the stage below, or of the bus.
    Below(B),
}

impl<I: Address, B: fmt::Debug> fmt::Display for Failed<I, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Here(fault) => fault.fmt(f),
            Failed::Below(below) => write!(f, "below stage 1: {below:?}"),
        }
    }
}

impl<I: Address> fmt::Display for Fault<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stage {} at level {} on {} {:#x}: {}",
            self.stage,
            self.level,
            I::SPACE,
            self.input,
            self.cause
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NonCanonical => f.write_str("the address is not canonical"),
            Cause::AddressSpaceSeparation => {
                f.write_str("the address lies in the other privilege's half (LASS)")
            }
            Cause::InputSize => f.write_str("the address lies outside the stage's input width"),
            Cause::Disabled => f.write_str("walks through this half are disabled"),
            Cause::Geometry => {
                f.write_str("the registers' input size or start level is out of range")
            }
            Cause::Empty => f.write_str("the entry is not present"),
            Cause::Reserved(reserved) => reserved.fmt(f),
            Cause::AccessFlag => {
                f.write_str("the access flag is clear and hardware does not set it")
            }
            Cause::Permission(denied) => {
                let mut first = true;
                for (_, text) in denied.iter() {
                    if !first {
                        f.write_str("; ")?;
                    }
                    first = false;
                    f.write_str(text)?;
                }
                Ok(())
            }
            Cause::Restart => f.write_str("the entry asks for a restart of the walk (HLAT)"),
            Cause::Contended => f.write_str("another writer kept changing the entry"),
        }
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.why {
            Why::Bits => "reserved bits are set",
            Why::Encoding => "the encoding is reserved",
            Why::AddressSize => "the output address is beyond the physical address width",
            Why::Misaligned => "the block's address is not a multiple of its size",
            Why::MemoryType => "the memory type is reserved",
            Why::WriteWithoutRead => "writable without being readable",
            Why::ExecuteOnly => "execute-only, which this processor does not support",
            Why::LeafLevel => "a leaf at a level where this processor has none",
        };
        write!(f, "{what} (bits {:#x})", self.bits)
    }
}
