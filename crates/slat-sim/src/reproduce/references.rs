//! Counts that follow from the definition, made by walking real tables.

use std::cell::Cell;

use slat::format::ept::{self, Ept};
use slat::format::npt::Npt;
use slat::format::x86::Controls;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::format::{Format, Path};
use slat::{
    Access, EntryLayout, Failed, Gpa, Gva, L2Gpa, Memory, Nested, Observer, Partial, References,
    Regime, SliceMemory, Spa, Stage, Step, Value, translate, translate_nested, walk, walk_from,
};

const PAGE: u64 = 4096;
const X86: (u64, u64) = (0x7, 0x7);
const EPT: (u64, u64) = (0x7, 0x37);
/// The address that every walk here translates.
const ADDRESS: u64 = 0x1234;

/// Two MiB of memory whose frames are handed out in order, with identity tables in it.
struct World {
    bytes: Vec<u8>,
    next: u64,
}

impl World {
    fn new() -> World {
        World { bytes: vec![0; 2 << 20], next: PAGE }
    }

    fn memory(&mut self) -> SliceMemory<'_, Spa> {
        SliceMemory::new(Spa::new(0), &mut self.bytes)
    }

    fn frame(&mut self) -> u64 {
        self.next += PAGE;
        self.next - PAGE
    }

    fn poke(&mut self, layout: EntryLayout, address: u64, value: u64) {
        self.memory()
            .poke(Spa::new(address), layout, value)
            .unwrap_or_else(|_| unreachable!("a few tables fit in two MiB"));
    }

    /// Identity-maps the first 2 MiB with 512-entry tables from `root_level` down to `leaf_level`;
    /// returns the tables, the root first.
    fn identity(&mut self, root_level: u8, leaf_level: u8, kind: (u64, u64)) -> Vec<u64> {
        let (table, leaf) = kind;
        let mut tables = vec![self.frame()];
        for _ in leaf_level..root_level {
            let next = self.frame();
            self.poke(EntryLayout::LE64, tables[tables.len() - 1], next | table);
            tables.push(next);
        }
        let (entries, size) = if leaf_level == 0 { (512, 0) } else { (1, 0x80) };
        for i in 0..entries {
            let at = tables[tables.len() - 1] + 8 * i;
            self.poke(EntryLayout::LE64, at, (i * PAGE) | leaf | size);
        }
        tables
    }
}

fn long(levels: u8) -> Long {
    let make = if levels == 4 { Long::four } else { Long::five };
    make(Controls::default(), Processor::default())
}

fn ept(levels: u8) -> Ept {
    let make = if levels == 4 { Ept::four } else { Ept::five };
    make(ept::Features::default())
}

/// Entries that a translation reads; 0 where it fails.
fn count<F1: Format, F2: Format>(
    stage1: &Stage<F1, Gva, Gpa>,
    stage2: &Stage<F2, Gpa, Spa>,
    world: &mut World,
) -> u64 {
    let counted = References::default();
    let access = Access::default();
    let regime = Regime::default();
    let address = Gva::new(ADDRESS);
    let found = translate(stage1, stage2, &mut world.memory(), address, &access, &regime, &counted);
    found.map_or(0, |_| counted.count())
}

/// A cold walk: what was counted and what the definition says.
pub(super) struct Cold {
    /// The two (or three) stages.
    pub name: String,
    /// Entries that were read.
    pub counted: u64,
    /// (g + 1)(h + 1) - 1.
    pub defined: u64,
}

/// Cold walks over every pair of depths and page sizes of x86, 32-bit and PAE guests, and three
/// stages.
pub(super) fn cold() -> Vec<Cold> {
    let mut walks = Vec::new();
    for guest_levels in [4u8, 5] {
        for nested_levels in [4u8, 5] {
            for guest_leaf in 0..=2u8 {
                for nested_leaf in 0..=2u8 {
                    let g = u64::from(guest_levels - guest_leaf);
                    let h = u64::from(nested_levels - nested_leaf);
                    walks.push(Cold {
                        name: format!("{g} over {h}"),
                        counted: long_over_ept(
                            guest_levels,
                            guest_leaf,
                            nested_levels,
                            nested_leaf,
                        ),
                        defined: (g + 1) * (h + 1) - 1,
                    });
                }
            }
        }
    }
    walks.push(Cold { name: "32-bit over 4".into(), counted: legacy(), defined: 14 });
    let [registers, on_demand] = pae();
    walks.push(Cold { name: "PAE, PDPTEs in registers".into(), counted: registers, defined: 14 });
    walks.push(Cold { name: "PAE, PDPTEs on demand".into(), counted: on_demand, defined: 19 });
    walks.push(Cold { name: "4 over 4 over 4".into(), counted: three(), defined: 124 });
    walks
}

