//! RISC-V with the hypervisor extension: VS-stage under G-stage.
//!
//! State of a command: 0 pc, 1 a0 (the address), 2 a1 (what a store stores), 3 hgatp, 4 vsatp, 5 one
//! for VS-mode, 6 vsstatus, 7 hstatus, 8 menvcfg, 9 henvcfg, 10 further bits of mstatus.
//!
//! Operation 1 runs a guest: a probe that executes has a0 equal to pc, the others run a stub. HLV,
//! HSV and HLVX need no guest.

mod expect;
mod generate;
mod layout;
mod walks;

use crate::contract::{Answer, Info};
use crate::draft::{Coverage, Draft};
use crate::probe::{Expectation, Outcome, Probe, Subject, Watcher};
use crate::random::Random;
use crate::reproduce::Walk;
use crate::world::World;

/// A hart as a subject.
#[derive(Clone, Debug, Default)]
pub struct Riscv {
    /// Deviations that the walker imitates.
    pub deviations: Vec<&'static str>,
}

pub(crate) const HLV: u32 = 0x10;
pub(crate) const HSV: u32 = 0x11;
pub(crate) const HLVX: u32 = 0x12;

/// The bits that hardware sets in the leaf through which a probe's access goes.
pub(crate) fn accessed_by(probe: &Probe) -> u64 {
    let stores = matches!(Riscv::default().access(probe), "write" | "hsv.d");
    layout::A | if stores { layout::D } else { 0 }
}

impl Riscv {
    /// What the monitor read back; `menvcfg` must have the bits that the probes vary.
    #[must_use]
    pub fn read(info: &Info) -> Option<Riscv> {
        (info.word(8) & layout::ENVCFG == layout::ENVCFG).then(Riscv::default)
    }

    fn deviates(&self, name: &str) -> bool {
        self.deviations.contains(&name)
    }
}

impl Subject for Riscv {
    fn template(&self) -> World {
        layout::template()
    }

    fn generate(&self, world: &World, random: &mut Random, coverage: &mut Coverage) -> Draft {
        generate::generate(world, random, coverage)
    }

    fn expect(&self, probe: &Probe, world: &mut World, watcher: &Watcher) -> Expectation {
        expect::expect(self, probe, world, watcher)
    }

    fn class(&self, probe: &Probe) -> u16 {
        let scheme = |register: u64| (register >> 60).saturating_sub(7) as u16;
        scheme(probe.state[4]) << 4 | scheme(probe.state[3])
    }

    fn class_name(&self, class: u16) -> String {
        let scheme = |index: u16| ["bare", "sv39", "sv48", "sv57"][usize::from(index & 3)];
        let four = if class & 15 == 0 { "" } else { "x4" };
        format!("{} under {}{four}", scheme(class >> 4), scheme(class & 15))
    }

    fn read(&self, probe: &Probe, answer: &Answer) -> Outcome {
        let r = &answer.registers;
        let value = match probe.operation {
            1 if probe.state[0] == probe.state[1] || layout::is_load(&probe.state) => r[5],
            HLV => r[5],
            HLVX => r[5] & 0xFFFF_FFFF,
            _ => 0,
        };
        let (cause, tval, tval2, tinst) = (r[1], r[2], r[3], r[4]);
        match (r[0], cause) {
            (0x100, _) => Outcome::Done { value },
            // ECALL from VU- or VS-mode.
            (0x10, 8 | 10) if probe.operation == 1 => Outcome::Done { value },
            (0x10 | 0x11, 12 | 13 | 15) => {
                Outcome::Stage1 { syndrome: cause | tinst << 32, address: tval }
            }
            (0x10 | 0x11, 20 | 21 | 23) => {
                Outcome::Stage2 { syndrome: cause | tinst << 32, address: tval2, origin: tval }
            }
            (0x10 | 0x11, 1 | 5 | 7) => Outcome::Bus { syndrome: cause },
            _ => Outcome::Other([r[0], cause, tval, tinst]),
        }
    }

    fn second_stage_bits(&self, _: u8) -> u64 {
        layout::A | layout::D
    }

    fn deviating(&self, deviations: &[&'static str]) -> Box<dyn Subject> {
        Box::new(Riscv { deviations: deviations.to_vec() })
    }

    fn walks(&self, probe: &Probe) -> Vec<Walk> {
        walks::walks(probe)
    }

    fn second_root(&self, probe: &Probe) -> u64 {
        (probe.state[3] & ((1 << 44) - 1)) << 12
    }

    fn elf_machine(&self) -> u16 {
        243
    }

    fn optional(&self) -> &'static [(usize, u64)] {
        // vsstatus.SUM and MXR, henvcfg, mstatus.MXR. What menvcfg lacks, henvcfg may not have.
        &[(6, 3 << 18), (9, layout::ENVCFG), (10, 1 << 19)]
    }

    fn access(&self, probe: &Probe) -> &'static str {
        let s = &probe.state;
        match probe.operation {
            HLV => "hlv.d",
            HSV => "hsv.d",
            HLVX => "hlvx.wu",
            _ if s[0] == s[1] => "execute",
            _ if layout::is_load(s) => "read",
            _ => "write",
        }
    }

    fn explain(&self, probe: &Probe) -> String {
        let s = &probe.state;
        let what = self.access(probe);
        format!(
            "{what} {:#x} pc {:#x} hgatp {:#x} vsatp {:#x} {} vsstatus {:#x} hstatus {:#x} \
             menvcfg {:#x} henvcfg {:#x} mstatus {:#x}",
            s[1],
            s[0],
            s[3],
            s[4],
            if s[5] == 1 { "VS" } else { "VU" },
            s[6],
            s[7],
            s[8],
            s[9],
            s[10],
        )
    }
}
