//! Contiguous (Arm) and NAPOT (RISC-V) groups count as one block.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use slat::edit::{
    Arena, Cursor, Detached, Encode, Error, Gather, Leaves, Live, Operation, Pending, Slots, Stale,
    Step, TableMemory, Tables, Verb, Watch, Word, arm64, riscv,
};
use slat::format::arm64::{Granule, Processor, Stage1, Stage2};
use slat::format::riscv::{Features, Scheme, Sv};
use slat::format::{Decoded, Format};
use slat::invalidate::{By, Context};
use slat::{Gpa, Permissions, Spa};

const RWX: Permissions = Permissions { read: true, write: true, execute: true };
const RO: Permissions = Permissions { read: true, write: false, execute: false };

/// Table memory for the whole process.
fn arena(frames: usize) -> &'static Arena<'static, u64> {
    let cells: Vec<AtomicU64> = (0..frames * 512).map(|_| AtomicU64::new(0)).collect();
    Box::leak(Box::new(Arena::new(0x10_0000, cells.leak()).unwrap()))
}

fn processor(bbm_level: u8) -> Processor {
    Processor { physical_bits: 40, bbm_level, ..Processor::default() }
}

/// Stage 2 with hardware dirty state.
fn arm(granule: Granule, bbm_level: u8) -> (Stage2, arm64::Stage2Attributes) {
    let processor = processor(bbm_level);
    let vtcr = Stage2::control(granule, 40, &processor) | 3 << 21;
    let format = Stage2::new(vtcr, slat::regime::arm::hcr::VM, 0, &processor).unwrap();
    let mut attributes = arm64::Stage2Attributes::new(RWX, arm64::Memory::WRITE_BACK);
    attributes.tracked = true;
    (format, attributes)
}

fn napot() -> (Sv, riscv::Attributes) {
    let features = Features { hardware_ad: true, ..Features::default() };
    let attributes = riscv::Attributes { dirty: false, ..riscv::Attributes::new(RWX) };
    (Sv::stage2(Scheme::Sv39, features), attributes)
}

type Lent = &'static Arena<'static, u64>;
type TablesOf<F> = Tables<F, Gpa, Spa, Lent>;
type CursorOf<'t, 'g, F> = Cursor<'t, 'g, F, Gpa, Spa, Lent, Lent, Live>;

/// Runs one operation to its end and returns how many entries were broken for it.
fn run<F: Encode<Word = u64>, V: Verb<F>>(
    tables: &mut TablesOf<F>,
    source: &Lent,
    make: impl FnOnce(&CursorOf<'_, '_, F>) -> Operation<V>,
) -> Result<usize, Error> {
    // Reclaiming looks at tables that the cursor has borrowed: by another name for them.
    let format = *tables.format();
    let others: TablesOf<F> = Tables::adopt(format, root(&format), *source)?;
    let mut ranges = [Stale::default(); 4];
    let mut detached = [Detached::default(); 4];
    // One is enough for every operation to proceed.
    let mut pending = [Pending::default(); 1];
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut pending,
        report: |leak| panic!("{leak}"),
    };
    let context = Context::Stage2 { vmid: 1 };
    let mut cursor = tables.cursor::<_, Live>(source, context, slots, Gpa::new(0), 1 << 32)?;
    let mut operation = make(&cursor);
    let mut broken = 0;
    let outcome = loop {
        match cursor.step(&mut operation, 1) {
            Ok(Step::Done) => break Ok(()),
            Ok(Step::Yield) => {}
            Ok(Step::Invalidate(gather)) => {
                broken += gather.broken();
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                let reclaim = completed.reclaim(&others).unwrap();
                cursor.resume(reclaim.into_source(source)?)?;
            }
            Err(error) => break Err(error),
        }
    };
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(tables).unwrap().into_source(source)?;
    outcome.map(|()| broken)
}

/// Where the root is: the arena hands out its frames in order, aligned.
fn root<F: Encode>(format: &F) -> u64 {
    let bits = format.input_bits() - format.shift(format.top());
    0x10_0000u64.next_multiple_of(8 << bits)
}

/// The cell that maps `at`.
fn cell<F: Encode<Word = u64>>(format: &F, arena: Lent, root: u64, at: u64) -> &'static AtomicU64 {
    let (mut table, mut level) = (root, format.top());
    loop {
        let bits = if level == format.top() {
            format.input_bits() - format.shift(level)
        } else {
            format.index_bits(level)
        };
        let cells = arena.table(table, 1 << bits).unwrap();
        let cell = &cells[(at >> format.shift(level)) as usize & (cells.len() - 1)];
        match format.decode(cell.load(Ordering::Relaxed), level) {
            Decoded::Table { next } if level > 0 => (table, level) = (next, level - 1),
            _ => return cell,
        }
    }
}

