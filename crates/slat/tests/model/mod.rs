//! The model, and tables under test beside it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use slat::edit::{
    Arena, Encode, Error, Frame, FrameSource, Gather, Leaves, Mode, Operation, Pending, Served,
    Slots, Stale, Step, TableMemory, Tables, Verb, Watch, Word,
};
use slat::format::Decoded;
use slat::invalidate::{By, Context};
use slat::{Gpa, Spa};

mod lent;
mod ops;
mod subjects;

use lent::Lent;

pub(crate) use ops::{Drive, Op, drive, operation};
pub(crate) use subjects::Subject;

pub(crate) const PAGE: u64 = 4096;
/// The window that operations fall into, in pages.
pub(crate) const PAGES: u64 = 2048;

/// A source that runs dry when it is told to, and knows which frames are out.
pub(crate) struct Counted<'a, W: Word> {
    arena: &'a Arena<'a, W>,
    lent: &'a Lent<'a, W>,
    left: Cell<u32>,
    out: RefCell<BTreeSet<u64>>,
}

impl<W: Word> FrameSource for Counted<'_, W> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        if self.left.get() == 0 {
            return None;
        }
        self.left.set(self.left.get() - 1);
        let frame = self.arena.take(bytes)?;
        // What a frame holds does not matter: it is handed out dirty.
        self.lent.spoil(frame.address(), bytes);
        assert!(self.out.borrow_mut().insert(frame.address()), "a frame was handed out twice");
        Some(frame)
    }
    fn put(&self, frame: Frame) {
        assert!(self.out.borrow_mut().remove(&frame.address()), "a frame came back twice");
        self.arena.put(frame);
    }
}
type CursorOf<'t, 'g, 'a, F, X> = slat::edit::Cursor<
    't,
    'g,
    F,
    Gpa,
    Spa,
    &'a Lent<'a, <F as Encode>::Word>,
    Counted<'a, <F as Encode>::Word>,
    X,
>;

type Model<F> = BTreeMap<u64, (u64, <F as Encode>::Attributes)>;

pub(crate) struct World<'a, F: Subject> {
    format: F,
    source: &'a Counted<'a, F::Word>,
    tables: Tables<F, Gpa, Spa, &'a Lent<'a, F::Word>>,
    model: Model<F>,
    /// Pages that hardware wrote through and nobody was told of yet.
    dirty: BTreeSet<u64>,
    base: u64,
    root: u64,
}

impl<'a, F: Subject> World<'a, F> {
    fn address(&self, page: u64) -> Gpa {
        Gpa::new(self.base + page * PAGE)
    }

    /// What the tables say, page by page, from one walk over them.
    fn observed(&self) -> Model<F> {
        let mut seen = Model::<F>::new();
        for mapping in self.tables.mappings(self.address(0), PAGES * PAGE).unwrap() {
            let first = (mapping.start.raw().wrapping_sub(self.base) as i64) / PAGE as i64;
            let attributes = self.format.attributes(mapping.entry, mapping.level);
            for page in 0..mapping.bytes / PAGE {
                let index = first + page as i64;
                if (0..PAGES as i64).contains(&index) {
                    let output = mapping.output.raw() / PAGE + page;
                    let value = (output, self.format.timeless(attributes));
                    assert!(seen.insert(index as u64, value).is_none(), "mapped twice");
                }
            }
        }
        seen
    }

    /// The size of the page or group that maps each page of a sample.
    fn sizes(&self) -> BTreeMap<u64, u64> {
        (0..PAGES)
            .step_by(61)
            .filter_map(|page| Some((page, self.tables.translate(self.address(page))?.bytes)))
            .collect()
    }

    fn check(&self) {
        let seen = self.observed();
        for page in 0..PAGES {
            assert_eq!(seen.get(&page), self.model.get(&page), "page {page:#x}");
        }
        for page in [0, 1, 255, 511, 512, PAGES - 1] {
            let found = self.tables.translate(self.address(page));
            let output = found.map(|mapping| mapping.output.raw() / PAGE);
            assert_eq!(output, self.model.get(&page).map(|value| value.0), "translate {page:#x}");
        }
        for &page in &self.dirty {
            let mapping = self.tables.translate(self.address(page)).expect("a dirty page is gone");
            assert!(self.format.is_dirty(mapping.entry), "dirty state of page {page:#x} was lost");
        }
        // Every frame that is out is a table that the root reaches, and the reverse.
        let mut reached = BTreeSet::new();
        self.reach(self.tables_root(), self.format.top(), &mut reached);
        assert_eq!(reached, *self.source.out.borrow(), "frames lost or freed in use");
    }

