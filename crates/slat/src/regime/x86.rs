//! x86: PAT registers, cache control, protection-key registers, `AC`.

pub mod mtrr;

use mtrr::Mtrrs;

/// PAT after reset (Intel SDM 3A table 13-12, AMD APM 2 7.8.2).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// The x86 part of [`crate::Regime`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// `IA32_PAT` as the guest (or, natively, the machine) has it.
    pub pat: u64,
    /// The host's PAT, which NPT leaves index.
    pub host_pat: u64,
    /// `CR0.CD`: every access is uncacheable.
    pub cache_disabled: bool,
    /// `PKRU`: access-disable and write-disable of 16 keys of user pages.
    pub pkru: u32,
    /// `IA32_PKRS`: the same for supervisor pages.
    pub pkrs: u32,
    /// `RFLAGS.AC`: lets explicit supervisor accesses through SMAP.
    pub alignment_check: bool,
    /// The MTRRs, where they are known; effective types are before MTRRs where not. EPT's types
    /// take their place (Intel SDM 3C 30.3.7).
    pub mtrrs: Option<Mtrrs>,
}

impl Default for State {
    /// Reset values: PATs as after reset, caches on, keys 0, `AC` clear.
    fn default() -> Self {
        State {
            pat: PAT_RESET,
            host_pat: PAT_RESET,
            cache_disabled: false,
            pkru: 0,
            pkrs: 0,
            alignment_check: false,
            mtrrs: None,
        }
    }
}
