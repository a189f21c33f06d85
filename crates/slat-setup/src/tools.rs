//! Programs that are taken from the system, and installed into it where they are missing.

use std::path::PathBuf;

use crate::{Error, Result, apt};

/// A program of the distribution, with the package that it comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// Bochs 2.7 or later with its debugger, VMX and SVM.
    Bochs,
    /// The Netwide Assembler.
    Nasm,
    /// GNU `as` for AArch64.
    AsAarch64,
    /// GNU `as` for 32-bit Arm.
    AsArm,
    /// GNU `as` for RISC-V, 64 bits.
    AsRiscv64,
    /// GCC with a static C library for AArch64 guests.
    GccAarch64,
    /// The distribution's own QEMU for x86-64.
    QemuX86,
    /// The distribution's own QEMU for Arm, 32 and 64 bits.
    QemuArm,
    /// The distribution's own QEMU for rarer machines, RISC-V among them.
    QemuMisc,
}

impl Tool {
    /// The program's name, as found on the `PATH`.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Bochs => "bochs",
            Self::Nasm => "nasm",
            Self::AsAarch64 => "aarch64-linux-gnu-as",
            Self::AsArm => "arm-linux-gnueabi-as",
            Self::AsRiscv64 => "riscv64-linux-gnu-as",
            Self::GccAarch64 => "aarch64-linux-gnu-gcc",
            Self::QemuX86 => "qemu-system-x86_64",
            Self::QemuArm => "qemu-system-aarch64",
            Self::QemuMisc => "qemu-system-riscv64",
        }
    }

    /// The packages that bring it, by their Debian names.
    #[must_use]
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Bochs => &["bochs", "bochs-term", "bochsbios", "vgabios"],
            Self::Nasm => &["nasm"],
            Self::AsAarch64 => &["binutils-aarch64-linux-gnu"],
            Self::AsArm => &["binutils-arm-linux-gnueabi"],
            Self::AsRiscv64 => &["binutils-riscv64-linux-gnu"],
            Self::GccAarch64 => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Self::QemuX86 => &["qemu-system-x86", "seabios"],
            Self::QemuArm => &["qemu-system-arm"],
            Self::QemuMisc => &["qemu-system-misc"],
        }
    }
}

/// Where `tool` is, if the `PATH` has it.
#[must_use]
pub fn find(tool: Tool) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(tool.program())).find(|p| p.is_file())
}

/// Installs the packages of `tools` into the system with `apt-get`; needs root.
///
/// # Errors
///
/// Where `apt-get` is missing, refuses or cannot reach its archive.
pub fn install(tools: &[Tool]) -> Result<()> {
    let packages: Vec<&str> = tools.iter().flat_map(|tool| tool.packages()).copied().collect();
    if packages.is_empty() { Ok(()) } else { apt::install(&packages) }
}

/// Where `tool` is; installed first where it is missing.
///
/// # Errors
///
/// As [`install`], and where the package does not bring the program.
pub fn find_or_install(tool: Tool) -> Result<PathBuf> {
    if let Some(found) = find(tool) {
        return Ok(found);
    }
    install(&[tool])?;
    find(tool).ok_or_else(|| Error::Missing {
        what: tool.program().into(),
        root: "/".into(),
        remedy: format!("install {} and put it on the PATH", tool.program()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_every_system_is_found_and_none_is_installed_for_nothing() {
        install(&[]).unwrap();
        for tool in [Tool::Bochs, Tool::Nasm, Tool::AsArm, Tool::QemuMisc] {
            assert!(!tool.packages().is_empty());
            if let Some(path) = find(tool) {
                assert!(path.ends_with(tool.program()));
            }
        }
    }
}
