//! A second stage that is off, on a machine whose memory begins at its root: what a guest physical
//! address is natively in this simulation. It reads no tables.

use std::fmt;

use slat::access::Stage1Page;
use slat::fault::{Cause, Reserved, Why};
use slat::format::{Decoded, Format, Found, Start};
use slat::memory_type::{StageType, TypeBits};
use slat::{Access, EntryLayout, Kind, Regime};

/// GPA to its place.
#[derive(Clone, Copy, Debug)]
pub struct Shifted;

impl Format for Shifted {
    type Root = u64;

    fn name(&self) -> &'static str {
        "native"
    }

    fn stage(&self) -> u8 {
        2
    }

    fn layout(&self) -> EntryLayout {
        EntryLayout::LE64
    }

    #[inline]
    fn begin(&self, base: &u64, input: u64, _: &Access, _: &Regime) -> Result<Start, (u8, Cause)> {
        Ok(Start::Flat { output: input.wrapping_add(*base) })
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
