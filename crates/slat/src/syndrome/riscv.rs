//! RISC-V: the cause, the trap value, and for traps that come from a virtual machine the guest
//! physical address and the instruction.
//!
//! The registers are named after HS-mode's (`scause`, `stval`, `htval`, `htinst`); M-mode's
//! `mcause`, `mtval`, `mtval2` and `mtinst` hold the same, and `vscause` and `vstval` the first two.
//! Source: privileged manual, "Two-Stage Address Translation", "Traps" of the hypervisor extension,
//! and Zicfiss for the faults of shadow stacks.

use super::Field;
use crate::access::{Access, Flavor, Kind, Purpose};
use crate::address::Address;
use crate::fault::{Cause, Denied, Failed, Fault};
use crate::format::Format;
use crate::format::riscv::{Scheme, Sv};
use crate::memory::EntrySize;
use crate::regime::Regime;
use crate::translate::TwoStageFailure;

mod instruction;

pub use instruction::transform;

/// Exception codes (`scause` with its interrupt bit clear).
pub mod codes {
    /// Instruction access fault.
    pub const FETCH_ACCESS: u64 = 1;
    /// Load access fault.
    pub const LOAD_ACCESS: u64 = 5;
    /// Store or AMO access fault; every fault of a shadow-stack instruction counts as such.
    pub const STORE_ACCESS: u64 = 7;
    /// Instruction page fault.
    pub const FETCH_PAGE: u64 = 12;
    /// Load page fault.
    pub const LOAD_PAGE: u64 = 13;
    /// Store or AMO page fault.
    pub const STORE_PAGE: u64 = 15;
    /// Instruction guest-page fault.
    pub const FETCH_GUEST_PAGE: u64 = 20;
    /// Load guest-page fault.
    pub const LOAD_GUEST_PAGE: u64 = 21;
    /// Store or AMO guest-page fault.
    pub const STORE_GUEST_PAGE: u64 = 23;
}

/// Pseudoinstructions in `htinst`: an implicit access of VS-stage address translation faulted.
pub mod pseudoinstructions {
    /// Read of a 32-bit entry (VSXLEN = 32).
    pub const READ_32: u64 = 0x2000;
    /// Write of A or D in a 32-bit entry.
    pub const WRITE_32: u64 = 0x2020;
    /// Read of a 64-bit entry.
    pub const READ_64: u64 = 0x3000;
    /// Write of A or D in a 64-bit entry.
    pub const WRITE_64: u64 = 0x3020;
}

/// What a trap puts into the trap registers, as far as the manual decides it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trap {
    /// `scause`: see [`codes`].
    pub cause: u64,
    /// `stval`: the faulting virtual address after pointer masking; a platform may leave it zero
    /// unless it has Sstvala.
    pub stval: Field<u64>,
    /// `htval`: the faulting guest physical address shifted right by 2, or zero; zero for other
    /// than guest-page faults.
    pub htval: Field<u64>,
    /// `htinst`: zero, the transformed instruction of an explicit access (undefined where the
    /// caller did not say which instruction it was), or a pseudoinstruction.
    pub htinst: Field<u64>,
    /// An implicit access of VS-stage translation faulted: a nonzero `htval` then demands the
    /// pseudoinstruction.
    pub implicit: bool,
}

/// The four registers with values in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// `scause`.
    pub scause: u64,
    /// `stval`.
    pub stval: u64,
    /// `htval`.
    pub htval: u64,
    /// `htinst`.
    pub htinst: u64,
}

/// Which optional information an implementation reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Reports {
    /// Faulting virtual addresses (Sstvala).
    pub stval: bool,
    /// Faulting guest physical addresses (Shtvala).
    pub htval: bool,
    /// Transformed instructions.
    pub htinst: bool,
}

impl Reports {
    /// Everything.
    pub const ALL: Reports = Reports { stval: true, htval: true, htinst: true };
    /// Nothing that may be left out.
    pub const NOTHING: Reports = Reports { stval: false, htval: false, htinst: false };
}

impl Trap {
    /// The registers as an implementation with this choice writes them.
    pub fn registers(&self, reports: Reports) -> Registers {
        let value = |field: &Field<u64>, reported: bool| {
            if reported { field.choose() } else { field.choose_least() }.unwrap_or(0)
        };
        let htval = value(&self.htval, reports.htval);
        Registers {
            scause: self.cause,
            stval: value(&self.stval, reports.stval),
            htval,
            htinst: value(&self.htinst, reports.htinst || self.implicit && htval != 0),
        }
    }

    /// Whether hardware that follows the manual may have written these.
    pub fn permits(&self, registers: &Registers) -> bool {
        let pseudoinstruction_missing =
            self.implicit && registers.htval != 0 && registers.htinst == 0;
        registers.scause == self.cause
            && self.stval.permits(&registers.stval)
            && self.htval.permits(&registers.htval)
            && self.htinst.permits(&registers.htinst)
            && !pseudoinstruction_missing
    }
}

