//! A zip archive read as one stream: its members' contents one after the other.
//!
//! drmemtrace cuts a thread's trace into members `chunk.0000`, `chunk.0001`, ... whose contents simply
//! follow each other. Names follow PKWARE's APPNOTE.TXT 6.3: 4.3.16 the end record, 4.3.12 the
//! central directory, 4.3.7 the local header, 4.5.3 the 64-bit extra field.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::CrcReader;
use flate2::bufread::DeflateDecoder;

use super::error::{Cause, ImportError};
use super::input::Input;

/// First bytes of an archive that has at least one member.
pub(crate) const MAGIC: [u8; 4] = *b"PK\x03\x04";

/// More members than any archive of a trace has; a directory that claims more is refused, so that
/// memory stays bounded.
const MOST_MEMBERS: u64 = 1 << 20;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// What the central directory says of a member.
#[derive(Debug)]
struct Member {
    header: u64,
    packed: u64,
    size: u64,
    crc: u32,
    method: u16,
}

/// Opens the archive as one stream of its members' contents, in the order of its directory.
///
/// # Errors
///
/// When the file cannot be read or its directory is damaged, encrypted or in several volumes.
pub(crate) fn open(path: &Path) -> Result<Input, ImportError> {
    let io = |error| ImportError::whole(path, Cause::Io(error));
    let mut file = File::open(path).map_err(io)?;
    let members = directory(path, &mut file)?;
    let count = Arc::new(AtomicU64::new(0));
    let stream = Members {
        path: path.to_owned(),
        waiting: members.into_iter(),
        current: None,
        count: Arc::clone(&count),
    };
    Ok(Input::new(path, Box::new(stream), Some(count)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Reads the central directory.
fn directory(path: &Path, file: &mut File) -> Result<Vec<Member>, ImportError> {
    let io = |error| ImportError::whole(path, Cause::Io(error));
    let length = file.seek(SeekFrom::End(0)).map_err(io)?;
    let (at, count) = end_record(path, file, length)?;
    if count > MOST_MEMBERS {
        let what =
            format!("the archive claims {count} members; no trace has more than {MOST_MEMBERS}");
        return Err(ImportError::at(path, at, Cause::Malformed(what)));
    }
    file.seek(SeekFrom::Start(at)).map_err(io)?;
    let mut reader = BufReader::new(file);
    let mut members = Vec::new();
    let mut offset = at;
    for _ in 0..count {
        let damaged = |what: &str| {
            ImportError::at(
                path,
                offset,
                Cause::Malformed(format!("the archive's directory is damaged: {what}")),
            )
        };
        let mut fixed = [0; 46];
        reader.read_exact(&mut fixed).map_err(|_| damaged("it ends within an entry"))?;
        if fixed[..4] != *b"PK\x01\x02" {
            return Err(damaged("an entry does not begin with its signature"));
        }
        if u16_at(&fixed, 8) & 1 != 0 {
            let remedy = "the archive is encrypted; unpack it and pack it again without a password";
            return Err(ImportError::at(path, offset, Cause::Refused(remedy.into())));
        }
        let name = usize::from(u16_at(&fixed, 28));
        let extra = usize::from(u16_at(&fixed, 30));
        let comment = usize::from(u16_at(&fixed, 32));
        let mut rest = vec![0; name + extra + comment];
        reader.read_exact(&mut rest).map_err(|_| damaged("it ends within a name"))?;
        let mut member = Member {
            header: u32_at(&fixed, 42).into(),
            packed: u32_at(&fixed, 20).into(),
            size: u32_at(&fixed, 24).into(),
            crc: u32_at(&fixed, 16),
            method: u16_at(&fixed, 10),
        };
        widen(&mut member, &rest[name..name + extra])
            .ok_or_else(|| damaged("a 64-bit size is missing"))?;
        if member.header >= at || member.packed > at - member.header {
            return Err(damaged("a member lies outside the archive"));
        }
        if !matches!(member.method, STORED | DEFLATED) {
            let method = member.method;
            let what = format!(
                "a member is packed by method {method}; only deflate (8) and none (0) are read"
            );
            return Err(ImportError::at(path, offset, Cause::Refused(what)));
        }
        offset += (46 + name + extra + comment) as u64;
        members.push(member);
    }
    Ok(members)
}

/// Replaces the fields that are all ones by their 64-bit values; none when one is missing (4.5.3).
fn widen(member: &mut Member, mut extra: &[u8]) -> Option<()> {
    let wide = u64::from(u32::MAX);
    if ![member.size, member.packed, member.header].contains(&wide) {
        return Some(());
    }
    loop {
        let (head, rest) = extra.split_at_checked(4)?;
        let (body, rest) = rest.split_at_checked(u16_at(head, 2).into())?;
        extra = rest;
        if u16_at(head, 0) == 1 {
            let mut values = body.chunks_exact(8).map(|chunk| u64_at(chunk, 0));
            for field in [&mut member.size, &mut member.packed, &mut member.header] {
                if *field == wide {
                    *field = values.next()?;
                }
            }
            return Some(());
        }
    }
}

/// Finds the end record and returns where the directory begins and how many entries it has.
fn end_record(path: &Path, file: &mut File, length: u64) -> Result<(u64, u64), ImportError> {
    let io = |error| ImportError::whole(path, Cause::Io(error));
    let truncated = || {
        let what = "the archive's directory, which is its last part, is missing".to_owned();
        ImportError::at(path, length, Cause::Truncated(what))
    };
    // The record is 22 bytes and a comment of up to 65535; a 64-bit locator of 20 bytes may precede it.
    let tail_start = length.saturating_sub(22 + 0xffff + 20);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(tail_start)).map_err(io)?;
    file.by_ref().take(length - tail_start).read_to_end(&mut tail).map_err(io)?;
    let last = tail.len().checked_sub(22).ok_or_else(truncated)?;
    let at = (0..=last)
        .rev()
        .find(|&at| {
            tail[at..at + 4] == *b"PK\x05\x06"
                && at + 22 + usize::from(u16_at(&tail, at + 20)) == tail.len()
        })
        .ok_or_else(truncated)?;
    let record = &tail[at..];
    let (mut count, mut size, mut start) =
        (u16_at(record, 10).into(), u32_at(record, 12).into(), u32_at(record, 16).into());
    let locator = at.checked_sub(20).filter(|&at| tail[at..at + 4] == *b"PK\x06\x07");
    if let Some(locator) = locator {
        let mut wide = [0; 56];
        let place = u64_at(&tail, locator + 8);
        file.seek(SeekFrom::Start(place)).map_err(io)?;
        let whole = file.read_exact(&mut wide).is_ok();
        if !whole || wide[..4] != *b"PK\x06\x06" {
            let what = "the archive's 64-bit end record is not where its locator says".to_owned();
            return Err(ImportError::at(path, tail_start + locator as u64, Cause::Malformed(what)));
        }
        (count, size, start) = (u64_at(&wide, 32), u64_at(&wide, 40), u64_at(&wide, 48));
    }
    let end = tail_start + at as u64;
    if start > end || size > end - start || count > size / 46 {
        let what = "the archive's end record contradicts the file's length".to_owned();
        return Err(ImportError::at(path, end, Cause::Malformed(what)));
    }
    Ok((start, count))
}

/// A member's content while it is read.
enum Content {
    Stored(Take<BufReader<File>>),
    Deflated(DeflateDecoder<Take<BufReader<File>>>),
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Content::Stored(bytes) => bytes.read(buffer),
            Content::Deflated(bytes) => bytes.read(buffer),
        }
    }
}

