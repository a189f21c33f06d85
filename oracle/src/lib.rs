//! Asks hardware models that nobody here wrote what the walker is asked, and compares.
#![forbid(unsafe_code)]

mod arm;
pub mod arm32;
pub mod arm64;
pub mod contract;
pub mod deviations;
pub mod draft;
pub mod engine;
pub mod golden;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod launch;
mod lenient;
pub mod monitor;
pub mod oracles;
pub mod probe;
pub mod random;
pub mod recipe;
pub mod report;
pub mod reproduce;
pub mod riscv;
mod shrink;
mod tree;
pub mod versus;
pub mod world;
pub mod x86;
