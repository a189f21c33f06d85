//! What a removal leaves for the invalidation, however it ends: entries that stay frozen until then,
//! and ranges that are noted.

use core::sync::atomic::{AtomicU64, Ordering};

use slat::edit::{
    Arena, Detached, Error, FrameSource, Gather, Leak, Leaves, Live, Pending, Remake, Served,
    Shared, Slots, Stale, Step, TableMemory, Tables, Walkers, Witness, arm64, ept,
};
use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

const RWX: Permissions = Permissions { read: true, write: true, execute: true };
const CONTEXT: Context = Context::Stage2 { vmid: 1 };

#[derive(Default)]
struct Storage([Stale; 4], [Detached; 4], [Pending; 4]);

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

fn cells(frames: usize) -> Vec<AtomicU64> {
    (0..frames * 512).map(|_| AtomicU64::new(0)).collect()
}

fn stage2(granule: Granule, bits: u8) -> (Stage2, Leaves) {
    let processor = Processor { physical_bits: 48, ..Processor::default() };
    let format = Stage2::plain(granule, bits, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    (format, Leaves::new(&format, &attributes).unwrap())
}

fn installed(served: &Result<Served, Error>) -> bool {
    matches!(served, Ok(Served::Installed { .. }))
}

/// 16 concatenated tables of 64 KiB are one run of 2^17 entries (Arm ARM D8.2.2).
#[test]
fn the_longest_root_thaws_as_a_whole() {
    const WHOLE: u64 = 1 << 46;
    const LARGE: u64 = 512 << 20;
    let cells = cells(2 * 256);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let (format, leaves) = stage2(Granule::SixtyFour, 46);
    let tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let walkers = [const { AtomicU64::new(0) }; 1];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let fault = |at| {
        let walker = shared.walker().unwrap();
        walker.fault(&arena, Gpa::new(at), Spa::new(at), 1, &leaves)
    };
    assert!(installed(&fault(LARGE)));
    let mut storage = Storage::default();
    let mut cursor =
        shared.cursor(&(), &arena, CONTEXT, storage.slots(), Gpa::new(0), WHOLE).unwrap();
    let mut unmap = cursor.unmap(Gpa::new(0), WHOLE, ()).unwrap();
    let Ok(Step::Invalidate(gather)) = cursor.step(&mut unmap, 99) else { panic!("frozen") };
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    cursor.resume(completed.ready().unwrap()).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 99), Ok(Step::Done)));
    drop(cursor.finish());
    for at in [LARGE, WHOLE - LARGE] {
        let served = fault(at);
        assert!(installed(&served), "{at:#x}: {served:?}");
    }
}

/// Pages that a removal left frozen, whose cursor is gone: the invalidation alone thaws them.
#[test]
fn what_a_finished_cursor_left_frozen_thaws_with_its_invalidation() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let (format, leaves) = stage2(Granule::Four, 39);
    let tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let walkers = [const { AtomicU64::new(0) }; 2];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let fault = |at| {
        let walker = shared.walker().unwrap();
        walker.fault(&arena, Gpa::new(at), Spa::new(at), 0, &leaves)
    };
    for detached in [false, true] {
        assert!(fault(PAGE).is_ok());
        let bytes = if detached { BLOCK } else { 2 * PAGE };
        let mut storage = Storage::default();
        let mut cursor =
            shared.cursor(&(), &arena, CONTEXT, storage.slots(), Gpa::new(0), BLOCK).unwrap();
        let mut unmap = cursor.unmap(Gpa::new(0), bytes, ()).unwrap();
        let Ok(Step::Invalidate(gather)) = cursor.step(&mut unmap, 99) else { panic!("frozen") };
        drop(cursor.finish());
        assert_eq!(gather.broken(), 1);
        assert_eq!(gather.detached(), usize::from(detached));
        // A walker that tries again and again without leaving does not wait for itself.
        let walker = shared.walker().unwrap();
        let again = |at| walker.fault(&arena, Gpa::new(at), Spa::new(at), 0, &leaves);
        assert_eq!(again(PAGE), Err(Error::Frozen { at: PAGE }));
        let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        assert_eq!(again(PAGE), Err(Error::Frozen { at: PAGE }));
        let completed = match completed.reclaim(shared.tables()) {
            Ok(reclaim) => {
                assert!(!detached, "the walker may still look at the table");
                let slots = reclaim.into_source(&arena).unwrap().into_slots();
                assert!(slots.is_some(), "nothing waits for a cursor any more");
                None
            }
            Err(completed) => Some(completed),
        };
        assert!(installed(&again(PAGE)), "detached: {detached}");
        drop(walker);
        if let Some(completed) = completed {
            let _ = completed.reclaim(shared.tables()).unwrap().into_source(&arena).unwrap();
        }
    }
}

