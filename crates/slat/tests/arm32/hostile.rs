//! Any registers over any memory: nothing panics, and walks are bounded.

use proptest::prelude::*;
use slat::format::Format;
use slat::format::arm32::{Lpae, Processor, Registers, Root, Short, Stage2, Version};
use slat::regime::arm::State;
use slat::syndrome::arm32::{abort, hyp};
use slat::{
    Access, Failed, Gpa, Gva, Kind, Privilege, Regime, Spa, Stage, Steps, Updates, translate,
};

use crate::naive::invent;
use crate::ram::Ram;

struct World {
    stage2: Stage<Stage2, Gpa, Spa>,
    root: Root,
    address: Gva,
    access: Access,
    regime: Regime,
    version: Version,
    seed: u64,
}

impl World {
    fn walk<F: Format<Root = Root>>(&self, format: F, long: bool, is_hyp: bool) {
        let steps = Steps::<64>::default();
        let mut ram = Ram {
            range: 0..1 << 41,
            words: Default::default(),
            fill: invent,
            seed: self.seed & !1 | u64::from(!long),
        };
        let outcome = translate(
            &Stage::<_, Gva, Gpa>::new(format, self.root).with_updates(Updates::OnSuccess),
            &self.stage2,
            &mut ram,
            self.address,
            &self.access,
            &self.regime,
            &steps,
        );
        // 3 levels over 3, then the update's own walk.
        assert!(steps.count() <= 15 + 3, "{} steps", steps.count());
        let mut text = String::new();
        for step in steps.iter() {
            match step.stage {
                1 => format.describe(step.entry, step.level, &mut text).unwrap(),
                _ => self.stage2.format.describe(step.entry, step.level, &mut text).unwrap(),
            }
        }
        match &outcome {
            Ok(found) => {
                let both = found.memory_type(&format, &self.stage2.format, &self.regime);
                both.to_string();
            }
            Err(Failed::Here(fault)) if is_hyp => {
                hyp(fault, self.version).expect("a syndrome");
            }
            Err(failed @ (Failed::Here(_) | Failed::Below(Failed::Here(_)))) => {
                abort(failed, &self.access, long, self.version).expect("a syndrome");
            }
            Err(Failed::Below(Failed::Below(_))) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_registers_over_any_memory(
        seed: u64,
        [ttbcr, ttbcr2, sctlr, dacr, vtcr]: [u32; 5],
        [hcr, ttbr0, ttbr1, vttbr, mair]: [u64; 5],
        address in prop_oneof![4 => 0..1u64 << 32, 1 => any::<u64>()],
        choice: u16,
    ) {
        let on = |bit: u32| choice >> bit & 1 != 0;
        let version = if on(0) { Version::V7 } else { Version::V8 };
        let processor = Processor {
            version,
            hardware_access_flag: on(1),
            hierarchical_disable: on(2),
            execute_never_extension: on(3),
        };
        // Mostly registers whose reserved bits are clear.
        let wild = on(4) && on(5);
        let keep = |value: u32, bits: u32| if wild { value } else { value & bits };
        let sign = vtcr << 1 & 0x10;
        let vtcr = keep(vtcr & !0x10 | sign, 0x1e00_3fdf);
        let hcr = hcr & !(1 << 27) | u64::from(on(6));
        let Ok(stage2) = Stage2::new(vtcr, hcr, sctlr, &processor) else { return Ok(()) };
        let kind = [Kind::Read, Kind::Write, Kind::Execute][usize::from(choice >> 7) % 3];
        let privilege = if on(9) { Privilege::User } else { Privilege::Supervisor };
        let world = World {
            stage2: Stage::new(stage2, vttbr),
            root: Root { ttbr0, ttbr1 },
            address: Gva::new(address),
            access: Access::new(kind, privilege),
            regime: Regime { arm: State::new(mair, hcr), ..Regime::default() },
            version,
            seed,
        };
        let sctlr = sctlr | u32::from(on(10));
        let registers =
            |ttbcr: u32| Registers { ttbcr, ttbcr2: keep(ttbcr2, 0x7_fe00), sctlr, dacr, hcr };
        if let Ok(short) = Short::new(&registers(keep(ttbcr, 0x37)), &processor) {
            world.walk(short, false, false);
        }
        let long = keep(ttbcr, 0x3fc7_3fc7) | 1 << 31;
        if let Ok(lpae) = Lpae::new(&registers(long), &processor) {
            world.walk(lpae, true, false);
        }
        if let Ok(lpae) = Lpae::hyp(keep(ttbcr, 0x5f80_3f07), sctlr, &processor) {
            world.walk(lpae, true, true);
        }
    }
}
