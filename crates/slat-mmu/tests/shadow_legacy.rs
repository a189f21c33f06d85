//! The shadow pager for guests with 32-bit paging, beside the walk of their own tables: the same
//! places, the same faults, the same accessed and dirty bits, whenever the shadow has to be true.

use std::convert::Infallible;

use proptest::prelude::*;
use slat::format::x86::Controls;
use slat::format::x86::legacy::Legacy;
use slat::{
    Access, EntryLayout, Gpa, Gva, Kind, Memory, Outside, Privilege, Reached, Regime, Spa, Stage,
    Updates, Value, walk,
};
use slat_mmu::shadow::{Discipline, Exit, Filled, GuestTables, Kept, Pager, Place, Table, Widened};

const PAGE: u64 = 4096;
/// The page directory and three page tables, of which one is named from both halves and by itself.
const DIRECTORY: u64 = 2 * PAGE;
const TABLES: [u64; 3] = [4 * PAGE, 7 * PAGE, 8 * PAGE];
/// Where the shadow tables lie.
const BASE: u64 = 1 << 45;

/// The guest's tables by words of eight bytes, and the host's placement.
#[derive(Clone, PartialEq, Debug)]
struct Guest {
    words: Vec<u64>,
    backed: u8,
    /// The host keeps all of the guest's pages read-only until the next store.
    kept: bool,
}

impl Guest {
    fn lies(&self, gpa: u64) -> u64 {
        let (page, within) = (gpa >> self.backed, gpa & ((1 << self.backed) - 1));
        ((page ^ 0x2a) << self.backed | within) + (1 << 42)
    }

    fn put(&mut self, at: u64, entry: u32) {
        let word = &mut self.words[(at / 8) as usize];
        *word = *word & !(0xffff_ffff << (at % 8 * 8)) | u64::from(entry) << (at % 8 * 8);
    }
}

impl GuestTables for Guest {
    fn entry(&self, gpa: u64) -> u64 {
        self.words.get((gpa / 8) as usize).copied().unwrap_or(0)
    }

    fn touch(&mut self, gpa: u64, bits: u64) -> Result<(), Kept> {
        if self.kept {
            return Err(Kept(gpa));
        }
        self.words[(gpa / 8) as usize] |= bits;
        Ok(())
    }

    fn place(&self, gpa: u64) -> Option<Place> {
        Some(Place { writable: !self.kept, ..Place::writable(self.lies(gpa), self.backed) })
    }
}

/// The guest's tables as its processor reads them.
struct Own<'a>(&'a mut Guest);

