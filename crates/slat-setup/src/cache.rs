//! The user's cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result, io};

/// The folder that fetched things live in: `$SLAT_CACHE`, else `$XDG_CACHE_HOME/slat`, else
/// `$HOME/.cache/slat`. It may be deleted at any time; what is needed is fetched again.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache folder, made if it does not exist.
    ///
    /// # Errors
    ///
    /// [`Error::NoCache`] where the environment names none, [`Error::Io`] where it cannot be made.
    pub fn new() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let root = set("SLAT_CACHE")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|base| Path::new(&base).join("slat")))
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache/slat")))
            .ok_or(Error::NoCache)?;
        Self::at(root)
    }

    /// A cache in `root`, made if it does not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the folder cannot be made.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(io(&root))?;
        let root = root.canonicalize().map_err(io(&root))?;
        Ok(Self { root })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The finished folder `name`, if there is one.
    #[must_use]
    pub fn folder(&self, name: &str) -> Option<PathBuf> {
        let path = self.root.join(name);
        path.is_dir().then_some(path)
    }

    /// The folder `name`: as it is, or made by `fill` in a scratch folder that takes its name only
    /// when `fill` succeeded, so that a folder found here is always complete.
    ///
    /// # Errors
    ///
    /// What `fill` returns, or [`Error::Io`].
    pub fn folder_or(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        if let Some(path) = self.folder(name) {
            return Ok(path);
        }
        let scratch = tempfile::Builder::new()
            .prefix(".partial-")
            .tempdir_in(&self.root)
            .map_err(io(&self.root))?;
        fill(scratch.path())?;
        let path = self.root.join(name);
        match fs::rename(scratch.path(), &path) {
            Ok(()) => {
                // The folder is no longer at the scratch place; there is nothing left to remove.
                let _ = scratch.keep();
                Ok(path)
            }
            // Another process was faster and its folder is as complete as ours.
            Err(_) if path.is_dir() => Ok(path),
            Err(error) => Err(Error::Io { path, error }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_filled_once_and_only_whole() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::at(place.path().join("cache")).unwrap();
        let fail = cache.folder_or("x", |path| {
            fs::write(path.join("half"), b"").unwrap();
            Err(Error::NoCache)
        });
        assert!(fail.is_err());
        assert_eq!(cache.folder("x"), None);
        assert_eq!(fs::read_dir(cache.root()).unwrap().count(), 0, "no scratch folder stays");

        let made = cache.folder_or("x", |path| fs::write(path.join("f"), b"1").map_err(io(path)));
        let made = made.unwrap();
        assert_eq!(fs::read(made.join("f")).unwrap(), b"1");
        let again = cache.folder_or("x", |_| panic!("it is there already")).unwrap();
        assert_eq!(made, again);
    }
}
