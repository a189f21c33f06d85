//! From what a machine does to the streams of the file's blocks.

mod accesses;

use std::collections::HashMap;

use super::bytes::{put_difference, put_varint};
use super::events::{EventState, put_event};
use super::layout::{
    MAX_DEFINED_ACCESSES, MAX_DEFINITIONS, MAX_PLACES, MAX_SHAPE, MAX_SITES, MAX_VCPUS, RESTART,
    Section,
};
use super::model::{Definition, Model, Page, Room, Site, code, shape};
use crate::event::Event;
use accesses::write_accesses;

/// Accesses of a block of the file at which it is closed. The model is forgotten then, which costs
/// space; a larger block costs memory and the freedom to split work.
const BLOCK_ACCESSES: u64 = 1 << 22;
/// No stream grows much beyond this, well below what readers accept.
const BLOCK_STREAM: usize = 1 << 23;

/// A finished block of the file, not yet compressed.
#[derive(Clone, Debug, Default)]
pub struct RawBlock {
    pub(crate) flags: u16,
    pub(crate) accesses: u64,
    pub(crate) instructions: u64,
    pub(crate) sections: Vec<(Section, u8, Vec<u8>)>,
}

/// A block of instructions that was defined; good for one generation of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockId {
    handle: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Data {
    va: u64,
    frame: u32,
    shape: u8,
}

/// What is being executed and not yet written.
#[derive(Debug, Default)]
struct Pending {
    /// Its handle, plus 1; 0 before the first.
    root: u32,
    /// The virtual page of its fetch, while the fetch is to be written.
    fetch: Option<u64>,
    /// How many accesses of it are written already.
    done: u32,
    data: Vec<Data>,
}

#[derive(Debug)]
struct Stream {
    model: Model,
    pending: Pending,
    sections: [Vec<u8>; Section::OF_VCPU.len()],
    codes_at_turn: usize,
    /// The last code counts events and nothing came after it.
    open_events: bool,
}

impl Stream {
    fn new(room: Room) -> Self {
        Self {
            model: Model::new(room),
            pending: Pending::default(),
            sections: Default::default(),
            codes_at_turn: 0,
            open_events: false,
        }
    }
}

// Indices into the sections of a vCPU, in the order of `Section::OF_VCPU`; codes count executed
// blocks and groups of events, so that their number is that stream's length.
const CODES: usize = 0;
const SUCCESSORS: usize = 1;
const SHAPES: usize = 2;
const LENGTHS: usize = 3;
const DIFFERENCES: usize = 4;
const FETCH_PAGES: usize = 5;
const FRAMES: usize = 6;

/// What makes a block of instructions the same: address, length and number of instructions, or for
/// a continuation (of length 0) what it continues and after how many accesses.
type Identity = (u64, u16, u16, u32, u32);

/// A block of instructions that the encoder was told of; it enters the file when first executed.
#[derive(Clone, Copy, Debug)]
struct Handle {
    gpa: u64,
    bytes: u16,
    instructions: u16,
}

/// Continuations after more accesses than this share one identity.
const LONGEST_CONTINUED: u32 = 1024;

/// Turns what a machine does, call by call, into blocks for a [`Packer`](super::Packer).
#[derive(Debug)]
pub struct Encoder {
    streams: Vec<Stream>,
    /// What the models of the streams share.
    room: Room,
    handles: Vec<Handle>,
    /// The number in the file of each handle; 0 for one that is not in it yet.
    numbers: Vec<u32>,
    known: HashMap<Identity, u32>,
    /// In the order of the file.
    definitions: Vec<Definition>,
    /// Accesses in their shapes.
    defined_accesses: usize,
    generation: u32,
    restart: bool,
    turn: u8,
    turns: Vec<u8>,
    defined: Vec<u8>,
    last_defined: u64,
    events: Vec<u8>,
    event_state: EventState,
    accesses: u64,
    instructions: u64,
    former_accesses: u64,
    block_accesses: u64,
    full: bool,
}

