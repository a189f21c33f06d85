//! One machine under one scheme: cores with TLBs and walk caches, a recorded guest on them, and the
//! hypervisor's part.

use std::cell::Cell;

use slat::format::flat::Flat;
use slat::format::{Decoded, Format};
use slat::{Gpa, Gva, Kind, Observer, Privilege, Purpose, Regime, Spa, Stage, Step, Updates};
use slat_mmu::shadow::{Discipline, Exit, Filled, Pager};
use slat_mmu::tlb::{Entry, Served, Space, Tag, Tlb};
use slat_mmu::walker::{Caches, Context, Globals};
use slat_trace::{Access, At, Batch, Event, Invalidation, Root};

use crate::guest::{Guest, Registers};
use crate::memory::{GUEST_BASE, HOST_BASE, Physical, TooMuchMemory};
use crate::native::Shifted;
use crate::preset::Processor;

/// Rows and columns of the reference grid: levels 0 to 4, and one more for the final address (rows)
/// or the guest's own entry (columns).
pub const GRID: usize = 6;

/// Counts of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses of the recording, before any split at page borders.
    pub accesses: u64,
    /// Instructions, where the recording knows.
    pub instructions: u64,
    /// Lookups: accesses, one more for each that crosses a page.
    pub lookups: u64,
    /// Lookups that the second-level TLB served.
    pub second_hits: u64,
    /// Lookups that walked.
    pub walks: u64,
    /// Table entries read by guest level (row; 5 is the final address) and nested level (column; 5
    /// is the guest's own entry).
    pub grid: [[u64; GRID]; GRID],
    /// Exits by [`Cause`].
    pub exits: [u64; CAUSES],
    /// Walks whose entry is smaller than the guest's page.
    pub splintered: u64,
    /// Accesses whose walk ended in a fault that the recording does not explain.
    pub unexplained: u64,
}

/// How many causes of exits there are.
pub const CAUSES: usize = 8;

/// Why a guest exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A second-stage violation: the first touch of a host page.
    Violation,
    /// A store to a shadowed table.
    TableWrite,
    /// A CR3 load under shadow paging.
    Cr3,
    /// INVLPG under shadow paging.
    Invlpg,
    /// A page fault of the guest's own, intercepted.
    TrueFault,
    /// A fault that only filled the shadow.
    HiddenFault,
    /// A fault that only set a dirty bit.
    Dirty,
    /// A store that the hypervisor carried out, to a page that is read-only but for `CR0.WP`.
    Emulation,
}

impl Cause {
    /// All, in order.
    pub const ALL: [Cause; CAUSES] = [
        Cause::Violation,
        Cause::TableWrite,
        Cause::Cr3,
        Cause::Invlpg,
        Cause::TrueFault,
        Cause::HiddenFault,
        Cause::Dirty,
        Cause::Emulation,
    ];

    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Violation => "violation",
            Cause::TableWrite => "table-write",
            Cause::Cr3 => "cr3",
            Cause::Invlpg => "invlpg",
            Cause::TrueFault => "true-fault",
            Cause::HiddenFault => "hidden-fault",
            Cause::Dirty => "dirty",
            Cause::Emulation => "emulation",
        }
    }
}

impl From<Exit> for Cause {
    fn from(exit: Exit) -> Cause {
        match exit {
            Exit::TableWrite => Cause::TableWrite,
            Exit::Cr3 => Cause::Cr3,
            Exit::Invlpg => Cause::Invlpg,
            Exit::TrueFault => Cause::TrueFault,
            Exit::HiddenFault => Cause::HiddenFault,
            Exit::Dirty => Cause::Dirty,
            Exit::Emulation => Cause::Emulation,
        }
    }
}

/// Counts references by cell of the grid.
#[derive(Default)]
struct Grid([[Cell<u64>; GRID]; GRID]);

impl Observer for Grid {
    const WATCHES: bool = false;

