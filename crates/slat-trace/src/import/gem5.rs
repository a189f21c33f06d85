//! gem5 packet traces: `gem5`, then protobuf messages, each behind its length.
//!
//! The first message is a `PacketHeader` {1 object id, 2 version, 3 tick frequency, 4 id strings}, all
//! others are `Packet` {1 tick, 2 command, 3 address, 4 size, 5 flags, 6 packet id, 7 pc}
//! (gem5's `src/proto/packet.proto`). Only the fields named in the code are looked at; a field whose
//! wire type is not the one of its definition ends the reading.

use super::error::{Cause, ImportError};
use super::input::{BUFFER, Input};
use super::{Reader, Reference, References};
use crate::Kind;

/// First bytes of the trace.
pub(crate) const MAGIC: [u8; 4] = *b"gem5";

/// Longest message taken: the header holds a name a requestor, a packet some 60 bytes.
const LONGEST: u64 = (BUFFER - 16) as u64;

/// `MemCmd::ReadReq` and `MemCmd::WriteReq`, the two commands whose numbers never changed.
const READ_REQ: u64 = 1;
const WRITE_REQ: u64 = 4;

/// `Request::INST_FETCH`.
const INST_FETCH: u64 = 0x100;

/// Reads the packets.
pub(crate) struct Gem5 {
    input: Input,
    header_read: bool,
    others: u64,
}

impl Gem5 {
    pub(crate) fn new(input: Input) -> Self {
        Gem5 { input, header_read: false, others: 0 }
    }

    /// Makes the next message whole in the buffer: its start and end in [`Input::data`]; none at the end.
    fn message(&mut self) -> Result<Option<(usize, usize)>, ImportError> {
        let (mut length, mut at) = (0u64, 0);
        loop {
            if !self.input.ensure(at + 1)? {
                if at == 0 {
                    return Ok(None);
                }
                let cause = Cause::Truncated("the length of a message is cut".into());
                return Err(self.input.error(0, cause));
            }
            let byte = self.input.data()[at];
            length |= u64::from(byte & 0x7f) << (7 * at);
            at += 1;
            if byte < 0x80 {
                break;
            }
            if at == 5 {
                let cause =
                    Cause::Malformed("the length of a message has more than 5 bytes".into());
                return Err(self.input.error(0, cause));
            }
        }
        if length > LONGEST {
            let what = format!(
                "a message of {length} bytes; none in a packet trace is longer than {LONGEST}"
            );
            return Err(self.input.error(0, Cause::Malformed(what)));
        }
        let end = at + length as usize;
        if !self.input.ensure(end)? {
            let left = self.input.data().len() - at;
            let what = format!("{left} of the {length} bytes of a message");
            return Err(self.input.error(0, Cause::Truncated(what)));
        }
        Ok(Some((at, end)))
    }

    fn header(&mut self) -> Result<(), ImportError> {
        if !self.input.ensure(MAGIC.len())? || self.input.data()[..MAGIC.len()] != MAGIC {
            return Err(self
                .input
                .error(0, Cause::Malformed("a gem5 trace begins with `gem5`".into())));
        }
        self.input.consume(MAGIC.len());
        let Some((start, end)) = self.message()? else {
            return Err(self
                .input
                .error(0, Cause::Truncated("the header message is missing".into())));
        };
        let mut tick_frequency = None;
        let scanned = scan(&self.input.data()[start..end], |field, value| match (field, value) {
            (3, Value::Number(n)) => {
                tick_frequency = Some(n);
                true
            }
            (1, Value::Number(_)) | (2 | 3, Value::Bytes) => false,
            _ => true,
        });
        let wrong = match scanned {
            Err(ahead) => Some(ahead),
            Ok(()) if tick_frequency.is_none() => Some(0),
            Ok(()) => None,
        };
        if let Some(ahead) = wrong {
            let what = "the first message is not the header of a packet trace".to_owned();
            return Err(self.input.error((start + ahead) as u64, Cause::Malformed(what)));
        }
        self.input.consume(end);
        Ok(())
    }
}

