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
use super::x86::{Controls, bits, leaf_type};
use super::{Decoded, Format, Found, Path, Start};
use crate::access::{Access, Flavor, Kind, Privilege, Purpose, Stage1Page};
use crate::fault::{Cause, Denied};
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
    options: Options,
    /// Whether `options` asks for anything.
    has_options: bool,
}

/// VMCB options that change how nested tables are checked (APM 2 appendix B, offset 090h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Options {
    /// Guest mode execute trap (bit 3): accesses of the guest's supervisor are supervisor accesses,
    /// and it may not execute nested user pages.
    pub guest_mode_execute_trap: bool,
    /// Supervisor shadow-stack restrictions (bit 4): supervisor shadow-stack accesses need a nested
    /// page that is read-only and dirty under writable tables.
    pub supervisor_shadow_stack: bool,
    /// Read-only guest page tables (bit 6): a guest table that is only read need not be writable.
    pub read_only_guest_tables: bool,
}

/// The rules that nested accesses are checked by (15.25.5): `nxe` is the host's `EFER.NXE`.
fn nested_controls(nxe: bool) -> Controls {
    // SMEP's rule is the guest mode execute trap's: it meets supervisor fetches only with it.
    Controls { write_protect: true, nxe, smep: true, ..Controls::default() }
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

impl Npt {
    /// Under a host with 4-level paging. `nxe` is the host's `EFER.NXE`.
    pub fn four(nxe: bool, processor: Processor) -> Npt {
        Npt {
            mode: Mode::Long(Long::four(nested_controls(nxe), processor)),
            name: "npt4",
            options: Options::default(),
            has_options: false,
        }
    }

    /// Under a host with 5-level paging.
    pub fn five(nxe: bool, processor: Processor) -> Npt {
        Npt {
            mode: Mode::Long(Long::five(nested_controls(nxe), processor)),
            name: "npt5",
            options: Options::default(),
            has_options: false,
        }
    }

    /// Under a host with PAE paging.
    pub fn pae(nxe: bool, processor: Processor) -> Npt {
        Npt {
            mode: Mode::Pae(Pae::new(nested_controls(nxe), processor)),
            name: "npt-pae",
            options: Options::default(),
            has_options: false,
        }
    }

    /// Under a host with 32-bit paging; `large_pages` and `physical_bits` as for
    /// [`Legacy::new`].
    pub fn legacy(large_pages: bool, physical_bits: u8) -> Npt {
        let mode = Mode::Legacy(Legacy::new(nested_controls(false), large_pages, physical_bits));
        Npt { mode, name: "npt-32", options: Options::default(), has_options: false }
    }

    /// The same tables, checked with these options.
    #[must_use]
    pub fn with_options(self, options: Options) -> Npt {
        Npt { options, has_options: options != Options::default(), ..self }
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The kind that an access counts as: accesses to guest tables are writes.
    #[inline]
    pub fn checked_kind(&self, access: &Access) -> Kind {
        match access.purpose {
            Purpose::Final => access.kind,
            Purpose::Table { .. } | Purpose::PdpteLoad if self.options.read_only_guest_tables => {
                Kind::Read
            }
            _ => Kind::Write,
        }
    }

    /// The access as the nested tables check it (15.25.5).
    #[inline]
    fn nested(&self, access: &Access) -> Access {
        let as_guest = self.options.guest_mode_execute_trap && access.purpose == Purpose::Final;
        Access {
            kind: self.checked_kind(access),
            privilege: if as_guest { access.privilege } else { Privilege::User },
            flavor: Flavor::Plain,
            ..*access
        }
    }

    /// Whether the access is a supervisor shadow-stack access that its nested page does not permit.
    fn shadow_stack_denied(&self, found: &Found, access: &Access) -> bool {
        self.options.supervisor_shadow_stack
            && access.flavor == Flavor::ShadowStack
            && access.privilege == Privilege::Supervisor
            && access.purpose == Purpose::Final
            && !(found.path.and & bits::RW != 0 && found.entry & (bits::RW | bits::D) == bits::D)
    }

    /// The whole of [`Format::check`].
    #[inline(never)]
    fn check_every_rule(
        &self,
        found: &Found,
        access: &Access,
        regime: &Regime,
    ) -> Result<(), Cause> {
        if self.options.supervisor_shadow_stack
            && access.flavor == Flavor::ShadowStack
            && access.privilege == Privilege::Supervisor
        {
            let denied = self.shadow_stack_denied(found, access);
            return Denied::NONE.with(Denied::SHADOW_STACK, denied).into_result();
        }
        let access = self.nested(access);
        match in_mode!(self, mode => mode.check(found, &access, regime)) {
            Err(Cause::Permission(denied)) if denied.contains(Denied::SUPERVISOR_FETCH) => {
                Err(Cause::Permission(denied.with(Denied::GUEST_MODE, true)))
            }
            outcome => outcome,
        }
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
                let root_level = long.root_level();
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

    #[inline(always)]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        in_mode!(self, mode => mode.decode(entry, level))
    }

    #[inline]
    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        in_mode!(self, mode => mode.join(path, entry, level))
    }

    #[inline(always)]
    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        // Every nested access is a user access: most are permitted by the bits alone.
        let fetch = access.kind == Kind::Execute && access.purpose == Purpose::Final;
        let write = access.kind == Kind::Write || access.purpose != Purpose::Final;
        let needed = bits::US | if write { bits::RW } else { 0 };
        if !self.has_options && !fetch && found.entry & found.path.and & needed == needed {
            return Ok(());
        }
        self.check_every_rule(found, access, regime)
    }

    #[inline]
    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        let access = self.nested(access);
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
