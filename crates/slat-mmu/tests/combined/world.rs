//! A host, a guest hypervisor and its guest: two second stages that change, the combined table that
//! stands for them, and the stale-translation checker in the place of the processor.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use slat::combined::{Combine, Combined, Record, Stack, Track, Unserved};
use slat::edit::{
    Arena, Cells, Encode, Error, Frame, FrameSource, Gather, Leaves, Live, Operation, Ready, Slots,
    Step, TableMemory, Tables, Verb,
};
use slat::format::Decoded;
use slat::invalidate::{By, Context};
use slat::{
    Access, EntryLayout, Failed, Gpa, Kind, L2Gpa, Memory, Nested, Observer, Outside, Permissions,
    Privilege, Reached, Regime, Spa, Stage, Stage1Page, Update, Updates, Value, walk,
};
use slat_mmu::checker::{Checker, Finding, Words};

pub(crate) const PAGE: u64 = 4096;
/// The window of L2's addresses: 4 MiB around a boundary of 1 GiB.
pub(crate) const PAGES: u64 = 1024;
pub(crate) const BASE: u64 = (1 << 30) - (2 << 20);
/// Where the host keeps its second stage, and the combined table.
const HOST_TABLES: u64 = 0x10_0000;
const COMBINED: u64 = 0x100_0000;
/// Where the guest hypervisor keeps its tables (GPA), and what backs them.
pub(crate) const GUEST_TABLES: u64 = 0x200_0000;
pub(crate) const BACKING: u64 = 0x8000_0000;
const FRAMES: usize = 48;
/// Guest-physical window of L2's memory, and what backs it.
pub(crate) const WINDOW: u64 = 1 << 31;
pub(crate) const OUTPUT: u64 = 1 << 33;

type Memory64<'a> = &'a Arena<'a, u64>;

/// System physical memory: stretches of cells.
pub(crate) struct Ram<'a>(Vec<(u64, Cells<'a, u64>)>);

impl Ram<'_> {
    fn cell(&self, address: Spa, write: bool) -> Result<&AtomicU64, Outside<Spa>> {
        let raw = address.raw();
        let found = self.0.iter().find_map(|(base, cells)| {
            (raw >= *base && raw < base + cells.bytes()).then(|| cells.table(raw, 1))
        });
        found.flatten().and_then(|cells| cells.first()).ok_or(Outside { address, write })
    }
}

impl Memory for &Ram<'_> {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(&mut self, at: Spa, _: EntryLayout, _: &Access) -> Result<Value, Outside<Spa>> {
        let value = self.cell(at, false)?.load(std::sync::atomic::Ordering::Acquire);
        Ok(Value { value: u64::from_le(value), reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        at: Spa,
        _: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, Outside<Spa>> {
        use std::sync::atomic::Ordering::SeqCst;
        let cell = self.cell(at, true)?;
        Ok(cell.compare_exchange(current.to_le(), new.to_le(), SeqCst, SeqCst).is_ok())
    }
}

/// The guest hypervisor's table memory, which notes each write.
pub(crate) struct Logged<'a> {
    arena: Memory64<'a>,
    writes: RefCell<Vec<(u64, u64)>>,
}

// SAFETY: the arena's own implementation.
unsafe impl TableMemory<u64> for Logged<'_> {
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        self.arena.table(address, entries)
    }
    fn publish(&self, address: u64, bytes: u64) {
        self.writes.borrow_mut().push((address, bytes));
    }
}

impl FrameSource for Logged<'_> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        self.arena.take(bytes)
    }
    fn put(&self, frame: Frame) {
        // The arena keeps its list in free frames.
        self.writes.borrow_mut().push((frame.address(), 8));
        self.arena.put(frame);
    }
}

/// Frames of the combined table, watched by the checker.
pub(crate) struct Watched<'a, F: Encode> {
    arena: Memory64<'a>,
    checker: &'a RefCell<Checker<F>>,
    left: Cell<usize>,
}

impl<F: Encode> FrameSource for Watched<'_, F> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let units = (bytes / PAGE) as usize;
        self.left.set(self.left.get().checked_sub(units)?);
        self.arena.take(bytes)
    }
    fn put(&self, frame: Frame) {
        let range = frame.address()..=frame.address() + (frame.bytes() - 1);
        let reaching = self.checker.borrow().freed(range);
        assert!(reaching.is_empty(), "a frame that is still reached was freed: {}", reaching[0]);
        self.left.set(self.left.get() + (frame.bytes() / PAGE) as usize);
        self.arena.put(frame);
    }
}

