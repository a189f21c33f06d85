//! x86: #PF error code, EPT violation and misconfiguration, #NPF.

use crate::access::{Access, Flavor, Kind, Privilege, Purpose};
use crate::address::Address;
use crate::fault::{Cause, Denied, Fault};
use crate::format::ept::{self, Ept};
use crate::format::npt::{Npt, is_supervisor_shadow_stack_page};
use crate::format::x86::Controls;
use crate::format::x86::hlat::Hlat;

/// Bits of the #PF error code (Intel SDM 3A 5.7, AMD APM 2 8.4.2) and of `EXITINFO1` below bit 32.
pub mod page_fault_bits {
    /// A present entry denied the access.
    pub const P: u64 = 1 << 0;
    /// A write.
    pub const W: u64 = 1 << 1;
    /// A user access.
    pub const U: u64 = 1 << 2;
    /// A reserved bit was set in some entry.
    pub const RSVD: u64 = 1 << 3;
    /// An instruction fetch.
    pub const I: u64 = 1 << 4;
    /// The page's protection key denies the access.
    pub const PK: u64 = 1 << 5;
    /// A shadow-stack access.
    pub const SS: u64 = 1 << 6;
    /// The hypervisor's tables have no translation (Intel HLAT).
    pub const HLAT: u64 = 1 << 7;
}

/// The error code of the #PF that a stage-1 fault raises, or `None` where it raises none
/// (a non-canonical address raises #GP or #SS).
///
/// `fetch_flagged` is whether fetches are told apart: `CR4.SMEP`, or `EFER.NXE` with PAE.
pub fn page_fault<I>(fault: &Fault<I>, fetch_flagged: bool) -> Option<u64> {
    use page_fault_bits as bits;
    let by_cause = match fault.cause {
        Cause::Empty => 0,
        Cause::Reserved(_) => bits::P | bits::RSVD,
        Cause::Permission(denied) => {
            bits::P | if denied.contains(Denied::KEY) { bits::PK } else { 0 }
        }
        _ => return None,
    };
    Some(by_cause | access_bits(&fault.access, fetch_flagged))
}

/// As [`page_fault`] for a fault of paging with HLAT. `restarted` is whether the walk had gone back to
/// the ordinary root, which an observer sees as [`crate::format::Decoded::Restart`].
///
/// The flag is set for entries of the hypervisor's tables that are not present or have reserved bits,
/// not for access rights (Intel SDM 3A 5.7).
pub fn hlat_page_fault<I: Address>(
    fault: &Fault<I>,
    format: &Hlat,
    restarted: bool,
    fetch_flagged: bool,
) -> Option<u64> {
    let code = page_fault(fault, fetch_flagged)?;
    let untranslated = matches!(fault.cause, Cause::Empty | Cause::Reserved(_));
    let by_hypervisor = !restarted && format.applies(fault.input.raw());
    Some(if untranslated && by_hypervisor { code | page_fault_bits::HLAT } else { code })
}

/// The bits of the error code that follow from the access alone.
fn access_bits(access: &Access, fetch_flagged: bool) -> u64 {
    use page_fault_bits as bits;
    let flag = |set: bool, bit: u64| if set { bit } else { 0 };
    flag(access.kind == Kind::Write, bits::W)
        | flag(access.privilege == Privilege::User, bits::U)
        | flag(access.kind == Kind::Execute && fetch_flagged, bits::I)
        | flag(access.flavor == Flavor::ShadowStack, bits::SS)
}

/// Whether stage 1 with these controls tells fetches apart in the error code. `pae` is whether
/// entries are 64 bits wide.
pub fn fetch_flagged(controls: &Controls, pae: bool) -> bool {
    controls.smep || controls.nxe && pae
}

