//! The shadow pager beside the two-stage walk that it stands for, under random guest activity.
//!
//! Wherever the architecture obliges the shadow to be true, it translates as the guest's tables and
//! the host's placement do, with the same rights and the same faults; elsewhere it may only be what
//! they said since the guest last invalidated.

mod flushes;
mod host;
mod world;

use proptest::prelude::*;
use slat::format::x86::Controls;
use slat_mmu::shadow::{Discipline, Exit, GuestTables};

use world::{A, Act, D, Host, INDICES, Mode, P, RW, Setting, US, World, frame};

fn act() -> impl Strategy<Value = Act> {
    let place = || (0..5u8, 0..2u8, any::<u8>());
    prop_oneof![
        6 => (place(), 0..8u8, any::<u8>(), any::<u8>()).prop_map(
            |((level, table, index), kind, rights, target)| Act::Store {
                level, table, index, kind, rights, target
            }
        ),
        1 => place().prop_map(|(level, table, index)| Act::Age { level, table, index }),
        1 => any::<u8>().prop_map(Act::Cr3),
        2 => any::<u8>().prop_map(Act::Invlpg),
        8 => (any::<u8>(), 0..3u8, any::<bool>())
            .prop_map(|(va, kind, user)| Act::Touch { va, kind, user }),
        1 => (0..5u8, 0..2u8).prop_map(|(level, table)| Act::Release { level, table }),
        2 => (any::<u8>(), prop_oneof![Just(Host::Move), Just(Host::Take), Just(Host::Protect)])
            .prop_map(|(page, what)| Act::Host { page, what }),
        1 => any::<bool>().prop_map(Act::WriteProtect),
    ]
}

fn setting(mode: Mode) -> impl Strategy<Value = Setting> {
    let backed = prop_oneof![Just(12u8), Just(21), Just(30)];
    let bits = any::<[bool; 12]>();
    let keys = [0..16u32, 0..16];
    (backed, bits, keys).prop_map(move |(backed, bits, keys)| {
        let [
            out_of_sync,
            prefetch,
            write_protect,
            smep,
            smap,
            user_keys,
            alignment_check,
            nxe,
            protects,
            supervisor_keys,
            shadow_stacks,
            few,
        ] = bits;
        let controls = Controls {
            // CR4.CET can be set with CR0.WP alone (Intel SDM 3A 2.5).
            write_protect: write_protect || shadow_stacks,
            smep,
            smap,
            nxe,
            user_keys: user_keys && mode != Mode::Pae,
            supervisor_keys: supervisor_keys && mode != Mode::Pae,
            shadow_stacks,
        };
        let discipline = if out_of_sync { Discipline::OutOfSync } else { Discipline::TrapAll };
        let prefetch = if prefetch { 8 } else { 1 };
        Setting {
            mode,
            discipline,
            backed,
            prefetch,
            controls,
            keys,
            alignment_check,
            protects,
            limit: if few { 0 } else { usize::MAX },
        }
    })
}

fn check(setting: Setting, vcpus: usize, acts: &[(bool, Act)]) {
    let mut world = World::new(setting, vcpus, true);
    for (number, &(second, act)) in acts.iter().enumerate() {
        world.run(usize::from(second) % vcpus, act);
        if number % 8 == 7 {
            world.touch_all();
        }
    }
    assert!(world.pager.live_tables() <= world.pager.most_tables());
    let counts = world.pager.counts();
    assert_eq!(
        counts.tables_made - counts.tables_dropped,
        world.pager.live_tables() as u64,
        "{counts:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn four_levels(
        setting in setting(Mode::Four),
        acts in prop::collection::vec((any::<bool>(), act()), 1..80),
    ) {
        check(setting, 1, &acts);
    }

    #[test]
    fn two_vcpus(
        setting in setting(Mode::Four),
        acts in prop::collection::vec((any::<bool>(), act()), 1..60),
    ) {
        check(setting, 2, &acts);
    }

    #[test]
    fn five_levels(
        setting in setting(Mode::Five),
        acts in prop::collection::vec((any::<bool>(), act()), 1..60),
    ) {
        check(setting, 1, &acts);
    }

    #[test]
    fn pae(
        setting in setting(Mode::Pae),
        acts in prop::collection::vec((any::<bool>(), act()), 1..80),
    ) {
        check(setting, 2, &acts);
    }
}

