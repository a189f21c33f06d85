//! The stale-translation checker: a processor that forgets nothing it is not made to forget.
//!
//! Run page-table code under it in a unit test. Between the steps of that code the checker
//! [speculates](Checker::speculate): it walks everything that a processor could walk, from the root
//! and from every table entry it still holds, and keeps each translation, each table entry and
//! (where the architecture caches them) each invalid entry, under the id that it ran with. The code's
//! invalidations drop exactly what the architecture says they must and no more
//! ([`Checker::intel`], [`Checker::amd`], [`Checker::arm64`], [`Checker::arm32`], [`Checker::riscv`],
//! or [`Checker::invalidate`] for a machine of one's own). When the code declares an invalidation
//! [complete](Checker::complete), every surviving copy that the tables no longer justify is a
//! [`Finding`], and so is each [use](Checker::access) of one afterwards. Before a frame is used again,
//! [`Checker::freed`] tells whether anything can still reach it.
//!
//! The [crate's front page](crate) has an example that catches a forgotten flush. Here one that catches a
//! flush in the wrong place: the tables change after it, and a processor may have walked between.
//!
//! ```
//! use slat::format::x86::{Controls, long::{Long, Processor}};
//! use slat::invalidate::{Context, LinearOwner, intel::Instruction};
//! use slat::{EntryLayout, SliceMemory, Spa};
//! use slat_mmu::checker::{Checker, Why};
//!
//! let mut bytes = vec![0; 4 * 4096];
//! let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
//! let mut set = |memory: &mut SliceMemory<'_, Spa>, at, entry| {
//!     memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
//! };
//! for (at, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x5_5067)] {
//!     set(&mut memory, at, entry);
//! }
//! // With CR0.WP, so that a supervisor's page that is read-only is not writable.
//! let controls = Controls { write_protect: true, ..Controls::default() };
//! let mut checker = Checker::new(Long::four(controls, Processor::default()));
//! let kernel = Context::Linear { owner: LinearOwner::Native, pcid: 0 };
//! checker.run(kernel, 0);
//! checker.speculate(&mut memory);
//!
//! // Unmap, as it should not be: INVLPG first, and then the entry.
//! checker.intel(&Instruction::Invlpg { address: 0 });
//! checker.speculate(&mut memory);
//! set(&mut memory, 0x3000, 0);
//! let findings = checker.complete(&mut memory, kernel, 0..=0xfff);
//! assert_eq!(findings[0].why, Why::Unmapped);
//! // The frame must not be used for anything else while this is not empty.
//! assert!(!checker.freed(0x5_5000..=0x5_5fff).is_empty());
//!
//! // The entry first, and then INVLPG.
//! checker.intel(&Instruction::Invlpg { address: 0 });
//! assert!(checker.complete(&mut memory, kernel, 0..=0xfff).is_empty());
//! assert!(checker.freed(0x5_5000..=0x5_5fff).is_empty());
//! ```
//!
//! What it does not see: entries that exist only between two calls of `speculate`. Code that stores
//! an entry in pieces shows it if it speculates between them (from a memory's `publish`, say).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use slat::edit::Encode;
use slat::format::{Decoded, Path};
use slat::invalidate::{Context, LinearOwner};
use slat::{Access, Address, Kind, Memory, Privilege, Purpose, Regime, Stage1Page};

mod amd;
mod arm32;
mod arm64;
mod finding;
mod intel;
mod judge;
mod riscv;
mod words;

pub use finding::{Copy, Finding, What, Why};
pub use words::Words;

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
    /// The guests' stage 1 is off: combined translations have the addresses that stage 2 translates.
    flat_stage1: bool,
    /// The root's entries are in registers (PAE).
    root_in_registers: bool,
    /// Each id, and the root table that a processor runs on with it.
    spaces: Vec<(Context, Option<u64>)>,
    kept: BTreeSet<Key>,
    /// Copies that survived a completed invalidation, and why they should not have.
    stale: BTreeMap<Key, Why>,
    /// Invalidations that are not complete yet.
    amd: Vec<slat::invalidate::amd::Instruction>,
    arm64: Vec<(slat::invalidate::arm64::Operation, u64, Option<u16>)>,
    arm32: Vec<(slat::invalidate::arm32::Operation, u32, u16)>,
    riscv: Vec<(slat::invalidate::riscv::Instruction, u16)>,
    /// RISC-V: stores were ordered before the invalidations that follow.
    stores_ordered: bool,
}

impl<F: Encode> Checker<F> {
    /// A processor for tables of this format, with nothing kept. It keeps invalid entries where the
    /// format's architecture permits that (RISC-V).
    pub fn new(format: F) -> Self {
        Checker {
            format,
            regime: Regime::default(),
            caches_invalid: format.caches_invalid(),
            flat_stage1: false,
            root_in_registers: format.root_in_registers(),
            spaces: Vec::new(),
            kept: BTreeSet::new(),
            stale: BTreeMap::new(),
            amd: Vec::new(),
            arm64: Vec::new(),
            arm32: Vec::new(),
            riscv: Vec::new(),
            stores_ordered: false,
        }
    }

    /// Tables of a second stage, of AArch32 guests whose stage 1 is off: a combined translation then has
    /// one virtual address, that of its IPA, and none above 4 GiB.
    pub fn with_flat_stage1(self) -> Self {
        Checker { flat_stage1: true, ..self }
    }

    /// The same processor with this state: what its PAT or MAIR makes of a leaf's memory type. Without
    /// this it is as after reset, where leaves that a MAIR not known yet tells apart have different types.
    #[must_use]
    pub fn with_regime(self, regime: Regime) -> Self {
        Checker { regime, ..self }
    }

