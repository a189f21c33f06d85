//! The one place that maps files: bytes of an opened file, without reading it.
//!
//! This module holds the crate's only `unsafe` block.

use std::fs::File;
use std::io;

use bytes::Bytes;

/// Maps the whole of `file` read-only.
///
/// An empty file gives empty bytes (the kernel would refuse to map it).
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private to this process and read-only, and it is owned by the `Bytes`
    // that is returned, so that no slice outlives it. What remains is that another process could
    // write to or shorten the file meanwhile. The crate's front page asks of its users not to change
    // an image while it is open; nothing here relies on two reads of one byte being equal, since
    // headers are copied out before they are checked and entries are read by value. (A file that is
    // shortened ends the process with SIGBUS, it does not corrupt it.)
    let mapping = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::from_owner(mapping))
}