    #[inline]
    fn step(&self, step: &Step) {
        let (row, column) = if step.stage == 1 {
            (usize::from(step.level), GRID - 1)
        } else {
            let row = match step.access.purpose {
                Purpose::Table { level } | Purpose::Update { level } => usize::from(level),
                Purpose::Final | Purpose::PdpteLoad => GRID - 1,
            };
            (row, usize::from(step.level))
        };
        debug_assert!(!matches!(step.decoded, Decoded::Restart));
        let cell = &self.0[row.min(GRID - 1)][column.min(GRID - 1)];
        cell.set(cell.get() + 1);
    }
}

struct Core<G: Guest> {
    tlb: Tlb,
    caches: Caches,
    registers: Registers,
    stage1: Option<Stage<G::Format, Gva, Gpa>>,
    space: Space,
}

/// What does not depend on the scheme.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// TLB entries are tagged by virtual machine, so that they survive exits.
    pub tagged: bool,
    /// The hypervisor has neither backed a page nor filled a shadow table when the recording begins.
    pub cold: bool,
}

/// Where the second stage comes from.
pub enum Hypervisor<F2: Format> {
    /// There is none.
    Native,
    /// The processor's second stage.
    Nested(Stage<F2, Gpa, Spa>),
    /// Shadow tables.
    Shadow(Discipline),
}

/// A machine that runs a recorded guest under one scheme.
pub struct Machine<G: Guest, F2: Format> {
    cores: Vec<Core<G>>,
    memory: Physical,
    hypervisor: Hypervisor<F2>,
    shadow: Option<ShadowState>,
    start: Start,
    /// Whether an access has run.
    running: bool,
    regime: Regime,
    grid: Grid,
    counts: Counts,
    /// Host pages that the guest has touched, by number.
    touched: Vec<u64>,
    /// What each address space's tag is: index by address-space number.
    off: Stage<Flat, Gpa, Spa>,
}

struct ShadowState {
    discipline: Discipline,
    pager: Option<Pager>,
}

/// The one virtual machine's tag.
const VM: u16 = 1;
/// Global entries' tag.
const GLOBAL: u16 = u16::MAX;

fn tag(number: u16) -> Tag {
    Tag::new(number).unwrap_or_else(|| unreachable!("tags are not 0"))
}

/// The tag of an address space: 0 has one too.
fn space_of(address_space: u16) -> Space {
    Space { own: tag(address_space.clamp(0, GLOBAL - 2) + 1), global: tag(GLOBAL) }
}

impl<G: Guest, F2: Format> Machine<G, F2> {
    /// A machine with so many cores.
    ///
    /// # Errors
    /// Where the preset's arrays cannot have their geometry.
    pub fn new(
        processor: &Processor,
        cores: u8,
        memory: Physical,
        hypervisor: Hypervisor<F2>,
        start: Start,
    ) -> Result<Self, slat_mmu::array::BadGeometry> {
        let core = || {
            Ok(Core {
                tlb: Tlb::new(&processor.tlb_config())?,
                caches: Caches::new(&processor.walker_config())?,
                registers: Registers::default(),
                stage1: None,
                space: space_of(0),
            })
        };
        let shadow = match &hypervisor {
            Hypervisor::Shadow(discipline) => {
                Some(ShadowState { discipline: *discipline, pager: None })
            }
            _ => None,
        };
        let mut regime = Regime::default();
        regime.x86.alignment_check = true;
        Ok(Machine {
            cores: (0..cores).map(|_| core()).collect::<Result<_, _>>()?,
            memory,
            hypervisor,
            shadow,
            start,
            running: false,
            regime,
            grid: Grid::default(),
            counts: Counts::default(),
            touched: Vec::new(),
            off: Stage::new(Flat::new("off", 2, 64), ()),
        })
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts.clone();
        for (row, cells) in counts.grid.iter_mut().zip(&self.grid.0) {
            for (cell, counted) in row.iter_mut().zip(cells) {
                *cell = counted.get();
            }
        }
        counts
    }

    /// The memory, with what its reads cost.
    pub fn memory(&self) -> &Physical {
        &self.memory
    }

