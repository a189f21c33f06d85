//! The memory that a comparison of a long recording takes: `cargo run --release --example long --
//! FILE GIGABYTES` writes a recording of at least so many gigabytes (10^9 bytes), a guest that loads from
//! random places of a gibibyte, unless FILE is there already; compares native with EPT over 2 MiB pages
//! on it; and prints the most memory that the process had (`VmHWM`) before and behind. Linux only.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use slat_sim::compare::{Options, Scheme, compare};
use slat_sim::preset::Processor;
use slat_trace::recording::{self, Encoder, Packer, Provenance, Recording};
use slat_trace::{Arch, Control, Event, Machine, Root};

const PRESENT: u64 = 0x67;
const LARGE: u64 = 0x80;
/// Three tables, and code behind them.
const TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const CODE: u64 = 0x4000;
/// Of guest memory, mapped one to one by pages of 2 MiB.
const BYTES: u64 = 1 << 30;
/// Loads of each block of instructions.
const LOADS: u64 = 16;

fn write(file: &Path, bytes: u64) -> Result<(), Box<dyn Error>> {
    let machine = Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: Some(0..BYTES) };
    let out = BufWriter::new(File::create(file)?);
    let mut packer = Packer::new(out, &machine, &Provenance::default(), 1)?;
    let mut encoder = Encoder::new(1);
    for (register, value) in
        [(Control::Cr0, 0x8005_0033), (Control::Cr4, 0x6b0), (Control::Efer, 0xd01)]
    {
        encoder.event(0, &Event::Control { register, value }, &[]);
    }
    let pages: Vec<(u16, u64)> =
        (0..512).map(|page| (page, u64::from(page) << 21 | LARGE | PRESENT)).collect();
    let next = |table: u64| vec![(0, table | PRESENT)];
    let entries = [next(TABLES[1]), next(TABLES[2]), pages];
    for ((gpa, level), entries) in TABLES.into_iter().zip([3, 2, 1]).zip(entries) {
        encoder.event(0, &Event::TablePage { gpa, level, fresh: true }, &entries);
    }
    encoder.event(0, &Event::Root { root: Root::Cr3, value: TABLES[0] }, &[]);
    let mut state = 1u64;
    while packer.totals().bytes < bytes {
        let block = encoder.define(CODE, 64, LOADS as u16);
        while !encoder.is_full() {
            encoder.execute(0, block, CODE);
            for _ in 0..LOADS {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let va = (state >> 34) % BYTES & !7;
                encoder.access(0, false, 3, va, (va >> 12) as u32);
            }
        }
        packer.push(&encoder.cut())?;
    }
    let (mut out, totals) = packer.finish()?;
    out.flush()?;
    println!("wrote {} bytes, {} accesses", totals.bytes, totals.accesses);
    Ok(())
}

/// The most memory so far, in MiB.
fn most() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM")?;
    Ok(kib.parse::<u64>()? / 1024)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(gigabytes)) = (arguments.next(), arguments.next()) else {
        return Err("give a file and how many gigabytes it is to have".into());
    };
    let file = Path::new(&file);
    if !file.exists() {
        write(file, gigabytes.parse::<u64>()? * 1_000_000_000)?;
    }
    println!("{} MiB at most before the comparison", most()?);
    let recording = Recording::open(file)?;
    let mut reader = recording.reader(&recording::Options::default())?;
    let processor = Processor::bundled("skylake-sp")?;
    let options =
        Options { schemes: Some(vec![Scheme::Native, Scheme::Ept(21)]), ..Options::default() };
    let started = Instant::now();
    let outcomes = compare(&mut reader, &processor, &options, |_| true)?;
    println!(
        "{} bytes, {} accesses under {} schemes in {:.0} s",
        recording.size(),
        recording.accesses(),
        outcomes.len(),
        started.elapsed().as_secs_f64(),
    );
    println!("{} MiB at most", most()?);
    Ok(())
}