/// The pages that are tracked.
#[derive(Default)]
pub(crate) struct Tracked(BTreeSet<u64>);

impl Track for Tracked {
    fn track(&mut self, page: Gpa) {
        // A page that is one table for several addresses is tracked again.
        self.0.insert(page.raw());
    }
    fn untrack(&mut self, page: Gpa) {
        assert!(self.0.remove(&page.raw()), "{page:?} was not tracked");
    }
}

/// Formats of the two halves and of the combined table, and how to fill them in.
pub(crate) struct Subject<F: Encode> {
    pub(crate) upper: F,
    pub(crate) lower: F,
    pub(crate) target: F,
    pub(crate) context: Context,
    pub(crate) attributes: fn(Permissions) -> F::Attributes,
    pub(crate) flush: fn(&mut Checker<F>, &Gather<'_>),
}

pub(crate) type Cursor<'t, 'g, F> =
    slat::edit::Cursor<'t, 'g, F, L2Gpa, Spa, Memory64<'t>, Watched<'t, F>, Live>;
type Failure = Failed<Gpa, Outside<Spa>>;
pub(crate) type Backing<'t, F> = Nested<'t, F, Gpa, &'t Ram<'t>, ()>;

/// How the host is told of changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sync {
    /// Each write to a tracked table.
    Tracked,
    /// The guest hypervisor's invalidations alone.
    Invalidations,
}

pub(crate) struct World<'a, F: Combine> {
    pub(crate) subject: &'a Subject<F>,
    pub(crate) upper: Tables<F, L2Gpa, Gpa, &'a Logged<'a>>,
    pub(crate) logged: &'a Logged<'a>,
    pub(crate) lower: Tables<F, Gpa, Spa, Memory64<'a>>,
    host: Memory64<'a>,
    pub(crate) tables: Tables<F, L2Gpa, Spa, Memory64<'a>>,
    source: &'a Watched<'a, F>,
    pub(crate) combined: Combined<'a, F>,
    pub(crate) tracked: Tracked,
    pub(crate) sync: Sync,
    pub(crate) ram: &'a Ram<'a>,
    pub(crate) checker: &'a RefCell<Checker<F>>,
    /// What was found stale after some completed gather.
    pub(crate) findings: Vec<Finding>,
}

/// Whose an outcome is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    At(Spa),
    Violation,
    Misconfigured,
    Host,
}

/// Notes whether a leaf (or, by `tables`, any entry) would be updated.
struct Due<F> {
    format: F,
    tables: bool,
    due: Cell<bool>,
}

impl<F: Encode> Observer for Due<F> {
    fn update(&self, update: &Update) {
        let leaf = matches!(self.format.decode(update.old, update.level), Decoded::Leaf { .. });
        self.due.set(self.due.get() || leaf || self.tables);
    }
}

pub(crate) fn access(kind: Kind, user: bool) -> Access {
    let privilege = if user { Privilege::User } else { Privilege::Supervisor };
    let page = Stage1Page { user, ..Stage1Page::FLAT };
    Access { page: Some(page), ..Access::new(kind, privilege) }
}

pub(crate) const ACCESSES: [(Kind, bool); 6] = [
    (Kind::Read, false),
    (Kind::Write, false),
    (Kind::Execute, false),
    (Kind::Read, true),
    (Kind::Write, true),
    (Kind::Execute, true),
];

/// Storage of a gather, on the stack of its user.
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

