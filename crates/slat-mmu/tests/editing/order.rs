//! The right steps in the wrong order, or one of them for fewer than it is due for: each planted in a
//! copy of the operation that changes plain memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use slat::edit::{Arena, Leaves, Live, Served, TableMemory, Tables, ept as ept_entries};
use slat::invalidate::intel;
use slat::invalidate::running::Running;
use slat::memory_type::x86::Type;
use slat::{Gpa, SliceMemory, Spa};
use slat_mmu::checker::{Checker, What, Why};

use super::formats::ept;
use super::plain::{FLUSH, PLAIN, Plain};
use super::world::{PERMISSIONS, TABLES};

const PAGE: u64 = 0x1000;
const LEAF: u64 = 0x55_5037;

/// Whether a flush is due is asked of the entry that was written, not of the one that was there
/// (XSA-275): a removal writes one that is not present.
#[test]
fn xsa_275_no_flush_where_the_new_entry_is_not_present() {
    for planted in [true, false] {
        let mut plain = Plain::new();
        plain.store(0x3000, LEAF);
        plain.store(0x3008, LEAF + PAGE);
        plain.speculate();
        // One page is removed, one is moved.
        for (at, new) in [(0x3000, 0), (0x3008, LEAF + 8 * PAGE)] {
            let old = plain.load(at);
            plain.store(at, new);
            let asked = if planted { new } else { old };
            if asked & 7 != 0 && old != new {
                plain.checker.intel(&FLUSH);
            }
            let stale = plain.complete();
            assert_eq!(!stale.is_empty(), planted && new == 0, "{at:#x}");
            assert!(stale.iter().all(|finding| finding.why == Why::Unmapped));
        }
    }
}

/// The pages of a range are given back one by one, and one flush follows for all (XSA-346).
#[test]
fn xsa_346_pages_given_back_before_the_flush_of_all() {
    for planted in [true, false] {
        let mut plain = Plain::new();
        let (entries, frames) = ((0x3000..0x3080).step_by(8), (LEAF..).step_by(PAGE as usize));
        for (at, leaf) in entries.clone().zip(frames) {
            plain.store(at, leaf);
        }
        plain.speculate();
        let mut given_back = Vec::new();
        for at in entries {
            let frame = plain.load(at) & !0xfff;
            plain.store(at, 0);
            given_back.push(frame);
            if planted {
                let reached = plain.checker.freed(frame..=frame + 0xfff);
                assert_eq!(reached.len(), 2, "by a translation, and by a combined one");
                assert_eq!(reached[0].why, Why::Freed);
            }
        }
        plain.checker.intel(&FLUSH);
        for frame in given_back {
            assert!(plain.checker.freed(frame..=frame + 0xfff).is_empty());
        }
    }
}

/// Which id is whose is forgotten first, and flushes are then of nobody's (XSA-399).
#[test]
fn xsa_399_an_id_that_is_forgotten_before_its_last_flush() {
    const GUEST: u32 = 7;
    for planted in [true, false] {
        let mut plain = Plain::new();
        plain.store(0x3000, LEAF);
        plain.speculate();
        let mut ids = BTreeMap::from([(GUEST, 0x1e)]);
        // The guest ends.
        plain.store(0x3000, 0);
        if planted {
            ids.remove(&GUEST);
        }
        if let Some(&eptp) = ids.get(&GUEST) {
            plain.checker.intel(&intel::Instruction::Invept { kind: 1, descriptor: [eptp, 0] });
        }
        ids.remove(&GUEST);
        assert_eq!(!plain.complete().is_empty(), planted);
        // The next guest gets the id, and with it the page.
        assert_eq!(!plain.checker.access(PLAIN, 0).is_empty(), planted);
    }
}

/// The CPUs in the guest are sent an interrupt, and are not waited for (FreeBSD D26910).
#[test]
fn freebsd_d26910_vcpus_that_have_not_left_yet() {
    for planted in [true, false] {
        let slots = [const { AtomicU64::new(0) }; 2];
        let running = Running::new(&slots);
        let mut plain = Plain::new();
        plain.store(0x3000, LEAF);
        // CPU 0 is in the guest.
        assert!(!running.enter(0));
        plain.speculate();
        // CPU 1 takes the page away.
        plain.store(0x3000, 0);
        let due = running.require();
        let mut interrupted = Vec::new();
        running.for_each_late(due, |cpu| interrupted.push(cpu));
        assert_eq!(interrupted, [0]);
        assert!(!running.is_complete(due));
        if planted {
            // It has been told. It has not left.
            assert!(!plain.complete().is_empty());
            assert!(!plain.checker.freed(0x55_5000..=0x55_5fff).is_empty());
            continue;
        }
        running.leave(0);
        assert!(running.is_complete(due));
        // Before it is in the guest again it flushes, as `enter` says.
        assert!(running.enter(0));
        plain.checker.intel(&FLUSH);
        assert!(plain.complete().is_empty());
        assert!(plain.checker.freed(0x55_5000..=0x55_5fff).is_empty());
    }
}

