//! A recording, and a reader of it or of a part.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bytes::Bytes;
use super::decode::{Decoder, Inconsistent, read_definitions, read_events};
use super::error::Error;
use super::events::is_state;
use super::layout::{
    BLOCK_HEADER, BLOCK_MAGIC, BlockHeader, BlockInfo, END, END_MAGIC, Header, INDEX_ENTRY,
    INDEX_MAGIC, MAGIC, MAJOR, MAX_BLOCK, MAX_HEADER, MAX_SECTION, PREAMBLE, Provenance, RESTART,
    SECTION_ENTRY, Section, SectionEntry, get_block_header, get_header, get_index,
    get_section_entry,
};
use super::model::Definition;
use crate::event::{Batch, Event, Machine, Source};

#[derive(Clone, Debug)]
enum Input {
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

#[derive(Debug)]
enum Opened {
    File(File),
    Bytes(Cursor<Arc<[u8]>>),
}

impl Input {
    fn open(&self) -> Result<Opened, Error> {
        match self {
            Self::File(path) => File::open(path).map(Opened::File).map_err(|e| self.error(e)),
            Self::Bytes(bytes) => Ok(Opened::Bytes(Cursor::new(Arc::clone(bytes)))),
        }
    }

    fn error(&self, error: io::Error) -> Error {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Bytes(_) => PathBuf::from("<memory>"),
        };
        Error::Io { path, error }
    }
}

impl Opened {
    fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.metadata().map(|metadata| metadata.len()),
            Self::Bytes(bytes) => Ok(bytes.get_ref().len() as u64),
        }
    }

    /// Replaces the content of `buffer` by `len` bytes.
    fn read_whole(&mut self, offset: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
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

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
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

/// A recording whose header and index are read.
///
/// A file that was cut off or whose index is damaged opens too: its blocks are then found one after
/// the other, [`damage`](Self::damage) says what is wrong, and a reader ends with that error after
/// all that is whole.
#[derive(Debug)]
pub struct Recording {
    input: Input,
    size: u64,
    header: Header,
    blocks: Vec<BlockInfo>,
    damage: Option<Trouble>,
}

/// What an [`Error`] of the content is made from, again and again.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    offset: u64,
    what: &'static str,
    truncated: bool,
}

impl From<Trouble> for Error {
    fn from(Trouble { offset, what, truncated }: Trouble) -> Self {
        if truncated { Self::Truncated { offset, what } } else { Self::Damaged { offset, what } }
    }
}

/// What a reader is to yield.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether to say the physical page of every access. It costs about as much time again as
    /// reading without.
    pub frames: bool,
    /// Which blocks of the file, start..end; the end may lie beyond the last. Where it does not
    /// start at 0, the first batches bring the state of tables, roots and modes up to there.
    pub blocks: Range<usize>,
}

impl Default for Options {
    /// All blocks, without frames.
    fn default() -> Self {
        Self { frames: false, blocks: 0..usize::MAX }
    }
}