struct Current {
    content: CrcReader<Content>,
    member: Member,
    got: u64,
}

/// The members' contents one after the other, each held against its length and checksum.
struct Members {
    path: PathBuf,
    waiting: std::vec::IntoIter<Member>,
    current: Option<Current>,
    count: Arc<AtomicU64>,
}

impl Members {
    fn start(&mut self, member: Member) -> io::Result<Current> {
        let damaged = |what: &str| {
            let at = member.header;
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("archive member at byte {at} of the file: {what}"),
            )
        };
        self.count.store(member.header, Ordering::Relaxed);
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(member.header))?;
        let mut fixed = [0; 30];
        file.read_exact(&mut fixed).map_err(|_| damaged("the file ends within its header"))?;
        if fixed[..4] != MAGIC {
            return Err(damaged("no header there"));
        }
        let behind = u64::from(u16_at(&fixed, 26)) + u64::from(u16_at(&fixed, 28));
        file.seek(SeekFrom::Start(member.header + 30 + behind))?;
        let packed = BufReader::with_capacity(1 << 16, file).take(member.packed);
        let content = match member.method {
            STORED => Content::Stored(packed),
            _ => Content::Deflated(DeflateDecoder::new(packed)),
        };
        Ok(Current { content: CrcReader::new(content), member, got: 0 })
    }
}

impl Read for Members {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(current) = &mut self.current else {
                match self.waiting.next() {
                    None => return Ok(0),
                    Some(member) => self.current = Some(self.start(member)?),
                }
                continue;
            };
            let member = &current.member;
            let damaged = |what: &str| {
                let at = member.header;
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("archive member at byte {at} of the file: {what}"),
                )
            };
            let n = current.content.read(buffer).map_err(|error| damaged(&error.to_string()))?;
            current.got += n as u64;
            if current.got > member.size {
                return Err(damaged("it unpacks to more bytes than its entry says"));
            }
            if n > 0 {
                return Ok(n);
            }
            if current.got < member.size {
                return Err(damaged("it unpacks to fewer bytes than its entry says"));
            }
            if current.content.crc().sum() != member.crc {
                return Err(damaged("its checksum is wrong"));
            }
            self.count.store(member.header + member.packed, Ordering::Relaxed);
            self.current = None;
        }
    }
}