impl Memory for Own<'_> {
    type Address = Gpa;
    type Fault = Infallible;

    fn read(&mut self, at: Gpa, _: EntryLayout, _: &Access) -> Result<Value, Infallible> {
        let at = at.raw();
        let value = self.0.entry(at) >> (at % 8 * 8) & 0xffff_ffff;
        Ok(Value { value, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        at: Gpa,
        _: EntryLayout,
        _: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Infallible> {
        self.0.put(at.raw(), new as u32);
        Ok(true)
    }
}

/// The shadow tables as the processor reads them.
struct Shadow<'a>(&'a mut [Table]);

impl Memory for Shadow<'_> {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(&mut self, at: Spa, _: EntryLayout, _: &Access) -> Result<Value, Outside<Spa>> {
        let offset = at.raw() - BASE;
        let value = self.0[(offset / PAGE) as usize][(offset / 8 % 512) as usize];
        Ok(Value { value, reached: Reached::DIRECTLY })
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

#[derive(Clone, Copy, Debug)]
enum Act {
    /// An entry of the directory (4) or of a table, by number: what it names, its low bits.
    Store {
        table: u8,
        index: u8,
        target: u8,
        flags: u16,
    },
    Touch {
        address: u8,
        kind: u8,
        user: bool,
    },
    /// CR0.WP is set, or cleared.
    WriteProtect(bool),
    /// The host wants to see the next store.
    Protect,
}

fn act() -> impl Strategy<Value = Act> {
    let store = (0..6u8, 0..8u8, any::<u8>(), any::<u16>());
    prop_oneof![
        2 => store.prop_map(|(table, index, target, flags)| Act::Store {
            table, index, target, flags
        }),
        3 => (any::<u8>(), 0..3u8, any::<bool>()).prop_map(|(address, kind, user)| Act::Touch {
            address, kind, user
        }),
        1 => any::<bool>().prop_map(Act::WriteProtect),
        1 => Just(Act::Protect),
    ]
}

/// Entries of the directory, and of tables, that are used: in all quarters and both halves.
const PDES: [u64; 8] = [0, 1, 255, 256, 511, 512, 768, 1023];
const PTES: [u64; 8] = [0, 1, 2, 511, 512, 513, 900, 1023];

struct World {
    pager: Pager,
    tables: Vec<Table>,
    guest: Guest,
    format: Legacy,
    regime: Regime,
    /// Hits and hidden faults.
    seen: [u64; 2],
}

impl World {
    fn store(&mut self, table: u8, index: u8, target: u8, flags: u16) {
        let index = usize::from(index);
        // Mostly present, and with every reserved bit a few times.
        let mut entry = u32::from(flags) & 0xe7f | u32::from(target % 8 != 7);
        let at = if table < 3 {
            entry |= u32::from(target) << 12;
            TABLES[usize::from(table)] + PTES[index] * 4
        } else if flags & 1 << 7 != 0 && target.is_multiple_of(2) {
            // A page of 4 MiB, with address bits above 32, a reserved one in one of sixteen.
            entry |= u32::from(target >> 4) << 22 | u32::from(target & 3) << 13 | 1 << 7;
            entry |= u32::from(flags >> 12 == 0) << 21;
            DIRECTORY + PDES[index] * 4
        } else {
            let tables = [TABLES[0], TABLES[1], TABLES[2], DIRECTORY];
            entry = entry & !(1 << 7) | tables[usize::from(target >> 1) % 4] as u32;
            DIRECTORY + PDES[index] * 4
        };
        self.guest.put(at, entry);
        self.pager.store_legacy(&mut self.tables, at);
    }

    fn touch(&mut self, address: u8, kind: u8, user: bool) {
        let (pde, pte) = (PDES[usize::from(address % 8)], PTES[usize::from(address / 8 % 8)]);
        let va = pde << 22 | pte << 12 | u64::from(address) << 2;
        let kind = [Kind::Read, Kind::Write, Kind::Execute][usize::from(kind)];
        let privilege = if user { Privilege::User } else { Privilege::Supervisor };
        let access = Access::new(kind, privilege);
        let mut expected = self.guest.clone();
        let own =
            Stage::<_, Gva, Gpa>::new(self.format, DIRECTORY).with_updates(Updates::OnSuccess);
        let found =
            walk(&own, &mut Own(&mut expected), Gva::new(va), &access, &self.regime, &()).ok();
        let place = found.map(|found| self.guest.lies(found.output.raw()));
        // The processor runs with CR0.WP set.
        let walked = Widened::new(&mut self.guest, self.format).walked();
        assert!(walked.controls().write_protect);
        let cr3 = Widened::<Guest>::root(DIRECTORY);
        for _ in 0..3 {
            let root = self.pager.root(&mut self.tables, cr3);
            let stage = Stage::<_, Gva, Spa>::new(walked, root);
            let shadow = &mut Shadow(&mut self.tables);
            if let Ok(hit) = walk(&stage, shadow, Gva::new(va), &access, &self.regime, &()) {
                self.seen[0] += 1;
                assert_eq!(Some(hit.output.raw()), place, "{kind:?} of {va:#x}");
                assert_eq!(self.guest, expected, "{kind:?} of {va:#x}");
                assert!(kind != Kind::Write || !self.guest.kept, "{va:#x}: a store is not seen");
                return;
            }
            let mut guest = Widened::new(&mut self.guest, self.format);
            let stage1 = guest.stage(DIRECTORY);
            let (pager, tables) = (&mut self.pager, &mut self.tables);
            match pager.fill(tables, &mut guest, &stage1, &self.regime, va, &access) {
                Filled::True => {
                    assert_eq!(place, None, "{kind:?} of {va:#x} faults");
                    assert_eq!(self.guest, expected);
                    return;
                }
                Filled::Host { gpa } => {
                    // An accessed or dirty bit in a table, or a store of its own.
                    let last = found.is_some_and(|found| found.output.raw() == gpa);
                    let table = TABLES.iter().chain([&DIRECTORY]).any(|at| gpa & !0xfff == *at);
                    assert!(self.guest.kept && (table || last && kind == Kind::Write), "{gpa:#x}");
                    (self.guest.kept, expected.kept) = (false, false);
                }
                Filled::Hidden(_) => {
                    self.seen[1] += 1;
                    assert_eq!(self.guest, expected, "{kind:?} of {va:#x}");
                    assert!(place.is_some(), "{kind:?} of {va:#x} does not fault");
                }
                Filled::Carried { gpa, exit } => {
                    self.seen[1] += 1;
                    assert_eq!(self.guest, expected, "{kind:?} of {va:#x}");
                    assert_eq!(Some(self.guest.lies(gpa)), place, "{kind:?} of {va:#x}");
                    assert_eq!(exit, Exit::Emulation);
                    assert!(!self.format.controls().write_protect && !user);
                    return;
                }
            }
        }
        panic!("{kind:?} of {va:#x} is never served");
    }
}

fn run(bits: [bool; 6], backed: u8, acts: &[Act]) -> [u64; 2] {
    let [out_of_sync, write_protect, smep, smap, alignment_check, large] = bits;
    let controls = Controls { write_protect, smep, smap, ..Controls::default() };
    let discipline = if out_of_sync { Discipline::OutOfSync } else { Discipline::TrapAll };
    let mut regime = Regime::default();
    regime.x86.alignment_check = alignment_check;
    let mut world = World {
        pager: Pager::new(discipline, 3, BASE),
        tables: Vec::new(),
        guest: Guest { words: vec![0; 8192], backed, kept: false },
        format: Legacy::new(controls, large, 40),
        regime,
        seen: [0; 2],
    };
    // Something to begin with: the directory names the tables, and these some pages.
    for index in 0..8u8 {
        world.store(4, index, index % 3 * 2, 7);
        (0..3).for_each(|table| world.store(table, index, 16 + index * 3 + table, 7));
    }
    for &act in acts {
        match act {
            Act::Store { table, index, target, flags } => {
                world.store(table, index, target, flags);
                if out_of_sync {
                    let guest = Widened::new(&mut world.guest, world.format);
                    let root = Widened::<Guest>::root(DIRECTORY);
                    world.pager.load_cr3(&mut world.tables, &guest, &[root]);
                }
            }
            Act::Touch { address, kind, user } => world.touch(address, kind, user),
            Act::WriteProtect(write_protect) => {
                let controls = Controls { write_protect, ..*world.format.controls() };
                world.format = Legacy::new(controls, large, 40);
            }
            Act::Protect => {
                world.guest.kept = true;
                world.pager.protect_host(&mut world.tables, 0, 50);
            }
        }
    }
    // Nothing is left when the guest frees its tables, nor of what splits large pages.
    for frame in TABLES.into_iter().chain([DIRECTORY]) {
        world.pager.release_legacy(&mut world.tables, frame);
    }
    assert_eq!(world.pager.live_tables(), 0);
    world.seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_translates_as_the_guests_own_tables(
        bits in any::<[bool; 6]>(),
        backed in prop_oneof![Just(12u8), Just(21), Just(30)],
        acts in prop::collection::vec(act(), 1..120),
    ) {
        run(bits, backed, &acts);
    }
}

#[test]
fn hits_and_fills_both_happen() {
    let touch = |address, kind| Act::Touch { address, kind, user: true };
    let acts: Vec<Act> = (0..64).flat_map(|n| [touch(n, 0), touch(n, 1), touch(n, 1)]).collect();
    let [hits, fills] = run([false, true, false, false, false, true], 12, &acts);
    assert!(hits >= 192 && (24..192).contains(&fills), "{hits} hits, {fills} fills");
}
