//! The inner loop of reading: the codes of one vCPU while it has its turn.
//!
//! Nearly all of a recording passes through [`Model::follow`]; here is what it leaves over.

use super::super::bytes::Bytes;
use super::super::events::{EventState, get_event};
use super::super::layout::MAX_SHAPE;
use super::super::model::{Basket, Code, Definition, Model, Page, Said, code, length};
use super::frames::FrameStream;
use super::{Decoder, Inconsistent, Stream};
use crate::event::{Access, At, Batch, Event, Kind};

/// So many physical pages are looked up at once where accesses are scattered.
const AT_ONCE: usize = 64;

/// How much is to be read.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Accesses in the batch.
    pub(super) accesses: usize,
    /// Events in the batch.
    pub(super) events: usize,
}

/// What one vCPU does while it has its turn.
struct Turn<'a> {
    vcpu: u8,
    /// Whether events name their vCPU.
    several: bool,
    definitions: &'a [Definition],
    model: &'a mut Model,
    basket: &'a mut Basket,
    event_state: &'a mut EventState,
    user: &'a mut bool,
    codes: &'a [u8],
    done: usize,
    /// Events that are left of the code before.
    pending: u8,
    instructions: u64,
    said: Said<'a>,
    shapes: Bytes<'a>,
    pages: Bytes<'a>,
    frames: FrameStream<'a>,
    events: Bytes<'a>,
}

impl Decoder {
    /// Reads codes of the vCPU whose turn it is, until its turn ends or `batch` has as much as the limits
    /// say. Where the streams are inconsistent, `batch` has what comes before, with frames.
    pub(super) fn read_turn<const WITH_FRAMES: bool>(
        &mut self,
        definitions: &[Definition],
        batch: &mut Batch,
        limits: Limits,
    ) -> Result<(), Inconsistent> {
        let vcpu = self.turn;
        let several = self.models.len() > 1;
        let Stream { sections, read } = &mut self.streams[usize::from(vcpu)];
        let rest = |index: usize| Bytes::new(&sections[index][read[index]..]);
        let start = batch.accesses.len();
        // One block of instructions may go beyond what is enough.
        batch.accesses.reserve(limits.accesses + MAX_SHAPE + 1 - start.min(limits.accesses));
        let mut turn = Turn {
            vcpu,
            several,
            definitions,
            model: &mut self.models[usize::from(vcpu)],
            basket: &mut self.basket,
            event_state: &mut self.event_state,
            user: &mut self.users[usize::from(vcpu)],
            codes: &sections[0][read[0]..][..self.left],
            done: 0,
            pending: self.pending,
            instructions: 0,
            said: Said { successors: rest(1), lengths: rest(3), differences: rest(4) },
            shapes: rest(2),
            pages: rest(5),
            frames: FrameStream(rest(6)),
            events: Bytes::new(&self.events[self.events_read..]),
        };
        let ended = turn.read::<WITH_FRAMES>(batch, limits);
        // What came before damage is whole: its accesses and their instructions.
        batch.instructions += turn.instructions;
        ended?;
        let made = (batch.accesses.len() - start) as u64;
        self.expected = self.expected.checked_sub(made).ok_or(Inconsistent)?;
        let left = [
            turn.codes.len() - turn.done,
            turn.said.successors.remaining(),
            turn.shapes.remaining(),
            turn.said.lengths.remaining(),
            turn.said.differences.remaining(),
            turn.pages.remaining(),
            turn.frames.0.remaining(),
        ];
        self.events_read = self.events.len() - turn.events.remaining();
        (self.left, self.pending) = (left[0], turn.pending);
        read[0] += turn.done;
        for index in 1..read.len() {
            read[index] = sections[index].len() - left[index];
        }
        Ok(())
    }
}

