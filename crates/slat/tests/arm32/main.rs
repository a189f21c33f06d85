//! ARMv7 and AArch32: every descriptor bit against an independent description, walks against a naive
//! reference, attributes against the manual's tables, and what QEMU was seen to do.

mod attributes;
mod bits;
mod counts;
mod hostile;
mod naive;
mod qemu;
#[path = "../riscv/ram.rs"]
mod ram;
mod registers;
