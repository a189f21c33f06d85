//! A digest of what a guest has: its registers and every byte of its memory.

use std::fmt;

use super::guest::Vcpu;
use super::partition::Partition;
use super::spa::{Frame, PAGE, SystemMemory};

/// 128 bits that differ where the content does. It finds errors; it is no defence against somebody
/// who makes two contents with one digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Digest(pub u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Digest {
    /// Reads what `Display` wrote.
    pub(super) fn parse(text: &str) -> Option<Digest> {
        u128::from_str_radix(text, 16).ok().map(Digest)
    }
}

/// Two lanes of multiply and rotate.
struct State([u64; 2]);

impl State {
    fn word(&mut self, word: u64) {
        let [a, b] = &mut self.0;
        *a = (*a ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        *b = b.wrapping_add(word ^ *a).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(41);
    }

    fn page(&mut self, gpa: u64, frame: &Frame) {
        self.word(gpa);
        for word in frame {
            self.word(*word);
        }
    }
}

impl Partition {
    /// The digest of its registers and memory. Pages of zeros count as absent, so that it does not
    /// matter whether an overcommitted page was ever touched.
    pub fn digest(&self, memory: &SystemMemory) -> Digest {
        let mut state = State([0x736c_6174, 0x686f_7374]);
        for word in Vcpu::words(&self.vcpu) {
            state.word(word);
        }
        for (start, bytes) in &self.ranges {
            state.word(*start);
            state.word(*bytes);
        }
        for gpa in self.pages() {
            if let Some((spa, _)) = self.locate(gpa)
                && let Some(frame) = memory.frame(spa)
                && frame.iter().any(|word| *word != 0)
            {
                state.page(gpa, frame);
            }
        }
        Digest(u128::from(state.0[0]) << 64 | u128::from(state.0[1]))
    }

    /// A digest of [`Partition::translations`].
    pub fn translations_digest(&self, memory: &SystemMemory) -> u64 {
        let mut state = State([0x0067_7661, 0x0067_7061]);
        for (space, gva, gpa) in self.translations(memory) {
            state.word(gva | u64::from(space));
            state.word(gpa);
        }
        state.0[0] ^ state.0[1]
    }

    /// The guest's own translations, of both address spaces: (space, virtual, guest-physical) of
    /// every page that its windows map.
    pub fn translations(&self, memory: &SystemMemory) -> Vec<(u8, u64, u64)> {
        let mut found = Vec::new();
        // What claims more than memory could map is no guest of ours.
        if self.vcpu.pages > 1 << 16 {
            return found;
        }
        for space in 0..2u8 {
            let root = self.vcpu.roots[usize::from(space)];
            for page in 0..self.vcpu.pages {
                let gva = super::WINDOW + page * PAGE;
                if let Some(gpa) = self.look(memory, root, gva) {
                    found.push((space, gva, gpa));
                }
            }
        }
        found
    }
}
