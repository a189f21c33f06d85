//! AArch32's short descriptors: what a section says that no page can, and a supersection that no
//! section can.

use std::sync::atomic::{AtomicU32, Ordering};

use slat::edit::{
    Arena, Cursor, Detached, Encode, Error, Gather, Live, Operation, Pending, Refused, Slots,
    Stale, Step, TableMemory, Tables, Verb, arm32::ShortAttributes,
};
use slat::format::Format;
use slat::format::arm32::{Processor, Registers, Short, sctlr};
use slat::invalidate::{By, Context};
use slat::{Access, Gva, Kind, Permissions, Privilege, Regime, SliceMemory, Spa, walk};

const SECTION: u64 = 1 << 20;
const ROOT: u64 = 0x10_0000;
const SUPERSECTION: u64 = 16 << 20;

/// A supersection maps above 4 GiB by bits that are another thing in a section (Arm ARM G5.4.1): a part
/// of it cannot be changed by itself, and it is left as it is.
#[test]
fn a_supersection_above_4_gib_is_not_divided() {
    let registers = Registers { ttbcr: 0, sctlr: sctlr::M, dacr: 1, ..Registers::default() };
    let format = Short::new(&registers, &Processor::default()).unwrap();
    let cells: Vec<AtomicU32> = (0..16 * 1024).map(|_| AtomicU32::new(0)).collect();
    let arena = Arena::<u32>::new(ROOT, &cells).unwrap();
    let mut tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &arena).unwrap();
    // Sixteen equal descriptors: PA[39:36] in bits 8:5, PA[35:32] in bits 23:20, read and write.
    let descriptor = 0x0100_0000 | 1 << 20 | 2 << 5 | 1 << 18 | 1 << 10 | 2;
    let root = arena.table(ROOT, 4096).unwrap();
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

type TablesOf<'a> = Tables<Short, Gva, Spa, &'a Arena<'a, u32>>;

/// Tables of domain 5 with or without access flags, and domains 3, 5 and 7 for clients.
fn format(flags: u32) -> Short {
    let dacr = 1 << 6 | 1 << 10 | 1 << 14;
    let registers = Registers { sctlr: sctlr::M | flags, dacr, ..Registers::default() };
    Short::new(&registers, &Processor::default()).unwrap().in_domain(5).unwrap()
}

/// Runs what `make` makes of a cursor over everything to its end.
fn run<'a, V: Verb<Short>>(
    tables: &mut TablesOf<'a>,
    arena: &Arena<'a, u32>,
    make: impl FnOnce(
        &Cursor<'_, '_, Short, Gva, Spa, &'a Arena<'a, u32>, Arena<'a, u32>, Live>,
    ) -> Operation<V>,
) -> Result<V, Error> {
    let mut storage =
        (vec![Stale::default(); 64], vec![Detached::default(); 64], vec![Pending::default(); 64]);
    let slots = Slots {
        ranges: &mut storage.0,
        detached: &mut storage.1,
        pending: &mut storage.2,
        report: |leak| panic!("{leak}"),
    };
    let mut cursor =
        tables.cursor::<_, Live>(arena, Context::All, slots, Gva::new(0), 1 << 32).unwrap();
    let mut operation = make(&cursor);
    let outcome = loop {
        match cursor.step(&mut operation, u32::MAX) {
            Ok(Step::Done) => break Ok(operation.into_verb()),
            Ok(Step::Yield) => {}
            Ok(Step::Invalidate(gather)) => {
                let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
                let reclaim = completed.reclaim(cursor.tables()).unwrap();
                cursor.resume(reclaim.into_source(arena).unwrap()).unwrap();
            }
            Err(error) => break Err(error),
        }
    };
    let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    let _ = completed.reclaim(tables).unwrap().into_source(arena).unwrap();
    outcome
}

/// Every combination of what sections and pages both say (Arm ARM G5.4.1): `AP`, `TEX`, `C`, `B`, `S`,
/// `nG` and `XN`, by number.
fn section(number: u64) -> u64 {
    let field = |low: u64, bits: u64| number >> low & ((1 << bits) - 1);
    // 11:10 AP[1:0], 14:12 TEX, 15 AP[2], 16 S, 17 nG, 3:2 C and B, 4 XN, 8:5 the domain.
    field(0, 2) << 10
        | field(2, 1) << 15
        | field(3, 3) << 12
        | field(6, 2) << 2
        | field(8, 1) << 16
        | field(9, 1) << 17
        | field(10, 1) << 4
        | 5 << 5
        | 2
}