    /// The processor may run with this id and root table from now on; an id that was there before
    /// gets another root, and keeps its copies.
    pub fn run(&mut self, context: Context, root: u64) {
        match self.spaces.iter_mut().find(|(known, _)| *known == context) {
            Some((_, table)) => *table = Some(root),
            None => self.spaces.push((context, Some(root))),
        }
    }

    /// No processor runs with this id any more: it was seen outside the guest, or took another root.
    /// What it kept stays, and the tables of an id without a root translate nothing.
    pub fn stop(&mut self, context: Context) {
        for (known, table) in &mut self.spaces {
            if *known == context {
                *table = None;
            }
        }
    }

    /// The tables' input that an instruction's address is, if it is one.
    fn input(&self, address: u64) -> Option<u64> {
        self.format.input(0, address)
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
            .filter_map(|(space, &(_, root))| Some((space, top, root?, 0, Path::START)))
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
                        if self.is_combined(&key) {
                            self.kept.insert(Key { what: What::Combined, ..key });
                        }
                    }
                    Decoded::Empty
                        if self.caches_invalid || self.in_register(self.spaces[space].0, level) =>
                    {
                        self.kept.insert(Key { entry: 0, ..key });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether a processor makes combined translations of this one.
    fn is_combined(&self, key: &Key) -> bool {
        self.format.stage() == 2 && !(self.flat_stage1 && key.start >> 32 != 0)
    }

    /// Makes combined translations from every translation that is held, as a processor that walks
    /// stage 1 through them does.
    fn combine(&mut self) {
        let made: Vec<Key> = self
            .kept
            .iter()
            .filter(|key| key.what == What::Translation && self.is_combined(key))
            .map(|key| Key { what: What::Combined, ..*key })
            .collect();
        self.kept.extend(made);
    }

    fn copy(&self, key: &Key) -> Copy {
        copy(&self.format, self.spaces[key.space].0, key)
    }

    fn finding(&self, key: &Key, why: Why) -> Finding {
        Finding { copy: self.copy(key), why, entry: key.entry }
    }

    /// Whether processors have entries of this level, of tables for this id, in registers.
    fn in_register(&self, context: Context, level: u8) -> bool {
        self.root_in_registers && level == self.format.top() && !reads_on_demand(context)
    }

    /// Lets go of every copy that `reaches` names and that is in a TLB or another cache, not in a register.
    fn uncache(&mut self, mut reaches: impl FnMut(&Copy) -> bool) {
        let (registers, top) = (self.root_in_registers, self.format.top());
        self.invalidate(|copy| {
            let entry = matches!(copy.what, What::Table | What::Invalid) && copy.level == top;
            let loaded = registers && entry && !reads_on_demand(copy.context);
            !loaded && reaches(copy)
        });
    }

    /// Lets go of every copy that `reaches` names: an invalidation of a machine of one's own.
    pub fn invalidate(&mut self, mut reaches: impl FnMut(&Copy) -> bool) {
        let (format, spaces) = (&self.format, &self.spaces);
        self.kept.retain(|key| !reaches(&copy(format, spaces[key.space].0, key)));
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
    /// could walk or as a page that it could access, and every root that it runs on.
    pub fn freed(&self, frames: RangeInclusive<u64>) -> Vec<Finding> {
        let lies = |table: u64, level: u8| {
            let bytes = self.entries(level) * self.format.layout().size.bytes();
            table <= *frames.end() && table + (bytes - 1) >= *frames.start()
        };
        let reaches = |key: &&Key| match key.what {
            What::Invalid | What::Root => false,
            What::Table => lies(key.entry, key.level - 1),
            What::Translation | What::Combined => match self.format.decode(key.entry, key.level) {
                Decoded::Leaf { base, shift } => {
                    base <= *frames.end() && base + ((1u64 << shift) - 1) >= *frames.start()
                }
                _ => false,
            },
        };
        let level = self.format.top();
        let roots = self.spaces.iter().filter_map(|&(context, root)| {
            let entry = root.filter(|root| lies(*root, level))?;
            let last = (1u64 << self.format.input_bits()) - 1;
            let copy = Copy { context, what: What::Root, level, start: 0, last, global: false };
            Some(Finding { copy, why: Why::Freed, entry })
        });
        let kept = self.kept.iter().filter(reaches).map(|key| self.finding(key, Why::Freed));
        roots.chain(kept).collect()
    }
}

/// A kept copy, as an invalidation sees it.
fn copy<F: Encode>(format: &F, context: Context, key: &Key) -> Copy {
    // Of a table entry, the key has the table that it names.
    let leaf = if key.what == What::Table { 0 } else { key.entry };
    let (_, above, _) = key.path;
    Copy {
        context,
        what: key.what,
        level: key.level,
        start: key.start,
        last: key.start + ((1u64 << key.shift) - 1),
        global: format.is_global(leaf, key.level, above),
    }
}

/// An access as the stage sees it; to a second stage, through a page that permits everything.
fn asked(kind: Kind, stage: u8) -> Access {
    let page = (stage == 2).then_some(Stage1Page::FLAT);
    Access { page, ..Access::new(kind, Privilege::Supervisor) }
}

/// The PDPTEs of a guest under NPT are read from memory (AMD APM 2 15.25.10).
fn reads_on_demand(context: Context) -> bool {
    matches!(context, Context::Linear { owner: LinearOwner::Asid(_), .. })
}

fn parts(path: Path) -> (u64, u64, u64) {
    (path.and, path.or, path.via)
}

fn path((and, or, via): (u64, u64, u64)) -> Path {
    Path { and, or, via }
}
