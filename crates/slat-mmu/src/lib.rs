//! A software MMU: TLBs, walk caches, shadow paging and a stale-translation checker.
//!
//! * [`tlb`] and [`walker`]: the TLBs of a core and the caches behind them (Intel's, AMD's, Arm's),
//!   over [`array`]s of any sets, ways and replacement. Walks are [`slat`]'s, on real tables.
//! * [`maintenance`]: what each instruction drops from them, by architecture; [`cores`]: on several
//!   cores, by broadcast and by shoot-down.
//! * [`shadow`]: the tables that a hypervisor without SLAT keeps.
//! * [`checker`]: a processor that forgets nothing. **Run your page-table code under it in a unit
//!   test**: it finds the flush that was forgotten, too short, too early or of the wrong id.
//!
//! ```
//! use slat::format::ept::{Ept, Features};
//! use slat::invalidate::{Context, intel};
//! use slat::{EntryLayout, SliceMemory, Spa};
//! use slat_mmu::checker::{Checker, Why};
//!
//! let mut bytes = vec![0; 4 * 4096];
//! let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
//! let mut set = |memory: &mut SliceMemory<'_, Spa>, at, entry| {
//!     memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
//! };
//! for (at, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x5_5037)] {
//!     set(&mut memory, at, entry);
//! }
//! let eptp = 0x1e;
//! let vm = Context::Ept { eptp };
//! let mut checker = Checker::new(Ept::four(Features::default()));
//! checker.run(vm, 0);
//! checker.speculate(&mut memory);
//!
//! // The hypervisor takes the page away, and forgets to flush.
//! set(&mut memory, 0x3000, 0);
//! let findings = checker.complete(&mut memory, vm, 0..=u64::MAX);
//! assert!(findings.iter().any(|finding| finding.why == Why::Unmapped));
//! assert!(!checker.access(vm, 0x123).is_empty(), "and the guest still reads it");
//!
//! // INVEPT of this EPTP, as it should have been.
//! checker.intel(&intel::Instruction::Invept { kind: 1, descriptor: [eptp, 0] });
//! assert!(checker.complete(&mut memory, vm, 0..=u64::MAX).is_empty());
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod array;
pub mod checker;
pub mod cores;
pub mod maintenance;
pub mod shadow;
pub mod tlb;
pub mod walker;
