//! Intel extended page tables: Intel SDM 3C 30.3.
//!
//! | level | manual | maps | index bits |
//! |---|---|---|---|
//! | 4 | PML5E | | 56:48 |
//! | 3 | PML4E | | 47:39 |
//! | 2 | PDPTE | table or 1 GiB page | 38:30 |
//! | 1 | PDE | table or 2 MiB page | 29:21 |
//! | 0 | PTE | 4 KiB page | 20:12 |

use core::fmt;

use super::x86::long::{ADDRESS, address_bits};
use super::{Decoded, Format, Found, Start};
use crate::access::{Access, Flavor, Kind, Privilege, Purpose, Stage1Page};
use crate::fault::{Cause, Denied, Fault, Reserved, Why};
use crate::memory::EntryLayout;
use crate::memory_type::x86::Type;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

pub mod sub_page;

/// Bits of EPT entries (SDM 3C tables 30-1 to 30-7).
pub mod bits {
    /// Readable.
    pub const R: u64 = 1 << 0;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// Executable; with mode-based execute control, for supervisor-mode linear addresses.
    pub const X: u64 = 1 << 2;
    /// Bits 5:3 of a leaf: memory type.
    pub const MEMORY_TYPE_SHIFT: u32 = 3;
    /// Ignore the guest's PAT (leaves).
    pub const IGNORE_PAT: u64 = 1 << 6;
    /// The entry is a leaf above level 0.
    pub const PS: u64 = 1 << 7;
    /// Accessed, where EPTP bit 6 enables it.
    pub const A: u64 = 1 << 8;
    /// Dirty, likewise (leaves).
    pub const D: u64 = 1 << 9;
    /// Executable for user-mode linear addresses, with mode-based execute control.
    pub const XU: u64 = 1 << 10;
    /// Verify guest paging (leaves).
    pub const VERIFY_GUEST_PAGING: u64 = 1 << 57;
    /// Paging-write access (leaves).
    pub const PAGING_WRITE: u64 = 1 << 58;
    /// Supervisor shadow stack (leaves).
    pub const SUPERVISOR_SHADOW_STACK: u64 = 1 << 60;
    /// Sub-page write permissions (level-0 leaves).
    pub const SUB_PAGE: u64 = 1 << 61;
    /// Suppress #VE.
    pub const SUPPRESS_VE: u64 = 1 << 63;
}

/// What the processor and the VM-execution controls enable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Features {
    /// MAXPHYADDR, 32 to 52.
    pub physical_bits: u8,
    /// Execute-only translations (IA32_VMX_EPT_VPID_CAP bit 0).
    pub execute_only: bool,
    /// 2 MiB pages (bit 16).
    pub two_megabyte_pages: bool,
    /// 1 GiB pages (bit 17).
    pub gigabyte_pages: bool,
    /// Accessed and dirty flags (EPTP bit 6).
    pub accessed_dirty: bool,
    /// Mode-based execute control.
    pub mode_based_execute: bool,
    /// Guest-paging verification.
    pub guest_paging_verification: bool,
    /// Supervisor shadow-stack control (EPTP bit 7).
    pub supervisor_shadow_stack: bool,
    /// Paging-write control: leaves with bit 58 let guest paging write its tables.
    pub paging_write: bool,
    /// Sub-page write permissions: writes to read-only level-0 leaves with bit 61 set are for
    /// [`sub_page::decide`] to decide.
    pub sub_page: bool,
}

impl Default for Features {
    /// A current processor: 52 physical bits, execute-only, all page sizes; the EPTP and the
    /// controls enable nothing more.
    fn default() -> Self {
        Features {
            physical_bits: 52,
            execute_only: true,
            two_megabyte_pages: true,
            gigabyte_pages: true,
            accessed_dirty: false,
            mode_based_execute: false,
            guest_paging_verification: false,
            supervisor_shadow_stack: false,
            paging_write: false,
            sub_page: false,
        }
    }
}

/// Extended page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ept {
    root_level: u8,
    features: Features,
    /// Some feature of [`Ept::check_special`] is on.
    special: bool,
    /// Bits whose presence makes an entry present.
    present: u64,
    table_reserved: u64,
    /// Reserved bits of a leaf, by level.
    leaf_reserved: [u64; 3],
    /// The bits that decide whether a table entry is plain: then they are R alone. By level those that
    /// decide it of a leaf: then they are [`plain_leaf`]'s. None, where no leaf of the level is. Eight, so
    /// that an index needs no check.
    plain_table: u64,
    plain_leaves: [u64; 8],
}

