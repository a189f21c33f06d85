//! Each named after the case that it would have caught.

use slat::combined::{Record, Track, Unserved};
use slat::edit::{Leaves, Quiet, Slots, Step, TableMemory, Tables};
use slat::format::ept::Ept;
use slat::syndrome::x86::{ept_violation, violation_bits};
use slat::{Access, Gpa, Kind, L2Gpa, Permissions, Spa};
use slat_mmu::checker::{What, Why, Words};

use super::world::{
    BASE, GUEST_TABLES, OUTPUT, Outcome, PAGE, Subject, Sync, WINDOW, World, access, with_world,
};
use super::{RIGHTS, of_ept};

const READ: Access = Access::new(Kind::Read, slat::Privilege::User);
const ALL: Permissions = RIGHTS[0];

fn read() -> Access {
    access(Kind::Read, true)
}

fn write() -> Access {
    access(Kind::Write, true)
}

/// 64 pages of L2, backed by the host.
fn mapped<R>(records: usize, play: impl FnOnce(&mut World<'_, Ept>) -> R) -> R {
    let subject: Subject<Ept> = of_ept(true, false);
    with_world(&subject, Sync::Tracked, records, 48, |world| {
        guest_maps(world, 0, 0, 64);
        let leaves = Leaves::new(&subject.lower, &(subject.attributes)(ALL)).unwrap();
        world.host_edits(0, 256, |cursor, at, bytes| {
            cursor.map(at, Spa::new(OUTPUT), bytes, &leaves)
        });
        play(world)
    })
}

fn guest_maps(world: &mut World<'_, Ept>, page: u64, to: u64, pages: u64) {
    let leaves = Leaves::new(&world.subject.upper, &(world.subject.attributes)(ALL)).unwrap();
    let to = Gpa::new(WINDOW + to * PAGE);
    world.guest_edits(page, pages, |cursor, at, bytes| cursor.map(at, to, bytes, &leaves));
}

/// CVE-2026-23401, CVE-2026-23402: a shadow entry that hardware used was overwritten by another
/// without being removed and invalidated first.
#[test]
fn cve_2026_23401_cve_2026_23402_a_shadow_leaf_is_overwritten_without_a_zap() {
    mapped(64, |world| {
        assert_eq!(world.l2(3, &write()), Outcome::At(Spa::new(OUTPUT + 3 * PAGE + 0x18)));
        world.sync = Sync::Invalidations;
        // The guest hypervisor moves the page and relies on the fault of its own making.
        // Planted: the new translation is stored over the old, and nobody is told.
        let at = L2Gpa::new(BASE + 3 * PAGE);
        overwrite(world, at, Spa::new(OUTPUT + 9 * PAGE));
        let found = world.complete();
        assert!(found.iter().any(|finding| finding.why == Why::Moved), "{found:?}");
        // The audit of the table finds it as well.
        assert_eq!(audit(world), [at]);
    });
    // Not planted: the page moves without an invalidation, and L2's first write faults.
    mapped(64, |world| {
        world.l2(3, &read());
        world.set_upper_entry(L2Gpa::new(BASE + 3 * PAGE), 0, |entry| entry + 6 * PAGE);
        assert_eq!(world.l2(3, &write()), Outcome::At(Spa::new(OUTPUT + 9 * PAGE + 0x18)));
        world.judge();
        assert!(world.complete().is_empty());
    });
}

/// The accessed bit of a table above a leaf counts as the leaf's own does.
#[test]
fn a_leaf_under_a_table_that_was_not_accessed() {
    mapped(64, |world| {
        let at = L2Gpa::new(BASE + 5 * PAGE);
        let fill = |world: &mut World<'_, Ept>| {
            let mut pass = slat::combined::Pass::whole(&world.subject.target);
            world
                .nested(|combined, cursor, backed, track| {
                    combined.fill(cursor, backed, track, &mut pass, 100)
                })
                .unwrap();
        };
        world.l2(5, &write());
        for level in [1, 2, 3] {
            world.set_upper_entry(at, level, |entry| entry & !0x100);
            world.synchronize();
            assert!(world.combined_walk(at, &read()).is_none(), "level {level}");
            fill(world);
            assert!(world.combined_walk(at, &read()).is_none(), "level {level}");
            world.judge_full();
            world.set_upper_entry(at, level, |entry| entry | 0x100);
            world.synchronize();
            fill(world);
            assert!(world.combined_walk(at, &write()).is_some());
            world.judge_full();
        }
        world.judge();
    });
}

