//! `cargo xtask fresh-recordings`: the recorder still records, and what it records is exact.
//!
//! A short guest of each kind is recorded anew and every access of it compared with the recording's own
//! tables. The bundled recordings test the library; this tests the recorder, on the emulator and kernel
//! that the distribution has today.

use std::fs;

use anyhow::{Context, ensure};
use slat_setup::{Arch, Cache, Guest, Kit, Recipe};

use crate::recordings::verified;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail where the emulator or a kernel cannot be fetched, instead of passing over it
    #[arg(long)]
    strict: bool,
}

const SCRIPT: &str = "/bin/busybox true & /bin/busybox true & wait";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cache = Cache::new()?;
    slat_setup::find_or_build_recorder()?;
    let place = tempfile::tempdir()?;
    for (name, arch, vcpus) in [
        ("x86-64", Arch::X86_64, 1),
        ("x86-64, two vCPUs", Arch::X86_64, 2),
        ("AArch64", Arch::Aarch64, 1),
    ] {
        if let Err(error) = Kit::fetch(&cache, arch) {
            ensure!(!args.strict, "{name}: {error}");
            anstream::println!("{name}: skipped: {error}");
            continue;
        }
        let words = ["sh", "-c", SCRIPT].map(str::to_owned).to_vec();
        let guest = Guest::Command { words, files: vec![], before: String::new(), marks: false };
        let recipe = Recipe { vcpus, ..Recipe::new(arch, guest) };
        let paths = [place.path().join("first.slat"), place.path().join("second.slat")];
        for path in &paths {
            let mut console = String::new();
            let outcome = slat_setup::record(&cache, &recipe, path, |progress| {
                console.push_str(&progress.console);
                true
            });
            let outcome = outcome.context(name)?;
            ensure!(outcome.status == Some(0), "{name}: {outcome:?}\n{console}");
        }
        let [first, second] = paths.map(fs::read);
        ensure!(first? == second?, "{name}: two runs of the same guest differ");
        let counts = verified(&place.path().join("first.slat")).context(name)?;
        ensure!(counts.table_stores > 0 && counts.exceptions > 0, "{name}: {counts:?}");
        anstream::println!(
            "{name}: {} accesses, 0 mismatches, and the same again byte for byte",
            counts.accesses()
        );
    }
    Ok(())
}
