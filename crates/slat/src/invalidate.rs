//! From a gather to instructions: what must be invalidated, and by which operands.
//!
//! A planner for each architecture turns a [`Gather`] into instructions with their operands; the
//! caller's [`Invalidate`] executes them on every CPU that may hold the context, and waits:
//!
//! ```
//! use slat::edit::Gather;
//! use slat::invalidate::{Invalidate, intel};
//!
//! struct Machine { /* CPUs, and how to reach them */ }
//!
//! impl Invalidate for Machine {
//!     type Error = core::convert::Infallible;
//!
//!     fn invalidate(&mut self, gather: &Gather<'_>) -> Result<(), Self::Error> {
//!         intel::plan(gather, &intel::Capabilities::default(), 0, |instruction| {
//!             match instruction {
//!                 intel::Instruction::Invept { kind, descriptor } => {
//!                     // On each CPU that runs this guest, by an interrupt that waits:
//!                     // asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor);
//! #                   let _ = (kind, descriptor);
//!                 }
//!                 _ => unreachable!("an EPTP's gather takes INVEPT alone"),
//!             }
//!         });
//!         Ok(())
//!     }
//! }
//! # let _ = Machine {};
//! ```

use core::fmt;

use crate::edit::Gather;
use pages::Pages;

pub mod amd;
pub mod arm32;
pub mod arm64;
pub mod ids;
pub mod intel;
mod pages;
pub mod riscv;
pub mod running;

/// Whose translations a gather is about: the ids that hardware tags them with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Context {
    /// Intel: guest-physical and combined mappings of this EPTP (SDM 3C 30.4.1).
    Ept {
        /// The EPTP, of which bits 51:12 tag the mappings (the EP4TA).
        eptp: u64,
    },
    /// AMD: nested translations under this ASID (APM 2 15.16).
    Npt {
        /// The guest's address-space id, not 0.
        asid: u32,
    },
    /// Arm stage 2 under this VMID.
    Stage2 {
        /// `VTTBR_EL2.VMID`.
        vmid: u16,
    },
    /// RISC-V G-stage under this VMID.
    GStage {
        /// `hgatp.VMID`.
        vmid: u16,
    },
    /// x86 linear addresses.
    Linear {
        /// Who runs there.
        owner: LinearOwner,
        /// Process-context id, 0 where `CR4.PCIDE` is clear.
        pcid: u16,
    },
    /// Arm stage 1 of the EL1&0 regime, of this ASID and, in a guest, VMID.
    Stage1 {
        /// Address-space id.
        asid: u16,
        /// The guest, `None` for the host itself.
        vmid: Option<u16>,
    },
    /// Arm: the one stage of EL2 (without `HCR_EL2.E2H`) or of Hyp mode, whose translations have no id.
    El2,
    /// RISC-V first stage: S, or VS under a VMID.
    SStage {
        /// Address-space id.
        asid: u16,
        /// The guest, `None` for the host itself.
        vmid: Option<u16>,
    },
    /// Every context: a change that more than one can see.
    All,
}

/// Who runs in an x86 linear-address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum LinearOwner {
    /// The host itself, or a guest that invalidates for itself.
    Native,
    /// A guest under this VPID.
    Vpid(u16),
    /// A guest under this AMD ASID.
    Asid(u32),
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Context::Ept { eptp } => write!(f, "EPTP {eptp:#x}"),
            Context::Npt { asid } => write!(f, "ASID {asid}"),
            Context::Stage2 { vmid } | Context::GStage { vmid } => write!(f, "VMID {vmid}"),
            Context::Linear { owner: LinearOwner::Native, pcid } => write!(f, "PCID {pcid}"),
            Context::Linear { owner: LinearOwner::Vpid(vpid), pcid } => {
                write!(f, "VPID {vpid}, PCID {pcid}")
            }
            Context::Linear { owner: LinearOwner::Asid(asid), pcid } => {
                write!(f, "ASID {asid}, PCID {pcid}")
            }
            Context::Stage1 { asid, vmid } | Context::SStage { asid, vmid } => {
                write!(f, "ASID {asid}")?;
                vmid.map_or(Ok(()), |vmid| write!(f, " of VMID {vmid}"))
            }
            Context::El2 => f.write_str("EL2"),
            Context::All => f.write_str("every context"),
        }
    }
}

/// Makes hardware let go of what a gather names.
///
/// # Contract
///
/// When [`invalidate`](Invalidate::invalidate) returns `Ok`, no CPU (and no device that shares the
/// tables) uses a translation, a table entry or an invalid entry of the gather's context and
/// ranges that it read before the call, and none will: every CPU that may hold the id has flushed,
/// or must do so before it next enters the guest ([`running`] keeps account of that). Frames are freed
/// on the strength of this.
pub trait Invalidate {
    /// Why it could not be done.
    type Error;

    /// Invalidates what `gather` names, and waits until that is complete.
    ///
    /// # Errors
    /// Where the machine refused; nothing may then be relied upon, and the gather stays due.
    fn invalidate(&mut self, gather: &Gather<'_>) -> Result<(), Self::Error>;
}

/// A closure that invalidates and cannot fail.
#[derive(Clone, Copy, Debug)]
pub struct By<C>(pub C);

impl<C: FnMut(&Gather<'_>)> Invalidate for By<C> {
    type Error = core::convert::Infallible;

    fn invalidate(&mut self, gather: &Gather<'_>) -> Result<(), Self::Error> {
        (self.0)(gather);
        Ok(())
    }
}
