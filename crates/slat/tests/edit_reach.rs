//! Frames that lie where no entry of the format can point.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64};

use slat::edit::arm32::{ShortAttributes, Upper};
use slat::edit::{
    Arena, Counted, Detached, Donated, Encode, Error, Frame, FrameSource, Gather, Leaves, Live,
    Pending, Slots, Stale, Step, TableMemory, Tables, View, Views, arm64, riscv, x86,
};
use slat::format::Format;
use slat::format::arm32::{Lpae, Processor, Registers, Short, sctlr, ttbcr};
use slat::format::npt::Npt;
use slat::format::riscv::{Features, Scheme, Sv};
use slat::invalidate::{By, Context};
use slat::{Gva, Permissions, Spa};

const RWX: Permissions = Permissions { read: true, write: true, execute: true };
const LOW: u64 = 0x10_0000;
const LARGE: u64 = 4 << 20;

/// Two stretches of memory, one that every entry can point at and one that none can; frames come from
/// the upper one when it is told to.
#[derive(Debug)]
struct Both<'a> {
    low: Arena<'a, u32>,
    high: Arena<'a, u32>,
    /// How many more frames come from the lower one.
    left: Cell<u32>,
    out: Cell<i32>,
}

// SAFETY: the cells are the arenas'.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl TableMemory<u32> for Both<'_> {
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU32]> {
        self.low.table(address, entries).or_else(|| self.high.table(address, entries))
    }
}

impl FrameSource for Both<'_> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        let source = if self.left.get() > 0 { &self.low } else { &self.high };
        self.left.set(self.left.get().saturating_sub(1));
        self.out.set(self.out.get() + 1);
        source.take(bytes)
    }

    fn put(&self, frame: Frame) {
        self.out.set(self.out.get() - 1);
        let source = if frame.address() < 1 << 32 { &self.low } else { &self.high };
        source.put(frame);
    }
}

fn refused<F: Encode<Word = u32>>(format: F, attributes: &F::Attributes, base: u64, high: u64) {
    let cells: Vec<AtomicU32> = (0..9 * 16 * 1024).map(|_| AtomicU32::new(0)).collect();
    let (lower, upper) = cells.split_at(16 * 1024);
    let both = Both {
        low: Arena::new(LOW, lower).unwrap(),
        high: Arena::new(high, upper).unwrap(),
        left: Cell::new(0),
        out: Cell::new(0),
    };
    let far = |error: Option<Error>| {
        assert!(
            matches!(error, Some(Error::OutOfReach { frame }) if frame >= high),
            "{}: {error:?}",
            format.name()
        );
    };
    far(Tables::<_, Gva, Spa, _>::create(format, &both, &both).err());
    assert_eq!(both.out.get(), 0);
    far(Tables::<_, Gva, Spa, _>::adopt(format, high, &both).err());

    both.left.set(1);
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &both, &both).unwrap();
    let leaves = Leaves::new(&format, attributes).unwrap();
    let at = Gva::new(base);
    far(tables.fault::<_, Live>(&both, at, Spa::new(0), 0, &leaves).err());
    let mut storage = ([Stale::default(); 4], [Detached::default(); 4], [Pending::default(); 4]);
    let slots = Slots {
        ranges: &mut storage.0,
        detached: &mut storage.1,
        pending: &mut storage.2,
        report: |leak| panic!("{leak}"),
    };
    let mut cursor = tables.cursor::<_, Live>(&both, Context::All, slots, at, LARGE).unwrap();
    let mut map = cursor.map(at, Spa::new(0), 4096, &leaves).unwrap();
    far(cursor.step(&mut map, 9).err());
    let mut map = cursor.map(at, Spa::new(LARGE), LARGE, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, 9), Ok(Step::Done)));
    let mut split = cursor.split(at, LARGE, 0).unwrap();
    far(cursor.step(&mut split, 9).err());
    // Once there are other frames it goes on.
    both.left.set(99);
    loop {
        match cursor.step(&mut split, 9).unwrap() {
            Step::Done => break,
            Step::Yield => {}
            Step::Invalidate(gather) => {
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                cursor.resume(completed.ready().unwrap()).unwrap();
            }
        }
    }
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.ready().unwrap();
    let found = tables.translate(Gva::new(base + 0x12_3456)).unwrap();
    assert_eq!((found.output, found.level), (Spa::new(LARGE + 0x12_3456), 0));
    // No frame of those that were refused is lost.
    let tables_made = if format.shift(1) == 20 { 1 + 4 } else { 1 + 1 };
    assert_eq!(both.out.get(), tables_made, "{}", format.name());

    // A root of a view is a root as well.
    both.left.set(0);
    let counts: Vec<AtomicU64> = (0..(high + (8 << 16) - LOW) >> 12).map(|_| 0.into()).collect();
    let source = Counted::new(&both, LOW, &counts);
    let mut places: [Option<View<F, Gva, Spa, &Both<'_>>>; 2] = [const { None }; 2];
    let mut views = Views::new(&mut places, tables, Context::All).unwrap();
    far(views.fork(0, Context::All, &source).err());
    assert_eq!(both.out.get(), tables_made);
}

