//! A guest, its hypervisor, and processors with TLBs that forget only what they are told to.

use std::collections::{BTreeMap, BTreeSet};

use slat::format::any::AnyFormat;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::{Pae, Root};
use slat::{
    Access, EntryLayout, Flavor, Gpa, Gva, Kind, Memory, Outside, Privilege, Reached, Regime, Spa,
    Stage, Updates, Value, walk,
};
use slat_mmu::shadow::{Discipline, Exit, Filled, Flush, GuestTables, Kept, Pager, Place, Table};

pub(crate) const P: u64 = 1;
pub(crate) const RW: u64 = 1 << 1;
pub(crate) const US: u64 = 1 << 2;
pub(crate) const A: u64 = 1 << 5;
pub(crate) const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;
/// Protection key 1.
const KEY: u64 = 1 << 59;
/// Where shadow tables lie.
const HOST: u64 = 1 << 44;

/// How the guest pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Pae,
    Four,
    Five,
}

impl Mode {
    /// Level of the guest's root tables.
    fn top(self) -> u8 {
        match self {
            Mode::Pae => 2,
            Mode::Four => 3,
            Mode::Five => 4,
        }
    }
}

#[derive(Clone, PartialEq)]
pub(crate) struct Guest {
    pub(crate) entries: BTreeMap<u64, u64>,
    /// log2 of the host's pages.
    backed: u8,
    /// How often the host has moved each of its pages.
    moved: BTreeMap<u64, u64>,
    /// Pages that the host keeps read-only until it has seen a store to them.
    kept: BTreeSet<u64>,
    /// Pages behind which the host has put nothing.
    gone: BTreeSet<u64>,
}

impl GuestTables for Guest {
    fn entry(&self, gpa: u64) -> u64 {
        self.entries.get(&gpa).copied().unwrap_or(0)
    }

    fn touch(&mut self, gpa: u64, bits: u64) -> Result<(), Kept> {
        if self.kept.contains(&(gpa >> self.backed)) {
            return Err(Kept(gpa));
        }
        *self.entries.entry(gpa).or_default() |= bits;
        Ok(())
    }

    fn place(&self, gpa: u64) -> Option<Place> {
        let page = gpa >> self.backed;
        let writable = !self.kept.contains(&page);
        let place = Place { spa: self.lies(gpa), shift: self.backed, writable };
        (!self.gone.contains(&page)).then_some(place)
    }
}

impl Guest {
    /// Where the host has put an address, or will put it next. Its pages lie in an order of their own.
    pub(crate) fn lies(&self, gpa: u64) -> u64 {
        let page = gpa >> self.backed;
        let within = gpa & ((1 << self.backed) - 1);
        let moved = self.moved.get(&page).copied().unwrap_or(0);
        ((page ^ 0x2a) << self.backed) + within + (1 << 42) + (moved << 38)
    }

    /// The host does what [`Filled::Host`] asks for; `None` where there is no reason to.
    fn serve(&mut self, gpa: u64, write: bool) -> Option<()> {
        let page = gpa >> self.backed;
        // An accessed bit is a store of the processor's own.
        let write = write || self.entries.contains_key(&gpa);
        let served = self.gone.remove(&page) || write && self.kept.remove(&page);
        served.then_some(())
    }

    /// Over host pages of this size (log2).
    pub(crate) fn backed(self, shift: u8) -> Guest {
        Guest { backed: shift, ..self }
    }
}

/// The shadow tables as a processor walks them.
struct Shadow<'a>(&'a [Table]);

impl Memory for Shadow<'_> {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(&mut self, at: Spa, _: EntryLayout, _: &Access) -> Result<Value, Outside<Spa>> {
        let offset = at.raw() - HOST;
        let table = self.0.get((offset >> 12) as usize);
        let table = table.ok_or(Outside { address: at, write: false })?;
        Ok(Value { value: table[(offset >> 3 & 0x1ff) as usize], reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        _: EntryLayout,
        _: u64,
        _: u64,
        _: &Access,
    ) -> Result<bool, Outside<Spa>> {
        Err(Outside { address, write: true })
    }
}

