//! PDPTEs that processors have in registers (SDM 3A 5.4.1): no invalidation reaches them.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use slat::edit::{Arena, Completed, Detached, Gather, Leaves, Live, Slots, Stale, Step, Tables};
use slat::format::x86::pae::{Pae, Root};
use slat::invalidate::{By, Context, LinearOwner, amd, intel};
use slat::{Gpa, Permissions, Spa};
use slat_mmu::checker::{Checker, Finding, What, Why, Words};

use super::formats::{BROADCASTS, on_amd_pae, on_intel_pae, x86_pae_loaded};

const GIB: u64 = 1 << 30;
const RWX: Permissions = Permissions { read: true, write: true, execute: true };

type Flush = fn(&mut Checker<Pae>, &Gather<'_>);

/// As if the PDPTEs were in memory.
fn on_intel(checker: &mut Checker<Pae>, gather: &Gather<'_>) {
    intel::plan(gather, &intel::Capabilities::default(), 0, |step| checker.intel(&step));
}

fn on_amd(checker: &mut Checker<Pae>, gather: &Gather<'_>) {
    amd::plan(gather, &BROADCASTS, 0, |step| checker.amd(&step));
}

/// A processor that walks meanwhile, and how it is made to forget.
struct Running<'a> {
    checker: &'a RefCell<Checker<Pae>>,
    arena: &'a Arena<'a, u64>,
    context: Context,
    flush: Flush,
}

impl Running<'_> {
    fn speculate(&self) {
        self.checker.borrow_mut().speculate(&mut Words::<u64, Spa, _>::new(self.arena));
    }

    /// Carries a gather out; what is found stale then.
    fn settle<'g>(&self, gather: Gather<'g>) -> (Completed<'g>, Vec<Finding>) {
        self.speculate();
        let flush = |gather: &Gather<'_>| (self.flush)(&mut self.checker.borrow_mut(), gather);
        let completed = gather.complete(&mut By(flush)).unwrap();
        let mut memory = Words::<u64, Spa, _>::new(self.arena);
        let findings = self.checker.borrow_mut().complete(&mut memory, self.context, 0..=u64::MAX);
        (completed, findings)
    }
}

/// Links a table under a PDPTE, by a cursor's range or by a fault, and takes it out again. What was
/// found of the PDPTE after each invalidation, and whether the table was still reached.
fn played(owner: LinearOwner, flush: Flush, by_fault: bool) -> (bool, bool) {
    let subject = x86_pae_loaded(owner, flush);
    let context = subject.context;
    let leaves = Leaves::new(&subject.format, &(subject.attributes)(RWX)).unwrap();
    let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
    let mut edited = Tables::<_, Gpa, Spa, _>::create(subject.format, &arena, &arena).unwrap();
    let Root::OnDemand(root) = edited.root() else { panic!("software walks from memory") };
    let checker = RefCell::new(Checker::new(subject.format));
    checker.borrow_mut().run(context, root);
    let processor = Running { checker: &checker, arena: &arena, context, flush };
    processor.speculate();
    let (mut ranges, mut detached) = ([Stale::default(); 2], [Detached::default(); 2]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut [],
        report: |leak| panic!("{leak}"),
    };
    let mut cursor =
        edited.cursor::<_, Live>(&arena, context, slots, Gpa::new(0), 4 * GIB).unwrap();
    // A page of the second GiB.
    let at = Gpa::new(GIB + 0x5000);
    if by_fault {
        cursor.fault(at, Spa::new(GIB), 0, &leaves).unwrap();
    } else {
        let mut map = cursor.map(at, Spa::new(GIB), 0x1000, &leaves).unwrap();
        assert!(matches!(cursor.step(&mut map, u32::MAX), Ok(Step::Done)));
    }
    let gather = cursor.flush().unwrap();
    assert!(gather.tables_changed());
    let (completed, findings) = processor.settle(gather);
    let unseen = findings.iter().any(|found| {
        (found.copy.what, found.copy.level, found.why) == (What::Invalid, 2, Why::NowMapped)
    });
    cursor.resume(completed.ready().unwrap()).unwrap();
    // Another page under the same PDPTE takes no invalidation.
    cursor.fault(Gpa::new(GIB + 0x6000), Spa::new(GIB), 0, &leaves).unwrap();
    let gather = cursor.flush().unwrap();
    assert!(gather.is_empty());
    let (completed, _) = processor.settle(gather);
    cursor.resume(completed.ready().unwrap()).unwrap();
    // The whole GiB goes, and its tables with it.
    let mut unmap = cursor.unmap(Gpa::new(GIB), GIB, ()).unwrap();
    assert!(matches!(cursor.step(&mut unmap, u32::MAX), Ok(Step::Done)));
    let gather = cursor.finish();
    assert!(gather.tables_changed() && gather.detached() == 1);
    let (completed, _) = processor.settle(gather);
    let others = Tables::<_, Gpa, Spa, _>::adopt(subject.format, root, &arena).unwrap();
    let mut reclaim = completed.reclaim(&others).unwrap();
    let mut reached = false;
    while let Some(frame) = reclaim.next_frame(&mut ()).unwrap() {
        let range = frame.address()..=frame.address() + (frame.bytes() - 1);
        reached |= !checker.borrow().freed(range).is_empty();
    }
    let _ = reclaim.finish().unwrap();
    (unseen, reached)
}

/// A table page that is given away while a PDPTE register still leads to it (the class of XSA-480), and
/// one that is never seen.
#[test]
fn xsa_480_a_table_under_a_pdpte_that_is_a_register() {
    let plans: [(LinearOwner, Flush, Flush); 3] = [
        (LinearOwner::Native, on_intel, on_intel_pae),
        (LinearOwner::Vpid(4), on_intel, on_intel_pae),
        (LinearOwner::Native, on_amd, on_amd_pae),
    ];
    for (owner, planted, flush) in plans {
        for by_fault in [false, true] {
            assert_eq!(played(owner, planted, by_fault), (true, true), "{owner:?}");
            assert_eq!(played(owner, flush, by_fault), (false, false), "{owner:?}");
        }
    }
}
