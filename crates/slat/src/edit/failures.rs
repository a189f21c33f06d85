//! Each operation with each failure at each point: a frame that is not there, an exchange that
//! somebody else wins, and a budget that ends and is not renewed.

use core::cell::Cell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::boxed::Box;
use std::sync::Mutex;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::address::{Gpa, Spa};
use crate::format::arm64::{Granule, Processor, Stage2};
use crate::format::ept::{Ept, Features};
use crate::invalidate::{By, Context};
use crate::memory_type::x86::Type;
use crate::translate::Permissions;

mod harvest;

std::thread_local! {
    /// Hardware comes in before this many more exchanges have been tried, and sets these bits.
    static MEDDLE: Cell<Option<(u32, u64)>> = const { Cell::new(None) };
    /// The entry that it found.
    static MET: Cell<u64> = const { Cell::new(0) };
}

/// Called before each compare-exchange of an entry.
pub(super) fn meddle(cell: &AtomicU64) {
    let Some((left, bits)) = MEDDLE.get() else { return };
    let occupied = cell.load(Ordering::Relaxed) & 1 != 0;
    match left.checked_sub(1) {
        Some(left) => MEDDLE.set(Some((left, bits))),
        None if occupied => {
            MET.set(cell.fetch_or(bits, Ordering::Relaxed));
            MEDDLE.set(None);
        }
        // There is nothing that hardware could use.
        None => {}
    }
}

const PAGE: u64 = 4096;
const BLOCK: u64 = 512 * PAGE;
const PAGES: u64 = 4 * 512;
const OUTPUT: u64 = 1 << 30;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };
const RO: Permissions = Permissions { read: true, write: false, execute: false };

/// The memory of all tables, one preparation after the other: there is one test.
static CELLS: [AtomicU64; 24 * 512] = [const { AtomicU64::new(0) }; 24 * 512];
/// All sources that were made, so that a leak checker finds them named.
static KEPT: Mutex<Vec<&'static Rationed>> = Mutex::new(Vec::new());

/// An arena that has only so many frames left.
#[derive(Debug)]
struct Rationed {
    arena: Arena<'static, u64>,
    left: AtomicU32,
}

impl FrameSource for Rationed {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let less = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        self.arena.take(bytes)
    }
    fn put(&self, frame: Frame) {
        self.arena.put(frame);
    }
}

type TablesOf<F> = Tables<F, Gpa, Spa, &'static Arena<'static, u64>>;
type CursorOf<'t, F, X> = Cursor<'t, 't, F, Gpa, Spa, &'static Arena<'static, u64>, Rationed, X>;
/// What each page is mapped to, and whether it may be written.
type Seen = Vec<Option<(u64, bool)>>;

/// Where the root is: the arena's first frames that are aligned to it.
fn root<F: Encode>(format: &F) -> u64 {
    let bits = format.input_bits() - format.shift(format.top());
    0x10_0000u64.next_multiple_of(8 << bits)
}

/// A block, a table of pages, a table of nothing, and nothing.
fn prepare<F: Encode<Word = u64>>(format: F, leaves: &Leaves) -> (TablesOf<F>, &'static Rationed) {
    CELLS.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
    let arena = Arena::new(0x10_0000, &CELLS).unwrap();
    let source: &'static Rationed =
        Box::leak(Box::new(Rationed { arena, left: AtomicU32::new(u32::MAX) }));
    KEPT.lock().unwrap().push(source);
    let mut tables = TablesOf::create(format, &source.arena, source).unwrap();
    let (small, large) = (leaves.up_to(0), leaves.up_to(1));
    run::<_, _, Quiet>(&mut tables, source, u32::MAX, u32::MAX, |c| {
        c.map(Gpa::new(0), Spa::new(OUTPUT), BLOCK, &large)
    })
    .unwrap();
    run::<_, _, Quiet>(&mut tables, source, u32::MAX, u32::MAX, |c| {
        c.map(Gpa::new(BLOCK), Spa::new(OUTPUT + BLOCK), BLOCK, &small)
    })
    .unwrap();
    let gone = Gpa::new(2 * BLOCK + 5 * PAGE);
    tables.fault::<_, Quiet>(source, gone, Spa::new(OUTPUT), 0, leaves).unwrap();
    let removed = tables.remove::<Quiet>(gone, Context::All, |_| {}).unwrap().unwrap();
    removed.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    (tables, source)
}

