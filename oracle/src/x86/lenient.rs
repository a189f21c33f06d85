//! EPT as a model with known deviations walks it.

use std::fmt;

use slat::access::Stage1Page;
use slat::format::ept::Ept;
use slat::format::{Decoded, Format, Found, Start};
use slat::memory::EntryLayout;
use slat::memory_type::StageType;
use slat::{Access, Cause, Kind, Purpose, Regime};

/// EPT that lets pass what a model lets pass; exact where neither flag is set.
#[derive(Clone, Copy)]
pub(super) struct Lenient {
    /// The manual's EPT.
    pub(super) inner: Ept,
    /// Writes of accessed and dirty bits into guest tables are not checked.
    pub(super) unchecked_updates: bool,
    /// Bit 12 of 2 MiB and 1 GiB leaves is ignored.
    pub(super) bit_12: bool,
}

impl Format for Lenient {
    type Root = u64;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn stage(&self) -> u8 {
        self.inner.stage()
    }

    fn layout(&self) -> EntryLayout {
        self.inner.layout()
    }

    fn begin(
        &self,
        root: &u64,
        input: u64,
        access: &Access,
        regime: &Regime,
    ) -> Result<Start, (u8, Cause)> {
        self.inner.begin(root, input, access, regime)
    }

    fn shift(&self, level: u8) -> u32 {
        self.inner.shift(level)
    }

    fn index_bits(&self, level: u8) -> u32 {
        self.inner.index_bits(level)
    }

    fn decode(&self, entry: u64, level: u8) -> Decoded {
        let large = matches!(level, 1 | 2) && entry & 1 << 7 != 0;
        let ignored = if self.bit_12 && large { 1 << 12 } else { 0 };
        self.inner.decode(entry & !ignored, level)
    }

    fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
        let mut access = *access;
        if self.unchecked_updates && matches!(access.purpose, Purpose::Update { .. }) {
            access.kind = Kind::Read;
        }
        self.inner.check(found, &access, regime)
    }

    fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
        self.inner.touched(entry, level, is_leaf, access)
    }

    fn memory_type(&self, found: &Found, regime: &Regime) -> StageType {
        self.inner.memory_type(found, regime)
    }

    fn arch_level(&self, level: u8) -> i8 {
        self.inner.arch_level(level)
    }

    fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.describe(entry, level, f)
    }

    fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
        self.inner.page(found, regime)
    }
}