/// Builds a world over fresh memory and hands it to `play`.
pub(crate) fn with_world<F: Combine<Word = u64>, R>(
    subject: &Subject<F>,
    sync: Sync,
    records: usize,
    frames: usize,
    play: impl FnOnce(&mut World<'_, F>) -> R,
) -> R {
    let cells = || (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (host_cells, guest_cells, combined_cells) = (cells(), cells(), cells());
    let host = Arena::<u64>::new(HOST_TABLES, &host_cells).unwrap();
    let guest = Arena::<u64>::new(GUEST_TABLES, &guest_cells).unwrap();
    let combined = Arena::<u64>::new(COMBINED, &combined_cells).unwrap();
    let logged = Logged { arena: &guest, writes: RefCell::new(Vec::new()) };
    let ram = Ram(vec![
        (HOST_TABLES, Cells::new(HOST_TABLES, &host_cells)),
        (BACKING, Cells::new(BACKING, &guest_cells)),
        (COMBINED, Cells::new(COMBINED, &combined_cells)),
    ]);
    let checker = RefCell::new(Checker::new(subject.target));
    let source = Watched { arena: &combined, checker: &checker, left: Cell::new(frames) };
    let upper = Tables::create(subject.upper, &logged, &logged).unwrap();
    let mut lower = Tables::create(subject.lower, &host, &host).unwrap();
    let tables = Tables::create(subject.target, &combined, &source).unwrap();
    checker.borrow_mut().run(subject.context, COMBINED);
    // The guest hypervisor's tables are backed.
    slots!(slots);
    let bytes = FRAMES as u64 * PAGE;
    let mut cursor =
        lower.cursor::<_, Live>(&host, Context::All, slots, Gpa::new(GUEST_TABLES), bytes).unwrap();
    let all = Permissions { read: true, write: true, execute: true };
    let leaves = Leaves::new(&subject.lower, &(subject.attributes)(all)).unwrap().up_to(0);
    let mut map = cursor.map(Gpa::new(GUEST_TABLES), Spa::new(BACKING), bytes, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, u32::MAX), Ok(Step::Done)));
    let _ = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let mut records = vec![Record::default(); records];
    let stack = Stack {
        upper: upper.stage(),
        upper_regime: Regime::default(),
        lower: subject.lower,
        lower_regime: Regime::default(),
    };
    let combined = Combined::new(stack, &subject.target, &mut records).unwrap();
    let mut world = World {
        subject,
        upper,
        logged: &logged,
        lower,
        host: &host,
        tables,
        source: &source,
        combined,
        tracked: Tracked::default(),
        sync,
        ram: &ram,
        checker: &checker,
        findings: Vec::new(),
    };
    play(&mut world)
}

