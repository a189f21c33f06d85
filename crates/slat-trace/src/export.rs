//! Streams for other programs.
//!
//! A stream becomes rows ([`Row`]): one an access, and on request one an event. [`Exporter`] writes
//! them as CSV with a header line, or as plain text with one line an access (`R ADDR,SIZE`, `W`,
//! `I`), which [`import`](crate::import) reads again; with the feature `parquet`, `ParquetExporter`
//! writes them as a Parquet file.

#[cfg(feature = "parquet")]
mod parquet;
mod text;

use std::borrow::Cow;

#[cfg(feature = "parquet")]
pub use self::parquet::ParquetExporter;
pub use self::text::{Exporter, Form};
use crate::event::{Access, At, Batch, Event, Invalidation, Kind};

/// An access, or an event, as other programs see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of the access in the whole stream, counted from 0; of an event, that of the access
    /// that it comes before.
    pub number: u64,
    /// The virtual CPU.
    pub vcpu: u8,
    /// `load`, `store` or `fetch`, or what happened.
    pub what: Cow<'static, str>,
    /// The guest-virtual address.
    pub va: Option<u64>,
    /// The guest-physical address, where it is known.
    pub gpa: Option<u64>,
    /// The length in bytes, of an access.
    pub len: Option<u16>,
    /// Whether an access has user privilege.
    pub user: Option<bool>,
    /// The value of an event.
    pub value: Option<u64>,
}

/// Which part of a stream is exported, and how far it is.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The number of the next access in the whole stream.
    number: u64,
    from: u64,
    end: u64,
}

impl Part {
    /// The accesses `from..end`, for a stream whose first access is number `first` of the whole.
    #[must_use]
    pub fn new(first: u64, from: u64, end: u64) -> Self {
        Self { number: first, from, end }
    }

    /// Gives the rows of the next batch that are asked for to `sink`; false when nothing after it
    /// can be.
    fn rows<E>(
        &mut self,
        batch: &Batch,
        events: bool,
        mut sink: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<bool, E> {
        for run in batch.runs() {
            if events && self.number >= self.from && self.number < self.end {
                for at in run.events {
                    sink(event_row(self.number, at))?;
                }
            }
            for access in run.accesses {
                if self.number >= self.end {
                    return Ok(false);
                }
                if self.number >= self.from {
                    sink(access_row(self.number, access))?;
                }
                self.number += 1;
            }
        }
        Ok(self.number < self.end)
    }
}

fn access_row(number: u64, access: &Access) -> Row {
    let what = match access.kind() {
        Kind::Load => "load",
        Kind::Store => "store",
        Kind::Fetch => "fetch",
    };
    Row {
        number,
        vcpu: access.vcpu,
        what: what.into(),
        va: Some(access.va),
        gpa: access.gpa(),
        len: Some(access.len()),
        user: Some(access.user()),
        value: None,
    }
}

fn event_row(number: u64, at: &At) -> Row {
    // What happened, the addresses it is about, and the value.
    let (mut va, mut gpa, mut value) = (None, None, None);
    let what: Cow<'static, str> = match at.event {
        Event::Root { root, value: written } => {
            value = Some(written);
            format!("root {root:?}").to_lowercase().into()
        }
        Event::Control { register, value: written } => {
            value = Some(written);
            format!("control {register:?}").to_lowercase().into()
        }
        Event::TablePage { gpa: page, level, .. } => {
            (gpa, value) = (Some(page), Some(level.into()));
            "table page".into()
        }
        Event::TableEntry { gpa: entry, value: content } => {
            (gpa, value) = (Some(entry), Some(content));
            "table entry".into()
        }
        Event::TableStore { gpa: entry, value: content } => {
            (gpa, value) = (Some(entry), Some(content));
            "table store".into()
        }
        Event::TableRelease { gpa: page } => {
            gpa = Some(page);
            "table release".into()
        }
        Event::Invalidate(Invalidation::Invlpg { va: page }) => {
            va = Some(page);
            "invlpg".into()
        }
        Event::Invalidate(Invalidation::Invpcid { kind, pcid, va: page }) => {
            (va, value) = (Some(page), Some(kind << 16 | pcid));
            "invpcid".into()
        }
        Event::Invalidate(Invalidation::Tlbi { operation, operand }) => {
            value = Some(operand);
            format!("tlbi {operation:#x}").into()
        }
        Event::Exception(exception) => {
            (va, value) = (Some(exception.fault_va), Some(exception.vector.into()));
            "exception".into()
        }
        Event::ExceptionReturn => "exception return".into(),
        Event::Mode { user } => {
            value = Some(user.into());
            "mode".into()
        }
        Event::Io { va: from, gpa: device, len, store } => {
            (va, gpa, value) = (Some(from), Some(device), Some(len.into()));
            (if store { "io store" } else { "io load" }).into()
        }
        Event::Msr { number: register, value: written } => {
            value = Some(written);
            format!("msr {register:#x}").into()
        }
    };
    Row { number, vcpu: at.vcpu, what, va, gpa, len: None, user: None, value }
}
