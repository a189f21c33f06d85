//! Frames that change hands while a guest maps them: what is removed, and when whose they are changes.

use std::sync::atomic::Ordering::Relaxed;

use slat::Gpa;
use slat::audit::{Finding, Owner, Policy, Rule};
use slat::edit::Leaves;
use slat::format::ept::Ept;

use super::world::{GUEST, PAGE, RWX, Records, World, ept_with, rules, stage2};

/// XSA-393 (CVE-2022-23033): Xen takes the valid bit of entries to see which pages a guest uses, and
/// sets it again in the fault that follows. Its removal asked whether an entry is valid.
#[test]
fn xsa_393_removal_passes_by_entries_without_their_valid_bit() {
    let (format, leaves) = stage2(48);
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, 8 * PAGE, &leaves);
        for page in [2, 5] {
            world.cell(page * PAGE).0.fetch_and(!1, Relaxed);
        }
        if planted {
            for page in 0..8 {
                let (cell, _) = world.cell(page * PAGE);
                if cell.load(Relaxed) & 1 != 0 {
                    cell.store(0, Relaxed);
                }
            }
        } else {
            world.run(|cursor| cursor.unmap(Gpa::new(0), 8 * PAGE, ()));
        }
        // The guest's pages are freed; then it uses them all once more, and what says an address
        // becomes valid.
        for page in 0..8 {
            let (cell, level) = world.cell(page * PAGE);
            if level == 0 && cell.load(Relaxed) & !1 != 0 {
                cell.fetch_or(1, Relaxed);
            }
        }
        let freed = (0..8).map(|page| GUEST + page * PAGE).collect();
        let findings = world.audit(Policy::default(), Records { freed, ..Records::default() });
        let expected: &[_] = if planted {
            &[(Rule::FreedFrame, 2 * PAGE), (Rule::FreedFrame, 5 * PAGE)]
        } else {
            &[]
        };
        assert_eq!(rules(&findings), expected);
    }
}

/// 16 pages of the guest's.
fn mapped() -> (World<Ept>, Leaves) {
    let (format, leaves) = ept_with(RWX);
    let leaves = leaves.up_to(0);
    let mut world = World::new(format);
    world.map(0, GUEST, 16 * PAGE, &leaves);
    (world, leaves)
}

fn unmap(world: &mut World<Ept>, page: u64, pages: u64) {
    world.run(|cursor| cursor.unmap(Gpa::new(page * PAGE), pages * PAGE, ()));
}

/// The audit, where `frames` are `owner`'s.
fn owned(world: &World<Ept>, owner: Owner, frames: &[u64]) -> Vec<Finding> {
    let others = frames.iter().map(|&frame| (frame, owner)).collect();
    let records = Records { others, aliases: true, ..Records::default() };
    world.audit(Policy::default(), records)
}

/// Firmware's memory, which a device of the guest's uses: identity-mapped for as long as that is
/// assigned.
const RESERVED: u64 = 0x80_0000;

/// XSA-378: of an identity map of two ranges that overlap, the end of one assignment took what its own
/// range began with, and a guest without the device kept the rest.
#[test]
fn xsa_378_an_identity_map_outlives_its_device() {
    for planted in [true, false] {
        let (mut world, leaves) = mapped();
        // Firmware names pages 0 to 5, and 4 to 7 once more.
        world.map(RESERVED, RESERVED, 8 * PAGE, &leaves);
        let frames: Vec<u64> = (0..8).map(|page| RESERVED + page * PAGE).collect();
        let all = if planted { 4 } else { 8 };
        unmap(&mut world, RESERVED / PAGE, all);
        let left = owned(&world, Owner::Hypervisor, &frames);
        let expected: Vec<_> =
            frames[all as usize..].iter().map(|&frame| (Rule::ForeignFrame, frame)).collect();
        assert_eq!(rules(&left), expected);
    }
}

/// XSA-386, XSA-400: the device goes to another guest, and the map of its reserved memory goes with
/// neither: the first keeps it.
#[test]
fn xsa_386_xsa_400_reserved_memory_of_a_device_that_went_to_another() {
    for planted in [true, false] {
        let (mut first, leaves) = mapped();
        let (mut second, _) = mapped();
        first.map(RESERVED, RESERVED, 4 * PAGE, &leaves);
        let frames: Vec<u64> = (0..4).map(|page| RESERVED + page * PAGE).collect();
        assert_eq!(owned(&first, Owner::Guest, &frames), [], "it is this guest's while it has it");
        // The copy moves the device and maps for the new owner alone.
        if !planted {
            unmap(&mut first, RESERVED / PAGE, 4);
        }
        second.map(RESERVED, RESERVED, 4 * PAGE, &leaves);
        assert_eq!(owned(&second, Owner::Guest, &frames), []);
        let left = owned(&first, Owner::Other, &frames);
        let expected: Vec<_> = frames.iter().map(|&frame| (Rule::ForeignFrame, frame)).collect();
        assert_eq!(rules(&left), if planted { expected } else { vec![] });
    }
}

