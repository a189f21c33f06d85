//! What a machine counts.

use std::cell::Cell;

use slat::format::Decoded;
use slat::{Observer, Purpose, Step};
use slat_mmu::shadow::Exit;

/// Rows and columns of the reference grid: levels 0 to 4, and one more for the final address (rows)
/// or the guest's own entry (columns).
pub const GRID: usize = 6;

/// Counts of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses of the recording, before any split at page borders.
    pub accesses: u64,
    /// Instructions, where the recording knows.
    pub instructions: u64,
    /// Lookups: accesses, one more for each that crosses a page.
    pub lookups: u64,
    /// Lookups that the second-level TLB served.
    pub second_hits: u64,
    /// Lookups that walked.
    pub walks: u64,
    /// Table entries read by guest level (row; 5 is the final address) and nested level (column; 5
    /// is the guest's own entry).
    pub grid: [[u64; GRID]; GRID],
    /// Exits by [`Cause`].
    pub exits: [u64; CAUSES],
    /// Switches to the processes of another machine, where all share the cores without virtualization.
    pub process_switches: u64,
    /// Walks whose entry is smaller than the guest's page.
    pub splintered: u64,
    /// Accesses whose walk ended in a fault that the recording does not explain.
    pub unexplained: u64,
}

/// How many causes of exits there are.
pub const CAUSES: usize = 10;

/// Why a guest exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A second-stage violation: the first touch of a host page.
    Violation,
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
    /// A fault that only set a dirty bit.
    Dirty,
    /// A store that the hypervisor carried out, to a page that is read-only but for `CR0.WP`.
    Emulation,
    /// An access to a device, under any hypervisor.
    Io,
    /// Another virtual machine's turn on the core.
    Switch,
}

impl Cause {
    /// All, in order.
    pub const ALL: [Cause; CAUSES] = [
        Cause::Violation,
        Cause::TableWrite,
        Cause::Cr3,
        Cause::Invlpg,
        Cause::TrueFault,
        Cause::HiddenFault,
        Cause::Dirty,
        Cause::Emulation,
        Cause::Io,
        Cause::Switch,
    ];

    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Violation => "violation",
            Cause::TableWrite => "table-write",
            Cause::Cr3 => "cr3",
            Cause::Invlpg => "invlpg",
            Cause::TrueFault => "true-fault",
            Cause::HiddenFault => "hidden-fault",
            Cause::Dirty => "dirty",
            Cause::Emulation => "emulation",
            Cause::Io => "io",
            Cause::Switch => "switch",
        }
    }
}

impl From<Exit> for Cause {
    fn from(exit: Exit) -> Cause {
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

/// Counts references by cell of the grid.
#[derive(Default)]
pub(super) struct Grid(pub(super) [[Cell<u64>; GRID]; GRID]);

impl Observer for Grid {
    const WATCHES: bool = false;

    #[inline]
    fn step(&self, step: &Step) {
        let (row, column) = if step.stage == 1 {
            (usize::from(step.level), GRID - 1)
        } else {
            let row = match step.access.purpose {
                Purpose::Table { level } | Purpose::Update { level } => usize::from(level),
                Purpose::Final | Purpose::PdpteLoad => GRID - 1,
            };
            (row, usize::from(step.level))
        };
        debug_assert!(!matches!(step.decoded, Decoded::Restart));
        let cell = &self.0[row.min(GRID - 1)][column.min(GRID - 1)];
        cell.set(cell.get() + 1);
    }
}
