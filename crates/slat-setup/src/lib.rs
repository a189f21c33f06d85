//! Finds, or fetches with the system's packager, the programs that recording and the oracles run:
//! QEMU 10 or later, a small Linux kernel, a static busybox, Bochs and the assemblers.
//!
//! What is fetched goes into the user's cache folder ([`Cache`]) and never into the system, so that
//! QEMU 10 can live beside the distribution's own; only [`install`] changes the system, and says
//! so. Everything here can be called again at no cost: what is there already is only looked up.
//!
//! Fetching works on Debian and its derivatives: it asks `apt-get` which archives this machine
//! already uses and reads packages from those (and from their `-backports` sibling where the
//! release itself has a QEMU older than 10). Elsewhere, put `qemu-system-x86_64` 10 or later on
//! the `PATH`, and the kernel and busybox into the places that the error message names.
//!
//! ```no_run
//! use slat_setup::{Arch, Cache};
//!
//! let cache = Cache::new()?;
//! let qemu = slat_setup::find_or_fetch_qemu10(&cache, Arch::X86_64)?;
//! let status = qemu.command().arg("--version").status()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod apt;
mod arch;
mod cache;
mod guest;
mod initrd;
mod kit;
mod marker;
mod plugin;
mod program;
mod qemu;
mod record;
mod tools;

pub use arch::Arch;
pub use cache::Cache;
pub use guest::{Kernel, busybox, kernel, package_root};
pub use initrd::Initrd;
pub use kit::{Kit, Linux};
pub use plugin::{find_or_build_recorder, find_recorder};
pub use program::check_program;
pub use qemu::{Qemu, find_or_fetch_qemu10, find_qemu10};
pub use record::{Guest, Outcome, Progress, Recipe, Stage, guest_image, record};
pub use tools::{Tool, find, find_or_install, install};

use std::path::PathBuf;

/// Why something could not be found, fetched or installed; the text says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither `SLAT_CACHE`, `XDG_CACHE_HOME` nor `HOME` names a folder.
    #[error("no cache folder: set SLAT_CACHE to a folder that may hold about 300 MB")]
    NoCache,
    /// A recording was asked for and something that it needs was not set up.
    #[error(
        "recording {arch} needs {missing}, not found here: run `slat record --setup --arch {arch}`"
    )]
    NotSetUp {
        /// The guest's architecture.
        arch: Arch,
        /// All that is missing.
        missing: String,
    },
    /// A file or folder could not be made, read or moved.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A program could not be started at all.
    #[error("cannot run {program}: {error}; {remedy}")]
    Run {
        /// The program's name.
        program: String,
        /// What the system said.
        error: std::io::Error,
        /// What to do about it.
        remedy: String,
    },
    /// A program ran and failed.
    #[error("{command} failed: {output}")]
    Failed {
        /// The command as it was run.
        command: String,
        /// The last lines that it wrote.
        output: String,
    },
    /// A program cannot run in the guest.
    #[error("{} {why}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// Why not, and what to do about it.
        why: String,
    },
    /// The packages arrived, yet do not hold what was looked for.
    #[error("{what} is not in the packages fetched into {}; {remedy}", root.display())]
    Missing {
        /// What was looked for.
        what: String,
        /// The folder searched.
        root: PathBuf,
        /// What to do about it.
        remedy: String,
    },
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |error| Error::Io { path, error }
}
