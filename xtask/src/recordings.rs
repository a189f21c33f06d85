//! `cargo xtask recordings`: makes the recordings in `recordings/` again.
//!
//! The machine is deterministic, so under the same emulator, kernel and programs a recording comes
//! out byte for byte as `recordings/manifest.toml` says. Under others its counts must come within
//! 5 % and its tables must still agree with every access.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slat_setup::{Arch, Cache, Guest, Kit, Recipe, package_root};
use slat_trace::recording::{Options, Recording};
use slat_trace::replay::{Counts, Verifier};
use slat_trace::{Batch, Source};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only those whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Compare, and leave the files and the manifest as they are
    #[arg(long)]
    check: bool,
    /// Take what comes out as the new truth, whatever the manifest says
    #[arg(long, conflicts_with = "check")]
    accept: bool,
    /// Make the long ones, into the cache folder
    #[arg(long)]
    long: bool,
}

/// What the manifest says of one recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// What it was made by: emulator, kernel, recorder, and the checksum of everything in the guest.
    made_by: String,
    accesses: u64,
    instructions: u64,
    bytes: u64,
    sha256: String,
}

type Manifest = BTreeMap<String, Entry>;

/// The largest a bundled recording may be, and all of them together.
const MOST_BYTES: u64 = 3 << 20;
const MOST_TOGETHER: u64 = 12 << 20;

/// One recording to make.
struct Plan {
    name: &'static str,
    recipe: Recipe,
}

fn storm(forks: u32) -> String {
    format!("i=0; while [ $i -lt {forks} ]; do /bin/busybox true; i=$((i+1)); done")
}

fn guest(words: &[&str], files: Vec<(PathBuf, String)>, before: &str, marks: bool) -> Guest {
    let words = words.iter().map(|&word| word.to_owned()).collect();
    Guest::Command { words, files, before: before.into(), marks }
}

/// Compiles a program of `recordings/guest` for the guest, once.
pub(crate) fn compiled(
    place: &Path,
    sources: &Path,
    name: &str,
) -> anyhow::Result<(PathBuf, String)> {
    let program = place.join(name);
    let status = Command::new("gcc")
        .args(["-O2", "-static", "-Wl,--build-id=none", "-o"])
        .arg(&program)
        .arg(sources.join(format!("{name}.c")))
        .status()
        .context("cannot run gcc, which compiles the guests' programs")?;
    ensure!(status.success(), "gcc failed on {name}.c");
    Ok((program, format!("/bin/{name}")))
}

