//! Recordings of real guests, and the readers of other tools' traces.
//!
//! A *recording* is slat's own: every access of a guest, and every change of its tables, made by
//! `slat record`. A *trace* is another tool's: the accesses of a program, for which tables are made. Either
//! is a [`Source`] of the same [`Batch`]es.
//!
//! # Where to begin
//!
//! | module | is for |
//! |---|---|
//! | [`open`] | reading a recording or a trace, whichever a file is |
//! | [`event`] | what a stream holds: accesses and the events between them |
//! | [`recording`] | the format: reading, writing, seeking |
//! | [`replay`] | counting, and checking a recording against its own tables |
//! | [`import`] | the readers of traces, without tables |
//! | [`made_tables`] | guest tables for traces, by a stated policy; turning traces into recordings |
//! | [`compact`] | page runs: the accesses that can change a TLB, with counts of those that cannot |
//! | [`export`] | text for other programs |
//!
//! ```
//! use slat_trace::replay::Counts;
//! use slat_trace::{Batch, Source, open};
//!
//! let path = std::env::temp_dir().join(format!("slat-trace-example-{}", std::process::id()));
//! std::fs::write(&path, "I 401000,4\nR 0x7ffe1ffc,8\nW 0x7ffe1000,8\n")?;
//!
//! let mut stream = open::open(&path, &open::Options::default())?;
//! let (mut counts, mut batch) = (Counts::default(), Batch::default());
//! while stream.next(&mut batch)? {
//!     counts.add(&batch);
//! }
//! assert_eq!((counts.accesses(), counts.crossing), (3, 1));
//! // Three pages were mapped, in two regions: three leaves, and the tables above them.
//! assert_eq!(counts.table_stores, 3 + 2 + 2 + 1);
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod compact;
pub mod event;
pub mod export;
pub mod import;
pub mod made_tables;
pub mod open;
pub mod recording;
pub mod replay;

pub use event::{
    Access, Arch, At, Batch, Control, Event, Exception, Invalidation, Kind, Machine, Root, Run,
    Runs, Source,
};
