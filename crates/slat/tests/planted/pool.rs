//! What a guest can use up.

use std::sync::atomic::AtomicU64;

use slat::audit::{Policy, Rule};
use slat::edit::{Arena, Donated, Error, Frame, FrameSource, Live, Served};
use slat::{Gpa, Spa};

use super::world::{BLOCK, GUEST, PAGE, RWX, Records, World, ept_with, rules};

/// XSA-409: tables of a guest come from a pool of its own, and from nowhere else.
#[test]
fn xsa_409_tables_from_beyond_the_guests_pool() {
    /// A pool, and what the copy goes to when it is empty.
    struct Pool<'a> {
        own: Donated<'a>,
        host: Option<&'a Arena<'a, u64>>,
    }

    impl FrameSource for Pool<'_> {
        fn take(&self, bytes: u64) -> Option<Frame> {
            self.own.take(bytes).or_else(|| self.host?.take(bytes))
        }
        fn put(&self, frame: Frame) {
            self.own.put(frame);
        }
    }

    let (format, leaves) = ept_with(RWX);
    for planted in [true, false] {
        let mut world = World::new(format);
        let slots = [const { AtomicU64::new(0) }; 8];
        let own = Donated::new(PAGE, &slots);
        // For two more levels and three tables of pages.
        for _ in 0..5 {
            own.donate(world.arena.take(PAGE).unwrap()).unwrap();
        }
        let pool = Pool { own, host: planted.then_some(world.arena) };
        // The guest touches pages far apart.
        let mut refused = 0;
        for block in 0..6 {
            let (at, to) = (Gpa::new(block * BLOCK), Spa::new(GUEST + block * PAGE));
            match world.tables.fault::<_, Live>(&pool, at, to, 0, &leaves) {
                Ok(Served::Installed { level: 0 }) => {}
                Err(Error::NoFrame { bytes: PAGE, .. }) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        let findings =
            world.audit(Policy { table_budget: 6, ..Policy::default() }, Records::default());
        assert_eq!(refused, if planted { 0 } else { 3 });
        assert_eq!(rules(&findings).len(), usize::from(planted), "{findings:?}");
        assert!(findings.iter().all(|finding| finding.rule == Rule::TableBudget));
    }
}
