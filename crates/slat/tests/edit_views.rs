//! Views: what one of them lets go of while another still holds it, and what changes in all of them.

use std::sync::atomic::AtomicU64;

use slat::edit::{
    Arena, Counted, Cursor, Detached, Gather, Leaves, Live, Operation, Pending, Slots, Stale, Step,
    Tables, Verb, View, Views, ept,
};
use slat::format::ept::{Ept, Features};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

const PAGE: u64 = 4096;
const BLOCK: u64 = 512 * PAGE;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };

type Memory<'a> = &'a Arena<'a, u64>;
type Source<'a> = Counted<'a, Memory<'a>>;
type CursorOf<'t, 'g, 'a> = Cursor<'t, 'g, Ept, Gpa, Spa, Memory<'a>, Source<'a>, Live>;

#[derive(Default)]
struct Storage([Stale; 8], [Detached; 8], [Pending; 1]);

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

fn format() -> Ept {
    Ept::four(Features::default())
}

fn leaves() -> Leaves {
    Leaves::new(&format(), &ept::Attributes::new(RWX, Type::Wb)).unwrap()
}

fn run<V: Verb<Ept>>(
    cursor: &mut CursorOf<'_, '_, '_>,
    mut operation: Operation<V>,
) -> Operation<V> {
    assert!(matches!(cursor.step(&mut operation, u32::MAX), Ok(Step::Done)));
    operation
}

fn completed<'g>(gather: Gather<'g>) -> slat::edit::Completed<'g> {
    gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap()
}

macro_rules! views {
    ($arena:ident, $source:ident, $views:ident) => {
        let cells: Vec<AtomicU64> = (0..32 * 512).map(|_| AtomicU64::new(0)).collect();
        let counts: Vec<AtomicU64> = (0..32).map(|_| AtomicU64::new(0)).collect();
        let $arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
        let $source: Source<'_> = Counted::new(&$arena, 0x10_0000, &counts);
        let tables = Tables::create(format(), &$arena, &$source).unwrap();
        let mut places: [Option<View<Ept, Gpa, Spa, Memory<'_>>>; 2] = [const { None }; 2];
        let mut $views = Views::new(&mut places, tables, Context::Ept { eptp: 0x1e }).unwrap();
    };
}

/// The lowest table that translates address 0 in a view, and its number of references.
fn lowest(views: &Views<'_, Ept, Gpa, Spa, Memory<'_>>, arena: Memory<'_>, view: usize) -> u64 {
    use slat::edit::TableMemory;
    let mut table = views.get(view).unwrap().tables().root() & !0xfff;
    for level in (1..=3).rev() {
        let entry = arena.table(table, 512).unwrap()[0].load(std::sync::atomic::Ordering::Relaxed);
        match slat::format::Format::decode(&format(), entry, level) {
            slat::format::Decoded::Table { next } => table = next,
            _ => break,
        }
    }
    table
}

/// XSA-480's case between views: a table that the first view let go of is not given out by the second
/// view's invalidation, which is of the second's id alone.
#[test]
fn a_table_stays_until_every_view_that_had_it_has_invalidated() {
    views!(arena, source, views);
    let (mut a, mut b) = (Storage::default(), Storage::default());
    let mut cursor = views.own::<_, Live>(0, &source, a.slots(), Gpa::new(0), BLOCK).unwrap();
    assert!(matches!(cursor.step(9), Ok(Step::Done)));
    let Ok(mut cursor) = cursor.into_cursor() else { panic!("nothing is shared") };
    let small = leaves().up_to(0);
    let map = cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &small).unwrap();
    run(&mut cursor, map);
    drop(cursor.finish());
    let other = views.fork(0, Context::Ept { eptp: 0x101e }, &source).unwrap();
    let table = lowest(&views, &arena, 0);

    // Each view gets tables of its own in turn; the gather of the first waits.
    let mut gathers = Vec::new();
    for (view, storage) in [(0, &mut a), (other, &mut b)] {
        let mut owned =
            views.own::<_, Live>(view, &source, storage.slots(), Gpa::new(0), PAGE).unwrap();
        assert!(matches!(owned.step(99), Ok(Step::Done)));
        let Ok(mut cursor) = owned.into_cursor() else { panic!("it is done") };
        let unmap = cursor.unmap(Gpa::new(0), PAGE, ()).unwrap();
        run(&mut cursor, unmap);
        gathers.push(cursor.finish());
        // Hardware still walks it for the first: nobody changes it in place.
        assert_ne!(lowest(&views, &arena, view), table, "view {view} changed the shared table");
    }
    let second = completed(gathers.pop().unwrap());
    let tables = views.get(other).unwrap().tables();
    let _ = second.reclaim(tables).unwrap().into_source(&source).unwrap();
    assert_ne!(source.count(table), 0, "freed while the first view may still walk it");
    let first = completed(gathers.pop().unwrap());
    let tables = views.get(0).unwrap().tables();
    let _ = first.reclaim(tables).unwrap().into_source(&source).unwrap();
    assert_eq!(source.count(table), 0, "the last that invalidated gives it back");
}

