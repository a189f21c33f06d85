//! From the name of a subject and what its monitor read back to the subject.

use slat::format::arm32::Version;

use crate::arm32::{self, Arm32};
use crate::arm64::{self, Arm64};
use crate::contract::Info;
use crate::probe::Subject;
use crate::riscv::Riscv;
use crate::world::Beyond;
use crate::x86::{Second, X86};

/// What a subject is, apart from what its processor says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// An x86 processor.
    X86 {
        /// The second stage.
        second: Second,
        /// Whether it follows AMD's manual.
        amd: bool,
        /// What it does where it has no RAM, which also tells the emulators apart.
        beyond: Beyond,
    },
    /// An AArch64 processor.
    Arm64 {
        /// Whether QEMU 10 or later models it.
        new: bool,
    },
    /// A 32-bit Arm processor.
    Arm32 {
        /// Whether it follows Armv8's manual.
        v8: bool,
        /// Whether QEMU 10 or later models it.
        new: bool,
    },
    /// A RISC-V hart.
    Riscv,
}

const SECONDS: [Second; 5] =
    [Second::Ept, Second::Npt4, Second::Npt5, Second::NptPae, Second::Npt32];

impl Recipe {
    /// The subject.
    #[must_use]
    pub fn subject(self, info: &Info) -> Box<dyn Subject> {
        match self {
            Recipe::X86 { second, amd, beyond } => Box::new(X86::new(info, second, amd, beyond)),
            Recipe::Arm64 { new } => {
                Box::new(Arm64 { features: arm64::Features::read(info), new, deviations: vec![] })
            }
            Recipe::Arm32 { v8, new } => {
                let version = if v8 { Version::V8 } else { Version::V7 };
                let features = arm32::Features::read(info, version);
                Box::new(Arm32 { features, new, deviations: vec![] })
            }
            Recipe::Riscv => Box::new(Riscv::read(info).unwrap_or_default()),
        }
    }

    /// A byte that stands for it in a file.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Recipe::X86 { second, amd, beyond } => {
                second as u8 | u8::from(amd) << 3 | u8::from(beyond == Beyond::Zero) << 4
            }
            Recipe::Arm64 { new } => {
                if new {
                    0x22
                } else {
                    0x20
                }
            }
            Recipe::Arm32 { v8, new } => 0x30 | u8::from(v8) | u8::from(new) << 1,
            Recipe::Riscv => 0x21,
        }
    }

    /// The recipe that a byte stands for.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Recipe> {
        match code {
            0x20 | 0x22 => Some(Recipe::Arm64 { new: code == 0x22 }),
            0x30..0x34 => Some(Recipe::Arm32 { v8: code & 1 != 0, new: code & 2 != 0 }),
            0x21 => Some(Recipe::Riscv),
            0..0x20 => Some(Recipe::X86 {
                second: *SECONDS.get(usize::from(code & 7))?,
                amd: code & 8 != 0,
                beyond: if code & 16 != 0 { Beyond::Zero } else { Beyond::Ones },
            }),
            _ => None,
        }
    }
}
