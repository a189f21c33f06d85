//! Edges where page-table code has gone wrong before, each as its own case.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use slat::edit::{
    Arena, Cursor, Encode, Error, Frame, FrameSource, Gather, Leaves, Live, Mode, Pending, Quiet,
    Refused, Remake, Shared, Slots, Stale, Step, TableMemory, Tables, Walkers, Watch, Word, arm64,
    ept, riscv, x86,
};
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Address, Gpa, Gva, Permissions, Spa};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

const RWX: Permissions = Permissions { read: true, write: true, execute: true };
const RO: Permissions = Permissions { read: true, write: false, execute: false };
const NONE: Permissions = Permissions { read: false, write: false, execute: false };

fn cells(frames: usize) -> Vec<AtomicU64> {
    (0..frames * 512).map(|_| AtomicU64::new(0)).collect()
}

/// Storage for one gather.
struct Storage([Stale; 8], [slat::edit::Detached; 8], [Pending; 8]);

impl Storage {
    fn new() -> Storage {
        Storage(Default::default(), Default::default(), Default::default())
    }

    fn slots(&mut self) -> Slots<'_> {
        Slots {
            ranges: &mut self.0,
            detached: &mut self.1,
            pending: &mut self.2,
            report: |leak| panic!("{leak}"),
        }
    }
}

const CONTEXT: Context = Context::Ept { eptp: 0 };

fn epts() -> Ept {
    Ept::four(Features { accessed_dirty: true, physical_bits: 40, ..Features::default() })
}

fn writable() -> ept::Attributes {
    ept::Attributes::new(RWX, Type::Wb)
}

/// Runs `edit` on a cursor, completes its gather, and gives the frames back.
fn with<F: Encode<Word = u64>, I: Address, X: Mode, S: FrameSource, R>(
    tables: &mut Tables<F, I, Spa, &Arena<'_, u64>>,
    source: &S,
    (start, bytes): (I, u64),
    edit: impl FnOnce(&mut Cursor<'_, '_, F, I, Spa, &Arena<'_, u64>, S, X>) -> R,
) -> (R, Vec<Stale>) {
    let mut storage = Storage::new();
    let mut cursor = tables.cursor::<_, X>(source, CONTEXT, storage.slots(), start, bytes).unwrap();
    let result = edit(&mut cursor);
    let gather = cursor.finish();
    let mut stale = vec![];
    let mut invalidate = By(|gather: &Gather<'_>| stale.extend(gather.ranges()));
    let completed = gather.complete(&mut invalidate).unwrap();
    let _ = completed.reclaim(tables).unwrap().into_source(source).unwrap();
    (result, stale)
}

macro_rules! done {
    ($cursor:expr, $operation:expr) => {{
        let mut operation = $operation.unwrap();
        let step = $cursor.step(&mut operation, u32::MAX).unwrap();
        assert!(matches!(step, Step::Done), "{step:?}");
        operation
    }};
}

#[test]
fn taking_all_permissions_from_a_block_never_makes_it_a_table() {
    let cells = cells(32);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let format = Sv::stage2(Scheme::Sv39, RiscvFeatures::default());
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let leaves = Leaves::new(&format, &riscv::Attributes::new(RWX)).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(8 * BLOCK), BLOCK, &leaves));
        let refused = cursor.protect(Gpa::new(0), BLOCK, NONE, ()).unwrap_err();
        assert_eq!(refused, Error::Refused(Refused::Permissions(NONE)));
    });
    let found = tables.translate(Gpa::new(0x1234)).unwrap();
    assert_eq!((found.output, found.level), (Spa::new(8 * BLOCK + 0x1234), 1));
    // EPT too would turn such a leaf into nothing, with its content still there.
    assert!(epts().permit(NONE, 1).is_err());
}

#[test]
fn one_page_of_a_block_is_unmapped_and_nothing_else() {
    for page in [0, 1, 255, 511] {
        let cells = cells(8);
        let arena = Arena::<u64>::new(0, &cells).unwrap();
        let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
        let leaves = Leaves::new(&epts(), &writable()).unwrap();
        let (_, stale) =
            with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
                done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), 2 * BLOCK, &leaves));
                done!(cursor, cursor.unmap(Gpa::new(page * PAGE), PAGE, ()));
            });
        for other in 0..1024 {
            let found = tables.translate(Gpa::new(other * PAGE)).map(|found| found.output);
            let expected = (other != page).then(|| Spa::new(other * PAGE));
            assert_eq!(found, expected, "page {other} after unmapping {page}");
        }
        // The whole block is stale: hardware may hold it as one translation.
        let whole = |range: &&Stale| range.start == 0 && range.last >= BLOCK - 1;
        assert!(stale.iter().find(whole).is_some(), "{stale:x?}");
    }
}

