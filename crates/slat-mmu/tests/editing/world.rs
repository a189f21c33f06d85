//! Every editing operation of the library, one at a time, on tables that a processor which forgets
//! nothing walks meanwhile.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use slat::edit::{
    Arena, Collapse, Encode, Error, Frame, FrameSource, Gather, Leaves, Live, Operation, Slots,
    Step, Tables, Verb, Word,
};
use slat::invalidate::{By, Context};
use slat::{Access, Gpa, Kind, Permissions, Privilege, Regime, Spa, Updates, walk};
use slat_mmu::checker::{Checker, Copy, Finding, What, Why, Words};

/// The window that operations fall into, in pages: 4 MiB of those of 4 KiB.
pub(crate) const PAGES: u64 = 1024;
/// Where the tables lie.
pub(crate) const TABLES: u64 = 0x10_0000;

/// A frame source that asks the checker before a frame is used again.
pub(crate) struct Watched<'a, F: Encode> {
    arena: &'a Arena<'a, F::Word>,
    checker: &'a RefCell<Checker<F>>,
    /// The first frame that was taken: the root.
    root: Cell<Option<u64>>,
}

impl<F: Encode> FrameSource for Watched<'_, F> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let frame = self.arena.take(bytes)?;
        self.root.set(self.root.get().or(Some(frame.address())));
        Some(frame)
    }

    fn put(&self, frame: Frame) {
        let range = frame.address()..=frame.address() + (frame.bytes() - 1);
        let reaching = self.checker.borrow().freed(range);
        assert!(reaching.is_empty(), "a frame that is still reached was freed: {}", reaching[0]);
        self.arena.put(frame);
    }
}

