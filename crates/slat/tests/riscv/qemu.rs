//! What QEMU 10.0.2 and 7.2 were seen to do with one image of tables: each row is an access and
//! the registers it left. Where QEMU is known to stray from the manual, the row says so.

use slat::format::riscv::{Features, Sv, Width, hgatp, vsatp};
use slat::regime::riscv::State;
use slat::syndrome::riscv::{Registers, Trapped, transform};
use slat::{Access, Flavor, Gpa, Gva, Kind, Privilege, Regime, Spa, Stage, Updates, translate};

use crate::ram::Ram;

const V: u64 = 1;
const R: u64 = 2;
const W: u64 = 4;
const X: u64 = 8;
const U: u64 = 0x10;
const A: u64 = 0x40;
const D: u64 = 0x80;

/// Where guest physical address 0 lies.
const GUEST: u64 = 0x8100_0000;
/// The Sv39x4 table: root, middle, leaves.
const G: [u64; 3] = [0x8080_4000, 0x8080_8000, 0x8080_9000];
const HGATP: u64 = 8 << 60 | G[0] >> 12;
const VSATP: u64 = 8 << 60 | 1;

fn pte(address: u64, flags: u64) -> u64 {
    address >> 12 << 10 | flags
}

/// The image: 128 guest pages, a guest table that maps them to themselves, and a hole or an oddity
/// in either stage for each kind of fault.
fn image() -> Ram {
    let mut ram = Ram::zeroed(0x8000_0000..0x8200_0000);
    let full = V | R | W | X | U | A | D;
    ram.set(G[0], 8, pte(G[1], V));
    ram.set(G[1], 8, pte(G[2], V));
    for page in 0..0x80 {
        ram.set(G[2] + 8 * page, 8, pte(GUEST + page * 4096, full));
    }
    for (page, flags) in [
        (0x40, 0),
        (0x41, full & !W),
        (0x42, full & !(R | X)),
        (0x43, full & !A),
        (0x44, full & !X),
        (0x45, full & !D),
        (0x46, full & !U),
        (0x47, full | 1 << 54),
        (0x48, full & !(R | W)),
    ] {
        let entry = if flags == 0 { 0 } else { pte(GUEST + page * 4096, flags) };
        ram.set(G[2] + 8 * page, 8, entry);
    }
    let leaf = V | R | W | X | A | D;
    let mut guest = |address: u64, entry| ram.set(GUEST + address, 8, entry);
    guest(0x1000, pte(0x2000, V));
    guest(0x2000, pte(0x3000, V));
    for page in 0..0x80 {
        guest(0x3000 + 8 * page, pte(page << 12, leaf));
    }
    for (page, entry) in [
        (0x11, pte(0x10000, leaf | U)),
        (0x50, 0),
        (0x51, pte(0x51000, leaf & !W)),
        (0x52, pte(0x52000, leaf | U)),
        (0x53, pte(0x53000, leaf & !A)),
        (0x54, pte(0x54000, leaf & !(A | D))),
    ] {
        guest(0x3000 + 8 * page, entry);
    }
    // A guest table in an unmapped page, one in a read-only page, and one that maps the unmapped.
    guest(0x2008, pte(0x40000, V));
    guest(0x2010, pte(0x41000, V));
    guest(0x41018, pte(0x60000, leaf & !(A | D)));
    guest(0x2018, pte(0x4b000, V));
    guest(0x4b018, pte(0x40000, leaf));
    ram
}

struct Probe {
    name: &'static str,
    kind: Kind,
    address: u64,
    user: bool,
    state: State,
    /// The instruction that made the access.
    instruction: u32,
    flavor: Flavor,
    vsatp: u64,
}

const LOAD: u32 = 0x53583; // ld a1, (a0)
const STORE: u32 = 0xb5_3023; // sd a1, (a0)

fn probe(name: &'static str, kind: Kind, address: u64) -> Probe {
    Probe {
        name,
        kind,
        address,
        user: false,
        state: State::default(),
        instruction: if kind == Kind::Write { STORE } else { LOAD },
        flavor: Flavor::Plain,
        vsatp: VSATP,
    }
}

