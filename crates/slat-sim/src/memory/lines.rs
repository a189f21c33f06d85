//! Three levels of data caches, lines of 64 bytes, that data and table entries pass through alike.

use slat_mmu::array::{Array, BadGeometry, Geometry};

use crate::preset::{CacheSize, Caches};

/// Who served a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ServedBy {
    /// The first-level data cache.
    L1,
    /// The second level.
    L2,
    /// The last level.
    L3,
    /// Memory.
    Memory,
}

/// No line: lines are below 2^58.
const NONE: u64 = u64::MAX;

/// The caches.
///
/// Each has the processor's sets and ways. So that every data access of a recording can pass the first
/// level, a direct-mapped filter in front of it knows lines that it holds. A hit of the filter does not
/// make the line the set's youngest, but marks it as touched; a line that would go and was touched stays
/// once more (the clock algorithm, in place of least recently used).
#[derive(Debug)]
pub(super) struct LineCaches {
    /// Lines that the first level holds, each shifted up by one; bit 0: touched since it last came up
    /// for eviction.
    filter: Vec<u64>,
    first: Array<()>,
    ways: u32,
    second: Array<()>,
    third: Array<()>,
}

impl LineCaches {
    pub(super) fn new(caches: &Caches) -> Result<LineCaches, BadGeometry> {
        let geometry = |size: &CacheSize| Geometry::lru(size.kib * 16, size.ways);
        let (l1, l2, l3) = (&caches.l1.value, &caches.l2.value, &caches.l3.value);
        let lines = (l1.kib as usize * 16).next_power_of_two();
        Ok(LineCaches {
            filter: vec![NONE; lines],
            first: Array::new(geometry(l1))?,
            ways: l1.ways,
            second: Array::new(geometry(l2))?,
            third: Array::new(geometry(l3))?,
        })
    }

    #[inline(always)]
    pub(super) fn access(&mut self, address: u64) -> ServedBy {
        let line = address >> 6;
        let slot = self.slot(line);
        let held = self.filter[slot];
        if held >> 1 == line {
            if held & 1 == 0 {
                self.filter[slot] = held | 1;
            }
            return ServedBy::L1;
        }
        self.access_first(line)
    }

    #[inline(always)]
    fn slot(&self, line: u64) -> usize {
        line as usize & (self.filter.len() - 1)
    }

    #[inline(never)]
    fn access_first(&mut self, line: u64) -> ServedBy {
        // Key 0 is no key.
        let key = line + 1;
        let slot = self.slot(line);
        if self.first.find(line, [key, key]).is_some() {
            self.filter[slot] = line << 1;
            return ServedBy::L1;
        }
        self.filter[slot] = line << 1;
        let mut out = self.first.insert(line, key, ());
        // Once round the set, and one more for the line that has just come.
        for _ in 0..=self.ways {
            let Some((key, ())) = out else { break };
            let gone = key - 1;
            if gone == line {
                out = self.first.insert(gone, key, ());
                continue;
            }
            let slot = self.slot(gone);
            if self.filter[slot] == gone << 1 | 1 {
                self.filter[slot] = gone << 1;
                out = self.first.insert(gone, key, ());
                continue;
            }
            if self.filter[slot] >> 1 == gone {
                self.filter[slot] = NONE;
            }
            out = None;
        }
        if let Some((key, ())) = out {
            // All of the set was touched: the oldest goes all the same.
            let slot = self.slot(key - 1);
            if self.filter[slot] >> 1 == key - 1 {
                self.filter[slot] = NONE;
            }
        }
        self.access_second(line)
    }

    /// A walker that asks the second level first reads a table entry. What the first level alone holds,
    /// the second fetches from there.
    pub(super) fn read_beyond_first(&mut self, address: u64) -> ServedBy {
        let line = address >> 6;
        if self.first.peek(line, line + 1).is_some() {
            return ServedBy::L2;
        }
        self.access_second(line)
    }

