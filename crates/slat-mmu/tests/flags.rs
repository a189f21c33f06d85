//! RISC-V and Arm: accessed and dirty flags by policy (Svadu and Svade; HA and HD) through TLBs, and exact
//! reference counts, cold and with each make of caches.

use slat::edit::Encode;
use slat::format::arm64::{self, Granule, Stage1, Stage2, TranslationRegime};
use slat::format::riscv::{self, Scheme, Sv};
use slat::{EntryLayout, Gpa, Gva, Kind, References, Regime, SliceMemory, Spa, Stage, Updates};
use slat_mmu::array::Geometry;
use slat_mmu::tlb::{BankConfig, Served, Space, Tag, Tlb, TlbConfig};
use slat_mmu::walker::{Caches, Context, Globals, WalkCacheConfig, WalkerConfig};

const PAGE: u64 = 4096;
/// A page that is mapped to itself at both stages, and its neighbour.
const DATA: u64 = 0x3000;
const NEXT: u64 = 0x4000;

/// How one stage writes its entries.
#[derive(Clone, Copy)]
struct Entries {
    levels: u32,
    table: fn(u64) -> u64,
    leaf: fn(u64) -> u64,
}

const fn sv(levels: u32) -> Entries {
    // Leaves without A and D: V, R, W, X, U.
    Entries { levels, table: |next| next >> 2 | 1, leaf: |at| at >> 2 | 0x1f }
}

const fn sv_touched(levels: u32) -> Entries {
    Entries { leaf: |at| at >> 2 | 0xdf, ..sv(levels) }
}

const DBM: u64 = arm64::bits::DBM;
const AF: u64 = arm64::bits::AF;
const READ_ONLY: u64 = arm64::bits::AP_READ_ONLY;
const S2_WRITE: u64 = arm64::bits::S2AP_WRITE;

/// Stage 1: a user's page, clean, without AF.
const fn arm1(levels: u32) -> Entries {
    Entries { levels, table: |next| next | 3, leaf: |at| at | 3 | 1 << 6 | READ_ONLY | DBM }
}

/// Stage 2: write-back memory, readable, clean, without AF.
const fn arm2(levels: u32) -> Entries {
    Entries { levels, table: |next| next | 3, leaf: |at| at | 3 | 0xf << 2 | 1 << 6 | DBM }
}

const fn arm1_touched(levels: u32) -> Entries {
    Entries { leaf: |at| at | 3 | 1 << 6 | AF, ..arm1(levels) }
}

const fn arm2_touched(levels: u32) -> Entries {
    Entries { leaf: |at| at | 3 | 0xf << 2 | 3 << 6 | AF, ..arm2(levels) }
}

struct World {
    bytes: Vec<u8>,
    next: u64,
}

impl World {
    fn frames(&mut self, count: u64) -> u64 {
        self.next = self.next.next_multiple_of(count * PAGE) + count * PAGE;
        self.next - count * PAGE
    }

    fn poke(&mut self, at: u64, entry: u64) {
        let mut memory = SliceMemory::new(Spa::new(0), &mut self.bytes);
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    }

    fn peek(&mut self, at: u64) -> u64 {
        let mut memory = SliceMemory::new(Spa::new(0), &mut self.bytes);
        let read = slat::Memory::read(
            &mut memory,
            Spa::new(at),
            EntryLayout::LE64,
            &slat::Access::default(),
        );
        read.unwrap().value
    }

    /// Maps the first 2 MiB to themselves. Returns the root and the last table.
    fn identity(&mut self, entries: Entries, root_pages: u64) -> (u64, u64) {
        let root = self.frames(root_pages);
        let mut last = root;
        for _ in 1..entries.levels {
            let below = self.frames(1);
            self.poke(last, (entries.table)(below));
            last = below;
        }
        for page in 0..512 {
            self.poke(last + 8 * page, (entries.leaf)(page * PAGE));
        }
        (root, last)
    }
}