    fn tables_root(&self) -> u64 {
        self.root
    }

    fn reach(&self, table: u64, level: u8, reached: &mut BTreeSet<u64>) {
        assert!(reached.insert(table), "a table is linked twice");
        let bits = if level == self.format.top() {
            self.format.input_bits() - self.format.shift(level)
        } else {
            self.format.index_bits(level)
        };
        let size = F::Word::SIZE.bytes();
        let cells = self.source.arena.table(table, 1 << bits).unwrap();
        for (address, cell) in (table..).step_by(size as usize).zip(cells) {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            assert_ne!(entry, self.format.frozen(), "left frozen");
            let seen = self.source.lent.seen(address);
            assert_eq!(seen, entry, "level {level}: hardware was never told of the entry");
            match self.format.decode(entry, level) {
                Decoded::Table { next } => self.reach(next, level - 1, reached),
                Decoded::Reserved(reserved) => panic!("a reserved entry was written: {reserved}"),
                _ => {}
            }
        }
    }

    /// Hardware writes through a page: sets accessed and dirty bits in the leaf's own cell.
    fn write(&mut self, page: u64) {
        let Some(mapping) = self.tables.translate(self.address(page)) else { return };
        if !self.format.permissions_of(mapping.entry, mapping.level).write {
            return;
        }
        let input = (self.base + page * PAGE) & ((1u64 << self.format.input_bits()) - 1);
        let (mut table, mut level) = (self.tables_root(), self.format.top());
        loop {
            let bits = if level == self.format.top() {
                self.format.input_bits() - self.format.shift(level)
            } else {
                self.format.index_bits(level)
            };
            let cells = self.source.arena.table(table, 1 << bits).unwrap();
            let index = (input >> self.format.shift(level)) as usize & (cells.len() - 1);
            let entry = F::Word::load(&cells[index], Ordering::Relaxed);
            match self.format.decode(entry, level) {
                Decoded::Table { next } => (table, level) = (next, level - 1),
                _ => {
                    let soil = self.format.soil();
                    let untracked = !self.format.is_dirty(soil.apply(entry));
                    if untracked {
                        return;
                    }
                    F::Word::fetch_or(&cells[index], soil.set);
                    F::Word::fetch_and(&cells[index], !soil.clear);
                    // Hardware sees what it writes itself.
                    let size = F::Word::SIZE.bytes();
                    self.source.lent.publish(table + index as u64 * size, size);
                    break;
                }
            }
        }
        self.dirty.insert(page);
    }

    /// Which pages may be stale: their translation is gone, moved, of another type or narrower.
    fn narrowed(&self, before: &Model<F>) -> BTreeSet<u64> {
        let after = self.observed();
        before
            .iter()
            .filter(|(page, (output, attributes))| match after.get(page) {
                None => true,
                Some((now, then)) => {
                    let lost = self.format.grants(*attributes);
                    let kept = self.format.grants(*then);
                    now != output
                        || self.format.rest(*attributes) != self.format.rest(*then)
                        || lost.iter().zip(kept).any(|(had, has)| *had && !has)
                }
            })
            .map(|(page, _)| *page)
            .collect()
    }

