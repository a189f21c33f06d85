//! Processes and their address spaces.

/// What backs an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Zeroed memory of its own; pages of 2 MiB where `huge` and possible.
    Anonymous {
        /// Transparent huge pages.
        huge: bool,
    },
    /// A file in the page cache, from this page of it on; a store copies the page.
    File {
        /// Which.
        file: u32,
        /// The page of the file that the area begins with.
        first: u64,
    },
    /// A file (or shared memory) that all who map it store to in place.
    Shared {
        /// Which.
        file: u32,
        /// The page of the file that the area begins with.
        first: u64,
    },
}

/// A mapped area, `start..end` in bytes, both multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// The first byte.
    pub(crate) start: u64,
    /// The byte after the last.
    pub(crate) end: u64,
    /// What backs it.
    pub(crate) backing: Backing,
    /// May be stored to.
    pub(crate) writable: bool,
    /// May be fetched from.
    pub(crate) executable: bool,
}

impl Area {
    /// Pages of 4 KiB.
    pub(crate) const fn pages(&self) -> u64 {
        (self.end - self.start) >> 12
    }
}

/// A process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Its root table.
    pub(crate) root: u64,
    /// Its areas, by address.
    pub(crate) areas: Vec<Area>,
    /// Frame of its kernel stack.
    pub(crate) stack: u64,
    /// Whether it lives; a dead one's place is used again.
    pub(crate) alive: bool,
}

impl Process {
    /// The area that holds `va`.
    pub(crate) fn area(&self, va: u64) -> Option<Area> {
        let after = self.areas.partition_point(|area| area.end <= va);
        self.areas.get(after).filter(|area| area.start <= va).copied()
    }

    /// Adds an area, which meets no other.
    pub(crate) fn map(&mut self, area: Area) {
        let at = self.areas.partition_point(|other| other.end <= area.start);
        self.areas.insert(at, area);
    }

    /// Takes the part of all areas that lies in `start..end` out.
    pub(crate) fn unmap(&mut self, start: u64, end: u64) {
        let mut left = Vec::with_capacity(self.areas.len() + 1);
        for area in self.areas.drain(..) {
            if area.end <= start || area.start >= end {
                left.push(area);
                continue;
            }
            if area.start < start {
                left.push(Area { end: start, ..area });
            }
            if area.end > end {
                let skipped = (end - area.start) >> 12;
                let backing = match area.backing {
                    Backing::File { file, first } => Backing::File { file, first: first + skipped },
                    Backing::Shared { file, first } => {
                        Backing::Shared { file, first: first + skipped }
                    }
                    other @ Backing::Anonymous { .. } => other,
                };
                left.push(Area { start: end, backing, ..area });
            }
        }
        self.areas = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_cut_where_a_part_is_unmapped() {
        let backing = Backing::File { file: 1, first: 0 };
        let area = Area { start: 0x1000, end: 0x9000, backing, writable: false, executable: true };
        let mut process = Process { root: 0, areas: vec![area], stack: 0, alive: true };
        process.unmap(0x3000, 0x5000);
        assert_eq!(process.area(0x2fff).map(|area| area.end), Some(0x3000));
        assert_eq!(process.area(0x3000), None);
        let behind = process.area(0x5000).unwrap();
        assert_eq!(behind.backing, Backing::File { file: 1, first: 4 });
    }
}