/// The same of a small page: 5:4 AP[1:0], 8:6 TEX, 9 AP[2], 10 S, 11 nG, 3:2 C and B, 0 XN.
fn small_page(number: u64) -> u64 {
    let field = |low: u64, bits: u64| number >> low & ((1 << bits) - 1);
    field(0, 2) << 4
        | field(2, 1) << 9
        | field(3, 3) << 6
        | field(6, 2) << 2
        | field(8, 1) << 10
        | field(9, 1) << 11
        | field(10, 1)
        | 2
}

const COMBINATIONS: u64 = 1 << 11;

#[test]
fn pages_say_bit_for_bit_what_their_section_says() {
    for flags in [0, sctlr::AFE] {
        let format = format(flags);
        for number in 0..COMBINATIONS {
            let (whole, part) = (section(number) | 0xabc0_0000, small_page(number) | 0xabc0_0000);
            assert_eq!(format.demote(whole, 1), part, "{whole:#x} with {flags:#x}");
            assert_eq!(format.promote(part, 0), whole, "{part:#x} with {flags:#x}");
        }
        // PXN and NS are a table's to say, for all of its pages; bit 9 is the implementation's; the domain
        // is another one.
        for other in [1, 1 << 19, 1 << 9, 2 << 5] {
            assert_eq!(format.demote(section(7) ^ other, 1), 0, "{other:#x}");
        }
    }
}

/// What hardware permits, by every access to the sections of all combinations and to each one's last
/// page.
fn permitted(tables: &TablesOf<'_>, cells: &[AtomicU32]) -> Vec<String> {
    let mut bytes: Vec<u8> =
        cells.iter().flat_map(|cell| cell.load(Ordering::Relaxed).to_ne_bytes()).collect();
    let mut memory = SliceMemory::new(Spa::new(ROOT), &mut bytes);
    let mut seen = vec![];
    for number in 0..COMBINATIONS {
        for privilege in [Privilege::Supervisor, Privilege::User] {
            for kind in [Kind::Read, Kind::Write, Kind::Execute] {
                let at = Gva::new(number * SECTION + 0xf_f123);
                let access = Access::new(kind, privilege);
                let regime = Regime::default();
                let stage = tables.stage();
                let found = walk(&stage, &mut memory, at, &access, &regime, &());
                seen.push(match found {
                    Ok(mapped) => {
                        let kind = tables.format().memory_type(&mapped.found, &regime);
                        format!("{:?} {kind:?}", mapped.output)
                    }
                    Err(slat::Failed::Here(fault)) => format!("{:?}", fault.cause),
                    Err(slat::Failed::Below(outside)) => panic!("{outside:?}"),
                });
            }
        }
    }
    seen
}

/// Split and collapsed again, a section of every kind permits what it permitted, and is what it was.
#[test]
fn splitting_and_collapsing_a_section_changes_no_permission() {
    let frames = 16 + COMBINATIONS as usize;
    for flags in [0, sctlr::AFE] {
        let cells: Vec<AtomicU32> = (0..frames * 1024).map(|_| AtomicU32::new(0)).collect();
        let arena = Arena::<u32>::new(ROOT, &cells).unwrap();
        let mut tables = Tables::<_, Gva, Spa, _>::create(format(flags), &arena, &arena).unwrap();
        let at = (tables.root().ttbr0 - ROOT) / 4;
        let root = &cells[at as usize..][..4096];
        let sections = || (0..COMBINATIONS).map(|n| (section(n) | (n * SECTION)) as u32);
        for (cell, section) in root.iter().zip(sections()) {
            cell.store(section, Ordering::Relaxed);
        }
        let before = permitted(&tables, &cells);
        run(&mut tables, &arena, |cursor| cursor.split(Gva::new(0), 1 << 32, 0).unwrap()).unwrap();
        assert!(root[..2048].iter().all(|cell| cell.load(Ordering::Relaxed) & 3 == 1));
        let after = permitted(&tables, &cells);
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before, after, "{flags:#x}, section {:#x}", section(index as u64 / 6));
        }
        let collapse = |cursor: &Cursor<'_, '_, _, _, _, _, _, _>| {
            cursor.collapse(Gva::new(0), 1 << 32, 1).unwrap()
        };
        assert_eq!(run(&mut tables, &arena, collapse).unwrap().collapsed(), COMBINATIONS);
        for (cell, section) in root.iter().zip(sections()) {
            assert_eq!(cell.load(Ordering::Relaxed), section, "{flags:#x}");
        }
    }
}

