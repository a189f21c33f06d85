//! Running through a stream: counting what it holds, and checking it against its own tables.
//!
//! A recording holds the guest's tables and, apart from them, the physical page that the recorded
//! machine used for every access. [`Verifier`] walks the tables with the library's walkers for
//! every access and compares: a test of the recording, and of the walkers by a machine that
//! nobody here wrote.

mod counts;
mod memory;
mod verify;
mod walks;

pub use counts::Counts;
pub use memory::{TableMemory, TooManyTables};
pub use verify::{Mismatch, Verifier};
