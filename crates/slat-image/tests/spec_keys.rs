//! Every key of a stage's specification: taken by each format that it belongs to, never without effect,
//! and refused by the others.

use slat_image::spec::{STAGE1_FORMATS, STAGE2_FORMATS, Setup};

fn parse(spec: &str) -> Result<Setup, String> {
    let format = spec.split([':', ',']).next().unwrap();
    let (one, two) =
        if STAGE1_FORMATS.contains(&format) { (Some(spec), None) } else { (None, Some(spec)) };
    Setup::parse(one, two).map_err(|error| error.to_string())
}

/// All that a specification says, as text.
fn said(spec: &str) -> String {
    let setup = parse(spec).unwrap_or_else(|why| panic!("{spec}: {why}"));
    format!("{setup:?}")
}

/// What PAE paging takes, each with a value that is not its default.
const X86: &[(&str, &str)] = &[
    ("cr0", "0x80000011"),
    ("efer", "0x0"),
    ("pat", "0x0606060606060606"),
    ("pkru", "0x4"),
    ("pkrs", "0x8"),
    ("ac", "on"),
    ("maxphyaddr", "36"),
    ("nxe", "off"),
];

/// 32-bit paging has no execute-disable bit.
const LEGACY: &[(&str, &str)] = &[
    ("cr0", "0x80000011"),
    ("pat", "0x0606060606060606"),
    ("pkru", "0x4"),
    ("pkrs", "0x8"),
    ("ac", "on"),
    ("maxphyaddr", "36"),
];

/// What EFER is where long mode is active, without NXE.
const LONG: &[(&str, &str)] = &[
    ("cr0", "0x80000011"),
    ("efer", "0x500"),
    ("pat", "0x0606060606060606"),
    ("pkru", "0x4"),
    ("pkrs", "0x8"),
    ("ac", "on"),
    ("maxphyaddr", "40"),
    ("nxe", "off"),
    ("vendor", "amd"),
];
const NPT: &[(&str, &str)] =
    &[("hpat", "0x0606060606060606"), ("nxe", "off"), ("maxphyaddr", "40")];
const EPT: &[(&str, &str)] = &[("ad", "on"), ("maxphyaddr", "40")];
const SV: &[(&str, &str)] = &[("sum", "on"), ("mxr", "on"), ("vsmxr", "on"), ("adue", "on")];
const SVX4: &[(&str, &str)] = &[("mxr", "on"), ("adue", "on")];

