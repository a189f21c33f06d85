//! Syndromes for people and for JSON.

use serde::Serialize;
use slat::format::any::AnyFormat;
use slat::format::riscv::{Scheme, Sv};
use slat::syndrome::riscv::{Reports, Trapped, codes};
use slat::syndrome::{arm32, arm64, x86};
use slat::{Access, Address, Cause, Failed, Fault, Gva, Kind, Regime};

/// How an architecture reports a fault: its name, its registers, and what the set bits mean.
#[derive(Clone, Debug, Serialize)]
pub struct Syndrome {
    /// The fault's architectural name, such as `"EPT violation"`.
    pub name: &'static str,
    /// Register or field values that are defined for this fault, by name.
    #[serde(flatten)]
    pub values: serde_json::Map<String, serde_json::Value>,
    /// The set bits, spelled out.
    pub flags: Vec<&'static str>,
}

impl Syndrome {
    fn new(name: &'static str) -> Syndrome {
        Syndrome { name, values: serde_json::Map::new(), flags: Vec::new() }
    }

    fn value(mut self, key: &str, value: u64) -> Syndrome {
        self.values.insert(key.to_owned(), format!("{value:#x}").into());
        self
    }

    fn number(mut self, key: &str, value: u64) -> Syndrome {
        self.values.insert(key.to_owned(), value.into());
        self
    }

