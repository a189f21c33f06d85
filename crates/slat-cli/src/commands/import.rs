//! `slat import TRACE... -o FILE`

use std::fmt::Write as _;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use slat_trace::Source as _;
use slat_trace::import::{Format, LaneBy, Options};
use slat_trace::made_tables::{Damage, MadeTables, Pages, Policy, Recorded};

#[derive(clap::Args)]
#[command(
    about = "Turn another tool's trace into a recording, with guest tables made for it",
    long_about = "Turn another tool's trace into a recording. The format is told by the content, also \
                  inside gzip, xz, bzip2, zstd and zip. Such traces hold no page tables: guest tables are \
                  made for them, by the policy that the options state, and the recording says so.",
    after_help = AFTER_HELP
)]
pub(crate) struct Args {
    /// Traces: files, or directories of drmemtrace files. Several drmemtrace files are threads of one
    /// trace; any others take turns, each on vCPUs of its own
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,

    /// The recording to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The format, instead of telling it by the content (cloudsuite is never told)
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// What becomes a vCPU: each thread, each CPU that the trace names, or the whole trace
    #[arg(long, value_enum, default_value = "thread", value_name = "thread|cpu|one")]
    vcpus: Vcpus,

    /// Page size of the guest's tables: 4K, or 2M where transparent huge pages would be
    #[arg(long, value_enum, default_value = "4k", value_name = "4k|thp")]
    pages: PageSize,

    /// Disorder in the guest's physical memory, in percent
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100), value_name = "PERCENT")]
    fragmentation: u8,

    /// Decides what fragmentation leaves to chance
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Most memory that the guest may need, in GiB
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=16384), value_name = "GIB")]
    memory: u64,

    /// Of a damaged trace, take what precedes the damage
    #[arg(long)]
    until_damage: bool,

    /// Compression level of the recording, 1 to 19
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Formats:
  lackey      valgrind --tool=lackey --trace-mem=yes --log-file=FILE PROGRAM
  champsim    ChampSim, 64-byte records; cloudsuite for those of 96 bytes
  drmemtrace  DynamoRIO: drrun -t drmemtrace -offline -- PROGRAM, then -indir DIR; a file, a zip
              archive or a directory of one file a thread
  gem5        packet traces (protobuf)
  plain       text, one `R|W|I ADDR[,SIZE]` a line
  ramulator   LD/ST, R/W and instruction traces; pinatrace: the text of Pin's example tool

Examples:
  slat import trace.lk.gz -o trace.slat
  slat import drmemtrace.app.1234.dir -o app.slat --vcpus cpu --pages thp
  slat import core0.champsim.xz core1.champsim.xz -o mix.slat

Exit codes: 0 done, 2 unusable input, 130 interrupted (the recording is whole, but shorter).";