/// A split that was broken and then removed with the table above it: its table of parts comes back.
#[test]
fn a_broken_page_may_go_with_its_table() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let (format, leaves) = stage2(Granule::Four, 39);
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let free = |arena: &Arena<'_, u64>| {
        let all: Vec<_> = core::iter::from_fn(|| arena.take(PAGE)).collect();
        let count = all.len();
        all.into_iter().for_each(|frame| arena.put(frame));
        count
    };
    let before = free(&arena);
    static LOST: AtomicU64 = AtomicU64::new(0);
    let mut storage = Storage::default();
    let report = |leak: Leak| {
        assert_eq!((leak.ranges, leak.frozen), (0, 0));
        LOST.fetch_add(leak.subtrees as u64, Ordering::Relaxed);
    };
    let slots = Slots { report, ..storage.slots() };
    let mut cursor =
        tables.cursor::<_, Live>(&arena, CONTEXT, slots, Gpa::new(0), 512 * BLOCK).unwrap();
    let mut map = cursor.map(Gpa::new(0), Spa::new(0), 2 * BLOCK, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, 99), Ok(Step::Done)));
    let mut split = cursor.split(Gpa::new(0), 2 * BLOCK, 0).unwrap();
    assert!(matches!(cursor.step(&mut split, 1), Ok(Step::Yield)));
    let broken = cursor.break_leaf(Gpa::new(BLOCK), Remake::Smaller).unwrap();
    let mut unmap = cursor.unmap(Gpa::new(0), 512 * BLOCK, ()).unwrap();
    let Ok(Step::Invalidate(gather)) = cursor.step(&mut unmap, 99) else { panic!("broken") };
    assert_eq!((gather.broken(), gather.detached()), (1, 1));
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let mut ready = completed.reclaim(cursor.tables()).unwrap().into_source(&arena).unwrap();
    let at = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect::<Vec<_>>();
    assert!(broken.make(&mut ready).is_ok());
    let now = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect::<Vec<_>>();
    assert!(at == now, "nothing is written to a table that was given back");
    cursor.resume(ready).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 99), Ok(Step::Done)));
    drop(cursor.finish());
    assert!(tables.translate(Gpa::new(0)).is_none());
    // The table of the token that was made too late is lost, and was reported.
    assert_eq!(LOST.load(Ordering::Relaxed), 1);
    assert_eq!(free(&arena), before - 1);
}

/// The same while faults come in: what is installed at the place of the lost split is left alone, and
/// the table of parts comes back with what was noted in it.
#[test]
fn a_split_that_was_lost_is_not_made_where_a_fault_has_mapped() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let (format, leaves) = stage2(Granule::Four, 39);
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let large = leaves.up_to(1);
    for at in [0, BLOCK] {
        assert!(tables.fault::<_, Live>(&arena, Gpa::new(at), Spa::new(at), 1, &large).is_ok());
    }
    let walkers = [const { AtomicU64::new(0) }; 2];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let fault = |at, level| {
        let walker = shared.walker().unwrap();
        walker.fault(&arena, Gpa::new(at), Spa::new(at), level, &leaves)
    };
    let mut storage = Storage::default();
    let mut cursor =
        shared.cursor(&(), &arena, CONTEXT, storage.slots(), Gpa::new(0), 512 * BLOCK).unwrap();
    let mut split = cursor.split(Gpa::new(0), 2 * BLOCK, 0).unwrap();
    assert!(matches!(cursor.step(&mut split, 1), Ok(Step::Yield)));
    let mut unmap = cursor.unmap(Gpa::new(0), 512 * BLOCK, ()).unwrap();
    let Ok(Step::Invalidate(gather)) = cursor.step(&mut unmap, 1000) else { panic!("frozen") };
    assert_eq!((gather.broken(), gather.detached()), (2, 1));
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let reclaim = completed.reclaim(shared.tables()).unwrap();
    // Both come out: the table that was above, and the one of parts that has no place any more.
    struct Seen(Vec<(u64, u8)>);
    impl Witness for Seen {
        const WATCHES: bool = true;

        fn leaf(&mut self, at: u64, level: u8, _: u64) {
            self.0.push((at, level));
        }
    }
    let (mut seen, mut out, mut reclaim) = (Seen(Vec::new()), Vec::new(), reclaim);
    while let Some(frame) = reclaim.next_frame(&mut seen).unwrap() {
        out.push(frame);
    }
    assert_eq!(out.len(), 2);
    let first = seen.0.iter().filter(|(at, level)| *at < BLOCK && *level == 0).count();
    assert_eq!(first, 512, "every part of the split page is told of");
    out.into_iter().for_each(|frame| arena.put(frame));
    let ready = reclaim.finish().unwrap();
    assert!(installed(&fault(0, 0)));
    cursor.resume(ready).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 1000), Ok(Step::Done | Step::Yield)));
    drop(cursor.finish());
    assert!(shared.walker().unwrap().translate(Gpa::new(PAGE)).is_none());
}

