//! TLBs and walk caches of every make beside the plain two-stage walk, on random tables that nobody
//! changes: the same places, the same memory types, the same faults, the same accessed and dirty bits.

use std::collections::BTreeSet;

use slat::format::Format;
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::x86::Controls;
use slat::format::x86::hlat::{self, Hlat};
use slat::format::x86::long::{Long, Processor};
use slat::{
    Access, EntryLayout, Gpa, Gva, Kind, Memory, Outside, Privilege, Regime, SliceMemory, Spa,
    Stage, Updates, Value,
};
use slat_mmu::array::Geometry;
use slat_mmu::tlb::{Asked, BankConfig, Served, Space, Tag, Tlb, TlbConfig};
use slat_mmu::walker::{Caches, Context, Design, Globals, WalkCacheConfig, WalkerConfig};

const PAGE: u64 = 4096;
/// The guest's frames, and where they lie.
const FRAMES: u64 = 512;
const GUEST: u64 = 2 << 20;
const MEMORY: usize = 4 << 20;

struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn flag(&mut self, bit: u64, one_in: u64) -> u64 {
        u64::from(self.one_in(one_in)) << bit
    }
}

fn poke(bytes: &mut [u8], at: u64, entry: u64) {
    SliceMemory::new(Spa::new(0), bytes).poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
}

/// Groups of four frames stay together.
fn place(frame: u64, order: u64) -> u64 {
    GUEST + ((frame ^ order << 2) % FRAMES) * PAGE
}

/// EPT at pages 1 to 4, or to 3 with one page of 2 MiB; the guest's tables at its frames 1, 2 to 3, 4 to
/// 5 and 6 to 9.
fn world(stream: &mut Stream, accessed_dirty: bool) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    let mut order = stream.below(FRAMES / 4);
    let mut leaf = if accessed_dirty { 0x30 } else { 0x330 };
    poke(&mut bytes, PAGE, (2 * PAGE) | 7);
    poke(&mut bytes, 2 * PAGE, (3 * PAGE) | 7);
    if stream.one_in(4) {
        order = 0;
        poke(&mut bytes, 3 * PAGE, GUEST | 0x80 | 7 | leaf);
    } else {
        poke(&mut bytes, 3 * PAGE, (4 * PAGE) | 7);
        let mut rights = 7;
        for frame in 0..FRAMES {
            if frame % 4 == 0 || stream.one_in(8) {
                rights = [7, 7, 7, 3, 5, 1, 4][stream.below(7) as usize];
                let memory_type = [0, 1, 4, 5, 6, 6, 6][stream.below(7) as usize];
                leaf = leaf & !0x78 | memory_type << 3 | stream.flag(6, 6);
            }
            // Tables can be read, and mostly be written.
            let rights =
                if frame < 10 { [7, 7, 7, 3, 1][stream.below(5) as usize] } else { rights };
            let present = if stream.one_in(40) { 0 } else { rights };
            let place = place(frame, order);
            poke(
                &mut bytes,
                4 * PAGE + 8 * frame,
                if present == 0 { 0 } else { place | present | leaf },
            );
        }
    }
    let mut entry = |table: u64, index: u64, value: u64| {
        poke(&mut bytes, place(table, order) + 8 * index, value);
    };
    for (tables, below, level) in [(1..2, 2..4, 3), (2..4, 4..6, 2), (4..6, 6..10, 1)] {
        for table in tables {
            for (index, next) in (0..).zip(below.clone()) {
                let restricts = stream.flag(63, 6) | if stream.one_in(6) { 0 } else { 2 };
                let flags = 1 | restricts | if stream.one_in(6) { 0 } else { 4 };
                let value = if level == 1 && stream.one_in(6) {
                    flags | 0x80 | stream.flag(3, 3) | stream.flag(4, 3) | stream.flag(12, 3)
                } else {
                    (next * PAGE) | flags
                };
                entry(table, index, if stream.one_in(20) { 0 } else { value });
            }
        }
    }
    for table in 6..10 {
        for group in 0..4u64 {
            let joined = stream.one_in(2);
            let (first, mut flags) = (stream.below(FRAMES / 4) * 4, 0);
            for n in 0..4 {
                if n == 0 || !joined {
                    flags = 1 | stream.flag(1, 2) | stream.flag(2, 2) | stream.flag(63, 2);
                    flags |= stream.flag(5, 2) | stream.flag(6, 3) | stream.flag(8, 5);
                    flags |= stream.flag(3, 3) | stream.flag(4, 3) | stream.flag(7, 3);
                    flags |= stream.below(3) << 59;
                }
                let frame = if joined { first + n } else { stream.below(FRAMES) };
                entry(
                    table,
                    group * 4 + n,
                    if stream.one_in(30) { 0 } else { (frame * PAGE) | flags },
                );
            }
        }
    }
    bytes
}

