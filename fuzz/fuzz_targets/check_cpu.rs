//! A processor's name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_check::{processors, text};

fuzz_target!(|name: &str| {
    let known = processors::look_up(name);
    let _ = text::processor(&known, 80);
});