impl Recording {
    /// Opens the recording in a file.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read, is not a recording, is of a newer version, or is damaged in
    /// its header. Damage further on does not keep it from opening.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::from_input(Input::File(path.as_ref().to_owned()))
    }

    /// Opens the recording in `bytes`.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Result<Self, Error> {
        Self::from_input(Input::Bytes(bytes.into()))
    }

    fn from_input(input: Input) -> Result<Self, Error> {
        let mut opened = input.open()?;
        let fail = |error| input.error(error);
        let size = opened.size().map_err(fail)?;
        let mut preamble = [0; PREAMBLE];
        let there = size.min(PREAMBLE as u64) as usize;
        opened.read_at(0, &mut preamble[..there]).map_err(fail)?;
        if preamble[..MAGIC.len()] != MAGIC {
            return Err(Error::NotARecording);
        }
        let cut = Error::Truncated { offset: 0, what: "the header is not whole" };
        if there < PREAMBLE {
            return Err(cut);
        }
        let mut bytes = Bytes::new(&preamble[MAGIC.len()..]);
        let bad = |what| Error::Damaged { offset: 0, what };
        let numbers = (bytes.u16(), bytes.u16(), bytes.u32());
        let (Ok(major), Ok(minor), Ok(len)) = numbers else { return Err(cut) };
        if major > MAJOR {
            return Err(Error::Newer { found: major });
        }
        if major == 0 || len > MAX_HEADER {
            return Err(bad("the header's version or length is impossible"));
        }
        let end = PREAMBLE as u64 + u64::from(len) + 4;
        if end > size {
            return Err(cut);
        }
        let mut body = vec![0; len as usize + 4];
        opened.read_at(PREAMBLE as u64, &mut body).map_err(fail)?;
        let (body, sum) = body.split_at(len as usize);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&preamble);
        hasher.update(body);
        if hasher.finalize().to_le_bytes() != *sum {
            return Err(bad("the header's checksum is wrong"));
        }
        let header = get_header(major, minor, body)
            .map_err(|_| bad("the header names an impossible machine"))?;
        let mut recording = Self { input, size, header, blocks: Vec::new(), damage: None };
        match recording.read_index(&mut opened, end) {
            Ok(blocks) => recording.blocks = blocks,
            Err(trouble) => {
                let found = recording.scan(&mut opened, end)?;
                recording.damage = Some(found.unwrap_or(trouble));
            }
        }
        Ok(recording)
    }

    fn read_index(&self, opened: &mut Opened, first: u64) -> Result<Vec<BlockInfo>, Trouble> {
        let trouble = |offset, what, truncated| Trouble { offset, what, truncated };
        let cut = trouble(self.size, "the end is missing", true);
        let at = self.size.checked_sub(END as u64).filter(|at| *at >= first).ok_or(cut)?;
        let mut end = [0; END];
        opened.read_at(at, &mut end).map_err(|_| cut)?;
        let mut bytes = Bytes::new(&end);
        let fields = (bytes.u32(), bytes.u64(), bytes.u32(), bytes.array::<8>());
        let (Ok(sum), Ok(offset), Ok(end_sum), Ok(magic)) = fields else { return Err(cut) };
        if magic != END_MAGIC {
            return Err(cut);
        }
        let bad = |offset, what| trouble(offset, what, false);
        if crc32fast::hash(&[offset.to_le_bytes(), END_MAGIC].concat()) != end_sum {
            return Err(bad(at, "the end's checksum is wrong"));
        }
        let len = at.checked_sub(offset).filter(|_| offset >= first);
        let body = len.and_then(|len| len.checked_sub(8));
        let body = body.filter(|body| body % INDEX_ENTRY as u64 == 0 && *body < 1 << 30);
        let body = body.ok_or(bad(at, "the index is said to be where it cannot be"))?;
        let mut index = vec![0; body as usize + 8];
        opened.read_at(offset, &mut index).map_err(|_| cut)?;
        if crc32fast::hash(&index) != sum || index[..4] != INDEX_MAGIC {
            return Err(bad(offset, "the index's checksum is wrong"));
        }
        let blocks = get_index(&index[8..]).map_err(|_| cut)?;
        // With a right checksum this is a mistake of the writer; a reader must not run away on it.
        let rising = blocks.windows(2).all(|pair| {
            pair[0].offset < pair[1].offset
                && pair[0].first_access.checked_add(pair[0].accesses) == Some(pair[1].first_access)
        });
        let inside = blocks.iter().all(|b| b.offset >= first && b.offset < offset);
        if !rising || !inside || blocks.first().is_some_and(|b| b.first_access != 0) {
            return Err(bad(offset, "the index lists impossible blocks"));
        }
        Ok(blocks)
    }

    /// Finds the blocks one after the other; returns what ended the search, if not the index.
    fn scan(&mut self, opened: &mut Opened, first: u64) -> Result<Option<Trouble>, Error> {
        let mut offset = first;
        let mut accesses = 0u64;
        while offset < self.size {
            let mut magic = [0; 4];
            if self.size - offset >= 4 {
                opened.read_at(offset, &mut magic).map_err(|e| self.input.error(e))?;
                if magic == INDEX_MAGIC {
                    return Ok(None);
                }
            }
            let (header, table) = match read_block_header(opened, offset, self.size) {
                Ok(read) => read,
                Err(trouble) => return Ok(Some(trouble)),
            };
            let body = offset + (BLOCK_HEADER + table.len() * SECTION_ENTRY) as u64;
            let next = body + u64::from(header.stored);
            if next > self.size {
                let what = "a block is not whole";
                return Ok(Some(Trouble { offset, what, truncated: true }));
            }
            if header.first_access != accesses {
                let what = "a block is missing before this one";
                return Ok(Some(Trouble { offset, what, truncated: false }));
            }
            self.blocks.push(BlockInfo {
                offset,
                first_access: accesses,
                accesses: header.accesses,
                instructions: header.instructions,
            });
            let Some(sum) = accesses.checked_add(header.accesses) else {
                let what = "a block has an impossible number of accesses";
                return Ok(Some(Trouble { offset, what, truncated: false }));
            };
            accesses = sum;
            offset = next;
        }
        Ok(None)
    }

    /// The machine that was recorded.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.header.machine
    }

    /// Who made the recording and how.
    #[must_use]
    pub fn provenance(&self) -> &Provenance {
        &self.header.provenance
    }

    /// The version of the format, major and minor.
    #[must_use]
    pub fn version(&self) -> (u16, u16) {
        (self.header.major, self.header.minor)
    }

    /// The size of the file in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The blocks of the file, the units of seeking and of split work.
    #[must_use]
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.blocks
    }

    /// The number of accesses in the blocks that are there.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.blocks.last().map_or(0, |b| b.first_access.saturating_add(b.accesses))
    }

    /// The number of instructions in the blocks that are there.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.blocks.iter().fold(0, |sum, block| sum.saturating_add(block.instructions))
    }

    /// What keeps the recording from being whole, as far as its structure tells; the content of a
    /// block is checked when it is read.
    #[must_use]
    pub fn damage(&self) -> Option<Error> {
        self.damage.map(Into::into)
    }

    /// The number of the block of the file that holds access number `access`, counted from 0.
    #[must_use]
    pub fn block_of(&self, access: u64) -> Option<usize> {
        let after = self.blocks.partition_point(|block| block.first_access <= access);
        // Blocks without accesses share the number of the one that follows.
        (access < self.accesses()).then(|| after - 1)
    }

    /// A reader of what `options` say. Several may read at once.
    ///
    /// # Errors
    ///
    /// Where the file cannot be opened again.
    pub fn reader(&self, options: &Options) -> Result<Reader, Error> {
        let vcpus = self.header.machine.vcpus;
        let end = options.blocks.end.min(self.blocks.len());
        let trouble = self.damage.filter(|_| options.blocks.end > self.blocks.len());
        Ok(Reader {
            opened: self.input.open()?,
            input: self.input.clone(),
            size: self.size,
            machine: self.header.machine.clone(),
            blocks: self.blocks[..end].to_vec(),
            next_block: 0,
            start: options.blocks.start,
            frames: options.frames,
            stored: Vec::new(),
            scratch: Vec::new(),
            zstd: zstd::bulk::Decompressor::new().map_err(|e| self.input.error(e))?,
            definitions: Vec::new(),
            decoder: Decoder::new(vcpus),
            open: None,
            trouble,
            over: false,
        })
    }
}

