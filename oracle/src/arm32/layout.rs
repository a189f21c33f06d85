//! Where a probe's pages lie in the arena, and what they hold before the probe.

use crate::arm::{mark, stub};
use crate::contract::{Machine, STATE};
use crate::world::{Beyond, World};

const fn at(offset: u64) -> u64 {
    Machine::ARM.arena.start + offset
}

/// Bits of an address that are the same in all spaces, and those above them of the arena.
pub(crate) const LOW: u64 = 0xFF_FFFF;
pub(crate) const HIGH: u64 = Machine::ARM.arena.start & !LOW;

/// PL1's vectors, and behind them the stub.
pub(crate) const STUB: u64 = at(0);
/// Pages that probes access; each word holds a trap and its own address.
pub(crate) const DATA: std::ops::Range<u64> = at(0x4_0000)..at(0x6_0000);
/// Room for tables.
pub(crate) const POOL: std::ops::Range<u64> = at(0x10_0000)..at(0x80_0000);

/// Virtual addresses of the stub, for PL1 and for PL0: in the upper region, however small it is.
pub(crate) const STUB_PL1: u64 = 0xFFC0_0000;
pub(crate) const STUB_PL0: u64 = 0xFFD0_1000;

/// The immediates of HVC tell who traps: the stub and the pages, or which vector.
pub(crate) const TRAP: u64 = 2;
pub(crate) const UNDEFINED: u64 = 0x11;

const fn hvc(immediate: u64) -> u64 {
    0xE140_0070 | immediate >> 4 << 8 | immediate & 15
}

/// What a data word holds: its mark into R1 (MOVW), then HVC.
pub(crate) const fn tag(address: u64) -> u64 {
    let mark = mark(address);
    0xE300_1000 | mark >> 12 << 16 | mark & 0xFFF | hvc(TRAP) << 32
}

/// Whether stage 1 has long descriptors: TTBCR.EAE.
pub(crate) fn is_long(state: &[u64; STATE]) -> bool {
    state[4] & 1 << 31 != 0
}

pub(crate) fn template() -> World {
    let mut world = World::new(&Machine::ARM, Beyond::Abort);
    for pair in 0..4 {
        let vector = 0x10 + 2 * pair;
        world.set(STUB + 8 * pair, hvc(vector) | hvc(vector + 1) << 32);
    }
    // ldr r1, [r0] and str r1, [r0]
    world.set(stub(STUB, true), 0xE590_1000 | hvc(TRAP) << 32);
    world.set(stub(STUB, false), 0xE580_1000 | hvc(TRAP) << 32);
    for address in DATA.step_by(8) {
        world.set(address, tag(address));
    }
    world
}
