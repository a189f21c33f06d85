//! The page runs of a recording, kept in a file beside it.
//!
//! The cache of `F.slat` is `F.slat.runs`, for other classes `F.slat.split-runs` or `F.slat.unified-runs`. It is written when it is first asked
//! for and used as long as it fits the recording, byte for byte; where it cannot be written, the runs are
//! made from the recording each time. It can be deleted at will and is no format to exchange: a cache
//! of another version is made anew.
//!
//! Layout, little-endian: a header (magic, version, classes, length and CRC-32 of the recording), blocks
//! (length, compressed length, CRC-32 of the length and of what is compressed, zstd), an empty block. A block holds batches,
//! each the numbers of its runs, events and instructions, then its events, then its runs.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Classes, Compact, Hierarchy, PageRun, Refused, RunBatch};
use crate::event::{Access, At, Event, Kind, Machine};
use crate::recording::bytes::{Bytes, Short, put_difference, put_varint};
use crate::recording::events::{EventState, get_event, put_event};
use crate::recording::{self, Options, Recording};

const MAGIC: [u8; 8] = *b"SLATRUN\0";
const VERSION: u32 = 2;
const HEADER: usize = 8 + 4 + 4 + 8 + 4;

/// Bytes of batches after which a block is closed, and the most that one may have.
const BLOCK: usize = 1 << 21;
const MOST: u32 = 1 << 26;

/// zstd's fastest: the cache is there for speed.
const LEVEL: i32 = 1;

/// The page runs of a recording, from its cache where possible.
pub struct Runs {
    path: PathBuf,
    machine: Machine,
    from: From,
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum From {
    Cache(Cache),
    Recording(Compact<recording::Reader>),
}

/// Why there are no page runs, or no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunsError {
    /// They would not be exact.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The recording cannot be read.
    #[error("{}", error.in_file(path))]
    Recording {
        /// The recording.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: recording::Error,
    },
    /// The cache changed while it was read.
    #[error("{}: the cache of page runs is damaged; delete it", .0.display())]
    Cache(PathBuf),
}

impl Runs {
    /// The page runs of the recording at `path` for a hierarchy.
    ///
    /// The first time this reads the whole recording and writes the cache.
    ///
    /// # Errors
    ///
    /// Where the runs would not be exact for the hierarchy, and where the recording cannot be read.
    pub fn open(path: &Path, hierarchy: &Hierarchy) -> Result<Self, RunsError> {
        let classes = hierarchy.classes()?;
        let failed = |error| RunsError::Recording { path: path.to_owned(), error };
        let recording = Recording::open(path).map_err(failed)?;
        let machine = recording.machine().clone();
        let live = || {
            let reader = recording.reader(&Options::default()).map_err(failed)?;
            Ok(Compact::new(reader, hierarchy)?)
        };
        let cached = || -> io::Result<Cache> {
            let of = identity(path)?;
            let file = beside(path, classes);
            if let Ok(cache) = Cache::open(&file, classes, of) {
                return Ok(cache);
            }
            let live: Result<_, RunsError> = live();
            write(&file, classes, of, live.map_err(io::Error::other)?)?;
            Cache::open(&file, classes, of)
        };
        // A damaged recording must tell of its damage each time, and has no cache.
        let from = match recording.damage() {
            None => cached().map(From::Cache).or_else(|_| live().map(From::Recording))?,
            Some(_) => From::Recording(live()?),
        };
        Ok(Runs { path: path.to_owned(), machine, from })
    }

    /// The machine that was recorded.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Whether they come from the cache.
    #[must_use]
    pub fn are_cached(&self) -> bool {
        matches!(self.from, From::Cache(_))
    }

