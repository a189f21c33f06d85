//! The recorder's library: QEMU loads it as a plugin.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result, apt};

const NAME: &str = "libslat_recorder.so";

/// The sources that this program was built from, where they are still there.
fn sources() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    workspace.join("recorder/Cargo.toml").exists().then(|| workspace.to_owned())
}

/// The recorder, if this machine has it: `$SLAT_RECORDER`; as built in the sources that this program
/// was built from; beside the running program, or in `../lib/slat` of it.
#[must_use]
pub fn find_recorder() -> Option<PathBuf> {
    if let Some(set) = std::env::var_os("SLAT_RECORDER") {
        return Some(PathBuf::from(set)).filter(|path| path.is_file());
    }
    if let Some(workspace) = sources() {
        // What lies beside a program built for debugging is a recorder for debugging, and slow.
        return Some(workspace.join("target/release").join(NAME)).filter(|path| path.is_file());
    }
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    [folder.join(NAME), folder.join("../lib/slat").join(NAME)].into_iter().find(|p| p.is_file())
}

/// The recorder: built from the sources that this program was built from, where they are still
/// there, else found as by [`find_recorder`].
///
/// # Errors
///
/// Where it is neither there nor can be built.
pub fn find_or_build_recorder() -> Result<PathBuf> {
    if let Some(workspace) = sources().filter(|_| std::env::var_os("SLAT_RECORDER").is_none()) {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--release", "--package", "slat-recorder"]);
        build.arg("--target-dir").arg(workspace.join("target")).current_dir(&workspace);
        // Sources without a way to build them are as good as none.
        match apt::run(&mut build) {
            Err(error) if find_recorder().is_none() => return Err(error),
            _ => {}
        }
    }
    find_recorder().ok_or_else(|| Error::Missing {
        what: NAME.into(),
        root: "the folder of this program".into(),
        remedy: "build it with `cargo build --release -p slat-recorder` in slat's sources and set \
                 SLAT_RECORDER to it"
            .into(),
    })
}