/// Bits of the exit qualification of an EPT violation (Intel SDM 3C table 29-7).
pub mod violation_bits {
    /// A data read.
    pub const READ: u64 = 1 << 0;
    /// A data write.
    pub const WRITE: u64 = 1 << 1;
    /// An instruction fetch.
    pub const FETCH: u64 = 1 << 2;
    /// Bits 5:3: AND of R, W and X over the entries used.
    pub const ALLOWED_SHIFT: u32 = 3;
    /// AND of bit 10 (user execute) over the entries used, with mode-based execute control.
    pub const ALLOWED_USER_EXECUTE: u64 = 1 << 6;
    /// The guest-linear-address field is valid.
    pub const LINEAR_VALID: u64 = 1 << 7;
    /// The access was to the translation of a linear address, not to a table entry.
    pub const FINAL: u64 = 1 << 8;
    /// Advanced: the linear address is a user-mode one.
    pub const USER: u64 = 1 << 9;
    /// Advanced: guest paging makes it writable.
    pub const WRITABLE: u64 = 1 << 10;
    /// Advanced: guest paging makes it non-executable.
    pub const NOT_EXECUTABLE: u64 = 1 << 11;
    /// A shadow-stack access.
    pub const SHADOW_STACK: u64 = 1 << 13;
    /// Bit 60 of the leaf, where EPTP bit 7 enables supervisor shadow-stack control and the walk came
    /// to a leaf; undefined elsewhere, and 0 here.
    pub const SUPERVISOR_SHADOW_STACK_PAGE: u64 = 1 << 14;
    /// Guest-paging verification.
    pub const GUEST_PAGING: u64 = 1 << 15;
}

/// The exit qualification of the EPT violation that a fault of an EPT stage causes, or `None` where
/// it is a misconfiguration (whose qualification is undefined).
///
/// `advanced` is whether the processor reports advanced information (IA32_VMX_EPT_VPID_CAP
/// bit 22).
pub fn ept_violation<I>(fault: &Fault<I>, format: &Ept, advanced: bool) -> Option<u64> {
    use violation_bits as bits;
    if matches!(fault.cause, Cause::Reserved(_)) {
        return None;
    }
    let access = &fault.access;
    let mut qualification = match access.kind {
        Kind::Read => bits::READ,
        Kind::Write => bits::WRITE,
        Kind::Execute => bits::FETCH,
    };
    if format.counts_as_write(access) {
        qualification |= bits::READ | bits::WRITE;
    }
    if fault.cause != Cause::InputSize {
        let and = fault.entry & fault.path.and;
        qualification |= (and & 7) << bits::ALLOWED_SHIFT;
        if format.features().mode_based_execute && and & ept::bits::XU != 0 {
            qualification |= bits::ALLOWED_USER_EXECUTE;
        }
    }
    let linear = access.origin.is_some() && access.purpose != Purpose::PdpteLoad;
    if linear {
        qualification |= bits::LINEAR_VALID;
    }
    if linear && access.purpose == Purpose::Final {
        qualification |= bits::FINAL;
        if let (true, Some(page)) = (advanced, access.page) {
            for (set, bit) in [
                (page.user, bits::USER),
                (page.writable, bits::WRITABLE),
                (!page.executable, bits::NOT_EXECUTABLE),
            ] {
                if set {
                    qualification |= bit;
                }
            }
        }
    }
    if access.flavor == Flavor::ShadowStack {
        qualification |= bits::SHADOW_STACK;
    }
    // Only a leaf denies permission; a walk that ended for another reason came to none.
    if format.features().supervisor_shadow_stack
        && matches!(fault.cause, Cause::Permission(_))
        && fault.entry & ept::bits::SUPERVISOR_SHADOW_STACK != 0
    {
        qualification |= bits::SUPERVISOR_SHADOW_STACK_PAGE;
    }
    if let Cause::Permission(denied) = fault.cause
        && denied.contains(Denied::GUEST_PAGING)
    {
        qualification |= bits::GUEST_PAGING;
    }
    Some(qualification)
}