/// Both stages on tables of their own, with TLBs and caches.
struct Machine<F1: Encode, F2: Encode> {
    world: World,
    stage1: Stage<F1, Gva, Gpa>,
    stage2: Stage<F2, Gpa, Spa>,
    last1: u64,
    last2: u64,
    tlb: Tlb,
    caches: Caches,
    globals: Globals,
}

fn tag(number: u16) -> Tag {
    Tag::new(number).unwrap()
}

impl<F1: Encode, F2: Encode> Machine<F1, F2> {
    fn new(
        (format1, entries1): (F1, Entries),
        (format2, entries2, root_pages): (F2, Entries, u64),
        config: &WalkerConfig,
    ) -> Self {
        let mut world = World { bytes: vec![0; 2 << 20], next: 16 * PAGE };
        let (root2, last2) = world.identity(entries2, root_pages);
        let (root1, last1) = world.identity(entries1, 1);
        let bank = || vec![BankConfig::new(Geometry::full(16), &[12])];
        let tlbs = TlbConfig { fetch: bank(), load: bank(), largest: 12, ..TlbConfig::default() };
        Machine {
            world,
            stage1: Stage::new(format1, format1.root(root1)).with_updates(Updates::OnSuccess),
            stage2: Stage::new(format2, format2.root(root2)).with_updates(Updates::OnSuccess),
            last1,
            last2,
            tlb: Tlb::new(&tlbs).unwrap(),
            caches: Caches::new(config).unwrap(),
            globals: Globals::None,
        }
    }

    /// A user's access, walked even if a TLB knows it: how many entries were read; `None` where it faults.
    fn walk(&mut self, va: u64, kind: Kind) -> Option<u64> {
        let context = Context {
            stage1: &self.stage1,
            stage2: &self.stage2,
            regime: &Regime::default(),
            space: Space { own: tag(1), global: tag(2) },
            vm: tag(3),
            globals: self.globals,
            dirty_tracked: true,
        };
        let counted = References::default();
        let mut memory = SliceMemory::new(Spa::new(0), &mut self.world.bytes);
        let walked =
            self.caches.walk(&context, &mut memory, Gva::new(va), kind, true, &counted).ok()?;
        assert_eq!(walked.entry.place(va), va);
        self.tlb.insert(va, context.space, kind, walked.entry);
        Some(counted.count())
    }

    /// A user's access: where it was served; `None` where it faults.
    fn access(&mut self, va: u64, kind: Kind) -> Option<Served> {
        let space = Space { own: tag(1), global: tag(2) };
        let (served, _) = self.tlb.find(va, space, kind, true);
        if served == Served::Miss {
            self.walk(va, kind)?;
        }
        Some(served)
    }

    fn flush(&mut self) {
        self.tlb.retain(|_| false);
        self.caches.retain(|_| false);
    }

    /// The leaves of stage 1 and 2 for `DATA`, and stage 2's for the table that holds the former.
    fn leaves(&mut self) -> [u64; 3] {
        let table = self.last1 / PAGE;
        [self.last1 + DATA / PAGE * 8, self.last2 + DATA / PAGE * 8, self.last2 + table * 8]
            .map(|at| self.world.peek(at))
    }
}

const NONE: WalkerConfig = WalkerConfig::NONE;

fn riscv(hardware_ad: bool) -> riscv::Features {
    riscv::Features { hardware_ad, ..riscv::Features::default() }
}

fn riscv_machine(hardware_ad: bool) -> Machine<Sv, Sv> {
    let features = riscv(hardware_ad);
    let stage1 = (Sv::stage1(Scheme::Sv39, features), sv(3));
    Machine::new(stage1, (Sv::stage2(Scheme::Sv39, features), sv(3), 4), &NONE)
}

