//! AArch32 and ARMv7, both stages, with any registers over any memory: no panic, a bounded number of
//! reads, and whatever decodes can be described and reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat::format::Format;
use slat::format::arm32::{Lpae, Processor, Registers, Root, Short, Stage2, Version};
use slat::regime::arm::State;
use slat::syndrome::arm32::{abort, hyp};
use slat::{
    Access, Failed, Gpa, Gva, Kind, Privilege, Regime, SliceMemory, Spa, Stage, Steps, Updates,
    translate,
};

struct World<'a> {
    stage2: Stage2,
    vttbr: u64,
    root: Root,
    address: Gva,
    access: Access,
    regime: Regime,
    version: Version,
    bytes: &'a mut [u8],
}

impl World<'_> {
    fn walk<F: Format<Root = Root>>(&mut self, format: F, long: bool, is_hyp: bool) {
        let steps = Steps::<64>::default();
        let outcome = translate(
            &Stage::<_, Gva, Gpa>::new(format, self.root).with_updates(Updates::OnSuccess),
            &Stage::<_, Gpa, Spa>::new(self.stage2, self.vttbr),
            &mut SliceMemory::new(Spa::new(0), self.bytes),
            self.address,
            &self.access,
            &self.regime,
            &steps,
        );
        // 3 levels over 3, then the update's own walk.
        assert!(steps.count() <= 15 + 3, "{} steps", steps.count());
        let mut text = String::new();
        for step in steps.iter() {
            let described = match step.stage {
                1 => format.describe(step.entry, step.level, &mut text),
                _ => self.stage2.describe(step.entry, step.level, &mut text),
            };
            assert!(described.is_ok());
        }
        match &outcome {
            Ok(found) => {
                let both = found.memory_type(&format, &self.stage2, &self.regime);
                let _ = both.to_string();
            }
            Err(Failed::Here(fault)) if is_hyp => {
                let _ = hyp(fault, self.version);
            }
            Err(failed) => {
                let _ = abort(failed, &self.access, long, self.version);
            }
        }
    }
}

fuzz_target!(|input: ([u32; 5], [u64; 6], u8, Vec<u8>)| {
    let ([ttbcr, ttbcr2, sctlr, dacr, vtcr], quads, choice, mut bytes) = input;
    let [hcr, ttbr0, ttbr1, vttbr, mair, address] = quads;
    let on = |bit: u32| choice >> bit & 1 != 0;
    let version = if on(0) { Version::V7 } else { Version::V8 };
    let processor = Processor {
        version,
        hardware_access_flag: on(1),
        hierarchical_disable: on(2),
        execute_never_extension: on(3),
    };
    let Ok(stage2) = Stage2::new(vtcr, hcr, sctlr, &processor) else { return };
    let kind = [Kind::Read, Kind::Write, Kind::Execute][usize::from(choice >> 4) % 3];
    let privilege = if on(7) { Privilege::User } else { Privilege::Supervisor };
    let mut world = World {
        stage2,
        vttbr,
        root: Root { ttbr0, ttbr1 },
        address: Gva::new(address),
        access: Access::new(kind, privilege),
        regime: Regime { arm: State::new(mair, hcr), ..Regime::default() },
        version,
        bytes: &mut bytes,
    };
    let registers = Registers { ttbcr, ttbcr2, sctlr, dacr, hcr };
    if let Ok(short) = Short::new(&registers, &processor) {
        world.walk(short, false, false);
    }
    if let Ok(lpae) = Lpae::new(&registers, &processor) {
        world.walk(lpae, true, false);
    }
    if let Ok(lpae) = Lpae::hyp(ttbcr, sctlr, &processor) {
        world.walk(lpae, true, true);
    }
});