fn plans(cache: &Cache, place: &Path, sources: &Path, args: &Args) -> anyhow::Result<Vec<Plan>> {
    let mut plans = Vec::new();
    let mut add = |name: &'static str, recipe: Recipe| {
        // They are made once and read often.
        let recipe = Recipe { level: 19, ..recipe };
        if name.contains(&args.only) {
            plans.push(Plan { name, recipe });
        }
    };
    let forks = if args.long { 100 } else { 10 };
    let shell = |arch| {
        let guest = guest(&["sh", "-c", &storm(forks)], vec![], "", false);
        let command = format!("sh -c '{}'", storm(forks));
        Recipe { command, ..Recipe::new(arch, guest) }
    };
    add("fork", shell(Arch::X86_64));
    add("fork-pti", Recipe { append: "pti=on".into(), ..shell(Arch::X86_64) });
    add("fork-5-level", Recipe { cpu: Some("max".into()), ..shell(Arch::X86_64) });
    add("fork-smp2", Recipe { vcpus: 2, ..shell(Arch::X86_64) });
    add("fork-aarch64", shell(Arch::Aarch64));

    let steps = if args.long { "5000000" } else { "248000" };
    for (name, huge) in [("chase-4k", "0"), ("chase-2m", "1")] {
        if name.contains(&args.only) {
            let files = vec![compiled(place, sources, "chase")?];
            let guest = guest(&["/bin/chase", "256", steps, huge], files, "", true);
            let command = format!("chase 256 {steps} {huge}");
            // Linux has huge pages in machines of 512 MiB and more of usable memory alone.
            add(name, Recipe { command, memory: 768, ..Recipe::new(Arch::X86_64, guest) });
        }
    }
    if "clear-refs".contains(&args.only) {
        let files = vec![compiled(place, sources, "refs")?];
        let guest = guest(&["/bin/refs"], files, "", true);
        add("clear-refs", Recipe { command: "refs".into(), ..Recipe::new(Arch::X86_64, guest) });
    }
    if "sqlite".contains(&args.only) {
        let packages = ["sqlite3", "libsqlite3-0", "libreadline8", "libtinfo6", "libc6", "zlib1g"];
        let root = package_root(cache, Arch::X86_64, "sqlite", &packages)?;
        let script = if args.long {
            let text = fs::read_to_string(sources.join("work.sql"))?.replace("< 2000", "< 20000");
            fs::write(place.join("work.sql"), text)?;
            place.join("work.sql")
        } else {
            sources.join("work.sql")
        };
        let files = vec![(root, "/".into()), (script, "/guest/work.sql".into())];
        let words = ["sh", "-c", "exec /usr/bin/sqlite3 :memory: < work.sql"];
        let guest = guest(&words, files, "", false);
        let command = "sqlite3 :memory: < work.sql".into();
        add("sqlite", Recipe { command, ..Recipe::new(Arch::X86_64, guest) });
    }
    if "compiler".contains(&args.only) {
        let packages = [
            "cpp-12", "libisl23", "libmpc3", "libmpfr6", "libgmp10", "libzstd1", "zlib1g", "libc6",
        ];
        let root = package_root(cache, Arch::X86_64, "compiler", &packages)?;
        let cc1 = "/usr/lib/gcc/x86_64-linux-gnu/12/cc1";
        let needed = ["usr/lib/gcc/x86_64-linux-gnu/12/cc1", "usr/lib/x86_64-linux-gnu"];
        let mut files: Vec<(PathBuf, String)> =
            needed.iter().map(|at| (root.join(at), format!("/{at}"))).collect();
        for at in ["lib", "lib64"] {
            files.push((root.join(at), format!("/{at}")));
        }
        files.push((sources.join("compiled.c"), "/guest/compiled.c".into()));
        let words = [cc1, "-quiet", "-O2", "-o", "/tmp/out.s", "compiled.c"];
        let guest = guest(&words, files, "", false);
        let recipe = Recipe {
            command: "cc1 -O2 compiled.c".into(),
            most_accesses: (!args.long).then_some(16_000_000),
            ..Recipe::new(Arch::X86_64, guest)
        };
        add("compiler", recipe);
    }
    Ok(plans)
}

/// Reads a recording through, with its own tables; returns its counts.
pub(crate) fn verified(path: &Path) -> anyhow::Result<Counts> {
    let recording = Recording::open(path)?;
    let mut reader = recording.reader(&Options { frames: true, ..Options::default() })?;
    let mut verifier = Verifier::new(recording.machine());
    let (mut batch, mut counts) = (Batch::default(), Counts::default());
    while reader.next(&mut batch)? {
        counts.add(&batch);
        verifier.check(&batch)?;
    }
    if let Some(first) = verifier.first_mismatches().first() {
        bail!("{} mismatches; the first: {first}", verifier.mismatches());
    }
    ensure!(verifier.walked() > 0, "nothing was recorded");
    Ok(counts)
}