/// KVM 65855ed8b034, "sync before link": a table was read, then tracked, and what the guest
/// hypervisor wrote between was never seen.
#[test]
fn kvm_65855ed8b034_a_table_is_read_again_once_it_is_tracked() {
    struct Racing<'a> {
        write: Box<dyn FnMut() + 'a>,
        left: u32,
    }
    impl Track for Racing<'_> {
        fn track(&mut self, _: Gpa) {
            // The last write that is not reported: tracking begins with the return of this.
            self.left -= 1;
            if self.left == 0 {
                (self.write)();
            }
        }
        fn untrack(&mut self, _: Gpa) {}
    }
    for planted in [true, false] {
        mapped(64, |world| {
            // The page's entry, by a plain walk of the guest hypervisor's tables.
            let steps = world.upper_entry(L2Gpa::new(BASE + 3 * PAGE), 0);
            let ram = world.ram;
            let moved = |entry: u64| entry + 8 * PAGE;
            let write = Box::new(move || {
                let (at, entry) = steps;
                let spa = Spa::new(at - GUEST_TABLES + super::world::BACKING);
                let layout = slat::EntryLayout::LE64;
                let mut ram = ram;
                let mut cell = entry;
                for _ in 0..3 {
                    use slat::Memory;
                    if ram.compare_exchange(spa, layout, cell, moved(cell), &READ) == Ok(true) {
                        return;
                    }
                    cell = ram.read(spa, layout, &READ).unwrap().value;
                }
                panic!("the entry was not there");
            });
            // The copy has read the entry by now.
            let read = Spa::new(OUTPUT + 3 * PAGE);
            let mut racing = Racing { write, left: 4 };
            let address = L2Gpa::new(BASE + 3 * PAGE + 0x18);
            world
                .nested(|combined, cursor, backed, _| {
                    combined.serve(cursor, backed, &mut racing, address, &self::read())
                })
                .unwrap();
            if planted {
                overwrite(world, L2Gpa::new(BASE + 3 * PAGE), read);
            }
            let found = world.combined_walk(address, &self::read()).map(|(output, _)| output);
            let expected = if planted { 3 } else { 11 };
            assert_eq!(found, Some(Spa::new(OUTPUT + expected * PAGE + 0x18)));
            let wrong = audit(world);
            assert_eq!(wrong, if planted { vec![L2Gpa::new(BASE + 3 * PAGE)] } else { vec![] });
            if !planted {
                world.judge();
            }
        });
    }
}

/// What a copy stores in the combined table past the library: the page at `at` moves to `to`.
fn overwrite(world: &mut World<'_, Ept>, at: L2Gpa, to: Spa) {
    let (mut ranges, mut detached) = ([Default::default(); 1], [Default::default(); 1]);
    let slots =
        Slots { ranges: &mut ranges, detached: &mut detached, pending: &mut [], report: |_| {} };
    let arena = world.tables_memory();
    let mut tables: Tables<Ept, L2Gpa, Spa, _> =
        Tables::adopt(world.subject.target, world.tables.root(), arena).unwrap();
    let context = world.subject.context;
    let mut cursor = tables.cursor::<_, Quiet>(&arena, context, slots, at, PAGE).unwrap();
    let mut remap = cursor.remap(at, to, PAGE, ()).unwrap();
    assert!(matches!(cursor.step(&mut remap, 1), Ok(Step::Done)));
    drop(cursor.finish());
}

/// The leaves of the combined table, one in all, that are not what composing the halves gives.
fn audit(world: &mut World<'_, Ept>) -> Vec<L2Gpa> {
    let host = world.lower.stage();
    let (mut ram, regime) = (world.ram, slat::Regime::default());
    let mut backed = slat::Nested::new(&host, &mut ram, &regime, &());
    let mut wrong = Vec::new();
    let leaves = world.combined.audit(&world.tables, &mut backed, |leaf| wrong.push(leaf.start));
    assert_eq!(leaves, Ok(1));
    wrong
}