/// `EXITINFO1` of the #NPF that a fault of an NPT stage causes (AMD APM 2 15.25.6).
///
/// `format` tells whether fetches are told apart, and whether reads of guest tables are writes.
pub fn nested_page_fault<I>(fault: &Fault<I>, format: &Npt) -> u64 {
    use page_fault_bits as bits;
    let by_cause = match fault.cause {
        Cause::Reserved(_) => bits::P | bits::RSVD,
        Cause::Permission(_) => bits::P,
        _ => 0,
    };
    let by_access = if fault.access.purpose.is_table() {
        let write = format.checked_kind(&fault.access) == Kind::Write;
        bits::U | NPF_TABLE | if write { bits::W } else { 0 }
    } else {
        // Every nested access is a user access, unless the guest mode execute trap tells them apart.
        let supervisor = format.options().guest_mode_execute_trap
            && fault.access.privilege == Privilege::Supervisor;
        access_bits(&fault.access, format.nxe()) | NPF_FINAL | if supervisor { 0 } else { bits::U }
    };
    // Of the page, not of the access: only a leaf denies permission.
    let shadow_stack_page = format.options().supervisor_shadow_stack
        && matches!(fault.cause, Cause::Permission(_))
        && is_supervisor_shadow_stack_page(fault.entry);
    by_cause | by_access | if shadow_stack_page { NPF_SHADOW_STACK } else { 0 }
}

