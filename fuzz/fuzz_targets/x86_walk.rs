//! x86, every paging mode over every second stage, with any controls over any memory: no panic, a
//! bounded number of reads, and whatever was read can be described and reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat::format::Format;
use slat::format::any::AnyFormat;
use slat::format::ept::{Ept, Features};
use slat::format::flat::Flat;
use slat::format::npt::{Npt, Options};
use slat::format::x86::Vendor;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Linear, Long, Masking, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::syndrome::x86;
use slat::{
    Access, Failed, Flavor, Gpa, Gva, Kind, Privilege, Regime, SliceMemory, Spa, Stage, Steps,
    Updates, translate,
};
use slat_fuzz::controls;

fuzz_target!(|input: ([u64; 4], [u32; 3], Vec<u8>)| {
    let ([root, second_root, address, pat], [choice, options, keys], mut bytes) = input;
    let on = |bit: u32| choice >> bit & 1 != 0;
    let option = |bit: u32| options >> bit & 1 != 0;
    let controls = controls(choice);
    let processor = Processor {
        physical_bits: (options >> 24) as u8,
        gigabyte_pages: on(7),
        vendor: if on(8) { Vendor::Amd } else { Vendor::Intel },
        encryption_bit: option(0).then_some((options >> 16) as u8),
    };
    let linear = Linear {
        mask_user: [Masking::Off, Masking::From48, Masking::From57][choice as usize >> 9 & 1],
        mask_supervisor: on(10),
        separation: on(11),
    };
    let stage1 = match choice >> 12 & 7 {
        0 => AnyFormat::Flat(Flat::X86_UNPAGED, ()),
        1 => AnyFormat::Legacy(Legacy::new(controls, on(15), processor.physical_bits), root),
        2 => AnyFormat::Pae(Pae::new(controls, processor), pae::Root::OnDemand(root)),
        3 => AnyFormat::Pae(Pae::new(controls, processor), pae::Root::Registers([root; 4])),
        4 | 5 => AnyFormat::Long(Long::five(controls, processor).with_linear(linear), root),
        _ => AnyFormat::Long(Long::four(controls, processor).with_linear(linear), root),
    };
    let features = Features {
        physical_bits: processor.physical_bits,
        execute_only: option(1),
        two_megabyte_pages: option(2),
        gigabyte_pages: option(3),
        accessed_dirty: option(4),
        mode_based_execute: option(5),
        guest_paging_verification: option(6),
        supervisor_shadow_stack: option(7),
        paging_write: option(8),
        sub_page: option(9),
    };
    let npt_options = Options {
        guest_mode_execute_trap: option(10),
        supervisor_shadow_stack: option(11),
        read_only_guest_tables: option(12),
    };
    let npt = |npt: Npt| AnyFormat::Npt(npt.with_options(npt_options), second_root);
    let stage2 = match choice >> 16 & 7 {
        0 => AnyFormat::Flat(Flat::new("none", 2, 64), ()),
        1 => npt(Npt::legacy(on(19), processor.physical_bits)),
        2 => npt(Npt::pae(on(19), processor)),
        3 => npt(Npt::four(on(19), processor)),
        4 => npt(Npt::five(on(19), processor)),
        5 => AnyFormat::Ept(Ept::five(features), second_root),
        _ => AnyFormat::Ept(Ept::four(features), second_root),
    };
    let mut regime = Regime::default();
    regime.x86.pat = pat;
    regime.x86.host_pat = pat.rotate_left(8);
    regime.x86.pkru = keys;
    regime.x86.pkrs = keys.rotate_left(7);
    regime.x86.alignment_check = on(20);
    regime.x86.cache_disabled = on(21);
    let kind = [Kind::Read, Kind::Write, Kind::Execute][(choice >> 22) as usize % 3];
    let privilege = if on(25) { Privilege::User } else { Privilege::Supervisor };
    let flavor =
        [Flavor::Plain, Flavor::ShadowStack, Flavor::Implicit][(choice >> 26) as usize % 3];
    let access = Access::new(kind, privilege).with_flavor(flavor);
    let updates =
        [Updates::Never, Updates::AsWalked, Updates::OnSuccess][(choice >> 28) as usize % 3];
    let steps = Steps::<64>::default();
    let outcome = translate(
        &Stage::<_, Gva, Gpa>::new(stage1, ()).with_updates(updates),
        &Stage::<_, Gpa, Spa>::new(stage2, ()).with_updates(updates),
        &mut SliceMemory::new(Spa::new(0), &mut bytes),
        Gva::new(address),
        &access,
        &regime,
        &steps,
    );
    // 5 over 5 levels, and the updates' own walks; an entry that is of both stages starts a walk
    // over, at most 1024 times.
    assert!(steps.count() <= 1024 * 70, "{} steps", steps.count());
    let mut text = String::new();
    for step in steps.iter() {
        let format = if step.stage == 1 { &stage1 } else { &stage2 };
        assert!(format.describe(step.entry, step.level, &mut text).is_ok());
    }
    match outcome {
        Ok(found) => {
            let _ = found.memory_type(&stage1, &stage2, &regime).to_string();
        }
        Err(Failed::Here(fault)) => {
            let _ = x86::page_fault(&fault, on(30));
        }
        Err(Failed::Below(Failed::Here(fault))) => match &stage2 {
            AnyFormat::Ept(ept, _) => {
                let _ = x86::ept_violation(&fault, ept, on(30));
            }
            AnyFormat::Npt(npt, _) => {
                let _ = x86::nested_page_fault(&fault, npt);
            }
            _ => {}
        },
        Err(Failed::Below(Failed::Below(_))) => {}
    }
});