/// Memory of several processors: at one update in three, another one sets the bits just before.
struct Contended<'a, 'b> {
    memory: SliceMemory<'a, Spa>,
    stream: &'b mut Stream,
}

impl Memory for Contended<'_, '_> {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        self.memory.read(address, layout, access)
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        let won = self.memory.compare_exchange(address, layout, current, new, access)?;
        Ok(won && !self.stream.one_in(3))
    }
}

fn configs() -> Vec<(&'static str, WalkerConfig)> {
    let small = Geometry::lru(4, 2);
    let intel = WalkerConfig::intel(WalkCacheConfig::by_level([
        small,
        Geometry::full(2),
        Geometry::full(1),
        Geometry::NONE,
    ]));
    let joins = WalkerConfig { coalesces: 2, ..intel };
    let amd = |design| WalkerConfig::amd(design, 6, 3);
    vec![
        ("none", WalkerConfig::NONE),
        ("Intel's", intel),
        ("1D_PWC", amd(Design::OneD)),
        ("2D_PWC", amd(Design::TwoD)),
        ("2D_PWC+NT", amd(Design::TwoDNestedTlb)),
        ("Arm's", WalkerConfig::arm(small, small, &[12, 21])),
        ("joining", joins),
        (
            "Arm's, joining",
            WalkerConfig { coalesces: 2, ..WalkerConfig::arm(small, small, &[12, 14, 21]) },
        ),
    ]
}

