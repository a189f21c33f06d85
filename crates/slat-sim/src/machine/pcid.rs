//! What if the guest used PCIDs? x86 guests that were recorded under an emulator have none, so that
//! each load of CR3 drops their translations. Here each root is an address space of its own, and a
//! load of CR3 keeps what is tagged with it.
//!
//! A kernel with PCIDs must drop what its stores made untrue. What it would drop is derived from the
//! stores to its tables, as Linux does it: a store to an entry that was present, in tables of an
//! address space that is not running, makes that space stale, and its next load drops it. Of the
//! space that runs the recording has the invalidations, which are kept: a load of the root that is
//! loaded already, and INVLPG.
//!
//! All that is each vCPU's own: what runs on it, its numbers, and what is stale in its TLB. A store is of
//! a space that runs on one vCPU and sleeps on another: there its next load drops it. Where the space runs on
//! the other one too, that drops it by an invalidation of its own, or, as Linux lets vCPUs do that only
//! have it loaded, not before it is loaded again.

use std::collections::{BTreeMap, BTreeSet};

const P: u64 = 1;
const PS: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Linux keeps six PCIDs a processor; a model with more would flatter it.
const AT_ONCE: usize = 6;

/// What a load of CR3 came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// The address space's number.
    pub number: u16,
    /// Its translations are kept.
    pub keeps: bool,
}

/// The address spaces of a guest.
#[derive(Clone, Debug, Default)]
pub struct Pcids {
    levels: BTreeMap<u64, u8>,
    /// The table whose entry names a table.
    parents: BTreeMap<u64, u64>,
    cores: Vec<Core>,
}

/// What one vCPU has of them.
#[derive(Clone, Debug, Default)]
struct Core {
    /// Roots that have a number, last used last.
    roots: Vec<(u64, u16)>,
    stale: BTreeSet<u64>,
    running: Option<(u64, u16)>,
    /// Another vCPU has changed tables of what runs here, and nothing was invalidated here since.
    owes: bool,
}

impl Pcids {
    /// Of a guest with so many vCPUs, before any has loaded CR3.
    pub fn new(cores: u8) -> Pcids {
        Pcids { cores: vec![Core::default(); usize::from(cores)], ..Pcids::default() }
    }

    /// The number of the address space that runs on the vCPU.
    pub fn current(&self, vcpu: u8) -> u16 {
        let running = self.cores.get(usize::from(vcpu)).and_then(|core| core.running);
        running.map_or(0, |(_, number)| number)
    }

    /// A page is a table of this level.
    pub fn table(&mut self, gpa: u64, level: u8) {
        self.levels.insert(gpa & ADDRESS, level);
    }

    /// An entry of a table is known.
    pub fn entry(&mut self, gpa: u64, value: u64) {
        let table = gpa & ADDRESS;
        let level = self.levels.get(&table).copied().unwrap_or(0);
        // The upper half of a root is the kernel's, in every space, and global.
        let kernel = level >= 3 && gpa >> 3 & 0x1ff >= 256;
        if level > 0 && value & P != 0 && value & PS == 0 && !kernel {
            self.parents.insert(value & ADDRESS, table);
        }
    }

    /// A vCPU of the guest stored `value` over `before`.
    pub fn store(&mut self, vcpu: u8, gpa: u64, before: u64, value: u64) {
        self.entry(gpa, value);
        if before & P == 0 {
            return;
        }
        let root = self.root_of(gpa & ADDRESS);
        for (of, core) in (0..).zip(&mut self.cores) {
            if core.running.is_none_or(|(running, _)| running != root) {
                core.stale.insert(root);
            } else if vcpu != of {
                core.owes = true;
            }
        }
    }

    /// The vCPU has dropped what was untrue of the address space that runs on it.
    pub fn invalidated(&mut self, vcpu: u8) {
        if let Some(core) = self.cores.get_mut(usize::from(vcpu)) {
            core.owes = false;
        }
    }