impl Ept {
    /// 4-level EPT.
    pub fn four(features: Features) -> Ept {
        Ept::with_root_level(3, features)
    }

    /// 5-level EPT.
    pub fn five(features: Features) -> Ept {
        Ept::with_root_level(4, features)
    }

    fn with_root_level(root_level: u8, features: Features) -> Ept {
        let beyond = ADDRESS & !((1u64 << features.physical_bits.clamp(32, 52)) - 1);
        let unless = |supported: bool| if supported { 0 } else { bits::PS };
        let table_reserved = beyond | address_bits(3, 7);
        let leaf_reserved = [
            beyond,
            beyond | address_bits(12, 20) | unless(features.two_megabyte_pages),
            beyond | address_bits(12, 29) | unless(features.gigabyte_pages),
        ];
        let mut plain_leaves = [0; 8];
        let plain = |level, reserved| plain_leaf(level) | 1 << bits::MEMORY_TYPE_SHIFT | reserved;
        plain_leaves[0] = plain(0, leaf_reserved[0]);
        for (level, supported) in [(1, features.two_megabyte_pages), (2, features.gigabyte_pages)] {
            if supported {
                plain_leaves[usize::from(level)] = plain(level, leaf_reserved[usize::from(level)]);
            }
        }
        Ept {
            root_level,
            features,
            special: features.guest_paging_verification
                || features.supervisor_shadow_stack
                || features.paging_write
                || features.sub_page,
            present: bits::R
                | bits::W
                | bits::X
                | if features.mode_based_execute { bits::XU } else { 0 },
            table_reserved,
            leaf_reserved,
            plain_table: bits::R | bits::PS | table_reserved,
            plain_leaves,
        }
    }

    /// What is enabled.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Level of the root table.
    #[inline(always)]
    pub(crate) fn root_level(&self) -> u8 {
        self.root_level
    }

    /// The bits of a leaf's address that may be set.
    #[inline(always)]
    pub(crate) fn leaf_address(&self, level: u8) -> u64 {
        ADDRESS & !self.leaf_reserved[usize::from(level.min(2))]
    }

    /// Whether this access counts as a write besides its own kind: with accessed and dirty flags
    /// enabled, accesses to guest paging-structure entries do (SDM 3C 30.3.5). The load of PAE
    /// PDPTEs by MOV to CR3 stays a read.
    #[inline]
    pub fn counts_as_write(&self, access: &Access) -> bool {
        self.features.accessed_dirty
            && matches!(access.purpose, Purpose::Table { .. } | Purpose::Update { .. })
    }

    /// What R, W, X and XU deny.
    #[inline(always)]
    fn denied(&self, found: &Found, access: &Access) -> Denied {
        let and = found.entry & found.path.and;
        let execute = match access.page {
            Some(page) if self.features.mode_based_execute && page.user => bits::XU,
            _ => bits::X,
        };
        let write = access.kind == Kind::Write || self.counts_as_write(access);
        Denied::NONE
            .with(Denied::READ, access.kind == Kind::Read && and & bits::R == 0)
            .with(Denied::WRITE, write && and & bits::W == 0)
            .with(Denied::EXECUTE, access.kind == Kind::Execute && and & execute == 0)
    }

