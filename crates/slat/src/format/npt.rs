//! AMD nested page tables (NPT, RVI): AMD APM 2 15.25.
//!
//! The tables have the format of the host's own paging mode (15.25.3), so that this format is one
//! of the x86 modes read by other rules: every nested access is a user access, accesses to guest
//! tables are user writes (15.25.5), `CR0.WP` of the host is ignored, and so are SMEP, SMAP and
//! protection keys.

use core::fmt;
use core::hint::cold_path;

use super::x86::legacy::Legacy;
use super::x86::long::{Long, Processor};
use super::x86::pae::{self, Pae};
use super::x86::{Controls, bits, type_bits, type_in};
use super::{Decoded, Format, Found, Path, Start, Visitor, apart};
use crate::access::{Access, Flavor, Kind, Privilege, Purpose, Stage1Page};
use crate::fault::{Cause, Denied};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

/// Nested page tables, in the mode that the host was in at VMRUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Npt(Mode);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[expect(clippy::large_enum_variant, reason = "nearly all hosts are the large one")]
enum Mode {
    Long(In<Long>),
    Pae(In<Pae>),
    Legacy(In<Legacy>),
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
    ($self:ident, $tables:ident => $call:expr) => {
        match &$self.0 {
            Mode::Long($tables) => $call,
            Mode::Pae($tables) => $call,
            Mode::Legacy($tables) => $call,
        }
    };
}

impl Npt {
    /// Under a host with 4-level paging. `nxe` is the host's `EFER.NXE`.
    pub fn four(nxe: bool, processor: Processor) -> Npt {
        Npt(Mode::Long(In::new("npt4", Long::four(nested_controls(nxe), processor))))
    }

    /// Under a host with 5-level paging.
    pub fn five(nxe: bool, processor: Processor) -> Npt {
        Npt(Mode::Long(In::new("npt5", Long::five(nested_controls(nxe), processor))))
    }

    /// Under a host with PAE paging.
    pub fn pae(nxe: bool, processor: Processor) -> Npt {
        Npt(Mode::Pae(In::new("npt-pae", Pae::new(nested_controls(nxe), processor))))
    }

    /// Under a host with 32-bit paging; `large_pages` and `physical_bits` as for
    /// [`Legacy::new`].
    pub fn legacy(large_pages: bool, physical_bits: u8) -> Npt {
        let legacy = Legacy::new(nested_controls(false), large_pages, physical_bits);
        Npt(Mode::Legacy(In::new("npt-32", legacy)))
    }

    /// The same tables, checked with these options.
    #[must_use]
    pub fn with_options(mut self, options: Options) -> Npt {
        let has_options = options != Options::default();
        match &mut self.0 {
            Mode::Long(tables) => (tables.options, tables.has_options) = (options, has_options),
            Mode::Pae(tables) => (tables.options, tables.has_options) = (options, has_options),
            Mode::Legacy(tables) => (tables.options, tables.has_options) = (options, has_options),
        }
        self
    }

    /// The options.
    pub fn options(&self) -> &Options {
        in_mode!(self, tables => &tables.options)
    }

    /// The kind that an access counts as: accesses to guest tables are writes.
    #[inline]
    pub fn checked_kind(&self, access: &Access) -> Kind {
        self.options().checked_kind(access)
    }

    /// The host's 32-bit paging, where it has that.
    pub(crate) fn in_legacy_mode(&self) -> Option<&Legacy> {
        match &self.0 {
            Mode::Legacy(tables) => Some(&tables.mode),
            _ => None,
        }
    }

    /// Whether the nested tables may disable execution (the host's `EFER.NXE`).
    pub fn nxe(&self) -> bool {
        in_mode!(self, tables => tables.mode.nxe())
    }
}

/// Whether a nested leaf marks a supervisor shadow-stack page: read-only and dirty.
pub(crate) const fn is_supervisor_shadow_stack_page(leaf: u64) -> bool {
    leaf & (bits::RW | bits::D) == bits::D
}

impl Options {
    #[inline(always)]
    fn checked_kind(&self, access: &Access) -> Kind {
        match access.purpose {
            Purpose::Final => access.kind,
            Purpose::Table { .. } | Purpose::PdpteLoad if self.read_only_guest_tables => Kind::Read,
            _ => Kind::Write,
        }
    }
}

/// A paging mode of the host, as the format of nested tables.
trait HostMode: Format {
    /// Where the walk of a guest physical address begins.
    fn begin_nested(
        &self,
        ncr3: u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)>;

    /// Whether entries may disable execution.
    fn nxe(&self) -> bool;
}

impl HostMode for Long {
    #[inline(always)]
    fn begin_nested(
        &self,
        ncr3: u64,
        input: u64,
        _: &Access,
        _: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        // Guest physical addresses are not sign-extended: bits beyond the tables' width fault.
        let level = self.root_level();
        if self.is_beyond(input) {
            return Err((level, Cause::InputSize));
        }
        Ok(Start::Table { table: self.table_address(ncr3), level, input })
    }

    fn nxe(&self) -> bool {
        self.controls().nxe
    }
}

impl HostMode for Pae {
    #[inline(always)]
    fn begin_nested(
        &self,
        ncr3: u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        self.begin(&pae::Root::OnDemand(ncr3), input, access, regime)
    }

    fn nxe(&self) -> bool {
        self.controls().nxe
    }
}

impl HostMode for Legacy {
    #[inline(always)]
    fn begin_nested(
        &self,
        ncr3: u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        self.begin(&ncr3, input, access, regime)
    }

    fn nxe(&self) -> bool {
        false
    }
}

/// Nested tables in one mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct In<M> {
    mode: M,
    name: &'static str,
    options: Options,
    /// Whether `options` asks for anything.
    has_options: bool,
}

