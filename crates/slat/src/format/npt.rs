//! AMD nested page tables (NPT, RVI): AMD APM 2 15.25.
//!
//! The tables have the format of the host's own paging mode (15.25.3), so that this format is one
//! of the x86 modes read by other rules: every nested access is a user access, accesses to guest
//! tables are user writes (15.25.5), `CR0.WP` of the host is ignored, and so are SMEP, SMAP and
//! protection keys.

use core::fmt;

use super::x86::legacy::Legacy;
use super::x86::long::{Long, Processor};
use super::x86::pae::{self, Pae};
use super::x86::{Controls, leaf_type};
use super::{Decoded, Format, Found, Path, Start};
use crate::access::{Access, Flavor, Kind, Privilege, Stage1Page};
use crate::fault::Cause;
use crate::memory::EntryLayout;
use crate::memory_type::StageType;
use crate::regime::Regime;

/// The x86 mode that the nested tables are in: that of the host at VMRUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Long(Long),
    Pae(Pae),
    Legacy(Legacy),
}

/// Nested page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Npt {
    mode: Mode,
    name: &'static str,
}

/// The rules that nested accesses are checked by (15.25.5): `nxe` is the host's `EFER.NXE`.
fn nested_controls(nxe: bool) -> Controls {
    Controls { write_protect: true, nxe, ..Controls::default() }
}

impl Npt {
    /// Under a host with 4-level paging. `nxe` is the host's `EFER.NXE`.
    pub fn four(nxe: bool, processor: Processor) -> Npt {
        Npt { mode: Mode::Long(Long::four(nested_controls(nxe), processor)), name: "npt4" }
    }

    /// Under a host with 5-level paging.
    pub fn five(nxe: bool, processor: Processor) -> Npt {
        Npt { mode: Mode::Long(Long::five(nested_controls(nxe), processor)), name: "npt5" }
    }

    /// Under a host with PAE paging.
    pub fn pae(nxe: bool, processor: Processor) -> Npt {
        Npt { mode: Mode::Pae(Pae::new(nested_controls(nxe), processor)), name: "npt-pae" }
    }

    /// Under a host with 32-bit paging; `large_pages` and `physical_bits` as for
    /// [`Legacy::new`].
    pub fn legacy(large_pages: bool, physical_bits: u8) -> Npt {
        let mode = Mode::Legacy(Legacy::new(nested_controls(false), large_pages, physical_bits));
        Npt { mode, name: "npt-32" }
    }

    /// Whether the nested tables may disable execution (the host's `EFER.NXE`).
    pub fn nxe(&self) -> bool {
        match &self.mode {
            Mode::Long(long) => long.controls().nxe,
            Mode::Pae(pae) => pae.controls().nxe,
            Mode::Legacy(_) => false,
        }
    }
}

/// The access as the nested tables check it (15.25.5).
#[inline]
fn nested(access: &Access) -> Access {
    Access {
        kind: if access.purpose.is_table() { Kind::Write } else { access.kind },
        privilege: Privilege::User,
        flavor: Flavor::Plain,
        ..*access
    }
}

macro_rules! in_mode {
    ($self:ident, $mode:ident => $call:expr) => {
        match &$self.mode {
            Mode::Long($mode) => $call,
            Mode::Pae($mode) => $call,
            Mode::Legacy($mode) => $call,
        }
    };
}

impl Format for Npt {
    /// nCR3.
    type Root = u64;

    fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    fn stage(&self) -> u8 {
        2
    }

    #[inline]
    fn layout(&self) -> EntryLayout {
        in_mode!(self, mode => mode.layout())
    }

    #[inline]
    fn begin(
        &self,
        root: &u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        match &self.mode {
            // Guest physical addresses are not sign-extended: bits beyond the tables' width fault.
            Mode::Long(long) => {
                let root_level = if self.name == "npt4" { 3 } else { 4 };
                if input >> (12 + 9 * (root_level + 1)) != 0 {
                    return Err((root_level, Cause::InputSize));
                }
                Ok(Start::Table { table: long.table_address(*root), level: root_level, input })
            }
            Mode::Pae(pae) => pae.begin(&pae::Root::OnDemand(*root), input, access, regime),
            Mode::Legacy(legacy) => legacy.begin(root, input, access, regime),
        }
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        in_mode!(self, mode => mode.shift(level))
    }

    #[inline]
    fn index_bits(&self, level: u8) -> u32 {
        in_mode!(self, mode => mode.index_bits(level))
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        in_mode!(self, mode => mode.decode(entry, level))
    }

    #[inline]
    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        in_mode!(self, mode => mode.join(path, entry, level))
    }

    #[inline]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        let access = nested(access);
        in_mode!(self, mode => mode.check(found, &access, regime))
    }

    #[inline]
    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        let access = nested(access);
        in_mode!(self, mode => mode.touched(entry, level, is_leaf, &access))
    }

    fn memory_type(&self, found: &Found, regime: &Regime) -> StageType {
        StageType::HostPat(leaf_type(found.entry, found.level, regime.x86.host_pat))
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8 + 1
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        in_mode!(self, mode => mode.describe(entry, level, f))
    }

    #[inline]
    fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
        in_mode!(self, mode => mode.page(found, regime))
    }
}
