//! Accesses a second of the software MMU, on TLB hits and on nested misses with real tables in
//! memory, beside two limits in the same run: the same arrays with tags alone (`bench/probe`), which walk
//! no tables and add up what walks would read, and those with reads of the same entries, which are not
//! looked at.
//!
//! `cargo run --release` runs all in turns of 32,768 accesses and prints the fastest turn of each,
//! so that other work on the machine disturbs none.

use std::hint::black_box;
use std::io::{self, ErrorKind, Write};
use std::time::Instant;

use slat::format::ept::{self, Ept};
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{EntryLayout, Gpa, Gva, Kind, Regime, SliceMemory, Spa, Stage};
use slat_bench_probe::{Probe, Reference};
use slat_mmu::array::Geometry;
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

/// Where the tables of one stage are, from the root down; the lowest ones lie in a row.
#[derive(Clone, Copy)]
struct Tables([u64; 4]);

impl Tables {
    /// Where the entry is with this number among all of its level: one of those there are.
    fn entry(self, level: usize, number: u64) -> u64 {
        self.0[3 - level] + 8 * (number & ((PAGES >> (9 * level)).max(1) - 1))
    }
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
    fn identity(&mut self, leaf: u64) -> Tables {
        let (root, second, third) = (self.frame(), self.frame(), self.frame());
        let lowest = self.next;
        self.poke(root, second | 7);
        self.poke(second, third | 7);
        for table in 0..PAGES / 512 {
            let last = self.frame();
            self.poke(third + 8 * table, last | 7);
            for n in 0..512 {
                self.poke(last + 8 * n, (table * 512 + n) * PAGE | leaf);
            }
        }
        Tables([root, second, third, lowest])
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

/// Whoever reads what is printed may stop reading (`| head`): that is no failure.
fn main() -> io::Result<()> {
    match run(&mut io::stdout().lock()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        ran => ran,
    }
}

fn run(out: &mut impl Write) -> io::Result<()> {
    let mut world = World { bytes: vec![0; 4 << 20], next: PAGE };
    let host = world.identity(0x37);
    // Data pages: user, writable, not executable.
    let guest = world.identity(1 << 63 | 7);
    let long = Long::four(Controls { nxe: true, ..Controls::default() }, Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, guest.0[0]);
    let stage2 = Stage::<_, Gpa, Spa>::new(Ept::four(ept::Features::default()), host.0[0]);
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
    writeln!(
        out,
        "{:<40}{:>10}{:>10}{:>14}",
        "M accesses/s, fastest turn", "slat-mmu", "tags", "tags and reads"
    )?;
    // 16 pages stay in the first level; many in random order miss both levels. Tables of 256 MiB are 1 MiB.
    let in_order = (0..ACCESSES as u64).map(|n| n * 8 % (16 * PAGE)).collect();
    for (name, accesses) in [
        ("hits, 16 pages one after another", in_order),
        ("hits, 16 pages in random order", stream(16)),
        ("nested misses, 64 MiB at random", stream(PAGES / 4)),
        ("nested misses, 256 MiB at random", stream(PAGES)),
    ] {
        let mut tlb = Tlb::new(&tlb_config()).expect("a geometry that can be");
        let mut caches = Caches::new(&walker_config()).expect("a geometry that can be");
        let probe = || Probe::new(&tlb_config(), &walker_config(), 12);
        let mut tags = probe().expect("a geometry that can be");
        let mut reads = probe().expect("a geometry that can be");
        let (mut ours, mut of_tags, mut of_reads, mut walks) = (0f64, 0f64, 0f64, 0u32);
        for turn in accesses.chunks(TURN) {
            let mut memory = SliceMemory::new(Spa::new(0), &mut world.bytes);
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
            black_box(turn.iter().map(|&va| tags.access(va, Kind::Read, |_| ())).sum::<u64>());
            of_tags = of_tags.max(rate(started));
            let started = Instant::now();
            let mut sum = 0u64;
            let mut read = |Reference { of_host, level, number }| {
                let at = if of_host { host } else { guest }.entry(level, number) as usize;
                let entry = world.bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
                sum = sum.wrapping_add(entry.map_or(0, u64::from_le_bytes));
            };
            for &va in turn {
                reads.access(va, Kind::Read, &mut read);
            }
            black_box(sum);
            of_reads = of_reads.max(rate(started));
        }
        let share = 100.0 * f64::from(walks) / ACCESSES as f64;
        writeln!(out, "{name:<36}{ours:>10.1}{of_tags:>10.1}{of_reads:>17.1}   {share:.1} % walk")?;
    }
    presets::print(space, out)
}

fn rate(started: Instant) -> f64 {
    TURN as f64 / started.elapsed().as_secs_f64() / 1e6
}
