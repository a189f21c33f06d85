//! Making up 32-bit Arm probes.

use slat::format::arm32::Version;

use super::{Arm32, layout};
use crate::arm;
use crate::contract::STATE;
use crate::draft::{Coverage, Draft};
use crate::random::Random;
use crate::tree::{Below, Builder, Plain, Tree};
use crate::world::World;

const AF: u64 = 1 << 10;
/// The least bits of an address that all leaves keep.
const KEPT: u32 = layout::LOW.count_ones();

/// The formats of stage 1.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Off,
    Short,
    Long,
}

/// Stage 2, as the space of stage 1's tables.
struct Second<'a> {
    tree: &'a Tree<'a>,
    /// Bits of the addresses that stage 1 can name.
    width: u32,
    root: u64,
}

impl Second<'_> {
    fn alias(&self, builder: &mut Builder<'_>, memory: u64, leaf: u8, width: u32) -> u64 {
        let from = self.tree.shift(leaf).max(KEPT);
        let low = memory & ((1 << from) - 1);
        if width <= from {
            return low;
        }
        let upper = (1u64 << (width - from)) - 1;
        // Where memory has an address in this space, it keeps it half of the time.
        if memory >> width == 0 && builder.random.chance(50) {
            return memory;
        }
        low | (builder.random.bits() & upper) << from
    }

    /// Maps one page of memory at an address of its own choice, no wider than `width`.
    fn page(&mut self, builder: &mut Builder<'_>, memory: u64, leaf: u8, width: u32) -> u64 {
        let ipa = self.alias(builder, memory, leaf, width);
        builder.map(self.tree, ipa, memory, leaf, &mut Plain);
        ipa
    }
}

impl Below for Second<'_> {
    fn root(&mut self, _: u64) -> u64 {
        self.root
    }

    fn place(&mut self, builder: &mut Builder<'_>, memory: u64) -> u64 {
        self.alias(builder, memory, 0, self.width)
    }

    fn reach(&mut self, builder: &mut Builder<'_>, here: u64, memory: u64) {
        let leaf = builder.random.pick(&[0, 0, 1]).min(self.tree.root_level);
        builder.map(self.tree, here, memory, leaf, &mut Plain);
    }
}

/// The access flag, mostly set.
fn access_flag(random: u64) -> u64 {
    if random >> 60 == 0 { 0 } else { AF }
}

/// A leaf of short descriptors with these AP[2:0] (AP[0] is set: the access flag with AFE).
fn short_leaf(base: u64, level: u8, random: u64, permissions: u64, domain: u64) -> u64 {
    let (low, high) = (permissions & 3, permissions >> 2);
    let attributes = random >> 8 & 3 << 2;
    let tex = random >> 20 & 7;
    if level == 0 {
        let large = random >> 40 & 3 == 0;
        let (kind, base, at) = if large { (1, base & !0xFFFF, 12) } else { (2, base & !0xFFF, 6) };
        return base & 0xFFFF_FFFF | kind | attributes | low << 4 | high << 9 | tex << at;
    }
    let common = 2 | attributes | low << 10 | tex << 12 | high << 15;
    if random >> 40 & 3 == 0 {
        let upper = (base >> 32 & 15) << 20 | (base >> 36 & 15) << 5;
        return common | base & 0xFF00_0000 | upper | 1 << 18;
    }
    common | base & 0xFFF0_0000 | domain << 5
}

/// One half of stage 1: where its tables are, and how they are shaped.
struct Half {
    root: u64,
    input_bits: u32,
}

