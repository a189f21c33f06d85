//! What QEMU 7.2 (`cortex-a15`) was seen to do with one image of tables: a Hyp-mode hypervisor, a
//! guest with long descriptors.

use slat::format::arm32::{Lpae, Processor, Registers, Root, Stage2, Version, ttbcr};
use slat::memory_type::arm::Memory;
use slat::regime::arm::{State, hcr};
use slat::syndrome::Field;
use slat::syndrome::arm32::{Abort, abort};
use slat::syndrome::arm64::par_of_success;
use slat::{Access, Gpa, Gva, Kind, MemoryType, Privilege, Regime, Spa, Stage, translate};

use crate::ram::Ram;

/// Where guest physical address 0 lies.
const GUEST: u64 = 0x4100_0000;
/// Stage 2: the manual's levels 1 to 3.
const S2: [u64; 3] = [0x4080_1000, 0x4080_2000, 0x4080_3000];

/// 128 guest pages, mapped to themselves by the guest; a hole or an oddity in either stage for each
/// kind of fault.
fn image() -> Ram {
    let mut ram = Ram::zeroed(0x4000_0000..0x4200_0000);
    let af = 1 << 10;
    let page = 0xf << 2 | 3 << 8 | 3;
    ram.set(S2[0], 8, S2[1] | 3);
    ram.set(S2[1], 8, S2[2] | 3);
    for i in 0..0x80 {
        ram.set(S2[2] + 8 * i, 8, (GUEST + i * 4096) | page | af | 3 << 6);
    }
    for (i, entry) in [
        (0x40, 0),
        (0x41, page | af | 1 << 6),
        (0x42, page | af | 2 << 6),
        (0x43, page | 3 << 6),
        (0x44, page | af | 3 << 6 | 1 << 54),
        (0x45, page & !2 | af | 3 << 6),
    ] {
        let entry = if entry == 0 { 0 } else { (GUEST + i * 4096) | entry };
        ram.set(S2[2] + 8 * i, 8, entry);
    }
    let mut guest = |address: u64, entry| ram.set(GUEST + address, 8, entry);
    let leaf = af | 3 << 8 | 3;
    guest(0x1000, 0x2003);
    guest(0x2000, 0x3003);
    guest(0x2008, 0x40003);
    for i in 0..0x80 {
        guest(0x3000 + 8 * i, i << 12 | leaf);
    }
    guest(0x3000 + 8 * 0x50, 0);
    guest(0x3000 + 8 * 0x51, 0x51000 | leaf | 2 << 6);
    ram
}

/// The two stages of the monitor's command; `sctlr` is the guest's.
fn stages(sctlr: u32) -> (Stage<Lpae, Gva, Gpa>, Stage<Stage2, Gpa, Spa>) {
    let registers = Registers {
        ttbcr: ttbcr::EAE | 1 << 8 | 1 << 10 | 3 << 12,
        sctlr,
        hcr: hcr::VM,
        ..Registers::default()
    };
    let vtcr = 1 << 31 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12;
    let lpae = Lpae::new(&registers, &Processor::V7).unwrap();
    let stage2 = Stage2::new(vtcr, hcr::VM, 0, &Processor::V7).unwrap();
    (Stage::new(lpae, Root { ttbr0: 0x1000, ttbr1: 0 }), Stage::new(stage2, S2[0]))
}

const SCTLR: u32 = 0x00c5_1879;

#[derive(Debug)]
enum Seen {
    /// The access went through, to this guest physical address.
    Page(u64),
    /// Hyp mode took it: `HSR`, the address (in `HDFAR` or `HIFAR`), `HPFAR`.
    Hyp(u64, u32, u32),
    /// The guest took it: `DFSR`, `DFAR`.
    Guest(u64, u32),
}

