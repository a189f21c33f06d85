//! Where a probe's pages lie in the arena, and what they hold before the probe.

use super::Second;
use crate::contract::{Machine, STATE};
use crate::world::{Beyond, World};

/// Bits of guest and NPT entries.
pub(crate) mod bits {
    pub(crate) const P: u64 = 1;
    pub(crate) const RW: u64 = 2;
    pub(crate) const US: u64 = 4;
    pub(crate) const A: u64 = 1 << 5;
    pub(crate) const D: u64 = 1 << 6;
    pub(crate) const PS: u64 = 1 << 7;
}

pub(crate) const PAGE: u64 = 0x1000;

/// Page `n` of the arena.
pub(crate) const fn page(n: u64) -> u64 {
    Machine::X86.arena.start + n * PAGE
}

pub(crate) const STUB: u64 = page(0);
/// Roots of the second stage, and its tables that map the arena to itself.
pub(crate) const N5: u64 = page(1);
pub(crate) const N4: u64 = page(2);
pub(crate) const N3: u64 = page(3);
pub(crate) const N2: u64 = page(4);
pub(crate) const N1: u64 = page(5);
pub(crate) const NPAE: u64 = page(6);
pub(crate) const N32: u64 = page(7);
pub(crate) const N32_1: u64 = page(8);
/// Roots of the guest, and the guest tables that map the stub.
pub(crate) const R5: u64 = page(10);
pub(crate) const R4: u64 = page(11);
pub(crate) const RPAE: u64 = page(12);
pub(crate) const R32: u64 = page(13);
const S4: u64 = page(14);
const S3: u64 = page(15);
const S2: u64 = page(16);
const S1: u64 = page(17);
const S32: u64 = page(18);
/// Pages for tables that probes make up.
pub(crate) const POOL: std::ops::Range<u64> = page(32)..page(96);
/// Pages that probes access; each word holds a trap and its own address.
pub(crate) const DATA: std::ops::Range<u64> = page(96)..page(112);

/// Offsets in the stub's page: 32-bit and 64-bit code, store 16 bytes after load.
pub(crate) const STUB64: u64 = 0;
pub(crate) const STUB32: u64 = 0x100;
pub(crate) const STORE: u64 = 0x10;

/// Virtual addresses of the stub's page; a user alias is one page higher.
pub(crate) const STUB_4: u64 = 0xFFFF_FF80_0000_0000;
pub(crate) const STUB_5: u64 = 0xFFFF_0000_0000_0000;
pub(crate) const STUB_PAE: u64 = 0xC000_0000;
pub(crate) const STUB_32: u64 = 0xFFC0_0000;

/// What a data word holds: its address into EAX, then INT3.
pub(crate) const fn tag(address: u64) -> u64 {
    0xCC << 40 | (address & 0xFFFF_FFFF) << 8 | 0xB8
}

/// Whether the probe loads.
pub(crate) fn is_load(state: &[u64; STATE]) -> bool {
    state[0] != state[1] && state[0] & STORE == 0
}

/// The bits of RAX that a load brings.
pub(crate) fn value_mask(state: &[u64; STATE]) -> u64 {
    if is_long(state) { u64::MAX } else { 0xFFFF_FFFF }
}

/// What RAX says of an access that was made: what a load brought, or where a fetch arrived.
pub(crate) fn value(state: &[u64; STATE], rax: u64) -> u64 {
    match (state[0] == state[1], is_load(state)) {
        (true, _) => rax & 0xFFFF_FFFF,
        (_, true) => rax & value_mask(state),
        _ => 0,
    }
}

/// Whether the guest runs 64-bit code.
pub(crate) fn is_long(state: &[u64; STATE]) -> bool {
    state[6] & 1 << 10 != 0
}

pub(crate) fn template(second: Second, beyond: Beyond) -> World {
    let mut world = World::new(&Machine::X86, beyond);
    let ept = second == Second::Ept;
    // mov rax, [rsi]; int3 and mov [rsi], rax; int3, with and without REX.W
    world.set(STUB + STUB64, 0xCC_06_8B_48);
    world.set(STUB + STUB64 + STORE, 0xCC_06_89_48);
    world.set(STUB + STUB32, 0xCC_06_8B);
    world.set(STUB + STUB32 + STORE, 0xCC_06_89);
    let (table, leaf) = if ept { (7 | 1 << 8, 7 | 6 << 3 | 3 << 8) } else { (0x67, 0x67) };
    let identity = Machine::X86.arena.start;
    world.set(N5, N4 | table);
    world.set(N4, N3 | table);
    world.set(N3, N2 | table);
    world.set(N2 + 8 * (identity >> 21 & 511), N1 | table);
    world.set(NPAE, N2 | 1);
    for i in 0..512 {
        world.set(N1 + 8 * i, (identity + i * PAGE) | leaf);
    }
    let pde = N32 + 4 * (identity >> 22);
    world.set(pde, (N32_1 | 0x67) << (8 * (pde & 4)));
    for i in 0..512 {
        let low = (identity + 2 * i * PAGE) | 0x67;
        world.set(N32_1 + 8 * i, low | (low + PAGE) << 32);
    }
    world.set(R5 + 8 * 511, S4 | 0x67);
    world.set(S4, S3 | 0x67);
    world.set(R4 + 8 * 511, S3 | 0x67);
    world.set(S3, S2 | 0x67);
    world.set(RPAE + 8 * 3, S2 | 1);
    world.set(S2, S1 | 0x67);
    world.set(S1, STUB | 0x63);
    world.set(S1 + 8, STUB | 0x67);
    world.set(R32 + 4 * 1022, (S32 | 0x67) << 32);
    world.set(S32, (STUB | 0x63) | (STUB | 0x67) << 32);
    for address in DATA.step_by(8) {
        world.set(address, tag(address));
    }
    world
}
