//! Sizes, widths and levels that two parties take for different ones.

use slat::audit::{Owner, Policy, Rule};
use slat::edit::{Encode, Error, Leaves, Live, Slots, Stale, Step, ept};
use slat::format::ept::{Ept, Features};
use slat::format::{Decoded, Format};
use slat::invalidate::Context;
use slat::memory_type::x86::Type;
use slat::{Gpa, Spa};

use super::world::{BLOCK, GUEST, PAGE, RWX, Records, World, ept_with, rules, stage2};

/// XSA-173: the frame number of a large page is kept in 32 bits, so that what lies above 2^44 is mapped
/// from 0 on.
#[test]
fn xsa_173_a_frame_number_of_32_bits() {
    let format = Ept::four(Features { physical_bits: 46, ..Features::default() });
    let leaves = Leaves::new(&format, &ept::Attributes::new(RWX, Type::Wb)).unwrap();
    const HIGH: u64 = (1 << 44) + BLOCK;
    for planted in [true, false] {
        let mut world = World::new(format);
        let to = if planted { u64::from((HIGH / PAGE) as u32) * PAGE } else { HIGH };
        world.map(0, to, BLOCK, &leaves);
        let findings = world.audit(Policy::default(), Records::default());
        let expected: &[_] = if planted { &[(Rule::TableMapped, 0)] } else { &[] };
        assert_eq!(rules(&findings), expected);
        let found = world.tables.translate(Gpa::new(PAGE)).unwrap().output.raw();
        assert_eq!(found == HIGH + PAGE, !planted);
    }
}

/// XSA-301: an address beyond what the tables translate loses its top bits on the way in, and is refused
/// on the way out: its frame is freed and stays where the rest of the address led.
#[test]
fn xsa_301_an_address_that_is_too_wide_aliases_another() {
    const BEYOND: u64 = 1 << 39;
    let (format, leaves) = stage2(39);
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, 4 * PAGE, &leaves);
        let (at, frame) = (BEYOND + 9 * PAGE, GUEST + 64 * PAGE);
        let given = if planted { at & (BEYOND - 1) } else { at };
        let served = world.tables.fault::<_, Live>(
            world.arena,
            Gpa::new(given),
            Spa::new(frame),
            0,
            &leaves,
        );
        assert_eq!(served.is_ok(), planted, "{served:?}");
        // The removal looks at all of the address, and finds that nothing can be there.
        let removed = world.tables.remove::<Live>(Gpa::new(at), Context::All, |_| {});
        assert!(matches!(removed.err(), Some(Error::OutsideInput { .. })));
        let records = Records { freed: [frame].into(), ..Records::default() };
        let findings = world.audit(Policy::default(), records);
        let expected: &[_] = if planted { &[(Rule::FreedFrame, 9 * PAGE)] } else { &[] };
        assert_eq!(rules(&findings), expected);
    }
}

/// XSA-389: part of the range was mapped when the pool of tables was empty. The caller takes an error for
/// nothing done, and frees the frames of all.
#[test]
fn xsa_389_an_operation_that_succeeded_in_part() {
    const PAGES: u64 = 16 * 512;
    let (format, leaves) = ept_with(RWX);
    let leaves = leaves.up_to(0);
    for planted in [true, false] {
        let mut world = World::new(format);
        let (mut ranges, mut detached) = ([Stale::default(); 4], [Default::default(); 4]);
        let report = |leak| panic!("{leak}");
        let slots =
            Slots { ranges: &mut ranges, detached: &mut detached, pending: &mut [], report };
        let mut cursor = world
            .tables
            .cursor::<_, Live>(world.arena, Context::All, slots, Gpa::new(0), GUEST)
            .unwrap();
        let mut map = cursor.map(Gpa::new(0), Spa::new(GUEST), PAGES * PAGE, &leaves).unwrap();
        let error = loop {
            match cursor.step(&mut map, 1) {
                Ok(Step::Yield) => {}
                Err(error) => break error,
                other => panic!("{other:?}"),
            }
        };
        assert!(matches!(error, Error::NoFrame { bytes: PAGE, .. }), "{error}");
        drop(cursor.finish());
        // The library says how far it came.
        let done = map.bytes_done() / PAGE;
        assert_eq!(done % 512, 0);
        assert!(done > 0 && done < PAGES);
        let kept = if planted { 0 } else { done };
        let freed = (kept..PAGES).map(|page| GUEST + page * PAGE).collect();
        let findings = world.audit(Policy::default(), Records { freed, ..Records::default() });
        let expected: Vec<_> = (kept..done).map(|page| (Rule::FreedFrame, page * PAGE)).collect();
        assert_eq!(rules(&findings), expected);
    }
}

/// XSA-445: tables of one level more than hardware is told of. What points at the lowest tables is then
/// read as pages, and a device writes to the tables.
#[test]
fn xsa_445_tables_with_a_level_too_many() {
    let features = Features { physical_bits: 40, ..Features::default() };
    let five = Ept::five(features);
    let leaves = Leaves::new(&five, &ept::Attributes::new(RWX, Type::Wb)).unwrap().up_to(0);
    let mut world = World::new(five);
    world.map(0, GUEST, 16 * PAGE, &leaves);
    let root = world.tables.root();
    // Planted: the register says four levels, whoever built the tables.
    let findings = world.audit_as(&Ept::four(features), &root, Policy::default(), owned_by_all());
    assert_eq!(rules(&findings), [(Rule::TableMapped, 0)]);
    // The library's own: register and tables have one format.
    assert_eq!(*world.tables.format(), five);
    let findings = world.audit_as(&five, &root, Policy::default(), owned_by_all());
    assert_eq!(findings, []);
}

/// XSA-390: a device that walks three levels shares a processor's tables of four, and is given their root
/// instead of the table below it.
#[test]
fn xsa_390_shared_tables_whose_top_level_is_not_stripped() {
    let (four, leaves) = stage2(48);
    let (three, _) = stage2(39);
    assert_eq!((four.top(), three.top()), (3, 2));
    for planted in [true, false] {
        let mut world = World::new(four);
        world.map(0, GUEST, 16 * PAGE, &leaves);
        let root = world.tables.root();
        let entry = world.cells[(root / 8) as usize].load(std::sync::atomic::Ordering::Relaxed);
        let Decoded::Table { next } = four.decode(entry, 3) else { panic!("{entry:#x}") };
        let given = if planted { root } else { next };
        let findings = world.audit_as(&three, &given, Policy::default(), owned_by_all());
        let expected: &[_] = if planted { &[(Rule::TableMapped, 0)] } else { &[] };
        assert_eq!(rules(&findings), expected);
    }
}

/// What the guest maps is its own, below [`GUEST`] are tables.
fn owned_by_all() -> Records {
    Records { others: [(GUEST, Owner::Guest)].into(), ..Records::default() }
}
