//! A recording of any content: opened, read with frames, and verified.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_trace::recording::{Options, Recording};
use slat_trace::replay::Verifier;
use slat_trace::{Batch, Source};

fuzz_target!(|data: &[u8]| {
    let Ok(recording) = Recording::from_bytes(data) else { return };
    for blocks in [0..usize::MAX, 1..2] {
        let options = Options { frames: true, blocks };
        let Ok(mut reader) = recording.reader(&options) else { continue };
        let mut verifier = Verifier::new(recording.machine());
        let mut batch = Batch::default();
        while let Ok(true) = reader.next(&mut batch) {
            if verifier.check(&batch).is_err() {
                break;
            }
        }
    }
});
