//! The guest architectures.

use std::fmt;
use std::str::FromStr;

/// The architecture of a guest machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// Armv8-A and later in AArch64 state.
    Aarch64,
    /// RISC-V, 64 bits. Only QEMU is offered for it, no kernel.
    Riscv64,
}

impl Arch {
    /// The name that QEMU's system emulator ends in, for example `x86_64`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Riscv64 => "riscv64",
        }
    }

    /// The name that Debian gives the architecture, for example `amd64`.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::Riscv64 => "riscv64",
        }
    }

    /// The architecture that this program was built for, where it is one of the three.
    #[must_use]
    pub fn host() -> Option<Self> {
        std::env::consts::ARCH.parse().ok()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "x86_64" | "x86-64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            "riscv64" => Ok(Self::Riscv64),
            _ => Err(format!("unknown architecture {text:?}: x86_64, aarch64 or riscv64")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for arch in [Arch::X86_64, Arch::Aarch64, Arch::Riscv64] {
            assert_eq!(arch.name().parse(), Ok(arch));
            assert_eq!(arch.debian().parse(), Ok(arch));
        }
        assert!("sparc".parse::<Arch>().is_err());
    }
}
