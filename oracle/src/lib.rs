//! Asks hardware models that nobody here wrote what the walker is asked, and compares.
#![forbid(unsafe_code)]

pub mod arm32;
pub mod arm64;
pub mod contract;
pub mod deviations;
pub mod engine;
pub mod golden;
pub mod launch;
mod lenient;
pub mod monitor;
pub mod oracles;
pub mod probe;
pub mod random;
pub mod recipe;
pub mod riscv;
mod tree;
pub mod versus;
pub mod world;
pub mod x86;
