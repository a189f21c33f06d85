//! AArch64: EL1&0 under stage 2.
//!
//! State of a command: 0 ELR, 1 X0 (the address), 2 X1 (what a store stores), 3 SCTLR_EL1,
//! 4 TCR_EL1, 5 TTBR0_EL1, 6 TTBR1_EL1, 7 MAIR_EL1, 8 VTTBR_EL2, 9 VTCR_EL2, 10 HCR_EL2, 11 SPSR,
//! 12 VBAR_EL1.
//!
//! Operation 1 runs a guest: a probe that executes has X0 equal to ELR, the others run a stub behind
//! the vectors. 0x10 to 0x13 are `AT S12E1R`, `S12E1W`, `S12E0R` and `S12E0W`, which need no guest.

mod expect;
mod generate;
mod layout;
mod shape;
mod walks;

use slat::format::arm64::Processor;

use crate::arm;
use crate::contract::{Answer, Info};
use crate::draft::{Coverage, Draft};
use crate::probe::{Expectation, Outcome, Probe, Subject, Watcher};
use crate::random::Random;
use crate::reproduce::Walk;
use crate::world::World;

/// What a processor can do, as its monitor read it back.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// What translation depends on.
    pub processor: Processor,
    /// Granules of stage 2: 4K, 16K, 64K.
    pub granules: [bool; 3],
    /// PSTATE.PAN.
    pub pan: bool,
}

impl Features {
    /// What the monitor read back: ID_AA64MMFR0 to 2.
    #[must_use]
    pub fn read(info: &Info) -> Features {
        let field = |word: u64, low: u32| (word >> low & 15) as u8;
        let (mmfr0, mmfr1, mmfr2) = (info.word(0), info.word(8), info.word(16));
        let physical = [32, 36, 40, 42, 44, 48, 52];
        let processor = Processor {
            physical_bits: physical[usize::from(field(mmfr0, 0).min(6))],
            large_virtual_addresses: field(mmfr2, 16) >= 1,
            lpa2: field(mmfr0, 28) == 1,
            small_tables: field(mmfr2, 28) >= 1,
            hardware_access_flag: field(mmfr1, 0) >= 1,
            hardware_dirty_state: field(mmfr1, 0) >= 2,
            execute_never_extension: field(mmfr1, 28) >= 1,
            e0pd: field(mmfr2, 60) >= 1,
            hierarchical_disable: field(mmfr1, 12) >= 1,
            enhanced_pan: field(mmfr1, 20) >= 3,
            instruction_tags: false,
            bbm_level: 0,
        };
        Features {
            processor,
            granules: [field(mmfr0, 28) != 15, field(mmfr0, 20) != 0, field(mmfr0, 24) == 0],
            pan: field(mmfr1, 20) >= 1,
        }
    }
}

/// An AArch64 processor as a subject.
#[derive(Clone, Debug)]
pub struct Arm64 {
    /// What it can do.
    pub features: Features,
    /// Whether QEMU 10 or later models it: AT ends there with a failed assertion on stage-2 faults, and
    /// what 7.2 refuses or leaves out is there.
    pub new: bool,
    /// Deviations that the walker imitates.
    pub deviations: Vec<&'static str>,
}

/// Bits of an ESR that tell how an abort came about, rather than which instruction it was.
const SYNDROME: u64 = !(0x7FF << 14);

/// Whether a fault status code is a synchronous external abort.
fn is_external(esr: u64) -> bool {
    matches!(esr & 0x3F, 0x10 | 0x13..=0x17)
}

impl Subject for Arm64 {
    fn template(&self) -> World {
        layout::template()
    }

    fn generate(&self, world: &World, random: &mut Random, coverage: &mut Coverage) -> Draft {
        generate::generate(self, world, random, coverage)
    }

    fn expect(&self, probe: &Probe, world: &mut World, watcher: &Watcher) -> Expectation {
        expect::expect(self, probe, world, watcher)
    }

    fn class(&self, probe: &Probe) -> u16 {
        let s = &probe.state;
        let granule = |tg0: u64| [0, 2, 1, 0][(tg0 >> 14 & 3) as usize];
        let first = 1 + granule(s[4]) * 2 + (s[4] >> 59 & 1) as u16;
        let second = granule(s[9]) * 2 + (s[9] >> 32 & 1) as u16;
        (if s[3] & 1 == 0 { 0 } else { first }) << 4 | second
    }

