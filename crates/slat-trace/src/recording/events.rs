//! Events as bytes. Their vCPU comes from the stream that refers to them; with several vCPUs each
//! event also names it, so that the events alone give the state at any block of the file.

use super::bytes::{Bytes, Short, put_difference, put_varint};
use crate::event::{Control, Event, Exception, Invalidation, Root};

mod tag {
    pub(super) const ROOT: u8 = 0;
    pub(super) const CONTROL: u8 = 1;
    pub(super) const TABLE_PAGE: u8 = 2;
    pub(super) const TABLE_STORE: u8 = 3;
    pub(super) const TABLE_RELEASE: u8 = 4;
    pub(super) const INVLPG: u8 = 5;
    pub(super) const INVPCID: u8 = 6;
    pub(super) const TLBI: u8 = 7;
    pub(super) const EXCEPTION: u8 = 8;
    pub(super) const EXCEPTION_RETURN: u8 = 9;
    pub(super) const USER_MODE: u8 = 10;
    pub(super) const KERNEL_MODE: u8 = 11;
    pub(super) const IO: u8 = 12;
    pub(super) const MSR: u8 = 13;
}

/// The most entries that one table page can have.
const ENTRIES: u64 = 512;

/// What the numbers of an event are written against: those of the event before of its sort.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventState {
    entry: u64,
    value: u64,
    page: u64,
    fault: u64,
    stack: u64,
    frame: [u64; 6],
    io: u64,
}

fn put_entry(out: &mut Vec<u8>, state: &mut EventState, value: u64) {
    // Neighbouring entries share their flags and often follow each other in the page number.
    out.extend_from_slice(&value.wrapping_sub(state.value).to_le_bytes());
    state.value = value;
}

fn get_entry(bytes: &mut Bytes<'_>, state: &mut EventState) -> Result<u64, Short> {
    state.value = state.value.wrapping_add(bytes.u64()?);
    Ok(state.value)
}

