//! Random tables for a guest of KVM.

use slat_kvm::prober::{DATA, Prober, TABLES};

use super::mode::Paging;
use crate::random::Random;

const PAGE: u64 = 0x1000;
const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;

/// Tables of all levels, in which any address leads somewhere.
pub(super) struct Tables {
    /// The root.
    pub(super) root: u64,
    /// Every entry: address and value.
    pub(super) words: Vec<(u64, u64)>,
}

/// How many tables there are of a level below the root.
const WIDE: u64 = 4;

impl Tables {
    /// Tables of this mode; of one without paging, tables that nobody reads. In long mode, entry 0 of the
    /// root is the guest program's own.
    pub(super) fn new(paging: Paging, random: &mut Random) -> Tables {
        let levels = if paging == Paging::None { 4 } else { paging.levels() };
        let legacy = paging == Paging::Legacy;
        let root = TABLES.start;
        let table = |level: u8, n: u64| root + PAGE * (1 + u64::from(level) * WIDE + n);
        let mut words = Vec::new();
        for level in 0..levels {
            let top = level + 1 == levels;
            for n in 0..if top { 1 } else { WIDE } {
                let at = if top { root } else { table(level, n) };
                for index in 0..512 {
                    let mut below = || (level > 0).then(|| table(level - 1, random.below(WIDE)));
                    let (first, second) = (below(), below());
                    let entry = match paging {
                        Paging::Legacy => {
                            short_entry(first, random) | short_entry(second, random) << 32
                        }
                        // The four registers; with a reserved bit in one, CR3 is refused.
                        Paging::Pae if top => {
                            first.filter(|_| index < 4).map_or(0, |table| table | P)
                        }
                        _ => entry(
                            level,
                            first,
                            if paging == Paging::Pae { LOW } else { !0 },
                            random,
                        ),
                    };
                    words.push((at + 8 * index, entry));
                }
            }
        }
        if !legacy && levels >= 4 {
            // The last levels' worth of words is the root's.
            let first = words.len() - 512;
            words[first].1 = Prober::own_table(levels) | 0x67;
        }
        Tables { root, words }
    }
}

/// Bits of an entry below those that PAE paging reserves.
const LOW: u64 = (1 << 52) - 1;

/// An entry of a level: mostly one that leads on, now and then with a flipped bit. `software` is where bits that
/// are ignored may be.
fn entry(level: u8, below: Option<u64>, software: u64, random: &mut Random) -> u64 {
    let mut entry = onward(9, level, below, random);
    if random.chance(8) {
        entry |= NX;
    }
    // PWT, PCD, A and D, G; what software has at 11:9 and 58:52.
    entry |= random.bits() & random.bits() & 0x07F0_0000_0000_0F78 & software & !PS;
    if random.chance(10) {
        entry ^= 1 << random.below(64);
    }
    entry
}

/// An entry of 32 bits.
fn short_entry(below: Option<u64>, random: &mut Random) -> u64 {
    let mut entry = onward(10, u8::from(below.is_some()), below, random);
    entry |= random.bits() & random.bits() & 0xF78 & !PS;
    if entry & PS != 0 && below.is_some() && random.chance(20) {
        // Bits 39:32 of a large page's address.
        entry |= random.bits() & random.bits() & 0x1F_E000;
    }
    if random.chance(10) {
        entry ^= 1 << random.below(32);
    }
    entry
}

/// Where an entry leads: to a table, or to a page of the data.
fn onward(index_bits: u32, level: u8, below: Option<u64>, random: &mut Random) -> u64 {
    let mut entry = match below {
        Some(table) if !random.chance(12) => table,
        below => {
            let page = DATA.start + PAGE * random.below((DATA.end - DATA.start) / PAGE);
            let size = 12 + index_bits * u32::from(level);
            let large = if below.is_some() { PS } else { 0 };
            page & !((1 << size) - 1) | large
        }
    };
    for (bit, percent) in [(P, 97), (RW, 75), (US, 75)] {
        if random.chance(percent) {
            entry |= bit;
        }
    }
    entry
}

/// An address: any, or one whose lower bits lie where large pages lead to the guest's data.
pub(super) fn address(random: &mut Random) -> u64 {
    let any = random.bits();
    if random.chance(60) {
        return any;
    }
    any & !0x3FFF_FFFF | (DATA.start + random.below(DATA.end - DATA.start))
}

#[cfg(test)]
mod tests {
    use slat::format::Format;
    use slat::format::x86::Controls;
    use slat::format::x86::legacy::Legacy;
    use slat::format::x86::long::Processor;
    use slat::format::x86::pae::{self, Pae};
    use slat::{Access, Gva, Regime, Spa, Stage, walk};

    use super::*;
    use crate::contract::Machine;
    use crate::world::{Beyond, World};

    /// How many of 1000 addresses lead somewhere.
    fn mapped<F: Format>(format: F, root: F::Root, world: &mut World, random: &mut Random) -> u32 {
        let stage = Stage::<_, Gva, Spa>::new(format, root);
        let (access, regime) = (Access::default(), Regime::default());
        let mut reach = |address| walk(&stage, world, Gva::new(address), &access, &regime, &());
        (0..1000).map(|_| u32::from(reach(address(random) & 0xFFFF_FFFF).is_ok())).sum()
    }

    #[test]
    fn tables_of_32_bit_modes_lead_to_pages_and_to_faults() {
        let random = &mut Random::new(1);
        for paging in [Paging::Legacy, Paging::Pae] {
            let tables = Tables::new(paging, random);
            let mut world = World::new(&Machine::KVM, Beyond::Abort);
            for &(at, entry) in &tables.words {
                world.set(at, entry);
            }
            let root = tables.root;
            if paging == Paging::Legacy {
                // Those of 37 to 40 bits as well, which KVM refuses.
                let halves = tables.words.iter().flat_map(|&(_, word)| [word, word >> 32]);
                assert!(halves.filter(|half| half & PS != 0 && half & 0x1E_0000 != 0).count() > 10);
            }
            let count = if paging == Paging::Legacy {
                mapped(Legacy::new(Controls::default(), true, 48), root, &mut world, random)
            } else {
                let pdptes = [0, 1, 2, 3].map(|n| world.word(root + 8 * n).unwrap_or(0));
                let controls = Controls { nxe: true, ..Controls::default() };
                let format = Pae::new(controls, Processor::default());
                // KVM refuses a CR3 whose PDPTEs have reserved bits.
                assert!(pdptes.iter().all(|&pdpte| format.pdpte_reserved(pdpte) == 0));
                mapped(format, pae::Root::Registers(pdptes), &mut world, random)
            };
            assert!((100..980).contains(&count), "{paging:?}: {count} of 1000");
        }
    }
}
