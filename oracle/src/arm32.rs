//! ARMv7-A with the virtualization extensions, and AArch32 of Armv8: PL1&0 in both formats under the
//! long-descriptor stage 2 of Hyp mode.
//!
//! State of a command: 0 PC, 1 R0 (the address), 2 R1 (what a store stores), 3 SCTLR, 4 TTBCR,
//! 5 TTBR0, 6 TTBR1, 7 MAIR0 and MAIR1, 8 VTTBR, 9 VTCR, 10 HCR, 11 SPSR, 12 VBAR, 13 DACR,
//! 14 TTBCR2.
//!
//! Operation 1 runs a guest: a probe that executes has R0 equal to PC, the others run a stub behind
//! the vectors. 0x10 to 0x13 are ATS12NSOPR, OPW, OUR and OUW, which need no guest.

mod expect;
mod generate;
mod layout;
mod walks;

use slat::format::arm32::{Processor, Version};

use crate::arm;
use crate::contract::{Answer, Info};
use crate::draft::{Coverage, Draft};
use crate::probe::{Expectation, Outcome, Probe, Subject, Watcher};
use crate::random::Random;
use crate::reproduce::Walk;
use crate::world::World;

pub(crate) use layout::is_long;

/// What a processor can do, as its monitor read it back.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// What translation depends on.
    pub processor: Processor,
    /// CPSR.PAN.
    pub pan: bool,
}

impl Features {
    /// What the monitor read back: ID_MMFR3 and ID_MMFR4. `version` is the manual it follows.
    #[must_use]
    pub fn read(info: &Info, version: Version) -> Features {
        let field = |word: u64, low: u32| word >> low & 15;
        let (mmfr3, mmfr4) = (info.word(8), info.word(24));
        let processor = Processor {
            version,
            hardware_access_flag: false,
            hierarchical_disable: field(mmfr4, 16) >= 1,
            execute_never_extension: field(mmfr4, 8) >= 1,
        };
        Features { processor, pan: field(mmfr3, 16) >= 1 }
    }
}

/// A 32-bit Arm processor as a subject.
#[derive(Clone, Debug)]
pub struct Arm32 {
    /// What it can do.
    pub features: Features,
    /// Whether QEMU 10 or later models it: AT ends there with a failed assertion on stage-2 faults.
    pub new: bool,
    /// Deviations that the walker imitates.
    pub deviations: Vec<&'static str>,
}

impl Arm32 {
    fn deviates(&self, name: &str) -> bool {
        self.deviations.contains(&name)
    }
}

/// What of HSR tells how an abort came about, rather than which instruction it was. IL is no part of an
/// ARMv7 abort, and in Armv8 the instruction's where its syndrome may be valid: on a final data access.
const fn syndrome(hsr: u64, version: Version) -> u64 {
    const S1PTW: u64 = 1 << 7;
    let is_final = hsr >> 26 == DATA_ABORT && hsr & S1PTW == 0;
    match version {
        Version::V8 if !is_final => hsr & !(0x7FF << 14),
        _ => hsr & !(0xFFF << 14),
    }
}

/// Of a fault that PL1 sees: its status is IFSR's. Above all bits that DFSR and IFSR have.
pub(crate) const IN_IFSR: u64 = 1 << 32;

/// Exception classes of HSR.
const HVC: u64 = 0x12;
const PREFETCH_ABORT: u64 = 0x20;
const DATA_ABORT: u64 = 0x24;

/// Whether a status in the long encoding is a synchronous external abort.
fn is_external(status: u64) -> bool {
    matches!(status & 0x3F, 0x10 | 0x14..=0x17)
}

/// The same for the short encoding.
fn is_external_short(status: u64) -> bool {
    matches!(status & 0xF | status >> 6 & 0x10, 0x08 | 0x0C | 0x0E)
}

/// The bits of DFSR and IFSR that are defined: in the short encoding, the domain is so for few
/// statuses (Arm ARM G8.2.47).
pub(crate) fn defined(status: u64) -> u64 {
    let short = status & 1 << 9 == 0;
    match status & 0xF | status >> 6 & 0x10 {
        0b01001 | 0b01011 | 0b00111 => !0,
        _ if short => !(0xF << 4),
        _ => !0,
    }
}