#[test]
fn a_gibibyte_of_pages_leaves_no_table_behind() {
    let cells = cells(520);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap();
    let small = leaves.up_to(0);
    for _ in 0..3 {
        with::<_, _, Quiet, _, _>(&mut tables, &arena, (Gpa::new(0), 2 * GIB), |cursor| {
            done!(cursor, cursor.map(Gpa::new(GIB), Spa::new(0), GIB, &small));
            done!(cursor, cursor.unmap(Gpa::new(GIB), GIB, ()));
        });
    }
    // Tables emptied page by page stay, and give way to a block.
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), 2 * GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &small));
        for page in 0..512 {
            done!(cursor, cursor.unmap(Gpa::new(page * PAGE), PAGE, ()));
        }
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(BLOCK), BLOCK, &leaves));
    });
    assert_eq!(tables.translate(Gpa::new(0)).unwrap().level, 1);
}

#[test]
fn addresses_beyond_the_width_are_refused_and_alias_nothing() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let mut storage = Storage::new();
    let beyond = tables.cursor::<_, Live>(
        &arena,
        CONTEXT,
        storage.slots(),
        Gpa::new(0x1_0030_0000_0000),
        PAGE,
    );
    assert_eq!(beyond.unwrap_err(), Error::OutsideInput { at: 0x1_0030_0000_0000 });
    let leaves = Leaves::new(&epts(), &writable()).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), 1 << 48), |cursor| {
        // The last page exists, the one after it does not.
        let last = Gpa::new((1 << 48) - PAGE);
        done!(cursor, cursor.map(last, Spa::new(0), PAGE, &leaves));
        let over = cursor.map(last, Spa::new(0), 2 * PAGE, &leaves).unwrap_err();
        assert_eq!(over, Error::OutsideInput { at: (1 << 48) - 1 });
        // Outputs beyond MAXPHYADDR, and beyond 64 bits.
        let wide = cursor.map(Gpa::new(0), Spa::new((1 << 40) - PAGE), 2 * PAGE, &leaves);
        assert_eq!(wide.unwrap_err(), Error::OutsideOutput { output: 1 << 40 });
        let wraps = cursor.map(Gpa::new(0), Spa::new(u64::MAX - 0xfff), 2 * PAGE, &leaves);
        assert!(matches!(wraps.unwrap_err(), Error::OutsideOutput { .. }));
        for (start, bytes) in [(1, PAGE), (0, 0), (0, 100)] {
            let odd = cursor.map(Gpa::new(start), Spa::new(0), bytes, &leaves);
            assert!(matches!(odd.unwrap_err(), Error::Misaligned { .. }), "{start} {bytes}");
        }
    });
    // A G-stage root has two index bits more; the bit above them is refused, not ignored.
    let format = Sv::stage2(Scheme::Sv39, RiscvFeatures::default());
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let refused =
        tables.cursor::<_, Live>(&arena, CONTEXT, storage.slots(), Gpa::new(1 << 41), PAGE);
    assert!(refused.is_err());
    let leaves = Leaves::new(&format, &riscv::Attributes::new(RWX)).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), 1 << 41), |cursor| {
        done!(cursor, cursor.map(Gpa::new(3 << 39), Spa::new(0), PAGE, &leaves));
    });
    for alias in [0u64, 1 << 39, 2 << 39] {
        assert!(tables.translate(Gpa::new(alias)).is_none(), "{alias:#x}");
    }
}

#[test]
fn output_address_zero_is_an_address() {
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &leaves));
        let mut again = cursor.map(Gpa::new(0x3000), Spa::new(0), PAGE, &leaves).unwrap();
        let refused = cursor.step(&mut again, u32::MAX).unwrap_err();
        assert!(matches!(refused, Error::Occupied { at: 0x3000, .. }), "{refused}");
        done!(cursor, cursor.remap(Gpa::new(0x3000), Spa::new(0), PAGE, ()));
    });
    assert_eq!(tables.translate(Gpa::new(0x3000)).unwrap().output, Spa::new(0));
    assert_eq!(tables.translate(Gpa::new(0x4000)).unwrap().output, Spa::new(0x4000));
}

