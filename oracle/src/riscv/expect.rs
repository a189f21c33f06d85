//! What the walker says of a RISC-V probe.

use slat::format::riscv::{Features, Scheme, Sv, Width, hgatp, vsatp};
use slat::syndrome::riscv::{Reports, Trapped, transform};
use slat::{
    Access, Failed, Flavor, Gpa, Gva, Kind, Privilege, Regime, Spa, Stage, Updates, translate,
};

use super::layout::{self, ENVCFG};
use super::{HLV, HLVX, HSV, Riscv};
use crate::contract::STATE;
use crate::lenient::Lenient;
use crate::probe::{Expectation, Outcome, Probe, Watcher};
use crate::world::{Beyond, World};

const HLV_INSTRUCTION: u32 = 0x6C05_45F3;
const HSV_INSTRUCTION: u32 = 0x6EB5_4073;
const HLVX_INSTRUCTION: u32 = 0x6835_45F3;

struct Machine<'a> {
    subject: &'a Riscv,
    state: &'a [u64; STATE],
    regime: Regime,
    privilege: Privilege,
    /// The access is HLV, HSV or HLVX.
    hypervisor: bool,
}

fn features(envcfg: u64) -> Features {
    Features {
        hardware_ad: envcfg & 1 << 61 != 0,
        memory_types: envcfg & 1 << 62 != 0,
        napot: true,
        ..Features::default()
    }
}

impl Machine<'_> {
    /// One access: both stages. `instruction` is what made it.
    fn access(
        &self,
        world: &mut World,
        watcher: &Watcher,
        address: u64,
        access: Access,
        instruction: Option<u32>,
    ) -> Result<u64, Outcome> {
        let refused = |_| Outcome::Refused;
        let second = hgatp(self.state[3], Width::Rv64).map_err(refused)?;
        let first = vsatp(self.state[4], Width::Rv64).map_err(refused)?;
        let menvcfg = self.state[8] & ENVCFG;
        let lenient = |inner: Sv| Lenient {
            unchecked_updates: self.subject.deviates("g-stage-update-unchecked")
                && inner.scheme() != Scheme::Bare,
            implicit_as_explicit: self.subject.deviates("mxr-for-implicit-reads"),
            pbmt_3: self.subject.deviates("pbmt-3-accepted"),
            ..Lenient::exact(inner)
        };
        let henvcfg = if self.hypervisor && self.subject.deviates("hlv-ignores-henvcfg") {
            menvcfg
        } else {
            menvcfg & self.state[9]
        };
        let format1 = Sv::stage1(first.scheme, features(henvcfg));
        let format2 = Sv::stage2(second.scheme, features(menvcfg));
        let stage1 = Stage::<_, Gva, Gpa>::new(lenient(format1), first.table)
            .with_updates(Updates::AsWalked);
        let stage2 = Stage::<_, Gpa, Spa>::new(lenient(format2), second.table)
            .with_updates(Updates::AsWalked);
        let address = Gva::new(address);
        if self.subject.deviates("table-without-memory") {
            // An entry that cannot be read is taken as one that is not valid.
            world.set_beyond(Beyond::Zero);
        }
        let found = translate(&stage1, &stage2, world, address, &access, &self.regime, watcher);
        world.set_beyond(Beyond::Abort);
        found.map(|found| found.output().raw()).map_err(|failure| {
            let trapped = Trapped {
                address,
                access: &access,
                stage1: &format1,
                regime: &self.regime,
                transformed: instruction.map(|i| transform(i, 0, Width::Rv64)),
            };
            let Some(trap) = trapped.of_two_stages(&failure) else {
                return Outcome::Other([0; 4]);
            };
            let registers = trap.registers(Reports::ALL);
            let syndrome = registers.scause | registers.htinst << 32;
            match failure {
                Failed::Here(_) => Outcome::Stage1 { syndrome, address: registers.stval },
                Failed::Below(Failed::Here(_)) => {
                    Outcome::Stage2 { syndrome, address: registers.htval, origin: registers.stval }
                }
                Failed::Below(Failed::Below(_)) => Outcome::Bus { syndrome: registers.scause },
            }
        })
    }
}

