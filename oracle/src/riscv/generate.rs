//! Making up RISC-V probes.

use super::layout::{self, A, D, R, U, V, W, X, pte};
use super::{HLV, HLVX, HSV};
use crate::contract::STATE;
use crate::draft::{Coverage, Draft};
use crate::random::Random;
use crate::tree::{Below, Builder, Plain, Tree};
use crate::world::World;

/// Bits of an address that are the same in all spaces.
const LOW: u64 = 0xFFFF_FFFF;

fn next(entry: u64, _: u8) -> Option<u64> {
    (entry & V != 0 && entry & (R | W | X) == 0).then_some((entry >> 10 & ((1 << 44) - 1)) << 12)
}

fn table(at: u64, _: u8, _: u64) -> u64 {
    pte(at, V)
}

/// Mostly accessed and dirty: without `ADUE` everything else faults.
fn touched(random: u64) -> u64 {
    match random >> 56 & 7 {
        0 => random & (A | D),
        1 => A,
        _ => A | D,
    }
}

fn leaf_second(base: u64, _: u8, random: u64) -> u64 {
    pte(base, V | R | W | X | U | touched(random))
}

/// `upper` random bits above the bits that a leaf of this shift keeps, up to `width`.
fn alias(random: &mut Random, address: u64, shift: u32, width: u32) -> u64 {
    let from = shift.max(32);
    if width <= from || random.chance(50) {
        return address;
    }
    let kept = address & ((1 << from) - 1);
    kept | (random.bits() & ((1 << (width - from)) - 1)) << from
}

fn leaf_level(random: &mut Random, root_level: u8) -> u8 {
    random.pick(&[0, 0, 0, 0, 1, 1, 2, 2, 3, 4]).min(root_level)
}

/// G-stage, as the space of VS-stage's tables; no tree is Bare.
struct Second<'a> {
    tree: Option<&'a Tree<'a>>,
    width: u32,
}

impl Below for Second<'_> {
    fn root(&mut self, memory: u64) -> u64 {
        memory
    }

    fn place(&mut self, builder: &mut Builder<'_>, memory: u64) -> u64 {
        let Some(tree) = self.tree else { return memory };
        let leaf = leaf_level(builder.random, tree.root_level);
        let gpa = alias(builder.random, memory, tree.shift(leaf), self.width);
        builder.map(tree, gpa, memory, leaf, &mut Plain);
        gpa
    }

    fn reach(&mut self, _: &mut Builder<'_>, _: u64, _: u64) {}
}

/// Makes a probe up.
pub(super) fn generate(world: &World, random: &mut Random, coverage: &mut Coverage) -> Draft {
    // 0 is Bare; 1, 2, 3 are the schemes with 3, 4 and 5 levels.
    let second = random.pick(&[0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]) as usize;
    let first = random.pick(&[0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]) as usize;
    coverage.set_class((first << 4 | second) as u16);
    let widths = [34, 39, 48, 57];
    let mut builder =
        Builder { world, random, draft: Draft::default(), pool: layout::POOL, low: LOW, high: 0 };
    let second_tree = Tree {
        stage: 2,
        root: if second == 0 { 0 } else { layout::G[second - 1] },
        root_level: second as u8 + 1,
        page_shift: 12,
        index_bits: 9,
        root_bits: 11,
        entry: 64,
        table: &table,
        leaf: &leaf_second,
        next: &next,
    };
    let gpa_width = if second == 0 { 32 } else { widths[second] + 2 };
    // Guest physical addresses in entries have 56 bits.
    let gpa_width = if first == 0 { gpa_width } else { gpa_width.min(56) };
    let mut below = Second { tree: (second != 0).then_some(&second_tree), width: gpa_width };
    let words = (layout::DATA.end - layout::DATA.start) / 8;
    let target = layout::DATA.start + 8 * builder.random.below(words);
    builder.draft.set_word(target, layout::tag(target));
    let gpa = below.place(&mut builder, target);
    let user_page = builder.random.chance(50);
    let leaf_first = move |base: u64, _: u8, random: u64| {
        pte(base, V | R | W | X | touched(random) | if user_page { U } else { 0 })
    };
    let mut gva = gpa;
    if first != 0 {
        let tree = Tree {
            stage: 1,
            root: layout::VS[first - 1],
            root_level: first as u8 + 1,
            page_shift: 12,
            index_bits: 9,
            root_bits: 9,
            entry: 64,
            table: &table,
            leaf: &leaf_first,
            next: &next,
        };
        let leaf = leaf_level(builder.random, tree.root_level);
        let width = widths[first];
        let keep = tree.shift(leaf).max(32).min(width);
        let unused = 64 - width;
        let low = gpa & ((1u64 << keep) - 1);
        let upper = builder.random.bits() & !((1u64 << keep) - 1);
        gva = (((low | upper) << unused) as i64 >> unused) as u64;
        builder.map(&tree, gva, gpa, leaf, &mut below);
    }
    let Builder { mut draft, random, .. } = builder;
    draft.mutate(world, random, coverage);
    let mut address = gva;
    if random.chance(4) {
        address ^= 1 << (random.below(32) + 32);
    }
    // The privilege is mostly the one that the page wants.
    let user = if random.chance(70) { user_page } else { !user_page };
    let operation = random.pick(&[1, 1, 1, 1, 1, 1, HLV, HLV, HSV, HSV, HLVX]);
    let mut state = [0; STATE];
    let stub = if first == 0 {
        layout::STUB
    } else {
        layout::STUB_AT[first - 1] + if user { 0x1000 } else { 0 }
    };
    state[0] = match random.below(3) {
        0 => stub,
        1 => stub + layout::STORE,
        _ => address,
    };
    state[1] = address;
    state[2] = 0x1122_3344_5566_7788;
    let mode = |scheme: usize| if scheme == 0 { 0 } else { (7 + scheme as u64) << 60 };
    state[3] = mode(second) | second_tree.root >> 12;
    state[4] = if first == 0 { 0 } else { mode(first) | layout::VS[first - 1] >> 12 };
    state[5] = u64::from(!user);
    let status = random.bits() & random.bits() & 3 << 18;
    state[6] = if random.chance(50) { status } else { 0 };
    // VSXL is 64 bits; SPVP is the privilege of HLV and HSV.
    state[7] = 2 << 32 | if user { 0 } else { 1 << 8 };
    let envcfg = random.bits() & layout::ENVCFG;
    state[8] = envcfg;
    state[9] = random.bits() & layout::ENVCFG & envcfg;
    state[10] = if random.chance(25) { 1 << 19 } else { 0 };
    draft.operation = operation;
    draft.state = state;
    draft
}
