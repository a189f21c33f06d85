//! Short descriptors (Arm ARM G5.4).

use crate::edit::encode::{Change, Effect, Encode, Refused};
use crate::format::Format;
use crate::format::arm32::short::{bits, domain};
use crate::format::arm32::{Root, Short};
use crate::translate::Permissions;

/// What a short descriptor says besides its address. Its domain is the format's
/// ([`Short::in_domain`]), as that of every table made here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShortAttributes {
    /// What the page permits to PL0, or to PL1 where `user` is not set. Always readable.
    pub permissions: Permissions,
    /// PL0 may access it.
    pub user: bool,
    /// PL1 may write where PL0 may only read: `AP` 0b010, which there is without `SCTLR.AFE` alone.
    pub privileged_write: bool,
    /// Memory attributes.
    pub memory: Tex,
    /// Tagged by the ASID.
    pub not_global: bool,
}

/// Memory attributes of a short descriptor, by the meaning that `SCTLR.TRE` gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tex {
    /// `TEX:C:B`, 0 to 31.
    pub encoding: u8,
    /// `S`.
    pub shareable: bool,
}

impl ShortAttributes {
    /// A page of PL0 with these permissions, write-back and shareable (without TEX remap), tagged by
    /// its ASID.
    pub fn new(permissions: Permissions) -> ShortAttributes {
        let memory = Tex { encoding: 0b00111, shareable: true };
        let privileged_write = false;
        ShortAttributes { permissions, user: true, privileged_write, memory, not_global: true }
    }
}

