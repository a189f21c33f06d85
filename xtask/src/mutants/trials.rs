//! Tests run against the copy: each test program by itself, the likeliest to notice first, until one fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::copy::Copy;
use super::mutant::Mutant;
use super::switch;

/// What cargo is told of test programs that are built together. All of them are the whole workspace's where that
/// is possible: what they depend on is then built once, with one set of features.
type Round = Vec<String>;

/// The golden vectors.
const VECTORS: [&str; 1] = ["golden"];

/// The integration tests of these names.
fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Round {
    let tests = names.into_iter().flat_map(|name| ["--test", name]);
    ["--workspace"].into_iter().chain(tests).map(str::to_owned).collect()
}

/// How many rounds of tests there are.
pub(super) const ROUNDS: usize = 4;

/// The tests of the library and of those who use it to walk, the ones nearest to the mutants of these files first.
fn rounds(tree: &Path, files: &[&str]) -> anyhow::Result<[Round; ROUNDS]> {
    let is_near = |part: &str| files.iter().any(|file| file.contains(part));
    let near = NEAR.iter().filter(|(part, _)| is_near(part)).flat_map(|(_, tests)| *tests);
    let near: BTreeSet<&str> = near.copied().chain(["words", "pages"]).collect();
    let (library, images) = (integration(tree, "slat")?, integration(tree, "slat-image")?);
    let walkers = images.iter().map(String::as_str).chain(["walk", "walk_riscv_arm"]);
    // This one builds a program of its own, in which no mutant can be asked for.
    let library = library.iter().map(String::as_str).filter(|name| *name != "no_std");
    Ok([
        named(near),
        ["--package", "slat", "--lib"].map(str::to_owned).to_vec(),
        named(library),
        named(walkers),
    ])
}

/// The names of a crate's integration tests: files, and folders with a main file.
fn integration(tree: &Path, package: &str) -> anyhow::Result<BTreeSet<String>> {
    let folder = tree.join("crates").join(package).join("tests");
    let reading = || format!("cannot read the folder {}", folder.display());
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let is_test =
            path.extension().is_some_and(|end| end == "rs") || path.join("main.rs").exists();
        names.extend(
            path.file_stem().filter(|_| is_test).and_then(|name| name.to_str()).map(str::to_owned),
        );
    }
    Ok(names)
}

/// Tests of the library that are about a part of its sources.
const NEAR: [(&str, &[&str]); 9] = [
    ("/arm64", &["arm64"]),
    ("/arm32", &["arm32"]),
    ("/riscv", &["riscv"]),
    ("/ept", &["x86_features", "x86_bits"]),
    ("/npt", &["x86_features", "x86_bits"]),
    ("/x86", &["x86_features", "x86_bits"]),
    ("/syndrome/arm", &["arm_syndromes"]),
    ("/format/", &["plain"]),
    ("/walk", &["plain", "partial", "updates", "references"]),
];

/// What came of a mutant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This test program failed.
    Killed(String),
    /// This one did not end.
    TimedOut(String),
    DoesNotCompile,
    Survived,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Killed(by) => write!(f, "killed by {by}"),
            Outcome::TimedOut(under) => write!(f, "timed out under {under}"),
            Outcome::DoesNotCompile => f.write_str("does not compile"),
            Outcome::Survived => f.write_str("survived"),
        }
    }
}

/// A built test program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    /// Its package and its own name.
    name: String,
    path: PathBuf,
    /// Where it is run: the folder of its package.
    folder: PathBuf,
}

/// How a mutant comes into the test programs.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// They are built with it.
    Built(&'a Mutant),
    /// They hold it, and are asked for it by this number.
    Held(&'a Mutant, usize),
}

impl<'a> Way<'a> {
    pub(super) fn mutant(self) -> &'a Mutant {
        match self {
            Way::Built(mutant) | Way::Held(mutant, _) => mutant,
        }
    }
}

