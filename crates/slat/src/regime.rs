//! State that belongs to the combination of stages rather than to one of them.

pub mod arm;
pub mod riscv;
pub mod x86;

/// All such state, one part an architecture; a walk looks only at its own.
///
/// ```
/// use slat::Regime;
/// let mut regime = Regime::default();
/// regime.x86.alignment_check = true; // stac
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regime {
    /// Arm's part, of both execution states.
    pub arm: arm::State,
    /// RISC-V's part.
    pub riscv: riscv::State,
    /// x86's part.
    pub x86: x86::State,
}
