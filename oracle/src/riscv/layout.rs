//! Where a probe's pages lie in the arena, and what they hold before the probe.

use crate::contract::{Machine, STATE};
use crate::world::{Beyond, World};

pub(crate) const V: u64 = 1;
pub(crate) const R: u64 = 2;
pub(crate) const W: u64 = 4;
pub(crate) const X: u64 = 8;
pub(crate) const U: u64 = 16;
pub(crate) const A: u64 = 64;
pub(crate) const D: u64 = 128;

/// ADUE and PBMTE of `menvcfg` and `henvcfg`.
pub(crate) const ENVCFG: u64 = 3 << 61;

const PAGE: u64 = 0x1000;

const fn page(n: u64) -> u64 {
    Machine::RISCV.arena.start + n * PAGE
}

pub(crate) const STUB: u64 = page(0);
/// Roots of G-stage, four pages each: Sv39x4, Sv48x4, Sv57x4.
pub(crate) const G: [u64; 3] = [page(4), page(8), page(12)];
const T3: u64 = page(16);
const T2: u64 = page(17);
const T1: u64 = page(18);
const T0: u64 = page(19);
/// Roots of VS-stage: Sv39, Sv48, Sv57.
pub(crate) const VS: [u64; 3] = [page(20), page(21), page(22)];
const S3: u64 = page(23);
const S2: u64 = page(24);
const S1: u64 = page(25);
const S0: u64 = page(26);
/// Pages for tables that probes make up.
pub(crate) const POOL: std::ops::Range<u64> = page(32)..page(96);
/// Pages that probes access; each word holds a trap and its own address.
pub(crate) const DATA: std::ops::Range<u64> = page(96)..page(112);
/// Where QEMU's `virt` machine answers for PCI devices, of which there are none: reads give ones.
pub(crate) const PCI_WINDOW: std::ops::Range<u64> = 0x4_0000_0000..0x8_0000_0000;

pub(crate) const STORE: u64 = 0x10;

/// Virtual addresses of the stub's page by scheme; a user alias is one page higher.
pub(crate) const STUB_AT: [u64; 3] =
    [0xFFFF_FFFF_C000_0000, 0xFFFF_FF80_0000_0000, 0xFFFF_0000_0000_0000];

/// The stub's instructions.
pub(crate) const LOAD_INSTRUCTION: u32 = 0x0005_3583;
pub(crate) const STORE_INSTRUCTION: u32 = 0x00B5_3023;
const ECALL: u64 = 0x73;

/// What a data word holds: its mark into the upper bits of a1 (LUI), then ECALL.
pub(crate) const fn tag(address: u64) -> u64 {
    0x5B7 | mark(address) | ECALL << 32
}

/// Tells the words of the data apart, in the bits that LUI moves.
pub(crate) const fn mark(address: u64) -> u64 {
    (address >> 3 & 0xFFFF) << 12
}

/// Whether a run loads.
pub(crate) fn is_load(state: &[u64; STATE]) -> bool {
    state[0] != state[1] && state[0] & STORE == 0
}

/// A page-table entry.
pub(crate) const fn pte(address: u64, flags: u64) -> u64 {
    address >> 12 << 10 | flags
}

pub(crate) fn template() -> World {
    let mut world = World::new(&Machine::RISCV, Beyond::Abort);
    world.set(STUB, u64::from(LOAD_INSTRUCTION) | ECALL << 32);
    world.set(STUB + STORE, u64::from(STORE_INSTRUCTION) | ECALL << 32);
    let identity = Machine::RISCV.arena.start;
    let [g39, g48, g57] = G;
    world.set(g57, pte(T3, V));
    world.set(T3, pte(T2, V));
    world.set(g48, pte(T2, V));
    world.set(T2 + 8 * (identity >> 30), pte(T1, V));
    world.set(g39 + 8 * (identity >> 30), pte(T1, V));
    world.set(T1 + 8 * (identity >> 21 & 511), pte(T0, V));
    for i in 0..512 {
        world.set(T0 + 8 * i, pte(identity + i * PAGE, V | R | W | X | U | A | D));
    }
    let [v39, v48, v57] = VS;
    world.set(v57 + 8 * 511, pte(S3, V));
    world.set(S3, pte(S2, V));
    world.set(v48 + 8 * 511, pte(S2, V));
    world.set(S2, pte(S1, V));
    world.set(v39 + 8 * 511, pte(S1, V));
    world.set(S1, pte(S0, V));
    world.set(S0, pte(STUB, V | R | W | X | A | D));
    world.set(S0 + 8, pte(STUB, V | R | W | X | U | A | D));
    for address in DATA.step_by(8) {
        world.set(address, tag(address));
    }
    world
}
