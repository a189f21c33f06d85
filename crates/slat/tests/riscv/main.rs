//! RISC-V: every format bit against an independent description, walks against a naive reference,
//! and what QEMU was seen to do.

mod bits;
mod counts;
mod hostile;
mod naive;
mod qemu;
mod ram;
mod registers;
mod traps;
mod types;
