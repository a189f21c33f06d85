//! The reader of ChampSim.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_trace::import::Format;

fuzz_target!(|bytes: &[u8]| slat_fuzz::read(bytes, Some(Format::ChampSim)));