/// HLVX where a model takes it for an instruction fetch, which without virtualization is never a
/// guest-page fault.
fn hlvx_as_fetch(
    machine: &Machine<'_>,
    world: &mut World,
    watcher: &Watcher,
    address: u64,
) -> Result<u64, Outcome> {
    let access = Access::new(Kind::Execute, machine.privilege);
    let found = machine.access(world, watcher, address, access, None).map_err(|o| match o {
        Outcome::Stage2 { syndrome, origin, .. } => {
            Outcome::Stage1 { syndrome: syndrome & !0xFF | 12, address: origin }
        }
        other => other,
    })?;
    match world.word(found) {
        Some(word) => Ok(word & 0xFFFF_FFFF),
        None if layout::PCI_WINDOW.contains(&found) => Ok(0xFFFF_FFFF),
        None => Err(Outcome::Bus { syndrome: 1 }),
    }
}

pub(super) fn expect(
    subject: &Riscv,
    probe: &Probe,
    world: &mut World,
    watcher: &Watcher,
) -> Expectation {
    let state = &probe.state;
    let mut regime = Regime::default();
    regime.riscv.sum = state[6] & 1 << 18 != 0;
    regime.riscv.vsmxr = state[6] & 1 << 19 != 0;
    regime.riscv.mxr = state[10] & 1 << 19 != 0;
    let explicit = probe.operation != 1;
    let supervisor = if explicit { state[7] & 1 << 8 != 0 } else { state[5] == 1 };
    let privilege = if supervisor { Privilege::Supervisor } else { Privilege::User };
    let machine = Machine { subject, state, regime, privilege, hypervisor: explicit };
    let mut reached = None;
    let mut unusable = false;
    let mut run = || -> Result<u64, Outcome> {
        let (pc, address) = (state[0], state[1]);
        let access = |kind| Access::new(kind, machine.privilege);
        let (access, instruction) = match probe.operation {
            HLV => (access(Kind::Read), HLV_INSTRUCTION),
            HSV => (access(Kind::Write), HSV_INSTRUCTION),
            HLVX if subject.deviates("hlvx-is-a-fetch") => {
                return hlvx_as_fetch(&machine, world, watcher, address);
            }
            HLVX => (access(Kind::Read).with_flavor(Flavor::Hlvx), HLVX_INSTRUCTION),
            _ => {
                let fetched = machine.access(world, watcher, pc, access(Kind::Execute), None)?;
                if pc == address {
                    reached = Some(fetched);
                    world.visit(fetched);
                    unusable = world.word(fetched).is_some_and(|w| w != layout::tag(fetched));
                    return match world.word(fetched) {
                        Some(_) => Ok(layout::mark(fetched)),
                        None => Err(Outcome::Bus { syndrome: 1 }),
                    };
                }
                if fetched & !0xFFF != layout::STUB {
                    unusable = true;
                    return Ok(0);
                }
                if layout::is_load(state) {
                    (access(Kind::Read), layout::LOAD_INSTRUCTION)
                } else {
                    (access(Kind::Write), layout::STORE_INSTRUCTION)
                }
            }
        };
        let spa = machine.access(world, watcher, address, access, Some(instruction))?;
        reached = Some(spa);
        world.visit(spa);
        let write = access.kind == Kind::Write;
        let Some(word) = world.word(spa) else {
            return Err(Outcome::Bus { syndrome: if write { 7 } else { 5 } });
        };
        if write {
            world.poke(spa, state[2]);
            return Ok(0);
        }
        if probe.operation == HLVX { Ok(word & 0xFFFF_FFFF) } else { Ok(word) }
    };
    let outcome = match run() {
        Ok(value) => Outcome::Done { value },
        Err(outcome) => outcome,
    };
    unusable |= matches!(outcome, Outcome::Other(_));
    Expectation { outcome, reached, unusable, endless: false }
}