#[test]
fn a_frame_that_no_entry_can_point_at_is_refused_and_given_back() {
    let registers = Registers { sctlr: sctlr::M, dacr: 1, ttbcr: 1, ..Registers::default() };
    let short = Short::new(&registers, &Processor::default()).unwrap();
    let attributes = ShortAttributes::new(RWX);
    refused(short, &attributes, 0, 1 << 32);
    refused(Upper::<Short>::new(short).unwrap(), &attributes, 1 << 31, 1 << 32);
    let sv32 = riscv::Sv32::new(Sv::stage2(Scheme::Sv32, Features::default())).unwrap();
    refused(sv32, &riscv::Attributes::new(RWX), 0, 1 << 34);
    let npt = x86::Npt32::new(Npt::legacy(true, 40)).unwrap();
    refused(npt, &x86::Attributes::new(RWX), 0, 1 << 32);
}

/// Address 0 has no bit that an upper half could tell it by: it is the lower half's all the same.
fn is_outside<F: Encode>(
    format: F,
    attributes: &F::Attributes,
    base: u64,
    inside: [u64; 2],
    outside: &[u64],
) where
    <F::Word as slat::edit::Word>::Atomic: Default,
{
    let cells: Vec<_> = (0..16 << 12).map(|_| Default::default()).collect();
    let arena = Arena::<F::Word>::new(base, &cells).unwrap();
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &arena).unwrap();
    let leaves = Leaves::new(&format, attributes).unwrap();
    // Its entries, which addresses of the other half share, are taken.
    for at in inside {
        let output = at & 0xffff_f000;
        let served = tables.fault::<_, Live>(&arena, Gva::new(at), Spa::new(output), 0, &leaves);
        assert!(served.is_ok(), "{}: {at:#x} {served:?}", format.name());
        assert_eq!(tables.translate(Gva::new(at)).unwrap().output, Spa::new(output));
    }
    for &at in outside {
        let outside = Err(Error::OutsideInput { at });
        let at = Gva::new(at);
        assert!(tables.translate(at).is_none(), "{at:?}");
        let served = tables.fault::<_, Live>(&arena, at, Spa::new(0), 0, &leaves);
        assert_eq!(served.map(|_| ()), outside);
        let removed = tables.remove::<Live>(at, Context::All, |leak| panic!("{leak}"));
        assert_eq!(removed.map(|_| ()), outside);
        let slots = Slots { ranges: &mut [], detached: &mut [], pending: &mut [], report: |_| {} };
        let cursor = tables.cursor::<_, Live>(&arena, Context::All, slots, at, 4096).map(|_| ());
        assert_eq!(cursor, outside);
    }
}

