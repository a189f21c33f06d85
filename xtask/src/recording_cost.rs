//! `cargo xtask recording-cost`: what recording costs the guest, part by part.
//!
//! The guest does the same instructions each time, with ever more of the recorder switched on. Compared
//! is the CPU time of the thread that runs it, between the markers, which other load on the machine
//! disturbs least; of several runs the fastest counts.

use anyhow::ensure;
use slat_setup::{Arch, Cache, Guest, Recipe, Stage};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs of each part
    #[arg(long, default_value_t = 3)]
    runs: u32,

    /// Programs that the guest starts, one after the other
    #[arg(long, default_value_t = 100)]
    forks: u32,

    /// The guest's architecture
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
}

const PARTS: [(Stage, &str); 5] = [
    (Stage::Bare, "nothing"),
    (Stage::Callback, "+ callbacks"),
    (Stage::Address, "+ physical address"),
    (Stage::Encode, "+ encoding"),
    (Stage::Full, "+ compression and file"),
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "at least one run");
    let cache = Cache::new()?;
    let script =
        format!("i=0; while [ $i -lt {} ]; do /bin/busybox true; i=$((i+1)); done", args.forks);
    let words = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let guest = Guest::Command { words, files: vec![], before: String::new(), marks: false };
    let place = tempfile::tempdir()?;
    let mut rows: Vec<(&str, f64, u64)> = Vec::new();
    for (stage, name) in PARTS {
        let recipe = Recipe { stage, ..Recipe::new(args.arch, guest.clone()) };
        let mut best = (f64::MAX, 0);
        for _ in 0..args.runs {
            let outcome =
                slat_setup::record(&cache, &recipe, &place.path().join("x.slat"), |_| true)?;
            ensure!(outcome.status == Some(0), "the guest failed: {outcome:?}");
            if outcome.cpu_seconds < best.0 {
                best = (outcome.cpu_seconds, outcome.accesses);
            }
        }
        rows.push((name, best.0, best.1));
    }
    let bare = rows[0].1;
    let whole = rows.last().expect("five rows").1;
    let mut before = 0.0;
    anstream::println!("{:<24} {:>10} {:>10} {:>10}", "recorder", "CPU s", "x bare", "share");
    for (name, seconds, _) in &rows {
        anstream::println!(
            "{name:<24} {seconds:>10.3} {:>10.2} {:>9.0}%",
            seconds / bare,
            (seconds - before) / whole * 100.0
        );
        before = *seconds;
    }
    let accesses = rows.last().expect("five rows").2;
    anstream::println!(
        "{accesses} accesses, {:.1} M/s of CPU time when recorded",
        accesses as f64 / whole / 1e6
    );
    Ok(())
}
