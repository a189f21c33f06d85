//! The copy of the repository whose files are changed. The user's own are only read, and what an
//! interruption leaves changed here the next run puts right.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::mutant::Mutant;

/// A copy of the repository as it is in the user's folder, committed or not.
pub(super) struct Copy {
    /// Its top.
    pub(super) tree: PathBuf,
    /// Where its builds are kept.
    pub(super) target: PathBuf,
    /// Held as long as the copy is used: two runs would change each other's files.
    _lock: File,
}

impl Copy {
    /// Makes the copy of the repository with this top below `folder`, or brings it up to date. Files that
    /// did not change keep their times, so that little is built again.
    pub(super) fn make(top: &Path, folder: &Path) -> anyhow::Result<Copy> {
        let (tree, target) = (folder.join("tree"), folder.join("target"));
        fs::create_dir_all(&tree)
            .with_context(|| format!("cannot make the folder {}", tree.display()))?;
        let lock = File::create(folder.join("lock"))
            .with_context(|| format!("cannot write in {}", folder.display()))?;
        lock.try_lock().with_context(|| format!("another run uses {}", folder.display()))?;
        let copy = Copy { tree, target, _lock: lock };
        let mut wanted = BTreeSet::new();
        for name in listed(top)? {
            let (from, to) = (top.join(&name), copy.tree.join(&name));
            match bring(&from, &to) {
                // Deleted, and not yet committed.
                Err(error) if error.kind() == ErrorKind::NotFound && !from.exists() => continue,
                done => done.with_context(|| {
                    format!("cannot copy {} to {}", from.display(), to.display())
                })?,
            }
            wanted.insert(to);
        }
        remove_others(&copy.tree, &wanted)?;
        Ok(copy)
    }

    /// Puts these texts into the copy's files.
    pub(super) fn put(&self, files: &BTreeMap<String, String>) -> anyhow::Result<()> {
        files.iter().try_for_each(|(name, text)| {
            let path = self.tree.join(name);
            // A file that stays the same keeps its time.
            if fs::read_to_string(&path).is_ok_and(|there| there == *text) {
                return Ok(());
            }
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        })
    }

    /// The texts of these files.
    pub(super) fn texts<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let read = |name: &str| {
            let path = self.tree.join(name);
            let text = fs::read_to_string(&path);
            Ok((name.to_owned(), text.with_context(|| format!("cannot read {}", path.display()))?))
        };
        names.into_iter().map(read).collect()
    }

    /// Calls `f` while the copy has this mutant.
    pub(super) fn with<T>(
        &self,
        mutant: &Mutant,
        f: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let path = self.tree.join(&mutant.file);
        let write = |text: &str| {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        write(&mutant.of(&text))?;
        let outcome = f();
        write(&text)?;
        outcome
    }
}

/// The repository's files, by name below its top: those that git knows and those that it does not ignore.
fn listed(top: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(top)
        .output()
        .context("cannot run git, which lists the repository's files")?;
    ensure!(output.status.success(), "{} is not a git checkout", top.display());
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// Makes one file the same as another, links followed.
fn bring(from: &Path, to: &Path) -> std::io::Result<()> {
    let same = fs::metadata(from)?.len() == fs::metadata(to).map_or(u64::MAX, |there| there.len())
        && fs::read(from)? == fs::read(to)?;
    if same {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    // Written anew, not copied: builds go by the time of the last change.
    fs::write(to, fs::read(from)?)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())
}

/// Removes the files below `folder` that are not `wanted`.
fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let reading = || format!("cannot read the folder {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let path = entry.path();
        if entry.file_type().with_context(reading)?.is_dir() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::mutant::tests::{TEXT, mutant};

    /// What a run that was killed leaves, and what has changed since, the next one puts right.
    #[test]
    fn the_copy_is_what_the_user_has() {
        let folder = tempfile::tempdir().unwrap();
        let (top, below) = (folder.path().join("top"), folder.path().join("below"));
        fs::create_dir(&top).unwrap();
        let git = Command::new("git").args(["init", "--quiet"]).current_dir(&top).status();
        if !git.is_ok_and(|status| status.success()) {
            eprintln!("skipped: there is no git");
            return;
        }
        fs::write(top.join("f.rs"), TEXT).unwrap();
        fs::write(top.join(".gitignore"), "built\n").unwrap();
        fs::write(top.join("built"), "").unwrap();
        let copy = Copy::make(&top, &below).unwrap();
        let there = || fs::read_to_string(copy.tree.join("f.rs")).unwrap();
        assert_eq!(there(), TEXT);
        assert!(!copy.tree.join("built").exists());

        let changed = copy.with(&mutant(8), || Ok(there())).unwrap();
        assert_eq!(changed, TEXT.replace("a | b", "a ^ b"));
        assert_eq!(there(), TEXT);

        assert!(Copy::make(&top, &below).is_err(), "two runs at once");
        let tree = copy.tree.clone();
        drop(copy);
        fs::write(tree.join("f.rs"), &changed).unwrap();
        fs::write(tree.join("stray.rs"), "").unwrap();
        Copy::make(&top, &below).unwrap();
        assert_eq!(fs::read_to_string(tree.join("f.rs")).unwrap(), TEXT);
        assert!(!tree.join("stray.rs").exists());
    }
}