/// Two guest-physical pages are one frame's. The guest hypervisor goes from one to the other and the
/// combined leaf says the same as before: what the host does to the other page concerns it all the same.
#[test]
fn a_leaf_that_stays_and_follows_from_another_page() {
    mapped(256, |world| {
        let leaves = Leaves::new(&world.subject.lower, &(world.subject.attributes)(ALL)).unwrap();
        let other = 600;
        world.host_edits(other, 1, |cursor, at, bytes| {
            cursor.map(at, Spa::new(OUTPUT + 3 * PAGE), bytes, &leaves)
        });
        // Its accessed bit is set: nothing tells the two pages apart.
        guest_maps(world, 100, other, 1);
        world.l2(100, &read());
        world.l2(3, &read());
        world.sync = Sync::Invalidations;
        let at = L2Gpa::new(BASE + 3 * PAGE);
        world.set_upper_entry(at, 0, |entry| entry + (other - 3) * PAGE);
        world.synchronize();
        world.judge();
        world.l2(3, &read());
        world.host_edits(other, 1, |cursor, at, bytes| {
            cursor.remap(at, Spa::new(OUTPUT + 9 * PAGE), bytes, ())
        });
        world.judge();
        assert_eq!(world.l2(3, &read()), Outcome::At(Spa::new(OUTPUT + 9 * PAGE + 0x18)));
    });
}

/// The guest hypervisor copies a table and links the copy: every leaf stays as it was, and what it
/// writes into the copy concerns them.
#[test]
fn leaves_that_stay_and_follow_from_another_table() {
    mapped(256, |world| {
        let at = L2Gpa::new(BASE + 3 * PAGE);
        world.l2(3, &read());
        let (first, _) = world.upper_entry(at, 0);
        let from = first & !(PAGE - 1);
        let to = slat::edit::FrameSource::take(world.logged, PAGE).unwrap().address();
        let cells = |table| world.logged.table(table, 512).unwrap();
        for (from, to) in cells(from).iter().zip(cells(to)) {
            use std::sync::atomic::Ordering::SeqCst;
            to.store(from.load(SeqCst), SeqCst);
        }
        world.sync = Sync::Invalidations;
        world.set_upper_entry(at, 1, |entry| entry - from + to);
        world.synchronize();
        world.l2(3, &read());
        // From now on its writes are reported, where they are known to matter.
        world.sync = Sync::Tracked;
        world.set_upper_entry(at, 0, |entry| entry + 6 * PAGE);
        world.synchronize();
        world.judge();
        assert_eq!(world.l2(3, &read()), Outcome::At(Spa::new(OUTPUT + 9 * PAGE + 0x18)));
    });
}

/// XSA-438: short of frames, the shadows of a guest were torn down, and with them the root that a
/// processor ran on.
#[test]
fn xsa_438_everything_is_dropped_but_the_root() {
    use std::sync::atomic::Ordering::SeqCst;
    for planted in [true, false] {
        mapped(64, |world| {
            for page in 0..64 {
                world.l2(page, &read());
            }
            let root = world.tables.root();
            world.nested(|combined, cursor, _, track| combined.drop_all(cursor, track)).unwrap();
            assert_eq!(world.tables.root(), root);
            assert_eq!(world.frames_in_use(), 1, "the root alone is left, and it is left");
            assert!(world.complete().is_empty());
            if !planted {
                let left = world.l2(7, &read());
                assert_eq!(left, Outcome::At(Spa::new(OUTPUT + 7 * PAGE + 0x18)));
                world.judge();
                // To give the root up as well, the processor must have left.
                world.checker.borrow_mut().stop(world.subject.context);
                world.checker.borrow_mut().invalidate(|_| true);
                assert!(world.checker.borrow().freed(root..=root + 0xfff).is_empty());
                return;
            }
            // Planted: the last frame is given out as well. An invalidation does not help.
            world.checker.borrow_mut().invalidate(|_| true);
            let reaching = world.checker.borrow().freed(root..=root + 0xfff);
            assert_eq!(reaching.len(), 1);
            assert_eq!((reaching[0].copy.what, reaching[0].why), (What::Root, Why::Freed));
            // Its new owner's data is what the processor walks.
            let cells = world.tables_memory().table(root, 512).unwrap();
            cells[5].store(0x0bad_0007u64.to_le(), SeqCst);
            let mut memory = Words::<u64, Spa, _>::new(world.tables_memory());
            world.checker.borrow_mut().speculate(&mut memory);
            assert!(!world.checker.borrow().freed(0x0bad_0000..=0x0bad_0fff).is_empty());
        });
    }
}

