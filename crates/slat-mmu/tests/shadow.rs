//! The shadow pager beside the two-stage walk that it stands for, under random guest activity.
//!
//! Wherever the architecture obliges the shadow to be true, it translates as the guest's tables and
//! the host's placement do, with the same rights and the same faults; elsewhere it may only be what
//! they said since the guest last invalidated.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{
    Access, EntryLayout, Gpa, Gva, Kind, Memory, Privilege, Reached, Regime, SliceMemory, Spa,
    Stage, Updates, Value, walk,
};
use slat_mmu::shadow::{Discipline, Filled, GuestTables, Pager, Table};

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;
/// Where shadow tables lie.
const HOST: u64 = 1 << 44;

#[derive(Clone, PartialEq)]
struct Guest {
    entries: BTreeMap<u64, u64>,
    /// log2 of the host's pages.
    backed: u8,
}

impl GuestTables for Guest {
    fn entry(&self, gpa: u64) -> u64 {
        self.entries.get(&gpa).copied().unwrap_or(0)
    }

    fn touch(&mut self, gpa: u64, bits: u64) {
        *self.entries.entry(gpa).or_default() |= bits;
    }

    /// Host pages lie in an order of their own.
    fn place(&self, gpa: u64) -> (u64, u8) {
        let page = gpa >> self.backed;
        let within = gpa & ((1 << self.backed) - 1);
        (((page ^ 0x2a) << self.backed) + within + (1 << 42), self.backed)
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

/// Tables of the guest, by level: frames 0x10, 0x20, 0x30 and 0x40 and those after them. The two of
/// each level are shared by every path that happens to name them.
fn frame(level: u8, which: u64) -> u64 {
    (u64::from(level) + 1) << 16 | (which & 1) << 12
}

/// Indices that the guest uses in each table.
const INDICES: [u64; 3] = [0, 1, 511];

fn index(n: u8) -> u64 {
    INDICES[usize::from(n % 3)]
}

/// The addresses that are looked at.
fn addresses() -> Vec<u64> {
    let mut addresses = Vec::new();
    for top in [0, 1] {
        for middle in [0, 1] {
            for low in INDICES {
                for leaf in INDICES {
                    addresses.push(top << 39 | middle << 30 | low << 21 | leaf << 12);
                }
            }
        }
    }
    addresses
}

#[derive(Clone, Copy, Debug)]
enum Act {
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
}

fn act() -> impl Strategy<Value = Act> {
    let place = || (0..4u8, 0..2u8, any::<u8>());
    prop_oneof![
        6 => (place(), 0..8u8, 0..8u8, any::<u8>()).prop_map(
            |((level, table, index), kind, rights, target)| Act::Store {
                level, table, index, kind, rights, target
            }
        ),
        1 => place().prop_map(|(level, table, index)| Act::Age { level, table, index }),
        1 => any::<u8>().prop_map(Act::Cr3),
        2 => any::<u8>().prop_map(Act::Invlpg),
        8 => (any::<u8>(), 0..3u8, any::<bool>())
            .prop_map(|(va, kind, user)| Act::Touch { va, kind, user }),
        1 => (0..4u8, 0..2u8).prop_map(|(level, table)| Act::Release { level, table }),
    ]
}

const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Execute];

struct World {
    guest: Guest,
    tables: Vec<Table>,
    pager: Pager,
    cr3: u64,
    /// What the walk said of each access to each address since the guest last had to be believed.
    since: BTreeMap<u64, BTreeSet<[Option<u64>; 6]>>,
}

fn controls() -> Controls {
    Controls { write_protect: true, nxe: true, smep: true, ..Controls::default() }
}

fn guest_stage(cr3: u64, updates: Updates) -> Stage<Long, Gva, Gpa> {
    Stage::new(Long::four(controls(), Processor::default()), cr3).with_updates(updates)
}

fn asked(number: usize) -> Access {
    let privilege = if number < 3 { Privilege::Supervisor } else { Privilege::User };
    Access::new(KINDS[number % 3], privilege)
}

/// Where the two-stage walk ends; `None` for a fault that the guest gets.
fn truly(guest: &mut Guest, cr3: u64, va: u64, access: &Access, updates: Updates) -> Option<u64> {
    let stage = guest_stage(cr3, updates);
    let gpa =
        walk(&stage, &mut Entries(guest), Gva::new(va), access, &Regime::default(), &()).ok()?;
    Some(guest.place(gpa.output.raw()).0)
}

impl World {
    fn all(&mut self, va: u64) -> [Option<u64>; 6] {
        [0, 1, 2, 3, 4, 5].map(|n| truly(&mut self.guest, self.cr3, va, &asked(n), Updates::Never))
    }

