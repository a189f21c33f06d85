//! The guest's own tables, of the architecture that its processor has.

use slat::edit::{Encode, arm64 as arm64_entries, x86 as x86_entries};
use slat::format::arm64::{self, Granule};
use slat::format::x86::Controls;
use slat::format::x86::bits;
use slat::format::x86::long::{Long, Processor as X86Processor};
use slat::{Gpa, Gva, Permissions, Stage, Updates};

use crate::preset::{Extension, Processor};

/// A guest's stage 1, of four levels with the 4 KiB granule.
#[derive(Clone, Copy, Debug)]
pub enum Stage1 {
    /// 4-level paging.
    X86(Long),
    /// EL1&0.
    Arm(arm64::Stage1),
}

/// Data pages: nothing is executed in them.
const DATA: Permissions = Permissions { read: true, write: true, execute: false };

impl Stage1 {
    /// As guests use it on this processor.
    ///
    /// # Errors
    /// Where the processor's sizes make none.
    pub(super) fn of(processor: &Processor) -> Result<Stage1, String> {
        let arm = processor
            .virtualization
            .as_ref()
            .is_some_and(|can| can.extension.value == Extension::Arm);
        if arm {
            let cpu = arm64::Processor {
                physical_bits: 40,
                lpa2: false,
                large_virtual_addresses: false,
                hardware_access_flag: false,
                hardware_dirty_state: false,
                ..arm64::Processor::default()
            };
            let stage = arm64::Stage1::plain(Granule::Four, 48, &cpu);
            return stage.map(Stage1::Arm).map_err(|refused| refused.to_string());
        }
        let controls = Controls { write_protect: true, nxe: true, ..Controls::default() };
        let cpu = X86Processor { physical_bits: 40, ..X86Processor::default() };
        Ok(Stage1::X86(Long::four(controls, cpu)))
    }

    /// The entry that points at a table.
    pub(super) fn table(&self, next: u64, level: u8) -> u64 {
        match self {
            Stage1::X86(format) => format.table(next, level),
            Stage1::Arm(format) => format.table(next, level),
        }
    }

    /// The entry that maps data at `gpa`, of a page of this level.
    pub(super) fn page(&self, gpa: u64, level: u8) -> u64 {
        let entry = match self {
            Stage1::X86(format) => format
                .leaf(&x86_entries::Attributes::new(DATA), level)
                .map(|leaf| leaf | format.place(gpa, level)),
            Stage1::Arm(format) => format
                .leaf(&arm64_entries::Stage1Attributes::new(DATA), level)
                .map(|leaf| leaf | format.place(gpa, level)),
        };
        entry.unwrap_or_else(|_| unreachable!("both formats have data pages"))
    }

    /// A leaf as software writes it, without what hardware has noted in it.
    pub(super) fn fresh(&self, entry: u64) -> u64 {
        match self {
            Stage1::X86(_) => entry & !(bits::A | bits::D),
            Stage1::Arm(_) => entry,
        }
    }

    /// x86's stage with the root at `root`; `None` on Arm.
    pub(super) fn x86(&self, root: u64) -> Option<Stage<Long, Gva, Gpa>> {
        match self {
            Stage1::X86(format) => {
                Some(Stage::new(*format, format.root(root)).with_updates(Updates::OnSuccess))
            }
            Stage1::Arm(_) => None,
        }
    }

    /// The format's name.
    pub fn name(&self) -> &'static str {
        use slat::format::Format;
        match self {
            Stage1::X86(format) => format.name(),
            Stage1::Arm(format) => format.name(),
        }
    }
}