/// What a hole beside removed pages is, and what it is not.
#[test]
fn a_thaw_leaves_alone_what_others_broke() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let (format, leaves) = stage2(Granule::Four, 39);
    let tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let walkers = [const { AtomicU64::new(0) }; 1];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let fault = |at| {
        let walker = shared.walker().unwrap();
        walker.fault(&arena, Gpa::new(at), Spa::new(at), 0, &leaves)
    };
    for page in [2, 4, 600] {
        assert!(installed(&fault(page * PAGE)));
    }
    let mut storage = Storage::default();
    let mut cursor =
        shared.cursor(&(), &arena, CONTEXT, storage.slots(), Gpa::new(0), 2 * BLOCK).unwrap();
    // From the second page of a table that stays on, so that it is not taken as a whole.
    let mut unmap = cursor.unmap(Gpa::new(PAGE), 2 * BLOCK - PAGE, ()).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 1), Ok(Step::Yield)));
    // Before the first page that went a fault may map, and what it maps may be broken by hand.
    assert!(installed(&fault(PAGE)));
    let to = Remake::Leaf { output: Spa::new(7 * PAGE), leaves: &leaves };
    let broken = cursor.break_leaf(Gpa::new(PAGE), to).unwrap();
    // A hole after it is frozen with the rest.
    assert_eq!(fault(3 * PAGE), Err(Error::Frozen { at: 3 * PAGE }));
    let to = Remake::Leaf { output: Spa::new(7 * PAGE), leaves: &leaves };
    let refused = cursor.break_leaf(Gpa::new(3 * PAGE), to).map(|_| ());
    assert_eq!(refused, Err(Error::Frozen { at: 3 * PAGE }));
    let gather = cursor.flush().unwrap();
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let mut ready = completed.reclaim(shared.tables()).unwrap().into_source(&arena).unwrap();
    assert!(broken.make(&mut ready).is_ok());
    cursor.resume(ready).unwrap();
    drop(cursor.finish());
    let found = shared.walker().unwrap().translate(Gpa::new(PAGE)).map(|found| found.output);
    assert_eq!(found, Some(Spa::new(7 * PAGE)));
    for page in [2, 3, 4] {
        assert!(installed(&fault(page * PAGE)), "{page}");
    }
}

/// An operation that cannot go on has noted what it removed before.
#[test]
fn what_went_before_an_obstacle_is_noted() {
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let format = Ept::four(Features::default());
    let leaves = Leaves::new(&format, &ept::Attributes::new(RWX, Type::Wb)).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let mut ranges = [Stale::default(); 4];
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut [],
        pending: &mut [],
        report: |leak| panic!("{leak}"),
    };
    let whole = (Gpa::new(0), 2 * BLOCK);
    let mut cursor = tables.cursor::<_, Live>(&arena, CONTEXT, slots, whole.0, whole.1).unwrap();
    let mut map = cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, 99), Ok(Step::Done)));
    let small = leaves.up_to(0);
    let mut map = cursor.map(Gpa::new(BLOCK), Spa::new(BLOCK), BLOCK, &small).unwrap();
    assert!(matches!(cursor.step(&mut map, 99), Ok(Step::Done)));

    let mut unmap = cursor.unmap(whole.0, whole.1, ()).unwrap();
    // There is nowhere to note the table.
    assert!(matches!(cursor.step(&mut unmap, 99), Err(Error::NoSlot)));
    assert_eq!(unmap.bytes_done(), BLOCK);
    let gather = cursor.finish();
    assert_eq!(gather.ranges(), [Stale { start: 0, last: BLOCK - 1 }]);
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    drop(completed);
    assert!(tables.translate(Gpa::new(0)).is_none());
    assert!(tables.translate(Gpa::new(BLOCK)).is_some());
}