#[test]
fn svadu_sets_a_at_a_load_and_d_at_a_store_through_a_clean_entry() {
    let mut machine = riscv_machine(true);
    let (a, d) = (riscv::bits::A, riscv::bits::D);
    let flags = |machine: &mut Machine<Sv, Sv>| machine.leaves().map(|leaf| leaf & (a | d));
    assert_eq!(machine.access(DATA, Kind::Read), Some(Served::Miss));
    // To set A of VS-stage is to write to the page of its table.
    assert_eq!(flags(&mut machine), [a, a, a | d]);
    assert_eq!(machine.access(DATA, Kind::Read), Some(Served::First));
    // The entry is clean: the store walks, once.
    assert_eq!(machine.access(DATA, Kind::Write), Some(Served::Miss));
    assert_eq!(flags(&mut machine), [a | d; 3]);
    assert_eq!(machine.access(DATA, Kind::Write), Some(Served::First));
    // What software clears is set again only after its SFENCE.VMA and HFENCE.GVMA.
    let leaf = machine.last1 + DATA / PAGE * 8;
    let clean = machine.world.peek(leaf) & !(a | d);
    machine.world.poke(leaf, clean);
    assert_eq!(machine.access(DATA, Kind::Write), Some(Served::First));
    assert_eq!(flags(&mut machine)[0], 0);
    machine.flush();
    assert_eq!(machine.access(DATA, Kind::Write), Some(Served::Miss));
    assert_eq!(flags(&mut machine)[0], a | d);
}

#[test]
fn svade_faults_and_sets_nothing() {
    let mut machine = riscv_machine(false);
    let before = machine.leaves();
    assert_eq!(machine.access(DATA, Kind::Read), None);
    assert_eq!(machine.leaves(), before);
    // With A everywhere loads are served, and a store faults for D.
    for (table, page) in (0..512).flat_map(|page| [(machine.last1, page), (machine.last2, page)]) {
        let entry = machine.world.peek(table + 8 * page);
        machine.world.poke(table + 8 * page, entry | riscv::bits::A);
    }
    let before = machine.leaves();
    assert_eq!(machine.access(DATA, Kind::Read), Some(Served::Miss));
    assert_eq!(machine.access(DATA, Kind::Write), None);
    assert_eq!(machine.leaves(), before);
}

fn arm_machine(ha: bool, hd: bool) -> Machine<Stage1, Stage2> {
    let processor = arm64::Processor { physical_bits: 48, ..arm64::Processor::default() };
    // T0SZ 25 for 39 bits, IPS 48 bits, EPD1, HA, HD.
    let tcr = 25 | 5 << 32 | 1 << 23 | u64::from(ha) << 39 | u64::from(hd) << 40;
    let stage1 = Stage1::new(TranslationRegime::El10, tcr, 1, 0, &processor).unwrap();
    let vtcr = Stage2::control(Granule::Four, 39, &processor);
    let vtcr = vtcr | u64::from(ha) << 21 | u64::from(hd) << 22;
    let stage2 = Stage2::new(vtcr, 1, 0, &processor).unwrap();
    Machine::new((stage1, arm1(3)), (stage2, arm2(3), 1), &NONE)
}

#[test]
fn ha_sets_the_access_flag_and_hd_makes_clean_leaves_writable() {
    let mut machine = arm_machine(true, true);
    assert_eq!(machine.access(DATA, Kind::Read), Some(Served::Miss));
    let [leaf1, leaf2, table] = machine.leaves();
    assert_eq!(leaf1 & (AF | READ_ONLY), AF | READ_ONLY);
    assert_eq!(leaf2 & (AF | S2_WRITE), AF);
    // The walker wrote the leaf of stage 1.
    assert_eq!(table & (AF | S2_WRITE), AF | S2_WRITE);
    assert_eq!(machine.access(DATA, Kind::Read), Some(Served::First));
    assert_eq!(machine.access(DATA, Kind::Write), Some(Served::Miss));
    let [leaf1, leaf2, _] = machine.leaves();
    assert_eq!((leaf1 & (AF | READ_ONLY), leaf2 & (AF | S2_WRITE)), (AF, AF | S2_WRITE));
    assert_eq!(machine.access(DATA, Kind::Write), Some(Served::First));
}

