//! Second-level address translation.
#![no_std]