/// Two views have tables of their own that have a hole, and share a table beside it: that one is named
/// once, as both's.
#[test]
fn a_shared_table_beside_a_hole_is_a_segment_of_its_own() {
    views!(arena, source, views);
    let (mut a, mut b) = (Storage::default(), Storage::default());
    let mut cursor = views.all::<_, Live>(0, &source, a.slots(), Gpa::new(0), 3 * BLOCK).unwrap();
    let small = leaves();
    let map = cursor.map(Gpa::new(BLOCK), Spa::new(0), PAGE, &small).unwrap();
    run(&mut cursor, map);
    drop(cursor.finish());
    let other = views.fork(0, Context::Ept { eptp: 0x101e }, &source).unwrap();
    let mut owned = views.own::<_, Live>(other, &source, b.slots(), Gpa::new(0), PAGE).unwrap();
    assert!(matches!(owned.step(99), Ok(Step::Done)));
    let owned = completed(owned.finish());
    let _ = owned.reclaim(views.get(other).unwrap().tables()).unwrap().into_source(&source);
    let mut found = Vec::new();
    let each = |segment: slat::edit::Segment<Gpa>| {
        let both = segment.views.contains(0) && segment.views.contains(other);
        found.push((segment.view, segment.start.raw() / BLOCK, segment.bytes / BLOCK, both));
        Ok(())
    };
    views.segments(Gpa::new(0), 3 * BLOCK, each).unwrap();
    let own = |view| [(view, 0, 1, false), (view, 2, 1, false)];
    let mut expected = [own(0), own(other)].concat();
    expected.insert(1, (0, 1, 1, true));
    assert_eq!(found, expected);
}

/// A table that nothing shares for certain comes out by hand; one that something may share does not.
#[test]
fn shared_tables_come_out_to_the_source_that_counts_them() {
    views!(arena, source, views);
    let (mut a, mut b) = (Storage::default(), Storage::default());
    let mut cursor = views.all::<_, Live>(0, &source, a.slots(), Gpa::new(0), BLOCK).unwrap();
    let small = leaves().up_to(0);
    let map = cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &small).unwrap();
    run(&mut cursor, map);
    drop(cursor.finish());
    let other = views.fork(0, Context::Ept { eptp: 0x101e }, &source).unwrap();
    let mut owned = views.own::<_, Live>(other, &source, b.slots(), Gpa::new(0), PAGE).unwrap();
    assert!(matches!(owned.step(99), Ok(Step::Done)));
    let tables = owned.finish();
    let mut reclaim = completed(tables).reclaim(views.get(other).unwrap().tables()).unwrap();
    assert!(reclaim.next_frame(&mut ()).unwrap().is_none(), "the first view's table came out");
    let reclaim = reclaim.finish().unwrap_err();
    let _ = reclaim.into_source(&source).unwrap();
    assert!(views.get(0).unwrap().tables().translate(Gpa::new(PAGE)).is_some());
}

/// What all views are told holds in all of them, also where only one has the tables above.
#[test]
fn a_change_of_all_views_reaches_through_a_table_that_they_share() {
    views!(arena, source, views);
    let (mut a, mut b) = (Storage::default(), Storage::default());
    let whole = 2 * BLOCK;
    let mut cursor = views.all::<_, Live>(0, &source, a.slots(), Gpa::new(0), whole).unwrap();
    let small = leaves().up_to(0);
    let map = cursor.map(Gpa::new(0), Spa::new(0), whole, &small).unwrap();
    run(&mut cursor, map);
    drop(cursor.finish());
    let other = views.fork(0, Context::Ept { eptp: 0x101e }, &source).unwrap();
    // The second view has its own tables down to the first block, and shares the second block's.
    let mut owned = views.own::<_, Live>(other, &source, b.slots(), Gpa::new(0), PAGE).unwrap();
    assert!(matches!(owned.step(99), Ok(Step::Done)));
    let gather = completed(owned.finish());
    let tables = views.get(other).unwrap().tables();
    let _ = gather.reclaim(tables).unwrap().into_source(&source).unwrap();

    let (at, page) = (Gpa::new(BLOCK), Gpa::new(BLOCK + 5 * PAGE));
    macro_rules! all {
        (|$cursor:ident| $operation:expr) => {{
            let mut $cursor = views.all::<_, Live>(other, &source, a.slots(), at, BLOCK).unwrap();
            let operation = $operation.unwrap();
            let operation = run(&mut $cursor, operation);
            let gather = completed($cursor.finish());
            let tables = views.get(other).unwrap().tables();
            let _ = gather.reclaim(tables).unwrap().into_source(&source).unwrap();
            operation
        }};
    }
    macro_rules! found {
        () => {
            [0, other].map(|view| {
                let tables = views.get(view).unwrap().tables();
                tables.translate(page).map(|found| (found.output.raw(), found.level))
            })
        };
    }
    let large = leaves();
    let collapse = all!(|cursor| cursor.collapse(at, BLOCK, 1));
    assert_eq!(collapse.verb().collapsed(), 0);
    all!(|cursor| cursor.unmap(at, BLOCK, ()));
    assert_eq!(found!(), [None, None], "one view kept what all were to lose");
    all!(|cursor| cursor.map(at, Spa::new(4 * BLOCK), BLOCK, &large));
    let expected = Some((4 * BLOCK + 5 * PAGE, 0));
    assert_eq!(found!(), [expected, expected], "one view has not what all were to get");
}

