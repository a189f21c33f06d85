//! Executing blocks of instructions of which little is said: nearly all of a recording.
//!
//! The loop keeps to what nearly every block needs, so that it fits the registers; the rest is apart.

use super::super::bytes::{Bytes, Short};
use super::super::layout::MAX_SHAPE;
use super::{Frames, Model, PAGES, Site, State, code, slot};
use crate::event::{Access, Kind};

/// The streams that say which block follows and at which addresses, where that is not as predicted.
#[derive(Clone, Copy)]
pub(crate) struct Said<'a> {
    pub(crate) successors: Bytes<'a>,
    pub(crate) lengths: Bytes<'a>,
    pub(crate) differences: Bytes<'a>,
}

/// How far it went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Followed {
    /// Codes that were executed.
    pub(crate) codes: usize,
    /// Instructions in their fetches.
    pub(crate) instructions: u64,
}

/// Accesses on their way to the batch. Into a place of fixed size they are written without asking for room.
#[derive(Debug)]
pub(crate) struct Basket(Box<[Access; BASKET]>);

const BASKET: usize = 1024;
/// The most accesses of one block: its fetch and its data.
const MOST: usize = MAX_SHAPE + 1;

impl Basket {
    pub(crate) fn new() -> Self {
        let none = Access::new(Kind::Load, 0, 0);
        Self(vec![none; BASKET].try_into().expect("as many as there are"))
    }
}

impl Model {
    /// Executes the blocks of `codes` and appends their accesses to `out`. Ends at a code that says more than
    /// which block it is and at which addresses, at a block that is new or repeats itself, and when `out` has
    /// `enough` accesses. Where the streams are inconsistent, `out` has what comes before, and the blocks are
    /// those of that.
    pub(crate) fn follow<const WITH_FRAMES: bool>(
        &mut self,
        codes: &[u8],
        said: &mut Said<'_>,
        template: Access,
        (basket, out): (&mut Basket, &mut Vec<Access>),
        enough: usize,
    ) -> (Followed, Result<(), Short>) {
        let mut followed = Followed::default();
        if WITH_FRAMES {
            self.frames();
        }
        loop {
            let room = enough.saturating_sub(out.len()).min(BASKET - MOST);
            let codes = &codes[followed.codes..];
            let (some, made, read) =
                self.follow_some::<WITH_FRAMES>(codes, said, template, (&mut basket.0, room));
            out.extend_from_slice(&basket.0[..made]);
            followed.codes += some.codes;
            followed.instructions += some.instructions;
            if some.codes == 0 || read.is_err() {
                return (followed, read);
            }
        }
    }