/// Whether a page was written is asked the wrong way round (XSA-319, of a screen's pages): what is
/// flushed is what was not.
#[test]
fn xsa_319_an_inverted_question_whether_a_page_is_dirty() {
    const DIRTY: u64 = 1 << 9;
    for planted in [true, false] {
        let mut plain = Plain::new();
        // Accessed both, and one of them dirty.
        plain.store(0x3000, LEAF | 0x100 | DIRTY);
        plain.store(0x3008, (LEAF + PAGE) | 0x100);
        plain.speculate();
        let mut screen = Vec::new();
        for at in [0x3000, 0x3008] {
            let entry = plain.load(at);
            plain.store(at, entry & !DIRTY);
            if (entry & DIRTY != 0) != planted {
                screen.push(at);
            }
        }
        // Each that is to be drawn anew is flushed by itself.
        let flushed = |start: u64| screen.contains(&(0x3000 + start / PAGE * 8));
        plain.checker.invalidate(|copy| flushed(copy.start));
        let lost = plain.complete();
        assert_eq!(!lost.is_empty(), planted);
        assert!(lost.iter().all(|finding| finding.why == Why::Dirty && finding.copy.start == 0));
    }
}

/// A pool is asked beforehand for the tables that an operation needs, and not for what the log of its
/// writes does: short of that, the log takes the table that was just made (XSA-427).
#[test]
fn xsa_427_a_log_takes_the_table_that_was_just_made() {
    for planted in [true, false] {
        let mut plain = Plain::new();
        let mut pool = vec![0x4000];
        plain.speculate();
        // A page in the next 2 MiB: one table, and one page of the log.
        let needed = if planted { 1 } else { 2 };
        if pool.len() < needed {
            // Nothing has changed.
            plain.speculate();
            assert!(plain.complete().is_empty());
            assert_eq!(pool, [0x4000]);
            continue;
        }
        let table = pool.pop().unwrap();
        plain.store(table, LEAF);
        plain.store(0x2008, table | 7);
        plain.speculate();
        // The log finds the pool empty, and has the newest table taken back.
        let log = pool.pop().unwrap_or_else(|| {
            plain.store(0x2008, 0);
            table
        });
        let reached = plain.checker.freed(log..=log + 0xfff);
        assert_eq!(reached.len(), 1);
        assert_eq!((reached[0].copy.what, reached[0].why), (What::Table, Why::Freed));
        // What it notes there is what hardware takes for entries.
        plain.store(log + 8, 0xbad_0007);
        plain.speculate();
        assert!(!plain.checker.freed(0xbad_0000..=0xbad_0fff).is_empty());
    }
}

/// Memory whose walks do not see the caches, and the caches.
struct Cached<'a> {
    arena: &'a Arena<'a, u64>,
    /// What a walk reads, from [`TABLES`] on.
    main: RefCell<Vec<u8>>,
    /// New tables are not written back.
    forgets_tables: Cell<bool>,
}

// SAFETY: the cells are the arena's.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl TableMemory<u64> for Cached<'_> {
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        TableMemory::<u64>::table(self.arena, address, entries)
    }

    fn publish(&self, address: u64, bytes: u64) {
        if bytes == PAGE && self.forgets_tables.get() {
            return;
        }
        let cells = self.table(address, (bytes / 8) as usize).unwrap();
        for (at, cell) in (address - TABLES..).step_by(8).zip(cells) {
            let entry = cell.load(std::sync::atomic::Ordering::Relaxed);
            self.main.borrow_mut()[at as usize..][..8].copy_from_slice(&entry.to_le_bytes());
        }
    }
}

/// A table is zeroed and linked, and the zeroes are still in the cache when it is walked (XSA-321): what
/// is walked is what the frame's last owner left.
#[test]
fn xsa_321_a_new_table_that_was_not_written_back() {
    const FRAMES: u64 = 8;
    const LEFT: u64 = 0x66_6037;
    let format = ept().format;
    let attributes = ept_entries::Attributes::new(PERMISSIONS[0], Type::Wb);
    let leaves = Leaves::new(&format, &attributes).unwrap();
    for planted in [true, false] {
        let cells: Vec<_> = (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect();
        let arena = Arena::<u64>::new(TABLES, &cells).unwrap();
        let main = (0..FRAMES * 512).flat_map(|_| LEFT.to_le_bytes()).collect();
        let memory =
            Cached { arena: &arena, main: RefCell::new(main), forgets_tables: false.into() };
        let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &memory, &arena).unwrap();
        let mut checker = Checker::new(format);
        checker.run(PLAIN, tables.stage().root);
        memory.forgets_tables.set(planted);
        let served = tables.fault::<_, Live>(&arena, Gpa::new(0), Spa::new(0x55_5000), 0, &leaves);
        assert_eq!(served, Ok(Served::Installed { level: 0 }));
        let mut main = memory.main.borrow_mut();
        checker.speculate(&mut SliceMemory::new(Spa::new(TABLES), &mut main));
        assert_eq!(!checker.freed(0x66_6000..=0x66_6fff).is_empty(), planted);
        assert!(!checker.freed(0x55_5000..=0x55_5fff).is_empty(), "the page is mapped");
    }
}
