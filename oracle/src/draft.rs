//! Making probes up: a draft, its mutations, and what came of them.
//!
//! The generator is steered by outcomes: of some bits that it could flip it takes the one of whose flips, in
//! an entry of this format, stage and level, the rarer outcome is the least known. Whether accesses passed is
//! learnt from the machine's answers, so that a question depends on the seed and the answers before it, and not
//! on what the walker says.

use std::collections::HashMap;

use slat::observe::Step;

use crate::contract::STATE;
use crate::probe::Outcome;
use crate::random::Random;
use crate::world::World;

/// What a generator makes: a probe, and the entries in it that may be mutated.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The monitor's operation.
    pub operation: u32,
    /// The registers.
    pub state: [u64; STATE],
    /// Words beyond the template.
    pub words: Vec<(u64, u64)>,
    /// The entries that the probe's walk is meant to meet.
    pub sites: Vec<Site>,
    /// The bits that were flipped in them.
    pub flips: Vec<Flip>,
}

/// An entry in a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Which stage.
    pub stage: u8,
    /// Its level.
    pub level: u8,
    /// Where it lies.
    pub address: u64,
    /// 32 or 64.
    pub bits: u8,
    /// Whether it was meant as a leaf.
    pub leaf: bool,
}

impl Draft {
    /// The word that holds `address`, as the draft has it.
    #[must_use]
    pub fn word(&self, world: &World, address: u64) -> u64 {
        let word = address & !7;
        match self.words.iter().find(|(at, _)| *at == word) {
            Some((_, value)) => *value,
            None => world.word(word).unwrap_or(0),
        }
    }

    /// Sets the word that holds `address`.
    pub fn set_word(&mut self, address: u64, value: u64) {
        let word = address & !7;
        match self.words.iter_mut().find(|(at, _)| *at == word) {
            Some((_, old)) => *old = value,
            None => self.words.push((word, value)),
        }
    }

    /// The entry of `bits` bits at `address`.
    #[must_use]
    pub fn entry(&self, world: &World, address: u64, bits: u8) -> u64 {
        let word = self.word(world, address);
        if bits == 64 { word } else { word >> (8 * (address & 4)) & 0xFFFF_FFFF }
    }

    /// Sets the entry of `bits` bits at `address`.
    pub fn set_entry(&mut self, world: &World, address: u64, bits: u8, value: u64) {
        if bits == 64 {
            self.set_word(address, value);
        } else {
            let shift = 8 * (address & 4);
            let word = self.word(world, address) & !(0xFFFF_FFFF << shift);
            self.set_word(address, word | (value & 0xFFFF_FFFF) << shift);
        }
    }

    /// Changes some entries: bits come first of which it is least known what comes of them.
    pub fn mutate(&mut self, world: &World, random: &mut Random, coverage: &mut Coverage) {
        if self.sites.is_empty() {
            return;
        }
        let count = random.pick(&[0, 1, 1, 1, 1, 1, 2, 2, 2, 3]);
        for _ in 0..count {
            let how = random.below(100);
            if how < 75 {
                let candidates = [(); 16].map(|()| {
                    let site = random.pick(&self.sites);
                    let bit = random.below(u64::from(site.bits)) as u8;
                    let entry = self.entry(world, site.address, site.bits) ^ 1 << bit;
                    let Site { stage, level, leaf, .. } = site;
                    let (class, value) = (coverage.class, entry >> bit & 1 != 0);
                    let flip = Flip { class, stage, level, leaf, bit, value };
                    (coverage.known(&flip), site, entry, flip)
                });
                let Some((_, site, entry, flip)) = candidates.into_iter().min_by_key(|c| c.0)
                else {
                    continue;
                };
                coverage.flip(flip);
                self.flips.push(flip);
                self.set_entry(world, site.address, site.bits, entry);
                continue;
            }
            let site = random.pick(&self.sites);
            let entry = self.entry(world, site.address, site.bits);
            let changed = match how {
                75..80 => 0,
                80..90 => entry & !0xFF | random.bits() & 0xFF,
                90..95 => entry ^ (random.bits() & random.bits() & 0xFFF0_0000_0000_0FFF),
                _ => entry ^ (random.bits() & random.bits() & random.bits() & 0xFFF),
            };
            self.set_entry(world, site.address, site.bits, changed);
        }
    }
}

/// How much the rarer of a bit's outcomes counts, beside one for each flip: a bit whose flips have one outcome
/// alone is flipped up to five times as often as one that has both in equal shares.
const RARER: u32 = 8;

/// By kind of outcome, how often a bit had a value: index `2 * bit + value`.
pub type Met = [[u32; 128]; 8];

/// A bit of an entry, flipped to this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flip {
    /// The pair of formats.
    pub class: u16,
    /// The entry's stage.
    pub stage: u8,
    /// The entry's level.
    pub level: u8,
    /// Whether the entry was meant as a leaf.
    pub leaf: bool,
    /// The bit.
    pub bit: u8,
    /// What it became.
    pub value: bool,
}

/// How often a bit was flipped, and what came of it.
#[derive(Clone, Copy, Debug, Default)]
struct Flipped {
    times: u32,
    passed: u32,
    failed: u32,
}

/// How often what has been met.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    class: u16,
    flips: HashMap<Flip, Flipped>,
    met: HashMap<(u16, u8, u8), Box<Met>>,
}

impl Coverage {
    /// Names the pair of formats that the following probes are about.
    pub fn set_class(&mut self, class: u16) {
        self.class = class;
    }

    /// How well it is known what comes of a flip: by the rarer of its outcomes, and a little by how often it
    /// was made, for the manual lets nothing pass some bits.
    fn known(&self, flip: &Flip) -> u32 {
        let Flipped { times, passed, failed } = self.flips.get(flip).copied().unwrap_or_default();
        times + RARER * passed.min(failed)
    }

    fn flip(&mut self, flip: Flip) {
        self.flips.entry(flip).or_default().times += 1;
    }

    /// Learns what came of a probe with these flips.
    pub fn learn(&mut self, flips: &[Flip], outcome: &Outcome) {
        for flip in flips {
            let flipped = self.flips.entry(*flip).or_default();
            let count = if outcome.is_passed() { &mut flipped.passed } else { &mut flipped.failed };
            *count += 1;
        }
    }

    /// Notes the entries that a walk has met, which a machine ended with this outcome: for each bit its
    /// value.
    pub fn note(&mut self, steps: &[Step], outcome: &Outcome) {
        for step in steps {
            let met = self
                .met
                .entry((self.class, step.stage, step.level))
                .or_insert_with(|| Box::new([[0; 128]; 8]));
            let row = &mut met[usize::from(outcome.kind())];
            for bit in 0..64 {
                row[2 * bit + (step.entry >> bit & 1) as usize] += 1;
            }
        }
    }

    /// For each class, stage and level that was met: how often each bit had each value, by kind of
    /// outcome.
    pub fn met(&self) -> impl Iterator<Item = (u16, u8, u8, &Met)> {
        self.met.iter().map(|(&(class, stage, level), counts)| (class, stage, level, &**counts))
    }
}
