//! A stream of bytes that knows where it is: the ground under every reader.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{Cause, ImportError, Place};

/// What is held of a stream at a time; also the longest record and the longest line.
pub(crate) const BUFFER: usize = 1 << 16;

/// A buffered stream with its offset.
///
/// An error of the source is kept back until every byte that came before it has been used, so that the
/// part of a trace before the damage is always delivered.
pub(crate) struct Input {
    path: PathBuf,
    source: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Offset of `buffer[start]` in the stream.
    offset: u64,
    ended: bool,
    failure: Option<io::Error>,
    in_file: Option<Arc<AtomicU64>>,
}

impl Input {
    /// A stream over `source`; `in_file` counts the bytes taken from a compressed file.
    pub(crate) fn new(
        path: &Path,
        source: Box<dyn Read + Send>,
        in_file: Option<Arc<AtomicU64>>,
    ) -> Self {
        Input {
            path: path.to_owned(),
            source,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            offset: 0,
            ended: false,
            failure: None,
            in_file,
        }
    }

    /// The file this stream comes from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes at hand, not yet consumed.
    pub(crate) fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Marks the first `n` bytes at hand as used.
    pub(crate) fn consume(&mut self, n: usize) {
        assert!(n <= self.end - self.start, "consumed more than there is");
        self.start += n;
        self.offset += n as u64;
    }

    /// Makes at least `n` bytes available; false when the stream ends before.
    ///
    /// `n` is at most [`BUFFER`].
    ///
    /// # Errors
    ///
    /// When the source failed and fewer than `n` bytes came before the failure.
    pub(crate) fn ensure(&mut self, n: usize) -> Result<bool, ImportError> {
        if self.peek(n).len() >= n {
            return Ok(true);
        }
        match self.failure.take() {
            None => Ok(false),
            Some(error) => {
                self.ended = true;
                let behind = self.data().len() as u64;
                Err(self.error(behind, Cause::Io(error)))
            }
        }
    }

    /// What is at hand after trying to have `n` bytes; a failure of the source is left for later.
    pub(crate) fn peek(&mut self, n: usize) -> &[u8] {
        debug_assert!(n <= BUFFER);
        if self.end - self.start < n {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < n && !self.ended && self.failure.is_none() {
                match self.source.read(&mut self.buffer[self.end..]) {
                    Ok(0) => self.ended = true,
                    Ok(got) => self.end += got,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => self.failure = Some(error),
                }
            }
        }
        self.data()
    }

    /// The next line without its end, and whether it had one; none at the end of the text.
    ///
    /// # Errors
    ///
    /// As [`Input::ensure`], and when a line does not fit into the buffer.
    pub(crate) fn line(&mut self) -> Result<Option<(&[u8], bool)>, LineError> {
        let mut searched = 0;
        let (length, ended) = loop {
            if let Some(at) = memchr::memchr(b'\n', &self.data()[searched..]) {
                break (searched + at, true);
            }
            searched = self.data().len();
            if searched == BUFFER {
                return Err(LineError::TooLong);
            }
            if !self.ensure(searched + 1).map_err(LineError::Stream)? {
                break (searched, false);
            }
        };
        if length == 0 && !ended {
            return Ok(None);
        }
        let from = self.start;
        self.consume(length + usize::from(ended));
        let line = &self.buffer[from..from + length];
        Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), ended)))
    }

    /// An error `ahead` bytes after the current offset.
    pub(crate) fn error(&self, ahead: u64, cause: Cause) -> ImportError {
        let in_file = self.in_file.as_ref().map(|count| count.load(Ordering::Relaxed));
        let place = Place::Byte { offset: self.offset + ahead, in_file };
        ImportError { path: self.path.clone(), place, cause }
    }
}

/// Why there is no next line.
pub(crate) enum LineError {
    /// The line is longer than any line of a trace.
    TooLong,
    /// The stream under the text failed.
    Stream(ImportError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(bytes: &'static [u8]) -> Input {
        Input::new(Path::new("t"), Box::new(bytes), None)
    }

    fn lines(mut input: Input) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Ok(Some((line, _))) = input.line() {
            all.push(line.to_owned());
        }
        all
    }

    #[test]
    fn lines_end_with_and_without_returns_and_a_last_newline() {
        assert_eq!(lines(input(b"a\r\n\nb")), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(input(b"a\n")), [b"a"]);
        assert!(lines(input(b"")).is_empty());
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_refused_not_gathered() {
        let mut endless = Input::new(Path::new("t"), Box::new(io::repeat(b'x')), None);
        assert!(matches!(endless.line(), Err(LineError::TooLong)));
    }

    #[test]
    fn bytes_before_a_failure_are_delivered_first() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let mut input = Input::new(Path::new("t"), Box::new((&b"abcd"[..]).chain(Failing)), None);
        assert!(input.ensure(4).unwrap());
        input.consume(3);
        let error = input.ensure(2).unwrap_err();
        assert_eq!(error.place, Place::Byte { offset: 4, in_file: None });
        assert_eq!(input.data(), b"d");
        assert!(!input.ensure(2).unwrap(), "the failure is told once, then the stream has ended");
    }
}
