//! Random numbers that are the same everywhere for the same seed.

/// What FNV-1a begins with (Fowler, Noll and Vo).
pub(crate) const BASIS: u64 = 0xCBF2_9CE4_8422_2325;

/// FNV-1a's step, over a value of any width.
pub(crate) fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x0000_0100_0000_01B3)
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The seed of one sequence out of several that share a seed: neither another name nor another seed,
    /// however near, gives a sequence that has anything in common with it.
    #[must_use]
    pub fn derive(seed: u64, names: &[&str]) -> u64 {
        let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
        let hash = |hash, byte| mix(hash, u64::from(byte));
        let hash = seed.to_le_bytes().into_iter().chain(bytes).fold(BASIS, hash);
        Random::new(hash).bits()
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    ///
    /// # Panics
    /// Where there are none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first questions of neighbouring seeds, and of several sequences under one seed, are all different.
    #[test]
    fn sequences_share_nothing() {
        let mut firsts = std::collections::HashSet::new();
        for seed in 0..50 {
            for name in ["a", "b", "ab"] {
                let start = Random::derive(seed, &[name, "c"]);
                assert_eq!(start, Random::derive(seed, &[name, "c"]));
                for made in 0..50 {
                    assert!(firsts.insert(Random::new(start.wrapping_add(made)).bits()));
                }
            }
        }
        assert_ne!(Random::derive(1, &["ab", "c"]), Random::derive(1, &["a", "bc"]));
    }
}