    /// Clears `runs` and fills it with what comes next; false, and an empty batch, at the end.
    ///
    /// # Errors
    ///
    /// Where the recording, or the cache since it was opened, is damaged.
    pub fn next(&mut self, runs: &mut RunBatch) -> Result<bool, RunsError> {
        match &mut self.from {
            From::Cache(cache) => {
                cache.next(runs).map_err(|_: Short| RunsError::Cache(cache.path.clone()))
            }
            From::Recording(live) => live
                .next(runs)
                .map_err(|error| RunsError::Recording { path: self.path.clone(), error }),
        }
    }
}

/// Length and CRC-32 of a recording.
type Identity = (u64, u32);

fn identity(path: &Path) -> io::Result<Identity> {
    let mut file = File::open(path)?;
    let (mut hasher, mut length) = (crc32fast::Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((length, hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}

fn beside(path: &Path, classes: Classes) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(match classes {
        Classes::Split => ".runs",
        Classes::SplitStores => ".split-runs",
        Classes::Unified => ".unified-runs",
    });
    PathBuf::from(name)
}

fn header(classes: Classes, (length, sum): Identity) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&(classes as u32).to_le_bytes());
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(&sum.to_le_bytes());
    header
}

/// Writes a cache as a whole or not at all.
fn write(
    file: &Path,
    classes: Classes,
    of: Identity,
    mut live: Compact<recording::Reader>,
) -> io::Result<()> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // Readable by whom the umask lets, as any file that is written.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut out = BufWriter::new(builder.tempfile_in(directory)?);
    out.write_all(&header(classes, of))?;
    let (mut runs, mut body) = (RunBatch::default(), Body::default());
    let mut zstd = zstd::bulk::Compressor::new(LEVEL)?;
    while live.next(&mut runs).map_err(io::Error::other)? {
        body.put(&runs)?;
        if body.bytes.len() >= BLOCK {
            close(&mut body, &mut zstd, &mut out)?;
        }
    }
    close(&mut body, &mut zstd, &mut out)?;
    out.write_all(&[0; 12])?;
    let temporary = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    temporary.persist(file).map_err(|error| error.error)?;
    Ok(())
}

fn close(
    body: &mut Body,
    zstd: &mut zstd::bulk::Compressor<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let Body { bytes, .. } = std::mem::take(body);
    if bytes.is_empty() {
        return Ok(());
    }
    let stored = zstd.compress(&bytes)?;
    let raw = bytes.len() as u32;
    for word in [raw, stored.len() as u32, sum(raw, &stored)] {
        out.write_all(&word.to_le_bytes())?;
    }
    out.write_all(&stored)
}

/// The checksum of a block: of its length and what is stored of it.
fn sum(raw: u32, stored: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&raw.to_le_bytes());
    hasher.update(stored);
    hasher.finalize()
}

/// What numbers are written against; forgotten at every block.
#[derive(Default)]
struct Context {
    events: EventState,
    /// The last address of each kind of access.
    va: [u64; 3],
    vcpu: u8,
}

mod head {
    pub(super) const KIND: u8 = 0b11;
    pub(super) const USER: u8 = 1 << 2;
    /// Another vCPU than that of the run before.
    pub(super) const VCPU: u8 = 1 << 3;
}

/// The batches of a block while it is written.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    context: Context,
}

impl Body {
    fn put(&mut self, batch: &RunBatch) -> io::Result<()> {
        let Body { bytes, context } = self;
        let entry = |at: &&At| matches!(at.event, Event::TableEntry { .. });
        let events = batch.events.len() - batch.events.iter().filter(entry).count();
        put_varint(bytes, batch.runs.len() as u64);
        put_varint(bytes, events as u64);
        put_varint(bytes, batch.instructions);
        let mut rest = &batch.events[..];
        let mut before = 0;
        while let Some((at, after)) = rest.split_first() {
            // The entries of a table page are written with it.
            let count = after.iter().take_while(|at| entry(at)).count();
            let (of_page, after) = after.split_at(count);
            rest = after;
            put_varint(bytes, u64::from(at.before - before));
            before = at.before;
            bytes.push(at.vcpu);
            let entries = entries(at, of_page)
                .ok_or_else(|| io::Error::other("entries of a table page without their page"))?;
            put_event(bytes, &mut context.events, &at.event, &entries);
        }
        for run in &batch.runs {
            put_run(bytes, context, run);
        }
        Ok(())
    }
}