/// Numbers of accesses: a supervisor's and a user's load, store and fetch.
const READ: usize = 0;
const WRITE: usize = 1;
const EXECUTE: usize = 2;
const USER_READ: usize = 3;
const USER_WRITE: usize = 4;

fn one_path(discipline: Discipline, leaf: u64) -> World {
    let mut world = World::new(Setting::plain(discipline), 1, false);
    for (gpa, entry) in [
        (frame(3, 0), frame(2, 0) | P | RW | US),
        (frame(2, 0), frame(1, 0) | P | RW | US),
        (frame(1, 0), frame(0, 0) | P | RW | US),
        (frame(0, 0), leaf),
    ] {
        world.guest.entries.insert(gpa, entry);
    }
    world
}

/// One table, reached by a path that permits stores and by one that does not.
#[test]
fn a_shared_table_has_the_rights_of_each_path() {
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P | RW | US);
    world.guest.entries.insert(frame(1, 0) + 8, frame(0, 0) | P | US);
    assert!(world.shadowed(0, 0, USER_WRITE).is_some());
    assert_eq!(world.shadowed(0, 1 << 21, USER_WRITE), None);
    assert!(world.shadowed(0, 1 << 21, USER_READ).is_some());
}

/// A guest that ages its pages sees the next access again, however its table was tracked.
#[test]
fn aged_pages_are_accessed_again() {
    for discipline in [Discipline::TrapAll, Discipline::OutOfSync] {
        let mut world = one_path(discipline, 1 << 30 | P | US);
        for act in [Act::Invlpg(0), Act::Cr3(0)] {
            assert!(world.shadowed(0, 0, USER_READ).is_some());
            assert_ne!(world.guest.entry(frame(0, 0)) & A, 0);
            world.run(0, Act::Age { level: 0, table: 0, index: 0 });
            world.run(0, act);
            world.shadowed(0, 0, USER_READ);
            assert_ne!(world.guest.entry(frame(0, 0)) & A, 0, "{discipline:?} {act:?}");
        }
    }
}

/// A supervisor's page that becomes the users' is no longer the supervisor's to use (SMAP, SMEP: Intel
/// SDM 3A 5.6.1), though its entry grants more.
#[test]
fn pages_that_become_users_are_kept_from_supervisors() {
    for discipline in [Discipline::TrapAll, Discipline::OutOfSync] {
        for act in [Act::Invlpg(0), Act::Cr3(0)] {
            let leaf = 1 << 30 | P | RW | A | D;
            let mut world = one_path(discipline, leaf);
            world.setting.controls.smap = true;
            for number in [READ, WRITE, EXECUTE] {
                assert!(world.shadowed(0, 0, number).is_some());
            }
            world.store(frame(0, 0), leaf | US);
            world.run(0, act);
            for number in [READ, WRITE, EXECUTE] {
                assert_eq!(world.shadowed(0, 0, number), None, "{discipline:?} {act:?} {number}");
            }
            assert!(world.shadowed(0, 0, USER_WRITE).is_some());
        }
    }
}

/// INVLPG cannot reach a table that is not linked: one that is out of sync must be made true before
/// it is linked again (Linux 65855ed8b034).
#[test]
fn synchronized_before_it_is_linked() {
    let mut world = one_path(Discipline::OutOfSync, 1 << 30 | P | US);
    let link = frame(1, 0) | P | RW | US;
    let old = world.shadowed(0, 0, USER_READ);
    world.store(frame(0, 0), 2 << 30 | P | US);
    world.store(frame(2, 0), 0);
    world.run(0, Act::Invlpg(0));
    world.store(frame(2, 0), link);
    let new = world.shadowed(0, 0, USER_READ);
    assert_ne!(new, old);
    assert_eq!(new, Some(world.guest.lies(2 << 30)));
}

