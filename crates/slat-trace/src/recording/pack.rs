//! Finished blocks into the file: compressed, summed, indexed.

use std::io::{self, Write};

use super::encode::RawBlock;
use super::layout::{BlockInfo, Provenance, Section, put_block_header, put_header, put_index};
use crate::event::Machine;

/// What a finished recording amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Loads, stores and block fetches.
    pub accesses: u64,
    /// Instructions executed.
    pub instructions: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Compresses blocks and writes them as a recording, front to back.
pub struct Packer<W: Write> {
    out: W,
    zstd: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
    blocks: Vec<BlockInfo>,
    totals: Totals,
}

impl<W: Write> Packer<W> {
    /// The level of compression that recordings are made with unless told otherwise.
    pub const LEVEL: i32 = 3;

    /// Begins a recording of `machine` in `out`; `level` is zstd's, 1 to 19.
    ///
    /// # Errors
    ///
    /// Where `out` cannot be written.
    pub fn new(
        mut out: W,
        machine: &Machine,
        provenance: &Provenance,
        level: i32,
    ) -> io::Result<Self> {
        let header = put_header(machine, provenance);
        out.write_all(&header)?;
        let totals = Totals { bytes: header.len() as u64, ..Totals::default() };
        let zstd = zstd::bulk::Compressor::new(level)?;
        Ok(Self { out, zstd, scratch: Vec::new(), blocks: Vec::new(), totals })
    }

    /// Appends a block of the file.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn push(&mut self, block: &RawBlock) -> io::Result<()> {
        self.scratch.clear();
        let mut table: Vec<(Section, u8, u32, u32, u32)> = Vec::new();
        for (section, vcpu, data) in &block.sections {
            let from = self.scratch.len();
            self.scratch.resize(from + zstd::zstd_safe::compress_bound(data.len()), 0);
            let stored = self.zstd.compress_to_buffer(data, &mut self.scratch[from..])?;
            self.scratch.truncate(from + stored);
            let sum = crc32fast::hash(&self.scratch[from..]);
            table.push((*section, *vcpu, data.len() as u32, stored as u32, sum));
        }
        let Totals { accesses, bytes, .. } = self.totals;
        let header =
            put_block_header(block.flags, accesses, block.accesses, block.instructions, &table);
        self.out.write_all(&header)?;
        self.out.write_all(&self.scratch)?;
        self.blocks.push(BlockInfo {
            offset: bytes,
            first_access: accesses,
            accesses: block.accesses,
            instructions: block.instructions,
        });
        self.totals.bytes += (header.len() + self.scratch.len()) as u64;
        self.totals.accesses += block.accesses;
        self.totals.instructions += block.instructions;
        Ok(())
    }

    /// What was written so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Writes the index, without which a recording is as if cut off, and returns the output.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn finish(mut self) -> io::Result<(W, Totals)> {
        let index = put_index(self.totals.bytes, &self.blocks);
        self.out.write_all(&index)?;
        self.out.flush()?;
        self.totals.bytes += index.len() as u64;
        Ok((self.out, self.totals))
    }
}