#[test]
fn mapping_over_one_occupied_page_maps_nothing() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap().up_to(0);
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        let occupied = BLOCK + 5 * PAGE;
        done!(cursor, cursor.map(Gpa::new(occupied), Spa::new(0), PAGE, &leaves));
        let start = BLOCK - 8 * PAGE;
        let mut over = cursor.map(Gpa::new(start), Spa::new(0), 16 * PAGE, &leaves).unwrap();
        let refused = cursor.step(&mut over, u32::MAX).unwrap_err();
        assert!(matches!(refused, Error::Occupied { at, .. } if at == occupied));
        assert_eq!(over.bytes_done(), 0);
    });
    assert_eq!(tables.mappings(Gpa::new(0), GIB).unwrap().count(), 1);
}

#[test]
fn misconfigurations_are_refused_before_they_are_written() {
    let write_only = Permissions { read: false, write: true, execute: false };
    assert!(Leaves::new(&epts(), &ept::Attributes::new(write_only, Type::Wb)).is_err());
    assert!(Leaves::new(&epts(), &ept::Attributes::new(NONE, Type::Wb)).is_err());
    assert!(Leaves::new(&epts(), &ept::Attributes::new(RWX, Type::UcMinus)).is_err());
    let execute_only = Permissions { read: false, write: false, execute: true };
    let without = Ept::four(Features { execute_only: false, ..Features::default() });
    assert!(Leaves::new(&without, &ept::Attributes::new(execute_only, Type::Wb)).is_err());
    assert!(Leaves::new(&epts(), &ept::Attributes::new(execute_only, Type::Wb)).is_ok());
    let address = ept::Attributes { software: 1 << 40, ..writable() };
    assert_eq!(Leaves::new(&epts(), &address), Err(Refused::SoftwareBits(1 << 40)));
    // Without NXE, bit 63 would be reserved.
    let plain = Long::four(Controls::default(), Processor::default());
    assert!(Leaves::new(&plain, &x86::Attributes::new(RO)).is_err());
    // With CET, a dirty page made read-only is a shadow-stack page.
    let cet = Controls { shadow_stacks: true, nxe: true, ..Controls::default() };
    let refused = Long::four(cet, Processor::default()).permit(RO, 0);
    assert_eq!(refused, Err(Refused::ShadowStack));
    let riscv = Sv::stage2(Scheme::Sv48, RiscvFeatures::default());
    let supervisor = riscv::Attributes { user: false, ..riscv::Attributes::new(RWX) };
    assert_eq!(Leaves::new(&riscv, &supervisor), Err(Refused::Supervisor));
}

#[test]
fn accessed_and_dirty_bits_outlive_a_change_of_permissions() {
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let dirty = ept::Attributes { accessed: true, dirty: true, ..writable() };
    let leaves = Leaves::new(&epts(), &dirty).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &leaves));
        done!(cursor, cursor.protect(Gpa::new(0), 4 * PAGE, RO, ()));
    });
    for page in [0, 3, 4, 511] {
        let found = tables.translate(Gpa::new(page * PAGE)).unwrap();
        let attributes = epts().attributes(found.entry, found.level);
        assert!(attributes.accessed && attributes.dirty, "page {page}");
        assert_eq!(attributes.permissions, if page < 4 { RO } else { RWX });
    }
}

#[test]
fn one_page_of_a_block_moves_below_it() {
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(BLOCK), Spa::new(BLOCK), BLOCK, &leaves));
        done!(cursor, cursor.remap(Gpa::new(BLOCK + 0x5000), Spa::new(0x1000), PAGE, ()));
    });
    let output = |at| tables.translate(Gpa::new(at)).unwrap().output;
    assert_eq!(output(BLOCK + 0x5008), Spa::new(0x1008));
    assert_eq!(output(BLOCK + 0x4008), Spa::new(BLOCK + 0x4008));
}

#[test]
fn the_last_page_of_the_address_space() {
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let format = Long::four(Controls { nxe: true, ..Controls::default() }, Processor::default());
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &arena).unwrap();
    let leaves = Leaves::new(&format, &x86::Attributes::new(RWX)).unwrap();
    let top = 0u64.wrapping_sub(BLOCK);
    let (_, stale) =
        with::<_, _, Live, _, _>(&mut tables, &arena, (Gva::new(top), BLOCK), |cursor| {
            done!(cursor, cursor.map(Gva::new(top), Spa::new(0), BLOCK, &leaves));
            done!(cursor, cursor.unmap(Gva::new(u64::MAX - 0xfff), PAGE, ()));
        });
    assert_eq!(stale.last().unwrap().last, u64::MAX);
    assert!(tables.translate(Gva::new(u64::MAX)).is_none());
    assert!(tables.translate(Gva::new(u64::MAX - PAGE)).is_some());
    // A range across the hole between the halves does not exist.
    let mut storage = Storage::new();
    let hole = tables.cursor::<_, Live>(
        &arena,
        CONTEXT,
        storage.slots(),
        Gva::new(0x7fff_ffff_f000),
        2 * PAGE,
    );
    assert!(matches!(hole.unwrap_err(), Error::OutsideInput { .. }));
}

