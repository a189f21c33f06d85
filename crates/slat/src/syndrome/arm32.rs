//! ARMv7 and AArch32: `DFSR` and `IFSR` in both encodings with their address registers; `HSR`,
//! `HDFAR`, `HIFAR` and `HPFAR` of an abort that Hyp mode takes (Arm ARM chapter G8.2; the
//! pseudocode's AArch32.CommonFaultStatus, AArch32.FaultSyndrome). The 64-bit `PAR` is that of
//! [`super::arm64`].

use super::Field;
use super::arm64::{Masked, fault_status, iss};
use crate::access::{Access, Kind, Purpose};
use crate::address::Address;
use crate::fault::{Cause, Denied, Failed, Fault};
use crate::format::arm32::{Version, short};

/// Bits of `DFSR` and `IFSR`.
pub mod fsr {
    /// The long-descriptor encoding of the status is used.
    pub const LPAE: u64 = 1 << 9;
    /// Bit 4 of the short-descriptor encoding's status.
    pub const FS_4: u64 = 1 << 10;
    /// The access writes (`DFSR`).
    pub const WNR: u64 = 1 << 11;
    /// The fault is of a cache maintenance instruction (`DFSR`, both encodings).
    pub const CM: u64 = 1 << 13;
    /// Bits 7:4: the domain (`DFSR`, short-descriptor encoding).
    pub const DOMAIN: u64 = 0xf << 4;
}

/// An abort as PL1 sees it: of stage 1, not routed to Hyp mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pl1Abort {
    /// A Prefetch Abort: `status` is `IFSR` and `address` `IFAR`. Otherwise a Data Abort, `DFSR`
    /// and `DFAR`.
    pub prefetch: bool,
    /// The fault status register.
    pub status: Masked,
    /// The fault address register.
    pub address: u32,
}

/// An abort as Hyp mode sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HypAbort {
    /// `HSR`.
    pub hsr: Masked,
    /// `HDFAR`.
    pub hdfar: Field<u32>,
    /// `HIFAR`.
    pub hifar: Field<u32>,
    /// `HPFAR`.
    pub hpfar: Field<u32>,
}

impl Pl1Abort {
    /// The same abort taken from a cache maintenance or address translation instruction: a Data
    /// Abort whatever the kind of access that was asked for, `CM` and `WnR` are set.
    #[must_use]
    pub const fn by_maintenance(self) -> Pl1Abort {
        let Masked { value, defined } = self.status;
        // In the short encoding instruction cache maintenance may have its status in IFSR, and another
        // here (AArch32.ReportDataAbort). A prefetch abort says nothing of the domain.
        let unknown = match (value & fsr::LPAE != 0, self.prefetch) {
            (true, _) => 0,
            (false, true) => fsr::FS_4 | 0xf | fsr::DOMAIN,
            (false, false) => fsr::FS_4 | 0xf,
        };
        let value = (value | fsr::CM | fsr::WNR) & !unknown;
        let status = Masked { value, defined: defined & !unknown };
        Pl1Abort { prefetch: false, status, ..self }
    }
}

impl HypAbort {
    /// The same abort taken from a cache maintenance or address translation instruction: see
    /// [`Pl1Abort::by_maintenance`]. No instruction syndrome is valid.
    #[must_use]
    pub fn by_maintenance(self, version: Version) -> HypAbort {
        let data = (iss::DATA_ABORT ^ iss::INSTRUCTION_ABORT) << iss::EC_SHIFT;
        let value = self.hsr.value | data | iss::CM | iss::WNR;
        let hsr = match version {
            Version::V7 => Masked { value: value & !iss::IL, defined: !iss::IL },
            Version::V8 => Masked { value: value | iss::IL, defined: !0 },
        };
        let hdfar = if self.hdfar == Field::Undefined { self.hifar } else { self.hdfar };
        HypAbort { hsr, hdfar, hifar: Field::Undefined, ..self }
    }
}

/// An abort, by who takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// Stage 1's, taken to Abort mode.
    Pl1(Pl1Abort),
    /// Stage 2's, taken to Hyp mode.
    Hyp(HypAbort),
}

/// The status of a short-descriptor fault, `FS[4:0]` (EncodeSDFSC), or `None` for a cause that no
/// such walk has.
fn short_status<I>(fault: &Fault<I>) -> Option<u64> {
    let page = fault.level == 0;
    Some(match (fault.cause, page) {
        (Cause::AccessFlag, false) => 0b00011,
        (Cause::AccessFlag, true) => 0b00110,
        (Cause::Permission(denied), _) if denied.contains(Denied::DOMAIN) => {
            if page {
                0b01011
            } else {
                0b01001
            }
        }
        (Cause::Permission(_), false) => 0b01101,
        (Cause::Permission(_), true) => 0b01111,
        (Cause::InputSize | Cause::Disabled | Cause::Empty | Cause::Reserved(_), false) => 0b00101,
        (Cause::InputSize | Cause::Disabled | Cause::Empty | Cause::Reserved(_), true) => 0b00111,
        _ => return None,
    })
}