/// Runs tests in a copy whose unchanged code was seen to pass them.
pub(super) struct Trials<'a> {
    copy: &'a Copy,
    /// How long each test program took with unchanged code.
    took: BTreeMap<String, Duration>,
    /// The test programs that hold mutants.
    holding: BTreeMap<Round, Vec<Program>>,
}

/// No test program is given up sooner than this, nor than this many times what it took before.
const LEAST: Duration = Duration::from_secs(60);
const TIMES: u32 = 10;

impl<'a> Trials<'a> {
    pub(super) fn new(copy: &'a Copy) -> Trials<'a> {
        Trials { copy, took: BTreeMap::new(), holding: BTreeMap::new() }
    }

    /// Runs the golden vectors on unchanged code.
    ///
    /// # Errors
    /// Where they do not pass, so that they could not tell a mutant.
    pub(super) fn vectors_pass(&mut self) -> anyhow::Result<()> {
        self.pass(&named(VECTORS))
    }

    /// Runs the tests of a round, counted from 0, on unchanged code: of the first, those that are near to these files.
    ///
    /// # Errors
    /// Where some do not pass.
    pub(super) fn tests_pass(&mut self, round: usize, files: &[&str]) -> anyhow::Result<()> {
        self.pass(&rounds(&self.copy.tree, files)?[round])
    }

    fn pass(&mut self, round: &[String]) -> anyhow::Result<()> {
        let Some(programs) = self.build(round)? else {
            bail!(
                "cargo test {} does not compile with unchanged code: see {}",
                round.join(" "),
                self.log().display()
            );
        };
        for program in programs {
            if self.took.contains_key(&program.name) {
                continue;
            }
            let begun = Instant::now();
            let passed = run(&program, None, Duration::MAX, &self.log())?;
            ensure!(
                passed == Some(true),
                "{} does not pass with unchanged code: see {}",
                program.name,
                self.log().display()
            );
            self.took.insert(program.name, begun.elapsed());
        }
        Ok(())
    }

    /// Whether the golden vectors notice this mutant.
    ///
    /// # Errors
    /// Where cargo or a test program cannot be run.
    pub(super) fn vectors(&mut self, way: Way<'_>) -> anyhow::Result<Outcome> {
        self.run(way, &named(VECTORS))
    }

    /// Whether the tests of a round notice it.
    ///
    /// # Errors
    /// As [`Trials::vectors`].
    pub(super) fn tests(&mut self, way: Way<'_>, round: usize) -> anyhow::Result<Outcome> {
        let rounds = rounds(&self.copy.tree, &[&way.mutant().file])?;
        self.run(way, &rounds[round])
    }

    fn run(&mut self, way: Way<'_>, round: &Round) -> anyhow::Result<Outcome> {
        match way {
            Way::Built(mutant) => self.copy.with(mutant, || match self.build(round)? {
                Some(programs) => self.ask(&programs, None),
                None => Ok(Outcome::DoesNotCompile),
            }),
            Way::Held(_, number) => {
                if !self.holding.contains_key(round) {
                    let built = self.build(round)?.context("what compiled does so no more")?;
                    self.holding.insert(round.clone(), built);
                }
                self.ask(&self.holding[round], Some(number))
            }
        }
    }

    /// Runs test programs, one after another, until one fails.
    fn ask(&self, programs: &[Program], number: Option<usize>) -> anyhow::Result<Outcome> {
        for program in programs {
            let limit = self.took.get(&program.name).map_or(LEAST, limit);
            match run(program, number, limit, &self.log())? {
                Some(true) => {}
                Some(false) => return Ok(Outcome::Killed(program.name.clone())),
                None => return Ok(Outcome::TimedOut(program.name.clone())),
            }
        }
        Ok(Outcome::Survived)
    }

    /// What the compiler or the last test program said.
    fn log(&self) -> PathBuf {
        self.copy.target.with_file_name("test.log")
    }

    /// Builds test programs; `None` where they do not compile.
    fn build(&self, round: &[String]) -> anyhow::Result<Option<Vec<Program>>> {
        let output = Command::new("cargo")
            .args(["test", "--quiet", "--no-run", "--message-format", "json"])
            .args(round)
            .current_dir(&self.copy.tree)
            .env("CARGO_TARGET_DIR", &self.copy.target)
            .stderr(log_to(&self.log())?)
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            return Ok(None);
        }
        let lines = String::from_utf8_lossy(&output.stdout);
        let programs: Vec<Program> = lines.lines().filter_map(program).collect();
        ensure!(!programs.is_empty(), "cargo test {} has no tests", round.join(" "));
        Ok(Some(programs))
    }
}

