//! The records of one file.

use super::super::error::{Cause, ImportError};
use super::super::input::Input;
use super::super::{Reference, References};
use super::{ARCH_AARCH64, ARCH_X86_64, FILTERED, Lanes, MOST_THREADS, RECORD, kind, marker, word};
use crate::{Arch, Kind};

/// Why a thread's file gave way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The batch is full.
    Full,
    /// A time stamp; others may come before it.
    Time(u64),
    /// The file is at its end.
    End,
}

/// What has been seen and left out, for the notes.
#[derive(Default)]
pub(super) struct LeftOut {
    pub(super) prefetches: u64,
    pub(super) filtered: bool,
}

/// One file: usually of one thread, in the legacy form of several in turns.
pub(super) struct ThreadFile {
    input: Input,
    begun: bool,
    process: u64,
    thread: u64,
    cpu: Option<u64>,
    /// Numbers of the lane and the space; none until they are known or after one changed.
    numbers: Option<(u16, u16)>,
    /// Address behind the last instruction, where a bundle goes on.
    behind: u64,
}

impl ThreadFile {
    pub(super) fn new(input: Input) -> Self {
        ThreadFile {
            input,
            begun: false,
            process: 0,
            thread: 0,
            cpu: None,
            numbers: None,
            behind: 0,
        }
    }

    /// Decodes up to the batch's end, the next time stamp or the end of the file.
    pub(super) fn run(
        &mut self,
        lanes: &mut Lanes,
        left_out: &mut LeftOut,
        batch: &mut References,
    ) -> Result<Pause, ImportError> {
        loop {
            if batch.is_full() {
                return Ok(Pause::Full);
            }
            if !self.input.ensure(RECORD)? {
                let left = self.input.data().len();
                let what = if left == 0 {
                    "the footer is missing; the tracing was cut off".to_owned()
                } else {
                    format!("{left} bytes of a {RECORD}-byte record")
                };
                return Err(self.input.error(0, Cause::Truncated(what)));
            }
            // The hot part: runs of accesses with nothing between them that changes any state.
            let mut used = 0;
            if let Some((lane, space)) = self.numbers {
                for record in self.input.data().chunks_exact(RECORD) {
                    let size = u16::from_le_bytes([record[2], record[3]]);
                    let address = word(record);
                    let kind = match u16::from_le_bytes([record[0], record[1]]) {
                        kind::READ => Kind::Load,
                        kind::WRITE => Kind::Store,
                        kind::INSTR..=kind::INSTR_RETURN
                        | kind::INSTR_SYSENTER
                        | kind::INSTR_TAKEN_JUMP
                        | kind::INSTR_UNTAKEN_JUMP => {
                            self.behind = address.wrapping_add(size.into());
                            Kind::Fetch
                        }
                        kind::ENCODING | kind::INSTR_NO_FETCH => {
                            used += RECORD;
                            continue;
                        }
                        _ => break,
                    };
                    used += RECORD;
                    batch.list.push(Reference { address, size: size.max(1), lane, space, kind });
                    if batch.is_full() {
                        break;
                    }
                }
            }
            self.input.consume(used);
            if used == 0
                && let Some(pause) = self.other(lanes, left_out, batch)?
            {
                return Ok(pause);
            }
        }
    }