/// Format with a root, and keys that each change what is said.
const KEYS: &[(&str, &[(&str, &str)])] = &[
    ("x86-32:0x1000", LEGACY),
    ("x86-32:0x1000", &[("cr4", "0x0"), ("cr4", "0x100010")]),
    ("x86-pae:0x1000", X86),
    ("x86-pae:0x1000", &[("cr4", "0x100020"), ("cr4", "0x200020")]),
    ("x86-4:0x1000", LONG),
    (
        "x86-4:0x1000",
        &[
            ("cr4", "0x100020"),
            ("cr4", "0x200020"),
            ("cr4", "0x400020"),
            ("cr4", "0x800020"),
            ("cr4", "0x1000020"),
            ("cr4", "0x8000020"),
            ("cr4", "0x10000020"),
        ],
    ),
    ("x86-5:0x1000", LONG),
    ("x86-5:0x1000", &[("cr4", "0x101020"), ("cr4", "0x10001020")]),
    ("ept4:0x1000", EPT),
    ("ept5:0x1000", EPT),
    ("npt-32:0x1000", &[("hpat", "0x0"), ("cr4", "0x0"), ("maxphyaddr", "36")]),
    ("npt-pae:0x1000", NPT),
    ("npt-pae:0x1000", &[("efer", "0x0")]),
    ("npt4:0x1000", NPT),
    ("npt4:0x1000", &[("efer", "0x500")]),
    ("npt5:0x1000", NPT),
    ("npt5:0x1000", &[("efer", "0x500")]),
    (
        "arm-short:0x4000",
        &[
            ("ttbr1", "0x8000"),
            ("ttbcr", "0x1"),
            ("sctlr", "0x0"),
            ("mair", "0x40e040e0ff0a81a8"),
            ("hcr", "0x4"),
            ("dacr", "0x3"),
        ],
    ),
    (
        "arm-lpae:0x1000",
        &[
            ("ttbr1", "0x2000"),
            ("ttbcr", "0x80000002"),
            ("sctlr", "0x0"),
            ("mair", "0xff440c0400"),
            ("hcr", "0x4"),
            ("t0sz", "2"),
        ],
    ),
    ("arm-lpae,httbr=0x1000", &[("tcr", "0x80803502"), ("sctlr", "0x0"), ("mair", "0xff")]),
    (
        "arm64:0x10000",
        &[
            ("ttbr1", "0x20000"),
            ("tcr", "0x2b5193519"),
            ("sctlr", "0x0"),
            ("mair", "0xff"),
            ("hcr", "0x4"),
            ("granule", "64k"),
            ("t0sz", "25"),
            ("ad", "on"),
            ("maxphyaddr", "40"),
        ],
    ),
    (
        "arm-lpae-s2:0x10000",
        &[
            ("vtcr", "0x80003540"),
            ("hcr", "0x5"),
            ("sctlr", "0x2000000"),
            ("ipa", "32"),
            ("t0sz", "0"),
        ],
    ),
    (
        "arm64-s2:0x10000",
        &[
            ("vtcr", "0x80023558"),
            ("hcr", "0x5"),
            ("sctlr", "0x2000000"),
            ("granule", "64k"),
            ("ipa", "36"),
            ("t0sz", "28"),
            ("ad", "on"),
            ("maxphyaddr", "44"),
        ],
    ),
    ("sv32:0x1000", SV),
    ("sv39:0x1000", SV),
    ("sv48:0x1000", SV),
    ("sv57:0x1000", SV),
    ("sv32x4:0x4000", SVX4),
    ("sv39x4:0x4000", SVX4),
    ("sv48x4:0x4000", SVX4),
    ("sv57x4:0x4000", SVX4),
];

#[test]
fn no_key_is_without_effect() {
    for &(base, keys) in KEYS {
        let plain = said(base);
        for &(key, value) in keys {
            assert_ne!(said(&format!("{base},{key}={value}")), plain, "{base},{key}={value}");
        }
    }
    for base in ["arm-lpae-s2:0x10000,ipa=32", "arm64-s2:0x10000,ipa=32"] {
        assert_ne!(said(&format!("{base},sl0=0")), said(&format!("{base},sl0=1")), "{base}");
    }
}

/// Root registers, and the table that each names.
const ROOTS: &[(&str, u64)] = &[
    ("x86-32,cr3=0x3018", 0x3000),
    ("x86-pae,cr3=0x3020", 0x3020),
    ("x86-4,cr3=0x3018", 0x3000),
    ("x86-5,cr3=0x3018", 0x3000),
    ("ept4,eptp=0x305e", 0x3000),
    ("ept5,eptp=0x3066", 0x3000),
    ("npt-32,ncr3=0x3000", 0x3000),
    ("npt-pae,ncr3=0x3020", 0x3020),
    ("npt4,ncr3=0x3000", 0x3000),
    ("npt5,ncr3=0x3000", 0x3000),
    ("arm-short,ttbr0=0x406a", 0x4000),
    ("arm-short,ttbr1=0x406a,ttbcr=1", 0x4000),
    ("arm-lpae,ttbr0=0x0007000000003000", 0x3000),
    ("arm-lpae,ttbr1=0x0007000000003000,ttbcr=0x80010001", 0x3000),
    ("arm-lpae,httbr=0x3000", 0x3000),
    ("arm64,ttbr0=0x0007000000003001", 0x3000),
    ("arm64,ttbr1=0x0007000000003001", 0x3000),
    ("arm-lpae-s2,vttbr=0x0007000000004000", 0x4000),
    ("arm64-s2,vttbr=0x0007000000004001", 0x4000),
    ("sv32,satp=0x80000003", 0x3000),
    ("sv32,vsatp=0x80000003", 0x3000),
    ("sv39,satp=0x8000700000000003", 0x3000),
    ("sv48,satp=0x9000700000000003", 0x3000),
    ("sv57,vsatp=0xa000700000000003", 0x3000),
    ("sv32x4,hgatp=0x80000004", 0x4000),
    ("sv39x4,hgatp=0x8000700000000004", 0x4000),
    ("sv48x4,hgatp=0x9000700000000004", 0x4000),
    ("sv57x4,hgatp=0xa000700000000004", 0x4000),
];