impl Turn<'_> {
    fn read<const WITH_FRAMES: bool>(
        &mut self,
        batch: &mut Batch,
        limits: Limits,
    ) -> Result<(), Inconsistent> {
        loop {
            if self.pending != 0 {
                self.read_events(batch, limits.events)?;
                if batch.events.len() >= limits.events {
                    return Ok(());
                }
            }
            let out = &mut batch.accesses;
            let template = Access::new(Kind::Load, 0, 0).on(self.vcpu).with_user(*self.user);
            let codes = &self.codes[self.done..];
            let (followed, read) = self.model.follow::<WITH_FRAMES>(
                codes,
                &mut self.said,
                template,
                (self.basket, out),
                limits.accesses,
            );
            self.done += followed.codes;
            self.instructions += followed.instructions;
            read?;
            if out.len() >= limits.accesses {
                return Ok(());
            }
            let Some(&flags) = self.codes.get(self.done) else { return Ok(()) };
            self.done += 1;
            if flags & code::EVENTS != 0 {
                self.pending = flags & !code::EVENTS;
            } else {
                let block = self.read_block::<WITH_FRAMES>(flags, template, out)?;
                let steady = block.bytes != 0 && block.accesses() == 1 && flags & code::SHAPE == 0;
                if steady && self.model.repeats() {
                    self.repeat::<WITH_FRAMES>(block, out, limits.accesses)?;
                }
            }
        }
    }

    /// Reads pending events, until there are none or `batch` has `most`.
    fn read_events(&mut self, batch: &mut Batch, most: usize) -> Result<(), Inconsistent> {
        let before = batch.accesses.len() as u32;
        while self.pending != 0 && batch.events.len() < most {
            self.pending -= 1;
            let vcpu = self.vcpu;
            if self.several && self.events.byte()? != vcpu {
                return Err(Inconsistent);
            }
            get_event(&mut self.events, self.event_state, |event| {
                if let Event::Mode { user } = event {
                    *self.user = user;
                }
                batch.events.push(At { before, vcpu, event });
            })?;
        }
        Ok(())
    }

    /// Executes one block of instructions, of which anything may be said.
    fn read_block<const WITH_FRAMES: bool>(
        &mut self,
        flags: u8,
        template: Access,
        out: &mut Vec<Access>,
    ) -> Result<Code, Inconsistent> {
        let Self { model, said, shapes, .. } = self;
        let mut number = model.by_history();
        if flags & code::SUCCESSOR != 0 {
            number = match said.successors.varint()? {
                0 => model.by_last(),
                number => u32::try_from(number).map_err(|_| Inconsistent)?,
            };
        }
        let id = number.wrapping_sub(1);
        if id as usize >= self.definitions.len() {
            return Err(Inconsistent);
        }
        let block = model.enter(id, self.definitions)?;

        let frame = block.gpa >> 12;
        if flags & code::PAGE != 0 {
            let page = self.pages.difference(model.last_page)?;
            model.last_page = page;
            *model.page(frame) = Page { from: frame, to: page };
        }
        // A continuation has no fetch.
        if block.bytes != 0 {
            let va = model.page(frame).to << 12 | block.gpa & 0xfff;
            self.instructions += u64::from(block.instructions);
            let frame = if WITH_FRAMES { frame as u32 } else { Access::NO_FRAME };
            out.push(Access::of(template.fetch(block.bytes), va, frame));
        }
        let first = out.len();

        let mut count = usize::MAX;
        if flags & code::SHAPE != 0 {
            let shape = shapes.varint()?;
            count = usize::try_from(shape >> 1).map_err(|_| Inconsistent)?;
            if count > MAX_SHAPE {
                return Err(Inconsistent);
            }
            if shape & 1 != 0 {
                model.reshape(shapes.take(count)?)?;
            }
        }
        let mut moved = model.moved;
        let sites = model.sites();
        let count = count.min(sites.len());
        let predicted = [length::PREDICTED; MAX_SHAPE];
        let lengths = match flags & code::ADDRESSES {
            0 => &predicted[..count],
            _ => said.lengths.take(count)?,
        };
        let mut read = Ok(());
        for (site, &length) in sites.iter_mut().zip(lengths) {
            read = site.go(length, &mut said.differences, &mut moved).map_err(Inconsistent::from);
            if read.is_err() {
                break;
            }
            out.push(Access::of(template.data(site.shape), site.last, Access::NO_FRAME));
        }
        model.moved = moved;
        if WITH_FRAMES {
            let listed = flags & code::FRAMES != 0;
            read = read.and_then(|()| self.frames.fill(listed, model, &mut out[first..]));
        }
        if read.is_err() {
            // What is left is right as far as it goes, frames included.
            out.truncate(first);
        }
        read?;
        Ok(block)
    }

    /// Executes a loop of one block with a fetch and one data access, the commonest: while nothing but
    /// the address is said, nothing else of the model changes. The last access of `out` is the block's.
    #[inline(never)]
    fn repeat<const WITH_FRAMES: bool>(
        &mut self,
        block: Code,
        out: &mut Vec<Access>,
        enough: usize,
    ) -> Result<(), Inconsistent> {
        let room = enough.saturating_sub(out.len()).div_ceil(2);
        let codes = &self.codes[self.done..];
        let codes = &codes[..room.min(codes.len())];
        let [.., fetch, _] = out[..] else { return Ok(()) };
        let (mut said, mut moved) = (self.said, self.model.moved);
        let Some(mut site) = self.model.sites_of(block).first().copied() else { return Ok(()) };
        let data = Access::of(fetch.data(site.shape), 0, Access::NO_FRAME);
        let first = out.len();
        let mut times = 0;
        let mut read = Ok(());
        for &flags in codes {
            if flags & !(code::ADDRESSES | code::FRAMES) != 0 {
                break;
            }
            let predicted = flags & code::ADDRESSES == 0;
            let length = if predicted { Ok(length::PREDICTED) } else { said.lengths.byte() };
            read = length.and_then(|length| site.go(length, &mut said.differences, &mut moved));
            if read.is_err() {
                break;
            }
            times += 1;
            out.extend_from_slice(&[fetch, data.at(site.last)]);
        }
        if WITH_FRAMES {
            // Behind all addresses, so that the look at one page need not wait for that at another; and before
            // some are filled in, with whatever the stream says of them, there is nothing but the looks.
            for some in (0..times).step_by(AT_ONCE) {
                let some = some..times.min(some + AT_ONCE);
                let at = |time: usize| first + 1 + 2 * time;
                let known = self.model.frames().0;
                let look = |looks, time| looks ^ known.touch(out[at(time)].va >> 12);
                std::hint::black_box(some.clone().fold(0, look));
                for time in some {
                    let (data, listed) = (at(time), codes[time] & code::FRAMES != 0);
                    if let Err(error) = self.frames.fill(listed, self.model, &mut out[data..=data])
                    {
                        out.truncate(data);
                        // Each of these has its fetch, the last one too.
                        let fetches = time as u64 + 1;
                        self.instructions += u64::from(block.instructions) * fetches;
                        return Err(error);
                    }
                }
            }
        }
        self.instructions += u64::from(block.instructions) * times as u64;
        read?;
        self.model.moved = moved;
        self.model.sites_of(block)[0] = site;
        self.said = said;
        self.done += times;
        Ok(())
    }
}