/// Each exit has its cause.
#[test]
fn exits_are_counted_by_cause() {
    let mut world = one_path(Discipline::OutOfSync, 1 << 30 | P | RW | US);
    let exits = |world: &World| world.pager.counts().exits;
    let of = |world: &World, exit| world.pager.counts().of(exit);
    assert!(world.shadowed(0, 0, USER_READ).is_some());
    assert_eq!(of(&world, Exit::HiddenFault), 1);
    assert!(world.shadowed(0, 0, USER_READ).is_some());
    assert_eq!(exits(&world).iter().sum::<u64>(), 1, "a hit is no exit");
    assert!(world.shadowed(0, 0, USER_WRITE).is_some());
    assert_eq!(of(&world, Exit::Dirty), 1);
    assert_eq!(world.shadowed(0, 8 << 12, USER_READ), None);
    assert_eq!(of(&world, Exit::TrueFault), 1);
    // The first store to a leaf table exits, the next do not until it is true again.
    world.store(frame(0, 0) + 8, 2 << 30 | P | RW | US);
    world.store(frame(0, 0) + 16, 2 << 30 | P | RW | US);
    assert_eq!(of(&world, Exit::TableWrite), 1);
    world.run(0, Act::Cr3(0));
    world.run(0, Act::Invlpg(0));
    assert_eq!((of(&world, Exit::Cr3), of(&world, Exit::Invlpg)), (1, 1));
    world.store(frame(0, 0) + 8, 0);
    assert_eq!(of(&world, Exit::TableWrite), 2);
    // Without CR0.WP a supervisor stores to read-only pages: the hypervisor does it for the guest.
    world.setting.controls.write_protect = false;
    world.store(frame(0, 0) + 8 * INDICES[2], 3 << 30 | P);
    assert_eq!(world.shadowed(0, 511 << 12, WRITE), Some(world.guest.lies(3 << 30)));
    assert_eq!(of(&world, Exit::Emulation), 1);
}

/// What the host takes away is found by its own page, whichever tables map it.
#[test]
fn the_host_finds_leaves_by_its_page() {
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P | RW | US);
    world.guest.entries.insert(frame(0, 0) + 8, 1 << 30 | P | RW | US);
    world.guest.entries.insert(frame(0, 0) + 16, 0x4000_1000 | P | RW | US);
    let old: Vec<_> = (0..3).map(|n| world.shadowed(0, n << 12, USER_WRITE)).collect();
    assert_eq!(world.pager.leaves(), [3, 0, 0]);
    world.run(0, Act::Host { page: 0, what: Host::Protect });
    assert_eq!(world.shadowed(0, 0, USER_WRITE), old[0], "writable again after a fault");
    assert_eq!(world.pager.counts().of(Exit::Dirty), 1);
    world.run(0, Act::Host { page: 0, what: Host::Move });
    assert_eq!(world.pager.leaves(), [1, 0, 0], "both that map it, and no other");
    for n in 0..3 {
        let new = world.shadowed(0, n << 12, USER_WRITE);
        assert_eq!(new == old[n as usize], n == 2);
    }
    assert!(world.pager.bytes() >= world.pager.live_tables() * 4096);
}

/// A world whose tables are mapped too: from 1 GiB on (VA), one to one by a large page where `large`.
fn mapped_tables(discipline: Discipline, large: bool) -> World {
    let mut world = one_path(discipline, 1 << 30 | P | RW | US);
    world.setting.protects = true;
    world.guest = world.guest.clone().backed(21);
    world.pager = world.pager.clone().with_protection();
    let at = frame(2, 0) + 8;
    if large {
        world.guest.entries.insert(at, frame(1, 1) | P | RW | US);
        world.guest.entries.insert(frame(1, 1), P | RW | US | 1 << 7);
    } else {
        world.guest.entries.insert(at, frame(1, 1) | P | RW | US);
        world.guest.entries.insert(frame(1, 1), frame(0, 1) | P | RW | US);
        for nth in 0..512 {
            world.guest.entries.insert(frame(0, 1) + 8 * nth, nth << 12 | P | RW | US);
        }
    }
    world
}

/// Where [`mapped_tables`] maps a guest physical address.
const fn seen(gpa: u64) -> u64 {
    1 << 30 | gpa
}

