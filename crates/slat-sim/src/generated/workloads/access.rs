//! Memory access alone: random updates, a dependent chase, look-ups in a tree. Nothing is mapped or
//! unmapped while they run.

use slat_trace::Kind as Does;

use super::{HEAP, Kind, STACK, TEXT, Workload, program};
use crate::generated::kernel::Kernel;
use crate::generated::parameter::{Parameter, Values, parameter};
use crate::preset::Confidence;

const SIZE: Parameter = parameter("size", 512, (1, 16_384), "MiB that are accessed");
const HUGE: Parameter = parameter("huge", 0, (0, 1), "1: transparent huge pages in the guest");

/// Random read-modify-writes.
pub(crate) const GUPS: Kind = Kind {
    name: "gups",
    about: "random updates of 8 bytes, independent of each other (HPCC RandomAccess)",
    parameters: &[SIZE, HUGE],
    density: 690,
    instructions: Confidence::Measured,
    // A few updates are in flight at a time, bounded by the reorder buffer: 16 instructions each.
    exposed: Some(0.25),
    life: None,
    build: |values, kernel| Box::new(Gups { pages: heap(values, kernel), instructions: 16 }),
};

/// A dependent chase.
pub(crate) const CHASE: Kind = Kind {
    name: "chase",
    about: "a pointer chase: each load's address is the last one's value",
    parameters: &[SIZE, HUGE],
    density: 690,
    instructions: Confidence::Measured,
    exposed: Some(1.0),
    life: None,
    build: |values, kernel| Box::new(Chase { pages: heap(values, kernel) }),
};

/// Look-ups in a tree of pages.
pub(crate) const BTREE: Kind = Kind {
    name: "btree",
    about: "look-ups of random keys in a B-tree with nodes of 4 KiB",
    parameters: &[
        SIZE,
        HUGE,
        parameter("fanout", 128, (2, 512), "children a node; 512 would be 8-byte keys alone"),
    ],
    density: 690,
    instructions: Confidence::Documented,
    // A look-up's loads depend on each other; look-ups do not.
    exposed: Some(0.75),
    life: None,
    build: |values, kernel| {
        let pages = heap(values, kernel);
        Box::new(BTree { levels: levels(pages, values.get("fanout")) })
    },
};

/// A process whose heap of `size` MiB is mapped; its pages.
fn heap(values: &Values, kernel: &mut Kernel) -> u64 {
    let pages = values.get("size") << 8;
    let areas = program(2, 16, 8, pages, values.get("huge") == 1);
    let process = kernel.spawn(&areas);
    areas.iter().for_each(|&area| kernel.populate(process, area));
    kernel.run_first(process);
    pages
}

/// Steps done at once.
const AT_ONCE: u64 = 64;

struct Gups {
    pages: u64,
    instructions: u64,
}

impl Workload for Gups {
    fn step(&mut self, kernel: &mut Kernel) {
        for _ in 0..AT_ONCE {
            kernel.access(Does::Fetch, TEXT, self.instructions);
            let va = HEAP + kernel.random.below(self.pages << 9) * 8;
            kernel.access(Does::Load, va, 0);
            kernel.access(Does::Store, va, 0);
        }
    }
}

struct Chase {
    pages: u64,
}

impl Workload for Chase {
    fn step(&mut self, kernel: &mut Kernel) {
        for _ in 0..AT_ONCE {
            // Two instructions a load, as in the recordings chase-4k and chase-2m.
            kernel.access(Does::Fetch, TEXT, 2);
            let line = kernel.random.below(self.pages * 64);
            kernel.access(Does::Load, HEAP + line * 64, 0);
        }
    }
}

/// First page and page count of each level of the tree, the root first.
fn levels(pages: u64, fanout: u64) -> Vec<(u64, u64)> {
    let mut counts = vec![1u64];
    let mut all = 1;
    loop {
        let next = counts[counts.len() - 1].saturating_mul(fanout);
        if all + next > pages {
            counts.push((pages - all).max(1));
            break;
        }
        all += next;
        counts.push(next);
    }
    let mut first = 0;
    counts
        .into_iter()
        .map(|count| {
            first += count;
            (first - count, count)
        })
        .collect()
}

struct BTree {
    levels: Vec<(u64, u64)>,
}

impl Workload for BTree {
    fn step(&mut self, kernel: &mut Kernel) {
        for _ in 0..AT_ONCE / 4 {
            let key = kernel.random.next() >> 32;
            for &(first, count) in &self.levels {
                let node = HEAP + ((first + ((key * count) >> 32)) << 12);
                // A binary search of seven steps in the node, then the call for the next.
                for step in 0..7u32 {
                    kernel.access(Does::Fetch, TEXT + 64, 8);
                    let width = 4096u64 >> (step + 1);
                    let at = width + (kernel.random.below(1 << step)) * 2 * width;
                    kernel.access(Does::Load, node + (at & 0xff8), 0);
                }
                kernel.access(Does::Store, STACK - 256, 20);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_fills_its_pages_level_by_level() {
        assert_eq!(levels(1 + 4 + 16 + 9, 4), [(0, 1), (1, 4), (5, 16), (21, 9)]);
    }
}