fn sum_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn made_by(cache: &Cache, recipe: &Recipe, recording: &Recording) -> anyhow::Result<String> {
    // All that is in the guest but the kernel, the words that start the program among it.
    let image = slat_setup::guest_image(cache, recipe)?.unwrap_or_default();
    let guest = &sum_of(&image)[..16];
    let value = |key: &str| {
        recording.provenance().iter().find(|pair| pair.0 == key).map_or("", |pair| &pair.1)
    };
    let (emulator, kernel) = (value("emulator"), value("kernel"));
    Ok(format!("{emulator}, Linux {kernel}, {}, guest {guest}", value("recorder")))
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recordings");
    let cache = Cache::new()?;
    let place = tempfile::tempdir()?;
    let manifest_path = folder.join("manifest.toml");
    let mut manifest: Manifest = match fs::read_to_string(&manifest_path) {
        Ok(text) => toml::from_str(&text).context("recordings/manifest.toml")?,
        Err(_) => Manifest::new(),
    };
    let into = if args.long { cache.root().join("recordings") } else { folder.clone() };
    fs::create_dir_all(&into)?;
    for Plan { name, recipe } in plans(&cache, place.path(), &folder.join("guest"), &args)? {
        let path = into.join(format!("{name}.slat"));
        let made = if args.check { place.path().join(name) } else { path.clone() };
        // Built and fetched as needed, so that a changed recorder is the one that runs.
        Kit::fetch(&cache, recipe.arch)?;
        let mut console = String::new();
        let outcome = slat_setup::record(&cache, &recipe, &made, |progress| {
            console.push_str(&progress.console);
            true
        })
        .with_context(|| name)?;
        let limited = outcome.reason == "limit";
        ensure!(limited || outcome.status == Some(0), "{name}: {outcome:?}\n{console}");
        let counts = verified(&made).with_context(|| name)?;
        let bytes = fs::read(&made)?;
        let recording = Recording::open(&made)?;
        let entry = Entry {
            made_by: made_by(&cache, &recipe, &recording)?,
            accesses: counts.accesses(),
            instructions: counts.instructions,
            bytes: bytes.len() as u64,
            sha256: sum_of(&bytes),
        };
        anstream::println!(
            "{name}: {} accesses, {} bytes ({:.3} each), {:.1} M accesses/s, 0 mismatches",
            entry.accesses,
            entry.bytes,
            entry.bytes as f64 / entry.accesses as f64,
            entry.accesses as f64 / outcome.cpu_seconds / 1e6,
        );
        if args.long {
            continue;
        }
        ensure!(entry.bytes <= MOST_BYTES, "{name}: larger than {MOST_BYTES} bytes");
        if let Some(old) = manifest.get(name).filter(|_| !args.accept) {
            compare(old, &entry).with_context(|| name)?;
        }
        if !args.check {
            manifest.insert(name.into(), entry);
            fs::write(&manifest_path, toml::to_string(&manifest)?)?;
        }
    }
    let together: u64 = manifest.values().map(|entry| entry.bytes).sum();
    ensure!(together <= MOST_TOGETHER, "{together} bytes together, {MOST_TOGETHER} at most");
    Ok(())
}

/// Whether a recording came out as it should.
fn compare(old: &Entry, new: &Entry) -> anyhow::Result<()> {
    if old.made_by == new.made_by {
        ensure!(
            old.sha256 == new.sha256,
            "made by the same ({}), yet not the same: {} and {} bytes",
            new.made_by,
            old.bytes,
            new.bytes
        );
    }
    for (what, old, new) in [
        ("accesses", old.accesses, new.accesses),
        ("instructions", old.instructions, new.instructions),
    ] {
        ensure!(
            old.abs_diff(new) * 20 <= old,
            "{new} {what}, and {old} in the manifest: more than 5 % apart"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(made_by: &str, accesses: u64, sha256: &str) -> Entry {
        let sha256 = sha256.into();
        Entry { made_by: made_by.into(), accesses, instructions: 1000, bytes: 9, sha256 }
    }

    #[test]
    fn the_same_makers_must_make_the_same() {
        assert!(compare(&entry("a", 100, "x"), &entry("a", 100, "x")).is_ok());
        assert!(compare(&entry("a", 100, "x"), &entry("a", 100, "y")).is_err());
        assert!(compare(&entry("a", 100, "x"), &entry("b", 105, "y")).is_ok());
        assert!(compare(&entry("a", 100, "x"), &entry("b", 106, "y")).is_err());
    }
}