#[derive(Clone, Copy, clap::ValueEnum)]
enum Vcpus {
    Thread,
    Cpu,
    One,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PageSize {
    #[value(name = "4k")]
    Small,
    #[value(name = "thp")]
    Transparent,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let options = Options {
        format: args.format,
        lanes: match args.vcpus {
            Vcpus::Thread => LaneBy::Thread,
            Vcpus::Cpu => LaneBy::Cpu,
            Vcpus::One => LaneBy::One,
        },
    };
    let policy = Policy {
        pages: match args.pages {
            PageSize::Small => Pages::Small,
            PageSize::Transparent => Pages::Transparent,
        },
        fragmentation: args.fragmentation,
        seed: args.seed,
        memory: args.memory << 30,
    };
    let inputs: Vec<&Path> = args.traces.iter().map(PathBuf::as_path).collect();
    super::may_replace(&args.output, &inputs)?;
    let damage = if args.until_damage { Damage::TakeWhatPrecedes } else { Damage::Refuse };

    let spinner = ProgressBar::new_spinner().with_message("reading the trace");
    spinner.enable_steady_tick(std::time::Duration::from_millis(200));
    let opened = MadeTables::open(&args.traces, &options, policy, damage);
    spinner.finish_and_clear();
    let mut made = opened.map_err(|error| match damage {
        Damage::Refuse if damaged(&error) => {
            anyhow::Error::msg(format!("{error}; --until-damage takes what precedes"))
        }
        _ => error.into(),
    })?;

    let recorded = write(&args, &mut made)?;
    let text =
        if args.json { json(&args, &made, &recorded)? } else { text(&args, &made, &recorded) };
    super::print(&text)?;
    Ok(if recorded.stopped { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// Whether accesses precede what is wrong.
fn damaged(error: &slat_trace::import::ImportError) -> bool {
    use slat_trace::import::Cause;
    matches!(error.cause, Cause::Truncated(_) | Cause::Malformed(_) | Cause::Io(_))
        && error.place != slat_trace::import::Place::Whole
}

/// Writes the recording beside its place and moves it there when it is whole.
fn write(args: &Args, made: &mut MadeTables) -> anyhow::Result<Recorded> {
    let output = &args.output;
    let cannot = || format!("cannot write {}", output.display());
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(directory).with_context(cannot)?;

    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("cannot watch for Ctrl-C")?;

    let bar = ProgressBar::new(made.counts().accesses());
    bar.set_style(
        ProgressStyle::with_template(
            "{bar:30} {human_pos} of {human_len} accesses, {per_sec}, {eta} left",
        )
        .expect("a valid template"),
    );
    let mut provenance = made.provenance();
    let command = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    provenance.insert(0, ("command".to_owned(), command.collect::<Vec<_>>().join(" ")));
    let result = made.record(BufWriter::new(temporary), &provenance, args.level, |written| {
        bar.set_position(written);
        if interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    bar.finish_and_clear();
    let (file, recorded) = result?;
    let temporary = file.into_inner().map_err(|error| error.into_error()).with_context(cannot)?;
    temporary.persist(output).map_err(|error| error.error).with_context(cannot)?;
    Ok(recorded)
}

fn text(args: &Args, made: &MadeTables, recorded: &Recorded) -> String {
    let counts = recorded.counts;
    let machine = made.machine();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<10} {value}").expect("a string takes it");
    };
    // Wide enough for a note, within a terminal.
    let width = super::width().unwrap_or(80).clamp(40, 100) - 11;
    line("recording", args.output.display().to_string());
    line("format", made.trace().format().to_string());
    line(
        "accesses",
        format!(
            "{} ({} fetches, {} loads, {} stores)",
            grouped(counts.accesses()),
            grouped(counts.fetches),
            grouped(counts.loads),
            grouped(counts.stores)
        ),
    );
    line("vCPUs", machine.vcpus.to_string());
    if let Some(memory) = &machine.memory {
        line("memory", format!("{} MiB", grouped((memory.end - memory.start) >> 20)));
    }
    let bytes = recorded.totals.bytes;
    let each = bytes as f64 / counts.accesses().max(1) as f64;
    line("size", format!("{} bytes, {each:.3} an access", grouped(bytes)));
    for note in notes(made, recorded) {
        for (number, part) in wrapped(&note, width).into_iter().enumerate() {
            line(if number == 0 { "note" } else { "" }, part);
        }
    }
    text
}

/// The notes of the trace, and what became of it on the way.
fn notes(made: &MadeTables, recorded: &Recorded) -> Vec<String> {
    let mut notes = made.notes();
    if recorded.split > 0 {
        notes.push(format!(
            "{} accesses were added: one for each page that an access of more than 128 bytes reaches",
            recorded.split
        ));
    }
    if recorded.stopped {
        let all = made.counts().accesses();
        notes.push(format!(
            "interrupted after {} of {} accesses",
            grouped(recorded.counts.accesses()),
            grouped(all)
        ));
    }
    notes
}

fn json(args: &Args, made: &MadeTables, recorded: &Recorded) -> anyhow::Result<String> {
    let counts = recorded.counts;
    let machine = made.machine();
    let value = serde_json::json!({
        "recording": args.output.display().to_string(),
        "format": made.trace().format().name(),
        "accesses": counts.accesses(),
        "fetches": counts.fetches,
        "loads": counts.loads,
        "stores": counts.stores,
        "vcpus": machine.vcpus,
        "memory_bytes": machine.memory.as_ref().map(|memory| memory.end - memory.start),
        "bytes": recorded.totals.bytes,
        "interrupted": recorded.stopped,
        "notes": notes(made, recorded),
    });
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// A text in lines of at most `width` characters, longer words apart.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

/// A number in groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_wrapped_between_words() {
        assert_eq!(wrapped("a bb ccc dddddddd e", 6), ["a bb", "ccc", "dddddddd", "e"]);
        assert_eq!(wrapped("", 6), [""]);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