/// XSA-379, XSA-384: the hypervisor's status page is taken back where it was recorded to be mapped. A
/// second map, at another address, raced with the first and was never recorded.
#[test]
fn xsa_379_xsa_384_a_status_page_that_is_mapped_where_nobody_knows() {
    const STATUS: u64 = GUEST + (1 << 20);
    for planted in [true, false] {
        let (mut world, leaves) = mapped();
        let places = [32 * PAGE, 40 * PAGE];
        for at in places {
            world.map(at, STATUS, PAGE, &leaves);
        }
        // One record a frame: the copy's second map is written over the first.
        let recorded = if planted { &places[1..] } else { &places[..] };
        for at in recorded {
            unmap(&mut world, at / PAGE, 1);
        }
        let left = owned(&world, Owner::Hypervisor, &[STATUS]);
        let expected = [(Rule::ForeignFrame, places[0])];
        assert_eq!(rules(&left), if planted { &expected[..] } else { &[] });
    }
}

/// XSA-473: another guest's page stays mapped after that guest took it back: its removal looks for pages
/// of this guest's own.
#[test]
fn xsa_473_a_foreign_page_is_passed_by() {
    const FOREIGN: u64 = GUEST + (8 << 20);
    for planted in [true, false] {
        let (mut world, leaves) = mapped();
        world.map(64 * PAGE, FOREIGN, 2 * PAGE, &leaves);
        let own = |page: u64| {
            let (cell, _) = world.cell(page * PAGE);
            cell.load(Relaxed) & 0xf_ffff_f000 < FOREIGN
        };
        let removed: Vec<u64> = (0..66).filter(|&page| !planted || own(page)).collect();
        for page in removed {
            unmap(&mut world, page, 1);
        }
        let left = owned(&world, Owner::Other, &[FOREIGN, FOREIGN + PAGE]);
        let expected = [(Rule::ForeignFrame, 64 * PAGE), (Rule::ForeignFrame, 65 * PAGE)];
        assert_eq!(rules(&left), if planted { &expected[..] } else { &[] });
    }
}

/// XSA-507: pages that hold nothing but zeroes are taken back from the guest, to be given again when they
/// are next used. One of them is not the guest's, but a page of the hypervisor's that it shares: given
/// again, it is what the guest writes over.
#[test]
fn xsa_507_a_special_page_is_reclaimed_and_given_again() {
    const SPECIAL: u64 = GUEST + 5 * PAGE;
    for planted in [true, false] {
        let (mut world, leaves) = mapped();
        // As long as it is shared, the guest may map it.
        assert_eq!(owned(&world, Owner::Shared, &[SPECIAL]), []);
        let zero = [2, 5, 7];
        let reclaimed: Vec<u64> = zero
            .into_iter()
            .filter(|&page| planted || page != SPECIAL % (1 << 20) / PAGE)
            .collect();
        for &page in &reclaimed {
            unmap(&mut world, page, 1);
        }
        // The hypervisor ends the sharing where it knows of it.
        if !planted {
            unmap(&mut world, 5, 1);
        }
        for &page in &reclaimed {
            world.map((32 + page) * PAGE, GUEST + page * PAGE, PAGE, &leaves);
        }
        let left = owned(&world, Owner::Hypervisor, &[SPECIAL]);
        let expected = [(Rule::ForeignFrame, 37 * PAGE)];
        assert_eq!(rules(&left), if planted { &expected[..] } else { &[] });
    }
}

/// What pKVM's tracking of donated pages is for: a page that the host gives to a guest leaves the host's
/// tables before it enters the guest's.
#[test]
fn pkvm_a_donated_page_stays_with_its_donor() {
    for planted in [true, false] {
        let (mut host, leaves) = mapped();
        let (format, _) = ept_with(RWX);
        let mut guest = World::new(format);
        if !planted {
            unmap(&mut host, 3, 1);
        }
        guest.map(0, GUEST + 3 * PAGE, PAGE, &leaves);
        let left = owned(&host, Owner::Other, &[GUEST + 3 * PAGE]);
        let expected = [(Rule::ForeignFrame, 3 * PAGE)];
        assert_eq!(rules(&left), if planted { &expected[..] } else { &[] });
        assert_eq!(owned(&guest, Owner::Guest, &[]), []);
    }
}