impl Subject for Arm32 {
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
        match (probe.state[3] & 1, is_long(&probe.state)) {
            (0, _) => 0,
            (_, false) => 1,
            (_, true) => 2,
        }
    }

    fn class_name(&self, class: u16) -> String {
        let first = ["stage 1 off", "arm-short", "arm-lpae"][usize::from(class).min(2)];
        let version = match self.features.processor.version {
            Version::V7 => "",
            Version::V8 => " v8",
        };
        format!("{first}{version} under arm-lpae-s2{version}")
    }

    fn read(&self, probe: &Probe, answer: &Answer) -> Outcome {
        let r = &answer.registers;
        let (kind, hsr, hdfar, hifar, hpfar, par) = (r[0], r[1], r[2], r[3], r[4], r[11]);
        if kind == 0x100 {
            return match par & 0x201 {
                // Bits 9 and 10 of a successful PAR are NS and IMPLEMENTATION DEFINED.
                0 | 0x200 => Outcome::Done { value: par & !(3 << 9) },
                _ if is_external(par >> 1) => Outcome::Bus { syndrome: 0 },
                1 => Outcome::Stage1 { syndrome: par, address: 0 },
                _ => Outcome::Stage2 { syndrome: par, address: 0, origin: 0 },
            };
        }
        let value = arm::value(&probe.state, r[5]);
        let class = hsr >> 26;
        let stage1 = |status: u64, register: u64, address| {
            let external =
                if status & 1 << 9 == 0 { is_external_short(status) } else { is_external(status) };
            if external {
                return Outcome::Bus { syndrome: 0 };
            }
            Outcome::Stage1 { syndrome: status & defined(status) | register, address }
        };
        // PL1's own abort comes first, and whatever its vectors meet after it.
        match (r[7], r[9]) {
            _ if kind != 0x10 => (),
            (0, 0) => (),
            (0, status) => return stage1(status, IN_IFSR, r[10]),
            (status, _) => return stage1(status, 0, r[8]),
        }
        match (kind, class, hsr & 0xFFFF) {
            // The trap of the stub or of a page, or its being undefined at PL0.
            (0x10, HVC, layout::TRAP | layout::UNDEFINED) => Outcome::Done { value },
            (0x10 | 0x80, PREFETCH_ABORT | DATA_ABORT, _) if is_external(hsr) => {
                Outcome::Bus { syndrome: 0 }
            }
            (0x10, PREFETCH_ABORT | DATA_ABORT, _) => {
                // HPFAR holds no address after a permission fault that is not on a table.
                let valid = hsr & 1 << 7 != 0 || hsr >> 2 & 15 != 3;
                let address = if valid { hpfar } else { 0 };
                let origin = if class == PREFETCH_ABORT { hifar } else { hdfar };
                let syndrome = syndrome(hsr, self.features.processor.version);
                Outcome::Stage2 { syndrome, address, origin }
            }
            (0x80, 0x25, _) => Outcome::Bus { syndrome: 0 },
            _ => Outcome::Other([kind, hsr, r[7], r[9]]),
        }
    }

    fn second_stage_bits(&self, _: u8) -> u64 {
        0
    }

    fn deviating(&self, deviations: &[&'static str]) -> Box<dyn Subject> {
        Box::new(Arm32 { deviations: deviations.to_vec(), ..self.clone() })
    }

    /// QEMU ends with a failed assertion where AT meets a domain fault, and 10 where it meets one of stage 2.
    fn is_hopeless(&self, probe: &Probe, expected: &Outcome, astray: &Outcome) -> bool {
        let domain = |outcome: &Outcome| match outcome {
            Outcome::Stage1 { syndrome, .. } => matches!(syndrome >> 1 & 0x3F, 0x3D | 0x3E),
            _ => false,
        };
        let fails = |outcome: &Outcome| domain(outcome) || self.new && outcome.is_stage2();
        probe.operation != 1 && (fails(expected) || fails(astray))
    }

    fn optional(&self) -> &'static [(usize, u64)] {
        // AFE, TRE, UWXN and WXN; PTW; PAN.
        &[(3, 3 << 28 | 3 << 19), (10, 1 << 2), (11, 1 << 22)]
    }

    fn walks(&self, probe: &Probe) -> Vec<Walk> {
        walks::walks(self.features.processor.version, probe)
    }

    fn second_root(&self, probe: &Probe) -> u64 {
        probe.state[8] & 0x00FF_FFFF_F000
    }

    fn elf_machine(&self) -> u16 {
        40
    }

    fn access(&self, probe: &Probe) -> &'static str {
        arm::access(probe, ["ats12nsopr", "ats12nsopw", "ats12nsour", "ats12nsouw"])
    }

    fn explain(&self, probe: &Probe) -> String {
        let s = &probe.state;
        let what = self.access(probe);
        format!(
            "{what} {:#x} pc {:#x} sctlr {:#x} ttbcr {:#x} ttbr0 {:#x} ttbr1 {:#x} mair {:#x} \
             vttbr {:#x} vtcr {:#x} hcr {:#x} spsr {:#x} dacr {:#x} ttbcr2 {:#x}",
            s[1], s[0], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[13], s[14],
        )
    }
}
