//! Exact reference counts with real tables, geometry, and bounds on hostile tables.

use slat::format::arm32::{Lpae, Processor, Registers, Root, Short, Stage2, ttbcr};
use slat::regime::arm::hcr;
use slat::{
    Access, Cause, Failed, Gpa, Gva, References, Regime, Spa, Stage, Updates, Why, translate, walk,
};

use crate::ram::Ram;

const AF: u64 = 1 << 10;

fn lpae(ttbcr: u32) -> Lpae {
    let registers =
        Registers { ttbcr: ttbcr | ttbcr::EAE, sctlr: 1, hcr: hcr::VM, ..Registers::default() };
    Lpae::new(&registers, &Processor::default()).unwrap()
}

fn short(ttbcr: u32) -> Short {
    let registers = Registers { ttbcr, sctlr: 1, dacr: 1, hcr: hcr::VM, ..Registers::default() };
    Short::new(&registers, &Processor::default()).unwrap()
}

fn stage2(vtcr: u32) -> Stage2 {
    Stage2::new(vtcr, hcr::VM, 0, &Processor::default()).unwrap()
}

/// Long tables from `top` (the manual's numbers) down to a leaf at `leaf`, for address 0.
fn long_tables(ram: &mut Ram, at: u64, top: u64, leaf: u64) -> u64 {
    for level in top..leaf {
        ram.set(at + 0x1000 * (level - top), 8, (at + 0x1000 * (level - top + 1)) | 3);
    }
    let kind = if leaf == 3 { 3 } else { 1 };
    let table = at + 0x1000 * (leaf - top);
    for i in 0..512 {
        let size = 1 << (12 + 9 * (3 - leaf));
        let address = (i * size) & ((1 << 40) - 1);
        ram.set(table + 8 * i, 8, address | AF | 3 << 6 | 0xf << 2 | kind);
    }
    at
}

#[test]
fn every_pair_of_depths_and_page_sizes() {
    let mut counts = Vec::new();
    for s2_bits in [25u8, 31, 32, 34, 35, 40] {
        let format2 = stage2(Stage2::control(s2_bits));
        let top2 = 3 - u64::from(format2.root_level().unwrap());
        for leaf2 in top2..4 {
            for (t0sz, top1) in [(0, 1), (1, 1), (2, 2), (7, 2)] {
                for leaf1 in top1..4 {
                    let mut ram = Ram::zeroed(0..1 << 40);
                    let root2 = long_tables(&mut ram, 0x10_0000, top2, leaf2);
                    let root1 = long_tables(&mut ram, 0x18_0000, top1, leaf1);
                    // 0x18_0000 and on lie within the smallest leaf's 2 MiB of 512 pages.
                    let stage1 = Stage::<_, Gva, Gpa>::new(lpae(t0sz), Root::from(root1));
                    let stage2 = Stage::<_, Gpa, Spa>::new(format2, root2);
                    let found = count(&stage1, &stage2, &mut ram, 0x5678);
                    let (g, h) = (leaf1 - top1 + 1, leaf2 - top2 + 1);
                    assert_eq!(found, g * h + g + h);
                    counts.push(found);
                }
            }
        }
    }
    // Three levels over three, and over two with a concatenated root.
    assert!(counts.contains(&15) && counts.contains(&11));
}

fn count<F: slat::format::Format>(
    stage1: &Stage<F, Gva, Gpa>,
    stage2: &Stage<Stage2, Gpa, Spa>,
    ram: &mut Ram,
    address: u64,
) -> u64 {
    let counted = References::default();
    let (access, regime) = (Access::default(), Regime::default());
    let found =
        translate(stage1, stage2, ram, Gva::new(address), &access, &regime, &counted).unwrap();
    assert_eq!(found.output(), Spa::new(address));
    counted.count()
}