impl Encoder {
    /// An encoder for a machine of `vcpus` virtual CPUs, 1 to 64.
    ///
    /// # Panics
    ///
    /// For another number.
    #[must_use]
    pub fn new(vcpus: u8) -> Self {
        assert!((1..=MAX_VCPUS).contains(&vcpus), "1 to 64 vCPUs, not {vcpus}");
        let room = Room::of(vcpus);
        Self {
            streams: (0..vcpus).map(|_| Stream::new(room.clone())).collect(),
            room,
            handles: Vec::new(),
            numbers: Vec::new(),
            known: HashMap::new(),
            definitions: Vec::new(),
            defined_accesses: 0,
            generation: 0,
            restart: true,
            turn: 0,
            turns: Vec::new(),
            defined: Vec::new(),
            last_defined: 0,
            events: Vec::new(),
            event_state: EventState::default(),
            accesses: 0,
            instructions: 0,
            former_accesses: 0,
            block_accesses: BLOCK_ACCESSES,
            full: false,
        }
    }

    /// The same encoder, full after about `accesses` accesses, at least 1.
    #[must_use]
    pub fn with_block_accesses(self, accesses: u64) -> Self {
        Self { block_accesses: accesses.max(1), ..self }
    }

    /// How many accesses it was given, apart from those of the block being executed.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.former_accesses + self.accesses
    }

    /// A block of `instructions` instructions that fill `bytes` bytes (at least 1) from the
    /// guest-physical address `gpa` on. The same block gets the same identity again.
    pub fn define(&mut self, gpa: u64, bytes: u16, instructions: u16) -> BlockId {
        let handle = self.handle((gpa, bytes.max(1), instructions, 0, 0));
        BlockId { handle, generation: self.generation }
    }

    /// Whether an identity is still good; if not, the block has to be defined again.
    #[inline]
    #[must_use]
    pub fn knows(&self, block: BlockId) -> bool {
        block.generation == self.generation
    }

    fn handle(&mut self, identity: Identity) -> u32 {
        let (gpa, bytes, instructions, ..) = identity;
        *self.known.entry(identity).or_insert_with(|| {
            self.handles.push(Handle { gpa, bytes, instructions });
            self.numbers.push(0);
            self.handles.len() as u32 - 1
        })
    }

    /// Whether it is time for [`cut`](Self::cut); to be asked before a block is executed.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// `vcpu` begins to execute `block` at the virtual address `va`.
    ///
    /// # Panics
    ///
    /// Where there is no such vCPU, or the identity is not good any more.
    #[inline]
    pub fn execute(&mut self, vcpu: u8, block: BlockId, va: u64) {
        assert!(self.knows(block), "a block of a former generation");
        self.settle(vcpu);
        let pending = &mut self.streams[usize::from(vcpu)].pending;
        pending.root = block.handle + 1;
        pending.fetch = Some(va >> 12);
        pending.done = 0;
    }

    /// `vcpu` accesses 2^`log2_len` bytes (`log2_len` at most 7) of data from `va` on, whose first
    /// byte is in the physical page `frame`.
    ///
    /// # Panics
    ///
    /// Where there is no such vCPU.
    #[inline]
    pub fn access(&mut self, vcpu: u8, store: bool, log2_len: u8, va: u64, frame: u32) {
        if self.turn != vcpu {
            self.settle(vcpu);
        }
        let data = &mut self.streams[usize::from(vcpu)].pending.data;
        data.push(Data { va, frame, shape: shape(store, log2_len & 7) });
        if data.len() == MAX_SHAPE {
            self.settle(vcpu);
        }
    }

    /// Something happened on `vcpu`; `entries` are those of [`Event::TablePage`], as (index, entry)
    /// with rising indices, and else empty.
    ///
    /// # Panics
    ///
    /// Where there is no such vCPU, and for [`Event::TableEntry`], which is given with its page.
    pub fn event(&mut self, vcpu: u8, event: &Event, entries: &[(u16, u64)]) {
        self.settle(vcpu);
        let several = self.streams.len() > 1;
        let stream = &mut self.streams[usize::from(vcpu)];
        let codes = &mut stream.sections[CODES];
        match codes.last_mut() {
            Some(last) if stream.open_events && *last != u8::MAX => *last += 1,
            _ => codes.push(code::EVENTS | 1),
        }
        stream.open_events = true;
        if several {
            self.events.push(vcpu);
        }
        put_event(&mut self.events, &mut self.event_state, event, entries);
        self.full |= self.events.len() >= BLOCK_STREAM;
    }

    /// Writes what is pending of the vCPU whose turn it is, and gives the turn to `vcpu`.
    #[inline]
    fn settle(&mut self, vcpu: u8) {
        self.write_pending();
        if self.turn != vcpu {
            self.end_turn();
            self.turn = vcpu;
        }
    }

    fn end_turn(&mut self) {
        let stream = &mut self.streams[usize::from(self.turn)];
        let codes = stream.sections[CODES].len();
        if codes != stream.codes_at_turn {
            put_varint(&mut self.turns, self.turn.into());
            put_varint(&mut self.turns, (codes - stream.codes_at_turn) as u64);
            stream.codes_at_turn = codes;
        }
        stream.open_events = false;
        self.full |= self.turns.len() >= BLOCK_STREAM;
    }

    fn write_pending(&mut self) {
        let turn = usize::from(self.turn);
        let pending = &self.streams[turn].pending;
        let handle = match pending.fetch {
            Some(_) => pending.root - 1,
            None if pending.data.is_empty() => return,
            // Its beginning is written already: the rest is a block without a fetch of its own.
            None => {
                let identity = (0, 0, 0, pending.root, pending.done.min(LONGEST_CONTINUED));
                self.handle(identity)
            }
        };
        if self.numbers[handle as usize] == 0 {
            self.write_definition(turn, handle);
        }
        let number = self.numbers[handle as usize];
        let Stream { model, pending, sections, open_events, .. } = &mut self.streams[turn];
        *open_events = false;
        let mut flags = 0;

        // Which block.
        if model.by_history() != number {
            flags |= code::SUCCESSOR;
            let successor = if model.by_last() == number { 0 } else { number };
            put_varint(&mut sections[SUCCESSORS], successor.into());
        }
        let block = model.enter(number - 1, &self.definitions);
        let block = block.expect("full long before sites run out");

        // Where it was fetched from.
        if let Some(page) = pending.fetch.take() {
            let known = Page { from: block.gpa >> 12, to: page };
            let slot = model.page(known.from);
            if *slot != known {
                *slot = known;
                flags |= code::PAGE;
                put_difference(&mut sections[FETCH_PAGES], page, model.last_page);
                model.last_page = page;
            }
            self.accesses += 1;
            self.instructions += u64::from(block.instructions);
        }

        // Which accesses, at which addresses. Mostly all is as predicted.
        let data = &pending.data;
        let mut moved = model.moved;
        let sites = model.sites();
        let as_predicted = |(site, data): (&Site, &Data)| {
            site.shape == data.shape && site.last.wrapping_add(site.stride) == data.va
        };
        if sites.len() == data.len() && sites.iter().zip(data).all(as_predicted) {
            for site in sites {
                site.last = site.last.wrapping_add(site.stride);
                moved = site.stride;
            }
        } else {
            flags |= write_accesses(model, data, sections);
            moved = model.moved;
        }
        model.moved = moved;

        // In which physical pages.
        let mut from = 0;
        let (frames, last_frame) = model.frames();
        for (ordinal, data) in data.iter().enumerate() {
            let known = Page { from: data.va >> 12, to: data.frame.into() };
            if frames.of(known.from) != Some(data.frame) {
                frames.set(known.from, data.frame);
                flags |= code::FRAMES;
                put_varint(&mut sections[FRAMES], (ordinal + 1 - from) as u64);
                let last = *last_frame;
                let guess = last.to.wrapping_add(known.from).wrapping_sub(last.from);
                put_difference(&mut sections[FRAMES], known.to, guess);
                *last_frame = known;
                from = ordinal + 1;
            }
        }
        if flags & code::FRAMES != 0 {
            sections[FRAMES].push(0);
        }

        sections[CODES].push(flags);
        self.accesses += data.len() as u64;
        pending.done += data.len() as u32;
        pending.data.clear();
        self.full |= self.accesses >= self.block_accesses;
        // The others grow by little more than 2 KiB with each code.
        if sections[CODES].len().is_multiple_of(256) {
            self.full |= sections.iter().any(|section| section.len() >= BLOCK_STREAM)
                || self.room.sites.count() >= MAX_SITES / 2;
        }
    }

    #[cold]
    fn write_definition(&mut self, turn: usize, handle: u32) {
        let number = &mut self.numbers[handle as usize];
        let handle = self.handles[handle as usize];
        let data = &self.streams[turn].pending.data;
        let shape: Box<[u8]> = data.iter().map(|data| data.shape).collect();
        let out = &mut self.defined;
        put_varint(out, handle.bytes.into());
        if handle.bytes != 0 {
            put_varint(out, handle.instructions.into());
            put_difference(out, handle.gpa, self.last_defined);
            self.last_defined = handle.gpa;
        }
        put_varint(out, shape.len() as u64);
        out.extend_from_slice(&shape);
        let Handle { gpa, bytes, instructions } = handle;
        self.defined_accesses += shape.len();
        self.definitions.push(Definition { gpa, bytes, instructions, shape });
        *number = self.definitions.len() as u32;
        self.full |= out.len() >= BLOCK_STREAM || self.is_fully_defined();
    }

    /// Whether definitions are to start again with the next block of the file. Half of what readers accept, so
    /// that those of the block at work still find room.
    fn is_fully_defined(&self) -> bool {
        self.definitions.len() >= MAX_DEFINITIONS / 2
            || self.defined_accesses >= MAX_DEFINED_ACCESSES / 2
            || self.definitions.len() * self.streams.len() >= MAX_PLACES / 2
    }

    /// Closes the block of the file and begins the next. Identities of blocks of instructions may
    /// become void.
    pub fn cut(&mut self) -> RawBlock {
        self.write_pending();
        self.end_turn();
        let mut block = RawBlock {
            flags: if self.restart { RESTART } else { 0 },
            accesses: std::mem::take(&mut self.accesses),
            instructions: std::mem::take(&mut self.instructions),
            sections: Vec::new(),
        };
        let turns = std::mem::take(&mut self.turns);
        if self.streams.len() > 1 {
            block.sections.push((Section::Turns, 0, turns));
        }
        block.sections.push((Section::Definitions, 0, std::mem::take(&mut self.defined)));
        block.sections.push((Section::Events, 0, std::mem::take(&mut self.events)));
        for (vcpu, stream) in self.streams.iter_mut().enumerate() {
            if !stream.sections[CODES].is_empty() {
                stream.model.reset();
            }
            for (&section, data) in Section::OF_VCPU.iter().zip(&mut stream.sections) {
                block.sections.push((section, vcpu as u8, std::mem::take(data)));
            }
            stream.codes_at_turn = 0;
        }
        block.sections.retain(|(_, _, data)| !data.is_empty());
        self.former_accesses += block.accesses;
        self.event_state = EventState::default();
        self.last_defined = 0;
        self.full = false;
        self.restart = self.is_fully_defined();
        if self.restart {
            self.generation += 1;
            self.definitions.clear();
            self.defined_accesses = 0;
            self.handles.clear();
            self.numbers.clear();
            self.known.clear();
            for stream in &mut self.streams {
                stream.model.restart();
                stream.pending.root = 0;
            }
        }
        block
    }

    /// The last block of the file.
    #[must_use]
    pub fn finish(mut self) -> RawBlock {
        self.cut()
    }
}
