//! Trap registers: what is permitted, and transformed instructions.

use slat::format::riscv::{Features, Mask, Scheme, Sv, Width};
use slat::syndrome::Field;
use slat::syndrome::riscv::{Registers, Reports, Trap, Trapped, transform};
use slat::{Access, Flavor, Gpa, Gva, Kind, Privilege, Regime, Spa, Stage, translate, walk};

use crate::ram::Ram;

#[test]
fn an_implicit_access_demands_the_pseudoinstruction_only_with_an_address() {
    let mut ram = Ram::zeroed(0..1 << 32);
    for (scheme, entry, pseudo) in [(Scheme::Sv32, 4, 0x2000), (Scheme::Sv48, 8, 0x3000)] {
        let format = Sv::stage1(scheme, Features::default());
        let stage1 = Stage::<_, Gva, Gpa>::new(format, 0x5000);
        let stage2 = Stage::<_, Gpa, Spa>::new(Sv::stage2(scheme, Features::default()), 0x8000);
        let access = Access::new(Kind::Execute, Privilege::User);
        let regime = Regime::default();
        let address = Gva::new(0x1234_5678);
        let failure =
            translate(&stage1, &stage2, &mut ram, address, &access, &regime, &()).unwrap_err();
        let trapped = Trapped {
            address,
            access: &access,
            stage1: &format,
            regime: &regime,
            transformed: None,
        };
        let trap = trapped.of_two_stages(&failure).unwrap();
        let index = if entry == 4 { 0x1234_5678 >> 22 } else { 0 };
        let htval = (0x5000 + entry * index) >> 2;
        // The original access decides the cause, even of a read of a table.
        let full = Registers { scause: 20, stval: 0x1234_5678, htval, htinst: pseudo };
        assert_eq!(trap.registers(Reports::ALL), full);
        assert!(trap.permits(&full));
        assert!(!trap.permits(&Registers { htinst: 0, ..full }));
        assert!(!trap.permits(&Registers { htinst: pseudo | 0x20, ..full }));
        let silent = trap.registers(Reports::NOTHING);
        assert_eq!(silent, Registers { scause: 20, ..Registers::default() });
        assert!(trap.permits(&silent) && trap.permits(&Registers { htinst: pseudo, ..silent }));
        // An implementation that reports addresses alone still owes the pseudoinstruction.
        let addresses = Reports { stval: true, htval: true, htinst: false };
        assert_eq!(trap.registers(addresses), full);
    }
}

fn one_stage(entry: u64, access: Access, features: Features) -> Trap {
    let mut ram = Ram::zeroed(0..0x10000);
    ram.set(0x1000, 8, entry);
    let format = Sv::stage1(Scheme::Sv39, features);
    let stage = Stage::<_, Gva, Spa>::new(format, 0x1000);
    let regime = Regime::default();
    let address = Gva::new(0x1008);
    let failure = walk(&stage, &mut ram, address, &access, &regime, &()).unwrap_err();
    let trapped =
        Trapped { address, access: &access, stage1: &format, regime: &regime, transformed: None };
    trapped.of_one_stage(&failure).unwrap()
}

#[test]
fn shadow_stack_faults() {
    let on = Features { shadow_stacks: true, ..Features::default() };
    let push = Access::default().as_kind(Kind::Write).with_flavor(Flavor::ShadowStack);
    let pop = Access::default().with_flavor(Flavor::ShadowStack);
    let [load, store, fetch] =
        [Kind::Read, Kind::Write, Kind::Execute].map(|kind| Access::default().as_kind(kind));
    let page = 0xc1; // A, D, V
    for (rights, access, cause) in [
        (0x4, store, 7), // a plain store to a shadow stack is fatal
        (0x4, fetch, 1), // so is execution of it
        (0x2, push, 15), // a read-only page may be a copy-on-write one
        (0x2, pop, 15),  // reported as a store even where it only reads
        (0x6, push, 7),  // a read-write page is not a shadow stack
        (0x6, pop, 7),
        (0xe, push, 7),
        (0xa, pop, 7),
        (0x8, push, 7),
        (0x8, load, 13),
        (0x14, push, 15), // a user page, asked for by the supervisor: U is checked first
        (0x14, store, 15),
        (0xc, load, 13), // W and X without R is reserved even here
    ] {
        assert_eq!(one_stage(page | rights, access, on).cause, cause, "{rights:#x} {access:?}");
    }
    // Without Zicfiss the encoding is reserved.
    assert_eq!(one_stage(page | 0x4, load, Features::default()).cause, 13);
    assert_eq!(one_stage(0, pop, on).cause, 15);
    // Nothing at the table's address: an access fault of the original kind.
    let mut ram = Ram::zeroed(0..0x1000);
    let format = Sv::stage1(Scheme::Sv39, on);
    let regime = Regime::default();
    for (access, cause) in [(load, 5), (store, 7), (fetch, 1), (pop, 7)] {
        let stage = Stage::<_, Gva, Spa>::new(format, 0x1000);
        let address = Gva::new(0);
        let failure = walk(&stage, &mut ram, address, &access, &regime, &()).unwrap_err();
        let trapped = Trapped {
            address,
            access: &access,
            stage1: &format,
            regime: &regime,
            transformed: None,
        };
        assert_eq!(trapped.of_one_stage(&failure).unwrap().cause, cause);
    }
}