/// Everything that must hold for one format; `breaks` says whether unfolding breaks the group.
fn counts_as_one<F: Encode<Word = u64>>(format: F, attributes: F::Attributes, breaks: bool) {
    let name = format.name();
    let page = 1u64 << format.shift(0);
    let group = 1u64 << format.group_shift(0).unwrap();
    let source = arena(256);
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, source, &source).unwrap();
    let root = root(&format);
    let leaves = Leaves::new(&format, &attributes).unwrap().up_to(0).grouped();
    let output = 0x4000_0000;

    // Mapped by groups where whole ones fit, by pages before and after them.
    let (start, bytes) = (group - page, 3 * group + 2 * page);
    let map = |tables: &mut TablesOf<F>, at: u64, bytes: u64| {
        run(tables, &source, |c| {
            c.map(Gpa::new(at), Spa::new(output + at), bytes, &leaves).unwrap()
        })
    };
    assert_eq!(map(&mut tables, start, bytes), Ok(0));
    let size = |tables: &TablesOf<F>, at: u64| tables.translate(Gpa::new(at)).unwrap().bytes;
    assert_eq!(size(&tables, start), page, "{name}");
    assert_eq!(size(&tables, group), group, "{name}");
    assert_eq!(size(&tables, 4 * group - 1), group, "{name}");
    assert_eq!(size(&tables, 4 * group), page, "{name}");
    for at in [start, group, group + 5 * page + 8, 4 * group - 1, 4 * group] {
        assert_eq!(tables.translate(Gpa::new(at)).unwrap().output, Spa::new(output + at));
    }
    let listed: Vec<(u64, u64, u64)> = tables
        .mappings(Gpa::new(0), 16 * group)
        .unwrap()
        .map(|found| (found.start.raw(), found.bytes, found.output.raw()))
        .collect();
    let expected = [(start, page), (group, group), (2 * group, group), (3 * group, group)];
    let expected = expected.into_iter().chain([(4 * group, page)]);
    let expected: Vec<_> = expected.map(|(at, bytes)| (at, bytes, output + at)).collect();
    assert_eq!(listed, expected, "{name}");

    // Hardware says in one entry that the group was written to.
    let soil = |at: u64| {
        let cell = cell(&format, source, root, at);
        u64::fetch_or(cell, format.soil().set);
        u64::fetch_and(cell, !format.soil().clear);
    };
    let dirty = |tables: &TablesOf<F>, at: u64| {
        format.is_dirty(tables.translate(Gpa::new(at)).unwrap().entry)
    };
    assert!(!dirty(&tables, 2 * group), "{name}");
    soil(2 * group + 3 * page);
    for at in [2 * group, 2 * group + 3 * page, 3 * group - 1] {
        assert!(dirty(&tables, at), "{name}: the group is dirty");
    }
    assert!(!dirty(&tables, group) && !dirty(&tables, 3 * group));

    // Clearing covers all of it, and the witness sees all of it.
    let seen = Cell::new(0);
    let count = Watch(|_: u64, _: u8, entry: u64| {
        assert!(format.is_dirty(entry));
        seen.set(seen.get() + 1);
    });
    let cleaned = run(&mut tables, &source, |c| c.clean(Gpa::new(0), 8 * group, count).unwrap());
    assert_eq!(cleaned, Ok(0), "{name}: cleaned in place");
    assert_eq!(seen.get(), group / page, "{name}");
    for index in 0..group / page {
        let entry = cell(&format, source, root, 2 * group + index * page).load(Ordering::Relaxed);
        assert!(!format.is_dirty(entry), "{name}: entry {index}");
    }
    assert_eq!(size(&tables, 2 * group), group, "{name}: still a group");

    // Permissions of a whole group change in place, those of a part unfold it first.
    let protect = |tables: &mut TablesOf<F>, at: u64, bytes: u64| {
        run(tables, &source, |c| c.protect(Gpa::new(at), bytes, RO, ()).unwrap())
    };
    assert_eq!(protect(&mut tables, group, group), Ok(0));
    assert_eq!(size(&tables, group), group);
    assert_eq!(protect(&mut tables, group + page, page), Ok(0), "{name}: it has them already");
    assert_eq!(size(&tables, group), group);
    soil(2 * group);
    assert_eq!(protect(&mut tables, 2 * group + page, page), Ok(usize::from(breaks)), "{name}");
    for index in 0..group / page {
        let at = 2 * group + index * page;
        assert_eq!(size(&tables, at), page, "{name}: unfolded as a whole");
        let found = tables.translate(Gpa::new(at)).unwrap();
        assert_eq!(found.output, Spa::new(output + at));
        let write = format.permissions_of(found.entry, 0).write;
        assert_eq!(write, index != 1, "{name}: entry {index}");
        assert!(dirty(&tables, at) || index == 1, "{name}: each has the state of the whole");
    }

    // One page of a group goes; the others stay.
    let unmap = |tables: &mut TablesOf<F>, at: u64, bytes: u64| {
        run(tables, &source, |c| c.unmap(Gpa::new(at), bytes, ()).unwrap())
    };
    assert_eq!(unmap(&mut tables, 4 * group - page, 2 * page), Ok(usize::from(breaks)), "{name}");
    for at in (start..4 * group + page).step_by(page as usize) {
        let found = tables.translate(Gpa::new(at)).map(|found| found.output);
        let expected = (at < 4 * group - page).then(|| Spa::new(output + at));
        assert_eq!(found, expected, "{name}: {at:#x}");
    }
    // A whole one goes at once, in one step.
    assert_eq!(unmap(&mut tables, group, group), Ok(0));
    assert!(tables.translate(Gpa::new(2 * group - 1)).is_none());
    assert_eq!(map(&mut tables, group, group), Ok(0));

    // Splitting to pages unfolds, so that nothing larger is writable while writes are logged.
    let split = run(&mut tables, &source, |c| c.split(Gpa::new(0), 8 * group, 0).unwrap());
    assert_eq!(split, Ok(usize::from(breaks)), "{name}");
    for found in tables.mappings(Gpa::new(0), 8 * group).unwrap() {
        assert_eq!(found.bytes, page, "{name}");
    }

    // Moving a page of a group.
    assert_eq!(unmap(&mut tables, 0, 8 * group), Ok(0));
    assert_eq!(map(&mut tables, 0, 2 * group), Ok(0));
    let moved = run(&mut tables, &source, |c| {
        c.remap(Gpa::new(page), Spa::new(output + 64 * group), page, ()).unwrap()
    });
    assert!(moved.is_ok());
    assert_eq!(tables.translate(Gpa::new(page)).unwrap().output, Spa::new(output + 64 * group));
    assert_eq!(tables.translate(Gpa::new(0)).unwrap().output, Spa::new(output));
    assert_eq!(tables.translate(Gpa::new(2 * page)).unwrap().output, Spa::new(output + 2 * page));

    // A group of which one entry says something else is never unfolded, but may go.
    let odd = cell(&format, source, root, group + 2 * page);
    let entry = odd.load(Ordering::Relaxed);
    odd.store(format.permit(RO, 0).unwrap().apply(entry), Ordering::Relaxed);
    let torn = unmap(&mut tables, group, page).unwrap_err();
    assert!(matches!(torn, Error::Grouped { at, .. } if at == group), "{name}: {torn}");
    assert_eq!(unmap(&mut tables, group, group), Ok(0));

    // Groups collapse like pages.
    let block = 1u64 << format.shift(1);
    assert_eq!(unmap(&mut tables, 0, block), Ok(0));
    assert_eq!(map(&mut tables, 0, block), Ok(0));
    let collapsed = run(&mut tables, &source, |c| c.collapse(Gpa::new(0), block, 1).unwrap());
    assert!(collapsed.is_ok());
    assert_eq!(size(&tables, 0), block, "{name}");
}

