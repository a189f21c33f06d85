//! The shapes of AArch64 tables.

use super::Features;
use crate::random::Random;

/// A stage's granule and address size, as its control register has them.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// 0: 4K, 1: 16K, 2: 64K.
    pub(super) granule: usize,
    /// FEAT_LPA2's descriptors.
    pub(super) ds: bool,
    /// 52-bit addresses in 64K descriptors.
    pub(super) wide: bool,
}

impl Shape {
    pub(super) fn choose(features: &Features, random: &mut Random) -> Shape {
        let granule = loop {
            let granule = random.pick(&[0, 0, 0, 1, 1, 2, 2]);
            if features.granules[granule] {
                break granule;
            }
        };
        let ds = granule != 2 && features.processor.lpa2 && random.chance(35);
        let wide = granule == 2 && features.processor.physical_bits == 52;
        Shape { granule, ds, wide }
    }

    pub(super) fn page_shift(self) -> u32 {
        [12, 14, 16][self.granule]
    }

    pub(super) fn stride(self) -> u32 {
        self.page_shift() - 3
    }

    /// The highest level that has blocks.
    pub(super) fn largest_block(self) -> u8 {
        match self.granule {
            0 => 2 + u8::from(self.ds),
            1 => 1 + u8::from(self.ds),
            _ => 1 + u8::from(self.wide),
        }
    }

    /// An address as descriptors of this shape hold it (D8.3.1).
    pub(super) fn pack(self, address: u64) -> u64 {
        if self.ds {
            address & 0x0003_FFFF_FFFF_F000 | address >> 50 << 8 & 0x300
        } else if self.wide {
            address & 0x0000_FFFF_FFFF_0000 | address >> 48 << 12 & 0xF000
        } else {
            address & 0x0000_FFFF_FFFF_F000
        }
    }

    pub(super) fn unpack(self, entry: u64) -> u64 {
        let page = (1u64 << self.page_shift()) - 1;
        if self.ds {
            entry & 0x0003_FFFF_FFFF_F000 & !page | (entry >> 8 & 3) << 50
        } else if self.wide {
            entry & 0x0000_FFFF_FFFF_0000 | (entry >> 12 & 15) << 48
        } else {
            entry & 0x0000_FFFF_FFFF_F000 & !page
        }
    }

    /// TG0's encoding, and TG1's.
    pub(super) fn tg0(self) -> u64 {
        [0, 2, 1][self.granule]
    }

    pub(super) fn tg1(self) -> u64 {
        [2, 1, 3][self.granule]
    }
}
