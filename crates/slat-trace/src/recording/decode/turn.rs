//! The inner loop of reading: the codes of one vCPU while it has its turn.
//!
//! Nearly all of a recording passes through here: blocks of instructions with a few accesses each. What
//! no processor can foresee is chosen without a branch.

use super::super::bytes::{Bytes, unzigzag};
use super::super::events::get_event;
use super::super::layout::MAX_SHAPE;
use super::super::model::{Definition, Frames, Model, Page, code, length};
use super::{Decoder, Inconsistent, Stream};
use crate::event::{Access, At, Batch, Event, Kind};

impl Decoder {
    /// Reads codes of the vCPU whose turn it is, until its turn ends or `batch` has `enough`.
    pub(super) fn read_turn<const WITH_FRAMES: bool>(
        &mut self,
        definitions: &[Definition],
        batch: &mut Batch,
        enough: usize,
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
        let mut lengths = rest(3);
        let mut differences = rest(4);
        let mut pages = rest(5);
        let mut frames = rest(6);
        let mut events = Bytes::new(&self.events[self.events_read..]);
        let out = &mut batch.accesses;
        let start = out.len();
        let mut template = Access::new(Kind::Load, 0, 0).on(vcpu).with_user(*user);
        let mut done = 0;
        let mut instructions = 0;
        // One block of instructions may go beyond what is enough.
        out.reserve(enough + MAX_SHAPE + 1 - start.min(enough));

        for &flags in codes {
            if out.len() >= enough {
                break;
            }
            done += 1;
            if flags & code::EVENTS != 0 {
                for _ in 0..flags & !code::EVENTS {
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
                if batch.events.len() >= enough {
                    break;
                }
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

            let mut moved = model.moved;
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
            let sites =
                if flags & code::SHAPE != 0 { model.sites() } else { model.sites_of(block) };
            let count = count.min(sites.len());
            let sites = &mut sites[..count];
            if flags & code::ADDRESSES == 0 {
                for site in sites {
                    site.last = site.last.wrapping_add(site.stride);
                    moved = site.stride;
                    out.push(template.data(site.last, site.shape));
                }
            } else {
                for (site, &length) in sites.iter_mut().zip(lengths.take(count)?) {
                    let Length { bytes, how } = LENGTHS[usize::from(length & 15)];
                    if length > length::ALONG {
                        return Err(Inconsistent);
                    }
                    let coded = differences.partial(usize::from(bytes))?;
                    // Which it is cannot be foreseen: all are made, and one is picked.
                    let ways = [site.stride, moved, unzigzag(coded), coded.wrapping_sub(site.last)];
                    moved = ways[usize::from(how & 3)];
                    site.last = site.last.wrapping_add(moved);
                    site.stride = moved;
                    out.push(template.data(site.last, site.shape));
                }
            }
            model.moved = moved;
            if WITH_FRAMES {
                read_frames(flags & code::FRAMES != 0, &mut frames, model, &mut out[first..])?;
            }
        }

        batch.instructions += instructions;
        let made = (out.len() - start) as u64;
        self.expected = self.expected.checked_sub(made).ok_or(Inconsistent)?;
        let left = [
            codes.len() - done,
            successors.remaining(),
            shapes.remaining(),
            lengths.remaining(),
            differences.remaining(),
            pages.remaining(),
            frames.remaining(),
        ];
        read[0] += done;
        for index in 1..read.len() {
            read[index] = sections[index].len() - left[index];
        }
        self.events_read = self.events.len() - events.remaining();
        self.left -= done;
        Ok(())
    }
}

/// What a byte of the lengths says: how many bytes there are in the differences, and which of the four
/// ways it is: the stride, along, a difference, the whole address.
#[derive(Clone, Copy)]
struct Length {
    bytes: u8,
    how: u8,
}

const LENGTHS: [Length; 16] = {
    let mut all = [Length { bytes: 0, how: 0 }; 16];
    let mut bytes = 1;
    while bytes <= length::LONGEST {
        all[bytes as usize] = Length { bytes, how: 2 };
        bytes += 1;
    }
    all[length::WHOLE as usize] = Length { bytes: 8, how: 3 };
    all[length::ALONG as usize] = Length { bytes: 0, how: 1 };
    all
};

/// Fills in the physical pages of a block's data accesses; `listed` says whether some are in the
/// stream.
#[inline(always)]
fn read_frames(
    listed: bool,
    frames: &mut Bytes<'_>,
    model: &mut Model,
    made: &mut [Access],
) -> Result<(), Inconsistent> {
    let (known, last) = model.frames();
    let mut from = 0;
    if listed {
        loop {
            let skip = usize::try_from(frames.varint()?).map_err(|_| Inconsistent)?;
            if skip == 0 {
                break;
            }
            let at = from + (skip - 1).min(MAX_SHAPE);
            let page = made.get(at).ok_or(Inconsistent)?.va >> 12;
            fill_frames(known, &mut made[from..at])?;
            let guess = last.to.wrapping_add(page).wrapping_sub(last.from);
            *last = Page { from: page, to: frames.difference(guess)? };
            *known.of(page) = *last;
            made[at].frame = last.to as u32;
            from = at + 1;
        }
    }
    fill_frames(known, &mut made[from..])
}

#[inline(always)]
fn fill_frames(known: &mut Frames, accesses: &mut [Access]) -> Result<(), Inconsistent> {
    for access in accesses {
        let page = *known.of(access.va >> 12);
        if page.from != access.va >> 12 {
            return Err(Inconsistent);
        }
        access.frame = page.to as u32;
    }
    Ok(())
}
