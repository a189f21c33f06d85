//! What is compared: recordings, traces, generated guests, alike.

use std::path::Path;

use slat_sim::compare::Facts;
use slat_sim::generated::{self, Generated, GeneratedError};
use slat_trace::recording::{self, Recording};
use slat_trace::{Batch, Machine, Source, open};

use super::Args;

/// Ten times a shell forks and executes a program, under Linux on x86-64.
const DEFAULT: &[u8] = include_bytes!("../../../data/fork.slat");

/// One of them.
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) origin: &'static str,
    pub(super) notes: Vec<String>,
    total: u64,
    stream: Stream,
}

enum Stream {
    Bundled(Box<recording::Reader>),
    Opened(Box<open::Opened>),
    Generated(Box<Generated>),
}

/// Why a stream could not be read further.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error(transparent)]
    Recording(#[from] recording::Error),
    #[error(transparent)]
    Opened(<open::Opened as Source>::Error),
    #[error(transparent)]
    Generated(#[from] GeneratedError),
}

impl Workload {
    fn bundled() -> anyhow::Result<Workload> {
        let recording = Recording::from_bytes(DEFAULT)?;
        Ok(Workload {
            name: "fork+exec storm".to_owned(),
            origin: "recorded",
            notes: Vec::new(),
            total: recording.accesses(),
            stream: Stream::Bundled(Box::new(recording.reader(&recording::Options::default())?)),
        })
    }

    fn open(name: &str, accesses: u64) -> anyhow::Result<Workload> {
        if name.starts_with(generated::PREFIX) {
            let guest = Generated::open(name, accesses)?;
            return Ok(Workload {
                name: guest.name().to_owned(),
                origin: "generated",
                notes: Vec::new(),
                total: guest.wanted(),
                stream: Stream::Generated(Box::new(guest)),
            });
        }
        let path = Path::new(name);
        let opened = open::open(path, &open::Options::default())?;
        let notes = opened.notes();
        Ok(Workload {
            name: path
                .file_stem()
                .map_or_else(|| path.display().to_string(), |stem| stem.display().to_string()),
            // Of a recording nothing needs to be noted; tables of a trace were made.
            origin: if notes.is_empty() { "recorded" } else { "imported" },
            notes,
            total: opened.accesses(),
            stream: Stream::Opened(Box::new(opened)),
        })
    }

    /// How many accesses it has, about.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// What is known of it beside its stream.
    pub(super) fn facts(&self) -> Facts {
        match &self.stream {
            Stream::Generated(guest) => guest.facts(),
            Stream::Opened(opened) => match &**opened {
                open::Opened::Recording { recording, .. } => Facts::recorded(recording),
                open::Opened::Trace(_) => Facts::RECORDED,
            },
            Stream::Bundled(_) => Facts::RECORDED,
        }
    }
}

impl Source for Workload {
    type Error = StreamError;

    fn machine(&self) -> &Machine {
        match &self.stream {
            Stream::Bundled(reader) => reader.machine(),
            Stream::Opened(opened) => opened.machine(),
            Stream::Generated(guest) => guest.machine(),
        }
    }

    fn next(&mut self, batch: &mut Batch) -> Result<bool, StreamError> {
        Ok(match &mut self.stream {
            Stream::Bundled(reader) => reader.next(batch)?,
            Stream::Opened(opened) => opened.next(batch).map_err(StreamError::Opened)?,
            Stream::Generated(guest) => guest.next(batch)?,
        })
    }
}

/// The workloads of the command line, opened one by one.
pub(super) struct Workloads {
    names: std::vec::IntoIter<Option<String>>,
    accesses: u64,
}

impl Workloads {
    pub(super) fn of(args: &Args) -> anyhow::Result<Workloads> {
        let mut names: Vec<Option<String>> = args.workloads.iter().cloned().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        Ok(Workloads { names: names.into_iter(), accesses: args.accesses })
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}

impl Iterator for Workloads {
    type Item = anyhow::Result<Workload>;

    fn next(&mut self) -> Option<anyhow::Result<Workload>> {
        Some(match self.names.next()? {
            None => Workload::bundled(),
            Some(name) => Workload::open(&name, self.accesses),
        })
    }
}
