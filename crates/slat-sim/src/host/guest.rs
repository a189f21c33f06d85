//! A small guest kernel that never stops: it loads and stores through its own tables, exchanges
//! pages under its own mappings, and switches between two address spaces. What it does depends on
//! its registers and its memory alone, so that two runs of as many steps leave the same memory,
//! whatever translates their addresses.

use super::partition::{Partition, Trap};
use super::spa::{PAGE, SystemMemory};
use super::stage1::{Architecture, Stage1};

/// Where a guest's data pages are mapped, in both address spaces.
pub const WINDOW: u64 = 0x4000_0000;
/// Where all of its memory is mapped, in both, where addresses have more than 32 bits.
pub const DIRECT: u64 = 1 << 46;
/// Where as much of it is mapped as there is room for, where addresses have 32 bits.
const DIRECT_32: u64 = 2 << 30;
/// The least memory that this guest boots in.
pub const LEAST: u64 = 8 << 20;

/// Its first table lies here; below, nothing.
const TABLES: u64 = 1 << 20;
const LARGE: u64 = 2 << 20;
const GIBIBYTE: u64 = 1 << 30;

/// A guest's registers: all that it knows besides its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vcpu {
    /// The root tables of its two address spaces.
    pub roots: [u64; 2],
    /// The level-0 tables of their windows, in one piece each.
    pub tables: [u64; 2],
    /// Pages of a window; 0 where no kernel runs.
    pub pages: u64,
    /// Which address space is loaded.
    pub active: u8,
    /// Its source of arbitrary numbers.
    pub random: u64,
    /// Steps that it has run.
    pub steps: u64,
}

impl Vcpu {
    /// What the root register holds.
    pub fn root(&self) -> u64 {
        self.roots[usize::from(self.active & 1)]
    }

    /// The registers as they are saved and sent.
    pub(super) fn words(&self) -> [u64; 8] {
        let [root0, root1] = self.roots;
        let [table0, table1] = self.tables;
        let active = u64::from(self.active);
        [root0, root1, table0, table1, self.pages, active, self.random, self.steps]
    }

    /// The registers that were saved.
    pub(super) fn from_words(words: [u64; 8]) -> Vcpu {
        let [root0, root1, table0, table1, pages, active, random, steps] = words;
        Vcpu {
            roots: [root0, root1],
            tables: [table0, table1],
            pages,
            active: (active & 1) as u8,
            random,
            steps,
        }
    }

