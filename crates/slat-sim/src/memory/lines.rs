//! Three levels of data caches, lines of 64 bytes, that data and table entries pass through alike.

use slat_mmu::array::{Array, BadGeometry, Geometry};

use self::queues::Queues;

use crate::preset::{CacheSize, Caches};

mod queues;

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

/// What the first level's filter knows of some lines of a page, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Those that it does not know.
    pub missing: u64,
    /// Those that it knows, and that were not touched since they last came up for eviction.
    pub untouched: u64,
}

/// No line: lines are below 2^58.
const NONE: u64 = u64::MAX;

/// The caches.
///
/// Each has the processor's sets and ways. So that every data access of a recording can pass the first
/// level, a direct-mapped filter in front of it knows lines that it holds. A hit of the filter does not
/// make the line the set's youngest, but marks it as touched; a line that would go and was touched stays
/// once more (the clock algorithm, in place of least recently used).
///
/// The first two levels are each core's own, and what another core stored to is not taken from them: no
/// recording says when that would be. The last level is all cores'.
#[derive(Debug)]
pub(super) struct LineCaches {
    /// Lines that the first level holds, each shifted up by one; bit 0: touched since it last came up
    /// for eviction.
    filter: Vec<u64>,
    /// One less than the filter's slots.
    slots: u64,
    first: Queues,
    /// Whose the first two levels here are.
    core: u8,
    /// Those of the others, by core; one that is here has left nothing of use in its place.
    others: Vec<Own>,
    /// Lines of a page that are so far apart, or a multiple of it, may meet in a set of the first level
    /// or a slot of the filter: a power of two of at most 64.
    apart: u32,
    second: Array<()>,
    third: Array<()>,
}

/// One core's first two levels.
#[derive(Debug)]
struct Own {
    filter: Vec<u64>,
    first: Queues,
    second: Array<()>,
}

impl LineCaches {
    /// The caches of so many cores, 1 or more.
    pub(super) fn new(caches: &Caches, cores: u8) -> Result<LineCaches, BadGeometry> {
        let geometry = |size: &CacheSize| Geometry::lru(size.kib * 16, size.ways);
        let (l1, l2, l3) = (&caches.l1.value, &caches.l2.value, &caches.l3.value);
        let lines = (l1.kib as usize * 16).next_power_of_two();
        let sets = l1.kib * 16 / l1.ways.max(1);
        let apart = (lines.trailing_zeros()).min(sets.trailing_zeros()).min(6);
        let own = || {
            Ok(Own {
                filter: vec![NONE; lines],
                first: Queues::new(geometry(l1))?,
                second: Array::new(geometry(l2))?,
            })
        };
        let Own { filter, first, second } = own()?;
        let others = match cores {
            0 | 1 => Vec::new(),
            more => (0..more).map(|_| own()).collect::<Result<_, _>>()?,
        };
        Ok(LineCaches {
            filter,
            slots: lines as u64 - 1,
            first,
            core: 0,
            others,
            apart: 1 << apart,
            second,
            third: Array::new(geometry(l3))?,
        })
    }

    /// What follows is this core's.
    #[inline(always)]
    pub(super) fn on(&mut self, core: u8) {
        if core != self.core {
            self.switch(core);
        }
    }

    #[cold]
    fn switch(&mut self, core: u8) {
        for whose in [self.core, core] {
            let Some(other) = self.others.get_mut(usize::from(whose)) else { return };
            std::mem::swap(&mut self.filter, &mut other.filter);
            std::mem::swap(&mut self.first, &mut other.first);
            std::mem::swap(&mut self.second, &mut other.second);
        }
        self.core = core;
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
        (line & self.slots) as usize
    }

    /// What the filter knows of some lines of the page at `page`.
    #[inline]
    pub(super) fn look(&self, page: u64, lines: u64) -> Known {
        let first = page >> 6;
        let (mut missing, mut untouched, mut left) = (0, 0, lines);
        while left != 0 {
            let nth = left.trailing_zeros();
            left &= left - 1;
            let line = first | u64::from(nth);
            let differs = self.filter[self.slot(line)] ^ line << 1;
            missing |= u64::from(differs > 1) << nth;
            untouched |= u64::from(differs == 0) << nth;
        }
        Known { missing, untouched }
    }

    /// As [`LineCaches::access`] of each of these lines of the page, all of which the filter knows.
    pub(super) fn touch(&mut self, page: u64, lines: u64) {
        let first = page >> 6;
        let mut left = lines;
        while left != 0 {
            let slot = self.slot(first | u64::from(left.trailing_zeros()));
            left &= left - 1;
            self.filter[slot] |= 1;
        }
    }