/// A source that has exactly so many frames.
struct Rationed<'a>(&'a Arena<'a, u64>, Cell<u32>, Cell<u32>);

impl FrameSource for Rationed<'_> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        self.1.set(self.1.get().checked_sub(1)?);
        self.2.set(self.2.get() + 1);
        self.0.take(bytes)
    }
    fn put(&self, frame: Frame) {
        self.1.set(self.1.get() + 1);
        self.2.set(self.2.get() - 1);
        self.0.put(frame);
    }
}

#[test]
fn exhaustion_at_every_point_changes_nothing_and_loses_nothing() {
    for frames in 0..4 {
        let cells = cells(16);
        let arena = Arena::<u64>::new(0, &cells).unwrap();
        let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
        let source = Rationed(&arena, Cell::new(frames), Cell::new(0));
        let leaves = Leaves::new(&epts(), &writable()).unwrap();
        let before: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        with::<_, _, Live, _, _>(&mut tables, &source, (Gpa::new(0), GIB), |cursor| {
            let mut map = cursor.map(Gpa::new(0x5000), Spa::new(0), PAGE, &leaves).unwrap();
            let outcome = cursor.step(&mut map, u32::MAX);
            if frames < 3 {
                assert_eq!(outcome.unwrap_err(), Error::NoFrame { at: 0x5000, bytes: PAGE });
                assert_eq!(source.2.get(), 0, "a frame was kept");
                // The root, which is in the first frame, is as it was.
                for (index, cell) in cells[..512].iter().enumerate() {
                    assert_eq!(cell.load(Ordering::Relaxed), before[index]);
                }
                // With more frames the same operation goes on.
                source.1.set(3);
                assert!(matches!(cursor.step(&mut map, u32::MAX), Ok(Step::Done)));
            }
        });
        assert!(tables.translate(Gpa::new(0x5000)).is_some());
    }
}

#[test]
fn a_page_dirtied_through_an_older_translation_is_not_lost_by_collapsing() {
    let cells = cells(32);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap().up_to(0);
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(BLOCK), BLOCK, &leaves));
        let collapse = done!(cursor, cursor.collapse(Gpa::new(0), BLOCK, 1));
        assert_eq!(collapse.verb().collapsed(), 1);
        // Here a CPU still has the page in its TLB, not dirty; it writes, and sets D in the old
        // table, where nobody looks any more.
    });
    let found = tables.translate(Gpa::new(0)).unwrap();
    assert_eq!(found.level, 1);
    assert!(epts().is_dirty(found.entry), "dirty may be over-reported, never lost");

    // With nobody else about, dirty state is exactly the OR over the parts.
    for dirty in [None, Some(0), Some(7), Some(511)] {
        let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
        with::<_, _, Quiet, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
            let soiled = ept::Attributes { dirty: true, ..writable() };
            let soiled = Leaves::new(&epts(), &soiled).unwrap();
            for page in 0..512 {
                let leaves = if Some(page) == dirty { &soiled } else { &leaves };
                let (at, output) = (Gpa::new(page * PAGE), Spa::new(BLOCK + page * PAGE));
                done!(cursor, cursor.map(at, output, PAGE, leaves));
            }
            let collapse = done!(cursor, cursor.collapse(Gpa::new(0), BLOCK, 1));
            assert_eq!(collapse.verb().collapsed(), 1);
        });
        let found = tables.translate(Gpa::new(0)).unwrap();
        assert_eq!(epts().is_dirty(found.entry), dirty.is_some(), "{dirty:?}");
        with::<_, _, Quiet, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
            done!(cursor, cursor.unmap(Gpa::new(0), BLOCK, ()));
        });
        arena.put(Frame::new(tables.root(), PAGE));
    }
}