    /// Runs one operation and returns how many bytes of it were done.
    fn run<X: Mode, V: Verb<F>>(
        &mut self,
        how: Drive,
        make: impl FnOnce(&CursorOf<'_, '_, 'a, F, X>) -> Result<Operation<V>, Error>,
        reported: &RefCell<BTreeSet<u64>>,
    ) -> Result<u64, Error> {
        let (before, sizes) = (self.observed(), self.sizes());
        let mut ranges = vec![Stale::default(); how.slots];
        let mut detached = vec![Default::default(); how.slots];
        let mut pending = vec![Pending::default(); how.slots];
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
        let covered: RefCell<Vec<Stale>> = RefCell::default();
        let mut invalidate = By(|gather: &Gather<'_>| covered.borrow_mut().extend(gather.ranges()));
        let base = self.base;
        let format = self.format;
        // The bits that hardware left in detached tables at the very last.
        let mut seen_late = Watch(|start: u64, level: u8, entry: u64| {
            if format.is_dirty(entry) {
                let first = (start.wrapping_sub(base)) / PAGE;
                for page in 0..(1u64 << format.shift(level)) / PAGE {
                    reported.borrow_mut().insert(first.wrapping_add(page));
                }
            }
        });

        // Reclaiming looks at tables that the cursor has borrowed: by another name for them.
        let root = self.tables_root();
        let lent = self.source.lent;
        let others = Tables::<F, Gpa, Spa, _>::adopt(self.format, root, lent).unwrap();
        let start = self.address(0);
        let context = Context::Ept { eptp: root };
        let mut cursor =
            self.tables.cursor::<_, X>(self.source, context, slots, start, PAGES * PAGE).unwrap();
        let mut operation = make(&cursor)?;
        let mut outcome = Ok(());
        let mut steps = 0;
        while steps < how.steps {
            steps += 1;
            match cursor.step(&mut operation, how.budget) {
                Ok(Step::Done) => break,
                Ok(Step::Yield) => {}
                Ok(Step::Invalidate(gather)) => {
                    let completed = gather.complete(&mut invalidate).unwrap();
                    let mut reclaim = completed.reclaim(&others).unwrap();
                    while let Some(frame) = reclaim.next_frame(&mut seen_late).unwrap() {
                        self.source.put(frame);
                    }
                    cursor.resume(reclaim.finish().unwrap()).unwrap();
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let done = operation.bytes_done();
        // An abandoned operation may have broken entries: they are made once the gather is done.
        if let Some(gather) = cursor.flush() {
            let completed = gather.complete(&mut invalidate).unwrap();
            let mut reclaim = completed.reclaim(&others).unwrap();
            while let Some(frame) = reclaim.next_frame(&mut seen_late).unwrap() {
                self.source.put(frame);
            }
            cursor.resume(reclaim.finish().unwrap()).unwrap();
        }
        let gather = cursor.finish();
        let completed = gather.complete(&mut invalidate).unwrap();
        let mut reclaim = completed.reclaim(&others).unwrap();
        while let Some(frame) = reclaim.next_frame(&mut seen_late).unwrap() {
            self.source.put(frame);
        }
        let ready = reclaim.finish().unwrap();
        drop(ready);

        // What may be stale has been invalidated.
        let covered = covered.into_inner();
        let resized = self.sizes();
        let resized =
            sizes.iter().filter(|(page, bytes)| resized.get(page).is_some_and(|now| now != *bytes));
        for page in self.narrowed(&before).into_iter().chain(resized.map(|(page, _)| *page)) {
            let at = self.address(page).raw();
            let hit = covered.iter().any(|range| range.start <= at && at <= range.last);
            assert!(hit, "page {page:#x} was never invalidated: {covered:x?}");
        }
        match outcome {
            Err(
                error @ (Error::NoFrame { at, .. }
                | Error::Occupied { at, .. }
                | Error::OutsideOutput { output: at }),
            ) => {
                let _ = (error, at);
                Ok(done)
            }
            Err(error) => panic!("{error}"),
            Ok(()) => Ok(done),
        }
    }

    /// Runs one call on a cursor and completes its gather.
    fn single<X: Mode, R>(&mut self, act: impl FnOnce(&mut CursorOf<'_, '_, 'a, F, X>) -> R) -> R {
        let (mut ranges, mut detached) = ([Stale::default()], [Default::default()]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut [],
            report: |leak| panic!("{leak}"),
        };
        let context = Context::Ept { eptp: self.root };
        let start = self.address(0);
        let mut cursor =
            self.tables.cursor::<_, X>(self.source, context, slots, start, PAGES * PAGE).unwrap();
        let result = act(&mut cursor);
        let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let _ = completed.ready().unwrap();
        result
    }

    fn apply<X: Mode>(&mut self, op: &Op, how: Drive) {
        let clip = |at: u64, pages: u64| pages.min(PAGES - at).max(1);
        let output_of = |output: u64| Spa::new((1 << 30) + output * PAGE);
        let format = self.format;
        let base = self.base;
        let reported = RefCell::new(BTreeSet::new());
        let witness = || {
            Watch(|start: u64, level: u8, entry: u64| {
                if format.is_dirty(entry) {
                    // A leaf seen for a part of it counts for that part alone: it was split first.
                    let first = start.wrapping_sub(base) / PAGE;
                    for page in 0..(1u64 << format.shift(level)) / PAGE {
                        reported.borrow_mut().insert(first.wrapping_add(page));
                    }
                }
            })
        };
        match *op {
            Op::Map { at, pages, output, attributes, up_to, grouped } => {
                let pages = clip(at, pages);
                let attributes = self.format.attributes_numbered(attributes);
                let leaves = Leaves::new(&self.format, &attributes).unwrap().up_to(up_to);
                let leaves = if grouped { leaves.grouped() } else { leaves };
                let start = self.address(at);
                // Blocks need inputs and outputs that agree.
                let output = output + at % 512;
                let taken = (at..at + pages).any(|page| self.model.contains_key(&page));
                let done = self
                    .run::<X, _>(
                        how,
                        |cursor| cursor.map(start, output_of(output), pages * PAGE, &leaves),
                        &reported,
                    )
                    .unwrap();
                assert!(!taken || done == 0, "mapping over something changed a part");
                for page in 0..done / PAGE {
                    let value = ((1 << 18) + output + page, self.format.timeless(attributes));
                    self.model.insert(at + page, value);
                }
            }
            Op::Unmap { at, pages } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done = self
                    .run::<X, _>(how, |c| c.unmap(start, pages * PAGE, witness()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if self.model.remove(&page).is_some() && self.dirty.remove(&page) {
                        assert!(reported.borrow().contains(&page), "dirty {page:#x} unreported");
                    }
                }
            }
            Op::Protect { at, pages, permissions } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let to = self.format.permissions_numbered(permissions);
                let done = self
                    .run::<X, _>(how, |c| c.protect(start, pages * PAGE, to, witness()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if let Some(value) = self.model.get_mut(&page) {
                        value.1 = self.format.protected(value.1, to);
                    }
                    // Where write permission is the dirty state (Arm), it may go with a report.
                    let mapping = self.tables.translate(self.address(page));
                    let clean = mapping.is_some_and(|m| !self.format.is_dirty(m.entry));
                    if clean && self.dirty.remove(&page) {
                        assert!(reported.borrow().contains(&page), "dirty {page:#x} unreported");
                    }
                }
            }
            Op::Retype { at, pages, memory } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let to = self.format.memory_numbered(memory);
                let done = self
                    .run::<X, _>(how, |c| c.retype(start, pages * PAGE, to, ()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if let Some(value) = self.model.get_mut(&page) {
                        value.1 = self.format.retyped(value.1, to);
                    }
                }
            }
            Op::Remap { at, pages, output } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done = self
                    .run::<X, _>(
                        how,
                        |c| c.remap(start, output_of(output), pages * PAGE, witness()),
                        &reported,
                    )
                    .unwrap();
                for page in 0..done / PAGE {
                    if let Some(value) = self.model.get_mut(&(at + page)) {
                        value.0 = (1 << 18) + output + page;
                    }
                }
            }
            Op::Split { at, pages, to } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done =
                    self.run::<X, _>(how, |c| c.split(start, pages * PAGE, to), &reported).unwrap();
                for page in at..at + done / PAGE {
                    let found = self.tables.translate(self.address(page));
                    let page = |level| 1u64 << self.format.shift(level);
                    assert!(found.is_none_or(|mapping| mapping.bytes <= page(to)), "still large");
                }
            }
            Op::Collapse { at, pages, to } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                self.run::<X, _>(how, |c| c.collapse(start, pages * PAGE, to), &reported).unwrap();
            }
            Op::Clean { at, pages } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done = self
                    .run::<X, _>(how, |c| c.clean(start, pages * PAGE, witness()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if let Some(mapping) = self.tables.translate(self.address(page)) {
                        assert!(!self.format.is_dirty(mapping.entry), "still dirty");
                    }
                    if self.dirty.remove(&page) {
                        assert!(reported.borrow().contains(&page), "dirty {page:#x} unreported");
                    }
                }
            }
            Op::Age { at, pages } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done =
                    self.run::<X, _>(how, |c| c.age(start, pages * PAGE, ()), &reported).unwrap();
                for page in at..at + done / PAGE {
                    if let Some(mapping) = self.tables.translate(self.address(page)) {
                        // Short descriptors do not age: their leaves are accessed for good.
                        let ages = self.format.age() != Default::default();
                        assert!(!ages || !self.format.is_accessed(mapping.entry), "still young");
                    }
                }
            }
            Op::Fault { at, output, attributes, by_cursor } => {
                let attributes = self.format.attributes_numbered(attributes);
                let leaves = Leaves::new(&self.format, &attributes).unwrap();
                let (address, to) = (self.address(at), output_of(output));
                let served = if by_cursor {
                    self.single::<X, _>(|cursor| cursor.fault(address, to, 0, &leaves))
                } else {
                    self.tables.fault::<_, X>(self.source, address, to, 0, &leaves)
                };
                match served {
                    Ok(Served::Installed { level }) => {
                        assert_eq!(level, 0);
                        let value = ((1 << 18) + output, self.format.timeless(attributes));
                        assert!(self.model.insert(at, value).is_none(), "mapped over a page");
                    }
                    Ok(Served::Present { .. }) => assert!(self.model.contains_key(&at)),
                    Err(error) => assert!(matches!(error, Error::NoFrame { .. }), "{error}"),
                }
            }
            Op::Remove { at, by_cursor } => {
                let address = self.address(at);
                let removed = if by_cursor {
                    self.single::<X, _>(|cursor| cursor.remove(address))
                } else {
                    let context = Context::Ept { eptp: self.root };
                    let removed = self.tables.remove::<X>(address, context, |l| panic!("{l}"));
                    removed.map(|removed| {
                        removed.map_or(0, |removed| {
                            let entry = removed.entry();
                            let mut invalidate = By(|gather: &Gather<'_>| {
                                let [range] = gather.ranges() else { panic!("one page") };
                                assert_eq!(range.start, address.raw());
                                assert_eq!(range.last - range.start, PAGE - 1);
                            });
                            removed.complete(&mut invalidate).unwrap();
                            entry
                        })
                    })
                };
                match removed {
                    Ok(0) => assert!(!self.model.contains_key(&at)),
                    Ok(entry) => {
                        assert!(self.model.remove(&at).is_some());
                        assert!(!self.dirty.remove(&at) || self.format.is_dirty(entry));
                    }
                    Err(Error::Occupied { .. }) => {
                        let found = self.tables.translate(address).unwrap();
                        assert!(found.bytes > PAGE, "a page by itself was refused");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            // While no operation is under way, whichever the mode.
            Op::Write { at } => self.write(at),
            Op::Starve { frames } => self.source.left.set(frames),
        }
        if !matches!(op, Op::Starve { .. }) {
            self.source.left.set(u32::MAX);
        }
        self.check();
    }
}

pub(crate) fn sequence<F: Subject, X: Mode>(format: F, base: u64, ops: &[(Op, Drive)])
where
    <F::Word as Word>::Atomic: Default,
{
    let words = 40 * PAGE / F::Word::SIZE.bytes();
    let cells: Vec<_> = (0..words).map(|_| <F::Word as Word>::Atomic::default()).collect();
    let arena = Arena::<F::Word>::new(lent::BASE, &cells).unwrap();
    let lent = Lent::new(&arena, words);
    let (left, out) = (Cell::new(u32::MAX), RefCell::default());
    let source = Counted { arena: &arena, lent: &lent, left, out };
    let tables = Tables::create(format, &lent, &source).unwrap();
    let root = *source.out.borrow().first().unwrap();
    let (model, dirty) = (BTreeMap::new(), BTreeSet::new());
    let mut world = World { format, source: &source, tables, model, dirty, base, root };
    world.check();
    for (op, how) in ops {
        world.apply::<X>(op, *how);
    }
}
