//! Every feature of translation that the library has is asked of some model, or in the list of what no oracle
//! covers, and none is in both.

use std::path::{Path, PathBuf};

use slat::format::{arm32, arm64, ept, npt, riscv, x86};
use slat_oracle::arm32::Features as Arm32;
use slat_oracle::arm64::Features as Arm64;
use slat_oracle::contract::Info;
use slat_oracle::golden::{asked_of, questions};
use slat_oracle::probe::Probe;
use slat_oracle::recipe::Recipe;
use slat_oracle::x86::{Features as X86, Second};

/// Of a probe's state: whether it has a feature.
type Has = fn(&Probe) -> bool;

const fn bit(value: u64, bit: u32) -> bool {
    value >> bit & 1 != 0
}

/// Features that golden vectors ask: the library's name, the files whose names begin so, and what shows it.
const ASKED: &[(&str, &str, Has)] = &[
    ("x86 Controls.write_protect", "npt-", |p| bit(p.state[3], 16)),
    ("x86 Controls.write_protect", "ept-", |p| bit(p.state[3], 16)),
    ("x86 Controls.smep", "npt-", |p| bit(p.state[5], 20)),
    ("x86 Controls.smap", "npt-", |p| bit(p.state[5], 21)),
    ("x86 Controls.nxe", "npt-", |p| bit(p.state[6], 11)),
    ("x86 Controls.user_keys", "npt-", |p| bit(p.state[5], 22)),
    ("x86 Controls.supervisor_keys", "npt-qemu7", |p| bit(p.state[5], 24)),
    ("alignment check", "npt-", |p| bit(p.state[9], 18)),
    ("5-level guests", "npt-qemu7-0", |p| bit(p.state[5], 12)),
    ("5-level guests under 5 levels", "npt-qemu7-1", |p| bit(p.state[5], 12)),
    ("5-level guests of 52 bits", "npt-qemu7-2", |p| bit(p.state[5], 12)),
    ("5-level guests under PAE", "npt-qemu7-3", |p| bit(p.state[5], 12)),
    ("arm64 AT of QEMU 10", "stage2-qemu10", |p| p.operation != 1),
    ("Ept Features.accessed_dirty", "ept-", |p| bit(p.state[7], 6)),
    ("arm64 Processor.lpa2", "stage2-qemu", |p| bit(p.state[4], 59)),
    ("arm64 Processor.small_tables", "stage2-qemu", |p| p.state[4] & 63 > 38),
    ("arm64 Processor.hardware_access_flag", "stage2-qemu", |p| bit(p.state[4], 39)),
    ("arm64 Processor.hardware_dirty_state", "stage2-qemu", |p| bit(p.state[4], 40)),
    ("arm64 Processor.hierarchical_disable", "stage2-qemu", |p| bit(p.state[4], 41)),
    ("arm64 TBI", "stage2-qemu", |p| bit(p.state[4], 37)),
    ("arm64 WXN", "stage2-qemu", |p| bit(p.state[3], 19)),
    ("arm64 PTW", "stage2-qemu", |p| bit(p.state[10], 2)),
    ("arm64 PAN", "stage2-qemu", |p| bit(p.state[11], 22)),
    ("arm64 EPD0", "stage2-qemu", |p| bit(p.state[4], 7)),
    ("arm32 AFE", "stage2-v7-", |p| bit(p.state[3], 29)),
    ("arm32 WXN", "stage2-v7-", |p| bit(p.state[3], 19)),
    ("arm32 UWXN", "stage2-v7-", |p| bit(p.state[3], 20)),
    ("arm32 PTW", "stage2-v7-", |p| bit(p.state[10], 2)),
    ("arm32 Processor.hierarchical_disable", "stage2-v7-qemu10-1", |p| bit(p.state[14], 9)),
    ("riscv SUM", "gstage-", |p| bit(p.state[6], 18)),
    ("riscv MXR", "gstage-", |p| bit(p.state[6], 19)),
    ("riscv Features.hardware_ad", "gstage-", |p| bit(p.state[9], 61)),
    ("riscv Features.memory_types", "gstage-", |p| bit(p.state[9], 62)),
];

/// What a processor is rather than what its registers enable: what of a golden file's processor shows it,
/// where the file is of such a one.
type Is = fn(Recipe, &Info) -> Option<u64>;