    /// What the processor finds in the shadow, with the pager's help.
    fn shadowed(&mut self, va: u64, access: &Access) -> Option<u64> {
        for _ in 0..3 {
            let root = self.pager.root(&mut self.tables, self.cr3);
            let format = Long::four(controls(), Processor::default());
            let stage = Stage::<_, Gva, Spa>::new(format, root);
            let mut bytes: Vec<u8> =
                self.tables.iter().flatten().flat_map(|entry| entry.to_le_bytes()).collect();
            let mut memory = SliceMemory::new(Spa::new(HOST), &mut bytes);
            let regime = Regime::default();
            if let Ok(found) = walk(&stage, &mut memory, Gva::new(va), access, &regime, &()) {
                return Some(found.output.raw());
            }
            let stage = guest_stage(self.cr3, Updates::OnSuccess);
            let guest = &mut self.guest;
            match self.pager.fill(&mut self.tables, guest, &stage, &regime, va, access) {
                Filled::True => return None,
                Filled::Hidden(_) => {}
            }
        }
        panic!("{va:#x}: the shadow still faults after it was filled");
    }

    /// The guest changes an entry of its tables.
    fn store(&mut self, gpa: u64, value: u64) {
        for va in addresses() {
            let before = self.all(va);
            self.since.entry(va).or_default().insert(before);
        }
        self.guest.entries.insert(gpa, value);
        self.pager.store(&mut self.tables, gpa);
    }

    fn run(&mut self, discipline: Discipline, act: Act) {
        match act {
            Act::Store { level, table, index: at, kind, rights, target } => {
                let flags = P
                    | if rights & 1 != 0 { RW } else { 0 }
                    | if rights & 2 != 0 { US } else { 0 }
                    | if rights & 4 != 0 { XD } else { 0 };
                let value = match (kind, level) {
                    (0 | 1, _) => 0,
                    // Data lies from 1 GiB on.
                    (_, 0) => flags | 1 << 30 | u64::from(target % 16) << 12,
                    (2, 1) => flags | PS | 1 << 30 | u64::from(target % 4) << 21,
                    (2, 2) => flags | PS | u64::from(1 + target % 3) << 30,
                    // Reserved.
                    (2, _) => flags | PS,
                    _ => flags | frame(level - 1, u64::from(target)),
                };
                self.store(frame(level, u64::from(table)) + 8 * index(at), value);
            }
            Act::Age { level, table, index: at } => {
                let gpa = frame(level, u64::from(table)) + 8 * index(at);
                let value = self.guest.entry(gpa) & !(A | D);
                self.store(gpa, value);
            }
            Act::Cr3(which) => {
                self.cr3 = frame(3, u64::from(which));
                self.pager.synchronize(&mut self.tables, &self.guest);
                self.since.clear();
            }
            Act::Invlpg(which) => {
                let addresses = addresses();
                let va = addresses[usize::from(which) % addresses.len()];
                let root = self.pager.root(&mut self.tables, self.cr3);
                self.pager.invalidate(&mut self.tables, &self.guest, root, va);
                self.since.remove(&va);
            }
            Act::Touch { va, kind, user } => {
                let addresses = addresses();
                let va = addresses[usize::from(va) % addresses.len()];
                let number = usize::from(kind) + if user { 3 } else { 0 };
                self.touch(discipline, va, number);
            }
            Act::Release { level, table } => {
                // An empty table that nothing names any more.
                let table = frame(level, u64::from(table));
                if table == self.cr3 {
                    return;
                }
                let named: Vec<u64> = self
                    .guest
                    .entries
                    .iter()
                    .filter(|(_, entry)| **entry & P != 0 && **entry & 0xf_ffff_f000 == table)
                    .map(|(gpa, _)| *gpa)
                    .collect();
                for gpa in named {
                    self.store(gpa, 0);
                }
                for n in INDICES {
                    self.store(table + 8 * n, 0);
                }
                self.pager.release(&mut self.tables, table);
            }
        }
    }

