//! Where the bytes of a recording come from: a file, or memory.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use super::error::Error;

/// Where a recording is.
#[derive(Clone, Debug)]
pub(super) enum Input {
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

/// The same, opened.
#[derive(Debug)]
pub(super) enum Opened {
    File(File),
    Bytes(Cursor<Arc<[u8]>>),
}

impl Input {
    pub(super) fn open(&self) -> Result<Opened, Error> {
        match self {
            Self::File(path) => File::open(path).map(Opened::File).map_err(|e| self.error(e)),
            Self::Bytes(bytes) => Ok(Opened::Bytes(Cursor::new(Arc::clone(bytes)))),
        }
    }

    pub(super) fn error(&self, error: io::Error) -> Error {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Bytes(_) => PathBuf::from("<memory>"),
        };
        Error::Io { path, error }
    }
}

impl Opened {
    pub(super) fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.metadata().map(|metadata| metadata.len()),
            Self::Bytes(bytes) => Ok(bytes.get_ref().len() as u64),
        }
    }

    /// Replaces the content of `buffer` by `len` bytes.
    pub(super) fn read_whole(
        &mut self,
        offset: u64,
        len: usize,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        buffer.clear();
        buffer.reserve_exact(len);
        let read = match self {
            Self::File(file) => {
                file.seek(SeekFrom::Start(offset))?;
                file.take(len as u64).read_to_end(buffer)?
            }
            Self::Bytes(bytes) => {
                bytes.set_position(offset);
                bytes.take(len as u64).read_to_end(buffer)?
            }
        };
        if read < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    pub(super) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(buffer)
            }
            Self::Bytes(bytes) => {
                bytes.set_position(offset);
                bytes.read_exact(buffer)
            }
        }
    }
}