    /// xorshift64*: enough to spread accesses.
    fn next(&mut self) -> u64 {
        let mut x = self.random | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl Stage1 {
    /// Where the guest maps its memory as it lies, the tables among it.
    pub(super) fn direct(&self) -> u64 {
        if self.architecture() == Architecture::Arm32 { DIRECT_32 } else { DIRECT }
    }
}

impl Partition {
    /// Where the memory begins that its guest has no use for.
    pub(super) fn pages_in_use(&self) -> u64 {
        let Vcpu { tables, pages, .. } = self.vcpu;
        tables[1] + (pages / 512 + 2 * pages) * PAGE
    }
}

/// Loads the kernel: its tables, in its memory. It has at least [`LEAST`] bytes from 0 on.
pub(super) fn boot(partition: &mut Partition, memory: &mut SystemMemory, seed: u64) {
    let stage1 = partition.stage1;
    let bytes = partition.ranges.first().map_or(0, |(_, bytes)| *bytes);
    // Half of what the tables leave, a whole number of level-0 tables, for each window.
    let pages = ((bytes - 2 * LARGE) / PAGE / 2 / 512 * 512).clamp(512, 8 * 512);
    let mut next = TABLES;
    let mut take = |count: u64| {
        let at = next;
        next += count * PAGE;
        at
    };
    // Tables of a gibibyte each hang from a table below the root, in AArch32 state from the root.
    let four_levels = stage1.top() == 3;
    let above = u64::from(four_levels);
    let at = stage1.direct();
    let mapped = if four_levels { bytes } else { bytes.min((1 << 32) - at) };
    let gibibytes = mapped.div_ceil(GIBIBYTE);
    let direct = take(above);
    let direct_tables = take(gibibytes);
    let roots = [take(1), take(1)];
    let windows = [take(above), take(above)];
    let middles = [take(1), take(1)];
    let tables = [take(pages / 512), take(pages / 512)];
    let data = next.next_multiple_of(PAGE);
    let mut put = |gpa: u64, entry: u64| partition.poke(memory, gpa, entry);
    let entry = |table: u64, gva: u64, shift: u32| table + (gva >> shift & 0x1ff) * 8;
    for gpa in (0..mapped / LARGE).map(|large| large * LARGE) {
        let table = direct_tables + gpa / GIBIBYTE * PAGE;
        put(entry(table, gpa, 21), stage1.page(gpa, 1));
    }
    for space in 0..2usize {
        let root = roots[space];
        let [of_direct, of_window] = if four_levels {
            put(entry(root, at, 39), stage1.table(direct, 3));
            put(entry(root, WINDOW, 39), stage1.table(windows[space], 3));
            [direct, windows[space]]
        } else {
            [root; 2]
        };
        for gib in 0..gibibytes {
            let table = stage1.table(direct_tables + gib * PAGE, 2);
            put(entry(of_direct, at + gib * GIBIBYTE, 30), table);
        }
        put(entry(of_window, WINDOW, 30), stage1.table(middles[space], 2));
        for table in 0..pages / 512 {
            put(middles[space] + table * 8, stage1.table(tables[space] + table * PAGE, 1));
        }
        for page in 0..pages {
            // Neighbours in the window are not neighbours in memory: 7919 is prime.
            let frame = page * 7919 % pages + space as u64 * pages;
            put(tables[space] + page * 8, stage1.page(data + frame * PAGE, 0));
        }
    }
    partition.vcpu = Vcpu { roots, tables, pages, active: 0, random: seed | 1, steps: 0 };
}

/// Runs the kernel for so many steps.
///
/// # Errors
/// Where an access met no memory: the guest cannot go on.
pub(super) fn run(
    partition: &mut Partition,
    memory: &mut SystemMemory,
    steps: u64,
) -> Result<(), Trap> {
    for _ in 0..steps {
        step(partition, memory)?;
    }
    Ok(())
}

fn step(partition: &mut Partition, memory: &mut SystemMemory) -> Result<(), Trap> {
    let pages = partition.vcpu.pages;
    if pages == 0 {
        return Ok(());
    }
    let random = partition.vcpu.next();
    let number = partition.vcpu.steps;
    // Seven accesses of eight go to an eighth of the pages.
    let spread = if random & 7 == 0 { pages } else { pages.div_ceil(8) };
    let page = (random >> 8) % spread;
    let gva = WINDOW + page * PAGE + (random >> 52 & 0x1ff) * 8;
    let value = partition.load(memory, gva)?;
    let value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ random ^ number;
    partition.store(memory, gva, value)?;
    if number % 64 == 63 {
        exchange(partition, memory, (random >> 20) % pages, (random >> 36) % pages)?;
    }
    if number % 1024 == 1023 {
        let other = 1 - (partition.vcpu.active & 1);
        partition.load_root(memory, other);
    }
    partition.vcpu.steps = number + 1;
    Ok(())
}

/// Exchanges two pages of the window: their entries are taken away, invalidated, and written anew
/// (break-before-make, which Arm needs and x86 does not mind).
fn exchange(
    partition: &mut Partition,
    memory: &mut SystemMemory,
    one: u64,
    other: u64,
) -> Result<(), Trap> {
    if one == other {
        return Ok(());
    }
    let table = partition.vcpu.tables[usize::from(partition.vcpu.active & 1)];
    let direct = partition.stage1.direct();
    let entry = |page: u64| direct + table + page * 8;
    let was = [partition.load(memory, entry(one))?, partition.load(memory, entry(other))?];
    for page in [one, other] {
        partition.store(memory, entry(page), 0)?;
        partition.invalidate(memory, WINDOW + page * PAGE);
    }
    let stage1 = partition.stage1;
    partition.store(memory, entry(one), stage1.fresh(was[1]))?;
    partition.store(memory, entry(other), stage1.fresh(was[0]))
}
