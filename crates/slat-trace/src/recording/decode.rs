//! From the streams of one block of the file back to accesses and events.

mod frames;
mod turn;

use super::bytes::{Bytes, Short};
use super::events::is_state;
use super::events::{EventState, get_event};
use super::layout::{MAX_DEFINED_ACCESSES, MAX_DEFINITIONS, MAX_SHAPE, Section};
use super::model::{Basket, Definition, Model, NoRoom, Room};
use crate::event::{Batch, Event};
use turn::Limits;

/// The streams contradict each other or end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inconsistent;

impl From<Short> for Inconsistent {
    fn from(_: Short) -> Self {
        Self
    }
}

impl From<NoRoom> for Inconsistent {
    fn from(_: NoRoom) -> Self {
        Self
    }
}

/// Appends the definitions of a block of the file to those of the blocks before, whose shapes have
/// `defined` accesses together.
pub(crate) fn read_definitions(
    data: &[u8],
    definitions: &mut Vec<Definition>,
    defined: &mut usize,
) -> Result<(), Inconsistent> {
    let mut bytes = Bytes::new(data);
    let mut last = 0;
    while !bytes.is_empty() {
        let len = u16::try_from(bytes.varint()?).map_err(|_| Inconsistent)?;
        let (mut gpa, mut instructions) = (0, 0);
        if len != 0 {
            instructions = u16::try_from(bytes.varint()?).map_err(|_| Inconsistent)?;
            gpa = bytes.difference(last)?;
            last = gpa;
        }
        let accesses = bytes.varint()?;
        if accesses > MAX_SHAPE as u64 || definitions.len() == MAX_DEFINITIONS {
            return Err(Inconsistent);
        }
        *defined += accesses as usize;
        if *defined > MAX_DEFINED_ACCESSES {
            return Err(Inconsistent);
        }
        let shape = bytes.take(accesses as usize)?.into();
        definitions.push(Definition { gpa, bytes: len, instructions, shape });
    }
    Ok(())
}

/// The most bytes that an empty buffer keeps for the next block of the file, and that all keep together.
const KEPT_ROOM: usize = 4 << 20;
const KEPT_TOGETHER: usize = 64 << 20;

/// How far the streams of one vCPU are read.
#[derive(Debug, Default)]
struct Stream {
    sections: [Vec<u8>; Section::OF_VCPU.len()],
    read: [usize; Section::OF_VCPU.len()],
}

/// One block of the file while it is read, and the models, which are reused.
#[derive(Debug)]
pub(crate) struct Decoder {
    models: Vec<Model>,
    basket: Basket,
    users: Vec<bool>,
    streams: Vec<Stream>,
    turns: Vec<u8>,
    turns_read: usize,
    events: Vec<u8>,
    events_read: usize,
    event_state: EventState,
    turn: u8,
    /// Codes that are left of the turn.
    left: usize,
    /// Events that are left of the code that was read last.
    pending: u8,
    expected: u64,
}

impl Decoder {
    pub(crate) fn new(vcpus: u8) -> Self {
        let room = Room::of(vcpus);
        Self {
            models: (0..vcpus).map(|_| Model::new(room.clone())).collect(),
            basket: Basket::new(),
            users: vec![false; usize::from(vcpus)],
            streams: (0..vcpus).map(|_| Stream::default()).collect(),
            turns: Vec::new(),
            turns_read: 0,
            events: Vec::new(),
            events_read: 0,
            event_state: EventState::default(),
            turn: 0,
            left: 0,
            pending: 0,
            expected: 0,
        }
    }

    /// The buffer of a section, to be filled before [`begin`](Self::begin); None for a vCPU that
    /// the machine does not have.
    pub(crate) fn buffer(&mut self, section: Section, vcpu: u8) -> Option<&mut Vec<u8>> {
        Some(match section {
            Section::Turns => &mut self.turns,
            Section::Events => &mut self.events,
            Section::Definitions => return None,
            of_vcpu => {
                let index = Section::OF_VCPU.iter().position(|&s| s == of_vcpu)?;
                &mut self.streams.get_mut(usize::from(vcpu))?.sections[index]
            }
        })
    }