#[test]
fn what_does_not_say_one_thing_is_not_collapsed() {
    let cells = cells(32);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap().up_to(0);
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        // Misaligned; with a hole; with one page of other permissions; with one page elsewhere.
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(BLOCK + PAGE), BLOCK, &leaves));
        let mut at = BLOCK;
        for _ in 0..3 {
            done!(cursor, cursor.map(Gpa::new(at), Spa::new(at), BLOCK, &leaves));
            at += BLOCK;
        }
        done!(cursor, cursor.unmap(Gpa::new(BLOCK + 9 * PAGE), PAGE, ()));
        done!(cursor, cursor.protect(Gpa::new(2 * BLOCK + 511 * PAGE), PAGE, RO, ()));
        done!(cursor, cursor.remap(Gpa::new(3 * BLOCK), Spa::new(0), PAGE, ()));
        let collapse = done!(cursor, cursor.collapse(Gpa::new(0), 4 * BLOCK, 1));
        assert_eq!(collapse.verb().collapsed(), 0);
    });
}

#[test]
fn arm_breaks_invalidates_and_only_then_makes() {
    let cells = cells(32);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    let format = Stage2::plain(Granule::Four, 39, &processor).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let reader = Tables::<_, Gpa, Spa, _>::adopt(format, tables.root(), &arena).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    let leaves = Leaves::new(&format, &attributes).unwrap();
    let mut storage = Storage::new();
    let mut cursor =
        tables.cursor::<_, Live>(&arena, CONTEXT, storage.slots(), Gpa::new(0), GIB).unwrap();
    done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), 3 * BLOCK, &leaves));

    let mut split = cursor.split(Gpa::new(0), 3 * BLOCK, 0).unwrap();
    let Step::Invalidate(gather) = cursor.step(&mut split, u32::MAX).unwrap() else {
        panic!("a live block was replaced without an invalidation");
    };
    // Many breaks share one invalidation, and nothing translates meanwhile.
    assert_eq!(gather.broken(), 3);
    for block in 0..3 {
        assert!(reader.translate(Gpa::new(block * BLOCK)).is_none());
    }
    // A fault there tries again; another operation does not touch it.
    let mut invalidated = false;
    let completed = gather.complete(&mut By(|_: &Gather<'_>| invalidated = true)).unwrap();
    cursor.resume(completed.ready().unwrap()).unwrap();
    assert!(invalidated);
    assert!(matches!(cursor.step(&mut split, u32::MAX), Ok(Step::Done)));
    for page in [0, 511, 512, 1535] {
        let found = reader.translate(Gpa::new(page * PAGE)).unwrap();
        assert_eq!((found.output, found.level), (Spa::new(page * PAGE), 0));
    }
    // Permissions change in place.
    done!(cursor, cursor.protect(Gpa::new(0), BLOCK, RO, ()));
    // Moving a page does not.
    let mut moving = cursor.remap(Gpa::new(0), Spa::new(BLOCK), PAGE, ()).unwrap();
    let step = cursor.step(&mut moving, u32::MAX).unwrap();
    let Step::Invalidate(gather) = step else { panic!("a page was moved in place") };
    assert!(matches!(cursor.step(&mut moving, 1), Err(Error::AwaitingInvalidation)));
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    cursor.resume(completed.ready().unwrap()).unwrap();
    assert_eq!(reader.translate(Gpa::new(0)).unwrap().output, Spa::new(BLOCK));
    let _ = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
}

thread_local! {
    static LEAKS: Cell<(usize, usize, usize)> = const { Cell::new((0, 0, 0)) };
}

#[test]
fn a_dropped_token_reports_and_frees_nothing() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap().up_to(0);
    let source = Rationed(&arena, Cell::new(9), Cell::new(0));
    let mut storage = Storage::new();
    let mut slots = storage.slots();
    slots.report = |leak| LEAKS.set((leak.ranges, leak.subtrees, leak.frozen));
    let mut cursor = tables.cursor::<_, Live>(&source, CONTEXT, slots, Gpa::new(0), GIB).unwrap();
    done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &leaves));
    done!(cursor, cursor.unmap(Gpa::new(0), BLOCK, ()));
    let out = source.2.get();
    drop(cursor.finish());
    assert_eq!(LEAKS.get(), (1, 1, 0));
    assert_eq!(source.2.get(), out, "nothing came back");
}

