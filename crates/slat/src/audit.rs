//! Auditing tables: rules, each named after the bugs that it would have found.
//!
//! [`audit`] walks every entry of a table, in live memory or in an image, and asks the caller what
//! it cannot know: who owns a frame, whether a table was seen before, how else a frame is mapped.
//! It never trusts what it reads: the walk is bounded in depth by the format and in breadth by
//! [`Policy::most_tables`].

use core::fmt;

use crate::access::{Access, Kind, Privilege, Purpose, Stage1Page};
use crate::address::{Address, Gpa};
use crate::fault::{Cause, Failed, Reserved};
use crate::format::{Decoded, Format, Found, MAX_LEVELS, Path, Start};
use crate::memory::{EntryLayout, Memory, Value};
use crate::memory_type::StageType;
use crate::regime::Regime;
use crate::translate::Permissions;
use crate::walk::{Stage, walk};

/// Who owns a frame, as the hypervisor's own records have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The guest whose tables are audited.
    Guest,
    /// Several guests, on purpose; or a device that is assigned.
    Shared,
    /// Another guest.
    Other,
    /// Page tables of the hypervisor.
    Tables,
    /// The hypervisor itself.
    Hypervisor,
    /// Nobody: the frame is free.
    Nobody,
}

/// A rule, by the case that it is named after.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// A mapped frame is owned by this guest, or declared shared (XSA-378, XSA-379, XSA-384,
    /// XSA-400, XSA-473: frames that changed owners and stayed mapped).
    ForeignFrame,
    /// A mapped frame is not free (XSA-393, CVE-2022-23033: removal passed over entries that were
    /// occupied but not valid, and the guest kept freed pages).
    FreedFrame,
    /// A page-table frame is not mapped to a guest (a freed table page linked through its own
    /// entries while it was walkable).
    TableMapped,
    /// A table that is walked is owned as one (XSA-480, CVE-2026-23554: a table page given away
    /// before walk caches were flushed; XSA-173 and its like: data read as a table).
    TableNotOwned,
    /// A table is linked once (KVM's walker that went on in a subtree which it had freed).
    TableLinkedTwice,
    /// No encoding is reserved, no block misaligned, no address too wide (EPT misconfiguration
    /// after a split; XSA-388, XSA-445: misaligned or mis-levelled large pages; XSA-301: width).
    Reserved,
    /// While writes are logged no writable leaf, and no group of leaves that a TLB may hold as one, is
    /// larger than the smallest page (write protection of huge pages lost during dirty logging, twice in
    /// one hypervisor).
    LargeWritableWhileLogging,
    /// All mappings of one frame have one memory type.
    MemoryTypeAlias,
    /// A leaf grants no more than the frame's owner permits (a split that wrote read, write and
    /// execute whatever the large page had; read-only memory slots).
    Widened,
    /// A frame is mapped once, or its second address is declared (XSA-301: guest frames aliased
    /// beyond the width that was mapped).
    MappedTwice,
    /// A guest's tables stay within their budget (XSA-409, XSA-410: pools that a guest exhausts).
    TableBudget,
    /// Nothing is writable and executable at a time.
    WritableExecutable,
    /// No executable page is large (XSA-304, CVE-2018-12207: machine check on page-size change).
    ExecutableLarge,
    /// No entry stays frozen: a break without its make, or a removal that was abandoned.
    LeftFrozen,
    /// Every table can be read.
    Unreadable,
}

