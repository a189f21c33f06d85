//! `cargo xtask recording-cost`: what recording costs the guest, part by part.
//!
//! The guest does the same instructions each time, with ever more of the recorder switched on. Compared
//! is the CPU time of the thread that runs it, between the markers, which other load on the machine
//! disturbs least; of several runs the fastest counts. The parts take turns, so that what changes on
//! the machine meanwhile meets them all. Encoding and compression have threads of their own, whose CPU
//! time is told beside.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use slat_setup::{Arch, Cache, Guest, Kit, Outcome, Recipe, Stage};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs of each part
    #[arg(long, default_value_t = 3)]
    runs: u32,

    /// Programs that the guest starts, one after the other
    #[arg(long, default_value_t = 100)]
    forks: u32,

    /// Steps of the random chase over 256 MiB (x86-64 alone)
    #[arg(long, default_value_t = 2_000_000)]
    steps: u32,

    /// Only workloads whose name contains this: fork, chase
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,

    /// The guest's architecture
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
}

const PARTS: [(Stage, &str); 5] = [
    (Stage::Bare, "nothing"),
    (Stage::Callback, "+ callbacks"),
    (Stage::Address, "+ physical address"),
    (Stage::Note, "+ noting"),
    (Stage::Full, "+ handing over"),
];

/// Levels of compression whose sizes are told.
const LEVELS: [i32; 3] = [1, 3, 9];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "at least one run");
    let cache = Cache::new()?;
    Kit::fetch(&cache, args.arch)?;
    let place = tempfile::tempdir()?;
    let file = place.path().join("x.slat");
    for (name, recipe) in workloads(args, place.path())? {
        let mut best: Vec<Outcome> = Vec::new();
        for run in 0..args.runs {
            for (part, (stage, _)) in PARTS.into_iter().enumerate() {
                let outcome = once(&cache, &Recipe { stage, ..recipe.clone() }, &file)?;
                match best.get_mut(part) {
                    Some(known) if known.cpu_seconds <= outcome.cpu_seconds => {}
                    Some(known) => *known = outcome,
                    None => best.push(outcome),
                }
            }
            anstream::eprintln!("{name}: run {} of {}", run + 1, args.runs);
        }
        print(&name, &best);
        for level in LEVELS {
            let outcome = once(&cache, &Recipe { level, ..recipe.clone() }, &file)?;
            let each = outcome.bytes as f64 / outcome.accesses as f64;
            anstream::println!("zstd {level}: {} bytes, {each:.3} an access", outcome.bytes);
        }
        anstream::println!();
    }
    Ok(())
}

fn once(cache: &Cache, recipe: &Recipe, file: &Path) -> anyhow::Result<Outcome> {
    let outcome = slat_setup::record(cache, recipe, file, |_| true)?;
    ensure!(outcome.status == Some(0), "the guest failed: {outcome:?}");
    Ok(outcome)
}

fn workloads(args: &Args, place: &Path) -> anyhow::Result<Vec<(String, Recipe)>> {
    let mut all = Vec::new();
    if "fork".contains(&args.only) {
        let script =
            format!("i=0; while [ $i -lt {} ]; do /bin/busybox true; i=$((i+1)); done", args.forks);
        let words = ["sh", "-c", &script].map(str::to_owned).to_vec();
        let guest = Guest::Command { words, files: vec![], before: String::new(), marks: false };
        all.push((format!("fork x{}", args.forks), Recipe::new(args.arch, guest)));
    }
    if "chase".contains(&args.only) && args.arch == Arch::X86_64 {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recordings/guest");
        let files: Vec<(PathBuf, String)> =
            vec![crate::recordings::compiled(place, &sources, "chase").context("chase")?];
        let words = ["/bin/chase", "256", &args.steps.to_string(), "0"].map(str::to_owned).to_vec();
        let guest = Guest::Command { words, files, before: String::new(), marks: true };
        let recipe = Recipe { memory: 768, ..Recipe::new(args.arch, guest) };
        all.push((format!("chase x{}", args.steps), recipe));
    }
    Ok(all)
}

fn print(name: &str, best: &[Outcome]) {
    let (bare, full) = (&best[0], &best[best.len() - 1]);
    let whole = full.cpu_seconds;
    anstream::println!("{name:<24} {:>10} {:>10} {:>10}", "CPU s", "x bare", "share");
    let mut before = 0.0;
    for ((_, part), Outcome { cpu_seconds, .. }) in PARTS.iter().zip(best) {
        anstream::println!(
            "{part:<24} {cpu_seconds:>10.3} {:>10.2} {:>9.0}%",
            cpu_seconds / bare.cpu_seconds,
            (cpu_seconds - before) / whole * 100.0
        );
        before = *cpu_seconds;
    }
    for (part, seconds) in
        [("encoding, beside", full.encode_seconds), ("compression, beside", full.compress_seconds)]
    {
        anstream::println!("{part:<24} {seconds:>10.3} {:>10.2}", seconds / bare.cpu_seconds);
    }
    anstream::println!(
        "{} accesses, {} instructions, {:.1} M accesses/s of the guest's CPU time",
        full.accesses,
        full.instructions,
        full.accesses as f64 / whole / 1e6
    );
}