    fn flags(mut self, value: u64, names: &[(u64, &'static str)]) -> Syndrome {
        self.flags.extend(names.iter().filter(|(bit, _)| value & bit != 0).map(|(_, name)| *name));
        self
    }
}

/// The syndrome of a fault of `format`'s stage; `guest` is stage 1's format where this is stage 2's
/// fault under one; `access` is what software did.
pub(super) fn of<I: Address>(
    fault: &Fault<I>,
    format: &AnyFormat,
    guest: Option<&AnyFormat>,
    access: &Access,
    regime: &Regime,
) -> Option<Syndrome> {
    match format {
        AnyFormat::Long(long, _) => page_fault(fault, x86::fetch_flagged(long.controls(), true)),
        AnyFormat::Pae(pae, _) => page_fault(fault, x86::fetch_flagged(pae.controls(), true)),
        AnyFormat::Legacy(legacy, _) => {
            page_fault(fault, x86::fetch_flagged(legacy.controls(), false))
        }
        AnyFormat::Flat(..) => None,
        AnyFormat::Sv(sv, _) => trap(fault, sv, guest, access, regime),
        AnyFormat::ArmShort(..) => Some(pl1_abort(arm32::pl1(fault, false)?)),
        AnyFormat::ArmLpae(lpae, _) if lpae.is_hyp() => {
            Some(hyp_abort(arm32::hyp(fault, lpae.version())?, access.kind))
        }
        AnyFormat::ArmLpae(..) => Some(pl1_abort(arm32::pl1(fault, true)?)),
        AnyFormat::ArmLpaeStage2(stage2, _) => {
            let abort = arm32::stage2(fault, access, stage2.version())?;
            Some(hyp_abort(abort, access.kind))
        }
        AnyFormat::Arm64(..) => Some(arm64_abort(arm64::stage1(fault)?, access.kind)),
        AnyFormat::Arm64Stage2(..) => {
            let abort = arm64::stage2(fault, access)?;
            let in_aarch32 =
                matches!(guest, Some(AnyFormat::ArmShort(..) | AnyFormat::ArmLpae(..)));
            let abort = if in_aarch32 { abort.of_aarch32() } else { abort };
            Some(arm64_abort(abort, access.kind))
        }
        AnyFormat::Ept(ept, _) => {
            let gpa = fault.input.raw();
            Some(match x86::ept_violation(fault, ept, false) {
                None => Syndrome::new("EPT misconfiguration")
                    .number("exit_reason", 49)
                    .value("guest_physical_address", gpa),
                Some(qualification) => {
                    let syndrome = Syndrome::new("EPT violation")
                        .number("exit_reason", 48)
                        .value("exit_qualification", qualification)
                        .value("guest_physical_address", gpa)
                        .flags(qualification, VIOLATION_FLAGS);
                    match fault.access.origin {
                        Some(linear) if guest.is_some() => {
                            syndrome.value("guest_linear_address", linear)
                        }
                        _ => syndrome,
                    }
                }
            })
        }
        AnyFormat::Npt(npt, _) => {
            let info1 = x86::nested_page_fault(fault, npt);
            Some(
                Syndrome::new("#NPF")
                    .value("exitcode", 0x400)
                    .value("exitinfo1", info1)
                    .value("exitinfo2", fault.input.raw())
                    .flags(info1, NPF_FLAGS),
            )
        }
    }
}

/// `kind` is what the instruction did.
fn arm64_abort(abort: arm64::Abort, kind: Kind) -> Syndrome {
    let name = if kind == Kind::Execute { "Instruction Abort" } else { "Data Abort" };
    let mut syndrome = Syndrome::new(name).value("esr", abort.esr.value);
    for (key, field) in [("far", abort.far), ("hpfar", abort.hpfar)] {
        if let Some(value) = field.choose() {
            syndrome = syndrome.value(key, value);
        }
    }
    syndrome.flags(abort.esr.value, ARM64_FLAGS)
}

fn pl1_abort(abort: arm32::Pl1Abort) -> Syndrome {
    let status = abort.status.value;
    let syndrome = if abort.prefetch {
        Syndrome::new("Prefetch Abort").value("ifsr", status).value("ifar", abort.address.into())
    } else {
        Syndrome::new("Data Abort").value("dfsr", status).value("dfar", abort.address.into())
    };
    syndrome.flags(status, &[(arm32::fsr::WNR, "write")])
}

/// `kind` is what the instruction did.
fn hyp_abort(abort: arm32::HypAbort, kind: Kind) -> Syndrome {
    let name = if kind == Kind::Execute { "Prefetch Abort" } else { "Data Abort" };
    let mut syndrome = Syndrome::new(name).value("hsr", abort.hsr.value);
    for (key, field) in [("hdfar", abort.hdfar), ("hifar", abort.hifar), ("hpfar", abort.hpfar)] {
        if let Some(value) = field.choose() {
            syndrome = syndrome.value(key, value.into());
        }
    }
    syndrome.flags(abort.hsr.value, ARM64_FLAGS)
}

/// A RISC-V trap, everything reported that an implementation may report.
fn trap<I: Address>(
    fault: &Fault<I>,
    sv: &Sv,
    guest: Option<&AnyFormat>,
    access: &Access,
    regime: &Regime,
) -> Option<Syndrome> {
    let trap = if fault.stage == 1 {
        Trapped { address: fault.input, access, stage1: sv, regime, transformed: None }
            .of_one_stage::<()>(&Failed::Here(*fault))?
    } else {
        let bare = Sv::stage1(Scheme::Bare, *sv.features());
        let stage1 = match guest {
            Some(AnyFormat::Sv(guest, _)) => guest,
            _ => &bare,
        };
        let address = Gva::new(fault.access.origin.unwrap_or(fault.input.raw()));
        Trapped { address, access, stage1, regime, transformed: None }
            .of_two_stages::<I, ()>(&Failed::Below(Failed::Here(*fault)))?
    };
    let registers = trap.registers(Reports::ALL);
    let (_, name) = TRAP_NAMES.iter().find(|(code, _)| *code == registers.scause)?;
    let mut syndrome =
        Syndrome::new(name).number("scause", registers.scause).value("stval", registers.stval);
    if fault.stage != 1 {
        syndrome = syndrome.value("htval", registers.htval).value("htinst", registers.htinst);
    }
    Some(syndrome)
}

const TRAP_NAMES: &[(u64, &str)] = &[
    (codes::FETCH_ACCESS, "instruction access fault"),
    (codes::LOAD_ACCESS, "load access fault"),
    (codes::STORE_ACCESS, "store/AMO access fault"),
    (codes::FETCH_PAGE, "instruction page fault"),
    (codes::LOAD_PAGE, "load page fault"),
    (codes::STORE_PAGE, "store/AMO page fault"),
    (codes::FETCH_GUEST_PAGE, "instruction guest-page fault"),
    (codes::LOAD_GUEST_PAGE, "load guest-page fault"),
    (codes::STORE_GUEST_PAGE, "store/AMO guest-page fault"),
];

fn page_fault<I: Address>(fault: &Fault<I>, fetch_flagged: bool) -> Option<Syndrome> {
    match fault.cause {
        Cause::NonCanonical | Cause::AddressSpaceSeparation => {
            Some(Syndrome::new("#GP").value("error_code", 0))
        }
        _ => {
            let code = x86::page_fault(fault, fetch_flagged)?;
            Some(
                Syndrome::new("#PF")
                    .value("error_code", code)
                    .value("cr2", fault.input.raw())
                    .flags(code, PAGE_FAULT_FLAGS),
            )
        }
    }
}

const ARM64_FLAGS: &[(u64, &str)] =
    &[(arm64::iss::WNR, "write"), (arm64::iss::S1PTW, "stage-1 table walk")];

const PAGE_FAULT_FLAGS: &[(u64, &str)] = &[
    (1 << 0, "present"),
    (1 << 1, "write"),
    (1 << 2, "user"),
    (1 << 3, "reserved bit"),
    (1 << 4, "instruction fetch"),
    (1 << 5, "protection key"),
    (1 << 6, "shadow stack"),
];

const NPF_FLAGS: &[(u64, &str)] = &[
    (1 << 0, "present"),
    (1 << 1, "write"),
    (1 << 2, "user"),
    (1 << 3, "reserved bit"),
    (1 << 4, "instruction fetch"),
    (1 << 6, "shadow stack"),
    (1 << 32, "final guest physical address"),
    (1 << 33, "guest page table"),
    (1 << 37, "supervisor shadow-stack page"),
];

const VIOLATION_FLAGS: &[(u64, &str)] = &[
    (1 << 0, "data read"),
    (1 << 1, "data write"),
    (1 << 2, "instruction fetch"),
    (1 << 3, "readable"),
    (1 << 4, "writable"),
    (1 << 5, "executable"),
    (1 << 6, "user-executable"),
    (1 << 7, "linear address valid"),
    (1 << 8, "final access"),
    (1 << 9, "user-mode address"),
    (1 << 10, "guest-writable"),
    (1 << 11, "guest execute-disable"),
    (1 << 13, "shadow stack"),
    (1 << 14, "supervisor shadow-stack page"),
    (1 << 15, "guest-paging verification"),
];
