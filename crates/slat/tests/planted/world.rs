//! Tables with an audit: what a hypervisor does to them, and what it knows of its frames.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use slat::audit::{Finding, Ground, Owner, Policy, Rule, audit};
use slat::edit::{
    Arena, Cursor, Detached, Encode, Error, Gather, Leaves, Live, Operation, Pending, Slots, Stale,
    Step, Tables, Verb, arm64, ept,
};
use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::{Decoded, Format};
use slat::invalidate::{By, Context};
use slat::memory_type::StageType;
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Regime, SliceMemory, Spa};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const BLOCK: u64 = 512 * PAGE;
pub(crate) const GUEST: u64 = 1 << 30;
pub(crate) const FRAMES: usize = 16;
pub(crate) const RWX: Permissions = Permissions { read: true, write: true, execute: true };
pub(crate) const RO: Permissions = Permissions { read: true, write: false, execute: false };

/// What the hypervisor knows of its frames.
#[derive(Default)]
pub(crate) struct Records {
    /// Frames that belong to nobody.
    pub(crate) freed: BTreeSet<u64>,
    /// Frames of others.
    pub(crate) others: BTreeMap<u64, Owner>,
    /// Nothing may be written.
    pub(crate) read_only: bool,
    /// Pages, by their input address, that may not be written.
    pub(crate) protected: BTreeSet<u64>,
    /// A frame may be mapped twice.
    pub(crate) aliases: bool,
    pub(crate) mapped: BTreeSet<u64>,
    pub(crate) types: BTreeMap<u64, StageType>,
}

impl Ground for Records {
    fn owner(&mut self, base: u64, bytes: u64) -> Owner {
        let other = self.others.range(base..base + bytes).next();
        match (self.freed.range(base..base + bytes).next(), other) {
            (Some(_), _) => Owner::Nobody,
            (None, Some((_, &owner))) => owner,
            (None, None) if base < GUEST => Owner::Tables,
            (None, None) => Owner::Guest,
        }
    }
    fn first_visit(&mut self, _: u64, _: u8) -> bool {
        true
    }
    fn other_type(&mut self, base: u64, _: u64, memory_type: StageType) -> Option<StageType> {
        let earlier = *self.types.entry(base).or_insert(memory_type);
        (earlier != memory_type).then_some(earlier)
    }
    fn most(&mut self, input: u64, _: u64, bytes: u64) -> Permissions {
        let protected = self.protected.range(input..input + bytes).next().is_some();
        if self.read_only || protected { RO } else { RWX }
    }
    fn first_mapping(&mut self, base: u64, bytes: u64) -> bool {
        let pages = (base..base + bytes).step_by(PAGE as usize);
        let new = pages.filter(|&page| self.mapped.insert(page)).count() as u64;
        new == bytes / PAGE || self.aliases
    }
}

pub(crate) struct World<F: Encode<Word = u64>> {
    pub(crate) format: F,
    pub(crate) cells: &'static [AtomicU64],
    pub(crate) arena: &'static Arena<'static, u64>,
    pub(crate) tables: Tables<F, Gpa, Spa, &'static Arena<'static, u64>>,
}

pub(crate) type CursorOf<'t, F> =
    Cursor<'t, 't, F, Gpa, Spa, &'static Arena<'static, u64>, Arena<'static, u64>, Live>;

impl<F: Encode<Word = u64>> World<F> {
    pub(crate) fn new(format: F) -> World<F> {
        let cells: Vec<_> = (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect();
        let cells: &'static [AtomicU64] = Box::leak(cells.into_boxed_slice());
        let arena: &'static Arena<'static, u64> =
            Box::leak(Box::new(Arena::new(0, cells).unwrap()));
        let tables = Tables::create(format, arena, arena).unwrap();
        World { format, cells, arena, tables }
    }

    /// The library's operation, to its end.
    pub(crate) fn run<V: Verb<F>>(
        &mut self,
        make: impl FnOnce(&CursorOf<'_, F>) -> Result<Operation<V>, Error>,
    ) {
        let (mut ranges, mut detached, mut pending) =
            ([Stale::default(); 4], [Detached::default(); 4], [Pending::default(); 4]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
        let (tables, arena) = (&mut self.tables, self.arena);
        let mut cursor =
            tables.cursor::<_, Live>(arena, Context::All, slots, Gpa::new(0), GUEST).unwrap();
        let mut operation = make(&cursor).unwrap();
        loop {
            let step = cursor.step(&mut operation, 9).unwrap();
            let (gather, done) = match step {
                Step::Yield => continue,
                Step::Invalidate(gather) => (gather, false),
                Step::Done => (cursor.flush().unwrap(), true),
            };
            let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
            let reclaim = completed.reclaim(cursor.tables()).unwrap();
            cursor.resume(reclaim.into_source(arena).unwrap()).unwrap();
            if done {
                break;
            }
        }
        drop(cursor.finish());
    }

    pub(crate) fn map(&mut self, at: u64, to: u64, bytes: u64, leaves: &Leaves) {
        self.run(|cursor| cursor.map(Gpa::new(at), Spa::new(to), bytes, leaves));
    }

    /// The cell of the leaf, or of what is in its place, at `at`.
    pub(crate) fn cell(&self, at: u64) -> (&'static AtomicU64, u8) {
        let mut level = self.format.top();
        // The root is the arena's first frame.
        let mut table = 0;
        loop {
            let index = (at >> self.format.shift(level)) as usize & 511;
            let cell = &self.cells[(table / 8) as usize + index];
            match self.format.decode(cell.load(Relaxed), level) {
                Decoded::Table { next } if level > 0 => (table, level) = (next, level - 1),
                _ => return (cell, level),
            }
        }
    }

    pub(crate) fn audit(&self, policy: Policy, records: Records) -> Vec<Finding> {
        self.audit_as(&self.format, &self.tables.root(), policy, records)
    }

    /// Audits the tables at `root` as hardware of another format walks them.
    pub(crate) fn audit_as<H: Format>(
        &self,
        format: &H,
        root: &H::Root,
        policy: Policy,
        mut records: Records,
    ) -> Vec<Finding> {
        let mut bytes: Vec<u8> =
            self.cells.iter().flat_map(|cell| cell.load(Relaxed).to_le_bytes()).collect();
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        let mut findings = Vec::new();
        let regime = Regime::default();
        let mut note = |finding: &Finding| findings.push(*finding);
        audit(format, root, &mut memory, &regime, &policy, &mut records, &mut note).unwrap();
        findings
    }
}

pub(crate) fn rules(findings: &[Finding]) -> Vec<(Rule, u64)> {
    findings.iter().map(|finding| (finding.rule, finding.input)).collect()
}

pub(crate) fn ept_with(permissions: Permissions) -> (Ept, Leaves) {
    let format = Ept::four(Features { physical_bits: 40, ..Features::default() });
    let leaves = Leaves::new(&format, &ept::Attributes::new(permissions, Type::Wb)).unwrap();
    (format, leaves)
}

/// Arm's stage 2 of `input` bits, with pages of 4 KiB alone.
pub(crate) fn stage2(input: u8) -> (Stage2, Leaves) {
    let processor = Processor { physical_bits: 48, ..Processor::default() };
    let format = Stage2::plain(Granule::Four, input, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    (format, Leaves::new(&format, &attributes).unwrap().up_to(0))
}