    /// The same, until there are about `room` accesses; says how many.
    #[inline(never)]
    fn follow_some<const WITH_FRAMES: bool>(
        &mut self,
        codes: &[u8],
        said: &mut Said<'_>,
        template: Access,
        (basket, room): (&mut [Access; BASKET], usize),
    ) -> (Followed, usize, Result<(), Short>) {
        let Self { epoch, states, next, sites, history, pages, frames, .. } = self;
        let frames = frames.as_ref().filter(|_| WITH_FRAMES);
        let (mut before, mut current, mut moved) = (self.before, self.current, self.moved);
        let like = template.fetch(0);
        let (mut made, mut instructions, mut done) = (0, 0, 0);
        let mut unknown = 0;
        let mut result = Ok(());
        for &flags in codes {
            if flags & !(code::SUCCESSOR | code::ADDRESSES) != 0 || made >= room {
                break;
            }
            let slot = slot(current, before);
            if flags & code::SUCCESSOR != 0 {
                let by_last = next.get(current as usize).filter(|_| current != 0);
                let by_last = by_last.map_or(0, |&next| next);
                let (number, rest) = successor(said.successors, by_last);
                let state = states.get((number as usize).wrapping_sub(1));
                if state.is_none_or(|state| state.epoch != *epoch) {
                    // What is new or wrong is for the caller.
                    break;
                }
                history[slot] = number;
                said.successors = rest;
            }
            // The history has only blocks that were entered, or none.
            let number = history[slot];
            let Some(state) = states.get_mut((number as usize).wrapping_sub(1)) else { break };
            if number == current
                && number == before
                && state.is_small_loop()
                && flags & code::SUCCESSOR == 0
            {
                break;
            }
            if !state.fetch.is_like(like) {
                state.sign(sites, template);
            }
            if let Some(next) = next.get_mut(current as usize) {
                *next = number;
            }
            (before, current) = (current, number);
            done += 1;
            instructions += u64::from(state.instructions);

            let gpa = state.gpa;
            let page = pages[(gpa >> 12) as usize & (PAGES - 1)].to;
            let frame = if WITH_FRAMES { (gpa >> 12) as u32 } else { Access::NO_FRAME };
            let Some(room) = basket.get_mut(made..made + MOST) else { break };
            // A continuation has no fetch: what follows takes its place.
            room[0] = Access::of(state.fetch, page << 12 | gpa & 0xfff, frame);
            let fetches = usize::from(state.fetch.len() != 0);
            let (len, first) = (usize::from(state.len), state.first as usize);
            let Some(sites) = sites.get_mut(first..first + len) else { break };
            let room = &mut room[fetches..];
            made += fetches + len;
            if flags & code::ADDRESSES == 0 {
                for (site, room) in sites.iter_mut().zip(room) {
                    let va = site.last.wrapping_add(site.stride);
                    moved = site.stride;
                    site.last = va;
                    let mut frame = Access::NO_FRAME;
                    if let Some(frames) = frames {
                        let different;
                        (frame, different) = frames.look(va >> 12);
                        unknown |= different;
                    }
                    *room = Access::of(site.sort, va, frame);
                }
            } else {
                match said.go(sites, moved, frames, room) {
                    Ok((now, different)) => {
                        moved = now;
                        unknown |= different;
                    }
                    Err(error) => {
                        // What it would have accessed is not known.
                        made -= fetches + len;
                        done -= 1;
                        instructions -= u64::from(state.instructions);
                        result = Err(error);
                        break;
                    }
                }
            }
        }
        if let Some(frames) = frames
            && unknown != 0
        {
            let data = |a: &Access| a.kind() != Kind::Fetch && frames.of(a.va >> 12).is_none();
            let all = made;
            made = basket[..all].iter().position(data).unwrap_or(0);
            instructions -=
                basket[made..all].iter().map(|a| instructions_of(states, *epoch, a)).sum::<u64>();
            result = Err(Short);
        }
        (self.before, self.current, self.moved) = (before, current, moved);
        (Followed { codes: done, instructions }, made, result)
    }
}

/// The instructions of the block whose fetch an access is, with its frame; of a data access none.
#[cold]
fn instructions_of(states: &[State], epoch: u32, access: &Access) -> u64 {
    let is_fetch = |state: &&State| {
        state.epoch == epoch
            && (state.gpa >> 12) as u32 == access.frame
            && state.gpa & 0xfff == access.va & 0xfff
            && state.fetch.len() == access.len()
    };
    match access.kind() {
        Kind::Fetch => {
            states.iter().find(is_fetch).map_or(0, |state| u64::from(state.instructions))
        }
        _ => 0,
    }
}

impl State {
    /// Notes as whose its accesses are.
    #[cold]
    fn sign(&mut self, sites: &mut [Site], template: Access) {
        self.fetch = template.fetch(self.bytes);
        for site in &mut sites[self.first as usize..][..usize::from(self.len)] {
            site.sort = template.data(site.shape);
        }
    }
}

/// The number of the block that `told` says, 0 if it says none, and what comes after; `by_last` is the one
/// that followed the last time.
#[inline(never)]
fn successor(mut told: Bytes<'_>, by_last: u32) -> (u32, Bytes<'_>) {
    let number = match told.varint() {
        Ok(0) => by_last,
        Ok(number) => u32::try_from(number).unwrap_or(0),
        Err(Short) => 0,
    };
    (number, told)
}

impl Said<'_> {
    /// Goes to the next address of each site; returns how far the last moved, and 0 if the frames of all are
    /// known.
    #[inline(never)]
    fn go(
        &mut self,
        sites: &mut [Site],
        mut moved: u64,
        frames: Option<&Frames>,
        made: &mut [Access],
    ) -> Result<(u64, u64), Short> {
        let lengths = self.lengths.take(sites.len())?;
        let mut differences = self.differences;
        let mut unknown = 0;
        for ((site, &length), made) in sites.iter_mut().zip(lengths).zip(made) {
            site.go(length, &mut differences, &mut moved)?;
            let mut frame = Access::NO_FRAME;
            if let Some(frames) = frames {
                let different;
                (frame, different) = frames.look(site.last >> 12);
                unknown |= different;
            }
            *made = Access::of(site.sort, site.last, frame);
        }
        self.differences = differences;
        Ok((moved, unknown))
    }
}
