//! Features that no hardware model asked by the oracles has: what the manual says of each, bit by bit.

use slat::access::Stage1Page;
use slat::format::ept::{Ept, Features};
use slat::format::npt::{Npt, Options};
use slat::format::x86::long::{Linear, Long, Masking, Processor};
use slat::format::x86::{Controls, Vendor};
use slat::format::{Format, Found, Path};
use slat::{
    Access, Cause, Denied, Failed, Fault, Flavor, Gpa, Gva, Kind, Privilege, Purpose, Regime,
    SliceMemory, Spa, Stage, Updates, walk,
};

const PAGE: u64 = 0x1000;

/// Tables of one path at 0x1000, 0x2000, ..., its table entries with these flags, and this leaf.
fn tables(levels: u64, flags: u64, leaf: u64) -> Vec<u8> {
    let mut bytes = vec![0; (PAGE * (levels + 1)) as usize];
    for n in 1..=levels {
        let entry = if n == levels { leaf } else { (PAGE * (n + 1)) | flags };
        bytes[(PAGE * n) as usize..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

/// What EPT of five levels says of an access through this leaf, below tables with these rights.
fn extended(
    features: Features,
    table: u64,
    leaf: u64,
    access: &Access,
) -> Result<u64, Box<Fault<Gpa>>> {
    let mut bytes = tables(5, table, leaf);
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let stage = Stage::<_, Gpa, Spa>::new(Ept::five(features), PAGE | 0x26);
    let stage = stage.with_updates(Updates::OnSuccess);
    let regime = Regime::default();
    match walk(&stage, &mut memory, Gpa::new(0x123), access, &regime, &()) {
        Ok(mapped) => Ok(mapped.output.raw()),
        Err(Failed::Here(fault)) => Err(fault.into()),
        Err(Failed::Below(_)) => panic!("the tables are in memory"),
    }
}

fn denied<I>(result: Result<u64, Box<Fault<I>>>) -> Denied {
    match result.map_err(|fault| fault.cause) {
        Ok(_) => Denied::NONE,
        Err(Cause::Permission(denied)) => denied,
        Err(cause) => panic!("{cause:?}"),
    }
}

const R: u64 = 1;
const RWX: u64 = 7;
const WB: u64 = 6 << 3;
const LEAF: u64 = 0x9000 | WB;

/// SDM 3C 30.3.3.2 and table 30-7, bit 58: the page may be written by accesses to guest tables alone.
#[test]
fn paging_write_lets_guest_tables_be_updated() {
    let write = Access::new(Kind::Write, Privilege::Supervisor);
    let update = Access { purpose: Purpose::Update { level: 1 }, ..write };
    for (on, bit, table, access, permitted) in [
        (true, 1 << 58, RWX, update, true),
        (false, 1 << 58, RWX, update, false),
        (true, 0, RWX, update, false),
        (true, 1 << 58, RWX, write, false),
        (true, 1 << 58, RWX & !2, update, false),
    ] {
        let features = Features { paging_write: on, ..Features::default() };
        let found = denied(extended(features, table, LEAF | R | bit, &access));
        assert_eq!(!found.contains(Denied::WRITE), permitted, "{on} {bit:#x} {table} {access:?}");
    }
}

/// SDM 3C 30.3.3.3 and table 30-7, bit 57: the guest's tables must have been read through pages with bit 58.
#[test]
fn guest_paging_is_verified() {
    let through = |tables_via| Access {
        page: Some(Stage1Page { tables_via, ..Stage1Page::FLAT }),
        ..Access::new(Kind::Read, Privilege::User)
    };
    let alone = Access::new(Kind::Read, Privilege::User);
    for (on, bit, access, permitted) in [
        (true, 1 << 57, through(1 << 58), true),
        (true, 1 << 57, through(!(1 << 58)), false),
        (true, 0, through(0), true),
        (false, 1 << 57, through(0), true),
        (true, 1 << 57, alone, true),
    ] {
        let features = Features { guest_paging_verification: on, ..Features::default() };
        let found = denied(extended(features, RWX, LEAF | R | bit, &access));
        assert_eq!(!found.contains(Denied::GUEST_PAGING), permitted, "{on} {bit:#x} {access:?}");
    }
}

/// SDM 3C 30.3.3.2 and table 30-7, bit 60: a supervisor's shadow stack, which needs not be writable.
#[test]
fn supervisor_shadow_stacks_have_a_bit() {
    let pushes = |privilege| Access::new(Kind::Write, privilege).with_flavor(Flavor::ShadowStack);
    let (supervisor, user) = (Privilege::Supervisor, Privilege::User);
    for (on, leaf, table, access, permitted) in [
        (true, R | 1 << 60, RWX, pushes(supervisor), true),
        (true, RWX, RWX, pushes(supervisor), false),
        (true, 4 | 1 << 60, RWX, pushes(supervisor), false),
        (true, R | 1 << 60, RWX & !2, pushes(supervisor), false),
        (true, R | 1 << 60, RWX & !1 & !2, pushes(supervisor), false),
        (true, RWX, RWX, pushes(user), true),
        (true, RWX, RWX, Access::new(Kind::Write, supervisor), true),
        (false, RWX, RWX, pushes(supervisor), true),
        (false, R | 1 << 60, RWX, pushes(supervisor), false),
    ] {
        let features = Features { supervisor_shadow_stack: on, ..Features::default() };
        let found = denied(extended(features, table, LEAF | leaf, &access));
        assert_eq!(found == Denied::NONE, permitted, "{on} {leaf:#x} {table} {access:?}");
    }
}

/// SDM 3C 30.3.4 and table 30-7, bit 61: what a write to a page without W is left to decide.
#[test]
fn sub_pages_are_asked_of_unwritable_4k_pages_alone() {
    let write = Access::new(Kind::Write, Privilege::User);
    let read = Access::new(Kind::Read, Privilege::User);
    for (on, leaf, table, access, asked) in [
        (true, R | 1 << 61, RWX, write, true),
        (true, R, RWX, write, false),
        (true, RWX | 1 << 61, RWX, write, false),
        (true, R | 1 << 61, RWX & !2, write, false),
        (true, R | 1 << 61, RWX, read, false),
        (true, R | 1 << 61, RWX, Access { purpose: Purpose::Update { level: 0 }, ..write }, false),
        (false, R | 1 << 61, RWX, write, false),
    ] {
        let features = Features { sub_page: on, ..Features::default() };
        let found = denied(extended(features, table, LEAF | leaf, &access));
        assert_eq!(found.contains(Denied::SUB_PAGE), asked, "{on} {leaf:#x} {table} {access:?}");
    }
}

/// SDM 3C 30.3.2, bit 10: with mode-based control, user pages are executed by XU, others by X.
#[test]
fn execution_is_controlled_by_mode() {
    for (on, leaf, user, permitted) in [
        (true, 4, false, true),
        (true, 4, true, false),
        (true, 1 << 10, false, false),
        (true, 1 << 10, true, true),
        (false, 4, true, true),
    ] {
        let table = RWX | 1 << 10;
        let page = Some(Stage1Page { user, ..Stage1Page::FLAT });
        let access = Access { page, ..Access::new(Kind::Execute, Privilege::User) };
        let features = Features { mode_based_execute: on, ..Features::default() };
        let found = denied(extended(features, table, LEAF | leaf, &access));
        assert_eq!(found == Denied::NONE, permitted, "{on} {leaf:#x} {user}");
    }
}

/// SDM 3C 27.5.7.1, bit 63 of the entry that ended the walk.
#[test]
fn violations_become_exceptions_unless_suppressed() {
    let write = Access::new(Kind::Write, Privilege::User);
    for (leaf, converts) in [
        (LEAF | R, true),
        (LEAF | R | 1 << 63, false),
        (1 << 63, false),
        (0, true),
        // Writable without being readable is a misconfiguration.
        (LEAF | 2, false),
        (LEAF | 2 | 1 << 63, false),
    ] {
        let fault = extended(Features::default(), RWX, leaf, &write).unwrap_err();
        assert_eq!(Ept::converts_to_ve(&fault), converts, "{leaf:#x}");
    }
}

/// What 4-level paging says of an access.
fn paged(
    long: Long,
    leaf: u64,
    address: u64,
    access: &Access,
    regime: &Regime,
) -> Result<u64, Box<Fault<Gva>>> {
    let mut bytes = tables(4, 0x67, leaf);
    let mut memory = SliceMemory::new(Gpa::new(0), &mut bytes);
    let stage = Stage::<_, Gva, Gpa>::new(long, PAGE).with_updates(Updates::OnSuccess);
    match walk(&stage, &mut memory, Gva::new(address), access, regime, &()) {
        Ok(mapped) => Ok(mapped.output.raw()),
        Err(Failed::Here(fault)) => Err(fault.into()),
        Err(Failed::Below(_)) => panic!("the tables are in memory"),
    }
}

/// SDM 3A 5.6.2: IA32_PKRS for supervisor pages, PKRU for user pages, data accesses alone.
#[test]
fn protection_keys_of_both_privileges() {
    let supervisor = Privilege::Supervisor;
    for key in 0..16u32 {
        for us in [0u64, 4] {
            for (kind, rights, wp, permitted) in [
                (Kind::Read, 1u32, true, false),
                (Kind::Read, 2, true, true),
                (Kind::Write, 2, true, false),
                (Kind::Write, 2, false, true),
                (Kind::Execute, 3, true, true),
            ] {
                let mut regime = Regime::default();
                // PKRS is the supervisor pages', PKRU the user pages'; the other denies all else.
                let (own, other) = (rights << (2 * key), !(3u32 << (2 * key)));
                let user = us != 0;
                regime.x86.pkrs = if user { other } else { own };
                regime.x86.pkru = if user { own } else { other };
                let controls = Controls {
                    write_protect: wp,
                    user_keys: true,
                    supervisor_keys: true,
                    ..Controls::default()
                };
                let long = Long::four(controls, Processor::default());
                let leaf = 0x9000 | 0x63 | us | u64::from(key) << 59;
                let found = paged(long, leaf, 0x123, &Access::new(kind, supervisor), &regime);
                assert_eq!(found.is_ok(), permitted, "{key} {us} {kind:?} {rights} {wp}");
            }
        }
    }
}

/// SDM 3A 5.6.1: shadow-stack accesses need a shadow-stack page (dirty, read-only) of their privilege.
#[test]
fn shadow_stacks_are_read_only_dirty_pages() {
    let controls = Controls { shadow_stacks: true, ..Controls::default() };
    let long = Long::four(controls, Processor::default());
    for (leaf, privilege, permitted) in [
        (0x61, Privilege::Supervisor, true),
        (0x63, Privilege::Supervisor, false),
        (0x21, Privilege::Supervisor, false),
        (0x65, Privilege::Supervisor, false),
        (0x65, Privilege::User, true),
        (0x67, Privilege::User, false),
        (0x61, Privilege::User, false),
    ] {
        let access = Access::new(Kind::Read, privilege).with_flavor(Flavor::ShadowStack);
        let found = paged(long, 0x9000 | leaf, 0x123, &access, &Regime::default());
        assert_eq!(found.is_ok(), permitted, "{leaf:#x} {privilege:?}");
    }
}

/// SDM 3A 5.4 (LAM, LASS): which upper bits of a pointer count, and whose half an address is in.
#[test]
fn pointers_are_masked_and_halves_separated() {
    let four = |linear| Long::four(Controls::default(), Processor::default()).with_linear(linear);
    let user = Access::new(Kind::Read, Privilege::User);
    let ask = |linear, address| paged(four(linear), 0x9067, address, &user, &Regime::default());
    let masked = |mask_user| Linear { mask_user, ..Linear::default() };
    let tag = 0x2A << 57;
    assert!(ask(Linear::default(), tag | 0x123).is_err());
    assert_eq!(ask(masked(Masking::From57), tag | 0x123).ok(), Some(0x9123));
    assert!(ask(masked(Masking::From57), 1 << 50 | 0x123).is_err());
    assert_eq!(ask(masked(Masking::From48), 1 << 50 | 0x123).ok(), Some(0x9123));
    let separated = Linear { separation: true, ..Linear::default() };
    let fault = ask(separated, 0xFFFF_8000_0000_0123).unwrap_err();
    assert_eq!(fault.cause, Cause::AddressSpaceSeparation);
    assert!(ask(separated, 0x123).is_ok());
    // A leaf that the supervisor found, asked again for the user: neither way may let it pass.
    let input = 0xFFFF_8000_0000_0123;
    let (path, kind) = (Path::START, Kind::Read);
    let found = Found { entry: 0x9067, level: 0, base: 0x9000, shift: 12, path, input, kind };
    for kind in [Kind::Read, Kind::Write, Kind::Execute] {
        let (access, regime) = (user.as_kind(kind), Regime::default());
        let checked = four(separated).check(&found, &access, &regime);
        assert_eq!(checked, Err(Cause::AddressSpaceSeparation), "{kind:?}");
        assert!(!four(separated).plainly_permits(&found, &access, &regime), "{kind:?}");
        assert!(four(Linear::default()).plainly_permits(&found, &access, &regime), "{kind:?}");
    }
}

/// What NPT of four levels says of an access, below tables that permit everything.
fn nested(options: Options, leaf: u64, access: &Access) -> Result<u64, Box<Fault<Gpa>>> {
    let mut bytes = tables(4, 0x67, leaf);
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let npt = Npt::four(true, Processor::default()).with_options(options);
    let stage = Stage::<_, Gpa, Spa>::new(npt, PAGE).with_updates(Updates::OnSuccess);
    match walk(&stage, &mut memory, Gpa::new(0x123), access, &Regime::default(), &()) {
        Ok(mapped) => Ok(mapped.output.raw()),
        Err(Failed::Here(fault)) => Err(fault.into()),
        Err(Failed::Below(_)) => panic!("the tables are in memory"),
    }
}

/// AMD APM 2 15.25.5 and the guest mode execute trap: with it the guest's supervisor is one in the nested
/// tables as well, and may not execute the user's pages there.
#[test]
fn the_supervisor_executes_no_nested_user_pages_under_the_execute_trap() {
    let (user, supervisor) = (Privilege::User, Privilege::Supervisor);
    let table =
        Access { purpose: Purpose::Table { level: 1 }, ..Access::new(Kind::Read, supervisor) };
    for (trap, us, access, permitted) in [
        (false, 4, Access::new(Kind::Execute, supervisor), true),
        (false, 0, Access::new(Kind::Execute, supervisor), false),
        (false, 0, Access::new(Kind::Read, supervisor), false),
        (true, 4, Access::new(Kind::Execute, supervisor), false),
        (true, 4, Access::new(Kind::Read, supervisor), true),
        (true, 4, Access::new(Kind::Write, supervisor), true),
        (true, 0, Access::new(Kind::Execute, supervisor), true),
        (true, 0, Access::new(Kind::Write, supervisor), true),
        (true, 4, Access::new(Kind::Execute, user), true),
        (true, 0, Access::new(Kind::Execute, user), false),
        (true, 0, Access::new(Kind::Read, user), false),
        // Accesses to guest tables stay the user's.
        (true, 4, table, true),
        (true, 0, table, false),
    ] {
        let options = Options { guest_mode_execute_trap: trap, ..Options::default() };
        let found = nested(options, 0x9000 | 0x63 | us, &access);
        assert_eq!(found.is_ok(), permitted, "{trap} {us} {access:?}");
        let trapped = trap && us == 4 && !permitted;
        assert_eq!(denied(found).contains(Denied::GUEST_MODE), trapped, "{trap} {us} {access:?}");
    }
}

/// AMD APM 2 15.25.5: accesses to guest tables are writes, but for reads where guest tables may be read-only.
#[test]
fn guest_tables_may_be_read_only() {
    let read = Access::new(Kind::Read, Privilege::Supervisor);
    let write = Access::new(Kind::Write, Privilege::Supervisor);
    for (purpose, kind, may, permitted) in [
        (Purpose::Table { level: 0 }, read, false, false),
        (Purpose::Table { level: 0 }, read, true, true),
        (Purpose::PdpteLoad, read, true, true),
        (Purpose::Update { level: 0 }, write, true, false),
        (Purpose::Final, read, false, true),
        (Purpose::Final, write, true, false),
    ] {
        let options = Options { read_only_guest_tables: may, ..Options::default() };
        let found = nested(options, 0x9065, &Access { purpose, ..kind });
        assert_eq!(found.is_ok(), permitted, "{purpose:?} {may}");
        assert_eq!(denied(found).contains(Denied::WRITE), !permitted, "{purpose:?} {may}");
    }
}

/// AMD APM 2 7.10.1: the C-bit is no part of an address, in entries and in the root; bits between the reduced
/// width and it are reserved.
#[test]
fn the_encryption_bit_is_no_address_bit() {
    const C: u64 = 1 << 47;
    let read = Access::new(Kind::Read, Privilege::User);
    let processor = Processor {
        physical_bits: 43,
        vendor: Vendor::Amd,
        encryption_bit: Some(47),
        ..Processor::default()
    };
    let with = Long::four(Controls::default(), processor);
    let without = Long::four(Controls::default(), Processor { encryption_bit: None, ..processor });
    let regime = Regime::default();
    let ask = |long, bit| paged(long, 0x9067 | bit, 0x123, &read, &regime);
    assert_eq!(ask(with, 0).ok(), Some(0x9123));
    assert_eq!(ask(with, C).ok(), Some(0x9123));
    assert!(matches!(ask(without, C).unwrap_err().cause, Cause::Reserved(_)));
    for bit in (43..52).filter(|&bit| bit != 47) {
        assert!(matches!(ask(with, 1 << bit).unwrap_err().cause, Cause::Reserved(_)), "{bit}");
    }
    // Tables and the root.
    let mut bytes = tables(4, 0x67 | C, 0x9067);
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    for (long, output) in [(with, Some(0x9123)), (without, None)] {
        let stage = Stage::<_, Gva, Spa>::new(long, PAGE | C);
        let found = walk(&stage, &mut memory, Gva::new(0x123), &read, &regime, &());
        assert_eq!(found.ok().map(|mapped| mapped.output.raw()), output);
    }
}

/// AMD APM 2 15.25.6: nested walks set accessed bits on the way, and the dirty bit in the leaf of a write.
#[test]
fn nested_walks_set_accessed_and_dirty_bits() {
    for (kind, dirty) in [(Kind::Read, 0), (Kind::Write, 1 << 6)] {
        let mut bytes = tables(4, 0x7, 0x9007);
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        let npt = Npt::four(true, Processor::default());
        let stage = Stage::<_, Gpa, Spa>::new(npt, PAGE).with_updates(Updates::OnSuccess);
        let access = Access::new(kind, Privilege::User);
        assert_eq!(npt.touched(0x9007, 0, true, &access), 0x9027 | dirty, "{kind:?}");
        let walked = walk(&stage, &mut memory, Gpa::new(0), &access, &Regime::default(), &());
        assert_eq!(walked.unwrap().output, Spa::new(0x9000));
        let entry = |n: u64| {
            let at = (PAGE * n) as usize;
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
        };
        for n in 1..4 {
            assert_eq!(entry(n), (PAGE * (n + 1)) | 0x27, "{kind:?}");
        }
        assert_eq!(entry(4), 0x9027 | dirty, "{kind:?}");
    }
}

/// SDM 3A 5.9.2: PAT, PCD and PWT choose among eight types; PAT is bit 7 of a 4K page and bit 12 of a larger
/// one.
#[test]
fn pat_pcd_and_pwt_choose_the_memory_type() {
    use slat::memory_type::{StageType, x86::Type};
    let types =
        [Type::Wb, Type::Wt, Type::UcMinus, Type::Uc, Type::Wc, Type::Wp, Type::Wt, Type::Wb];
    let mut regime = Regime::default();
    regime.x86.pat = 0x0604_0501_0007_0406;
    let long = Long::four(Controls::default(), Processor::default());
    let access = Access::new(Kind::Read, Privilege::User);
    for (levels, pat) in [(4, 1 << 7), (3, 1 << 7 | 1 << 12)] {
        for (index, expected) in (0u64..).zip(types) {
            let large = if levels == 3 { 1 << 7 } else { 0 };
            let pat = if index & 4 != 0 { pat } else { large };
            let base = if levels == 3 { 0x20_0000 } else { 0x9000 };
            let leaf = base | 0x67 | (index & 3) << 3 | pat;
            let mut bytes = tables(levels, 0x67, leaf);
            let mut memory = SliceMemory::new(Gpa::new(0), &mut bytes);
            let stage = Stage::<_, Gva, Gpa>::new(long, PAGE);
            let walked = walk(&stage, &mut memory, Gva::new(0), &access, &regime, &());
            let found = walked.unwrap().found;
            assert_eq!(long.memory_type(&found, &regime), StageType::Pat(expected), "{index}");
        }
    }
}

/// SDM 3C 30.3.3.1: a page that is writable and not readable is misconfigured, whatever else it says.
#[test]
fn what_makes_an_entry_a_misconfiguration_is_told() {
    let access = Access::new(Kind::Read, Privilege::Supervisor);
    for (leaf, bits) in [(LEAF | 2, 2), (LEAF | 6, 2), (LEAF | 4, 4)] {
        let features = Features { execute_only: false, ..Features::default() };
        let fault = extended(features, RWX, leaf, &access).unwrap_err();
        let Cause::Reserved(reserved) = fault.cause else { panic!("{:?}", fault.cause) };
        assert_eq!(reserved.bits, bits, "{leaf:#x}");
    }
}

/// The names that tools print.
#[test]
fn formats_have_names() {
    let (four, five) = (Ept::four(Features::default()), Ept::five(Features::default()));
    assert_eq!((four.name(), five.name()), ("ept4", "ept5"));
    assert_eq!([0, 4].map(|level| five.arch_level(level)), [1, 5]);
}