/// XSA-430: whether a page has a shadow was asked too laxly, so that what a guest had written to any
/// page was acted upon as if it were a table's.
#[test]
fn xsa_430_a_write_to_a_page_that_has_no_shadow() {
    const SLOTS: u64 = 8;
    for planted in [true, false] {
        mapped(64, |world| {
            let at = L2Gpa::new(BASE + 3 * PAGE);
            world.l2(3, &read());
            let (entry_at, entry) = world.upper_entry(at, 0);
            // Tables with shadows, found by their frame's number.
            let mut shadows = [None; SLOTS as usize];
            let table = entry_at / PAGE;
            shadows[(table % SLOTS) as usize] = Some(table);
            // The guest hypervisor writes to a page of its data that falls into the same slot.
            let page = table + 64 * SLOTS;
            let (wrote, value) = (page * PAGE + entry_at % PAGE, entry + 0x5_5000);
            let shadow = shadows[(page % SLOTS) as usize].filter(|&found| planted || found == page);
            if shadow.is_some() {
                // The copy makes the shadow's entry follow what was written, by a number that the
                // guest chose.
                overwrite(world, at, Spa::new(value & 0x000f_ffff_ffff_f000));
            } else {
                // The library's own: nothing follows from a write to such a page.
                world
                    .nested(|combined, cursor, _, track| {
                        combined.guest_wrote(cursor, track, Gpa::new(wrote), 8)
                    })
                    .unwrap();
            }
            let wrong = audit(world);
            assert_eq!(wrong, if planted { vec![at] } else { vec![] });
        });
    }
}

/// The library asks of every address that a guest can name (XSA-430).
#[test]
fn xsa_430_whatever_address_a_change_names() {
    mapped(64, |world| {
        world.l2(3, &read());
        for at in [0, 1, PAGE - 1, u64::MAX, u64::MAX - 7, 1 << 63, GUEST_TABLES - 1, 1 << 52] {
            for bytes in [0, 1, 8, PAGE, u64::MAX] {
                if at > GUEST_TABLES || at.saturating_add(bytes) < GUEST_TABLES {
                    world
                        .nested(|combined, cursor, _, track| {
                            combined.guest_wrote(cursor, track, Gpa::new(at), bytes)
                        })
                        .unwrap();
                }
            }
            let range = Gpa::new(at.max(1 << 40))..=Gpa::new(u64::MAX);
            world
                .nested(|combined, cursor, _, track| {
                    combined.host_changed(cursor, track, range.clone())
                })
                .unwrap();
        }
        let left = world.combined_walk(L2Gpa::new(BASE + 3 * PAGE), &read());
        assert!(left.is_some(), "nothing followed from those");
        // A write across everything that is tracked takes everything.
        world
            .nested(|combined, cursor, _, track| {
                combined.guest_wrote(cursor, track, Gpa::new(0), u64::MAX)
            })
            .unwrap();
        assert!(world.combined_walk(L2Gpa::new(BASE + 3 * PAGE), &read()).is_none());
    });
}