impl Rule {
    /// The rule in plain words, as the end of "this breaks the rule that...".
    pub const fn text(self) -> &'static str {
        match self {
            Rule::ForeignFrame => "a guest maps only frames that it owns or that are shared",
            Rule::FreedFrame => "no free frame is mapped",
            Rule::TableMapped => "no page table is mapped to a guest",
            Rule::TableNotOwned => "only page tables are walked as tables",
            Rule::TableLinkedTwice => "a table is linked once",
            Rule::Reserved => "no entry is reserved",
            Rule::LargeWritableWhileLogging => "no large page is writable while writes are logged",
            Rule::MemoryTypeAlias => "all mappings of a frame have one memory type",
            Rule::Widened => "a leaf grants no more than its frame's owner permits",
            Rule::MappedTwice => "a frame is mapped once",
            Rule::TableBudget => "the tables stay within their budget",
            Rule::WritableExecutable => "nothing is writable and executable",
            Rule::ExecutableLarge => "no large page is executable",
            Rule::LeftFrozen => "no entry stays frozen",
            Rule::Unreadable => "every table can be read",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// One entry that breaks a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Which rule.
    pub rule: Rule,
    /// First input address that the entry translates, without sign extension.
    pub input: u64,
    /// The entry's level.
    pub level: u8,
    /// The entry; 0 where a whole table could not be read.
    pub entry: u64,
    /// Where it lies, in the space of the tables.
    pub entry_address: u64,
    /// What is reserved about it, for [`Rule::Reserved`].
    pub reserved: Option<Reserved>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x}: the level-{} entry {:#x} at {:#x} breaks the rule that {}",
            self.input, self.level, self.entry, self.entry_address, self.rule
        )?;
        match &self.reserved {
            Some(reserved) => write!(f, " ({reserved})"),
            None => Ok(()),
        }
    }
}

/// What the auditor asks the caller.
pub trait Ground {
    /// Who owns the `bytes` bytes from `base`. Where that is not one, the answer that is most
    /// dangerous: [`Owner::Tables`] before [`Owner::Nobody`] before [`Owner::Other`] and
    /// [`Owner::Hypervisor`] before the rest.
    fn owner(&mut self, base: u64, bytes: u64) -> Owner;

    /// Notes that the table at `table` is walked, as one of `level`; false where it was before. It
    /// is then not walked again. `true` always forgoes [`Rule::TableLinkedTwice`].
    fn first_visit(&mut self, table: u64, level: u8) -> bool;

    /// Notes that the frames are mapped with this type, and returns another type that they are
    /// mapped with already, if there is one. `None` always forgoes [`Rule::MemoryTypeAlias`].
    fn other_type(&mut self, base: u64, bytes: u64, memory_type: StageType) -> Option<StageType> {
        let _ = (base, bytes, memory_type);
        None
    }

    /// What may be permitted at most of the `bytes` bytes from `base`, mapped at `input`.
    /// Everything, where nobody says otherwise, forgoes [`Rule::Widened`].
    fn most(&mut self, input: u64, base: u64, bytes: u64) -> Permissions {
        let _ = (input, base, bytes);
        Permissions { read: true, write: true, execute: true }
    }

    /// Whether the stage below lets some page of these be written and executed: true where there is
    /// none ([`OverStage2`] asks one).
    fn both_below(&mut self, base: u64, bytes: u64) -> bool {
        let _ = (base, bytes);
        true
    }

    /// The first output address of an entry that translates nothing as it is and has a page all the same:
    /// one whose valid bit the hypervisor took to see whether the guest uses the page, and gives back in
    /// the fault that follows. Asked of invalid entries that are neither 0 nor [`Policy::frozen`]; such a
    /// page is owned as a mapped one is. `None` says that the entry has none.
    fn occupied(&mut self, entry: u64, level: u8) -> Option<u64> {
        let _ = (entry, level);
        None
    }

    /// Notes that the frames are mapped; false where some of them were before, and no alias of them is
    /// declared. `true` always forgoes [`Rule::MappedTwice`].
    fn first_mapping(&mut self, base: u64, bytes: u64) -> bool {
        let _ = (base, bytes);
        true
    }
}

/// The ground of a first stage over a second one: [`Rule::WritableExecutable`] of the first holds where
/// both stages together let a page be written and executed.
///
/// The first stage is audited through [`Nested`](crate::Nested) over the same second stage; `memory` is
/// another handle of the memory below.
pub struct OverStage2<'a, F: Format, M: Memory, G> {
    /// The second stage.
    pub stage2: &'a Stage<F, Gpa, M::Address>,
    /// The memory that its tables are in.
    pub memory: M,
    /// State that both depend on.
    pub regime: &'a Regime,
    /// Who owns what, in guest-physical addresses.
    pub ground: G,
}

