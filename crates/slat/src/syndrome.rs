//! How an architecture reports a fault.

pub mod x86;