#[test]
fn stval_holds_the_masked_address() {
    let features = Features { supervisor_mask: Mask::Sixteen, ..Features::default() };
    let format = Sv::stage1(Scheme::Sv48, features);
    let (load, mut regime) = (Access::default(), Regime::default());
    // The manual's example, with PMLEN = 7 and Sv57.
    let example =
        Sv::stage1(Scheme::Sv57, Features { supervisor_mask: Mask::Seven, ..Features::default() });
    let tagged = 0xabff_ffff_1234_5678;
    assert_eq!(example.transformed(tagged, &load, &regime), 0xffff_ffff_1234_5678);
    let bare =
        Sv::stage1(Scheme::Bare, Features { supervisor_mask: Mask::Seven, ..Features::default() });
    assert_eq!(bare.transformed(tagged, &load, &regime), 0x1ff_ffff_1234_5678);
    let mut ram = Ram::zeroed(0..0x10000);
    let stage = Stage::<_, Gva, Spa>::new(format, 0x1000);
    let address = Gva::new(0x1234_7fff_0000_5000);
    let failure = walk(&stage, &mut ram, address, &load, &regime, &()).unwrap_err();
    let trapped =
        Trapped { address, access: &load, stage1: &format, regime: &regime, transformed: None };
    let trap = trapped.of_one_stage(&failure).unwrap();
    assert_eq!(trap.stval, Field::OneOf([0x7fff_0000_5000, 0]));
    assert_eq!((trap.cause, trap.htval, trap.htinst), (13, Field::Defined(0), Field::Undefined));
    // Fetches, HLVX, and anything while MXR is in effect, are not masked.
    let fetch = load.as_kind(Kind::Execute);
    let hlvx = load.with_flavor(Flavor::Hlvx);
    let user = Access::new(Kind::Read, Privilege::User);
    for exempt in [fetch, hlvx, user] {
        assert_eq!(format.transformed(address.raw(), &exempt, &regime), address.raw());
    }
    regime.riscv.vsmxr = true;
    assert_eq!(format.transformed(address.raw(), &load, &regime), address.raw());
}

#[test]
fn transformed_instructions() {
    // Assembled by hand from the manual's figures: instruction, XLEN, transformation.
    let rows: &[(u32, Width, u32)] = &[
        (0x0005_3583, Width::Rv64, 0x0000_3583), // ld a1, 0(a0)
        (0xff05_3583, Width::Rv64, 0x0000_3583), // ld a1, -16(a0)
        (0x0005_3583, Width::Rv32, 0),           // no ld there
        (0x00b5_3023, Width::Rv64, 0x00b0_3023), // sd a1, 0(a0)
        (0x00b5_3023, Width::Rv32, 0),           // no sd there
        (0x00b5_27a3, Width::Rv32, 0x00b0_2023), // sw a1, 15(a0)
        (0x0005_2507, Width::Rv64, 0x0000_2507), // flw fa0, 0(a0)
        (0x0205_6007, Width::Rv64, 0),           // vle32.v: no transformation
        (0x00b5_a62f, Width::Rv64, 0x00b0_262f), // amoadd.w a2, a1, (a1)
        (0x6c05_45f3, Width::Rv64, 0x6c00_45f3), // hlv.d a1, (a0)
        (0x6eb5_4073, Width::Rv64, 0x6eb0_4073), // hsv.d a1, (a0)
        (0x6835_45f3, Width::Rv64, 0x6830_45f3), // hlvx.wu a1, (a0)
        (0x0000_0073, Width::Rv64, 0),           // ecall
        (0x81c0_4073, Width::Rv64, 0),           // mop.r.0: as hlv in all but the first four bits
        (0x610c, Width::Rv64, 0x3581),           // c.ld a1, 0(a0): ld with bit 1 clear
        (0x610c, Width::Rv32, 0x2585),           // c.flw fa1, 0(a0)
        (0x410c, Width::Rv64, 0x2581),           // c.lw a1, 0(a0)
        (0xc10c, Width::Rv64, 0x00b0_2021),      // c.sw a1, 0(a0)
        (0xe10c, Width::Rv64, 0x00b0_3021),      // c.sd a1, 0(a0)
        (0xe10c, Width::Rv32, 0x00b0_2025),      // c.fsw fa1, 0(a0)
        (0x210c, Width::Rv64, 0x3585),           // c.fld fa1, 0(a0)
        (0xa10c, Width::Rv64, 0x00b0_3025),      // c.fsd fa1, 0(a0)
        (0xa02a, Width::Rv64, 0x00a0_3025),      // c.fsdsp fa0, 0(sp)
        (0x4502, Width::Rv64, 0x2501),           // c.lwsp a0, 0(sp)
        (0x4002, Width::Rv64, 0),                // c.lwsp x0: reserved
        (0xc02a, Width::Rv64, 0x00a0_2021),      // c.swsp a0, 0(sp)
        (0x810c, Width::Rv64, 0x4581),           // c.lbu a1, 0(a0)
        (0x850c, Width::Rv64, 0x5581),           // c.lhu a1, 0(a0)
        (0x854c, Width::Rv64, 0x1581),           // c.lh a1, 0(a0)
        (0x890c, Width::Rv64, 0x00b0_0021),      // c.sb a1, 0(a0)
        (0x8d0c, Width::Rv64, 0x00b0_1021),      // c.sh a1, 0(a0)
        (0x0001, Width::Rv64, 0),                // c.nop
    ];
    for &(instruction, width, expected) in rows {
        assert_eq!(transform(instruction, 0, width), expected, "{instruction:#x}");
    }
    // The offset of the faulting part goes where rs1 was.
    assert_eq!(transform(0x0005_3583, 5, Width::Rv64), 5 << 15 | 0x3583);
}