/// Frames stop being taken out in the middle of a subtree: what is left of it is lost, and reported.
#[test]
fn a_subtree_that_was_half_taken_out_is_reported() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap().up_to(0);
    for taken in [1, 2] {
        let mut storage = Storage::new();
        let mut slots = storage.slots();
        slots.report = |leak| LEAKS.set((leak.ranges, leak.subtrees, leak.frozen));
        LEAKS.set((0, 0, 0));
        let (at, bytes) = (Gpa::new(0), 2 * GIB);
        let mut cursor = tables.cursor::<_, Live>(&arena, CONTEXT, slots, at, bytes).unwrap();
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), PAGE, &leaves));
        done!(cursor, cursor.unmap(Gpa::new(0), GIB, ()));
        let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        assert_eq!(completed.detached(), 1, "a table of tables");
        let mut reclaim = completed.reclaim(&tables).unwrap();
        for _ in 0..taken {
            arena.put(reclaim.next_frame(&mut ()).unwrap().unwrap());
        }
        drop(reclaim);
        assert_eq!(LEAKS.get(), (0, 2 - taken, 0), "{taken} of 2 frames were taken out");
    }
}

/// A split that was broken and never made: the table of its parts is linked nowhere and lost.
#[test]
fn a_dropped_split_reports_its_table() {
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    let format = Stage2::plain(Granule::Four, 40, &processor).unwrap();
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    let leaves = Leaves::new(&format, &attributes).unwrap();
    let mut storage = Storage::new();
    let mut slots = storage.slots();
    slots.report = |leak| LEAKS.set((leak.ranges, leak.subtrees, leak.frozen));
    let mut cursor = tables.cursor::<_, Live>(&arena, CONTEXT, slots, Gpa::new(0), GIB).unwrap();
    done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &leaves));
    let mut split = cursor.split(Gpa::new(0), BLOCK, 0).unwrap();
    let step = cursor.step(&mut split, 9).unwrap();
    let gather = match step {
        Step::Invalidate(gather) => gather,
        _ => cursor.flush().unwrap(),
    };
    assert_eq!(gather.broken(), 1);
    LEAKS.set((0, 0, 0));
    drop(gather);
    assert_eq!(LEAKS.get(), (1, 1, 1));
    drop(cursor.finish());
}

#[test]
fn a_broken_leaf_waits_for_its_own_invalidation() {
    let cells = cells(32);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), 4 * BLOCK, &leaves));
    });
    let walkers = [const { AtomicU64::new(0) }; 2];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let (mut storage, mut other) = (Storage::new(), Storage::new());
    let mut slots = storage.slots();
    slots.report = |leak| LEAKS.set((leak.ranges, leak.subtrees, leak.frozen));
    let lock = ();
    let (at, bytes) = (Gpa::new(0), GIB);
    let mut cursor = shared.cursor(&lock, &arena, CONTEXT, slots, at, bytes).unwrap();
    fn proof(gather: Option<Gather<'_>>) -> slat::edit::Ready<'_> {
        let completed = gather.unwrap().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        completed.ready().unwrap()
    }
    // What cannot be remade is not broken.
    let wide = Remake::Leaf { output: Spa::new(1 << 40), leaves: &leaves };
    assert!(matches!(cursor.break_leaf(at, wide).unwrap_err(), Error::OutsideOutput { .. }));
    let odd = Remake::Leaf { output: Spa::new(PAGE), leaves: &leaves };
    assert!(matches!(cursor.break_leaf(at, odd).unwrap_err(), Error::Misaligned { .. }));
    let nothing = cursor.break_leaf(Gpa::new(8 * BLOCK), Remake::Smaller).unwrap_err();
    assert_eq!(nothing, Error::Reserved { at: 8 * BLOCK, entry: 0 });

    let early = proof(cursor.flush());
    assert!(matches!(cursor.break_leaf(at, Remake::Smaller), Err(Error::AwaitingInvalidation)));
    cursor.resume(early).unwrap();
    let to = Remake::Leaf { output: Spa::new(8 * BLOCK), leaves: &leaves };
    let moved = cursor.break_leaf(Gpa::new(0x1234), to).unwrap();
    let divided = cursor.break_leaf(Gpa::new(BLOCK), Remake::Smaller).unwrap();
    let lost = cursor.break_leaf(Gpa::new(2 * BLOCK), Remake::Smaller).unwrap();
    assert_eq!((moved.start(), divided.start()), (Gpa::new(0), Gpa::new(BLOCK)));
    assert!(matches!(cursor.break_leaf(at, Remake::Smaller), Err(Error::Frozen { at: 0 })));
    // A fault there tries again.
    let walker = shared.walker().unwrap();
    let fault = walker.fault(&arena, Gpa::new(0x5000), Spa::new(0), 0, &leaves);
    assert_eq!(fault.unwrap_err(), Error::Frozen { at: 0x5000 });
    assert!(walker.translate(Gpa::new(0x5000)).is_none());
    drop(walker);
    // Another cursor's invalidation proves nothing for this one.
    let mut stranger =
        shared.cursor(&lock, &arena, CONTEXT, other.slots(), Gpa::new(GIB), GIB).unwrap();
    let mut theirs = proof(stranger.flush());
    let moved = moved.make(&mut theirs).unwrap_err();
    let mut ours = proof(cursor.flush());
    let refused = cursor.resume(theirs).unwrap_err();
    assert_eq!(refused.error, Error::Foreign);
    let theirs = refused.ready.unwrap();
    moved.make(&mut ours).unwrap();
    divided.make(&mut ours).unwrap();
    cursor.resume(ours).unwrap();
    // A dropped half leaves the entry frozen, and says so.
    LEAKS.set((0, 0, 0));
    drop(lost);
    assert_eq!(LEAKS.get(), (0, 1, 1));
    drop((cursor.finish(), stranger.finish(), theirs));
    let tables = shared.into_tables();
    let found = |at| tables.translate(Gpa::new(at)).map(|found| (found.output.raw(), found.level));
    assert_eq!(found(0x1234), Some((8 * BLOCK + 0x1234, 1)));
    assert_eq!(found(BLOCK + 0x1234), Some((BLOCK + 0x1234, 0)));
    assert_eq!(found(2 * BLOCK), None);
    assert_eq!(found(3 * BLOCK), Some((3 * BLOCK, 1)));
}

