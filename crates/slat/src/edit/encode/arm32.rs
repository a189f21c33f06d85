//! Descriptors of AArch32 state: long ones, which are AArch64's with the 4K granule and 40-bit
//! addresses (Arm ARM G5.5), and short ones (G5.4).

use super::arm64::{Memory, Stage1Attributes, Stage2Attributes};
use super::{Change, Effect, Encode, Refused};
use crate::format::Format;
use crate::format::arm32::{Lpae, Root, Stage2};
use crate::translate::Permissions;

mod short;
mod upper;

pub use short::{ShortAttributes, Tex};
pub use upper::Upper;

/// Whatever a long descriptor says, it says as AArch64's does.
macro_rules! as_in_aarch64 {
    ($attributes:ident) => {
        type Word = u64;
        type Attributes = $attributes;
        type Memory = Memory;

        const BREAKS: bool = true;

        fn place(&self, base: u64, _: u8) -> u64 {
            base
        }

        fn stride(&self, level: u8) -> Option<u64> {
            Some(1 << self.shift(level))
        }

        /// Hardware of AArch32 state sets no bits in long descriptors, so that nothing is tracked.
        fn leaf(&self, attributes: &$attributes, level: u8) -> Result<u64, Refused> {
            self.twin().leaf(&$attributes { tracked: false, dirty: false, ..*attributes }, level)
        }

        fn attributes(&self, entry: u64, level: u8) -> $attributes {
            self.twin().attributes(entry, level)
        }

        fn permissions_of(&self, entry: u64, level: u8) -> Permissions {
            self.twin().permissions_of(entry, level)
        }

        fn table(&self, next: u64, level: u8) -> u64 {
            self.twin().table(next, level)
        }

        fn frozen(&self) -> u64 {
            self.twin().frozen()
        }

        fn demote(&self, entry: u64, level: u8) -> u64 {
            self.twin().demote(entry, level)
        }

        fn promote(&self, entry: u64, level: u8) -> u64 {
            self.twin().promote(entry, level)
        }

        fn permit(&self, permissions: Permissions, level: u8) -> Result<Change, Refused> {
            self.twin().permit(permissions, level)
        }

        fn retype(&self, memory: Memory, level: u8) -> Result<Change, Refused> {
            self.twin().retype(memory, level)
        }

        fn hardware_dirty(&self) -> bool {
            false
        }

        fn is_accessed(&self, entry: u64) -> bool {
            self.twin().is_accessed(entry)
        }

        fn is_dirty(&self, _: u64) -> bool {
            false
        }

        fn age(&self) -> Change {
            self.twin().age()
        }

        fn clean(&self) -> Change {
            Change::default()
        }

        fn soil(&self) -> Change {
            Change::default()
        }

        fn inherit(&self, entry: u64, from: u64) -> u64 {
            self.twin().inherit(entry, from)
        }

        fn history(&self, entry: u64) -> u64 {
            self.twin().history(entry)
        }

        fn group_shift(&self, level: u8) -> Option<u32> {
            self.twin().group_shift(level)
        }

        fn group(&self, entry: u64, level: u8) -> Option<u32> {
            self.twin().group(entry, level)
        }

        fn grouped(&self, leaf: u64, level: u8) -> u64 {
            self.twin().grouped(leaf, level)
        }

        fn ungrouped(&self, entry: u64, index: u64, level: u8) -> u64 {
            self.twin().ungrouped(entry, index, level)
        }

        fn effect(&self, lost: u64, gained: u64, level: u8) -> Effect {
            self.twin().effect(lost, gained, level)
        }

        fn is_global(&self, leaf: u64, level: u8, above: u64) -> bool {
            self.twin().is_global(leaf, level, above)
        }

        fn breaks(&self, old: u64, new: u64, level: u8) -> bool {
            self.twin().breaks(old, new, level)
        }
    };
}

impl Encode for Stage2 {
    as_in_aarch64!(Stage2Attributes);

    fn root(&self, table: u64) -> u64 {
        table
    }

    fn top(&self) -> u8 {
        self.root_level().unwrap_or(0)
    }

    fn input_bits(&self) -> u32 {
        if self.root_level().is_some() { Stage2::input_bits(self).into() } else { 0 }
    }
}

/// The lower half alone, where there are two ([`Upper`] is the other); all of the space, where `TTBCR`
/// does not divide it.
impl Encode for Lpae {
    as_in_aarch64!(Stage1Attributes);

    fn root(&self, table: u64) -> Root {
        Root { ttbr0: table, ttbr1: 0 }
    }

    fn input_bits(&self) -> u32 {
        self.lower_bits()
    }
}