/// Memory that lends one table only while it is not withheld.
struct Withheld<'a> {
    arena: &'a Arena<'a, u64>,
    table: AtomicU64,
}

// SAFETY: the cells are the arena's; withholding one breaks no duty that others rely upon.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl TableMemory<u64> for Withheld<'_> {
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        let lent = address != self.table.load(Ordering::Relaxed);
        lent.then(|| TableMemory::<u64>::table(self.arena, address, entries)).flatten()
    }
}

/// Where a table below cannot be read, the one above stays, and nothing in it is frozen.
#[test]
fn tables_that_cannot_be_detached_stay_as_they_are() {
    const NONE: u64 = u64::MAX;
    const REACH: u64 = 512 * BLOCK;
    let cells = cells(8);
    let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
    let memory = Withheld { arena: &arena, table: AtomicU64::new(NONE) };
    let (format, leaves) = stage2(Granule::Four, 39);
    let tables = Tables::<_, Gpa, Spa, _>::create(format, &memory, &arena).unwrap();
    let walkers = [const { AtomicU64::new(0) }; 1];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let fault = |at, level| {
        let walker = shared.walker().unwrap();
        walker.fault(&arena, Gpa::new(at), Spa::new(at), level, &leaves)
    };
    // A page, and the table that it is in.
    let at = REACH + 7 * BLOCK;
    assert!(installed(&fault(at, 0)));
    let page = cells.iter().position(|cell| cell.load(Ordering::Relaxed) & 0xffff_ffff_f000 == at);
    let lowest = 0x10_0000 + page.unwrap() as u64 / 512 * PAGE;
    let before: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();

    let mut storage = Storage::default();
    let mut cursor =
        shared.cursor(&(), &arena, CONTEXT, storage.slots(), Gpa::new(0), 2 * REACH).unwrap();
    let mut unmap = cursor.unmap(Gpa::new(REACH), REACH, ()).unwrap();
    memory.table.store(lowest, Ordering::Relaxed);
    let outcome = cursor.step(&mut unmap, 99);
    assert_eq!(outcome.map(|_| ()), Err(Error::NotLent { table: lowest }));
    memory.table.store(NONE, Ordering::Relaxed);
    let _ = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let after: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    assert!(before == after, "an entry stayed frozen");
    assert!(installed(&fault(REACH, 1)));
}

/// What another cursor removed and whose invalidation is still due is frozen, not occupied, for a page
/// that is as large as its table as well.
#[test]
fn a_larger_page_over_what_another_removed_is_frozen() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let (format, leaves) = stage2(Granule::Four, 39);
    let tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let walkers = [const { AtomicU64::new(0) }; 1];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let fault = |at| {
        let walker = shared.walker().unwrap();
        walker.fault(&arena, Gpa::new(at), Spa::new(at), 0, &leaves)
    };
    for page in [0, 1] {
        assert!(installed(&fault(page * PAGE)));
    }
    let mut first = Storage::default();
    let mut remover =
        shared.cursor(&(), &arena, CONTEXT, first.slots(), Gpa::new(0), BLOCK).unwrap();
    for page in [0, 1] {
        assert_ne!(remover.remove(Gpa::new(page * PAGE)), Ok(0));
    }
    let gather = remover.finish();
    let mut second = Storage::default();
    let mut cursor =
        shared.cursor(&(), &arena, CONTEXT, second.slots(), Gpa::new(0), BLOCK).unwrap();
    let mut map = cursor.map(Gpa::new(0), Spa::new(BLOCK), BLOCK, &leaves).unwrap();
    let refused = cursor.step(&mut map, 99).err();
    assert!(matches!(refused, Some(Error::Frozen { at: 0 })), "{refused:?}");
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(shared.tables()).unwrap().into_source(&arena).unwrap();
    // Invalidated, it may be made.
    loop {
        match cursor.step(&mut map, 99).unwrap() {
            Step::Done => break,
            Step::Yield => {}
            Step::Invalidate(gather) => {
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                let reclaim = completed.reclaim(shared.tables()).unwrap();
                cursor.resume(reclaim.into_source(&arena).unwrap()).unwrap();
            }
        }
    }
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(shared.tables()).unwrap().into_source(&arena).unwrap();
    let found = shared.walker().unwrap().translate(Gpa::new(PAGE)).unwrap();
    assert_eq!((found.bytes, found.output), (BLOCK, Spa::new(BLOCK + PAGE)));
}
