//! What the guest did, noted as it happens for a thread of its own that encodes it.
//!
//! A callback runs between two instructions of the guest and holds it up, so that it only notes:
//! 16 bytes an access or executed block, in the order in which they happen. A full chunk of notes is
//! handed over and an empty one taken; there are a few of them, which bounds memory and makes the
//! guest wait where the encoder cannot keep up. What is written depends on the notes alone, not on
//! when the other thread reads them.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use slat_trace::Event;
use slat_trace::recording::{BlockId, Encoder, RawBlock};

use crate::ffi::thread_cpu;

/// One access or one executed block.
#[derive(Clone, Copy)]
pub(crate) struct Note {
    va: u64,
    /// Of an access, the physical page; of a block, its number.
    what: u32,
    /// Of an access, bit 0 store and bits 1..=3 the logarithm of the length; else [`EXECUTES`].
    shape: u8,
    vcpu: u8,
}

const EXECUTES: u8 = 0x80;

/// A block of instructions; the first to be noted has number 0.
#[derive(Clone, Copy)]
pub(crate) struct Definition {
    pub(crate) gpa: u64,
    pub(crate) bytes: u16,
    pub(crate) instructions: u16,
}

/// An event, which comes before `notes[before]`.
struct Happened {
    before: u32,
    vcpu: u8,
    event: Event,
    entries: Box<[(u16, u64)]>,
}

/// Large enough to make handing it over cheap, small enough to stay in a second-level cache.
const NOTES: usize = 1 << 14;
/// Chunks that may wait for the encoder.
const WAITING: usize = 8;

#[derive(Default)]
struct Chunk {
    notes: Vec<Note>,
    happened: Vec<Happened>,
    definitions: Vec<Definition>,
}

impl Chunk {
    fn new() -> Self {
        Self { notes: Vec::with_capacity(NOTES), ..Self::default() }
    }

    fn clear(&mut self) {
        self.notes.clear();
        self.happened.clear();
        self.definitions.clear();
    }
}

/// What becomes of a block of the file; false where it cannot be written.
pub(crate) type Take = Box<dyn FnMut(RawBlock) -> bool + Send>;

/// The notes of the guest's thread.
pub(crate) struct Notes {
    chunk: Chunk,
    /// How many accesses and executed blocks are in the chunks before.
    before: u64,
    defined: u32,
    /// None where notes are thrown away.
    encoder: Option<Encoding>,
    broken: bool,
}

struct Encoding {
    full: SyncSender<Chunk>,
    empty: Receiver<Chunk>,
    thread: JoinHandle<f64>,
}

impl Notes {
    /// Notes that are thrown away, to measure what noting costs.
    pub(crate) fn discarded() -> Self {
        Self { chunk: Chunk::new(), before: 0, defined: 0, encoder: None, broken: false }
    }

    /// Notes that a thread encodes with `encoder`, block by block of the file into `take`.
    pub(crate) fn encoded(encoder: Encoder, take: Take) -> std::io::Result<Self> {
        let (full, to_encode) = sync_channel(WAITING);
        let (give_back, empty) = channel();
        for _ in 0..WAITING {
            // The receiver is at hand.
            let _ = give_back.send(Chunk::new());
        }
        let thread = std::thread::Builder::new()
            .name("slat-encoder".into())
            .spawn(move || encode(encoder, take, &to_encode, &give_back))?;
        let encoder = Some(Encoding { full, empty, thread });
        Ok(Self { encoder, ..Self::discarded() })
    }

    /// How many accesses were noted, block fetches included.
    #[inline]
    pub(crate) fn accesses(&self) -> u64 {
        self.before + self.chunk.notes.len() as u64
    }

    /// Whether notes can no longer be written.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    #[inline]
    fn push(&mut self, note: Note) {
        if self.chunk.notes.len() == NOTES {
            self.hand_over();
        }
        self.chunk.notes.push(note);
    }

