//! Accesses a second of the software MMU, on TLB hits and on nested misses with real tables in
//! memory, beside a limit probe in the same run: the same arrays with tags alone, which walks no
//! tables and adds up what a walk would find.
//!
//! `cargo run --release` runs both in turns of 32,768 accesses and prints the fastest turn of each,
//! so that other work on the machine disturbs neither.

use std::hint::black_box;
use std::io::{self, ErrorKind, Write};
use std::time::Instant;

use slat::format::ept::{self, Ept};
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{EntryLayout, Gpa, Gva, Kind, Regime, SliceMemory, Spa, Stage};
use slat_mmu::array::{Array, Geometry};
use slat_mmu::tlb::{BankConfig, Served, Space, Tag, Tlb, TlbConfig};
use slat_mmu::walker::{Caches, Context, Globals, WalkCacheConfig, WalkerConfig};

mod presets;

const PAGE: u64 = 4096;
/// Pages that are mapped: 256 MiB.
const PAGES: u64 = 1 << 16;
const ACCESSES: usize = 4 << 20;
const TURN: usize = 1 << 15;

struct World {
    bytes: Vec<u8>,
    next: u64,
}

impl World {
    fn poke(&mut self, at: u64, entry: u64) {
        let mut memory = SliceMemory::new(Spa::new(0), &mut self.bytes);
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).expect("the tables fit");
    }

    fn frame(&mut self) -> u64 {
        self.next += PAGE;
        self.next - PAGE
    }

    /// Maps the first [`PAGES`] pages one to one by pages of 4 KiB under four levels.
    fn identity(&mut self, leaf: u64) -> u64 {
        let (root, second, third) = (self.frame(), self.frame(), self.frame());
        self.poke(root, second | 7);
        self.poke(second, third | 7);
        for table in 0..PAGES / 512 {
            let last = self.frame();
            self.poke(third + 8 * table, last | 7);
            for n in 0..512 {
                self.poke(last + 8 * n, (table * 512 + n) * PAGE | leaf);
            }
        }
        root
    }
}

fn stream(pages: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..ACCESSES).map(|_| (next() % pages) << 12 | next() & 0xff8).collect()
}

fn tlb_config() -> TlbConfig {
    let bank = |entries, ways| BankConfig::new(Geometry::lru(entries, ways), &[12]);
    TlbConfig {
        fetch: vec![bank(64, 8)],
        load: vec![bank(64, 4)],
        second: vec![bank(1536, 12)],
        largest: 12,
        ..TlbConfig::default()
    }
}

fn walker_config() -> WalkerConfig {
    let levels = WalkCacheConfig::by_level([
        Geometry::full(32),
        Geometry::full(4),
        Geometry::full(2),
        Geometry::NONE,
    ]);
    let nested_tlb = BankConfig::new(Geometry::full(32), &[12]);
    WalkerConfig { nested_tlb, ..WalkerConfig::intel(levels) }
}

/// Tags alone: as many arrays, asked in the same order.
struct Probe {
    first: Array<u64>,
    second: Array<u64>,
    guest: [Array<u64>; 3],
    host: [Array<u64>; 3],
    nested: Array<u64>,
}

impl Probe {
    fn new() -> Probe {
        let array = |geometry| Array::new(geometry).expect("a geometry that can be");
        let levels = || [32, 4, 2].map(|entries| array(Geometry::full(entries)));
        Probe {
            first: array(Geometry::lru(64, 4)),
            second: array(Geometry::lru(1536, 12)),
            guest: levels(),
            host: levels(),
            nested: array(Geometry::full(32)),
        }
    }

    #[inline]
    fn levels(levels: &mut [Array<u64>; 3], page: u64) -> u64 {
        let mut references = 1;
        for (level, array) in levels.iter_mut().enumerate() {
            let prefix = page >> (9 * (level + 1));
            let key = prefix << 1 | 1;
            if array.find(prefix, [key, key]).is_some() {
                return references;
            }
            references += 1;
            array.insert(prefix, key, prefix);
        }
        references
    }

