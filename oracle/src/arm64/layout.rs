//! Where a probe's pages lie in the arena, and what they hold before the probe.

use crate::arm::{mark, stub};
use crate::contract::Machine;
use crate::world::{Beyond, World};

pub(crate) const AF: u64 = 1 << 10;

const fn at(offset: u64) -> u64 {
    Machine::ARM.arena.start + offset
}

/// EL1's vectors, and behind them the stub.
pub(crate) const STUB: u64 = at(0);
/// Pages that probes access; each word holds a trap and its own address.
pub(crate) const DATA: std::ops::Range<u64> = at(0x4_0000)..at(0x6_0000);
/// Room for tables.
pub(crate) const POOL: std::ops::Range<u64> = at(0x10_0000)..at(0x80_0000);

/// Virtual addresses of the stub, in the upper half, for EL1 and for EL0.
pub(crate) const STUB_EL1: u64 = 0xFFFF_FF80_0000_0000 | STUB;
pub(crate) const STUB_EL0: u64 = 0xFFFF_FF82_0000_0000 | STUB;

const fn hvc(immediate: u64) -> u64 {
    0xD400_0002 | immediate << 5
}

/// What a data word holds: its mark into X1, then HVC.
pub(crate) const fn tag(address: u64) -> u64 {
    0xD280_0001 | mark(address) << 5 | hvc(2) << 32
}

pub(crate) fn template() -> World {
    let mut world = World::new(&Machine::ARM, Beyond::Abort);
    for vector in 0..16 {
        world.set(STUB + 0x80 * vector, hvc(1));
    }
    // ldr x1, [x0] and str x1, [x0]
    world.set(stub(STUB, true), 0xF940_0001 | hvc(0) << 32);
    world.set(stub(STUB, false), 0xF900_0001 | hvc(0) << 32);
    for address in DATA.step_by(8) {
        world.set(address, tag(address));
    }
    world
}