/// Makes a probe up.
pub(super) fn generate(
    subject: &Arm32,
    world: &World,
    random: &mut Random,
    coverage: &mut Coverage,
) -> Draft {
    let processor = &subject.features.processor;
    // What was added later is drawn aside, so that a seed's other probes stay as they were.
    let mut aside = Random::new(!random.clone().bits());
    let first = random.pick(&[
        First::Off,
        First::Short,
        First::Short,
        First::Short,
        First::Long,
        First::Long,
        First::Long,
    ]);
    coverage.set_class(first as u16);

    // Stage 2: input size, start level, up to 16 tables side by side.
    let input2 = 25 + random.below(16) as u32;
    let fits = |level: u32| (12 + 9 * level + 1..=12 + 9 * level + 13).contains(&input2);
    let level2 = random.pick(&[1, 2, 2]);
    let level2 = if fits(level2) { level2 } else { 3 - level2 };
    let table2 = |at: u64, _: u8, _: u64| at & 0xFF_FFFF_F000 | 3;
    let leaf2 = |base: u64, level: u8, random: u64| {
        base | if level == 0 { 3 } else { 1 } | access_flag(random) | 3 << 6 | 0xF << 2 | 3 << 8
    };
    let next_long = |entry: u64, _: u8| (entry & 3 == 3).then_some(entry & 0xFF_FFFF_F000);
    let next_short = |entry: u64, _: u8| (entry & 3 == 1).then_some(entry & 0xFFFF_FC00);
    let draft = Draft::default();
    let (low, high) = (layout::LOW, layout::HIGH);
    let mut builder = Builder { world, random, draft, pool: layout::POOL, low, high };
    let root_bits2 = input2 - 12 - 9 * level2;
    let root2 = builder.take((8u64 << root_bits2).max(64));
    let tree2 = Tree {
        stage: 2,
        root: root2,
        root_level: level2 as u8,
        page_shift: 12,
        index_bits: 9,
        root_bits: root_bits2,
        entry: 64,
        table: &table2,
        leaf: &leaf2,
        next: &next_long,
    };
    // What stage 1 can name: 32 bits where it is off and in short tables, more by supersections.
    let width = if first == First::Long { input2 } else { input2.min(32) };
    let mut below = Second { tree: &tree2, width, root: 0 };
    let words = (layout::DATA.end - layout::DATA.start) / 8;
    let target = layout::DATA.start + 8 * builder.random.below(words);
    builder.draft.set_word(target, layout::tag(target));
    let leaf = builder.random.pick(&[0, 0, 0, 1, 2]).min(tree2.root_level);
    // Supersections have 40 bits: the page's own mapping may use them.
    let super_wide = first == First::Short && builder.random.chance(15);
    let width_of_page = if super_wide { input2 } else { width };
    let ipa = below.page(&mut builder, target, leaf, width_of_page);

    // Stage 1.
    let user_page = builder.random.chance(50);
    let operation = builder.random.pick(&[1, 1, 1, 0x10, 0x11, 0x12, 0x13]);
    let run = operation == 1;
    let domain = builder.random.below(16);
    let permissions = if user_page { 0b011 } else { 0b001 };
    let table_short = |at: u64, _: u8, _: u64| at & 0xFFFF_FC00 | 1 | domain << 5;
    let leaf_short = |base: u64, level: u8, random: u64| {
        // An address of more than 32 bits is a supersection's.
        let random = if base >> 32 != 0 { random & !(3 << 40) } else { random };
        short_leaf(base, level, random, permissions, domain)
    };
    let table_long = |at: u64, _: u8, _: u64| at & 0xFF_FFFF_F000 | 3;
    let long = |flags: u64| {
        move |base: u64, level: u8, random: u64| {
            let kind = if level == 0 { 3 } else { 1 };
            base | kind | access_flag(random) | 3 << 8 | random >> 8 & 3 << 2 | flags
        }
    };
    let leaf_long = long(if user_page { 1 << 6 } else { 0 });
    let mut gva = ipa;
    let mut ttbcr = if first == First::Long { 1 << 31 } else { 0 };
    let mut halves: [Option<Half>; 2] = [None, None];
    if first != First::Off {
        // How many upper bits choose the half: T0SZ and T1SZ, or N.
        let pick = |random: &mut Random| random.pick(&[0, 0, 1, 2, 3, 5, 7]);
        let (size0, size1) = match first {
            First::Long => (pick(builder.random), pick(builder.random)),
            _ => (pick(builder.random), 0),
        };
        ttbcr |= size0 | size1 << 16;
        let upper = size0 != 0 || size1 != 0;
        for (half, size) in halves.iter_mut().zip([size0, size1]).take(1 + usize::from(upper)) {
            let input_bits = 32 - size as u32;
            let bytes = match first {
                First::Long => 8 << (input_bits - 12 - 9 * ((input_bits - 13) / 9)),
                _ => 4 << (input_bits - 20),
            };
            let root = builder.take(u64::max(bytes, 64));
            *half = Some(Half { root: below.alias(&mut builder, root, 0, width), input_bits });
        }
        // The page lies in the lower half, and away from the stub where there is no other.
        let levels: &[u8] = if first == First::Long { &[0, 0, 0, 1, 1, 2] } else { &[0, 0, 1] };
        let mut leaf = builder.random.pick(levels);
        if ipa >> 32 != 0 && first == First::Short {
            leaf = 1;
        }
        let input_bits = 32 - size0 as u32;
        let keep = if first == First::Long { 12 + 9 * u32::from(leaf) } else { 24 };
        let keep = keep.max(KEPT).min(input_bits);
        gva = ipa & ((1 << keep) - 1) | builder.random.bits() & !((1u64 << keep) - 1);
        gva &= (1 << input_bits) - 1;
        if size0 == 0 {
            gva &= !(1 << 31);
        }
        map_first(
            &mut builder,
            &mut below,
            first,
            &halves[0],
            (gva, ipa, leaf),
            [
                if first == First::Long { &table_long } else { &table_short },
                if first == First::Long { &leaf_long } else { &leaf_short },
            ],
            if first == First::Long { &next_long } else { &next_short },
        );
    }
    // What follows is not mutated.
    let sites = builder.draft.sites.len();
    if run && first == First::Off {
        let stub = layout::STUB & ((1u64 << input2.min(32)) - 1);
        builder.map(&tree2, stub, layout::STUB, 0, &mut Plain);
    } else if run {
        let stub = below.page(&mut builder, layout::STUB, 0, width);
        let (privileged, user) = (long(2 << 6), long(3 << 6));
        let flagged = |base, level, leaf: &dyn Fn(u64, u8, u64) -> u64| {
            leaf(base, level, u64::MAX) & !(3 << 2)
        };
        let short = |permissions: u64| {
            move |base: u64, level: u8, _: u64| short_leaf(base, level, 1 << 40, permissions, 0)
        };
        for (at, user_may) in [(layout::STUB_PL1, false), (layout::STUB_PL0, true)] {
            let inner: &dyn Fn(u64, u8, u64) -> u64 = if user_may { &user } else { &privileged };
            let long_stub = |base: u64, level: u8, _: u64| flagged(base, level, inner);
            let short_stub = short(if user_may { 0b111 } else { 0b101 });
            let short_table = |at: u64, _: u8, _: u64| at & 0xFFFF_FC00 | 1;
            let half = if halves[1].is_some() { &halves[1] } else { &halves[0] };
            map_first(
                &mut builder,
                &mut below,
                first,
                half,
                (at, stub, 0),
                [
                    if first == First::Long { &table_long } else { &short_table },
                    if first == First::Long { &long_stub } else { &short_stub },
                ],
                if first == First::Long { &next_long } else { &next_short },
            );
        }
    }
    let Builder { mut draft, random, .. } = builder;
    draft.sites.truncate(sites);
    draft.mutate(world, random, coverage);

    let user = if random.chance(70) { user_page } else { !user_page };
    let base = match (first, user) {
        (First::Off, _) => layout::STUB & ((1u64 << input2.min(32)) - 1),
        (_, false) => layout::STUB_PL1,
        (_, true) => layout::STUB_PL0,
    };
    let mut address = gva & 0xFFFF_FFFF;
    if random.chance(4) {
        address ^= 1 << (24 + random.below(8));
    }
    let t0sz = u64::from(32u32.wrapping_sub(input2) & 15);
    let vtcr = 1 << 31 | 3 << 12 | 5 << 8 | u64::from(level2 == 2) << 6 | (t0sz & 8) << 1 | t0sz;
    let mut sctlr = 0x00C5_187C | u64::from(first != First::Off);
    // WXN, UWXN, TRE, AFE
    for (bit, percent) in [(19, 15), (20, 15), (28, 30), (29, 40)] {
        sctlr |= u64::from(random.chance(percent)) << bit;
    }
    let v8 = processor.version == Version::V8;
    let two = if v8 && first == First::Long && random.chance(25) { 1 << 6 } else { 0 };
    ttbcr |= two;
    let disabled = first == First::Long && random.chance(2) && halves[1].is_some();
    let mut operation = operation;
    match first {
        // EPD0; the stub lies in the upper half.
        _ if disabled => ttbcr |= 1 << 7,
        // PD0 and PD1. In Armv7 they belong to the Security Extensions (DDI 0406C B4.1.153), which QEMU's
        // machine leaves out.
        First::Short if v8 && aside.chance(3) => {
            let [lower, upper] = [1 << 4, 1 << 5];
            match (halves[1].is_some(), aside.chance(50)) {
                (true, true) => ttbcr |= lower,
                // The stub is not to be reached then, and AT needs none.
                (true, false) => {
                    ttbcr |= upper;
                    operation = 0x10 + aside.below(4) as u32;
                    address |= 0xFFC0_0000;
                }
                // Without an upper half PD1 does nothing.
                (false, _) => ttbcr |= upper,
            }
        }
        _ => (),
    }
    let pan = if subject.features.pan && random.chance(25) { 1 << 22 } else { 0 };
    let mut state = [0; STATE];
    state[0] = match random.below(3) {
        2 => address,
        kind => arm::stub(base, kind == 0),
    };
    state[1] = address;
    state[2] = 0x5566_7788;
    state[3] = sctlr;
    state[4] = ttbcr;
    state[5] = halves[0].as_ref().map_or(0, |half| half.root);
    state[6] = halves[1].as_ref().map_or(0, |half| half.root);
    // MAIR1:MAIR0, or NMRR:PRRR.
    state[7] = if first == First::Long { 0x04BB_44FF_0444_BBFF } else { 0x04BB_44FF_FF0A_A4AA };
    state[8] = root2;
    state[9] = vtcr;
    state[10] = 1 | if random.chance(20) { 1 << 2 } else { 0 };
    state[11] = 0x1C0 | if user { 0x10 } else { 0x13 } | pan;
    state[12] = base & !0xFFF;
    if first != First::Off {
        state[12] = layout::STUB_PL1;
    }
    // The stub is in domain 0; the page's domain is mostly a client as well.
    let clients = 0x5555_5555;
    state[13] = if random.chance(70) { clients } else { random.bits() & 0xFFFF_FFFC | 1 };
    state[14] = if two != 0 { 1 << 9 } else { 0 };
    draft.operation = operation;
    draft.state = state;
    draft
}

type Make<'a> = &'a dyn Fn(u64, u8, u64) -> u64;

/// Maps an address in one half of stage 1.
fn map_first(
    builder: &mut Builder<'_>,
    below: &mut Second<'_>,
    first: First,
    half: &Option<Half>,
    (gva, ipa, leaf): (u64, u64, u8),
    [table, make]: [Make<'_>; 2],
    next: &dyn Fn(u64, u8) -> Option<u64>,
) {
    let Some(half) = half else { return };
    let long = first == First::Long;
    let root_level = if long { ((half.input_bits - 13) / 9) as u8 } else { 1 };
    let index_bits = if long { 9 } else { 8 };
    let tree = Tree {
        stage: 1,
        root: half.root & layout::LOW | layout::HIGH,
        root_level,
        page_shift: 12,
        index_bits,
        root_bits: half.input_bits - 12 - index_bits * u32::from(root_level),
        entry: if long { 64 } else { 32 },
        table,
        leaf: make,
        next,
    };
    below.root = half.root;
    builder.map(&tree, gva & ((1 << half.input_bits) - 1), ipa, leaf.min(root_level), below);
}
