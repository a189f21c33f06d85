//! A stage that is off: the output is the input (x86 without paging, RISC-V Bare).

use core::fmt;

use super::{Decoded, Format, Found, Start};
use crate::access::{Access, Kind, Stage1Page};
use crate::fault::{Cause, Reserved, Why};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;

/// An identity stage without tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flat {
    name: &'static str,
    stage: u8,
    input_bits: u8,
}

impl Flat {
    /// x86 with `CR0.PG` clear, real mode included: linear addresses are 32 bits wide and are
    /// physical addresses (Intel SDM 3A 5.1.1).
    pub const X86_UNPAGED: Flat = Flat { name: "x86-unpaged", stage: 1, input_bits: 32 };

    /// An identity stage of this name that accepts `input_bits` (1 to 64) bits.
    pub const fn new(name: &'static str, stage: u8, input_bits: u8) -> Flat {
        Flat { name, stage, input_bits }
    }
}

impl Format for Flat {
    type Root = ();

    fn name(&self) -> &'static str {
        self.name
    }

    fn stage(&self) -> u8 {
        self.stage
    }

    fn layout(&self) -> EntryLayout {
        EntryLayout::LE64
    }

    #[inline]
    fn begin(&self, (): &(), input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        if self.input_bits < 64 && input >> self.input_bits != 0 {
            return Err((0, Cause::InputSize));
        }
        Ok(Start::Flat { output: input })
    }

    fn shift(&self, _: u8) -> u32 {
        0
    }

    fn index_bits(&self, _: u8) -> u32 {
        0
    }

    fn decode(&self, entry: u64, _: u8) -> Decoded {
        Decoded::Reserved(Reserved { why: Why::Encoding, bits: entry })
    }

    #[inline]
    fn check(&self, _: &Found, _: &Access, _: &Regime) -> Result<(), Cause> {
        Ok(())
    }

    fn touched(&self, entry: u64, _: u8, _: bool, _: &Access) -> u64 {
        entry
    }

    fn type_bits(&self, _: &Found) -> TypeBits {
        TypeBits::OFF
    }

    fn type_of(&self, _: TypeBits, _: Kind, _: &Regime) -> StageType {
        StageType::Unspecified
    }

    fn arch_level(&self, _: u8) -> i8 {
        0
    }

    fn describe(&self, _: u64, _: u8, f: &mut dyn fmt::Write) -> fmt::Result {
        f.write_str("no tables")
    }

    fn page(&self, _: &Found, _: &Regime) -> Stage1Page {
        Stage1Page::FLAT
    }
}