#[test]
fn cortex_a15() {
    use Kind::{Execute, Read, Write};
    let mut ram = image();
    let (stage1, stage2) = stages(SCTLR);
    let regime = Regime { arm: State::new(0xff, hcr::VM), ..Regime::default() };
    for (name, kind, address, seen) in [
        ("read", Read, 0x60000, Seen::Page(0x60000)),
        ("write", Write, 0x61008, Seen::Page(0x61008)),
        ("exec", Execute, 0x62000, Seen::Page(0x62000)),
        ("read s2 unmapped", Read, 0x40008, Seen::Hyp(0x9381_0007, 0x40008, 0x400)),
        ("write s2 unmapped", Write, 0x40010, Seen::Hyp(0x9381_0047, 0x40010, 0x400)),
        ("exec s2 unmapped", Execute, 0x40000, Seen::Hyp(0x8000_0007, 0x40000, 0x400)),
        ("write s2 RO", Write, 0x41008, Seen::Hyp(0x9381_004f, 0x41008, 0x410)),
        ("read s2 WO", Read, 0x42000, Seen::Hyp(0x9381_000f, 0x42000, 0x420)),
        ("read s2 AF=0", Read, 0x43000, Seen::Hyp(0x9381_000b, 0x43000, 0x430)),
        ("exec s2 XN", Execute, 0x44000, Seen::Hyp(0x8000_000f, 0x44000, 0x440)),
        ("read s2 reserved", Read, 0x45000, Seen::Hyp(0x9381_0007, 0x45000, 0x450)),
        ("read s1 unmapped", Read, 0x50008, Seen::Guest(0x207, 0x50008)),
        ("write s1 RO", Write, 0x51000, Seen::Guest(0xa0f, 0x51000)),
        ("s1 table s2 unmapped", Read, 0x20_3008, Seen::Hyp(0x9000_0087, 0x20_3008, 0x400)),
    ] {
        let access = Access::new(kind, Privilege::Supervisor);
        let address = Gva::new(address);
        let done = translate(&stage1, &stage2, &mut ram, address, &access, &regime, &());
        let aborted =
            |failure| abort(&failure, &access, true, Version::V7).expect("an abort has a syndrome");
        match (seen, done.map_err(aborted)) {
            (Seen::Page(gpa), Ok(found)) => {
                assert_eq!(found.output(), Spa::new(GUEST + gpa), "{name}");
            }
            (Seen::Guest(status, at), Err(Abort::Pl1(taken))) => {
                assert_eq!((taken.status.value, taken.address), (status, at), "{name}");
                assert!(!taken.prefetch && taken.status.permits(status));
            }
            (Seen::Hyp(hsr, at, hpfar), Err(Abort::Hyp(taken))) => {
                assert!(taken.hsr.permits(hsr), "{name}: {taken:x?} but {hsr:#x}");
                // The status, the class and S1PTW are always compared.
                assert_eq!(taken.hsr.defined & 0xfc00_00ff, 0xfc00_00ff);
                let own = if kind == Execute { taken.hifar } else { taken.hdfar };
                assert_eq!(own, Field::Defined(at), "{name}");
                assert!(taken.hpfar.permits(&hpfar), "{name}: {taken:x?}");
                let permission = hsr & 0x3c == 0xc;
                assert_eq!(taken.hpfar == Field::Undefined, permission, "{name}");
            }
            (seen, done) => panic!("{name}: {seen:x?} but {done:x?}"),
        }
    }
}

#[test]
fn the_attributes_that_par_reports() {
    // ATS12NSOPR gave 0xff00_0000_4106_0b80. QEMU does not look at SCTLR.C, which the monitor had
    // clear; with it set, the manual agrees.
    let mut ram = image();
    let (stage1, stage2) = stages(SCTLR | 4);
    let regime = Regime { arm: State::new(0xff, hcr::VM), ..Regime::default() };
    let (access, address) = (Access::default(), Gva::new(0x60123));
    let found = translate(&stage1, &stage2, &mut ram, address, &access, &regime, &()).unwrap();
    let both = found.memory_type(&stage1.format, &stage2.format, &regime);
    let MemoryType::Arm(attributes) = both else { panic!("{both:?}") };
    let par = par_of_success(found.output().raw(), &attributes);
    assert!(par.permits(0xff00_0000_4106_0b80), "{par:x?}");
    let (uncached, _) = stages(SCTLR);
    let both = found.memory_type(&uncached.format, &stage2.format, &regime);
    let MemoryType::Arm(attributes) = both else { panic!("{both:?}") };
    assert_eq!(attributes.memory, Memory::NON_CACHEABLE);
}
