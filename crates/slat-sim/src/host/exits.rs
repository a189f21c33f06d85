//! Why guests left for the hypervisor, counted.

use std::collections::BTreeMap;

/// Why a guest exited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Cause {
    /// The second stage has nothing there: memory is given at the first touch (overcommitment).
    Violation,
    /// A write to a page that the dirty log keeps read-only, or that is shared.
    WriteProtected,
    /// A store to a shadowed table.
    TableWrite,
    /// A CR3 load under shadow paging.
    Cr3,
    /// INVLPG under shadow paging.
    Invlpg,
    /// A page fault of the guest's own, intercepted.
    TrueFault,
    /// A fault that only filled the shadow.
    HiddenFault,
    /// A write through a shadow entry that was kept read-only.
    Dirty,
    /// An access to a device.
    Mmio,
    /// A write to CR0.
    Cr0,
    /// An instruction that was emulated.
    Emulation,
}

impl Cause {
    /// The name in text and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Violation => "violation",
            Cause::WriteProtected => "write-protected",
            Cause::TableWrite => "table-write",
            Cause::Cr3 => "cr3",
            Cause::Invlpg => "invlpg",
            Cause::TrueFault => "true-fault",
            Cause::HiddenFault => "hidden-fault",
            Cause::Dirty => "dirty",
            Cause::Mmio => "mmio",
            Cause::Cr0 => "cr0",
            Cause::Emulation => "emulation",
        }
    }
}

impl From<slat_mmu::shadow::Exit> for Cause {
    fn from(exit: slat_mmu::shadow::Exit) -> Cause {
        use slat_mmu::shadow::Exit;
        match exit {
            Exit::TableWrite => Cause::TableWrite,
            Exit::Cr3 => Cause::Cr3,
            Exit::Invlpg => Cause::Invlpg,
            Exit::TrueFault => Cause::TrueFault,
            Exit::HiddenFault => Cause::HiddenFault,
            Exit::Dirty => Cause::Dirty,
            Exit::Emulation => Cause::Emulation,
        }
    }
}

/// Exits by cause.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exits(BTreeMap<Cause, u64>);

impl Exits {
    pub(super) fn count(&mut self, cause: Cause) {
        *self.0.entry(cause).or_default() += 1;
    }

    /// How many there were for this cause.
    pub fn of(&self, cause: Cause) -> u64 {
        self.0.get(&cause).copied().unwrap_or_default()
    }

    /// All causes that there were.
    pub fn iter(&self) -> impl Iterator<Item = (Cause, u64)> + '_ {
        self.0.iter().map(|(cause, count)| (*cause, *count))
    }

    /// In all.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}
