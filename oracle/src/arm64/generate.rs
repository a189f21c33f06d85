//! Making up AArch64 probes.

use super::shape::Shape;
use super::{Arm64, layout};
use crate::arm;
use crate::contract::{Machine, STATE};
use crate::draft::{Coverage, Draft};
use crate::random::Random;
use crate::tree::{Below, Builder, Plain, Tree};
use crate::world::World;

/// How many bits of an address are the same in all spaces: all of the arena's, or with small inputs those
/// below its size.
const KEPT: u32 = 32;
const KEPT_NARROW: u32 = 24;

/// Stage 2, as the space of stage 1's tables.
struct Second<'a> {
    tree: &'a Tree<'a>,
    width: u32,
    /// Leaves of tables are no larger than this.
    largest: u8,
    root: u64,
    /// Bits of an address that are the same in all spaces.
    kept: u32,
}

impl Second<'_> {
    fn alias(&mut self, builder: &mut Builder<'_>, memory: u64, leaf: u8) -> u64 {
        let from = self.tree.shift(leaf).max(self.kept);
        // An address that small inputs have.
        let memory = if self.kept == KEPT { memory } else { memory & ((1 << from) - 1) };
        if self.width <= from || builder.random.chance(50) {
            return memory;
        }
        let kept = memory & ((1 << from) - 1);
        kept | (builder.random.bits() & ((1 << (self.width - from)) - 1)) << from
    }

    /// Maps one page of memory at an address of its own choice.
    fn page(&mut self, builder: &mut Builder<'_>, memory: u64, leaf: u8) -> u64 {
        let ipa = self.alias(builder, memory, leaf);
        builder.map(self.tree, ipa, memory, leaf, &mut Plain);
        ipa
    }
}

impl Below for Second<'_> {
    fn root(&mut self, _: u64) -> u64 {
        self.root
    }

    fn place(&mut self, builder: &mut Builder<'_>, memory: u64) -> u64 {
        self.alias(builder, memory, 0)
    }

    fn reach(&mut self, builder: &mut Builder<'_>, here: u64, memory: u64) {
        let mut leaf = builder.random.pick(&[0, 0, 1, 2]).min(self.largest);
        while self.tree.shift(leaf) > self.kept {
            leaf -= 1;
        }
        builder.map(self.tree, here, memory, leaf, &mut Plain);
    }
}

/// AF, mostly set.
fn access_flag(random: u64) -> u64 {
    if random >> 60 == 0 { 0 } else { layout::AF }
}