/// Features of which the monitors read back more than one kind of processor.
const VARIED: &[(&str, Is)] = &[
    ("x86 Processor.physical_bits", |r, i| x86_features(r, i).map(|f| f.physical_bits.into())),
    ("x86 Processor.gigabyte_pages", |r, i| x86_features(r, i).map(|f| f.gigabyte.into())),
    ("x86 Processor.vendor", |r, i| x86_features(r, i).map(|f| f.amd.into())),
    ("Ept Features.gigabyte_pages", |r, i| ept_features(r, i).map(|f| f.ept_large.1.into())),
    ("unrestricted guests", |r, i| ept_features(r, i).map(|f| f.unrestricted.into())),
    ("arm64 Processor.physical_bits", |r, i| arm64_processor(r, i).map(|p| p.physical_bits.into())),
    ("arm64 Processor.large_virtual_addresses", |r, i| {
        arm64_processor(r, i).map(|p| p.large_virtual_addresses.into())
    }),
    ("arm64 Processor.execute_never_extension", |r, i| {
        arm64_processor(r, i).map(|p| p.execute_never_extension.into())
    }),
    ("arm32 Processor.version", |r, i| arm32_processor(r, i).map(|p| p.version as u64)),
    ("arm32 Processor.execute_never_extension", |r, i| {
        arm32_processor(r, i).map(|p| p.execute_never_extension.into())
    }),
];

/// Features that all processors have that are asked, or none: in the list of what no oracle covers.
const UNVARIED: &[(&str, Is)] = &[
    ("Ept Features.physical_bits", |r, i| ept_features(r, i).map(|f| f.physical_bits.into())),
    ("Ept Features.execute_only", |r, i| ept_features(r, i).map(|f| f.execute_only.into())),
    ("Ept Features.two_megabyte_pages", |r, i| ept_features(r, i).map(|f| f.ept_large.0.into())),
    ("bits 9 to 11 of the exit qualification", |r, i| {
        ept_features(r, i).map(|f| f.advanced.into())
    }),
    ("riscv Features.napot", |r, _| (r == Recipe::Riscv).then_some(1)),
];

/// What concerns editing tables, and no walk.
const EDITING: &[&str] = &["arm64 Processor.bbm_level"];

fn x86_features(recipe: Recipe, info: &Info) -> Option<X86> {
    match recipe {
        Recipe::X86 { second, amd, .. } => Some(X86::read(info, second, amd)),
        _ => None,
    }
}

fn ept_features(recipe: Recipe, info: &Info) -> Option<X86> {
    x86_features(recipe, info).filter(|features| features.second == Second::Ept)
}

fn arm64_processor(recipe: Recipe, info: &Info) -> Option<arm64::Processor> {
    matches!(recipe, Recipe::Arm64 { .. }).then(|| Arm64::read(info).processor)
}

fn arm32_processor(recipe: Recipe, info: &Info) -> Option<arm32::Processor> {
    let Recipe::Arm32 { v8, .. } = recipe else { return None };
    let version = if v8 { arm32::Version::V8 } else { arm32::Version::V7 };
    Some(Arm32::read(info, version).processor)
}

/// A feature that is listed: its name there, the library's names, and what would show it.
type Listed = (&'static str, &'static [&'static str], Option<(&'static str, Has)>);