    fn root_of(&self, table: u64) -> u64 {
        let mut at = table;
        // No more levels than there are: tables may name each other in a circle.
        for _ in 0..5 {
            match self.parents.get(&at) {
                Some(&parent) => at = parent,
                None => break,
            }
        }
        at
    }

    /// A page is a table no longer; if it was an address space's root, the vCPUs on which that has a
    /// number, and the number.
    pub fn release(&mut self, gpa: u64) -> impl Iterator<Item = (u8, u16)> {
        let table = gpa & ADDRESS;
        self.levels.remove(&table);
        self.parents.remove(&table);
        (0..).zip(&mut self.cores).filter_map(move |(vcpu, core)| {
            core.stale.remove(&table);
            let nth = core.roots.iter().position(|(root, _)| *root == table)?;
            Some((vcpu, core.roots.remove(nth).1))
        })
    }

    /// The vCPU loads CR3.
    pub fn load(&mut self, vcpu: u8, value: u64) -> Loaded {
        match self.cores.get_mut(usize::from(vcpu)) {
            Some(core) => core.load(value & ADDRESS),
            None => Loaded { number: 0, keeps: false },
        }
    }
}

impl Core {
    fn load(&mut self, root: u64) -> Loaded {
        let again = self.running.is_some_and(|(running, _)| running == root);
        if let Some((left, _)) = self.running
            && std::mem::take(&mut self.owes)
            && !again
        {
            self.stale.insert(left);
        }
        let known = self.roots.iter().position(|(held, _)| *held == root);
        let (number, new) = match known {
            Some(nth) => (self.roots.remove(nth).1, false),
            // The number of the one that was used least lately, or the next.
            None if self.roots.len() >= AT_ONCE => (self.roots.remove(0).1, true),
            None => (self.free_number(), true),
        };
        self.roots.push((root, number));
        self.running = Some((root, number));
        let stale = self.stale.remove(&root);
        Loaded { number, keeps: !(again || new || stale) }
    }

    fn free_number(&self) -> u16 {
        (1..)
            .find(|number| self.roots.iter().all(|(_, used)| used != number))
            .unwrap_or_else(|| unreachable!("six of 65,535 are used"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Pcids {
        let mut pcids = Pcids::new(1);
        for (root, upper, directory, table) in
            [(0x1000, 0x2000, 0x3000, 0x4000), (0x11000, 0x12000, 0x13000, 0x14000)]
        {
            for (level, page) in [(3, root), (2, upper), (1, directory), (0, table)] {
                pcids.table(page, level);
            }
            for (page, next) in [(root, upper), (upper, directory), (directory, table)] {
                pcids.entry(page, next | 7);
            }
        }
        pcids
    }

    #[test]
    fn a_return_keeps_translations_unless_they_became_untrue() {
        let mut pcids = two();
        assert!(!pcids.load(0, 0x1000).keeps);
        assert!(!pcids.load(0, 0x11000).keeps);
        assert!(pcids.load(0, 0x1000).keeps);
        // A new mapping makes nothing untrue; a changed one of the space that sleeps does.
        pcids.store(0, 0x14008, 0, 0x5000 | 7);
        assert!(pcids.load(0, 0x11000).keeps);
        pcids.store(0, 0x4008, 0x5000 | 7, 0);
        assert!(!pcids.load(0, 0x1000).keeps);
        // A load of the root that runs is the guest's own invalidation.
        assert!(!pcids.load(0, 0x1000).keeps);
    }

    #[test]
    fn a_seventh_address_space_takes_the_oldest_ones_number() {
        let mut pcids = Pcids::new(1);
        let numbers: Vec<u16> = (1..=6).map(|nth| pcids.load(0, nth << 20).number).collect();
        let seventh = pcids.load(0, 7 << 20);
        assert_eq!((seventh.number, seventh.keeps), (numbers[0], false));
        assert!(!pcids.load(0, 1 << 20).keeps);
    }
}