struct Entries<'a>(&'a mut Guest);

impl Memory for Entries<'_> {
    type Address = Gpa;
    type Fault = ();
    fn read(&mut self, at: Gpa, _: EntryLayout, _: &Access) -> Result<Value, ()> {
        Ok(Value { value: self.0.entry(at.raw()), reached: Reached::DIRECTLY })
    }
    fn compare_exchange(
        &mut self,
        at: Gpa,
        _: EntryLayout,
        _: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, ()> {
        self.0.entries.insert(at.raw(), new);
        Ok(true)
    }
}

/// Tables of the guest, by level. The two of each level are shared by every path that names them.
pub(crate) fn frame(level: u8, which: u64) -> u64 {
    (u64::from(level) + 1) << 16 | (which & 1) << 12
}

/// Indices that the guest uses in each table.
pub(crate) const INDICES: [u64; 3] = [0, 1, 511];

fn index(n: u8) -> u64 {
    INDICES[usize::from(n % 3)]
}

/// The addresses that are looked at.
pub(crate) fn addresses(mode: Mode) -> Vec<u64> {
    let tops: &[u64] = match mode {
        Mode::Pae => &[0],
        Mode::Four => &[0, 1 << 39],
        Mode::Five => &[0, 1 << 39, 1 << 48],
    };
    let mut addresses = Vec::new();
    for top in tops {
        for middle in [0, 1] {
            for low in INDICES {
                for leaf in INDICES {
                    addresses.push(top | middle << 30 | low << 21 | leaf << 12);
                }
            }
        }
    }
    addresses
}

/// Something that happens on a vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// Store an entry to a table of this level.
    Store {
        level: u8,
        table: u8,
        index: u8,
        kind: u8,
        rights: u8,
        target: u8,
    },
    /// Clear accessed and dirty bits of an entry.
    Age {
        level: u8,
        table: u8,
        index: u8,
    },
    Cr3(u8),
    Invlpg(u8),
    Touch {
        va: u8,
        kind: u8,
        user: bool,
    },
    /// The guest frees a table.
    Release {
        level: u8,
        table: u8,
    },
    /// The host moves a page of the guest's data or, from 16 on, of its tables; takes it away; or keeps
    /// it read-only until the next store.
    Host {
        page: u8,
        what: Host,
    },
    /// The guest sets or clears CR0.WP, if it has no shadow stacks.
    WriteProtect(bool),
}

/// What the host does to a page of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Host {
    Move,
    Take,
    Protect,
}

const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Execute];

/// By number of an access ([`asked`]), with CR0.WP clear and then set: where it ends, as a guest physical
/// address; `None` for a fault that the guest gets.
type Answers = [[Option<u64>; ACCESSES]; 2];

/// One virtual processor: its CR3, or the registers loaded from it, and its TLB.
#[derive(Clone)]
struct Vcpu {
    cr3: u64,
    registers: [u64; 4],
    /// The shadow that it runs on, until the hypervisor loads another.
    shadow: Option<AnyFormat>,
    tlb: BTreeMap<(u64, usize), u64>,
    /// What the walk said of each address since this vCPU last invalidated it.
    since: BTreeMap<u64, BTreeSet<Answers>>,
}

/// What does not change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) mode: Mode,
    pub(crate) discipline: Discipline,
    pub(crate) backed: u8,
    pub(crate) prefetch: u8,
    pub(crate) controls: Controls,
    /// PKRU, and IA32_PKRS.
    pub(crate) keys: [u32; 2],
    pub(crate) alignment_check: bool,
    pub(crate) protects: bool,
    /// The most shadow tables.
    pub(crate) limit: usize,
}

impl Setting {
    pub(crate) fn plain(discipline: Discipline) -> Setting {
        let controls =
            Controls { write_protect: true, nxe: true, smep: true, ..Controls::default() };
        let (mode, backed, prefetch) = (Mode::Four, 12, 1);
        Setting {
            mode,
            discipline,
            backed,
            prefetch,
            controls,
            keys: [0; 2],
            alignment_check: false,
            protects: false,
            limit: usize::MAX,
        }
    }
}

