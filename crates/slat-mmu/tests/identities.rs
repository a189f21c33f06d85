//! Exact reference counts with each cache, on real tables.

use slat::format::Format;
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{EntryLayout, Gpa, Gva, Kind, References, Regime, SliceMemory, Spa, Stage};
use slat_mmu::array::Geometry;
use slat_mmu::tlb::{BankConfig, Space, Tag};
use slat_mmu::walker::{Caches, Context, Design, Globals, WalkCacheConfig, WalkerConfig};

const PAGE: u64 = 4096;

struct World {
    bytes: Vec<u8>,
    next: u64,
}

impl World {
    fn new() -> World {
        World { bytes: vec![0; 4 << 20], next: PAGE }
    }

    fn frame(&mut self) -> u64 {
        self.next += PAGE;
        self.next - PAGE
    }

    fn poke(&mut self, address: u64, value: u64) {
        let mut memory = SliceMemory::new(Spa::new(0), &mut self.bytes);
        memory.poke(Spa::new(address), EntryLayout::LE64, value).unwrap();
    }

    /// Identity-maps the first 4 MiB by 4 KiB pages under four levels.
    fn identity(&mut self, table: u64, leaf: u64) -> u64 {
        let root = self.frame();
        let (second, third) = (self.frame(), self.frame());
        self.poke(root, second | table);
        self.poke(second, third | table);
        for half in 0..2 {
            let last = self.frame();
            self.poke(third + 8 * half, last | table);
            for i in 0..512 {
                self.poke(last + 8 * i, ((half * 512 + i) * PAGE) | leaf);
            }
        }
        root
    }
}

/// References of a second walk, to `second`, after one to `first`.
fn references<F2: Format>(
    config: &WalkerConfig,
    stage2: impl Fn(u64) -> Stage<F2, Gpa, Spa>,
    first: u64,
    second: u64,
) -> (u64, u64) {
    let mut world = World::new();
    let stage2 = stage2(world.identity(7, 0x37));
    let stage1_root = world.identity(7, 7);
    let long = Long::four(Controls::default(), Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, stage1_root);
    let regime = Regime::default();
    let own = Tag::new(1).unwrap();
    let context = Context {
        stage1: &stage1,
        stage2: &stage2,
        regime: &regime,
        space: Space { own, global: Tag::new(2).unwrap() },
        vm: own,
        globals: Globals::X86,
        dirty_tracked: true,
    };
    let mut caches = Caches::new(config).unwrap();
    let mut memory = SliceMemory::new(Spa::new(0), &mut world.bytes);
    let mut walk = |address: u64| {
        let counted = References::default();
        let found = caches
            .walk(&context, &mut memory, Gva::new(address), Kind::Read, true, &counted)
            .unwrap();
        assert_eq!(found.entry.base, address & !0xfff);
        counted.count()
    };
    (walk(first), walk(second))
}

fn ept(root: u64) -> Stage<Ept, Gpa, Spa> {
    Stage::new(Ept::four(ept::Features::default()), root)
}

fn native(_: u64) -> Stage<Flat, Gpa, Spa> {
    Stage::new(Flat::new("off", 2, 64), ())
}

const PDE_ONLY: WalkCacheConfig =
    WalkCacheConfig::by_level([Geometry::full(8), Geometry::NONE, Geometry::NONE, Geometry::NONE]);

#[test]
fn cold() {
    assert_eq!(references(&WalkerConfig::NONE, ept, 0x1000, 0x2000), (24, 24));
    assert_eq!(references(&WalkerConfig::NONE, native, 0x1000, 0x2000), (4, 4));
}

#[test]
fn native_with_a_pde_cache_reads_one_entry() {
    let config = WalkerConfig { stage1: PDE_ONLY, ..WalkerConfig::NONE };
    assert_eq!(references(&config, native, 0x1000, 0x2000), (4, 1));
    // Another 2 MiB: the cache does not know it.
    assert_eq!(references(&config, native, 0x1000, 0x20_1000), (4, 4));
}

#[test]
fn nested_tlb_serves_the_guests_tables() {
    let config = WalkerConfig {
        nested_tlb: BankConfig::new(Geometry::full(16), &[12]),
        ..WalkerConfig::NONE
    };
    assert_eq!(references(&config, ept, 0x1000, 0x2000), (24, 8));
    let config = WalkerConfig { nested_tlb_holds_final: true, ..config };
    assert_eq!(references(&config, ept, 0x1000, 0x1000).1, 4);
}

#[test]
fn combined_entries_skip_the_nested_walk_of_the_last_table() {
    let config = WalkerConfig { stage1: PDE_ONLY, ..WalkerConfig::NONE };
    assert_eq!(references(&config, ept, 0x1000, 0x2000), (24, 5));
    let config = WalkerConfig { stage2: PDE_ONLY, ..config };
    assert_eq!(references(&config, ept, 0x1000, 0x2000).1, 2);
}

/// Counts the reads that reach memory.
struct Counting<'a>(SliceMemory<'a, Spa>, u64);

impl slat::Memory for Counting<'_> {
    type Address = Spa;
    type Fault = slat::Outside<Spa>;
    fn read(
        &mut self,
        at: Spa,
        layout: EntryLayout,
        access: &slat::Access,
    ) -> Result<slat::Value, Self::Fault> {
        self.1 += 1;
        self.0.read(at, layout, access)
    }
    fn compare_exchange(
        &mut self,
        at: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &slat::Access,
    ) -> Result<bool, Self::Fault> {
        self.0.compare_exchange(at, layout, current, new, access)
    }
}

/// Reads of memory by two walks, to neighbouring pages, with a page walk cache of this design.
fn page_walk(config: &WalkerConfig) -> (u64, u64) {
    let mut world = World::new();
    let stage2_root = world.identity(7, 0x37);
    let stage1_root = world.identity(7, 7);
    let long = Long::four(Controls::default(), Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, stage1_root);
    let stage2 = ept(stage2_root);
    let regime = Regime::default();
    let own = Tag::new(1).unwrap();
    let context = Context {
        stage1: &stage1,
        stage2: &stage2,
        regime: &regime,
        space: Space { own, global: Tag::new(2).unwrap() },
        vm: own,
        globals: Globals::None,
        dirty_tracked: true,
    };
    let mut caches = Caches::new(config).unwrap();
    let mut memory = Counting(SliceMemory::new(Spa::new(0), &mut world.bytes), 0);
    let mut walk = |address: u64| {
        memory.1 = 0;
        let gva = Gva::new(address);
        caches.walk(&context, &mut memory, gva, Kind::Read, true, &()).unwrap();
        memory.1
    };
    (walk(0x20_1000), walk(0x20_2000))
}

#[test]
fn page_walk_caches_in_the_order_of_the_paper() {
    assert_eq!(page_walk(&WalkerConfig::NONE), (24, 24));
    // 1D: the guest's three table entries are not read again, their nested walks are.
    assert_eq!(page_walk(&WalkerConfig::amd(Design::OneD, 24, 16)), (24, 21));
    // 2D: of each of five nested walks the leaf is left, and the guest's leaf.
    let (first, second) = page_walk(&WalkerConfig::amd(Design::TwoD, 24, 16));
    assert_eq!(second, 6);
    assert!(first < 24, "nested walks share entries: {first}");
    // 2D and a nested TLB: the guest's leaf and the final page's.
    assert_eq!(page_walk(&WalkerConfig::amd(Design::TwoDNestedTlb, 24, 16)).1, 2);
}
