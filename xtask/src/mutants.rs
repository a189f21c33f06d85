//! `cargo xtask mutants`: can the tests fail?

mod copy;
mod explained;
mod mutant;
mod trials;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use copy::Copy;
use explained::Explained;
use mutant::Mutant;
use trials::{Outcome, Trials};

/// Changes the walker in small ways and runs the golden vectors and the tests against each change.
///
/// First the golden vectors alone, which tell most of them; then, against those that they did not
/// tell, the tests of the library and of what walks with it, the nearest first. All of it happens in
/// a copy of the repository below target/mutants, which is kept to be quick the next time.
///
/// A mutant that survives is code that no test holds: kill it with a test, or say in
/// xtask/explained-mutants.toml why it makes no difference, which the vectors and the nearest tests are
/// asked to refute. Exits 1 where one is left that is neither, and where an explanation is refuted or
/// fits no mutant. The mutants are cargo-mutants', which is installed first where it is missing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which part of the mutants: K/N, K from 0, where each part has some of every file; or random:
    /// one of as many as leave at least 100 mutants each
    #[arg(long, default_value = "random")]
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

/// Mutants of a random part, at least, where there are so many.
const RANDOM: usize = 100;

/// How many mutants came to what.
#[derive(Default)]
struct Counts {
    by_vectors: usize,
    by_tests: usize,
    timed_out: usize,
    do_not_compile: usize,
    explained: usize,
    unexplained: usize,
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
    let top = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the tasks are not in a repository")?;
    let folder = top.join("target/mutants");
    let copy = Copy::make(top, &folder)?;
    let mut chosen: Vec<&str> = args.file.as_deref().map_or(FILES.to_vec(), |file| vec![file]);
    chosen = chosen.into_iter().flat_map(|file| ["--file", file]).collect();
    if let Some(re) = &args.re {
        chosen.extend(["--re", re]);
    }
    let shard = match args.shard.as_str() {
        "random" => random_shard(listed(&copy, &chosen)?.len()),
        given => given.to_owned(),
    };
    chosen.extend(["--shard", &shard, "--sharding", "round-robin"]);
    let mutants = listed(&copy, &chosen)?;
    anstream::println!("shard {shard}: {} mutants", mutants.len());
    if args.list {
        mutants.iter().for_each(|mutant| anstream::println!("{}", mutant.name));
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(!mutants.is_empty(), "no mutant fits --file, --re and --shard");
    let explained = Explained::read(&copy.tree.join("xtask/explained-mutants.toml"))?;
    let everything: Vec<&str> = FILES.into_iter().flat_map(|file| ["--file", file]).collect();
    let mut unfit = explained.unfit(&listed(&copy, &everything)?, &copy.tree)?;

    let mut trials = Trials::new(&copy);
    let mut counts = Counts::default();
    let mut left = Vec::new();
    trials.vectors_pass()?;
    for mutant in &mutants {
        let outcome = trials.vectors(mutant)?;
        match outcome {
            Outcome::Survived => left.push((mutant, explained.of(mutant, &copy.tree)?)),
            _ if explained.of(mutant, &copy.tree)?.is_some() => {
                unfit.push(format!("{}: {outcome}", mutant.name));
            }
            _ => {}
        }
        match outcome {
            Outcome::Survived => {
                anstream::println!("the golden vectors leave {}", mutant.name);
            }
            Outcome::Killed(_) => counts.by_vectors += 1,
            // A mutant that loops is killed by the clock. So is one that a busy machine runs slowly.
            Outcome::TimedOut(_) => {
                counts.timed_out += 1;
                anstream::println!("{outcome}: {}", mutant.name);
            }
            Outcome::DoesNotCompile => counts.do_not_compile += 1,
        }
    }
    if !left.is_empty() {
        anstream::println!("{} are left; the tests are asked", left.len());
        trials.tests_pass()?;
    }
    for (mutant, explanation) in left {
        if let Some(explanation) = explanation {
            let outcome = trials.nearest(mutant)?;
            if outcome == Outcome::Survived {
                counts.explained += 1;
                anstream::println!("explained: {}: {}", mutant.name, explanation.why);
                continue;
            }
            unfit.push(format!("{}: {outcome}", mutant.name));
        }
        let outcome = trials.tests(mutant)?;
        *match outcome {
            Outcome::Killed(_) => &mut counts.by_tests,
            Outcome::TimedOut(_) => &mut counts.timed_out,
            Outcome::DoesNotCompile => &mut counts.do_not_compile,
            Outcome::Survived => &mut counts.unexplained,
        } += 1;
        anstream::println!("{outcome}: {}", mutant.name);
    }
    for explanation in &unfit {
        anstream::println!("an explanation that does not fit: {explanation}");
    }
    let Counts { by_vectors, by_tests, timed_out, do_not_compile, explained, unexplained } = counts;
    anstream::println!(
        "shard {shard}, {} mutants: {by_vectors} killed by the golden vectors, {by_tests} by tests, \
         {timed_out} timed out, {do_not_compile} do not compile, {explained} explained, \
         {unexplained} unexplained",
        mutants.len()
    );
    Ok(ExitCode::from(u8::from(unexplained > 0 || !unfit.is_empty())))
}

/// One of as many parts as leave [`RANDOM`] mutants each.
fn random_shard(mutants: usize) -> String {
    use std::hash::{BuildHasher, RandomState};
    let parts = (mutants / RANDOM).max(1);
    // The standard library seeds its hashers from the system's randomness.
    let chosen = RandomState::new().hash_one(std::process::id()) % parts as u64;
    format!("{chosen}/{parts}")
}

/// The mutants that `chosen` chooses.
fn listed(copy: &Copy, chosen: &[&str]) -> anyhow::Result<Vec<Mutant>> {
    let listed = Command::new("cargo")
        .args(["mutants", "--list", "--json", "--no-shuffle", "--package", "slat"])
        .args(chosen)
        .current_dir(&copy.tree)
        .output()
        .context("cannot run cargo mutants")?;
    ensure!(
        listed.status.success(),
        "cargo mutants lists nothing: {}",
        String::from_utf8_lossy(&listed.stderr).trim()
    );
    serde_json::from_slice(&listed.stdout).context("in the list of mutants")
}