impl<'a, F: Combine<Word = u64>> World<'a, F> {
    /// Makes a call on the combined table until it is through, completing each gather.
    pub(crate) fn nested<E: std::fmt::Debug>(
        &mut self,
        mut call: impl for<'t, 'g> FnMut(
            &mut Combined<'a, F>,
            &mut Cursor<'t, 'g, F>,
            &mut Backing<'_, F>,
            &mut Tracked,
        ) -> Result<Step<'g>, E>,
    ) -> Result<(), E> {
        let World { subject, lower, tables, source, combined, tracked, ram, checker, .. } = self;
        let arena = source.arena;
        let host = lower.stage().with_updates(Updates::OnSuccess).with_number(3);
        let regime = Regime::default();
        let others: Tables<F, L2Gpa, Spa, Memory64<'_>> =
            Tables::adopt(subject.target, COMBINED, arena).unwrap();
        let mut findings = Vec::new();
        let speculate = || {
            checker.borrow_mut().speculate(&mut Words::<u64, Spa, _>::new(arena));
        };
        // Speculates once more, completes a gather, judges, and gives the frames back.
        fn settle<'g, F: Encode<Word = u64>>(
            gather: Gather<'g>,
            subject: &Subject<F>,
            source: &Watched<'_, F>,
            others: &Tables<F, L2Gpa, Spa, Memory64<'_>>,
            findings: &mut Vec<Finding>,
        ) -> Ready<'g> {
            let checker = source.checker;
            checker.borrow_mut().speculate(&mut Words::<u64, Spa, _>::new(source.arena));
            let flush = subject.flush;
            let mut by = By(|gather: &Gather<'_>| flush(&mut checker.borrow_mut(), gather));
            let completed = gather.complete(&mut by).unwrap();
            let mut memory = Words::<u64, Spa, _>::new(source.arena);
            let found = checker.borrow_mut().complete(&mut memory, subject.context, 0..=u64::MAX);
            findings.extend(found);
            completed.reclaim(others).unwrap().into_source(source).unwrap()
        }
        speculate();
        slots!(slots);
        let whole = 1u64 << subject.target.input_bits();
        let mut cursor = tables
            .cursor::<_, Live>(*source, subject.context, slots, L2Gpa::new(0), whole)
            .unwrap();
        let mut calls = 0;
        let outcome = loop {
            calls += 1;
            assert!(calls < 20_000, "a call on the combined table does not come to its end");
            let mut backed = Nested::new(&host, *ram, &regime, &());
            match call(combined, &mut cursor, &mut backed, tracked) {
                Ok(Step::Done) => break Ok(()),
                Ok(Step::Yield) => speculate(),
                Ok(Step::Invalidate(gather)) => {
                    let ready = settle(gather, subject, source, &others, &mut findings);
                    cursor.resume(ready).unwrap();
                }
                Err(error) => break Err(error),
            }
        };
        let _ = settle(cursor.finish(), subject, source, &others, &mut findings);
        self.findings.extend(findings);
        outcome
    }

    /// The combined table is made true again after the guest hypervisor changed its stage and
    /// invalidated.
    pub(crate) fn synchronize(&mut self) {
        let writes: Vec<_> = self.logged.writes.borrow_mut().drain(..).collect();
        if self.sync == Sync::Tracked {
            for (address, bytes) in writes {
                let pages = address / PAGE..=(address + bytes - 1) / PAGE;
                if pages.clone().any(|page| self.tracked.0.contains(&(page * PAGE))) {
                    self.nested(|combined, cursor, _, track| {
                        combined.guest_wrote(cursor, track, Gpa::new(address), bytes)
                    })
                    .unwrap();
                }
            }
            return;
        }
        let mut pass = slat::combined::Pass::whole(&self.subject.target);
        self.nested(|combined, cursor, backed, _| combined.resync(cursor, backed, &mut pass, 3))
            .unwrap();
    }

    /// The guest hypervisor edits its stage.
    pub(crate) fn guest_edits<V: Verb<F>>(
        &mut self,
        page: u64,
        pages: u64,
        make: impl FnOnce(
            &slat::edit::Cursor<'_, '_, F, L2Gpa, Gpa, &'a Logged<'a>, Logged<'a>, Live>,
            L2Gpa,
            u64,
        ) -> Result<Operation<V>, Error>,
    ) {
        slots!(slots);
        let mut upper = Tables::adopt(self.subject.upper, GUEST_TABLES, self.logged)
            .expect("the root is there");
        let others: Tables<F, L2Gpa, Gpa, &Logged<'_>> =
            Tables::adopt(self.subject.upper, GUEST_TABLES, self.logged).unwrap();
        let mut cursor = upper
            .cursor::<_, Live>(self.logged, Context::All, slots, L2Gpa::new(BASE), PAGES * PAGE)
            .unwrap();
        let pages = pages.min(PAGES - page).max(1);
        let made = make(&cursor, L2Gpa::new(BASE + page * PAGE), pages * PAGE);
        if let Ok(mut operation) = made {
            let mut calls = 0;
            while let Ok(step) = cursor.step(&mut operation, u32::MAX) {
                calls += 1;
                assert!(calls < 5000, "an operation does not come to its end");
                match step {
                    Step::Done => break,
                    Step::Yield => {}
                    Step::Invalidate(gather) => {
                        self.synchronize();
                        let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                        let reclaim = completed.reclaim(&others).unwrap();
                        cursor.resume(reclaim.into_source(self.logged).unwrap()).unwrap();
                    }
                }
            }
        }
        let gather = cursor.finish();
        self.synchronize();
        let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let _ = completed.reclaim(&others).unwrap().into_source(self.logged).unwrap();
        self.synchronize();
    }

    /// The host edits its stage, and has the combined table follow before it frees anything.
    pub(crate) fn host_edits<V: Verb<F>>(
        &mut self,
        page: u64,
        pages: u64,
        make: impl FnOnce(
            &slat::edit::Cursor<'_, '_, F, Gpa, Spa, Memory64<'a>, Memory64<'a>, Live>,
            Gpa,
            u64,
        ) -> Result<Operation<V>, Error>,
    ) {
        slots!(slots);
        let (root, source) = (HOST_TABLES, self.host);
        let mut lower = Tables::adopt(self.subject.lower, root, source).unwrap();
        let others: Tables<F, Gpa, Spa, Memory64<'_>> =
            Tables::adopt(self.subject.lower, root, source).unwrap();
        let pages = pages.min(PAGES - page).max(1);
        let (start, bytes) = (Gpa::new(WINDOW + page * PAGE), pages * PAGE);
        // A page that sticks out is split: what changes may be a block more on either side.
        let block = (2u64 << 20) - 1;
        let range = Gpa::new(start.raw() & !block)..=Gpa::new((start.raw() + bytes - 1) | block);
        let mut cursor = lower
            .cursor::<_, Live>(&source, Context::All, slots, Gpa::new(WINDOW), PAGES * PAGE)
            .unwrap();
        let follow = |world: &mut Self| {
            world
                .nested(|combined, cursor, _, track| {
                    combined.host_changed(cursor, track, range.clone())
                })
                .unwrap();
        };
        let made = make(&cursor, start, bytes);
        if let Ok(mut operation) = made {
            let mut calls = 0;
            while let Ok(step) = cursor.step(&mut operation, u32::MAX) {
                calls += 1;
                assert!(calls < 5000, "an operation does not come to its end");
                match step {
                    Step::Done => break,
                    Step::Yield => {}
                    Step::Invalidate(gather) => {
                        follow(self);
                        let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                        let reclaim = completed.reclaim(&others).unwrap();
                        cursor.resume(reclaim.into_source(source).unwrap()).unwrap();
                    }
                }
            }
        }
        let gather = cursor.finish();
        follow(self);
        let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let _ = completed.reclaim(&others).unwrap().into_source(source).unwrap();
    }

    /// The composed walk as the tables are: the outcome, whether a bit would have to be set, and the
    /// two leaves' sizes.
    pub(crate) fn reference(&self, address: L2Gpa, asked: &Access) -> (Outcome, bool, u8) {
        let Subject { upper, lower, target, .. } = *self.subject;
        let regime = Regime::default();
        let host = self.lower.stage().with_number(3);
        let due = Due { format: upper, tables: true, due: Cell::new(false) };
        let mut ram = self.ram;
        let first = {
            let mut backed = Nested::new(&host, &mut ram, &regime, &());
            walk(&self.upper.stage(), &mut backed, address, asked, &regime, &due)
        };
        let first = match first {
            Ok(first) => first,
            Err(Failed::Here(fault)) => {
                let outcome = match fault.cause {
                    slat::Cause::Reserved(_) => Outcome::Misconfigured,
                    _ => Outcome::Violation,
                };
                return (outcome, false, 0);
            }
            Err(Failed::Below(_)) => return (Outcome::Host, false, 0),
        };
        let below = Due { format: lower, tables: false, due: Cell::new(false) };
        let lowered = target.lowered(asked);
        match walk(&host, &mut ram, first.output, &lowered, &regime, &below) {
            Ok(second) => (
                Outcome::At(second.output),
                due.due.get() || below.due.get(),
                first.found.shift.min(second.found.shift),
            ),
            Err(_) => (Outcome::Host, false, 0),
        }
    }

    /// What the combined table says, without serving.
    pub(crate) fn combined_walk(&self, address: L2Gpa, asked: &Access) -> Option<(Spa, u8)> {
        let mut ram = self.ram;
        let stage: Stage<F, L2Gpa, Spa> = self.tables.stage();
        let found = walk(&stage, &mut ram, address, asked, &Regime::default(), &()).ok()?;
        Some((found.output, found.found.shift))
    }

    /// L2 makes an access: the processor walks the combined table, and the host serves its faults.
    pub(crate) fn l2(&mut self, page: u64, asked: &Access) -> Outcome {
        let address = L2Gpa::new(BASE + page * PAGE + 0x18);
        for _ in 0..4 {
            if let Some((output, _)) = self.combined_walk(address, asked) {
                return Outcome::At(output);
            }
            let served = self.nested(|combined, cursor, backed, track| {
                combined.serve(cursor, backed, track, address, asked)
            });
            match served {
                Ok(()) => {}
                Err(Unserved::Violation(_)) => return Outcome::Violation,
                Err(Unserved::Misconfigured(_)) => return Outcome::Misconfigured,
                Err(Unserved::Host(failed)) => {
                    let _: Failure = failed;
                    return Outcome::Host;
                }
                Err(Unserved::Edit(Error::NoFrame { .. })) => {
                    self.nested(|combined, cursor, _, track| combined.drop_all(cursor, track))
                        .unwrap();
                }
                Err(Unserved::Edit(error)) => panic!("{error}"),
            }
        }
        panic!("{address:?} {asked:?}: L2 faults for ever");
    }

    /// Every combined leaf says exactly what the composition says.
    pub(crate) fn judge(&self) {
        let whole = 1u64 << self.subject.target.input_bits();
        for leaf in self.tables.mappings(L2Gpa::new(0), whole).unwrap() {
            let start = leaf.start.raw();
            for at in [start, start + leaf.bytes / 2, start + leaf.bytes - PAGE] {
                for (kind, user) in ACCESSES {
                    self.judge_one(L2Gpa::new(at), &access(kind, user), leaf.bytes);
                }
            }
        }
        assert_eq!(self.findings, [], "stale");
    }

    fn judge_one(&self, at: L2Gpa, asked: &Access, bytes: u64) {
        let (outcome, due, shift) = self.reference(at, asked);
        let expected = match outcome {
            Outcome::At(output) if !due => {
                assert!(bytes <= 1 << shift, "{at:?}: {bytes:#x} of {shift}");
                let format = &self.subject.target;
                let next = (0..=format.top()).find(|&level| 1u64 << format.shift(level) > bytes);
                let larger = next.map(|level| format.shift(level));
                let fits = larger.is_some_and(|larger| larger <= u32::from(shift) && larger <= 30);
                assert!(!fits, "{at:?}: {bytes:#x} where both have {shift}");
                Some(output)
            }
            _ => None,
        };
        let found = self.combined_walk(at, asked).map(|(output, _)| output);
        assert_eq!(found, expected, "{at:?} {asked:?}: {outcome:?}, due {due}");
    }

    /// Where anything is permitted without a bit to be set, there is a leaf.
    pub(crate) fn judge_full(&self) {
        for page in 0..PAGES {
            let at = L2Gpa::new(BASE + page * PAGE);
            let permitted = ACCESSES.iter().any(|&(kind, user)| {
                let (outcome, due, _) = self.reference(at, &access(kind, user));
                matches!(outcome, Outcome::At(_)) && !due
            });
            assert_eq!(self.tables.translate(at).is_some(), permitted, "{at:?}");
        }
    }

    /// The combined table's memory.
    pub(crate) fn tables_memory(&self) -> &'a Arena<'a, u64> {
        self.source.arena
    }

    /// Frames that the combined table has.
    pub(crate) fn frames_in_use(&self) -> usize {
        FRAMES - self.source.left.get()
    }

    /// What the processor holds that the combined table does not justify.
    pub(crate) fn complete(&self) -> Vec<Finding> {
        let mut memory = Words::<u64, Spa, _>::new(self.source.arena);
        self.checker.borrow_mut().complete(&mut memory, self.subject.context, 0..=u64::MAX)
    }

    /// The guest hypervisor's entry of a level for an address: where it lies (GPA), and its value.
    pub(crate) fn upper_entry(&self, address: L2Gpa, level: u8) -> (u64, u64) {
        struct Met(u8, Cell<(u64, u64)>);
        impl Observer for Met {
            fn step(&self, step: &slat::Step) {
                if step.level == self.0 {
                    self.1.set((step.entry_address, step.entry));
                }
            }
        }
        let met = Met(level, Cell::new((0, 0)));
        let regime = Regime::default();
        let host = self.lower.stage();
        let mut ram = self.ram;
        let mut backed = Nested::new(&host, &mut ram, &regime, &());
        let asked = access(Kind::Read, true);
        let _ = walk(&self.upper.stage(), &mut backed, address, &asked, &regime, &met);
        met.1.get()
    }

    /// The guest hypervisor writes an entry by hand.
    pub(crate) fn set_upper_entry(
        &mut self,
        address: L2Gpa,
        level: u8,
        change: impl Fn(u64) -> u64,
    ) {
        let (at, entry) = self.upper_entry(address, level);
        let cell = self.ram.cell(Spa::new(at - GUEST_TABLES + BACKING), true).unwrap();
        cell.store(change(entry), std::sync::atomic::Ordering::SeqCst);
        self.logged.writes.borrow_mut().push((at, 8));
    }
}
