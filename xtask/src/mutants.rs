//! `cargo xtask mutants`: can the tests fail?

mod copy;
mod explained;
mod mutant;
mod switch;
mod trials;

use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use copy::Copy;
use explained::{Explained, Explanation};
use mutant::Mutant;
use trials::{Outcome, ROUNDS, Trials, Way};

/// Changes the walker in small ways and runs the golden vectors and the tests against each change.
///
/// First the golden vectors alone, which tell most of them; then, against those that they did not
/// tell, the tests of the library and of what walks with it, the nearest first. Most mutants are in one
/// build, which is asked for one after another; those in constants, and in what constants call, take a
/// build each. All of it happens in a copy of the repository below target/mutants, which is kept to be
/// quick the next time.
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
    /// Only mutants whose names contain this text, or one of these; the names are those that --list prints
    #[arg(long)]
    name: Vec<String>,
    /// Only list the mutants
    #[arg(long)]
    list: bool,
}

/// The files that are mutated.
const FILES: [&str; 2] =
    ["crates/slat/src/{format,syndrome,walk}/**/*.rs", "crates/slat/src/walk.rs"];

/// Mutants of a random part, at least, where there are so many.
const RANDOM: usize = 100;

/// How many mutants came to what, and the explanations that do not fit.
#[derive(Default)]
struct Sum {
    by_vectors: usize,
    by_tests: usize,
    timed_out: usize,
    do_not_compile: usize,
    explained: usize,
    unexplained: usize,
    unfit: Vec<String>,
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
    let everything = listed(&copy, &FILES)?;
    let mut mutants = match &args.file {
        Some(file) => listed(&copy, &[file])?,
        None => everything.clone(),
    };
    mutants
        .retain(|mutant| args.name.is_empty() || args.name.iter().any(|n| mutant.name.contains(n)));
    let shard = match args.shard.as_str() {
        "random" => Shard::random(mutants.len()),
        given => given.parse()?,
    };
    let mutants = shard.of(mutants);
    anstream::println!("shard {shard}: {} mutants", mutants.len());
    if args.list {
        mutants.iter().for_each(|mutant| anstream::println!("{}", mutant.name));
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(!mutants.is_empty(), "no mutant fits --file, --name and --shard");
    let explained = Explained::read(&copy.tree.join("xtask/explained-mutants.toml"))?;
    let mut sum = Sum { unfit: explained.unfit(&everything, &copy.tree)?, ..Sum::default() };
    let explanations = mutants.iter().map(|mutant| explained.of(mutant, &copy.tree));
    let explanations: Vec<_> = explanations.collect::<anyhow::Result<_>>()?;

    let files = mutants.iter().map(|mutant| mutant.file.as_str()).chain([switch::MAIN]);
    let sources = copy.texts(files)?;
    let mut trials = Trials::new(&copy);
    let held = switch::hold(&mutants, &sources, &mut |files| {
        copy.put(files)?;
        switch::check(&copy.tree, &copy.target)
    })?;
    let (held, built): (Vec<_>, Vec<_>) =
        (0..mutants.len()).partition(|place| held.contains(place));
    anstream::println!("{} in one build, {} each in its own", held.len(), built.len());
    let held = held.into_iter().map(|n| (Way::Held(&mutants[n], n + 1), explanations[n]));
    sum.add(&mut trials, &held.collect::<Vec<_>>())?;
    copy.put(&sources)?;
    let built = built.into_iter().map(|n| (Way::Built(&mutants[n]), explanations[n]));
    sum.add(&mut trials, &built.collect::<Vec<_>>())?;

    for explanation in &sum.unfit {
        anstream::println!("an explanation that does not fit: {explanation}");
    }
    let Sum { by_vectors, by_tests, timed_out, do_not_compile, explained, unexplained, unfit } =
        sum;
    anstream::println!(
        "shard {shard}, {} mutants: {by_vectors} killed by the golden vectors, {by_tests} by tests, \
         {timed_out} timed out, {do_not_compile} do not compile, {explained} explained, \
         {unexplained} unexplained",
        mutants.len()
    );
    Ok(ExitCode::from(u8::from(unexplained > 0 || !unfit.is_empty())))
}

impl Sum {
    /// Tries these mutants, each with its explanation.
    fn add(
        &mut self,
        trials: &mut Trials<'_>,
        mutants: &[(Way<'_>, Option<&Explanation>)],
    ) -> anyhow::Result<()> {
        if mutants.is_empty() {
            return Ok(());
        }
        trials.vectors_pass()?;
        let mut left = Vec::new();
        for &(way, explanation) in mutants {
            let name = &way.mutant().name;
            let outcome = trials.vectors(way)?;
            match outcome {
                Outcome::Survived => {
                    anstream::println!("the golden vectors leave {name}");
                    left.push((way, explanation));
                    continue;
                }
                // A mutant that loops is killed by the clock. So is one that a busy machine runs slowly.
                Outcome::TimedOut(_) => anstream::println!("{outcome}: {name}"),
                _ => {}
            }
            *self.count(&outcome) += 1;
            self.unfit.extend(explanation.map(|_| format!("{name}: {outcome}")));
        }
        // Round by round: few are left for those that take long to build.
        for round in 0..ROUNDS {
            if left.is_empty() {
                break;
            }
            anstream::println!("{} are left; tests are asked, round {}", left.len(), round + 1);
            let files: Vec<&str> = left.iter().map(|(way, _)| way.mutant().file.as_str()).collect();
            trials.tests_pass(round, &files)?;
            let mut further = Vec::new();
            for (way, explanation) in left {
                let name = &way.mutant().name;
                let outcome = trials.tests(way, round)?;
                if outcome == Outcome::Survived {
                    match explanation {
                        // The nearest tests are asked to refute it.
                        Some(Explanation { why, .. }) => {
                            self.explained += 1;
                            anstream::println!("explained: {name}: {why}");
                        }
                        None => further.push((way, explanation)),
                    }
                    continue;
                }
                anstream::println!("{outcome}: {name}");
                self.unfit.extend(explanation.map(|_| format!("{name}: {outcome}")));
                if let Outcome::Killed(_) = outcome {
                    self.by_tests += 1;
                } else {
                    *self.count(&outcome) += 1;
                }
            }
            left = further;
        }
        for (way, _) in &left {
            anstream::println!("survived: {}", way.mutant().name);
        }
        self.unexplained += left.len();
        Ok(())
    }

    /// What counts those that the golden vectors brought to this, or that are left in the end.
    fn count(&mut self, outcome: &Outcome) -> &mut usize {
        match outcome {
            Outcome::Killed(_) => &mut self.by_vectors,
            Outcome::TimedOut(_) => &mut self.timed_out,
            Outcome::DoesNotCompile => &mut self.do_not_compile,
            Outcome::Survived => &mut self.unexplained,
        }
    }
}

/// Every N-th mutant, from number K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    k: usize,
    n: usize,
}

impl Shard {
    /// One of as many as leave [`RANDOM`] mutants each.
    fn random(mutants: usize) -> Shard {
        use std::hash::{BuildHasher, RandomState};
        let n = (mutants / RANDOM).max(1);
        // The standard library seeds its hashers from the system's randomness.
        let chosen = RandomState::new().hash_one(std::process::id()) % n as u64;
        Shard { k: chosen as usize, n }
    }

