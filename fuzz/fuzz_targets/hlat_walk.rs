//! Intel HLAT over EPT, with any controls over any memory: a walk is that of the hypervisor's tables, or,
//! after one restart at most, that of the guest's; no panic, a bounded number of reads, and whatever was
//! read can be described and reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat::format::ept::{Ept, Features};
use slat::format::x86::Vendor;
use slat::format::x86::hlat::{Hlat, Root};
use slat::format::x86::long::{Linear, Long, Masking, Processor};
use slat::format::{Decoded, Format};
use slat::syndrome::x86;
use slat::{
    Access, Failed, Flavor, Gpa, Gva, Kind, Privilege, Regime, SliceMemory, Spa, Stage, Steps,
    Updates, translate,
};
use slat_fuzz::controls;

fuzz_target!(|input: ([u64; 4], [u32; 2], u8, Vec<u8>)| {
    let ([hlatp, cr3, eptp, address], [choice, keys], prefix_bits, mut bytes) = input;
    let on = |bit: u32| choice >> bit & 1 != 0;
    let controls = controls(choice);
    let processor = Processor {
        physical_bits: 36 + (choice >> 28) as u8,
        gigabyte_pages: on(7),
        vendor: Vendor::Intel,
        encryption_bit: None,
    };
    let linear = Linear {
        mask_user: [Masking::Off, Masking::From48, Masking::From57][(choice >> 8) as usize % 3],
        mask_supervisor: on(10),
        separation: on(11),
    };
    let long =
        if on(12) { Long::five(controls, processor) } else { Long::four(controls, processor) };
    let long = long.with_linear(linear);
    let features = Features {
        physical_bits: processor.physical_bits,
        accessed_dirty: on(13),
        paging_write: on(14),
        guest_paging_verification: on(15),
        ..Features::default()
    };
    let ept = Ept::four(features);
    let regime = {
        let mut regime = Regime::default();
        regime.x86.pkru = keys;
        regime.x86.pkrs = keys.rotate_left(7);
        regime.x86.alignment_check = on(16);
        regime
    };
    let kind = [Kind::Read, Kind::Write, Kind::Execute][(choice >> 17) as usize % 3];
    let privilege = if on(20) { Privilege::User } else { Privilege::Supervisor };
    let flavor =
        [Flavor::Plain, Flavor::ShadowStack, Flavor::Implicit][(choice >> 21) as usize % 3];
    let access = Access::new(kind, privilege).with_flavor(flavor);
    let hlat = Hlat::new(long, prefix_bits % 70);
    let of_hypervisor = hlat.applies(address);
    let stage1 = Stage::<_, Gva, Gpa>::new(hlat, Root { hlatp, cr3 });
    let stage2 = Stage::<_, Gpa, Spa>::new(ept, eptp);

    let steps = Steps::<64>::default();
    let gva = Gva::new(address);
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let outcome = translate(&stage1, &stage2, &mut memory, gva, &access, &regime, &steps);
    let restarts = || steps.iter().filter(|step| step.decoded == Decoded::Restart);
    let restarted = restarts().count() != 0;
    assert!(restarts().count() <= usize::from(of_hypervisor));
    assert!(restarts().all(|step| step.stage == 1));
    // Two trees of 5 levels over 4, and the final access.
    assert!(steps.count() <= 2 * 25 + 4, "{} steps", steps.count());

    // Without a restart, ordinary paging with the one root; after one, with the other.
    let root = if of_hypervisor && !restarted { hlatp } else { cr3 };
    let ordinary = Stage::<_, Gva, Gpa>::new(long, root);
    let alone = translate(&ordinary, &stage2, &mut memory, gva, &access, &regime, &());
    let outputs =
        (outcome.as_ref().map(|found| found.output()), alone.as_ref().map(|found| found.output()));
    assert_eq!(outputs.0, outputs.1);

    let mut text = String::new();
    for step in steps.iter() {
        let described = match step.stage {
            1 => hlat.half(address).describe(step.entry, step.level, &mut text),
            _ => ept.describe(step.entry, step.level, &mut text),
        };
        assert!(described.is_ok());
    }
    match &outcome {
        Ok(found) => {
            let _ = found.memory_type(&hlat, &ept, &regime).to_string();
        }
        Err(Failed::Here(fault)) => {
            let code = x86::hlat_page_fault(fault, &hlat, restarted, on(23));
            let ordinary = x86::page_fault(fault, on(23));
            let flagged = code.unwrap_or(0) & x86::page_fault_bits::HLAT != 0;
            assert!(!flagged || of_hypervisor && !restarted);
            assert_eq!(code.map(|code| code & !x86::page_fault_bits::HLAT), ordinary);
        }
        Err(Failed::Below(Failed::Here(fault))) => {
            let _ = x86::ept_violation(fault, &ept, on(23));
        }
        Err(Failed::Below(Failed::Below(_))) => {}
    }

    let updates =
        [Updates::Never, Updates::AsWalked, Updates::OnSuccess][(choice >> 24) as usize % 3];
    let steps = Steps::<64>::default();
    let _ = translate(
        &stage1.with_updates(updates),
        &stage2.with_updates(updates),
        &mut memory,
        gva,
        &access,
        &regime,
        &steps,
    );
    // An entry that is of both stages starts a walk over, at most 1024 times a tree.
    assert!(steps.count() <= 2 * 1024 * 70, "{} steps", steps.count());
});
