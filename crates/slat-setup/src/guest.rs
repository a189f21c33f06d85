//! What a minimal Linux guest is made of: a kernel, a static busybox, and packages unpacked whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::Apt;
use crate::{Arch, Cache, Error, Result, io};

/// A kernel image.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// Its version, for example `6.1.0-50-cloud-amd64`.
    pub version: String,
}

fn kernel_in(root: &Path) -> Option<Kernel> {
    let boot = root.join("boot");
    let mut images: Vec<Kernel> = fs::read_dir(&boot)
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?;
            let version = name.strip_prefix("vmlinuz-")?.to_owned();
            Some(Kernel { image: path, version })
        })
        .collect();
    images.sort_by(|a, b| a.version.cmp(&b.version));
    images.pop()
}

/// The kernel for `arch` in the cache, if it was fetched.
pub(crate) fn find_kernel(cache: &Cache, arch: Arch) -> Option<Kernel> {
    kernel_in(&cache.folder(&format!("kernel-{arch}"))?)
}

/// The busybox for `arch` in the cache, if it was fetched.
pub(crate) fn find_busybox(cache: &Cache, arch: Arch) -> Option<PathBuf> {
    busybox_in(&cache.folder(&format!("busybox-{arch}"))?)
}

/// The distribution's kernel for virtual machines of `arch` (x86-64 or AArch64), fetched into the
/// cache (about 30 MB) unless it is there: the serial console, the initial RAM disk and devtmpfs
/// are built into it, so that it boots without modules.
///
/// # Errors
///
/// Where the packager is missing or cannot reach its archive.
pub fn kernel(cache: &Cache, arch: Arch) -> Result<Kernel> {
    let package = format!("linux-image-cloud-{}", arch.debian());
    let root = cache.folder_or(&format!("kernel-{arch}"), |root| {
        let apt = Apt::new(arch)?;
        // The named package is empty and depends on the one of the current version.
        let image = apt.depends(&package)?.into_iter().find(|name| name.starts_with("linux-image"));
        let image = image.ok_or_else(|| missing(&package, root))?;
        apt.fetch(&[&image], root)?;
        // Modules are four fifths of the package and are never loaded.
        for modules in ["lib/modules", "usr/lib/modules"] {
            let modules = root.join(modules);
            if modules.is_dir() {
                fs::remove_dir_all(&modules).map_err(io(modules))?;
            }
        }
        kernel_in(root).map(drop).ok_or_else(|| missing(&package, root))
    })?;
    kernel_in(&root).ok_or_else(|| missing(&package, &root))
}

/// A statically linked busybox for `arch`, fetched into the cache (about 1 MB) unless it is there.
///
/// # Errors
///
/// Where the packager is missing or cannot reach its archive.
pub fn busybox(cache: &Cache, arch: Arch) -> Result<PathBuf> {
    let root = cache.folder_or(&format!("busybox-{arch}"), |root| {
        Apt::new(arch)?.fetch(&["busybox-static"], root)?;
        busybox_in(root).map(drop).ok_or_else(|| missing("busybox", root))
    })?;
    busybox_in(&root).ok_or_else(|| missing("busybox", &root))
}

fn busybox_in(root: &Path) -> Option<PathBuf> {
    ["bin/busybox", "usr/bin/busybox"].iter().map(|p| root.join(p)).find(|p| p.is_file())
}

/// A folder `name` of the cache with `packages` of `arch` unpacked into it (those named, not what
/// they depend on), for guest programs with their libraries.
///
/// # Errors
///
/// Where the packager is missing, has no such package or cannot reach its archive.
pub fn package_root(cache: &Cache, arch: Arch, name: &str, packages: &[&str]) -> Result<PathBuf> {
    cache.folder_or(&format!("{name}-{arch}"), |root| Apt::new(arch)?.fetch(packages, root))
}

fn missing(what: &str, root: &Path) -> Error {
    Error::Missing {
        what: what.into(),
        root: root.into(),
        remedy: format!("delete {} and try again", root.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_root_is_taken() {
        let place = tempfile::tempdir().unwrap();
        assert!(kernel_in(place.path()).is_none());
        let boot = place.path().join("boot");
        fs::create_dir(&boot).unwrap();
        for name in ["vmlinuz-6.1.0-1-cloud-amd64", "vmlinuz-6.1.0-2-cloud-amd64", "config-6.2"] {
            fs::write(boot.join(name), b"").unwrap();
        }
        assert_eq!(kernel_in(place.path()).unwrap().version, "6.1.0-2-cloud-amd64");
    }
}
