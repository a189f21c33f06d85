//! AArch64 walks: against QEMU's answers, a naive walker, and every bit of every entry.

mod attributes;
mod bits;
mod infinite;
mod naive;
mod qemu;
mod references;
mod registers;
mod world;
