//! `cargo xtask fresh-recordings`: the recorder still records, and what it records is exact.
//!
//! A short guest of each kind is recorded anew and every access of it compared with the recording's own
//! tables. The bundled recordings test the library; this tests the recorder, on the emulator and kernel
//! that the distribution has today.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use slat_setup::{Arch, Cache, Guest, Kit, Outcome, Recipe};

use crate::recordings::verified;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail where the emulator or a kernel cannot be fetched, instead of passing over it
    #[arg(long)]
    strict: bool,
}

const SCRIPT: &str = "/bin/busybox true & /bin/busybox true & wait";
/// Longer than anybody waits.
const ENDLESS: &str = "while true; do /bin/busybox true; done";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cache = Cache::new()?;
    slat_setup::find_or_build_recorder()?;
    let place = tempfile::tempdir()?;
    for (name, arch, vcpus) in [
        ("x86-64", Arch::X86_64, 1),
        ("x86-64, two vCPUs", Arch::X86_64, 2),
        ("AArch64", Arch::Aarch64, 1),
    ] {
        let kit = match Kit::fetch(&cache, arch) {
            Ok(kit) => kit,
            Err(error) => {
                ensure!(!args.strict, "{name}: {error}");
                anstream::println!("{name}: skipped: {error}");
                continue;
            }
        };
        let recipe = Recipe { vcpus, ..Recipe::new(arch, shell(SCRIPT)) };
        let outcome = same_again(&cache, &recipe, place.path()).context(name)?;
        if vcpus == 1 {
            by_hand(&cache, &kit, &recipe, &outcome, place.path())
                .with_context(|| format!("{name}, with a kernel and initial RAM disk by hand"))?;
            let seed = Recipe { seed: 2, ..recipe.clone() };
            let other = record(&cache, &seed, &place.path().join("seed.slat")).context(name)?;
            let counts = |of: &Outcome| (of.accesses, of.instructions);
            ensure!(counts(&other) != counts(&outcome), "{name}: another seed changes nothing");
            interrupted(&cache, arch, place.path())
                .with_context(|| format!("{name}, interrupted"))?;
        }
        anstream::println!(
            "{name}: {} accesses, 0 mismatches, and the same again byte for byte",
            outcome.accesses
        );
    }
    Ok(())
}

fn shell(script: &str) -> Guest {
    let words = ["sh", "-c", script].map(str::to_owned).to_vec();
    Guest::Command { words, files: vec![], before: String::new(), marks: false }
}

fn record(cache: &Cache, recipe: &Recipe, path: &Path) -> anyhow::Result<Outcome> {
    let mut console = String::new();
    let outcome = slat_setup::record(cache, recipe, path, |progress| {
        console.push_str(&progress.console);
        true
    })?;
    ensure!(outcome.status == Some(0), "{outcome:?}\n{console}");
    Ok(outcome)
}

/// Two runs of the same guest give the same recording, which agrees with its tables.
fn same_again(cache: &Cache, recipe: &Recipe, place: &Path) -> anyhow::Result<Outcome> {
    let paths = ["first.slat", "second.slat"].map(|name| place.join(name));
    let outcome = record(cache, recipe, &paths[0])?;
    record(cache, recipe, &paths[1])?;
    let counts = verified(&paths[0])?;
    ensure!(counts.table_stores > 0 && counts.exceptions > 0, "{counts:?}");
    let [first, second] = paths.map(fs::read);
    ensure!(first? == second?, "two runs of the same guest differ");
    Ok(outcome)
}

/// The same guest, its kernel and initial RAM disk given by hand, is recorded alike: the image has the
/// markers in it.
fn by_hand(
    cache: &Cache,
    kit: &Kit,
    recipe: &Recipe,
    expected: &Outcome,
    place: &Path,
) -> anyhow::Result<()> {
    let (initrd, path) = (place.join("own.initrd"), place.join("own.slat"));
    fs::write(&initrd, slat_setup::guest_image(cache, recipe)?.context("an image")?)?;
    let kernel = kit.linux.as_ref().context("a kernel")?.kernel.image.clone();
    let guest = Guest::Own { kernel, initrd: Some(initrd) };
    let outcome = record(cache, &Recipe { guest, ..recipe.clone() }, &path)?;
    let counts = verified(&path)?;
    ensure!(
        (counts.accesses(), counts.instructions) == (expected.accesses, expected.instructions),
        "{counts:?} instead of {expected:?}"
    );
    ensure!(outcome.reason == "marker", "{outcome:?}");
    Ok(())
}

/// A guest that is stopped leaves a recording that is whole, but shorter.
fn interrupted(cache: &Cache, arch: Arch, place: &Path) -> anyhow::Result<()> {
    let path = place.join("short.slat");
    let recipe = Recipe { block_accesses: Some(100_000), ..Recipe::new(arch, shell(ENDLESS)) };
    let outcome = slat_setup::record(cache, &recipe, &path, |progress| progress.accesses == 0)?;
    ensure!(outcome.reason == "exit" && outcome.status.is_none(), "{outcome:?}");
    let counts = verified(&path)?;
    ensure!(counts.accesses() == outcome.accesses && outcome.accesses >= 100_000, "{counts:?}");
    Ok(())
}
