//! Guest tables for traces that have none.
//!
//! Traces of other tools hold the virtual addresses of programs and nothing of how they were translated.
//! [`MadeTables`] runs such a trace as if it were a recording: it makes guest tables by a stated
//! [`Policy`] and gives, beside the accesses, the events that a recording would have: the registers and
//! roots at the start, every store to a page table, and the switches between processes. The same trace
//! and policy always give the same stream.
//!
//! What is made:
//!
//! - **Order.** A page is mapped just before its first access, and its frame and those of the tables it
//!   needs are the next free ones of the guest's memory. Tables begin empty but for their root.
//! - **Page size.** [`Pages::Small`]: 4 KiB throughout. [`Pages::Transparent`]: as transparent huge pages
//!   under `always`, a 2 MiB-aligned region is one 2 MiB page from its first access on when it lies
//!   wholly inside a mapping and no instruction is fetched from it. A trace does not tell the mappings
//!   apart, so a first pass takes touched pages with holes of less than 2 MiB between them for one.
//! - **Fragmentation**, 0 to 100 percent: so many of the requests for 2 MiB fail, and the region gets
//!   4 KiB pages; so many 4 KiB frames come from another, randomly chosen place.
//! - **Attributes.** User, writable, accessed; dirty if the first access is a store, executable if
//!   something in the same 2 MiB is fetched.
//!
//! What is not made: the guest kernel. Its page-fault handler makes no accesses, the stores to the tables
//! are events without an [`Access`], and nothing is ever unmapped.
//!
//! The trace is read twice: the first pass finds the vCPUs, the mappings and how much memory is needed.

mod encoding;
mod frames;
mod record;
mod survey;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use encoding::{Encoding, INDEX_BITS, PAGE_BITS};
use frames::Frames;
use survey::{REGION_PAGES, Survey};

use crate::import::{
    Cause, ImportError, Options, Place, Reference, References, Trace, without_accesses,
};
use crate::{Access, Arch, Batch, Event, Kind, Machine, Source};

pub use record::{RecordError, Recorded};
pub use survey::Counts;

/// Which page sizes made tables have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB throughout.
    #[default]
    Small,
    /// 2 MiB where transparent huge pages would be, else 4 KiB.
    Transparent,
}

/// How guest tables are made. [`Policy::default`] is 4 KiB pages in order, without fragmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The page sizes.
    pub pages: Pages,
    /// Percent of disorder in the guest's physical memory, 0 to 100; more counts as 100.
    pub fragmentation: u8,
    /// Decides what fragmentation leaves to chance.
    pub seed: u64,
    /// The most memory, in bytes, that the guest may need; bounds what a trace can ask for.
    pub memory: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { pages: Pages::Small, fragmentation: 0, seed: 1, memory: 16 << 30 }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.pages {
            Pages::Small => "4K pages",
            Pages::Transparent => "2M pages where transparent huge pages would be, else 4K",
        })?;
        f.write_str(", frames in order of first touch")?;
        match self.fragmentation {
            0 => Ok(()),
            percent => write!(f, " with {percent} % fragmentation (seed {})", self.seed),
        }
    }
}

/// What to do with a trace that is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Damage {
    /// Refuse it.
    #[default]
    Refuse,
    /// Take what comes before the damage, and say so in the notes.
    TakeWhatPrecedes,
}

/// One address space: its tables and what is mapped.
#[derive(Debug)]
struct Space {
    root: u64,
    /// Guest-physical address of each table below the root, by level and prefix.
    tables: HashMap<(u8, u64), u64>,
    /// Frames of 4 KiB pages.
    small: HashMap<u64, u32>,
    /// First frames of 2 MiB regions; none where 4 KiB pages had to do.
    huge: HashMap<u64, Option<u32>>,
}

impl Space {
    /// The frame of a page, if it is mapped.
    fn frame(&self, page: u64) -> Option<u32> {
        match self.huge.get(&(page / REGION_PAGES)) {
            Some(Some(first)) => Some(first + (page % REGION_PAGES) as u32),
            _ => self.small.get(&page).copied(),
        }
    }
}