    /// All lines of any page that may meet one of these, of any page, in a set of the first level or in
    /// the filter: to bring others in neither evicts nor ages one.
    #[inline]
    pub(super) fn beside(&self, lines: u64) -> u64 {
        (0..64 / self.apart).fold(lines, |all, nth| all | lines.rotate_left(nth * self.apart))
    }

    #[inline(never)]
    fn access_first(&mut self, line: u64) -> ServedBy {
        let slot = self.slot(line);
        self.filter[slot] = line << 1;
        if self.first.renew(line) {
            return ServedBy::L1;
        }
        let (filter, slots) = (&mut self.filter, self.slots);
        let stays = |old: u64| {
            let held = &mut filter[(old & slots) as usize];
            let touched = *held == old << 1 | 1;
            if touched {
                *held = old << 1;
            }
            touched
        };
        if let Some(gone) = self.first.push(line, stays) {
            let slot = self.slot(gone);
            if self.filter[slot] >> 1 == gone {
                self.filter[slot] = NONE;
            }
        }
        self.access_second(line)
    }

    /// A walker that asks the second level first reads a table entry. What the first level alone holds,
    /// the second fetches from there.
    pub(super) fn read_beyond_first(&mut self, address: u64) -> ServedBy {
        let line = address >> 6;
        if self.first.holds(line) {
            return ServedBy::L2;
        }
        self.access_second(line)
    }

    fn access_second(&mut self, line: u64) -> ServedBy {
        // Key 0 is no key.
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
        LineCaches::new(&skylake.caches, 1).unwrap()
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
    fn each_core_has_a_first_and_a_second_level_of_its_own() {
        let skylake = Processor::bundled("skylake-sp").unwrap();
        let mut caches = LineCaches::new(&skylake.caches, 3).unwrap();
        // Of 24 KiB each; together they are more than 32 KiB.
        let lines = |core: u8| (0..384u64).map(move |nth| u64::from(core) << 20 | nth << 6);
        for round in 0..4 {
            for core in [0u8, 2, 1] {
                caches.on(core);
                for address in lines(core) {
                    let by = caches.access(address);
                    let due = if round == 0 { ServedBy::Memory } else { ServedBy::L1 };
                    assert_eq!(by, due, "{round} {core} {address:#x}");
                }
            }
        }
        // What one core holds, another finds in the last level.
        caches.on(0);
        assert_eq!(caches.access(lines(2).next().unwrap()), ServedBy::L3);
        caches.on(2);
        assert_eq!(caches.access(lines(2).next().unwrap()), ServedBy::L1);
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
        let mut caches = LineCaches::new(&ice_lake.caches, 1).unwrap();
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

    /// Lines of several pages, all at once where none of their sets misses, beside one after another.
    #[test]
    fn lines_that_are_known_are_touched_at_once() {
        for name in ["skylake-sp", "vt-x-2005", "cortex-a15"] {
            let processor = Processor::bundled(name).unwrap();
            let new = || LineCaches::new(&processor.caches, 1).unwrap();
            let (mut whole, mut single) = (new(), new());
            let (mut state, mut at_once, mut in_order) = (1u64, 0, 0);
            for nth in 0..20_000u64 {
                // A stretch of lines, of which few are far away.
                let mut next = || {
                    state =
                        state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    state >> 33
                };
                let far = if nth % 3 == 0 { 4096 } else { 6 };
                let stretch: Vec<(u64, u64)> =
                    (0..1 + next() % 20).map(|_| ((next() % far) << 12, next() % 64)).collect();
                let missing = stretch
                    .iter()
                    .fold(0, |all, &(page, line)| all | whole.look(page, 1 << line).missing);
                let beside = whole.beside(missing);
                for &(page, line) in &stretch {
                    if beside >> line & 1 == 0 {
                        whole.touch(page, 1 << line);
                        at_once += 1;
                    }
                }
                for &(page, line) in &stretch {
                    let by = single.access(page | line << 6);
                    if beside >> line & 1 != 0 {
                        assert_eq!(whole.access(page | line << 6), by, "{name} {nth}");
                        in_order += 1;
                    } else {
                        assert_eq!(by, ServedBy::L1, "{name} {nth}");
                    }
                }
                assert_eq!(whole.filter, single.filter, "{name} {nth}");
            }
            assert!(at_once > 10_000 && in_order > 10_000, "{name}: {at_once} {in_order}");
        }
    }
}