    /// Takes the record at hand, which is not an access of a known lane.
    fn other(
        &mut self,
        lanes: &mut Lanes,
        left_out: &mut LeftOut,
        batch: &mut References,
    ) -> Result<Option<Pause>, ImportError> {
        let record: [u8; RECORD] = *self.input.data().first_chunk().expect("a whole record");
        let (of_type, size) = (
            u16::from_le_bytes([record[0], record[1]]),
            u16::from_le_bytes([record[2], record[3]]),
        );
        let value = word(&record);
        if of_type != kind::HEADER && !self.begun {
            return Err(self
                .input
                .error(0, Cause::Malformed("the trace does not begin with a header".into())));
        }
        match of_type {
            kind::HEADER if !self.begun => {
                self.begun = true;
                if !(1..=0xff).contains(&value) {
                    let what =
                        format!("the header names version {value}; versions 1 to 7 are known");
                    return Err(self.input.error(4, Cause::Malformed(what)));
                }
            }
            kind::FOOTER => {
                self.input.consume(RECORD);
                if self.input.ensure(1)? {
                    return Err(self
                        .input
                        .error(0, Cause::Malformed("there is more behind the footer".into())));
                }
                return Ok(Some(Pause::End));
            }
            kind::THREAD => {
                self.thread = value;
                self.process = lanes.processes.get(&value).copied().unwrap_or(self.process);
                self.numbers = None;
            }
            kind::PID => {
                self.process = value;
                lanes.processes.insert(self.thread, value);
                if lanes.processes.len() > MOST_THREADS {
                    return Err(self.too_many_threads());
                }
                self.numbers = None;
            }
            kind::MARKER => match size {
                marker::TIMESTAMP => {
                    self.input.consume(RECORD);
                    return Ok(Some(Pause::Time(value)));
                }
                marker::CPU_ID => {
                    self.cpu = Some(value);
                    self.numbers = None;
                }
                marker::FILETYPE => {
                    left_out.filtered |= value & FILTERED != 0;
                    lanes.arch = match value & (ARCH_AARCH64 | ARCH_X86_64) {
                        ARCH_AARCH64 => Some(Arch::Aarch64),
                        ARCH_X86_64 => Some(Arch::X86_64),
                        _ => lanes.arch,
                    };
                }
                _ => {}
            },
            kind::INSTR_BUNDLE => {
                let count = usize::from(size);
                if count > 8 {
                    let what = format!("a bundle of {count} instructions; 8 is the most");
                    return Err(self.input.error(2, Cause::Malformed(what)));
                }
                let (lane, space) = self.numbers(lanes)?;
                for &length in &record[4..4 + count] {
                    let address = self.behind;
                    let size = length.into();
                    batch.list.push(Reference { address, size, lane, space, kind: Kind::Fetch });
                    self.behind = address.wrapping_add(length.into());
                }
            }
            kind::PREFETCH_FIRST..=kind::PREFETCH_LAST
            | kind::PREFETCH_LEVEL_FIRST..=kind::PREFETCH_LEVEL_LAST
            | kind::HARDWARE_PREFETCH => left_out.prefetches += 1,
            kind::FLUSH_FIRST..=kind::FLUSH_LAST | kind::THREAD_EXIT => {}
            kind::READ
            | kind::WRITE
            | kind::INSTR..=kind::INSTR_RETURN
            | kind::INSTR_SYSENTER
            | kind::INSTR_TAKEN_JUMP
            | kind::INSTR_UNTAKEN_JUMP
            | kind::ENCODING
            | kind::INSTR_NO_FETCH => {
                // Not consumed: from now on the lane is known.
                self.numbers(lanes)?;
                return Ok(None);
            }
            _ => {
                let what = if of_type == kind::HEADER {
                    "a second header".to_owned()
                } else {
                    format!(
                        "record type {of_type} is not known (types up to {} are)",
                        kind::INSTR_UNTAKEN_JUMP
                    )
                };
                return Err(self.input.error(0, Cause::Malformed(what)));
            }
        }
        self.input.consume(RECORD);
        Ok(None)
    }

    fn numbers(&mut self, lanes: &mut Lanes) -> Result<(u16, u16), ImportError> {
        if self.numbers.is_none() {
            self.numbers = lanes.number(self.process, self.thread, self.cpu);
        }
        self.numbers.ok_or_else(|| self.too_many_threads())
    }

    fn too_many_threads(&self) -> ImportError {
        let what =
            format!("more than {MOST_THREADS} threads or processes; import fewer files at a time");
        self.input.error(0, Cause::Refused(what))
    }
}