/// Entries that a cold walk reads of tables with so many levels, down to leaves of these levels.
pub(super) fn long_over_ept(
    guest_levels: u8,
    guest_leaf: u8,
    nested_levels: u8,
    nested_leaf: u8,
) -> u64 {
    let mut world = World::new();
    let nested = world.identity(nested_levels - 1, nested_leaf, EPT);
    let guest = world.identity(guest_levels - 1, guest_leaf, X86);
    let stage1 = Stage::new(long(guest_levels), guest[0]);
    let stage2 = Stage::new(ept(nested_levels), nested[0]);
    count(&stage1, &stage2, &mut world)
}

fn legacy() -> u64 {
    let mut world = World::new();
    let nested = world.identity(3, 0, EPT);
    let (directory, table) = (world.frame(), world.frame());
    world.poke(EntryLayout::LE32, directory, table | 7);
    world.poke(EntryLayout::LE32, table + 4, 0x1007);
    let stage1 = Stage::new(Legacy::new(Controls::default(), true, 40), directory);
    count(&stage1, &Stage::new(ept(4), nested[0]), &mut world)
}

fn pae() -> [u64; 2] {
    let mut world = World::new();
    let over_ept = world.identity(3, 0, EPT);
    let over_npt = world.identity(3, 0, X86);
    let directory = world.identity(1, 0, X86);
    let pointers = world.frame();
    world.poke(EntryLayout::LE64, pointers, directory[0] | 1);
    let format = Pae::new(Controls::default(), Processor::default());
    let registers = Stage::new(format, pae::Root::Registers([directory[0] | 1, 0, 0, 0]));
    let on_demand = Stage::new(format, pae::Root::OnDemand(pointers));
    let npt = Stage::new(Npt::four(true, Processor::default()), over_npt[0]);
    [
        count(&registers, &Stage::new(ept(4), over_ept[0]), &mut world),
        count(&on_demand, &npt, &mut world),
    ]
}

fn three() -> u64 {
    let mut world = World::new();
    let outer = world.identity(3, 0, EPT);
    let middle = world.identity(3, 0, EPT);
    let inner = world.identity(3, 0, X86);
    let counted = References::default();
    let found = translate_nested(
        &Stage::<_, Gva, L2Gpa>::new(long(4), inner[0]),
        &Stage::<_, L2Gpa, Gpa>::new(ept(4), middle[0]),
        &Stage::<_, Gpa, Spa>::new(ept(4), outer[0]).with_number(3),
        &mut world.memory(),
        Gva::new(ADDRESS),
        &Access::default(),
        &Regime::default(),
        &counted,
    );
    found.map_or(0, |_| counted.count())
}

/// Counts entries of this level and above.
struct AtLeast {
    level: u8,
    count: Cell<u64>,
}

impl Observer for AtLeast {
    const WATCHES: bool = false;

    fn step(&self, step: &Step) {
        if step.level >= self.level {
            self.count.set(self.count.get() + 1);
        }
    }
}

/// The guest's memory as agile paging sees it after its switch: the entry that switched holds where
/// the first guest table lies, so that only other pages are translated.
struct Switched<'a, M: Memory<Address = Spa>, W> {
    first: u64,
    nested: Nested<'a, Ept, Gpa, M, W>,
}

impl<M: Memory<Address = Spa>, W: Observer> Memory for Switched<'_, M, W> {
    type Address = Gpa;
    type Fault = Failed<Gpa, M::Fault>;

    fn read(
        &mut self,
        address: Gpa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        if address.raw() & !(PAGE - 1) == self.first {
            // Everything lies at its own address here, in both spaces.
            let place = Spa::new(address.raw());
            return self.nested.below().read(place, layout, access).map_err(Failed::Below);
        }
        self.nested.read(address, layout, access)
    }

    fn compare_exchange(
        &mut self,
        address: Gpa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        self.nested.compare_exchange(address, layout, current, new, access)
    }
}