    /// The most shadow tables that were live at once.
    pub fn most_shadow_tables(&self) -> usize {
        self.shadow.as_ref().and_then(|state| state.pager.as_ref()).map_or(0, Pager::most_tables)
    }

    /// Runs the next part of the recording.
    ///
    /// # Errors
    /// Where the guest has more memory than is simulated.
    pub fn run(&mut self, batch: &Batch) -> Result<(), TooMuchMemory> {
        self.counts.instructions += batch.instructions;
        self.counts.accesses += batch.accesses.len() as u64;
        for run in batch.runs() {
            for at in run.events {
                self.event(at)?;
            }
            if !self.running && !run.accesses.is_empty() {
                self.running = true;
                if !self.start.cold {
                    self.fill_shadow();
                }
            }
            for access in run.accesses {
                self.access(access);
            }
        }
        Ok(())
    }

    #[inline]
    fn access(&mut self, access: &Access) {
        let kind = match access.kind() {
            slat_trace::Kind::Load => Kind::Read,
            slat_trace::Kind::Store => Kind::Write,
            slat_trace::Kind::Fetch => Kind::Execute,
        };
        self.lookup(access, access.va, kind);
        if access.crosses() {
            self.lookup(access, (access.va | 0xfff).wrapping_add(1), kind);
        }
    }

    #[inline(always)]
    fn lookup(&mut self, access: &Access, va: u64, kind: Kind) {
        self.counts.lookups += 1;
        let Some(core) = self.cores.get_mut(usize::from(access.vcpu)) else { return };
        let (served, entry) = core.tlb.find(va, core.space, kind, access.user());
        let entry = match served {
            Served::First => entry,
            Served::Second => {
                self.counts.second_hits += 1;
                entry
            }
            Served::Miss => match self.miss(access, va, kind) {
                Some(entry) => entry,
                None => return,
            },
        };
        self.memory.data(entry.base | va & ((1 << entry.shift) - 1));
    }

    #[inline(never)]
    fn miss(&mut self, access: &Access, va: u64, kind: Kind) -> Option<Entry> {
        self.counts.walks += 1;
        let found = match &self.hypervisor {
            Hypervisor::Native => self.walk_off(access, va, kind),
            Hypervisor::Nested(stage2) => {
                let stage2 = *stage2;
                self.walk_nested(&stage2, access, va, kind)
            }
            Hypervisor::Shadow(_) => self.walk_shadow(access, va, kind),
        };
        if found.is_none() {
            self.counts.unexplained += 1;
        }
        found
    }

    fn walk_off(&mut self, access: &Access, va: u64, kind: Kind) -> Option<Entry> {
        let core = self.cores.get_mut(usize::from(access.vcpu))?;
        let stage1 = core.stage1.as_ref()?;
        // Natively the guest's memory is the machine's, at its place in this simulation.
        let stage2 = Stage::<_, Gpa, Spa>::new(Shifted, ());
        let context = Context {
            stage1,
            stage2: &stage2,
            regime: &self.regime,
            space: core.space,
            vm: tag(VM),
            globals: G::GLOBALS,
            dirty_tracked: true,
        };
        let gva = Gva::new(va);
        let walked = core
            .caches
            .walk(&context, &mut self.memory, gva, kind, access.user(), &self.grid)
            .ok()?;
        core.tlb.insert(va, core.space, kind, walked.entry);
        Some(walked.entry)
    }

    fn walk_nested(
        &mut self,
        stage2: &Stage<F2, Gpa, Spa>,
        access: &Access,
        va: u64,
        kind: Kind,
    ) -> Option<Entry> {
        let core = self.cores.get_mut(usize::from(access.vcpu))?;
        let context = Context {
            stage1: core.stage1.as_ref()?,
            stage2,
            regime: &self.regime,
            space: core.space,
            vm: tag(VM),
            globals: G::GLOBALS,
            dirty_tracked: true,
        };
        let gva = Gva::new(va);
        let walked = core
            .caches
            .walk(&context, &mut self.memory, gva, kind, access.user(), &self.grid)
            .ok()?;
        if walked.entry.shift < walked.guest_shift {
            self.counts.splintered += 1;
        }
        core.tlb.insert(va, core.space, kind, walked.entry);
        self.touch_host_page(walked.entry.base - GUEST_BASE);
        Some(walked.entry)
    }

