//! A format as small as a format can be.

use super::*;

pub(super) const VALID: u64 = 1;
pub(super) const LEAF: u64 = 2;
pub(super) const WRITE: u64 = 4;
pub(super) const DIRTY: u64 = 8;
pub(super) const ACCESSED: u64 = 16;
pub(super) const FROZEN: u64 = 32;
pub(super) const ADDRESS: u64 = !0xfff;

/// Two levels of two entries, pages of 4 KiB and 8 KiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Toy;

impl Format for Toy {
    type Root = u64;
    fn name(&self) -> &'static str {
        "toy"
    }
    fn stage(&self) -> u8 {
        2
    }
    fn layout(&self) -> EntryLayout {
        EntryLayout::LE64
    }
    fn begin(&self, root: &u64, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        if input >> 14 != 0 {
            return Err((1, Cause::InputSize));
        }
        Ok(Start::Table { table: *root, level: 1, input })
    }
    fn shift(&self, level: u8) -> u32 {
        12 + u32::from(level)
    }
    fn index_bits(&self, _: u8) -> u32 {
        1
    }
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        match entry & (VALID | LEAF) {
            3 => Decoded::Leaf { base: entry & ADDRESS, shift: 12 + level },
            VALID if level > 0 => Decoded::Table { next: entry & ADDRESS },
            _ => Decoded::Empty,
        }
    }
    fn check(&self, _: &Found, _: &Access, _: &Regime) -> Result<(), Cause> {
        Ok(())
    }
    fn touched(&self, entry: u64, _: u8, _: bool, _: &Access) -> u64 {
        entry
    }
    fn type_bits(&self, _: &Found) -> TypeBits {
        TypeBits::OFF
    }

    fn type_of(&self, _: TypeBits, _: Kind, _: &Regime) -> StageType {
        StageType::Unspecified
    }
    fn arch_level(&self, level: u8) -> i8 {
        level as i8
    }
    fn describe(&self, _: u64, _: u8, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
    fn page(&self, _: &Found, _: &Regime) -> Stage1Page {
        Stage1Page::FLAT
    }
}

impl Encode for Toy {
    type Word = u64;
    type Attributes = u64;
    type Memory = ();
    const BREAKS: bool = true;

    fn root(&self, table: u64) -> u64 {
        table
    }
    fn place(&self, base: u64, _: u8) -> u64 {
        base
    }
    fn stride(&self, level: u8) -> Option<u64> {
        Some(1 << self.shift(level))
    }
    fn leaf(&self, attributes: &u64, _: u8) -> Result<u64, Refused> {
        Ok(VALID | LEAF | attributes)
    }
    fn attributes(&self, entry: u64, _: u8) -> u64 {
        entry & WRITE
    }
    fn permissions_of(&self, entry: u64, _: u8) -> Permissions {
        Permissions { read: true, write: entry & WRITE != 0, execute: true }
    }
    fn table(&self, next: u64, _: u8) -> u64 {
        next | VALID
    }
    fn frozen(&self) -> u64 {
        FROZEN
    }
    fn demote(&self, entry: u64, _: u8) -> u64 {
        entry
    }
    fn promote(&self, entry: u64, _: u8) -> u64 {
        entry
    }
    fn permit(&self, permissions: Permissions, _: u8) -> Result<Change, Refused> {
        let set = if permissions.write { WRITE } else { 0 };
        Ok(Change { clear: WRITE & !set, set })
    }
    fn retype(&self, (): (), _: u8) -> Result<Change, Refused> {
        Ok(Change::default())
    }
    fn hardware_dirty(&self) -> bool {
        true
    }
    fn is_accessed(&self, entry: u64) -> bool {
        entry & ACCESSED != 0
    }
    fn is_dirty(&self, entry: u64) -> bool {
        entry & DIRTY != 0
    }
    fn age(&self) -> Change {
        Change { clear: ACCESSED, set: 0 }
    }
    fn clean(&self) -> Change {
        Change { clear: DIRTY, set: 0 }
    }
    fn soil(&self) -> Change {
        Change { clear: 0, set: DIRTY | ACCESSED }
    }
    fn inherit(&self, entry: u64, from: u64) -> u64 {
        entry | from & (DIRTY | ACCESSED)
    }
    fn history(&self, _: u64) -> u64 {
        DIRTY | ACCESSED
    }
    fn effect(&self, lost: u64, gained: u64, _: u8) -> Effect {
        if lost | gained != 0 { Effect::Stale } else { Effect::None }
    }
}
