//! `slat replay RECORDING`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use slat_trace::replay::{Counts, Verifier};
use slat_trace::{Batch, Source, open, recording};

use super::import::grouped;
use super::print;

#[derive(clap::Args)]
#[command(
    about = "Read a recording through: count what is in it, check it against its own tables",
    long_about = "Read a recording (or a trace of another tool) through and count what is in it. With \
                  --verify, walk the recording's own tables for every access and compare with the \
                  physical address that the recorded machine used.",
    after_help = "Examples:\n  slat replay run.slat\n  slat replay --verify recordings/fork.slat\n\n\
                  Exit codes: 0 done, 1 a mismatch, 2 damaged or no recording, 130 interrupted."
)]
pub(crate) struct Args {
    /// The recording
    recording: PathBuf,

    /// Walk the tables for every access and compare
    #[arg(long)]
    verify: bool,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let part = recording::Options { frames: args.verify, ..recording::Options::default() };
    let options = open::Options { recording: part, ..open::Options::default() };
    let mut stream = open::open(&args.recording, &options)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot watch for Ctrl-C")?;
    let bar = ProgressBar::new(stream.accesses());
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {human_pos} of {human_len} accesses, {eta} left")
            .expect("a valid template"),
    );
    let mut verifier = args.verify.then(|| Verifier::new(stream.machine()));
    let mut counts = Counts::default();
    let mut batch = Batch::default();
    let damage = loop {
        let result = stream.next(&mut batch);
        counts.add(&batch);
        if let Some(verifier) = &mut verifier {
            verifier.check(&batch).with_context(|| args.recording.display().to_string())?;
        }
        bar.set_position(counts.accesses());
        match result {
            Ok(true) if !interrupted.load(Ordering::Relaxed) => {}
            Ok(_) => break None,
            Err(error) => break Some(error),
        }
    };
    bar.finish_and_clear();
    let notes = stream.notes();
    if args.json {
        print(&json(&args, &counts, verifier.as_ref(), &notes)?)?;
    } else {
        print(&text(&counts, verifier.as_ref(), &notes))?;
    }
    if let Some(error) = damage {
        return Err(error.into());
    }
    if interrupted.load(Ordering::Relaxed) {
        return Ok(ExitCode::from(130));
    }
    let disagrees = verifier.is_some_and(|verifier| verifier.mismatches() > 0);
    Ok(if disagrees { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn text(counts: &Counts, verifier: Option<&Verifier>, notes: &[String]) -> String {
    let mut text = String::new();
    let mut line =
        |name: &str, value: u64| text.push_str(&format!("{name:<24} {:>16}\n", grouped(value)));
    line("accesses", counts.accesses());
    line("  loads", counts.loads);
    line("  stores", counts.stores);
    line("  block fetches", counts.fetches);
    line("  by user code", counts.user);
    line("  into a second page", counts.crossing);
    line("instructions", counts.instructions);
    line("root loads", counts.root_loads);
    line("table pages", counts.table_pages);
    line("table stores", counts.table_stores);
    line("invalidations", counts.invalidations);
    line("  of a whole space", counts.wide_invalidations);
    line("exceptions", counts.exceptions);
    line("mode changes", counts.mode_changes);
    line("device accesses", counts.io);
    if let Some(verifier) = verifier {
        line("walked", verifier.walked());
        for (name, shift) in [("  to 4 KiB pages", 12), ("  to 2 MiB pages", 21)] {
            line(name, verifier.through_pages_of(shift));
        }
        line("  to 1 GiB pages", verifier.through_pages_of(30));
        line("mismatches", verifier.mismatches());
        for mismatch in verifier.first_mismatches() {
            text.push_str(&format!("  {mismatch}\n"));
        }
    }
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

fn json(
    args: &Args,
    counts: &Counts,
    verifier: Option<&Verifier>,
    notes: &[String],
) -> anyhow::Result<String> {
    let verified = verifier.map(|verifier| {
        let mismatches: Vec<String> =
            verifier.first_mismatches().iter().map(ToString::to_string).collect();
        json!({
            "walked": verifier.walked(),
            "mismatches": verifier.mismatches(),
            "first_mismatches": mismatches,
            "pages_4k": verifier.through_pages_of(12),
            "pages_2m": verifier.through_pages_of(21),
            "pages_1g": verifier.through_pages_of(30),
        })
    });
    let value = json!({
        "recording": args.recording.display().to_string(),
        "accesses": counts.accesses(),
        "loads": counts.loads,
        "stores": counts.stores,
        "fetches": counts.fetches,
        "user": counts.user,
        "crossing": counts.crossing,
        "instructions": counts.instructions,
        "root_loads": counts.root_loads,
        "table_pages": counts.table_pages,
        "table_stores": counts.table_stores,
        "invalidations": counts.invalidations,
        "wide_invalidations": counts.wide_invalidations,
        "exceptions": counts.exceptions,
        "mode_changes": counts.mode_changes,
        "io": counts.io,
        "verified": verified,
        "notes": notes,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&value)?))
}