/// A format with its id, its leaves, and how its gathers become instructions.
pub(crate) struct Subject<F: Encode> {
    pub(crate) format: F,
    pub(crate) context: Context,
    /// First address of the window.
    pub(crate) base: u64,
    /// Where its pages are mapped to.
    pub(crate) output: u64,
    pub(crate) attributes: fn(Permissions) -> F::Attributes,
    /// Memory types that pages are given.
    pub(crate) types: [F::Memory; 2],
    /// Pages can be kept from being executed.
    pub(crate) forbids_execution: bool,
    /// Carries a plan out.
    pub(crate) flush: fn(&mut Checker<F>, &Gather<'_>),
    /// No plan is carried out: what the gather names goes, and not a copy more.
    pub(crate) literal: bool,
    /// Guests whose stage 1 is off.
    pub(crate) flat_stage1: bool,
}

impl<F: Encode> Subject<F> {
    /// With a window in the middle of everything, and outputs above 4 GiB.
    pub(crate) fn new(
        format: F,
        context: Context,
        attributes: fn(Permissions) -> F::Attributes,
        types: [F::Memory; 2],
        flush: fn(&mut Checker<F>, &Gather<'_>),
    ) -> Subject<F> {
        Subject {
            format,
            context,
            base: (1 << 30) - (PAGES << 11),
            output: 1 << 33,
            attributes,
            types,
            forbids_execution: true,
            flush,
            literal: false,
            flat_stage1: false,
        }
    }

    /// With its window elsewhere.
    pub(crate) fn at(self, base: u64) -> Subject<F> {
        Subject { base, ..self }
    }

    /// With its window at the end of its addresses.
    pub(crate) fn at_the_end(self) -> Subject<F> {
        let all = if self.format.input(0, u64::MAX).is_some() {
            0
        } else {
            1u64 << self.format.input_bits()
        };
        let base = all.wrapping_sub(PAGES * self.page());
        self.at(base)
    }

    /// With outputs that fit into 32 bits.
    pub(crate) fn narrow(self) -> Subject<F> {
        Subject { output: 1 << 30, ..self }
    }

    /// Size of the smallest page.
    pub(crate) fn page(&self) -> u64 {
        1 << self.format.shift(0)
    }

    fn address(&self, page: u64) -> Gpa {
        Gpa::new(self.base + page * self.page())
    }

    fn permissions(&self, rights: usize) -> Permissions {
        let permissions = PERMISSIONS[rights];
        Permissions { execute: permissions.execute || !self.forbids_execution, ..permissions }
    }

    /// Whether the gather, taken at its word, asks for the invalidation of a copy.
    fn names(&self, gather: &Gather<'_>, copy: &Copy) -> bool {
        let named = match copy.what {
            What::Table => gather.tables_changed(),
            What::Translation | What::Combined => gather.levels() >> copy.level & 1 != 0,
            What::Invalid => true,
            What::Root => false,
        };
        named
            && copy.context == gather.context()
            && gather.ranges().iter().any(|range| {
                // Those of a gather are as software writes them.
                let start = self.format.input(0, range.start).unwrap_or(0);
                copy.overlaps(&(start..=start.saturating_add(range.last - range.start)))
            })
    }
}

pub(crate) type Cursor<'t, 'g, F> = slat::edit::Cursor<
    't,
    'g,
    F,
    Gpa,
    Spa,
    &'t Arena<'t, <F as Encode>::Word>,
    Watched<'t, F>,
    Live,
>;

pub(crate) struct World<'a, F: Encode> {
    subject: &'a Subject<F>,
    source: &'a Watched<'a, F>,
    tables: Tables<F, Gpa, Spa, &'a Arena<'a, F::Word>>,
    root: u64,
}

impl<F: Encode> World<'_, F> {
    /// Runs an operation to its end, speculating wherever hardware could, and returns what was found
    /// stale after each completed gather.
    fn run<V: Verb<F>>(
        &mut self,
        start: u64,
        pages: u64,
        make: impl FnOnce(&Cursor<'_, '_, F>, Gpa, u64) -> Result<Operation<V>, Error>,
    ) -> Vec<Finding> {
        let arena = self.source.arena;
        let checker = self.source.checker;
        let subject = self.subject;
        let Subject { format, context, .. } = *subject;
        let others = Tables::<F, Gpa, Spa, _>::adopt(format, self.root, arena).unwrap();
        let speculate = || {
            checker.borrow_mut().speculate(&mut Words::<F::Word, Spa, _>::new(arena));
        };
        let mut findings = Vec::new();
        let invalidate = |gather: &Gather<'_>| {
            let mut checker = checker.borrow_mut();
            if subject.literal {
                checker.invalidate(|copy| subject.names(gather, copy));
            } else {
                (subject.flush)(&mut checker, gather);
            }
        };
        let judge = || {
            let mut memory = Words::<F::Word, Spa, _>::new(arena);
            checker.borrow_mut().complete(&mut memory, context, 0..=u64::MAX)
        };
        let (mut ranges, mut detached, mut pending) =
            ([Default::default(); 3], [Default::default(); 2], [Default::default(); 2]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
        speculate();
        let mut cursor = self
            .tables
            .cursor::<_, Live>(
                self.source,
                context,
                slots,
                subject.address(0),
                PAGES * subject.page(),
            )
            .unwrap();
        let pages = pages.min(PAGES - start).max(1);
        let made = make(&cursor, subject.address(start), pages * subject.page());
        if let Ok(mut operation) = made {
            // A page in several pieces, frames that run out: the rest is left as it is.
            while let Ok(step) = cursor.step(&mut operation, 1) {
                match step {
                    Step::Done => break,
                    Step::Yield => speculate(),
                    Step::Invalidate(gather) => {
                        speculate();
                        let completed = gather.complete(&mut By(&invalidate)).unwrap();
                        findings.extend(judge());
                        let reclaim = completed.reclaim(&others).unwrap();
                        cursor.resume(reclaim.into_source(self.source).unwrap()).unwrap();
                    }
                }
            }
        }
        speculate();
        let completed = cursor.finish().complete(&mut By(&invalidate)).unwrap();
        findings.extend(judge());
        let reclaim = completed.reclaim(&others).unwrap();
        let _ = reclaim.into_source(self.source).unwrap();
        findings
    }

    /// The guest uses a page: accessed and dirty bits are set where hardware sets them.
    fn touch(&self, page: u64, write: bool) {
        let stage = self.tables.stage().with_updates(Updates::OnSuccess);
        let kind = if write { Kind::Write } else { Kind::Read };
        let access = Access::new(kind, Privilege::User);
        let mut memory = Words::<F::Word, Spa, _>::new(self.source.arena);
        let at = self.subject.address(page);
        let _ = walk(&stage, &mut memory, at, &access, &Regime::default(), &());
    }
}

