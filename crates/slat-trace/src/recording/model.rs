//! What writer and reader both predict, so that only what differs is stored.
//!
//! A machine repeats itself: the same block of instructions follows, makes the same accesses, each
//! at the address of the last time plus the stride of the last time. Each vCPU has one model; it is
//! forgotten at every block of the file, so that a reader can begin at any of them.

mod address;
mod follow;
mod room;

use super::layout::{MAX_PLACES, MAX_SITES};
use crate::event::Sort;
pub(crate) use follow::{Basket, Said};
pub(crate) use room::{NoRoom, Room};

const HISTORY: usize = 1 << 15;
const PAGES: usize = 1 << 12;
const FRAMES: usize = 1 << 16;

/// One access of a block of instructions, as it was the last time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Site {
    pub(crate) last: u64,
    pub(crate) stride: u64,
    pub(crate) shape: u8,
    /// The shape and who makes the access; right while the state's `fetch` is.
    sort: Sort,
}

impl Site {
    fn new(shape: u8) -> Self {
        Self { last: 0, stride: 0, shape, sort: Sort::NONE }
    }
}

/// A block of instructions: what is known of it in the whole file.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    /// The guest-physical address of its first byte.
    pub(crate) gpa: u64,
    /// Its length; 0 for a continuation, which has no fetch.
    pub(crate) bytes: u16,
    pub(crate) instructions: u16,
    /// One byte an access, as it was at the first execution.
    pub(crate) shape: Box<[u8]>,
}

/// A block of instructions: what is known of it in this block of the file. The definition's numbers
/// are repeated here, so that executing it touches one place.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct State {
    gpa: u64,
    epoch: u32,
    /// Where its sites begin.
    first: u32,
    /// How many accesses the last execution made.
    len: u16,
    /// For how many accesses there is room.
    room: u16,
    bytes: u16,
    instructions: u16,
    /// What its fetch is, and as whose the accesses of its sites are noted.
    fetch: Sort,
}

/// What a block of instructions is: its fetch, and where its sites are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    pub(crate) gpa: u64,
    pub(crate) bytes: u16,
    pub(crate) instructions: u16,
    first: u32,
    len: u16,
}

impl Code {
    /// How many data accesses its last execution made.
    #[inline]
    pub(crate) fn accesses(&self) -> u16 {
        self.len
    }
}

impl State {
    #[inline]
    fn code(&self) -> Code {
        let Self { gpa, bytes, instructions, first, len, .. } = *self;
        Code { gpa, bytes, instructions, first, len }
    }

