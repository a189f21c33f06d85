//! `slat host`

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use slat_sim::host::play::{Options, play};
use slat_sim::host::processes::{REPORT, play_by_processes};
use slat_sim::host::scenario::Scenario;

#[derive(clap::Args)]
#[command(
    about = "Play a host with partitions: power-on, paging, migration, guests before paging",
    long_about = "Play a scenario: hosts (a hypervisor on a processor, with memory), and what happens \
                  on them. Partitions are translated through real tables in simulated memory; where \
                  one moves between hosts, each host is a process of its own and its guest goes on \
                  writing meanwhile. Printed are what came of each step, and the system physical \
                  memory of each host by owner.",
    after_help = "Scenarios: power-on, parent-paging, migrate, real-mode, requires-slat, \
                  many-partitions, policies\n\n\
                  Examples:\n  slat host migrate\n  slat host power-on --json\n  \
                  slat host power-on --print > mine.toml && slat host mine.toml\n\n\
                  By hand, in two terminals:\n  \
                  slat host migrate --directory /tmp/shared --only a\n  \
                  slat host migrate --directory /tmp/shared --only b\n\n\
                  Exit code: 0 everything went as the scenario says, 1 something did not, \
                  2 unusable input."
)]
pub(crate) struct Args {
    /// A bundled scenario, or a TOML file
    scenario: String,

    /// Print the bundled scenario itself, to begin one's own with
    #[arg(long, conflicts_with = "json")]
    print: bool,

    /// One JSON object (docs/json.md)
    #[arg(long)]
    json: bool,

    /// Play only this host's part, as one of several processes
    #[arg(long, value_name = "HOST", requires = "directory")]
    only: Option<String>,

    /// Where saved partitions and, where partitions move, their locks, records and sockets lie; a
    /// temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Print the result as one host's process does for the one that started it
    #[arg(long, hide = true, requires = "only")]
    part: bool,

    /// Say each step of a migration, and wait for a line before going on
    #[arg(long, hide = true, requires = "only")]
    stepwise: bool,

    /// Note when guests run in this file
    #[arg(long, hide = true, value_name = "FILE")]
    journal: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.print {
        let text = Scenario::text(&args.scenario)
            .with_context(|| format!("no bundled scenario `{}`", args.scenario))?;
        super::print(text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let scenario = open(&args.scenario)?;
    let temporary;
    let directory = match &args.directory {
        Some(directory) => directory.clone(),
        None => {
            temporary = tempfile::tempdir().context("cannot make a temporary directory")?;
            temporary.path().to_owned()
        }
    };
    let bar = ProgressBar::new_spinner();
    if !args.part {
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    let played = if args.only.is_none() && scenario.migrates() {
        bar.set_message("each host plays its part in a process of its own");
        play_by_processes(&scenario, &directory, &part_of(&args.scenario)?)?
    } else {
        let options =
            Options { only: args.only, directory, stepwise: args.stepwise, journal: args.journal };
        play(&scenario, &options, &mut |what| bar.set_message(what.to_owned()))?
    };
    bar.finish_and_clear();
    let text = match (args.part, args.json) {
        (true, _) => format!("{REPORT}{}\n", played.json()?),
        (_, true) => format!("{}\n", played.json()?),
        _ => played.text(super::width().unwrap_or(usize::MAX)),
    };
    super::print(&text)?;
    Ok(if played.as_said() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// More than any scenario has.
const MOST_BYTES: u64 = 1 << 20;

/// A bundled scenario, or one from a file.
fn open(name: &str) -> anyhow::Result<Scenario> {
    let path = Path::new(name);
    if !path.exists() && Scenario::names().all(|bundled| bundled != name) && name.contains('.') {
        anyhow::bail!("{name}: no such file");
    }
    if Scenario::names().any(|bundled| bundled == name) || !path.exists() {
        return Ok(Scenario::bundled(name)?);
    }
    // Where partitions move, each host's process reads it again: a pipe would be empty by then.
    if !path.is_file() {
        anyhow::bail!("{name}: not a regular file: write the scenario into one");
    }
    if path.metadata().is_ok_and(|found| found.len() > MOST_BYTES) {
        anyhow::bail!("{name}: longer than 1 MiB, so this is no scenario");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    Ok(Scenario::parse(name, &text)?)
}

/// This program, as it plays one host's part.
fn part_of(scenario: &str) -> anyhow::Result<impl Fn(&str, &Path) -> Command> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let scenario = scenario.to_owned();
    Ok(move |host: &str, directory: &Path| {
        let mut command = Command::new(&program);
        command.args(["host", &scenario, "--part", "--only", host, "--directory"]).arg(directory);
        command
    })
}
