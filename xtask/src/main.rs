//! Developer tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod slice;

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
    /// Cut a test fixture out of a memory image with two guests
    Slice(slice::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Slice(args) => slice::run(args),
    }
}
