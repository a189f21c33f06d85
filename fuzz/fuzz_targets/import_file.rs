//! A trace in a file: compressions and archives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_trace::import::{Options, Trace};

fuzz_target!(|bytes: &[u8]| {
    let file = slat_fuzz::file(bytes);
    if let Ok(mut trace) = Trace::open(file.path(), &Options::default()) {
        slat_fuzz::drain(&mut trace);
    }
});
