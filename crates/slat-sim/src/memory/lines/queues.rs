//! The sets of a cache level, each as a queue: the oldest line in front.

use slat_mmu::array::{BadGeometry, Geometry};

/// No line.
const NONE: u64 = u64::MAX;

/// Sets of lines in the order in which they were brought in or last renewed.
#[derive(Debug)]
pub(super) struct Queues {
    /// By set, as a ring.
    lines: Box<[u64]>,
    /// By set: which of its places is the oldest.
    fronts: Box<[u32]>,
    ways: usize,
    sets: u64,
}

impl Queues {
    pub(super) fn new(geometry: Geometry) -> Result<Queues, BadGeometry> {
        geometry.check()?;
        let sets = geometry.entries / geometry.ways;
        Ok(Queues {
            lines: vec![NONE; geometry.entries as usize].into(),
            fronts: vec![0; sets as usize].into(),
            ways: geometry.ways as usize,
            sets: u64::from(sets),
        })
    }

    #[inline(always)]
    fn set(&self, line: u64) -> usize {
        let masked = self.sets.is_power_of_two();
        (if masked { line & (self.sets - 1) } else { line % self.sets.max(1) }) as usize
    }

    /// Whether a line is there.
    pub(super) fn holds(&self, line: u64) -> bool {
        let ring = self.lines.chunks_exact(self.ways).nth(self.set(line));
        ring.is_some_and(|ring| ring.contains(&line))
    }

    /// Makes a line the youngest of its set, if it is there, and says whether it is.
    #[inline(always)]
    pub(super) fn renew(&mut self, line: u64) -> bool {
        let set = self.set(line);
        let Some(ring) = self.lines.chunks_exact_mut(self.ways).nth(set) else { return false };
        let Some(mut at) = ring.iter().position(|&held| held == line) else { return false };
        let front = self.fronts[set] as usize;
        let back = if front == 0 { self.ways - 1 } else { front - 1 };
        while at != back {
            let next = if at + 1 == self.ways { 0 } else { at + 1 };
            ring[at] = ring[next];
            at = next;
        }
        ring[back] = line;
        true
    }

    /// Brings in a line that is not there. The oldest line leaves and is returned, unless it `stays`:
    /// then it becomes the youngest, and the next is asked. When all have been asked, the oldest leaves.
    #[inline(always)]
    pub(super) fn push(&mut self, line: u64, mut stays: impl FnMut(u64) -> bool) -> Option<u64> {
        let set = self.set(line);
        let ring = self.lines.chunks_exact_mut(self.ways).nth(set)?;
        let front = &mut self.fronts[set];
        let mut moving = line;
        // Once round the set, and once more for the line that has just come.
        for asked in 0..self.ways + 2 {
            let oldest = std::mem::replace(&mut ring[*front as usize], moving);
            *front = if *front as usize + 1 == self.ways { 0 } else { *front + 1 };
            if oldest == NONE {
                return None;
            }
            if asked > self.ways || oldest != line && !stays(oldest) {
                return Some(oldest);
            }
            moving = oldest;
        }
        None
    }
}