pub(crate) struct World {
    pub(crate) setting: Setting,
    regime: Regime,
    pub(crate) guest: Guest,
    pub(crate) tables: Vec<Table>,
    pub(crate) pager: Pager,
    vcpus: Vec<Vcpu>,
}

fn format(setting: &Setting, controls: Controls, cr3: u64, registers: [u64; 4]) -> AnyFormat {
    let processor = Processor::default();
    match setting.mode {
        Mode::Pae => AnyFormat::Pae(Pae::new(controls, processor), Root::Registers(registers)),
        Mode::Four => AnyFormat::Long(Long::four(controls, processor), cr3),
        Mode::Five => AnyFormat::Long(Long::five(controls, processor), cr3),
    }
}

/// How many accesses there are to ask of an address: a supervisor's and a user's load, store and fetch;
/// shadow-stack loads and stores of both.
const ACCESSES: usize = 10;

fn asked(number: usize) -> Access {
    let privilege = |user| if user { Privilege::User } else { Privilege::Supervisor };
    match number {
        0..6 => Access::new(KINDS[number % 3], privilege(number >= 3)),
        _ => {
            Access::new(KINDS[number % 2], privilege(number >= 8)).with_flavor(Flavor::ShadowStack)
        }
    }
}

/// Whether an access stores, or needs a leaf that permits it to.
fn stores(access: &Access) -> bool {
    access.kind == Kind::Write || access.flavor == Flavor::ShadowStack
}

