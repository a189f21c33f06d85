//! Views that share tables, under the stale-translation checker and against a plain model: random
//! changes of one view and of all, with hardware that sets accessed and dirty bits in each.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use slat::edit::{
    Arena, Counted, Encode, Ended, Error, Frame, FrameSource, Gather, Leaves, Live, Slots, Step,
    Tables, View, Views, Watch, arm64 as arm_entries, ept as ept_entries, riscv as riscv_entries,
};
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage2};
use slat::format::ept::{self, Ept};
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::invalidate::{By, Context, arm64, intel, riscv};
use slat::memory_type::x86::Type;
use slat::{Access, Gpa, Kind, Permissions, Privilege, Regime, Spa, Updates, walk};
use slat_mmu::checker::{Checker, Words};

const PAGE: u64 = 4096;
const PAGES: u64 = 1024;
const BASE: u64 = (1 << 30) - (2 << 20);
const TABLES: u64 = 0x10_0000;
const OUTPUT: u64 = 1 << 33;
const VIEWS: usize = 4;
const FRAMES: usize = 64;

/// Asks the checker before a frame is used again.
struct Watched<'a, F: Encode> {
    arena: &'a Arena<'a, u64>,
    checker: &'a RefCell<Checker<F>>,
    out: RefCell<BTreeSet<u64>>,
}

impl<F: Encode> FrameSource for Watched<'_, F> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let frame = self.arena.take(bytes)?;
        assert!(self.out.borrow_mut().insert(frame.address()));
        Some(frame)
    }
    fn put(&self, frame: Frame) {
        let range = frame.address()..=frame.address() + (frame.bytes() - 1);
        let reaching = self.checker.borrow().freed(range);
        assert!(reaching.is_empty(), "a frame that is still reached was freed: {}", reaching[0]);
        assert!(self.out.borrow_mut().remove(&frame.address()), "freed twice");
        self.arena.put(frame);
    }
}

