//! What a stage says of the page that it found, to the stage below and in reports.

use slat::access::Stage1Page;
use slat::format::arm32::{self, Lpae, Registers, Short, Version, sctlr};
use slat::format::arm64::{Granule, Processor as Arm64, Stage1, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::npt::{Npt, Options};
use slat::format::riscv::{self, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::Pae;
use slat::format::{Format, Found, Path};
use slat::regime::arm::hcr;
use slat::syndrome::x86::ept_violation;
use slat::{
    Access, Cause, Denied, Failed, Flavor, Gpa, Kind, Privilege, Regime, SliceMemory, Spa, Stage,
    Updates, walk,
};

const PAGE: u64 = 0x1000;

/// The page of a leaf of the smallest size.
fn page<F: Format>(format: &F, entry: u64) -> Stage1Page {
    page_at(format, 0, entry)
}

/// The page of a leaf of this level.
fn page_at<F: Format>(format: &F, level: u8, entry: u64) -> Stage1Page {
    let found = Found {
        entry,
        level,
        base: 0,
        shift: format.shift(level) as u8,
        path: Path::START,
        input: 0,
        kind: Kind::Read,
    };
    format.page(&found, &Regime::default())
}

/// RISC-V privileged, "Shadow Stack Memory Protection": W without R and X is a shadow stack's page, which
/// plain stores may not write.
#[test]
fn of_riscv() {
    let sv = |shadow_stacks| {
        Sv::stage1(Scheme::Sv39, riscv::Features { shadow_stacks, ..riscv::Features::default() })
    };
    // V, R, W, X, U.
    for (entry, stacks, user, writable, executable, shadow_stack) in [
        (0b0_0101, true, false, false, false, true),
        (0b1_0101, true, true, false, false, true),
        (0b1_0111, true, true, true, false, false),
        (0b0_1111, true, false, true, true, false),
        (0b0_1011, true, false, false, true, false),
        (0b0_0011, false, false, false, false, false),
    ] {
        let page = page(&sv(stacks), entry | 0xC0);
        let said = (page.user, page.writable, page.executable, page.shadow_stack);
        assert_eq!(said, (user, writable, executable, shadow_stack), "{entry:#b}");
    }
}

/// Intel SDM 3A 5.6.1: a shadow-stack page's leaf is read-only and dirty, and every table above it writable.
#[test]
fn of_x86() {
    let on = Controls { shadow_stacks: true, ..Controls::default() };
    for (controls, tables, leaf, shadow_stack) in [
        (on, 7, 0x41, true),
        (on, 5, 0x41, false),
        (on, 7, 0x43, false),
        (on, 7, 0x01, false),
        (Controls::default(), 7, 0x41, false),
    ] {
        let long = Long::four(controls, Processor::default());
        let path = Path { and: tables, or: tables, via: u64::MAX };
        let (base, kind) = (0, Kind::Read);
        let found = Found { entry: leaf, level: 0, base, shift: 12, path, input: 0, kind };
        let page = long.page(&found, &Regime::default());
        assert_eq!(page.shadow_stack, shadow_stack, "{tables:#x} {leaf:#x}");
    }
}

/// Arm ARM D8.4.1: a page is executable where EL1 or EL0 may execute it.
#[test]
fn of_aarch64() {
    let stage = Stage1::plain(Granule::Four, 48, &Arm64::default()).unwrap();
    let (pxn, uxn) = (1 << 53, 1 << 54);
    for (never, executable) in [(0, true), (pxn, true), (uxn, true), (pxn | uxn, false)] {
        assert_eq!(page(&stage, 3 | 1 << 10 | never).executable, executable, "{never:#x}");
    }
    assert!(page(&stage, 3 | 1 << 6).user && !page(&stage, 3).user);
    assert!(page(&stage, 3).writable && !page(&stage, 3 | 1 << 7).writable);
}

/// Arm ARM D8.4.1.3 and FEAT_XNX: with it XN[1:0] are two bits, of which only 0b10 keeps both EL1 and EL0 from
/// executing.
#[test]
fn of_aarch64_stage_2() {
    for execute_never_extension in [false, true] {
        let processor = Arm64 { execute_never_extension, ..Arm64::default() };
        let stage = Stage2::plain(Granule::Four, 40, &processor).unwrap();
        let leaf = 3 | 1 << 10 | 3 << 6;
        let executable = |never: u64| page(&stage, leaf | never << 53).executable;
        let one_may = execute_never_extension;
        assert_eq!([0b00, 0b01, 0b10, 0b11].map(executable), [true, true, false, one_may]);
        assert!(page(&stage, leaf).writable && !page(&stage, leaf & !(1 << 7)).writable);
    }
}

/// Arm ARM G5.6.4: a manager's domain gives all rights, a client's those of the descriptor.
#[test]
fn of_short_descriptors() {
    let short = |dacr| {
        let registers = Registers { sctlr: sctlr::M, dacr, ..Registers::default() };
        Short::new(&registers, &arm32::Processor::default()).unwrap()
    };
    // A small page of domain 0, XN, that PL1 alone may read (AP[2:0] of 101).
    let entry = 3 | 1 << 4 | 1 << 9;
    let client = page(&short(1), entry);
    assert!(!client.user && !client.writable && !client.executable);
    let manager = page(&short(3), entry);
    assert!(manager.user && manager.writable && manager.executable);
    // A section of domain 5, XN, of the same rights: DACR has two bits for each domain.
    let section = 2 | 5 << 5 | 1 << 4 | 1 << 10 | 1 << 15;
    for (dacr, all) in [(3 << 10, true), (1 << 10, false), (3 << 8 | 3 << 12, false)] {
        let page = page_at(&short(dacr), 1, section);
        assert_eq!([page.user, page.writable, page.executable], [all; 3], "{dacr:#x}");
    }
}

/// The levels of the manuals: Arm's count down to 3 at the pages, Intel's and AMD's tables have 1 there, RISC-V's
/// are those of this library.
#[test]
fn levels_are_the_manuals() {
    let registers = Registers { ttbcr: 1 << 31, sctlr: sctlr::M, ..Registers::default() };
    let lpae = Lpae::new(&registers, &arm32::Processor::default()).unwrap();
    assert_eq!([0, 1, 2].map(|level| lpae.arch_level(level)), [3, 2, 1]);
    let stage = Stage1::plain(Granule::Four, 48, &Arm64::default()).unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(|level| stage.arch_level(level)), [3, 2, 1, 0, -1]);
    let five = Long::five(Controls::default(), Processor::default());
    assert_eq!([0, 1, 2, 3, 4].map(|level| five.arch_level(level)), [1, 2, 3, 4, 5]);
    let pae = Pae::new(Controls::default(), Processor::default());
    assert_eq!([0, 1, 2].map(|level| pae.arch_level(level)), [1, 2, 3]);
    assert_eq!(
        [0, 1].map(|level| Legacy::new(Controls::default(), true, 40).arch_level(level)),
        [1, 2]
    );
    let ept = Ept::five(Features::default());
    assert_eq!([0, 1, 2, 3, 4].map(|level| ept.arch_level(level)), [1, 2, 3, 4, 5]);
    let sv = Sv::stage1(Scheme::Sv57, riscv::Features::default());
    assert_eq!([0, 1, 2, 3, 4].map(|level| sv.arch_level(level)), [0, 1, 2, 3, 4]);
}

/// The manual that a stage 2 of AArch32 follows is its processor's.
#[test]
fn stage_2_has_its_processors_version() {
    for version in [Version::V7, Version::V8] {
        let processor = arm32::Processor { version, ..arm32::Processor::default() };
        let stage = arm32::Stage2::new(1 << 6, hcr::VM, 0, &processor).unwrap();
        assert_eq!(stage.version(), version);
    }
}

/// Arm ARM D8.2: addresses above 48 bits need 64K or LPA2.
#[test]
fn plain_stages_1_have_the_output_that_their_granule_has() {
    let processor = Arm64 { physical_bits: 52, ..Arm64::default() };
    for (granule, input, output) in [
        (Granule::Four, 48, 48),
        (Granule::Four, 52, 52),
        (Granule::Sixteen, 47, 48),
        (Granule::Sixteen, 52, 52),
        (Granule::SixtyFour, 48, 52),
    ] {
        let stage = Stage1::plain(granule, input, &processor).unwrap();
        assert_eq!(stage.geometry().output_bits(), output, "{granule:?} {input}");
    }
}

/// Tables of one path at 0x1000, 0x2000, ..., its table entries with these flags, and this leaf.
fn tables(flags: u64, leaf: u64) -> Vec<u8> {
    let mut bytes = vec![0; (PAGE * 5) as usize];
    for n in 1..=4 {
        let entry = if n == 4 { leaf } else { (PAGE * (n + 1)) | flags };
        bytes[(PAGE * n) as usize..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

/// AMD APM 2 15.25.14: a supervisor shadow stack needs a nested leaf that is read-only and dirty under tables
/// that are all writable.
#[test]
fn nested_supervisor_shadow_stacks_need_writable_tables() {
    let options = Options { supervisor_shadow_stack: true, ..Options::default() };
    let npt = Npt::four(true, Processor::default()).with_options(options);
    let stage = Stage::<_, Gpa, Spa>::new(npt, PAGE).with_updates(Updates::OnSuccess);
    let access = Access::new(Kind::Write, Privilege::Supervisor).with_flavor(Flavor::ShadowStack);
    let (table, leaf) = (0x67, 0x65 | (9 * PAGE));
    for (table, leaf, permitted) in [
        (table, leaf, true),
        (table & !2, leaf, false),
        (table, leaf | 2, false),
        (table, leaf & !0x40, false),
    ] {
        let mut bytes = tables(table, leaf);
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        let found = walk(&stage, &mut memory, Gpa::new(0x123), &access, &Regime::default(), &());
        assert_eq!(found.is_ok(), permitted, "{table:#x} {leaf:#x}");
    }
}

/// What software sets when it answers faults: once set, it stays.
#[test]
fn leaves_settle() {
    fn settles<F: Format>(format: &F, level: u8, leaf: u64, clean: u64, dirty: u64) {
        for (dirties, set) in [(false, clean), (true, clean | dirty)] {
            let settled = format.settled(leaf, level, dirties);
            assert_eq!(settled, leaf | set, "{} level {level} {dirties}", format.name());
            assert_eq!(format.settled(settled, level, dirties), settled, "{}", format.name());
        }
    }
    let sv = Sv::stage2(Scheme::Sv39, riscv::Features::default());
    settles(&sv, 0, 0x1f, 1 << 6, 1 << 7);
    let processor = Arm64::default();
    let af = 1 << 10;
    settles(&Stage1::plain(Granule::Four, 48, &processor).unwrap(), 0, 3, af, 0);
    settles(&Stage2::plain(Granule::Four, 40, &processor).unwrap(), 0, 3, af, 0);
    let processor = arm32::Processor::default();
    let long = Registers { sctlr: sctlr::M, ttbcr: 1 << 31, ..Registers::default() };
    settles(&Lpae::new(&long, &processor).unwrap(), 1, 1, af, 0);
    settles(&arm32::Stage2::new(1 << 6, hcr::VM, 0, &processor).unwrap(), 1, 1, af, 0);
    // AP[0] of short descriptors: bit 10 of a section, bit 4 of a page, with SCTLR.AFE alone.
    for (afe, section, page) in [(0, 0, 0), (sctlr::AFE, 1 << 10, 1 << 4)] {
        let registers = Registers { sctlr: sctlr::M | afe, ..Registers::default() };
        let short = Short::new(&registers, &processor).unwrap();
        settles(&short, 1, 2, section, 0);
        settles(&short, 0, 2, page, 0);
    }
}

/// Intel SDM 3C table 29-7, bits 9 to 11: the page of the linear address is a user's, may be written, may not
/// be executed.
#[test]
fn violations_tell_of_the_linear_addresss_page() {
    let ept = Ept::four(Features::default());
    let stage = Stage::<_, Gpa, Spa>::new(ept, PAGE | 0x1E);
    for bits in 0..8u64 {
        let [user, writable, never] = [0, 1, 2].map(|bit| bits >> bit & 1 != 0);
        let page = Stage1Page { user, writable, executable: !never, ..Stage1Page::FLAT };
        let access = Access {
            page: Some(page),
            origin: Some(0x7123),
            ..Access::new(Kind::Write, Privilege::User)
        };
        // Readable and executable.
        let mut bytes = tables(7, (9 * PAGE) | 6 << 3 | 5);
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        let fault =
            match walk(&stage, &mut memory, Gpa::new(0x123), &access, &Regime::default(), &()) {
                Err(Failed::Here(fault)) => fault,
                other => panic!("{other:?}"),
            };
        assert_eq!(fault.cause, Cause::Permission(Denied::WRITE));
        // A write; R and X are allowed; the linear address is valid, and the access is its own.
        let plain = 1 << 1 | 5 << 3 | 3 << 7;
        assert_eq!(ept_violation(&fault, &ept, true), Some(plain | bits << 9));
        assert_eq!(ept_violation(&fault, &ept, false), Some(plain));
    }
}
