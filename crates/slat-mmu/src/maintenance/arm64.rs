//! Arm (Arm ARM D8.16, C5.5): TLBI as a core carries it out, for its own or another's; DSB waits
//! until all have. [`decode`] knows the system instructions.

use super::{Addresses, Core, Item, What};

/// What an [`Identity`](super::Identity) has for EL2's own translations: VMIDs are below it, and 0 is a
/// guest's as well.
pub const EL2: u32 = 1 << 16;

/// Which stage and scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `VMALLE1`: stage 1 of the VMID, and what was combined from it.
    Vmalle1,
    /// `ASIDE1`: one ASID, not its global pages.
    Aside1(u16),
    /// `VAE1`, `RVAE1`: addresses of one ASID, and global ones.
    Vae1(u16, Range),
    /// `VAAE1`, `RVAAE1`: addresses of every ASID.
    Vaae1(Range),
    /// `IPAS2E1`, `RIPAS2E1`: stage 2 by intermediate physical address.
    Ipas2e1(Range),
    /// `VMALLS12E1`: both stages of the VMID.
    Vmalls12e1,
    /// `ALLE1`: both stages of every VMID.
    Alle1,
    /// `VAE2`, `RVAE2`: addresses of EL2's own stage 1, under this ASID where `HCR_EL2.E2H` is set.
    Vae2(u16, Range),
    /// `ALLE2`: all of EL2's own.
    Alle2,
}

/// Which cores carry an instruction out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Reach {
    /// The one that executes it.
    Local,
    /// All of the inner shareable domain.
    InnerShareable,
    /// All of the outer shareable domain.
    OuterShareable,
}

/// The addresses of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// How many bytes; a page for the forms by one address.
    pub bytes: u64,
    /// The `L` forms: last-level entries alone.
    pub last_level: bool,
    /// The level hint (TTL): log2 of the largest leaf that it is about. Parts of it that a TLB keeps go
    /// too; larger leaves may stay. `None` for no hint.
    pub leaf: Option<u8>,
}

impl Range {
    /// One page at this address, of last-level entries alone or all.
    pub const fn page(start: u64, last_level: bool) -> Range {
        Range { start, bytes: 1 << 12, last_level, leaf: None }
    }

    fn names(&self, item: &Item) -> bool {
        let level = !self.last_level || item.what == What::Translation;
        let hinted = match item.what {
            What::Table => self.leaf.is_none(),
            // Contiguous or joined leaves are of the hinted level too: they are smaller than a leaf
            // of the level above, which is at least 2^9 times as large in every granule.
            What::Translation => self.leaf.is_none_or(|leaf| item.whole() < leaf + 9),
        };
        level && hinted && item.overlaps(self.start, self.bytes.max(1))
    }
}

/// log2 of the leaf that a level hint names, by granule (log2) and the architecture's level.
const fn leaf_of(granule: u8, level: u64) -> u8 {
    granule + (3 - (level & 3) as u8) * (granule - 3)
}

/// log2 of the granule that a `TG` field names.
const fn granule(tg: u64) -> Option<u8> {
    match tg {
        1 => Some(12),
        2 => Some(14),
        3 => Some(16),
        _ => None,
    }
}

/// The leaf (log2 of its size) that a level hint is about, by granule (log2) and the architecture's level:
/// none for encodings that are reserved, which count as no hint (Arm ARM D8.16.5, TTL). Those that are so only
/// without FEAT_LPA2 count as none too, since it is not said here whether there is that: more goes then than
/// has to.
const fn hinted(granule: u8, level: u64) -> Option<u8> {
    match (granule, level) {
        (_, 0) | (14, 1) => None,
        _ => Some(leaf_of(granule, level)),
    }
}

/// The addresses of a form by one address: bits 43:0 are the page number, 47:44 the level hint.
fn one(operand: u64, last_level: bool, ipa: bool) -> Range {
    let page = operand & if ipa { (1 << 40) - 1 } else { (1 << 44) - 1 };
    let hint = operand >> 44 & 0xf;
    let granule = granule(hint >> 2);
    let leaf = granule.and_then(|granule| hinted(granule, hint & 3));
    // Where the hint names a granule, low bits of the page number do not count.
    let shift = granule.filter(|_| leaf.is_some()).unwrap_or(12);
    Range { start: page << 12 >> shift << shift, bytes: 1 << shift, last_level, leaf }
}