    /// Whether it has a fetch and one data access, like the commonest loops.
    #[inline]
    fn is_small_loop(&self) -> bool {
        self.len == 1 && self.bytes != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

const NOWHERE: Page = Page { from: u64::MAX, to: 0 };

/// Where the history has what follows the blocks `current` and, before it, `before`.
#[inline]
fn slot(current: u32, before: u32) -> usize {
    let mixed = current.wrapping_mul(0x9e37_79b1) ^ before.wrapping_mul(0x85eb_ca6b);
    (mixed >> 17) as usize & (HISTORY - 1)
}

#[derive(Debug)]
pub(crate) struct Model {
    /// Shared by the models of all vCPUs.
    room: Room,
    epoch: u32,
    states: Vec<State>,
    /// What followed each the last time, plus 1, by its number plus 1. It is written at each execution, the states are only
    /// read: apart, no read has to wait for a write beside it.
    next: Vec<u32>,
    sites: Vec<Site>,
    history: Box<[u32; HISTORY]>,
    before: u32,
    current: u32,
    /// How far the last access of the vCPU was from where its site had been the time before.
    pub(crate) moved: u64,
    /// Physical to virtual pages of fetches.
    pages: Box<[Page; PAGES]>,
    pub(crate) last_page: u64,
    /// Virtual to physical pages of data; made when the first is asked for, which a reader that
    /// wants no physical pages never does.
    frames: Option<Frames>,
    last_frame: Page,
}

impl Model {
    /// A model that shares `room` with those of the other vCPUs.
    pub(crate) fn new(room: Room) -> Self {
        Self {
            room,
            epoch: 1,
            states: Vec::new(),
            next: Vec::new(),
            sites: Vec::new(),
            history: Box::new([0; HISTORY]),
            before: 0,
            current: 0,
            moved: 0,
            pages: Box::new([NOWHERE; PAGES]),
            last_page: 0,
            frames: None,
            last_frame: Page { from: 0, to: 0 },
        }
    }

    /// Forgets everything, as at the start of a block of the file.
    pub(crate) fn reset(&mut self) {
        // An epoch makes all states void at once; at its wrap they are cleared in earnest.
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.states.fill(State::default());
            self.epoch = 1;
        }
        self.forget_sites();
        self.history.fill(0);
        (self.before, self.current, self.moved, self.last_page) = (0, 0, 0, 0);
        self.pages.fill(NOWHERE);
        if let Some(frames) = &mut self.frames {
            frames.forget();
        }
        self.last_frame = Page { from: 0, to: 0 };
    }

    /// Leaves its part of the room to the others in a block of the file in which its vCPU does nothing. It is to be
    /// reset before the next in which it does something.
    pub(crate) fn forget_sites(&mut self) {
        self.room.sites.give_back(self.sites.len());
        room::empty(&mut self.sites, self.room.kept);
    }

    /// Forgets everything, the blocks of instructions too, as where definitions start again.
    pub(crate) fn restart(&mut self) {
        self.room.places.give_back(self.states.len());
        room::empty(&mut self.states, self.room.kept);
        room::empty(&mut self.next, self.room.kept);
        self.reset();
    }

    #[inline]
    fn slot(&self) -> usize {
        slot(self.current, self.before)
    }

    /// The block expected next by the last two, plus 1; 0 if there is no expectation.
    #[inline]
    pub(crate) fn by_history(&self) -> u32 {
        self.history[self.slot()]
    }

    /// The block expected next by the last one alone, plus 1; 0 if there is no expectation.
    #[inline]
    pub(crate) fn by_last(&self) -> u32 {
        match self.current {
            0 => 0,
            current => {
                let known = self.states[current as usize - 1].epoch == self.epoch;
                if known { self.next[current as usize] } else { 0 }
            }
        }
    }

    /// Whether the last two blocks are the same and it is expected again: as long as it follows, no
    /// expectation of blocks changes.
    #[inline]
    pub(crate) fn repeats(&self) -> bool {
        self.current == self.before && self.by_history() == self.current
    }

    /// Notes that block `id` is executed; there must be a definition of it.
    #[inline(always)]
    pub(crate) fn enter(&mut self, id: u32, definitions: &[Definition]) -> Result<Code, NoRoom> {
        let slot = self.slot();
        self.history[slot] = id + 1;
        if let Some(next) = self.next.get_mut(self.current as usize) {
            *next = id + 1;
        }
        self.before = self.current;
        self.current = id + 1;
        match self.states.get(id as usize) {
            Some(state) if state.epoch == self.epoch => Ok(state.code()),
            _ => self.first_entry(id, definitions),
        }
    }

    #[cold]
    fn first_entry(&mut self, id: u32, definitions: &[Definition]) -> Result<Code, NoRoom> {
        if self.states.len() <= id as usize {
            self.room.places.take(definitions.len() - self.states.len(), MAX_PLACES)?;
            self.states.resize(definitions.len(), State::default());
            self.next.resize(definitions.len() + 1, 0);
        }
        let definition = &definitions[id as usize];
        let first = self.sites.len();
        let len = definition.shape.len();
        self.room.sites.take(len, MAX_SITES)?;
        self.sites.extend(definition.shape.iter().map(|&shape| Site::new(shape)));
        let (first, len) = (first as u32, len as u16);
        let Definition { gpa, bytes, instructions, .. } = *definition;
        let epoch = self.epoch;
        let fetch = Sort::NONE;
        let state = State { gpa, epoch, first, len, room: len, bytes, instructions, fetch };
        self.next[id as usize + 1] = 0;
        self.states[id as usize] = state;
        Ok(state.code())
    }

    /// The sites of the block that was entered last.
    #[inline]
    pub(crate) fn sites(&mut self) -> &mut [Site] {
        let state = self.states[self.current as usize - 1];
        &mut self.sites[state.first as usize..][..usize::from(state.len)]
    }

    /// The sites of a block that was just entered, while it has the shape of then.
    #[inline]
    pub(crate) fn sites_of(&mut self, block: Code) -> &mut [Site] {
        &mut self.sites[block.first as usize..][..usize::from(block.len)]
    }

    /// Gives the block that was entered last another shape; addresses of sites that stay are kept.
    pub(crate) fn reshape(&mut self, shape: &[u8]) -> Result<(), NoRoom> {
        let state = &mut self.states[self.current as usize - 1];
        if shape.len() > usize::from(state.room) {
            // Doubling keeps what is left behind below what is in use.
            let room = shape.len().next_power_of_two();
            let first = self.sites.len();
            self.room.sites.take(room, MAX_SITES)?;
            let old = state.first as usize..state.first as usize + usize::from(state.room);
            self.sites.extend_from_within(old);
            self.sites.resize(first + room, Site::default());
            state.first = first as u32;
            state.room = room as u16;
        }
        state.len = shape.len() as u16;
        state.fetch = Sort::NONE;
        for (site, &shape) in self.sites[state.first as usize..].iter_mut().zip(shape) {
            let Site { last, stride, .. } = *site;
            *site = Site { last, stride, ..Site::new(shape) };
        }
        Ok(())
    }

    /// What is known of the virtual page of the physical page `frame` in fetches.
    #[inline]
    pub(crate) fn page(&mut self, frame: u64) -> &mut Page {
        &mut self.pages[frame as usize & (PAGES - 1)]
    }

    /// What is known of the physical pages of data accesses, and the pair that was said last.
    #[inline]
    pub(crate) fn frames(&mut self) -> (&mut Frames, &mut Page) {
        (self.frames.get_or_insert_with(Frames::nowhere), &mut self.last_frame)
    }
}

/// A physical page for each virtual page of data accesses, as far as there is room.
///
/// Of each pair: the virtual page, and above it (from bit 52 on) when it was noted, then the physical page.
/// Nothing known is all zeros, and memory that comes zeroed need not be touched before it is used.
#[derive(Debug)]
pub(crate) struct Frames {
    all: Box<[[u64; 2]; FRAMES]>,
    /// Pairs of another time are void. Never 0.
    time: u16,
}

impl Frames {
    const TIME_AT: u32 = 52;

