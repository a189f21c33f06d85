//! `slat compare [WORKLOAD...]`

mod options;
mod workload;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use slat_sim::compare::{CompareError, Compared, Timeline, compare_with, share};
use slat_sim::generated::parameter::number;
use slat_sim::preset::Extension;
use slat_sim::report::{Report, TERMS, explained};
use slat_trace::{Arch, Source};

use self::options::{HostPage, SchemeName, Setting};
use self::workload::{Workload, Workloads};
use super::check::write_whole;

#[derive(clap::Args)]
#[command(
    about = "What a workload costs without virtualization, with shadow paging, and with SLAT",
    long_about = "Run a recorded, imported or generated guest through simulated processors without \
                  virtualization, with shadow paging, and with a second stage (EPT, NPT, Arm Stage-2, \
                  RISC-V G-stage) over 4K, 2M and 1G host pages, all in one pass, and say what each \
                  costs and why. The guest's own behaviour is what the recording has: it does not \
                  react to the scheme.",
    after_help = "Examples:\n  slat compare\n  slat compare recordings/sqlite.slat --grid\n  \
                  slat compare gen:gups,size=256,huge=1 --advice\n  \
                  slat compare run.slat --processor my-cpu.toml --no-tags --json\n  \
                  slat compare gen:oltp gen:fcw --share 100000\n  \
                  slat compare --explain refs\n\n\
                  Exit code: 0 completed, 2 unusable input, 130 interrupted (what is printed is of \
                  the part that ran)."
)]
pub(crate) struct Args {
    /// Recordings, traces that `slat import` reads, or generated guests (gen:NAME,key=value,...;
    /// --list says which); default: the bundled fork+exec recording
    workloads: Vec<String>,

    /// List the generated guests with their parameters, the processors and the hypervisors, and stop
    #[arg(long)]
    list: bool,

    /// Accesses that a generated guest gives; as for other numbers of accesses, k and M stand for thousands
    /// and millions
    #[arg(long, value_name = "N", default_value = "8M", value_parser = count)]
    accesses: u64,

    /// Accesses that are run before counting begins, exactly so many: what starts up is left out
    #[arg(long, value_name = "N", default_value = "0", value_parser = count, conflicts_with = "share")]
    warm_up: u64,

    /// Processor preset by name, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "skylake-sp")]
    processor: String,

    /// Hypervisor preset by name, or a TOML file: its handlers' costs, its tags, its largest pages,
    /// and only what it does on this processor (a second stage, or its kind of shadow tables)
    #[arg(long, value_name = "NAME|FILE")]
    hypervisor: Option<String>,

    /// Page sizes with which the host backs the guest
    #[arg(long, value_name = "4K|2M|1G", value_delimiter = ',', default_value = "4K,2M,1G")]
    host_page: Vec<HostPage>,

    /// Only these schemes, and native; default: all that the recording can run under, and by
    /// transcription over one page size Stage-2 and G-stage, or of an Arm recording shadow, EPT, NPT
    /// and G-stage
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    scheme: Vec<SchemeName>,

    /// TLB entries are not tagged by virtual machine, whatever the processor has
    #[arg(long, conflicts_with = "tags")]
    no_tags: bool,

    /// TLB entries are tagged by virtual machine, whatever the processor has
    #[arg(long)]
    tags: bool,

    /// What if the x86 guest used PCIDs (natively and under a second stage): their invalidations are
    /// derived from its page-table stores
    #[arg(long)]
    pcid: bool,

    /// The workloads are virtual machines on the same cores: each runs so many accesses, then exits for
    /// the next, over shared TLBs and caches; their own tags keep them apart. Schemes of their own
    /// architecture only
    #[arg(long, value_name = "ACCESSES", value_parser = turn)]
    share: Option<usize>,

    /// The virtual machine has just started: first touches of host pages count, and shadow tables
    /// begin empty
    #[arg(long)]
    cold_start: bool,

    /// Also print all advice, each with its simulated effect
    #[arg(long)]
    advice: bool,

    /// Also print table entries read by guest and nested level, and where they were served
    #[arg(long)]
    grid: bool,

    /// Also print cycles by cause, with their ranges
    #[arg(long)]
    cycles: bool,

    /// Say what a term of the table means, and stop
    #[arg(long, value_name = "TERM")]
    explain: Option<String>,

    /// Print the `perf stat` line that measures the same on the real processor, and stop
    #[arg(long)]
    perf: bool,

    /// Also write a page with plots for a browser (one workload)
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// One JSON object a workload (docs/json.md)
    #[arg(long, conflicts_with = "csv")]
    json: bool,

    /// Comma-separated values, a line a workload and scheme (docs/json.md)
    #[arg(long)]
    csv: bool,
}

/// A number of accesses, with k and M for thousands and millions as in the parameters of generated guests.
fn count(text: &str) -> Result<u64, String> {
    number(text)
        .ok_or_else(|| "give a whole number (k and M stand for 1,000 and 1,000,000)".to_owned())
}

