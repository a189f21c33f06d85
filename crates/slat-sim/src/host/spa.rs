//! System physical memory: its NUMA nodes, whose each part is, and what it holds.

use std::collections::BTreeMap;
use std::fmt;

use super::pool::Pool;

mod allocate;
mod content;

/// Bytes of the smallest page.
pub const PAGE: u64 = 4096;
/// The page sizes of partitions' memory, by level.
pub(super) const SHIFTS: [u32; 3] = [12, 21, 30];
/// The most memory that a simulated host has.
pub const MAX_BYTES: u64 = 16 << 30;

/// One page's content.
pub type Frame = [u64; 512];

/// Whose a part of the SPA space is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Owner {
    /// The parent partition's, which has no use for it now: what partitions get comes from here.
    Unused,
    /// The parent partition's, in use.
    Parent,
    /// The hypervisor's: tables.
    Hypervisor,
    /// The partition of this number.
    Partition(u32),
    /// Several partitions', which have the same content there.
    Shared,
    /// No memory: devices.
    Hole,
}

/// A part of the SPA space with one owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Size.
    pub bytes: u64,
    /// Whose it is.
    pub owner: Owner,
}

/// A NUMA node's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// First byte.
    pub start: u64,
    /// Size.
    pub bytes: u64,
}

/// Physical memory behind a part of a partition's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backing {
    /// First guest-physical byte.
    pub gpa: u64,
    /// Where it lies.
    pub spa: u64,
    /// Size, a multiple of the page size.
    pub bytes: u64,
    /// Level of the pages it consists of: 0 to 2.
    pub level: u8,
}

/// There is not enough unused physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotEnough {
    /// What was asked for, in bytes.
    pub wanted: u64,
    /// What is unused.
    pub unused: u64,
}

impl fmt::Display for NotEnough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of physical memory are needed and {} are unused",
            size(self.wanted),
            size(self.unused)
        )
    }
}

/// A size as people write it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

/// System physical memory.
#[derive(Debug)]
pub struct SystemMemory {
    nodes: Vec<Node>,
    /// By start; without gaps.
    extents: BTreeMap<u64, (u64, Owner)>,
    frames: Vec<Option<Box<Frame>>>,
    /// Pages that several partitions share: of how many pages each is the content.
    shares: BTreeMap<u64, u64>,
    pool: Pool,
}

impl SystemMemory {
    /// Memory of these nodes, one after the other with `holes` (start and size) left out, of which
    /// the last `pool` bytes are the hypervisor's, for tables. All sizes are multiples of 2 MiB.
    ///
    /// # Errors
    /// In words, where the sizes do not make a memory.
    pub fn new(nodes: &[u64], holes: &[(u64, u64)], pool: u64) -> Result<SystemMemory, String> {
        let total = nodes.iter().try_fold(0u64, |sum, bytes| sum.checked_add(*bytes));
        let total = total
            .filter(|total| (4 << 20..=MAX_BYTES).contains(total))
            .ok_or_else(|| format!("a host has from 4 MiB to {} of memory", size(MAX_BYTES)))?;
        let misfit = nodes.iter().chain([&pool]).any(|bytes| bytes % (2 << 20) != 0 || *bytes == 0);
        if misfit {
            return Err("memory comes in multiples of 2 MiB".to_owned());
        }
        let mut holes = holes.to_vec();
        holes.sort_unstable();
        if holes.iter().any(|(start, bytes)| (start | bytes) % PAGE != 0 || *bytes == 0) {
            return Err("a hole begins and ends at a multiple of 4 KiB".to_owned());
        }
        let ends = |(start, bytes): &(u64, u64)| start.checked_add(*bytes);
        if holes.iter().any(|hole| ends(hole).is_none_or(|end| end > 2 * MAX_BYTES)) {
            return Err(format!("a hole ends at {} at most", size(2 * MAX_BYTES)));
        }
        let mut memory = SystemMemory {
            nodes: Vec::new(),
            extents: BTreeMap::new(),
            frames: Vec::new(),
            shares: BTreeMap::new(),
            pool: Pool::new(0, 0),
        };
        let mut at = 0u64;
        let mut next_hole = holes.into_iter().peekable();
        for &bytes in nodes {
            let (start, mut left) = (at, bytes);
            while left > 0 {
                let room = match next_hole.peek() {
                    Some(&(hole, size)) if hole <= at => {
                        let end = hole + size;
                        if end > at {
                            memory.extents.insert(at, (end - at, Owner::Hole));
                            at = end;
                        }
                        next_hole.next();
                        continue;
                    }
                    Some(&(hole, _)) => left.min(hole - at),
                    None => left,
                };
                memory.extents.insert(at, (room, Owner::Unused));
                at += room;
                left -= room;
            }
            memory.nodes.push(Node { start, bytes: at - start });
        }
        memory.frames.resize_with((at / PAGE) as usize, || None);
        // The pool is the end of the last node's memory, which is not torn by a hole.
        let Some((&last, &(bytes, Owner::Unused))) = memory.extents.last_key_value() else {
            return Err("the last of the memory is a hole".to_owned());
        };
        if bytes < pool || total <= pool {
            return Err(format!(
                "the hypervisor needs {} for its tables at the end of memory, where {} are in one \
                 piece",
                size(pool),
                size(bytes)
            ));
        }
        let base = last + bytes - pool;
        memory.assign(base, pool, Owner::Hypervisor);
        memory.pool = Pool::new(base, pool);
        Ok(memory)
    }

