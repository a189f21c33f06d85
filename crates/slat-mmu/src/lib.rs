//! A software MMU: TLBs, walk caches, shadow paging and a stale-translation checker.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod array;
pub mod checker;
pub mod shadow;
pub mod tlb;

pub mod walker;