#[test]
fn a_gather_of_other_tables_is_refused() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let others = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let mut storage = Storage::new();
    let mut cursor =
        tables.cursor::<_, Live>(&arena, CONTEXT, storage.slots(), Gpa::new(0), GIB).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap().up_to(0);
    done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), BLOCK, &leaves));
    done!(cursor, cursor.unmap(Gpa::new(0), BLOCK, ()));
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let completed = completed.reclaim(&others).unwrap_err();
    let _ = completed.reclaim(&tables).unwrap().into_source(&arena).unwrap();
}

#[test]
fn the_last_bits_of_a_detached_table_are_seen() {
    let cells = cells(16);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap().up_to(0);
    let mut storage = Storage::new();
    let mut cursor =
        tables.cursor::<_, Live>(&arena, CONTEXT, storage.slots(), Gpa::new(0), GIB).unwrap();
    done!(cursor, cursor.map(Gpa::new(BLOCK), Spa::new(0), BLOCK, &leaves));
    let leaf = cells.iter().position(|cell| cell.load(Ordering::Relaxed) == 0x5037).unwrap();
    done!(cursor, cursor.unmap(Gpa::new(BLOCK), BLOCK, ()));
    // Through a translation that is not invalidated yet, a CPU still writes.
    u64::fetch_or(&cells[leaf], 0x300);
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let mut reclaim = completed.reclaim(&tables).unwrap();
    let mut dirty = vec![];
    let mut witness = Watch(|start: u64, _: u8, entry: u64| {
        if epts().is_dirty(entry) {
            dirty.push(start);
        }
    });
    while let Some(frame) = reclaim.next_frame(&mut witness).unwrap() {
        arena.put(frame);
    }
    let _ = reclaim.finish().unwrap();
    assert_eq!(dirty, [BLOCK + 5 * PAGE]);
}

#[test]
fn memory_that_was_not_lent_is_an_error() {
    let cells = cells(4);
    let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
    let outside = Tables::<_, Gpa, Spa, _>::adopt(epts(), 0, &arena).unwrap_err();
    assert_eq!(outside, Error::NotLent { table: 0 });
    assert!(arena.table(0x10_0000 + 4 * PAGE, 1).is_none());
}

/// Arm ARM D8.17.1: between one valid entry and another comes an invalidation, also where the break
/// was an unmap of one's own.
#[test]
fn what_was_unmapped_is_not_made_anew_before_its_invalidation() {
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    let format = Stage2::plain(Granule::Four, 39, &processor).unwrap();
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let others = Tables::<Stage2, Gpa, Spa, _>::adopt(format, 0, &arena).unwrap();
    let attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    let leaves = Leaves::new(&format, &attributes).unwrap();
    let mut storage = Storage::new();
    let context = Context::Stage2 { vmid: 1 };
    let mut cursor =
        tables.cursor::<_, Live>(&arena, context, storage.slots(), Gpa::new(0), GIB).unwrap();
    let mut map = cursor.map(Gpa::new(0), Spa::new(GIB), 4 * PAGE, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, 9), Ok(Step::Done)));
    let mut unmap = cursor.unmap(Gpa::new(PAGE), PAGE, ()).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 9), Ok(Step::Done)));
    let mut map = cursor.map(Gpa::new(PAGE), Spa::new(2 * GIB), PAGE, &leaves).unwrap();
    let Ok(Step::Invalidate(gather)) = cursor.step(&mut map, 9) else { panic!("made anew") };
    assert!(others.translate(Gpa::new(PAGE)).is_none());
    let served = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    cursor.resume(served.ready().unwrap()).unwrap();
    assert!(matches!(cursor.step(&mut map, 9), Ok(Step::Done)));
    assert_eq!(others.translate(Gpa::new(PAGE)).unwrap().output, Spa::new(2 * GIB));
    // A page beside it needs none.
    let mut unmap = cursor.unmap(Gpa::new(0), PAGE, ()).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 9), Ok(Step::Done)));
    let mut map = cursor.map(Gpa::new(8 * PAGE), Spa::new(0), PAGE, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, 9), Ok(Step::Done)));
    let _ = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
}

