//! What the x86 paging modes share: entry bits and access rights.
//!
//! Sources: Intel SDM 3A chapter 5 (5.5 paging modes, 5.6 access rights, 5.8 accessed and dirty
//! flags), AMD APM 2 chapter 5. The modes themselves are in [`long`], [`pae`] and [`legacy`].

use core::fmt;

use super::Found;
use crate::access::{Access, Flavor, Kind, Privilege, Stage1Page};
use crate::fault::Denied;
use crate::memory_type::TypeBits;
use crate::memory_type::x86::{Type, pat_entry};
use crate::regime::x86::State;

pub mod hlat;
pub mod identity;
pub mod legacy;
pub mod long;
pub mod pae;

/// Bits of every x86 entry.
pub mod bits {
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const RW: u64 = 1 << 1;
    /// User.
    pub const US: u64 = 1 << 2;
    /// Page-level write-through.
    pub const PWT: u64 = 1 << 3;
    /// Page-level cache disable.
    pub const PCD: u64 = 1 << 4;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty (leaves).
    pub const D: u64 = 1 << 6;
    /// Page size: the entry is a leaf above level 0.
    pub const PS: u64 = 1 << 7;
    /// PAT, in a level-0 leaf.
    pub const PAT: u64 = 1 << 7;
    /// Global (leaves).
    pub const G: u64 = 1 << 8;
    /// PAT, in a leaf above level 0.
    pub const PAT_LARGE: u64 = 1 << 12;
    /// Execute disable.
    pub const XD: u64 = 1 << 63;
}

/// The vendor, where reserved bits differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Vendor {
    /// Intel and processors that follow its manual.
    #[default]
    Intel,
    /// AMD and processors that follow its manual.
    Amd,
}

/// The control bits that decide access rights, apart from those of [`crate::Regime`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Controls {
    /// `CR0.WP`: the supervisor honours read-only pages.
    pub write_protect: bool,
    /// `CR4.SMEP`.
    pub smep: bool,
    /// `CR4.SMAP`.
    pub smap: bool,
    /// `EFER.NXE`: bit 63 disables execution instead of being reserved.
    pub nxe: bool,
    /// `CR4.PKE`: `PKRU` governs user pages (4- and 5-level paging only).
    pub user_keys: bool,
    /// `CR4.PKS`: `IA32_PKRS` governs supervisor pages.
    pub supervisor_keys: bool,
    /// `CR4.CET`: shadow-stack pages exist.
    pub shadow_stacks: bool,
}

/// The rights that a leaf and the tables above it grant together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    /// Every entry on the path has U/S set.
    pub(crate) user: bool,
    /// Every entry on the path has R/W set.
    pub(crate) writable: bool,
    /// No entry on the path has XD set (with NXE).
    pub(crate) executable: bool,
    /// A shadow-stack page: writable path, read-only dirty leaf (SDM 3A 5.6).
    pub(crate) shadow_stack: bool,
}

impl Controls {
    /// The rights of a found leaf. `table_bits` are the bits that table entries of this mode have
    /// among R/W and U/S (PAE's PDPTEs have neither).
    #[inline]
    pub(crate) fn rights(&self, found: &Found) -> Rights {
        let and = found.entry & found.path.and;
        let or = found.entry | found.path.or;
        Rights {
            user: and & bits::US != 0,
            writable: and & bits::RW != 0,
            executable: !self.nxe || or & bits::XD == 0,
            shadow_stack: self.shadow_stacks
                && found.path.and & bits::RW != 0
                && found.entry & (bits::RW | bits::D) == bits::D,
        }
    }

    /// Whether the access is permitted by the rules that all pages obey but those of protection
    /// keys. `false` says nothing.
    #[inline(always)]
    pub(crate) fn plainly_permits(&self, found: &Found, access: &Access) -> bool {
        let user = access.privilege == Privilege::User;
        let fetch = access.kind == Kind::Execute;
        let write = access.kind == Kind::Write && (user || self.write_protect);
        let needed = if user { bits::US } else { 0 } | if write { bits::RW } else { 0 };
        let of_user = !user && if fetch { self.smep } else { self.smap };
        let refused = if of_user { bits::US } else { 0 };
        let never = if fetch { bits::XD } else { 0 };
        let and = found.entry & found.path.and;
        let or = found.entry | found.path.or;
        access.flavor == Flavor::Plain && (and & (needed | refused) ^ needed) | or & never == 0
    }