    /// Empties all buffers, and gives large ones back: each vCPU in turn may have a block with large
    /// sections, and together they would hold the memory of all.
    pub(crate) fn clear(&mut self) {
        let of_vcpus = self.streams.iter_mut().flat_map(|stream| &mut stream.sections);
        let mut left = KEPT_TOGETHER;
        for buffer in [&mut self.turns, &mut self.events].into_iter().chain(of_vcpus) {
            buffer.clear();
            if buffer.capacity() > KEPT_ROOM.min(left) {
                *buffer = Vec::new();
            }
            left -= buffer.capacity();
        }
        self.left = 0;
    }

    /// Forgets all blocks that were read.
    pub(crate) fn forget(&mut self) {
        self.clear();
        self.users.fill(false);
        self.models.iter_mut().for_each(Model::restart);
    }

    /// Appends to `batch` those events in the buffer that are part of the state, and notes the privilege of
    /// each vCPU, until there are `enough` or all are read. Returns whether there are more.
    pub(crate) fn read_state(
        &mut self,
        batch: &mut Batch,
        enough: usize,
    ) -> Result<bool, Inconsistent> {
        let mut bytes = Bytes::new(&self.events[self.events_read..]);
        while !bytes.is_empty() && batch.events.len() < enough {
            let vcpu = if self.users.len() > 1 { bytes.byte()? } else { 0 };
            let user = self.users.get_mut(usize::from(vcpu)).ok_or(Inconsistent)?;
            get_event(&mut bytes, &mut self.event_state, |event| {
                if let Event::Mode { user: now } = event {
                    *user = now;
                }
                if is_state(&event) {
                    batch.event(vcpu, event);
                }
            })?;
        }
        self.events_read = self.events.len() - bytes.remaining();
        Ok(!bytes.is_empty())
    }

    /// Begins to read what is in the buffers: `accesses` accesses, as the block's header says.
    pub(crate) fn begin(&mut self, accesses: u64, restart: bool) {
        for (model, stream) in self.models.iter_mut().zip(&mut self.streams) {
            stream.read = Default::default();
            if restart {
                model.restart();
            } else if !stream.sections[0].is_empty() {
                model.reset();
            } else {
                model.forget_sites();
            }
        }
        (self.turns_read, self.events_read) = (0, 0);
        self.event_state = EventState::default();
        (self.turn, self.pending) = (0, 0);
        self.left = if self.streams.len() == 1 { self.streams[0].sections[0].len() } else { 0 };
        self.expected = accesses;
    }

    /// Appends to `batch` until it has `enough` accesses, many events, or the block is read. Returns whether there
    /// is more.
    pub(crate) fn read<const WITH_FRAMES: bool>(
        &mut self,
        definitions: &[Definition],
        batch: &mut Batch,
        enough: usize,
    ) -> Result<bool, Inconsistent> {
        // An event takes as much room as some accesses.
        let limits = Limits { accesses: enough, events: enough.div_ceil(4) };
        while batch.accesses.len() < enough && batch.events.len() < limits.events {
            if self.left == 0 && self.pending == 0 && !self.next_turn()? {
                return if self.expected == 0 { Ok(false) } else { Err(Inconsistent) };
            }
            self.read_turn::<WITH_FRAMES>(definitions, batch, limits)?;
        }
        Ok(true)
    }

    fn next_turn(&mut self) -> Result<bool, Inconsistent> {
        let mut turns = Bytes::new(&self.turns[self.turns_read..]);
        if turns.is_empty() {
            return Ok(false);
        }
        let (vcpu, codes) = (turns.varint()?, turns.varint()?);
        self.turns_read = self.turns.len() - turns.remaining();
        let vcpu = u8::try_from(vcpu).map_err(|_| Inconsistent)?;
        let stream = self.streams.get(usize::from(vcpu)).ok_or(Inconsistent)?;
        let there = stream.sections[0].len() - stream.read[0];
        let codes = usize::try_from(codes).map_err(|_| Inconsistent)?;
        if codes == 0 || codes > there {
            return Err(Inconsistent);
        }
        (self.turn, self.left) = (vcpu, codes);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Access, Kind, Root};
    use crate::recording::Encoder;

