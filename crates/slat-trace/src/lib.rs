//! Recordings of real guests, and the readers of other tools' traces.
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
