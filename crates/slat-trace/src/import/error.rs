//! Why a trace cannot be read, or not further, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a trace cannot be read, or not further: which file, where in it, what is wrong, what to do.
///
/// Everything a reader handed out before it returned this is as the trace has it. Where a checksum failed,
/// that is not enough: compressed files hold their checksums behind what they are of (a block of xz or
/// bzip2, a member of a zip archive, a whole gzip file), so that what came since the last one may be wrong.
#[derive(Debug)]
pub struct ImportError {
    /// The file or directory.
    pub path: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong there.
    pub cause: Cause,
}

/// A position in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    Whole,
    /// A byte of the trace.
    Byte {
        /// Offset from the start of the trace; for a compressed file, after decompression.
        offset: u64,
        /// For a compressed file, how much of the file itself had been taken in by then.
        in_file: Option<u64>,
    },
    /// A line of a text, the first is 1.
    Line(u64),
    /// An access of the trace, the first is 0.
    Access(u64),
}

/// What is wrong with a trace.
#[derive(Debug)]
pub enum Cause {
    /// The system, or a decompressor, refused.
    Io(io::Error),
    /// The trace ends where more must follow.
    Truncated(String),
    /// The bytes do not mean anything in the format.
    Malformed(String),
    /// The content is known but cannot be taken as it is; the text says what to do instead.
    Refused(String),
    /// The content is that of no format that can be read.
    Unknown(String),
}

impl ImportError {
    /// An error about the file as a whole.
    pub(crate) fn whole(path: &Path, cause: Cause) -> Self {
        ImportError { path: path.to_owned(), place: Place::Whole, cause }
    }

    /// An error at an offset of a file that is not compressed.
    pub(crate) fn at(path: &Path, offset: u64, cause: Cause) -> Self {
        let place = Place::Byte { offset, in_file: None };
        ImportError { path: path.to_owned(), place, cause }
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match self.place {
            Place::Whole => {}
            Place::Byte { offset, in_file: None } => write!(f, "byte {offset} ({offset:#x}): ")?,
            Place::Byte { offset, in_file: Some(taken) } => write!(
                f,
                "byte {offset} ({offset:#x}) after decompression, within the first {taken} bytes of the file: "
            )?,
            Place::Line(line) => write!(f, "line {line}: ")?,
            Place::Access(number) => write!(f, "access {number}: ")?,
        }
        write!(f, "{}", self.cause)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Io(error) => write!(f, "{error}"),
            Cause::Truncated(what) => write!(f, "the trace ends early: {what}"),
            Cause::Malformed(what) | Cause::Refused(what) | Cause::Unknown(what) => {
                f.write_str(what)
            }
        }
    }
}

/// The text says the cause; a source would say it a second time.
impl std::error::Error for ImportError {}