#[test]
fn short_descriptors_over_stage_2() {
    let mut ram = Ram::zeroed(0..1 << 40);
    let root2 = long_tables(&mut ram, 0x10_0000, 1, 3);
    let stage2 = Stage::<_, Gpa, Spa>::new(stage2(1 << 31 | 1 << 6), root2);
    let stage1 = Stage::<_, Gva, Gpa>::new(short(0), Root::from(0x18_0000));
    let ap = 3 << 10;
    // Table, section, supersection (sixteen entries alike), then pages.
    ram.set(0x18_0000, 4, 0x18_8001);
    ram.set(0x18_0000 + 4, 4, 0x10_0002 | ap);
    for i in 16..32 {
        ram.set(0x18_0000 + 4 * i, 4, 0x0100_0002 | ap | 1 << 18);
    }
    ram.set(0x18_8000 + 4 * 5, 4, 0x5002 | 3 << 4);
    for i in 16..32 {
        ram.set(0x18_8000 + 4 * i, 4, 0x1_0001 | 3 << 4);
    }
    assert_eq!(count(&stage1, &stage2, &mut ram, 0x5678), 2 * 3 + 2 + 3);
    assert_eq!(count(&stage1, &stage2, &mut ram, 0x1_5678), 2 * 3 + 2 + 3);
    assert_eq!(count(&stage1, &stage2, &mut ram, 0x10_5678), 3 + 1 + 3);
    let found = |address| {
        let (access, regime) = (Access::default(), Regime::default());
        walk(&stage1, &mut Flat(&mut ram.clone()), Gva::new(address), &access, &regime, &())
            .unwrap()
    };
    for (address, shift, level) in
        [(0x5678, 12, 0), (0x1_f678, 16, 0), (0x1f_5678, 20, 1), (0x1ff_5678, 24, 1)]
    {
        let mapped = found(address);
        assert_eq!(mapped.output, Gpa::new(address));
        assert_eq!((mapped.found.shift, mapped.found.level), (shift, level));
    }
}

/// The same memory, addressed as guest physical memory.
struct Flat<'a>(&'a mut Ram);

impl slat::Memory for Flat<'_> {
    type Address = Gpa;
    type Fault = slat::Outside<Spa>;

    fn read(
        &mut self,
        address: Gpa,
        layout: slat::EntryLayout,
        access: &Access,
    ) -> Result<slat::Value, Self::Fault> {
        self.0.read(Spa::new(address.raw()), layout, access)
    }

    fn compare_exchange(
        &mut self,
        address: Gpa,
        layout: slat::EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        self.0.compare_exchange(Spa::new(address.raw()), layout, current, new, access)
    }
}

#[test]
fn supersections_reach_40_bits() {
    use slat::format::{Decoded, Format};
    let entry = 0x12 << 24 | 0xb << 20 | 1 << 18 | 0xc << 5 | 2;
    let decoded = short(0).decode(entry, 1);
    assert_eq!(decoded, Decoded::Leaf { base: 0xcb_1200_0000, shift: 24 });
}

#[test]
fn ttbcr_n_splits_the_address_space() {
    for n in 0..8u32 {
        let format = short(n);
        // A table for TTBR0 as short as N makes it, and a whole one for TTBR1; sections that tell
        // the two apart. Stray low bits of the registers (cacheability) are not address.
        let mut ram = Ram::zeroed(0..1 << 32);
        let (lower, upper) = (0x10_0000 + (0x4000 >> n), 0x20_0000);
        for i in 0..0x1000u64 >> n {
            ram.set(lower + 4 * i, 4, 0x1000_0002 | 3 << 10);
        }
        for i in 0..0x1000u64 {
            ram.set(upper + 4 * i, 4, 0x2000_0002 | 3 << 10);
        }
        let root = Root { ttbr0: lower | 0x4b, ttbr1: upper | 0x4b };
        let regime = Regime::default();
        let mut at = |format: Short, address: u64| {
            let stage = Stage::<_, Gva, Spa>::new(format, root);
            walk(&stage, &mut ram, Gva::new(address), &Access::default(), &regime, &())
        };
        let split = 1u64 << (32 - n);
        assert_eq!(at(format, split - 1).unwrap().output, Spa::new(0x100f_ffff));
        if n > 0 {
            for address in [split, 0xffff_ffff] {
                let expected = 0x2000_0000 | address & 0xf_ffff;
                assert_eq!(at(format, address).unwrap().output, Spa::new(expected));
            }
        }
        for (bits, address) in [(ttbcr::PD0, 0), (ttbcr::PD1, 0xffff_ffff)] {
            let ended = at(short(n | bits), address);
            if n == 0 && bits == ttbcr::PD1 {
                assert!(ended.is_ok());
                continue;
            }
            let Err(Failed::Here(fault)) = ended else { panic!("{ended:?}") };
            assert_eq!((fault.cause, fault.level), (Cause::Disabled, 1));
        }
    }
}