/// A table of another domain, or one whose pages PL1 may not execute or that are not secure, says what
/// a section in its place would not.
#[test]
fn a_table_that_says_more_is_not_collapsed() {
    for other in [0, 6 << 5, 1 << 2, 1 << 3] {
        let cells: Vec<AtomicU32> = (0..16 * 1024).map(|_| AtomicU32::new(0)).collect();
        let arena = Arena::<u32>::new(ROOT, &cells).unwrap();
        let mut tables = Tables::<_, Gva, Spa, _>::create(format(0), &arena, &arena).unwrap();
        let at = (tables.root().ttbr0 - ROOT) / 4;
        let cell = &cells[at as usize];
        cell.store((section(7) | SECTION) as u32, Ordering::Relaxed);
        run(&mut tables, &arena, |cursor| cursor.split(Gva::new(0), SECTION, 0).unwrap()).unwrap();
        let entry = cell.fetch_xor(other, Ordering::Relaxed) ^ other;
        assert_eq!(entry & 3, 1);
        let collapse = |cursor: &Cursor<'_, '_, _, _, _, _, _, _>| {
            cursor.collapse(Gva::new(0), SECTION, 1).unwrap()
        };
        let collapsed = run(&mut tables, &arena, collapse).unwrap().collapsed();
        assert_eq!(collapsed, u64::from(other == 0), "{other:#x}");
        assert!(other == 0 || cell.load(Ordering::Relaxed) == entry);
    }
}

/// A section that no pages can stand for is refused by what it is, wherever it is to be divided.
#[test]
fn a_section_that_says_more_than_pages_can_is_not_divided() {
    for other in [1, 1 << 9, 1 << 19, 6 << 5] {
        let cells: Vec<AtomicU32> = (0..16 * 1024).map(|_| AtomicU32::new(0)).collect();
        let arena = Arena::<u32>::new(ROOT, &cells).unwrap();
        let mut tables = Tables::<_, Gva, Spa, _>::create(format(0), &arena, &arena).unwrap();
        let at = (tables.root().ttbr0 - ROOT) / 4;
        let entry = section(7) ^ other;
        cells[at as usize].store(entry as u32, Ordering::Relaxed);
        let refused = Some(Error::Indivisible { at: 0, entry });
        let split =
            run(&mut tables, &arena, |cursor| cursor.split(Gva::new(0), SECTION, 0).unwrap());
        assert_eq!(split.err(), refused, "{other:#x}");
        let unmap = |cursor: &Cursor<'_, '_, _, _, _, _, _, _>| {
            cursor.unmap(Gva::new(0), 4096, ()).unwrap()
        };
        assert_eq!(run(&mut tables, &arena, unmap).err(), refused, "{other:#x}");
        assert_eq!(cells[at as usize].load(Ordering::Relaxed), entry as u32);
    }
}

/// What a section permits by a walk to PL0, or to PL1 where it is not PL0's; `None` where its access
/// flag is clear.
fn walked(
    tables: &TablesOf<'_>,
    memory: &mut SliceMemory<'_, Spa>,
    number: u64,
    user: bool,
) -> Option<Permissions> {
    let privilege = if user { Privilege::User } else { Privilege::Supervisor };
    let mut may = |kind| {
        let (at, access) = (Gva::new(number * SECTION), Access::new(kind, privilege));
        match walk(&tables.stage(), memory, at, &access, &Regime::default(), &()) {
            Ok(_) => Some(true),
            Err(slat::Failed::Here(fault)) if fault.cause == slat::Cause::AccessFlag => None,
            Err(_) => Some(false),
        }
    };
    Some(Permissions {
        read: may(Kind::Read)?,
        write: may(Kind::Write)?,
        execute: may(Kind::Execute)?,
    })
}