    /// A host page's first touch is a violation: the hypervisor backs it then.
    fn touch_host_page(&mut self, gpa: u64) {
        if !self.start.cold {
            return;
        }
        let page = gpa >> self.memory.backed;
        let (word, bit) = ((page >> 6) as usize, page & 63);
        if self.touched.len() <= word {
            self.touched.resize(word + 1, 0);
        }
        if self.touched[word] >> bit & 1 == 0 {
            self.touched[word] |= 1 << bit;
            self.exit(Cause::Violation);
        }
    }

    fn exit(&mut self, cause: Cause) {
        self.counts.exits[cause as usize] += 1;
        if !self.start.tagged {
            // Without VPID or ASID, entries do not survive a trip to the hypervisor.
            for core in &mut self.cores {
                core.tlb.retain(|_| false);
                core.caches.retain_stage1(|_| false);
                core.caches.retain_stage2(|_| false);
            }
        }
    }

    fn walk_shadow(&mut self, access: &Access, va: u64, kind: Kind) -> Option<Entry> {
        // A walk, and one more after each fill.
        for _ in 0..3 {
            let core = self.cores.get_mut(usize::from(access.vcpu))?;
            let pager = self.shadow.as_mut()?.pager.as_mut()?;
            let cr3 = core.registers.roots[Root::Cr3 as usize];
            let root = pager.root(&mut self.memory.host, cr3);
            let guest = core.stage1.as_ref()?;
            let stage1 = Stage::<G::Format, Gva, Gpa>::new(guest.format, G::shadow_root(root)?)
                .with_updates(Updates::OnSuccess);
            let context = Context {
                stage1: &stage1,
                stage2: &self.off,
                regime: &self.regime,
                space: core.space,
                vm: tag(VM),
                globals: Globals::None,
                dirty_tracked: true,
            };
            let gva = Gva::new(va);
            let walked =
                core.caches.walk(&context, &mut self.memory, gva, kind, access.user(), &self.grid);
            if let Ok(walked) = walked {
                core.tlb.insert(va, core.space, kind, walked.entry);
                return Some(walked.entry);
            }
            let privilege = if access.user() { Privilege::User } else { Privilege::Supervisor };
            let asked = slat::Access::new(kind, privilege);
            let (host, mut half) = self.memory.split();
            let filled = pager.fill(host, &mut half, guest, &self.regime, va, &asked);
            // What the walk cache holds of this path may be of before.
            core.caches.retain_stage1(|_| false);
            match filled {
                Filled::Hidden(exit) => self.exit(exit.into()),
                Filled::True => return None,
            }
        }
        None
    }

    /// A recording is a window on a guest that has been running: what its tables say was accessed
    /// before has long been filled into the shadow.
    fn fill_shadow(&mut self) {
        for core in &self.cores {
            let Some(pager) = self.shadow.as_mut().and_then(|state| state.pager.as_mut()) else {
                return;
            };
            let Some(stage1) = &core.stage1 else { continue };
            let cr3 = core.registers.roots[Root::Cr3 as usize];
            let (host, mut guest) = self.memory.split();
            pager.fill_accessed(host, &mut guest, stage1, &self.regime, cr3);
        }
    }

