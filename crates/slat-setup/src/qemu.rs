//! QEMU 10 or later: the first release series whose plugin interface (version 4) can read registers
//! and that walks RISC-V's second stage right.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, Apt};
use crate::{Arch, Cache, Error, Result};

const OLDEST: u32 = 10;

/// A QEMU system emulator that is ready to run.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The emulator.
    pub binary: PathBuf,
    /// Options that tell it where its firmware is (`-L` and a folder each); empty for one that is
    /// installed in its own place.
    pub lib_args: Vec<OsString>,
    /// Folders with shared libraries that the system lacks, for `LD_LIBRARY_PATH`; may be empty.
    pub library_path: Vec<PathBuf>,
    /// Its version, for example `10.0.2`.
    pub version: String,
}

impl Qemu {
    /// A command that runs this QEMU, its library path and firmware options already set.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(&self.lib_args);
        if !self.library_path.is_empty() {
            let own = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let all =
                self.library_path.iter().cloned().chain(
                    std::env::split_paths(&own).filter(|folder| !folder.as_os_str().is_empty()),
                );
            if let Ok(all) = std::env::join_paths(all) {
                command.env("LD_LIBRARY_PATH", all);
            }
        }
        command
    }
}

/// The version number in what `qemu-system-* --version` prints.
fn parse_version(text: &str) -> Option<&str> {
    let rest = text.split("version ").nth(1)?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    Some(&rest[..end])
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn probe(mut qemu: Qemu) -> Option<Qemu> {
    let text = apt::run(qemu.command().arg("--version")).ok()?;
    qemu.version = parse_version(&text)?.to_owned();
    (major(&qemu.version)? >= OLDEST).then_some(qemu)
}

/// The emulator inside a folder that the packages were unpacked into.
fn in_root(root: &Path, arch: Arch) -> Option<Qemu> {
    let binary = root.join(format!("usr/bin/qemu-system-{arch}"));
    let lib_args = ["usr/share/qemu", "usr/share/seabios"]
        .iter()
        .map(|folder| root.join(folder))
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| [OsString::from("-L"), folder.into_os_string()])
        .collect();
    let library_path = Arch::host()
        .map(|host| root.join(format!("usr/lib/{host}-linux-gnu")))
        .into_iter()
        .filter(|folder| folder.is_dir())
        .collect();
    binary
        .is_file()
        .then(|| Qemu { binary, lib_args, library_path, version: String::new() })
        .and_then(probe)
}

fn folder_name(arch: Arch) -> String {
    format!("qemu-{arch}")
}

/// QEMU 10 or later for `arch`, if this machine has one: `$SLAT_QEMU` (a folder with the emulators
/// or one emulator), the `PATH`, then the cache.
#[must_use]
pub fn find_qemu10(cache: &Cache, arch: Arch) -> Option<Qemu> {
    let plain = |binary| {
        probe(Qemu { binary, lib_args: vec![], library_path: vec![], version: String::new() })
    };
    let name = format!("qemu-system-{arch}");
    if let Some(set) = std::env::var_os("SLAT_QEMU") {
        let set = PathBuf::from(set);
        return plain(if set.is_dir() { set.join(name) } else { set });
    }
    plain(PathBuf::from(name))
        .or_else(|| cache.folder(&folder_name(arch)).and_then(|root| in_root(&root, arch)))
}

/// QEMU 10 or later for `arch`: found as by [`find_qemu10`], else fetched (about 30 to 60 MB) into
/// the cache, with the shared libraries that the system lacks; the system stays as it is.
///
/// # Errors
///
/// Where the packager is missing, has no such QEMU or cannot reach its archive.
pub fn find_or_fetch_qemu10(cache: &Cache, arch: Arch) -> Result<Qemu> {
    if let Some(found) = find_qemu10(cache, arch) {
        return Ok(found);
    }
    let package = |old: bool| match arch {
        Arch::X86_64 => "qemu-system-x86",
        Arch::Aarch64 => "qemu-system-arm",
        // Split off from the package of all rarer machines in the release of QEMU 10.
        Arch::Riscv64 if old => "qemu-system-misc",
        Arch::Riscv64 => "qemu-system-riscv",
    };
    let root = cache.folder_or(&folder_name(arch), |root| {
        let host = Arch::host().unwrap_or(Arch::X86_64);
        let apt = Apt::new(host)?;
        let own = apt.candidate("qemu-system-x86")?;
        // Debian writes an epoch before the version: `1:10.0.2+ds-2`.
        let own = own.and_then(|v| major(v.split(':').next_back()?));
        let release = match own {
            Some(version) if version >= OLDEST => None,
            _ => Some(apt.add_backports()?),
        };
        let name = match apt.candidate(package(false))? {
            Some(_) => package(false),
            None => package(true),
        };
        let mut packages = vec![name];
        if arch == Arch::X86_64 {
            packages.push("seabios");
        }
        apt.fetch_closure(&packages, release.as_deref(), root)?;
        if in_root(root, arch).is_none() {
            return Err(missing(arch, root));
        }
        Ok(())
    })?;
    in_root(&root, arch).ok_or_else(|| missing(arch, &root))
}

fn missing(arch: Arch, root: &Path) -> Error {
    Error::Missing {
        what: format!("a runnable qemu-system-{arch} {OLDEST} or later"),
        root: root.into(),
        remedy: format!(
            "install one and set SLAT_QEMU to it, or delete {} and try again",
            root.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_qemu_prints() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_version(text), Some("10.0.2"));
        assert_eq!(major("10.0.2"), Some(10));
        assert_eq!(parse_version("QEMU emulator version 7.2.0"), Some("7.2.0"));
        assert_eq!(parse_version("no number"), None);
        assert_eq!(major(""), None);
    }

    #[test]
    fn an_empty_root_holds_no_emulator() {
        let place = tempfile::tempdir().unwrap();
        assert!(in_root(place.path(), Arch::X86_64).is_none());
    }
}