/// What happened: the output address, or the registers.
fn run(ram: &mut Ram, probe: &Probe, vs_hardware_ad: bool) -> Result<u64, Registers> {
    let features = |hardware_ad| Features { hardware_ad, ..Features::default() };
    let vs = vsatp(probe.vsatp, Width::Rv64).unwrap();
    let g = hgatp(HGATP, Width::Rv64).unwrap();
    let stage1 =
        Stage::<_, Gva, Gpa>::new(Sv::stage1(vs.scheme, features(vs_hardware_ad)), vs.table)
            .with_updates(Updates::OnSuccess);
    let stage2 = Stage::<_, Gpa, Spa>::new(Sv::stage2(g.scheme, features(true)), g.table)
        .with_updates(Updates::OnSuccess);
    let privilege = if probe.user { Privilege::User } else { Privilege::Supervisor };
    let access = Access::new(probe.kind, privilege).with_flavor(probe.flavor);
    let regime = Regime { riscv: probe.state.clone(), ..Regime::default() };
    let address = Gva::new(probe.address);
    match translate(&stage1, &stage2, ram, address, &access, &regime, &()) {
        Ok(found) => Ok(found.output().raw()),
        Err(failure) => {
            let transformed = Some(transform(probe.instruction, 0, Width::Rv64));
            let trapped = Trapped {
                address,
                access: &access,
                stage1: &stage1.format,
                regime: &regime,
                transformed,
            };
            let trap = trapped.of_two_stages(&failure).unwrap();
            let registers = trap.registers(slat::syndrome::riscv::Reports::ALL);
            assert!(trap.permits(&registers));
            Err(registers)
        }
    }
}

fn trap(scause: u64, stval: u64, htval: u64, htinst: u64) -> Result<u64, Registers> {
    Err(Registers { scause, stval, htval, htinst })
}

#[test]
fn qemu_10_with_svade_in_the_guest() {
    use Kind::{Execute, Read, Write};
    let mxr = State { mxr: true, ..State::default() };
    let sum = State { sum: true, ..State::default() };
    let hlv = |name, address| Probe { instruction: 0x6c05_45f3, ..probe(name, Read, address) };
    let ok = |gpa: u64| Ok(GUEST + gpa);
    let rows = [
        (probe("read", Read, 0x60000), ok(0x60000)),
        (probe("write", Write, 0x61008), ok(0x61008)),
        (probe("exec", Execute, 0x62000), ok(0x62000)),
        (probe("read G unmapped", Read, 0x40008), trap(0x15, 0x40008, 0x10002, 0x3583)),
        (probe("write G unmapped", Write, 0x40010), trap(0x17, 0x40010, 0x10004, 0xb0_3023)),
        (probe("exec G unmapped", Execute, 0x40000), trap(0x14, 0x40000, 0x10000, 0)),
        (probe("write G RO", Write, 0x41008), trap(0x17, 0x41008, 0x10402, 0xb0_3023)),
        (probe("read G W-only", Read, 0x42000), trap(0x15, 0x42000, 0x10800, 0x3583)),
        (probe("read G A=0", Read, 0x43000), ok(0x43000)),
        (probe("exec G no X", Execute, 0x44000), trap(0x14, 0x44000, 0x11000, 0)),
        (probe("write G D=0", Write, 0x45000), ok(0x45000)),
        (probe("read G U=0", Read, 0x46000), trap(0x15, 0x46000, 0x11800, 0x3583)),
        (probe("read G bit 54", Read, 0x47000), trap(0x15, 0x47000, 0x11c00, 0x3583)),
        (probe("read G X-only", Read, 0x48000), trap(0x15, 0x48000, 0x12000, 0x3583)),
        (Probe { state: mxr, ..probe("read G X-only MXR", Read, 0x48000) }, ok(0x48000)),
        (probe("read VS unmapped", Read, 0x50008), trap(0xd, 0x50008, 0, 0x3583)),
        (probe("write VS RO", Write, 0x51000), trap(0xf, 0x51000, 0, 0xb0_3023)),
        (probe("VS read U page", Read, 0x52000), trap(0xd, 0x52000, 0, 0x3583)),
        (Probe { state: sum, ..probe("VS read U page SUM", Read, 0x52000) }, ok(0x52000)),
        (Probe { user: true, ..probe("VU read", Read, 0x52000) }, ok(0x52000)),
        (
            Probe { user: true, ..probe("VU read S page", Read, 0x60000) },
            trap(0xd, 0x60000, 0, 0x3583),
        ),
        (probe("read VS A=0", Read, 0x53000), trap(0xd, 0x53000, 0, 0x3583)),
        (probe("write VS A=D=0", Write, 0x54000), trap(0xf, 0x54000, 0, 0xb0_3023)),
        (probe("VS table in G unmapped", Read, 0x20_3008), trap(0x15, 0x20_3008, 0x10006, 0x3000)),
        (probe("VS table in G RO, A=0", Read, 0x40_3008), trap(0xd, 0x40_3008, 0, 0x3583)),
        (probe("table, then G unmapped", Read, 0x60_3010), trap(0x15, 0x60_3010, 0x10004, 0x3583)),
        (probe("not canonical", Read, 1 << 38), trap(0xd, 1 << 38, 0, 0x3583)),
        (
            Probe { vsatp: 0, ..probe("bare, bit 41", Read, 1 << 41) },
            trap(0x15, 1 << 41, 1 << 39, 0x3583),
        ),
        (
            Probe { vsatp: 0, ..probe("bare, bit 40", Read, 1 << 40) },
            trap(0x15, 1 << 40, 1 << 38, 0x3583),
        ),
        (hlv("hlv", 0x60000), ok(0x60000)),
        (hlv("hlv G unmapped", 0x40008), trap(0x15, 0x40008, 0x10002, 0x6c00_45f3)),
        (Probe { flavor: Flavor::Hlvx, ..probe("hlvx G X-only", Read, 0x48000) }, ok(0x48000)),
    ];
    let mut ram = image();
    for (probe, expected) in &rows {
        assert_eq!(run(&mut ram, probe, false), *expected, "{}", probe.name);
    }
    // Entries as they were found in memory afterwards.
    assert_eq!(ram.get(GUEST + 0x3000 + 8 * 0x53, 8), Some(0x14c8f));
    assert_eq!(ram.get(GUEST + 0x3000 + 8 * 0x54, 8), Some(0x1500f));
    assert_eq!(ram.get(G[2] + 8 * 0x43, 8), Some(0x2041_0cdf));
    assert_eq!(ram.get(GUEST + 0x41018, 8), Some(0x1800f));
}

