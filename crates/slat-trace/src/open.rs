//! A recording or any known trace, told by its content.
//!
//! ```
//! use slat_trace::{Batch, Source, open};
//!
//! let path = std::env::temp_dir().join(format!("slat-open-example-{}", std::process::id()));
//! std::fs::write(&path, "I 401000,4\nR 0x7ffe1000,8\n")?;
//! let mut stream = open::open(&path, &open::Options::default())?;
//! let mut batch = Batch::default();
//! assert!(stream.next(&mut batch)?);
//! assert_eq!(batch.accesses.len(), 2);
//! assert!(stream.notes()[0].contains("guest tables were made"));
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::{Path, PathBuf};

use crate::import::ImportError;
use crate::made_tables::{Damage, MadeTables, Policy};
use crate::recording::{self, Recording};
use crate::{Batch, Machine, Source, import};

/// How to open what may be a recording or a trace.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For a recording: which part of it to read, and whether with frames.
    pub recording: recording::Options,
    /// For a trace: its format and what becomes a vCPU.
    pub import: import::Options,
    /// For a trace: how guest tables are made.
    pub policy: Policy,
    /// For a trace: what to do when it is damaged.
    pub damage: Damage,
}

/// What was opened: either way a stream of accesses with the guest's own tables.
#[expect(clippy::large_enum_variant, reason = "one is opened at a time")]
pub enum Opened {
    /// A recording.
    Recording {
        /// The file.
        path: PathBuf,
        /// The recording.
        recording: Recording,
        /// Its stream.
        reader: recording::Reader,
    },
    /// A trace of another tool, with tables made for it.
    Trace(MadeTables),
}

/// Why a recording or trace cannot be opened or read further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A recording.
    #[error("{}", error.in_file(path))]
    Recording {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: recording::Error,
    },
    /// A trace, or something that is neither.
    #[error(transparent)]
    Trace(#[from] ImportError),
}

/// Opens a recording, or any trace that can be read, for which guest tables are then made.
///
/// # Errors
///
/// As [`Recording::open`] for a recording, else as [`MadeTables::open`].
pub fn open(path: &Path, options: &Options) -> Result<Opened, OpenError> {
    let of_recording = |error| OpenError::Recording { path: path.to_owned(), error };
    if !path.is_dir() && options.import.format.is_none() {
        match Recording::open(path) {
            Ok(recording) => {
                let reader = recording.reader(&options.recording).map_err(of_recording)?;
                return Ok(Opened::Recording { path: path.to_owned(), recording, reader });
            }
            Err(recording::Error::NotARecording) => {}
            Err(error) => return Err(of_recording(error)),
        }
    }
    Ok(Opened::Trace(MadeTables::open(&[path], &options.import, options.policy, options.damage)?))
}

impl Opened {
    /// How many accesses there are: for part of a recording, in the whole of it.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        match self {
            Opened::Recording { recording, .. } => recording.accesses(),
            Opened::Trace(made) => made.counts().accesses(),
        }
    }

    /// What has to be known to judge results from this stream; first of all whether the guest's tables
    /// were made rather than recorded, and how.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        match self {
            Opened::Recording { recording, .. } => recording
                .provenance()
                .iter()
                .filter(|(key, _)| key == "tables" || key == "note")
                .map(|(_, value)| value.clone())
                .collect(),
            Opened::Trace(made) => made.notes(),
        }
    }
}

impl Source for Opened {
    type Error = OpenError;

    fn machine(&self) -> &Machine {
        match self {
            Opened::Recording { reader, .. } => reader.machine(),
            Opened::Trace(made) => made.machine(),
        }
    }

    fn next(&mut self, batch: &mut Batch) -> Result<bool, OpenError> {
        match self {
            Opened::Recording { path, reader, .. } => reader
                .next(batch)
                .map_err(|error| OpenError::Recording { path: path.clone(), error }),
            Opened::Trace(made) => Ok(made.next(batch)?),
        }
    }
}
