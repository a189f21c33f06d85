//! Bugs that hypervisors had, each planted in a copy of the operation beside the library's own: the
//! audit of the tables finds the copy's, and nothing in the library's. Those that tables alone do not
//! show, but what a processor keeps of them, are in `slat-mmu/tests/editing/`.

mod logging;
mod owners;
mod pool;
mod rights;
mod sizes;
mod walker;
mod world;