/// A leaf over a shadowed table is read-only and small, whichever came first.
#[test]
fn leaves_are_kept_off_tables() {
    for large in [false, true] {
        for table_first in [false, true] {
            let mut world = mapped_tables(Discipline::TrapAll, large);
            let table = seen(frame(0, 0));
            let beside = table ^ 0x2000;
            let order = if table_first { [0, table] } else { [table, 0] };
            for va in order {
                assert!(world.shadowed(0, va, USER_READ).is_some());
            }
            assert!(world.pager.traps(frame(0, 0)));
            // The store is carried out, each time, and one beside it is not.
            assert!(world.shadowed(0, beside, USER_WRITE).is_some());
            let faults = |world: &World| {
                let counts = world.pager.counts();
                counts.of(Exit::HiddenFault) + counts.of(Exit::Dirty)
            };
            let before = faults(&world);
            for _ in 0..2 {
                assert!(world.carried(table), "{large} {table_first}");
                assert!(!world.carried(beside), "{large} {table_first}");
            }
            assert_eq!(faults(&world), before, "{large} {table_first}");
            assert_eq!(world.pager.leaves()[1], 0, "{large} {table_first}");
        }
    }
}

/// A freed table stays shadowed until stores to it trap: once at level 0 where tables go out of sync,
/// three times above. Nobody tells a hypervisor that it was freed.
#[test]
fn a_freed_table_traps_until_its_shadow_is_given_up() {
    for (discipline, level, traps, faults) in [
        (Discipline::OutOfSync, 0, 1, 0),
        // The page is still read-only when its shadow is gone: one fault finds that out.
        (Discipline::OutOfSync, 1, 3, 1),
        (Discipline::TrapAll, 0, 3, 1),
        (Discipline::TrapAll, 1, 3, 1),
    ] {
        let mut world = mapped_tables(discipline, true);
        assert!(world.shadowed(0, 0, USER_READ).is_some());
        // The link to it goes, and then the page is cleared: as data.
        let above = world.guest.entries.remove(&frame(level + 1, 0)).is_some();
        assert!(above);
        world.store(frame(level + 1, 0), 0);
        assert!(world.shadowed(0, seen(frame(level, 0)), USER_READ).is_some());
        let before = world.pager.counts();
        for line in 0..64 {
            world.clear(frame(level, 0) + 64 * line);
        }
        let after = world.pager.counts();
        let of = |exit| after.of(exit) - before.of(exit);
        assert_eq!(of(Exit::TableWrite), traps, "{discipline:?} {level}");
        assert_eq!(of(Exit::HiddenFault) + of(Exit::Dirty), faults, "{discipline:?} {level}");
        // Loads of CR3 do not make it a table again.
        world.run(0, Act::Cr3(0));
        world.clear(frame(level, 0));
        assert_eq!(world.pager.counts().of(Exit::TableWrite), after.of(Exit::TableWrite));
    }
}

/// A table that is one again is compared with what it holds now.
#[test]
fn a_table_that_is_used_again_is_compared() {
    for discipline in [Discipline::TrapAll, Discipline::OutOfSync] {
        let mut world = mapped_tables(discipline, true);
        let was = world.shadowed(0, 0, USER_READ);
        // Its content changes while nobody looks, as by a device.
        for level in 0..2 {
            world
                .guest
                .entries
                .insert(frame(level, 0), [2 << 30, frame(0, 1)][level as usize] | P | US);
        }
        world.guest.entries.insert(frame(0, 1), 3 << 30 | P | US);
        for level in 0..2 {
            world.pager.renew(frame(level, 0));
        }
        world.run(0, Act::Cr3(0));
        let now = world.shadowed(0, 0, USER_READ);
        assert_ne!(now, was, "{discipline:?}");
        assert_eq!(now, Some(world.guest.lies(3 << 30)), "{discipline:?}");
    }
}

/// The oldest tables go where there are too many.
#[test]
fn tables_are_limited() {
    let mut world = mapped_tables(Discipline::OutOfSync, false);
    world.pager = world.pager.clone().with_limit(40);
    for nth in 0..200u64 {
        // A page of 1 GiB each, by tables in pages of their own.
        let tables = 0x1000_0000 + (nth << 16);
        world.guest.entries.insert(frame(2, 0) + 8 * (100 + nth), tables | P | RW | US);
        world.guest.entries.insert(tables, (tables + 0x1000) | P | RW | US);
        world.guest.entries.insert(tables + 0x1000, 1 << 30 | P | RW | US);
        assert!(world.shadowed(0, (100 + nth) << 30, USER_READ).is_some());
        assert!(world.pager.live_tables() <= 40 + 4, "{}", world.pager.live_tables());
    }
    assert!(world.pager.counts().tables_dropped > 100);
}
