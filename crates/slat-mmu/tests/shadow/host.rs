//! The host's own pages under a guest: kept read-only, moved, taken away.

use slat_mmu::shadow::{Discipline, Exit, Filled, GuestTables};

use super::world::{A, Act, D, Host, P, RW, Setting, US, World, frame};
use super::{USER_READ, USER_WRITE, WRITE, mapped_tables, one_path, seen};

/// A user's shadow-stack load and store.
const STACK_READ: usize = 8;
const STACK_WRITE: usize = 9;

const PROTECT: Act = Act::Host { page: 0, what: Host::Protect };

/// The first store to a page is seen whatever address it goes by: one that was filled before, one that
/// is read first and whose entry says that it is dirty, and one that is filled beside another.
#[test]
fn the_first_store_is_seen_through_every_alias() {
    for (alias, prefetch) in [(0, 1), (8, 1), (8, 8)] {
        let leaf = 1 << 30 | P | RW | US | A | D;
        let mut world = one_path(Discipline::TrapAll, leaf);
        world.pager = world.pager.clone().with_prefetch(prefetch);
        world.guest.entries.insert(frame(0, 0) + 8, leaf);
        assert!(world.shadowed(0, 0, USER_WRITE).is_some());
        if prefetch == 1 {
            world.pager.release(&mut world.tables, frame(0, 0));
            world.run(0, Act::Cr3(0));
            assert!(world.shadowed(0, 0, USER_WRITE).is_some());
        } else {
            world.run(0, Act::Host { page: 0, what: Host::Move });
        }
        world.run(0, PROTECT);
        let va = alias << 9;
        assert!(world.shadowed(0, 0, USER_READ).is_some());
        assert!(world.shadowed(0, va, USER_READ).is_some());
        assert!(world.keeps(1 << 30), "nothing was stored");
        assert!(world.shadowed(0, va, USER_WRITE).is_some());
        assert!(!world.keeps(1 << 30), "{va:#x}: the store was not seen");
        // From then on stores are free, by the other address after a fault that is hidden.
        let other = va ^ 0x1000;
        assert!(world.shadowed(0, other, USER_WRITE).is_some());
        let exits = world.pager.counts().exits;
        assert!(world.shadowed(0, other, USER_WRITE).is_some());
        assert_eq!(world.pager.counts().exits, exits);
    }
}

/// The host sees stores that it carries out itself, too.
#[test]
fn a_store_that_is_carried_out_is_seen() {
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P);
    world.run(0, Act::WriteProtect(false));
    world.run(0, PROTECT);
    assert_eq!(world.shadowed(0, 0, WRITE), Some(world.guest.lies(1 << 30)));
    assert!(!world.keeps(1 << 30));
    assert_eq!(world.pager.counts().of(Exit::Emulation), 1, "once, with the host's part");
}

/// An accessed bit is not set behind the host's back, nor in a page that others have too.
#[test]
fn accessed_bits_wait_for_the_host() {
    let mut world = one_path(Discipline::TrapAll, 1 << 30 | P | US);
    // The level-0 table, by its number in `World::run`.
    world.run(0, Act::Host { page: 16, what: Host::Protect });
    assert!(world.keeps(frame(0, 0)));
    let filled = world.fill(0, 0, USER_READ);
    assert_eq!(filled, Filled::Host { gpa: frame(0, 0) });
    assert_eq!(world.guest.entry(frame(0, 0)) & A, 0);
    assert_eq!(world.pager.counts().exits.iter().sum::<u64>(), 0, "the exit is the host's");
    assert!(world.shadowed(0, 0, USER_READ).is_some());
    assert_ne!(world.guest.entry(frame(0, 0)) & A, 0);
}