struct Subject<F: Encode> {
    format: F,
    context: fn(usize) -> Context,
    leaves: fn(&F, Permissions) -> Leaves,
    flush: fn(&mut Checker<F>, &Gather<'_>),
}

type Source<'a, F> = Counted<'a, &'a Watched<'a, F>>;
type Memory<'a> = &'a Arena<'a, u64>;
/// What a view says of its pages, and which of them are dirty and have not been harvested.
#[derive(Clone, Default)]
struct Model {
    pages: BTreeMap<u64, (u64, usize)>,
    dirty: BTreeSet<u64>,
}

struct World<'a, 'v, F: Encode> {
    subject: &'a Subject<F>,
    views: Views<'v, F, Gpa, Spa, Memory<'a>>,
    models: Vec<Option<Model>>,
    source: &'a Source<'a, F>,
    watched: &'a Watched<'a, F>,
}

const RIGHTS: [Permissions; 3] = [
    Permissions { read: true, write: true, execute: true },
    Permissions { read: true, write: false, execute: false },
    Permissions { read: true, write: true, execute: false },
];

#[derive(Clone, Copy, Debug)]
enum Change {
    Map { to: u64, rights: usize },
    Unmap,
    Protect { rights: usize },
    Remap { to: u64 },
    Split,
    Collapse,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Fork {
        from: usize,
    },
    Remove {
        view: usize,
    },
    /// One view changes.
    One {
        view: usize,
        page: u64,
        pages: u64,
        change: Change,
    },
    /// All do, through what they share.
    Protect {
        page: u64,
        pages: u64,
        rights: usize,
    },
    Unmap {
        page: u64,
        pages: u64,
    },
    Harvest {
        page: u64,
        pages: u64,
    },
    Write {
        view: usize,
        page: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let page = || prop_oneof![Just(0u64), Just(512), 0..PAGES];
    let pages = || prop_oneof![Just(1u64), Just(512), Just(1024), 1..64u64];
    let to = || prop_oneof![Just(0u64), Just(512), 0..64u64];
    let change = prop_oneof![
        4 => (to(), 0..3usize).prop_map(|(to, rights)| Change::Map { to, rights }),
        2 => Just(Change::Unmap),
        2 => (0..3usize).prop_map(|rights| Change::Protect { rights }),
        1 => to().prop_map(|to| Change::Remap { to }),
        1 => Just(Change::Split),
        1 => Just(Change::Collapse),
    ];
    prop_oneof![
        3 => (0..VIEWS).prop_map(|from| Op::Fork { from }),
        1 => (0..VIEWS).prop_map(|view| Op::Remove { view }),
        7 => (0..VIEWS, page(), pages(), change)
            .prop_map(|(view, page, pages, change)| Op::One { view, page, pages, change }),
        1 => (page(), pages(), 0..3usize)
            .prop_map(|(page, pages, rights)| Op::Protect { page, pages, rights }),
        1 => (page(), pages()).prop_map(|(page, pages)| Op::Unmap { page, pages }),
        2 => (page(), pages()).prop_map(|(page, pages)| Op::Harvest { page, pages }),
        6 => (0..VIEWS, 0..PAGES).prop_map(|(view, page)| Op::Write { view, page }),
    ]
}

macro_rules! slots {
    ($slots:ident) => {
        let (mut ranges, mut detached, mut pending) =
            ([Default::default(); 3], [Default::default(); 2], [Default::default(); 2]);
        let $slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
    };
}

/// Steps an operation to its end, or to where it cannot go on.
macro_rules! drive {
    ($cursor:ident, $operation:ident, ($subject:ident, $source:ident, $watched:ident, $tables:ident)) => {
        while let Ok(step) = $cursor.step(&mut $operation, 1) {
            match step {
                Step::Done => break,
                Step::Yield => {}
                Step::Invalidate(gather) => {
                    let ready = settle(gather, $subject, $source, $watched, &$tables);
                    $cursor.resume(ready).unwrap();
                }
            }
        }
    };
}

/// Carries a gather's plan out, and judges every view by the checker.
fn settle<'g, F: Encode<Word = u64>>(
    gather: Gather<'g>,
    subject: &Subject<F>,
    source: &Source<'_, F>,
    watched: &Watched<'_, F>,
    tables: &Tables<F, Gpa, Spa, Memory<'_>>,
) -> slat::edit::Ready<'g> {
    let checker = watched.checker;
    let mut memory = Words::<u64, Spa, _>::new(watched.arena);
    checker.borrow_mut().speculate(&mut memory);
    let flush = subject.flush;
    let context = gather.context();
    let mut by = By(|gather: &Gather<'_>| flush(&mut checker.borrow_mut(), gather));
    let completed = gather.complete(&mut by).unwrap();
    for view in 0..VIEWS {
        let own = (subject.context)(view);
        if context == own || context == Context::All {
            let found = checker.borrow_mut().complete(&mut memory, own, 0..=u64::MAX);
            assert!(found.is_empty(), "view {view}: {}", found[0]);
        }
    }
    completed.reclaim(tables).unwrap().into_source(source).unwrap()
}

impl<'a, F: Encode<Word = u64>> World<'a, '_, F> {
    fn adopt(&self, view: usize) -> Option<Tables<F, Gpa, Spa, Memory<'a>>> {
        let root = self.root(view)?;
        Some(Tables::adopt(self.subject.format, root, self.watched.arena).unwrap())
    }

    /// Address of a view's root table.
    fn root(&self, view: usize) -> Option<u64> {
        let tables = self.views.get(view)?.tables();
        let begun = slat::format::Format::begin(
            tables.format(),
            &tables.root(),
            0,
            &Access::default(),
            &Regime::default(),
        );
        match begun {
            Ok(slat::format::Start::Table { table, .. }) => Some(table),
            _ => None,
        }
    }

    fn one(&mut self, view: usize, page: u64, pages: u64, change: Change) {
        let Some(tables) = self.adopt(view) else { return };
        let (subject, source, watched) = (self.subject, self.source, self.watched);
        slots!(slots);
        let (at, bytes) = (Gpa::new(BASE + page * PAGE), pages * PAGE);
        let lies = |page: u64| entry_of(&tables, watched, Gpa::new(BASE + page * PAGE));
        let before = lies(page);
        let mut owned = self.views.own::<_, Live>(view, source, slots, at, bytes).unwrap();
        loop {
            match owned.step(1) {
                Ok(Step::Done) => break,
                Ok(Step::Yield) => {}
                Ok(Step::Invalidate(gather)) => {
                    owned.resume(settle(gather, subject, source, watched, &tables)).unwrap();
                }
                Err(Error::NoFrame { .. }) => {
                    let _ = settle(owned.finish(), subject, source, watched, &tables);
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let Ok(mut cursor) = owned.into_cursor() else { panic!("it is done") };
        macro_rules! run {
            ($operation:expr) => {{
                let mut done = 0;
                if let Ok(mut operation) = $operation {
                    drive!(cursor, operation, (subject, source, watched, tables));
                    done = operation.bytes_done() / PAGE;
                }
                page..page + done
            }};
        }
        let model = self.models[view].as_mut().unwrap();
        // The processor still reaches the original, and writes through it.
        if lies(page) != before && model.pages.get(&page).is_some_and(|found| RIGHTS[found.1].write)
        {
            model.dirty.insert(page);
        }
        match change {
            Change::Map { to, rights } => {
                let leaves = (subject.leaves)(&subject.format, RIGHTS[rights]);
                let spa = Spa::new(OUTPUT + (page + to) * PAGE);
                for page in run!(cursor.map(at, spa, bytes, &leaves)) {
                    assert_eq!(model.pages.insert(page, (page + to, rights)), None);
                    model.dirty.remove(&page);
                }
            }
            Change::Unmap => {
                for page in run!(cursor.unmap(at, bytes, ())) {
                    model.pages.remove(&page);
                    model.dirty.remove(&page);
                }
            }
            Change::Protect { rights } => {
                for page in run!(cursor.protect(at, bytes, RIGHTS[rights], ())) {
                    if let Some(found) = model.pages.get_mut(&page) {
                        found.1 = rights;
                    }
                    // Dirty state may go with write permission: a witness's business.
                    model.dirty.remove(&page);
                }
            }
            Change::Remap { to } => {
                let spa = Spa::new(OUTPUT + (page + to) * PAGE);
                for page in run!(cursor.remap(at, spa, bytes, ())) {
                    if let Some(found) = model.pages.get_mut(&page) {
                        found.0 = page + to;
                    }
                }
            }
            Change::Split => {
                let _ = run!(cursor.split(at, bytes, 0));
            }
            Change::Collapse => {
                let _ = run!(cursor.collapse(at, bytes, 1));
            }
        }
        let _ = settle(cursor.finish(), subject, source, watched, &tables);
    }

    /// Does something once in each table of the range, through one of the views that share it.
    fn segments(
        &mut self,
        page: u64,
        pages: u64,
        mut act: impl FnMut(&mut Self, slat::edit::Segment<Gpa>),
    ) {
        let mut segments = Vec::new();
        self.views
            .segments(Gpa::new(BASE + page * PAGE), pages * PAGE, |segment| {
                segments.push(segment);
                Ok(())
            })
            .unwrap();
        // Each view sees each page in exactly one segment.
        for view in 0..VIEWS {
            let covered: u64 = segments
                .iter()
                .filter(|segment| segment.views.contains(view))
                .map(|segment| segment.bytes)
                .sum();
            assert_eq!(covered, if self.models[view].is_some() { pages * PAGE } else { 0 });
        }
        for segment in segments {
            act(self, segment);
        }
    }

    fn apply(&mut self, op: Op) {
        let (subject, source, watched) = (self.subject, self.source, self.watched);
        let clip = |page: u64, pages: u64| pages.min(PAGES - page).max(1);
        match op {
            Op::Fork { from } => {
                let context_of = |views: &Views<'_, F, Gpa, Spa, Memory<'a>>| {
                    (0..VIEWS).find(|&view| views.get(view).is_none()).map(subject.context)
                };
                let Some(context) = context_of(&self.views) else { return };
                match self.views.fork(from, context, source) {
                    Ok(view) => {
                        self.models[view] = self.models[from].clone();
                        let root = self.root(view).unwrap();
                        watched.checker.borrow_mut().run((subject.context)(view), root);
                    }
                    Err(error) => assert!(matches!(error, Error::NoSlot | Error::NoFrame { .. })),
                }
            }
            Op::Remove { view } => {
                // One is left to fork from.
                if self.views.set().len() < 2 || self.views.get(view).is_none() {
                    return;
                }
                slots!(slots);
                let Ended { view: taken, gather } = self.views.remove(view, slots).unwrap();
                let mut memory = Words::<u64, Spa, _>::new(watched.arena);
                watched.checker.borrow_mut().speculate(&mut memory);
                let flush = subject.flush;
                let checker = watched.checker;
                let mut by = By(|gather: &Gather<'_>| flush(&mut checker.borrow_mut(), gather));
                let completed = gather.complete(&mut by).unwrap();
                // The processor runs on no such view any more.
                checker.borrow_mut().stop((subject.context)(view));
                let ready = completed.reclaim(taken.tables()).unwrap().into_source(source).unwrap();
                drop(ready);
                self.models[view] = None;
            }
            Op::One { view, page, pages, change } => {
                let pages = clip(page, pages);
                self.one(view, page, pages, change);
            }
            Op::Protect { page, pages, rights } => {
                self.segments(page, clip(page, pages), |world, segment| {
                    let tables = world.adopt(segment.view).unwrap();
                    slots!(slots);
                    let (start, bytes) = (segment.start, segment.bytes);
                    let mut views = std::mem::take(&mut world.models);
                    let mut cursor = world
                        .views
                        .all::<_, Live>(segment.view, source, slots, start, bytes)
                        .unwrap();
                    let operation = cursor.protect(start, bytes, RIGHTS[rights], ());
                    let mut operation = operation.unwrap();
                    drive!(cursor, operation, (subject, source, watched, tables));
                    let first = (start.raw() - BASE) / PAGE;
                    let done = operation.bytes_done() / PAGE;
                    for (view, model) in views.iter_mut().enumerate() {
                        if let Some(model) = model.as_mut()
                            && segment.views.contains(view)
                        {
                            for page in first..first + done {
                                if let Some(found) = model.pages.get_mut(&page) {
                                    found.1 = rights;
                                }
                                model.dirty.remove(&page);
                            }
                        }
                    }
                    let _ = settle(cursor.finish(), subject, source, watched, &tables);
                    world.models = views;
                });
            }
            Op::Harvest { page, pages } => {
                self.segments(page, clip(page, pages), |world, segment| {
                    let tables = world.adopt(segment.view).unwrap();
                    slots!(slots);
                    let (start, bytes) = (segment.start, segment.bytes);
                    let mut models = std::mem::take(&mut world.models);
                    let mut cursor = world
                        .views
                        .all::<_, Live>(segment.view, source, slots, start, bytes)
                        .unwrap();
                    let format = subject.format;
                    let witness = Watch(|start: u64, level: u8, _: u64| {
                        let first = start.saturating_sub(BASE) / PAGE;
                        let count = (1u64 << slat::format::Format::shift(&format, level)) / PAGE;
                        for (view, model) in models.iter_mut().enumerate() {
                            if let Some(model) = model.as_mut()
                                && segment.views.contains(view)
                            {
                                model.dirty.retain(|page| !(first..first + count).contains(page));
                            }
                        }
                    });
                    let mut operation = cursor.clean(start, bytes, witness).unwrap();
                    drive!(cursor, operation, (subject, source, watched, tables));
                    let _ = settle(cursor.finish(), subject, source, watched, &tables);
                    world.models = models;
                });
            }
            Op::Unmap { page, pages } => {
                let pages = clip(page, pages);
                for view in 0..VIEWS {
                    let Some(tables) = self.adopt(view) else { continue };
                    slots!(slots);
                    let (start, bytes) = (Gpa::new(BASE + page * PAGE), pages * PAGE);
                    let mut models = std::mem::take(&mut self.models);
                    let mut cursor =
                        self.views.all::<_, Live>(view, source, slots, start, bytes).unwrap();
                    let mut operation = cursor.unmap(start, bytes, ()).unwrap();
                    drive!(cursor, operation, (subject, source, watched, tables));
                    assert!(operation.is_done() || source_is_dry(watched), "all goes");
                    let _ = settle(cursor.finish(), subject, source, watched, &tables);
                    if operation.is_done()
                        && let Some(model) = models[view].as_mut()
                    {
                        for page in page..page + pages {
                            model.pages.remove(&page);
                            model.dirty.remove(&page);
                        }
                    }
                    self.models = models;
                }
                // What views share went from all of them: where a view ran out of frames, look.
                self.relearn();
            }
            Op::Write { view, page } => self.write(view, page),
        }
        self.judge();
    }

    /// Takes what the views say for what they should, after frames ran out in the middle.
    fn relearn(&mut self) {
        for view in 0..VIEWS {
            let Some(tables) = self.adopt(view) else { continue };
            let model = self.models[view].as_mut().unwrap();
            model.pages.retain(|page, _| tables.translate(Gpa::new(BASE + page * PAGE)).is_some());
            let pages = &model.pages;
            model.dirty.retain(|page| pages.contains_key(page));
        }
    }

    /// The guest writes to a page in a view, by hardware that sets its bits.
    fn write(&mut self, view: usize, page: u64) {
        let Some(tables) = self.adopt(view) else { return };
        let stage = tables.stage().with_updates(Updates::OnSuccess);
        let access = Access::new(Kind::Write, Privilege::User);
        let mut memory = Words::<u64, Spa, _>::new(self.watched.arena);
        let gpa = Gpa::new(BASE + page * PAGE);
        if walk(&stage, &mut memory, gpa, &access, &Regime::default(), &()).is_ok() {
            self.models[view].as_mut().unwrap().dirty.insert(page);
        }
    }

    fn judge(&self) {
        let format = &self.subject.format;
        for view in 0..VIEWS {
            let Some(tables) = self.adopt(view) else { continue };
            let model = self.models[view].as_ref().unwrap();
            for page in 0..PAGES {
                let found = tables.translate(Gpa::new(BASE + page * PAGE));
                let says = found.map(|found| {
                    let rights = format.permissions_of(found.entry, found.level);
                    ((found.output.raw() - OUTPUT) / PAGE, rights)
                });
                let expected = model.pages.get(&page).map(|&(to, rights)| (to, RIGHTS[rights]));
                assert_eq!(says, expected, "view {view}, page {page}");
                if let Some(found) = found
                    && format.hardware_dirty()
                    && model.dirty.contains(&page)
                {
                    assert!(format.is_dirty(found.entry), "view {view}, page {page}: lost D");
                }
            }
        }
        // Each table is counted once for each entry, and each frame that is out is reached.
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        let top = format.top();
        let mut due: Vec<(u64, u8)> =
            (0..VIEWS).filter_map(|view| Some((self.root(view)?, top))).collect();
        let mut seen = BTreeSet::new();
        for (root, _) in &due {
            *counts.entry(*root).or_default() += 1;
        }
        while let Some((table, level)) = due.pop() {
            if !seen.insert(table) {
                continue;
            }
            let entries = if level == top {
                1 << (format.input_bits() - slat::format::Format::shift(format, top))
            } else {
                1usize << slat::format::Format::index_bits(format, level)
            };
            let cells =
                slat::edit::TableMemory::<u64>::table(&self.watched.arena, table, entries).unwrap();
            for cell in cells {
                let entry = u64::from_le(cell.load(Ordering::SeqCst));
                let decoded = slat::format::Format::decode(format, entry, level);
                if let slat::format::Decoded::Table { next } = decoded {
                    *counts.entry(next).or_default() += 1;
                    due.push((next, level - 1));
                }
            }
        }
        for (&table, &count) in &counts {
            assert_eq!(self.source.count(table), count, "table {table:#x}");
        }
        let out: BTreeSet<u64> = self.watched.out.borrow().clone();
        assert_eq!(out, seen, "frames that are out, and tables that are reached");
    }
}

/// Where the last entry lies by which a page is walked.
fn entry_of<F: Encode<Word = u64>>(
    tables: &Tables<F, Gpa, Spa, Memory<'_>>,
    watched: &Watched<'_, F>,
    page: Gpa,
) -> u64 {
    struct Last(std::cell::Cell<u64>);
    impl slat::Observer for Last {
        fn step(&self, step: &slat::Step) {
            self.0.set(step.entry_address);
        }
    }
    let last = Last(std::cell::Cell::new(0));
    let access = Access::new(Kind::Read, Privilege::User);
    let mut memory = Words::<u64, Spa, _>::new(watched.arena);
    let _ = walk(&tables.stage(), &mut memory, page, &access, &Regime::default(), &last);
    last.0.get()
}

fn source_is_dry<F: Encode>(watched: &Watched<'_, F>) -> bool {
    watched.arena.untouched() == 0
}

fn check<F: Encode<Word = u64>>(subject: &Subject<F>, ops: &[Op]) {
    let cells: Vec<AtomicU64> = (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect();
    let words: Vec<AtomicU64> = (0..FRAMES).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(TABLES, &cells).unwrap();
    let checker = RefCell::new(Checker::new(subject.format));
    let watched = Watched { arena: &arena, checker: &checker, out: RefCell::default() };
    let source = Counted::new(&watched, TABLES, &words);
    let tables = Tables::create(subject.format, &arena, &source).unwrap();
    checker.borrow_mut().run((subject.context)(0), TABLES);
    let mut slots: [Option<View<F, Gpa, Spa, Memory<'_>>>; VIEWS] = [const { None }; VIEWS];
    let views = Views::new(&mut slots, tables, (subject.context)(0)).unwrap();
    let mut models = vec![None; VIEWS];
    models[0] = Some(Model::default());
    let mut world = World { subject, views, models, source: &source, watched: &watched };
    // Something to share.
    world.one(0, 0, 1024, Change::Map { to: 0, rights: 0 });
    world.one(0, 0, 64, Change::Split);
    world.judge();
    for op in ops {
        world.apply(*op);
    }
}

fn of_ept() -> Subject<Ept> {
    let features = ept::Features { accessed_dirty: true, ..Default::default() };
    Subject {
        format: Ept::four(features),
        context: |view| Context::Ept { eptp: (view as u64 + 1) << 12 },
        leaves: |format, rights| {
            Leaves::new(format, &ept_entries::Attributes::new(rights, Type::Wb)).unwrap()
        },
        flush: |checker, gather| {
            intel::plan(gather, &intel::Capabilities::default(), 0, |step| checker.intel(&step));
        },
    }
}

fn of_arm() -> Subject<Stage2> {
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    Subject {
        format: Stage2::plain(Granule::Four, 39, &processor).unwrap(),
        context: |view| Context::Stage2 { vmid: view as u16 + 3 },
        leaves: |format, rights| {
            let memory = arm_entries::Memory::WRITE_BACK;
            let attributes = arm_entries::Stage2Attributes::new(rights, memory);
            Leaves::new(format, &attributes).unwrap()
        },
        flush: |checker, gather| {
            let capabilities = arm64::Capabilities {
                granule: Granule::Four,
                lpa2: false,
                ranges: true,
                level_hints: true,
                broadcast: true,
                global_pages: false,
                most_operations: 32,
            };
            let vmid = match gather.context() {
                Context::Stage2 { vmid } => vmid,
                _ => 0,
            };
            arm64::plan(gather, &capabilities, |step| checker.arm64(&step, vmid));
        },
    }
}

fn of_riscv() -> Subject<Sv> {
    let features = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
    Subject {
        format: Sv::stage2(Scheme::Sv39, features),
        context: |view| Context::GStage { vmid: view as u16 + 3 },
        leaves: |format, rights| {
            let attributes = riscv_entries::Attributes {
                dirty: false,
                ..riscv_entries::Attributes::new(rights)
            };
            Leaves::new(format, &attributes).unwrap()
        },
        flush: |checker, gather| {
            let capabilities = riscv::Capabilities {
                svinval: true,
                sv32: false,
                global_pages: false,
                most_pages: 64,
            };
            riscv::plan(gather, &capabilities, |step| checker.riscv(&step, 3));
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn views_of_ept(ops in prop::collection::vec(op(), 1..24)) {
        check(&of_ept(), &ops);
    }

    #[test]
    fn views_of_stage2(ops in prop::collection::vec(op(), 1..24)) {
        check(&of_arm(), &ops);
    }

    #[test]
    fn views_of_a_g_stage(ops in prop::collection::vec(op(), 1..24)) {
        check(&of_riscv(), &ops);
    }
}