    #[inline]
    fn access(&mut self, va: u64) -> u64 {
        let page = va >> 12;
        let key = page << 1 | 1;
        if self.first.find(page, [key, key]).is_some() {
            return 0;
        }
        if self.second.find(page, [key, key]).is_some() {
            self.first.insert(page, key, page);
            return 0;
        }
        let guest = Probe::levels(&mut self.guest, page);
        let mut references = guest;
        let table = page >> 9 | 1 << 40;
        let at = table << 1 | 1;
        if self.nested.find(table, [at, at]).is_none() {
            references += Probe::levels(&mut self.host, table);
            self.nested.insert(table, at, table);
        }
        references += Probe::levels(&mut self.host, page);
        self.first.insert(page, key, page);
        self.second.insert(page, key, page);
        references
    }
}

/// Whoever reads what is printed may stop reading (`| head`): that is no failure.
fn main() -> io::Result<()> {
    match run(&mut io::stdout().lock()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        ran => ran,
    }
}

fn run(out: &mut impl Write) -> io::Result<()> {
    let mut world = World { bytes: vec![0; 4 << 20], next: PAGE };
    let host_root = world.identity(0x37);
    // Data pages: user, writable, not executable.
    let guest_root = world.identity(1 << 63 | 7);
    let long = Long::four(Controls { nxe: true, ..Controls::default() }, Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, guest_root);
    let stage2 = Stage::<_, Gpa, Spa>::new(Ept::four(ept::Features::default()), host_root);
    let regime = Regime::default();
    let tag = |number| Tag::new(number).expect("tags are not 0");
    let space = Space { own: tag(1), global: tag(2) };
    let context = Context {
        stage1: &stage1,
        stage2: &stage2,
        regime: &regime,
        space,
        vm: tag(3),
        globals: Globals::X86,
        dirty_tracked: true,
    };
    writeln!(out, "{:<34}{:>14}{:>14}", "M accesses/s, fastest turn", "slat-mmu", "probe")?;
    // 16 pages stay in the first level; 65,536 in random order miss both levels.
    let in_order = (0..ACCESSES as u64).map(|n| n * 8 % (16 * PAGE)).collect();
    for (name, accesses) in [
        ("hits, 16 pages one after another", in_order),
        ("hits, 16 pages in random order", stream(16)),
        ("nested misses, 256 MiB at random", stream(PAGES)),
    ] {
        let mut tlb = Tlb::new(&tlb_config()).expect("a geometry that can be");
        let mut caches = Caches::new(&walker_config()).expect("a geometry that can be");
        let mut probe = Probe::new();
        let mut memory = SliceMemory::new(Spa::new(0), &mut world.bytes);
        let (mut ours, mut limit, mut walks) = (0f64, 0f64, 0u32);
        for turn in accesses.chunks(TURN) {
            let started = Instant::now();
            let mut sum = 0u64;
            for &va in turn {
                let (served, mut entry) = tlb.find(va, space, Kind::Read, true);
                if served == Served::Miss {
                    walks += 1;
                    let gva = Gva::new(va);
                    entry = match caches.walk(&context, &mut memory, gva, Kind::Read, true, &()) {
                        Ok(walked) => walked.entry,
                        Err(_) => panic!("{va:#x} is mapped"),
                    };
                    tlb.insert(va, space, Kind::Read, entry);
                }
                sum = sum.wrapping_add(entry.base | va & 0xfff);
            }
            black_box(sum);
            ours = ours.max(rate(started));
            let started = Instant::now();
            black_box(turn.iter().map(|&va| probe.access(va)).sum::<u64>());
            limit = limit.max(rate(started));
        }
        let share = 100.0 * f64::from(walks) / ACCESSES as f64;
        writeln!(out, "{name:<34}{ours:>14.1}{limit:>14.1}   {share:.1} % walk")?;
    }
    presets::print(space, out)
}

fn rate(started: Instant) -> f64 {
    TURN as f64 / started.elapsed().as_secs_f64() / 1e6
}