    fn event(&mut self, at: &At) -> Result<(), TooMuchMemory> {
        match at.event {
            Event::TablePage { gpa, fresh, .. } => {
                self.memory.table_page(gpa, fresh)?;
            }
            Event::TableEntry { gpa, value } => self.memory.store(gpa, value)?,
            Event::TableStore { gpa, value } => {
                self.memory.store(gpa, value)?;
                self.shadow_store(gpa);
            }
            Event::TableRelease { gpa } => {
                if let Some(pager) = self.pager() {
                    let (pager, host) = pager;
                    pager.release(host, gpa);
                    self.drop_translations(|_| false);
                }
            }
            Event::Exception(exception) if exception.vector == 14 && self.shadow.is_some() => {
                self.exit(Cause::TrueFault);
            }
            Event::Invalidate(invalidation) => self.invalidate(at.vcpu, invalidation),
            _ => self.register(at),
        }
        Ok(())
    }

    fn pager(&mut self) -> Option<(&mut Pager, &mut Vec<slat_mmu::shadow::Table>)> {
        let pager = self.shadow.as_mut()?.pager.as_mut()?;
        Some((pager, &mut self.memory.host))
    }

    fn shadow_store(&mut self, gpa: u64) {
        let Some((pager, host)) = self.pager() else { return };
        let stored = pager.store(host, gpa);
        if stored.exits {
            self.exit(Cause::TableWrite);
        }
        if stored.dropped {
            self.drop_translations(|_| false);
        }
    }

    /// Drops first-stage translations of every core whose tag's number `keep` does not keep.
    fn drop_translations(&mut self, keep: impl Fn(u16) -> bool + Copy) {
        for core in &mut self.cores {
            core.tlb.retain(|held| keep(held.tag));
            core.caches.retain_stage1(keep);
        }
    }

    /// Drops first-stage translations of one core.
    fn drop_core(&mut self, vcpu: u8) {
        if let Some(core) = self.cores.get_mut(usize::from(vcpu)) {
            core.tlb.retain(|_| false);
            core.caches.retain_stage1(|_| false);
        }
    }

    /// Makes shadow tables true to the guest's; says whether there are any.
    fn synchronize(&mut self) -> bool {
        let Some(pager) = self.shadow.as_mut().and_then(|state| state.pager.as_mut()) else {
            return false;
        };
        let (host, guest) = self.memory.split();
        pager.synchronize(host, &guest);
        true
    }

    fn register(&mut self, at: &At) {
        let Some(core) = self.cores.get_mut(usize::from(at.vcpu)) else { return };
        let before = core.registers;
        if !core.registers.apply(&at.event) {
            return;
        }
        core.stage1 = G::stage(&core.registers);
        let address_space = G::address_space(&core.registers);
        core.space = space_of(address_space);
        match at.event {
            // MOV to CR3 without PCIDs drops all but global entries (Intel SDM 3A 5.10.4.1).
            Event::Root { root: Root::Cr3, value } => {
                let own = core.space.own.number();
                if self.shadow.is_none() {
                    core.tlb.retain(|held| held.tag != own);
                    core.caches.retain_stage1(|tag| tag != own);
                } else {
                    core.tlb.retain(|_| false);
                    core.caches.retain_stage1(|_| false);
                    let first = before.roots[Root::Cr3 as usize] == 0;
                    self.shadow_cr3(value, first);
                }
            }
            // Changes of CR4.PGE and the like drop everything of the vCPU.
            Event::Control { .. } if core.registers.controls != before.controls => {
                self.drop_core(at.vcpu);
                self.synchronize();
            }
            _ => {}
        }
    }

    fn shadow_cr3(&mut self, cr3: u64, first: bool) {
        let root_level = match self.cores.iter().find_map(|core| core.stage1.as_ref()) {
            Some(stage) => G::root_level(&stage.format),
            None => return,
        };
        let Some(state) = &mut self.shadow else { return };
        let discipline = state.discipline;
        let pager =
            state.pager.get_or_insert_with(|| Pager::new(discipline, root_level, HOST_BASE));
        let (host, guest) = self.memory.split();
        pager.synchronize(host, &guest);
        pager.root(host, cr3);
        if !first {
            self.exit(Cause::Cr3);
        }
    }

