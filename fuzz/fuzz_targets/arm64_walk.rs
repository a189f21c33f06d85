//! AArch64, both stages, with any registers over any memory: no panic, a bounded number of reads, and
//! whatever decodes can be described and reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat::format::Format;
use slat::format::arm64::{Processor, Root, Stage1, Stage2, TranslationRegime};
use slat::regime::arm::{State, hcr};
use slat::syndrome::arm64::abort;
use slat::{
    Access, Gpa, Gva, Kind, Privilege, Regime, SliceMemory, Spa, Stage, Steps, Updates, translate,
};

fuzz_target!(|input: ([u64; 9], u8, Vec<u8>)| {
    let ([tcr, sctlr, hcr, vtcr, ttbr0, ttbr1, vttbr, address, mair], choice, mut bytes) = input;
    let which = match (choice & 3, hcr & hcr::E2H != 0) {
        (0 | 1, _) => TranslationRegime::El10,
        (_, true) => TranslationRegime::El20,
        (_, false) => TranslationRegime::El2,
    };
    let processor = Processor {
        physical_bits: choice,
        lpa2: choice & 4 != 0,
        small_tables: choice & 8 != 0,
        ..Processor::default()
    };
    // Raw values are mostly refused; without the refused fields they are mostly followed.
    let _ = (
        Stage1::new(which, tcr, sctlr, hcr, &processor),
        Stage2::new(vtcr, hcr, sctlr, &processor),
    );
    let hcr = hcr & !hcr::NV1;
    let tcr = match which {
        TranslationRegime::El2 => tcr & ((1 << 33) - 1) & !(1 << 19 | 3 << 6),
        _ => tcr & !(0xf << 60 | 1 << 35 | 1 << 6),
    };
    let vtcr = vtcr & ((1 << 34) - 1) & !(3 << 23 | 1 << 20);
    let Ok(stage1) = Stage1::new(which, tcr, sctlr, hcr, &processor) else { return };
    let Ok(stage2) = Stage2::new(vtcr, hcr, sctlr, &processor) else { return };
    let kind = [Kind::Read, Kind::Write, Kind::Execute][usize::from(choice >> 4) % 3];
    let privilege = if choice & 1 != 0 { Privilege::User } else { Privilege::Supervisor };
    let access = Access::new(kind, privilege);
    let regime = Regime { arm: State::new(mair, hcr), ..Regime::default() };
    let steps = Steps::<64>::default();
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let root = Root { ttbr0, ttbr1 };
    let outcome = translate(
        &Stage::<_, Gva, Gpa>::new(stage1, root).with_updates(Updates::OnSuccess),
        &Stage::<_, Gpa, Spa>::new(stage2, vttbr).with_updates(Updates::AsWalked),
        &mut memory,
        Gva::new(address),
        &access,
        &regime,
        &steps,
    );
    // 5 levels over 5, then the update's own walk. Where one entry is a leaf of both stages, their
    // updates undo each other until the walk gives up.
    assert!(steps.count() <= 1024 * (35 + 5), "{} steps", steps.count());
    let mut text = String::new();
    for step in steps.iter() {
        let described = match step.stage {
            1 => stage1.half(address).describe(step.entry, step.level, &mut text),
            _ => stage2.describe(step.entry, step.level, &mut text),
        };
        assert!(described.is_ok());
    }
    match &outcome {
        Ok(found) => {
            let _ = found.memory_type(&stage1, &stage2, &regime).to_string();
        }
        Err(failed) => {
            let _ = abort(failed, &access);
        }
    }
});
