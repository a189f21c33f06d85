//! RISC-V: `SUM` and both `MXR` bits.

/// The RISC-V part of [`crate::Regime`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `SUM` of the status register that governs stage 1: `sstatus` without virtualization,
    /// `vsstatus` with it (the HS-level bit is then ignored).
    pub sum: bool,
    /// `sstatus.MXR`, the HS-level bit: execute-only pages are readable in both stages.
    pub mxr: bool,
    /// `vsstatus.MXR`: execute-only pages are readable in VS-stage alone. Clear without
    /// virtualization.
    pub vsmxr: bool,
}
