//! Adopted tables: entries that say what none made here says.

use std::sync::atomic::{AtomicU64, Ordering};

use slat::edit::{
    Arena, Detached, Encode, Gather, Leaves, Live, Pending, Slots, Stale, Step, TableMemory,
    Tables, arm64, ept, x86,
};
use slat::format::Decoded;
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage1, bits as arm};
use slat::format::ept::{Ept, Features, bits as ept_bits};
use slat::format::x86::bits as x86_bits;
use slat::format::x86::{Controls, long::Long, long::Processor};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Gva, Permissions, Spa};

const BLOCK: u64 = 2 << 20;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };

/// Pages that are alike under a table entry of level 1 in which some bits are flipped: whether they are
/// made one page of level 1.
fn collapses<F: Encode<Word = u64>>(format: F, leaves: &Leaves, flipped: u64) -> bool {
    let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &arena).unwrap();
    let mut storage = ([Stale::default(); 4], [Detached::default(); 4], [Pending::default(); 4]);
    let slots = Slots {
        ranges: &mut storage.0,
        detached: &mut storage.1,
        pending: &mut storage.2,
        report: |leak| panic!("{leak}"),
    };
    let mut cursor =
        tables.cursor::<_, Live>(&arena, Context::All, slots, Gva::new(0), BLOCK).unwrap();
    let small = leaves.up_to(0);
    let mut map = cursor.map(Gva::new(0), Spa::new(BLOCK), BLOCK, &small).unwrap();
    assert!(matches!(cursor.step(&mut map, 99), Ok(Step::Done)));
    // The root is the first frame; each entry leads to the next table.
    let mut table = 0x10_0000;
    for level in (2..=format.top()).rev() {
        let entry = arena.table(table, 512).unwrap()[0].load(Ordering::Relaxed);
        let Decoded::Table { next } = format.decode(entry, level) else { panic!("level {level}") };
        table = next;
    }
    let cell = &arena.table(table, 512).unwrap()[0];
    let before = cell.fetch_xor(flipped, Ordering::Relaxed) ^ flipped;
    let mut collapse = cursor.collapse(Gva::new(0), BLOCK, 1).unwrap();
    loop {
        match cursor.step(&mut collapse, 99).unwrap() {
            Step::Done => break,
            Step::Yield => {}
            Step::Invalidate(gather) => {
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                let reclaim = completed.reclaim(cursor.tables()).unwrap();
                cursor.resume(reclaim.into_source(&arena).unwrap()).unwrap();
            }
        }
    }
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(&tables).unwrap().into_source(&arena).unwrap();
    let changed = cell.load(Ordering::Relaxed) != before;
    assert_eq!(collapse.verb().collapsed(), u64::from(changed));
    changed
}

/// What a table entry restricts holds of everything below it; a larger page in its place would not say
/// it. An accessed bit that hardware set says nothing.
#[test]
fn a_table_entry_that_restricts_is_not_collapsed_away() {
    let controls = Controls { nxe: true, ..Controls::default() };
    let format = Long::four(controls, Processor::default());
    let leaves = Leaves::new(&format, &x86::Attributes::new(RWX)).unwrap();
    assert!(collapses(format, &leaves, 0));
    assert!(collapses(format, &leaves, x86_bits::A));
    for bit in [x86_bits::RW, x86_bits::US, x86_bits::XD] {
        assert!(!collapses(format, &leaves, bit), "x86, {bit:#x}");
    }

    let format = Ept::four(Features { accessed_dirty: true, ..Features::default() });
    let leaves = Leaves::new(&format, &ept::Attributes::new(RWX, Type::Wb)).unwrap();
    assert!(collapses(format, &leaves, 0));
    assert!(collapses(format, &leaves, ept_bits::A));
    for bit in [ept_bits::W, ept_bits::X] {
        assert!(!collapses(format, &leaves, bit), "EPT, {bit:#x}");
    }

    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    let format = Stage1::plain(Granule::Four, 39, &processor).unwrap();
    let leaves = Leaves::new(&format, &arm64::Stage1Attributes::new(RWX)).unwrap();
    assert!(collapses(format, &leaves, 0));
    for bit in [arm::PXN_TABLE, arm::UXN_TABLE, arm::AP_TABLE_NO_USER, arm::AP_TABLE_READ_ONLY] {
        assert!(!collapses(format, &leaves, bit), "Arm, {bit:#x}");
    }
}