/// Features that no golden vector asks, as `uncovered.txt` names them: the library's names, and where a
/// probe's state would show them, the files and what shows them there.
const LISTED: &[Listed] = &[
    ("5-level guests under EPT", &[], Some(("ept-", |p| bit(p.state[5], 12)))),
    (
        "5-level guests under nested tables of a 32-bit host",
        &[],
        Some(("npt-bochs2-3", |p| bit(p.state[5], 12))),
    ),
    ("EPT of processors with other than 40 bits", &["Ept Features.physical_bits"], None),
    ("EPT without execute-only pages", &["Ept Features.execute_only"], None),
    ("EPT without 2 MiB pages", &["Ept Features.two_megabyte_pages"], None),
    ("bits 9 to 11 of the exit qualification", &["bits 9 to 11 of the exit qualification"], None),
    ("memory types of x86", &[], None),
    ("5-level EPT", &[], Some(("ept-", |p| p.state[7] >> 3 & 7 == 4))),
    ("mode-based execute control", &["Ept Features.mode_based_execute"], None),
    ("sub-page write permissions", &["Ept Features.sub_page"], None),
    ("guest-paging verification", &["Ept Features.guest_paging_verification"], None),
    ("paging-write access", &["Ept Features.paging_write"], None),
    (
        "supervisor shadow stacks in EPT",
        &["Ept Features.supervisor_shadow_stack"],
        Some(("ept-", |p| bit(p.state[7], 7))),
    ),
    ("virtualization exceptions", &[], None),
    ("guest mode execute trap", &["Npt Options.guest_mode_execute_trap"], None),
    ("supervisor shadow stacks in NPT", &["Npt Options.supervisor_shadow_stack"], None),
    ("read-only guest tables", &["Npt Options.read_only_guest_tables"], None),
    ("AMD's encryption bit", &["x86 Processor.encryption_bit"], None),
    (
        "shadow stacks",
        &["x86 Controls.shadow_stacks"],
        Some(("", |p| x86(p) && bit(p.state[5], 23))),
    ),
    (
        "LAM and LASS",
        &["Linear.mask_user", "Linear.mask_supervisor", "Linear.separation"],
        Some(("", |p| x86(p) && (p.state[5] >> 27 & 3 != 0 || p.state[4] >> 61 != 0))),
    ),
    ("HLAT", &[], None),
    ("regimes EL2 and EL2&0", &[], None),
    ("E0PD", &["arm64 Processor.e0pd"], Some(("stage2-qemu", |p| p.state[4] >> 55 & 3 != 0))),
    ("EPAN", &["arm64 Processor.enhanced_pan"], Some(("stage2-qemu", |p| bit(p.state[3], 57)))),
    (
        "TBID",
        &["arm64 Processor.instruction_tags"],
        Some(("stage2-qemu", |p| p.state[4] >> 51 & 3 != 0)),
    ),
    ("forced write-back", &[], Some(("stage2-qemu", |p| bit(p.state[10], 46)))),
    ("big-endian tables of AArch64", &[], Some(("stage2-qemu", |p| bit(p.state[3], 25)))),
    ("big-endian tables of AArch32", &[], Some(("stage2-v7-", |p| bit(p.state[3], 25)))),
    (
        "access flags set by hardware in short descriptors",
        &["arm32 Processor.hardware_access_flag"],
        Some(("stage2-v7-", |p| bit(p.state[3], 17))),
    ),
    ("Hyp mode's own stage 1", &[], None),
    (
        "TTBCR.PD0 and PD1 of ARMv7, which QEMU's machine has with the Security Extensions only",
        &[],
        Some(("stage2-v7-qemu7", |p| !bit(p.state[4], 31) && p.state[4] >> 4 & 3 != 0)),
    ),
    ("domain faults in PAR", &[], None),
    ("memory attributes of short descriptors in PAR", &[], None),
    ("levels of stage-2 faults on tables of short descriptors", &[], None),
    ("the memory type that PBMT gives", &[], None),
    ("harts without Svnapot", &["riscv Features.napot"], None),
    ("Sv32 and Sv32x4", &[], Some(("gstage-", |p| p.state[3] >> 60 == 1 || p.state[4] >> 60 == 1))),
    ("Zicfiss", &["riscv Features.shadow_stacks"], Some(("gstage-", |p| bit(p.state[9], 3)))),
    ("Svrsw60t59b", &["riscv Features.software_bits"], None),
    (
        "pointer masking of RISC-V",
        &["riscv Features.supervisor_mask", "riscv Features.user_mask"],
        Some(("gstage-", |p| p.state[9] >> 32 & 3 != 0 || p.state[7] >> 48 & 3 != 0)),
    ),
    (
        "byte order of RISC-V's tables",
        &["riscv Features.order"],
        Some(("gstage-", |p| bit(p.state[7], 5))),
    ),
    ("32-bit paging of a guest of KVM", &[], None),
    ("PAE paging of a guest of KVM", &[], None),
];

/// Whether a probe is of x86: CR0 has its fixed bits in state 3.
fn x86(probe: &Probe) -> bool {
    probe.state[3] & 0x30 == 0x30 && probe.state[3] & !0xE005_003F == 0
}

/// The names of a value's fields; a field that is not named here does not compile.
macro_rules! fields {
    ($path:ident :: $($more:ident)::+ as $name:literal { $($field:ident),* $(,)? }) => {{
        let all = $path::$($more)::+::default();
        let $path::$($more)::+ { $($field: _),* } = all;
        vec![$(concat!($name, ".", stringify!($field))),*]
    }};
}