#[test]
fn caches_change_no_translation() {
    let mut stream = Stream(0x2545_f491_4f6c_dd1d);
    let sizes = [12, 14, 21, 30];
    let first = || vec![BankConfig::new(Geometry::lru(8, 4), &sizes)];
    let tlbs = TlbConfig {
        fetch: first(),
        load: first(),
        second: vec![BankConfig::new(Geometry::lru(24, 12), &sizes)],
        largest: 30,
        ..TlbConfig::default()
    };
    let tag = |number| Tag::new(number).unwrap();
    let space = Space { own: tag(1), global: tag(2) };
    let (mut hits, mut faults, mut walks, mut joined) = (0, 0, 0, 0);
    let mut types = BTreeSet::new();
    for round in 0..60 {
        let accessed_dirty = round % 2 == 0;
        let start = world(&mut stream, accessed_dirty);
        let controls = Controls {
            nxe: true,
            write_protect: !stream.one_in(3),
            smep: stream.one_in(2),
            smap: stream.one_in(2),
            user_keys: stream.one_in(2),
            supervisor_keys: stream.one_in(2),
            ..Controls::default()
        };
        let mut regime = Regime::default();
        regime.x86.alignment_check = stream.one_in(2);
        // PAT 4 to 7 are write-protect, write-combining, UC- and write-through.
        regime.x86.pat = 0x0407_0105_0007_0406;
        // What the guest puts in its registers of keys, which drops nothing: access-disable and
        // write-disable of three keys.
        let regimes = [(); 3].map(|()| {
            let mut regime = regime.clone();
            regime.x86.pkru = stream.below(64) as u32;
            regime.x86.pkrs = stream.below(64) as u32;
            regime
        });
        let long = Long::four(controls, Processor::default());
        let features = ept::Features { accessed_dirty, ..ept::Features::default() };
        let stage1 = Stage::<_, Gva, Gpa>::new(long, PAGE).with_updates(Updates::OnSuccess);
        let stage2 =
            Stage::<_, Gpa, Spa>::new(Ept::four(features), PAGE).with_updates(Updates::OnSuccess);
        let asked: Vec<(u64, Kind, bool, &Regime)> = (0..300)
            .map(|_| {
                let va = stream.below(2) << 39
                    | stream.below(2) << 30
                    | stream.below(2) << 21
                    | stream.below(17) << 12
                    | stream.below(512) << 3;
                let kind = [Kind::Read, Kind::Write, Kind::Execute][stream.below(3) as usize];
                (va, kind, stream.one_in(2), &regimes[stream.below(3) as usize])
            })
            .collect();
        for (name, config) in configs() {
            let (mut own, mut plain) = (start.clone(), start.clone());
            let mut tlb = Tlb::new(&tlbs).unwrap();
            let mut caches = Caches::new(&config).unwrap();
            let mut contention = Stream(0x9e37_79b9 + round);
            for (number, &(va, kind, user, regime)) in (1..).zip(&asked) {
                let context = Context {
                    stage1: &stage1,
                    stage2: &stage2,
                    regime,
                    space,
                    vm: tag(3),
                    globals: Globals::X86,
                    dirty_tracked: true,
                };
                let privilege = if user { Privilege::User } else { Privilege::Supervisor };
                let access = Access::new(kind, privilege);
                let mut memory = SliceMemory::new(Spa::new(0), &mut plain);
                let gva = Gva::new(va);
                let expected =
                    slat::translate(&stage1, &stage2, &mut memory, gva, &access, regime, &());
                let expected = expected.ok().map(|found| {
                    let kind = found.memory_type(&stage1.format, &stage2.format, regime);
                    (slat::Address::raw(found.output()), kind)
                });
                let unlicensed = match kind {
                    Kind::Execute => controls.smep,
                    _ => controls.smap && !regime.x86.alignment_check,
                };
                let even_read_only = !user && kind == Kind::Write && !controls.write_protect;
                let pkru = if controls.user_keys { regime.x86.pkru } else { 0 };
                let pkrs = if controls.supervisor_keys { regime.x86.pkrs } else { 0 };
                let asks = Asked::new(kind, user)
                    .not_of_user(!user && unlicensed)
                    .even_read_only(even_read_only)
                    .by_keys(kind, pkru, pkrs, even_read_only);
                let (served, entry) = tlb.find_for(va, space, kind, asks);
                let found = if served == Served::Miss {
                    walks += 1;
                    let memory = SliceMemory::new(Spa::new(0), &mut own);
                    let mut memory = Contended { memory, stream: &mut contention };
                    let walked = caches.walk(&context, &mut memory, Gva::new(va), kind, user, &());
                    walked.ok().map(|walked| {
                        joined += u64::from(walked.entry.shift == 14);
                        tlb.insert(va, space, kind, walked.entry);
                        walked.entry
                    })
                } else {
                    hits += 1;
                    Some(entry)
                };
                let found = found.map(|entry| {
                    let (format1, format2) = (&stage1.format, &stage2.format);
                    let held = entry.memory_type(va, kind, format1, format2, regime);
                    types.insert(held.to_string());
                    (entry.place(va), held)
                });
                faults += u64::from(found.is_none());
                assert_eq!(
                    found, expected,
                    "{name}, round {round}: {kind:?} by user {user} of {va:#x}"
                );
                let compared = number % 30 != 0 || own == plain;
                assert!(compared, "{name}, round {round}: bits by {kind:?} of {va:#x} or before");
            }
        }
    }
    let counts = [hits, faults, walks, joined];
    let least = [5_000, 10_000, 20_000, 200];
    assert!(counts.iter().zip(least).all(|(&count, least)| count > least), "{counts:?}");
    assert_eq!(types.len(), 5, "every type is met: {types:?}");
}