/// A translation that was used lately.
#[derive(Clone, Copy, Debug)]
struct Recent {
    page: u64,
    space: u16,
    frame: u32,
}

/// Recent translations that are kept; a power of two.
const RECENT: usize = 1 << 12;

/// A trace with made tables: a [`Source`] like a recording.
#[derive(Debug)]
pub struct MadeTables {
    trace: Trace,
    policy: Policy,
    machine: Machine,
    survey: Survey,
    frames: Frames,
    /// Which space each vCPU runs in.
    running: Vec<u16>,
    spaces: Vec<Option<Space>>,
    recent: Box<[Option<Recent>]>,
    references: References,
    /// What the format leaves open, from the first pass.
    format_notes: Vec<String>,
    begun: bool,
    given: u64,
}

impl MadeTables {
    /// Opens a trace, or several as one, and reads it once to the end, to find out what the tables must be.
    ///
    /// # Errors
    ///
    /// As [`Trace::open_all`]; where the trace is damaged, unless `damage` accepts that; when it has no
    /// accesses, an address that no program can have, more than 255 threads, or needs more memory than
    /// the policy allows.
    pub fn open(
        paths: &[impl AsRef<Path>],
        options: &Options,
        policy: Policy,
        damage: Damage,
    ) -> Result<Self, ImportError> {
        let policy = Policy { fragmentation: policy.fragmentation.min(100), ..policy };
        let mut trace = Trace::open_all(paths, options)?;
        let survey = survey::survey(&mut trace, &policy, damage == Damage::TakeWhatPrecedes)?;
        let path = trace.path().to_owned();
        let refuse = |what: String| ImportError::whole(&path, Cause::Refused(what));
        if survey.counts.accesses() == 0 {
            let whole = || match paths {
                [_] if path.is_file() => without_accesses(&path),
                [_] => refuse("the trace has no accesses".to_owned()),
                all => refuse(format!("this and the other {} have no accesses", all.len() - 1)),
            };
            return Err(survey.damage.unwrap_or_else(whole));
        }
        // The first block stays free, as low memory does on a PC; Arm's memory begins at 1 GiB.
        let start = match survey.encoding.arch {
            Arch::X86_64 => 0,
            Arch::Aarch64 => 1 << (30 - PAGE_BITS),
        };
        let end = start + (1 + survey.blocks) * REGION_PAGES;
        let needed = (end - start) << PAGE_BITS;
        if needed > policy.memory || u32::try_from(end).is_err() {
            return Err(refuse(format!(
                "its pages and tables need {} MiB of guest memory, {} MiB are allowed; allow more",
                needed >> 20,
                policy.memory >> 20
            )));
        }
        let vcpus = u8::try_from(survey.lanes.len()).expect("the survey refuses more");
        let memory = Some(start << PAGE_BITS..end << PAGE_BITS);
        Ok(MadeTables {
            trace: Trace::open_all(paths, options)?,
            machine: Machine { arch: survey.encoding.arch, vcpus, tables: true, memory },
            frames: Frames::new(start + REGION_PAGES, end, policy.fragmentation, policy.seed),
            running: survey.lanes.clone(),
            spaces: (0..survey.spaces.len()).map(|_| None).collect(),
            recent: vec![None; RECENT].into_boxed_slice(),
            references: References::default(),
            format_notes: trace.notes(),
            begun: false,
            given: 0,
            policy,
            survey,
        })
    }

