//! While writes are logged by pages, nobody writes unseen: no larger page is writable, and no page that
//! another still logs.

use std::sync::atomic::Ordering::Relaxed;

use slat::audit::{Policy, Rule};
use slat::edit::{Live, Served};
use slat::{Gpa, Spa};

use super::world::{BLOCK, GUEST, PAGE, RO, RWX, Records, World, ept_with, rules};

const LOGGING: Policy = Policy {
    logging: true,
    write_xor_execute: false,
    no_executable_large: false,
    table_budget: u64::MAX,
    frozen: None,
    most_tables: 1 << 20,
};
const WRITE: u64 = 2;

/// KVM a216e24fc947: a write to a large page that is write-protected for the log gives write permission
/// back to all of it.
#[test]
fn kvm_a216e24fc947_a_write_fault_makes_a_large_page_writable() {
    let (format, leaves) = ept_with(RWX);
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, BLOCK, &leaves);
        world.run(|cursor| cursor.protect(Gpa::new(0), BLOCK, RO, ()));
        assert_eq!(world.audit(LOGGING, Records::default()), []);
        // The guest writes to page 7.
        if planted {
            let (block, level) = world.cell(7 * PAGE);
            assert_eq!(level, 1);
            block.fetch_or(WRITE, Relaxed);
        } else {
            // Exactly the page: the library splits what is around it.
            world.run(|cursor| cursor.protect(Gpa::new(7 * PAGE), PAGE, RWX, ()));
        }
        let (page, _) = world.cell(7 * PAGE);
        assert_ne!(page.load(Relaxed) & WRITE, 0, "the guest goes on");
        let findings = world.audit(LOGGING, Records::default());
        let expected: &[_] = if planted { &[(Rule::LargeWritableWhileLogging, 0)] } else { &[] };
        assert_eq!(rules(&findings), expected);
    }
}

/// KVM b342166cbcf9: the memory behind a page that faults is a large one, so that a large one is mapped,
/// log or no log.
#[test]
fn kvm_b342166cbcf9_a_fault_maps_a_large_page_while_logging() {
    let (format, leaves) = ept_with(RWX);
    for planted in [true, false] {
        let mut world = World::new(format);
        let (level, most) = if planted { (1, leaves) } else { (0, leaves.up_to(0)) };
        let to = if planted { GUEST } else { GUEST + 7 * PAGE };
        let at = Gpa::new(7 * PAGE);
        let served = world.tables.fault::<_, Live>(world.arena, at, Spa::new(to), level, &most);
        assert_eq!(served, Ok(Served::Installed { level }));
        let findings = world.audit(LOGGING, Records::default());
        let expected: &[_] = if planted { &[(Rule::LargeWritableWhileLogging, 0)] } else { &[] };
        assert_eq!(rules(&findings), expected);
    }
}

/// XSA-397: two log writes at a time, one of a screen's pages and one of all for a migration. The end of
/// the first gives write permission back to pages that the second still logs.
#[test]
fn xsa_397_the_end_of_one_log_ends_another() {
    const SCREEN: [u64; 4] = [16, 17, 18, 19];
    let (format, leaves) = ept_with(RWX);
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, 64 * PAGE, &leaves.up_to(0));
        world.run(|cursor| cursor.protect(Gpa::new(16 * PAGE), 4 * PAGE, RO, ()));
        // The migration begins.
        world.run(|cursor| cursor.protect(Gpa::new(0), 64 * PAGE, RO, ()));
        let mut protected: std::collections::BTreeSet<u64> =
            (0..64).map(|page| page * PAGE).collect();
        // Page 17 is written, and is in both logs.
        world.run(|cursor| cursor.protect(Gpa::new(17 * PAGE), PAGE, RWX, ()));
        protected.remove(&(17 * PAGE));
        // The screen is no longer looked at.
        for page in SCREEN {
            let logged = protected.contains(&(page * PAGE));
            if planted || !logged {
                world.run(|cursor| cursor.protect(Gpa::new(page * PAGE), PAGE, RWX, ()));
            }
        }
        let findings = world.audit(LOGGING, Records { protected, ..Records::default() });
        let expected = [16, 18, 19].map(|page| (Rule::Widened, page * PAGE));
        assert_eq!(rules(&findings), if planted { &expected[..] } else { &[] });
    }
}