/// Appends an event; the entries of a table page are given with it as (index, entry).
///
/// [`Event::TableEntry`] is written with its page only, and not on its own.
pub(crate) fn put_event(
    out: &mut Vec<u8>,
    state: &mut EventState,
    event: &Event,
    entries: &[(u16, u64)],
) {
    match *event {
        Event::Root { root, value } => {
            out.extend_from_slice(&[tag::ROOT, root as u8]);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Event::Control { register, value } => {
            out.extend_from_slice(&[tag::CONTROL, register as u8]);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Event::TablePage { gpa, level, fresh } => {
            out.extend_from_slice(&[tag::TABLE_PAGE, level << 1 | u8::from(fresh)]);
            put_difference(out, gpa >> 12, state.page);
            state.page = gpa >> 12;
            put_varint(out, entries.len() as u64);
            let mut next = 0;
            for &(index, value) in entries {
                put_varint(out, u64::from(index.wrapping_sub(next)));
                put_entry(out, state, value);
                next = index.wrapping_add(1);
            }
        }
        Event::TableEntry { .. } => unreachable!("entries are written with their page"),
        Event::TableStore { gpa, value } => {
            out.push(tag::TABLE_STORE);
            put_difference(out, gpa >> 3, state.entry);
            state.entry = gpa >> 3;
            put_entry(out, state, value);
        }
        Event::TableRelease { gpa } => {
            out.push(tag::TABLE_RELEASE);
            put_difference(out, gpa >> 12, state.page);
            state.page = gpa >> 12;
        }
        Event::Invalidate(Invalidation::Invlpg { va }) => {
            out.push(tag::INVLPG);
            put_difference(out, va, state.fault);
            state.fault = va;
        }
        Event::Invalidate(Invalidation::Invpcid { kind, pcid, va }) => {
            out.push(tag::INVPCID);
            [kind, pcid, va].iter().for_each(|&word| put_varint(out, word));
        }
        Event::Invalidate(Invalidation::Tlbi { operation, operand }) => {
            out.push(tag::TLBI);
            put_varint(out, operation.into());
            put_varint(out, operand);
        }
        Event::Exception(exception) => {
            out.extend_from_slice(&[tag::EXCEPTION, exception.vector]);
            put_difference(out, exception.fault_va, state.fault);
            put_difference(out, exception.stack_or_syndrome, state.stack);
            for (&word, &last) in exception.frame.iter().zip(&state.frame) {
                put_difference(out, word, last);
            }
            state.fault = exception.fault_va;
            state.stack = exception.stack_or_syndrome;
            state.frame = exception.frame;
        }
        Event::ExceptionReturn => out.push(tag::EXCEPTION_RETURN),
        Event::Mode { user } => out.push(if user { tag::USER_MODE } else { tag::KERNEL_MODE }),
        Event::Io { va, gpa, len, store } => {
            out.extend_from_slice(&[tag::IO, len << 1 | u8::from(store)]);
            put_difference(out, va, state.io);
            put_varint(out, gpa);
            state.io = va;
        }
        Event::Msr { number, value } => {
            out.push(tag::MSR);
            put_varint(out, number.into());
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

/// Reads one event, and the entries of a table page as events after it, into `sink`.
pub(crate) fn get_event(
    bytes: &mut Bytes<'_>,
    state: &mut EventState,
    mut sink: impl FnMut(Event),
) -> Result<(), Short> {
    let event = match bytes.byte()? {
        tag::ROOT => {
            let root = match bytes.byte()? {
                0 => Root::Cr3,
                1 => Root::Ttbr0,
                2 => Root::Ttbr1,
                _ => return Err(Short),
            };
            Event::Root { root, value: bytes.u64()? }
        }
        tag::CONTROL => {
            let register = match bytes.byte()? {
                0 => Control::Cr0,
                1 => Control::Cr4,
                2 => Control::Efer,
                3 => Control::Tcr,
                4 => Control::Sctlr,
                5 => Control::Mair,
                _ => return Err(Short),
            };
            Event::Control { register, value: bytes.u64()? }
        }
        tag::TABLE_PAGE => {
            let flags = bytes.byte()?;
            let page = bytes.difference(state.page)? & u64::MAX >> 12;
            state.page = page;
            let count = bytes.varint()?;
            if count > ENTRIES {
                return Err(Short);
            }
            let gpa = page << 12;
            sink(Event::TablePage { gpa, level: flags >> 1, fresh: flags & 1 != 0 });
            let mut next = 0;
            for _ in 0..count {
                let index = bytes.varint()?.checked_add(next).filter(|&i| i < ENTRIES);
                let index = index.ok_or(Short)?;
                let value = get_entry(bytes, state)?;
                sink(Event::TableEntry { gpa: gpa | index << 3, value });
                next = index + 1;
            }
            return Ok(());
        }
        tag::TABLE_STORE => {
            state.entry = bytes.difference(state.entry)? & u64::MAX >> 3;
            Event::TableStore { gpa: state.entry << 3, value: get_entry(bytes, state)? }
        }
        tag::TABLE_RELEASE => {
            state.page = bytes.difference(state.page)? & u64::MAX >> 12;
            Event::TableRelease { gpa: state.page << 12 }
        }
        tag::INVLPG => {
            state.fault = bytes.difference(state.fault)?;
            Event::Invalidate(Invalidation::Invlpg { va: state.fault })
        }
        tag::INVPCID => Event::Invalidate(Invalidation::Invpcid {
            kind: bytes.varint()?,
            pcid: bytes.varint()?,
            va: bytes.varint()?,
        }),
        tag::TLBI => Event::Invalidate(Invalidation::Tlbi {
            operation: bytes.varint()?.try_into().map_err(|_| Short)?,
            operand: bytes.varint()?,
        }),
        tag::EXCEPTION => {
            let vector = bytes.byte()?;
            state.fault = bytes.difference(state.fault)?;
            state.stack = bytes.difference(state.stack)?;
            for word in &mut state.frame {
                *word = bytes.difference(*word)?;
            }
            Event::Exception(Exception {
                vector,
                fault_va: state.fault,
                stack_or_syndrome: state.stack,
                frame: state.frame,
            })
        }
        tag::EXCEPTION_RETURN => Event::ExceptionReturn,
        tag::USER_MODE => Event::Mode { user: true },
        tag::KERNEL_MODE => Event::Mode { user: false },
        tag::IO => {
            let flags = bytes.byte()?;
            state.io = bytes.difference(state.io)?;
            let gpa = bytes.varint()?;
            Event::Io { va: state.io, gpa, len: flags >> 1, store: flags & 1 != 0 }
        }
        tag::MSR => Event::Msr {
            number: bytes.varint()?.try_into().map_err(|_| Short)?,
            value: bytes.u64()?,
        },
        _ => return Err(Short),
    };
    sink(event);
    Ok(())
}

/// Whether an event is part of the state that a reader needs to begin in the middle.
pub(crate) fn is_state(event: &Event) -> bool {
    matches!(
        event,
        Event::Root { .. }
            | Event::Control { .. }
            | Event::TablePage { .. }
            | Event::TableEntry { .. }
            | Event::TableStore { .. }
            | Event::TableRelease { .. }
            | Event::Mode { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_reads_back() {
        let all = [
            Event::Root { root: Root::Cr3, value: 0x1234_5000 },
            Event::Root { root: Root::Ttbr1, value: 1 << 48 | 0x8000 },
            Event::Control { register: Control::Mair, value: u64::MAX },
            Event::TablePage { gpa: 0x7000, level: 3, fresh: true },
            Event::TableStore { gpa: 0x7ff8, value: 0x8000_0000_0000_0067 },
            Event::TableRelease { gpa: 0x7000 },
            Event::Invalidate(Invalidation::Invlpg { va: 0xffff_8000_0000_0000 }),
            Event::Invalidate(Invalidation::Invpcid { kind: 2, pcid: 7, va: 9 }),
            Event::Invalidate(Invalidation::Tlbi { operation: 0x3ff, operand: 1 << 63 }),
            Event::Exception(Exception {
                vector: 14,
                fault_va: 0xdead_beef,
                stack_or_syndrome: 0xffff_fe00_0000_1fd0,
                frame: [4, 0x40_1000, 0x33, 0x246, 0x7fff_0000, 0x2b],
            }),
            Event::ExceptionReturn,
            Event::Mode { user: true },
            Event::Mode { user: false },
            Event::Io { va: 0xffff_c900_0000_0000, gpa: 0xfee0_0000, len: 4, store: true },
            Event::Msr { number: 0xc000_0100, value: 5 },
        ];
        let entries = [(0, 0x67), (5, 0x1067), (511, u64::MAX)];
        let (mut out, mut state) = (Vec::new(), EventState::default());
        for _ in 0..2 {
            for event in &all {
                let entries: &[_] =
                    if matches!(event, Event::TablePage { .. }) { &entries } else { &[] };
                put_event(&mut out, &mut state, event, entries);
            }
        }
        let (mut bytes, mut state, mut got) = (Bytes::new(&out), EventState::default(), vec![]);
        while !bytes.is_empty() {
            get_event(&mut bytes, &mut state, |event| got.push(event)).unwrap();
        }
        let entry = |&(index, value): &(u16, u64)| Event::TableEntry {
            gpa: 0x7000 | u64::from(index) << 3,
            value,
        };
        let mut expected = Vec::new();
        for event in all.iter().chain(&all) {
            expected.push(*event);
            if matches!(event, Event::TablePage { .. }) {
                expected.extend(entries.iter().map(entry));
            }
        }
        assert_eq!(got, expected);
    }

    #[test]
    fn nonsense_is_refused() {
        let bad: [&[u8]; 5] = [&[99], &[0, 3], &[2, 0, 0, 0x81, 0x04], &[7, 0xff, 0xff, 4, 0], &[]];
        for bytes in bad {
            let got = get_event(&mut Bytes::new(bytes), &mut EventState::default(), |_| ());
            assert_eq!(got, Err(Short), "{bytes:?}");
        }
        // Two entries, the second past the end of its page.
        let mut page = vec![2, 0, 0, 2, 0xff, 0x03];
        page.extend([0; 8]);
        page.push(0);
        page.extend([0; 8]);
        assert!(
            get_event(&mut Bytes::new(&page), &mut EventState::default(), |_| ()).is_err(),
            "index 512"
        );
    }
}
