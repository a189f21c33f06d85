//! Tables that are changed store by store, as real hypervisors once changed theirs.

use slat::edit::{Arena, Encode, Gather, Leaves, Live, Tables, Word, ept as ept_entries};
use slat::format::ept::{self, Ept};
use slat::invalidate::{By, Context, intel};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};
use slat_mmu::checker::{Checker, What, Why};

use super::formats::{ept, riscv_g};
use super::plain::{FLUSH, PLAIN, Plain};
use super::world::{Op, PERMISSIONS, TABLES, sequence};

/// A table page is used again before the walk caches are flushed (XSA-480, CVE-2026-23554): the
/// flush is deferred, the free is not.
#[test]
fn xsa_480_freed_before_the_flush() {
    use slat::{EntryLayout, SliceMemory};
    let mut bytes = vec![0; 5 * 4096];
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    for (at, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x55_5037)] {
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    }
    let context = Context::Ept { eptp: 0x1e };
    let mut checker = Checker::new(Ept::four(ept::Features::default()));
    checker.run(context, 0);
    checker.speculate(&mut memory);
    memory.poke(Spa::new(0x2000), EntryLayout::LE64, 0).unwrap();
    let reaching = checker.freed(0x3000..=0x3fff);
    assert_eq!(reaching.len(), 1);
    assert_eq!((reaching[0].copy.what, reaching[0].why), (What::Table, Why::Freed));
    // Its new owner writes what looks like a mapping, and the guest gets it.
    memory.poke(Spa::new(0x3008), EntryLayout::LE64, 0xbad_0037).unwrap();
    checker.speculate(&mut memory);
    assert!(!checker.freed(0xbad_0000..=0xbad_0fff).is_empty());
    checker.intel(&intel::Instruction::Invept { kind: 1, descriptor: [0x1e, 0] });
    assert!(checker.freed(0x3000..=0x3fff).is_empty());
    assert!(checker.freed(0xbad_0000..=0xbad_0fff).is_empty());
}

/// A live entry is built in pieces: between two stores it names a table that nobody made (XSA-328).
#[test]
fn xsa_328_entry_built_in_pieces() {
    for pieces in [true, false] {
        let mut plain = Plain::new();
        // A 2 MiB page at 5 GiB becomes a table at 0x3000.
        plain.store(0x2000, 0x1_4000_00b7);
        plain.speculate();
        let table = 0x3007;
        if pieces {
            let half = plain.load(0x2000) & !0xffff_ffff | table;
            plain.store(0x2000, half);
            plain.speculate();
        }
        plain.store(0x2000, table);
        plain.speculate();
        let reached = plain.checker.freed(0x1_0000_3000..=0x1_0000_3fff);
        assert_eq!(!reached.is_empty(), pieces, "a processor walks what was never a table");
        assert!(reached.iter().all(|finding| finding.copy.what == What::Table));
    }
}

/// A new entry is written field by field, its address first and its permissions last (XSA-347). What
/// was empty needs no flush: a processor keeps what it read between the two.
#[test]
fn xsa_347_entry_written_field_by_field() {
    const ALL: u64 = 0x37;
    const READ: u64 = 0x31;
    for planted in [true, false] {
        let mut plain = Plain::new();
        plain.speculate();
        if planted {
            // What a cleared entry has in the other fields.
            plain.store(0x3000, 0x55_5000 | ALL);
            plain.speculate();
        }
        plain.store(0x3000, 0x55_5000 | READ);
        plain.speculate();
        let widened = plain.complete();
        assert_eq!(widened.iter().any(|finding| finding.why == Why::Rights), planted);
    }
    // The library's entries are one store.
    let map = Op::Map { start: 0, pages: 4, output: 0, rights: 1, grouped: false };
    assert!(sequence(&ept(), &[map]).iter().all(|(_, findings)| findings.is_empty()));
}

/// An update reads an entry, and stores it anew: a dirty bit that hardware set in between is gone
/// (KVM 4f510c8bb1dd). The processor's translation is dirty, so that it never says so again.
#[test]
fn kvm_4f510c8bb1dd_dropped_dirty_bit() {
    for planted in [true, false] {
        let mut plain = Plain::new();
        plain.store(0x3000, 0x55_5133);
        plain.speculate();
        let read = plain.load(0x3000);
        // Hardware writes through the page.
        plain.store(0x3000, read | 0x200);
        plain.speculate();
        // A change that needs no flush: execution is permitted.
        let old = if planted { read } else { plain.load(0x3000) };
        plain.store(0x3000, old | 4);
        let lost = plain.complete().iter().any(|finding| finding.why == Why::Dirty);
        assert_eq!(lost, planted);
    }
}

