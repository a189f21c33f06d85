//! How fast traces are read: `cargo run --release -p slat-trace --example trace_rate -- TRACE...`
//!
//! For each trace, millions of accesses a second of decoding alone, of the whole stream with made tables
//! (which reads the trace twice), of the same compacted into page runs and of the same written as a
//! recording into nothing, the best of three rounds each, one thread, in its own CPU time; and how many accesses a
//! page run stands for.

use std::path::Path;
use std::time::Duration;

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

fn record(path: &Path) -> Result<u64, Box<dyn std::error::Error>> {
    let mut source =
        MadeTables::open(&[path], &Options::default(), Policy::default(), Damage::Refuse)?;
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let (_, recorded) = source.record(std::io::sink(), &Vec::new(), 3, go_on)?;
    Ok(recorded.counts.accesses())
}

/// The CPU time of this thread (Linux), which other programs on the machine do not touch.
fn cpu_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().ok_or("no CPU time")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

fn best(
    mut run: impl FnMut() -> Result<u64, Box<dyn std::error::Error>>,
) -> Result<(u64, Duration), Box<dyn std::error::Error>> {
    // The clock moves in steps of some milliseconds: a round must be long against one.
    const ROUND: Duration = Duration::from_millis(300);
    let (mut count, mut least) = (0, Duration::MAX);
    for _ in 0..3 {
        let (start, mut runs) = (cpu_time()?, 0);
        while cpu_time()? - start < ROUND {
            count = run()?;
            runs += 1;
        }
        least = least.min((cpu_time()? - start) / runs);
    }
    Ok((count, least))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{:>10} {:>7} {:>7} {:>7} {:>7} {:>6}  trace",
        "accesses", "M/s", "tables", "runs", "record", "a run"
    );
    for path in std::env::args_os().skip(1) {
        let path = Path::new(&path);
        let (count, decoding) = best(|| decode(path))?;
        let (_, streaming) = best(|| stream(path))?;
        let (runs, compacting) = best(|| runs(path))?;
        let (_, recording) = best(|| record(path))?;
        let rate = |time: Duration| count as f64 / time.as_secs_f64() / 1e6;
        println!(
            "{count:>10} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>6.1}  {}",
            rate(decoding),
            rate(streaming),
            rate(compacting),
            rate(recording),
            count as f64 / runs as f64,
            path.display()
        );
    }
    Ok(())
}