impl<F: Format, M: Memory, G: Ground> Ground for OverStage2<'_, F, M, G> {
    fn owner(&mut self, base: u64, bytes: u64) -> Owner {
        self.ground.owner(base, bytes)
    }

    fn first_visit(&mut self, table: u64, level: u8) -> bool {
        self.ground.first_visit(table, level)
    }

    fn other_type(&mut self, base: u64, bytes: u64, memory_type: StageType) -> Option<StageType> {
        self.ground.other_type(base, bytes, memory_type)
    }

    fn most(&mut self, input: u64, base: u64, bytes: u64) -> Permissions {
        self.ground.most(input, base, bytes)
    }

    fn first_mapping(&mut self, base: u64, bytes: u64) -> bool {
        self.ground.first_mapping(base, bytes)
    }

    fn occupied(&mut self, entry: u64, level: u8) -> Option<u64> {
        self.ground.occupied(entry, level)
    }

    fn both_below(&mut self, base: u64, bytes: u64) -> bool {
        let mut at = base;
        let format = &self.stage2.format;
        let mut memory = Settled { format, memory: &mut self.memory };
        let last = base.saturating_add(bytes.saturating_sub(1));
        loop {
            let mut step = 1u64 << self.stage2.format.shift(0);
            let mut may = |kind| {
                asked(kind).into_iter().any(|access| {
                    match walk(self.stage2, &mut memory, Gpa::new(at), &access, self.regime, &()) {
                        Ok(found) => {
                            step = 1u64.checked_shl(found.found.shift.into()).unwrap_or(1 << 63);
                            true
                        }
                        Err(Failed::Here(fault)) => {
                            // What one entry denies it denies of all that it translates.
                            let shift = self.stage2.format.shift(fault.level);
                            step = 1u64.checked_shl(shift).unwrap_or(1 << 63);
                            false
                        }
                        Err(Failed::Below(_)) => false,
                    }
                })
            };
            if may(Kind::Write) && may(Kind::Execute) {
                return true;
            }
            match (at & !(step - 1)).checked_add(step) {
                Some(next) if next <= last => at = next,
                _ => return false,
            }
        }
    }
}

/// The accesses of this kind by either privilege, through a page of the same.
fn asked(kind: Kind) -> [Access; 2] {
    [Privilege::Supervisor, Privilege::User].map(|privilege| {
        let page = Stage1Page { user: privilege == Privilege::User, ..Stage1Page::FLAT };
        Access { page: Some(page), ..Access::new(kind, privilege) }
    })
}

/// Memory whose leaves are all accessed and dirty ([`Format::settled`]): what software is about to permit
/// counts as permitted.
struct Settled<'a, F, M> {
    format: &'a F,
    memory: &'a mut M,
}

impl<F: Format, M: Memory> Memory for Settled<'_, F, M> {
    type Address = M::Address;
    type Fault = M::Fault;

    fn read(
        &mut self,
        address: M::Address,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, M::Fault> {
        let mut read = self.memory.read(address, layout, access)?;
        if let Purpose::Table { level } = access.purpose
            && let Decoded::Leaf { .. } = self.format.decode(read.value, level)
        {
            read.value = self.format.settled(read.value, level, true);
        }
        Ok(read)
    }

    fn compare_exchange(
        &mut self,
        address: M::Address,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, M::Fault> {
        self.memory.compare_exchange(address, layout, current, new, access)
    }
}

/// Which of the rules that depend on the hypervisor hold here, and how far to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Writes are being logged by pages.
    pub logging: bool,
    /// Nothing may be writable and executable.
    pub write_xor_execute: bool,
    /// No large page may be executable.
    pub no_executable_large: bool,
    /// The tables may be this many.
    pub table_budget: u64,
    /// The value that stands in an entry which is being changed
    /// ([`Encode::frozen`](crate::edit::Encode::frozen)); `None` forgoes [`Rule::LeftFrozen`].
    pub frozen: Option<u64>,
    /// After this many tables the audit ends, incomplete.
    pub most_tables: u64,
}