#[test]
fn long_descriptors_split_by_t0sz_and_t1sz() {
    // Blocks of both roots tell which half an address lies in; an address in neither faults.
    for t0 in 0..8u32 {
        for t1 in 0..8u32 {
            let format = lpae(t0 | t1 << 16);
            let mut ram = Ram::zeroed(0..1 << 32);
            for i in 0..512 {
                ram.set(0x10_0000 + 8 * i, 8, 0x4000_0000 | AF | 1);
                ram.set(0x20_0000 + 8 * i, 8, 0x8000_0000 | AF | 1);
            }
            let root = Root { ttbr0: 0x10_0000 | 7 << 48, ttbr1: 0x20_0000 };
            let stage = Stage::<_, Gva, Spa>::new(format, root);
            for address in [0u64, 1 << 24, 1 << 30, 1 << 31, 0xc000_0000, 0xfe00_0000, 0xffff_ffff]
            {
                // Arm ARM tables G5-1 and G5-2, in other words.
                let top = 1u64 << 32;
                let (low_end, high_start) = match (t0, t1) {
                    (0, 0) => (top, top),
                    (_, 0) => (top >> t0, top >> t0),
                    (0, _) => (top - (top >> t1), top - (top >> t1)),
                    _ => (top >> t0, top - (top >> t1)),
                };
                let access = Access::default();
                let done =
                    walk(&stage, &mut ram, Gva::new(address), &access, &Regime::default(), &());
                let half = done.map(|mapped| mapped.output.raw() >> 30);
                if address < low_end {
                    assert_eq!(half.unwrap(), 1, "{t0} {t1} {address:#x}");
                } else if address >= high_start {
                    assert_eq!(half.unwrap(), 2, "{t0} {t1} {address:#x}");
                } else {
                    let Err(Failed::Here(fault)) = half else { panic!("{half:?}") };
                    assert_eq!((fault.cause, fault.level), (Cause::InputSize, 2));
                }
            }
        }
    }
}

#[test]
fn stage_2_start_levels() {
    // T0SZ is signed; SL0 0 starts at the manual's level 2, 1 at level 1.
    for t0sz in 0..16u32 {
        for sl0 in 0..4u32 {
            let format = stage2(1 << 31 | sl0 << 6 | (t0sz & 8) << 1 | t0sz);
            let bits = if t0sz < 8 { 32 - t0sz } else { 48 - t0sz };
            assert_eq!(u32::from(format.input_bits()), bits);
            // At most 16 concatenated tables, and at least two entries.
            let expected = match sl0 {
                0 if (22..=34).contains(&bits) => Some(1),
                1 if (31..=43).contains(&bits) => Some(2),
                _ => None,
            };
            assert_eq!(format.root_level(), expected, "{t0sz} {sl0}");
            let stage = Stage::<_, Gpa, Spa>::new(format, 0x10_0000);
            let mut ram = Ram::zeroed(0..1 << 32);
            let (access, regime) = (Access::default(), Regime::default());
            let ended = walk(&stage, &mut ram, Gpa::new(0), &access, &regime, &());
            let Err(Failed::Here(fault)) = ended else { panic!("{ended:?}") };
            let cause = if expected.is_some() { Cause::Empty } else { Cause::Geometry };
            assert_eq!((fault.cause, fault.level), (cause, expected.unwrap_or(2)));
            let beyond = walk(&stage, &mut ram, Gpa::new(1 << bits), &access, &regime, &());
            let Err(Failed::Here(fault)) = beyond else { panic!("{beyond:?}") };
            assert_eq!((fault.cause, fault.level), (Cause::InputSize, 2));
        }
    }
}

