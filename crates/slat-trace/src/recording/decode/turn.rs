//! The inner loop of reading: the codes of one vCPU while it has its turn.
//!
//! Nearly all of a recording passes through here: blocks of instructions with a few accesses each. What
//! no processor can foresee is chosen without a branch.

use super::super::bytes::{Bytes, unzigzag};
use super::super::events::get_event;
use super::super::layout::MAX_SHAPE;
use super::super::model::{Code, Definition, Frames, Model, Page, Site, code, length};
use super::{Decoder, Inconsistent, Stream};
use crate::event::{Access, At, Batch, Event, Kind};

impl Decoder {
    /// Reads codes of the vCPU whose turn it is, until its turn ends or `batch` has `enough` accesses
    /// or `most_events` events.
    pub(super) fn read_turn<const WITH_FRAMES: bool>(
        &mut self,
        definitions: &[Definition],
        batch: &mut Batch,
        enough: usize,
        most_events: usize,
    ) -> Result<(), Inconsistent> {
        let vcpu = self.turn;
        let several = self.models.len() > 1;
        let model = &mut self.models[usize::from(vcpu)];
        let user = &mut self.users[usize::from(vcpu)];
        let Stream { sections, read } = &mut self.streams[usize::from(vcpu)];
        let codes = &sections[0][read[0]..][..self.left];
        let rest = |index: usize| Bytes::new(&sections[index][read[index]..]);
        let mut successors = rest(1);
        let mut shapes = rest(2);
        let mut data = Data { lengths: rest(3), differences: rest(4), frames: rest(6) };
        let mut pages = rest(5);
        let mut events = Bytes::new(&self.events[self.events_read..]);
        let out = &mut batch.accesses;
        let start = out.len();
        let mut template = Access::new(Kind::Load, 0, 0).on(vcpu).with_user(*user);
        let mut done = 0;
        let mut instructions = 0;
        // One block of instructions may go beyond what is enough.
        out.reserve(enough + MAX_SHAPE + 1 - start.min(enough));

        let mut pending = self.pending;
        loop {
            if pending != 0 {
                while pending != 0 && batch.events.len() < most_events {
                    pending -= 1;
                    if several && events.byte()? != vcpu {
                        return Err(Inconsistent);
                    }
                    let before = out.len() as u32;
                    get_event(&mut events, &mut self.event_state, |event| {
                        if let Event::Mode { user: now } = event {
                            *user = now;
                            template = template.with_user(now);
                        }
                        batch.events.push(At { before, vcpu, event });
                    })?;
                }
                if batch.events.len() >= most_events {
                    break;
                }
            }
            if out.len() >= enough {
                break;
            }
            let Some(&flags) = codes.get(done) else { break };
            done += 1;
            if flags & code::EVENTS != 0 {
                pending = flags & !code::EVENTS;
                continue;
            }

            let mut number = model.by_history();
            if flags & code::SUCCESSOR != 0 {
                number = match successors.varint()? {
                    0 => model.by_last(),
                    number => u32::try_from(number).map_err(|_| Inconsistent)?,
                };
            }
            let id = number.wrapping_sub(1);
            if id as usize >= definitions.len() {
                return Err(Inconsistent);
            }
            let block = model.enter(id, definitions)?;

            let frame = block.gpa >> 12;
            if flags & code::PAGE != 0 {
                let page = pages.difference(model.last_page)?;
                model.last_page = page;
                *model.page(frame) = Page { from: frame, to: page };
            }
            // A continuation has no fetch.
            if block.bytes != 0 {
                let va = model.page(frame).to << 12 | block.gpa & 0xfff;
                instructions += u64::from(block.instructions);
                let frame = if WITH_FRAMES { frame as u32 } else { Access::NO_FRAME };
                out.push(template.fetch(va, block.bytes, frame));
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
            let sites =
                if flags & code::SHAPE != 0 { model.sites() } else { model.sites_of(block) };
            let count = count.min(sites.len());
            let mut read = data.read(flags, &mut sites[..count], &mut moved, template, out);
            model.moved = moved;
            if WITH_FRAMES {
                let listed = flags & code::FRAMES != 0;
                read = read.and_then(|()| data.read_frames(listed, model, &mut out[first..]));
                if read.is_err() {
                    // What is left is right as far as it goes, frames included.
                    out.truncate(first);
                }
            }
            read?;

            if block.bytes != 0
                && block.accesses() == 1
                && flags & code::SHAPE == 0
                && model.repeats()
            {
                let room = enough.saturating_sub(out.len()).div_ceil(2);
                let codes = &codes[done..][..room.min(codes.len() - done)];
                let fetch = out[first - 1];
                let (times, after) =
                    data.repeat::<WITH_FRAMES>(codes, fetch, (block, model), out)?;
                data = after;
                done += times;
                instructions += u64::from(block.instructions) * times as u64;
            }
        }

        batch.instructions += instructions;
        let made = (out.len() - start) as u64;
        self.expected = self.expected.checked_sub(made).ok_or(Inconsistent)?;
        let left = [
            codes.len() - done,
            successors.remaining(),
            shapes.remaining(),
            data.lengths.remaining(),
            data.differences.remaining(),
            pages.remaining(),
            data.frames.remaining(),
        ];
        read[0] += done;
        for index in 1..read.len() {
            read[index] = sections[index].len() - left[index];
        }
        self.events_read = self.events.len() - events.remaining();
        (self.left, self.pending) = (self.left - done, pending);
        Ok(())
    }
}

/// The streams that data accesses come from.
#[derive(Clone, Copy)]
struct Data<'a> {
    lengths: Bytes<'a>,
    differences: Bytes<'a>,
    frames: Bytes<'a>,
}

