//! Why an image cannot be opened.

use std::io;
use std::path::PathBuf;

/// An image that cannot be opened: the file, and what is wrong with it.
///
/// Its text is one line that names the file, the place and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct OpenError {
    /// The file as it was given.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an image file.
///
/// Offsets are in bytes from the start of the file, or of what it decompresses to where it is
/// compressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The operating system could not open, read or map it.
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),

    /// A directory, a pipe or a device.
    #[error("not a regular file: copy the memory into a file first")]
    NotAFile,

    /// There is nothing in it.
    #[error("is empty: a memory image is raw, zstd-compressed raw, or an ELF core")]
    Empty,

    /// A format that is recognized and not read.
    #[error("is {name}, which is not read here: {remedy}")]
    Unsupported {
        /// What the file is.
        name: &'static str,
        /// How to make an image of it that can be opened.
        remedy: &'static str,
    },

    /// Room for the decompressed image could not be had or filled.
    #[error(
        "cannot write its decompressed form to the temporary directory: {0}; \
         set TMPDIR to one with room, or decompress it yourself (zstd -d --long=31)"
    )]
    Temporary(#[source] io::Error),

    /// The compressed data ends in the middle.
    #[error(
        "ends inside a zstd frame (after {read} compressed bytes, {written} bytes of memory): \
         it was cut short; copy it again"
    )]
    CompressedTruncated {
        /// Compressed bytes read.
        read: u64,
        /// Bytes that had been decompressed by then.
        written: u64,
    },

    /// The compressed data is not what the compressor wrote.
    #[error(
        "corrupt zstd data near offset {read:#x} ({written} bytes of memory were good): {reason}; \
         copy it again (zstd -t checks a file)"
    )]
    CompressedCorrupt {
        /// Compressed bytes read; the fault lies within the block before.
        read: u64,
        /// Bytes that had been decompressed by then.
        written: u64,
        /// What the decompressor says.
        reason: String,
    },

    /// It decompresses to more than the caller allows.
    #[error(
        "decompresses to {} bytes, and the limit is {limit}: raise the limit if that much memory is \
         expected, or decompress it yourself",
        match .declared { Some(bytes) => format!("{bytes}"), None => "more".to_owned() }
    )]
    TooLarge {
        /// The size that the frame header claims, if it does.
        declared: Option<u64>,
        /// The limit, see [`Options::decompressed_limit`](crate::Options::decompressed_limit).
        limit: u64,
    },

    /// The image begins at, or runs beyond, an impossible physical address.
    #[error(
        "{size} bytes at physical address {base:#x} run past the end of the 64-bit address space: \
         give the address of the first byte"
    )]
    BeyondAddressSpace {
        /// Physical address of the first byte.
        base: u64,
        /// Size in bytes.
        size: u64,
    },

    /// A physical address was given for a file that has its own.
    #[error(
        "is an ELF core, which says itself where its memory lies: drop the physical address {0:#x}"
    )]
    AddressForCore(u64),

    /// Neither of two things that both give the address of the file's first byte can win.
    #[error("has the address {address:#x} and a base of {base:#x}: give one of the two")]
    BaseAndAddress {
        /// From the base option.
        base: u64,
        /// From `FILE@ADDR`.
        address: u64,
    },

    /// An ELF file that is not a memory image.
    #[error("ELF header, offset {offset:#x}: {what}")]
    Elf {
        /// Where the offending field is.
        offset: u64,
        /// What is wrong, and what to do.
        what: String,
    },

    /// A segment of an ELF core lies outside the file.
    #[error(
        "segment {segment} (physical address {address:#x}) needs the file up to offset {end:#x}, and \
         it ends at {size:#x}: the core was cut short; copy or dump it again"
    )]
    CoreTruncated {
        /// Index of the program header.
        segment: u64,
        /// Its physical address.
        address: u64,
        /// The offset behind its last byte (it may exceed 64 bits).
        end: u128,
        /// Size of the file.
        size: u64,
    },

    /// Two ranges claim one address.
    #[error("claims physical address {address:#x}, and so does {other}: {remedy}")]
    Overlap {
        /// The first address in question.
        address: u64,
        /// The other claimant.
        other: String,
        /// What to do.
        remedy: &'static str,
    },

    /// Addresses given for files cannot be parsed.
    #[error("{0}")]
    Source(String),
}

impl Problem {
    /// This problem of that file.
    pub(crate) fn of(self, file: impl Into<PathBuf>) -> OpenError {
        OpenError { file: file.into(), problem: self }
    }
}
