//! Bugs that hypervisors had, each planted in a copy of the operation beside the library's own: the
//! audit of the tables finds the copy's, and nothing in the library's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use slat::audit::{Finding, Ground, Owner, Policy, Rule, audit};
use slat::edit::{
    Arena, Cursor, Detached, Donated, Encode, Error, Frame, FrameSource, Gather, Leaves, Live,
    Operation, Pending, Served, Slots, Stale, Step, Tables, Verb, arm64, ept,
};
use slat::format::Decoded;
use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::invalidate::{By, Context};
use slat::memory_type::StageType;
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Regime, SliceMemory, Spa};

const PAGE: u64 = 4096;
const BLOCK: u64 = 512 * PAGE;
const GUEST: u64 = 1 << 30;
const FRAMES: usize = 16;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };
const RO: Permissions = Permissions { read: true, write: false, execute: false };

/// What the hypervisor knows of its frames.
#[derive(Default)]
struct Records {
    freed: BTreeSet<u64>,
    read_only: bool,
    aliases: bool,
    mapped: BTreeSet<u64>,
    types: BTreeMap<u64, StageType>,
}

impl Ground for Records {
    fn owner(&mut self, base: u64, bytes: u64) -> Owner {
        match self.freed.range(base..base + bytes).next() {
            Some(_) => Owner::Nobody,
            None if base < GUEST => Owner::Tables,
            None => Owner::Guest,
        }
    }
    fn first_visit(&mut self, _: u64, _: u8) -> bool {
        true
    }
    fn other_type(&mut self, base: u64, _: u64, memory_type: StageType) -> Option<StageType> {
        let earlier = *self.types.entry(base).or_insert(memory_type);
        (earlier != memory_type).then_some(earlier)
    }
    fn most(&mut self, _: u64, _: u64, _: u64) -> Permissions {
        if self.read_only { RO } else { RWX }
    }
    fn first_mapping(&mut self, base: u64, _: u64) -> bool {
        self.mapped.insert(base) || self.aliases
    }
}

struct World<F: Encode<Word = u64>> {
    format: F,
    cells: &'static [AtomicU64],
    arena: &'static Arena<'static, u64>,
    tables: Tables<F, Gpa, Spa, &'static Arena<'static, u64>>,
}

type CursorOf<'t, F> =
    Cursor<'t, 't, F, Gpa, Spa, &'static Arena<'static, u64>, Arena<'static, u64>, Live>;

impl<F: Encode<Word = u64>> World<F> {
    fn new(format: F) -> World<F> {
        let cells: Vec<_> = (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect();
        let cells: &'static [AtomicU64] = Box::leak(cells.into_boxed_slice());
        let arena: &'static Arena<'static, u64> =
            Box::leak(Box::new(Arena::new(0, cells).unwrap()));
        let tables = Tables::create(format, arena, arena).unwrap();
        World { format, cells, arena, tables }
    }

    /// The library's operation, to its end.
    fn run<V: Verb<F>>(
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

    fn map(&mut self, at: u64, to: u64, bytes: u64, leaves: &Leaves) {
        self.run(|cursor| cursor.map(Gpa::new(at), Spa::new(to), bytes, leaves));
    }

    /// The cell of the leaf, or of what is in its place, at `at`.
    fn cell(&self, at: u64) -> (&'static AtomicU64, u8) {
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

    fn audit(&self, policy: Policy, mut records: Records) -> Vec<Finding> {
        let mut bytes: Vec<u8> =
            self.cells.iter().flat_map(|cell| cell.load(Relaxed).to_le_bytes()).collect();
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        let mut findings = Vec::new();
        let (root, regime) = (self.tables.root(), Regime::default());
        let mut note = |finding: &Finding| findings.push(*finding);
        audit(&self.format, &root, &mut memory, &regime, &policy, &mut records, &mut note).unwrap();
        findings
    }
}

fn rules(findings: &[Finding]) -> Vec<(Rule, u64)> {
    findings.iter().map(|finding| (finding.rule, finding.input)).collect()
}

fn ept_with(permissions: Permissions) -> (Ept, Leaves) {
    let format = Ept::four(Features { physical_bits: 40, ..Features::default() });
    let leaves = Leaves::new(&format, &ept::Attributes::new(permissions, Type::Wb)).unwrap();
    (format, leaves)
}

/// HyperDbg's `EptSplitLargePage`: the parts may be read, written and executed, whatever the whole
/// was.
#[test]
fn a_split_that_permits_everything() {
    let (format, leaves) = ept_with(RO);
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, BLOCK, &leaves);
        let (block, level) = world.cell(0);
        assert_eq!(level, 1);
        if planted {
            let table = world.arena.take(PAGE).unwrap().address();
            let parts = &world.cells[(table / 8) as usize..][..512];
            for (part, cell) in (0..).zip(parts) {
                let memory_type = block.load(Relaxed) & 0x78;
                cell.store((GUEST + part * PAGE) | memory_type | 7, Relaxed);
            }
            block.store(format.table(table, 1), Relaxed);
        } else {
            world.run(|cursor| cursor.split(Gpa::new(0), BLOCK, 0));
        }
        assert_eq!(world.cell(7 * PAGE).1, 0, "it is split");
        let findings =
            world.audit(Policy::default(), Records { read_only: true, ..Records::default() });
        let expected = if planted { 512 } else { 0 };
        assert_eq!(findings.len(), expected);
        assert!(findings.iter().all(|finding| finding.rule == Rule::Widened));
        // Where nothing is known of the frames, the policy finds it.
        let strict = Policy { write_xor_execute: true, ..Policy::default() };
        let findings = world.audit(strict, Records::default());
        assert_eq!(findings.len(), expected);
    }
}

/// XSA-393 (CVE-2022-23033): Xen takes the valid bit of entries to see which pages a guest uses, and
/// sets it again in the fault that follows. Its removal asked whether an entry is valid.
#[test]
fn xsa_393_removal_passes_by_entries_without_their_valid_bit() {
    let processor = Processor { physical_bits: 48, ..Processor::default() };
    let format = Stage2::plain(Granule::Four, 48, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    let leaves = Leaves::new(&format, &attributes).unwrap().up_to(0);
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, 8 * PAGE, &leaves);
        for page in [2, 5] {
            world.cell(page * PAGE).0.fetch_and(!1, Relaxed);
        }
        if planted {
            for page in 0..8 {
                let (cell, _) = world.cell(page * PAGE);
                if cell.load(Relaxed) & 1 != 0 {
                    cell.store(0, Relaxed);
                }
            }
        } else {
            world.run(|cursor| cursor.unmap(Gpa::new(0), 8 * PAGE, ()));
        }
        // The guest's pages are freed; then it uses them all once more, and what says an address
        // becomes valid.
        for page in 0..8 {
            let (cell, level) = world.cell(page * PAGE);
            if level == 0 && cell.load(Relaxed) & !1 != 0 {
                cell.fetch_or(1, Relaxed);
            }
        }
        let freed = (0..8).map(|page| GUEST + page * PAGE).collect();
        let findings = world.audit(Policy::default(), Records { freed, ..Records::default() });
        let expected: &[_] = if planted {
            &[(Rule::FreedFrame, 2 * PAGE), (Rule::FreedFrame, 5 * PAGE)]
        } else {
            &[]
        };
        assert_eq!(rules(&findings), expected);
    }
}

