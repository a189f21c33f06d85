//! What one entry says is not what another says of the same bytes.

use std::sync::atomic::Ordering::Relaxed;

use slat::audit::{Policy, Rule};
use slat::edit::{Encode, FrameSource, ept};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions};

use super::world::{BLOCK, GUEST, PAGE, RO, RWX, Records, World, ept_with, rules};

const RW: Permissions = Permissions { read: true, write: true, execute: false };

/// A split after which the parts may be read, written and executed, whatever the whole was.
#[test]
fn a_split_that_permits_everything() {
    let (format, leaves) = ept_with(RO);
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, BLOCK, &leaves);
        let (block, level) = world.cell(0);
        assert_eq!(level, 1);
        if planted {
            let table = world.arena.take(PAGE).unwrap().address();
            let parts = &world.cells[(table / 8) as usize..][..512];
            for (part, cell) in (0..).zip(parts) {
                let memory_type = block.load(Relaxed) & 0x78;
                cell.store((GUEST + part * PAGE) | memory_type | 7, Relaxed);
            }
            block.store(format.table(table, 1), Relaxed);
        } else {
            world.run(|cursor| cursor.split(Gpa::new(0), BLOCK, 0));
        }
        assert_eq!(world.cell(7 * PAGE).1, 0, "it is split");
        let findings =
            world.audit(Policy::default(), Records { read_only: true, ..Records::default() });
        let expected = if planted { 512 } else { 0 };
        assert_eq!(findings.len(), expected);
        assert!(findings.iter().all(|finding| finding.rule == Rule::Widened));
        // Where nothing is known of the frames, the policy finds it.
        let strict = Policy { write_xor_execute: true, ..Policy::default() };
        let findings = world.audit(strict, Records::default());
        assert_eq!(findings.len(), expected);
    }
}

/// One frame at two addresses, of which the change of its memory type reaches one.
#[test]
fn a_memory_type_that_changes_in_one_of_two_mappings() {
    let (format, leaves) = ept_with(RWX);
    let uncached = ept::Memory { memory_type: Type::Uc, ignore_pat: false };
    for planted in [true, false] {
        let mut world = World::new(format);
        let aliases = [0, 64 * PAGE];
        for at in aliases {
            world.map(at, GUEST, 4 * PAGE, &leaves.up_to(0));
        }
        // The copy follows one mapping, and does not ask for others.
        for at in aliases.into_iter().take(if planted { 1 } else { 2 }) {
            world.run(|cursor| cursor.retype(Gpa::new(at + PAGE), PAGE, uncached, ()));
        }
        let findings =
            world.audit(Policy::default(), Records { aliases: true, ..Records::default() });
        let expected: &[_] = if planted { &[(Rule::MemoryTypeAlias, 65 * PAGE)] } else { &[] };
        assert_eq!(rules(&findings), expected);
    }
}

/// XSA-304 (CVE-2018-12207): where a processor fails on an executable page that changes its size, large
/// pages are not executable. The guest fetches from one: what becomes executable is a page of it.
#[test]
fn xsa_304_a_fetch_makes_a_large_page_executable() {
    let (format, leaves) = ept_with(RW);
    let policy = Policy { no_executable_large: true, ..Policy::default() };
    for planted in [true, false] {
        let mut world = World::new(format);
        world.map(0, GUEST, BLOCK, &leaves);
        if planted {
            world.cell(0).0.fetch_or(4, Relaxed);
        } else {
            world.run(|cursor| cursor.protect(Gpa::new(7 * PAGE), PAGE, RWX, ()));
        }
        assert_ne!(world.cell(7 * PAGE).0.load(Relaxed) & 4, 0, "the guest goes on");
        let findings = world.audit(policy, Records::default());
        let expected: &[_] = if planted { &[(Rule::ExecutableLarge, 0)] } else { &[] };
        assert_eq!(rules(&findings), expected);
    }
}
