//! The one source of machine state that every verdict is drawn from.

use std::fmt;

/// A machine that can be asked about itself: [this one](crate::ThisMachine), or
/// [one that was recorded](crate::Recorded).
///
/// Everything is text, in the form in which Linux, `cpuid -r` or the tools of the system print it, so
/// that a machine's whole state fits one file that a person can read.
pub trait Machine {
    /// The operating system and the processor's instruction set.
    fn system(&self) -> System;

    /// Reads one source.
    ///
    /// # Errors
    /// [`Unread`], with the reason.
    fn read(&self, source: Source<'_>) -> Result<String, Unread>;
}

/// One place where a machine says something about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// A file by its absolute path.
    File(&'a str),
    /// The names in `/sys/module` that belong to hypervisors, one a line.
    Modules,
    /// CPUID as `cpuid -r` prints it, for one processor (x86 only).
    Cpuid,
    /// The lines of the kernel log that speak of virtualization.
    KernelLog,
    /// What `/dev/kvm` answers: `api N`, `create-vm yes`, `cap NUMBER VALUE`, `msr INDEX VALUE`.
    Kvm,
    /// A model-specific register by its index, as one hexadecimal number (x86, root only).
    Msr(u32),
    /// A value of `sysctl -n` by its name (macOS).
    Sysctl(&'a str),
    /// `feature NUMBER yes|no` for `IsProcessorFeaturePresent` (Windows).
    ProcessorFeatures,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "{path}"),
            Source::Modules => write!(f, "/sys/module"),
            Source::Cpuid => write!(f, "CPUID"),
            Source::KernelLog => write!(f, "the kernel log"),
            Source::Kvm => write!(f, "/dev/kvm"),
            Source::Msr(index) => write!(f, "MSR {index:#x}"),
            Source::Sysctl(name) => write!(f, "sysctl {name}"),
            Source::ProcessorFeatures => write!(f, "IsProcessorFeaturePresent"),
        }
    }
}

/// Why a source said nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It does not exist on this machine.
    #[error("does not exist")]
    Absent,
    /// It exists, but this user may not read it.
    #[error("permission denied")]
    Denied,
    /// Reading it failed otherwise.
    #[error("{0}")]
    Failed(String),
}

/// The operating system and instruction set of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct System {
    /// The operating system.
    pub os: Os,
    /// The instruction set.
    pub arch: Arch,
}

/// An operating system that `check` tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    /// Linux, Android included.
    Linux,
    /// Windows.
    Windows,
    /// macOS.
    Macos,
    /// Anything else.
    Other,
}

/// An instruction set that `check` tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86, 32 and 64 bits.
    X86,
    /// Arm, 32 and 64 bits.
    Arm,
    /// RISC-V.
    Riscv,
    /// Anything else.
    Other,
}

impl System {
    /// The system that this program was built for.
    pub fn built_for() -> System {
        let os = match std::env::consts::OS {
            "linux" | "android" => Os::Linux,
            "windows" => Os::Windows,
            "macos" => Os::Macos,
            _ => Os::Other,
        };
        let arch = match std::env::consts::ARCH {
            "x86" | "x86_64" => Arch::X86,
            "arm" | "aarch64" => Arch::Arm,
            "riscv32" | "riscv64" => Arch::Riscv,
            _ => Arch::Other,
        };
        System { os, arch }
    }

    /// Reads the two words that [`System`] prints as.
    pub(crate) fn parse(text: &str) -> Option<System> {
        let mut words = text.split_ascii_whitespace();
        let os = match words.next()? {
            "linux" => Os::Linux,
            "windows" => Os::Windows,
            "macos" => Os::Macos,
            "other" => Os::Other,
            _ => return None,
        };
        let arch = match words.next()? {
            "x86" => Arch::X86,
            "arm" => Arch::Arm,
            "riscv" => Arch::Riscv,
            "other" => Arch::Other,
            _ => return None,
        };
        words.next().is_none().then_some(System { os, arch })
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let os = match self.os {
            Os::Linux => "linux",
            Os::Windows => "windows",
            Os::Macos => "macos",
            Os::Other => "other",
        };
        let arch = match self.arch {
            Arch::X86 => "x86",
            Arch::Arm => "arm",
            Arch::Riscv => "riscv",
            Arch::Other => "other",
        };
        write!(f, "{os} {arch}")
    }
}