/// One frame at two addresses, of which the change of its memory type reaches one.
#[test]
fn a_memory_type_that_changes_in_one_of_two_mappings() {
    let (format, leaves) = ept_with(RWX);
    let uncached = ept::Memory { memory_type: Type::Uc, ignore_pat: false };
    for planted in [true, false] {
        let mut world = World::new(format);
        let aliases = [0, 64 * PAGE];
        for at in aliases {
            world.map(at, GUEST, 4 * PAGE, &leaves.up_to(0));
        }
        // The copy follows one mapping, and does not ask for others.
        for at in aliases.into_iter().take(if planted { 1 } else { 2 }) {
            world.run(|cursor| cursor.retype(Gpa::new(at + PAGE), PAGE, uncached, ()));
        }
        let findings =
            world.audit(Policy::default(), Records { aliases: true, ..Records::default() });
        let expected: &[_] = if planted { &[(Rule::MemoryTypeAlias, 65 * PAGE)] } else { &[] };
        assert_eq!(rules(&findings), expected);
    }
}

/// XSA-409: tables of a guest come from a pool of its own, and from nowhere else.
#[test]
fn xsa_409_tables_from_beyond_the_guests_pool() {
    /// A pool, and what the copy goes to when it is empty.
    struct Pool<'a> {
        own: Donated<'a>,
        host: Option<&'a Arena<'a, u64>>,
    }

    impl FrameSource for Pool<'_> {
        fn take(&self, bytes: u64) -> Option<Frame> {
            self.own.take(bytes).or_else(|| self.host?.take(bytes))
        }
        fn put(&self, frame: Frame) {
            self.own.put(frame);
        }
    }

    let (format, leaves) = ept_with(RWX);
    for planted in [true, false] {
        let mut world = World::new(format);
        let slots = [const { AtomicU64::new(0) }; 8];
        let own = Donated::new(PAGE, &slots);
        // For two more levels and three tables of pages.
        for _ in 0..5 {
            own.donate(world.arena.take(PAGE).unwrap()).unwrap();
        }
        let pool = Pool { own, host: planted.then_some(world.arena) };
        // The guest touches pages far apart.
        let mut refused = 0;
        for block in 0..6 {
            let (at, to) = (Gpa::new(block * BLOCK), Spa::new(GUEST + block * PAGE));
            match world.tables.fault::<_, Live>(&pool, at, to, 0, &leaves) {
                Ok(Served::Installed { level: 0 }) => {}
                Err(Error::NoFrame { bytes: PAGE, .. }) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        let findings =
            world.audit(Policy { table_budget: 6, ..Policy::default() }, Records::default());
        assert_eq!(refused, if planted { 0 } else { 3 });
        assert_eq!(rules(&findings).len(), usize::from(planted), "{findings:?}");
        assert!(findings.iter().all(|finding| finding.rule == Rule::TableBudget));
    }
}
