//! Arm, both execution states: MAIR, PAN, and the bits of `HCR_EL2` that bind the stages together.

/// Bits of `HCR_EL2` that this library looks at (Arm ARM D24.2).
pub mod hcr {
    /// Stage 2 is on.
    pub const VM: u64 = 1 << 0;
    /// Stage-1 tables may not lie in stage-2 device memory.
    pub const PTW: u64 = 1 << 2;
    /// Default cacheable: stage 1 is off and its memory cacheable, stage 2 is on.
    pub const DC: u64 = 1 << 12;
    /// EL0's exceptions go to EL2.
    pub const TGE: u64 = 1 << 27;
    /// Stage 2 makes data accesses non-cacheable.
    pub const CD: u64 = 1 << 32;
    /// Stage 2 makes instruction fetches non-cacheable.
    pub const ID: u64 = 1 << 33;
    /// EL2 hosts EL0: the EL2&0 regime.
    pub const E2H: u64 = 1 << 34;
    /// Nested virtualization changes EL1&0's permissions.
    pub const NV1: u64 = 1 << 43;
    /// Register accesses of a guest hypervisor go to memory, and their aborts are marked `VNCR`.
    pub const NV2: u64 = 1 << 45;
    /// Stage 2 forces memory attributes (FEAT_S2FWB).
    pub const FWB: u64 = 1 << 46;
    /// The memory that `DC` makes cacheable is tagged (FEAT_MTE2).
    pub const DCT: u64 = 1 << 57;
}

/// The Arm part of [`crate::Regime`].
///
/// ```
/// use slat::regime::arm::{State, hcr};
/// let state = State::new(0xff, hcr::VM | hcr::FWB);
/// assert!(state.force_write_back && !state.default_cacheable);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `MAIR_ELx` of stage 1's regime: eight attribute bytes (AArch32: `MAIR1:MAIR0`). Without it
    /// stage 1's attributes are not specified.
    pub mair: Option<u64>,
    /// `PSTATE.PAN` (FEAT_PAN): privileged data accesses to user pages fault.
    pub pan: bool,
    /// `HCR_EL2.DC`: where stage 1 is off, its memory is cacheable.
    pub default_cacheable: bool,
    /// `HCR_EL2.DCT`: and tagged.
    pub default_tagged: bool,
    /// `HCR_EL2.CD`: stage 2 makes data accesses non-cacheable.
    pub data_uncacheable: bool,
    /// `HCR_EL2.ID`: stage 2 makes instruction fetches non-cacheable.
    pub instructions_uncacheable: bool,
    /// `HCR_EL2.FWB`: how stage 2's `MemAttr` is read.
    pub force_write_back: bool,
    /// `HCR_EL2.PTW`: a stage-1 table in stage-2 device memory is a permission fault.
    pub protect_table_walks: bool,
}

impl State {
    /// The state that these registers make under a hypervisor in AArch64 state, `PSTATE.PAN` clear.
    /// `hcr` is `HCR_EL2`.
    pub const fn new(mair: u64, hcr: u64) -> State {
        State {
            mair: Some(mair),
            pan: false,
            default_cacheable: hcr & hcr::DC != 0,
            default_tagged: hcr & hcr::DCT != 0,
            data_uncacheable: hcr & hcr::CD != 0,
            instructions_uncacheable: hcr & hcr::ID != 0,
            force_write_back: hcr & hcr::FWB != 0,
            // Behaves as 0 while EL0's exceptions go to EL2.
            protect_table_walks: hcr & hcr::PTW != 0 && hcr & hcr::TGE == 0,
        }
    }

    /// The same under a hypervisor in AArch32 state. `hcr` is `HCR2:HCR`, which has no `FWB` and no
    /// `DCT` (Arm ARM G8.2).
    pub const fn under_hyp(mair: u64, hcr: u64) -> State {
        State::new(mair, hcr & !(hcr::FWB | hcr::DCT))
    }
}
