//! A small guest program, as a list of what it does: KVM runs it, and so can a model of a hypervisor.

/// Something that the program does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Loads eight bytes from this virtual address.
    Load(u64),
    /// Stores eight bytes there.
    Store(u64, u64),
    /// Loads CR3.
    Cr3(u64),
    /// Executes INVLPG.
    Invlpg(u64),
    /// Tells the host that a phase is over.
    Done,
}

impl Op {
    /// As the guest's loop reads it: what, address, value.
    pub(crate) fn words(self) -> [u64; 3] {
        match self {
            Op::Load(at) => [0, at, 0],
            Op::Store(at, value) => [1, at, value],
            Op::Cr3(value) => [2, value, 0],
            Op::Invlpg(at) => [3, at, 0],
            Op::Done => [4, 0, 0],
        }
    }
}

/// A part of the program whose counts are read together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Phase {
    /// What it is about, in a few words.
    pub name: &'static str,
    /// What it does.
    pub ops: Vec<Op>,
}

/// Bytes of guest memory.
pub const MEMORY: u64 = 32 << 20;
/// The guest's root table.
pub const ROOT: u64 = 0x1_0000;
/// Guest memory from here on is backed by pages of 2 MiB where the host has them.
pub const LARGE_FROM: u64 = 16 << 20;

/// Where the program's list of operations lies.
pub(crate) const LIST: u64 = 1 << 20;
/// Bytes that it may take.
pub(crate) const LIST_BYTES: u64 = 1 << 20;

/// 1,024 pages of 4 KiB by two tables: virtual, and guest physical, addresses.
pub const SMALL: u64 = 4 << 30;
const SMALL_AT: u64 = 4 << 20;
/// Eight pages of 2 MiB.
pub const LARGE: u64 = 8 << 30;

/// The tables: the root, what is below it for the first 4 MiB, which are mapped one to one, and for the
/// two ranges.
const SECOND: u64 = ROOT + 0x1000;
const LOW: u64 = ROOT + 0x2000;
const LOW_LEAVES: u64 = ROOT + 0x3000;
const SMALL_TABLE: u64 = ROOT + 0x5000;
const SMALL_LEAVES: u64 = ROOT + 0x6000;
const LARGE_TABLE: u64 = ROOT + 0x8000;

const P: u64 = 1 << 0 | 1 << 1 | 1 << 2;
const AD: u64 = 1 << 5 | 1 << 6;
const PS: u64 = 1 << 7;

/// The guest's table entries before it runs, as (guest physical address, value): 4-level paging. All
/// is user, writable and executable. Pages that the two ranges map are neither accessed nor dirty.
pub fn tables() -> Vec<(u64, u64)> {
    let mut entries = vec![
        (ROOT, SECOND | P | AD),
        (SECOND, LOW | P | AD),
        (SECOND + 8 * 4, SMALL_TABLE | P | AD),
        (SECOND + 8 * 8, LARGE_TABLE | P | AD),
    ];
    for table in 0..2 {
        entries.push((LOW + 8 * table, (LOW_LEAVES + 0x1000 * table) | P | AD));
        entries.push((SMALL_TABLE + 8 * table, (SMALL_LEAVES + 0x1000 * table) | P | AD));
        for n in 512 * table..512 * (table + 1) {
            entries.push((LOW_LEAVES + 8 * n, n << 12 | P | AD));
            entries.push((SMALL_LEAVES + 8 * n, (SMALL_AT + (n << 12)) | P));
        }
    }
    for n in 0..8 {
        entries.push((LARGE_TABLE + 8 * n, (LARGE_FROM + (n << 21)) | P | PS));
    }
    entries
}

fn page(n: u64) -> u64 {
    SMALL + (n << 12)
}

fn leaf(n: u64) -> u64 {
    SMALL_LEAVES + 8 * n
}

/// The program. The first phase touches what the others need besides their own pages, so that theirs
/// are the only first touches in them.
pub fn phases() -> Vec<Phase> {
    let mut phases = Vec::new();
    let mut phase = |name, mut ops: Vec<Op>| {
        ops.push(Op::Done);
        phases.push(Phase { name, ops });
    };
    let list = (0..LIST_BYTES >> 12).map(|n| Op::Load(LIST + (n << 12)));
    // The tables that the guest will write, as data: through the one-to-one mapping.
    let own_tables = [SMALL_TABLE, SMALL_LEAVES, SMALL_LEAVES + 0x1000].map(Op::Load);
    let flush = Op::Cr3(ROOT);
    phase("warm-up", list.chain(own_tables).chain([flush, Op::Invlpg(LIST)]).collect());
    phase("load 512 pages", (0..512).map(|n| Op::Load(page(n))).collect());
    phase("load them again", (0..512).map(|n| Op::Load(page(n))).collect());
    phase("store to them", (0..512).map(|n| Op::Store(page(n), n)).collect());
    phase("store to 512 others", (512..1024).map(|n| Op::Store(page(n), n)).collect());
    let large = (0..8).flat_map(|n| (0..4).map(move |part| LARGE + (n << 21) + (part << 19)));
    phase("load from 8 large pages", large.clone().map(Op::Load).collect());
    phase("store to the large ones", large.map(|at| Op::Store(at, 1)).collect());
    // Exchange the frames of 32 pairs of pages.
    let swap = (0..64).map(|n| Op::Store(leaf(n), (SMALL_AT + ((n ^ 1) << 12)) | P | AD));
    phase("exchange 64 pages", swap.chain([flush]).collect());
    phase("load the 64", (0..64).map(|n| Op::Load(page(n))).collect());
    let clear = (512..640).map(|n| Op::Store(leaf(n), 0));
    phase("unmap 128 pages", clear.chain([flush]).collect());
    let map = (512..640).map(|n| Op::Store(leaf(n), (SMALL_AT + (n << 12)) | P));
    phase("map them again", map.chain([flush]).collect());
    phase("store to the 128", (512..640).map(|n| Op::Store(page(n), n)).collect());
    // One entry at a time, each with its flush.
    let single = (0..16).flat_map(|n| {
        let entry = (SMALL_AT + (n << 12)) | P | AD;
        [Op::Store(leaf(n), entry), Op::Invlpg(page(n)), Op::Load(page(n))]
    });
    phase("remap 16 pages one by one", single.collect());
    phase("flush", vec![flush]);
    // A whole table goes and comes back.
    let above = SMALL_TABLE + 8;
    let table = (SMALL_LEAVES + 0x1000) | P | AD;
    phase("unlink a table", vec![Op::Store(above, 0), flush]);
    phase("link it again", vec![Op::Store(above, table), flush]);
    phase("load its first 64 pages", (512..576).map(|n| Op::Load(page(n))).collect());
    // Stores with no use between: the table is dropped at the third.
    phase("write a table thrice", vec![Op::Store(above, table); 3]);
    phase("load the 64 again", (512..576).map(|n| Op::Load(page(n))).collect());
    phases
}
