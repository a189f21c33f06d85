//! The ways to give a guest its memory.

use slat_mmu::shadow::Discipline;
use slat_trace::Arch;

/// A way to give a guest its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Scheme {
    /// No virtualization.
    Native,
    /// Shadow tables, under this discipline.
    Shadow(Discipline),
    /// Intel EPT, the host backing the guest with pages of this size (log2).
    Ept(u8),
    /// AMD NPT.
    Npt(u8),
    /// Arm Stage-2.
    Arm(u8),
    /// RISC-V G-stage.
    RiscV(u8),
}

impl Scheme {
    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Native => "native",
            Scheme::Shadow(Discipline::TrapAll) => "shadow-trap",
            Scheme::Shadow(Discipline::OutOfSync) => "shadow",
            Scheme::Ept(_) => "ept",
            Scheme::Npt(_) => "npt",
            Scheme::Arm(_) => "stage2",
            Scheme::RiscV(_) => "g-stage",
        }
    }

    /// log2 of the host's page size; `None` natively.
    pub const fn host_shift(self) -> Option<u8> {
        match self {
            Scheme::Native => None,
            Scheme::Shadow(_) => Some(21),
            Scheme::Ept(shift) | Scheme::Npt(shift) | Scheme::Arm(shift) | Scheme::RiscV(shift) => {
                Some(shift)
            }
        }
    }

    /// Whether a guest of this architecture must be transcribed into another one's stage-1 tables to
    /// run under the scheme.
    pub fn transcribes(self, arch: Arch) -> bool {
        match self {
            Scheme::Native => false,
            Scheme::Shadow(_) | Scheme::Ept(_) | Scheme::Npt(_) => arch != Arch::X86_64,
            Scheme::Arm(_) => arch != Arch::Aarch64,
            Scheme::RiscV(_) => true,
        }
    }

    /// The schemes of this architecture's recordings, the host backing with these page sizes (log2);
    /// with `transcribed` also those of others that the recording can be transcribed for, over 2 MiB
    /// pages or else the largest of the sizes.
    pub fn all(arch: Arch, sizes: &[u8], transcribed: bool) -> Vec<Scheme> {
        let mut schemes = vec![Scheme::Native];
        match arch {
            Arch::X86_64 => {
                schemes.push(Scheme::Shadow(Discipline::TrapAll));
                schemes.push(Scheme::Shadow(Discipline::OutOfSync));
                schemes.extend(sizes.iter().map(|&shift| Scheme::Ept(shift)));
                schemes.extend(sizes.iter().map(|&shift| Scheme::Npt(shift)));
                let one = if sizes.contains(&21) { Some(21) } else { sizes.iter().max().copied() };
                if let Some(shift) = one.filter(|_| transcribed) {
                    schemes.extend([Scheme::Arm(shift), Scheme::RiscV(shift)]);
                }
            }
            Arch::Aarch64 => schemes.extend(sizes.iter().map(|&shift| Scheme::Arm(shift))),
        }
        schemes
    }
}
