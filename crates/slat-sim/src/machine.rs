//! One machine under one scheme: cores with TLBs and walk caches, a recorded guest on them, and the
//! hypervisor's part.

mod counts;
mod digest;
mod events;
mod hits;
pub mod pcid;
mod walks;

use std::collections::BTreeSet;

use slat::format::Format;
use slat::format::flat::Flat;
use slat::{Gpa, Gva, Kind, Regime, Spa, Stage};
use slat_mmu::shadow::{Discipline, Pager};
use slat_mmu::tlb::{Entry, Served, Space, Tag, Tlb};
use slat_mmu::walker::Caches;
use slat_trace::{Access, At, Batch};

pub use self::counts::{CAUSES, Cause, Counts, GRID};
pub use self::digest::Digest;
pub(crate) use self::events::tlbi_range;

use self::counts::Grid;
use self::digest::{LOOKUPS, Lookup, PAGES};
use self::pcid::Pcids;
use crate::guest::{Guest, Registers};
use crate::memory::{MemoryError, Physical};
use crate::preset::Processor;

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
    /// The guest's address spaces have PCIDs, unless its tables are shadowed ([`pcid`]).
    pub pcid: bool,
    /// Which virtual machine it is, of those that share the cores: below 8.
    pub vm: u8,
}

/// A stretch of a recording: accesses, and the events that come before them by their index.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The accesses.
    pub accesses: &'a [Access],
    /// The events; `before` counts from [`Part::first`].
    pub events: &'a [At],
    /// What `before` of the first access is.
    pub first: u32,
    /// Instructions in it.
    pub instructions: u64,
    /// What the whole batch comes to: with it a part runs faster, and with the same result.
    pub digest: Option<&'a Digest>,
}

impl<'a> Part<'a> {
    /// A whole batch.
    pub fn of(batch: &'a Batch) -> Part<'a> {
        Part {
            accesses: &batch.accesses,
            events: &batch.events,
            first: 0,
            instructions: batch.instructions,
            digest: None,
        }
    }

    /// The accesses `start..end` of a whole batch with the events that belong to them; what follows
    /// the last access belongs to the slice that ends there. Instructions are spread evenly.
    #[must_use]
    pub fn slice(self, start: usize, end: usize) -> Part<'a> {
        let all = self.accesses.len();
        let before = |at: usize| self.events.partition_point(|event| (event.before as usize) < at);
        let from = if start == 0 { 0 } else { before(start) };
        let to = if end == all { self.events.len() } else { before(end) };
        let share = |at: usize| self.instructions * at as u64 / all.max(1) as u64;
        Part {
            accesses: &self.accesses[start..end],
            events: &self.events[from..to],
            first: start as u32,
            instructions: share(end) - share(start),
            digest: self.digest,
        }
    }
}

/// The TLBs and caches of a machine, which the next virtual machine on the same cores takes over.
pub struct Shared<'a> {
    cores: Vec<(&'a mut Tlb, &'a mut Caches)>,
    memory: &'a mut Physical,
}

impl Shared<'_> {
    /// Exchanges all with another machine's.
    pub fn exchange(mut self, mut other: Shared<'_>) {
        for ((tlb, caches), (others, other_caches)) in self.cores.iter_mut().zip(&mut other.cores) {
            std::mem::swap(*tlb, *others);
            std::mem::swap(*caches, *other_caches);
        }
        self.memory.exchange_caches(other.memory);
    }
}

/// Where the second stage comes from.
pub enum Hypervisor<F2: Format> {
    /// There is none.
    Native,
    /// The processor's second stage.
    Nested {
        /// The tables.
        stage2: Stage<F2, Gpa, Spa>,
        /// What the processor holds of the second stage alone survives an exit without tags. With EPT it
        /// is found by the tables' own address, and entries and exits without VPIDs drop linear and
        /// combined mappings only (Intel SDM 3C 30.4.3.1); elsewhere a flush drops all.
        stays: bool,
    },
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
    regime: Regime,
    grid: Grid,
    counts: Counts,
    /// Host pages that the guest has touched, by number.
    touched: Vec<u64>,
    /// The address spaces' PCIDs, in the what-if.
    pcids: Option<Pcids>,
    /// A second stage that is off.
    off: Stage<Flat, Gpa, Spa>,
    /// Where the pages of a stretch lie, while it is run.
    places: [u64; PAGES],
    /// Those of its lookups that are run one by one.
    some: Box<[Lookup; LOOKUPS]>,
}

struct ShadowState {
    discipline: Discipline,
    pager: Option<Pager>,
    /// The most tables that the hypervisor keeps.
    limit: usize,
    /// Roots that some vCPU has loaded.
    loaded: BTreeSet<u64>,
    /// Those of them whose tables were not looked at yet, with the vCPU.
    unfilled: Vec<(u8, u64)>,
}