#[test]
fn root_registers_name_their_tables() {
    for &(spec, table) in ROOTS {
        let setup = parse(spec).unwrap_or_else(|why| panic!("{spec}: {why}"));
        let named = setup.stage1.or(setup.stage2).unwrap();
        assert_eq!(named.root.map(|(root, _)| root), Some(table), "{spec}");
    }
    for registers in ["pdpte0", "pdpte1", "pdpte2", "pdpte3"] {
        assert!(said(&format!("x86-pae,{registers}=0x5001")).contains("20481"), "{registers}");
    }
}

/// All keys of the command's contract.
const ALL: &[&str] = &[
    "cr0",
    "cr3",
    "cr4",
    "efer",
    "pat",
    "hpat",
    "pkru",
    "pkrs",
    "ac",
    "pdpte0",
    "pdpte1",
    "pdpte2",
    "pdpte3",
    "eptp",
    "ncr3",
    "ttbr0",
    "ttbr1",
    "tcr",
    "ttbcr",
    "mair",
    "sctlr",
    "hcr",
    "httbr",
    "vttbr",
    "vtcr",
    "satp",
    "vsatp",
    "hgatp",
    "sum",
    "mxr",
    "vsmxr",
    "adue",
    "granule",
    "t0sz",
    "sl0",
    "ipa",
    "maxphyaddr",
    "nxe",
    "ad",
    "vendor",
];

#[test]
fn keys_of_other_formats_are_refused_and_those_that_fit_are_listed() {
    for format in STAGE1_FORMATS.iter().chain(STAGE2_FORMATS) {
        // A key that none has makes the error list those that the format takes.
        let refused = parse(&format!("{format}:0x10000,none=1")).unwrap_err();
        let (_, list) = refused.split_once("it takes ").unwrap_or_else(|| panic!("{refused}"));
        let taken: Vec<&str> = list.split(", ").collect();
        for &(base, keys) in
            KEYS.iter().filter(|(base, _)| base.split([':', ',']).next() == Some(format))
        {
            for (key, _) in keys.iter().filter(|_| !base.contains("httbr")) {
                assert!(taken.contains(key), "{format} takes {key}: {refused}");
            }
        }
        for key in ALL.iter().filter(|key| !taken.contains(key)) {
            let error = parse(&format!("{format}:0x10000,{key}=1")).unwrap_err();
            assert!(error.contains("has no key"), "{format},{key}: {error}");
        }
    }
}

#[test]
fn what_is_not_modelled_is_refused_by_name() {
    for (spec, name) in [
        ("x86-4:0x1000,efer=0x100d00", "UAIE"),
        ("x86-4:0x1000,cr4=0x0", "CR4.PAE"),
        ("x86-4:0x1000,cr4=0x1020", "CR4.LA57"),
        ("x86-32:0x1000,efer=0x400", "EFER.LMA"),
        ("x86-4:0x1000,pat=0x2", "no memory type"),
        ("npt4:0x1000,hpat=0x3", "no memory type"),
        ("ept4,eptp=0x1001", "memory type"),
        ("ept4,eptp=0x1066", "levels"),
        ("ept4,eptp=0x115e", "reserved bits"),
        ("arm64:0x1000,tcr=0x1000000080190019", "MTX"),
        ("arm64-s2:0,vtcr=0x4080000059", "FEAT_D128"),
        ("arm-lpae-s2:0,vtcr=0x10", "sign of T0SZ"),
        ("sv39,satp=0x7000000000000000", "MODE"),
        ("sv39,satp=0x9000000000000003", "contradicts"),
    ] {
        let error = parse(spec).unwrap_err();
        assert!(error.contains(name), "{spec}: {error}");
    }
}