/// All that the library can be told of a processor and its controls.
fn library() -> Vec<&'static str> {
    [
        fields!(x86::Controls as "x86 Controls" {
            write_protect, smep, smap, nxe, user_keys, supervisor_keys, shadow_stacks
        }),
        fields!(x86::long::Processor as "x86 Processor" {
            physical_bits, gigabyte_pages, vendor, encryption_bit
        }),
        fields!(x86::long::Linear as "Linear" { mask_user, mask_supervisor, separation }),
        fields!(ept::Features as "Ept Features" {
            physical_bits, execute_only, two_megabyte_pages, gigabyte_pages, accessed_dirty,
            mode_based_execute, guest_paging_verification, supervisor_shadow_stack, paging_write,
            sub_page
        }),
        fields!(npt::Options as "Npt Options" {
            guest_mode_execute_trap, supervisor_shadow_stack, read_only_guest_tables
        }),
        fields!(arm64::Processor as "arm64 Processor" {
            physical_bits, large_virtual_addresses, lpa2, small_tables, hardware_access_flag,
            hardware_dirty_state, execute_never_extension, e0pd, hierarchical_disable,
            enhanced_pan, instruction_tags, bbm_level
        }),
        fields!(arm32::Processor as "arm32 Processor" {
            version, hardware_access_flag, hierarchical_disable, execute_never_extension
        }),
        fields!(riscv::Features as "riscv Features" {
            hardware_ad, napot, memory_types, shadow_stacks, software_bits, supervisor_mask,
            user_mask, order
        }),
    ]
    .concat()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The features that the list names, each once.
fn listed() -> Vec<String> {
    let text = std::fs::read_to_string(golden().join("uncovered.txt")).unwrap();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("feature "))
        .map(|line| line.rsplit_once(": ").expect("a feature has a test").0.to_owned())
        .collect();
    names.dedup();
    names
}

#[test]
fn every_feature_is_asked_or_listed_and_none_is_both() {
    for name in library() {
        let asked = ASKED.iter().any(|(asked, ..)| *asked == name);
        let listed = LISTED.iter().any(|(_, names, _)| names.contains(&name));
        let varied = VARIED.iter().any(|(varied, _)| *varied == name);
        let editing = EDITING.contains(&name);
        let ways = [asked, listed, varied, editing];
        assert_eq!(ways.iter().filter(|is| **is).count(), 1, "{name}");
    }
    let known: Vec<&str> = LISTED.iter().map(|(name, ..)| *name).collect();
    for name in listed() {
        assert!(known.contains(&&*name), "what would show that {name} is asked?");
    }
    for name in known {
        assert!(listed().iter().any(|listed| listed == name), "{name} is not in the list");
    }
}

#[test]
fn the_vectors_ask_what_is_said_and_not_what_is_listed() {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "zst") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let (_, cases) = questions(&std::fs::read(&path).unwrap(), 1000).unwrap();
            files.push((name, cases));
        }
    }
    let asks = |prefix: &str, has: Has| {
        let mut probes = files.iter().filter(|(name, _)| name.starts_with(prefix)).peekable();
        assert!(probes.peek().is_some(), "no file begins with {prefix}");
        probes.flat_map(|(_, cases)| cases).any(|case| has(&case.probe))
    };
    for (name, prefix, has) in ASKED {
        assert!(asks(prefix, *has), "nothing asks {name} of {prefix}");
    }
    for (name, _, shown) in LISTED {
        if let Some((prefix, has)) = shown {
            assert!(!asks(prefix, *has), "{name} is asked, and need not be listed");
        }
    }
}

#[test]
fn processors_of_several_kinds_are_asked_where_that_is_said() {
    let mut processors = Vec::new();
    for entry in std::fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "zst") {
            processors.push(asked_of(&std::fs::read(&path).unwrap()).unwrap());
        }
    }
    let kinds = |is: Is| {
        let values = processors.iter().filter_map(|(recipe, info)| is(*recipe, info));
        values.collect::<std::collections::BTreeSet<u64>>().len()
    };
    for (name, is) in VARIED {
        assert!(kinds(*is) > 1, "{name}: all processors that are asked are alike");
    }
    for (name, is) in UNVARIED {
        assert_eq!(kinds(*is), 1, "{name}: need not be listed");
        assert!(LISTED.iter().any(|(_, names, _)| names.contains(name)), "{name} is not listed");
    }
}
