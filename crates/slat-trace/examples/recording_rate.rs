//! How fast recordings are read and verified, in CPU time of one thread, the best of three rounds.
//!
//! `cargo run --release -p slat-trace --example recording_rate -- F.slat...`

use std::time::Duration;

use slat_trace::recording::{Options, Reader, Recording};
use slat_trace::replay::Verifier;
use slat_trace::{Batch, Source};

/// The CPU time of this thread (Linux), which other programs on the machine do not touch.
fn cpu_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().ok_or("no CPU time")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// Reads the whole once; returns the accesses and the mismatches.
fn once(
    reader: &mut Reader,
    batch: &mut Batch,
    verify: bool,
) -> Result<(u64, u64), Box<dyn std::error::Error>> {
    reader.rewind();
    let mut verifier = verify.then(|| Verifier::new(reader.machine()));
    let mut accesses = 0;
    while reader.next(batch)? {
        accesses += batch.accesses.len() as u64;
        if let Some(verifier) = &mut verifier {
            verifier.check(batch)?;
        }
    }
    Ok((accesses, verifier.map_or(0, |verifier| verifier.mismatches())))
}

/// Millions of accesses a second.
fn rate(
    recording: &Recording,
    frames: bool,
    verify: bool,
) -> Result<f64, Box<dyn std::error::Error>> {
    // The clock moves in steps of some milliseconds: a round must be long against one.
    const ROUND: Duration = Duration::from_millis(400);
    // One for all passes: how fast the buffers of a reader are got is not asked.
    let mut reader = recording.reader(&Options { frames, ..Options::default() })?;
    let mut batch = Batch::default();
    let mut best = 0f64;
    for _ in 0..3 {
        let (start, mut sum) = (cpu_time()?, 0);
        let spent = loop {
            let (accesses, mismatches) = once(&mut reader, &mut batch, verify)?;
            assert_eq!(mismatches, 0, "mismatches");
            sum += accesses;
            let spent = cpu_time()? - start;
            if spent >= ROUND {
                break spent;
            }
        };
        best = best.max(sum as f64 / spent.as_secs_f64() / 1e6);
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{:>12} {:>10} {:>8} {:>8} {:>8}  M accesses/s",
        "accesses", "bytes each", "decode", "+frames", "verify"
    );
    for path in std::env::args_os().skip(1) {
        let recording = Recording::open(&path)?;
        let (decode, frames) = (rate(&recording, false, false)?, rate(&recording, true, false)?);
        let verify = rate(&recording, true, true)?;
        println!(
            "{:>12} {:>10.4} {decode:>8.1} {frames:>8.1} {verify:>8.1}  {}",
            recording.accesses(),
            recording.size() as f64 / recording.accesses() as f64,
            std::path::Path::new(&path).display()
        );
    }
    Ok(())
}
