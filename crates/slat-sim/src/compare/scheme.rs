//! The ways to give a guest its memory.

use slat_mmu::shadow::Discipline;
use slat_trace::Arch;

use crate::transcribe::Target;

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

    /// log2 of the host's page size, where the scheme says it: shadow tables are over that of
    /// [`super::Options::shadow_page`].
    pub const fn host_shift(self) -> Option<u8> {
        match self {
            Scheme::Native | Scheme::Shadow(_) => None,
            Scheme::Ept(shift) | Scheme::Npt(shift) | Scheme::Arm(shift) | Scheme::RiscV(shift) => {
                Some(shift)
            }
        }
    }

    /// What a guest of this architecture must be rewritten into to run under the scheme; `None` where
    /// it runs as it is.
    pub fn target(self, arch: Arch) -> Option<Target> {
        match (self, arch) {
            (Scheme::Native, _) => None,
            (Scheme::Shadow(_) | Scheme::Ept(_) | Scheme::Npt(_), Arch::X86_64) => None,
            (Scheme::Shadow(_) | Scheme::Ept(_) | Scheme::Npt(_), _) => Some(Target::X86),
            (Scheme::Arm(_), Arch::Aarch64) => None,
            (Scheme::Arm(_), _) => Some(Target::Aarch64),
            (Scheme::RiscV(_), _) => Some(Target::RiscV),
        }
    }

    /// The schemes of this architecture's recordings, the host backing with these page sizes (log2);
    /// with `transcribed` also those of others that the recording can be transcribed for, over 2 MiB
    /// pages or else the largest of the sizes.
    pub fn all(arch: Arch, sizes: &[u8], transcribed: bool) -> Vec<Scheme> {
        let shadow = [Scheme::Shadow(Discipline::TrapAll), Scheme::Shadow(Discipline::OutOfSync)];
        let one = if sizes.contains(&21) { Some(21) } else { sizes.iter().max().copied() };
        let one = one.filter(|_| transcribed);
        let mut schemes = vec![Scheme::Native];
        match arch {
            Arch::X86_64 => {
                schemes.extend(shadow);
                schemes.extend(sizes.iter().map(|&shift| Scheme::Ept(shift)));
                schemes.extend(sizes.iter().map(|&shift| Scheme::Npt(shift)));
                schemes.extend(
                    one.into_iter().flat_map(|shift| [Scheme::Arm(shift), Scheme::RiscV(shift)]),
                );
            }
            Arch::Aarch64 => {
                schemes.extend(sizes.iter().map(|&shift| Scheme::Arm(shift)));
                if let Some(shift) = one {
                    schemes.extend(shadow);
                    schemes.extend([Scheme::Ept(shift), Scheme::Npt(shift), Scheme::RiscV(shift)]);
                }
            }
        }
        schemes
    }
}