    #[cold]
    fn nowhere() -> Self {
        Self { all: vec![[0; 2]; FRAMES].try_into().expect("as many as there are"), time: 1 }
    }

    fn forget(&mut self) {
        self.time += 1;
        if self.time == 1 << (64 - Self::TIME_AT) {
            self.all.fill([0; 2]);
            self.time = 1;
        }
    }

    #[inline(always)]
    fn slot(page: u64) -> usize {
        (page ^ page >> 16) as usize & (FRAMES - 1)
    }

    #[inline(always)]
    fn key(&self, page: u64) -> u64 {
        page | u64::from(self.time) << Self::TIME_AT
    }

    /// The physical page of the virtual page `page` (of 52 bits), and 0 if it is known.
    #[inline(always)]
    pub(crate) fn look(&self, page: u64) -> (u32, u64) {
        let [from, to] = self.all[Self::slot(page)];
        (to as u32, from ^ self.key(page))
    }

    /// Has what is known of a page brought near, for what comes.
    #[inline(always)]
    pub(crate) fn touch(&self, page: u64) -> u64 {
        self.all[Self::slot(page)][0]
    }

    /// The physical page of the virtual page `page`, if it is known.
    #[inline]
    pub(crate) fn of(&self, page: u64) -> Option<u32> {
        let (frame, different) = self.look(page);
        (different == 0).then_some(frame)
    }

    /// Notes a pair.
    #[inline]
    pub(crate) fn set(&mut self, page: u64, frame: u32) {
        self.all[Self::slot(page)] = [self.key(page), frame.into()];
    }
}

/// How an access is shaped: bit 0 store, bits 1..=3 the logarithm of its length.
#[inline]
pub(crate) fn shape(store: bool, log2_len: u8) -> u8 {
    u8::from(store) | log2_len << 1
}

/// Codes: what a byte of the stream of codes says of an executed block. No bit: all as predicted.
pub(crate) mod code {
    /// The next block is not the expected one: [`Successors`](super::super::layout::Section).
    pub(crate) const SUCCESSOR: u8 = 1;
    /// Not all addresses are as predicted.
    pub(crate) const ADDRESSES: u8 = 2;
    /// The accesses are not the same in number and shape.
    pub(crate) const SHAPE: u8 = 4;
    /// The virtual page of the fetch is not the known one.
    pub(crate) const PAGE: u8 = 8;
    /// The physical page of some access is not the known one.
    pub(crate) const FRAMES: u8 = 16;
    /// Not a block: the low seven bits count events.
    pub(crate) const EVENTS: u8 = 128;
}

/// Lengths: how the address of one access is stored.
pub(crate) mod length {
    /// Last time's address plus the last stride.
    pub(crate) const PREDICTED: u8 = 0;
    /// In 1 to 6 bytes: the difference from last time's address.
    pub(crate) const LONGEST: u8 = 6;
    /// The address itself, in 8 bytes.
    pub(crate) const WHOLE: u8 = 7;
    /// Moved from last time's address as far as the access before moved from its own.
    pub(crate) const ALONG: u8 = 8;
}