/// Two views of one table of pages, of which the second is removed: its gather waits.
macro_rules! removed {
    ($arena:ident, $source:ident, $views:ident, $ended:ident) => {
        views!($arena, $source, $views);
        let (mut first, mut second) = (Storage::default(), Storage::default());
        let mut cursor =
            $views.all::<_, Live>(0, &$source, first.slots(), Gpa::new(0), BLOCK).unwrap();
        assert_eq!(cursor.flush().unwrap().context(), Context::Ept { eptp: 0x1e });
        drop(cursor);
        let mut cursor =
            $views.all::<_, Live>(0, &$source, first.slots(), Gpa::new(0), BLOCK).unwrap();
        let small = leaves().up_to(0);
        let map = cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &small).unwrap();
        run(&mut cursor, map);
        drop(cursor.finish());
        let other = $views.fork(0, Context::Ept { eptp: 0x101e }, &$source).unwrap();
        let $ended = $views.remove(other, second.slots()).unwrap();
    };
}

/// Processors run on a removed view until its gather is completed: what all are told until then
/// reaches them too.
#[test]
fn a_change_of_all_views_reaches_processors_of_a_removed_one() {
    removed!(arena, source, views, ended);
    let mut storage = Storage::default();
    let mut cursor = views.all::<_, Live>(0, &source, storage.slots(), Gpa::new(0), BLOCK).unwrap();
    let unmap = cursor.unmap(Gpa::new(0), PAGE, ()).unwrap();
    run(&mut cursor, unmap);
    let gather = cursor.finish();
    assert_eq!(gather.context(), Context::All);
    let _ = completed(gather).reclaim(views.get(0).unwrap().tables()).unwrap();
    let _ =
        completed(ended.gather).reclaim(ended.view.tables()).unwrap().into_source(&source).unwrap();
}

/// The tables below a removed view's root are the first view's as well.
#[test]
fn a_removed_view_gives_out_no_table_of_another() {
    removed!(arena, source, views, ended);
    let root = ended.view.tables().root() & !0xfff;
    let table = lowest(&views, &arena, 0);
    let mut reclaim = completed(ended.gather).reclaim(ended.view.tables()).unwrap();
    assert!(reclaim.next_frame(&mut ()).unwrap().is_none(), "a table of the first view came out");
    let _ = reclaim.into_source(&source).unwrap();
    assert_eq!((source.count(root), source.count(table)), (0, 1));
    assert!(views.get(0).unwrap().tables().translate(Gpa::new(PAGE)).is_some());
}

/// A frame that is nobody else's comes out, though one that is was detached after it.
#[test]
fn frames_come_out_from_behind_a_shared_table() {
    let cells: Vec<AtomicU64> = (0..32 * 512).map(|_| AtomicU64::new(0)).collect();
    let counts: Vec<AtomicU64> = (0..32).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
    let source: Source<'_> = Counted::new(&arena, 0x10_0000, &counts);
    let mut tables = Tables::create(format(), &arena, &source).unwrap();
    let mut storage = Storage::default();
    let context = Context::Ept { eptp: 0x1e };
    let mut cursor = tables
        .cursor::<_, Live>(&source, context, storage.slots(), Gpa::new(0), 3 * BLOCK)
        .unwrap();
    let small = leaves().up_to(0);
    let map = cursor.map(Gpa::new(0), Spa::new(0), 3 * BLOCK, &small).unwrap();
    run(&mut cursor, map);
    // After the root come the tables that the first page needed, from the lowest up.
    let lowest = [1, 4, 5].map(|frame| 0x10_0000 + frame * PAGE);
    assert!(lowest.iter().all(|table| source.count(*table) == 1));
    assert!(slat::edit::FrameSource::share(&source, lowest[1]));
    assert!(slat::edit::FrameSource::share(&source, lowest[2]));
    let unmap = cursor.unmap(Gpa::new(0), 3 * BLOCK, ()).unwrap();
    run(&mut cursor, unmap);
    let gather = cursor.finish();
    assert_eq!(gather.detached(), 3);
    let mut reclaim = completed(gather).reclaim(&tables).unwrap();
    let frame = reclaim.next_frame(&mut ()).unwrap().expect("the first is nobody else's");
    assert_eq!(frame.address(), lowest[0]);
    slat::edit::FrameSource::put(&source, frame);
    assert_eq!(reclaim.next_frame(&mut ()).unwrap(), None);
    let ready = reclaim.into_source(&source).unwrap();
    assert!(ready.into_slots().is_some());
    assert_eq!(lowest.map(|table| source.count(table)), [0, 1, 1], "others still point at them");
}