#[test]
fn a_concatenated_root_is_indexed_as_one() {
    // 34 bits from level 2: sixteen tables, the last entry of the last one.
    let format = stage2(1 << 31 | 0b11110);
    assert_eq!((format.input_bits(), format.root_level()), (34, Some(1)));
    let mut ram = Ram::zeroed(0..1 << 32);
    ram.set(0x10_0000 + 0x1_0000 - 8, 8, 0x40_0000 | AF | 1 << 6 | 1);
    // Bits below the root's 64 KiB are not part of it.
    let stage = Stage::<_, Gpa, Spa>::new(format, 0x10_0000 | 5 << 48 | 0xffe0);
    let (access, regime) = (Access::default(), Regime::default());
    let found = walk(&stage, &mut ram, Gpa::new((1 << 34) - 1), &access, &regime, &()).unwrap();
    assert_eq!(found.output, Spa::new(0x5f_ffff));
}

#[test]
fn cyclic_tables_end() {
    let mut ram = Ram::zeroed(0..1 << 32);
    for i in 0..512 {
        ram.set(0x10_0000 + 8 * i, 8, 0x10_0003);
    }
    let (access, regime) = (Access::default(), Regime::default());
    let counted = References::default();
    let stage = Stage::<_, Gva, Spa>::new(lpae(0), Root::from(0x10_0000));
    // The last level takes the pointer for a page without its access flag.
    let ended = walk(&stage, &mut ram, Gva::new(0), &access, &regime, &counted);
    let Err(Failed::Here(fault)) = ended else { panic!("{ended:?}") };
    assert_eq!((fault.cause, counted.count()), (Cause::AccessFlag, 3));
    for i in 0..0x1000 {
        ram.set(0x20_0000 + 4 * i, 4, 0x20_0001);
    }
    let counted = References::default();
    let stage =
        Stage::<_, Gva, Spa>::new(short(0), Root::from(0x20_0000)).with_updates(Updates::AsWalked);
    let ended = walk(&stage, &mut ram, Gva::new(0), &access, &regime, &counted);
    let Err(Failed::Here(fault)) = ended else { panic!("{ended:?}") };
    assert!(matches!(fault.cause, Cause::Permission(_)));
    assert_eq!(counted.count(), 2);
}

#[test]
fn address_size_faults_are_armv8s() {
    let entry = 1 << 40 | AF | 3 << 6 | 3;
    for (processor, faults) in [(Processor::V7, false), (Processor::default(), true)] {
        let format = Stage2::new(1 << 31 | 1 << 6, hcr::VM, 0, &processor).unwrap();
        let mut ram = Ram::zeroed(0..1 << 32);
        long_tables(&mut ram, 0x10_0000, 1, 3);
        ram.set(0x10_2000, 8, entry);
        let (access, regime) = (Access::default(), Regime::default());
        let ended = |ram: &mut Ram, root: u64| {
            let stage = Stage::<_, Gpa, Spa>::new(format, root);
            walk(&stage, ram, Gpa::new(0), &access, &regime, &())
        };
        for (root, level) in [(0x10_0000, 0), (0x10_0000 | 1 << 47, 3)] {
            match ended(&mut ram, root) {
                Ok(found) => assert!(!faults && found.output == Spa::new(0)),
                Err(Failed::Here(fault)) => {
                    assert!(faults);
                    let Cause::Reserved(reserved) = fault.cause else { panic!("{fault:?}") };
                    assert_eq!((reserved.why, fault.level), (Why::AddressSize, level));
                }
                Err(Failed::Below(below)) => panic!("{below:?}"),
            }
        }
    }
}