#[test]
fn groups_count_as_one_block() {
    let (format, attributes) = napot();
    counts_as_one(format, attributes, false);
    for granule in [Granule::Four, Granule::Sixteen, Granule::SixtyFour] {
        let (format, attributes) = arm(granule, 0);
        counts_as_one(format, attributes, true);
    }
    let plain = Stage1::plain(Granule::Four, 39, &processor(0)).unwrap();
    assert_eq!(plain.group_shift(0), Some(16));
}

/// At FEAT_BBM level 2 sizes change directly; a change of address or type is still broken.
#[test]
fn sizes_change_live_at_bbm_level_two() {
    let (format, attributes) = arm(Granule::Four, 2);
    counts_as_one(format, attributes, false);
    let leaf = format.leaf(&attributes, 1).unwrap();
    assert!(!format.breaks(leaf, format.table(0x1000, 1), 1), "block to table");
    assert!(format.breaks(format.table(0x1000, 1), format.table(0x2000, 1), 1), "another table");
    assert!(format.breaks(leaf, leaf | format.place(2 << 20, 1), 1), "another address");
    let device = format.retype(arm64::Memory::DEVICE, 1).unwrap();
    assert!(format.breaks(leaf, device.apply(leaf), 1), "another type");
    let (format, _) = arm(Granule::Four, 1);
    assert!(format.breaks(leaf, format.table(0x1000, 1), 1), "level 1 breaks");
}

