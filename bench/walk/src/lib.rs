//! What the benchmark of walks compares slat with: two floors written by hand, and memflow.

pub mod floor;
pub mod table;
pub mod world;