    /// A block of a machine of two vCPUs, with every stream in use.
    fn block() -> crate::recording::RawBlock {
        let mut encoder = Encoder::new(2);
        for step in 0..60u64 {
            let vcpu = (step / 7 % 2) as u8;
            let block = encoder.define(step % 5 * 0x700, 9, 3);
            encoder.execute(vcpu, block, 0x40_0000 + step * step * 64);
            for ordinal in 0..step % 4 {
                let va = 0x7000_0000 + step * 8 + ordinal * step * 0x1_0000;
                encoder.access(vcpu, ordinal == 1, 3, va, (step % 9) as u32);
            }
            if step % 9 == 0 {
                // A loop of one block with one access.
                let block = encoder.define(0x9000, 5, 2);
                for n in 0..1 + step * 7 % 40 {
                    encoder.execute(vcpu, block, 0x41_0000);
                    let va = 0x7100_0000 + n * 0x800 + n / 9 * 0x12_3000;
                    encoder.access(vcpu, false, 2, va, (va >> 13) as u32);
                }
            }
            if step % 6 == 0 {
                let page = Event::TablePage { gpa: step << 12, level: 1, fresh: true };
                encoder.event(vcpu, &page, &[(1, 2), (3, 4)]);
                let root = Event::Root { root: Root::Cr3, value: step << 12 };
                encoder.event(vcpu, &root, &[]);
            }
        }
        encoder.finish()
    }

    /// Reads a block to its end or to what is wrong with it; panics are for the caller to see.
    fn read(block: &crate::recording::RawBlock) -> Result<u64, Inconsistent> {
        let mut all = Batch::default();
        read_into(block, &mut all).map(|()| all.accesses.len() as u64)
    }

    /// The same, and what was read on the way: accesses and instructions.
    fn read_into(block: &crate::recording::RawBlock, all: &mut Batch) -> Result<(), Inconsistent> {
        let (mut decoder, mut definitions, mut defined) = (Decoder::new(2), Vec::new(), 0);
        for (section, vcpu, data) in &block.sections {
            match section {
                Section::Definitions => read_definitions(data, &mut definitions, &mut defined)?,
                _ => decoder.buffer(*section, *vcpu).unwrap().clone_from(data),
            }
        }
        decoder.begin(block.accesses, true);
        let mut batch = Batch::default();
        loop {
            batch.clear();
            let more = decoder.read::<true>(&definitions, &mut batch, 50);
            all.accesses.extend(&batch.accesses);
            all.instructions += batch.instructions;
            if !more? {
                return Ok(());
            }
        }
    }

    #[test]
    fn the_block_as_it_is_reads_whole() {
        let block = block();
        assert_eq!(read(&block), Ok(block.accesses));
        assert!(block.sections.len() > 10, "most streams are in use");
    }

    #[test]
    fn what_comes_before_a_cut_stream_is_exact_and_has_frames() {
        let (block, mut whole) = (block(), Batch::default());
        read_into(&block, &mut whole).unwrap();
        // By the lengths of the blocks' fetches: see `block`.
        let instructions = |accesses: &[Access]| -> u64 {
            let fetches = accesses.iter().filter(|access| access.kind() == Kind::Fetch);
            fetches.map(|fetch| if fetch.len() == 9 { 3 } else { 2 }).sum()
        };
        assert_eq!(whole.instructions, instructions(&whole.accesses));
        let whole = whole.accesses;
        assert!(whole.iter().all(|access| access.frame != Access::NO_FRAME));
        let mut longest = 0;
        for section in [Section::Frames, Section::Lengths, Section::Differences] {
            for vcpu in 0..2 {
                let of = |s: &(Section, u8, Vec<u8>)| s.0 == section && s.1 == vcpu;
                let at = block.sections.iter().position(of).unwrap();
                for len in 0..block.sections[at].2.len() {
                    let mut cut = block.clone();
                    cut.sections[at].2.truncate(len);
                    let mut all = Batch::default();
                    assert_eq!(read_into(&cut, &mut all), Err(Inconsistent));
                    let left = &all.accesses;
                    let same = left.iter().zip(&whole).take_while(|(a, b)| a == b).count();
                    assert_eq!(same, left.len(), "{section:?} of {vcpu} cut to {len}");
                    let counted = instructions(left);
                    assert_eq!(all.instructions, counted, "{section:?} of {vcpu} cut to {len}");
                    longest = longest.max(left.len());
                }
            }
        }
        assert!(longest > whole.len() / 2, "cuts late in the block leave much");
    }