impl Default for Policy {
    /// Only what holds always; a million tables.
    fn default() -> Self {
        Policy {
            logging: false,
            write_xor_execute: false,
            no_executable_large: false,
            table_budget: u64::MAX,
            frozen: None,
            most_tables: 1 << 20,
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Tables walked.
    pub tables: u64,
    /// Leaves seen.
    pub leaves: u64,
    /// Bytes that they map.
    pub bytes: u64,
    /// Entries that break a rule, each counted once for each rule.
    pub findings: u64,
    /// Whether everything was looked at.
    pub complete: bool,
}

/// Audits the table that `root` names, in `memory`, and calls `report` with each finding. Where the
/// two halves of the address space have a table each (Arm's stage 1), it is that of address 0.
///
/// # Errors
/// Where `root` cannot be walked at all: the stage is off, or the registers are out of range.
pub fn audit<F, M, G>(
    format: &F,
    root: &F::Root,
    memory: &mut M,
    regime: &Regime,
    policy: &Policy,
    ground: &mut G,
    report: &mut impl FnMut(&Finding),
) -> Result<Summary, Cause>
where
    F: Format,
    M: Memory,
    G: Ground,
{
    let format = &format.half(0);
    let (table, level) = match format.begin(root, 0, &Access::default(), regime) {
        Ok(Start::Table { table, level, .. }) if usize::from(level) < MAX_LEVELS => (table, level),
        Ok(_) => return Err(Cause::Disabled),
        Err((_, cause)) => return Err(cause),
    };
    let summary = Summary { complete: true, ..Summary::default() };
    let root_bits = input_bits(format, root, regime, table).saturating_sub(format.shift(level));
    let mut auditor =
        Auditor { format, memory, regime, policy, ground, report, summary, top: level, root_bits };
    auditor.table(table, level, 0, Path::START);
    Ok(auditor.summary)
}

/// Width of the input that the root at `table` translates: that of the widest address that begins
/// there, sign extension stripped.
fn input_bits<F: Format>(format: &F, root: &F::Root, regime: &Regime, table: u64) -> u32 {
    let width = |address| match format.begin(root, address, &Access::default(), regime) {
        Ok(Start::Table { table: found, input, .. }) if found == table => {
            64 - input.leading_zeros()
        }
        _ => 0,
    };
    (0..64).map(|bits| width(u64::MAX >> bits)).max().unwrap_or(0)
}

struct Auditor<'a, F, M, G, R> {
    format: &'a F,
    memory: &'a mut M,
    regime: &'a Regime,
    policy: &'a Policy,
    ground: &'a mut G,
    report: &'a mut R,
    summary: Summary,
    top: u8,
    /// Index bits of the root.
    root_bits: u32,
}

/// Where an entry is.
#[derive(Clone, Copy)]
struct Place {
    input: u64,
    level: u8,
    entry: u64,
    entry_address: u64,
}

impl<F: Format, M: Memory, G: Ground, R: FnMut(&Finding)> Auditor<'_, F, M, G, R> {
    fn found(&mut self, rule: Rule, place: Place, reserved: Option<Reserved>) {
        let Place { input, level, entry, entry_address } = place;
        self.summary.findings += 1;
        (self.report)(&Finding { rule, input, level, entry, entry_address, reserved });
    }

    /// Depth is bounded by the levels.
    fn table(&mut self, table: u64, level: u8, input: u64, path: Path) {
        if self.summary.tables >= self.policy.most_tables {
            self.summary.complete = false;
            return;
        }
        self.summary.tables += 1;
        if self.summary.tables == self.policy.table_budget.saturating_add(1) {
            // The first table too many.
            self.found(
                Rule::TableBudget,
                Place { input, level, entry: 0, entry_address: table },
                None,
            );
        }
        let bits = if level == self.top { self.root_bits } else { self.format.index_bits(level) };
        let size = self.format.layout().size.bytes();
        let whole = Place { input, level, entry: 0, entry_address: table };
        if self.ground.owner(table, size << bits) != Owner::Tables {
            self.found(Rule::TableNotOwned, whole, None);
        }
        for index in 0..1u64 << bits {
            let Some(entry_address) = table.checked_add(index * size) else { return };
            let access = Access::default();
            let read =
                self.memory.read(M::Address::new(entry_address), self.format.layout(), &access);
            let Ok(value) = read else {
                // One finding a table, not one an entry.
                self.found(Rule::Unreadable, Place { entry_address, ..whole }, None);
                self.summary.complete = false;
                return;
            };
            let input = input | index << self.format.shift(level);
            let place = Place { input, level, entry: value.value, entry_address };
            self.entry(place, path);
        }
    }