fn observe<F: Encode<Word = u64>>(tables: &TablesOf<F>) -> Seen {
    let mut seen = vec![None; PAGES as usize];
    for found in tables.mappings(Gpa::new(0), PAGES * PAGE).unwrap() {
        let write = tables.format().permissions_of(found.entry, found.level).write;
        for page in 0..found.bytes / PAGE {
            let output = found.output.raw() + page * PAGE;
            seen[(found.start.raw() / PAGE + page) as usize] = Some((output, write));
        }
    }
    seen
}

/// How one operation ended.
struct Ended {
    outcome: Result<(), Error>,
    done: u64,
    complete: bool,
    /// Hardware dirtied a page, and detached tables or the tables still say so.
    dirty_seen: bool,
}

/// Steps an operation by `budget` at most `steps` times; where frames run out, once more with frames.
fn run<F: Encode<Word = u64>, V: Verb<F>, X: Mode>(
    tables: &mut TablesOf<F>,
    source: &'static Rationed,
    budget: u32,
    steps: u32,
    make: impl FnOnce(&CursorOf<'_, F, X>) -> Result<Operation<V>, Error>,
) -> Result<Ended, Error> {
    let format = *tables.format();
    let others: TablesOf<F> = Tables::adopt(format, root(&format), &source.arena)?;
    let (mut ranges, mut detached, mut pending) =
        ([Stale::default(); 2], [Detached::default(); 1], [Pending::default(); 1]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut pending,
        report: |leak| panic!("{leak}"),
    };
    let mut cursor =
        tables.cursor::<_, X>(source, Context::All, slots, Gpa::new(0), PAGES * PAGE)?;
    let mut operation = make(&cursor)?;
    let dirty = Cell::new(false);
    let mut witness = Watch(|_: u64, _: u8, entry: u64| {
        dirty.set(dirty.get() | format.is_dirty(entry));
    });
    let (mut outcome, mut complete) = (Ok(()), false);
    for _ in 0..steps {
        match cursor.step(&mut operation, budget) {
            Ok(Step::Done) => {
                complete = true;
                break;
            }
            Ok(Step::Yield) => {}
            Ok(Step::Invalidate(gather)) => {
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                let mut reclaim = completed.reclaim(&others).unwrap();
                while let Some(frame) = reclaim.next_frame(&mut witness)? {
                    source.put(frame);
                }
                cursor.resume(reclaim.finish().unwrap())?;
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    let done = operation.bytes_done();
    let mut last = cursor.flush();
    while let Some(gather) = last.take() {
        let again = gather.broken() > 0;
        let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let mut reclaim = completed.reclaim(&others).unwrap();
        while let Some(frame) = reclaim.next_frame(&mut witness)? {
            source.put(frame);
        }
        cursor.resume(reclaim.finish().unwrap())?;
        last = if again { cursor.flush() } else { None };
    }
    let _ = cursor.finish().waive().unwrap();
    let still =
        others.mappings(Gpa::new(0), PAGES * PAGE)?.any(|found| format.is_dirty(found.entry));
    Ok(Ended { outcome, done, complete, dirty_seen: dirty.get() || still })
}

/// Before `start + done` everything is as asked, from there on as it was.
fn is_prefix(before: &Seen, after: &Seen, seen: &Seen, start: u64, done: u64, what: &str) {
    let reached = ((start + done) / PAGE) as usize;
    assert_eq!(seen[..reached], after[..reached], "{what}: what is done");
    assert_eq!(seen[reached..], before[reached..], "{what}: what is not");
}

macro_rules! each_failure {
    ($name:expr, $format:expr, $leaves:expr, $mode:ty, $start:expr, |$cursor:ident| $make:expr) => {{
        let (name, format, leaves) = ($name, $format, $leaves);
        let fresh = || prepare(format, leaves);
        let (mut tables, source) = fresh();
        let before = observe(&tables);
        let ended = run::<_, _, $mode>(&mut tables, source, u32::MAX, u32::MAX, |$cursor| $make);
        assert!(ended.unwrap().complete, "{name}");
        let after = observe(&tables);

        // A frame is missing, whichever; with frames it goes on.
        for frames in 0.. {
            let (mut tables, source) = fresh();
            source.left.store(frames, Ordering::Relaxed);
            let ended =
                run::<_, _, $mode>(&mut tables, source, u32::MAX, u32::MAX, |$cursor| $make)
                    .unwrap();
            let seen = observe(&tables);
            is_prefix(&before, &after, &seen, $start, ended.done, name);
            match ended.outcome {
                Ok(()) => break,
                Err(error) => assert!(matches!(error, Error::NoFrame { .. }), "{name}: {error}"),
            }
        }
        // It is abandoned after each step.
        for steps in 0.. {
            let (mut tables, source) = fresh();
            let ended = run::<_, _, $mode>(&mut tables, source, 1, steps, |$cursor| $make).unwrap();
            is_prefix(&before, &after, &observe(&tables), $start, ended.done, name);
            if ended.complete {
                break;
            }
        }
        // Hardware sets bits before each exchange, which then fails.
        let bits = format.soil().set;
        for exchange in 0.. {
            let (mut tables, source) = fresh();
            MEDDLE.set(Some((exchange, bits)));
            let ended =
                run::<_, _, $mode>(&mut tables, source, u32::MAX, u32::MAX, |$cursor| $make)
                    .unwrap();
            let met = MEDDLE.take().is_none();
            assert!(ended.complete, "{name}: {:?}", ended.outcome);
            assert_eq!(observe(&tables), after, "{name}, exchange {exchange}");
            if !met {
                break;
            }
            let leaf = format.hardware_dirty() && format.points_at(MET.get(), 1).is_none();
            assert!(!leaf || ended.dirty_seen, "{name}: dirty state lost");
        }
    }};
}

fn every_operation<F: Encode<Word = u64>>(format: F, attributes: F::Attributes, memory: F::Memory) {
    let leaves = &Leaves::new(&format, &attributes).unwrap();
    let (middle, size) = (300 * PAGE, 400 * PAGE);
    let (from, to) = (Gpa::new(middle), Spa::new(OUTPUT + 77 * PAGE));
    macro_rules! modes {
        ($name:expr, $start:expr, |$cursor:ident| $make:expr) => {
            each_failure!($name, format, leaves, Live, $start, |$cursor| $make);
            each_failure!($name, format, leaves, Faulting, $start, |$cursor| $make);
        };
    }
    modes!("split", 0, |c| c.split(Gpa::new(0), BLOCK, 0));
    modes!("collapse", BLOCK, |c| c.collapse(Gpa::new(BLOCK), BLOCK, 1));
    modes!("unmap a part", middle, |c| c.unmap(from, size, ()));
    modes!("unmap all", 0, |c| c.unmap(Gpa::new(0), PAGES * PAGE, ()));
    modes!("protect", middle, |c| c.protect(from, size, RO, ()));
    modes!("retype", middle, |c| c.retype(from, size, memory, ()));
    modes!("remap", middle, |c| c.remap(from, to, size, ()));
    modes!("map", 2 * BLOCK, |c| {
        c.map(Gpa::new(2 * BLOCK), Spa::new(OUTPUT), 2 * BLOCK, leaves)
    });
    modes!("map pages", 2 * BLOCK + 9 * PAGE, |c| {
        c.map(Gpa::new(2 * BLOCK + 9 * PAGE), Spa::new(OUTPUT), BLOCK, leaves)
    });
}

#[test]
fn every_failure_at_every_point_of_every_operation() {
    let features = Features { accessed_dirty: true, physical_bits: 40, ..Features::default() };
    let attributes = ept::Attributes::new(RWX, Type::Wb);
    let uncached = ept::Memory { memory_type: Type::Uc, ignore_pat: false };
    every_operation(Ept::four(features), attributes, uncached);

    let processor = Processor { physical_bits: 40, ..Processor::default() };
    let plain = Stage2::plain(Granule::Four, 39, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    every_operation(plain, attributes, arm64::Memory::DEVICE);
    harvest::every_harvest();
}