    /// The rules of features that most hypervisors leave off.
    #[cold]
    fn check_special(&self, found: &Found, access: &Access, denied: Denied) -> Denied {
        let Features { guest_paging_verification, supervisor_shadow_stack, .. } = self.features;
        let Features { paging_write, sub_page, .. } = self.features;
        let mut denied = denied;
        // Paging-write access replaces the leaf's own W bit for accesses to guest tables.
        let tables_writable = found.path.and & bits::W != 0;
        if paging_write
            && access.purpose.is_table()
            && tables_writable
            && found.entry & bits::PAGING_WRITE != 0
        {
            denied = denied.without(Denied::WRITE);
        }
        // SDM 3C 30.3.3.3: the leaf asks that all guest tables were reached by paging-write pages.
        let unverified = guest_paging_verification
            && found.entry & bits::VERIFY_GUEST_PAGING != 0
            && access.page.is_some_and(|page| page.tables_via & bits::PAGING_WRITE == 0);
        denied = denied.with(Denied::GUEST_PAGING, unverified);
        // SDM 3C 30.3.3.2: a supervisor shadow-stack access needs bit 60 of a readable leaf, which
        // then needs not be writable; tables above must be.
        if supervisor_shadow_stack
            && access.flavor == Flavor::ShadowStack
            && access.privilege == Privilege::Supervisor
            && access.purpose == Purpose::Final
        {
            let permitted = found.entry & (bits::SUPERVISOR_SHADOW_STACK | bits::R)
                == bits::SUPERVISOR_SHADOW_STACK | bits::R
                && found.path.and & (bits::R | bits::W) == bits::R | bits::W;
            denied = denied.without(Denied::WRITE).with(Denied::SHADOW_STACK, !permitted);
        }
        let by_sub_page = sub_page
            && found.level == 0
            && found.entry & bits::SUB_PAGE != 0
            && access.purpose == Purpose::Final
            && tables_writable
            && denied.contains(Denied::WRITE);
        denied.with(Denied::SUB_PAGE, by_sub_page)
    }

    /// Whether the violation becomes a virtualization exception (#VE) in the guest, given that the
    /// control is on and the processor is in a state to deliver one (SDM 3C 27.5.7.1): bit 63 of
    /// the entry that ended the walk is clear. Misconfigurations never do.
    pub fn converts_to_ve<I>(fault: &Fault<I>) -> bool {
        !matches!(fault.cause, Cause::Reserved(_)) && fault.entry & bits::SUPPRESS_VE == 0
    }

    /// SDM 3C 30.3.3.1: what makes a present entry a misconfiguration.
    #[inline]
    fn misconfigured(&self, entry: u64, is_leaf: bool, level: u8) -> Option<Reserved> {
        if entry & bits::R == 0 {
            if entry & bits::W != 0 {
                let bits = entry & (bits::R | bits::W);
                return Some(Reserved { why: Why::WriteWithoutRead, bits });
            }
            if !self.features.execute_only {
                return Some(Reserved { why: Why::ExecuteOnly, bits: entry & self.present });
            }
        }
        let reserved = if is_leaf {
            self.leaf_reserved[usize::from(level.min(2))]
        } else {
            self.table_reserved
        };
        if entry & reserved != 0 {
            return Some(Reserved { why: Why::Bits, bits: entry & reserved });
        }
        if is_leaf && memory_type(entry).is_none() {
            return Some(Reserved { why: Why::MemoryType, bits: entry & address_bits(3, 5) });
        }
        None
    }
}

/// What a plain leaf has under the mask of its level: it is readable and, of the memory types, write-back,
/// which is nearly every leaf's and takes no test of its own.
#[inline(always)]
const fn plain_leaf(level: u8) -> u64 {
    bits::R | 6 << bits::MEMORY_TYPE_SHIFT | if level > 0 { bits::PS } else { 0 }
}

/// The memory type that bits 5:3 of a leaf are, or `None` for 2, 3 and 7.
#[inline]
fn memory_type(entry: u64) -> Option<Type> {
    match (entry >> bits::MEMORY_TYPE_SHIFT) as u8 & 7 {
        7 => None,
        encoding => Type::from_encoding(encoding),
    }
}

impl Format for Ept {
    /// EPTP; bits 11:0 are configuration and are masked.
    type Root = u64;

    const UNROLLED: bool = true;

