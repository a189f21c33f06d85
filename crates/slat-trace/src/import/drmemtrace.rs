//! DynamoRIO's drmemtrace, the final form that its `raw2trace` writes.
//!
//! Packed little-endian records of 12 bytes, `u16 type, u16 size, u64 address` (DynamoRIO's
//! `clients/drcachesim/common/trace_entry.h`, format versions 1 to 7). Where a type is not an access,
//! the other two fields hold something else: for a marker the size is the marker's type, for a bundle
//! of instructions the address holds their lengths.
//!
//! A directory has one file a thread. Threads are put in order by the time stamps in their files, as
//! DynamoRIO's own tools do.

mod thread;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::{Path, PathBuf};

use super::error::{Cause, ImportError};
use super::input::Input;
use super::{Lane, LaneBy, Reader, References, open_stream};
use crate::Arch;
use thread::{LeftOut, Pause, ThreadFile};

/// Bytes of a record.
const RECORD: usize = 12;

/// More files at once than a process may usually have open; also bounds the memory for their buffers.
const MOST_FILES: usize = 1000;

/// Threads, and processes, that have numbers.
const MOST_THREADS: usize = 65535;

/// `trace_type_t`.
mod kind {
    pub(super) const READ: u16 = 0;
    pub(super) const WRITE: u16 = 1;
    pub(super) const PREFETCH_FIRST: u16 = 2;
    pub(super) const PREFETCH_LAST: u16 = 9;
    pub(super) const INSTR: u16 = 10;
    pub(super) const INSTR_RETURN: u16 = 16;
    pub(super) const INSTR_BUNDLE: u16 = 17;
    pub(super) const FLUSH_FIRST: u16 = 18;
    pub(super) const FLUSH_LAST: u16 = 21;
    pub(super) const THREAD: u16 = 22;
    pub(super) const THREAD_EXIT: u16 = 23;
    pub(super) const PID: u16 = 24;
    pub(super) const HEADER: u16 = 25;
    pub(super) const FOOTER: u16 = 26;
    pub(super) const HARDWARE_PREFETCH: u16 = 27;
    pub(super) const MARKER: u16 = 28;
    pub(super) const INSTR_NO_FETCH: u16 = 29;
    pub(super) const INSTR_SYSENTER: u16 = 31;
    pub(super) const PREFETCH_LEVEL_FIRST: u16 = 32;
    pub(super) const PREFETCH_LEVEL_LAST: u16 = 46;
    pub(super) const ENCODING: u16 = 47;
    pub(super) const INSTR_TAKEN_JUMP: u16 = 48;
    pub(super) const INSTR_UNTAKEN_JUMP: u16 = 49;
}

/// `trace_marker_type_t`, those that matter here.
mod marker {
    pub(super) const TIMESTAMP: u16 = 2;
    pub(super) const CPU_ID: u16 = 3;
    pub(super) const FILETYPE: u16 = 9;
}

/// `OFFLINE_FILE_TYPE_FILTERED`, `_IFILTERED` and `_DFILTERED`.
const FILTERED: u64 = 0x01 | 0x80 | 0x100;

/// `OFFLINE_FILE_TYPE_ARCH_AARCH64` and `_X86_64`.
const ARCH_AARCH64: u64 = 0x08;
const ARCH_X86_64: u64 = 0x40;

/// Whether a stream that begins with `head` is a final trace.
pub(crate) fn fits(head: &[u8]) -> bool {
    head.len() >= RECORD
        && head[..4] == [kind::HEADER as u8, 0, 0, 0]
        && (1..=0xff).contains(&word(head))
}