#[test]
fn an_address_of_one_half_is_not_in_the_other() {
    const LOWER: [u64; 3] = [0, 4096, (1 << 31) - 4096];
    let mut registers = Registers { sctlr: sctlr::M, dacr: 1, ttbcr: 1, ..Registers::default() };
    let short = Short::new(&registers, &Processor::default()).unwrap();
    let attributes = ShortAttributes::new(RWX);
    let upper = [1 << 31, 0xffff_f000];
    let beyond = [&LOWER[..], &[1 << 32, u64::MAX - 4095]].concat();
    is_outside(Upper::<Short>::new(short).unwrap(), &attributes, LOW, upper, &beyond);
    is_outside(short, &attributes, 0, [0, (1 << 31) - 4096], &upper);
    registers.ttbcr = ttbcr::EAE | 1 << 16;
    let long = Lpae::new(&registers, &Processor::default()).unwrap();
    let attributes = arm64::Stage1Attributes::new(RWX);
    is_outside(Upper::<Lpae>::new(long).unwrap(), &attributes, LOW, upper, &beyond);
    is_outside(Upper::<Lpae>::new(long).unwrap(), &attributes, 0, upper, &beyond);
    // With both sizes given, what lies between the halves is in neither.
    registers.ttbcr = ttbcr::EAE | 1 << 16 | 1;
    let long = Lpae::new(&registers, &Processor::default()).unwrap();
    is_outside(long, &attributes, 0, [0, (1 << 31) - 4096], &[1 << 31, 0xc000_0000, 0xffff_f000]);

    let processor = slat::format::arm64::Processor { physical_bits: 40, ..Default::default() };
    let lower = arm64_stage1(&processor);
    let upper = Format::half(&lower, u64::MAX);
    let attributes = arm64::Stage1Attributes::new(RWX);
    let (low, high) = ([0, (1 << 48) - 4096], [0xffff_0000_0000_0000, u64::MAX - 4095]);
    for base in [0, LOW] {
        is_outside(lower, &attributes, base, low, &high);
        is_outside(upper, &attributes, base, high, &low);
    }
}

fn arm64_stage1(processor: &slat::format::arm64::Processor) -> slat::format::arm64::Stage1 {
    use slat::format::arm64::{Granule, Stage1};
    Stage1::plain(Granule::Four, 48, processor).unwrap()
}

/// A view of an upper half ends as any other does: its root comes back, and what is to be invalidated
/// covers all that it translated.
#[test]
fn a_view_of_an_upper_half_can_be_removed() {
    let registers = Registers { sctlr: sctlr::M, dacr: 1, ttbcr: 1, ..Registers::default() };
    let short = Short::new(&registers, &Processor::default()).unwrap();
    let format = Upper::<Short>::new(short).unwrap();
    let cells: Vec<AtomicU32> = (0..16 << 10).map(|_| AtomicU32::new(0)).collect();
    let arena = Arena::<u32>::new(LOW, &cells).unwrap();
    let counts: Vec<AtomicU64> = (0..16).map(|_| 0.into()).collect();
    let source = Counted::new(&arena, LOW, &counts);
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &source).unwrap();
    let leaves = Leaves::new(&format, &ShortAttributes::new(RWX)).unwrap();
    let at = Gva::new(0xc000_0000);
    assert!(tables.fault::<_, Live>(&source, at, Spa::new(0x5000), 0, &leaves).is_ok());
    let mut places: [Option<View<_, Gva, Spa, _>>; 2] = [const { None }; 2];
    let mut views = Views::new(&mut places, tables, Context::All).unwrap();
    let other = views.fork(0, Context::All, &source).unwrap();
    let root = views.get(other).unwrap().tables().root().ttbr1;
    let below = (0..16).filter(|frame| source.count(LOW + frame * 4096) == 2).count();
    assert!(below > 0, "what is below the root is shared");

    let (mut ranges, mut detached) = ([Stale::default(); 4], [Detached::default(); 4]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut [],
        report: |leak| panic!("{leak}"),
    };
    let ended = views.remove(other, slots).unwrap();
    assert!(views.get(other).is_none());
    let covered =
        |at| ended.gather.ranges().iter().any(|range| (range.start..=range.last).contains(&at));
    assert!(covered(1 << 31) && covered(0xffff_ffff));
    let completed = ended.gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(ended.view.tables()).unwrap().into_source(&source).unwrap();
    assert_eq!(source.count(root), 0);
    assert!((0..16).all(|frame| source.count(LOW + frame * 4096) < 2));
    assert_eq!(views.get(0).unwrap().tables().translate(at).unwrap().output, Spa::new(0x5000));
}

