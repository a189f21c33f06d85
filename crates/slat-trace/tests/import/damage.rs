//! Damaged copies: no panic, and nothing wrong is passed off as right without a word where the format can tell.

use proptest::prelude::*;
use slat_trace::import::{Format, Options, Place, Reference};

use crate::samples::{Packing, every_format, read, read_file};

/// How many references at the front are the same.
fn common(a: &[Reference], b: &[Reference]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[test]
fn every_truncation_gives_a_prefix() {
    for (format, bytes, expected) in every_format(40) {
        for cut in 0..bytes.len() {
            let (references, error) = read(bytes[..cut].to_vec(), &Options::default());
            // The texts that people write may end without a newline, so that their last number may be cut.
            let doubtful = usize::from(matches!(format, Format::Plain | Format::Ramulator));
            assert!(references.len() <= expected.len(), "{format} cut at {cut}");
            assert!(
                common(&references, &expected) + doubtful >= references.len(),
                "{format} cut at {cut}"
            );
            match error {
                Some(error) => {
                    assert_ne!(error.place, Place::Whole, "{format} cut at {cut}: {error}");
                    if let Place::Byte { offset, .. } = error.place {
                        assert!(offset <= cut as u64, "{format} cut at {cut}: {error}");
                    }
                }
                // Only the formats without an end of their own can end unnoticed, and only between records.
                None => {
                    assert!(
                        references.len() < expected.len() || doubtful == 1,
                        "{format} cut at {cut}"
                    );
                    assert!(
                        match format {
                            Format::Drmemtrace | Format::Pinatrace => false,
                            Format::ChampSim => cut % 64 == 0,
                            Format::Lackey => bytes[cut - 1] == b'\n',
                            _ => true,
                        },
                        "{format} cut at {cut} went unnoticed"
                    );
                }
            }
        }
    }
}

#[test]
fn every_truncation_of_a_packed_trace_is_noticed() {
    let (format, bytes, expected) = every_format(60).swap_remove(3);
    assert_eq!(format, Format::Drmemtrace);
    for packing in Packing::ALL {
        let packed = packing.pack(&bytes);
        for cut in (0..packed.len()).step_by(7) {
            let (references, error) = read_file(&packed[..cut]);
            assert!(error.is_some(), "{packing:?} cut at {cut} of {}", packed.len());
            assert_eq!(
                common(&references, &expected),
                references.len(),
                "{packing:?} cut at {cut}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn flipped_bits_never_panic_and_spoil_nothing_before_them(
        which in 0usize..7,
        places in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
    ) {
        let (format, mut bytes, expected) = every_format(60).swap_remove(which);
        let mut first = bytes.len();
        for (index, bit) in places {
            let at = index.index(bytes.len());
            bytes[at] ^= 1 << bit;
            first = first.min(at);
        }
        let share = first as f64 / bytes.len() as f64;
        let (references, error) = read(bytes, &Options::default());
        if let Some(error) = &error {
            prop_assert!(error.place != Place::Whole, "{format}: {error}");
        }
        // Read as another format or from a damaged head, anything may come; behind the head, all that was
        // written well before the first flip must be there.
        if error.is_none() && share > 0.5 && format != Format::Plain {
            let sure = (expected.len() as f64 * (share - 0.2)) as usize;
            prop_assert!(common(&references, &expected) >= sure, "{format}: {} of {sure}", common(&references, &expected));
        }
    }

    #[test]
    fn flipped_bits_in_a_packed_trace_are_noticed_or_harmless(
        which in 0usize..5,
        index in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let packing = Packing::ALL[which];
        let (_, bytes, expected) = every_format(80).swap_remove(3);
        let mut packed = packing.pack(&bytes);
        let at = index.index(packed.len());
        packed[at] ^= 1 << bit;
        let (references, error) = read_file(&packed);
        if error.is_none() {
            prop_assert!(references == expected, "{packing:?} with bit {bit} of byte {at} flipped");
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000), which in 0usize..8) {
        let _ = read(bytes.clone(), &Options::default());
        let format = Some(Format::ALL[which]);
        let _ = read(bytes.clone(), &Options { format, ..Options::default() });
        for magic in [&b"gem5"[..], b"PK\x03\x04", b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"BZh9", b"\x28\xb5\x2f\xfd"] {
            let mut bytes_behind = magic.to_vec();
            bytes_behind.extend(&bytes);
            let _ = read_file(&bytes_behind);
        }
    }
}