    fn entry(&mut self, place: Place, path: Path) {
        let Place { input, level, entry, .. } = place;
        match self.format.decode(entry, level) {
            Decoded::Empty if Some(entry) == self.policy.frozen => {
                self.found(Rule::LeftFrozen, place, None);
            }
            Decoded::Empty if entry != 0 => {
                if let Some(base) = self.ground.occupied(entry, level) {
                    self.owned(place, base, 1 << self.format.shift(level));
                }
            }
            Decoded::Empty | Decoded::Restart => {}
            Decoded::Reserved(reserved) => self.found(Rule::Reserved, place, Some(reserved)),
            Decoded::Table { next } if level > 0 => {
                if !self.ground.first_visit(next, level - 1) {
                    self.found(Rule::TableLinkedTwice, place, None);
                    return;
                }
                let mut path = path;
                self.format.join(&mut path, entry, level);
                self.table(next, level - 1, input, path);
            }
            Decoded::Table { .. } => {}
            Decoded::Leaf { base, shift } => self.leaf(place, base, shift, path),
        }
    }

    /// The rules of who owns what an entry has.
    fn owned(&mut self, place: Place, base: u64, bytes: u64) {
        match self.ground.owner(base, bytes) {
            Owner::Guest | Owner::Shared => {}
            Owner::Tables => self.found(Rule::TableMapped, place, None),
            Owner::Nobody => self.found(Rule::FreedFrame, place, None),
            Owner::Other | Owner::Hypervisor => self.found(Rule::ForeignFrame, place, None),
        }
    }

    fn leaf(&mut self, place: Place, base: u64, shift: u8, path: Path) {
        let Place { input, level, entry, .. } = place;
        // Each entry of a contiguous group maps its own part.
        let own = self.format.shift(level);
        let bytes = 1u64 << own;
        let base = base | input & ((1u64 << shift) - 1) & !(bytes - 1);
        self.summary.leaves += 1;
        self.summary.bytes = self.summary.bytes.saturating_add(bytes);
        self.owned(place, base, bytes);
        let found = Found { entry, level, base, shift, path, input, kind: Kind::Read };
        let memory_type = self.format.memory_type(&found, self.regime);
        if self.ground.other_type(base, bytes, memory_type).is_some() {
            self.found(Rule::MemoryTypeAlias, place, None);
        }
        // What any privilege may do, once software has set the accessed bit and, if asked, the dirty bit.
        let may = |kind, dirty| {
            let leaf = self.format.settled(entry, level, dirty);
            asked(kind).iter().any(|access| {
                let found = Found { kind, entry: leaf, ..found };
                self.format.check(&found, access, self.regime).is_ok()
            })
        };
        let granted = Permissions {
            read: may(Kind::Read, true),
            write: may(Kind::Write, true),
            execute: may(Kind::Execute, true),
        };
        // The fault by which software sets the dirty bit is where a write is logged.
        let unlogged = may(Kind::Write, false);
        let large = self.format.span(entry, level) > self.format.shift(0);
        let Permissions { write, execute, .. } = granted;
        if granted.and(self.ground.most(input, base, bytes)) != granted {
            self.found(Rule::Widened, place, None);
        }
        if !self.ground.first_mapping(base, bytes) {
            self.found(Rule::MappedTwice, place, None);
        }
        if self.policy.logging && unlogged && large {
            self.found(Rule::LargeWritableWhileLogging, place, None);
        }
        if self.policy.write_xor_execute && write && execute && self.ground.both_below(base, bytes)
        {
            self.found(Rule::WritableExecutable, place, None);
        }
        if self.policy.no_executable_large && execute && large {
            self.found(Rule::ExecutableLarge, place, None);
        }
    }
}
