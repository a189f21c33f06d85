//! Every entry that a table walk may read is published after it was written, whatever wrote it: a walk
//! that is not coherent with the caches sees no other (Arm ARM D8.2.6).

use std::sync::atomic::AtomicU64;

use slat::edit::{
    Arena, Counted, Cursor, Detached, Encode, Gather, Leaves, Live, Mode, Pending, Served, Shared,
    Slots, Stale, Step, TableMemory, Tables, View, Views, Walkers, arm64, ept,
};
use slat::format::Decoded;
use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

#[path = "model/lent.rs"]
mod lent;

use lent::{BASE, Lent};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
const WHOLE: u64 = 1 << 38;
const FRAMES: u64 = 48;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };

#[derive(Default)]
struct Storage([Stale; 8], [Detached; 8], [Pending; 8]);

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

type Memory<'a> = &'a Lent<'a, u64>;
type Source<'a> = Counted<'a, &'a Arena<'a, u64>>;

/// Checks that hardware sees each entry of the tables at `table` as it is, and returns how many are not
/// empty.
fn seen<F: Encode<Word = u64>>(format: &F, lent: Memory<'_>, table: u64, level: u8) -> u64 {
    let cells = lent.table(table, 512).unwrap();
    let mut count = 0;
    for (address, cell) in (table..).step_by(8).zip(cells) {
        let entry = cell.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(lent.seen(address), entry, "{:?}, level {level}", format.name());
        count += u64::from(entry != 0);
        match format.decode(entry, level) {
            Decoded::Table { next } if level > 0 => count += seen(format, lent, next, level - 1),
            _ => {}
        }
    }
    count
}

/// Does everything that links tables, by one format; all tables have 512 entries.
fn everything<F: Encode<Word = u64, Root = u64>>(format: F, leaves: &Leaves) {
    let cells: Vec<AtomicU64> = (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect();
    let counts: Vec<AtomicU64> = (0..FRAMES).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(BASE, &cells).unwrap();
    let lent = Lent::new(&arena, FRAMES * 512);
    let source: Source<'_> = Counted::new(&arena, BASE, &counts);
    // Frames that hold anything, for hardware as well.
    for frame in 0..FRAMES {
        lent.spoil(BASE + frame * PAGE, PAGE);
    }
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &lent, &source).unwrap();
    let (root, top) = (tables.root(), format.top());
    let check = |what: &str, least: u64| {
        let count = seen(&format, &lent, root, top);
        assert!(count >= least, "{what}: {count} entries");
    };
    check("an empty root", 0);

    let installed = Served::Installed { level: 0 };
    let served = tables.fault::<_, Live>(&source, Gpa::new(0), Spa::new(PAGE), 0, leaves);
    assert_eq!(served, Ok(installed));
    check("a fault without a cursor", 3);

    let slots = [const { AtomicU64::new(0) }; 1];
    let walkers = Walkers::new(&slots);
    let shared = Shared::new(tables, &walkers);
    let walker = shared.walker().unwrap();
    let served = walker.fault(&source, Gpa::new(1 << 30), Spa::new(PAGE), 0, leaves);
    assert_eq!(served, Ok(installed));
    check("a fault beside others", 6);
    // A page of 2 MiB where nothing was, below new tables.
    let served = walker.fault(&source, Gpa::new(5 << 30), Spa::new(BLOCK), 1, leaves);
    assert_eq!(served, Ok(Served::Installed { level: 1 }));
    check("a fault for a large page", 8);
    drop(walker);

    let mut tables = Tables::adopt(format, root, &lent).unwrap();
    step(&mut tables, &source, |cursor| {
        let served = cursor.fault(Gpa::new(2 << 30), Spa::new(0), 0, leaves);
        assert_eq!(served, Ok(installed));
        let map = cursor.map(Gpa::new(3 << 30), Spa::new(0), 8 * BLOCK + PAGE, leaves);
        finish(cursor, &source, map.unwrap());
        let split = cursor.split(Gpa::new(3 << 30), 2 * BLOCK, 0);
        finish(cursor, &source, split.unwrap());
        let unmap = cursor.unmap(Gpa::new((3 << 30) + 3 * BLOCK), PAGE, ());
        finish(cursor, &source, unmap.unwrap());
        let collapse = cursor.collapse(Gpa::new(3 << 30), 2 * BLOCK, 1);
        finish(cursor, &source, collapse.unwrap());
    });
    check("a cursor", 500);

    let mut places: [Option<View<F, Gpa, Spa, Memory<'_>>>; 2] = [const { None }; 2];
    let mut views = Views::new(&mut places, tables, Context::All).unwrap();
    assert_eq!(views.fork(0, Context::All, &source), Ok(1));
    let second = views.get(1).unwrap().tables().root();
    assert!(seen(&format, &lent, second, top) >= 500);
    let mut storage = Storage::default();
    let at = Gpa::new(3 << 30);
    let mut owned = views.own::<_, Live>(1, &source, storage.slots(), at, BLOCK).unwrap();
    loop {
        match owned.step(1).unwrap() {
            Step::Done => break,
            Step::Yield => {}
            Step::Invalidate(gather) => {
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                let others = Tables::<F, Gpa, Spa, _>::adopt(format, second, &lent).unwrap();
                let reclaim = completed.reclaim(&others).unwrap();
                owned.resume(reclaim.into_source(&source).unwrap()).unwrap();
            }
        }
    }
    let mut cursor = owned.into_cursor().unwrap();
    let split = cursor.split(at, BLOCK, 0).unwrap();
    finish(&mut cursor, &source, split);
    let others = Tables::<F, Gpa, Spa, _>::adopt(format, second, &lent).unwrap();
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(&others).unwrap().into_source(&source).unwrap();
    check("the first view", 500);
    assert!(seen(&format, &lent, second, top) >= 1000);
}

type CursorOf<'t, 'g, 'a, F, X> = Cursor<'t, 'g, F, Gpa, Spa, Memory<'a>, Source<'a>, X>;

fn step<'a, F: Encode<Word = u64>>(
    tables: &mut Tables<F, Gpa, Spa, Memory<'a>>,
    source: &Source<'a>,
    act: impl FnOnce(&mut CursorOf<'_, '_, 'a, F, Live>),
) {
    let mut storage = Storage::default();
    let all = (Gpa::new(0), WHOLE);
    let mut cursor =
        tables.cursor::<_, Live>(source, Context::All, storage.slots(), all.0, all.1).unwrap();
    act(&mut cursor);
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(tables).unwrap().into_source(source).unwrap();
}

fn finish<'a, F: Encode<Word = u64>, X: Mode, V: slat::edit::Verb<F>>(
    cursor: &mut CursorOf<'_, '_, 'a, F, X>,
    source: &Source<'a>,
    mut operation: slat::edit::Operation<V>,
) {
    loop {
        match cursor.step(&mut operation, u32::MAX).unwrap() {
            Step::Done => break,
            Step::Yield => {}
            Step::Invalidate(gather) => {
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                let reclaim = completed.reclaim(cursor.tables()).unwrap();
                cursor.resume(reclaim.into_source(source).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn every_entry_is_published_after_it_was_written() {
    let format = Ept::four(Features::default());
    everything(format, &Leaves::new(&format, &ept::Attributes::new(RWX, Type::Wb)).unwrap());
    let processor = Processor { physical_bits: 40, ..Processor::default() };
    let format = Stage2::plain(Granule::Four, 39, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    everything(format, &Leaves::new(&format, &attributes).unwrap());
}