/// The entries of a table page by their index; none where they are not its.
fn entries(at: &At, of_page: &[At]) -> Option<Vec<(u16, u64)>> {
    let Event::TablePage { gpa: page, .. } = at.event else {
        let alone = of_page.is_empty() && !matches!(at.event, Event::TableEntry { .. });
        return alone.then(Vec::new);
    };
    let entry = |at: &At| match at.event {
        Event::TableEntry { gpa, value } if gpa >> 12 == page >> 12 => {
            Some(((gpa >> 3 & 0x1ff) as u16, value))
        }
        _ => None,
    };
    let entries: Vec<_> = of_page.iter().map(entry).collect::<Option<_>>()?;
    entries.is_sorted_by(|a, b| a.0 < b.0).then_some(entries)
}

fn put_run(bytes: &mut Vec<u8>, context: &mut Context, run: &PageRun) {
    let first = run.first;
    let kind = first.kind();
    let mut head = kind as u8;
    if first.user() {
        head |= head::USER;
    }
    if first.vcpu != context.vcpu {
        head |= head::VCPU;
    }
    bytes.push(head);
    if head & head::VCPU != 0 {
        bytes.push(first.vcpu);
        context.vcpu = first.vcpu;
    }
    put_difference(bytes, first.va, context.va[kind as usize]);
    context.va[kind as usize] = first.va;
    put_varint(bytes, first.len().into());
    for (counted, count) in [run.loads, run.stores, run.fetches].into_iter().enumerate() {
        put_varint(bytes, u64::from(count) - u64::from(counted == kind as usize));
    }
}

fn get_run(bytes: &mut Bytes<'_>, context: &mut Context) -> Result<PageRun, Short> {
    let head = bytes.byte()?;
    let kind = match head & head::KIND {
        0 => Kind::Load,
        1 => Kind::Store,
        2 => Kind::Fetch,
        _ => return Err(Short),
    };
    if head & head::VCPU != 0 {
        context.vcpu = bytes.byte()?;
    }
    let last = &mut context.va[kind as usize];
    *last = bytes.difference(*last)?;
    let va = *last;
    let len = u16::try_from(bytes.varint()?).map_err(|_| Short)?;
    let mut counts = [0; 3];
    for (counted, count) in counts.iter_mut().enumerate() {
        let more = u64::from(counted == kind as usize);
        *count =
            u32::try_from(bytes.varint()?.checked_add(more).ok_or(Short)?).map_err(|_| Short)?;
    }
    let first = Access::new(kind, va, len).on(context.vcpu).with_user(head & head::USER != 0);
    let [loads, stores, fetches] = counts;
    Ok(PageRun { first, loads, stores, fetches })
}

/// The lengths and the checksum before a block: raw, stored, CRC-32 of what is stored.
fn sizes(file: &mut impl Read) -> io::Result<[u32; 3]> {
    let mut sizes = [[0; 4]; 3];
    for word in &mut sizes {
        file.read_exact(word)?;
    }
    let [raw, stored, sum] = sizes.map(u32::from_le_bytes);
    if raw > MOST || stored > MOST {
        return Err(io::Error::other("impossible lengths"));
    }
    Ok([raw, stored, sum])
}

/// Reads all blocks to the end and holds them against their checksums.
fn check(file: &mut impl Read) -> io::Result<()> {
    let mut content = Vec::new();
    loop {
        let [raw, stored, expected] = sizes(file)?;
        content.clear();
        file.by_ref().take(stored.into()).read_to_end(&mut content)?;
        if raw == 0 && stored == 0 && expected == 0 {
            return Ok(());
        }
        if content.len() != stored as usize || sum(raw, &content) != expected {
            return Err(io::Error::other("a damaged block"));
        }
    }
}

