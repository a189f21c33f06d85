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

use std::ops::Range;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A data read. A read-modify-write is a load followed by a store.
    Load = 0,
    /// A data write.
    Store = 1,
    /// The fetch of a block of consecutive instructions.
    Fetch = 2,
}

/// One load, store or block fetch.
///
/// The address is the first byte's. An access that crosses a page is one record: its second page
/// is the consumer's to look up ([`Access::crosses`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Access {
    /// The guest-virtual address of the first byte.
    pub va: u64,
    /// The number of the 4 KiB guest-physical page that holds the first byte, as the machine that
    /// was recorded computed it; [`Access::NO_FRAME`] where it is not known.
    pub frame: u32,
    len: u16,
    /// The virtual CPU that made the access, from 0.
    pub vcpu: u8,
    flags: u8,
}

impl Access {
    /// The frame of an access whose physical address is not known, as in user-only traces and where
    /// the reader was not asked for frames.
    pub const NO_FRAME: u32 = u32::MAX;

    const KIND: u8 = 0b011;
    const USER: u8 = 0b100;

    /// An access by vCPU 0 in user mode, its frame not known.
    ///
    /// `len` is its length in bytes; for a fetch, that of all instructions of the block.
    #[inline]
    #[must_use]
    pub fn new(kind: Kind, va: u64, len: u16) -> Self {
        Self { va, frame: Self::NO_FRAME, len, vcpu: 0, flags: kind as u8 | Self::USER }
    }

    /// The same access by virtual CPU `vcpu`.
    #[inline]
    #[must_use]
    pub fn on(self, vcpu: u8) -> Self {
        Self { vcpu, ..self }
    }

    /// The same access with user privilege, or with that of the kernel.
    #[inline]
    #[must_use]
    pub fn with_user(self, user: bool) -> Self {
        let flags = if user { self.flags | Self::USER } else { self.flags & !Self::USER };
        Self { flags, ..self }
    }

    /// The same access, its first byte in the 4 KiB guest-physical page `frame`.
    #[inline]
    #[must_use]
    pub fn with_frame(self, frame: u32) -> Self {
        Self { frame, ..self }
    }

    /// The same access at another address.
    #[inline(always)]
    pub(crate) fn at(self, va: u64) -> Self {
        Self { va, ..self }
    }

    /// What the same vCPU with the same privilege does with a data access: bit 0 of `shape` says that it is a store,
    /// bits 1..=3 the logarithm of its length.
    #[inline]
    pub(crate) fn data(self, shape: u8) -> Sort {
        let flags = self.flags & Self::USER | shape & 1;
        Sort { len: 1 << (shape >> 1 & 7), who: u16::from_le_bytes([self.vcpu, flags]) }
    }

    /// What the same vCPU with the same privilege does with a fetch of `len` bytes.
    #[inline]
    pub(crate) fn fetch(self, len: u16) -> Sort {
        let flags = self.flags & Self::USER | Kind::Fetch as u8;
        Sort { len, who: u16::from_le_bytes([self.vcpu, flags]) }
    }

    /// An access of a sort.
    #[inline(always)]
    pub(crate) fn of(Sort { len, who }: Sort, va: u64, frame: u32) -> Self {
        let [vcpu, flags] = who.to_le_bytes();
        Self { va, frame, len, vcpu, flags }
    }

    /// What the access does.
    #[inline]
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.flags & Self::KIND {
            0 => Kind::Load,
            1 => Kind::Store,
            _ => Kind::Fetch,
        }
    }

    /// Its length in bytes.
    #[inline]
    #[must_use]
    pub fn len(self) -> u16 {
        self.len
    }

    /// Whether it has no length, as in traces that do not tell.
    #[inline]
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether it was made with user privilege (x86-64: CPL 3; AArch64: EL0).
    #[inline]
    #[must_use]
    pub fn user(self) -> bool {
        self.flags & Self::USER != 0
    }

    /// What of its kind and privilege a walk depends on, in three bits.
    #[inline(always)]
    pub(crate) fn class(self) -> u8 {
        self.flags & (Self::KIND | Self::USER)
    }

    /// Whether it reaches into the following 4 KiB page.
    #[inline]
    #[must_use]
    pub fn crosses(self) -> bool {
        (self.va & 0xfff) + u64::from(self.len) > 0x1000
    }

    /// The guest-physical address of the first byte, where the frame is known.
    #[inline]
    #[must_use]
    pub fn gpa(self) -> Option<u64> {
        (self.frame != Self::NO_FRAME).then(|| u64::from(self.frame) << 12 | self.va & 0xfff)
    }
}

/// All of an access but where it is: apart, it is copied as one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub(crate) struct Sort {
    len: u16,
    /// The vCPU, and above it the flags.
    who: u16,
}

impl Sort {
    /// No access is of this sort.
    pub(crate) const NONE: Self = Self { len: 0, who: u16::MAX };

