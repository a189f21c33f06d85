//! ARMv7-A with the virtualization extensions, and AArch32 of Armv8: the VMSAv8-32 translation
//! systems (Arm ARM, DDI 0487, chapter G5; ARMv7-A: DDI 0406C, chapter B3).
//!
//! | level | short | manual | maps | long | manual | maps |
//! |---|---|---|---|---|---|---|
//! | 2 | | | | 39:30 | 1 | table or 1 GiB block |
//! | 1 | 31:20 | 1 | table, 1 MiB section, 16 MiB supersection | 29:21 | 2 | table or 2 MiB block |
//! | 0 | 19:12 | 2 | 4 KiB small or 64 KiB large page | 20:12 | 3 | 4 KiB page |
//!
//! [`Short`] and [`Lpae`] are the two formats of PL1&0 (EL1&0), chosen by `TTBCR.EAE`; [`Lpae`] is
//! also the format of Hyp mode's own stage 1, and [`Stage2`] of the second stage. All are made of
//! register values; what those enable and this library does not model is refused by name.
//!
//! The long format's descriptors are those of [`super::arm64`] with 40-bit addresses: the bits and
//! their decoding are that module's.

use crate::access::{Access, Flavor, Kind, Privilege};
use crate::fault::Denied;
use crate::memory_type::arm::Caches;
use crate::regime::Regime;
use crate::register::{Refusal, Refused};

mod long;
mod lpae;
pub mod short;
mod stage2;

pub use super::arm64::Root;
pub use lpae::Lpae;
pub use short::Short;
pub use stage2::Stage2;

/// Which manual: they differ in what descriptors and syndromes leave open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Version {
    /// ARMv7-A with the virtualization extensions (and so LPAE): Cortex-A7, A15, A17.
    V7,
    /// AArch32 state of Armv8 and later.
    #[default]
    V8,
}

/// What a processor can do, as far as translation depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Processor {
    /// The manual that it follows. In ARMv7, bits 47:40 of long descriptors are ignored; in Armv8
    /// they must be zero, or an address size fault results.
    pub version: Version,
    /// `SCTLR.HA` has an effect: hardware sets the access flag of short descriptors (ARMv7,
    /// `ID_MMFR2.HWAccFlg`).
    pub hardware_access_flag: bool,
    /// `TTBCR2.HPDn` and `HTCR.HPD` have an effect (FEAT_AA32HPD).
    pub hierarchical_disable: bool,
    /// Stage 2 tells PL1's and PL0's execution apart (FEAT_XNX).
    pub execute_never_extension: bool,
}

impl Processor {
    /// A Cortex-A15.
    pub const V7: Processor = Processor {
        version: Version::V7,
        hardware_access_flag: false,
        hierarchical_disable: false,
        execute_never_extension: false,
    };
}

impl Default for Processor {
    /// AArch32 state of a current processor.
    fn default() -> Self {
        Processor {
            version: Version::V8,
            hardware_access_flag: false,
            hierarchical_disable: true,
            execute_never_extension: true,
        }
    }
}

/// The registers that decide PL1&0's stage 1, roots and MAIR (or PRRR and NMRR) excepted. Those of
/// a processor without a hypervisor have `hcr` 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Registers {
    /// `TTBCR`.
    pub ttbcr: u32,
    /// `TTBCR2`, in effect with `TTBCR.EAE` and `TTBCR.T2E`.
    pub ttbcr2: u32,
    /// `SCTLR`.
    pub sctlr: u32,
    /// `DACR`: two bits a domain (short descriptors).
    pub dacr: u32,
    /// `HCR`, or `HCR_EL2` under a hypervisor in AArch64 state.
    pub hcr: u64,
}

/// Bits of `SCTLR`, and of `HSCTLR` but for `HA`, `UWXN`, `TRE` and `AFE`, that this library looks
/// at (Arm ARM G8.2).
pub mod sctlr {
    /// The stage is on.
    pub const M: u32 = 1 << 0;
    /// Data is cacheable.
    pub const C: u32 = 1 << 2;
    /// Instructions are cacheable.
    pub const I: u32 = 1 << 12;
    /// Hardware sets access flags (ARMv7).
    pub const HA: u32 = 1 << 17;
    /// Writable pages are not executable.
    pub const WXN: u32 = 1 << 19;
    /// Pages that PL0 can write are not executable at PL1.
    pub const UWXN: u32 = 1 << 20;
    /// Table entries are big-endian.
    pub const EE: u32 = 1 << 25;
    /// TEX remap.
    pub const TRE: u32 = 1 << 28;
    /// `AP[0]` is the access flag.
    pub const AFE: u32 = 1 << 29;
}