/// The remedy when `head` is of a drmemtrace form that is not read: raw, or of a 32-bit process.
pub(crate) fn refused(head: &[u8]) -> Option<&'static str> {
    let first = u64::from_le_bytes(*head.first_chunk()?);
    // offline_entry_t.extended: 48 bits of value A, 8 of value B, 5 of sub-type, 3 of type.
    let (a, b, sub_type, of_type) =
        (first & ((1 << 48) - 1), first >> 48 & 0xff, first >> 56 & 0x1f, first >> 61);
    let raw = of_type == 6
        && ((sub_type == 0 && (1..32).contains(&a)) || (sub_type == 4 && (1..32).contains(&b)));
    if raw {
        return Some(
            "this is a raw drmemtrace file; turn its directory into a final trace first: \
             drrun -t drmemtrace -indir DIR (or drraw2trace -indir DIR), then import DIR/trace",
        );
    }
    let narrow =
        head.len() >= RECORD && head[..4] == [kind::HEADER as u8, 0, 0, 0] && head[5..8] == [0; 3];
    (narrow && head[4] != 0 && head[8..12] != [0; 4]).then_some(
        "this is a drmemtrace trace of a 32-bit process; only those of 64-bit processes are read",
    )
}

fn word(record: &[u8]) -> u64 {
    u64::from_le_bytes(record[4..12].try_into().expect("eight bytes"))
}

/// Gives dense numbers to threads or CPUs, and to processes.
struct Lanes {
    by: LaneBy,
    lanes: BTreeMap<u64, u16>,
    spaces: BTreeMap<u64, u16>,
    /// The process of each thread, for the files that name it only once.
    processes: BTreeMap<u64, u64>,
    list: Vec<Lane>,
    arch: Option<Arch>,
}

impl Lanes {
    fn new(by: LaneBy) -> Self {
        Lanes {
            by,
            lanes: BTreeMap::new(),
            spaces: BTreeMap::new(),
            processes: BTreeMap::new(),
            list: Vec::new(),
            arch: None,
        }
    }

    /// The numbers of the lane and of the address space; none when [`MOST_THREADS`] of either are not enough.
    fn number(&mut self, process: u64, thread: u64, cpu: Option<u64>) -> Option<(u16, u16)> {
        let key = match self.by {
            LaneBy::Thread => thread,
            LaneBy::Cpu => cpu.unwrap_or(u64::MAX),
            LaneBy::One => 0,
        };
        let next = u16::try_from(self.lanes.len()).ok()?;
        let lane = *self.lanes.entry(key).or_insert(next);
        if usize::from(lane) == self.list.len() {
            self.list.push(match self.by {
                LaneBy::Thread => Lane::Thread { process, thread },
                LaneBy::Cpu => Lane::Cpu(cpu),
                LaneBy::One => Lane::Only,
            });
        }
        let next = u16::try_from(self.spaces.len()).ok()?;
        let space = *self.spaces.entry(process).or_insert(next);
        Some((lane, space))
    }
}

/// Reads one file, or all threads of a directory in the order of their time stamps.
pub(crate) struct Drmemtrace {
    files: Vec<ThreadFile>,
    /// Time stamp and index of each file that waits; the earliest goes next, equal ones by file name.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    running: Option<usize>,
    lanes: Lanes,
    left_out: LeftOut,
    other_files: usize,
}

impl Drmemtrace {
    /// A reader of one file.
    pub(crate) fn file(input: Input, by: LaneBy) -> Self {
        Drmemtrace::of(vec![ThreadFile::new(input)], by, 0)
    }

    /// A reader of several threads' files.
    ///
    /// # Errors
    ///
    /// When they are more than a thousand.
    pub(crate) fn files(inputs: Vec<Input>, by: LaneBy) -> Result<Self, ImportError> {
        if inputs.len() > MOST_FILES {
            return Err(too_many(inputs[0].path()));
        }
        Ok(Drmemtrace::of(inputs.into_iter().map(ThreadFile::new).collect(), by, 0))
    }

    fn of(files: Vec<ThreadFile>, by: LaneBy, other_files: usize) -> Self {
        let waiting = (0..files.len()).map(|index| Reverse((0, index))).collect();
        let (lanes, left_out) = (Lanes::new(by), LeftOut::default());
        Drmemtrace { files, waiting, running: None, lanes, left_out, other_files }
    }

