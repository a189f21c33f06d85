//! Several threads on one set of tables: faults and readers without a lock, hardware that sets
//! accessed and dirty bits, cursors under one.

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use slat::edit::{
    Arena, Completed, Encode, Error, FrameSource, Gather, Leaves, Pending, Reclaim, Served, Shared,
    Slots, Stale, Step, TableMemory, Tables, Walkers, Watch, Word, arm64, ept,
};
use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::{Decoded, Format};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
const OUTPUT: u64 = 1 << 32;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };

fn format() -> Ept {
    Ept::four(Features { accessed_dirty: true, ..Features::default() })
}

fn leaves() -> Leaves {
    Leaves::new(&format(), &ept::Attributes::new(RWX, Type::Wb)).unwrap()
}

fn cells(frames: usize) -> Vec<AtomicU64> {
    (0..frames * 512).map(|_| AtomicU64::new(0)).collect()
}

type EptTables<'a> = Tables<Ept, Gpa, Spa, &'a Arena<'a, u64>>;

/// The cell of the smallest page that maps `at`, and the entry, found as hardware finds them: each
/// entry is read once. Read again, a block's cell could hold a table by then.
fn page_cell<'a>(arena: &'a Arena<'_, u64>, root: u64, at: u64) -> Option<(&'a AtomicU64, u64)> {
    let (mut table, mut level) = (root, 3);
    loop {
        let cells = arena.table(table, 512)?;
        let cell = &cells[(at >> format().shift(level)) as usize & 511];
        let entry = cell.load(Ordering::Acquire);
        match format().decode(entry, level) {
            Decoded::Table { next } => (table, level) = (next, level - 1),
            Decoded::Leaf { .. } if level == 0 => return Some((cell, entry)),
            _ => return None,
        }
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn faults_on_the_same_pages_install_each_of_them_once() {
    let cells = cells(64);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let slots = [const { AtomicU64::new(0) }; 4];
    let walkers = Walkers::new(&slots);
    for _ in 0..20 {
        let tables: EptTables = Tables::create(format(), &arena, &arena).unwrap();
        let shared = Shared::new(tables, &walkers);
        let installed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let (shared, installed, arena) = (&shared, &installed, &arena);
                scope.spawn(move || {
                    let walker = shared.walker().unwrap();
                    for n in 0..1024 {
                        // The same pages, in orders of their own.
                        let page = (n * (2 * thread + 1)) % 1024;
                        let (at, output) = (page * PAGE, OUTPUT + page * PAGE);
                        let served = walker
                            .fault(arena, Gpa::new(at), Spa::new(output), 0, &leaves())
                            .unwrap();
                        if matches!(served, Served::Installed { .. }) {
                            installed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(installed.into_inner(), 1024);
        let mut tables = shared.into_tables();
        for page in 0..1024 {
            let found = tables.translate(Gpa::new(page * PAGE + 8)).unwrap();
            assert_eq!(found.output, Spa::new(OUTPUT + page * PAGE + 8));
        }
        // Every frame is accounted for: what lost a race came back at once.
        let mut storage = Storage::default();
        let context = Context::Ept { eptp: 0 };
        let mut cursor = tables
            .cursor::<_, slat::edit::Quiet>(&arena, context, storage.slots(), Gpa::new(0), 1 << 48)
            .unwrap();
        let mut unmap = cursor.unmap(Gpa::new(0), 1 << 48, ()).unwrap();
        assert!(matches!(cursor.step(&mut unmap, u32::MAX), Ok(Step::Done)));
        let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let _ = completed.reclaim(&tables).unwrap().into_source(&arena).unwrap();
        arena.put(slat::edit::Frame::new(tables.root(), PAGE));
    }
    let mut frames = 0;
    while arena.take(PAGE).is_some() {
        frames += 1;
    }
    assert_eq!(frames, 64, "frames were lost");
}

/// Has the other threads end, a failed check in this one included.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Storage([Stale; 8], [slat::edit::Detached; 4], [Pending; 4]);

impl Storage {
    fn slots(&mut self) -> Slots<'_> {
        Slots {
            ranges: &mut self.0,
            detached: &mut self.1,
            pending: &mut self.2,
            report: |leak| panic!("{leak}"),
        }
    }
}

/// Waits for the walkers, as a hypervisor does by running something else.
fn reclaimed<'t, 'g, F: Encode<Word = u64>>(
    mut completed: Completed<'g>,
    tables: &'t Tables<F, Gpa, Spa, &'t Arena<'t, u64>>,
) -> Reclaim<'t, 'g, F, Gpa, Spa, &'t Arena<'t, u64>> {
    loop {
        match completed.reclaim(tables) {
            Ok(reclaim) => return reclaim,
            Err(later) => completed = later,
        }
        std::thread::yield_now();
    }
}

/// Hardware dirties pages and faults map them while a thread unmaps, splits, collapses, cleans and
/// protects. No page may ever map elsewhere than where it belongs, no walker may meet a frame that
/// was given back, and no dirty bit may be lost.
#[test]
fn everything_at_once() {
    const BLOCKS: u64 = 4;
    let cells = cells(48);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let slots = [const { AtomicU64::new(0) }; 4];
    let walkers = Walkers::new(&slots);
    let tables: EptTables = Tables::create(format(), &arena, &arena).unwrap();
    let root = tables.root();
    let shared = Shared::new(tables, &walkers);
    let stop = AtomicBool::new(false);
    let lock = Mutex::new(());
    // Hardware's writes and what software was told of them, page by page: hardware never writes to
    // a page again before software has been told.
    let written: Vec<AtomicBool> = (0..BLOCKS * 512).map(|_| AtomicBool::new(false)).collect();
    let (faults, dirtied) = (AtomicU64::new(0), AtomicU64::new(0));

    std::thread::scope(|scope| {
        // Faults, and readers that check what they see.
        for seed in 1..3u64 {
            let (shared, stop, arena, faults) = (&shared, &stop, &arena, &faults);
            scope.spawn(move || {
                let mut random = Random(0x9e37_79b9 * seed);
                while !stop.load(Ordering::Relaxed) {
                    let at = (random.next() % (BLOCKS * BLOCK)) & !(PAGE - 1);
                    let level = u8::from(random.next() & 63 == 0);
                    let start = at & !((1 << (12 + 9 * level)) - 1);
                    let walker = shared.walker().unwrap();
                    let output = Spa::new(OUTPUT + start);
                    match walker.fault(arena, Gpa::new(at), output, level, &leaves()) {
                        Ok(_) => {
                            faults.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(Error::Frozen { .. } | Error::NoFrame { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if let Some(found) = walker.translate(Gpa::new(at)) {
                        assert_eq!(found.output, Spa::new(OUTPUT + at), "translated elsewhere");
                    }
                }
            });
        }
        // Hardware: each access walks anew (its translations are never stale, so that what it sets
        // it sets in the tables as they are), and sets A and D by compare-exchange on the entry it
        // found, as processors do. It is a walker: the tables it looks at are not given back.
        {
            let (shared, stop, arena, written, dirtied) =
                (&shared, &stop, &arena, &written, &dirtied);
            scope.spawn(move || {
                let mut random = Random(77);
                while !stop.load(Ordering::Relaxed) {
                    let page = random.next() % (BLOCKS * 512);
                    if written[page as usize].load(Ordering::Acquire) {
                        continue;
                    }
                    let walker = shared.walker().unwrap();
                    if let Some((cell, entry)) = page_cell(arena, root, page * PAGE) {
                        // Announced before it is set, so that a report cannot come before it.
                        if entry & 7 == 7 && entry & 0x200 == 0 {
                            written[page as usize].store(true, Ordering::Release);
                            if u64::compare_exchange(cell, entry, entry | 0x300).is_ok() {
                                dirtied.fetch_add(1, Ordering::Relaxed);
                            } else {
                                written[page as usize].store(false, Ordering::Release);
                            }
                        }
                    }
                    drop(walker);
                }
            });
        }
        // Changes, under a lock.
        let _stop = Stop(&stop);
        let mut random = Random(4242);
        let told = |start: u64, level: u8, entry: u64| {
            if format().is_dirty(entry) {
                let first = start / PAGE;
                for page in first..first + (1 << (9 * level)) {
                    written[page as usize].store(false, Ordering::Release);
                }
            }
        };
        let mut rounds = 0;
        let few = |count: &AtomicU64| count.load(Ordering::Relaxed) < 300;
        while rounds < 300 || few(&faults) || few(&dirtied) {
            rounds += 1;
            let guard = lock.lock().unwrap();
            let mut storage = Storage::default();
            let context = Context::Ept { eptp: root };
            let whole = BLOCKS * BLOCK;
            let start = Gpa::new(0);
            let mut cursor =
                shared.cursor(&guard, &arena, context, storage.slots(), start, whole).unwrap();
            let first = random.next() % (BLOCKS * 512);
            let (at, bytes) = match random.next() % 3 {
                0 => (first * PAGE, PAGE),
                1 => (first / 512 * BLOCK, BLOCK),
                _ => (first * PAGE, (1 + random.next() % (BLOCKS * 512 - first)) * PAGE),
            };
            let start = Gpa::new(at);
            macro_rules! run {
                ($operation:expr) => {{
                    let mut operation = $operation.unwrap();
                    loop {
                        match cursor.step(&mut operation, 3) {
                            Ok(Step::Done) => break,
                            Ok(Step::Yield) => {}
                            Ok(Step::Invalidate(gather)) => {
                                let done = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                                let mut reclaim = reclaimed(done, shared.tables());
                                while let Some(frame) =
                                    reclaim.next_frame(&mut Watch(told)).unwrap()
                                {
                                    arena.put(frame);
                                }
                                cursor.resume(reclaim.finish().unwrap()).unwrap();
                            }
                            Err(Error::NoFrame { .. } | Error::Occupied { .. }) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }};
            }
            match random.next() % 7 {
                0 | 1 => run!(cursor.unmap(start, bytes, Watch(told))),
                2 => run!(cursor.split(start, bytes, 0)),
                3 => run!(cursor.collapse(start, bytes, 1)),
                4 => run!(cursor.clean(start, bytes, Watch(told))),
                5 => {
                    let write = random.next() & 1 != 0;
                    run!(cursor.protect(start, bytes, Permissions { write, ..RWX }, ()));
                }
                _ => {
                    let leaves = leaves();
                    run!(cursor.map(start, Spa::new(OUTPUT + at), bytes, &leaves));
                }
            }
            let done = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
            let mut reclaim = reclaimed(done, shared.tables());
            while let Some(frame) = reclaim.next_frame(&mut Watch(told)).unwrap() {
                // Who still looked at it would now see garbage.
                for cell in arena.table(frame.address(), 512).unwrap() {
                    cell.store(0x7777_7000 | 0x37, Ordering::Relaxed);
                }
                arena.put(frame);
            }
            let _ = reclaim.finish().unwrap();
        }
    });
    // Every write that software was not told of is still in the tables.
    let tables = shared.into_tables();
    for (page, written) in written.iter().enumerate() {
        if written.load(Ordering::Relaxed) {
            let found = tables.translate(Gpa::new(page as u64 * PAGE));
            let dirty = found.is_some_and(|found| format().is_dirty(found.entry));
            assert!(dirty, "the write to page {page:#x} was lost");
        }
    }
}

/// Threads fault pages in, each at outputs of its own, while another unmaps them from Arm tables. Until
/// the invalidation nobody may have made anew what was removed: a TLB still holds the older pages, and
/// two outputs for one page are what break-before-make forbids (Arm ARM D8.17.1).
#[test]
fn faults_make_nothing_before_the_invalidation() {
    const PAGES: u64 = 2 * 512;
    let cells = cells(32);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let slots = [const { AtomicU64::new(0) }; 3];
    let walkers = Walkers::new(&slots);
    let processor = Processor { physical_bits: 40, ..Processor::default() };
    let format = Stage2::plain(Granule::Four, 39, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    let leaves = Leaves::new(&format, &attributes).unwrap();
    let tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let shared = Shared::new(tables, &walkers);
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let lock = Mutex::new(());
    std::thread::scope(|scope| {
        for thread in 1..3u64 {
            let (shared, stop, arena, served, leaves) = (&shared, &stop, &arena, &served, &leaves);
            scope.spawn(move || {
                let mut random = Random(0x9e37_79b9 * thread);
                while !stop.load(Ordering::Relaxed) {
                    let page = random.next() % PAGES * PAGE;
                    let walker = shared.walker().unwrap();
                    let output = Spa::new((thread << 32) + page);
                    match walker.fault(arena, Gpa::new(page), output, 0, leaves) {
                        Ok(Served::Installed { .. }) => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(_) | Err(Error::Frozen { .. } | Error::NoFrame { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let mut random = Random(4242);
        let _stop = Stop(&stop);
        let mut rounds = 0;
        while rounds < 300 || served.load(Ordering::Relaxed) < 10_000 {
            rounds += 1;
            let guard = lock.lock().unwrap();
            // What was removed page by page, and what with its table: all of a block.
            let removed: RefCell<Vec<u64>> = RefCell::default();
            let mut flush = By(|gather: &Gather<'_>| {
                // The invalidation takes its time: faults come in before it is complete.
                std::thread::yield_now();
                let removed = removed.take();
                let blocks = (0..PAGES / 512).filter(|block| {
                    let (first, last) = (block * BLOCK, (block + 1) * BLOCK - 1);
                    let covers = |range: &Stale| range.start <= first && range.last >= last;
                    gather.detached() > 0 && gather.ranges().iter().any(covers)
                });
                let pages = blocks.flat_map(|block| (block * 512..(block + 1) * 512).step_by(37));
                for page in removed.into_iter().chain(pages.map(|page| page * PAGE)) {
                    let found = shared.tables().translate(Gpa::new(page));
                    assert!(found.is_none(), "{page:#x} was made before the invalidation");
                }
            });
            let witness = Watch(|start: u64, _: u8, _: u64| removed.borrow_mut().push(start));
            let mut storage = Storage::default();
            let context = Context::Stage2 { vmid: 1 };
            let (start, whole) = (Gpa::new(0), PAGES * PAGE);
            let mut cursor =
                shared.cursor(&guard, &arena, context, storage.slots(), start, whole).unwrap();
            let first = random.next() % PAGES;
            let (at, bytes) = match random.next() % 3 {
                0 => (first * PAGE, PAGE),
                1 => (first / 512 * BLOCK, BLOCK),
                _ => (first * PAGE, (1 + random.next() % (PAGES - first)) * PAGE),
            };
            if random.next() & 1 != 0
                && let Ok(was) = cursor.remove(Gpa::new(at))
                && was != 0
            {
                removed.borrow_mut().push(at);
            }
            let mut unmap = cursor.unmap(Gpa::new(at), bytes, witness).unwrap();
            loop {
                match cursor.step(&mut unmap, 1).unwrap() {
                    Step::Done => break,
                    Step::Yield => {}
                    Step::Invalidate(gather) => {
                        let completed = gather.complete(&mut flush).unwrap();
                        let reclaim = reclaimed(completed, shared.tables());
                        cursor.resume(reclaim.into_source(&arena).unwrap()).unwrap();
                    }
                }
            }
            let completed = cursor.finish().complete(&mut flush).unwrap();
            let _ = reclaimed(completed, shared.tables()).into_source(&arena).unwrap();
        }
    });
    // Nothing stays frozen.
    let tables = shared.into_tables();
    let walker = tables.root();
    let root = walker & 0x0000_ffff_ffff_f000;
    let mut left = vec![(root, 2u8)];
    while let Some((table, level)) = left.pop() {
        for cell in arena.table(table, 512).unwrap() {
            let entry = cell.load(Ordering::Relaxed);
            assert_ne!(entry, format.frozen());
            if let Decoded::Table { next } = format.decode(entry, level) {
                left.push((next, level - 1));
            }
        }
    }
}
