//! The program of `slat_kvm::script` on the shadow pager of `slat-mmu`, counted as KVM counts.

use std::collections::BTreeMap;

use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{
    Access, EntryLayout, Gpa, Gva, Kind, Memory, Outside, Privilege, Reached, Regime, Spa, Stage,
    Updates, Value, walk,
};
use slat_kvm::script::{LARGE_FROM, Op, ROOT, phases, tables};
use slat_mmu::shadow::{Counts, Discipline, Exit, Filled, GuestTables, Kept, Pager, Place, Table};

/// Where shadow tables lie, and the guest's memory.
const HOST: u64 = 1 << 44;
const GUEST: u64 = 1 << 40;
/// Where the program's code and its list of operations lie.
const CODE: u64 = 0x1000;
const LIST: u64 = 1 << 20;
/// The guest's own tables: the root, the one below, and so on, up to here.
const TABLES_END: u64 = ROOT + 0x9000;
/// Linux KVM fills up to 8 neighbours that the guest has accessed (`PTE_PREFETCH_NUM`).
const PREFETCH: u8 = 8;

struct Guest {
    entries: BTreeMap<u64, u64>,
    large: u8,
}

impl GuestTables for Guest {
    fn entry(&self, gpa: u64) -> u64 {
        self.entries.get(&gpa).copied().unwrap_or(0)
    }

    fn touch(&mut self, gpa: u64, bits: u64) -> Result<(), Kept> {
        *self.entries.entry(gpa).or_default() |= bits;
        Ok(())
    }

    fn place(&self, gpa: u64) -> Option<Place> {
        let shift = if gpa >= LARGE_FROM { self.large } else { 12 };
        Some(Place::writable(GUEST + gpa, shift))
    }
}

struct Shadow<'a>(&'a [Table]);

impl Memory for Shadow<'_> {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(&mut self, at: Spa, _: EntryLayout, _: &Access) -> Result<Value, Outside<Spa>> {
        let table = at.raw().checked_sub(HOST).and_then(|at| self.0.get((at >> 12) as usize));
        let table = table.ok_or(Outside { address: at, write: false })?;
        Ok(Value { value: table[(at.raw() >> 3 & 0x1ff) as usize], reached: Reached::DIRECTLY })
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

struct Model {
    guest: Guest,
    tables: Vec<Table>,
    pager: Pager,
    cr3: u64,
    /// Stores to tables above level 0.
    emulated: i64,
    /// Of those, stores of an entry that is not 0 to a table that stays.
    emulated_entries: i64,
    /// Exceptions by which the program enters its supervisor.
    gates: i64,
}

fn stage(root: u64, updates: Updates) -> (Long, u64, Updates) {
    let controls = Controls { write_protect: true, nxe: true, ..Controls::default() };
    (Long::four(controls, Processor::default()), root, updates)
}