    /// A reader of a directory: of all files in it, or in its subdirectory `trace`, that are final traces.
    ///
    /// # Errors
    ///
    /// When the directory cannot be listed, has no final trace, or more than a thousand.
    pub(crate) fn directory(path: &Path, by: LaneBy) -> Result<Self, ImportError> {
        let mut remedy = None;
        for directory in [path.to_owned(), path.join("trace")] {
            if !directory.is_dir() {
                continue;
            }
            let (mut files, mut other_files) = (Vec::new(), 0);
            for file in listed(&directory)? {
                match probe(&file)? {
                    Probe::Trace(input) if files.len() < MOST_FILES => {
                        files.push(ThreadFile::new(input))
                    }
                    Probe::Trace(_) => return Err(too_many(path)),
                    Probe::Refused(text) => remedy = Some(text),
                    Probe::Other => other_files += 1,
                }
            }
            if !files.is_empty() {
                return Ok(Drmemtrace::of(files, by, other_files));
            }
        }
        if remedy.is_none() && path.join("raw").is_dir() {
            remedy = Some(
                "it holds a raw drmemtrace trace; make the final one first: drrun -t drmemtrace -indir DIR \
                 (or drraw2trace -indir DIR)"
                    .to_owned(),
            );
        }
        Err(ImportError::whole(
            path,
            match remedy {
                Some(remedy) => Cause::Refused(remedy),
                None => Cause::Unknown("no file in this directory is a drmemtrace trace".into()),
            },
        ))
    }
}

fn too_many(path: &Path) -> ImportError {
    let what = format!("more than {MOST_FILES} threads' files; import a part of them at a time");
    ImportError::whole(path, Cause::Refused(what))
}

fn listed(directory: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let io = |error| ImportError::whole(directory, Cause::Io(error));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What a file in a directory turned out to be.
enum Probe {
    Trace(Input),
    Refused(String),
    Other,
}

fn probe(path: &Path) -> Result<Probe, ImportError> {
    let mut input = match open_stream(path) {
        Ok(input) => input,
        Err(ImportError { cause: Cause::Refused(remedy), .. }) => {
            return Ok(Probe::Refused(format!("{}: {remedy}", path.display())));
        }
        Err(error) => return Err(error),
    };
    let head = input.peek(RECORD);
    if fits(head) {
        return Ok(Probe::Trace(input));
    }
    Ok(match refused(head) {
        Some(remedy) => Probe::Refused(format!("{}: {remedy}", path.display())),
        None => Probe::Other,
    })
}

impl Reader for Drmemtrace {
    fn fill(&mut self, batch: &mut References) -> Result<bool, ImportError> {
        while !batch.is_full() {
            let index = match self.running {
                Some(index) => index,
                None => match self.waiting.pop() {
                    None => return Ok(false),
                    Some(Reverse((_, index))) => index,
                },
            };
            self.running = Some(index);
            match self.files[index].run(&mut self.lanes, &mut self.left_out, batch)? {
                Pause::Full => {}
                Pause::End => self.running = None,
                Pause::Time(time) => {
                    self.running = None;
                    self.waiting.push(Reverse((time, index)));
                }
            }
        }
        Ok(true)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.left_out.prefetches > 0 {
            notes.push(format!("{} prefetches were left out", self.left_out.prefetches));
        }
        if self.left_out.filtered {
            notes.push("the trace was filtered while it was made: accesses that hit its filter are missing".to_owned());
        }
        if self.other_files > 0 {
            notes.push(format!(
                "{} files of the directory are not traces and were left out",
                self.other_files
            ));
        }
        notes
    }

    fn arch(&self) -> Option<Arch> {
        self.lanes.arch
    }

    fn lanes(&self) -> Vec<Lane> {
        self.lanes.list.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_and_narrow_files_are_told_apart_from_final_ones() {
        let header = |version: u64| {
            let mut head = vec![25, 0, 0, 0];
            head.extend(version.to_le_bytes());
            head
        };
        assert!(fits(&header(7)) && refused(&header(7)).is_none());
        assert!(!fits(&header(0)) && !fits(&header(7)[..11]));
        let raw = (6u64 << 61 | 4 << 56 | 7 << 48 | 0x240).to_le_bytes();
        assert!(refused(&raw).unwrap().contains("raw"));
        let narrow = [25, 0, 0, 0, 7, 0, 0, 0, 28, 0, 12, 0];
        assert!(refused(&narrow).unwrap().contains("32-bit"));
    }
}
