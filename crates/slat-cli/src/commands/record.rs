//! `slat record -o FILE -- PROGRAM ARGS...`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use slat_setup::{Arch, Cache, Guest, Kit, Linux, Outcome, Recipe, check_program};
use slat_trace::recording::{Options, Recording};
use slat_trace::replay::Verifier;
use slat_trace::{Batch, Source};

use super::import::grouped;
use super::print;

#[derive(clap::Args)]
#[command(
    about = "Record a program, or a whole system, in an unmodified Linux guest",
    long_about = "Record every load, store and block fetch of a program in an unmodified Linux guest, kernel \
                  included, with every change of the guest's page tables. The program is put into a minimal \
                  guest, which boots in QEMU; the recording is from its start to its end, and is verified.",
    after_help = AFTER_HELP
)]
pub(crate) struct Args {
    /// The recording to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "setup")]
    output: Option<PathBuf>,

    /// The program and its arguments: a static program of this machine, or a name inside the guest
    #[arg(
        last = true,
        value_name = "PROGRAM",
        required_unless_present_any = ["setup", "kernel"],
        conflicts_with = "kernel"
    )]
    command: Vec<String>,

    /// Find or fetch what recording needs (QEMU 10, a kernel, busybox, the recorder), and say where
    #[arg(long, conflicts_with_all = ["output", "command", "kernel"])]
    setup: bool,

    /// A folder whose content is put into the guest's root, as for a program with its libraries
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    root: Vec<PathBuf>,

    /// A file for the program's working directory
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    file: Vec<PathBuf>,

    /// A kernel of your own; the guest executes the markers itself
    #[arg(long, value_name = "IMAGE")]
    kernel: Option<PathBuf>,

    /// The initial RAM disk of that kernel
    #[arg(long, value_name = "IMAGE", requires = "kernel")]
    initrd: Option<PathBuf>,

    /// Words to append to the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,

    /// The guest's architecture: x86_64 or aarch64
    #[arg(long, default_value = "x86_64")]
    arch: Arch,

    /// QEMU's name of the processor model; `max` has 5-level paging on x86-64
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,

    /// The guest's memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB",
          value_parser = clap::value_parser!(u32).range(64..=65536))]
    memory: u32,

    /// Its number of vCPUs
    #[arg(long, default_value_t = 1, value_name = "COUNT",
          value_parser = clap::value_parser!(u8).range(1..=64))]
    smp: u8,

    /// End the recording after so many accesses
    #[arg(long, value_name = "COUNT")]
    max_accesses: Option<u64>,

    /// Decides everything that is random in the machine; with another than 1 the plain x86-64 processor has RDRAND
    #[arg(long, default_value_t = Recipe::SEED)]
    seed: u64,

    /// Compression level, 1 to 19
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,

    /// Leave out reading the finished recording through
    #[arg(long)]
    no_verify: bool,
}

const AFTER_HELP: &str = "\
The guest's own marker begins and ends a recording with --kernel: x86-64 CPUID with EAX 0x51a70001
and 0x51a70002, AArch64 HINT #0x7a and #0x7b; neither means anything to a processor.

Examples:
  slat record --setup
  slat record -o run.slat -- ./program --option
  slat record -o fork.slat -- sh -c 'for i in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox true; done'
  slat record -o db.slat --root tree --file work.sql -- sh -c '/usr/bin/sqlite3 < work.sql'
  slat record -o own.slat --kernel bzImage --initrd initrd.img --append 'root=/dev/ram0'

