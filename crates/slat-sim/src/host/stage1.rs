//! The guest's own tables, of the architecture that its processor has.

use slat::edit::{Encode, arm64 as arm64_entries, x86 as x86_entries};
use slat::format::arm32::{self, Lpae};
use slat::format::arm64::{self, Granule};
use slat::format::x86::Controls;
use slat::format::x86::bits;
use slat::format::x86::long::{Long, Processor as X86Processor};
use slat::regime::arm::hcr;
use slat::{Gpa, Gva, Permissions, Stage, Updates};

use crate::preset::{Extension, Processor};

/// A guest's stage 1, with pages of 4 KiB and 512 entries in tables below the root.
#[derive(Clone, Copy, Debug)]
pub enum Stage1 {
    /// 4-level paging.
    X86(Long),
    /// EL1&0 of Armv8, of four levels.
    Arm(arm64::Stage1),
    /// PL1&0 of ARMv7 with long descriptors: 32-bit addresses, three levels, four entries in the root.
    Armv7(Lpae),
}

/// What a guest is for: it moves to hosts of the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Architecture {
    /// x86-64.
    X86 = 0,
    /// AArch64.
    Arm64 = 1,
    /// AArch32.
    Arm32 = 2,
}

/// Runs the same code for the tables of each format.
macro_rules! each_stage1 {
    ($stage1:expr, $format:ident => $call:expr) => {
        match $stage1 {
            Stage1::X86($format) => $call,
            Stage1::Arm($format) => $call,
            Stage1::Armv7($format) => $call,
        }
    };
}
pub(super) use each_stage1;

/// Data pages: nothing is executed in them.
const DATA: Permissions = Permissions { read: true, write: true, execute: false };

impl Stage1 {
    /// As guests use it on this processor.
    ///
    /// # Errors
    /// Where the processor's sizes make none.
    pub(super) fn of(processor: &Processor) -> Result<Stage1, String> {
        match processor.virtualization.as_ref().map(|can| can.extension.value) {
            Some(Extension::Arm) => {
                let cpu = arm64::Processor {
                    physical_bits: 40,
                    lpa2: false,
                    large_virtual_addresses: false,
                    hardware_access_flag: false,
                    hardware_dirty_state: false,
                    ..arm64::Processor::default()
                };
                let stage = arm64::Stage1::plain(Granule::Four, 48, &cpu);
                stage.map(Stage1::Arm).map_err(|refused| refused.to_string())
            }
            Some(Extension::Armv7) => {
                let sctlr = arm32::sctlr::M | arm32::sctlr::C | arm32::sctlr::I;
                let ttbcr = arm32::ttbcr::EAE;
                let hcr = hcr::VM;
                let registers = arm32::Registers { sctlr, ttbcr, hcr, ..Default::default() };
                let stage = Lpae::new(&registers, &arm32::Processor::V7);
                stage.map(Stage1::Armv7).map_err(|refused| refused.to_string())
            }
            Some(Extension::Vmx | Extension::Svm) | None => {
                let controls = Controls { write_protect: true, nxe: true, ..Controls::default() };
                let cpu = X86Processor { physical_bits: 40, ..X86Processor::default() };
                Ok(Stage1::X86(Long::four(controls, cpu)))
            }
        }
    }

    /// What its guest is for.
    pub(super) fn architecture(&self) -> Architecture {
        match self {
            Stage1::X86(_) => Architecture::X86,
            Stage1::Arm(_) => Architecture::Arm64,
            Stage1::Armv7(_) => Architecture::Arm32,
        }
    }

    /// The root's level.
    pub(super) fn top(&self) -> u8 {
        each_stage1!(self, format => format.top())
    }

    /// The entry that points at a table.
    pub(super) fn table(&self, next: u64, level: u8) -> u64 {
        each_stage1!(self, format => format.table(next, level))
    }

    /// The entry that maps data at `gpa`, of a page of this level.
    pub(super) fn page(&self, gpa: u64, level: u8) -> u64 {
        let arm = arm64_entries::Stage1Attributes::new(DATA);
        let leaf = match self {
            Stage1::X86(format) => format.leaf(&x86_entries::Attributes::new(DATA), level),
            Stage1::Arm(format) => format.leaf(&arm, level),
            Stage1::Armv7(format) => format.leaf(&arm, level),
        };
        let leaf = leaf.unwrap_or_else(|_| unreachable!("these formats have data pages"));
        leaf | each_stage1!(self, format => format.place(gpa, level))
    }

    /// A leaf as software writes it, without what hardware has noted in it.
    pub(super) fn fresh(&self, entry: u64) -> u64 {
        match self {
            Stage1::X86(_) => entry & !(bits::A | bits::D),
            Stage1::Arm(_) | Stage1::Armv7(_) => entry,
        }
    }

    /// x86's stage with the root at `root`; `None` on Arm.
    pub(super) fn x86(&self, root: u64) -> Option<Stage<Long, Gva, Gpa>> {
        match self {
            Stage1::X86(format) => {
                Some(Stage::new(*format, format.root(root)).with_updates(Updates::OnSuccess))
            }
            Stage1::Arm(_) | Stage1::Armv7(_) => None,
        }
    }

    /// The format's name.
    pub fn name(&self) -> &'static str {
        use slat::format::Format;
        each_stage1!(self, format => format.name())
    }
}