/// The abort that a fault of PL1&0's own stage 1 raises. `long` is the encoding of the status:
/// whether the format is [`crate::format::arm32::Lpae`] (`TTBCR.EAE`).
///
/// `None` for a cause that no AArch32 walk has.
///
/// `DFSR`'s domain is defined for domain faults and translation faults of pages alone: for other
/// faults implementations with LPAE report anything.
pub fn pl1<I: Address>(fault: &Fault<I>, long: bool) -> Option<Pl1Abort> {
    let prefetch = fault.access.kind == Kind::Execute;
    let write = if fault.access.kind == Kind::Write { fsr::WNR } else { 0 };
    let mut status = if long {
        Masked { value: fsr::LPAE | write | fault_status(fault)?, defined: !0 }
    } else {
        let status = short_status(fault)?;
        Masked { value: write | (status & 0x10) << 6 | status & 0xf, defined: !0 }
    };
    if !long && !prefetch {
        match domain(fault) {
            Some(domain) => status.value |= u64::from(domain) << 4,
            None => status.defined &= !fsr::DOMAIN,
        }
    }
    Some(Pl1Abort { prefetch, status, address: fault.input.raw() as u32 })
}

fn domain<I>(fault: &Fault<I>) -> Option<u8> {
    match fault.cause {
        _ if fault.level == 0 && fault.cause == Cause::Empty => Some(short::domain(fault.path.or)),
        Cause::Permission(denied) if denied.contains(Denied::DOMAIN) => {
            let section = fault.level > 0;
            let supersection = section && fault.entry & short::bits::SUPERSECTION != 0;
            let holder = if section { fault.entry } else { fault.path.or };
            Some(if supersection { 0 } else { short::domain(holder) })
        }
        _ => None,
    }
}

/// The abort that a fault of Hyp mode's own stage 1 raises.
///
/// `None` for a cause that no AArch32 walk has.
pub fn hyp<I: Address>(fault: &Fault<I>, version: Version) -> Option<HypAbort> {
    let hsr = hsr(fault, &fault.access, true, version)?;
    let address = Field::Defined(fault.input.raw() as u32);
    Some(taken_to_hyp(hsr, fault.access.kind, address, Field::Undefined))
}

/// The abort that a stage-2 fault raises. `access` is what the instruction did: a fault on a stage-1
/// table reports that, not the walk's own read.
///
/// `None` for a cause that no AArch32 walk has.
pub fn stage2<I: Address>(fault: &Fault<I>, access: &Access, version: Version) -> Option<HypAbort> {
    let kind = access.kind;
    let mut hsr = hsr(fault, access, false, version)?;
    let on_table = fault.access.purpose != Purpose::Final;
    if on_table {
        hsr.value |= iss::S1PTW;
    } else if kind != Kind::Execute {
        // An instruction syndrome may be valid, and IL is then the instruction's length.
        hsr.defined &= !(iss::INSTRUCTION | iss::IL);
    }
    let address = match fault.access.origin {
        Some(address) => Field::Defined(address as u32),
        None => Field::Undefined,
    };
    // IPAValid(): all but a permission fault on the final access.
    let hpfar = match fault.cause {
        Cause::Permission(_) if !on_table => Field::Undefined,
        _ => Field::Defined((fault.input.raw() >> 12 << 4) as u32),
    };
    Some(taken_to_hyp(hsr, kind, address, hpfar))
}

/// The abort of a failed two-stage walk under a hypervisor in Hyp mode. `long` and `version` are as
/// for [`pl1`] and [`stage2`]; `None` where the bus failed, and for causes that no AArch32 walk has.
pub fn abort<I: Address, O: Address, B>(
    failed: &Failed<I, Failed<O, B>>,
    access: &Access,
    long: bool,
    version: Version,
) -> Option<Abort> {
    match failed {
        Failed::Here(fault) => pl1(fault, long).map(Abort::Pl1),
        Failed::Below(Failed::Here(fault)) => stage2(fault, access, version).map(Abort::Hyp),
        Failed::Below(Failed::Below(_)) => None,
    }
}

/// `HSR` of an abort without a valid instruction syndrome. Armv8 says that `IL` is set then; in
/// ARMv7 it is not valid.
fn hsr<I>(fault: &Fault<I>, access: &Access, same_level: bool, version: Version) -> Option<Masked> {
    let status = fault_status(fault)?;
    let fetch = access.kind == Kind::Execute;
    let class = if fetch { iss::INSTRUCTION_ABORT } else { iss::DATA_ABORT };
    let write = if access.kind == Kind::Write { iss::WNR } else { 0 };
    let value = (class + u64::from(same_level)) << iss::EC_SHIFT | write | status;
    Some(match version {
        Version::V7 => Masked { value, defined: !iss::IL },
        Version::V8 => Masked { value: value | iss::IL, defined: !0 },
    })
}

fn taken_to_hyp(hsr: Masked, kind: Kind, address: Field<u32>, hpfar: Field<u32>) -> HypAbort {
    let (hdfar, hifar) = if kind == Kind::Execute {
        (Field::Undefined, address)
    } else {
        (address, Field::Undefined)
    };
    HypAbort { hsr: Masked { value: hsr.value & hsr.defined, ..hsr }, hdfar, hifar, hpfar }
}
