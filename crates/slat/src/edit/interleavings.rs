//! Every interleaving of small cases, by loom: `RUSTFLAGS="--cfg loom" cargo test --package slat --lib`.
//!
//! The tables are of a format as small as a format can be (two levels, two entries a table), since
//! each access to an entry multiplies the orders to be tried.

use core::fmt;
use core::sync::atomic::Ordering;
use loom::sync::{Arc, Mutex};
use std::time::Duration;
use std::vec::Vec;

use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::*;
use crate::access::{Access, Kind, Stage1Page};
use crate::address::{Gpa, Spa};
use crate::fault::Cause;
use crate::format::{Format, Found, Start};
use crate::invalidate::{By, Context};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::translate::Permissions;

mod toy;
mod world;

use toy::*;
use world::*;

/// Every order of the threads' accesses, without a bound on how often they alternate.
fn model(act: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.max_duration = Some(Duration::from_secs(60)); // all of them end in under a second
    builder.check(act);
}

#[test]
fn faults_on_one_page_install_it_once() {
    model(|| {
        let world = World::new(3);
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || other.fault(0, 0).unwrap());
        let mine = world.fault(0, 0).unwrap();
        let theirs = thread.join().unwrap();
        let installed = |served| matches!(served, Served::Installed { .. });
        assert!(installed(mine) != installed(theirs), "{mine:?} {theirs:?}");
        assert_eq!(world.sees(0), Some(OUTPUT));
        assert_eq!(world.frames.left(), 1, "the table that lost the race came back");
    });
}

#[test]
fn faults_on_neighbours_both_end_in_the_tables() {
    model(|| {
        let world = World::new(3);
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || other.fault(PAGE, 0).unwrap());
        world.fault(0, 0).unwrap();
        thread.join().unwrap();
        assert_eq!((world.sees(0), world.sees(PAGE)), (Some(OUTPUT), Some(OUTPUT + PAGE)));
        assert_eq!(world.frames.left(), 1);
    });
}

#[test]
fn a_fault_beside_a_removal_is_in_the_tables_or_was_seen_to_go() {
    model(|| {
        let world = World::with_pages(4);
        // One page is gone, so that a fault may put it back.
        world.edit(|c| c.unmap(Gpa::new(PAGE), PAGE, ()).unwrap(), &mut (), None);
        let other = Arc::clone(&world);
        let served = Arc::new(Mutex::new(None));
        let outcome = Arc::clone(&served);
        let thread = thread::spawn(move || {
            *outcome.lock().unwrap() = Some(other.fault(PAGE, 0));
        });
        let mut gone = 0;
        let mut witness = Watch(|start: u64, _: u8, _: u64| gone |= 1 << (start / PAGE));
        world.edit(|c| c.unmap(Gpa::new(0), 2 * PAGE, ()).unwrap(), &mut witness, Some(thread));
        let outcome = served.lock().unwrap().take().unwrap();
        let there = world.sees(PAGE) == Some(OUTPUT + PAGE);
        match outcome {
            Ok(Served::Installed { .. }) => {
                assert!(there != (gone & 2 != 0), "there {there}, seen to go {gone:#b}");
            }
            Err(Error::Frozen { .. }) => assert!(!there && gone & 2 == 0),
            other => panic!("{other:?}"),
        }
        assert!(gone & 1 != 0 && world.sees(0).is_none(), "the removal removed");
    });
}

/// Unmaps `bytes` from the start while a fault wants the first page back, which ends before the
/// invalidation does: it must not have it, as that were the make without a break.
fn nothing_is_made_before_the_invalidation(bytes: u64) {
    model(move || {
        let world = World::with_pages(4);
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || match other.fault(0, 0) {
            Ok(_) | Err(Error::Frozen { .. }) => {}
            Err(error) => panic!("{error}"),
        });
        let thread = Mutex::new(Some(thread));
        let flushed = || {
            if let Some(thread) = thread.lock().unwrap().take() {
                thread.join().unwrap();
            }
            let cell = world.cell(0).map(|cell| cell.load(Ordering::Acquire));
            assert!(cell.is_none_or(|cell| cell & VALID == 0), "{cell:x?} before the invalidation");
        };
        let unmap = |c: &Cursor<'_, '_, _, _, _, _, _, _>| c.unmap(Gpa::new(0), bytes, ()).unwrap();
        world.edit_and_flush(unmap, &mut (), None, flushed);
        assert!(matches!(world.fault(0, 0), Ok(_)), "nothing stays frozen");
    });
}

