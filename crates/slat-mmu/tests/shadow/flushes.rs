//! What has to leave the processors before tables are used otherwise.

use slat_mmu::shadow::{Discipline, Flush, GuestTables};

use super::world::{A, Act, D, P, RW, US, World, frame};
use super::{USER_READ, USER_WRITE, WRITE, mapped_tables, one_path};

/// A vCPU that runs on a root goes on walking from it until it is told to load another: the table is no
/// other's until then.
#[test]
fn a_root_is_used_again_after_the_flush_alone() {
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P | US);
    let World { pager, tables, .. } = &mut world;
    let [first, second, third] = [0, 1 << 32, 2 << 32].map(|at| frame(3, 0) + at);
    let root = pager.root(tables, first);
    assert_eq!(pager.take_flush(), None);
    pager.release(tables, first);
    assert_eq!(pager.live_tables(), 0);
    assert_ne!(pager.root(tables, second), root, "a processor may be walking from it");
    assert_eq!(pager.live_tables(), 1);
    assert_eq!(pager.take_flush(), Some(Flush::Roots));
    assert_eq!(pager.root(tables, third), root);
    assert_eq!(pager.take_flush(), None);
}

/// Tables below a root go without it; a root goes with stores to it as well.
#[test]
fn roots_are_loaded_again_where_one_was_dropped() {
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P | US);
    assert!(world.shadowed(0, 0, USER_READ).is_some());
    for (level, flush) in [(0, Flush::Tlb), (1, Flush::Tlb), (3, Flush::Roots)] {
        world.pager.release(&mut world.tables, frame(level, 0));
        assert_eq!(world.pager.take_flush(), Some(flush), "level {level}");
    }
    // The write-flooding rule: three stores to entries that nobody uses.
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P | US);
    let before = world.shadowed(0, 0, USER_READ);
    for _ in 0..3 {
        world.store(frame(3, 0) + 8 * 300, 0);
    }
    assert_eq!(world.pager.counts().flooded, 1);
    assert_eq!(world.shadowed(0, 0, USER_READ), before);
}

/// A link alone may be in a processor's cache of its level.
#[test]
fn a_link_that_goes_is_flushed() {
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P | US);
    assert!(world.shadowed(0, 0, USER_READ).is_some());
    let before = world.pager.counts();
    // Told anew, with another table in it.
    world.guest.entries.insert(frame(1, 0), frame(0, 1) | P | RW | US);
    world.pager.renew(frame(1, 0));
    world.pager.load_cr3(&mut world.tables, &world.guest, &[frame(3, 0)]);
    assert_eq!(world.pager.counts().leaves_dropped, before.leaves_dropped);
    assert_eq!(world.pager.take_flush(), Some(Flush::Tlb));
}

/// Where a renewed table's link takes a right away, or gives the page to users, the shadow's goes.
#[test]
fn links_of_renewed_tables_have_the_rights_that_are_told() {
    const XD: u64 = 1 << 63;
    const EXECUTE: usize = 2;
    let link = frame(0, 0) | P | A;
    let leaf = 1 << 30 | P | RW | US | A | D;
    for (first, then, number) in [
        (link | RW | US, link | RW | US | XD, EXECUTE + 3),
        (link | RW | US, link | US, USER_WRITE),
        // SMAP keeps supervisors from what is the users' now.
        (link | RW, link | RW | US, WRITE),
    ] {
        let mut world = one_path(Discipline::TrapAll, leaf);
        world.setting.controls.smap = true;
        world.guest.entries.insert(frame(1, 0), first);
        assert!(world.shadowed(0, 0, number).is_some());
        world.guest.entries.insert(frame(1, 0), then);
        world.pager.renew(frame(1, 0));
        world.run(0, Act::Cr3(0));
        assert_eq!(world.shadowed(0, 0, number), None, "{first:#x} {then:#x}");
    }
}

/// A large leaf and a link may have the same address.
#[test]
fn a_renewed_large_page_is_no_table() {
    let mut world = one_path(Discipline::TrapAll, 3 << 30 | P | US | A);
    world.guest = world.guest.clone().backed(21);
    let table = 1 << 30;
    world.guest.entries.insert(frame(1, 0), table | P | US | A | 1 << 7);
    assert_eq!(world.shadowed(0, 0, USER_READ), Some(world.guest.lies(table)));
    world.guest.entries.insert(frame(1, 0), table | P | US | A);
    world.guest.entries.insert(table, 3 << 30 | P | US | A);
    world.pager.renew(frame(1, 0));
    world.run(0, Act::Cr3(0));
    assert_eq!(world.shadowed(0, 0, USER_READ), Some(world.guest.lies(3 << 30)));
}

/// All tables go where entries get another meaning, and everything is found anew.
#[test]
fn all_tables_go_at_once() {
    let mut world = mapped_tables(Discipline::OutOfSync, true);
    let before = world.shadowed(0, 0, USER_READ);
    world.pager.clear(&mut world.tables);
    world.flush_if_due();
    assert_eq!((world.pager.live_tables(), world.pager.leaves()), (0, [0; 3]));
    assert_eq!(world.shadowed(0, 0, USER_READ), before);
    // The processor had been told to load its root.
    assert!(world.pager.live_tables() >= 4);
}

/// What is filled ahead is no exit.
#[test]
fn nobody_faults_for_what_is_filled_ahead() {
    let mut world = one_path(Discipline::OutOfSync, 1 << 30 | P | US | A);
    // A supervisor may not use it (SMAP), and it stays out.
    world.setting.controls.smap = true;
    for level in 1..4 {
        let link = world.guest.entry(frame(level, 0));
        world.guest.entries.insert(frame(level, 0), link | A);
    }
    world.guest.entries.insert(frame(0, 0) + 8, 2 << 30 | P | A);
    world.fill_accessed(0);
    assert_eq!(world.pager.leaves(), [1, 0, 0]);
    assert_eq!(world.pager.counts().exits.iter().sum::<u64>(), 0);
}