    fn of<T>(self, mutants: Vec<T>) -> Vec<T> {
        mutants.into_iter().skip(self.k).step_by(self.n).collect()
    }
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Shard> {
        let parts =
            text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((k, n)) if k < n => Ok(Shard { k, n }),
            _ => bail!("--shard {text}: K/N, where K is from 0 to N-1, or random"),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.k, self.n)
    }
}

/// The mutants of these files, given as globs. What cargo-mutants would choose by their names itself it leaves to us:
/// its `--re` passes by those that delete a field.
fn listed(copy: &Copy, files: &[&str]) -> anyhow::Result<Vec<Mutant>> {
    let listed = Command::new("cargo")
        .args(["mutants", "--list", "--json", "--no-shuffle", "--package", "slat"])
        .args(files.iter().flat_map(|file| ["--file", file]))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_parts_of_the_whole() {
        let parts = ["0/3", "1/3", "2/3"].map(|text| text.parse::<Shard>().unwrap());
        let chosen = parts.map(|shard| shard.of((0..8).collect::<Vec<_>>()));
        assert_eq!(chosen, [vec![0, 3, 6], vec![1, 4, 7], vec![2, 5]]);
        assert_eq!(parts[1].to_string(), "1/3");
        for text in ["3/3", "1", "a/2", "0/0", "-1/2"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        for mutants in [0, 99, 250, 3646] {
            let shard = Shard::random(mutants);
            let size = shard.of((0..mutants).collect::<Vec<_>>()).len();
            assert!(size >= RANDOM.min(mutants) && size < 2 * RANDOM, "{shard} of {mutants}");
        }
    }
}