    fn name(&self) -> &'static str {
        if self.root_level == 3 { "ept4" } else { "ept5" }
    }

    #[inline]
    fn stage(&self) -> u8 {
        2
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        EntryLayout::LE64
    }

    #[inline]
    fn begin(&self, root: &u64, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        if input >> self.shift(self.root_level + 1) != 0 {
            return Err((self.root_level, Cause::InputSize));
        }
        Ok(Start::Table { table: root & ADDRESS, level: self.root_level, input })
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        12 + 9 * u32::from(level)
    }

    #[inline]
    fn index_bits(&self, _: u8) -> u32 {
        9
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        if entry & self.present == 0 {
            return Decoded::Empty;
        }
        let is_leaf = level == 0 || level <= 2 && entry & bits::PS != 0;
        if let Some(reserved) = self.misconfigured(entry, is_leaf, level) {
            return Decoded::Reserved(reserved);
        }
        if is_leaf {
            let shift = self.shift(level);
            Decoded::Leaf { base: entry & ADDRESS & (!0 << shift), shift: shift as u8 }
        } else {
            Decoded::Table { next: entry & ADDRESS }
        }
    }

    /// A readable entry is neither empty nor writable without being readable.
    #[inline(always)]
    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        let plain = entry & self.plain_table == bits::R && level > 0;
        plain.then_some(entry & ADDRESS)
    }

    #[inline(always)]
    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        let shift = self.shift(level);
        let base = entry & ADDRESS & (!0 << shift);
        let plain = entry & self.plain_leaves[usize::from(level) & 7] == plain_leaf(level);
        plain.then_some((base, shift as u8))
    }

    #[inline(always)]
    fn plainly_permits(&self, found: &Found, access: &Access, _: &Regime) -> bool {
        !self.special && self.denied(found, access).is_empty()
    }

    fn check(&self, found: &Found, access: &Access, _: &Regime) -> Result<(), Cause> {
        let denied = self.denied(found, access);
        if self.special {
            return self.check_special(found, access, denied).into_result();
        }
        denied.into_result()
    }

    #[inline]
    fn touched(&self, entry: u64, _: u8, is_leaf: bool, access: &Access) -> u64 {
        if !self.features.accessed_dirty {
            return entry;
        }
        if is_leaf && (access.kind == Kind::Write || self.counts_as_write(access)) {
            entry | bits::A | bits::D
        } else {
            entry | bits::A
        }
    }

    /// Bits 6:3 of the leaf.
    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        TypeBits::new((found.entry >> bits::MEMORY_TYPE_SHIFT) as u16 & 0xf)
    }

    fn type_of(&self, bits: TypeBits, _: Kind, _: &Regime) -> StageType {
        let entry = u64::from(bits.get().unwrap_or(0)) << bits::MEMORY_TYPE_SHIFT;
        StageType::Ept {
            memory_type: memory_type(entry).unwrap_or(Type::Uc),
            ignore_pat: entry & bits::IGNORE_PAT != 0,
        }
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8 + 1
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        if entry & self.present == 0 {
            return f.write_str("not present");
        }
        for (bit, set) in [(bits::R, 'R'), (bits::W, 'W'), (bits::X, 'X')] {
            f.write_char(if entry & bit != 0 { set } else { '-' })?;
        }
        if self.features.mode_based_execute {
            f.write_str(if entry & bits::XU != 0 { " XU" } else { " -" })?;
        }
        let is_leaf = level == 0 || level <= 2 && entry & bits::PS != 0;
        if is_leaf {
            match memory_type(entry) {
                Some(memory_type) => write!(f, " {memory_type}")?,
                None => f.write_str(" type reserved")?,
            }
            if entry & bits::IGNORE_PAT != 0 {
                f.write_str(" IPAT")?;
            }
        }
        if self.features.accessed_dirty {
            if entry & bits::A != 0 {
                f.write_str(" A")?;
            }
            if is_leaf && entry & bits::D != 0 {
                f.write_str(" D")?;
            }
        }
        if is_leaf {
            // Bits of features that are off are the software's own.
            let Features { guest_paging_verification, supervisor_shadow_stack, .. } = self.features;
            let Features { paging_write, sub_page, .. } = self.features;
            for (enabled, bit, name) in [
                (guest_paging_verification, bits::VERIFY_GUEST_PAGING, " VGP"),
                (guest_paging_verification || paging_write, bits::PAGING_WRITE, " PW"),
                (supervisor_shadow_stack, bits::SUPERVISOR_SHADOW_STACK, " SSS"),
                (sub_page, bits::SUB_PAGE, " SPP"),
                (true, bits::SUPPRESS_VE, " suppress-VE"),
            ] {
                if enabled && entry & bit != 0 {
                    f.write_str(name)?;
                }
            }
        }
        if let Some(reserved) = self.misconfigured(entry, is_leaf, level) {
            write!(f, "; {reserved}")?;
        }
        Ok(())
    }

    fn page(&self, found: &Found, _: &Regime) -> Stage1Page {
        let and = found.entry & found.path.and;
        Stage1Page {
            user: true,
            writable: and & bits::W != 0,
            executable: and & bits::X != 0,
            shadow_stack: false,
            tables_via: found.path.via,
        }
    }
}
