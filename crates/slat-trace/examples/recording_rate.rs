//! How fast a recording is read and verified, in CPU time of one thread.
//!
//! `cargo run --release -p slat-trace --example recording_rate -- F.slat`

use slat_trace::recording::{Options, Recording};
use slat_trace::replay::{Counts, Verifier};
use slat_trace::{Batch, Source};

/// The CPU time of this process in seconds (Linux).
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    nanoseconds.expect("Linux with scheduler statistics") / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give the path of a recording")?;
    let recording = Recording::open(&path)?;
    for (what, frames, verify) in
        [("decode", false, false), ("with frames", true, false), ("verify", true, true)]
    {
        let mut best = f64::MAX;
        let mut mismatches = 0;
        let mut counts = Counts::default();
        for _ in 0..5 {
            let mut reader = recording.reader(&Options { frames, ..Options::default() })?;
            let mut verifier = Verifier::new(recording.machine());
            let mut batch = Batch::default();
            let mut seen = 0;
            let start = cpu();
            while reader.next(&mut batch)? {
                seen += batch.accesses.len();
                if verify {
                    verifier.check(&batch)?;
                }
            }
            best = best.min((cpu() - start) / seen as f64);
            mismatches = verifier.mismatches();
            for mismatch in verifier.first_mismatches().iter().take(4) {
                println!("  {mismatch}");
            }
        }
        if !frames {
            let mut reader = recording.reader(&Options::default())?;
            let mut batch = Batch::default();
            while reader.next(&mut batch)? {
                counts.add(&batch);
            }
            println!("{counts:?}");
        }
        println!("{what}: {:.1} M accesses/s, {mismatches} mismatches", 1e-6 / best);
    }
    let bytes = recording.size() as f64 / recording.accesses() as f64;
    println!("{} accesses, {bytes:.3} bytes each", recording.accesses());
    Ok(())
}