pub(crate) const PERMISSIONS: [Permissions; 3] = [
    Permissions { read: true, write: true, execute: true },
    Permissions { read: true, write: false, execute: false },
    Permissions { read: true, write: true, execute: false },
];

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Map { start: u64, pages: u64, output: u64, rights: usize, grouped: bool },
    Unmap { start: u64, pages: u64 },
    Protect { start: u64, pages: u64, rights: usize },
    Retype { start: u64, pages: u64, kind: usize },
    Clean { start: u64, pages: u64 },
    Age { start: u64, pages: u64 },
    Split { start: u64, pages: u64 },
    Collapse { start: u64 },
    Remap { start: u64, pages: u64, output: u64 },
    Touch { page: u64, write: bool },
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let start = || prop_oneof![Just(0u64), Just(512), 0..PAGES];
    let pages = || prop_oneof![Just(1u64), Just(512), Just(1024), 1..64u64];
    let output = || prop_oneof![Just(0u64), Just(512), 0..64u64];
    prop_oneof![
        4 => (start(), pages(), output(), 0..3usize, any::<bool>()).prop_map(
            |(start, pages, output, rights, grouped)| Op::Map {
                start, pages, output, rights, grouped
            }),
        3 => (start(), pages()).prop_map(|(start, pages)| Op::Unmap { start, pages }),
        2 => (start(), pages(), 0..3usize)
            .prop_map(|(start, pages, rights)| Op::Protect { start, pages, rights }),
        1 => (start(), pages(), 0..2usize)
            .prop_map(|(start, pages, kind)| Op::Retype { start, pages, kind }),
        1 => (start(), pages()).prop_map(|(start, pages)| Op::Clean { start, pages }),
        1 => (start(), pages()).prop_map(|(start, pages)| Op::Age { start, pages }),
        1 => (start(), pages()).prop_map(|(start, pages)| Op::Split { start, pages }),
        2 => start().prop_map(|start| Op::Collapse { start }),
        1 => (start(), pages(), output())
            .prop_map(|(start, pages, output)| Op::Remap { start, pages, output }),
        3 => (0..PAGES, any::<bool>()).prop_map(|(page, write)| Op::Touch { page, write }),
    ]
}

impl<F: Encode> World<'_, F> {
    fn apply(&mut self, op: Op) -> Vec<Finding> {
        let subject = self.subject;
        let format = subject.format;
        let page = subject.page();
        match op {
            Op::Map { start, pages, output, rights, grouped } => {
                let attributes = (subject.attributes)(subject.permissions(rights));
                let leaves = Leaves::new(&format, &attributes).unwrap();
                let leaves = if grouped { leaves.up_to(0).grouped() } else { leaves };
                let spa = Spa::new(subject.output + output * page);
                self.run(start, pages, |cursor, at, bytes| cursor.map(at, spa, bytes, &leaves))
            }
            Op::Unmap { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.unmap(at, bytes, ()))
            }
            Op::Protect { start, pages, rights } => self.run(start, pages, |cursor, at, bytes| {
                cursor.protect(at, bytes, subject.permissions(rights), ())
            }),
            Op::Retype { start, pages, kind } => self.run(start, pages, |cursor, at, bytes| {
                cursor.retype(at, bytes, subject.types[kind], ())
            }),
            Op::Clean { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.clean(at, bytes, ()))
            }
            Op::Age { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.age(at, bytes, ()))
            }
            Op::Split { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.split(at, bytes, 0))
            }
            Op::Collapse { start } => {
                self.run::<Collapse>(start & 512, 512, |cursor, at, bytes| {
                    cursor.collapse(at, bytes, 1)
                })
            }
            Op::Remap { start, pages, output } => {
                let spa = Spa::new(subject.output + (1 << 30) + output * page);
                self.run(start, pages, |cursor, at, bytes| cursor.remap(at, spa, bytes, ()))
            }
            Op::Touch { page, write } => {
                self.touch(page, write);
                Vec::new()
            }
        }
    }
}

/// Runs a sequence and gives what was found stale, by operation.
pub(crate) fn sequence<F: Encode>(subject: &Subject<F>, ops: &[Op]) -> Vec<(Op, Vec<Finding>)>
where
    <F::Word as Word>::Atomic: Default,
{
    let words = 64 * subject.page() / F::Word::SIZE.bytes();
    let cells: Vec<_> = (0..words).map(|_| <F::Word as Word>::Atomic::default()).collect();
    let arena = Arena::<F::Word>::new(TABLES, &cells).unwrap();
    let checker = Checker::new(subject.format);
    let checker = if subject.flat_stage1 { checker.with_flat_stage1() } else { checker };
    let checker = RefCell::new(checker);
    let source = Watched { arena: &arena, checker: &checker, root: Cell::new(None) };
    let tables = Tables::create(subject.format, &arena, &source).unwrap();
    let root = source.root.get().unwrap();
    checker.borrow_mut().run(subject.context, root);
    let mut world = World { subject, source: &source, tables, root };
    ops.iter().map(|&op| (op, world.apply(op))).collect()
}

/// Runs a sequence in which nothing stale may be found: by its plans, and by what its gathers say.
pub(crate) fn clean<F: Encode>(subject: Subject<F>, ops: &[Op])
where
    <F::Word as Word>::Atomic: Default,
{
    for literal in [false, true] {
        let subject = Subject { literal, ..subject };
        for (op, findings) in sequence(&subject, ops) {
            let name = slat::format::Format::name(&subject.format);
            assert!(findings.is_empty(), "{name}, literally {literal}: {op:?}: {}", findings[0]);
        }
    }
}

pub(crate) fn found(all: &[(Op, Vec<Finding>)], why: Why, what: What) -> bool {
    all.iter().flat_map(|(_, findings)| findings).any(|f| f.why == why && f.copy.what == what)
}
