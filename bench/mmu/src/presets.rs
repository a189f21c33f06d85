//! TLB hits in the geometry of every processor preset.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use slat::Kind;
use slat_mmu::tlb::{Entry, Rights, Served, Space, Tlb, TlbConfig};
use slat_sim::preset::Processor;

use crate::{ACCESSES, PAGE, TURN, rate, stream};

/// The fastest turn of loads from pages that the first level holds, in random order.
fn hits(config: &TlbConfig, space: Space, pages: u64) -> f64 {
    let mut tlb = Tlb::new(config).expect("a preset's geometry can be");
    let rights = Rights::ALL.with(Rights::DIRTY, true);
    let fill = |tlb: &mut Tlb, page: u64| {
        let entry = Entry { base: page * PAGE, shift: 12, leaf: 12, rights, ..Entry::default() };
        tlb.insert(page * PAGE, space, Kind::Read, entry);
    };
    (0..pages).for_each(|page| fill(&mut tlb, page));
    let mut fastest = 0f64;
    for turn in stream(pages).chunks(TURN).take(ACCESSES / TURN / 2) {
        let started = Instant::now();
        let mut sum = 0u64;
        for &va in turn {
            let (served, entry) = tlb.find(va, space, Kind::Read, true);
            assert!(served == Served::First, "{va:#x} was filled");
            sum = sum.wrapping_add(entry.place(va));
        }
        black_box(sum);
        fastest = fastest.max(rate(started));
    }
    fastest
}

/// Prints every preset's rate, and the least.
pub fn print(space: Space, out: &mut impl Write) -> io::Result<()> {
    let mut least = (f64::MAX, "");
    writeln!(out, "\n{:<34}{:>14}", "hits in random order, by preset", "M accesses/s")?;
    for name in Processor::names() {
        let processor = Processor::bundled(name).expect("a bundled preset");
        // Few enough that no set has more than its ways.
        let pages = u64::from(processor.tlb.data_4k.value.entries).min(16);
        let rate = hits(&processor.tlb_config(), space, pages);
        writeln!(out, "{name:<34}{rate:>14.1}")?;
        if rate < least.0 {
            least = (rate, name);
        }
    }
    writeln!(out, "the least is {}'s, {:.1} M accesses/s", least.1, least.0)
}