fn limit(took: &Duration) -> Duration {
    LEAST.max(*took * TIMES)
}

/// The test program that a line of cargo's tells of.
fn program(line: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Artifact {
        executable: Option<PathBuf>,
        manifest_path: PathBuf,
        profile: Profile,
        target: Target,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let Artifact { executable, manifest_path, profile, target } =
        serde_json::from_str(line).ok()?;
    let folder = manifest_path.parent()?.to_owned();
    let package = folder.file_name()?.to_str()?.to_owned();
    let own = if target.kind.iter().any(|kind| kind == "test") { &target.name } else { "unit" };
    let name = format!("{package} {own}");
    executable.filter(|_| profile.test).map(|path| Program { name, path, folder })
}

fn log_to(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// Runs a test program, with the mutant of this number if it holds any: whether it passed, `None` where it took
/// longer than `limit`.
fn run(
    program: &Program,
    number: Option<usize>,
    limit: Duration,
    log: &Path,
) -> anyhow::Result<Option<bool>> {
    let out = log_to(log)?;
    let err = out.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Command::new(&program.path)
        .current_dir(&program.folder)
        .envs(number.map(|number| (switch::VARIABLE, number.to_string())))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("cannot run {}", program.path.display()))?;
    let passed = within(&mut child, limit);
    if !matches!(passed, Ok(Some(_))) {
        // It may have ended by itself just now.
        let _ = child.kill();
        let _ = child.wait();
    }
    passed.with_context(|| format!("cannot wait for {}", program.path.display()))
}

/// Whether a program ends well; `None` where it has not ended in time.
fn within(child: &mut Child, limit: Duration) -> std::io::Result<Option<bool>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if begun.elapsed() > limit {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_named_as_near_exist() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/slat/tests");
        for name in NEAR.iter().flat_map(|(_, tests)| *tests).chain(&["words", "pages"]) {
            let (file, folder) = (format!("{name}.rs"), format!("{name}/main.rs"));
            assert!(tests.join(file).exists() || tests.join(folder).exists(), "{name}");
        }
    }

    #[test]
    fn test_programs_are_told_from_other_artifacts() {
        let line = |test: bool, kind: &str, executable: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"/r/crates/slat/Cargo.toml\",\
                 \"target\":{{\"kind\":[\"{kind}\"],\"name\":\"words\"}},\
                 \"profile\":{{\"test\":{test}}},\"executable\":{executable}}}"
            )
        };
        let words = program(&line(true, "test", "\"/t/words-1\"")).unwrap();
        assert_eq!((words.name.as_str(), words.folder), ("slat words", "/r/crates/slat".into()));
        assert_eq!(program(&line(true, "lib", "\"/t/slat-1\"")).unwrap().name, "slat unit");
        assert_eq!(program(&line(false, "bin", "\"/t/slat\"")), None);
        assert_eq!(program(&line(true, "test", "null")), None);
        assert_eq!(program("{\"reason\":\"build-finished\",\"success\":true}"), None);
    }

    #[test]
    fn what_does_not_end_is_given_up() {
        let Ok(mut child) = Command::new("sleep").arg("60").spawn() else {
            eprintln!("skipped: there is no sleep");
            return;
        };
        assert_eq!(within(&mut child, Duration::from_millis(1)).unwrap(), None);
        child.kill().unwrap();
        assert_eq!(within(&mut child, Duration::MAX).unwrap(), Some(false));
    }
}
