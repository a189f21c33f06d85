//! Exact reference counts, with real tables: refs(g, h) = g*h + g + h, and (a+1)(b+1)(c+1)-1 for
//! three stages.

use slat::format::ept::{self, Ept};
use slat::format::npt::Npt;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::format::x86::{Controls, legacy::Legacy};
use slat::{
    Access, EntryLayout, Gpa, Gva, L2Gpa, References, Regime, SliceMemory, Spa, Stage, translate,
    translate_nested,
};

/// A memory whose frames are handed out in order, and identity tables built in it.
struct World {
    bytes: Vec<u8>,
    next: u64,
}

const PAGE: u64 = 4096;

impl World {
    fn new() -> World {
        World { bytes: vec![0; 2 << 20], next: PAGE }
    }

    fn frame(&mut self) -> u64 {
        self.next += PAGE;
        self.next - PAGE
    }

    fn poke(&mut self, layout: EntryLayout, address: u64, value: u64) {
        SliceMemory::new(Spa::new(0), &mut self.bytes)
            .poke(Spa::new(address), layout, value)
            .unwrap();
    }

    /// Identity-maps the first 2 MiB by 512-entry tables from `root_level` down to `leaf_level`.
    fn identity(&mut self, root_level: u8, leaf_level: u8, table: u64, leaf: u64) -> u64 {
        let root = self.frame();
        let mut at = root;
        for _ in leaf_level..root_level {
            let next = self.frame();
            self.poke(EntryLayout::LE64, at, next | table);
            at = next;
        }
        let entries = if leaf_level == 0 { 512 } else { 1 };
        for i in 0..entries {
            let ps = if leaf_level > 0 { 0x80 } else { 0 };
            self.poke(EntryLayout::LE64, at + 8 * i, (i * PAGE) | leaf | ps);
        }
        root
    }
}

const X86: (u64, u64) = (0x7, 0x7);
const EPT: (u64, u64) = (0x7, 0x37);

fn long(levels: u8) -> Long {
    let make = if levels == 4 { Long::four } else { Long::five };
    make(Controls::default(), Processor::default())
}

fn ept(levels: u8) -> Ept {
    let make = if levels == 4 { Ept::four } else { Ept::five };
    make(ept::Features::default())
}

#[test]
fn every_pair_of_depths_and_page_sizes() {
    for guest_levels in [4u8, 5] {
        for nested_levels in [4u8, 5] {
            for guest_leaf in 0..=2u8 {
                for nested_leaf in 0..=2u8 {
                    let mut world = World::new();
                    let stage2_root = world.identity(nested_levels - 1, nested_leaf, EPT.0, EPT.1);
                    let stage1_root = world.identity(guest_levels - 1, guest_leaf, X86.0, X86.1);
                    let stage1 = Stage::<_, Gva, Gpa>::new(long(guest_levels), stage1_root);
                    let stage2 = Stage::<_, Gpa, Spa>::new(ept(nested_levels), stage2_root);
                    let counted = References::default();
                    let found = translate(
                        &stage1,
                        &stage2,
                        &mut SliceMemory::new(Spa::new(0), &mut world.bytes),
                        Gva::new(0x1234),
                        &Access::default(),
                        &Regime::default(),
                        &counted,
                    )
                    .unwrap();
                    assert_eq!(found.output(), Spa::new(0x1234));
                    assert_eq!(found.shift(), 12 + 9 * guest_leaf.min(nested_leaf));
                    let g = u64::from(guest_levels - guest_leaf);
                    let h = u64::from(nested_levels - nested_leaf);
                    assert_eq!(counted.count(), g * h + g + h, "{g} over {h}");
                }
            }
        }
    }
}

#[test]
fn thirty_two_bit_guest_over_four_levels_takes_14() {
    let mut world = World::new();
    let stage2_root = world.identity(3, 0, EPT.0, EPT.1);
    let (directory, table) = (world.frame(), world.frame());
    world.poke(EntryLayout::LE32, directory, table | 7);
    world.poke(EntryLayout::LE32, table + 4, 0x1007);
    let stage1 = Stage::<_, Gva, Gpa>::new(Legacy::new(Controls::default(), true, 40), directory);
    let stage2 = Stage::<_, Gpa, Spa>::new(ept(4), stage2_root);
    assert_eq!(count(&stage1, &stage2, &mut world, 0x1000), 14);
}

#[test]
fn pae_takes_14_with_registers_and_19_on_demand() {
    let mut world = World::new();
    let ept_root = world.identity(3, 0, EPT.0, EPT.1);
    let npt_root = world.identity(3, 0, X86.0, X86.1);
    let directory = world.identity(1, 0, X86.0, X86.1);
    let pointers = world.frame();
    world.poke(EntryLayout::LE64, pointers, directory | 1);

    let format = Pae::new(Controls::default(), Processor::default());
    let registers = pae::Root::Registers([directory | 1, 0, 0, 0]);
    let on_intel = Stage::<_, Gva, Gpa>::new(format, registers);
    let over_ept = Stage::<_, Gpa, Spa>::new(ept(4), ept_root);
    assert_eq!(count(&on_intel, &over_ept, &mut world, 0x1000), 14);

    let on_amd = Stage::<_, Gva, Gpa>::new(format, pae::Root::OnDemand(pointers));
    let over_npt = Stage::<_, Gpa, Spa>::new(Npt::four(true, Processor::default()), npt_root);
    assert_eq!(count(&on_amd, &over_npt, &mut world, 0x1000), 19);
}

#[test]
fn three_stages_multiply() {
    let mut world = World::new();
    let stage3_root = world.identity(3, 0, EPT.0, EPT.1);
    let stage2_root = world.identity(3, 0, EPT.0, EPT.1);
    let stage1_root = world.identity(3, 0, X86.0, X86.1);
    let counted = References::default();
    let found = translate_nested(
        &Stage::<_, Gva, L2Gpa>::new(long(4), stage1_root),
        &Stage::<_, L2Gpa, Gpa>::new(ept(4), stage2_root),
        &Stage::<_, Gpa, Spa>::new(ept(4), stage3_root).with_number(3),
        &mut SliceMemory::new(Spa::new(0), &mut world.bytes),
        Gva::new(0x1234),
        &Access::default(),
        &Regime::default(),
        &counted,
    )
    .unwrap();
    assert_eq!(found.stage3.output, Spa::new(0x1234));
    assert_eq!(counted.count(), 5 * 5 * 5 - 1);
}

fn count<F1: slat::format::Format, F2: slat::format::Format>(
    stage1: &Stage<F1, Gva, Gpa>,
    stage2: &Stage<F2, Gpa, Spa>,
    world: &mut World,
    address: u64,
) -> u64 {
    let counted = References::default();
    translate(
        stage1,
        stage2,
        &mut SliceMemory::new(Spa::new(0), &mut world.bytes),
        Gva::new(address),
        &Access::default(),
        &Regime::default(),
        &counted,
    )
    .unwrap();
    counted.count()
}
