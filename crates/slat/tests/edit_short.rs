//! AArch32's short descriptors: what a supersection says that no section can.

use std::sync::atomic::{AtomicU32, Ordering};

use slat::edit::{
    Arena, Detached, Error, Gather, Live, Pending, Slots, Stale, Step, TableMemory, Tables,
};
use slat::format::arm32::{Processor, Registers, Short, sctlr};
use slat::invalidate::{By, Context};
use slat::{Gva, Spa};

const SECTION: u64 = 1 << 20;
const SUPERSECTION: u64 = 16 << 20;

/// A supersection maps above 4 GiB by bits that are another thing in a section (Arm ARM G5.4.1): a part
/// of it cannot be changed by itself, and it is left as it is.
#[test]
fn a_supersection_above_4_gib_is_not_divided() {
    let registers = Registers { ttbcr: 0, sctlr: sctlr::M, dacr: 1, ..Registers::default() };
    let format = Short::new(&registers, &Processor::default()).unwrap();
    let cells: Vec<AtomicU32> = (0..16 * 1024).map(|_| AtomicU32::new(0)).collect();
    let arena = Arena::<u32>::new(0x10_0000, &cells).unwrap();
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &arena).unwrap();
    // Sixteen equal descriptors: PA[39:36] in bits 8:5, PA[35:32] in bits 23:20, read and write.
    let descriptor = 0x0100_0000 | 1 << 20 | 2 << 5 | 1 << 18 | 1 << 10 | 2;
    let root = arena.table(0x10_0000, 4096).unwrap();
    root[..16].iter().for_each(|cell| cell.store(descriptor, Ordering::Relaxed));
    let output = 0x21_0100_0000_u64;
    let seen = |tables: &Tables<Short, Gva, Spa, _>| {
        tables.translate(Gva::new(SECTION + 5)).map(|found| found.output.raw())
    };
    assert_eq!(seen(&tables), Some(output + SECTION + 5));

    let (mut ranges, mut detached, mut pending) =
        ([Stale::default(); 4], [Detached::default(); 4], [Pending::default(); 4]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut pending,
        report: |leak| panic!("{leak}"),
    };
    let all = (Gva::new(0), 1 << 32);
    let mut cursor = tables.cursor::<_, Live>(&arena, Context::All, slots, all.0, all.1).unwrap();
    let part = (Gva::new(SECTION), SECTION);
    let mut unmap = cursor.unmap(part.0, part.1, ()).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 99), Err(Error::Grouped { .. })));
    let mut split = cursor.split(part.0, part.1, 0).unwrap();
    assert!(matches!(cursor.step(&mut split, 99), Err(Error::Grouped { .. })));
    assert!(root[..16].iter().all(|cell| cell.load(Ordering::Relaxed) == descriptor));
    // All of it goes as one.
    let mut unmap = cursor.unmap(Gva::new(0), SUPERSECTION, ()).unwrap();
    assert!(matches!(cursor.step(&mut unmap, 99), Ok(Step::Done)));
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.ready().unwrap();
    assert_eq!(seen(&tables), None);
}