    /// Whether vCPU, kind and privilege are the same.
    #[inline(always)]
    pub(crate) fn is_like(self, other: Self) -> bool {
        self.who == other.who
    }

    /// The length in bytes.
    #[inline(always)]
    pub(crate) fn len(self) -> u16 {
        self.len
    }
}

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

/// An event, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// The event comes before `accesses[before]` of its batch, or after the last.
    pub before: u32,
    /// The virtual CPU that it happened on, from 0.
    pub vcpu: u8,
    /// What happened.
    pub event: Event,
}

/// A stretch of accesses with the events that come before them.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The events, in order; they come before all accesses of this run.
    pub events: &'a [At],
    /// The accesses, in order, without any event between them.
    pub accesses: &'a [Access],
}

/// A buffer of consecutive accesses and events, owned by the consumer and reused.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The accesses in their global order.
    pub accesses: Vec<Access>,
    /// The events in their order; `before` never decreases.
    pub events: Vec<At>,
    /// How many instructions the fetches of this batch hold, where the source knows. A block that
    /// an exception left early counts whole.
    pub instructions: u64,
}

impl Batch {
    /// How many accesses a source aims to put into one batch: enough to pay for the call, few
    /// enough to stay in a second-level cache.
    pub const ACCESSES: usize = 1 << 14;

    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.accesses.clear();
        self.events.clear();
        self.instructions = 0;
    }

    /// Appends an event after all accesses that are there.
    ///
    /// # Panics
    ///
    /// Where the batch holds 2^32 accesses or more.
    #[inline]
    pub fn event(&mut self, vcpu: u8, event: Event) {
        let before = u32::try_from(self.accesses.len()).expect("a batch of fewer than 2^32");
        self.events.push(At { before, vcpu, event });
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accesses.is_empty() && self.events.is_empty()
    }

    /// The batch as runs of accesses without an event between them.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        Runs { batch: self, events: 0, accesses: 0 }
    }
}

/// The iterator of [`Batch::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    batch: &'a Batch,
    events: usize,
    accesses: usize,
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    fn next(&mut self) -> Option<Run<'a>> {
        let Batch { accesses, events, .. } = self.batch;
        if self.events == events.len() && self.accesses == accesses.len() {
            return None;
        }
        let here = self.accesses;
        let first = self.events;
        let due = |at: &At| at.before as usize <= here;
        self.events += events[first..].iter().take_while(|at| due(at)).count();
        let end = events.get(self.events).map_or(accesses.len(), |at| at.before as usize);
        // A `before` past the end is a mistake of the source; it must not end in a panic here.
        self.accesses = end.min(accesses.len());
        if end > accesses.len() {
            self.events = events.len();
        }
        Some(Run { events: &events[first..self.events], accesses: &accesses[here..self.accesses] })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_sixteen_bytes_and_keeps_what_it_is_given() {
        assert_eq!(size_of::<Access>(), 16);
        for kind in [Kind::Load, Kind::Store, Kind::Fetch] {
            let access = Access::new(kind, 0x1ff8, 8);
            assert_eq!((access.kind(), access.len(), access.user()), (kind, 8, true));
            assert!(!access.crosses() && access.gpa().is_none() && !access.is_empty());
            let access = access.on(3).with_user(false).with_frame(0x12);
            assert_eq!((access.kind(), access.vcpu, access.user()), (kind, 3, false));
            assert_eq!(access.gpa(), Some(0x12ff8));
        }
        assert!(Access::new(Kind::Load, 0x1ff9, 8).crosses());
    }

    #[test]
    fn runs_give_every_access_and_event_once_in_order() {
        let mut batch = Batch::default();
        assert!(batch.runs().next().is_none());
        let event = |value| Event::Root { root: Root::Cr3, value };
        batch.event(0, event(0));
        for va in 0..3 {
            batch.accesses.push(Access::new(Kind::Load, va, 1));
        }
        batch.event(0, event(1));
        batch.event(1, event(2));
        batch.accesses.push(Access::new(Kind::Store, 3, 1));
        batch.event(0, event(3));
        let shape: Vec<_> = batch.runs().map(|r| (r.events.len(), r.accesses.len())).collect();
        assert_eq!(shape, [(1, 3), (2, 1), (1, 0)]);
        let all: Vec<u64> = batch.runs().flat_map(|r| r.accesses).map(|a| a.va).collect();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn an_event_past_the_end_ends_the_runs() {
        let mut batch = Batch::default();
        batch.accesses.push(Access::new(Kind::Load, 0, 1));
        batch.events.push(At { before: 9, vcpu: 0, event: Event::ExceptionReturn });
        let shape: Vec<_> = batch.runs().map(|r| (r.events.len(), r.accesses.len())).collect();
        assert_eq!(shape.iter().map(|s| s.1).sum::<usize>(), 1);
    }
}