/// Makes a probe up.
pub(super) fn generate(
    subject: &Arm64,
    world: &World,
    random: &mut Random,
    coverage: &mut Coverage,
) -> Draft {
    let features = &subject.features;
    let new = subject.new;
    let processor = &features.processor;
    let physical = u32::from(processor.physical_bits);
    // What was added later is drawn aside, so that a seed's other probes stay as they were.
    let mut aside = Random::new(!random.clone().bits());
    let narrow = aside.chance(5);
    let kept = if narrow { KEPT_NARROW } else { KEPT };
    let shape2 = Shape::choose(features, random);
    let shape1 = Shape::choose(features, random);
    let translating = !random.chance(15);
    let first_class = if translating { 1 + shape1.granule * 2 + usize::from(shape1.ds) } else { 0 };
    let second_class = shape2.granule * 2 + usize::from(shape2.ds);
    coverage.set_class((first_class << 4 | second_class) as u16);

    // Stage 2: input size, start level.
    // 16 tables side by side at the highest of these levels.
    let most = physical.min([52, 51, 52][shape2.granule]);
    let most = if shape2.ds || shape2.wide { most } else { most.min(48) };
    // The widest inputs alone reach the highest start levels, which only the newer model has.
    let input2 = if new && shape2.ds && random.chance(50) {
        most - random.below(4) as u32
    } else {
        32 + random.below(u64::from(most - 31)) as u32
    };
    let input2 = if narrow { 25 + aside.below(7) as u32 } else { input2 };
    let (p, s) = (shape2.page_shift(), shape2.stride());
    let root_bits2 = |level: u32| input2.checked_sub(p + s * level).filter(|bits| *bits > 0);
    let lowest = usize::from(shape2.granule == 0 && !processor.small_tables) as u32;
    let levels: Vec<u32> =
        // QEMU 7.2 refuses two start levels that LPA2 allows: level 3 (the manual's 0) with 16K, and
        // level 4 (its -1) with 4K.
        (lowest..if new { [5, 4, 3] } else { [4, 3, 3] }[shape2.granule])
            .filter(|l| root_bits2(*l).is_some_and(|bits| bits <= s + 4))
            .collect();
    let highest = levels.iter().copied().find(|l| root_bits2(*l).is_some_and(|b| b <= s));
    let root_level2 = match levels.as_slice() {
        [] => highest.unwrap_or(3),
        some => random.pick(some),
    };
    let root_bits = root_bits2(root_level2).unwrap_or(1);
    let table2 = |at: u64, _: u8, _: u64| shape2.pack(at) | 3;
    let leaf2 = |base: u64, level: u8, random: u64| {
        let kind = if level == 0 { 3 } else { 1 };
        let shareability = if shape2.ds { 0 } else { 3 << 8 };
        shape2.pack(base) | kind | access_flag(random) | 3 << 6 | 0xF << 2 | shareability
    };
    let next =
        |shape: Shape| move |entry: u64, _: u8| (entry & 3 == 3).then(|| shape.unpack(entry));
    let (next1, next2) = (next(shape1), next(shape2));
    let low = (1 << kept) - 1;
    let high = Machine::ARM.arena.start & !low;
    let draft = Draft::default();
    let mut builder = Builder { world, random, draft, pool: layout::POOL, low, high };
    let root2 = builder.take((8u64 << root_bits).max(64));
    let tree2 = Tree {
        stage: 2,
        root: root2,
        root_level: root_level2 as u8,
        page_shift: p,
        index_bits: s,
        root_bits,
        entry: 64,
        table: &table2,
        leaf: &leaf2,
        next: &next2,
    };
    let largest = shape2.largest_block().min(tree2.root_level);
    let output1 = if shape1.ds || shape1.wide { physical } else { physical.min(48) };
    let mut below = Second { tree: &tree2, width: input2.min(output1), largest, root: 0, kept };

    let words = (layout::DATA.end - layout::DATA.start) / 8;
    let target = layout::DATA.start + 8 * builder.random.below(words);
    builder.draft.set_word(target, layout::tag(target));
    let mut leaf = builder.random.pick(&[0, 0, 0, 1, 1, 2, 3]).min(largest);
    while narrow && tree2.shift(leaf) > kept {
        leaf -= 1;
    }
    let ipa = below.page(&mut builder, target, leaf);

    // Stage 1.
    let user_page = builder.random.chance(50);
    let operation = builder.random.pick(&[1, 1, 1, 0x10, 0x11, 0x12, 0x13]);
    // QEMU 7.2 ends with a failed assertion on faults of a stage 1 that begins at level 4 (the
    // manual's -1), and each time costs a launch: none is asked.
    let deepest = shape1.granule == 0 && !new;
    let wide1 = shape1.granule == 2 && processor.large_virtual_addresses;
    let most1 = if shape1.ds && !deepest || wide1 { 52 } else { 48 };
    let input1 = 32 + builder.random.below(most1 - 31) as u32;
    let input1 = if aside.chance(5) { 25 + aside.below(7) as u32 } else { input1 };
    let (p1, s1) = (shape1.page_shift(), shape1.stride());
    let root_level1 = (input1 - p1 - 1) / s1;
    let leaf_at = |flags: u64| {
        move |base: u64, level: u8, random: u64| {
            let kind = if level == 0 { 3 } else { 1 };
            let shareability = if shape1.ds { 0 } else { 3 << 8 };
            let index = random >> 8 & 3 << 2;
            shape1.pack(base) | kind | access_flag(random) | shareability | index | flags
        }
    };
    let leaf1 = leaf_at(if user_page { 1 << 6 } else { 0 });
    let table1 = |at: u64, _: u8, _: u64| shape1.pack(at) | 3;
    let mut gva = ipa;
    let (mut ttbr0, mut ttbr1) = (0, 0);
    let run = operation == 1;
    if translating {
        let bytes = 8u64 << (input1 - p1 - s1 * root_level1);
        let root = builder.take(bytes.max(64));
        let tree1 = Tree {
            stage: 1,
            root,
            root_level: root_level1 as u8,
            page_shift: p1,
            index_bits: s1,
            root_bits: input1 - p1 - s1 * root_level1,
            entry: 64,
            table: &table1,
            leaf: &leaf1,
            next: &next1,
        };
        ttbr0 = below.alias(&mut builder, root, 0);
        below.root = ttbr0;
        let largest1 = shape1.largest_block().min(tree1.root_level);
        let leaf = builder.random.pick(&[0, 0, 0, 1, 1, 2, 3]).min(largest1);
        let keep = tree1.shift(leaf).max(kept).min(input1);
        let upper = builder.random.bits() & !((1u64 << keep) - 1);
        gva = (ipa & ((1u64 << keep) - 1) | upper) & ((1u64 << input1) - 1);
        builder.map(&tree1, gva, ipa, leaf, &mut below);
    }
    // What follows is not mutated.
    let sites = builder.draft.sites.len();
    let unpaged_stub = layout::STUB & (u64::MAX >> (64 - input2));
    if run {
        let stub =
            if translating { below.page(&mut builder, layout::STUB, 0) } else { unpaged_stub };
        if translating {
            // 39 bits of input, every page flagged as accessed.
            let level = (39 - p1 - 1) / s1;
            let bytes = 8u64 << (39 - p1 - s1 * level);
            let root = builder.take(bytes.max(64));
            let touch = |flags: u64| {
                let inner = leaf_at(flags);
                move |base: u64, level: u8, _: u64| inner(base, level, u64::MAX) & !(3 << 2)
            };
            // EL0 reads and executes, EL1 executes.
            let (privileged, user) = (touch(0), touch(3 << 6));
            ttbr1 = below.alias(&mut builder, root, 0);
            below.root = ttbr1;
            for (at, leaf) in [
                (layout::STUB_EL1, &privileged as &dyn Fn(u64, u8, u64) -> u64),
                (layout::STUB_EL0, &user),
            ] {
                let tree = Tree {
                    stage: 1,
                    root,
                    root_level: level as u8,
                    page_shift: p1,
                    index_bits: s1,
                    root_bits: 39 - p1 - s1 * level,
                    entry: 64,
                    table: &table1,
                    leaf,
                    next: &next1,
                };
                builder.map(&tree, at & ((1 << 39) - 1), stub, 0, &mut below);
            }
        } else {
            builder.map(&tree2, unpaged_stub, layout::STUB, 0, &mut Plain);
        }
    }
    let Builder { mut draft, random, .. } = builder;
    draft.sites.truncate(sites);
    draft.mutate(world, random, coverage);

    let ha = random.bits();
    let size =
        |bits: u32| [32, 36, 40, 42, 44, 48, 52].iter().position(|b| *b == bits).unwrap_or(5);
    let output_size = |shape: Shape, random: &mut Random| {
        let most = if shape.ds || shape.wide { physical } else { physical.min(48) };
        let size = size(most) as u64;
        // A smaller output size than the processor's, now and then.
        if random.chance(15) { random.below(size + 1) } else { size }
    };
    // The physical size bounds the input's (D8.1.10): beyond it nothing is asked.
    let least = [32, 36, 40, 42, 44, 48, 52].iter().position(|b| *b >= input2).unwrap_or(6) as u64;
    // QEMU compares the start level with the output size instead of the processor's.
    let top = !new && root_level2 + u32::from(shape2.granule != 0) >= 3;
    let ps2 = output_size(shape2, random).max(least).max(if top { 4 } else { 0 });
    let sl0 = match (shape2.granule, root_level2) {
        (0, 0) => 3,
        (0, 1) => 0,
        (0, 2) => 1,
        (0, 3) => 2,
        (0, _) => 0,
        _ => u64::from(root_level2) & 3,
    };
    let sl2 = u64::from(shape2.granule == 0 && root_level2 == 4);
    let mut vtcr = 1 << 31
        | sl2 << 33
        | u64::from(shape2.ds) << 32
        | ps2 << 16
        | shape2.tg0() << 14
        | 3 << 12
        | 5 << 8
        | sl0 << 6
        | u64::from(64 - input2);
    if processor.hardware_access_flag {
        vtcr |= (ha & 3) << 21;
    }
    let ips = output_size(shape1, random);
    let mut tcr = u64::from(64 - input1)
        | 25 << 16
        | shape1.tg0() << 14
        | shape1.tg1() << 30
        | 5 << 8
        | 3 << 12
        | 5 << 24
        | 3 << 28
        | ips << 32
        | u64::from(shape1.ds) << 59;
    if processor.hardware_access_flag {
        tcr |= (ha >> 2 & 3) << 39;
    }
    if processor.hierarchical_disable {
        tcr |= if random.chance(20) { 1 << 41 } else { 0 };
    }
    if random.chance(20) {
        tcr |= 1 << 37;
    }
    let user = if random.chance(70) { user_page } else { !user_page };
    let mut address = gva;
    if random.chance(4) {
        address ^= 1 << (32 + random.below(32));
    }
    let el = if user { 0 } else { 5 };
    let pan = if features.pan && random.chance(25) { 1 << 22 } else { 0 };
    let base = match (translating, user) {
        (false, _) => unpaged_stub,
        (true, false) => layout::STUB_EL1,
        (true, true) => layout::STUB_EL0,
    };
    let wxn = if random.chance(15) { 1 << 19 } else { 0 };
    let ptw = if random.chance(20) { 1 << 2 } else { 0 };
    let mut state = [0; STATE];
    state[0] = match random.below(3) {
        2 => {
            // A branch drops the tag, so that no program counter has one.
            if tcr >> 37 & 1 != 0 {
                address = (address << 8) as i64 as u64 >> 8;
            }
            address
        }
        kind => arm::stub(base, kind == 0),
    };
    state[1] = address;
    state[2] = 0x1122_3344_5566_7788;
    state[3] = 0x30D0_1804 | u64::from(translating) | wxn;
    state[4] = tcr;
    state[5] = ttbr(ttbr0, shape1);
    state[6] = ttbr(ttbr1, shape1);
    state[7] = 0x0444_BBFF;
    state[8] = root2;
    state[9] = vtcr;
    state[10] = 1 << 31 | 1 | ptw;
    state[11] = 0x3C0 | el | pan;
    state[12] = if translating { layout::STUB_EL1 } else { unpaged_stub };
    draft.operation = operation;
    draft.state = state;
    corner(subject, &mut aside, world, &mut draft, shape2.ds || shape2.wide);
    draft
}