impl World {
    /// A few paths exist from the start where `paths`, so that activity meets mapped pages.
    pub(crate) fn new(setting: Setting, vcpus: usize, paths: bool) -> World {
        let mut regime = Regime::default();
        [regime.x86.pkru, regime.x86.pkrs] = setting.keys;
        regime.x86.alignment_check = setting.alignment_check;
        let root_level = if setting.mode == Mode::Pae { 1 } else { setting.mode.top() };
        let cr3 = frame(setting.mode.top(), 0);
        let vcpu = Vcpu {
            cr3,
            registers: [0; 4],
            shadow: None,
            tlb: BTreeMap::new(),
            since: BTreeMap::new(),
        };
        let mut world = World {
            setting,
            regime,
            guest: Guest {
                entries: BTreeMap::new(),
                backed: setting.backed,
                moved: BTreeMap::new(),
                kept: BTreeSet::new(),
                gone: BTreeSet::new(),
            },
            tables: Vec::new(),
            pager: {
                let Controls { user_keys, supervisor_keys, .. } = setting.controls;
                let pager = Pager::new(setting.discipline, root_level, HOST)
                    .with_prefetch(setting.prefetch)
                    .with_limit(setting.limit)
                    .with_keys(user_keys, supervisor_keys);
                if setting.protects { pager.with_protection() } else { pager }
            },
            vcpus: vec![vcpu; vcpus],
        };
        for level in (1..=setting.mode.top()).rev().take(if paths { 8 } else { 0 }) {
            for (which, n) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let rights = if world.is_pdpt(level) { 0 } else { RW | US };
                let entry = frame(level - 1, n) | P | rights;
                world.guest.entries.insert(frame(level, which) + 8 * INDICES[n as usize], entry);
            }
        }
        (0..vcpus).for_each(|n| world.load(n, cr3));
        world
    }

    fn is_pdpt(&self, level: u8) -> bool {
        self.setting.mode == Mode::Pae && level == 2
    }

    /// The registers of PAE; a load of reserved bits is #GP, and changes nothing.
    fn load(&mut self, vcpu: usize, cr3: u64) {
        if self.setting.mode == Mode::Pae {
            let pae = Pae::new(self.setting.controls, Processor::default());
            let mut memory = Entries(&mut self.guest);
            let Ok(Root::Registers(registers)) = pae.load_root(&mut memory, Gpa::new(cr3)) else {
                return;
            };
            self.vcpus[vcpu].registers = registers;
        }
        self.vcpus[vcpu].cr3 = cr3;
    }

    fn stage(&self, vcpu: usize, updates: Updates) -> Stage<AnyFormat, Gva, Gpa> {
        self.stage_with(vcpu, updates, self.setting.controls.write_protect)
    }

    fn stage_with(
        &self,
        vcpu: usize,
        updates: Updates,
        write_protect: bool,
    ) -> Stage<AnyFormat, Gva, Gpa> {
        let Vcpu { cr3, registers, .. } = self.vcpus[vcpu];
        let controls = Controls { write_protect, ..self.setting.controls };
        Stage::new(format(&self.setting, controls, cr3, registers), ()).with_updates(updates)
    }

    /// Where the guest's own walk ends.
    fn truly(
        &self,
        guest: &mut Guest,
        vcpu: usize,
        va: u64,
        number: usize,
        updates: Updates,
    ) -> Option<u64> {
        self.truly_by(&self.stage(vcpu, updates), guest, va, number)
    }

    fn truly_by(
        &self,
        stage: &Stage<AnyFormat, Gva, Gpa>,
        guest: &mut Guest,
        va: u64,
        number: usize,
    ) -> Option<u64> {
        let (gva, access) = (Gva::new(va), asked(number));
        let found = walk(stage, &mut Entries(guest), gva, &access, &self.regime, &()).ok()?;
        Some(found.output.raw())
    }

    fn all(&self, vcpu: usize, va: u64) -> Answers {
        let mut guest = self.guest.clone();
        [false, true].map(|write_protect| {
            let stage = self.stage_with(vcpu, Updates::Never, write_protect);
            std::array::from_fn(|n| self.truly_by(&stage, &mut guest, va, n))
        })
    }

    /// The shadow that a vCPU runs on, in the form of the guest's own tables: loaded where it is not.
    fn shadow_format(&mut self, vcpu: usize) -> AnyFormat {
        if let Some(loaded) = self.vcpus[vcpu].shadow {
            return loaded;
        }
        let loaded = self.load_shadow(vcpu);
        self.vcpus[vcpu].shadow = Some(loaded);
        loaded
    }

    fn load_shadow(&mut self, vcpu: usize) -> AnyFormat {
        let Vcpu { cr3, registers, .. } = self.vcpus[vcpu];
        let (pager, tables) = (&mut self.pager, &mut self.tables);
        // The processor that walks the shadow has CR0.WP set.
        let controls = Controls { write_protect: true, ..self.setting.controls };
        let mut root = |guest: u64| pager.root(tables, guest);
        if self.setting.mode == Mode::Pae {
            let roots = registers.map(|entry| if entry & P == 0 { 0 } else { root(entry) | P });
            return format(&self.setting, controls, 0, roots);
        }
        let root = root(cr3);
        format(&self.setting, controls, root, [0; 4])
    }

    /// What the processor finds in its TLB or in the shadow, with the pager's help.
    pub(crate) fn shadowed(&mut self, vcpu: usize, va: u64, number: usize) -> Option<u64> {
        if let Some(&kept) = self.vcpus[vcpu].tlb.get(&(va, number)) {
            return Some(kept);
        }
        let access = asked(number);
        // It is filled once, after the host has served each table on the path and what they lead to.
        for _ in 0..9 {
            let stage = Stage::<_, Gva, Spa>::new(self.shadow_format(vcpu), ());
            let gva = Gva::new(va);
            let memory = &mut Shadow(&self.tables);
            if let Ok(found) = walk(&stage, memory, gva, &access, &self.regime, &()) {
                self.vcpus[vcpu].tlb.insert((va, number), found.output.raw());
                return Some(found.output.raw());
            }
            match self.fill(vcpu, va, number) {
                Filled::True => {
                    self.flush_if_due();
                    return None;
                }
                Filled::Host { gpa } => {
                    assert!(
                        self.guest.serve(gpa, stores(&access)).is_some(),
                        "{gpa:#x} {access:?}"
                    );
                    self.flush_if_due();
                }
                Filled::Carried { gpa, exit } => {
                    // The hypervisor stores where the guest's own walk ends.
                    let mut guest = self.guest.clone();
                    let own = self.truly(&mut guest, vcpu, va, number, Updates::Never)?;
                    assert_eq!(gpa, own);
                    match exit {
                        Exit::Emulation => {
                            assert!(!self.setting.controls.write_protect && number == 1);
                            assert!(self.guest.place(gpa).is_some_and(|place| place.writable));
                        }
                        _ => assert!(self.setting.protects && self.pager.traps(gpa)),
                    }
                    self.flush_if_due();
                    return Some(self.guest.lies(gpa));
                }
                Filled::Hidden(_) => self.flush_if_due(),
            }
        }
        panic!("{va:#x}: the shadow still faults after it was filled");
    }

    /// The pager's part of one exit.
    pub(crate) fn fill(&mut self, vcpu: usize, va: u64, number: usize) -> Filled {
        let own = self.stage(vcpu, Updates::OnSuccess);
        let World { pager, tables, guest, regime, .. } = self;
        pager.fill(tables, guest, &own, regime, va, &asked(number))
    }

    /// What the pager fills of this vCPU's root before it runs.
    pub(crate) fn fill_accessed(&mut self, vcpu: usize) {
        let own = self.stage(vcpu, Updates::OnSuccess);
        let cr3 = self.vcpus[vcpu].cr3;
        let World { pager, tables, guest, regime, .. } = self;
        pager.fill_accessed(tables, guest, &own, regime, cr3);
    }

    /// Whether the host still waits for a store to this page.
    pub(crate) fn keeps(&self, gpa: u64) -> bool {
        self.guest.kept.contains(&(gpa >> self.guest.backed))
    }

    /// Whether vCPU 0 has a translation of its own for this access.
    pub(crate) fn holds(&self, va: u64, number: usize) -> bool {
        self.vcpus[0].tlb.contains_key(&(va, number))
    }

    /// Whether a user's store there is carried out by the hypervisor.
    pub(crate) fn carried(&mut self, va: u64) -> bool {
        assert!(self.shadowed(0, va, 4).is_some(), "{va:#x}");
        !self.holds(va, 4)
    }

    /// The guest stores data to a page of its own that may have been a table, through its mapping from
    /// 1 GiB on.
    pub(crate) fn clear(&mut self, gpa: u64) {
        if self.carried(1 << 30 | gpa) {
            self.pager.store_data(&mut self.tables, gpa);
            self.flush_if_due();
        } else if self.pager.traps(gpa) {
            panic!("{gpa:#x}: a store to it is not noticed");
        }
    }

    /// The guest changes an entry of its tables.
    pub(crate) fn store(&mut self, gpa: u64, value: u64) {
        for vcpu in 0..self.vcpus.len() {
            for va in addresses(self.setting.mode) {
                let before = self.all(vcpu, va);
                self.vcpus[vcpu].since.entry(va).or_default().insert(before);
            }
        }
        self.guest.entries.insert(gpa, value);
        self.pager.store(&mut self.tables, gpa);
        self.flush_if_due();
    }

    /// A remote flush.
    pub(crate) fn flush_if_due(&mut self) {
        let Some(flush) = self.pager.take_flush() else { return };
        self.walk_meanwhile();
        for vcpu in &mut self.vcpus {
            vcpu.tlb.clear();
            if flush == Flush::Roots {
                vcpu.shadow = None;
            }
        }
    }

    /// Until the flush reaches them, the vCPUs walk on from the roots that they have: to what their tables
    /// say or said, or to nothing.
    fn walk_meanwhile(&self) {
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            let Some(shadow) = vcpu.shadow else { continue };
            let stage = Stage::<_, Gva, Spa>::new(shadow, ());
            let write_protect = usize::from(self.setting.controls.write_protect);
            for va in addresses(self.setting.mode) {
                for asked_for in [0, 3] {
                    let (gva, access) = (Gva::new(va), asked(asked_for));
                    let memory = &mut Shadow(&self.tables);
                    let Ok(found) = walk(&stage, memory, gva, &access, &self.regime, &()) else {
                        continue;
                    };
                    let leads = |answers: &Answers| {
                        let gpa = answers[write_protect][asked_for];
                        gpa.map(|gpa| self.guest.lies(gpa)) == Some(found.output.raw())
                    };
                    let was = vcpu.since.get(&va).is_some_and(|since| since.iter().any(leads));
                    let justified = was || leads(&self.all(number, va));
                    assert!(justified, "{va:#x}: {:#x} before a flush", found.output.raw());
                }
            }
        }
    }

    fn entry_of(&self, level: u8, kind: u8, rights: u8, target: u8) -> u64 {
        let flags = P
            | if rights & 1 != 0 { RW } else { 0 }
            | if rights & 2 != 0 { US } else { 0 }
            | if rights & 4 != 0 { XD } else { 0 }
            | if rights & 32 != 0 { A } else { 0 }
            | if rights & 64 != 0 { A | D } else { 0 }
            | if rights & 24 == 24 && self.setting.controls.user_keys { KEY } else { 0 };
        match (kind, level) {
            (0 | 1, _) => 0,
            // Data lies from 1 GiB on.
            (_, 0) => flags | 1 << 30 | u64::from(target % 16) << 12,
            (2, 1) => flags | PS | 1 << 30 | u64::from(target % 4) << 21,
            (2, 2) if self.setting.mode != Mode::Pae => {
                flags | PS | u64::from(1 + target % 3) << 30
            }
            // Reserved.
            (2, _) => flags | PS,
            _ if self.is_pdpt(level) => P | frame(level - 1, u64::from(target)),
            _ => flags & !KEY | frame(level - 1, u64::from(target)),
        }
    }

    pub(crate) fn run(&mut self, vcpu: usize, act: Act) {
        let top = self.setting.mode.top();
        match act {
            Act::Store { level, .. } | Act::Age { level, .. } | Act::Release { level, .. }
                if level > top => {}
            Act::Store { level, table, index: at, kind, rights, target } => {
                let value = self.entry_of(level, kind, rights, target);
                self.store(frame(level, u64::from(table)) + 8 * index(at), value);
            }
            Act::Age { level, table, index: at } => {
                let gpa = frame(level, u64::from(table)) + 8 * index(at);
                let value = self.guest.entry(gpa) & !(A | D);
                self.store(gpa, value);
            }
            Act::Cr3(which) => {
                self.load(vcpu, frame(top, u64::from(which)));
                let registers = self.vcpus[vcpu].registers.iter();
                let roots: Vec<u64> = match self.setting.mode {
                    Mode::Pae => registers.copied().filter(|entry| entry & P != 0).collect(),
                    _ => vec![self.vcpus[vcpu].cr3],
                };
                self.pager.load_cr3(&mut self.tables, &self.guest, &roots);
                self.vcpus[vcpu].shadow = None;
                self.vcpus[vcpu].tlb.clear();
                self.vcpus[vcpu].since.clear();
            }
            Act::Invlpg(which) => {
                let addresses = addresses(self.setting.mode);
                let va = addresses[usize::from(which) % addresses.len()];
                let root = match self.setting.mode {
                    Mode::Pae => self.vcpus[vcpu].registers[(va >> 30) as usize],
                    _ => self.vcpus[vcpu].cr3 | P,
                };
                if root & P != 0 {
                    let root = self.pager.root(&mut self.tables, root);
                    self.pager.invalidate(&mut self.tables, &self.guest, root, va);
                }
                self.vcpus[vcpu].tlb.retain(|(held, _), _| *held != va);
                self.vcpus[vcpu].since.remove(&va);
            }
            Act::Touch { va, kind, user } => {
                let addresses = addresses(self.setting.mode);
                let va = addresses[usize::from(va) % addresses.len()];
                let number = usize::from(kind) + if user { 3 } else { 0 };
                let stack = 6 + usize::from(kind & 1) + if user { 2 } else { 0 };
                let on_stack = self.setting.controls.shadow_stacks && kind != 2;
                self.touch(vcpu, va, if on_stack { stack } else { number });
            }
            Act::WriteProtect(set) => {
                let controls = &mut self.setting.controls;
                controls.write_protect = set || controls.shadow_stacks;
            }
            Act::Release { level, table } => {
                // An empty table that nothing names any more.
                let table = frame(level, u64::from(table));
                let in_use = |vcpu: &Vcpu| {
                    vcpu.cr3 == table || vcpu.registers.iter().any(|entry| entry & !0xfff == table)
                };
                if self.vcpus.iter().any(in_use) {
                    return;
                }
                let names = |entry: u64| entry & P != 0 && entry & 0xf_ffff_f000 == table;
                let named: Vec<u64> = self
                    .guest
                    .entries
                    .iter()
                    .filter(|(_, entry)| names(**entry))
                    .map(|(gpa, _)| *gpa)
                    .collect();
                named.into_iter().for_each(|gpa| self.store(gpa, 0));
                INDICES.iter().for_each(|n| self.store(table + 8 * n, 0));
                self.pager.release(&mut self.tables, table);
            }
            Act::Host { page, what } => {
                let gpa = match page % 32 {
                    data @ 0..16 => 1 << 30 | u64::from(data) << 12,
                    table => frame(table / 2 % (top + 1), u64::from(table)),
                };
                let (spa, backed) = (self.guest.lies(gpa), self.guest.backed);
                let page = gpa >> backed;
                if let Host::Protect = what {
                    self.guest.kept.insert(page);
                    self.pager.protect_host(&mut self.tables, spa, backed);
                } else {
                    self.pager.unmap_host(&mut self.tables, spa, backed);
                    *self.guest.moved.entry(page).or_default() += 1;
                    if let Host::Take = what {
                        self.guest.gone.insert(page);
                    }
                }
            }
        }
        self.flush_if_due();
    }

    /// An access finds what the guest's tables say, or, where the guest has not invalidated yet, what
    /// they have said since it last did.
    pub(crate) fn touch(&mut self, vcpu: usize, va: u64, number: usize) {
        let mut reference = self.guest.clone();
        let expected = self.truly(&mut reference, vcpu, va, number, Updates::OnSuccess);
        let place = |world: &World, gpa: Option<u64>| gpa.map(|gpa| world.guest.lies(gpa));
        let found = self.shadowed(vcpu, va, number);
        if let Some(spa) = found {
            let page = |page: &u64| {
                self.guest.lies(page << self.guest.backed)
                    == spa >> self.guest.backed << self.guest.backed
            };
            assert!(!self.guest.gone.iter().any(page), "{va:#x}: {spa:#x} is taken away");
            let unseen = stores(&asked(number)) && self.guest.kept.iter().any(page);
            assert!(!unseen, "{va:#x}: the host has not seen the store to {spa:#x}");
        }
        let since = self.vcpus[vcpu].since.get(&va);
        let obliged = self.setting.discipline == Discipline::TrapAll || since.is_none();
        let write_protect = usize::from(self.setting.controls.write_protect);
        let was = |was: &Answers| place(self, was[write_protect][number]) == found;
        let justified = found == place(self, expected)
            || !obliged && since.is_some_and(|since| since.iter().any(was));
        let access = asked(number);
        assert!(justified, "{va:#x} {access:?}: {found:x?} is not {expected:x?}");
        if obliged {
            let same = reference.entries == self.guest.entries;
            assert!(same, "{va:#x} {access:?}: accessed and dirty bits");
        }
    }

    /// Every access to every address, on every vCPU.
    pub(crate) fn touch_all(&mut self) {
        for vcpu in 0..self.vcpus.len() {
            for va in addresses(self.setting.mode) {
                let accesses = if self.setting.controls.shadow_stacks { ACCESSES } else { 6 };
                (0..accesses).for_each(|number| self.touch(vcpu, va, number));
            }
        }
    }
}
