//! Second-level address translation, bit by bit.
//!
//! In a virtual machine every address is translated twice. This crate computes and explains such
//! translations for every second stage that hardware has (Intel EPT, AMD NPT/RVI, Arm Stage-2,
//! RISC-V G-stage) and every first stage that runs over it.
//!
//! > A nested walk is a walk through a memory that is itself walked.
//!
//! There is one walker, [`walk`]. Stage 1 reads its entries from a [`Memory`] whose every read is
//! first translated by stage 2 ([`Nested`]); two-dimensional paging, with its 24 references for
//! 4 + 4 levels, falls out by composition.
//!
//! ```
//! use slat::format::{ept, ept::Ept, x86};
//! use slat::{Access, Gpa, Gva, Regime, SliceMemory, Spa, Stage, translate};
//!
//! // One guest page: GVA 0 -> GPA 0x1000, GPA 0x1000 -> SPA 0x1000 by one 1 GiB page.
//! let mut bytes = vec![0u8; 8 * 4096];
//! let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
//! let mut set = |address, entry: u64| {
//!     memory.poke(Spa::new(address), slat::EntryLayout::LE64, entry).unwrap();
//! };
//! set(0x2000, 0x3000 | 7); // guest PML4E, PDPTE, PDE, PTE
//! set(0x3000, 0x4000 | 7);
//! set(0x4000, 0x5000 | 7);
//! set(0x5000, 0x1000 | 7);
//! set(0x6000, 0x7000 | 7); // EPT PML4E and a 1 GiB PDPTE, write-back
//! set(0x7000, 0xb7);
//!
//! let processor = x86::long::Processor::default();
//! let stage1 = Stage::<_, Gva, Gpa>::new(
//!     x86::long::Long::four(x86::Controls::default(), processor),
//!     0x2000,
//! );
//! let stage2 = Stage::<_, Gpa, Spa>::new(Ept::four(ept::Features::default()), 0x6000);
//! let found = translate(
//!     &stage1,
//!     &stage2,
//!     &mut memory,
//!     Gva::new(0x123),
//!     &Access::default(),
//!     &Regime::default(),
//!     &(),
//! )
//! .unwrap();
//! assert_eq!(found.output(), Spa::new(0x1123));
//! ```
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | GVA, GPA, SPA | guest virtual, guest physical, system physical address: [`Gva`], [`Gpa`], [`Spa`], never interchangeable |
//! | stage 1 / stage 2 | the guest's own translation GVA to GPA / the hypervisor's GPA to SPA |
//! | format | how one radix tree is encoded: [`format::Format`]. Nothing about allocation or policy |
//! | level | level 0 holds only leaves; the root has the highest number |
//! | leaf / table / empty / reserved | what an entry decodes to, from (raw entry, level) alone: [`format::Decoded`] |
//! | occupied / valid | an entry with content / one that translates |
//! | start..end, start..=last | half-open and inclusive ranges, never mixed in one signature |
//! | fault / syndrome | why a translation ended ([`Fault`]) / how one architecture reports it ([`syndrome`]) |
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

/// The chapter of the book, whose examples are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/in-your-hypervisor.md")]
mod in_your_hypervisor {}

/// Another chapter.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/nested.md")]
mod nested {}

/// And another.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/views.md")]
mod views {}

pub mod access;
pub mod address;
pub mod audit;
pub mod combined;
pub mod edit;
pub mod fault;
pub mod format;
pub mod invalidate;
pub mod memory;
pub mod memory_type;
pub mod observe;
pub mod regime;
pub mod register;
pub mod syndrome;
mod translate;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
mod walk;

pub use access::{Access, Flavor, Kind, Privilege, Purpose, Stage1Page};
pub use address::{Address, Gpa, Gva, L2Gpa, Spa};
pub use fault::{Cause, Denied, Failed, Fault, Reserved, Why};
pub use memory::{ByteOrder, EntryLayout, EntrySize, Memory, Outside, Reached, SliceMemory, Value};
pub use memory_type::MemoryType;
pub use observe::{Observer, References, Step, Steps, Update};
pub use regime::Regime;
pub use translate::{
    NestedFailure, NestedTranslation, Permissions, Translation, TwoStageFailure, translate,
    translate_nested,
};
pub use walk::{Descent, Mapped, Nested, Next, Partial, Stage, Updates, walk, walk_from};
