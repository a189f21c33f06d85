//! Who may run a virtual machine: a lock and a record in a directory that its hosts share.
//!
//! The lock is the operating system's, on a file that is never replaced: it ends with the process
//! that holds it. The record is replaced as a whole (written beside, flushed to the disk, renamed,
//! and the directory flushed), and only by who holds the lock.

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::super::digest::Digest;

/// Who may run a virtual machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// This host runs it. Without the lock, this host has died, and the machine with it.
    Running {
        /// The host.
        host: String,
    },
    /// The source has paused it for good. Whoever has the state with this digest may take it.
    Paused {
        /// The source.
        host: String,
        /// The digest of the complete state.
        digest: Digest,
    },
    /// This host has saved it to a file and stopped it. Whoever restores the state with this digest
    /// may run it, once.
    Saved {
        /// The host that saved it.
        host: String,
        /// The digest of the complete state.
        digest: Digest,
    },
    /// It was switched off.
    Stopped,
    /// It went down with its host.
    Lost {
        /// The host.
        host: String,
    },
}

/// The record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// How often it has changed hands or was started.
    pub generation: u64,
    /// Who may run it.
    pub state: State,
}

/// Why ownership is not clear.
#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    /// The files.
    #[error("{file}: {error}")]
    File {
        /// Its name.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// The record is not one.
    #[error("{file}, line {line}: {text}")]
    Record {
        /// Its name.
        file: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        text: &'static str,
    },
    /// A name that makes no file name.
    #[error("`{0}` is no name for a virtual machine that moves: use letters, digits, - and _")]
    Name(String),
    /// Another host runs it.
    #[error("the virtual machine {0} is in the hands of another host that runs now")]
    Held(String),
    /// It is not what a file holds.
    #[error("the virtual machine {0} was not saved, or has run since: start it anew")]
    NotSaved(String),
}

/// One host's access to a virtual machine's lock and record.
#[derive(Debug)]
pub struct Ownership {
    name: String,
    directory: PathBuf,
    lock: File,
    held: bool,
}