/// A walker that stays while it tries again waits for the thaw, and the frames wait for the walker:
/// the thaw waits for neither.
#[test]
fn a_walker_that_tries_again_without_leaving_ends() {
    model(|| {
        let world = World::with_pages(4);
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || {
            let walker = other.shared.walker().unwrap();
            let leaves = leaves();
            loop {
                match walker.fault(other.frames, Gpa::new(0), Spa::new(OUTPUT), 0, &leaves) {
                    Ok(_) => break,
                    Err(Error::Frozen { .. }) => thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let (mut ranges, mut detached, mut pending) =
            ([Stale::default()], [Detached::default()], [Pending::default()]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
        let shared = &world.shared;
        let mut cursor =
            shared.cursor(&(), world.frames, Context::All, slots, Gpa::new(0), ALL).unwrap();
        let mut unmap = cursor.unmap(Gpa::new(0), 2 * PAGE, ()).unwrap();
        let Ok(Step::Invalidate(gather)) = cursor.step(&mut unmap, u32::MAX) else {
            panic!("a table went");
        };
        drop(cursor.finish());
        let mut completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let mut reclaim = loop {
            match completed.reclaim(shared.tables()) {
                Ok(reclaim) => break reclaim,
                Err(again) => completed = again,
            }
            thread::yield_now();
        };
        while let Some(frame) = reclaim.next_frame(&mut ()).unwrap() {
            world.frames.put(frame);
        }
        drop(reclaim.finish().unwrap());
        thread.join().unwrap();
    });
}

#[test]
fn a_removed_page_stays_frozen_until_the_invalidation() {
    nothing_is_made_before_the_invalidation(PAGE);
}

#[test]
fn a_detached_table_leaves_its_entry_frozen_until_the_invalidation() {
    nothing_is_made_before_the_invalidation(ALL);
}

/// A large page takes the place of a table that holds nothing: only while no fault fills it.
#[test]
fn a_fault_beside_a_mapping_over_its_table_is_in_the_tables_or_retries() {
    const OTHER: u64 = 0x100_0000;
    model(|| {
        let world = World::with_pages(3);
        world.edit(|c| c.unmap(Gpa::new(0), PAGE, ()).unwrap(), &mut (), None);
        world.edit(|c| c.unmap(Gpa::new(PAGE), PAGE, ()).unwrap(), &mut (), None);
        let (left, leaves) = (world.frames.left(), lend(leaves()));
        let other = Arc::clone(&world);
        let served = Arc::new(Mutex::new(None));
        let outcome = Arc::clone(&served);
        let thread = thread::spawn(move || {
            *outcome.lock().unwrap() = Some(other.fault(PAGE, 0));
        });
        let map = |c: &Cursor<'_, '_, _, _, _, _, _, _>| {
            c.map(Gpa::new(0), Spa::new(OTHER), 2 * PAGE, leaves).unwrap()
        };
        let mapped = world.attempt(map, &mut (), Some(thread), || ()).map(|_| ());
        let served = served.lock().unwrap().take().unwrap();
        let seen = (world.sees(0), world.sees(PAGE));
        match (mapped, served) {
            (Ok(()), Ok(Served::Present { level: 1, .. }) | Err(Error::Frozen { .. })) => {
                assert_eq!(seen, (Some(OTHER), Some(OTHER + PAGE)));
                assert_eq!(world.frames.left(), left + 1, "the table came out");
            }
            (Err(Error::Occupied { .. }), Ok(Served::Installed { level: 0 })) => {
                assert_eq!(seen, (None, Some(OUTPUT + PAGE)));
                assert_eq!(world.frames.left(), left);
                // What was frozen meanwhile has thawed.
                assert!(matches!(world.fault(0, 0), Ok(Served::Installed { level: 0 })));
            }
            other => panic!("{other:?}, {seen:x?}"),
        }
    });
}

/// Every entry of a table that a removal takes out is frozen, or was mapped: also of one that a fault links
/// while the removal is on its way there, in a frame that held something else before.
#[test]
fn a_table_that_was_just_linked_is_frozen_before_it_is_taken_out() {
    model(|| {
        let world = World::with_pages(3);
        let frame = world.frames.take(16).unwrap();
        let number = (frame.address() - FIRST >> 12) as usize;
        world.frames.put(frame);
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || match other.fault(2 * PAGE, 0) {
            Ok(_) | Err(Error::Frozen { .. }) => {}
            Err(error) => panic!("{error}"),
        });
        let thread = Mutex::new(Some(thread));
        let flushed = || {
            if let Some(thread) = thread.lock().unwrap().take() {
                thread.join().unwrap();
            }
            let linked = world.cell(2 * PAGE).is_some();
            let [first, second] = world.frames.cells(number);
            let empty = |cell: &AtomicU64| cell.load(Ordering::Acquire) == 0;
            assert!(linked || !empty(first) && !empty(second), "a fault may map in it");
        };
        let unmap = |c: &Cursor<'_, '_, _, _, _, _, _, _>| c.unmap(Gpa::new(0), ALL, ()).unwrap();
        world.edit_and_flush(unmap, &mut (), None, flushed);
    });
}

#[test]
fn a_walker_never_meets_a_frame_that_was_given_back() {
    model(|| {
        let world = World::with_pages(2);
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || {
            let found = other.sees(0);
            assert!(matches!(found, None | Some(OUTPUT)), "{found:x?}");
        });
        world.edit(|c| c.unmap(Gpa::new(0), ALL, ()).unwrap(), &mut (), Some(thread));
        assert_eq!(world.frames.left(), 1);
    });
}

/// Runs `act` while hardware writes to the first page; the write must be in the tables, or have been
/// seen.
fn no_write_is_lost(
    world: fn() -> Arc<World>,
    act: impl Fn(&World, &mut dyn FnMut(u64, u64), thread::JoinHandle<()>)
    + Copy
    + Send
    + Sync
    + 'static,
) {
    model(move || {
        let world = world();
        let other = Arc::clone(&world);
        let written = Arc::new(Mutex::new(false));
        let outcome = Arc::clone(&written);
        let thread = thread::spawn(move || *outcome.lock().unwrap() = other.write(0));
        let mut seen = false;
        act(&world, &mut |start, entry| seen |= start == 0 && Toy.is_dirty(entry), thread);
        if *written.lock().unwrap() {
            let entry = world.cell(0).map_or(0, |cell| cell.load(Ordering::Acquire));
            assert!(seen || Toy.is_dirty(entry), "the write was lost");
        }
    });
}

#[test]
fn no_write_is_lost_to_cleaning() {
    no_write_is_lost(
        || World::with_pages(2),
        |world, seen, thread| {
            let watch = Watch(|start: u64, _: u8, entry: u64| seen(start, entry));
            world.edit(|c| c.clean(Gpa::new(0), 2 * PAGE, watch).unwrap(), &mut (), Some(thread));
        },
    );
}

#[test]
fn no_write_is_lost_to_a_change_of_permissions() {
    let read = Permissions { read: true, write: false, execute: true };
    no_write_is_lost(
        || World::with_pages(2),
        move |world, seen, thread| {
            let watch = Watch(|start: u64, _: u8, entry: u64| seen(start, entry));
            let protect = |c: &Cursor<'_, '_, _, _, _, _, _, _>| {
                c.protect(Gpa::new(0), PAGE, read, watch).unwrap()
            };
            world.edit(protect, &mut (), Some(thread));
        },
    );
}

#[test]
fn no_write_is_lost_to_unmapping() {
    no_write_is_lost(
        || World::with_pages(2),
        |world, seen, thread| {
            let watch = Watch(|start: u64, _: u8, entry: u64| seen(start, entry));
            world.edit(|c| c.unmap(Gpa::new(0), PAGE, watch).unwrap(), &mut (), Some(thread));
        },
    );
}

#[test]
fn no_write_is_lost_to_splitting() {
    let large = || {
        let world = World::new(3);
        world.fault(0, 1).unwrap();
        world
    };
    no_write_is_lost(large, |world, _, thread| {
        world.edit(|c| c.split(Gpa::new(0), 2 * PAGE, 0).unwrap(), &mut (), Some(thread));
        assert_eq!(world.sees(PAGE), Some(OUTPUT + PAGE));
    });
}

#[test]
fn no_write_is_lost_to_collapsing() {
    no_write_is_lost(
        || World::with_pages(2),
        |world, _, thread| {
            let done = world.edit(
                |c| c.collapse(Gpa::new(0), 2 * PAGE, 1).unwrap(),
                &mut (),
                Some(thread),
            );
            assert_eq!(done.verb().collapsed(), 1);
            assert_eq!(world.sees(PAGE), Some(OUTPUT + PAGE));
        },
    );
}

#[test]
fn nobody_installs_over_a_broken_entry() {
    model(|| {
        let world = World::new(3);
        world.fault(0, 1).unwrap();
        let (mut ranges, mut detached) = ([Stale::default()], [Detached::default()]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut [],
            report: |leak| panic!("{leak}"),
        };
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || match other.fault(PAGE, 0) {
            Err(Error::Frozen { .. }) | Ok(Served::Present { .. }) => {}
            other => panic!("{other:?}"),
        });
        let shared = &world.shared;
        let mut cursor =
            shared.cursor(&(), world.frames, Context::All, slots, Gpa::new(0), ALL).unwrap();
        let broken = cursor.break_leaf(Gpa::new(0), Remake::Smaller).unwrap();
        let gather = cursor.flush().unwrap();
        let completed = gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let mut ready = completed.ready().unwrap();
        broken.make(&mut ready).unwrap();
        cursor.resume(ready).unwrap();
        drop(cursor.finish());
        thread.join().unwrap();
        assert_eq!(world.sees(PAGE), Some(OUTPUT + PAGE));
    });
}

#[test]
fn donated_frames_are_neither_lost_nor_doubled() {
    model(|| {
        let slots = lend([AtomicU64::new(0), AtomicU64::new(0)]);
        let donated = lend(Donated::new(4096, slots));
        donated.put(Frame::new(0x1000, 4096));
        donated.put(Frame::new(0x2000, 4096));
        let thread = thread::spawn(move || {
            let frame = donated.take(4096);
            let address = frame.as_ref().map(Frame::address);
            frame.into_iter().for_each(|frame| donated.put(frame));
            address
        });
        let mine = donated.take(4096).unwrap();
        let address = mine.address();
        let theirs = thread.join().unwrap();
        assert!(theirs.is_some());
        donated.put(mine);
        assert_eq!(donated.len(), 2, "{address:#x} {theirs:x?}");
    });
}
