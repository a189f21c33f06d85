//! A machine's state: cpuinfo, CPUID, kernel log, /dev/kvm's answers, parameters and the rest.
//! Seeds: crates/slat-check/tests/states.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_check::{Recorded, examine, text};

fuzz_target!(|bytes: &[u8]| {
    let Ok(state) = Recorded::parse(&String::from_utf8_lossy(bytes)) else { return };
    let report = examine(&state);
    assert!(report.exit_code() <= 2);
    for line in text::machine(&report, 80).lines() {
        assert!(!line.chars().any(|c| c.is_control() && c != '\u{1b}'), "{line:?}");
    }
    let again = Recorded::parse(&Recorded::record(&state).to_text()).expect("what was written is read");
    assert_eq!(examine(&again), report);
});