impl Data<'_> {
    /// Reads a loop of one block with a fetch and one data access, the commonest: while nothing but the
    /// address is said, nothing else of the model changes. Returns how often the block was executed, and
    /// the streams after it. Apart and by value, so that the little that it needs is in registers. Where
    /// the streams are inconsistent, `out` has what comes before, with frames.
    #[inline(never)]
    fn repeat<const WITH_FRAMES: bool>(
        mut self,
        codes: &[u8],
        fetch: Access,
        (block, model): (Code, &mut Model),
        out: &mut Vec<Access>,
    ) -> Result<(usize, Self), Inconsistent> {
        let mut moved = model.moved;
        let Some(mut site) = model.sites_of(block).first().copied() else { return Ok((0, self)) };
        let data = fetch.data(0, site.shape);
        let first = out.len();
        let mut times = 0;
        let mut read = Ok(());
        for &flags in codes {
            if flags & !(code::ADDRESSES | code::FRAMES) != 0 {
                break;
            }
            let predicted = flags & code::ADDRESSES == 0;
            let length = if predicted { Ok(length::PREDICTED) } else { self.lengths.byte() };
            read = length
                .map_err(Inconsistent::from)
                .and_then(|length| site.go(length, &mut self.differences, &mut moved));
            if read.is_err() {
                break;
            }
            times += 1;
            out.extend_from_slice(&[fetch, data.at(site.last)]);
        }
        if WITH_FRAMES {
            // Behind all addresses, so that the look at one page need not wait for that at another.
            for (flags, data) in codes[..times].iter().zip((first + 1..).step_by(2)) {
                let listed = flags & code::FRAMES != 0;
                if let Err(error) = self.read_frames(listed, model, &mut out[data..=data]) {
                    out.truncate(data);
                    return Err(error);
                }
            }
        }
        read?;
        model.moved = moved;
        model.sites_of(block)[0] = site;
        Ok((times, self))
    }

    /// Appends an access for each site; `template` has the vCPU and the privilege of all.
    #[inline(always)]
    fn read(
        &mut self,
        flags: u8,
        sites: &mut [Site],
        moved: &mut u64,
        template: Access,
        out: &mut Vec<Access>,
    ) -> Result<(), Inconsistent> {
        if flags & code::ADDRESSES == 0 {
            for site in sites {
                site.last = site.last.wrapping_add(site.stride);
                *moved = site.stride;
                out.push(template.data(site.last, site.shape));
            }
            return Ok(());
        }
        let lengths = self.lengths.take(sites.len())?;
        for (site, &length) in sites.iter_mut().zip(lengths) {
            site.go(length, &mut self.differences, moved)?;
            out.push(template.data(site.last, site.shape));
        }
        Ok(())
    }

    /// Fills in the physical pages of a block's data accesses; `listed` says whether some are in the
    /// stream.
    #[inline(always)]
    fn read_frames(
        &mut self,
        listed: bool,
        model: &mut Model,
        made: &mut [Access],
    ) -> Result<(), Inconsistent> {
        let (known, last) = model.frames();
        let mut from = 0;
        if listed {
            loop {
                let skip = usize::try_from(self.frames.varint()?).map_err(|_| Inconsistent)?;
                if skip == 0 {
                    break;
                }
                let at = from + (skip - 1).min(MAX_SHAPE);
                let page = made.get(at).ok_or(Inconsistent)?.va >> 12;
                fill_frames(known, &mut made[from..at])?;
                let guess = last.to.wrapping_add(page).wrapping_sub(last.from);
                *last = Page { from: page, to: self.frames.difference(guess)? };
                known.set(*last);
                made[at].frame = last.to as u32;
                from = at + 1;
            }
        }
        fill_frames(known, &mut made[from..])
    }
}