/// The same of a turn, which is not empty.
fn turn(text: &str) -> Result<usize, String> {
    match usize::try_from(count(text)?) {
        Ok(accesses @ 1..) => Ok(accesses),
        _ => Err("a turn is one access or more".to_owned()),
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(term) = &args.explain {
        return explain(term);
    }
    if args.list {
        super::print(&options::list(super::width().unwrap_or(usize::MAX)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let setting = Setting::of(&args)?;
    if args.perf {
        super::print(&slat_sim::perf::text(&setting.processor.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    let workloads = Workloads::of(&args)?;
    if args.html.is_some() && (workloads.len() > 1 || args.share.is_some()) {
        bail!("--html writes one page of one workload: give one, without --share");
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot watch for an interrupt")?;
    let goes_on = || !interrupted.load(Ordering::Relaxed);
    if args.csv {
        super::print(Report::CSV_HEADER)?;
    }
    if let Some(slice) = args.share {
        together(&args, workloads, slice, &setting, &goes_on)?;
    } else {
        for workload in workloads {
            if goes_on() {
                alone(&args, workload?, &setting, &goes_on)?;
            }
        }
    }
    Ok(if goes_on() { ExitCode::SUCCESS } else { ExitCode::from(130) })
}

/// One workload after the other, each on a machine of its own.
fn alone(
    args: &Args,
    mut workload: Workload,
    setting: &Setting,
    goes_on: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    let bar = bar(workload.total())?;
    let compared = compare_with(
        &mut workload,
        &setting.processor,
        &setting.options,
        Workload::facts,
        |done| {
            bar.set_position(done);
            goes_on()
        },
    );
    bar.finish_and_clear();
    if let Err(CompareError::Stopped) = compared {
        return Ok(());
    }
    let compared = compared.with_context(|| workload.name.clone())?;
    print(args, &report(&workload, compared, setting))
}

/// All workloads at once, taking turns.
fn together(
    args: &Args,
    workloads: Workloads,
    slice: usize,
    setting: &Setting,
    goes_on: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    let mut sources = workloads.collect::<anyhow::Result<Vec<Workload>>>()?;
    if !(2..=8).contains(&sources.len()) {
        bail!("--share needs 2 to 8 workloads, not {}", sources.len());
    }
    let bar = bar(sources.iter().map(Workload::total).sum())?;
    let all = share(
        &mut sources,
        slice,
        &setting.processor,
        &setting.options,
        Workload::facts,
        |done| {
            bar.set_position(done);
            goes_on()
        },
    )?;
    bar.finish_and_clear();
    let others = sources.len() - 1;
    for (workload, outcomes) in sources.iter().zip(all) {
        let compared = Compared { outcomes, timeline: Timeline::default(), notes: Vec::new() };
        let mut report = report(workload, compared, setting);
        report.notes.push(format!(
            "shares its cores with {others} other virtual machine{}, in turns of {slice} accesses; \
             native means sharing without virtualization",
            if others == 1 { "" } else { "s" }
        ));
        print(args, &report)?;
    }
    Ok(())
}

fn bar(total: u64) -> anyhow::Result<ProgressBar> {
    Ok(if std::io::stderr().is_terminal() {
        ProgressBar::new(total).with_style(ProgressStyle::with_template(
            "{bar:30} {percent}% {human_pos} accesses, {per_sec}, {eta} left",
        )?)
    } else {
        ProgressBar::hidden()
    })
}

fn report(workload: &Workload, compared: Compared, setting: &Setting) -> Report {
    let mut notes = workload.notes.clone();
    notes.extend(compared.notes);
    notes.extend(setting.notes.iter().cloned());
    let arch = workload.machine().arch;
    let can = setting.processor.virtualization.as_ref();
    let arm = can.map(|can| can.extension.value == Extension::Arm);
    if arm == Some(arch == Arch::X86_64) {
        let (guest, other) = match arch {
            Arch::X86_64 => ("x86-64", "skylake-sp"),
            Arch::Aarch64 => ("AArch64", "neoverse-n1"),
        };
        notes.push(format!(
            "an {guest} guest with the TLBs, caches and costs of {}, which is another architecture's \
             (--processor {other})",
            setting.processor.name
        ));
    }
    if setting.options.pcid {
        notes.push(match workload.machine().arch {
            Arch::X86_64 => {
                "what if with PCIDs: invalidations follow from page-table stores".to_owned()
            }
            Arch::Aarch64 => "no PCIDs: this guest's own ASIDs are in the recording".to_owned(),
        });
    }
    Report {
        workload: workload.name.clone(),
        origin: workload.origin,
        notes,
        processor: setting.processor.clone(),
        hypervisor: setting.hypervisor.clone(),
        cold_start: setting.options.cold_start,
        outcomes: compared.outcomes,
        timeline: compared.timeline,
    }
}

fn print(args: &Args, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &args.html {
        write_whole(path, &report.html())?;
    }
    let text = if args.json {
        format!("{}\n", serde_json::to_string(&report.json())?)
    } else if args.csv {
        report.csv()
    } else {
        let mut text = report.text();
        for (wanted, more) in [
            (args.advice, Report::advice_text as fn(&Report) -> String),
            (args.grid, Report::grid),
            (args.cycles, Report::cycles),
        ] {
            if wanted {
                text.push('\n');
                text.push_str(&more(report));
            }
        }
        text
    };
    super::print(&text)
}

fn explain(term: &str) -> anyhow::Result<ExitCode> {
    match explained(term) {
        Some(text) => {
            super::print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let names: Vec<&str> = TERMS.iter().map(|term| term.name).collect();
            bail!("no term `{term}`; there are {}", names.join(", "))
        }
    }
}