/// An unmap that looks for valid entries passes over what is occupied and not valid; made valid again,
/// it maps a page that has been given away (XSA-393, CVE-2022-23033).
#[test]
fn xsa_393_unmap_of_valid_entries_only() {
    const OCCUPIED: u64 = 0x55_5030; // its permissions are taken for a while
    for planted in [true, false] {
        let mut plain = Plain::new();
        plain.store(0x3000, OCCUPIED);
        for at in (0x3000..0x4000).step_by(8) {
            let gone = if planted { plain.load(at) & 7 != 0 } else { plain.load(at) != 0 };
            if gone {
                plain.store(at, 0);
            }
        }
        plain.checker.intel(&FLUSH);
        assert!(plain.complete().is_empty());
        // Whoever gives permissions back finds the entry.
        if plain.load(0x3000) != 0 {
            plain.store(0x3000, OCCUPIED | 7);
        }
        plain.speculate();
        let reaching = plain.checker.freed(0x55_5000..=0x55_5fff);
        assert_eq!(!reaching.is_empty(), planted, "the guest keeps a page that was freed");
    }
    // The library's removal is over occupied entries.
    let cells: Vec<_> = (0..8 * 512).map(|_| std::sync::atomic::AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(TABLES, &cells).unwrap();
    let format = ept().format;
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let permissions = PERMISSIONS[0];
    let leaves =
        Leaves::new(&format, &ept_entries::Attributes::new(permissions, Type::Wb)).unwrap();
    let served = tables.fault::<_, Live>(&arena, Gpa::new(0), Spa::new(0x55_5000), 0, &leaves);
    assert!(served.is_ok());
    let leaf = cells.iter().find(|cell| u64::load(cell, RELAXED) == 0x55_5037).unwrap();
    u64::store(leaf, OCCUPIED, RELAXED);
    let removed = tables.remove::<Live>(Gpa::new(0), PLAIN, |leak| panic!("{leak}")).unwrap();
    removed.unwrap().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    assert_eq!(u64::load(leaf, RELAXED), 0);
}

const RELAXED: std::sync::atomic::Ordering = std::sync::atomic::Ordering::Relaxed;

/// A block whose permissions are all taken becomes, where that is how a pointer looks, a table whose
/// entries the guest writes (pKVM-IA#104).
#[test]
fn pkvm_ia_104_data_page_read_as_a_table() {
    use slat::{EntryLayout, SliceMemory};
    let format = riscv_g().format;
    let block = 0x20_0000u64;
    let leaf = (block >> 2) | 0xf; // a 2 MiB page, readable, writable, executable
    for planted in [true, false] {
        let mut bytes = vec![0; 0x5000];
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        memory.poke(Spa::new(0), EntryLayout::LE64, 0x4000 >> 2 | 1).unwrap();
        let entry = if planted {
            leaf & !0xe
        } else {
            // What the library answers is no entry.
            let none = Permissions { read: false, write: false, execute: false };
            assert!(format.permit(none, 1).is_err());
            0
        };
        memory.poke(Spa::new(0x4000), EntryLayout::LE64, entry).unwrap();
        let mut checker = Checker::new(format);
        checker.run(Context::GStage { vmid: 3 }, 0);
        checker.speculate(&mut memory);
        let walked = checker.freed(block..=block + 0xfff);
        assert_eq!(!walked.is_empty(), planted);
        assert!(walked.iter().all(|finding| finding.copy.what == What::Table));
    }
}

/// Pages become a larger one although they do not begin where it would (XSA-388): hardware sees a
/// reserved entry, or another place.
#[test]
fn xsa_388_misaligned_superpage() {
    let mut plain = Plain::new();
    for page in 0..512 {
        plain.store(0x3000 + page * 8, 0x4000_1037 + page * 4096);
    }
    plain.speculate();
    plain.store(0x2000, 0x4000_10b7);
    plain.checker.intel(&FLUSH);
    plain.speculate();
    assert!(plain.checker.freed(0x4000_1000..=0x4000_1fff).is_empty(), "nothing translates");
    // The library leaves such pages as they are.
    let subject = ept();
    let map = Op::Map { start: 0, pages: 512, output: 1, rights: 0, grouped: false };
    let ops = [map, Op::Collapse { start: 0 }, Op::Touch { page: 7, write: true }];
    assert!(sequence(&subject, &ops).iter().all(|(_, findings)| findings.is_empty()));
}
