//! The readers of other tools' traces.
//!
//! A [`Trace`] is opened from a file or directory; the format is told by its content, also inside
//! gzip, xz, bzip2 and zstd. It hands out [`Reference`]s in batches. Memory is bounded by a few hundred
//! kilobytes a file, whatever the file says of itself.
//!
//! ```
//! use slat_trace::Kind;
//! use slat_trace::import::{Format, Options, References, Trace};
//!
//! let path = std::env::temp_dir().join(format!("slat-import-example-{}", std::process::id()));
//! std::fs::write(&path, "# three accesses\nI 401000,4\nR 0x7ffe1000,8\nW 0x7ffe1000,8\n")?;
//! let mut trace = Trace::open(&path, &Options::default())?;
//! assert_eq!(trace.format(), Format::Plain);
//! let mut batch = References::default();
//! let mut stores = 0;
//! while trace.next(&mut batch)? {
//!     stores += batch.as_slice().iter().filter(|r| r.kind == Kind::Store).count();
//! }
//! assert_eq!(stores, 1);
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod champsim;
mod compression;
mod detect;
mod drmemtrace;
mod error;
mod gem5;
mod input;
mod lackey;
mod mix;
mod pinatrace;
mod plain;
mod ramulator;
mod text;
mod zip;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use error::{Cause, ImportError, Place};

use champsim::ChampSim;
use drmemtrace::Drmemtrace;
use gem5::Gem5;
use input::Input;
use mix::Mix;
use text::TextReader;

use crate::{Arch, Kind};

/// A format that another tool writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Valgrind's lackey with `--trace-mem=yes`.
    Lackey,
    /// ChampSim's 64-byte records.
    ChampSim,
    /// The 96-byte records of the cloudsuite traces; never detected, only read when named.
    Cloudsuite,
    /// DynamoRIO's drmemtrace after `raw2trace`: a file, a zip archive or a directory.
    Drmemtrace,
    /// gem5's packet traces.
    Gem5,
    /// One `R|W|I ADDR[,SIZE]` a line.
    Plain,
    /// The text traces of Ramulator 1 and 2.
    Ramulator,
    /// The text of Pin's `pinatrace`.
    Pinatrace,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 8] = [
        Format::Lackey,
        Format::ChampSim,
        Format::Cloudsuite,
        Format::Drmemtrace,
        Format::Gem5,
        Format::Plain,
        Format::Ramulator,
        Format::Pinatrace,
    ];

    /// The name that [`Format::from_str`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Format::Lackey => "lackey",
            Format::ChampSim => "champsim",
            Format::Cloudsuite => "cloudsuite",
            Format::Drmemtrace => "drmemtrace",
            Format::Gem5 => "gem5",
            Format::Plain => "plain",
            Format::Ramulator => "ramulator",
            Format::Pinatrace => "pinatrace",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Format::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            format!(
                "`{name}` is no trace format; known are {}",
                Format::ALL.map(Format::name).join(", ")
            )
        })
    }
}

/// One access of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Virtual address of the first byte.
    pub address: u64,
    /// Its length in bytes; 0 where the format does not tell.
    pub size: u16,
    /// Which of the trace's [`Lane`]s made it.
    pub lane: u16,
    /// Number of the address space (the process), from 0 in order of appearance.
    pub space: u16,
    /// What it does.
    pub kind: Kind,
}

/// What makes accesses of its own in a trace: it becomes one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The whole trace.
    Only,
    /// A thread.
    Thread {
        /// Process id as the trace has it.
        process: u64,
        /// Thread id as the trace has it.
        thread: u64,
    },
    /// A CPU of the traced machine; none before the trace named one.
    Cpu(Option<u64>),
}

/// What becomes a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaneBy {
    /// Every thread: as if each had a vCPU to itself and never moved.
    #[default]
    Thread,
    /// Every CPU that the trace names: threads move between them as they did.
    Cpu,
    /// The trace as a whole.
    One,
}

/// How to read a trace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The format; none to tell it by the content.
    pub format: Option<Format>,
    /// What becomes a lane, where the trace has both threads and CPUs.
    pub lanes: LaneBy,
}

/// A buffer of consecutive references, owned by the consumer and reused.
#[derive(Debug, Default)]
pub struct References {
    list: Vec<Reference>,
}

impl References {
    /// References to stop at; a last record may add a few more.
    const FULL: usize = 1 << 14;

    /// The references, in the order in which they happened.
    #[must_use]
    pub fn as_slice(&self) -> &[Reference] {
        &self.list
    }

    fn is_full(&self) -> bool {
        self.list.len() >= References::FULL
    }
}

/// What every reader does.
trait Reader: Send {
    /// Adds references until the batch is full; false when the trace has ended.
    ///
    /// # Errors
    ///
    /// Where the trace cannot be read further; what was added before is valid.
    fn fill(&mut self, batch: &mut References) -> Result<bool, ImportError>;

    /// What has to be known to judge results from this trace.
    fn notes(&self) -> Vec<String>;

    /// The architecture of the traced machine, where the trace tells; known once there is a reference.
    fn arch(&self) -> Option<Arch> {
        None
    }

    /// The lanes met so far.
    fn lanes(&self) -> Vec<Lane> {
        vec![Lane::Only]
    }
}

/// A trace of another tool that is being read.
pub struct Trace {
    path: PathBuf,
    format: Format,
    reader: Box<dyn Reader>,
    ended: bool,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trace { path, format, ended, .. } = self;
        f.debug_struct("Trace")
            .field("path", path)
            .field("format", format)
            .field("ended", ended)
            .finish()
    }
}