/// A cache that is read.
struct Cache {
    path: PathBuf,
    file: BufReader<File>,
    zstd: zstd::bulk::Decompressor<'static>,
    stored: Vec<u8>,
    block: Vec<u8>,
    /// How much of the block was used.
    used: usize,
    context: Context,
    ended: bool,
}

impl Cache {
    /// Opens a cache that is whole and of this recording.
    fn open(path: &Path, classes: Classes, of: Identity) -> io::Result<Cache> {
        let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
        let mut found = [0; HEADER];
        file.read_exact(&mut found)?;
        if found[..] != header(classes, of)[..] {
            return Err(io::Error::other("a cache of something else"));
        }
        check(&mut file)?;
        file.seek(SeekFrom::Start(HEADER as u64))?;
        Ok(Cache {
            path: path.to_owned(),
            file,
            zstd: zstd::bulk::Decompressor::new()?,
            stored: Vec::new(),
            block: Vec::new(),
            used: 0,
            context: Context::default(),
            ended: false,
        })
    }

    /// Reads the next block; false at the end.
    fn load(&mut self) -> Result<bool, Short> {
        let [raw, stored, expected] = sizes(&mut self.file).map_err(|_| Short)?;
        if raw == 0 {
            return Ok(false);
        }
        self.stored.resize(stored as usize, 0);
        self.file.read_exact(&mut self.stored).map_err(|_| Short)?;
        if sum(raw, &self.stored) != expected {
            return Err(Short);
        }
        self.block.resize(raw as usize, 0);
        let got = self.zstd.decompress_to_buffer(&self.stored, self.block.as_mut_slice());
        if got.ok() != Some(raw as usize) {
            return Err(Short);
        }
        self.used = 0;
        self.context = Context::default();
        Ok(true)
    }

    fn next(&mut self, batch: &mut RunBatch) -> Result<bool, Short> {
        batch.clear();
        if self.ended {
            return Ok(false);
        }
        if self.used == self.block.len() && !self.load()? {
            self.ended = true;
            return Ok(false);
        }
        let mut bytes = Bytes::new(&self.block[self.used..]);
        get_batch(&mut bytes, &mut self.context, batch)?;
        self.used = self.block.len() - bytes.remaining();
        Ok(true)
    }
}

/// Reads one batch into an empty one.
fn get_batch(
    bytes: &mut Bytes<'_>,
    context: &mut Context,
    batch: &mut RunBatch,
) -> Result<(), Short> {
    let (runs, events) = (bytes.varint()?, bytes.varint()?);
    batch.instructions = bytes.varint()?;
    // Each takes a byte at least.
    if runs.max(events) > bytes.remaining() as u64 {
        return Err(Short);
    }
    let mut before = 0u32;
    for _ in 0..events {
        let more = u32::try_from(bytes.varint()?).map_err(|_| Short)?;
        before = before.checked_add(more).ok_or(Short)?;
        let vcpu = bytes.byte()?;
        get_event(bytes, &mut context.events, |event| {
            batch.events.push(At { before, vcpu, event });
        })?;
    }
    for _ in 0..runs {
        batch.runs.push(get_run(bytes, context)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), few in 0u8..4) {
            // Small numbers in front, so that some get as far as events and runs.
            let mut block = vec![few, few / 2, 0];
            block.extend(bytes);
            let (mut bytes, mut context) = (Bytes::new(&block), Context::default());
            let mut batch = RunBatch::default();
            while !bytes.is_empty() && get_batch(&mut bytes, &mut context, &mut batch).is_ok() {
                batch.clear();
            }
            prop_assert!(batch.events.len() <= 1 + 513 * block.len());
        }
    }
}