/// The last page of an upper half is one of its addresses, although none comes after it.
#[test]
fn segments_end_with_the_last_page_of_an_upper_half() {
    use slat::format::x86::Controls;
    use slat::format::x86::long::{Long, Processor};
    let format = Long::four(Controls::default(), Processor::default());
    let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(LOW, &cells).unwrap();
    let counts: Vec<AtomicU64> = (0..16).map(|_| 0.into()).collect();
    let source = Counted::new(&arena, LOW, &counts);
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &source).unwrap();
    let leaves = Leaves::new(&format, &x86::Attributes::new(RWX)).unwrap();
    let last = Gva::new(u64::MAX - 0xfff);
    assert!(tables.fault::<_, Live>(&source, last, Spa::new(0x5000), 0, &leaves).is_ok());
    let mut places: [Option<View<_, Gva, Spa, _>>; 1] = [const { None }; 1];
    let views = Views::new(&mut places, tables, Context::All).unwrap();
    let segments = |start: u64, bytes: u64| {
        let mut found = Vec::new();
        let each = |segment: slat::edit::Segment<Gva>| {
            found.push((segment.start.raw(), segment.bytes));
            Ok(())
        };
        views.segments(Gva::new(start), bytes, each).map(|()| found)
    };
    assert_eq!(segments(last.raw(), 0x1000), Ok(vec![(last.raw(), 0x1000)]));
    let table = u64::MAX - 0x1f_ffff;
    let expected = [(table - 0x1000, 0x1000), (table, 0x20_0000)];
    assert_eq!(segments(table - 0x1000, 0x20_1000), Ok(expected.to_vec()));
    assert_eq!(segments(last.raw(), 0), Ok(vec![]));
    assert!(segments(last.raw(), 0x1001).is_err());
}

/// The root's frame goes back where its memory was not lent.
#[test]
fn tables_that_cannot_be_created_keep_no_frame() {
    /// Gives out frames that are nowhere.
    struct Elsewhere(Cell<i32>);
    impl FrameSource for Elsewhere {
        fn take(&self, bytes: u64) -> Option<Frame> {
            self.0.set(self.0.get() + 1);
            Some(Frame::new(1 << 30, bytes))
        }
        fn put(&self, _: Frame) {
            self.0.set(self.0.get() - 1);
        }
    }
    let cells: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(LOW, &cells).unwrap();
    let source = Elsewhere(Cell::new(0));
    let format = Npt::four(true, slat::format::x86::long::Processor::default());
    let created = Tables::<_, Gva, Spa, _>::create(format, &arena, &source);
    assert!(matches!(created, Err(Error::NotLent { .. })));
    assert_eq!(source.0.get(), 0);
}

/// A source that gives first what came back last gives another when it is asked again.
#[test]
fn a_refused_frame_does_not_hide_those_behind_it() {
    let registers = Registers { sctlr: sctlr::M, dacr: 1, ..Registers::default() };
    let format = Short::new(&registers, &Processor::default()).unwrap();
    let cells: Vec<AtomicU32> = (0..32 << 10).map(|_| AtomicU32::new(0)).collect();
    let arena = Arena::<u32>::new(LOW, &cells).unwrap();
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &arena).unwrap();
    let leaves = Leaves::new(&format, &ShortAttributes::new(RWX)).unwrap();
    let bytes = 1024;
    let places = [const { AtomicU64::new(0) }; 8];
    let donated = Donated::new(bytes, &places);
    donated.donate(Frame::new(1 << 32, bytes)).unwrap();
    let fault = |tables: &mut Tables<_, _, _, _>| {
        tables.fault::<_, Live>(&donated, Gva::new(0x5000), Spa::new(0), 0, &leaves).map(|_| ())
    };
    assert_eq!(fault(&mut tables), Err(Error::OutOfReach { frame: 1 << 32 }));
    assert_eq!(donated.len(), 1, "it went back");
    donated.donate(Frame::new(LOW + 0x8000, bytes)).unwrap();
    assert_eq!(fault(&mut tables), Ok(()));
    assert_eq!(donated.len(), 1);
}