    #[test]
    fn the_state_is_read_in_parts() {
        let mut block = block();
        block.sections.retain(|(section, ..)| *section == Section::Events);
        let parts = |enough: usize| {
            let mut decoder = Decoder::new(2);
            decoder.buffer(Section::Events, 0).unwrap().clone_from(&block.sections[0].2);
            decoder.begin(0, true);
            let (mut all, mut calls) = (Vec::new(), 0);
            loop {
                let mut batch = Batch::default();
                let more = decoder.read_state(&mut batch, enough).unwrap();
                // A page of tables comes whole, and there are two entries in each here.
                assert!(batch.events.len() < enough.saturating_add(3));
                all.extend(batch.events);
                calls += 1;
                if !more {
                    return (all, calls);
                }
            }
        };
        let (whole, calls) = parts(usize::MAX);
        assert_eq!((whole.len(), calls), (40, 1));
        for enough in [1, 2, 7] {
            let (all, calls) = parts(enough);
            assert_eq!(all, whole);
            assert!(calls >= 40 / (enough + 2));
        }
    }

    #[test]
    fn large_buffers_are_given_back() {
        let mut decoder = Decoder::new(64);
        for vcpu in 0..64 {
            decoder.clear();
            for section in Section::OF_VCPU.into_iter().chain([Section::Turns, Section::Events]) {
                decoder.buffer(section, vcpu).unwrap().reserve_exact(KEPT_ROOM + 1);
            }
        }
        decoder.clear();
        let of_vcpus = decoder.streams.iter().flat_map(|stream| &stream.sections);
        let all = of_vcpus.chain([&decoder.turns, &decoder.events]);
        assert!(all.map(Vec::capacity).all(|room| room <= KEPT_ROOM));
        for vcpu in 0..64 {
            decoder.buffer(Section::Codes, vcpu).unwrap().reserve_exact(KEPT_ROOM);
        }
        decoder.clear();
        let of_vcpus = decoder.streams.iter().flat_map(|stream| &stream.sections);
        assert_eq!(of_vcpus.map(Vec::capacity).sum::<usize>(), KEPT_TOGETHER);
        let mut decoder = Decoder::new(4);
        decoder.buffer(Section::Frames, 3).unwrap().reserve_exact(KEPT_ROOM);
        decoder.clear();
        let kept = decoder.buffer(Section::Frames, 3).unwrap().capacity();
        assert_eq!(kept, KEPT_ROOM, "what is small serves the next block too");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn streams_that_lie_are_refused_or_read_and_never_a_panic(
            changes in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u8>()), 1..6),
            cut: Option<(u16, u16)>,
        ) {
            let mut block = block();
            let count = block.sections.len();
            for (section, at, value) in changes {
                let data = &mut block.sections[usize::from(section) % count].2;
                let len = data.len();
                data[usize::from(at) % len] = value;
            }
            if let Some((section, len)) = cut {
                let data = &mut block.sections[usize::from(section) % count].2;
                data.truncate(usize::from(len) % (data.len() + 1));
            }
            if let Ok(accesses) = read(&block) {
                prop_assert_eq!(accesses, block.accesses);
            }
        }
    }
}