/// While the caller has the gather there is nowhere to note a change: nothing changes.
#[test]
fn nothing_changes_while_the_gather_is_away() {
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap();
    let mut storage = Storage::new();
    let mut cursor =
        tables.cursor::<_, Live>(&arena, CONTEXT, storage.slots(), Gpa::new(0), GIB).unwrap();
    done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), 2 * PAGE, &leaves));
    let mut unmap = cursor.unmap(Gpa::new(0), PAGE, ()).unwrap();
    let gather = cursor.flush().unwrap();
    assert!(cursor.flush().is_none());
    let before: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    let away = Err(Error::AwaitingInvalidation);
    assert_eq!(cursor.fault(Gpa::new(GIB / 2), Spa::new(0), 0, &leaves).map(|_| ()), away);
    assert_eq!(cursor.remove(Gpa::new(PAGE)).map(|_| ()), away);
    assert_eq!(cursor.step(&mut unmap, 9).map(|_| ()), away);
    let broken = cursor.break_leaf(Gpa::new(0), Remake::Smaller);
    assert_eq!(broken.map(|_| ()).unwrap_err(), Error::AwaitingInvalidation);
    let after: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    assert_eq!(before, after);
    let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    cursor.resume(completed.ready().unwrap()).unwrap();
    assert_ne!(cursor.remove(Gpa::new(PAGE)), Ok(0));
    let _ = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
}

/// A table that is to give way to a large page is frozen meanwhile; where it cannot give way after
/// all, faults fill it as before.
#[test]
fn a_table_that_stays_after_all_thaws() {
    let cells = cells(8);
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(epts(), &arena, &arena).unwrap();
    let leaves = Leaves::new(&epts(), &writable()).unwrap();
    with::<_, _, Live, _, _>(&mut tables, &arena, (Gpa::new(0), GIB), |cursor| {
        done!(cursor, cursor.map(Gpa::new(0), Spa::new(0), 2 * PAGE, &leaves));
        done!(cursor, cursor.unmap(Gpa::new(0), PAGE, ()));
        done!(cursor, cursor.unmap(Gpa::new(PAGE), PAGE, ()));
    });
    let before: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    let walkers = [const { AtomicU64::new(0) }; 1];
    let walkers = Walkers::new(&walkers);
    let shared = Shared::new(tables, &walkers);
    let map = |slots| {
        let mut cursor = shared.cursor(&(), &arena, CONTEXT, slots, Gpa::new(0), GIB).unwrap();
        let mut map = cursor.map(Gpa::new(0), Spa::new(BLOCK), BLOCK, &leaves).unwrap();
        let outcome = cursor.step(&mut map, 9).map(|step| assert!(matches!(step, Step::Done)));
        let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let _ = completed.reclaim(shared.tables()).unwrap().into_source(&arena).unwrap();
        outcome
    };
    // There is nowhere to note the table.
    let none = Slots { ranges: &mut [], detached: &mut [], pending: &mut [], report: |_| {} };
    assert_eq!(map(none), Err(Error::NoSlot));
    let after: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    assert!(before == after, "an entry stayed frozen");
    let walker = shared.walker().unwrap();
    let served = walker.fault(&arena, Gpa::new(0x5000), Spa::new(0), 0, &leaves);
    assert!(matches!(served, Ok(slat::edit::Served::Installed { level: 0 })), "{served:?}");
    drop(walker);
    // It is occupied now: the same once more.
    let before: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    let outcome = map(Storage::new().slots());
    assert!(matches!(outcome, Err(Error::Occupied { at: 0, .. })), "{outcome:?}");
    let after: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    assert!(before == after, "an entry stayed frozen");
}
