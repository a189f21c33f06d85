//! slat's own recordings: made by the recorder, exact to the last page-table store.
//!
//! The format is specified in `docs/recording-format.md`. In short: a header with the machine and
//! the provenance, blocks of about four million accesses that are compressed and checked each on
//! their own, and an index at the end. A reader can begin at any block; tables, roots and modes are
//! brought up to it from the events of the blocks before, which are a small part of the file.
//!
//! ```
//! use slat_trace::recording::{Encoder, Options, Packer, Recording};
//! use slat_trace::{Arch, Batch, Machine, Source};
//!
//! let machine = Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: None };
//! let mut encoder = Encoder::new(1);
//! let block = encoder.define(0x1000, 7, 2);
//! for i in 0..1000 {
//!     encoder.execute(0, block, 0x40_1000);
//!     encoder.access(0, false, 3, 0x7000_0000 + 8 * i, 0x123);
//! }
//! let mut packer = Packer::new(Vec::new(), &machine, &vec![], 3)?;
//! packer.push(&encoder.finish())?;
//! let (file, totals) = packer.finish()?;
//! assert_eq!((totals.accesses, totals.instructions), (2000, 2000));
//!
//! let recording = Recording::from_bytes(file)?;
//! let mut reader = recording.reader(&Options { frames: true, ..Options::default() })?;
//! let mut batch = Batch::default();
//! let mut last = None;
//! while reader.next(&mut batch)? {
//!     last = batch.accesses.last().copied();
//! }
//! assert_eq!(last.unwrap().gpa(), Some(0x12_3000 + 8 * 999 % 4096));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod bytes;
mod decode;
mod encode;
mod error;
pub(crate) mod events;
mod input;
mod layout;
mod model;
mod pack;
mod read;
mod reader;

pub use encode::{BlockId, Encoder, RawBlock};
pub use error::Error;
pub use layout::{BlockInfo, Provenance};
pub use pack::{Packer, Totals};
pub use read::Recording;
pub use reader::{Options, Reader};
