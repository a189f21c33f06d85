//! What several targets do with their bytes.

use std::io::{Cursor, Write};
use std::path::Path;

use slat::format::x86::Controls;
use slat_trace::import::{Format, Options, References, Trace};

/// x86 controls by the lowest seven bits.
pub fn controls(choice: u32) -> Controls {
    let on = |bit: u32| choice >> bit & 1 != 0;
    Controls {
        write_protect: on(0),
        smep: on(1),
        smap: on(2),
        nxe: on(3),
        user_keys: on(4),
        supervisor_keys: on(5),
        shadow_stacks: on(6),
    }
}

/// Reads bytes as a trace to its end or first error.
pub fn read(bytes: &[u8], format: Option<Format>) {
    let source = Box::new(Cursor::new(bytes.to_vec()));
    let options = Options { format, ..Options::default() };
    if let Ok(mut trace) = Trace::from_reader(Path::new("fuzzed"), source, &options) {
        drain(&mut trace);
    }
}

/// Reads a trace to its end or first error; a batch never grows beyond its bound.
pub fn drain(trace: &mut Trace) {
    let mut references = References::default();
    while trace.next(&mut references).is_ok_and(|more| more) {
        assert!(references.as_slice().len() < (1 << 14) + 8);
    }
    trace.notes();
}

/// The bytes in a file of their own.
pub fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for a temporary file");
    file
}