impl Trace {
    /// Opens a file, or for drmemtrace a directory, and tells its format.
    ///
    /// # Errors
    ///
    /// When the path cannot be read, or its content is of no known format or of one that is refused on
    /// purpose; the error then says what to do.
    pub fn open(path: &Path, options: &Options) -> Result<Trace, ImportError> {
        if path.is_dir() {
            if let Some(format) = options.format.filter(|&format| format != Format::Drmemtrace) {
                let what = format!("a {format} trace is a file, this is a directory");
                return Err(ImportError::whole(path, Cause::Refused(what)));
            }
            let reader = Drmemtrace::directory(path, options.lanes)?;
            return Ok(Trace::new(path, Format::Drmemtrace, Box::new(reader)));
        }
        Trace::of(open_stream(path)?, options)
    }

    /// Opens one trace, or several as one.
    ///
    /// Several drmemtrace files are threads, in the order of their time stamps as in a directory. Any
    /// other traces take turns of a thousand accesses, each on vCPUs and in address spaces of its own.
    ///
    /// # Errors
    ///
    /// As [`Trace::open`], and when there is none.
    pub fn open_all(paths: &[impl AsRef<Path>], options: &Options) -> Result<Trace, ImportError> {
        let traces = match paths {
            [] => {
                let cause = Cause::Refused("no trace is named".into());
                return Err(ImportError::whole(Path::new(""), cause));
            }
            [path] => return Trace::open(path.as_ref(), options),
            paths => paths
                .iter()
                .map(|path| Trace::open(path.as_ref(), options))
                .collect::<Result<Vec<_>, _>>()?,
        };
        let (path, format) = (traces[0].path.clone(), traces[0].format);
        let threads = paths.iter().all(|path| !path.as_ref().is_dir())
            && traces.iter().all(|trace| trace.format == Format::Drmemtrace);
        let reader: Box<dyn Reader> = if threads {
            let inputs = paths.iter().map(|path| open_stream(path.as_ref()));
            Box::new(Drmemtrace::files(inputs.collect::<Result<_, _>>()?, options.lanes)?)
        } else {
            Box::new(Mix::new(traces))
        };
        Ok(Trace::new(&path, format, reader))
    }

    /// Reads a trace that is not compressed from anything that can be read; `path` is its name in errors.
    ///
    /// # Errors
    ///
    /// As [`Trace::open`].
    pub fn from_reader(
        path: &Path,
        source: Box<dyn Read + Send>,
        options: &Options,
    ) -> Result<Trace, ImportError> {
        Trace::of(Input::new(path, source, None), options)
    }

    fn of(mut input: Input, options: &Options) -> Result<Trace, ImportError> {
        let format = match options.format {
            Some(format) => format,
            None => detect::detect(&mut input)?,
        };
        let path = input.path().to_owned();
        let reader: Box<dyn Reader> = match format {
            Format::Lackey => Box::new(TextReader::<lackey::Lackey>::new(input)),
            Format::Plain => Box::new(TextReader::<plain::Plain>::new(input)),
            Format::Ramulator => Box::new(TextReader::<ramulator::Ramulator>::new(input)),
            Format::Pinatrace => Box::new(TextReader::<pinatrace::Pinatrace>::new(input)),
            Format::ChampSim => Box::new(ChampSim::new(input, champsim::CHAMPSIM)),
            Format::Cloudsuite => Box::new(ChampSim::new(input, champsim::CLOUDSUITE)),
            Format::Gem5 => Box::new(Gem5::new(input)),
            Format::Drmemtrace => Box::new(Drmemtrace::file(input, options.lanes)),
        };
        Ok(Trace::new(&path, format, reader))
    }

    fn new(path: &Path, format: Format, reader: Box<dyn Reader>) -> Trace {
        Trace { path: path.to_owned(), format, reader, ended: false }
    }

    /// The file or directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format it is in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Replaces the batch's references by the next ones; false when there are none any more.
    ///
    /// # Errors
    ///
    /// Where the trace cannot be read further. The batch then holds the references up to there, and
    /// the trace has ended.
    pub fn next(&mut self, batch: &mut References) -> Result<bool, ImportError> {
        batch.list.clear();
        if self.ended {
            return Ok(false);
        }
        let more = self.reader.fill(batch).inspect_err(|_| self.ended = true)?;
        self.ended = !more;
        Ok(more || !batch.list.is_empty())
    }

    /// What has to be known to judge results from this trace; complete once it has ended.
    pub fn notes(&self) -> Vec<String> {
        self.reader.notes()
    }

    /// The architecture of the traced machine, where the trace tells; known after the first references.
    pub fn arch(&self) -> Option<Arch> {
        self.reader.arch()
    }

    /// The lanes met so far, at the index that [`Reference::lane`] names.
    pub fn lanes(&self) -> Vec<Lane> {
        self.reader.lanes()
    }
}

/// Opens a file as the stream of what is inside its compression or its archive.
fn open_stream(path: &Path) -> Result<Input, ImportError> {
    let io = |error| ImportError::whole(path, Cause::Io(error));
    let mut magic = Vec::with_capacity(4);
    std::fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic)).map_err(io)?;
    if magic == zip::MAGIC { zip::open(path) } else { compression::open(path) }
}

/// The error that the trace in the file `path`, which was read to its end, has no accesses: cut between two
/// records, a trace without an end of its own looks whole. It says where the end is, inside of a compression too.
pub(crate) fn without_accesses(path: &Path) -> ImportError {
    let to_end = || {
        let mut input = open_stream(path)?;
        while input.ensure(1)? {
            input.consume(input.data().len());
        }
        let cause = Cause::Refused("the trace ends here and has no accesses".to_owned());
        Ok::<_, ImportError>(input.error(0, cause))
    };
    to_end().unwrap_or_else(|error| error)
}
