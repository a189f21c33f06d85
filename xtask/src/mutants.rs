//! `cargo xtask mutants`: can the tests fail?

mod explained;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use explained::{Explained, Mutant};
use serde::Deserialize;

/// Changes the walker in small ways and runs the tests and the golden vectors against each change.
///
/// A mutant that survives is code that no test holds: kill it with a test, or say in
/// xtask/explained-mutants.toml why it makes no difference. Exits 1 where one is left that is neither, and
/// where an explanation fits no mutant. Runs cargo-mutants, and installs it first where it is missing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which part of the mutants: K/N, K from 0; each part has some of every file
    #[arg(long, default_value = "0/33")]
    shard: String,
    /// Files of crates/slat, as a glob
    #[arg(long)]
    file: Option<String>,
    /// Only mutants whose names match this regular expression
    #[arg(long)]
    re: Option<String>,
    /// Only list the mutants
    #[arg(long)]
    list: bool,
}

/// The files that are mutated.
const FILES: [&str; 2] =
    ["crates/slat/src/{format,syndrome,walk}/**/*.rs", "crates/slat/src/walk.rs"];

/// What came of a mutant, as cargo-mutants notes it.
#[derive(Deserialize)]
struct Outcome {
    scenario: Scenario,
    summary: String,
}

#[derive(Deserialize)]
enum Scenario {
    Baseline,
    Mutant(Mutant),
}

#[derive(Deserialize)]
struct Outcomes {
    outcomes: Vec<Outcome>,
}

fn cargo_mutants(files: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(["mutants", "--no-shuffle", "--package", "slat"]);
    for file in files {
        command.args(["--file", file]);
    }
    command
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
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let explained = Explained::read(&top.join("xtask/explained-mutants.toml"))?;
    let files: Vec<&str> = match &args.file {
        Some(file) => vec![file],
        None => FILES.to_vec(),
    };
    let mut command = cargo_mutants(&files);
    command.args(["--shard", &args.shard, "--sharding", "round-robin"]);
    if let Some(re) = &args.re {
        command.args(["--re", re]);
    }
    if args.list {
        let status = command.arg("--list").status().context("cannot run cargo mutants")?;
        return Ok(ExitCode::from(u8::from(!status.success())));
    }
    let unfit = explained.unfit(&all(&FILES)?, &top)?;
    let output = top.join("target/mutants");
    std::fs::create_dir_all(&output)
        .with_context(|| format!("cannot make the folder {}", output.display()))?;
    command.arg("--output").arg(&output);
    // The golden vectors are tests of another crate.
    command.args(["--test-package", "slat", "--test-package", "slat-oracle"]);
    let outcomes = output.join("mutants.out/outcomes.json");
    if outcomes.exists() {
        std::fs::remove_file(&outcomes)
            .with_context(|| format!("cannot remove {}", outcomes.display()))?;
    }
    let status = command.status().context("cannot run cargo mutants")?;
    // cargo-mutants: 0 all caught, 2 some survived, 3 some timed out.
    if !matches!(status.code(), Some(0 | 2 | 3)) {
        bail!("cargo mutants failed ({status})");
    }
    let left = tell(&outcomes, &explained, &top)?;
    for explanation in &unfit {
        anstream::println!("an explanation without its mutant: {explanation}");
    }
    Ok(ExitCode::from(u8::from(left > 0 || !unfit.is_empty())))
}

/// Every mutant of these files.
fn all(files: &[&str]) -> anyhow::Result<Vec<Mutant>> {
    let listed = cargo_mutants(files)
        .args(["--list", "--json"])
        .output()
        .context("cannot run cargo mutants")?;
    ensure!(listed.status.success(), "cargo mutants lists nothing");
    serde_json::from_slice(&listed.stdout).context("in the list of mutants")
}

/// Prints what came of the mutants, and returns how many survived without explanation.
fn tell(path: &PathBuf, explained: &Explained, top: &Path) -> anyhow::Result<usize> {
    // Without a mutant cargo-mutants ends well, and before it writes this file.
    ensure!(path.exists(), "no mutant fits --file, --re and --shard");
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Outcomes { outcomes } =
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    let (mut caught, mut timed_out, mut unviable, mut reasons, mut left) = (0, 0, 0, 0, 0);
    for Outcome { scenario, summary } in outcomes {
        let Scenario::Mutant(mutant) = scenario else { continue };
        match summary.as_str() {
            "CaughtMutant" => caught += 1,
            // A mutant that loops is killed by the clock. So is one that a busy machine runs slowly.
            "Timeout" => {
                timed_out += 1;
                anstream::println!("timed out: {}", mutant.name);
            }
            "Unviable" => unviable += 1,
            _ => match explained.of(&mutant, top)? {
                Some(explanation) => {
                    reasons += 1;
                    anstream::println!("explained: {}: {}", mutant.name, explanation.why);
                }
                None => {
                    left += 1;
                    anstream::println!("survived: {}", mutant.name);
                }
            },
        }
    }
    anstream::println!(
        "{caught} killed, {timed_out} timed out, {unviable} do not compile, {reasons} survived and explained, {left} unexplained"
    );
    Ok(left)
}