    fn touch(&mut self, discipline: Discipline, va: u64, number: usize) {
        let access = asked(number);
        let mut reference = self.guest.clone();
        let expected = truly(&mut reference, self.cr3, va, &access, Updates::OnSuccess);
        let found = self.shadowed(va, &access);
        let since = self.since.get(&va);
        let obliged = discipline == Discipline::TrapAll || since.is_none();
        let justified = found == expected
            || !obliged && since.is_some_and(|since| since.iter().any(|was| was[number] == found));
        assert!(justified, "{va:#x} {access:?}: {found:x?} is not {expected:x?}");
        if obliged {
            assert!(reference == self.guest, "{va:#x} {access:?}: accessed and dirty bits");
        }
    }
}

fn check(discipline: Discipline, backed: u8, acts: &[Act]) {
    let mut world = World {
        guest: Guest { entries: BTreeMap::new(), backed },
        tables: Vec::new(),
        pager: Pager::new(discipline, 3, HOST),
        cr3: frame(3, 0),
        since: BTreeMap::new(),
    };
    // A few paths exist from the start, so that activity meets mapped pages.
    for level in (1..4).rev() {
        for which in 0..2 {
            for n in [0, 1] {
                let entry = frame(level - 1, n) | P | RW | US;
                world.guest.entries.insert(frame(level, which) + 8 * INDICES[n as usize], entry);
            }
        }
    }
    for (number, act) in acts.iter().enumerate() {
        world.run(discipline, *act);
        if number % 8 == 7 {
            for va in addresses() {
                for number in 0..6 {
                    world.touch(discipline, va, number);
                }
            }
        }
    }
    assert!(world.pager.live_tables() <= world.pager.most_tables());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_store_trapped(
        backed in prop_oneof![Just(12u8), Just(21), Just(30)],
        acts in prop::collection::vec(act(), 1..80),
    ) {
        check(Discipline::TrapAll, backed, &acts);
    }

    #[test]
    fn leaf_tables_out_of_sync(
        backed in prop_oneof![Just(12u8), Just(21), Just(30)],
        acts in prop::collection::vec(act(), 1..80),
    ) {
        check(Discipline::OutOfSync, backed, &acts);
    }
}

/// One table, reached by a path that permits stores and by one that does not.
#[test]
fn a_shared_table_has_the_rights_of_each_path() {
    let mut world = World {
        guest: Guest { entries: BTreeMap::new(), backed: 12 },
        tables: Vec::new(),
        pager: Pager::new(Discipline::TrapAll, 3, HOST),
        cr3: frame(3, 0),
        since: BTreeMap::new(),
    };
    for (gpa, entry) in [
        (frame(3, 0), frame(2, 0) | P | RW | US),
        (frame(2, 0), frame(1, 0) | P | RW | US),
        (frame(1, 0), frame(0, 0) | P | RW | US),
        (frame(1, 0) + 8, frame(0, 0) | P | US),
        (frame(0, 0), 1 << 30 | P | RW | US),
    ] {
        world.guest.entries.insert(gpa, entry);
    }
    let write = Access::new(Kind::Write, Privilege::User);
    assert!(world.shadowed(0, &write).is_some());
    assert_eq!(world.shadowed(1 << 21, &write), None);
    assert!(world.shadowed(1 << 21, &Access::new(Kind::Read, Privilege::User)).is_some());
}

/// A guest that ages its pages sees the next access again, however its table was tracked.
#[test]
fn aged_pages_are_accessed_again() {
    for discipline in [Discipline::TrapAll, Discipline::OutOfSync] {
        let mut world = World {
            guest: Guest { entries: BTreeMap::new(), backed: 12 },
            tables: Vec::new(),
            pager: Pager::new(discipline, 3, HOST),
            cr3: frame(3, 0),
            since: BTreeMap::new(),
        };
        for (gpa, entry) in [
            (frame(3, 0), frame(2, 0) | P | RW | US),
            (frame(2, 0), frame(1, 0) | P | RW | US),
            (frame(1, 0), frame(0, 0) | P | RW | US),
            (frame(0, 0), 1 << 30 | P | US),
        ] {
            world.guest.entries.insert(gpa, entry);
        }
        let read = Access::new(Kind::Read, Privilege::User);
        for act in [Act::Invlpg(0), Act::Cr3(0)] {
            assert!(world.shadowed(0, &read).is_some());
            assert_ne!(world.guest.entry(frame(0, 0)) & A, 0);
            world.run(discipline, Act::Age { level: 0, table: 0, index: 0 });
            world.run(discipline, act);
            world.shadowed(0, &read);
            assert_ne!(world.guest.entry(frame(0, 0)) & A, 0, "{discipline:?} {act:?}");
        }
    }
}

/// INVLPG cannot reach a table that is not linked: one that is out of sync must be made true before
/// it is linked again (Linux 65855ed8b034).
#[test]
fn synchronized_before_it_is_linked() {
    let mut world = World {
        guest: Guest { entries: BTreeMap::new(), backed: 12 },
        tables: Vec::new(),
        pager: Pager::new(Discipline::OutOfSync, 3, HOST),
        cr3: frame(3, 0),
        since: BTreeMap::new(),
    };
    let link = frame(1, 0) | P | RW | US;
    for (gpa, entry) in [
        (frame(3, 0), frame(2, 0) | P | RW | US),
        (frame(2, 0), link),
        (frame(1, 0), frame(0, 0) | P | RW | US),
        (frame(0, 0), 1 << 30 | P | US),
    ] {
        world.guest.entries.insert(gpa, entry);
    }
    let read = Access::new(Kind::Read, Privilege::User);
    let old = world.shadowed(0, &read);
    world.store(frame(0, 0), 2 << 30 | P | US);
    world.store(frame(2, 0), 0);
    world.run(Discipline::OutOfSync, Act::Invlpg(0));
    world.store(frame(2, 0), link);
    let new = world.shadowed(0, &read);
    assert_ne!(new, old);
    assert_eq!(new, Some(world.guest.place(2 << 30).0));
}
