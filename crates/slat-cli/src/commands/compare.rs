//! `slat compare [WORKLOAD...]`

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use slat_sim::compare::{Options, compare};
use slat_sim::preset::Processor;
use slat_sim::report::{Report, TERMS};
use slat_trace::recording::{self, Recording};
use slat_trace::{Source, open};

use super::check::write_whole;

#[derive(clap::Args)]
#[command(
    about = "What a workload costs without virtualization, with shadow paging, and with SLAT",
    long_about = "Run a recording through simulated processors without virtualization, with shadow \
                  paging, and with the processor's second stage (EPT, NPT, Arm Stage-2) over 4K, 2M \
                  and 1G host pages, all in one pass, and say what each costs and why. The guest's \
                  own behaviour is what the recording has: it does not react to the scheme.",
    after_help = "Examples:\n  slat compare\n  slat compare recordings/sqlite.slat --grid\n  \
                  slat compare run.slat --processor my-cpu.toml --no-tags --json\n  \
                  slat compare --explain refs\n\n\
                  Exit code: 0 completed, 2 unusable input."
)]
pub(crate) struct Args {
    /// Recordings (or traces that `slat import` reads); default: the bundled fork+exec recording
    workloads: Vec<PathBuf>,

    /// Processor preset by name, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "skylake-sp")]
    processor: String,

    /// Page sizes with which the host backs the guest
    #[arg(long, value_name = "4K|2M|1G", value_delimiter = ',', default_value = "4K,2M,1G")]
    host_page: Vec<HostPage>,

    /// TLB entries are not tagged by virtual machine, whatever the processor has
    #[arg(long, conflicts_with = "tags")]
    no_tags: bool,

    /// TLB entries are tagged by virtual machine, whatever the processor has
    #[arg(long)]
    tags: bool,

    /// The virtual machine has just started: first touches of host pages count, and shadow tables
    /// begin empty
    #[arg(long)]
    cold_start: bool,

    /// Also print table entries read by guest and nested level
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

    /// Comma-separated values
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum HostPage {
    #[value(name = "4K", alias = "4k")]
    Small,
    #[value(name = "2M", alias = "2m")]
    Large,
    #[value(name = "1G", alias = "1g")]
    Huge,
}

impl HostPage {
    fn shift(self) -> u8 {
        match self {
            HostPage::Small => 12,
            HostPage::Large => 21,
            HostPage::Huge => 30,
        }
    }
}

/// Ten times a shell forks and executes a program, under Linux on x86-64.
const DEFAULT: &[u8] = include_bytes!("../../data/fork.slat");

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(term) = &args.explain {
        return explain(term);
    }
    let processor = processor(&args.processor)?;
    if args.perf {
        anstream::print!("{}", slat_sim::perf::text(&processor.name));
        return Ok(ExitCode::SUCCESS);
    }
    if args.html.is_some() && args.workloads.len() > 1 {
        bail!("--html writes one page: give one workload, not {}", args.workloads.len());
    }
    let mut pages: Vec<u8> = args.host_page.iter().map(|page| page.shift()).collect();
    pages.sort_unstable();
    pages.dedup();
    let tagged = if args.no_tags { Some(false) } else { args.tags.then_some(true) };
    let options = Options { host_pages: pages, tagged, cold_start: args.cold_start, schemes: None };
    if args.workloads.is_empty() {
        let recording = Recording::from_bytes(DEFAULT)?;
        let total = recording.accesses();
        let mut reader = recording.reader(&recording::Options::default())?;
        let name = "fork+exec storm (bundled recording)".to_owned();
        one(&args, name, Vec::new(), &mut reader, total, &processor, &options)?;
    }
    for path in &args.workloads {
        let mut opened = open::open(path, &open::Options::default())?;
        let (total, notes) = (opened.accesses(), opened.notes());
        one(&args, name_of(path), notes, &mut opened, total, &processor, &options)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn one<S: Source>(
    args: &Args,
    workload: String,
    notes: Vec<String>,
    source: &mut S,
    total: u64,
    processor: &Processor,
    options: &Options,
) -> anyhow::Result<()> {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(total).with_style(ProgressStyle::with_template(
            "{bar:30} {percent}% {human_pos} accesses, {per_sec}, {eta} left",
        )?)
    } else {
        ProgressBar::hidden()
    };
    let outcomes = compare(source, processor, options, |done| {
        bar.set_position(done);
        true
    })
    .with_context(|| workload.clone())?;
    bar.finish_and_clear();
    let cold_start = options.cold_start;
    let report = Report { workload, notes, processor: processor.clone(), cold_start, outcomes };
    if let Some(path) = &args.html {
        write_whole(path, &report.html())?;
    }
    let text = if args.json {
        format!("{}\n", serde_json::to_string(&report.json())?)
    } else if args.csv {
        report.csv()
    } else {
        let mut text = report.text();
        if args.grid {
            text.push('\n');
            text.push_str(&report.grid());
        }
        if args.cycles {
            text.push('\n');
            text.push_str(&report.cycles());
        }
        text
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the result")
}

fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.display().to_string())
}

fn processor(name: &str) -> anyhow::Result<Processor> {
    let path = Path::new(name);
    if path.extension().is_some_and(|extension| extension == "toml") {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        return Ok(Processor::parse(name, &text)?);
    }
    Ok(Processor::bundled(name)?)
}

fn explain(term: &str) -> anyhow::Result<ExitCode> {
    match TERMS.iter().find(|(name, _)| *name == term) {
        Some((name, text)) => {
            anstream::println!("{name}: {text}");
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let names: Vec<&str> = TERMS.iter().map(|(name, _)| *name).collect();
            bail!("no term `{term}`; there are {}", names.join(", "))
        }
    }
}