fn read_block_header(
    opened: &mut Opened,
    offset: u64,
    size: u64,
) -> Result<(BlockHeader, Vec<SectionEntry>), Trouble> {
    let cut = Trouble { offset, what: "a block's header is not whole", truncated: true };
    let bad = |what| Trouble { offset, what, truncated: false };
    let mut fixed = [0; BLOCK_HEADER];
    if size.saturating_sub(offset) < BLOCK_HEADER as u64 {
        return Err(cut);
    }
    opened.read_at(offset, &mut fixed).map_err(|_| cut)?;
    let header = get_block_header(&fixed).map_err(|_| bad("no block begins where one should"))?;
    debug_assert_eq!(fixed[..4], BLOCK_MAGIC);
    let table_len = usize::from(header.sections) * SECTION_ENTRY;
    if size - offset - (BLOCK_HEADER as u64) < table_len as u64 {
        return Err(cut);
    }
    let mut table = vec![0; table_len];
    opened.read_at(offset + BLOCK_HEADER as u64, &mut table).map_err(|_| cut)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&fixed[..BLOCK_HEADER - 4]);
    hasher.update(&table);
    if hasher.finalize() != header.sum {
        return Err(bad("a block's header has a wrong checksum"));
    }
    let mut bytes = Bytes::new(&table);
    let mut sections = Vec::with_capacity(usize::from(header.sections));
    while !bytes.is_empty() {
        sections.push(get_section_entry(&mut bytes).map_err(|_| cut)?);
    }
    let stored: u64 = sections.iter().map(|s| u64::from(s.stored)).sum();
    let raw: u64 = sections.iter().map(|s| u64::from(s.raw)).sum();
    let large = sections.iter().any(|s| s.raw > MAX_SECTION) || raw > MAX_BLOCK;
    if stored != u64::from(header.stored) || large {
        return Err(bad("a block's sections have impossible lengths"));
    }
    Ok((header, sections))
}

/// Yields the accesses and events of a recording, or of some of its blocks.
pub struct Reader {
    opened: Opened,
    input: Input,
    size: u64,
    machine: Machine,
    blocks: Vec<BlockInfo>,
    next_block: usize,
    start: usize,
    frames: bool,
    stored: Vec<u8>,
    scratch: Vec<u8>,
    zstd: zstd::bulk::Decompressor<'static>,
    definitions: Vec<Definition>,
    decoder: Decoder,
    /// The offset of the block being read.
    open: Option<u64>,
    trouble: Option<Trouble>,
    over: bool,
}

