//! The `slat` command: thin, all logic lives in the crates below.
#![forbid(unsafe_code)]

mod commands;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

/// Second-level address translation (EPT, NPT/RVI, Arm Stage-2, RISC-V G-stage): explained, checked, measured.
#[derive(Parser)]
#[command(name = "slat", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<commands::Command>,
}

/// The command's own definition, for completions and manual pages.
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(command) => command.run(),
        None => commands::welcome(),
    };
    outcome.unwrap_or_else(|error| {
        // Where nobody reads the errors, the exit code still tells.
        let _ = writeln!(anstream::stderr(), "slat: {error:#}");
        ExitCode::from(2)
    })
}
