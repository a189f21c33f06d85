//! The finished blocks go to a thread of their own, which compresses and writes them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use slat_trace::Machine;
use slat_trace::recording::{Packer, Provenance, RawBlock, Totals};

use crate::ffi::thread_cpu;
use crate::notes::Take;

/// Blocks that may wait for the compressor, so that memory stays bounded.
const WAITING: usize = 3;

/// The totals, and the CPU seconds of the thread.
type Written = std::io::Result<(Totals, f64)>;

pub(crate) struct Output {
    blocks: Option<SyncSender<RawBlock>>,
    thread: JoinHandle<Written>,
}

impl Output {
    /// Begins the file, and the file of progress beside it, where one is wanted: a line
    /// `ACCESSES BYTES` after each block.
    pub(crate) fn create(
        path: &Path,
        progress: Option<&Path>,
        machine: &Machine,
        provenance: &Provenance,
        level: i32,
    ) -> std::io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let mut progress = progress.map(File::create).transpose()?;
        let mut packer = Packer::new(file, machine, provenance, level)?;
        let (blocks, waiting) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("slat-writer".into()).spawn(move || {
            for block in waiting {
                packer.push(&block)?;
                let totals = packer.totals();
                if let Some(progress) = &mut progress {
                    writeln!(progress, "{} {}", totals.accesses, totals.bytes)?;
                }
            }
            let (file, totals) = packer.finish()?;
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            Ok((totals, thread_cpu()))
        })?;
        Ok(Self { blocks: Some(blocks), thread })
    }

    /// What hands blocks over; all of it has to be gone before [`finish`](Self::finish).
    pub(crate) fn take(&mut self) -> Take {
        let blocks = self.blocks.take();
        Box::new(move |block| blocks.as_ref().is_some_and(|blocks| blocks.send(block).is_ok()))
    }

    /// Waits until all is written.
    pub(crate) fn finish(self) -> Written {
        self.thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the writer panicked")))
    }
}