/// Entries that agile paging reads with 0 to 4 guest levels nested and the others in shadow tables,
/// and with all nested and the root as well (Gandhi et al., ISCA 2016).
pub(super) fn agile() -> [u64; 6] {
    let mut counts = [0; 6];
    for nested_levels in 0..=4u8 {
        counts[usize::from(nested_levels)] = agile_with(nested_levels).unwrap_or(0);
    }
    counts[5] = long_over_ept(4, 0, 4, 0);
    counts
}

/// `None` where a walk fails.
fn agile_with(nested_levels: u8) -> Option<u64> {
    let mut world = World::new();
    let nested = world.identity(3, 0, EPT);
    let guest = world.identity(3, 0, X86);
    let (access, regime) = (Access::default(), Regime::default());
    let address = Gva::new(ADDRESS);

    // Shadow tables of the upper levels, whose lowest names the guest's table (or none is shadow).
    let first = guest.get(usize::from(4 - nested_levels)).copied();
    let mut shadow_root = first.unwrap_or_else(|| world.identity(3, 0, X86)[0]);
    if first.is_some() {
        for _ in nested_levels..4 {
            let above = world.frame();
            world.poke(EntryLayout::LE64, above, shadow_root | X86.0);
            shadow_root = above;
        }
    }
    let upper = AtLeast { level: nested_levels, count: Cell::new(0) };
    let shadow = Stage::<_, Gva, Spa>::new(long(4), shadow_root);
    walk(&shadow, &mut world.memory(), address, &access, &regime, &upper).ok()?;
    let Some(first) = first else { return Some(upper.count.get()) };

    let counted = References::default();
    let stage1 = Stage::<_, Gva, Gpa>::new(long(4), guest[0]);
    let stage2 = Stage::<_, Gpa, Spa>::new(ept(4), nested[0]);
    let mut memory = world.memory();
    let mut switched =
        Switched { first, nested: Nested::new(&stage2, &mut memory, &regime, &counted) };
    let from = Partial { level: nested_levels - 1, table: first, path: Path::START };
    let found = walk_from(&stage1, &from, &mut switched, address, &access, &regime, &counted);
    switched.nested.locate(found.ok()?.output, &access).ok()?;
    Some(upper.count.get() + counted.count())
}

/// Cache lines that the leaf entries of a second stage with 4K pages take for eight guest pages,
/// which lie side by side in guest physical memory or `stride` pages apart.
pub(super) fn leaf_lines(stride: u64) -> usize {
    let mut world = World::new();
    let nested = world.identity(3, 0, EPT);
    let stage2 = Stage::<_, Gpa, Spa>::new(ept(4), nested[0]);
    let mut lines: Vec<u64> = Vec::new();
    for page in 0..8 {
        let leaf = Leaf(Cell::new(0));
        let gpa = Gpa::new(page * stride * PAGE);
        let (access, regime) = (Access::default(), Regime::default());
        if walk(&stage2, &mut world.memory(), gpa, &access, &regime, &leaf).is_ok() {
            lines.push(leaf.0.get() >> 6);
        }
    }
    lines.sort_unstable();
    lines.dedup();
    lines.len()
}

/// Keeps where the last entry lies.
struct Leaf(Cell<u64>);

impl Observer for Leaf {
    const WATCHES: bool = false;

    fn step(&self, step: &Step) {
        self.0.set(step.entry_address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_walks_are_as_defined() {
        for walk in cold() {
            assert_eq!(walk.counted, walk.defined, "{}", walk.name);
        }
    }

    #[test]
    fn agile_paging_reads_4_8_12_16_20_and_24() {
        assert_eq!(agile(), [4, 8, 12, 16, 20, 24]);
    }

    #[test]
    fn scattered_guest_pages_take_eight_times_the_lines() {
        assert_eq!((leaf_lines(1), leaf_lines(8)), (1, 8));
    }
}
