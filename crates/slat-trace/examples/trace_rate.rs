//! How fast traces are read: `cargo run --release -p slat-trace --example trace_rate -- TRACE...`
//!
//! For each trace, accesses a second of decoding alone, of the whole stream with made tables (which reads
//! the trace twice) and of the same compacted into page runs, the best of five each, one thread; and how
//! many accesses a page run stands for.

use std::path::Path;
use std::time::{Duration, Instant};

use slat_trace::compact::{Compact, Hierarchy, RunBatch};
use slat_trace::import::{Options, References, Trace};
use slat_trace::made_tables::{Damage, MadeTables, Policy};
use slat_trace::{Batch, Source};

fn decode(path: &Path) -> Result<u64, Box<dyn std::error::Error>> {
    let mut trace = Trace::open(path, &Options::default())?;
    let (mut references, mut count) = (References::default(), 0);
    while trace.next(&mut references)? {
        count += references.as_slice().len() as u64;
    }
    Ok(count)
}

fn stream(path: &Path) -> Result<u64, Box<dyn std::error::Error>> {
    let mut source =
        MadeTables::open(&[path], &Options::default(), Policy::default(), Damage::Refuse)?;
    let (mut batch, mut count) = (Batch::default(), 0);
    while source.next(&mut batch)? {
        count += batch.accesses.len() as u64;
    }
    Ok(count)
}

fn runs(path: &Path) -> Result<u64, Box<dyn std::error::Error>> {
    let source = MadeTables::open(&[path], &Options::default(), Policy::default(), Damage::Refuse)?;
    let mut compact = Compact::new(source, &Hierarchy::default())?;
    let (mut batch, mut count) = (RunBatch::default(), 0);
    while compact.next(&mut batch)? {
        count += batch.runs.len() as u64;
    }
    Ok(count)
}

fn best(
    mut run: impl FnMut() -> Result<u64, Box<dyn std::error::Error>>,
) -> Result<(u64, Duration), Box<dyn std::error::Error>> {
    let (mut count, mut least) = (0, Duration::MAX);
    for _ in 0..5 {
        let start = Instant::now();
        count = run()?;
        least = least.min(start.elapsed());
    }
    Ok((count, least))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{:>10} {:>8} {:>8} {:>8} {:>8}  trace", "accesses", "M/s", "tables", "runs", "a run");
    for path in std::env::args_os().skip(1) {
        let path = Path::new(&path);
        let (count, decoding) = best(|| decode(path))?;
        let (_, streaming) = best(|| stream(path))?;
        let (runs, compacting) = best(|| runs(path))?;
        let rate = |time: Duration| count as f64 / time.as_secs_f64() / 1e6;
        println!(
            "{count:>10} {:>8.1} {:>8.1} {:>8.1} {:>8.1}  {}",
            rate(decoding),
            rate(streaming),
            rate(compacting),
            count as f64 / runs as f64,
            path.display()
        );
    }
    Ok(())
}
