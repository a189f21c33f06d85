//! A walk of software's own that goes on in what it has freed.

use std::sync::atomic::Ordering::Relaxed;

use slat::audit::{Policy, Rule};
use slat::edit::{Encode, Frame, FrameSource, Live, ept};
use slat::format::{Decoded, Format};
use slat::memory_type::x86::Type;
use slat::{Gpa, Spa};

use super::world::{BLOCK, GUEST, PAGE, RWX, Records, World, ept_with, rules};

/// KVM/arm64 in Linux 6.4: the visitor puts a block in the place of a table and frees that, and the walker
/// goes down into the table that it had read before. Meanwhile the frame is a table of other pages.
#[test]
fn kvm_arm64_6_4_a_walker_goes_on_in_a_subtree_that_it_freed() {
    let (format, leaves) = ept_with(RWX);
    let attributes = ept::Attributes::new(RWX, Type::Wb);
    let leaf = |level| format.leaf(&attributes, level).unwrap();
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, BLOCK, &leaves.up_to(0));
        if planted {
            // Everything but the table of pages, which is level 1's entry 0, is found as for a page.
            let (page, _) = world.cell(0);
            let at = (page as *const _ as u64 - world.cells.as_ptr() as u64) / PAGE * PAGE;
            let link = world.cells.iter().find(|cell| {
                matches!(format.decode(cell.load(Relaxed), 1), Decoded::Table { next } if next == at)
            });
            let block = leaf(1) | format.place(GUEST, 1);
            link.unwrap().store(block, Relaxed);
            for cell in &world.cells[(at / 8) as usize..][..512] {
                cell.store(0, Relaxed);
            }
            world.arena.put(Frame::new(at, PAGE));
            // A fault takes the frame for another table.
            let (other, to) = (Gpa::new(5 * BLOCK), Spa::new(GUEST + 5 * BLOCK));
            world.tables.fault::<_, Live>(world.arena, other, to, 0, &leaves.up_to(0)).unwrap();
            // And the walker visits the pages of the table that was there: it has them mapped.
            for (number, cell) in (0..512).zip(&world.cells[(at / 8) as usize..]) {
                if cell.load(Relaxed) == 0 {
                    cell.store(leaf(0) | format.place(GUEST + number * PAGE, 0), Relaxed);
                }
            }
        } else {
            world.run(|cursor| cursor.collapse(Gpa::new(0), BLOCK, 1));
            let (other, to) = (Gpa::new(5 * BLOCK), Spa::new(GUEST + 5 * BLOCK));
            world.tables.fault::<_, Live>(world.arena, other, to, 0, &leaves.up_to(0)).unwrap();
        }
        assert_eq!(world.cell(0).1, 1, "it is a block");
        let findings = world.audit(Policy::default(), Records::default());
        let expected: Vec<_> = (1..if planted { 512 } else { 1 })
            .map(|page| (Rule::MappedTwice, 5 * BLOCK + page * PAGE))
            .collect();
        assert_eq!(rules(&findings), expected);
    }
}