    fn invalidate(&mut self, vcpu: u8, invalidation: Invalidation) {
        match invalidation {
            Invalidation::Invlpg { va } => {
                if let Some(core) = self.cores.get_mut(usize::from(vcpu)) {
                    core.tlb.retain(|held| !held.covers(va));
                    // INVLPG drops all paging-structure-cache entries of the PCID (SDM 3A 5.10.4.1).
                    core.caches.retain_stage1(|_| false);
                    let cr3 = core.registers.roots[Root::Cr3 as usize];
                    if let Some(pager) = self.shadow.as_mut().and_then(|state| state.pager.as_mut())
                    {
                        let root = pager.root(&mut self.memory.host, cr3);
                        let (host, guest) = self.memory.split();
                        pager.invalidate(host, &guest, root, va);
                        self.exit(Cause::Invlpg);
                    }
                }
            }
            // Its kinds differ in what they keep; without PCIDs all of this vCPU's goes.
            Invalidation::Invpcid { .. } => {
                self.drop_core(vcpu);
                if self.synchronize() {
                    self.exit(Cause::Invlpg);
                }
            }
            Invalidation::Tlbi { operation, operand } => self.tlbi(operation, operand),
        }
    }

    /// TLBI of EL1 (Arm ARM D8.17): by address, by range, by ASID, or all; every core, since the
    /// broadcast forms are what kernels use and the local ones are equal on one core.
    fn tlbi(&mut self, operation: u16, operand: u64) {
        let (crm, op2) = (operation >> 3 & 0xf, operation & 7);
        let own = space_of((operand >> 48) as u16).own.number();
        let of_asid = |held: u16| held == own || held == GLOBAL;
        // CRm 2, 5 and 6 are the forms by range (FEAT_TLBIRANGE), inner shareable, outer shareable
        // and local; the others name one page.
        let pages = match crm {
            2 | 5 | 6 => range_of(operand),
            _ => Range::page((operand & ((1 << 44) - 1)) << 12),
        };
        match op2 {
            // VMALLE1
            0 => self.drop_translations(|_| false),
            // VAE1, VALE1: of one ASID, and global ones.
            1 | 5 => self.drop_pages(pages, of_asid, op2 == 1),
            // ASIDE1
            2 => self.drop_translations(|held| held != own),
            // VAAE1, VAALE1: of every ASID.
            3 | 7 => self.drop_pages(pages, |_| true, op2 == 3),
            _ => self.drop_translations(|_| false),
        }
    }

    fn drop_pages(&mut self, pages: Range, of: impl Fn(u16) -> bool + Copy, tables: bool) {
        for core in &mut self.cores {
            core.tlb.retain(|held| !(of(held.tag) && pages.meets(held.va, held.entry.shift)));
            if tables {
                core.caches.retain_stage1(|tag| !of(tag));
            }
        }
    }
}

/// Input addresses that a TLBI names: `bytes` from `start` on, compared without the bits that sign
/// extension repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    start: u64,
    bytes: u64,
}

impl Range {
    /// Bits of an input address that are compared: 52, as the largest that there are.
    const BITS: u64 = (1 << 52) - 1;

    fn page(va: u64) -> Range {
        Range { start: va & Range::BITS, bytes: 4096 }
    }

    fn meets(self, va: u64, shift: u8) -> bool {
        let page = va & Range::BITS >> shift << shift;
        page < self.start.saturating_add(self.bytes) && self.start < page + (1 << shift)
    }
}

/// The operand of TLBI by range: BaseADDR in units of the granule TG, and (NUM + 1) x 2^(5 SCALE + 1)
/// granules from there (Arm ARM C5.5, TLBI RVAE1).
fn range_of(operand: u64) -> Range {
    let granule = match operand >> 46 & 3 {
        2 => 14,
        3 => 16,
        _ => 12,
    };
    let base = operand & ((1 << 37) - 1);
    // Sign-extended from 37 bits of page number.
    let base = ((base << 27) as i64 >> 27) as u64;
    let pages = ((operand >> 39 & 0x1f) + 1) << (5 * (operand >> 44 & 3) + 1);
    Range { start: base << granule & Range::BITS, bytes: pages << granule }
}
