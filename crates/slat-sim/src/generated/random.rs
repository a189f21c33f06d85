//! Numbers from a seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), the same everywhere.

/// A generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The generator of this seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`, which is not 0; evenly spread but for the last 2^-32.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound <= u64::from(u32::MAX) {
            return ((self.next() >> 32) * bound) >> 32;
        }
        self.next() % bound
    }

    /// True once in `of`.
    pub(crate) fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// A number below `bound`, small ones far likelier: `bound` times a uniform number to the
    /// fourth power, so that half of all fall into the first sixteenth.
    pub(crate) fn skewed(&mut self, bound: u64) -> u64 {
        let uniform = self.next() >> 32;
        let square = (uniform * uniform) >> 32;
        let fourth = (square * square) >> 32;
        (fourth * bound) >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_a_seed_is_the_published_one() {
        // The first three of seed 1234567, as Rosetta Code and Java's SplittableRandom have them.
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn skewed_numbers_stay_below_and_lean_to_zero() {
        let mut random = Random::new(1);
        let numbers: Vec<u64> = (0..10_000).map(|_| random.skewed(1_000)).collect();
        assert!(numbers.iter().all(|&number| number < 1_000));
        let low = numbers.iter().filter(|&&number| number < 63).count();
        assert!((4_500..5_500).contains(&low), "{low}");
    }
}