/// Groups of blocks are unfolded by whatever part of them a range touches, be it one page.
#[test]
fn a_split_reaches_groups_of_blocks_that_it_begins_or_ends_in() {
    for bbm_level in [0, 2] {
        let (format, attributes) = arm(Granule::Four, bbm_level);
        let block = 1u64 << format.shift(1);
        let group = 1u64 << format.group_shift(1).unwrap();
        let leaves = Leaves::new(&format, &attributes).unwrap().up_to(1).grouped();
        for (start, bytes, first, last) in [
            (0x1000, 0x1000, 0, 0),
            (group - block + 0x1000, block, 0, 1),
            (group + 0x1000, 2 * group, 1, 3),
            (2 * group - 0x1000, 0x2000, 1, 2),
            (group, group, 1, 1),
        ] {
            let source = arena(16);
            let mut tables = Tables::<_, Gpa, Spa, _>::create(format, source, &source).unwrap();
            let all = 4 * group;
            run(&mut tables, &source, |c| c.map(Gpa::new(0), Spa::new(0), all, &leaves).unwrap())
                .unwrap();
            let split = run(&mut tables, &source, |c| c.split(Gpa::new(start), bytes, 1).unwrap());
            let breaks = if bbm_level == 0 { last - first + 1 } else { 0 };
            assert_eq!(split, Ok(breaks as usize), "{start:#x}");
            for mapping in tables.mappings(Gpa::new(0), all).unwrap() {
                let within = (first..=last).contains(&(mapping.start.raw() / group));
                let expected = if within { block } else { group };
                assert_eq!(mapping.bytes, expected, "{start:#x}: at {:?}", mapping.start);
                assert_eq!(mapping.output.raw(), mapping.start.raw());
            }
        }
    }
}

/// The memory type of a whole group changes by one break of all its entries, and it is a group again.
#[test]
fn a_group_is_broken_and_made_as_one() {
    let (format, attributes) = arm(Granule::Four, 0);
    let source = arena(16);
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, source, &source).unwrap();
    let leaves = Leaves::new(&format, &attributes).unwrap().up_to(0).grouped();
    let all = 4 << 16;
    let map = |c: &CursorOf<'_, '_, Stage2>| c.map(Gpa::new(0), Spa::new(0), all, &leaves).unwrap();
    assert_eq!(run(&mut tables, &source, map), Ok(0));
    let broken = run(&mut tables, &source, |c| {
        c.retype(Gpa::new(0), all, arm64::Memory::DEVICE, ()).unwrap()
    });
    assert_eq!(broken, Ok(4), "a slot each");
    let found: Vec<_> = tables.mappings(Gpa::new(0), all).unwrap().collect();
    assert_eq!(found.len(), 4);
    for mapping in found {
        assert_eq!(mapping.bytes, 1 << 16);
        assert_eq!(format.attributes(mapping.entry, 0).memory, arm64::Memory::DEVICE);
        assert_eq!(mapping.output.raw(), mapping.start.raw());
    }
}

/// Whoever wrote a table into a group tore it; unmapping all of it takes the table out with the rest.
#[test]
fn a_table_in_a_torn_group_comes_out() {
    let (format, attributes) = arm(Granule::Four, 0);
    let source = arena(16);
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, source, &source).unwrap();
    let leaves = Leaves::new(&format, &attributes).unwrap().grouped();
    let bytes = 1u64 << format.group_shift(1).unwrap();
    run(&mut tables, &source, |c| c.map(Gpa::new(0), Spa::new(0), bytes, &leaves).unwrap())
        .unwrap();
    let at = 5 << format.shift(1);
    let torn = cell(&format, source, root(&format), at);
    assert!(format.group(torn.load(Ordering::Relaxed), 1).is_some());
    let table = slat::edit::FrameSource::take(source, 4096).unwrap().address();
    source.table(table, 512).unwrap().iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
    torn.store(format.table(table, 1), Ordering::Relaxed);
    run(&mut tables, &source, |c| c.unmap(Gpa::new(0), bytes, ()).unwrap()).unwrap();
    assert!(tables.mappings(Gpa::new(0), bytes).unwrap().next().is_none());
    let mut free = std::iter::from_fn(|| slat::edit::FrameSource::take(source, 4096));
    assert!(free.any(|frame| frame.address() == table), "the table was lost");
}