impl Reader for Gem5 {
    fn fill(&mut self, batch: &mut References) -> Result<bool, ImportError> {
        if !self.header_read {
            self.header()?;
            self.header_read = true;
        }
        while !batch.is_full() {
            let Some((start, end)) = self.message()? else { return Ok(false) };
            match packet(&self.input.data()[start..end]) {
                Err(ahead) => {
                    let what = "not a Packet message with tick, command, address and size; \
                         only packet traces are read, not instruction traces";
                    return Err(self
                        .input
                        .error((start + ahead) as u64, Cause::Malformed(what.into())));
                }
                Ok(Some(reference)) => batch.list.push(reference),
                Ok(None) => self.others += 1,
            }
            self.input.consume(end);
        }
        Ok(true)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes =
            vec!["gem5 packets carry the addresses of the port they were taken at, often physical: they are \
             taken as virtual"
                .to_owned()];
        if self.others > 0 {
            let others = self.others;
            notes.push(format!(
                "{others} packets that are neither ReadReq nor WriteReq were left out"
            ));
        }
        notes
    }
}

/// An access, or none for another command; `Err` is how far into the message the fault lies.
fn packet(message: &[u8]) -> Result<Option<Reference>, usize> {
    let (mut tick, mut command, mut address, mut size, mut flags) = (None, None, None, None, 0);
    scan(message, |field, value| match (field, value) {
        (1, Value::Number(n)) => tick.replace(n).is_none(),
        (2, Value::Number(n)) => command.replace(n).is_none(),
        (3, Value::Number(n)) => address.replace(n).is_none(),
        (4, Value::Number(n)) => size.replace(n).is_none(),
        (5, Value::Number(n)) => {
            flags = n;
            true
        }
        (1..=5, _) => false,
        _ => true,
    })?;
    let (Some(_), Some(command), Some(address), Some(size)) = (tick, command, address, size) else {
        return Err(0);
    };
    let kind = match command {
        READ_REQ if flags & INST_FETCH != 0 => Kind::Fetch,
        READ_REQ => Kind::Load,
        WRITE_REQ => Kind::Store,
        _ => return Ok(None),
    };
    let size = u16::try_from(size).ok().filter(|&size| size > 0).ok_or(0usize)?;
    Ok(Some(Reference { address, size, lane: 0, space: 0, kind }))
}

/// The value of a field, as far as its wire type tells.
enum Value {
    /// Wire type 0.
    Number(u64),
    /// Wire types 1, 2 and 5, which no field that matters here has.
    Bytes,
}

/// Calls `take` with each field of a message; `Err` is the offset of the field that is damaged or refused.
fn scan(message: &[u8], mut take: impl FnMut(u64, Value) -> bool) -> Result<(), usize> {
    let mut at = 0;
    while at < message.len() {
        let field_start = at;
        let bad = || field_start;
        let key = varint(message, &mut at).ok_or_else(bad)?;
        let value = match key & 7 {
            0 => Value::Number(varint(message, &mut at).ok_or_else(bad)?),
            wire => {
                let length = match wire {
                    1 => 8,
                    2 => usize::try_from(varint(message, &mut at).ok_or_else(bad)?)
                        .map_err(|_| field_start)?,
                    5 => 4,
                    _ => return Err(field_start),
                };
                at = at.checked_add(length).filter(|&end| end <= message.len()).ok_or_else(bad)?;
                Value::Bytes
            }
        };
        if key >> 3 == 0 || !take(key >> 3, value) {
            return Err(field_start);
        }
    }
    Ok(())
}

/// A base-128 number of at most 64 bits; none when it is cut or longer.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_to_the_last_bit_and_not_beyond() {
        let read = |bytes: &[u8]| varint(bytes, &mut 0);
        assert_eq!(read(&[0x96, 0x01]), Some(150));
        let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(read(&largest), Some(u64::MAX));
        let mut beyond = largest;
        beyond[9] = 0x02;
        assert_eq!(read(&beyond), None);
        assert_eq!(read(&[0x80; 20]), None);
        assert_eq!(read(&[0x80]), None);
    }

    #[test]
    fn a_field_of_another_wire_type_is_told_where() {
        // Field 1 (tick) as a number, then field 3 (address) as bytes.
        assert_eq!(packet(&[0x08, 1, 0x1a, 1, 0]), Err(2));
    }
}
