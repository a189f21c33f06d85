//! Formats as a model with known deviations walks them.

use std::fmt;

use slat::access::Stage1Page;
use slat::format::{Decoded, Format, Found, Path, Start};
use slat::memory::EntryLayout;
use slat::memory_type::{StageType, TypeBits};
use slat::{Access, Cause, Denied, Kind, Purpose, Regime, Reserved, Why};

/// What DACR says of the domain of a short descriptor of the first table.
fn rights_in_domain(domains: u32, entry: u64) -> u32 {
    let supersection = entry & 3 != 1 && entry & 1 << 18 != 0;
    let domain = if supersection { 0 } else { entry >> 5 & 15 };
    domains >> (2 * domain) & 3
}

/// `DBM` of AArch64's leaves.
const DBM: u64 = 1 << 51;

/// Bits of an AArch64 root register that are bits 51:48 of the root's address, where it has them.
pub(crate) const ROOT_UPPER: u64 = 0x3C;

/// Stands for a domain fault that was found before the walk's end: no format has this encoding.
pub(crate) const DOMAIN_FIRST: Reserved = Reserved { why: Why::Encoding, bits: !0 };

/// A format that lets pass what a model lets pass; exact where no flag is set.
#[derive(Clone, Copy)]
pub(crate) struct Lenient<F> {
    /// The manual's format.
    pub(crate) inner: F,
    /// Writes of accessed and dirty bits into the tables of the stage above are not checked.
    pub(crate) unchecked_updates: bool,
    /// Bits of a large leaf that are ignored, by level.
    pub(crate) ignored: [u64; 5],
    /// Reads of tables are checked as explicit loads, to which MXR applies.
    pub(crate) implicit_as_explicit: bool,
    /// Arm blocks are taken for such at every level.
    pub(crate) any_block: bool,
    /// Their addresses are those of LPA2, not of 48 bits.
    pub(crate) lpa2: bool,
    /// Of a block, address bits below its size count for the check of the address size.
    pub(crate) whole_address: bool,
    /// DACR, where the domain of a short descriptor is checked before what it points to.
    pub(crate) domains: Option<u32>,
    /// DACR, where managers of a short descriptor's domain need no access flag.
    pub(crate) managers: Option<u32>,
    /// Short descriptors: never to be executed comes before the access flag.
    pub(crate) never_before_flag: bool,
    /// PAN forbids privileged fetches from user pages, too.
    pub(crate) pan_fetches: bool,
    /// Execution needs no read permission.
    pub(crate) unread_execution: bool,
    /// Stage 1 of AArch64: DBM makes no page writable for the sake of fetches.
    pub(crate) clean_executes: bool,
    /// Bits of every descriptor that are ignored in addresses.
    pub(crate) unread: u64,
    /// The reserved encoding 3 of RISC-V's PBMT is accepted.
    pub(crate) pbmt_3: bool,
    /// AArch64, for the lower and the upper half: bits 5:2 of this root register are an offset where the
    /// root is smaller, besides what else they are; with the half's input size.
    pub(crate) root_offsets: [(u64, u32); 2],
}

impl<F> Lenient<F> {
    /// The format as its manual has it.
    pub(crate) fn exact(inner: F) -> Self {
        Lenient {
            inner,
            unchecked_updates: false,
            ignored: [0; 5],
            implicit_as_explicit: false,
            any_block: false,
            lpa2: false,
            whole_address: false,
            domains: None,
            managers: None,
            never_before_flag: false,
            pan_fetches: false,
            unread_execution: false,
            clean_executes: false,
            unread: 0,
            pbmt_3: false,
            root_offsets: [(0, 0); 2],
        }
    }

    fn seen(&self, access: &Access) -> Access {
        let mut access = *access;
        if self.unchecked_updates
            && let Purpose::Update { level } = access.purpose
        {
            access.kind = Kind::Read;
            access.purpose = Purpose::Table { level };
        }
        if self.implicit_as_explicit && matches!(access.purpose, Purpose::Table { .. }) {
            access.purpose = Purpose::Final;
        }
        access
    }
}

impl<F: Format> Format for Lenient<F> {
    type Root = F::Root;

    const HALVES: bool = F::HALVES;