    #[cold]
    #[inline(never)]
    fn hand_over(&mut self) {
        self.before += self.chunk.notes.len() as u64;
        if let Some(Encoding { full, empty, .. }) = self.encoder.as_ref().filter(|_| !self.broken)
            && let Ok(next) = empty.recv()
            && full.send(std::mem::replace(&mut self.chunk, next)).is_ok()
        {
            return;
        }
        self.broken = self.encoder.is_some();
        self.chunk.clear();
    }

    /// Gives a block its number.
    pub(crate) fn define(&mut self, definition: Definition) -> u32 {
        self.chunk.definitions.push(definition);
        self.defined += 1;
        self.defined - 1
    }

    /// `vcpu` begins to execute the block `number` at `va`.
    #[inline]
    pub(crate) fn execute(&mut self, vcpu: u8, number: u32, va: u64) {
        self.push(Note { va, what: number, shape: EXECUTES, vcpu });
    }

    /// `vcpu` accesses data; `shape` is bit 0 store, bits 1..=3 the logarithm of the length.
    #[inline]
    pub(crate) fn access(&mut self, vcpu: u8, shape: u8, va: u64, frame: u32) {
        self.push(Note { va, what: frame, shape, vcpu });
    }

    /// Something happened on `vcpu`; `entries` as for [`Encoder::event`].
    pub(crate) fn event(&mut self, vcpu: u8, event: &Event, entries: &[(u16, u64)]) {
        if self.chunk.happened.len() == NOTES {
            self.hand_over();
        }
        let before = self.chunk.notes.len() as u32;
        let happened = Happened { before, vcpu, event: *event, entries: entries.into() };
        self.chunk.happened.push(happened);
    }

    /// Hands the last notes over and waits until all are encoded; returns the CPU seconds that
    /// encoding took.
    pub(crate) fn finish(mut self) -> f64 {
        self.hand_over();
        let Some(Encoding { full, thread, .. }) = self.encoder else { return 0.0 };
        drop(full);
        thread.join().unwrap_or(0.0)
    }
}

/// The encoder's thread: until there are no more chunks, or a block of the file is refused. Returns
/// its CPU seconds.
fn encode(
    mut encoder: Encoder,
    mut take: Take,
    chunks: &Receiver<Chunk>,
    give_back: &Sender<Chunk>,
) -> f64 {
    let mut blocks: Vec<(Definition, Option<BlockId>)> = Vec::new();
    while let Ok(mut chunk) = chunks.recv() {
        blocks.extend(chunk.definitions.iter().map(|&definition| (definition, None)));
        let mut notes = chunk.notes.iter();
        let mut done = 0;
        for happened in &chunk.happened {
            let some = notes.by_ref().take(happened.before as usize - done);
            if !some.copied().all(|note| apply(&mut encoder, &mut blocks, &mut take, note)) {
                return thread_cpu();
            }
            done = happened.before as usize;
            encoder.event(happened.vcpu, &happened.event, &happened.entries);
        }
        if !notes.copied().all(|note| apply(&mut encoder, &mut blocks, &mut take, note)) {
            return thread_cpu();
        }
        chunk.clear();
        // At the end nobody takes it, and nobody needs it.
        let _ = give_back.send(chunk);
    }
    take(encoder.finish());
    thread_cpu()
}

/// Encodes one note; false where a block of the file was refused.
#[inline]
fn apply(
    encoder: &mut Encoder,
    blocks: &mut [(Definition, Option<BlockId>)],
    take: &mut Take,
    note: Note,
) -> bool {
    let Note { va, what, shape, vcpu } = note;
    if shape != EXECUTES {
        encoder.access(vcpu, shape & 1 != 0, shape >> 1, va, what);
        return true;
    }
    if encoder.is_full() && !take(encoder.cut()) {
        return false;
    }
    let (Definition { gpa, bytes, instructions }, known) = &mut blocks[what as usize];
    let id = match *known {
        Some(id) if encoder.knows(id) => id,
        _ => *known.insert(encoder.define(*gpa, *bytes, *instructions)),
    };
    encoder.execute(vcpu, id, va);
    true
}
