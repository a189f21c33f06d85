//! The tables of `TTBR1`.

use core::fmt;

use crate::access::{Access, Kind, Stage1Page};
use crate::edit::encode::{Change, Effect, Encode, Refused, wrapped};
use crate::fault::Cause;
use crate::format::arm32::{Lpae, Root, Short};
use crate::format::{Decoded, Format, Found, Path, Start};
use crate::memory::EntryLayout;
use crate::memory_type::{StageType, TypeBits};
use crate::regime::Regime;
use crate::translate::Permissions;

/// The upper half of the input, which `TTBR1` translates (Arm ARM G5.4.4 and G5.5.5), of a format
/// whose own tables are `TTBR0`'s. [`Tables::root`](crate::edit::Tables::root) says `TTBR1`; it goes with
/// the lower tables' `TTBR0` into the registers.
///
/// ```
/// use slat::edit::arm32::Upper;
/// use slat::format::arm32::{Processor, Registers, Short, ttbcr};
///
/// // TTBCR.N = 1: addresses from 2 GiB on are TTBR1's.
/// let registers = Registers { sctlr: 1, dacr: 1, ttbcr: 1, ..Registers::default() };
/// let format = Short::new(&registers, &Processor::default()).unwrap();
/// assert!(Upper::<Short>::new(format).is_some());
/// // Without a second half there is nothing to edit.
/// let one = Short::new(&Registers { ttbcr: 0, ..registers }, &Processor::default()).unwrap();
/// assert!(Upper::<Short>::new(one).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upper<F>(F);

/// A format of two halves.
trait Halves: Format<Root = Root> {
    fn is_upper(&self, input: u64) -> bool;
}

impl Halves for Short {
    fn is_upper(&self, input: u64) -> bool {
        let bits = u32::from(self.upper_bits());
        input >> 32 == 0 && bits > 0 && input >> (32 - bits) != 0
    }
}

impl Halves for Lpae {
    fn is_upper(&self, input: u64) -> bool {
        input >> 32 == 0 && Lpae::is_upper(self, input)
    }
}

/// The last input address there is.
const LAST: u64 = 0xffff_ffff;

#[allow(private_bounds, reason = "both formats are named below")]
impl<F: Halves> Upper<F> {
    fn start(&self, root: &Root, input: u64) -> Result<Start, (u8, Cause)> {
        self.0.begin(root, input, &Access::default(), &Regime::default())
    }

    fn level(&self) -> u8 {
        match self.start(&Root { ttbr0: 0, ttbr1: 0 }, LAST) {
            Ok(Start::Table { level, .. }) => level,
            _ => 0,
        }
    }

    fn is_there(&self) -> bool {
        self.0.is_upper(LAST)
            && matches!(self.start(&Root { ttbr0: 0, ttbr1: 0 }, LAST), Ok(Start::Table { .. }))
    }
}

macro_rules! upper {
    ($inner:ty, $word:ty, $bits:expr) => {
        impl Upper<$inner> {
            /// The upper half of `format`; `None` where `TTBCR` makes none, or the stage is off.
            pub fn new(format: $inner) -> Option<Self> {
                Some(Upper(format)).filter(Self::is_there)
            }
        }

        impl Format for Upper<$inner> {
            type Root = Root;

            wrapped::format!($inner);

            /// What `TTBR0` translates is not in these tables.
            fn begin(
                &self,
                root: &Root,
                input: u64,
                access: &Access,
                regime: &Regime,
            ) -> Result<Start, (u8, Cause)> {
                if !self.0.is_upper(input) {
                    return Err((self.level(), Cause::InputSize));
                }
                self.0.begin(root, input, access, regime)
            }
        }

        impl Encode for Upper<$inner> {
            type Word = $word;

            wrapped::encode!($inner);

            fn root(&self, table: u64) -> Root {
                Root { ttbr0: 0, ttbr1: table }
            }

            fn top(&self) -> u8 {
                self.level()
            }

            fn input_bits(&self) -> u32 {
                let bits: fn(&$inner) -> u32 = $bits;
                bits(&self.0)
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
    };
}

// Its index is of the whole address: entries of the lower half are there, and unused (G5.4.5).
upper!(Short, u32, |_| 32);
upper!(Lpae, u64, Lpae::upper_bits);
