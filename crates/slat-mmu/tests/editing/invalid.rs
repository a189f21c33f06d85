//! Invalid entries that a processor holds (RISC-V without Svvptc) of places that are mapped by now.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use slat::edit::{Arena, Detached, Gather, Leaves, Live, Remake, Slots, Stale, Step, Tables};
use slat::invalidate::{By, riscv};
use slat::{Gpa, Permissions, Spa};
use slat_mmu::checker::{Checker, What, Why, Words};

use super::formats::{GUEST, SVINVAL, riscv_g};

const BLOCK: u64 = 2 << 20;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };

/// Breaks a block and makes it into `to`, while the processor walks; what it holds of the frozen entry
/// after the gather that follows, if that is carried out.
fn played(to: Option<u64>, carried_out: bool) -> bool {
    let subject = riscv_g();
    let context = subject.context;
    let leaves = Leaves::new(&subject.format, &(subject.attributes)(RWX)).unwrap();
    let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
    let mut tables = Tables::<_, Gpa, Spa, _>::create(subject.format, &arena, &arena).unwrap();
    let checker = RefCell::new(Checker::new(subject.format));
    checker.borrow_mut().run(context, tables.root());
    let speculate = || checker.borrow_mut().speculate(&mut Words::<u64, Spa, _>::new(&arena));
    let flush = |gather: &Gather<'_>| {
        riscv::plan(gather, &SVINVAL, |step| checker.borrow_mut().riscv(&step, GUEST));
    };
    let (mut ranges, mut detached) = ([Stale::default(); 2], [Detached::default(); 2]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut [],
        report: |leak| panic!("{leak}"),
    };
    let mut cursor =
        tables.cursor::<_, Live>(&arena, context, slots, Gpa::new(0), 1 << 30).unwrap();
    let mut map = cursor.map(Gpa::new(0), Spa::new(1 << 30), BLOCK, &leaves).unwrap();
    assert!(matches!(cursor.step(&mut map, u32::MAX), Ok(Step::Done)));
    speculate();
    let remake = match to {
        Some(output) => Remake::Leaf { output: Spa::new(output), leaves: &leaves },
        None => Remake::Smaller,
    };
    let broken = cursor.break_leaf(Gpa::new(0), remake).unwrap();
    let completed = cursor.flush().unwrap().complete(&mut By(&flush)).unwrap();
    // Nothing is there, and that is held.
    speculate();
    let mut ready = completed.ready().unwrap();
    broken.make(&mut ready).unwrap();
    cursor.resume(ready).unwrap();
    let gather = cursor.finish();
    let due = |gather: &Gather<'_>| {
        if carried_out {
            flush(gather);
        }
    };
    let _ = gather.complete(&mut By(due)).unwrap();
    let mut memory = Words::<u64, Spa, _>::new(&arena);
    let findings = checker.borrow_mut().complete(&mut memory, context, 0..=u64::MAX);
    findings.iter().any(|found| (found.copy.what, found.why) == (What::Invalid, Why::NowMapped))
}

#[test]
fn what_a_broken_entry_was_made_into_is_fenced() {
    for to in [Some(2 << 30), None] {
        assert!(!played(to, true), "{to:x?}");
        assert!(played(to, false), "{to:x?}: a hart faults for ever");
    }
}
