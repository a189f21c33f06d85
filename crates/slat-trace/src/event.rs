//! What a recording or a trace says, in memory: accesses, the events between them, and the stream
//! that yields both.
//!
//! Accesses are many and events are few, so a [`Batch`] keeps them apart: accesses in one flat array
//! of 16-byte records in the global order of the machine, and each event beside it with the index
//! of the access that it comes before. A consumer loops over plain slices ([`Batch::runs`]) and
//! pays for an event only where there is one.
//!
//! ```
//! use slat_trace::{Access, Batch, Event, Kind, Root};
//!
//! let mut batch = Batch::default();
//! batch.event(0, Event::Root { root: Root::Cr3, value: 0x1000 });
//! batch.accesses.push(Access::new(Kind::Load, 0x7fff_0000, 8));
//!
//! let mut loads = 0;
//! for run in batch.runs() {
//!     for at in run.events {
//!         println!("vCPU {}: {:?}", at.vcpu, at.event);
//!     }
//!     loads += run.accesses.iter().filter(|a| a.kind() == Kind::Load).count();
//! }
//! assert_eq!(loads, 1);
//! ```

mod access;
mod batch;

use std::ops::Range;

pub(crate) use access::Sort;
pub use access::{Access, Kind};
pub use batch::{At, Batch, Run, Runs};

/// A register that holds the root of a guest's own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Root {
    /// x86-64 CR3.
    Cr3 = 0,
    /// AArch64 TTBR0_EL1.
    Ttbr0 = 1,
    /// AArch64 TTBR1_EL1.
    Ttbr1 = 2,
}

/// A register, other than a root, that decides how the guest's addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Control {
    /// x86-64 CR0 (WP, PG, CD).
    Cr0 = 0,
    /// x86-64 CR4 (PGE, LA57, SMEP, SMAP, PCIDE, ...).
    Cr4 = 1,
    /// x86-64 IA32_EFER (LMA, NXE).
    Efer = 2,
    /// AArch64 TCR_EL1.
    Tcr = 3,
    /// AArch64 SCTLR_EL1.
    Sctlr = 4,
    /// AArch64 MAIR_EL1.
    Mair = 5,
}

/// An instruction of the guest that drops translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invalidation {
    /// x86-64 INVLPG.
    Invlpg {
        /// The guest-virtual address of its operand.
        va: u64,
    },
    /// x86-64 INVPCID.
    Invpcid {
        /// Its type, 0 to 3.
        kind: u64,
        /// The PCID of its descriptor.
        pcid: u64,
        /// The address of its descriptor.
        va: u64,
    },
    /// AArch64 TLBI.
    Tlbi {
        /// The operation as encoded in the instruction: op1 (3 bits), CRn (4), CRm (4), op2 (3),
        /// op1 the most significant.
        operation: u16,
        /// The value of its operand register, 0 for the register 31.
        operand: u64,
    },
}

/// An exception or interrupt, at the first instruction of its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exception {
    /// x86-64: the vector, 0 to 255. AArch64: the entry of the vector table, 0 to 15.
    pub vector: u8,
    /// x86-64: CR2. AArch64: FAR_EL1. Means something for faults on an address only.
    pub fault_va: u64,
    /// x86-64: RSP, pointing at the frame. AArch64: ESR_EL1.
    pub stack_or_syndrome: u64,
    /// x86-64: the six words at RSP: error code (where the vector has one), RIP, CS, RFLAGS, RSP,
    /// SS; without an error code they begin with RIP. AArch64: ELR_EL1 and SPSR_EL1, then zeros.
    pub frame: [u64; 6],
}

/// What happened between two accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A root register was written, with all that this means for the TLB of the vCPU; also its
    /// value at the start.
    Root {
        /// Which one.
        root: Root,
        /// The whole value written: address, PCID or ASID, flags.
        value: u64,
    },
    /// A control register was written; also its value at the start.
    Control {
        /// Which one.
        register: Control,
        /// The whole value written.
        value: u64,
    },
    /// The page `gpa` is from now on reachable from a root as a table of `level` (0 is the smallest
    /// leaf's). Its content follows as [`Event::TableEntry`]: all entries that are not zero if
    /// `fresh`, else those that differ from what the page held when it last was a table.
    TablePage {
        /// The guest-physical address of the page.
        gpa: u64,
        /// Its level in the tree.
        level: u8,
        /// Whether everything known of its content is void, and the page to be zeroed first.
        fresh: bool,
    },
    /// Content of a table page, known and not written now.
    TableEntry {
        /// The guest-physical address of the entry, 8-byte aligned.
        gpa: u64,
        /// The entry.
        value: u64,
    },
    /// The guest stored to a table page. The store itself is the [`Access`] before.
    TableStore {
        /// The guest-physical address of the entry, 8-byte aligned.
        gpa: u64,
        /// The whole entry after the store.
        value: u64,
    },
    /// The page `gpa` is no longer reachable as a table: stores to it are plain data.
    TableRelease {
        /// The guest-physical address of the page.
        gpa: u64,
    },
    /// The guest dropped translations.
    Invalidate(Invalidation),
    /// An exception or interrupt was taken.
    Exception(Exception),
    /// IRET or ERET is next to be executed.
    ExceptionReturn,
    /// The privilege of the vCPU changed.
    Mode {
        /// Whether the vCPU now runs with user privilege.
        user: bool,
    },
    /// An access to memory-mapped input and output, which is not in the accesses.
    Io {
        /// The guest-virtual address.
        va: u64,
        /// The guest-physical address.
        gpa: u64,
        /// Its length in bytes.
        len: u8,
        /// Whether it is a store.
        store: bool,
    },
    /// A model-specific register was written.
    Msr {
        /// Its number.
        number: u32,
        /// The value.
        value: u64,
    },
}

/// The architecture of the guest that was recorded or traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Arch {
    /// x86-64 in long mode.
    X86_64 = 0,
    /// AArch64.
    Aarch64 = 1,
}

/// The machine that a stream comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its architecture.
    pub arch: Arch,
    /// Its number of virtual CPUs, at least 1.
    pub vcpus: u8,
    /// Whether the stream has the guest's own tables, roots and privilege. Without them (a trace of
    /// one program) the consumer must make tables.
    pub tables: bool,
    /// The guest-physical addresses of its memory, start..end, where known.
    pub memory: Option<Range<u64>>,
}

/// A stream of accesses and events.
///
/// Consumers are generic over it, so that the call costs one a batch and nothing an access.
pub trait Source {
    /// Why the stream could not be read further.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The machine that the stream comes from.
    fn machine(&self) -> &Machine;

    /// Clears `batch` and fills it with what comes next, about [`Batch::ACCESSES`] accesses.
    /// Returns false, and an empty batch, at the end.
    ///
    /// # Errors
    ///
    /// Where the input is damaged or cannot be read. `batch` then holds what comes before the
    /// damage and is valid.
    fn next(&mut self, batch: &mut Batch) -> Result<bool, Self::Error>;
}