impl Site {
    /// Goes to the next address, which `length` says how to find.
    #[inline(always)]
    fn go(
        &mut self,
        length: u8,
        differences: &mut Bytes<'_>,
        moved: &mut u64,
    ) -> Result<(), Inconsistent> {
        let Length { bytes, how, mask, keep } = LENGTHS[usize::from(length & 15)];
        if length > length::ALONG {
            return Err(Inconsistent);
        }
        let coded = differences.partial(usize::from(bytes), mask)?;
        // Which it is cannot be foreseen: all are made, and one is picked. What is picked from does not
        // wait for the address before.
        let ways = [self.stride, *moved, unzigzag(coded), coded];
        let va = (self.last & keep).wrapping_add(ways[usize::from(how & 3)]);
        *moved = va.wrapping_sub(self.last);
        (self.last, self.stride) = (va, *moved);
        Ok(())
    }
}

/// What a byte of the lengths says: how many bytes there are in the differences and a mask of them, which
/// of the four ways it is (the stride, along, a difference, the whole address), and a mask for the last
/// address.
#[derive(Clone, Copy)]
struct Length {
    bytes: u8,
    how: u8,
    mask: u64,
    keep: u64,
}

const LENGTHS: [Length; 16] = {
    let mut all = [Length { bytes: 0, how: 0, mask: 0, keep: u64::MAX }; 16];
    let mut bytes = 1;
    while bytes <= length::LONGEST {
        let mask = (1 << (8 * bytes)) - 1;
        all[bytes as usize] = Length { bytes, how: 2, mask, keep: u64::MAX };
        bytes += 1;
    }
    all[length::WHOLE as usize] = Length { bytes: 8, how: 3, mask: u64::MAX, keep: 0 };
    all[length::ALONG as usize] = Length { bytes: 0, how: 1, mask: 0, keep: u64::MAX };
    all
};

#[inline(always)]
fn fill_frames(known: &Frames, accesses: &mut [Access]) -> Result<(), Inconsistent> {
    for access in accesses {
        access.frame = known.of(access.va >> 12).ok_or(Inconsistent)? as u32;
    }
    Ok(())
}