Exit codes: 0 done, 1 the recording disagrees with itself, 2 something is missing or failed,
130 interrupted (the recording is whole, but shorter).";

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.arch == Arch::Riscv64 {
        bail!("riscv64 cannot be recorded: x86_64 and aarch64 can");
    }
    if args.arch == Arch::X86_64 && args.memory > 2048 {
        bail!("an x86_64 guest can have at most 2048 MiB: above that, its memory is in two parts");
    }
    let cache = Cache::new()?;
    if args.setup {
        return setup(&cache, args.arch);
    }
    let output = args.output.as_deref().expect("required by clap");
    super::may_replace(output, &[])?;
    let recipe = recipe(&args)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot watch for Ctrl-C")?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg}, {elapsed}").expect("a valid template"),
    );
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar.set_message("preparing");
    let mut first = None;
    let mut over = false;
    // A guest's words that cannot be shown stop no recording.
    let mut shown = Ok(());
    let outcome = slat_setup::record(&cache, &recipe, output, |progress| {
        for line in progress.console.lines() {
            over |= line.starts_with("slat: ");
            if over || line.is_empty() || line.contains('\u{1b}') {
                continue;
            }
            if shown.is_ok() {
                shown = bar.suspend(|| print(&format!("{line}\n")));
            }
        }
        if progress.accesses == 0 {
            bar.set_message("the guest runs");
        } else {
            let (at, accesses) =
                *first.get_or_insert_with(|| (std::time::Instant::now(), progress.accesses));
            let seconds = at.elapsed().as_secs_f64().max(0.001);
            let rate = (progress.accesses - accesses) as f64 / seconds / 1e6;
            bar.set_message(format!(
                "{} accesses, {rate:.1} M/s, {}",
                HumanCount(progress.accesses),
                HumanBytes(progress.bytes)
            ));
        }
        !interrupted.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    let outcome = outcome?;
    shown?;
    print(&report(output, &outcome))?;
    let stopped = interrupted.load(Ordering::Relaxed);
    if !args.no_verify && !stopped && !verify(output)? {
        return Ok(ExitCode::from(1));
    }
    Ok(if stopped { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn setup(cache: &Cache, arch: Arch) -> anyhow::Result<ExitCode> {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar.set_message("finding, fetching and building what recording needs (about 100 MB)");
    let kit = Kit::fetch(cache, arch);
    bar.finish_and_clear();
    let Kit { qemu, recorder, linux } = kit?;
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<9} {value}\n"));
    line("QEMU", format!("{} ({})", qemu.binary.display(), qemu.version));
    if let Some(Linux { kernel, busybox }) = linux {
        line("kernel", format!("{} ({})", kernel.image.display(), kernel.version));
        line("busybox", busybox.display().to_string());
    }
    line("recorder", recorder.display().to_string());
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn recipe(args: &Args) -> anyhow::Result<Recipe> {
    let guest = match &args.kernel {
        Some(kernel) => Guest::Own { kernel: kernel.clone(), initrd: args.initrd.clone() },
        None => {
            let mut words = args.command.clone();
            let mut files: Vec<(PathBuf, String)> =
                args.root.iter().map(|folder| (folder.clone(), "/".to_owned())).collect();
            let name = |path: &Path| -> anyhow::Result<String> {
                let name = path.file_name().and_then(|name| name.to_str());
                let name = name.with_context(|| format!("{}: not a file", path.display()))?;
                Ok(format!("/guest/{name}"))
            };
            for file in &args.file {
                files.push((file.clone(), name(file)?));
            }
            // A path of this machine goes into the guest; any other name is the guest's.
            let program = Path::new(&words[0]);
            if words[0].contains('/') && program.is_file() && args.root.is_empty() {
                check_program(program, args.arch)?;
                let place = name(program)?;
                files.push((program.to_owned(), place.clone()));
                words[0] = place;
            }
            Guest::Command { words, files, before: String::new(), marks: false }
        }
    };
    Ok(Recipe {
        memory: args.memory,
        vcpus: args.smp,
        cpu: args.cpu.clone(),
        append: args.append.clone(),
        seed: args.seed,
        most_accesses: args.max_accesses,
        level: args.level,
        command: args.command.join(" "),
        ..Recipe::new(args.arch, guest)
    })
}

fn report(output: &Path, outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<13} {value}\n"));
    line("recording", output.display().to_string());
    line("accesses", grouped(outcome.accesses));
    line("instructions", grouped(outcome.instructions));
    let each = outcome.bytes as f64 / outcome.accesses.max(1) as f64;
    line("size", format!("{} bytes, {each:.3} an access", grouped(outcome.bytes)));
    // A run that was stopped from outside ends on another thread, whose time is not the guest's.
    if outcome.reason != "exit" && outcome.cpu_seconds > 0.0 {
        let rate = outcome.accesses as f64 / outcome.cpu_seconds / 1e6;
        line("speed", format!("{rate:.1} M accesses a second of the guest's CPU time"));
    }
    match (outcome.reason.as_str(), outcome.status) {
        ("limit", _) => line("ended", "at the limit of accesses".into()),
        ("marker", Some(status)) => line("ended", format!("the program, with status {status}")),
        ("marker", None) => line("ended", "at the guest's marker".into()),
        _ => line("ended", "when QEMU was stopped, before the program's end".into()),
    }
    text
}

fn verify(path: &Path) -> anyhow::Result<bool> {
    let recording = Recording::open(path)?;
    let mut reader = recording.reader(&Options { frames: true, ..Options::default() })?;
    let mut verifier = Verifier::new(recording.machine());
    let mut batch = Batch::default();
    let bar = ProgressBar::new(recording.accesses());
    bar.set_style(
        ProgressStyle::with_template("verifying {bar:30} {eta} left").expect("a valid template"),
    );
    while reader.next(&mut batch)? {
        verifier.check(&batch)?;
        bar.set_position(verifier.walked());
    }
    bar.finish_and_clear();
    let (walked, mismatches) = (grouped(verifier.walked()), grouped(verifier.mismatches()));
    let mut text = format!("verified      {walked} accesses walked, {mismatches} mismatches\n");
    for mismatch in verifier.first_mismatches() {
        text.push_str(&format!("  {mismatch}\n"));
    }
    print(&text)?;
    Ok(verifier.mismatches() == 0)
}