/// `EXITINFO1` bit 32: the fault was on the guest's final physical address.
pub const NPF_FINAL: u64 = 1 << 32;
/// `EXITINFO1` bit 37: the nested leaf marks a supervisor shadow-stack page, and the restrictions on
/// those are enabled.
pub const NPF_SHADOW_STACK: u64 = 1 << 37;
/// `EXITINFO1` bit 33: the fault was on a guest table.
pub const NPF_TABLE: u64 = 1 << 33;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Path;
    use crate::format::ept::Features;
    use crate::{Gpa, Reserved, Why};

    fn violation(entry: u64, cause: Cause, supervisor_shadow_stack: bool) -> Option<u64> {
        let access = Access { origin: Some(0x1234), ..Access::new(Kind::Write, Privilege::User) };
        let fault = Fault {
            stage: 2,
            input: Gpa::new(0x5000),
            level: 0,
            entry,
            entry_address: 0x8000,
            path: Path { and: 7, ..Path::START },
            cause,
            access,
        };
        let format = Ept::four(Features { supervisor_shadow_stack, ..Features::default() });
        ept_violation(&fault, &format, false)
    }

    /// Intel SDM 3A 5.7, bit 7.
    #[test]
    fn hlat_is_flagged_where_its_own_tables_end() {
        use crate::format::x86::long::{Long, Processor};
        let code = |cause: Cause, prefix_bits: u8, restarted: bool| {
            let fault = Fault {
                stage: 1,
                input: crate::Gva::new(0x1000),
                level: 0,
                entry: 0,
                entry_address: 0x8000,
                path: Path::START,
                cause,
                access: Access::default(),
            };
            let long = Long::four(Controls::default(), Processor::default());
            hlat_page_fault(&fault, &Hlat::new(long, prefix_bits), restarted, false)
        };
        let reserved = Cause::Reserved(Reserved { why: Why::Bits, bits: 1 << 51 });
        assert_eq!(code(Cause::Empty, 0, false), Some(0x80));
        assert_eq!(code(reserved, 0, false), Some(0x89));
        assert_eq!(code(Cause::Permission(Denied::WRITE), 0, false), Some(1));
        assert_eq!(code(Cause::Empty, 0, true), Some(0));
        assert_eq!(code(Cause::Empty, 1, false), Some(0));
        assert_eq!(code(Cause::NonCanonical, 0, false), None);
    }

    /// AMD APM 2 15.25.6: bit 37 is the page's, bit 6 the access's.
    #[test]
    fn bit_37_is_a_supervisor_shadow_stack_page_under_its_check() {
        use crate::format::npt::{Npt, Options};
        use crate::format::x86::long::Processor;
        let read_only_dirty = 0x9000 | 1 << 6 | 1 << 2 | 1;
        let code = |entry: u64, cause: Cause, flavor: Flavor, supervisor_shadow_stack: bool| {
            let access = Access { flavor, ..Access::new(Kind::Write, Privilege::Supervisor) };
            let fault = Fault {
                stage: 2,
                input: Gpa::new(0x5000),
                level: 0,
                entry,
                entry_address: 0x8000,
                path: Path { and: 7, ..Path::START },
                cause,
                access,
            };
            let options = Options { supervisor_shadow_stack, ..Options::default() };
            let npt = Npt::four(true, Processor::default()).with_options(options);
            nested_page_fault(&fault, &npt)
        };
        let denied = Cause::Permission(Denied::WRITE);
        let others = NPF_FINAL | 0b111;
        assert_eq!(code(read_only_dirty, denied, Flavor::Plain, true), others | 1 << 37);
        assert_eq!(code(read_only_dirty, denied, Flavor::Plain, false), others);
        assert_eq!(code(read_only_dirty & !(1 << 6), denied, Flavor::Plain, true), others);
        assert_eq!(code(read_only_dirty | 2, denied, Flavor::Plain, true), others);
        let none = Cause::Permission(Denied::SHADOW_STACK);
        assert_eq!(code(0x9067, none, Flavor::ShadowStack, true), others | 1 << 6);
        // What is not present is no leaf.
        assert_eq!(code(1 << 6, Cause::Empty, Flavor::Plain, true), others & !1);
    }

    /// AMD APM 2 15.25.6: nested accesses are user accesses unless a feature says otherwise.
    #[test]
    fn bit_2_is_the_guests_privilege_under_the_execute_trap() {
        use crate::format::npt::{Npt, Options};
        use crate::format::x86::long::Processor;
        let code = |privilege: Privilege, guest_mode_execute_trap: bool| {
            let fault = Fault {
                stage: 2,
                input: Gpa::new(0x5000),
                level: 0,
                entry: 0,
                entry_address: 0x8000,
                path: Path::START,
                cause: Cause::Empty,
                access: Access::new(Kind::Read, privilege),
            };
            let options = Options { guest_mode_execute_trap, ..Options::default() };
            let npt = Npt::four(true, Processor::default()).with_options(options);
            nested_page_fault(&fault, &npt)
        };
        assert_eq!(code(Privilege::Supervisor, false), NPF_FINAL | 4);
        assert_eq!(code(Privilege::Supervisor, true), NPF_FINAL);
        assert_eq!(code(Privilege::User, true), NPF_FINAL | 4);
    }

    /// Intel SDM 3C table 29-7, bit 14.
    #[test]
    fn bit_14_is_the_leafs_bit_60_under_shadow_stack_control() {
        use violation_bits::{FINAL, LINEAR_VALID, SUPERVISOR_SHADOW_STACK_PAGE, WRITE};
        let leaf = 1 << 60 | 0x9000 | 6 << 3 | 1;
        let denied = Cause::Permission(Denied::WRITE);
        let others = WRITE | 1 << 3 | LINEAR_VALID | FINAL;
        assert_eq!(violation(leaf, denied, true), Some(others | SUPERVISOR_SHADOW_STACK_PAGE));
        assert_eq!(violation(leaf & !(1 << 60), denied, true), Some(others));
        assert_eq!(violation(leaf, denied, false), Some(others));
        // What is not present is no leaf, and what is reserved is no violation.
        assert_eq!(violation(1 << 60, Cause::Empty, true), Some(others & !(1 << 3)));
        let reserved = Cause::Reserved(Reserved { why: Why::MemoryType, bits: 0x10 });
        assert_eq!(violation(leaf, reserved, true), None);
    }
}
