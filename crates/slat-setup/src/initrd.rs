//! The initial RAM disk of a minimal guest: a `newc` cpio archive (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::{Error, Result, io};

/// Builds an archive in memory. The same files give the same bytes, whatever their owners and times.
#[derive(Debug, Default)]
pub struct Initrd {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    inode: u32,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

impl Initrd {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let links = if mode & FOLDER == FOLDER && mode & FILE == 0 { 2 } else { 1 };
        let fields = [self.inode, mode, 0, 0, links, 0, data.len() as u32, 0, 0, 0, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(format!("{:08x}{:08x}", name.len() + 1, 0).as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds the folder `path` and those above it.
    pub fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        let mut above = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !above.is_empty() {
                above.push('/');
            }
            above.push_str(part);
            if self.folders.insert(above.clone()) {
                let above = above.clone();
                self.entry(&above, FOLDER | 0o755, &[]);
            }
        }
    }

    fn folder_of(&mut self, path: &str) {
        if let Some((folder, _)) = path.trim_matches('/').rsplit_once('/') {
            self.folder(folder);
        }
    }

    /// Adds an executable file with this content.
    pub fn file(&mut self, path: &str, data: &[u8]) {
        self.folder_of(path);
        self.entry(path, FILE | 0o755, data);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.folder_of(path);
        self.entry(path, LINK | 0o777, target.as_bytes());
    }

    /// Adds the file, link or folder `from` of this machine, with all that is in it, as `path`.
    ///
    /// # Errors
    ///
    /// Where something in it cannot be read, or has a name that is not UTF-8.
    pub fn copy(&mut self, from: &Path, path: &str) -> Result<()> {
        let kind = fs::symlink_metadata(from).map_err(io(from))?.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(from).map_err(io(from))?;
            let target = target.to_str().ok_or_else(|| odd_name(from))?;
            self.link(path, target);
        } else if kind.is_dir() {
            self.folder(path);
            let entries = fs::read_dir(from).map_err(io(from))?;
            let mut names = Vec::new();
            for entry in entries {
                names.push(entry.map_err(io(from))?.file_name());
            }
            names.sort();
            for name in names {
                let from = from.join(&name);
                let name = name.to_str().ok_or_else(|| odd_name(&from))?;
                let below = format!("{}/{name}", path.trim_end_matches('/'));
                // A folder that was added as a link (as `/lib` often is) takes what is in it.
                self.copy(&from, &below)?;
            }
        } else {
            let data = fs::read(from).map_err(io(from))?;
            self.file(path, &data);
        }
        Ok(())
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}

fn odd_name(path: &Path) -> Error {
    let error = std::io::Error::other("the name is not UTF-8");
    Error::Io { path: path.into(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of each entry of an archive.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_len) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[at + 110..at + 110 + name_len - 1]).unwrap();
            let data = (at + 110 + name_len).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name.to_owned(), mode as u32, bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn an_archive_holds_what_was_added_with_the_folders_above() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("sub")).unwrap();
        fs::write(place.path().join("sub/data"), b"12345").unwrap();
        let mut initrd = Initrd::new();
        initrd.file("/bin/tool", b"x");
        initrd.link("/bin/other", "tool");
        initrd.copy(place.path(), "/guest").unwrap();
        let bytes = initrd.finish();
        assert_eq!(bytes.len() % 512, 0);
        let entries = entries(&bytes);
        let names: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["bin", "bin/tool", "bin/other", "guest", "guest/sub", "guest/sub/data"]);
        assert_eq!(entries[0].1, FOLDER | 0o755);
        assert_eq!(entries[2], ("bin/other".into(), LINK | 0o777, b"tool".to_vec()));
        assert_eq!(entries[5].2, b"12345");
    }
}
