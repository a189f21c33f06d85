//! Making up x86 probes.

use super::layout::{self, PAGE, bits};
use super::{Features, First, Second, class, cr4};
use crate::draft::{Coverage, Draft, Site};
use crate::random::Random;
use crate::world::World;

/// The shape of a radix tree: index bits of its tables, entry size, root level.
#[derive(Clone, Copy)]
struct Shape {
    root_level: u8,
    index: u32,
    entry: u8,
}

impl Shape {
    const FIVE: Shape = Shape { root_level: 4, index: 9, entry: 64 };
    const FOUR: Shape = Shape { root_level: 3, index: 9, entry: 64 };
    const PAE: Shape = Shape { root_level: 2, index: 9, entry: 64 };
    const LEGACY: Shape = Shape { root_level: 1, index: 10, entry: 32 };

    fn shift(self, level: u8) -> u32 {
        12 + self.index * u32::from(level)
    }

    fn site(self, table: u64, level: u8, input: u64) -> u64 {
        let mut index = input >> self.shift(level) & ((1 << self.index) - 1);
        if self.entry == 64 && self.root_level == 2 && level == 2 {
            index &= 3;
        }
        table + index * u64::from(self.entry / 8)
    }
}

struct Builder<'a> {
    features: &'a Features,
    world: &'a World,
    random: &'a mut Random,
    draft: Draft,
    pool: u64,
    upper_gpa_bits: u32,
}

const LOW: u64 = 0x3FFF_FFFF;

impl Builder<'_> {
    fn take_page(&mut self) -> u64 {
        let page = self.pool;
        self.pool += PAGE;
        assert!(page < layout::POOL.end, "a probe needs fewer tables than the pool holds");
        page
    }

    /// A guest physical address whose low 30 bits are those of `spa`.
    fn alias(&mut self, spa: u64) -> u64 {
        let bits = self.upper_gpa_bits.saturating_sub(30);
        if bits == 0 || self.random.chance(55) {
            return spa;
        }
        let upper = self.random.bits() & ((1 << bits) - 1);
        spa | upper << 30
    }

    fn second_shape(&self) -> (Shape, u64) {
        match self.features.second {
            Second::Ept | Second::Npt4 => (Shape::FOUR, layout::N4),
            Second::Npt5 => (Shape::FIVE, layout::N5),
            Second::NptPae => (Shape::PAE, layout::NPAE),
            Second::Npt32 => (Shape::LEGACY, layout::N32),
        }
    }

    /// Makes the second stage map the page of `gpa` to that of `spa` by a leaf of this level, or of
    /// a lower one where tables are in the way.
    fn map_second(&mut self, gpa: u64, spa: u64, leaf: u8) {
        let (shape, mut table) = self.second_shape();
        let ept = self.features.second == Second::Ept;
        let mut level = shape.root_level;
        loop {
            let address = shape.site(table, level, gpa);
            let old = self.draft.entry(self.world, address, shape.entry);
            let is_leaf = level == 0 || level == leaf;
            let site = Site { stage: 2, level, address, bits: shape.entry, leaf: is_leaf };
            let present = if ept { old & 7 != 0 } else { old & 1 != 0 };
            let known = self.draft.sites.iter().any(|s| s.address == address);
            if !known {
                self.draft.sites.push(site);
            }
            if present && (level > 0 && old & bits::PS == 0) {
                table = old & 0x000F_FFFF_FFFF_F000;
                level -= 1;
                continue;
            }
            if is_leaf {
                let base = spa & !((1 << shape.shift(level)) - 1);
                let large = if level > 0 { bits::PS } else { 0 };
                let entry = base | large | self.second_flags(level, true);
                self.draft.set_entry(self.world, address, shape.entry, entry);
                return;
            }
            if present {
                return;
            }
            let next = self.take_page();
            let flags = if shape.entry == 64 && shape.root_level == 2 && level == 2 {
                bits::P
            } else {
                self.second_flags(level, false)
            };
            self.draft.set_entry(self.world, address, shape.entry, next | flags);
            table = next;
            level -= 1;
        }
    }

    fn second_flags(&mut self, _level: u8, leaf: bool) -> u64 {
        if self.features.second == Second::Ept {
            let ad = self.random.bits() & 3 << 8;
            let memory_type = self.random.pick(&[6, 6, 6, 0, 1, 4, 5]) << 3;
            7 | if leaf { memory_type | ad } else { ad & 1 << 8 }
        } else {
            let ad = self.random.bits() & (bits::A | bits::D);
            let flags = if leaf { ad } else { ad & bits::A };
            bits::P | bits::RW | bits::US | flags
        }
    }

    fn second_leaf(&mut self) -> u8 {
        match self.features.second {
            Second::NptPae | Second::Npt32 => self.random.pick(&[0, 0, 0, 1]),
            _ => self.random.pick(&[0, 0, 0, 0, 1, 1, 2]),
        }
    }

    /// Maps `gva` to `gpa` in the guest's tables, each of which the second stage maps.
    fn map_first(&mut self, shape: Shape, root: u64, gva: u64, gpa: u64, leaf: u8) {
        let mut table = root;
        let mut level = shape.root_level;
        loop {
            let address = shape.site(table, level, gva);
            let is_leaf = level == 0 || level == leaf;
            let pdpte = shape.entry == 64 && shape.root_level == 2 && level == 2;
            let site = Site { stage: 1, level, address, bits: shape.entry, leaf: is_leaf };
            self.draft.sites.push(site);
            let old = self.draft.entry(self.world, address, shape.entry);
            if old & bits::P != 0 && level > 0 {
                // Only the stub's tables are there before the probe; they map to themselves.
                table = old & 0x000F_FFFF_FFFF_F000;
                level -= 1;
                continue;
            }
            let ad = self.random.bits() & (bits::A | bits::D);
            let permissive = bits::P | bits::RW | bits::US;
            if is_leaf {
                let base = gpa & !((1 << shape.shift(level)) - 1);
                let large = if level > 0 { bits::PS } else { 0 };
                let entry = base | large | permissive | ad;
                self.draft.set_entry(self.world, address, shape.entry, entry);
                return;
            }
            let next = self.take_page();
            let gpa_of_next = self.alias(next);
            let leaf_level = self.second_leaf();
            self.map_second(gpa_of_next, next, leaf_level);
            let flags = if pdpte { bits::P } else { permissive | ad & bits::A };
            self.draft.set_entry(self.world, address, shape.entry, gpa_of_next | flags);
            table = next;
            level -= 1;
        }
    }
}

