//! A trace with made tables as a recording.

use std::io::{self, Write};
use std::ops::ControlFlow;

use super::{Counts, MadeTables};
use crate::import::ImportError;
use crate::recording::{BlockId, Encoder, Packer, Provenance, Totals};
use crate::{Access, Batch, Event, Kind, Source};

/// The most vCPUs that a recording can have.
const MOST_VCPUS: u8 = 64;

/// The longest data access that a recording can have, as a power of two.
const LONGEST: u32 = 7;

/// Why a trace did not become a recording.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The trace could not be read further.
    #[error(transparent)]
    Trace(#[from] ImportError),
    /// The recording could not be written.
    #[error("cannot write the recording: {0}")]
    Output(#[from] io::Error),
    /// The trace has more threads than a recording has vCPUs.
    #[error(
        "the trace has {0} threads, a recording at most {MOST_VCPUS} vCPUs: make a vCPU of each CPU, or one of the whole trace"
    )]
    TooManyVcpus(u8),
}

/// What became of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// What the recording amounts to.
    pub totals: Totals,
    /// Accesses of the trace that went in.
    pub counts: Counts,
    /// Accesses that became one for each page, because they cross into a page farther on than the
    /// longest access of a recording reaches.
    pub split: u64,
    /// Whether it was stopped before the end of the trace.
    pub stopped: bool,
}

impl MadeTables {
    /// What a recording of this stream says of its origin: `created-by`, `trace`, `format`, `tables` (that
    /// they were made, and how) and a `note` for each of [`MadeTables::notes`]' others.
    #[must_use]
    pub fn provenance(&self) -> Provenance {
        let mut pairs = vec![
            (
                "created-by".to_owned(),
                concat!("slat import ", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
            ("trace".to_owned(), self.trace.path().display().to_string()),
            ("format".to_owned(), self.trace.format().to_string()),
        ];
        let mut notes = self.notes().into_iter();
        pairs.extend(notes.next().map(|note| ("tables".to_owned(), note)));
        pairs.extend(notes.map(|note| ("note".to_owned(), note)));
        pairs
    }

    /// Writes the rest of the stream to `out` as a recording; `level` is zstd's, 1 to 19.
    ///
    /// Lengths become powers of two of at most 128 bytes: rounded so that an access crosses into the next
    /// page exactly if it did before. `progress` is called now and then with the accesses written; where
    /// it breaks, the recording ends there and is whole.
    ///
    /// # Errors
    ///
    /// Where the trace cannot be read further, the output cannot be written, or there are more than 64 vCPUs.
    pub fn record<W: Write>(
        &mut self,
        out: W,
        provenance: &Provenance,
        level: i32,
        mut progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(W, Recorded), RecordError> {
        let machine = self.machine().clone();
        if machine.vcpus > MOST_VCPUS {
            return Err(RecordError::TooManyVcpus(machine.vcpus));
        }
        let mut writer = Writer {
            packer: Packer::new(out, &machine, provenance, level)?,
            encoder: Encoder::new(machine.vcpus),
            blocks: vec![None; BLOCKS].into_boxed_slice(),
            roots: vec![0; usize::from(machine.vcpus)],
            split: 0,
        };
        let mut batch = Batch::default();
        let (mut counts, mut stopped) = (Counts::default(), false);
        while !stopped && self.next(&mut batch)? {
            for run in batch.runs() {
                for at in run.events {
                    if let Event::Root { value, .. } = at.event {
                        writer.roots[usize::from(at.vcpu)] = value;
                    }
                    writer.encoder.event(at.vcpu, &at.event, &[]);
                }
                for access in run.accesses {
                    counts.add(access.kind());
                    writer.access(self, access)?;
                }
            }
            stopped = progress(counts.accesses()).is_break();
        }
        let Writer { mut packer, encoder, split, .. } = writer;
        packer.push(&encoder.finish())?;
        let (out, totals) = packer.finish()?;
        Ok((out, Recorded { totals, counts, split, stopped }))
    }
}

/// Instructions whose identity is at hand; a power of two.
const BLOCKS: usize = 1 << 14;

/// An instruction: its physical address and length, as it was defined.
type Known = (u64, u16, BlockId);

struct Writer<W: Write> {
    packer: Packer<W>,
    encoder: Encoder,
    blocks: Box<[Option<Known>]>,
    /// The root register of each vCPU.
    roots: Vec<u64>,
    split: u64,
}

impl<W: Write> Writer<W> {
    fn access(&mut self, made: &MadeTables, access: &Access) -> io::Result<()> {
        if self.encoder.is_full() {
            self.packer.push(&self.encoder.cut())?;
        }
        if access.kind() == Kind::Fetch {
            let gpa = access.gpa().expect("made tables know every frame");
            let block = self.block(gpa, access.len());
            self.encoder.execute(access.vcpu, block, access.va);
            return Ok(());
        }
        let store = access.kind() == Kind::Store;
        let first_len = length(access.va, access.len());
        self.encoder.access(access.vcpu, store, first_len as u8, access.va, access.frame);
        let last = access.va + u64::from(access.len().max(1)) - 1;
        let reached = access.va + (1 << first_len) - 1;
        for page in (reached >> 12) + 1..=last >> 12 {
            let frame = made.frame_under(self.roots[usize::from(access.vcpu)], page);
            self.split += 1;
            self.encoder.access(access.vcpu, store, 0, page << 12, frame.expect("a mapped page"));
        }
        Ok(())
    }

    /// The identity of one instruction.
    fn block(&mut self, gpa: u64, len: u16) -> BlockId {
        let slot = (gpa ^ gpa >> 14) as usize % BLOCKS;
        if let Some((at, known, block)) = self.blocks[slot]
            && (at, known) == (gpa, len)
            && self.encoder.knows(block)
        {
            return block;
        }
        let block = self.encoder.define(gpa, len, 1);
        self.blocks[slot] = Some((gpa, len, block));
        block
    }
}

/// The power of two that stands for a length: it crosses into the next page if and only if the length
/// does, as far as the longest can.
fn length(va: u64, len: u16) -> u32 {
    let len = u32::from(len.max(1));
    let crosses = (va & 0xfff) + u64::from(len) > 0x1000;
    let exact = if crosses { len.next_power_of_two().ilog2() } else { len.ilog2() };
    exact.min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_cross_pages_as_before() {
        for va in [0u64, 1, 100, 0xf7f, 0xf80, 0xf81, 0xffe, 0xfff] {
            for len in 0..=4096u16 {
                let crosses = |len: u64| (va & 0xfff) + len > 0x1000;
                let stored = 1 << length(va, len);
                assert!(stored <= 128);
                let out_of_reach = crosses(len.into()) && !crosses(128);
                assert!(
                    out_of_reach || crosses(stored) == crosses(u64::from(len).max(1)),
                    "{va:#x} {len}"
                );
            }
        }
    }
}
