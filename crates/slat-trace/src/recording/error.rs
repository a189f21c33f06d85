//! Why a recording cannot be read, or not further.

use std::fmt;
use std::path::{Path, PathBuf};

use super::layout::MAJOR;

/// Why a recording cannot be read, or not beyond some offset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file does not begin as a recording does.
    #[error(
        "not a recording: the first 8 bytes are not those of one (use `slat import` for traces of other tools)"
    )]
    NotARecording,
    /// The recording was made by a later version of the format.
    #[error(
        "a recording of format version {found}, at offset 8; this slat reads versions up to {MAJOR}: use a newer slat"
    )]
    Newer {
        /// The version that the file has.
        found: u16,
    },
    /// The file ends in the middle.
    #[error("the recording is cut off at offset {offset}: {what}; what comes before is whole")]
    Truncated {
        /// Where the part that is not whole begins.
        offset: u64,
        /// What is not whole.
        what: &'static str,
    },
    /// The file does not hold what it says.
    #[error("the recording is damaged at offset {offset}: {what}; what comes before is whole")]
    Damaged {
        /// Where the damaged part begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Error {
    /// The error with the name of the file, once: a file that cannot be read is named already.
    pub fn in_file<'a>(&'a self, path: &'a Path) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| match self {
            Self::Io { .. } => write!(f, "{self}"),
            _ => write!(f, "{}: {self}", path.display()),
        })
    }

    /// Where in the file the trouble begins, if it is in the file.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        match *self {
            Self::Io { .. } => None,
            Self::NotARecording => Some(0),
            Self::Newer { .. } => Some(8),
            Self::Truncated { offset, .. } | Self::Damaged { offset, .. } => Some(offset),
        }
    }
}