/// What few probes are about: leaves that are writable but for their being clean, disabled halves, and roots of
/// stage 2 above 48 bits. `wide2` is whether its root register has such bits.
fn corner(subject: &Arm64, random: &mut Random, world: &World, draft: &mut Draft, wide2: bool) {
    const DIRTIABLE: u64 = 1 << 51 | 1 << 7;
    let leaf = draft.sites.iter().find(|site| site.stage == 1 && site.leaf).copied();
    match (random.below(100), leaf) {
        (0..3, Some(site)) if subject.features.processor.hardware_dirty_state => {
            let entry = draft.entry(world, site.address, 64);
            draft.set_entry(world, site.address, 64, entry | DIRTIABLE);
            draft.state[4] |= 3 << 39;
        }
        // EPD0.
        (3..5, Some(_)) => draft.state[4] |= 1 << 7,
        // Bits 5:2 of VTTBR: no memory lies so high.
        (7..9, _) if wide2 => draft.state[8] |= random.below(16) << 2,
        // EPD1, of an address in its half; the stub's half serves runs.
        (5..7, Some(_)) if draft.operation != 1 => {
            draft.state[4] |= 1 << 23;
            draft.state[1] |= 0xFFFF << 48;
        }
        _ => (),
    }
}

/// A root register: with 52-bit addresses, bits 51:48 are in 5:2.
fn ttbr(address: u64, shape: Shape) -> u64 {
    if shape.ds || shape.wide {
        address & 0x0000_FFFF_FFFF_FFC0 | address >> 48 << 2 & 0x3C
    } else {
        address & 0x0000_FFFF_FFFF_FFFF
    }
}
