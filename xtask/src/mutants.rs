//! `cargo xtask mutants`: can the tests fail?

use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

/// Changes the walker in small ways and runs the tests and the golden vectors against each change.
///
/// A mutant that survives is code that no test holds: kill it with a test, or say in the code why it
/// makes no difference. Runs cargo-mutants, and installs it first where it is missing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which part of the mutants: K/N, K from 0; each part has some of every file
    #[arg(long, default_value = "0/33")]
    shard: String,
    /// Files of crates/slat, as a glob
    #[arg(long, default_value = "crates/slat/src/{format,syndrome,walk}/**/*.rs")]
    file: String,
    /// Only list the mutants
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let there = Command::new("cargo").args(["mutants", "--version"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        anstream::println!("installing cargo-mutants");
        let status = Command::new("cargo")
            .args(["install", "--locked", "cargo-mutants"])
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "cargo install cargo-mutants failed; install it by other means");
    }
    let mut command = Command::new("cargo");
    command.args(["mutants", "--no-shuffle", "--package", "slat", "--file", &args.file]);
    command.args(["--file", "crates/slat/src/walk.rs", "--shard", &args.shard]);
    command.args(["--sharding", "round-robin"]);
    // The golden vectors are tests of another crate.
    command.args(["--test-package", "slat", "--test-package", "slat-oracle"]);
    if args.list {
        command.arg("--list");
    }
    let status = command.status().context("cannot run cargo mutants")?;
    // cargo-mutants: 0 all caught, 2 some survived, 3 some timed out.
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        Some(2 | 3) => ExitCode::from(1),
        _ => ExitCode::from(2),
    })
}