/// Address-space tags that each virtual machine has.
const SPACES: u16 = 8_000;

fn tag(number: u16) -> Tag {
    Tag::new(number).unwrap_or_else(|| unreachable!("tags are not 0"))
}

/// The tag of a virtual machine's second-stage entries, and of its global ones.
fn vm_tag(vm: u8) -> Tag {
    tag(u16::from(vm) * SPACES + SPACES)
}

/// Whether a tag is some virtual machine's, of its second stage and its global pages, and no address
/// space's.
fn is_of_vm(tag: u16) -> bool {
    tag.is_multiple_of(SPACES)
}

/// Whether a tag is this virtual machine's, or one of its address spaces'.
fn is_of(vm: u8, tag: u16) -> bool {
    tag.wrapping_sub(1) / SPACES == u16::from(vm)
}

/// The tag of an address space: 0 has one too.
fn space_of(vm: u8, address_space: u16) -> Space {
    let own = u16::from(vm) * SPACES + 1 + address_space % (SPACES - 1);
    Space { own: tag(own), global: vm_tag(vm) }
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
                space: space_of(start.vm, 0),
            })
        };
        let shadow = match &hypervisor {
            Hypervisor::Shadow(discipline) => Some(ShadowState {
                discipline: *discipline,
                pager: None,
                limit: (memory.guest_pages() / 50) as usize,
                loaded: BTreeSet::new(),
                unfilled: Vec::new(),
            }),
            _ => None,
        };
        let mut regime = Regime::default();
        regime.x86.alignment_check = true;
        // Kernels reach user pages without saying so in a recording (SMAP on x86 is left out likewise).
        regime.riscv.sum = true;
        let pcids = (start.pcid && shadow.is_none()).then(|| Pcids::new(cores));
        Ok(Machine {
            cores: (0..cores).map(|_| core()).collect::<Result<_, _>>()?,
            memory,
            hypervisor,
            shadow,
            start,
            regime,
            grid: Grid::default(),
            counts: Counts::default(),
            touched: Vec::new(),
            pcids,
            off: Stage::new(Flat::new("off", 2, 64), ()),
            places: [0; PAGES],
            some: Box::new([Lookup::default(); LOOKUPS]),
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

    /// Counts from zero on; what TLBs, caches and tables hold stays.
    pub fn forget(&mut self) {
        self.counts = Counts::default();
        self.grid = Grid::default();
        self.memory.forget();
    }

    /// Walks so far.
    pub fn walks(&self) -> u64 {
        self.counts.walks
    }

    /// The cores are given to another virtual machine: an exit of each, unless this one `ended` before.
    /// Without virtualization it is a process switch, which drops what a load of CR3 drops.
    pub fn switch_out(&mut self, ended: bool) {
        let cores = self.cores.len() as u8;
        let switches = if ended { 0 } else { u64::from(cores) };
        if let Hypervisor::Native = self.hypervisor {
            self.counts.process_switches += switches;
            for core in &mut self.cores {
                if self.pcids.is_none() && !G::keeps_spaces(&core.registers) {
                    core.tlb.retain(|held| is_of_vm(held.tag));
                    core.caches.retain_stage1(None, is_of_vm);
                }
            }
        } else {
            self.counts.exits[Cause::Switch as usize] += switches;
            (0..cores).for_each(|vcpu| self.drop_untagged(vcpu));
        }
    }

    /// What another virtual machine on the same cores takes over.
    pub fn shared(&mut self) -> Shared<'_> {
        Shared {
            cores: self.cores.iter_mut().map(|core| (&mut core.tlb, &mut core.caches)).collect(),
            memory: &mut self.memory,
        }
    }

    /// Runs the next part of the recording.
    ///
    /// # Errors
    /// Where the guest has more memory than is simulated.
    pub fn run(&mut self, part: &Part<'_>) -> Result<(), MemoryError> {
        self.counts.instructions += part.instructions;
        self.counts.accesses += part.accesses.len() as u64;
        let mut events = part.events.iter().peekable();
        let (mut here, mut stretch) = (0, 0);
        loop {
            let due = part.first as usize + here;
            while let Some(at) = events.next_if(|at| at.before as usize <= due) {
                self.event(at)?;
            }
            if here == part.accesses.len() {
                // What is left comes after the last access.
                return events.try_for_each(|at| self.event(at));
            }
            // What is told of a root's tables comes behind its load.
            if self.shadow.as_ref().is_some_and(|shadow| !shadow.unfilled.is_empty()) {
                self.fill_shadow();
            }
            let next = events.peek().map_or(usize::MAX, |at| at.before as usize);
            let end = next.saturating_sub(part.first as usize).min(part.accesses.len());
            while here < end {
                here = self.run_some(part, here, end, &mut stretch);
            }
        }
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
        self.memory.on(access.vcpu);
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
            Hypervisor::Nested { stage2, .. } => {
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
}
