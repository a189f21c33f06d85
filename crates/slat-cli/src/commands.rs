//! One module a subcommand: each parses its options, calls the crates below and prints.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

mod check;
mod compare;
mod completions;
mod export;
mod host;
mod import;
mod info;
mod man;
mod record;
mod replay;
mod reproduce;
mod walk;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Tell whether this machine has SLAT, whether it is on and whether it is used
    Check(check::Args),
    /// What a workload costs without virtualization, with shadow paging, and with SLAT
    Compare(compare::Args),
    /// The published results on memory virtualization, each beside ours
    Reproduce(reproduce::Args),
    /// Play a host with partitions: power-on, paging, migration, guests before paging
    Host(host::Args),
    /// Explain one translation, step by step
    Walk(walk::Args),
    /// Record a program, or a whole system, in an unmodified Linux guest
    Record(record::Args),
    /// Read a recording through: count what is in it, check it against its own tables
    Replay(replay::Args),
    /// Tell what a recording is: its machine, who made it, how long it is
    Info(info::Args),
    /// Write the accesses of a recording as text for other programs
    Export(export::Args),
    /// Turn another tool's trace into a recording
    Import(import::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Write the manual pages into a directory
    Man(man::Args),
}

impl Command {
    /// Runs the subcommand; the exit code follows the table in the README.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Check(args) => check::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Reproduce(args) => reproduce::run(args),
            Command::Host(args) => host::run(args),
            Command::Walk(args) => walk::run(args),
            Command::Record(args) => record::run(args),
            Command::Replay(args) => replay::run(args),
            Command::Info(args) => info::run(args),
            Command::Export(args) => export::run(args),
            Command::Import(args) => import::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Man(args) => man::run(args),
        }
    }
}

/// Prints a whole text, and takes a reader who has seen enough (`slat check | head -1`) for a reader, not
/// an error. Anything else that keeps the text from standard output, such as a full disk, is one.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// The columns of the terminal, or else what `COLUMNS` says, as for `--help`.
fn width() -> Option<usize> {
    match terminal_size::terminal_size() {
        Some((terminal_size::Width(columns), _)) => Some(columns.into()),
        None => std::env::var("COLUMNS").ok()?.parse().ok(),
    }
}

/// Whether the reader of the output went away, as `head` does once it has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

/// Refuses an output that exists and is no file of its own (a device, a pipe, a link, a directory): what is
/// written whole replaces it. Refuses one of the inputs, too.
fn may_replace(output: &Path, inputs: &[&Path]) -> anyhow::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(output) else { return Ok(()) };
    if !found.is_file() {
        anyhow::bail!(
            "{}: is no regular file and would be replaced: name another file",
            output.display()
        );
    }
    let real = std::fs::canonicalize(output).ok();
    if real.is_some() && inputs.iter().any(|input| std::fs::canonicalize(input).ok() == real) {
        anyhow::bail!("{}: is the input and would be lost: name another file", output.display());
    }
    Ok(())
}

/// What `slat` without arguments prints: the verdict on this machine, and where to go from there.
pub(crate) fn welcome() -> anyhow::Result<ExitCode> {
    print(&format!(
        "{}\n\n{}\n\nTry:\n  slat check          what this rests on, and what to do about it\n  \
         slat walk --help    how one address is translated, step by step\n  \
         slat --help         everything else\n",
        check::this_machine().headline,
        slat_check::text::WHAT_SLAT_IS,
    ))?;
    Ok(ExitCode::SUCCESS)
}