/// The addresses of a form by range (FEAT_TLBIRANGE); `None` for a reserved granule.
fn many(operand: u64, last_level: bool) -> Option<Range> {
    let granule = granule(operand >> 46 & 3)?;
    let (scale, number) = (operand >> 44 & 3, operand >> 39 & 0x1f);
    let leaf = hinted(granule, operand >> 37 & 3);
    // Bit 36 is the sign of the address: upper-half addresses have it in all bits above.
    let start = (((operand << 27) as i64 >> 27) << granule) as u64;
    let bytes = (number + 1) << (5 * scale + 1) << granule;
    Some(Range { start, bytes, last_level, leaf })
}

/// The TLBI of these fields of a SYS instruction with `op0` 1 and `CRn` 8, or 9 for the nXS forms, which
/// have the same scope; `operand` is the register. `None` for what is no TLBI of EL1 or EL2.
pub fn decode(op1: u8, crm: u8, op2: u8, operand: u64) -> Option<(Operation, Reach)> {
    let asid = (operand >> 48) as u16;
    let reach = |inner: u8, outer: u8| match crm {
        crm if crm == inner => Reach::InnerShareable,
        crm if crm == outer => Reach::OuterShareable,
        _ => Reach::Local,
    };
    let last = op2 & 4 != 0;
    let by_one = one(operand, last, false);
    let operation = match (op1, crm, op2) {
        (0, 1 | 3 | 7, 0) => Operation::Vmalle1,
        (0, 1 | 3 | 7, 1 | 5) => Operation::Vae1(asid, by_one),
        (0, 1 | 3 | 7, 2) => Operation::Aside1(asid),
        (0, 1 | 3 | 7, 3 | 7) => Operation::Vaae1(by_one),
        (0, 2 | 5 | 6, 1 | 5) => Operation::Vae1(asid, many(operand, last)?),
        (0, 2 | 5 | 6, 3 | 7) => Operation::Vaae1(many(operand, last)?),
        (4, 1 | 3 | 7, 0) => Operation::Alle2,
        (4, 1 | 3 | 7, 1 | 5) => Operation::Vae2(asid, by_one),
        (4, 1 | 3 | 7, 4) => Operation::Alle1,
        (4, 1 | 3 | 7, 6) => Operation::Vmalls12e1,
        (4, 2 | 5 | 6, 1 | 5) => Operation::Vae2(asid, many(operand, last)?),
        (4, 0, 1 | 5) | (4, 4, 0 | 1 | 4 | 5) => Operation::Ipas2e1(one(operand, last, true)),
        (4, 0, 2 | 6) | (4, 4, 2 | 3 | 6 | 7) => Operation::Ipas2e1(many(operand, last)?),
        _ => return None,
    };
    let reach = match (op1, crm, op2) {
        (4, 0, _) => Reach::InnerShareable,
        (4, 4, 0 | 3 | 4 | 7) => Reach::OuterShareable,
        (4, 4, _) => Reach::Local,
        (_, 2 | 5 | 6, _) => reach(2, 5),
        _ => reach(3, 1),
    };
    Some((operation, reach))
}

/// Whether `operation`, with `vmid` in `VTTBR_EL2`, must invalidate `item`.
pub fn names(operation: &Operation, vmid: u16, item: &Item) -> bool {
    let identity = item.identity;
    let of = identity.vm == u32::from(vmid);
    let stage1 = of && item.is_virtual();
    let host = identity.vm == EL2;
    let global = identity.addresses == Addresses::Global;
    let in_space = |asid: u16| identity.addresses == Addresses::Space(asid);
    match operation {
        Operation::Vmalle1 => stage1,
        Operation::Aside1(asid) => stage1 && in_space(*asid),
        Operation::Vae1(asid, range) => {
            // Entries above the last level are matched by ASID as well.
            stage1 && (in_space(*asid) || global) && range.names(item)
        }
        Operation::Vaae1(range) => stage1 && range.names(item),
        Operation::Ipas2e1(range) => of && !item.is_virtual() && range.names(item),
        Operation::Vmalls12e1 => of,
        Operation::Alle1 => !host,
        Operation::Vae2(asid, range) => host && (in_space(*asid) || global) && range.names(item),
        Operation::Alle2 => host,
    }
}

impl Core {
    /// Executes a TLBI.
    pub fn arm64(&mut self, operation: &Operation, vmid: u16) {
        self.invalidate(|item| names(operation, vmid, item));
    }
}
