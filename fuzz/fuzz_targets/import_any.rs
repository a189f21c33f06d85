//! Telling the format of a trace by its content, then reading it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| slat_fuzz::read(bytes, None));
