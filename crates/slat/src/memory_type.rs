//! Memory types: what each stage says, and what they make together.

use core::fmt;

use crate::regime::Regime;

pub mod arm;
pub mod riscv;
pub mod x86;

/// The bits of a leaf that say its memory type, as few as fit a TLB's entry. What they mean is their
/// format's and the registers' ([`Format::type_of`](crate::format::Format::type_of)): an index into a
/// PAT or a MAIR, a type, a shareability.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct TypeBits(u16);

impl TypeBits {
    /// A stage that is off has no leaf.
    pub const OFF: TypeBits = TypeBits(1 << 15);

    /// These bits, of which the highest is not kept.
    #[inline(always)]
    pub const fn new(bits: u16) -> TypeBits {
        TypeBits(bits & !TypeBits::OFF.0)
    }

    /// The bits; `None` where the stage is off.
    #[inline(always)]
    pub const fn get(self) -> Option<u16> {
        if self.0 == TypeBits::OFF.0 { None } else { Some(self.0) }
    }
}

/// What one stage says of a page's memory type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum StageType {
    /// The stage is off, or its format says nothing.
    Unspecified,
    /// x86 stage 1: the type that the guest's (or the machine's own) PAT gives.
    Pat(x86::Type),
    /// NPT: the type that the host's PAT gives.
    HostPat(x86::Type),
    /// EPT: the leaf's own type, and whether the guest's PAT is ignored.
    Ept {
        /// Bits 5:3 of the leaf.
        memory_type: x86::Type,
        /// Bit 6 of the leaf.
        ignore_pat: bool,
    },
    /// RISC-V: the PBMT field of the leaf; `Pma` where the stage is off.
    Pbmt(riscv::Pbmt),
    /// Arm stage 1: the attributes that MAIR gives, or those of a stage that is off.
    Arm(arm::Attributes),
    /// Arm stage 2: what it does to stage 1's.
    ArmStage2(arm::Stage2),
}

/// The effective memory type of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MemoryType {
    /// Nothing said anything.
    Unspecified,
    /// An x86 type.
    X86(x86::Type),
    /// RISC-V: what overrides the physical memory attributes.
    Riscv(riscv::Pbmt),
    /// Arm attributes.
    Arm(arm::Attributes),
    /// What Arm's stage 2 does to attributes of stage 1 that are not known.
    ArmStage2(arm::Stage2),
}

/// The type that both stages make together: before MTRRs unless `regime` has them (EPT's types
/// take their place).
///
/// `stage2` is [`StageType::Unspecified`] for a native walk; `output` is the system physical
/// address, for the MTRRs.
pub fn effective(stage1: StageType, stage2: StageType, output: u64, regime: &Regime) -> MemoryType {
    use StageType::{Arm, ArmStage2, Ept, HostPat, Pat, Pbmt, Unspecified};
    match (stage1, stage2) {
        (Unspecified, Unspecified) => MemoryType::Unspecified,
        (Pat(guest), Unspecified) => MemoryType::X86(x86::native(guest, output, &regime.x86)),
        (Pat(guest), Ept { memory_type, ignore_pat }) => {
            MemoryType::X86(x86::under_ept(guest, memory_type, ignore_pat, &regime.x86))
        }
        // CR0.PG = 0: the guest's type is WB (Intel SDM 3C 30.3.7.2).
        (Unspecified, Ept { memory_type, ignore_pat }) => {
            MemoryType::X86(x86::under_ept(x86::Type::Wb, memory_type, ignore_pat, &regime.x86))
        }
        (Pat(guest), HostPat(host)) => {
            MemoryType::X86(x86::under_npt(guest, host, output, &regime.x86))
        }
        (Unspecified, HostPat(host)) => {
            MemoryType::X86(x86::under_npt(x86::Type::Wb, host, output, &regime.x86))
        }
        (Pbmt(only), Unspecified) | (Unspecified, Pbmt(only)) => MemoryType::Riscv(only),
        (Pbmt(vs), Pbmt(g)) => MemoryType::Riscv(riscv::under_g_stage(vs, g)),
        (Arm(only), Unspecified) => MemoryType::Arm(only.effective()),
        (Arm(first), ArmStage2(second)) => MemoryType::Arm(second.combined_with(first)),
        (Unspecified, ArmStage2(second)) => MemoryType::ArmStage2(second),
        // A second stage's entry as a first stage, or two architectures: no rule combines them.
        _ => MemoryType::Unspecified,
    }
}

impl fmt::Display for StageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StageType::Unspecified => f.write_str("unspecified"),
            StageType::Pat(memory_type) | StageType::HostPat(memory_type) => memory_type.fmt(f),
            StageType::Ept { memory_type, ignore_pat } => {
                write!(f, "{memory_type}{}", if *ignore_pat { " (PAT ignored)" } else { "" })
            }
            StageType::Pbmt(pbmt) => pbmt.fmt(f),
            StageType::Arm(attributes) => attributes.fmt(f),
            StageType::ArmStage2(stage2) => stage2.fmt(f),
        }
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryType::Unspecified => f.write_str("unspecified"),
            MemoryType::X86(memory_type) => memory_type.fmt(f),
            MemoryType::Riscv(pbmt) => pbmt.fmt(f),
            MemoryType::Arm(attributes) => attributes.fmt(f),
            MemoryType::ArmStage2(stage2) => stage2.fmt(f),
        }
    }
}