/// Bits of `TTBCR` (Arm ARM G8.2).
pub mod ttbcr {
    /// Short descriptors: how many upper bits choose the table.
    pub const N: u32 = 7;
    /// Short descriptors: `TTBR0`'s walks are disabled.
    pub const PD0: u32 = 1 << 4;
    /// Short descriptors: `TTBR1`'s walks are disabled.
    pub const PD1: u32 = 1 << 5;
    /// `TTBCR2` is in effect.
    pub const T2E: u32 = 1 << 6;
    /// Long descriptors: `TTBR0`'s walks are disabled.
    pub const EPD0: u32 = 1 << 7;
    /// Long descriptors: `TTBR1`'s walks are disabled.
    pub const EPD1: u32 = 1 << 23;
    /// Long descriptors.
    pub const EAE: u32 = 1 << 31;
}

/// What PL1 and PL0 may read and write, before execution rights and PAN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rights {
    privileged_read: bool,
    privileged_write: bool,
    user_read: bool,
    user_write: bool,
    /// Nobody executes.
    execute_never: bool,
    /// PL1 does not execute.
    privileged_execute_never: bool,
}

impl Rights {
    /// `AP[2:1]`, as long descriptors and the access-flag model have it.
    #[inline]
    fn of_two_bits(read_only: bool, user: bool) -> Rights {
        Rights {
            privileged_read: true,
            privileged_write: !read_only,
            user_read: user,
            user_write: user && !read_only,
            execute_never: false,
            privileged_execute_never: false,
        }
    }
}

/// What of `SCTLR` and `HCR` both formats of a stage 1 need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Control {
    enabled: bool,
    caches: Caches,
    /// Writable pages are not executable.
    write_execute_never: bool,
    /// Pages that PL0 can write are not executable at PL1.
    user_write_execute_never: bool,
}

impl Control {
    fn new(sctlr: u32, hcr: u64) -> Control {
        use crate::regime::arm::hcr;
        // AArch32.S1Enabled: DC and TGE switch stage 1 off.
        let overridden = hcr & (hcr::DC | hcr::TGE) != 0;
        Control {
            enabled: sctlr & sctlr::M != 0 && !overridden,
            caches: Caches { data: sctlr & sctlr::C != 0, instructions: sctlr & sctlr::I != 0 },
            write_execute_never: sctlr & sctlr::WXN != 0,
            user_write_execute_never: sctlr & sctlr::UWXN != 0,
        }
    }

    /// AArch32.S1LDHasPermissionsFault and S1SDHasPermissionsFault, where PL0 exists.
    #[inline]
    fn denied(&self, rights: Rights, access: &Access, regime: &Regime) -> Denied {
        let none = Denied::NONE;
        let user = access.privilege == Privilege::User || access.flavor == Flavor::Unprivileged;
        let Rights { privileged_read, privileged_write, user_read, user_write, .. } = rights;
        if user {
            return match access.kind {
                Kind::Read => none.with(Denied::USER, !user_read),
                Kind::Write => none.with(Denied::USER, !user_read).with(Denied::WRITE, !user_write),
                Kind::Execute => none
                    .with(Denied::USER, !user_read)
                    .with(Denied::EXECUTE, rights.execute_never)
                    .with(Denied::WRITE_EXECUTE, user_write && self.write_execute_never),
            };
        }
        let pan = regime.arm.pan && (user_read || user_write);
        match access.kind {
            Kind::Read => {
                none.with(Denied::READ, !privileged_read).with(Denied::SUPERVISOR_DATA, pan)
            }
            Kind::Write => {
                none.with(Denied::WRITE, !privileged_write).with(Denied::SUPERVISOR_DATA, pan)
            }
            Kind::Execute => none
                .with(Denied::READ, !privileged_read)
                .with(Denied::EXECUTE, rights.execute_never || rights.privileged_execute_never)
                .with(
                    Denied::WRITE_EXECUTE,
                    privileged_write && self.write_execute_never
                        || user_write && self.user_write_execute_never,
                ),
        }
    }
}

/// Refuses the first of `fields` (bits and reason) that `value` sets.
fn refuse(register: &'static str, value: u32, fields: &[(u32, Refusal)]) -> Result<(), Refused> {
    match fields.iter().find(|(bits, _)| value & bits != 0) {
        Some(&(bits, why)) => {
            Err(Refused { register, value: value.into(), bits: (value & bits).into(), why })
        }
        None => Ok(()),
    }
}

const RES0: Refusal = Refusal::Reserved("a RES0 bit");
