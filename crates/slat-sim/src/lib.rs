//! Machines that run: recorded guests on simulated processors, and what their memory
//! virtualization costs.
#![forbid(unsafe_code)]

pub mod memory;
pub mod preset;