/// XSA-397 and KVM's lost W bits: a write must not go by before both halves have it in their dirty
/// bits, and must fault again once one of them is clean.
#[test]
fn a_leaf_is_not_writable_before_both_halves_are_dirty() {
    mapped(64, |world| {
        let at = L2Gpa::new(BASE + 5 * PAGE);
        world.l2(5, &read());
        assert!(world.combined_walk(at, &read()).is_some());
        assert!(world.combined_walk(at, &write()).is_none(), "clean in both");
        world.l2(5, &write());
        assert!(world.combined_walk(at, &write()).is_some());
        // The host harvests its dirty pages.
        world.host_edits(5, 1, |cursor, at, bytes| cursor.clean(at, bytes, ()));
        assert!(world.combined_walk(at, &write()).is_none());
        world.l2(5, &write());
        // The guest hypervisor does.
        world.guest_edits(5, 1, |cursor, at, bytes| cursor.clean(at, bytes, ()));
        assert!(world.combined_walk(at, &write()).is_none());
        let (_, due, _) = world.reference(at, &write());
        assert!(due, "and the bit is due again");
        // Aged: not even readable.
        world.l2(5, &read());
        world.guest_edits(5, 1, |cursor, at, bytes| cursor.age(at, bytes, ()));
        assert!(world.combined_walk(at, &read()).is_none());
    });
}

/// Each fault goes to its owner, with what that owner is told.
#[test]
fn faults_have_owners() {
    mapped(64, |world| {
        let serve = |world: &mut World<'_, Ept>, page: u64, asked: Access| {
            let address = L2Gpa::new(BASE + page * PAGE + 0x18);
            world.nested(|combined, cursor, backed, track| {
                combined.serve(cursor, backed, track, address, &asked)
            })
        };
        let upper = world.subject.upper;
        // Not mapped by the guest hypervisor.
        let linear = Access { origin: Some(0x7fff_0018), ..write() };
        let Err(Unserved::Violation(fault)) = serve(world, 100, linear) else { panic!() };
        let expected = violation_bits::WRITE | violation_bits::LINEAR_VALID | violation_bits::FINAL;
        assert_eq!(ept_violation(&fault, &upper, false), Some(expected));
        // Mapped read-only by it: what it allows is told.
        world.guest_edits(3, 1, |cursor, at, bytes| cursor.protect(at, bytes, RIGHTS[1], ()));
        let Err(Unserved::Violation(fault)) = serve(world, 3, linear) else { panic!() };
        assert_eq!(ept_violation(&fault, &upper, false), Some(expected | 1 << 3));
        // A misconfiguration of its own making: writable without being readable.
        world.set_upper_entry(L2Gpa::new(BASE + 4 * PAGE), 0, |entry| entry & !1);
        world.synchronize();
        let Err(Unserved::Misconfigured(fault)) = serve(world, 4, linear) else { panic!() };
        assert_eq!(ept_violation(&fault, &upper, false), None);
        // Mapped by it to what the host has not backed, or not for writing.
        guest_maps(world, 200, 300, 1);
        let Err(Unserved::Host(slat::Failed::Here(fault))) = serve(world, 200, linear) else {
            panic!()
        };
        assert_eq!((fault.stage, fault.input), (3, Gpa::new(WINDOW + 300 * PAGE + 0x18)));
        world.host_edits(6, 1, |cursor, at, bytes| cursor.protect(at, bytes, RIGHTS[1], ()));
        assert!(matches!(serve(world, 6, linear), Err(Unserved::Host(_))));
        assert!(serve(world, 6, self::read()).is_ok());
        world.judge();
    });
}

/// Without records a change of the host's half takes the whole combined table.
#[test]
fn without_records_a_host_change_drops_everything() {
    for (records, left) in [(0usize, 0usize), (64, 2)] {
        mapped(records, |world| {
            guest_maps(world, 600, 200, 1);
            world.l2(600, &read());
            guest_maps(world, 601, 700, 1);
            let leaves = Leaves::new(&world.subject.lower, &(world.subject.attributes)(ALL));
            let leaves = leaves.unwrap();
            world.host_edits(700, 1, |cursor, at, bytes| {
                cursor.map(at, Spa::new(OUTPUT + 700 * PAGE), bytes, &leaves)
            });
            world.l2(601, &read());
            world.l2(3, &read());
            world.host_edits(700, 1, |cursor, at, bytes| cursor.unmap(at, bytes, ()));
            let whole = 1u64 << 48;
            let leaves = world.tables.mappings(L2Gpa::new(0), whole).unwrap().count();
            assert_eq!(leaves, left, "{records} records");
            assert_eq!(world.l2(601, &read()), Outcome::Host);
        });
    }
    assert!(size_of::<Record>() <= 40, "what a record costs the caller");
}
