//! The stale-translation checker: a processor that forgets nothing it is not made to forget.
//!
//! Run page-table code under it in a unit test. Between the steps of that code the checker
//! [speculates](Checker::speculate): it walks everything that a processor could walk, from the root
//! and from every table entry it still holds, and keeps each translation, each table entry and
//! (where the architecture caches them) each invalid entry, under the id that it ran with. The code's
//! invalidations drop exactly what the architecture says they must and no more
//! ([`Checker::intel`], [`Checker::amd`], [`Checker::arm64`], [`Checker::riscv`], or
//! [`Checker::invalidate`] for a machine of one's own). When the code declares an invalidation
//! [complete](Checker::complete), every surviving copy that the tables no longer justify is a
//! [`Finding`], and so is each [use](Checker::access) of one afterwards. Before a frame is used again,
//! [`Checker::freed`] tells whether anything can still reach it.
//!
//! The [crate's front page](crate) has an example that catches a forgotten flush.
//!
//! What it does not see: entries that exist only between two calls of `speculate`. Code that stores
//! an entry in pieces shows it if it speculates between them (from a memory's `publish`, say).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use slat::edit::Encode;
use slat::format::{Decoded, Found, Path};
use slat::invalidate::Context;
use slat::{Access, Address, Kind, Memory, Privilege, Purpose, Regime, Stage1Page};

mod amd;
mod arm64;
mod intel;
mod riscv;
mod words;

pub use words::Words;

/// What a processor may keep.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum What {
    /// A leaf: a translation by these tables alone (of a second stage: a guest-physical mapping).
    Translation,
    /// A translation of both stages that was made with this leaf: it is found by guest virtual
    /// address, so that invalidations by guest physical address do not reach it.
    Combined,
    /// An entry that points at a table.
    Table,
    /// An entry that translates nothing.
    Invalid,
}

/// One kept copy, as an invalidation sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// The id that it is tagged with.
    pub context: Context,
    /// What was kept.
    pub what: What,
    /// Level of the entry that was kept.
    pub level: u8,
    /// First input address that it translates.
    pub start: u64,
    /// The last.
    pub last: u64,
}

impl Copy {
    /// Whether it translates any address of `range`.
    pub fn overlaps(&self, range: &RangeInclusive<u64>) -> bool {
        self.start <= *range.end() && self.last >= *range.start()
    }
}

/// Why a copy is not justified.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Why {
    /// The tables no longer translate some of its addresses.
    Unmapped,
    /// They translate some of them to another place.
    Moved,
    /// They permit less.
    Rights,
    /// They give another memory type.
    MemoryType,
    /// The entry is clean, and a store by this copy would not set its dirty bit.
    Dirty,
    /// The entry is not accessed, and a use of this copy would not set its accessed bit.
    Accessed,
    /// The table entry names another table now, or none, or restricts more.
    TableChanged,
    /// An entry that was invalid translates now, and this copy would still fault.
    NowMapped,
    /// The frame is in other hands.
    Freed,
}

/// A copy that is wrong to exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The copy.
    pub copy: Copy,
    /// Why it is wrong.
    pub why: Why,
    /// The leaf entry, or the address of the table that is named.
    pub entry: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { copy, why, entry } = self;
        let what = match copy.what {
            What::Translation => "translation",
            What::Combined => "combined translation",
            What::Table => "table entry",
            What::Invalid => "invalid entry",
        };
        let why = match why {
            Why::Unmapped => "the tables no longer translate it",
            Why::Moved => "the tables translate it to another place",
            Why::Rights => "the tables permit less",
            Why::MemoryType => "the tables give another memory type",
            Why::Dirty => "a store by it would not set the dirty bit",
            Why::Accessed => "a use of it would not set the accessed bit",
            Why::TableChanged => "the entry names another table now, or none",
            Why::NowMapped => "the tables translate it now",
            Why::Freed => "the frame that it reaches was freed",
        };
        write!(
            f,
            "{}: a {what} of level {} for {:#x}..={:#x} ({entry:#x}) is still held: {why}",
            copy.context, copy.level, copy.start, copy.last
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    space: usize,
    start: u64,
    what: What,
    level: u8,
    /// log2 of the bytes that it translates.
    shift: u8,
    /// The leaf entry, or the address of the table that a table entry names.
    entry: u64,
    /// Of the entries above, and of itself for a table entry, without accessed bits.
    path: (u64, u64, u64),
}