fn choose_mode(features: &Features, random: &mut Random) -> First {
    // 5-level guests are seldom elsewhere.
    if features.second == Second::Npt5 && features.cr4 & cr4::LA57 != 0 && random.chance(40) {
        return First::Five;
    }
    loop {
        let first = random.pick(&[
            First::Four,
            First::Four,
            First::Four,
            First::Four,
            First::Five,
            First::Five,
            First::Pae,
            First::Pae,
            First::Legacy,
            First::Legacy,
            First::Unpaged,
        ]);
        let possible = match first {
            First::Five => features.cr4 & cr4::LA57 != 0,
            First::Unpaged => features.unrestricted,
            _ => true,
        };
        if possible {
            return first;
        }
    }
}

/// Makes a probe up.
pub(super) fn generate(
    features: &Features,
    world: &World,
    random: &mut Random,
    coverage: &mut Coverage,
) -> Draft {
    let first = choose_mode(features, random);
    coverage.set_class(class(first, features.second));
    let long = matches!(first, First::Four | First::Five);
    let width = match features.second {
        Second::NptPae | Second::Npt32 => 32,
        Second::Npt5 => 57,
        Second::Ept | Second::Npt4 => 48,
    };
    // Now and then one bit more than the second stage's width, where the guest's entries have it.
    let physical = u32::from(features.physical_bits);
    let width = if random.chance(3) { width + 1 } else { width };
    let upper_gpa_bits = match first {
        First::Four | First::Five | First::Pae => width.min(physical),
        First::Legacy | First::Unpaged => 32,
    };
    let mut builder = Builder {
        features,
        world,
        random,
        draft: Draft { operation: 1, ..Draft::default() },
        pool: layout::POOL.start,
        upper_gpa_bits,
    };
    let target = builder.random.below((layout::DATA.end - layout::DATA.start) / 8) * 8;
    let target = layout::DATA.start + target;
    let gpa = builder.alias(target);
    let leaf = builder.second_leaf();
    builder.map_second(gpa, target, leaf);
    // A model that deviates may reach the target where the walker does not: have it restored.
    builder.draft.set_word(target, layout::tag(target));
    let shape = match first {
        First::Five => Shape::FIVE,
        First::Four => Shape::FOUR,
        First::Pae => Shape::PAE,
        First::Legacy | First::Unpaged => Shape::LEGACY,
    };
    let root = match first {
        First::Five => layout::R5,
        First::Four => layout::R4,
        First::Pae => layout::RPAE,
        First::Legacy | First::Unpaged => layout::R32,
    };
    // Keep the stub's own slot free most of the time: whoever breaks it learns little.
    let upper = builder.random.bits();
    let gva = match first {
        First::Unpaged => gpa,
        First::Legacy | First::Pae => gpa & LOW | (upper & 3) << 30,
        First::Four => (((gpa & LOW | (upper & 0x3_FFFF) << 30) as i64) << 16 >> 16) as u64,
        First::Five => (((gpa & LOW | (upper & 0x7FF_FFFF) << 30) as i64) << 7 >> 7) as u64,
    };
    let stub = match first {
        First::Unpaged => layout::STUB,
        First::Legacy => layout::STUB_32,
        First::Pae => layout::STUB_PAE,
        First::Four => layout::STUB_4,
        First::Five => layout::STUB_5,
    };
    let mut large = features.cr4 & cr4::PSE;
    if first != First::Unpaged {
        let leaf = match first {
            First::Legacy => builder.random.pick(&[0, 0, 0, 1]),
            First::Pae => builder.random.pick(&[0, 0, 0, 1]),
            _ => builder.random.pick(&[0, 0, 0, 0, 1, 1, 2]),
        };
        if builder.random.chance(10) {
            large = 0;
        }
        builder.map_first(shape, root, gva, gpa, leaf);
    }
    let random = builder.random;
    let mut draft = builder.draft;
    draft.mutate(world, random, coverage);
    let user = random.chance(50);
    let kind = random.below(3);
    let mut address = gva;
    if kind != 2 && long && random.chance(3) {
        address ^= 1 << (47 + random.below(17));
    }
    let mut cr4 = cr4::PAE & if first == First::Legacy || first == First::Unpaged { 0 } else { !0 };
    for bit in [cr4::SMEP, cr4::SMAP, cr4::PKE, cr4::PKS] {
        if random.chance(35) {
            cr4 |= bit & features.cr4;
        }
    }
    cr4 |= large | random.bits() & cr4::PGE;
    if !long {
        cr4 &= !(cr4::PKE | cr4::PKS);
    }
    if first == First::Five {
        cr4 |= cr4::LA57;
    }
    let paging = if first == First::Unpaged { 0 } else { 1 << 31 };
    let wp = if random.chance(60) { 1 << 16 } else { 0 };
    let nxe = if features.nx && random.chance(75) { 1 << 11 } else { 0 };
    let ac = if random.chance(30) { 1 << 18 } else { 0 };
    let code_bits: u64 = if long { 0xA09B } else { 0xC09B };
    let privilege: u64 = if user { 3 << 5 } else { 0 };
    let code = code_bits | privilege;
    let data = 0xC093 | privilege;
    let offset = if long { layout::STUB64 } else { layout::STUB32 };
    let alias = if user && first != First::Unpaged { PAGE } else { 0 };
    let stub = stub + alias + offset;
    let rip = match kind {
        0 => stub,
        1 => stub + layout::STORE,
        _ => address,
    };
    let ad = features.ept_ad && random.chance(60);
    let root2 = match features.second {
        Second::Ept => layout::N4 | 0x1E | if ad { 0x40 } else { 0 },
        Second::Npt4 => layout::N4,
        Second::Npt5 => layout::N5,
        Second::NptPae => layout::NPAE,
        Second::Npt32 => layout::N32,
    };
    let pkru = if random.chance(50) { random.bits() & random.bits() & 0xFFFF_FFFF } else { 0 };
    let pkrs = if random.chance(50) { random.bits() & random.bits() & 0xFFFF_FFFF } else { 0 };
    let mut state = [0; crate::contract::STATE];
    state[0] = rip;
    state[1] = address;
    state[2] = 0x1122_3344_5566_7788;
    state[3] = 0x31 | paging | wp;
    state[4] = root;
    state[5] = cr4;
    state[6] = nxe | if long { 0x500 } else { 0 };
    state[7] = root2;
    state[8] = code | data << 32;
    state[9] = 2 | ac;
    state[10] = pkru | pkrs << 32;
    if first == First::Pae {
        for i in 0..4 {
            state[11 + i] = draft.word(world, layout::RPAE + 8 * i as u64);
        }
    }
    draft.state = state;
    corner(features, first, random, &mut draft);
    draft
}

/// What few probes are about: guests in real mode, and guests without paging where the processor cannot
/// enter them.
fn corner(features: &Features, first: First, random: &mut Random, draft: &mut Draft) {
    const PE: u64 = 1;
    const PG: u64 = 1 << 31;
    const PRIVILEGES: u64 = 3 << 5 | 3 << (32 + 5);
    if first == First::Unpaged && random.chance(30) {
        draft.state[3] &= !PE;
        draft.state[8] &= !PRIVILEGES;
    } else if !features.unrestricted && random.chance(2) {
        draft.state[3] &= !PG;
        draft.state[6] &= !0x500;
        if random.chance(50) {
            draft.state[3] &= !PE;
        }
    }
}
