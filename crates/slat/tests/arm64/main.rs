//! AArch64 walks: against QEMU's answers, a naive walker, and every bit of every entry.

mod qemu;
mod references;
mod world;