/// What trapped: the access as software made it.
#[derive(Clone, Copy, Debug)]
pub struct Trapped<'a, I> {
    /// The virtual address that software used.
    pub address: I,
    /// The access it made.
    pub access: &'a Access,
    /// Stage 1 (`satp` or `vsatp`).
    pub stage1: &'a Sv,
    /// The status bits.
    pub regime: &'a Regime,
    /// The instruction that trapped, [`transform`]ed (0 for one without transformation); `None`
    /// where it is not known.
    pub transformed: Option<u32>,
}

/// Which of the exceptions of one kind it is: `[fetch, load, store]`.
type Codes = [u64; 3];

const ACCESS_FAULT: Codes = [codes::FETCH_ACCESS, codes::LOAD_ACCESS, codes::STORE_ACCESS];
const PAGE_FAULT: Codes = [codes::FETCH_PAGE, codes::LOAD_PAGE, codes::STORE_PAGE];
const GUEST_PAGE_FAULT: Codes =
    [codes::FETCH_GUEST_PAGE, codes::LOAD_GUEST_PAGE, codes::STORE_GUEST_PAGE];

impl<I: Address> Trapped<'_, I> {
    /// The trap of a walk through `satp` alone; `None` where hardware would not have ended the walk
    /// ([`Cause::Contended`]).
    pub fn of_one_stage<B>(&self, failure: &Failed<I, B>) -> Option<Trap> {
        match failure {
            Failed::Here(fault) => self.page_fault(fault),
            Failed::Below(_) => Some(self.explicit(&ACCESS_FAULT)),
        }
    }

    /// The trap of a two-stage walk; `None` where hardware would not have ended the walk.
    pub fn of_two_stages<O: Address, B>(&self, failure: &TwoStageFailure<I, O, B>) -> Option<Trap> {
        match failure {
            Failed::Here(fault) => self.page_fault(fault),
            Failed::Below(Failed::Here(fault)) => self.guest_page_fault(fault),
            Failed::Below(Failed::Below(_)) => Some(self.explicit(&ACCESS_FAULT)),
        }
    }

    fn page_fault(&self, fault: &Fault<I>) -> Option<Trap> {
        let codes = match fault.cause {
            Cause::Contended => return None,
            // The checks of U come before those of shadow stacks, and raise page faults.
            Cause::Permission(denied)
                if denied.contains(Denied::SHADOW_STACK)
                    && !denied.intersects(Denied::USER)
                    && !denied.intersects(Denied::SUPERVISOR_FETCH)
                    && !denied.intersects(Denied::SUPERVISOR_DATA) =>
            {
                &ACCESS_FAULT
            }
            _ => &PAGE_FAULT,
        };
        Some(self.explicit(codes))
    }

    fn guest_page_fault<O: Address>(&self, fault: &Fault<O>) -> Option<Trap> {
        if fault.cause == Cause::Contended {
            return None;
        }
        let trap = self.explicit(&GUEST_PAGE_FAULT);
        let htval = or_zero(fault.input.raw() >> 2);
        let wide = self.stage1.layout().size == EntrySize::Eight;
        let pseudoinstruction = match (fault.access.purpose, wide) {
            (Purpose::Final, _) => return Some(Trap { htval, ..trap }),
            (Purpose::Update { .. }, false) => pseudoinstructions::WRITE_32,
            (Purpose::Update { .. }, true) => pseudoinstructions::WRITE_64,
            (_, false) => pseudoinstructions::READ_32,
            (_, true) => pseudoinstructions::READ_64,
        };
        Some(Trap { htval, htinst: or_zero(pseudoinstruction), implicit: true, ..trap })
    }

    /// A trap of the original access type, as everything that may end a translation is reported.
    fn explicit(&self, codes: &Codes) -> Trap {
        let fetch = self.access.kind == Kind::Execute;
        let [fetch_code, load_code, store_code] = *codes;
        let cause = if fetch {
            fetch_code
        } else if self.access.kind == Kind::Write || self.access.flavor == Flavor::ShadowStack {
            store_code
        } else {
            load_code
        };
        let htinst = match self.transformed {
            // No instruction was fetched: there is none to transform.
            _ if fetch => Field::Defined(0),
            Some(instruction) => or_zero(instruction.into()),
            None => Field::Undefined,
        };
        let address = self.stage1.transformed(self.address.raw(), self.access, self.regime);
        let address =
            if self.stage1.scheme() == Scheme::Sv32 { address & 0xffff_ffff } else { address };
        Trap { cause, stval: or_zero(address), htval: Field::Defined(0), htinst, implicit: false }
    }
}

/// A register that holds this, or no information.
fn or_zero(value: u64) -> Field<u64> {
    if value == 0 { Field::Defined(0) } else { Field::OneOf([value, 0]) }
}
