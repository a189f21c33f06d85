//! Machines that run: recorded guests on simulated processors, and what their memory
//! virtualization costs.
#![forbid(unsafe_code)]

pub mod compare;
pub mod cost;
pub mod generated;
pub mod guest;
pub mod host;
pub mod html;
pub mod hypervisor;
pub mod machine;
pub mod memory;
pub mod native;
pub mod nested;
pub mod page_runs;
pub mod perf;
pub mod preset;
pub mod report;
pub mod reproduce;
mod text;
pub mod transcribe;