impl Ownership {
    /// The lock and record of the virtual machine `name` in this directory, which is made if it is
    /// not there. The lock is not taken.
    ///
    /// # Errors
    /// Of the files.
    pub fn open(directory: &Path, name: &str) -> Result<Ownership, OwnershipError> {
        let fit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(fit) {
            return Err(OwnershipError::Name(name.to_owned()));
        }
        let failed =
            |path: &Path, error| OwnershipError::File { file: path.display().to_string(), error };
        fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        let path = directory.join(format!("{name}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| failed(&path, error))?;
        Ok(Ownership { name: name.to_owned(), directory: directory.to_owned(), lock, held: false })
    }

    /// The virtual machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.record", self.name))
    }

    fn failed(&self, error: io::Error) -> OwnershipError {
        OwnershipError::File { file: self.path().display().to_string(), error }
    }

    /// Whether this process holds the lock.
    pub fn holds(&self) -> bool {
        self.held
    }

    /// Takes the lock, if nobody has it; says whether it is held now.
    ///
    /// # Errors
    /// Of the file.
    pub fn try_lock(&mut self) -> Result<bool, OwnershipError> {
        if self.held {
            return Ok(true);
        }
        match self.lock.try_lock() {
            Ok(()) => self.held = true,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(self.failed(error)),
        }
        Ok(self.held)
    }

    /// Lets the lock go.
    ///
    /// # Errors
    /// Of the file.
    pub fn unlock(&mut self) -> Result<(), OwnershipError> {
        if std::mem::take(&mut self.held) {
            return self.lock.unlock().map_err(|error| self.failed(error));
        }
        Ok(())
    }

    /// The record as it is now; `None` where there is none yet.
    ///
    /// # Errors
    /// Of the file.
    pub fn read(&self) -> Result<Option<Record>, OwnershipError> {
        match fs::read(self.path()) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                Record::parse(&self.path().display().to_string(), &text).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Replaces the record. When this returns, it is on the disk.
    ///
    /// # Errors
    /// Of the file. Which record is there then is for [`Ownership::read`] to say.
    ///
    /// # Panics
    /// Without the lock.
    pub fn write(&mut self, record: &Record) -> Result<(), OwnershipError> {
        assert!(self.held, "only who holds the lock writes the record");
        self.replace(record).map_err(|error| self.failed(error))
    }

    fn replace(&self, record: &Record) -> io::Result<()> {
        let mut temporary = tempfile::NamedTempFile::new_in(&self.directory)?;
        temporary.write_all(record.to_string().as_bytes())?;
        temporary.as_file().sync_all()?;
        temporary.persist(self.path()).map_err(|error| error.error)?;
        // So that the name is on the disk too. Windows has no such call, and no need of it.
        if cfg!(unix) {
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(())
    }

    /// Makes this host the one that runs a new life of the virtual machine. Returns what the record
    /// said before.
    ///
    /// # Errors
    /// Where another host has it.
    pub fn begin(&mut self, host: &str) -> Result<Option<Record>, OwnershipError> {
        if !self.try_lock()? {
            return Err(OwnershipError::Held(self.name.clone()));
        }
        let before = self.read()?;
        let generation = before.as_ref().map_or(0, |record| record.generation) + 1;
        self.write(&Record { generation, state: State::Running { host: host.to_owned() } })?;
        Ok(before)
    }

    /// The virtual machine was saved to a file, with this digest, and does not run any more. The lock
    /// is let go.
    ///
    /// # Errors
    /// Of the files; the record may still say then that this host runs it.
    pub fn saved(&mut self, host: &str, digest: Digest) -> Result<(), OwnershipError> {
        if let Some(Record { generation, .. }) = self.read()?
            && self.held
        {
            self.write(&Record {
                generation,
                state: State::Saved { host: host.to_owned(), digest },
            })?;
        }
        self.unlock()
    }

    /// Takes the lock of a virtual machine that was saved. Returns the digest of what was saved:
    /// with this state, [`Ownership::begin`] is right.
    ///
    /// # Errors
    /// Where another host has it, or the record says anything but that it was saved.
    pub fn claim_saved(&mut self) -> Result<Digest, OwnershipError> {
        if !self.try_lock()? {
            return Err(OwnershipError::Held(self.name.clone()));
        }
        match self.read()?.map(|record| record.state) {
            Some(State::Saved { digest, .. }) => Ok(digest),
            _ => {
                self.unlock()?;
                Err(OwnershipError::NotSaved(self.name.clone()))
            }
        }
    }

    /// The virtual machine is switched off.
    ///
    /// # Errors
    /// Of the files.
    pub fn end(&mut self) -> Result<(), OwnershipError> {
        if let Some(Record { generation, .. }) = self.read()?
            && self.held
        {
            self.write(&Record { generation, state: State::Stopped })?;
        }
        self.unlock()
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = format!("slat-vm 2\ngeneration {}\n", self.generation);
        match &self.state {
            State::Running { host } => writeln!(text, "running {host}")?,
            State::Paused { host, digest } => {
                writeln!(text, "paused {host}")?;
                writeln!(text, "digest {digest}")?;
            }
            State::Saved { host, digest } => {
                writeln!(text, "saved {host}")?;
                writeln!(text, "digest {digest}")?;
            }
            State::Stopped => writeln!(text, "stopped -")?,
            State::Lost { host } => writeln!(text, "lost {host}")?,
        }
        f.write_str(&text)
    }
}

impl Record {
    /// Reads a record; `file` is its name for errors.
    ///
    /// # Errors
    /// Names the line.
    pub fn parse(file: &str, text: &str) -> Result<Record, OwnershipError> {
        let wrong =
            |line: usize, text| OwnershipError::Record { file: file.to_owned(), line, text };
        // What was cut off in a line is no record, whatever it says so far.
        if !text.ends_with('\n') {
            return Err(wrong(text.lines().count().max(1), "the line does not end"));
        }
        let mut lines = text.lines();
        let mut next = |line: usize| {
            let pair = lines.next().and_then(|text| text.split_once(' '));
            pair.ok_or_else(|| wrong(line, "a word and a value are due"))
        };
        if next(1)? != ("slat-vm", "2") {
            return Err(wrong(1, "`slat-vm 2` is due"));
        }
        let generation = match next(2)? {
            ("generation", number) => {
                number.parse().map_err(|_| wrong(2, "the generation is no number"))?
            }
            _ => return Err(wrong(2, "the generation is due")),
        };
        let (state, host) = next(3)?;
        let host = host.to_owned();
        let mut digest = || match next(4)? {
            ("digest", text) => {
                Digest::parse(text).ok_or_else(|| wrong(4, "the digest is no number"))
            }
            _ => Err(wrong(4, "the digest is due")),
        };
        let state = match state {
            "running" => State::Running { host },
            "paused" => State::Paused { host, digest: digest()? },
            "saved" => State::Saved { host, digest: digest()? },
            "stopped" => State::Stopped,
            "lost" => State::Lost { host },
            _ => return Err(wrong(3, "the state is unknown")),
        };
        Ok(Record { generation, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let (host, digest) = ("a".to_owned(), Digest(7 << 70 | 5));
        for state in [
            State::Running { host: host.clone() },
            State::Paused { host: host.clone(), digest },
            State::Saved { host: host.clone(), digest },
            State::Stopped,
            State::Lost { host },
        ] {
            let record = Record { generation: 12, state };
            let text = record.to_string();
            assert_eq!(Record::parse("x", &text).unwrap(), record);
            for cut in 0..text.len() - 1 {
                assert!(Record::parse("x", &text[..cut]).is_err(), "{cut} bytes of {text}");
            }
        }
        let error = Record::parse("x", "slat-vm 2\ngeneration 1\nstolen a\n").unwrap_err();
        assert_eq!(error.to_string(), "x, line 3: the state is unknown");
    }

    #[test]
    fn one_host_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut a = Ownership::open(folder.path(), "vm").unwrap();
        let mut b = Ownership::open(folder.path(), "vm").unwrap();
        assert_eq!(a.begin("a").unwrap(), None);
        assert!(matches!(b.begin("b").unwrap_err(), OwnershipError::Held(_)));
        assert!(!b.try_lock().unwrap());
        drop(a);
        let before = b.begin("b").unwrap().unwrap();
        assert_eq!(before.state, State::Running { host: "a".to_owned() });
        assert_eq!(b.read().unwrap().unwrap().generation, 2);
        b.end().unwrap();
        assert_eq!(b.read().unwrap().unwrap().state, State::Stopped);
        assert!(Ownership::open(folder.path(), "../vm").is_err());
    }
}
