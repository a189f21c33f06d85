//! A recording: its header, its index, and where its blocks are.

use std::path::Path;
use std::sync::Arc;

use super::bytes::Bytes;
use super::error::Error;
use super::input::{Input, Opened};
use super::layout::{
    BLOCK_HEADER, BLOCK_MAGIC, BlockHeader, BlockInfo, END, END_MAGIC, Header, INDEX_ENTRY,
    INDEX_MAGIC, MAGIC, MAJOR, MAX_BLOCK, MAX_HEADER, MAX_SECTION, PREAMBLE, Provenance,
    SECTION_ENTRY, SectionEntry, get_block_header, get_header, get_index, get_section_entry,
};
use super::reader::{Options, Reader};
use crate::event::Machine;

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
pub(super) struct Trouble {
    offset: u64,
    what: &'static str,
    truncated: bool,
}

impl From<Trouble> for Error {
    fn from(Trouble { offset, what, truncated }: Trouble) -> Self {
        if truncated { Self::Truncated { offset, what } } else { Self::Damaged { offset, what } }
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
        let end = options.blocks.end.min(self.blocks.len());
        let trouble = self.damage.filter(|_| options.blocks.end > self.blocks.len());
        Reader::new(
            &self.input,
            self.size,
            &self.header.machine,
            &self.blocks[..end],
            options,
            trouble,
        )
    }
}

/// Reads a block's header and table of sections.
pub(super) fn read_block_header(
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
    // What cannot be compressed grows a little.
    let bound = |s: &SectionEntry| zstd::zstd_safe::compress_bound(s.raw as usize) as u64;
    let large = raw > MAX_BLOCK
        || sections.iter().any(|s| s.raw > MAX_SECTION || u64::from(s.stored) > bound(s));
    if stored != u64::from(header.stored) || large {
        return Err(bad("a block's sections have impossible lengths"));
    }
    Ok((header, sections))
}
