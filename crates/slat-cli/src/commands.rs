//! One module a subcommand: each parses its options, calls the crates below and prints.

use std::process::ExitCode;

use clap::Subcommand;

mod completions;
mod man;
mod walk;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Explain one translation, step by step
    Walk(walk::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Write the manual pages into a directory
    Man(man::Args),
}

impl Command {
    /// Runs the subcommand; the exit code follows the table in the README.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Walk(args) => walk::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Man(args) => man::run(args),
        }
    }
}

/// What `slat` without arguments prints.
pub(crate) fn welcome() -> anyhow::Result<ExitCode> {
    anstream::println!("slat: try `slat --help`");
    Ok(ExitCode::SUCCESS)
}