/// Without `AFE`, `AP[0]` is a part of the permissions (Arm ARM G5.7.1): what is told of a leaf, and what
/// protecting it makes of it, is what a walk says.
#[test]
fn permissions_are_what_a_walk_permits_whatever_ap_0_is() {
    let targets = [(true, true), (true, false), (false, true), (false, false)]
        .map(|(write, execute)| Permissions { read: true, write, execute });
    for flags in [0, sctlr::AFE] {
        let cells: Vec<AtomicU32> = (0..16 * 1024).map(|_| AtomicU32::new(0)).collect();
        let arena = Arena::<u32>::new(ROOT, &cells).unwrap();
        let mut tables = Tables::<_, Gva, Spa, _>::create(format(flags), &arena, &arena).unwrap();
        let format = *tables.format();
        let at = (tables.root().ttbr0 - ROOT) / 4;
        let root = &cells[at as usize..][..4096];
        let entry = |number: u64| u64::from(root[number as usize].load(Ordering::Relaxed));
        let judge = |tables: &TablesOf<'_>, target: Option<Permissions>| {
            let mut bytes: Vec<u8> =
                cells.iter().flat_map(|cell| cell.load(Ordering::Relaxed).to_ne_bytes()).collect();
            let mut memory = SliceMemory::new(Spa::new(ROOT), &mut bytes);
            for number in 0..COMBINATIONS {
                let entry = entry(number);
                let attributes = format.attributes(entry, 1);
                assert_eq!(attributes.permissions, format.permissions_of(entry, 1));
                let Some(walked) = walked(tables, &mut memory, number, attributes.user) else {
                    continue;
                };
                assert_eq!(attributes.permissions, walked, "{entry:#x} with {flags:#x}");
                assert_eq!(target.unwrap_or(walked), walked, "{entry:#x} with {flags:#x}");
                // What it says can be said anew, where it says anything.
                if walked.read && entry >> 10 & 0x23 != 0x22 {
                    let made = format.leaf(&attributes, 1).unwrap();
                    assert_eq!(made, entry & 0xf_ffff, "{entry:#x} with {flags:#x}");
                }
            }
        };
        for (number, cell) in (0..COMBINATIONS).zip(root) {
            cell.store((section(number) | (number * SECTION)) as u32, Ordering::Relaxed);
        }
        judge(&tables, None);
        for target in targets {
            for (number, cell) in (0..COMBINATIONS).zip(root) {
                cell.store((section(number) | (number * SECTION)) as u32, Ordering::Relaxed);
            }
            let (start, bytes) = (Gva::new(0), COMBINATIONS * SECTION);
            run(&mut tables, &arena, |cursor| cursor.protect(start, bytes, target, ()).unwrap())
                .unwrap();
            judge(&tables, Some(target));
        }
    }
    // PL0 may read and PL1 write: not with AFE, and not where PL0 may write.
    let read = Permissions { read: true, write: false, execute: true };
    let attributes = ShortAttributes { privileged_write: true, ..ShortAttributes::new(read) };
    assert_eq!(format(0).leaf(&attributes, 1).unwrap() >> 10 & 0x23, 2);
    assert_eq!(format(sctlr::AFE).leaf(&attributes, 1), Err(Refused::Permissions(read)));
    let both = ShortAttributes { user: false, ..attributes };
    assert_eq!(format(0).leaf(&both, 1), Err(Refused::Permissions(read)));
}

/// A group of which only some entries are there is none: each of these is a page by itself, at its own
/// place in what it names (Arm ARM G5.4.1: bits 31:16 of a large page's address come from the
/// descriptor, those below from the input; likewise 31:24 of a supersection).
#[test]
fn an_entry_of_a_torn_group_maps_what_a_walk_finds() {
    let registers = Registers { ttbcr: 0, sctlr: sctlr::M, dacr: 1, ..Registers::default() };
    let format = Short::new(&registers, &Processor::default()).unwrap();
    let cells: Vec<AtomicU32> = (0..16 * 1024).map(|_| AtomicU32::new(0)).collect();
    let arena = Arena::<u32>::new(ROOT, &cells).unwrap();
    let tables = Tables::<_, Gva, Spa, _>::create(format, &arena, &arena).unwrap();
    let root = arena.table(ROOT, 4096).unwrap();
    let below = arena.table(ROOT + 0x4000, 256).unwrap();
    root[0].store((ROOT + 0x4000) as u32 | 1, Ordering::Relaxed);
    below[20].store(0x4000_0000 | 3 << 4 | 1, Ordering::Relaxed);
    // Supersections below and above 4 GiB.
    root[37].store(0x0600_0000 | 1 << 18 | 3 << 10 | 2, Ordering::Relaxed);
    root[54].store(0x0700_0000 | 3 << 20 | 2 << 5 | 1 << 18 | 3 << 10 | 2, Ordering::Relaxed);

    let mut words: Vec<u8> =
        cells.iter().flat_map(|cell| cell.load(Ordering::Relaxed).to_le_bytes()).collect();
    let mut memory = SliceMemory::new(Spa::new(ROOT), &mut words);
    let access = Access::new(Kind::Read, Privilege::User);
    for (input, output) in [
        (0x1_4123_u64, 0x4000_4123_u64),
        (37 << 20 | 0x1_2345, 0x0600_0000 + (5 << 20 | 0x1_2345)),
        (54 << 20 | 0x1_2345, 0x23_0700_0000 + (6 << 20 | 0x1_2345)),
    ] {
        let found = tables.translate(Gva::new(input)).unwrap();
        let walked =
            walk(&tables.stage(), &mut memory, Gva::new(input), &access, &Regime::default(), &());
        assert_eq!(walked.unwrap().output, Spa::new(output), "{input:#x}");
        assert_eq!(found.output, Spa::new(output), "{input:#x}");
        let page = tables.mappings(Gva::new(input & !0xfff), 4096).unwrap().next().unwrap();
        assert_eq!(page.output.raw() + (input - page.start.raw()), output, "{input:#x}");
    }
}
