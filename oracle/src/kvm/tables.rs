//! Random tables for a guest of KVM.

use slat_kvm::prober::{DATA, Prober, TABLES};

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
    /// Tables with so many levels. Entry 0 of the root is the guest program's own.
    pub(super) fn new(levels: u8, random: &mut Random) -> Tables {
        let root = TABLES.start;
        let table = |level: u8, n: u64| root + PAGE * (1 + u64::from(level) * WIDE + n);
        let mut words = Vec::new();
        for level in 0..levels {
            let top = level + 1 == levels;
            for n in 0..if top { 1 } else { WIDE } {
                let at = if top { root } else { table(level, n) };
                for index in 0..512 {
                    let below = (level > 0).then(|| table(level - 1, random.below(WIDE)));
                    let entry = entry(level, below, random);
                    words.push((at + 8 * index, entry));
                }
            }
        }
        // The last levels' worth of words is the root's.
        let first = words.len() - 512;
        words[first].1 = Prober::own_table(levels) | 0x67;
        Tables { root, words }
    }
}

/// An entry of a level: mostly one that leads on, now and then with a flipped bit.
fn entry(level: u8, below: Option<u64>, random: &mut Random) -> u64 {
    let mut entry = match below {
        Some(table) if !random.chance(12) => table,
        below => {
            let page = DATA.start + PAGE * random.below((DATA.end - DATA.start) / PAGE);
            let size = 12 + 9 * u32::from(level);
            let large = if below.is_some() { PS } else { 0 };
            page & !((1 << size) - 1) | large
        }
    };
    for (bit, percent) in [(P, 97), (RW, 75), (US, 75), (NX, 8)] {
        if random.chance(percent) {
            entry |= bit;
        }
    }
    // PWT, PCD, A and D, G; what software has at 11:9 and 58:52.
    entry |= random.bits() & random.bits() & 0x07F0_0000_0000_0F78 & !PS;
    if random.chance(10) {
        entry ^= 1 << random.below(64);
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
