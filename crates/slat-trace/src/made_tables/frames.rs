//! Where made tables and pages lie in the guest's physical memory.

/// 4 KiB frames in a block, and blocks that are open at a time when memory is fragmented.
const BLOCK: u64 = 512;
const OPEN: usize = 64;

/// A block of 2 MiB that 4 KiB frames are taken from.
#[derive(Clone, Copy, Debug)]
struct Block {
    next: u64,
    end: u64,
}

/// Hands out frames: in order, or with a given share of disorder.
#[derive(Debug)]
pub(super) struct Frames {
    /// First frame of the next untouched block, and the end of memory.
    next: u64,
    end: u64,
    open: Vec<Block>,
    /// Percent, 0 to 100.
    fragmentation: u8,
    random: SplitMix,
}

impl Frames {
    /// Memory from frame `start` to before `end`, both multiples of a block.
    pub(super) fn new(start: u64, end: u64, fragmentation: u8, seed: u64) -> Self {
        Frames { next: start, end, open: Vec::new(), fragmentation, random: SplitMix(seed) }
    }

    /// How many blocks memory must have for so many blocks and frames to be taken in any order.
    pub(super) fn blocks_for(huge: u64, small: u64, fragmentation: u8) -> u64 {
        huge + small.div_ceil(BLOCK) + if fragmentation > 0 { OPEN as u64 } else { 1 }
    }

    /// A frame; none when memory is used up.
    pub(super) fn small(&mut self) -> Option<u64> {
        let most = if self.fragmentation > 0 { OPEN } else { 1 };
        while self.open.len() < most
            && let Some(next) = self.block()
        {
            self.open.push(Block { next, end: next + BLOCK });
        }
        let scattered = self.unlucky();
        let which = if scattered { self.random.below(self.open.len() as u64) as usize } else { 0 };
        let block = self.open.get_mut(which)?;
        let frame = block.next;
        block.next += 1;
        if block.next == block.end {
            self.open.remove(which);
        }
        Some(frame)
    }

    /// The first frame of a 2 MiB block; none when there is none, by fragmentation or at the end.
    pub(super) fn huge(&mut self) -> Option<u64> {
        if self.unlucky() { None } else { self.block() }
    }

    fn block(&mut self) -> Option<u64> {
        let block = self.next;
        let after = block.checked_add(BLOCK).filter(|&after| after <= self.end)?;
        self.next = after;
        Some(block)
    }

    fn unlucky(&mut self) -> bool {
        self.fragmentation > 0 && self.random.below(100) < u64::from(self.fragmentation)
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    /// A number below `bound`, 0 for a bound of 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ z >> 31) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn without_fragmentation_frames_are_in_order_and_blocks_beside_them() {
        let mut frames = Frames::new(512, 512 * 4, 0, 1);
        assert_eq!(
            (frames.small(), frames.huge(), frames.small()),
            (Some(512), Some(1024), Some(513))
        );
        assert_eq!((frames.huge(), frames.huge()), (Some(1536), None));
        assert_eq!((0..600).filter_map(|_| frames.small()).count(), 510);
    }

    #[test]
    fn every_frame_is_handed_out_once_under_any_fragmentation() {
        for fragmentation in [0, 1, 50, 100] {
            let mut frames = Frames::new(0, 512 * 100, fragmentation, 7);
            let mut seen = HashSet::new();
            let mut huge = 0;
            for i in 0.. {
                if i % 1000 == 0
                    && let Some(block) = frames.huge()
                {
                    huge += 1;
                    (block..block + BLOCK).for_each(|frame| assert!(seen.insert(frame)));
                }
                match frames.small() {
                    Some(frame) => assert!(seen.insert(frame)),
                    None => break,
                }
            }
            assert_eq!(seen.len(), 512 * 100);
            assert!((huge > 0) == (fragmentation < 100), "{fragmentation}: {huge}");
        }
    }

    #[test]
    fn a_seed_decides() {
        let take = |seed| {
            let mut frames = Frames::new(0, 1 << 20, 30, seed);
            (0..100).map(|_| frames.small().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }

    #[test]
    fn the_stated_number_of_blocks_is_enough() {
        for fragmentation in [0, 40] {
            let (huge, small) = (5, 2000);
            let blocks = Frames::blocks_for(huge, small, fragmentation);
            let mut frames = Frames::new(0, blocks * BLOCK, fragmentation, 3);
            for _ in 0..small {
                frames.small().unwrap();
            }
            assert_eq!((0..huge).filter_map(|_| frames.block()).count(), 5);
        }
    }
}
