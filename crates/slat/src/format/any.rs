//! One enum over all formats, each with its root: for tools that learn the format at run time.
//!
//! A hypervisor uses its one format directly, so that the walk is compiled into its caller; this enum
//! costs a jump and a call for each walk of each stage.

use core::fmt;

use super::arm32;
use super::arm64;
use super::ept::Ept;
use super::flat::Flat;
use super::npt::Npt;
use super::riscv::Sv;
use super::x86::legacy::Legacy;
use super::x86::long::Long;
use super::x86::pae::{self, Pae};
use super::{Decoded, Format, Found, Path, Start, Visitor};
use crate::access::{Access, Kind, Stage1Page};
use crate::fault::Cause;
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

/// Keeps what is done with one format out of what is done with another.
#[inline(never)]
fn call<F: Format, V: Visitor>(format: &F, root: &F::Root, visitor: V) -> V::Output {
    format.visit(root, visitor)
}

macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident($format:ty, $root:ty),)*) => {
        /// Any format, with its root.
        #[derive(Clone, Copy, Debug)]
        pub enum AnyFormat {
            $($(#[$doc])* $name($format, $root),)*
        }

        impl Format for AnyFormat {
            /// The root is in the value.
            type Root = ();

            const HALVES: bool = true;

            fn half(&self, input: u64) -> AnyFormat {
                match self {
                    $(AnyFormat::$name(format, root) => AnyFormat::$name(format.half(input), *root),)*
                }
            }

            fn speaks_of(&self, input: u64) -> bool {
                match self { $(AnyFormat::$name(format, _) => format.speaks_of(input),)* }
            }

            fn visit<V: Visitor>(&self, (): &(), visitor: V) -> V::Output {
                match self { $(AnyFormat::$name(format, root) => call(format, root, visitor),)* }
            }

            fn name(&self) -> &'static str {
                match self { $(AnyFormat::$name(format, _) => format.name(),)* }
            }

            fn stage(&self) -> u8 {
                match self { $(AnyFormat::$name(format, _) => format.stage(),)* }
            }

            #[inline]
            fn layout(&self) -> EntryLayout {
                match self { $(AnyFormat::$name(format, _) => format.layout(),)* }
            }

            #[inline]
            fn begin(
                &self,
                (): &(),
                input: u64,
                access: &Access,
                regime: &Regime,
            ) -> Result<Start, (u8, Cause)> {
                match self {
                    $(AnyFormat::$name(format, root) => format.begin(root, input, access, regime),)*
                }
            }

            #[inline]
            fn shift(&self, level: u8) -> u32 {
                match self { $(AnyFormat::$name(format, _) => format.shift(level),)* }
            }

            #[inline]
            fn index_bits(&self, level: u8) -> u32 {
                match self { $(AnyFormat::$name(format, _) => format.index_bits(level),)* }
            }

            #[inline]
            fn decode(&self, entry: u64, level: u8) -> Decoded {
                match self { $(AnyFormat::$name(format, _) => format.decode(entry, level),)* }
            }

            fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
                match self { $(AnyFormat::$name(format, _) => format.plain_table(entry, level),)* }
            }

            fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
                match self { $(AnyFormat::$name(format, _) => format.plain_leaf(entry, level),)* }
            }

            fn plainly_permits(&self, found: &Found, access: &Access, regime: &Regime) -> bool {
                match self {
                    $(AnyFormat::$name(format, _) => format.plainly_permits(found, access, regime),)*
                }
            }

            #[inline]
            fn join(&self, path: &mut Path, entry: u64, level: u8) {
                match self { $(AnyFormat::$name(format, _) => format.join(path, entry, level),)* }
            }

            #[inline]
            fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
                match self {
                    $(AnyFormat::$name(format, _) => format.check(found, access, regime),)*
                }
            }

            #[inline]
            fn key(&self, found: &Found) -> Option<u8> {
                match self { $(AnyFormat::$name(format, _) => format.key(found),)* }
            }

            #[inline]
            fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
                match self {
                    $(AnyFormat::$name(format, _) => format.touched(entry, level, is_leaf, access),)*
                }
            }

            fn settled(&self, leaf: u64, level: u8, dirty: bool) -> u64 {
                match self { $(AnyFormat::$name(format, _) => format.settled(leaf, level, dirty),)* }
            }

            fn span(&self, leaf: u64, level: u8) -> u32 {
                match self { $(AnyFormat::$name(format, _) => format.span(leaf, level),)* }
            }

            #[inline]
            fn type_bits(&self, found: &Found) -> TypeBits {
                match self { $(AnyFormat::$name(format, _) => format.type_bits(found),)* }
            }

            fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
                match self {
                    $(AnyFormat::$name(format, _) => format.type_of(bits, kind, regime),)*
                }
            }

            fn arch_level(&self, level: u8) -> i8 {
                match self { $(AnyFormat::$name(format, _) => format.arch_level(level),)* }
            }

            fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
                match self {
                    $(AnyFormat::$name(format, _) => format.describe(entry, level, f),)*
                }
            }

            #[inline]
            fn guards(&self, found: &Found) -> bool {
                match self { $(AnyFormat::$name(format, _) => format.guards(found),)* }
            }

            #[inline]
            fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
                match self { $(AnyFormat::$name(format, _) => format.page(found, regime),)* }
            }
        }
    };
}

formats! {
    /// A stage that is off.
    Flat(Flat, ()),
    /// x86 32-bit paging.
    Legacy(Legacy, u64),
    /// x86 PAE paging.
    Pae(Pae, pae::Root),
    /// x86 4- and 5-level paging.
    Long(Long, u64),
    /// Intel EPT.
    Ept(Ept, u64),
    /// AMD NPT.
    Npt(Npt, u64),
    /// RISC-V, either stage.
    Sv(Sv, u64),
    /// AArch64 stage 1.
    Arm64(arm64::Stage1, arm64::Root),
    /// AArch64 stage 2.
    Arm64Stage2(arm64::Stage2, u64),
    /// AArch32 short descriptors.
    ArmShort(arm32::Short, arm32::Root),
    /// AArch32 long descriptors, PL1&0's or Hyp mode's.
    ArmLpae(arm32::Lpae, arm32::Root),
    /// AArch32 stage 2.
    ArmLpaeStage2(arm32::Stage2, u64),
}