    /// Every rule that denies the access (SDM 3A 5.6.1, AMD APM 2 5.6).
    #[inline]
    pub(crate) fn denied(&self, rights: Rights, access: &Access, state: &State) -> Denied {
        let user_access = access.privilege == Privilege::User;
        let by_mode = if user_access {
            let denied = Denied::NONE.with(Denied::USER, !rights.user);
            match access.kind {
                Kind::Read => denied,
                Kind::Write => denied.with(Denied::WRITE, !rights.writable),
                Kind::Execute => denied.with(Denied::EXECUTE, !rights.executable),
            }
        } else {
            match access.kind {
                Kind::Execute => Denied::NONE
                    .with(Denied::EXECUTE, !rights.executable)
                    .with(Denied::SUPERVISOR_FETCH, rights.user && self.smep),
                Kind::Read | Kind::Write => {
                    let licensed = state.alignment_check && access.flavor != Flavor::Implicit;
                    let read_only = access.kind == Kind::Write && !rights.writable;
                    Denied::NONE
                        .with(Denied::WRITE, read_only && self.write_protect)
                        .with(Denied::SUPERVISOR_DATA, rights.user && self.smap && !licensed)
                }
            }
        };
        if access.flavor == Flavor::ShadowStack {
            return shadow_stack_denied(rights, user_access);
        }
        by_mode
    }

    /// Whether the page's protection key denies a data access (SDM 3A 5.6.2). `key` is bits 62:59
    /// of the leaf. Shadow-stack accesses obey keys like other data accesses.
    #[inline]
    pub(crate) fn key_denies(
        &self,
        rights: Rights,
        key: u32,
        access: &Access,
        state: &State,
    ) -> bool {
        let register = match (rights.user, self.user_keys, self.supervisor_keys) {
            (true, true, _) => state.pkru,
            (false, _, true) => state.pkrs,
            _ => return false,
        };
        if access.kind == Kind::Execute {
            return false;
        }
        let access_disable = register >> (2 * key) & 1 != 0;
        let write_disable = register >> (2 * key + 1) & 1 != 0;
        let honours = self.write_protect || access.privilege == Privilege::User && rights.user;
        access_disable || write_disable && access.kind == Kind::Write && honours
    }

    /// What the second stage is told of a page.
    pub(crate) fn page(&self, found: &Found) -> Stage1Page {
        let rights = self.rights(found);
        Stage1Page {
            user: rights.user,
            writable: rights.writable,
            executable: rights.executable,
            shadow_stack: rights.shadow_stack,
            tables_via: found.path.via,
        }
    }
}

/// SDM 3A 5.6.1: a shadow-stack access needs a shadow-stack page of its own privilege.
fn shadow_stack_denied(rights: Rights, user_access: bool) -> Denied {
    Denied::NONE
        .with(Denied::USER, user_access && !rights.user)
        .with(Denied::SHADOW_STACK, !rights.shadow_stack || rights.user != user_access)
}

/// The entry after an access: A always, D in the leaf of a write (SDM 3A 5.8).
#[inline]
pub(crate) fn touched(entry: u64, is_leaf: bool, access: &Access) -> u64 {
    if is_leaf && access.kind == Kind::Write { entry | bits::A | bits::D } else { entry | bits::A }
}

/// A leaf's index into the PAT: `PAT`, `PCD` and `PWT` (SDM 3A 5.9).
#[inline(always)]
pub(crate) fn type_bits(found: &Found) -> TypeBits {
    let pat_bit = if found.level == 0 { bits::PAT } else { bits::PAT_LARGE };
    let index =
        found.entry >> bits::PWT.trailing_zeros() & 3 | u64::from(found.entry & pat_bit != 0) << 2;
    TypeBits::new(index as u16)
}

/// The memory type that `pat` gives a leaf with these bits.
pub(crate) fn type_in(pat: u64, bits: TypeBits) -> Type {
    pat_entry(pat, bits.get().unwrap_or(0) as u8)
}

/// The flags of an entry that is present, in the manual's abbreviations.
pub(crate) fn describe_flags(
    entry: u64,
    leaf_level: Option<u8>,
    f: &mut dyn fmt::Write,
) -> fmt::Result {
    f.write_str("P")?;
    let names: [(u64, &str); 5] = [
        (bits::RW, " RW"),
        (bits::US, " US"),
        (bits::PWT, " PWT"),
        (bits::PCD, " PCD"),
        (bits::A, " A"),
    ];
    for (bit, name) in names {
        if entry & bit != 0 {
            f.write_str(name)?;
        }
    }
    if let Some(level) = leaf_level {
        let pat_bit = if level == 0 { bits::PAT } else { bits::PAT_LARGE };
        for (bit, name) in [(bits::D, " D"), (pat_bit, " PAT"), (bits::G, " G")] {
            if entry & bit != 0 {
                f.write_str(name)?;
            }
        }
    }
    if entry & bits::XD != 0 {
        f.write_str(" XD")?;
    }
    Ok(())
}