#[test]
fn qemu_7_with_hardware_ad_in_the_guest() {
    let mut ram = image();
    for (probe, gpa) in [
        (probe("read VS A=0", Kind::Read, 0x53000), 0x53000),
        (probe("write VS A=D=0", Kind::Write, 0x54000), 0x54000),
    ] {
        assert_eq!(run(&mut ram, &probe, true), Ok(GUEST + gpa), "{}", probe.name);
    }
    assert_eq!(ram.get(GUEST + 0x3000 + 8 * 0x53, 8), Some(0x14ccf));
    assert_eq!(ram.get(GUEST + 0x3000 + 8 * 0x54, 8), Some(0x150cf));
    // Both QEMUs write the A bit through a read-only G-stage page and go on. The manual has the
    // update checked as an implicit store: a guest-page fault for the original access.
    let table_in_read_only = probe("VS table in G RO, A=0", Kind::Read, 0x40_3008);
    assert_eq!(
        run(&mut ram, &table_in_read_only, true),
        trap(0x15, 0x40_3008, 0x41018 >> 2, 0x3020)
    );
    assert_eq!(ram.get(GUEST + 0x41018, 8), Some(0x1800f));
}

#[test]
fn registers_as_qemu_reads_them_back() {
    // MODE 8 to 10 with every other bit set; MODE 1 was not accepted.
    for (mode, levels) in [(8u64, 3), (9, 4), (10, 5)] {
        let g = hgatp(mode << 60 | 0x3ff_ffff_ffff_ffff, Width::Rv64).unwrap();
        let vs = vsatp(mode << 60 | 0xfff_ffff_ffff_ffff, Width::Rv64).unwrap();
        assert_eq!((g.scheme.levels(), vs.scheme.levels()), (levels, levels));
        assert_eq!((g.id, vs.id), (0x3fff, 0xffff));
    }
    assert!(hgatp(1 << 60, Width::Rv64).is_err() && vsatp(1 << 60, Width::Rv64).is_err());
}