    /// The NUMA nodes, in order. A node that a hole tears has the hole in its range.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where the hypervisor's tables lie.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Every part of the SPA space, in order, with its owner.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().map(|(&start, &(bytes, owner))| Extent { start, bytes, owner })
    }

    /// Bytes that this owner has.
    pub fn owned(&self, owner: Owner) -> u64 {
        self.extents().filter(|extent| extent.owner == owner).map(|extent| extent.bytes).sum()
    }

    /// The node in which an address lies.
    pub fn node_of(&self, spa: u64) -> Option<usize> {
        self.nodes.iter().position(|node| (node.start..node.start + node.bytes).contains(&spa))
    }

    /// Whose an address is.
    pub fn owner(&self, spa: u64) -> Option<Owner> {
        let (&start, &(bytes, owner)) = self.extents.range(..=spa).next_back()?;
        (spa < start + bytes).then_some(owner)
    }

    fn split_at(&mut self, at: u64) {
        let Some((&start, &(bytes, owner))) = self.extents.range(..at).next_back() else { return };
        if at < start + bytes {
            self.extents.insert(start, (at - start, owner));
            self.extents.insert(at, (start + bytes - at, owner));
        }
    }

    /// Gives a range to an owner.
    pub(super) fn assign(&mut self, start: u64, bytes: u64, owner: Owner) {
        self.split_at(start);
        self.split_at(start + bytes);
        let inside: Vec<u64> =
            self.extents.range(start..start + bytes).map(|(&start, _)| start).collect();
        for start in inside {
            self.extents.remove(&start);
        }
        let (mut start, mut bytes) = (start, bytes);
        if let Some((&before, &(size, of))) = self.extents.range(..start).next_back()
            && of == owner
            && before + size == start
            && self.node_of(before) == self.node_of(start)
        {
            (start, bytes) = (before, bytes + size);
        }
        if let Some(&(size, of)) = self.extents.get(&(start + bytes))
            && of == owner
            && self.node_of(start) == self.node_of(start + bytes)
        {
            self.extents.remove(&(start + bytes));
            bytes += size;
        }
        self.extents.insert(start, (bytes, owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const M: u64 = 1 << 20;

    fn whole(memory: &SystemMemory) {
        let mut at = 0;
        for extent in memory.extents() {
            assert_eq!(extent.start, at, "no gap");
            at += extent.bytes;
        }
        assert_eq!(at, memory.frames.len() as u64 * PAGE);
    }

    #[test]
    fn the_largest_pages_that_fit_are_taken() {
        let mut memory = SystemMemory::new(&[1 << 30, (1 << 30) + 64 * M], &[], 2 * M).unwrap();
        let one = Owner::Partition(1);
        let got = memory.allocate(one, &[(0, (1 << 30) + 2 * M + PAGE)], 2, 0).unwrap();
        let levels: Vec<(u8, u64)> = got.iter().map(|b| (b.level, b.bytes)).collect();
        assert_eq!(levels, [(2, 1 << 30), (1, 2 * M), (0, PAGE)]);
        assert_eq!(memory.owned(one), (1 << 30) + 2 * M + PAGE);
        whole(&memory);
    }

    #[test]
    fn nothing_changes_where_it_is_not_enough() {
        let mut memory = SystemMemory::new(&[32 * M], &[], 2 * M).unwrap();
        let before: Vec<Extent> = memory.extents().collect();
        let refused = memory.allocate(Owner::Partition(1), &[(0, 32 * M)], 1, 0).unwrap_err();
        assert_eq!(refused, NotEnough { wanted: 32 * M, unused: 30 * M });
        assert_eq!(memory.extents().collect::<Vec<_>>(), before);
    }

    #[test]
    fn memory_lies_around_holes() {
        let memory = SystemMemory::new(&[32 * M, 32 * M], &[(8 * M, 2 * M)], 2 * M).unwrap();
        assert_eq!(memory.owner(8 * M), Some(Owner::Hole));
        assert_eq!(memory.owned(Owner::Unused), 62 * M);
        assert_eq!(memory.nodes()[0].bytes, 34 * M);
        assert_eq!(memory.owner(66 * M - 1), Some(Owner::Hypervisor));
        assert_eq!(memory.owner(66 * M), None);
        whole(&memory);
    }

    proptest! {
        /// Whatever is given and taken, each byte has one owner and nobody's memory overlaps.
        #[test]
        fn owners_never_overlap(orders in prop::collection::vec((0u32..6, 1u64..3000, 0usize..2), 1..40)) {
            let mut memory = SystemMemory::new(&[16 * M, 16 * M], &[], 2 * M).unwrap();
            let mut held: BTreeMap<u32, Vec<Backing>> = BTreeMap::new();
            for (who, pages, home) in orders {
                if let Some(backings) = held.remove(&who) {
                    for backing in backings {
                        memory.release(backing.spa, backing.bytes);
                    }
                } else if let Ok(got) =
                    memory.allocate(Owner::Partition(who), &[(0, pages * PAGE)], 1, home)
                {
                    prop_assert_eq!(got.iter().map(|b| b.bytes).sum::<u64>(), pages * PAGE);
                    for backing in &got {
                        let page = 1u64 << SHIFTS[usize::from(backing.level)];
                        prop_assert_eq!((backing.gpa | backing.spa | backing.bytes) % page, 0);
                    }
                    held.insert(who, got);
                }
                let mut all: Vec<Backing> = held.values().flatten().copied().collect();
                all.sort_by_key(|backing| backing.spa);
                for pair in all.windows(2) {
                    prop_assert!(pair[0].spa + pair[0].bytes <= pair[1].spa);
                }
                for (who, backings) in &held {
                    let bytes: u64 = backings.iter().map(|b| b.bytes).sum();
                    prop_assert_eq!(memory.owned(Owner::Partition(*who)), bytes);
                }
                whole(&memory);
            }
        }
    }
}
