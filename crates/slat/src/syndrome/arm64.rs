//! AArch64: `ESR_ELx`, `FAR_ELx`, `HPFAR_EL2` of an abort, and `PAR_EL1` (Arm ARM
//! D24.2; AArch64.FaultSyndrome, IPAValid, AArch64.EncodePAR).

use super::Field;
use crate::access::{Access, Flavor, Kind, Privilege, Purpose};
use crate::address::Address;
use crate::fault::{Cause, Denied, Failed, Fault, Why};
use crate::memory_type::arm::Attributes;

/// A register of which some bits are defined.
///
/// ```
/// use slat::syndrome::arm64::Masked;
/// let esr = Masked { value: 0x9200_0007, defined: !(0x7ff << 14) };
/// assert!(esr.permits(0x93c1_8007) && !esr.permits(0x93c1_8047));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Masked {
    /// The value; 0 where it is not defined.
    pub value: u64,
    /// The bits that the manual and this library's knowledge define.
    pub defined: u64,
}

impl Masked {
    /// Whether a register that follows the manual may hold `value`.
    pub const fn permits(&self, value: u64) -> bool {
        (self.value ^ value) & self.defined == 0
    }
}

/// Fields of the ISS of an Instruction or Data Abort.
pub mod iss {
    /// Exception class of an Instruction Abort from a lower level; plus 1 from the same level.
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    /// Exception class of a Data Abort from a lower level; plus 1 from the same level.
    pub const DATA_ABORT: u64 = 0x24;
    /// Lowest bit of the exception class.
    pub const EC_SHIFT: u32 = 26;
    /// 32-bit instruction.
    pub const IL: u64 = 1 << 25;
    /// `ISV` and what it makes valid (`SAS`, `SSE`, `SRT`, `SF`, `AR`): it depends on the
    /// instruction.
    pub const INSTRUCTION: u64 = 0x7ff << 14;
    /// The fault is of a cache maintenance or address translation instruction.
    pub const CM: u64 = 1 << 8;
    /// A stage-2 fault on a stage-1 table.
    pub const S1PTW: u64 = 1 << 7;
    /// The instruction writes.
    pub const WNR: u64 = 1 << 6;
}

/// An abort as the exception level that takes it sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// `ESR_ELx`.
    pub esr: Masked,
    /// `FAR_ELx`.
    pub far: Field<u64>,
    /// `HPFAR_EL2`.
    pub hpfar: Field<u64>,
}

impl Abort {
    /// The same abort taken from a cache maintenance or address translation instruction (`IC`, `AT`,
    /// `DC` but for `ZVA`, `GVA` and `GZVA`, which are stores): a Data Abort whatever the kind of access that was asked for, `CM` and `WnR` are
    /// set, and no instruction syndrome is valid.
    #[must_use]
    pub const fn by_maintenance(self) -> Abort {
        // The classes of Data Aborts are those of Instruction Aborts with this bit.
        let data = iss::DATA_ABORT ^ iss::INSTRUCTION_ABORT;
        let value = self.esr.value | data << iss::EC_SHIFT | iss::IL | iss::CM | iss::WNR;
        Abort { esr: Masked { value, defined: !0 }, ..self }
    }

    /// The same abort of a guest in AArch32 state: where an instruction syndrome may be valid, `IL`
    /// is the length of a T32 or A32 instruction.
    #[must_use]
    pub const fn of_aarch32(self) -> Abort {
        let Masked { value, defined } = self.esr;
        let unknown = if defined & iss::INSTRUCTION == 0 { iss::IL } else { 0 };
        Abort { esr: Masked { value: value & !unknown, defined: defined & !unknown }, ..self }
    }
}

/// The fault status code (`DFSC`, `IFSC`, `PAR_EL1.FST`; `AArch64.EncodeLDFSC`), or `None` for a
/// cause that no AArch64 walk has. [`Cause::Contended`] is one: hardware whose update of an entry
/// loses walks again.
pub fn fault_status<I>(fault: &Fault<I>) -> Option<u64> {
    let level = 3 - i32::from(fault.level);
    let class = match fault.cause {
        Cause::Reserved(reserved) if reserved.why == Why::AddressSize => 0b0000,
        Cause::InputSize
        | Cause::Geometry
        | Cause::Disabled
        | Cause::Empty
        | Cause::Reserved(_) => 0b0001,
        Cause::AccessFlag => 0b0010,
        Cause::Permission(_) => 0b0011,
        _ => return None,
    };
    match (level, class) {
        (0..=3, _) => Some(class << 2 | level as u64),
        (-1, 0b0000) => Some(0b10_1001),
        (-1, 0b0001) => Some(0b10_1011),
        _ => None,
    }
}