impl Reader {
    /// Begins again: what comes next is what came first. A reader keeps its buffers, which makes another
    /// pass cheaper than another reader.
    pub fn rewind(&mut self) {
        self.definitions.clear();
        self.decoder.forget();
        (self.next_block, self.open, self.over) = (0, None, false);
    }

    /// Loads block number `index`; only its definitions and events if `state_only`.
    fn load(&mut self, index: usize, state_only: bool) -> Result<(), Error> {
        let offset = self.blocks[index].offset;
        let bad = |what| Error::Damaged { offset, what };
        let (header, table) = read_block_header(&mut self.opened, offset, self.size)?;
        if header.accesses != self.blocks[index].accesses {
            return Err(bad("a block has another number of accesses than the index says"));
        }
        let mut at = offset + (BLOCK_HEADER + table.len() * SECTION_ENTRY) as u64;
        if self.size.saturating_sub(at) < u64::from(header.stored) {
            return Err(Error::Truncated { offset, what: "a block is not whole" });
        }
        let restart = header.flags & RESTART != 0;
        if restart {
            self.definitions.clear();
        }
        self.decoder.clear();
        for entry in table {
            let from = at;
            at += u64::from(entry.stored);
            let Some(section) = entry.section else { continue };
            let needed = match section {
                Section::Definitions | Section::Events => true,
                Section::Frames => self.frames && !state_only,
                _ => !state_only,
            };
            if !needed {
                continue;
            }
            let read = self.opened.read_whole(from, entry.stored as usize, &mut self.stored);
            read.map_err(|e| self.input.error(e))?;
            let bad = |what| Error::Damaged { offset: from, what };
            if crc32fast::hash(&self.stored) != entry.sum {
                return Err(bad("a section's checksum is wrong"));
            }
            let buffer = match section {
                Section::Definitions => &mut self.scratch,
                other => self
                    .decoder
                    .buffer(other, entry.vcpu)
                    .ok_or(bad("a section is of a vCPU that the machine does not have"))?,
            };
            // Into room that nothing was written to before.
            buffer.clear();
            buffer.reserve_exact(entry.raw as usize);
            let len = self.zstd.decompress_to_buffer(&self.stored, buffer);
            if len.ok() != Some(entry.raw as usize) {
                return Err(bad("a section cannot be decompressed"));
            }
            if section == Section::Definitions {
                read_definitions(&self.scratch, &mut self.definitions)
                    .map_err(|Inconsistent| bad("a block's definitions are inconsistent"))?;
            }
        }
        self.decoder.begin(header.accesses, restart);
        self.open = (!state_only).then_some(offset);
        Ok(())
    }

    /// The state that the events of block `index` leave behind, as events.
    fn skip(&mut self, index: usize, batch: &mut Batch) -> Result<(), Error> {
        self.load(index, true)?;
        let offset = self.blocks[index].offset;
        let mut modes = Vec::new();
        let events = std::mem::take(self.decoder.buffer(Section::Events, 0).expect("a buffer"));
        let result = read_events(&events, self.machine.vcpus, |vcpu, event| {
            if let Event::Mode { user } = event {
                modes.push((vcpu, user));
            }
            if is_state(&event) {
                batch.event(vcpu, event);
            }
        });
        for (vcpu, user) in modes {
            self.decoder.set_user(vcpu, user);
        }
        let what = "a block's events are inconsistent";
        result.map_err(|Inconsistent| Error::Damaged { offset, what })
    }

    fn fill(&mut self, batch: &mut Batch) -> Result<bool, Error> {
        loop {
            if let Some(offset) = self.open {
                let decode = match self.frames {
                    true => Decoder::read::<true>,
                    false => Decoder::read::<false>,
                };
                let more = decode(&mut self.decoder, &self.definitions, batch, Batch::ACCESSES)
                    .map_err(|Inconsistent| Error::Damaged {
                        offset,
                        what: "a block's streams are inconsistent",
                    })?;
                if !more {
                    self.open = None;
                }
                if !batch.is_empty() {
                    return Ok(true);
                }
            } else if self.next_block < self.blocks.len() {
                let index = self.next_block;
                self.next_block += 1;
                if index >= self.start {
                    self.load(index, false)?;
                    continue;
                }
                self.skip(index, batch)?;
                if !batch.is_empty() {
                    return Ok(true);
                }
            } else {
                return self.trouble.map_or(Ok(false), |trouble| Err(trouble.into()));
            }
        }
    }
}

impl Source for Reader {
    type Error = Error;

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn next(&mut self, batch: &mut Batch) -> Result<bool, Error> {
        batch.clear();
        if self.over {
            return Ok(false);
        }
        let result = self.fill(batch);
        // After damage the models are not what the writer's were; going on would be guessing.
        self.over = !matches!(result, Ok(true));
        result
    }
}