/// A processor that keeps everything. See the [module's page](self).
#[derive(Debug)]
pub struct Checker<F> {
    format: F,
    regime: Regime,
    caches_invalid: bool,
    spaces: Vec<(Context, u64)>,
    kept: BTreeSet<Key>,
    /// Copies that survived a completed invalidation, and why they should not have.
    stale: BTreeMap<Key, Why>,
    /// Invalidations that are not complete yet.
    amd: Vec<slat::invalidate::amd::Instruction>,
    arm64: Vec<(slat::invalidate::arm64::Operation, u64, u16)>,
    riscv: Vec<slat::invalidate::riscv::Instruction>,
    /// RISC-V: stores were ordered before the invalidations that follow.
    stores_ordered: bool,
}

/// Every access that rights tell apart.
const ACCESSES: [(Kind, Privilege); 6] = [
    (Kind::Read, Privilege::Supervisor),
    (Kind::Write, Privilege::Supervisor),
    (Kind::Execute, Privilege::Supervisor),
    (Kind::Read, Privilege::User),
    (Kind::Write, Privilege::User),
    (Kind::Execute, Privilege::User),
];

/// One entry of a descent.
struct Seen {
    level: u8,
    decoded: Decoded,
    path: Path,
}

impl<F: Encode> Checker<F> {
    /// A processor for tables of this format, with nothing kept. It keeps invalid entries where the
    /// format's architecture permits that (RISC-V).
    pub fn new(format: F) -> Self {
        Checker {
            format,
            regime: Regime::default(),
            caches_invalid: format.caches_invalid(),
            spaces: Vec::new(),
            kept: BTreeSet::new(),
            stale: BTreeMap::new(),
            amd: Vec::new(),
            arm64: Vec::new(),
            riscv: Vec::new(),
            stores_ordered: false,
        }
    }

    /// The processor may run with this id and root table from now on; an id that was there before
    /// gets another root, and keeps its copies.
    pub fn run(&mut self, context: Context, root: u64) {
        match self.spaces.iter_mut().find(|(known, _)| *known == context) {
            Some((_, table)) => *table = root,
            None => self.spaces.push((context, root)),
        }
    }

