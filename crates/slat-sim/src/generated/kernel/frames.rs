//! The guest's physical memory: which frames are free, and how many mappings use each.

/// Pages of 2 MiB.
pub(crate) const BLOCK: u64 = 512;

/// Frames of 4 KiB, given out from the bottom in order and, for 2 MiB, from the top; what came back
/// is given out again first, as a kernel's per-processor lists do.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    bottom: u64,
    top: u64,
    free: Vec<u32>,
    free_blocks: Vec<u32>,
    users: Vec<u16>,
}

impl Frames {
    /// The frames `start..end`.
    pub(crate) fn new(start: u64, end: u64) -> Frames {
        Frames {
            bottom: start,
            top: end / BLOCK * BLOCK,
            free: Vec::new(),
            free_blocks: Vec::new(),
            users: vec![0; end as usize],
        }
    }

    /// How many frames of 4 KiB could still be taken.
    pub(crate) fn left(&self) -> u64 {
        self.top - self.bottom + self.free.len() as u64 + BLOCK * self.free_blocks.len() as u64
    }

    /// A frame with one user; `None` where memory is full.
    pub(crate) fn take(&mut self) -> Option<u64> {
        let frame = match self.free.pop() {
            Some(frame) => u64::from(frame),
            None if self.bottom < self.top => {
                self.bottom += 1;
                self.bottom - 1
            }
            None => {
                // A block is broken up.
                let block = u64::from(self.free_blocks.pop()?);
                self.free.extend((1..BLOCK).rev().map(|nth| (block + nth) as u32));
                block
            }
        };
        self.users[frame as usize] = 1;
        Some(frame)
    }

    /// An aligned block of 512 frames with one user, counted at its first.
    pub(crate) fn take_block(&mut self) -> Option<u64> {
        let block = match self.free_blocks.pop() {
            Some(block) => u64::from(block),
            None if self.top >= BLOCK && self.top - BLOCK >= self.bottom => {
                self.top -= BLOCK;
                self.top
            }
            None => return None,
        };
        self.users[block as usize] = 1;
        Some(block)
    }

    /// One more user of a frame.
    pub(crate) fn share(&mut self, frame: u64) {
        self.users[frame as usize] += 1;
    }

    /// How many use it.
    pub(crate) fn users(&self, frame: u64) -> u16 {
        self.users[frame as usize]
    }

    /// One user fewer; free if it was the last. Returns whether it was.
    pub(crate) fn give_back(&mut self, frame: u64, block: bool) -> bool {
        let users = &mut self.users[frame as usize];
        *users -= 1;
        if *users > 0 {
            return false;
        }
        if block {
            self.free_blocks.push(frame as u32);
        } else {
            self.free.push(frame as u32);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_given_out_once() {
        let mut frames = Frames::new(700, 2_048);
        let block = frames.take_block().unwrap();
        assert_eq!(block, 1_536);
        frames.give_back(block, true);
        let mut taken: Vec<u64> = std::iter::from_fn(|| frames.take()).collect();
        taken.sort_unstable();
        assert_eq!(taken, (700..2_048).collect::<Vec<_>>());
        assert_eq!((frames.left(), frames.take_block()), (0, None));
    }

    #[test]
    fn a_shared_frame_is_free_when_its_last_user_leaves() {
        let mut frames = Frames::new(0, 512);
        let frame = frames.take().unwrap();
        frames.share(frame);
        assert!(!frames.give_back(frame, false));
        assert!(frames.give_back(frame, false));
        assert_eq!(frames.take(), Some(frame));
    }
}