    fn access_second(&mut self, line: u64) -> ServedBy {
        let key = line + 1;
        if self.second.find(line, [key, key]).is_some() {
            return ServedBy::L2;
        }
        self.second.insert(line, key, ());
        if self.third.find(line, [key, key]).is_some() {
            return ServedBy::L3;
        }
        self.third.insert(line, key, ());
        ServedBy::Memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset::Processor;

    fn caches() -> LineCaches {
        let skylake = Processor::bundled("skylake-sp").unwrap();
        let l1 = &skylake.caches.l1.value;
        assert_eq!((l1.kib, l1.ways), (32, 8));
        LineCaches::new(&skylake.caches).unwrap()
    }

    #[test]
    fn a_set_holds_as_many_lines_as_it_has_ways() {
        // 64 sets: lines of one set are 4 KiB apart.
        let passes = |lines: u64| -> Vec<ServedBy> {
            let mut caches = caches();
            let mut last = Vec::new();
            for _ in 0..10 {
                last = (0..lines).map(|nth| caches.access(nth << 12)).collect();
            }
            last
        };
        assert!(passes(8).iter().all(|by| *by == ServedBy::L1));
        assert!(passes(16).contains(&ServedBy::L2), "twice as many do not fit");
        // Two lines that share a slot of the filter are both held.
        let mut caches = caches();
        let apart = 512 * 64;
        (0..2).for_each(|nth| assert_eq!(caches.access(nth * apart), ServedBy::Memory));
        (0..10).for_each(|nth| assert_eq!(caches.access(nth % 2 * apart), ServedBy::L1));
    }

    #[test]
    fn a_walker_before_the_second_level_leaves_the_first_alone() {
        let mut caches = caches();
        assert_eq!(caches.read_beyond_first(0), ServedBy::Memory);
        assert_eq!(caches.read_beyond_first(0), ServedBy::L2);
        // Data finds it there, and not in the first.
        assert_eq!(caches.access(0), ServedBy::L2);
        assert_eq!(caches.access(0), ServedBy::L1);
        // What the first holds, the walker still waits for the second for, and no set grows by it.
        assert_eq!(caches.read_beyond_first(0), ServedBy::L2);
        for nth in 1..=100 {
            caches.read_beyond_first(nth << 12);
        }
        assert_eq!(caches.access(0), ServedBy::L1);
    }

    #[test]
    fn a_set_evicts_as_a_naive_clock_does() {
        // 64 sets of 12 ways; of a set, 16 lines have slots of the filter of their own.
        let ice_lake = Processor::bundled("ice-lake").unwrap();
        let l1 = &ice_lake.caches.l1.value;
        assert_eq!((l1.kib, l1.ways), (48, 12));
        let mut caches = LineCaches::new(&ice_lake.caches).unwrap();
        // Of one set, oldest first: a line, and whether it was touched.
        let mut set: Vec<(u64, bool)> = Vec::new();
        let (mut misses, mut all_touched) = (0, 0);
        let mut state = 1u64;
        for nth in 0..100_000u32 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Now and then all that are held are touched, and the next line is a new one.
            let held = set.iter().find(|(_, touched)| !touched && nth % 400 < 60);
            let line = match held {
                Some(&(line, _)) => line,
                None => 64 * (state >> 60),
            };
            let hit = caches.access(line << 6) == ServedBy::L1;
            match set.iter_mut().find(|(held, _)| *held == line) {
                Some((_, touched)) => {
                    assert!(hit, "{nth}: {line:#x} of {set:x?}");
                    *touched = true;
                }
                None => {
                    assert!(!hit, "{nth}: {line:#x} of {set:x?}");
                    misses += 1;
                    let full = set.len() == 12;
                    all_touched += u32::from(full && set.iter().all(|(_, touched)| *touched));
                    set.push((line, false));
                    // The first that was not touched since the hand last passed leaves.
                    while set.len() > 12 {
                        let (oldest, touched) = set.remove(0);
                        if touched || oldest == line {
                            set.push((oldest, false));
                        }
                    }
                }
            }
        }
        assert!(misses > 1000 && all_touched > 100, "{misses} {all_touched}");
    }

    #[test]
    fn misses_are_about_those_of_least_recently_used() {
        let mut caches = caches();
        let mut sets: Vec<Vec<u64>> = vec![Vec::new(); 64];
        let (mut misses, mut exact) = (0u32, 0u32);
        let mut state = 1u64;
        for nth in 0..400_000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Hot lines, a larger warm set, and a scan.
            let line = match state >> 61 {
                0..=4 => state >> 33 & 255,
                5 | 6 => 1024 + (state >> 33 & 511),
                _ => 4096 + nth / 4 % 100_000,
            };
            if caches.access(line << 6) != ServedBy::L1 {
                misses += 1;
            }
            let set = &mut sets[(line & 63) as usize];
            match set.iter().position(|&held| held == line) {
                Some(at) => drop(set.remove(at)),
                None => exact += 1,
            }
            set.push(line);
            if set.len() > 8 {
                set.remove(0);
            }
        }
        let ratio = f64::from(misses) / f64::from(exact);
        assert!((0.9..1.15).contains(&ratio), "{misses} beside {exact}");
    }
}
