//! Exact reference counts: g levels over h levels read g*h + g + h entries.

use slat::Regime;
use slat::format::arm64::{Granule, Processor, Root, Stage1, Stage2};

use crate::world::{World, read};

const AF: u64 = 1 << 10;
const RW: u64 = 3 << 6;
const WB: u64 = 0xf << 2;

/// References of one translation, and the levels that its roots have.
fn count(
    granule: Granule,
    input_bits: u8,
    ipa_bits: u8,
    leaf1: u8,
    leaf2: u8,
) -> (u64, u64, u64, u32) {
    let processor = Processor { physical_bits: ipa_bits.max(40), ..Processor::default() };
    let stage1 = Stage1::plain(granule, input_bits, &processor).unwrap();
    let stage2 = Stage2::plain(granule, ipa_bits, &processor).unwrap();
    let leaf2 = leaf2.min(stage2.root_level());
    let geometry = *stage1.geometry();
    let root_level1 = ((u32::from(input_bits) - 1 - granule.bits()) / granule.stride()) as u8;
    // The tables and the page that is translated share one identity-mapped memory.
    let size = 1u64 << granule.bits();
    let mut world = World::new(0, 8 << 20);
    world.allocate(size);
    let root2 = world.allocate(1 << stage2.root_shift().max(granule.bits()));
    let root1 = world.allocate(size);
    let va = 3 * size + 0x128;
    world.identity(&stage1, root1, root_level1, leaf1, va, AF);
    let top = 8u64 << 20;
    let mut at = 0;
    while at < top {
        world.identity(&stage2, root2, stage2.root_level(), leaf2, at, AF | RW | WB);
        at += 1 << geometry.shift(leaf2);
    }
    let root = Root::from(root1);
    let (outcome, references) =
        world.walk((&stage1, root), (&stage2, root2), va, &read(), &Regime::default());
    let found = outcome.unwrap();
    assert_eq!(found.output().raw(), va);
    assert_eq!(u32::from(found.shift()), geometry.shift(leaf1.min(leaf2)));
    let g = u64::from(root_level1 - leaf1) + 1;
    let h = u64::from(stage2.root_level() - leaf2) + 1;
    (references, g, h, stage2.root_shift())
}

#[test]
fn four_over_concatenated_three_takes_19() {
    let (references, g, h, root_shift) = count(Granule::Four, 48, 40, 0, 0);
    assert_eq!((references, g, h), (19, 4, 3));
    assert_eq!(root_shift, 13, "two tables, concatenated");
}

#[test]
fn sixty_four_kib_granule_takes_15_and_11() {
    assert_eq!(count(Granule::SixtyFour, 48, 48, 0, 0).0, 15);
    assert_eq!(count(Granule::SixtyFour, 48, 40, 0, 0).0, 11);
}

#[test]
fn every_pair_of_depths_and_leaves() {
    for granule in [Granule::Four, Granule::Sixteen, Granule::SixtyFour] {
        for input_bits in [25u8, 30, 36, 39, 42, 47, 48, 49, 52] {
            for ipa_bits in [32u8, 36, 40, 42, 44, 48, 52] {
                for leaf in 0..=1u8 {
                    let depth1 = (u32::from(input_bits) - 1 - granule.bits()) / granule.stride();
                    if u32::from(leaf) > depth1 {
                        continue;
                    }
                    let (references, g, h, _) = count(granule, input_bits, ipa_bits, leaf, 1);
                    assert_eq!(
                        references,
                        g * h + g + h,
                        "{granule:?} {input_bits} over {ipa_bits}"
                    );
                }
            }
        }
    }
}

/// Tables that lead back to themselves end at the last level like any other.
#[test]
fn cycles_end() {
    use slat::{Failed, Fault};
    let processor = Processor { physical_bits: 40, ..Processor::default() };
    let stage1 = Stage1::plain(Granule::Four, 48, &processor).unwrap();
    let stage2 = Stage2::plain(Granule::Four, 40, &processor).unwrap();
    let mut world = World::new(0, 0x4000);
    // One table of stage 2 whose every entry leads to itself, and one of stage 1 at IPA 0, which
    // stage 2 takes to that same table: every entry is valid at every level.
    for index in 0..0x800 {
        world.set(8 * index, AF | RW | WB | 3);
    }
    let root = Root::from(0);
    let regime = Regime::default();
    for address in [0, 0x1234_5678_9000, 0x7fff_ffff_f000] {
        let (outcome, references) =
            world.walk((&stage1, root), (&stage2, 0), address, &read(), &regime);
        assert_eq!(references, 19);
        assert_eq!(outcome.unwrap().output().raw(), address & 0xfff);
    }
    // Without a first entry the first read of stage 2 is the last.
    world.set(0, 0);
    let (outcome, references) = world.walk((&stage1, root), (&stage2, 0), 0, &read(), &regime);
    let Err(Failed::Below(Failed::Here(Fault { level: 2, .. }))) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(references, 1);
}