#[inline(always)]
const fn when(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

/// Where a leaf of this level has what (G5.4.1): a section, or a small page.
struct Fields {
    ap: u64,
    ap2: u64,
    xn: u64,
    tex_shift: u32,
    s: u64,
    ng: u64,
}

const fn fields(level: u8) -> Fields {
    if level > 0 {
        Fields { ap: 10, ap2: 1 << 15, xn: 1 << 4, tex_shift: 12, s: 1 << 16, ng: 1 << 17 }
    } else {
        Fields { ap: 4, ap2: 1 << 9, xn: 1, tex_shift: 6, s: 1 << 10, ng: 1 << 11 }
    }
}

/// What large and small pages have in the same place: `C`, `B`, `AP`, `S`, `nG`.
const LARGE_AND_SMALL: u64 = 0xe3c;

/// What a section says and a page does not: `PXN`, bit 9, which is IMPLEMENTATION DEFINED, and `NS`
/// (G5.4.1).
const SECTIONS_ALONE: u64 = bits::SECTION_PXN | 1 << 9 | 1 << 19;

fn tex_bits(memory: Tex, level: u8) -> Result<u64, Refused> {
    if memory.encoding > 31 {
        return Err(Refused::MemoryType);
    }
    let Fields { tex_shift, s, .. } = fields(level);
    let encoding = u64::from(memory.encoding);
    Ok(encoding >> 2 << tex_shift | (encoding & 3) << 2 | when(memory.shareable, s))
}

fn rights(permissions: Permissions, level: u8) -> Result<u64, Refused> {
    let Permissions { read, write, execute } = permissions;
    if !read {
        return Err(Refused::Permissions(permissions));
    }
    let Fields { ap2, xn, .. } = fields(level);
    Ok(when(!write, ap2) | when(!execute, xn))
}

fn domain_bits(format: &Short) -> u64 {
    u64::from(format.domain()) << 5
}

/// Nearly every leaf made here has `AP[0]` set: with `AFE` it is the access flag, without it part of
/// what PL0 and PL1 both may. So hardware sets nothing, and pages do not age. Where nothing made here
/// lies, a leaf without it denies everything or, as [`ShortAttributes::privileged_write`], is read-only
/// to PL0 alone; to protect it gives PL1 what PL0 gets.
///
/// Large pages and supersections are groups of sixteen equal descriptors. Of two translation tables,
/// this edits `TTBR0`'s; [`Upper`](super::Upper) edits the other.
impl Encode for Short {
    type Word = u32;
    type Attributes = ShortAttributes;
    type Memory = Tex;

    const BREAKS: bool = true;

    fn root(&self, table: u64) -> Root {
        Root { ttbr0: table, ttbr1: 0 }
    }

    fn input_bits(&self) -> u32 {
        32 - u32::from(self.upper_bits())
    }

    fn place(&self, base: u64, _: u8) -> u64 {
        base
    }

    fn stride(&self, level: u8) -> Option<u64> {
        Some(1 << self.shift(level))
    }

    fn leaf(&self, attributes: &ShortAttributes, level: u8) -> Result<u64, Refused> {
        let Fields { ap, ap2, ng, .. } = fields(level);
        let mut rights = rights(attributes.permissions, level)? | 1 << ap;
        if attributes.privileged_write {
            if attributes.permissions.write || !attributes.user || self.has_access_flags() {
                return Err(Refused::Permissions(attributes.permissions));
            }
            rights &= !(ap2 | 1 << ap);
        }
        Ok(bits::LEAF
            | rights
            | when(attributes.user, 2) << ap
            | tex_bits(attributes.memory, level)?
            | when(attributes.not_global, ng)
            | if level > 0 { domain_bits(self) } else { 0 })
    }

    fn attributes(&self, entry: u64, level: u8) -> ShortAttributes {
        // A member of a group says by itself what its first entry does.
        let entry = if self.group(entry, level).is_some() {
            self.ungrouped(entry, 0, level)
        } else {
            entry
        };
        let Fields { ap, ap2, tex_shift, s, ng, .. } = fields(level);
        let encoding = (entry >> tex_shift & 7) << 2 | entry >> 2 & 3;
        ShortAttributes {
            permissions: self.permissions_of(entry, level),
            user: entry >> ap & 2 != 0,
            privileged_write: entry >> ap & 3 == 2 && entry & ap2 == 0 && !self.has_access_flags(),
            memory: Tex { encoding: encoding as u8, shareable: entry & s != 0 },
            not_global: entry & ng != 0,
        }
    }

    fn permissions_of(&self, entry: u64, level: u8) -> Permissions {
        let large = level == 0 && entry & bits::TYPE == 1;
        let Fields { ap, ap2, xn, .. } = fields(level);
        let xn = if large { 1 << 15 } else { xn };
        // Without AFE (G5.7.1): 0b000 and 0b100 permit nothing, 0b010 lets PL0 read, 0b110 both.
        let plain = entry >> ap & 1 != 0 || self.has_access_flags();
        let read = plain || entry >> ap & 2 != 0;
        Permissions { read, write: plain && entry & ap2 == 0, execute: read && entry & xn == 0 }
    }

    fn table(&self, next: u64, _: u8) -> u64 {
        next & 0xffff_fc00 | domain_bits(self) | 1
    }

    /// Invalid; every other bit is ignored.
    fn frozen(&self) -> u64 {
        1 << 2
    }

    /// A section's attributes where a small page has them (G5.4.1): bits 17:10 are a page's 11:4,
    /// whatever `AP[0]` means. A section of another domain, or with bits of which a page has none, has
    /// no pages that say the same under the tables made here.
    fn demote(&self, entry: u64, _: u8) -> u64 {
        if domain(entry) != self.domain() || entry & SECTIONS_ALONE != 0 {
            return 0;
        }
        entry & 0xfff0_0000 | entry >> 6 & 0xff0 | entry & 0xc | entry >> 4 & 1 | bits::LEAF
    }

    fn promote(&self, entry: u64, _: u8) -> u64 {
        entry & 0xfff0_0000
            | (entry & 0xff0) << 6
            | entry & 0xc
            | (entry & 1) << 4
            | bits::LEAF
            | domain_bits(self)
    }

    fn permit(&self, permissions: Permissions, level: u8) -> Result<Change, Refused> {
        let rights = rights(permissions, level)?;
        let Fields { ap, ap2, xn, .. } = fields(level);
        // Without AFE there are no such permissions for PL0 and PL1 alike but with AP[0].
        let set = rights | when(!self.has_access_flags(), 1 << ap);
        Ok(Change { clear: (ap2 | xn) & !set, set })
    }

    fn retype(&self, memory: Tex, level: u8) -> Result<Change, Refused> {
        let set = tex_bits(memory, level)?;
        let all = tex_bits(Tex { encoding: 31, shareable: true }, level)?;
        Ok(Change { clear: all & !set, set })
    }

    /// Large pages. Supersections are known, but not made.
    fn group_shift(&self, level: u8) -> Option<u32> {
        (level == 0).then_some(16)
    }

    fn group(&self, entry: u64, level: u8) -> Option<u32> {
        match level {
            0 if entry & bits::TYPE == 1 => Some(16),
            1 if entry & bits::LEAF != 0 && entry & bits::SUPERSECTION != 0 => Some(24),
            _ => None,
        }
    }

    /// Of a large page, `TEX` is in bits 14:12 and `XN` is bit 15.
    fn grouped(&self, leaf: u64, level: u8) -> u64 {
        if level > 0 {
            return leaf;
        }
        leaf & (0xffff_0000 | LARGE_AND_SMALL) | (leaf >> 6 & 7) << 12 | (leaf & 1) << 15 | 1
    }

    fn ungrouped(&self, entry: u64, index: u64, level: u8) -> u64 {
        if level > 0 {
            return entry & !(bits::SUPERSECTION | 0xf << 20) | index << 20;
        }
        entry & (0xffff_0000 | LARGE_AND_SMALL)
            | index << 12
            | (entry >> 12 & 7) << 6
            | entry >> 15 & 1
            | bits::LEAF
    }

    fn hardware_dirty(&self) -> bool {
        false
    }

    fn is_accessed(&self, _: u64) -> bool {
        true
    }

    fn is_dirty(&self, _: u64) -> bool {
        false
    }

    fn age(&self) -> Change {
        Change::default()
    }

    fn clean(&self) -> Change {
        Change::default()
    }

    fn soil(&self) -> Change {
        Change::default()
    }

    fn inherit(&self, entry: u64, _: u64) -> u64 {
        entry
    }

    fn history(&self, _: u64) -> u64 {
        0
    }

    fn is_global(&self, leaf: u64, level: u8, _: u64) -> bool {
        leaf & bits::TYPE != 0 && leaf & fields(level).ng == 0
    }

    fn effect(&self, lost: u64, gained: u64, _: u8) -> Effect {
        if lost | gained != 0 { Effect::Stale } else { Effect::None }
    }

    /// G5.9 (TLB maintenance and break-before-make), as in AArch64 state: only permissions change
    /// directly.
    fn breaks(&self, old: u64, new: u64, level: u8) -> bool {
        if old & bits::TYPE == 0 || new & bits::TYPE == 0 {
            return false;
        }
        let Fields { ap, ap2, xn, .. } = fields(level);
        let leaves = level == 0 || (old & new & bits::LEAF) != 0;
        let size = level == 0 && (old & bits::TYPE == 1) != (new & bits::TYPE == 1);
        !leaves || size || (old ^ new) & !(ap2 | xn | 3 << ap) != 0
    }
}