/// Where a native machine with Intel's caches finds each of these addresses, one after the other.
fn found<F: Format>(stage1: &Stage<F, Gva, Gpa>, bytes: &mut [u8], addresses: &[u64]) -> Vec<u64> {
    let full = Geometry::full(8);
    let levels = WalkCacheConfig::by_level([full, full, full, Geometry::NONE]);
    let mut caches = Caches::new(&WalkerConfig::intel(levels)).unwrap();
    let tag = |number| Tag::new(number).unwrap();
    let context = Context {
        stage1,
        stage2: &Stage::new(Flat::new("off", 2, 64), ()),
        regime: &Regime::default(),
        space: Space { own: tag(1), global: tag(2) },
        vm: tag(3),
        globals: Globals::None,
        dirty_tracked: true,
    };
    let sizes = BankConfig::new(Geometry::full(8), &[12, 21]);
    let tlbs = TlbConfig { load: vec![sizes], largest: 30, ..TlbConfig::default() };
    let mut tlb = Tlb::new(&tlbs).unwrap();
    let mut find = |va| {
        let (served, entry) = tlb.find(va, context.space, Kind::Read, false);
        if served != Served::Miss {
            return entry.place(va);
        }
        let mut memory = SliceMemory::new(Spa::new(0), bytes);
        let walked = caches.walk(&context, &mut memory, Gva::new(va), Kind::Read, false, &());
        let entry = walked.unwrap().entry;
        tlb.insert(va, context.space, Kind::Read, entry);
        entry.place(va)
    };
    addresses.iter().map(|&va| find(va)).collect()
}

/// A walk that passes an entry twice sets its accessed bit at the first pass, and starts over at the
/// second, which still holds the entry of before: what it passed until then is not what the walk that
/// succeeded has passed.
#[test]
fn a_walk_that_starts_over_caches_what_it_passed_last() {
    let mut bytes = vec![0; 16 * PAGE as usize];
    // PML4 at page 1, which names itself in entry 1 and a PDPT at page 2 in entry 3.
    for (at, entry) in [
        (PAGE + 8, PAGE | 3),
        (PAGE + 8 * 3, (2 * PAGE) | 3),
        (PAGE + 8 * 5, (9 * PAGE) | 3),
        (2 * PAGE + 8 * 4, (4 * PAGE) | 3),
        (2 * PAGE + 8 * 5, (5 * PAGE) | 3),
    ] {
        poke(&mut bytes, at, entry);
    }
    let long = Long::four(Controls::default(), Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, PAGE).with_updates(Updates::OnSuccess);
    // The PDPT seen as a page table: its entries as pages.
    let page = |c: u64| 1 << 39 | 1 << 30 | 3 << 21 | c << 12;
    assert_eq!(found(&stage1, &mut bytes, &[page(4), page(5)]), [4 * PAGE, 5 * PAGE]);
}

/// HLAT (Intel SDM 3A 5.5.5): the restart of one page concerns no other, neither the tables of the
/// ordinary root nor the rest of a large page there.
#[test]
fn a_restart_concerns_what_its_entry_translates() {
    let mut bytes = vec![0; 16 * PAGE as usize];
    // The guest's tables at pages 1 to 3, with a page of 2 MiB; the hypervisor's at 5 to 8.
    for (at, entry) in [
        (PAGE, (2 * PAGE) | 3),
        (2 * PAGE, (3 * PAGE) | 3),
        (3 * PAGE, 0x40_0083),
        (5 * PAGE, (6 * PAGE) | 3),
        (6 * PAGE, (7 * PAGE) | 3),
        (7 * PAGE, (8 * PAGE) | 3),
        (8 * PAGE, hlat::RESTART | 3),
        (8 * PAGE + 8, 0x9_0003),
    ] {
        poke(&mut bytes, at, entry);
    }
    let long = Long::four(Controls::default(), Processor::default());
    let root = hlat::Root { hlatp: 5 * PAGE, cr3: PAGE };
    for updates in [Updates::Never, Updates::OnSuccess] {
        let stage1 = Stage::<_, Gva, Gpa>::new(Hlat::new(long, 0), root).with_updates(updates);
        assert_eq!(found(&stage1, &mut bytes, &[0x10, PAGE, 0]), [0x40_0010, 0x9_0000, 0x40_0000]);
    }
}