    /// The trace.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// How many accesses the stream has, known from the first pass.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.survey.counts
    }

    /// How the tables are made.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// What has to be known to judge results from this stream: first that the tables were made and how,
    /// then what the format leaves open.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let Encoding { arch, levels } = self.survey.encoding;
        let arch = match arch {
            Arch::X86_64 => "x86-64",
            Arch::Aarch64 => "AArch64",
        };
        let mut notes = vec![format!(
            "the trace has no tables; guest tables were made: {arch}, {levels} levels, {}",
            self.policy
        )];
        notes.extend(self.format_notes.iter().cloned());
        if let Some(damage) = &self.survey.damage {
            notes.push(format!("only what precedes the damage was taken: {damage}"));
        }
        notes
    }

    fn error(&self, cause: Cause) -> ImportError {
        ImportError { path: self.trace.path().to_owned(), place: Place::Access(self.given), cause }
    }

    /// The registers and roots of every vCPU.
    fn begin(&mut self, batch: &mut Batch) -> Result<(), ImportError> {
        for vcpu in 0..self.machine.vcpus {
            for event in self.survey.encoding.controls() {
                batch.event(vcpu, event);
            }
            self.switch(batch, vcpu, self.running[usize::from(vcpu)])?;
            batch.event(vcpu, Event::Mode { user: true });
        }
        Ok(())
    }

    /// Makes `space` the one that the vCPU runs in.
    fn switch(&mut self, batch: &mut Batch, vcpu: u8, space: u16) -> Result<(), ImportError> {
        let encoding = self.survey.encoding;
        let index = usize::from(space);
        if index >= self.spaces.len() {
            self.spaces.resize_with(index + 1, || None);
        }
        if self.spaces[index].is_none() {
            let root = self.frame()? << PAGE_BITS;
            self.spaces[index] = Some(Space {
                root,
                tables: HashMap::new(),
                small: HashMap::new(),
                huge: HashMap::new(),
            });
            batch.event(vcpu, encoding.root(root, space));
            batch.event(
                vcpu,
                Event::TablePage { gpa: root, level: encoding.levels - 1, fresh: true },
            );
        } else if let Some(made) = &self.spaces[index] {
            batch.event(vcpu, encoding.root(made.root, space));
        }
        self.running[usize::from(vcpu)] = space;
        Ok(())
    }

    fn frame(&mut self) -> Result<u64, ImportError> {
        let frame = self.frames.small();
        frame.ok_or_else(|| {
            self.error(Cause::Refused("the trace changed while it was read: read it again".into()))
        })
    }

    /// Gives one access, after the events that it needs.
    fn give(&mut self, batch: &mut Batch, reference: &Reference) -> Result<(), ImportError> {
        let lane = usize::from(reference.lane);
        let changed =
            || Cause::Refused("the trace changed while it was read: read it again".into());
        if lane >= self.running.len() {
            return Err(self.error(changed()));
        }
        let vcpu = reference.lane as u8;
        if self.running[lane] != reference.space {
            self.switch(batch, vcpu, reference.space)?;
        }
        let encoding = self.survey.encoding;
        let normal = |address| encoding.normal(address);
        let behind = u64::from(reference.size.max(1)) - 1;
        let (Some(va), Some(last)) =
            (normal(reference.address), normal(reference.address.wrapping_add(behind)))
        else {
            return Err(self.error(changed()));
        };
        let store = reference.kind == Kind::Store;
        let frame = self.mapped(batch, vcpu, reference.space, va >> PAGE_BITS, store)?;
        for page in (va >> PAGE_BITS) + 1..=last >> PAGE_BITS {
            self.mapped(batch, vcpu, reference.space, page, store)?;
        }
        batch
            .accesses
            .push(Access::new(reference.kind, va, reference.size).on(vcpu).with_frame(frame));
        batch.instructions += u64::from(reference.kind == Kind::Fetch);
        self.given += 1;
        Ok(())
    }

    /// The frame of a page that is mapped under the root register's `value`.
    fn frame_under(&self, value: u64, page: u64) -> Option<u32> {
        let gpa = value & 0xffff_ffff_f000;
        self.spaces.iter().flatten().find(|space| space.root == gpa)?.frame(page)
    }

    /// The frame of a page, which is mapped first if it is not yet.
    fn mapped(
        &mut self,
        batch: &mut Batch,
        vcpu: u8,
        space: u16,
        page: u64,
        store: bool,
    ) -> Result<u32, ImportError> {
        let slot = (page as usize ^ usize::from(space)) % RECENT;
        if let Some(recent) = self.recent[slot]
            && recent.page == page
            && recent.space == space
        {
            return Ok(recent.frame);
        }
        let made = self.spaces[usize::from(space)].as_ref().expect("a running space is made");
        let frame = match made.frame(page) {
            Some(frame) => frame,
            None => self.map(batch, vcpu, space, page, store)?,
        };
        self.recent[slot] = Some(Recent { page, space, frame });
        Ok(frame)
    }

    /// Maps a page that is not mapped, with the tables that it needs.
    fn map(
        &mut self,
        batch: &mut Batch,
        vcpu: u8,
        space: u16,
        page: u64,
        store: bool,
    ) -> Result<u32, ImportError> {
        let encoding = self.survey.encoding;
        let index = usize::from(space);
        let va = page << PAGE_BITS;
        let number = page / REGION_PAGES;
        let region = self
            .survey
            .spaces
            .get(index)
            .and_then(|regions| regions.get(&number))
            .copied()
            .unwrap_or_default();

        let undecided =
            !self.spaces[index].as_ref().is_some_and(|made| made.huge.contains_key(&number));
        let huge = if region.huge && undecided { self.frames.huge() } else { None };
        let level = u8::from(huge.is_some());

        let mut table = self.spaces[index].as_ref().expect("a running space is made").root;
        for below in (level..encoding.levels - 1).rev() {
            let key = (below, encoding.prefix(va, below));
            let known = self.spaces[index].as_ref().and_then(|made| made.tables.get(&key)).copied();
            table = match known {
                Some(gpa) => gpa,
                None => {
                    let gpa = self.frame()? << PAGE_BITS;
                    let entry = table + 8 * encoding.index(va, below + 1);
                    batch.event(vcpu, Event::TableStore { gpa: entry, value: encoding.table(gpa) });
                    batch.event(vcpu, Event::TablePage { gpa, level: below, fresh: true });
                    self.spaces[index]
                        .as_mut()
                        .expect("a running space is made")
                        .tables
                        .insert(key, gpa);
                    gpa
                }
            };
        }
        let first = match huge {
            Some(first) => first,
            None => self.frame()?,
        };
        let leaf = encoding.leaf(first << PAGE_BITS, level, store, region.fetched);
        batch.event(
            vcpu,
            Event::TableStore { gpa: table + 8 * encoding.index(va, level), value: leaf },
        );

        let first = u32::try_from(first).expect("memory ends below 2^32 frames");
        let made = self.spaces[index].as_mut().expect("a running space is made");
        if region.huge && undecided {
            made.huge.insert(number, huge.map(|_| first));
        }
        if huge.is_some() {
            return Ok(first + (page % REGION_PAGES) as u32);
        }
        made.small.insert(page, first);
        Ok(first)
    }
}

const _: () = assert!(REGION_PAGES == 1 << INDEX_BITS);

impl Source for MadeTables {
    type Error = ImportError;

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn next(&mut self, batch: &mut Batch) -> Result<bool, ImportError> {
        batch.clear();
        if !self.begun {
            self.begun = true;
            self.begin(batch)?;
        }
        let mut references = std::mem::take(&mut self.references);
        let outcome = self.trace.next(&mut references);
        // The damage may be an access that the survey did not take.
        let left = self.survey.counts.accesses() - self.given;
        let mut taken =
            references.as_slice().iter().take(usize::try_from(left).unwrap_or(usize::MAX));
        let given = taken.try_for_each(|reference| self.give(batch, reference));
        self.references = references;
        given?;
        match outcome {
            Ok(_) => Ok(!batch.is_empty()),
            Err(_) if self.survey.damage.is_some() => Ok(!batch.is_empty()),
            Err(error) => Err(error),
        }
    }
}
