//! Developer tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod emulators;
mod fresh_recordings;
mod mutants;
mod oracle;
mod recording_cost;
mod recordings;
mod slice;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tasks of the slat repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

/// One file a task.
#[derive(Subcommand)]
enum Task {
    /// Install what the oracles and the recorder need
    Emulators(emulators::Args),
    /// Record short guests anew and check them
    FreshRecordings(fresh_recordings::Args),
    /// Change the walker in small ways, and see whether the tests notice
    Mutants(mutants::Args),
    /// Compare the walker with hardware models
    Oracle(oracle::Args),
    /// Measure what recording costs the guest, part by part
    RecordingCost(recording_cost::Args),
    /// Make the bundled recordings again
    Recordings(recordings::Args),
    /// Cut a test fixture out of a memory image with two guests
    Slice(slice::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Emulators(args) => emulators::run(args),
        Task::FreshRecordings(args) => fresh_recordings::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Mutants(args) => mutants::run(args),
        Task::Oracle(args) => oracle::run(args),
        Task::RecordingCost(args) => recording_cost::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Recordings(args) => recordings::run(args).map(|()| ExitCode::SUCCESS),
        Task::Slice(args) => slice::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        anstream::eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
