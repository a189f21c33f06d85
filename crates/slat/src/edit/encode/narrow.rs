//! Formats of 32-bit entries whose types have 64-bit modes as well: the integer that an entry is must
//! be known when code is compiled.

use core::fmt;

use super::{Change, Effect, Encode, Refused, wrapped};
use crate::access::{Access, Kind, Stage1Page};
use crate::fault::Cause;
use crate::format::npt::Npt;
use crate::format::riscv::{Features, Scheme, Sv};
use crate::format::{Decoded, Format, Found, Path, Start};
use crate::memory::{EntryLayout, EntrySize};
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::translate::Permissions;

/// RISC-V's Sv32 and Sv32x4, to be edited: two levels, pages of 4 KiB and 4 MiB, 34-bit output
/// addresses (privileged architecture, "Sv32", and "Two-Stage Address Translation" for x4, whose root is
/// 16 KiB long).
///
/// ```
/// use slat::edit::{Leaves, riscv::{Attributes, Sv32}};
/// use slat::format::riscv::{Features, Scheme, Sv};
///
/// let format = Sv32::new(Sv::stage2(Scheme::Sv32, Features::default())).unwrap();
/// let all = slat::Permissions { read: true, write: true, execute: true };
/// assert_eq!(Leaves::new(&format, &Attributes::new(all)).unwrap().largest(), 1);
/// assert!(Sv32::new(Sv::stage1(Scheme::Sv39, Features::default())).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sv32(Sv);

impl Sv32 {
    /// `format` where its scheme is [`Scheme::Sv32`]. Its entries have no room for memory types, NAPOT
    /// ranges and bits 60:59, whatever is enabled.
    pub fn new(format: Sv) -> Option<Sv32> {
        let features = Features {
            napot: false,
            memory_types: false,
            software_bits: false,
            ..*format.features()
        };
        (format.scheme() == Scheme::Sv32).then(|| {
            Sv32(match format.stage() {
                2 => Sv::stage2(Scheme::Sv32, features),
                _ => Sv::stage1(Scheme::Sv32, features),
            })
        })
    }
}

/// Nested tables of a host with 32-bit paging, to be edited (AMD APM 2 15.25, 5.2): pages of 4 KiB and
/// 4 MiB.
///
/// ```
/// use slat::edit::x86::Npt32;
/// use slat::format::{npt::Npt, x86::long::Processor};
///
/// assert!(Npt32::new(Npt::legacy(true, 40)).is_some());
/// assert!(Npt32::new(Npt::four(true, Processor::default())).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Npt32(Npt);

impl Npt32 {
    /// `format` where its host has 32-bit paging.
    pub fn new(format: Npt) -> Option<Npt32> {
        (format.layout().size == EntrySize::Four).then_some(Npt32(format))
    }
}

macro_rules! narrow {
    ($name:ident, $inner:ty) => {
        impl Format for $name {
            type Root = u64;

            wrapped::format!($inner);

            fn begin(
                &self,
                root: &u64,
                input: u64,
                access: &Access,
                regime: &Regime,
            ) -> Result<Start, (u8, Cause)> {
                self.0.begin(root, input, access, regime)
            }
        }
    };
}

narrow!(Sv32, Sv);
narrow!(Npt32, Npt);

impl Encode for Sv32 {
    type Word = u32;

    wrapped::encode!(Sv);

    fn root(&self, table: u64) -> u64 {
        table
    }

    fn top(&self) -> u8 {
        self.0.top()
    }

    fn input_bits(&self) -> u32 {
        Encode::input_bits(&self.0)
    }

    fn place(&self, base: u64, level: u8) -> u64 {
        self.0.place(base, level)
    }

    fn stride(&self, level: u8) -> Option<u64> {
        self.0.stride(level)
    }

    fn demote(&self, entry: u64, level: u8) -> u64 {
        self.0.demote(entry, level)
    }
}

/// Addresses lie in large pages as PSE-36 has them.
impl Encode for Npt32 {
    type Word = u32;

    wrapped::encode!(Npt);

    fn root(&self, table: u64) -> u64 {
        table
    }

    fn place(&self, base: u64, level: u8) -> u64 {
        self.0.in_legacy_mode().map_or(base, |legacy| legacy.place(base, level))
    }

    fn stride(&self, level: u8) -> Option<u64> {
        self.0.in_legacy_mode()?.stride(level)
    }

    fn demote(&self, entry: u64, level: u8) -> u64 {
        self.0.in_legacy_mode().map_or(entry, |legacy| legacy.demote(entry, level))
    }
}