#[test]
fn without_hd_a_clean_leaf_is_read_only_and_without_ha_a_clear_flag_faults() {
    let mut machine = arm_machine(false, false);
    let before = machine.leaves();
    for kind in [Kind::Read, Kind::Write] {
        assert_eq!(machine.access(DATA, kind), None);
    }
    assert_eq!(machine.leaves(), before);
    // HA writes the access flag to stage 1's leaf, whose page stage 2 must then let be written.
    let mut machine = arm_machine(true, false);
    assert_eq!(machine.access(DATA, Kind::Read), None, "the table's page is read-only at stage 2");
    let table = machine.last2 + machine.last1 / PAGE * 8;
    let entry = machine.world.peek(table);
    machine.world.poke(table, entry | S2_WRITE);
    assert_eq!(machine.access(DATA, Kind::Read), Some(Served::Miss));
    assert_eq!(machine.access(DATA, Kind::Write), None);
    let [leaf1, leaf2, _] = machine.leaves();
    assert_eq!(leaf1 & (AF | READ_ONLY), AF | READ_ONLY);
    assert_eq!(leaf2 & S2_WRITE, 0);
}

/// Reads by a first walk, by one of its neighbour, and by the first once more.
fn counts<F1: Encode, F2: Encode>(mut machine: Machine<F1, F2>) -> [u64; 3] {
    [DATA, NEXT, DATA].map(|va| machine.walk(va, Kind::Read).unwrap())
}

/// (guest levels + 1)(host levels + 1) - 1.
fn cold(guest: u32, host: u32) -> u64 {
    u64::from((guest + 1) * (host + 1) - 1)
}

#[test]
fn riscv_reads_as_many_entries_as_its_levels_say() {
    let own = |scheme: Scheme| u32::from(scheme.levels());
    for guest in [Scheme::Sv39, Scheme::Sv48, Scheme::Sv57] {
        for host in [Scheme::Sv39, Scheme::Sv48, Scheme::Sv57] {
            let machine = |config: &WalkerConfig| {
                Machine::new(
                    (Sv::stage1(guest, riscv(false)), sv_touched(own(guest))),
                    (Sv::stage2(host, riscv(false)), sv_touched(own(host)), 4),
                    config,
                )
            };
            let all = cold(own(guest), own(host));
            assert_eq!(counts(machine(&NONE)), [all; 3], "{guest:?} on {host:?}");
            // With the last tables of both stages cached: a leaf of each.
            let full = WalkCacheConfig::shared(Geometry::full(16));
            let config = WalkerConfig { stage1: full, stage2: full, ..NONE };
            assert_eq!(counts(machine(&config))[1..], [2, 2], "{guest:?} on {host:?}");
        }
    }
}

#[test]
fn arm_reads_as_many_entries_as_its_levels_say() {
    let processor = arm64::Processor { physical_bits: 48, ..arm64::Processor::default() };
    for (guest_bits, guest) in [(39u8, 3), (48, 4)] {
        for (host_bits, host) in [(39u8, 3), (48, 4)] {
            let machine = |config: &WalkerConfig| {
                let stage1 = Stage1::plain(Granule::Four, guest_bits, &processor).unwrap();
                let stage2 = Stage2::plain(Granule::Four, host_bits, &processor).unwrap();
                let stage1 = (stage1, arm1_touched(guest));
                Machine::new(stage1, (stage2, arm2_touched(host), 1), config)
            };
            let all = cold(guest, host);
            assert_eq!(counts(machine(&NONE)), [all; 3], "{guest} on {host} levels");
            // The walk cache names the last table and its place; the IPA cache does not know the
            // neighbour, whose translation is walked from its root; the first page it does know.
            let config = WalkerConfig::arm(Geometry::full(16), Geometry::full(16), &[12]);
            let expected = [1 + u64::from(host), 1];
            assert_eq!(counts(machine(&config))[1..], expected, "{guest} on {host} levels");
        }
    }
}