    fn class_name(&self, class: u16) -> String {
        let shape = |index: u16| {
            let lpa2 = if index & 1 != 0 { " LPA2" } else { "" };
            format!("{}{lpa2}", ["4K", "16K", "64K", "?"][usize::from(index / 2).min(3)])
        };
        let first = match class >> 4 {
            0 => "stage 1 off".to_owned(),
            shaped => shape(shaped - 1),
        };
        format!("{first} under stage 2 {}", shape(class & 15))
    }

    fn read(&self, probe: &Probe, answer: &Answer) -> Outcome {
        let r = &answer.registers;
        let (esr, far, hpfar, esr1, far1, par) = (r[1], r[2], r[3], r[6], r[7], r[9]);
        if r[0] == 0x100 {
            return match par & 0x201 {
                // Bits 9 and 10 of a successful PAR are NS and IMPLEMENTATION DEFINED.
                0 | 0x200 => Outcome::Done { value: par & !(3 << 9) },
                _ if is_external(par >> 1) => Outcome::Bus { syndrome: 0 },
                1 => Outcome::Stage1 { syndrome: par, address: 0 },
                _ => Outcome::Stage2 { syndrome: par, address: 0, origin: 0 },
            };
        }
        let value = arm::value(&probe.state, r[5]);
        let class = |esr: u64| esr >> 26;
        // EL1's own exception comes first, and its handler's HVC after it.
        match class(esr1) {
            0x20 | 0x21 | 0x24 | 0x25 if is_external(esr1) => return Outcome::Bus { syndrome: 0 },
            0x20 | 0x21 | 0x24 | 0x25 => {
                return Outcome::Stage1 { syndrome: esr1 & SYNDROME, address: far1 };
            }
            // HVC at EL0 is undefined: the stub's or a page's trap was reached.
            0 if esr1 != 0 => return Outcome::Done { value },
            _ => (),
        }
        match (r[0], class(esr)) {
            (0x10, 0x16) => Outcome::Done { value },
            (0x10, 0x20 | 0x24) if is_external(esr) => Outcome::Bus { syndrome: 0 },
            (0x10, 0x20 | 0x24) => {
                // HPFAR holds no address after a permission fault that is not on a table.
                let valid = esr & 1 << 7 != 0 || esr >> 2 & 15 != 3;
                let address = if valid { hpfar } else { 0 };
                Outcome::Stage2 { syndrome: esr & SYNDROME, address, origin: far }
            }
            (0x80..=0x87, 0x25 | 0x2F) => Outcome::Bus { syndrome: 0 },
            _ => Outcome::Other([r[0], esr, far, esr1]),
        }
    }

    fn second_stage_bits(&self, _: u8) -> u64 {
        layout::AF | 1 << 7
    }

    fn deviating(&self, deviations: &[&'static str]) -> Box<dyn Subject> {
        Box::new(Arm64 { deviations: deviations.to_vec(), ..self.clone() })
    }

    fn is_hopeless(&self, probe: &Probe, expected: &Outcome, astray: &Outcome) -> bool {
        self.new && probe.operation != 1 && [expected, astray].into_iter().any(Outcome::is_stage2)
    }

    fn optional(&self) -> &'static [(usize, u64)] {
        // WXN; HD, HA, HPD0, TBI0 and EPD0; stage 2's HD and HA; PTW; PAN.
        &[
            (3, 1 << 19),
            (4, 3 << 39 | 1 << 41 | 1 << 37 | 1 << 7),
            (9, 3 << 21),
            (10, 1 << 2),
            (11, 1 << 22),
        ]
    }

    fn walks(&self, probe: &Probe) -> Vec<Walk> {
        walks::walks(&self.features.processor, probe)
    }

    fn second_root(&self, probe: &Probe) -> u64 {
        probe.state[8] & 0x0000_FFFF_FFFF_F000
    }

    fn elf_machine(&self) -> u16 {
        183
    }

    fn access(&self, probe: &Probe) -> &'static str {
        arm::access(probe, ["at s12e1r", "at s12e1w", "at s12e0r", "at s12e0w"])
    }

    fn explain(&self, probe: &Probe) -> String {
        let s = &probe.state;
        let what = self.access(probe);
        format!(
            "{what} {:#x} pc {:#x} sctlr {:#x} tcr {:#x} ttbr0 {:#x} ttbr1 {:#x} mair {:#x} \
             vttbr {:#x} vtcr {:#x} hcr {:#x} spsr {:#x}",
            s[1], s[0], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11],
        )
    }
}
