//! A reader of a recording or of a part of it.

use std::ops::Range;

use super::decode::{Decoder, Inconsistent, read_definitions};
use super::error::Error;
use super::input::{Input, Opened};
use super::layout::{BLOCK_HEADER, BlockInfo, RESTART, SECTION_ENTRY, Section};
use super::model::Definition;
use super::read::{Trouble, read_block_header};
use crate::event::{Batch, Machine, Source};

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
    /// Accesses in the shapes of the definitions.
    defined: usize,
    decoder: Decoder,
    /// The block being read.
    open: Option<Open>,
    trouble: Option<Trouble>,
    over: bool,
}

/// A block that is being read.
#[derive(Clone, Copy, Debug)]
struct Open {
    offset: u64,
    /// Whether only what it does to the state is wanted.
    state_only: bool,
}

impl Reader {
    /// Reads what `options` say of these `blocks`, and ends with `trouble`.
    pub(super) fn new(
        input: &Input,
        size: u64,
        machine: &Machine,
        blocks: &[BlockInfo],
        options: &Options,
        trouble: Option<Trouble>,
    ) -> Result<Self, Error> {
        Ok(Self {
            opened: input.open()?,
            input: input.clone(),
            size,
            machine: machine.clone(),
            blocks: blocks.to_vec(),
            next_block: 0,
            start: options.blocks.start,
            frames: options.frames,
            stored: Vec::new(),
            scratch: Vec::new(),
            zstd: zstd::bulk::Decompressor::new().map_err(|e| input.error(e))?,
            definitions: Vec::new(),
            defined: 0,
            decoder: Decoder::new(machine.vcpus),
            open: None,
            trouble,
            over: false,
        })
    }

    /// Begins again: what comes next is what came first. A reader keeps its buffers, which makes another
    /// pass cheaper than another reader.
    pub fn rewind(&mut self) {
        self.definitions.clear();
        self.defined = 0;
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
            self.defined = 0;
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
                read_definitions(&self.scratch, &mut self.definitions, &mut self.defined)
                    .map_err(|Inconsistent| bad("a block's definitions are inconsistent"))?;
            }
        }
        self.decoder.begin(header.accesses, restart);
        self.open = Some(Open { offset, state_only });
        Ok(())
    }

    fn fill(&mut self, batch: &mut Batch) -> Result<bool, Error> {
        loop {
            if let Some(Open { offset, state_only }) = self.open {
                let bad = |what| move |Inconsistent| Error::Damaged { offset, what };
                let more = if state_only {
                    let read = self.decoder.read_state(batch, Batch::ACCESSES / 4);
                    read.map_err(bad("a block's events are inconsistent"))?
                } else {
                    let decode = match self.frames {
                        true => Decoder::read::<true>,
                        false => Decoder::read::<false>,
                    };
                    decode(&mut self.decoder, &self.definitions, batch, Batch::ACCESSES)
                        .map_err(bad("a block's streams are inconsistent"))?
                };
                if !more {
                    self.open = None;
                }
                if !batch.is_empty() {
                    return Ok(true);
                }
            } else if self.next_block < self.blocks.len() {
                let index = self.next_block;
                self.next_block += 1;
                self.load(index, index < self.start)?;
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