    /// How many copies are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn entries(&self, level: u8) -> u64 {
        if level == self.format.top() {
            1 << (self.format.input_bits() - self.format.shift(level))
        } else {
            1 << self.format.index_bits(level)
        }
    }

    /// A table entry of `level` joined to what is above, as if its accessed bit were set.
    fn joined(&self, path: Path, entry: u64, level: u8) -> Path {
        let mut path = path;
        let entry = self.format.touched(entry, level, false, &asked(Kind::Read, 0));
        self.format.join(&mut path, entry, level);
        path
    }

    /// Walks all that a processor could walk, from each root and each table entry that is held, and
    /// keeps what it finds. Memory that is not there is passed over.
    pub fn speculate<M: Memory>(&mut self, memory: &mut M) {
        let top = self.format.top();
        let mut due: Vec<(usize, u8, u64, u64, Path)> = self
            .spaces
            .iter()
            .enumerate()
            .map(|(space, &(_, root))| (space, top, root, 0, Path::START))
            .collect();
        due.extend(
            self.kept
                .iter()
                .filter(|key| key.what == What::Table)
                .map(|key| (key.space, key.level - 1, key.entry, key.start, path(key.path))),
        );
        let mut walked = BTreeSet::new();
        let layout = self.format.layout();
        while let Some((space, level, table, start, above)) = due.pop() {
            if !walked.insert((space, level, table, start, parts(above))) {
                continue;
            }
            let shift = self.format.shift(level);
            for index in 0..self.entries(level) {
                let at = M::Address::new(table.wrapping_add(index * layout.size.bytes()));
                let access = Access { purpose: Purpose::Table { level }, ..asked(Kind::Read, 0) };
                let Ok(read) = memory.read(at, layout, &access) else { break };
                let entry = read.value;
                let start = start + (index << shift);
                let key = Key {
                    space,
                    start,
                    what: What::Invalid,
                    level,
                    shift: shift as u8,
                    entry,
                    path: parts(above),
                };
                match self.format.decode(entry, level) {
                    Decoded::Table { next } if level > 0 => {
                        let path = self.joined(above, entry, level);
                        let what = What::Table;
                        self.kept.insert(Key { what, entry: next, path: parts(path), ..key });
                        due.push((space, level - 1, next, start, path));
                    }
                    Decoded::Leaf { shift, .. } => {
                        // Of a contiguous or NAPOT group it may keep the whole by any entry.
                        let shift = self.format.group(entry, level).unwrap_or(shift.into());
                        let start = start >> shift << shift;
                        let shift = shift as u8;
                        let key = Key { start, shift, what: What::Translation, ..key };
                        self.kept.insert(key);
                        if self.format.stage() == 2 {
                            self.kept.insert(Key { what: What::Combined, ..key });
                        }
                    }
                    Decoded::Empty if self.caches_invalid => {
                        self.kept.insert(Key { entry: 0, ..key });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Makes combined translations from every translation that is held, as a processor that walks
    /// stage 1 through them does.
    fn combine(&mut self) {
        let made: Vec<Key> = self
            .kept
            .iter()
            .filter(|key| key.what == What::Translation && self.format.stage() == 2)
            .map(|key| Key { what: What::Combined, ..*key })
            .collect();
        self.kept.extend(made);
    }

    fn copy(&self, key: &Key) -> Copy {
        Copy {
            context: self.spaces[key.space].0,
            what: key.what,
            level: key.level,
            start: key.start,
            last: key.start + ((1u64 << key.shift) - 1),
        }
    }

    fn finding(&self, key: &Key, why: Why) -> Finding {
        Finding { copy: self.copy(key), why, entry: key.entry }
    }

    /// Lets go of every copy that `reaches` names: an invalidation of a machine of one's own.
    pub fn invalidate(&mut self, mut reaches: impl FnMut(&Copy) -> bool) {
        let spaces = &self.spaces;
        self.kept.retain(|key| {
            let copy = Copy {
                context: spaces[key.space].0,
                what: key.what,
                level: key.level,
                start: key.start,
                last: key.start + ((1u64 << key.shift) - 1),
            };
            !reaches(&copy)
        });
        let kept = &self.kept;
        self.stale.retain(|key, _| kept.contains(key));
    }

    /// The software declares that what it changed under `context` in `range` is invalidated. Every
    /// copy there must be justified by the tables as they are; those that are not are returned, and
    /// reported again by each [`access`](Checker::access) that uses them.
    ///
    /// Instructions that still wait for their completion (TLBSYNC, DSB, SFENCE.INVAL.IR) have not
    /// happened.
    pub fn complete<M: Memory>(
        &mut self,
        memory: &mut M,
        context: Context,
        range: RangeInclusive<u64>,
    ) -> Vec<Finding> {
        let all = (1u64 << self.format.input_bits()) - 1;
        let wide = range.end() - range.start() >= all;
        let range = if wide { 0..=all } else { range.start() & all..=range.end() & all };
        let mut findings = Vec::new();
        for key in &self.kept {
            let copy = self.copy(key);
            if copy.context != context || !copy.overlaps(&range) {
                continue;
            }
            match self.judge(memory, key) {
                Some(why) => {
                    findings.push(Finding { copy, why, entry: key.entry });
                    self.stale.insert(*key, why);
                }
                None => {
                    self.stale.remove(key);
                }
            }
        }
        findings
    }

    /// The guest (or the processor on its behalf) uses `input` under `context`: what it may be
    /// served by although it was declared gone.
    pub fn access(&self, context: Context, input: u64) -> Vec<Finding> {
        let input = input & ((1u64 << self.format.input_bits()) - 1);
        self.stale
            .iter()
            .map(|(key, &why)| self.finding(key, why))
            .filter(|finding| {
                finding.copy.context == context && finding.copy.overlaps(&(input..=input))
            })
            .collect()
    }

    /// The software is about to use the frames of `frames` (addresses in the tables' output space)
    /// for something else: every copy by which the processor still reaches them, as a table that it
    /// could walk or as a page that it could access.
    pub fn freed(&self, frames: RangeInclusive<u64>) -> Vec<Finding> {
        let reaches = |key: &&Key| match key.what {
            What::Invalid => false,
            What::Table => {
                let bytes = self.entries(key.level - 1) * self.format.layout().size.bytes();
                key.entry <= *frames.end() && key.entry + (bytes - 1) >= *frames.start()
            }
            What::Translation | What::Combined => match self.format.decode(key.entry, key.level) {
                Decoded::Leaf { base, shift } => {
                    base <= *frames.end() && base + ((1u64 << shift) - 1) >= *frames.start()
                }
                _ => false,
            },
        };
        self.kept.iter().filter(reaches).map(|key| self.finding(key, Why::Freed)).collect()
    }

    /// What the tables say of `input` now: each entry on the way, and the leaf.
    fn descend<M: Memory>(
        &self,
        memory: &mut M,
        space: usize,
        input: u64,
    ) -> (Vec<Seen>, Option<(Found, u8)>) {
        let layout = self.format.layout();
        let mut seen = Vec::new();
        let (mut table, mut level, mut path) =
            (self.spaces[space].1, self.format.top(), Path::START);
        loop {
            let index = (input >> self.format.shift(level)) & (self.entries(level) - 1);
            let at = M::Address::new(table.wrapping_add(index * layout.size.bytes()));
            let access = Access { purpose: Purpose::Table { level }, ..asked(Kind::Read, 0) };
            let Ok(read) = memory.read(at, layout, &access) else { return (seen, None) };
            let decoded = self.format.decode(read.value, level);
            let above = path;
            if let Decoded::Table { next } = decoded
                && level > 0
            {
                path = self.joined(path, read.value, level);
                seen.push(Seen { level, decoded, path });
                (table, level) = (next, level - 1);
                continue;
            }
            seen.push(Seen { level, decoded, path });
            let entry = self.with_group(memory, read.value, level, at);
            let found = self.found(entry, level, input, above);
            return (seen, found);
        }
    }

    /// The entry at `at` with the accessed and dirty state of the whole group that it belongs to.
    fn with_group<M: Memory>(&self, memory: &mut M, entry: u64, level: u8, at: M::Address) -> u64 {
        let Some(shift) = self.format.group(entry, level) else { return entry };
        let layout = self.format.layout();
        let (bytes, count) = (layout.size.bytes(), 1u64 << (shift - self.format.shift(level)));
        let first = at.raw() & !(bytes * count - 1);
        let access = Access { purpose: Purpose::Table { level }, ..asked(Kind::Read, 0) };
        (0..count).fold(entry, |sum, index| {
            match memory.read(M::Address::new(first + index * bytes), layout, &access) {
                Ok(read) if self.format.group(read.value, level) == Some(shift) => {
                    self.format.inherit(sum, read.value)
                }
                _ => sum,
            }
        })
    }

    fn found(&self, entry: u64, level: u8, input: u64, path: Path) -> Option<(Found, u8)> {
        let Decoded::Leaf { base, shift } = self.format.decode(entry, level) else { return None };
        let (base, shift) = match self.format.group(entry, level) {
            Some(shift) => (base >> shift << shift, shift as u8),
            None => (base, shift),
        };
        let found = Found { entry, level, base, shift, path, input, kind: Kind::Read };
        Some((found, shift))
    }

    /// Why the tables do not justify a copy.
    fn judge<M: Memory>(&self, memory: &mut M, key: &Key) -> Option<Why> {
        match key.what {
            What::Table => {
                let (seen, _) = self.descend(memory, key.space, key.start);
                let same = seen.iter().any(|seen| {
                    seen.level == key.level
                        && seen.decoded == Decoded::Table { next: key.entry }
                        && parts(seen.path) == key.path
                });
                (!same).then_some(Why::TableChanged)
            }
            What::Invalid => {
                let (seen, found) = self.descend(memory, key.space, key.start);
                let translates = match seen.iter().find(|seen| seen.level == key.level) {
                    Some(seen) => !matches!(seen.decoded, Decoded::Empty | Decoded::Reserved(_)),
                    None => found.is_some(),
                };
                translates.then_some(Why::NowMapped)
            }
            What::Translation | What::Combined => self.judge_leaf(memory, key),
        }
    }

    fn judge_leaf<M: Memory>(&self, memory: &mut M, key: &Key) -> Option<Why> {
        let last = key.start + ((1u64 << key.shift) - 1);
        let mut input = key.start;
        loop {
            let (held, _) = self.found(key.entry, key.level, input, path(key.path))?;
            let (_, now) = self.descend(memory, key.space, input);
            let Some((now, shift)) = now else { return Some(Why::Unmapped) };
            let output = |found: &Found| found.base | input & ((1u64 << found.shift) - 1);
            if output(&held) != output(&now) {
                return Some(Why::Moved);
            }
            if let Some(why) = self.judge_rights(&held, &now) {
                return Some(why);
            }
            let end = input | ((1u64 << shift) - 1);
            if end >= last {
                return None;
            }
            input = end + 1;
        }
    }

    fn judge_rights(&self, held: &Found, now: &Found) -> Option<Why> {
        let stage = self.format.stage();
        let regime = &self.regime;
        for (kind, privilege) in ACCESSES {
            let access = Access { privilege, ..asked(kind, stage) };
            let held = Found { kind, ..*held };
            let now = Found { kind, ..*now };
            if self.format.check(&held, &access, regime).is_err() {
                continue;
            }
            if self.format.check(&now, &access, regime).is_err() {
                return Some(Why::Rights);
            }
            if self.format.memory_type(&held, regime) != self.format.memory_type(&now, regime) {
                return Some(Why::MemoryType);
            }
            let settled = |found: &Found| {
                self.format.touched(found.entry, found.level, true, &access) == found.entry
            };
            if settled(&held) && !settled(&now) {
                return Some(if kind == Kind::Write { Why::Dirty } else { Why::Accessed });
            }
        }
        None
    }
}

/// An access as the stage sees it; to a second stage, through a page that permits everything.
fn asked(kind: Kind, stage: u8) -> Access {
    let page = (stage == 2).then_some(Stage1Page::FLAT);
    Access { page, ..Access::new(kind, Privilege::Supervisor) }
}

fn parts(path: Path) -> (u64, u64, u64) {
    (path.and, path.or, path.via)
}

fn path((and, or, via): (u64, u64, u64)) -> Path {
    Path { and, or, via }
}