/// A read-only dirty page would be a shadow stack: what is kept read-only by the pager or the host is not,
/// and what is one for the guest is served as stores are.
#[test]
fn pages_that_are_kept_read_only_are_no_shadow_stacks() {
    let on_stacks = |leaf: u64| {
        let mut world = one_path(Discipline::TrapAll, leaf);
        world.setting.controls.shadow_stacks = true;
        world
    };
    // The host's.
    let mut world = on_stacks(1 << 30 | P | RW | US | A | D);
    assert!(world.shadowed(0, 0, USER_WRITE).is_some());
    world.run(0, PROTECT);
    for number in [STACK_READ, STACK_WRITE] {
        assert_eq!(world.shadowed(0, 0, number), None);
    }
    // A shadow stack of the guest's that the host keeps.
    let mut world = on_stacks(1 << 30 | P | US | A | D);
    assert!(world.shadowed(0, 0, STACK_READ).is_some());
    world.run(0, PROTECT);
    assert!(world.shadowed(0, 0, STACK_WRITE).is_some());
    assert!(!world.keeps(1 << 30));
    // Over a table, which is mapped at 1 GiB: writable, and a shadow stack.
    for stack in [false, true] {
        let mut world = mapped_tables(Discipline::TrapAll, false);
        world.setting.controls.shadow_stacks = true;
        let at = frame(0, 1) + 8 * (frame(0, 0) >> 12);
        let rights = if stack { 0 } else { RW };
        world.guest.entries.insert(at, frame(0, 0) | P | US | A | D | rights);
        for table_first in [true, false] {
            let order = if table_first { [0, seen(frame(0, 0))] } else { [seen(frame(0, 0)), 0] };
            world.pager.clear(&mut world.tables);
            world.flush_if_due();
            for va in order {
                assert!(world.shadowed(0, va, USER_READ).is_some());
            }
            for number in [STACK_READ, STACK_WRITE] {
                let found = world.shadowed(0, seen(frame(0, 0)), number);
                assert_eq!(found.is_some(), stack, "{table_first} {number}");
                assert!(!world.holds(seen(frame(0, 0)), number), "it would not trap");
            }
        }
    }
}

/// A shadow stack whose dirty bit the guest has cleared is none from its next INVLPG or CR3 load on.
#[test]
fn a_clean_page_is_no_shadow_stack() {
    for act in [Act::Invlpg(0), Act::Cr3(0)] {
        let mut world = one_path(Discipline::OutOfSync, 1 << 30 | P | US | A | D);
        world.setting.controls.shadow_stacks = true;
        assert!(world.shadowed(0, 0, STACK_WRITE).is_some());
        world.store(frame(0, 0), 1 << 30 | P | US | A);
        world.run(0, act);
        assert_eq!(world.shadowed(0, 0, STACK_WRITE), None, "{act:?}");
    }
}

/// Where the host has moved a guest's table, leaves over its new place are opened when it goes out of sync.
#[test]
fn a_table_that_was_moved_is_opened_where_it_lies() {
    let mut world = mapped_tables(Discipline::OutOfSync, false);
    world.guest = world.guest.clone().backed(12);
    let table = seen(frame(0, 0));
    assert!(world.shadowed(0, 0, USER_READ).is_some());
    assert!(world.shadowed(0, table, USER_READ).is_some());
    world.run(0, Act::Host { page: 16, what: Host::Move });
    assert!(world.carried(table), "it is still a table");
    let before = world.pager.counts();
    world.store(frame(0, 0) + 8, 0);
    assert_eq!(world.pager.counts().unsynced, before.unsynced + 1);
    assert!(!world.carried(table));
    let after = world.pager.counts();
    for exit in [Exit::HiddenFault, Exit::Dirty] {
        assert_eq!(after.of(exit), before.of(exit), "{exit:?}: it was open already");
    }
}

/// A supervisor's store that a key of a supervisor page denies is permitted by a clear CR0.WP.
#[test]
fn keys_of_supervisor_pages_yield_to_write_protect() {
    let plain = Setting::plain(Discipline::TrapAll);
    let controls = slat::format::x86::Controls { supervisor_keys: true, ..plain.controls };
    // Write-disable of key 1.
    let mut world = World::new(Setting { controls, keys: [0, 1 << 3], ..plain }, 1, false);
    for level in (0..4).rev() {
        let entry = if level == 0 { 1 << 30 | 1 << 59 } else { frame(level - 1, 0) };
        world.guest.entries.insert(frame(level, 0), entry | P | RW);
    }
    assert_eq!(world.shadowed(0, 0, WRITE), None);
    world.run(0, Act::WriteProtect(false));
    assert_eq!(world.shadowed(0, 0, WRITE), Some(world.guest.lies(1 << 30)));
    world.run(0, Act::WriteProtect(true));
    assert_eq!(world.shadowed(0, 0, WRITE), None);
}
