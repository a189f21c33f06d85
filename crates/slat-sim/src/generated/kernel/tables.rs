//! The guest's page tables as its kernel keeps them: real entries of x86-64's 4-level format, in
//! frames of guest memory.

/// One table.
type Table = [u64; 512];

/// Entry bits (Intel SDM 3A 4.5).
pub(crate) mod bits {
    /// Present.
    pub(crate) const P: u64 = 1;
    /// Writable.
    pub(crate) const RW: u64 = 1 << 1;
    /// User.
    pub(crate) const US: u64 = 1 << 2;
    /// Accessed.
    pub(crate) const A: u64 = 1 << 5;
    /// Dirty.
    pub(crate) const D: u64 = 1 << 6;
    /// A page of 2 MiB, in a level-1 entry.
    pub(crate) const PS: u64 = 1 << 7;
    /// Global.
    pub(crate) const G: u64 = 1 << 8;
    /// Not executable.
    pub(crate) const XD: u64 = 1 << 63;
    /// Where the page or the next table lies.
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// The level of the root table.
pub(crate) const ROOT_LEVEL: u8 = 3;

/// Index of the entry for `va` in a table of `level`.
pub(crate) const fn index(va: u64, level: u8) -> usize {
    (va >> (12 + 9 * level) & 0x1ff) as usize
}

/// Where an entry lies: the guest-physical address of its table, and its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The table.
    pub(crate) table: u64,
    /// The entry.
    pub(crate) index: usize,
}

impl Slot {
    /// Its guest-physical address.
    pub(crate) const fn gpa(self) -> u64 {
        self.table + 8 * self.index as u64
    }
}

/// A leaf entry that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    /// Where it lies.
    pub(crate) slot: Slot,
    /// What it holds; 0 where nothing was ever mapped.
    pub(crate) entry: u64,
    /// 0, or 1 for a page of 2 MiB.
    pub(crate) level: u8,
}

/// All tables, by frame.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pages: Vec<Option<Box<Table>>>,
    /// Whether the page is reachable from a root that was loaded, so that a recorder would see it.
    tracked: Vec<bool>,
}

impl Tables {
    /// Makes an empty table of a frame.
    pub(crate) fn make(&mut self, gpa: u64) {
        let frame = (gpa >> 12) as usize;
        if self.pages.len() <= frame {
            self.pages.resize_with(frame + 1, || None);
            self.tracked.resize(frame + 1, false);
        }
        self.pages[frame] = Some(Box::new([0; 512]));
        self.tracked[frame] = false;
    }

    /// The frame is a table no longer.
    pub(crate) fn unmake(&mut self, gpa: u64) {
        let frame = (gpa >> 12) as usize;
        self.pages[frame] = None;
        self.tracked[frame] = false;
    }

    /// The table there.
    pub(crate) fn table(&self, gpa: u64) -> Option<&Table> {
        self.pages.get((gpa >> 12) as usize)?.as_deref()
    }

    /// The entry there; 0 where there is no table.
    pub(crate) fn get(&self, slot: Slot) -> u64 {
        self.table(slot.table).map_or(0, |table| table[slot.index])
    }

    /// Sets an entry of a table that exists.
    pub(crate) fn set(&mut self, slot: Slot, entry: u64) {
        if let Some(Some(table)) = self.pages.get_mut((slot.table >> 12) as usize) {
            table[slot.index] = entry;
        }
    }

    /// Whether a recorder sees the table.
    pub(crate) fn is_tracked(&self, gpa: u64) -> bool {
        self.tracked.get((gpa >> 12) as usize).copied().unwrap_or(false)
    }

    /// A recorder sees it from now on.
    pub(crate) fn track(&mut self, gpa: u64) {
        self.tracked[(gpa >> 12) as usize] = true;
    }

    /// The lowest entry for `va` that there is a table for: a leaf, or an empty entry at `level`.
    pub(crate) fn leaf(&self, root: u64, va: u64) -> Leaf {
        let mut slot = Slot { table: root, index: index(va, ROOT_LEVEL) };
        let mut level = ROOT_LEVEL;
        loop {
            let entry = self.get(slot);
            if level == 0 || entry & bits::P == 0 || entry & bits::PS != 0 {
                return Leaf { slot, entry, level };
            }
            level -= 1;
            slot = Slot { table: entry & bits::ADDRESS, index: index(va, level) };
        }
    }

    /// Sets the accessed bits on the way to a leaf, and there `leaf_bits` too: what a processor does.
    pub(crate) fn touch(&mut self, root: u64, va: u64, leaf_bits: u64) {
        let mut table = root;
        for level in (0..=ROOT_LEVEL).rev() {
            let slot = Slot { table, index: index(va, level) };
            let entry = self.get(slot);
            let is_leaf = level == 0 || entry & bits::PS != 0;
            let add = if is_leaf { bits::A | leaf_bits } else { bits::A };
            if entry & add != add {
                self.set(slot, entry | add);
            }
            if is_leaf {
                return;
            }
            table = entry & bits::ADDRESS;
        }
    }
}