impl Model {
    fn access(&mut self, va: u64, kind: Kind) {
        let access = Access::new(kind, Privilege::User);
        let regime = Regime::default();
        for _ in 0..3 {
            let root = self.pager.root(&mut self.tables, self.cr3);
            let (format, root, updates) = stage(root, Updates::Never);
            let shadow = Stage::<_, Gva, Spa>::new(format, root).with_updates(updates);
            let mut memory = Shadow(&self.tables);
            if walk(&shadow, &mut memory, Gva::new(va), &access, &regime, &()).is_ok() {
                return;
            }
            let (format, root, updates) = stage(self.cr3, Updates::OnSuccess);
            let own = Stage::<_, Gva, Gpa>::new(format, root).with_updates(updates);
            let filled =
                self.pager.fill(&mut self.tables, &mut self.guest, &own, &regime, va, &access);
            match filled {
                // What is stored, the caller tells the pager.
                Filled::Carried { exit: Exit::TableWrite, .. } => return,
                Filled::Hidden(_) => {}
                other => panic!("{va:#x} is mapped: {other:?}"),
            }
        }
        panic!("{va:#x}: the shadow still faults after it was filled");
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Load(va) => self.access(va, Kind::Read),
            Op::Store(va, value) => {
                self.access(va, Kind::Write);
                // The tables are mapped one to one.
                if (ROOT..TABLES_END).contains(&va) {
                    let before = self.pager.counts();
                    self.guest.entries.insert(va, value);
                    let stored = self.pager.store(&mut self.tables, va);
                    let after = self.pager.counts();
                    if stored.exits && after.unsynced == before.unsynced {
                        self.emulated += 1;
                        let flooded = after.flooded != before.flooded;
                        self.emulated_entries += i64::from(value != 0 && !flooded);
                    }
                }
            }
            Op::Cr3(root) => {
                self.gates += 1;
                self.cr3 = root;
                self.pager.load_cr3(&mut self.tables, &self.guest, &[root]);
            }
            Op::Invlpg(va) => {
                self.gates += 1;
                let root = self.pager.root(&mut self.tables, self.cr3);
                self.pager.invalidate(&mut self.tables, &self.guest, root, va);
            }
            Op::Done => {}
        }
    }

    /// What KVM's counters would say now.
    fn counters(&self) -> BTreeMap<&'static str, i64> {
        let counts = self.pager.counts();
        let Counts { unsynced, synchronized, relinked, .. } = counts;
        let of = |exit| self.pager.counts().of(exit) as i64;
        let [small, large, _] = self.pager.leaves().map(|leaves| leaves as i64);
        BTreeMap::from([
            // A fault that makes a table writable again, and out of sync, is a fault like others.
            (
                "pf_fixed",
                of(Exit::HiddenFault) + of(Exit::Dirty) + unsynced as i64 - relinked as i64,
            ),
            ("pf_spurious", relinked as i64),
            ("pf_emulate", self.emulated),
            ("pages_4k", small),
            ("pages_2m", large),
            ("mmu_cache_miss", counts.tables_made as i64),
            ("mmu_shadow_zapped", counts.tables_dropped as i64),
            ("mmu_flooded", counts.flooded as i64),
            ("mmu_unsync", unsynced as i64 - synchronized as i64),
            // KVM counts every store that it carries out, the frames of exceptions too.
            ("mmu_pte_write", self.emulated + self.gates),
            ("mmu_pde_zapped", self.emulated_entries),
            ("invlpg", of(Exit::Invlpg)),
        ])
    }
}

/// Counters by phase.
pub(crate) type Phases = Vec<(String, BTreeMap<String, i64>)>;

/// The measurement that is kept with the source: what `slat_kvm::count` gave on Linux 6.18 with
/// `kvm_pvm`, which has shadow tables alone. One line a counter: phase, counter, change.
pub(crate) fn kept() -> Phases {
    let mut phases = Phases::new();
    let text = include_str!("../../measurements/shadow.tsv");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t');
        let (Some(phase), Some(counter), Some(Ok(change))) =
            (fields.next(), fields.next(), fields.next().map(str::parse))
        else {
            panic!("not a phase, a counter and a number: {line}");
        };
        if phases.last().is_none_or(|(last, _)| last != phase) {
            phases.push((phase.to_owned(), BTreeMap::new()));
        }
        phases.last_mut().map(|(_, counts)| counts.insert(counter.to_owned(), change));
    }
    phases
}

/// log2 of the pages that the host backed large guest pages with, as the counters of a run say; `None`
/// where it had large pages for some only.
pub(crate) fn backing(phases: &Phases) -> Option<u8> {
    let large: i64 = phases.iter().filter_map(|(_, counts)| counts.get("pages_2m")).sum();
    match large {
        0 => Some(12),
        8 => Some(21),
        _ => None,
    }
}

/// What each phase changes of KVM's counters, if the host backs large pages so (log2).
pub(crate) fn replay(large: u8) -> Phases {
    let mut model = Model {
        guest: Guest { entries: tables().into_iter().collect(), large },
        tables: Vec::new(),
        pager: Pager::new(Discipline::OutOfSync, 3, HOST).with_prefetch(PREFETCH).with_protection(),
        cr3: ROOT,
        emulated: 0,
        emulated_entries: 0,
        gates: 0,
    };
    let mut before = model.counters();
    let mut list = LIST;
    phases()
        .into_iter()
        .map(|phase| {
            for op in phase.ops {
                model.access(CODE, Kind::Execute);
                for word in 0..3 {
                    model.access(list + 8 * word, Kind::Read);
                }
                list += 24;
                model.run(op);
            }
            let after = model.counters();
            let change = |(name, value): (&&str, &i64)| (name.to_string(), value - before[name]);
            let changes = after.iter().map(change).collect();
            before = after;
            (phase.name.to_owned(), changes)
        })
        .collect()
}