impl<M> In<M> {
    fn new(name: &'static str, mode: M) -> In<M> {
        In { mode, name, options: Options::default(), has_options: false }
    }

    /// The access as the nested tables check it (15.25.5).
    #[inline]
    fn nested(&self, access: &Access) -> Access {
        let as_guest = self.options.guest_mode_execute_trap && access.purpose == Purpose::Final;
        Access {
            kind: self.options.checked_kind(access),
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
            && !(found.path.and & bits::RW != 0 && is_supervisor_shadow_stack_page(found.entry))
    }
}

impl<M: HostMode> Format for In<M> {
    /// nCR3.
    type Root = u64;

    const UNROLLED: bool = M::UNROLLED;

    fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    fn stage(&self) -> u8 {
        2
    }

    #[inline(always)]
    fn layout(&self) -> EntryLayout {
        self.mode.layout()
    }

    #[inline(always)]
    fn begin(
        &self,
        root: &u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        self.mode.begin_nested(*root, input, access, regime)
    }

    #[inline(always)]
    fn shift(&self, level: u8) -> u32 {
        self.mode.shift(level)
    }

    #[inline(always)]
    fn index_bits(&self, level: u8) -> u32 {
        self.mode.index_bits(level)
    }

    #[inline(always)]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        self.mode.decode(entry, level)
    }

    #[inline(always)]
    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        self.mode.plain_table(entry, level)
    }

    #[inline(always)]
    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        self.mode.plain_leaf(entry, level)
    }

    /// Every nested access is a user access: most are permitted by the bits alone.
    #[inline(always)]
    fn plainly_permits(&self, found: &Found, access: &Access, _: &Regime) -> bool {
        let fetch = access.kind == Kind::Execute && access.purpose == Purpose::Final;
        let write = access.kind == Kind::Write || access.purpose != Purpose::Final;
        let needed = bits::US | if write { bits::RW } else { 0 };
        let never = if fetch { bits::XD } else { 0 };
        let (and, or) = (found.entry & found.path.and, found.entry | found.path.or);
        !self.has_options && (and & needed ^ needed) | or & never == 0
    }

    #[inline]
    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        self.mode.join(path, entry, level);
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        if self.options.supervisor_shadow_stack
            && access.flavor == Flavor::ShadowStack
            && access.privilege == Privilege::Supervisor
        {
            let denied = self.shadow_stack_denied(found, access);
            return Denied::NONE.with(Denied::SHADOW_STACK, denied).into_result();
        }
        let access = self.nested(access);
        match self.mode.check(found, &access, regime) {
            Err(Cause::Permission(denied)) if denied.contains(Denied::SUPERVISOR_FETCH) => {
                Err(Cause::Permission(denied.with(Denied::GUEST_MODE, true)))
            }
            outcome => outcome,
        }
    }

    #[inline]
    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        self.mode.touched(entry, level, is_leaf, &self.nested(access))
    }

    #[inline(always)]
    fn type_bits(&self, found: &Found) -> TypeBits {
        type_bits(found)
    }

    fn type_of(&self, bits: TypeBits, _: Kind, regime: &Regime) -> StageType {
        StageType::HostPat(type_in(regime.x86.host_pat, bits))
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8 + 1
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        self.mode.describe(entry, level, f)
    }

    #[inline]
    fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
        self.mode.page(found, regime)
    }
}

impl Format for Npt {
    /// nCR3.
    type Root = u64;

    #[inline(always)]
    fn visit<V: Visitor>(&self, root: &u64, visitor: V) -> V::Output {
        match &self.0 {
            Mode::Long(tables) => visitor.visit(tables, root),
            Mode::Pae(tables) => {
                cold_path();
                apart(tables, root, visitor)
            }
            Mode::Legacy(tables) => {
                cold_path();
                apart(tables, root, visitor)
            }
        }
    }

    fn name(&self) -> &'static str {
        in_mode!(self, tables => tables.name())
    }

    fn stage(&self) -> u8 {
        2
    }

    fn layout(&self) -> EntryLayout {
        in_mode!(self, tables => tables.layout())
    }

    fn begin(
        &self,
        root: &u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        in_mode!(self, tables => tables.begin(root, input, access, regime))
    }

    #[inline]
    fn shift(&self, level: u8) -> u32 {
        in_mode!(self, tables => tables.shift(level))
    }

    #[inline]
    fn index_bits(&self, level: u8) -> u32 {
        in_mode!(self, tables => tables.index_bits(level))
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Decoded {
        in_mode!(self, tables => tables.decode(entry, level))
    }

    fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
        in_mode!(self, tables => tables.plain_table(entry, level))
    }

    fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
        in_mode!(self, tables => tables.plain_leaf(entry, level))
    }

    fn plainly_permits(&self, found: &Found, access: &Access, regime: &Regime) -> bool {
        in_mode!(self, tables => tables.plainly_permits(found, access, regime))
    }

    fn join(&self, path: &mut Path, entry: u64, level: u8) {
        in_mode!(self, tables => tables.join(path, entry, level))
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        in_mode!(self, tables => tables.check(found, access, regime))
    }

    #[inline]
    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        in_mode!(self, tables => tables.touched(entry, level, is_leaf, access))
    }

    fn type_bits(&self, found: &Found) -> TypeBits {
        in_mode!(self, tables => tables.type_bits(found))
    }

    fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
        in_mode!(self, tables => tables.type_of(bits, kind, regime))
    }

    fn arch_level(&self, level: u8) -> i8 {
        level as i8 + 1
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        in_mode!(self, tables => tables.describe(entry, level, f))
    }

    #[inline]
    fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
        in_mode!(self, tables => tables.page(found, regime))
    }
}