/// The abort that a stage-1 fault raises at the level that owns the stage. `None` for causes that no
/// AArch64 walk has.
///
/// The exception is one from a lower level where EL0 made the access (`Privilege::User`; not the
/// unprivileged loads and stores of a higher level).
pub fn stage1<I: Address>(fault: &Fault<I>) -> Option<Abort> {
    let status = fault_status(fault)?;
    let same_level = fault.access.privilege == Privilege::Supervisor;
    let class = exception_class(fault.access.kind) + u64::from(same_level);
    let value = class << iss::EC_SHIFT | iss::IL | write_bit(fault, &fault.access) | status;
    let esr = Masked { value, defined: !0 };
    Some(Abort { esr, far: Field::Defined(fault.input.raw()), hpfar: Field::Undefined })
}

/// The abort that a stage-2 fault raises at EL2. `access` is what the instruction did: a fault on a
/// stage-1 table reports that, not the walk's own read or update. `None` for causes that no AArch64
/// walk has. Of a guest in AArch32 state it is [`Abort::of_aarch32`].
pub fn stage2<I: Address>(fault: &Fault<I>, access: &Access) -> Option<Abort> {
    let (status, kind) = (fault_status(fault)?, access.kind);
    let on_table = fault.access.purpose != Purpose::Final;
    let write = write_bit(fault, access);
    let mut value = exception_class(kind) << iss::EC_SHIFT | iss::IL | write | status;
    let mut defined = !0;
    if on_table {
        value |= iss::S1PTW;
        if access.flavor == Flavor::Atomic && matches!(fault.access.purpose, Purpose::Update { .. })
        {
            // Whether a read would have made the update depends on which bit was to be set.
            defined &= !iss::WNR;
        }
    } else if kind != Kind::Execute {
        defined &= !iss::INSTRUCTION;
    }
    let far = match fault.access.origin {
        Some(address) => Field::Defined(address),
        None => Field::Undefined,
    };
    // IPAValid(): all but a permission fault on the final access.
    let has_address = match fault.cause {
        Cause::Permission(_) => on_table,
        _ => true,
    };
    let hpfar =
        if has_address { Field::Defined(hpfar(fault.input.raw())) } else { Field::Undefined };
    Some(Abort { esr: Masked { value, defined }, far, hpfar })
}

/// The abort of a failed two-stage walk, whichever stage failed. `None` where the bus did, or for
/// causes that no AArch64 walk has.
pub fn abort<I: Address, O: Address, B>(
    failed: &Failed<I, Failed<O, B>>,
    access: &Access,
) -> Option<Abort> {
    match failed {
        Failed::Here(fault) => stage1(fault),
        Failed::Below(Failed::Here(fault)) => stage2(fault, access),
        Failed::Below(Failed::Below(_)) => None,
    }
}

/// `HPFAR_EL2` for an IPA: bits 55:12 of it in `FIPA`, bits 47:4. Non-secure IPA space (`NS` is 0 in
/// Non-secure state).
pub const fn hpfar(ipa: u64) -> u64 {
    (ipa >> 12 & ((1 << 44) - 1)) << 4
}

/// `PAR_EL1` after an `AT` instruction that faulted; `stage2` is whether stage 2 did. Bits 63:48 are
/// IMPLEMENTATION DEFINED. `None` for causes that no AArch64 walk has.
pub fn par_of_fault<I>(fault: &Fault<I>, stage2: bool) -> Option<Masked> {
    let status = fault_status(fault)?;
    let on_table = stage2 && fault.access.purpose != Purpose::Final;
    let value = 1 << 11 | u64::from(stage2) << 9 | u64::from(on_table) << 8 | status << 1 | 1;
    Some(Masked { value, defined: (1 << 48) - 1 })
}

/// `PAR_EL1` after an `AT` instruction that found this address and these attributes. `NS` (bit 9)
/// and the IMPLEMENTATION DEFINED bit 10 are not defined.
pub const fn par_of_success(output: u64, attributes: &Attributes) -> Masked {
    let attributes = attributes.effective();
    let value = (attributes.encoding() as u64) << 56
        | output & 0x00ff_ffff_ffff_f000
        | 1 << 11
        | (attributes.shareability.encoding() as u64) << 7;
    Masked { value, defined: !(3 << 9) }
}

fn exception_class(kind: Kind) -> u64 {
    if kind == Kind::Execute { iss::INSTRUCTION_ABORT } else { iss::DATA_ABORT }
}

/// `WnR` of a fault where the instruction made this access: an atomic's is a read's where a read would
/// have had it.
fn write_bit<I>(fault: &Fault<I>, access: &Access) -> u64 {
    let by_write_alone =
        fault.cause == Cause::Permission(Denied::WRITE) && fault.access.purpose == Purpose::Final;
    let write = access.kind == Kind::Write && (access.flavor != Flavor::Atomic || by_write_alone);
    if write { iss::WNR } else { 0 }
}