    fn half(&self, input: u64) -> Self {
        Lenient { inner: self.inner.half(input), ..*self }
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn stage(&self) -> u8 {
        self.inner.stage()
    }

    fn layout(&self) -> EntryLayout {
        self.inner.layout()
    }

    fn begin(
        &self,
        root: &F::Root,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        let mut start = self.inner.begin(root, input, access, regime)?;
        let (register, input_bits) = self.root_offsets[usize::from(input >> 55 & 1 != 0)];
        if let Start::Table { table, level, .. } = &mut start
            && register != 0
        {
            let size = 3 + input_bits.saturating_sub(self.inner.half(input).shift(*level));
            *table |= register & ROOT_UPPER & !((1 << size) - 1);
        }
        Ok(start)
    }

    fn shift(&self, level: u8) -> u32 {
        self.inner.shift(level)
    }

    fn index_bits(&self, level: u8) -> u32 {
        self.inner.index_bits(level)
    }

    fn decode(&self, entry: u64, level: u8) -> Decoded {
        let large = level > 0 && entry & 1 << 7 != 0;
        let mut entry = entry & !if large { self.ignored[usize::from(level.min(4))] } else { 0 };
        entry &= !self.unread;
        if self.pbmt_3 && entry & 3 << 61 == 3 << 61 && entry & 0xE != 0 {
            entry &= !(1 << 62);
        }
        let decoded = self.inner.decode(entry, level);
        if let Some(domains) = self.domains
            && level == 1
            && entry & 3 != 0
            && rights_in_domain(domains, entry) & 1 == 0
        {
            return Decoded::Reserved(DOMAIN_FIRST);
        }
        let leaf = matches!(decoded, Decoded::Leaf { .. });
        let block = level > 0 && (leaf || self.any_block && entry & 3 == 1);
        if block
            && (self.whole_address || !leaf)
            && let Decoded::Reserved(reserved) = self.inner.decode(entry | 3, 0)
            && reserved.why == Why::AddressSize
        {
            return Decoded::Reserved(reserved);
        }
        if block && !leaf {
            let shift = self.inner.shift(level);
            let whole = if self.lpa2 {
                entry & 0x3_FFFF_FFFF_F000 | (entry >> 8 & 3) << 50
            } else {
                entry & 0xFFFF_FFFF_F000
            };
            let base = whole & !((1 << shift) - 1);
            return Decoded::Leaf { base, shift: shift as u8 };
        }
        decoded
    }

    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        self.inner.join(path, entry, level);
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        let ignored = if self.clean_executes && access.kind == Kind::Execute { DBM } else { 0 };
        let found = &Found { entry: found.entry & !ignored, ..*found };
        let checked = self.inner.check(found, &self.seen(access), regime);
        if let (Some(domains), Err(Cause::AccessFlag)) = (self.managers, &checked) {
            let first = if found.level == 0 { found.path.or } else { found.entry };
            if rights_in_domain(domains, first) == 3 {
                return Ok(());
            }
        }
        if access.kind != Kind::Execute {
            return checked;
        }
        let never = Cause::Permission(Denied::EXECUTE);
        let denied = |found: &Found, access: &Access| match self.inner.check(found, access, regime)
        {
            Err(Cause::Permission(denied)) => denied,
            _ => Denied::NONE,
        };
        match checked {
            Err(Cause::AccessFlag) if self.never_before_flag => {
                let flag = if found.level == 0 { 1 << 4 } else { 1 << 10 };
                let flagged = Found { entry: found.entry | flag, ..*found };
                if denied(&flagged, access).contains(Denied::EXECUTE) {
                    Err(never)
                } else {
                    checked
                }
            }
            Err(Cause::Permission(Denied::READ)) if self.unread_execution => Ok(()),
            Ok(()) if self.pan_fetches => {
                let read = Access { kind: Kind::Read, ..*access };
                let pan = denied(found, &read).contains(Denied::SUPERVISOR_DATA);
                if pan { Err(never) } else { checked }
            }
            _ => checked,
        }
    }

    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        self.inner.touched(entry, level, is_leaf, &self.seen(access))
    }

    fn type_bits(&self, found: &Found) -> TypeBits {
        self.inner.type_bits(found)
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        self.inner.type_of(bits, kind, regime)
    }

    fn arch_level(&self, level: u8) -> i8 {
        self.inner.arch_level(level)
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.describe(entry, level, f)
    }

    fn after_restart(&self) -> Option<Self> {
        Some(Lenient { inner: self.inner.after_restart()?, ..*self })
    }

    fn guards(&self, found: &Found) -> bool {
        self.inner.guards(found)
    }

    fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
        self.inner.page(found, regime)
    }
}
