//! Each format gives back what was written into it, and says what it refuses and why.

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use slat_trace::Kind;
use slat_trace::import::{Cause, Format, Lane, LaneBy, Options, Place, Reference, Trace};

use crate::samples::{
    self, Packing, accesses, delimited, drain, drmemtrace, every_format, field, gem5, read,
    read_file, record, reference, without_sizes,
};

fn message(bytes: &[u8]) -> String {
    let (_, error) = read(bytes.to_vec(), &Options::default());
    error.expect("an error").to_string()
}

#[test]
fn every_format_is_told_by_content_and_read() {
    for (format, bytes, expected) in every_format(1000) {
        let source = Box::new(std::io::Cursor::new(bytes));
        let mut trace =
            Trace::from_reader(Path::new("sample"), source, &Options::default()).unwrap();
        assert_eq!(trace.format(), format);
        let (references, error) = drain(&mut trace);
        assert!(error.is_none(), "{format}: {error:?}");
        assert_eq!(references, expected, "{format}");
    }
}

#[test]
fn every_format_is_read_from_every_packing() {
    for (format, bytes, expected) in every_format(700) {
        for packing in Packing::ALL {
            let (references, error) = read_file(&packing.pack(&bytes));
            assert!(error.is_none(), "{format} in {packing:?}: {error:?}");
            assert!(references == expected, "{format} in {packing:?}");
        }
    }
}

#[test]
fn packed_streams_one_after_the_other_are_one_trace() {
    let all = accesses(600);
    for packing in [Packing::Gzip, Packing::Xz, Packing::Bzip2, Packing::Zstd] {
        let mut bytes = packing.pack(&samples::plain(&all[..300]));
        bytes.extend(packing.pack(&samples::plain(&all[300..])));
        let (references, error) = read_file(&bytes);
        assert!(error.is_none() && references == all, "{packing:?}: {error:?}");
    }
}

#[test]
fn batches_are_bounded_and_lose_nothing() {
    let all = accesses(100_000);
    let (references, error) = read(drmemtrace(1, 1, &all), &Options::default());
    assert!(error.is_none() && references == all);
}

#[test]
fn a_lackey_modify_is_a_load_and_a_store() {
    let text = b"==1== x\nI  0401ab70,3\n M 1fff000748,8\n".to_vec();
    let expected = [
        reference(Kind::Fetch, 0x401_ab70, 3),
        reference(Kind::Load, 0x1f_ff00_0748, 8),
        reference(Kind::Store, 0x1f_ff00_0748, 8),
    ];
    assert_eq!(read(text, &Options::default()).0, expected);
}

#[test]
fn lackey_with_the_programs_output_in_it_names_the_line() {
    let text = message(b"I  0401ab70,3\nhello, world\n");
    assert!(
        text.contains("line 2") && text.contains("`hello, world`") && text.contains("--log-file"),
        "{text}"
    );
}

#[test]
fn all_three_ramulator_texts() {
    let load_store = read(b"LD 0x12340\nST 4096\n".to_vec(), &Options::default()).0;
    assert_eq!(load_store, [reference(Kind::Load, 0x12340, 0), reference(Kind::Store, 4096, 0)]);
    let memory = read(b"0x12340 R\n0x1000 W\n".to_vec(), &Options::default()).0;
    assert_eq!(memory, load_store);
    let instructions = read(b"3 74560 4096\n0 64\n".to_vec(), &Options::default()).0;
    assert_eq!(instructions[..2], load_store);
    assert_eq!(instructions[2], reference(Kind::Load, 64, 0));
    let mixed = message(b"LD 0x12340\n0x1000 W\n");
    assert!(mixed.contains("line 2"), "{mixed}");
}

#[test]
fn pinatrace_operands_of_one_instruction_are_one_fetch() {
    let text =
        b"0x400000: R 0x1000\n0x400000: W 0x2000\n#eof\nnothing that follows is read\n".to_vec();
    let expected = [(Kind::Fetch, 0x40_0000), (Kind::Load, 0x1000), (Kind::Store, 0x2000)]
        .map(|(k, a)| reference(k, a, 0));
    let (references, error) = read(text, &Options::default());
    assert!(error.is_none());
    assert_eq!(references, expected);
}

#[test]
fn cloudsuite_is_read_when_named_and_only_then() {
    let mut bytes = Vec::new();
    for i in 0..20u64 {
        let mut record = [0; 96];
        let mut put =
            |at: usize, value: u64| record[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0, 0x40_0000 + i);
        put(24 + 8 * (i as usize % 4), 0x1000 + i);
        put(56 + 8 * (i as usize % 4), 0x2000 + i);
        record[88] = 1;
        bytes.extend(record);
    }
    let options = Options { format: Some(Format::Cloudsuite), ..Options::default() };
    let (references, error) = read(bytes.clone(), &options);
    assert!(error.is_none());
    let expected: Vec<_> = (0..20)
        .flat_map(|i| {
            [(Kind::Fetch, 0x40_0000 + i), (Kind::Load, 0x2000 + i), (Kind::Store, 0x1000 + i)]
        })
        .map(|(kind, address)| reference(kind, address, 0))
        .collect();
    assert_eq!(references, expected);
    let (_, error) = read(bytes, &Options::default());
    assert!(matches!(error.unwrap().cause, Cause::Unknown(_)));
}

#[test]
fn champsim_flags_that_are_none_end_the_reading_at_their_byte() {
    let (mut bytes, expected) = samples::champsim(&accesses(90));
    bytes[64 * 40 + 8] = 7;
    let (references, error) = read(bytes, &Options::default());
    assert_eq!(error.unwrap().place, Place::Byte { offset: 64 * 40 + 8, in_file: None });
    assert_eq!(references, expected[..references.len()]);
    assert_eq!(references.iter().filter(|r| r.kind == Kind::Fetch).count(), 40);
}

#[test]
fn a_bundle_is_its_instructions() {
    let mut bytes = record(25, 0, 2);
    bytes.extend(record(22, 4, 9));
    bytes.extend(record(24, 4, 9));
    bytes.extend(record(10, 3, 0x1000));
    bytes.extend(record(17, 3, u64::from_le_bytes([2, 5, 1, 0, 0, 0, 0, 0])));
    bytes.extend(record(26, 0, 0));
    let expected = [(0x1000, 3), (0x1003, 2), (0x1005, 5), (0x100a, 1)];
    let (references, error) = read(bytes, &Options::default());
    assert!(error.is_none(), "{error:?}");
    assert_eq!(references, expected.map(|(address, size)| reference(Kind::Fetch, address, size)));
}

#[test]
fn drmemtrace_prefetches_and_repeated_instructions_are_no_accesses() {
    let mut bytes = record(25, 0, 7);
    bytes.extend(record(28, 9, 0x80));
    bytes.extend(record(22, 4, 9));
    bytes.extend(record(10, 2, 0x1000));
    for of_type in [2, 9, 27, 32, 46, 29, 18, 19, 20, 21] {
        bytes.extend(record(of_type, 2, 0x1000));
    }
    bytes.extend(record(26, 0, 0));
    let source = Box::new(std::io::Cursor::new(bytes));
    let mut trace = Trace::from_reader(Path::new("sample"), source, &Options::default()).unwrap();
    let (references, error) = drain(&mut trace);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(references, [reference(Kind::Fetch, 0x1000, 2)]);
    let notes = trace.notes().join("; ");
    assert!(notes.contains("5 prefetches") && notes.contains("filtered"), "{notes}");
}

#[test]
fn drmemtrace_in_its_raw_form_is_refused_with_the_remedy() {
    let raw = (6u64 << 61 | 4 << 56 | 7 << 48 | 0x240).to_le_bytes().repeat(8);
    let (_, error) = read(raw.clone(), &Options::default());
    let error = error.unwrap();
    assert!(
        matches!(error.cause, Cause::Refused(_)) && error.to_string().contains("-indir"),
        "{error}"
    );

    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("raw")).unwrap();
    std::fs::write(directory.path().join("raw/a.raw"), raw).unwrap();
    let error = Trace::open(directory.path(), &Options::default()).unwrap_err();
    assert!(
        matches!(error.cause, Cause::Refused(_)) && error.to_string().contains("-indir"),
        "{error}"
    );
}

#[test]
fn threads_of_a_directory_are_ordered_by_time() {
    let (one, two) = (accesses(120), accesses(60));
    let directory = tempfile::tempdir().unwrap();
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    // Time stamps 1000, 1050, 1100 against 1020, 1070.
    write("a.trace.zip", &Packing::Zip.pack(&drmemtrace(11, 1000, &one)));
    write("b.trace.gz", &Packing::Gzip.pack(&drmemtrace(12, 1020, &two)));
    write("serial_schedule.bin.gz", &Packing::Gzip.pack(&[1; 64]));

    let threads = [11, 12].map(|thread| Lane::Thread { process: 100, thread }).to_vec();
    let cpus = vec![Lane::Cpu(Some(1)), Lane::Cpu(Some(0))];
    for (by, lanes) in
        [(LaneBy::Thread, threads), (LaneBy::Cpu, cpus), (LaneBy::One, vec![Lane::Only])]
    {
        let options = Options { lanes: by, ..Options::default() };
        let mut trace = Trace::open(directory.path(), &options).unwrap();
        let (references, error) = drain(&mut trace);
        assert!(error.is_none(), "{error:?}");
        let lane = |lane: u16| {
            let lane = if by == LaneBy::One { 0 } else { lane };
            move |r: &Reference| Reference { lane, ..*r }
        };
        let expected: Vec<_> = one[..50]
            .iter()
            .map(lane(0))
            .chain(two[..50].iter().map(lane(1)))
            .chain(one[50..100].iter().map(lane(0)))
            .chain(two[50..].iter().map(lane(1)))
            .chain(one[100..].iter().map(lane(0)))
            .collect();
        assert!(references == expected);
        assert_eq!(trace.lanes(), lanes);
        assert!(trace.notes().join("; ").contains("1 files of the directory are not traces"));
    }
}

#[test]
fn processes_of_one_file_are_address_spaces() {
    let mut bytes = record(25, 0, 1);
    for (thread, process) in [(1, Some(10)), (2, Some(20)), (1, None), (2, None)] {
        bytes.extend(record(22, 4, thread));
        if let Some(process) = process {
            bytes.extend(record(24, 4, process));
        }
        bytes.extend(record(0, 8, 0x1000));
    }
    bytes.extend(record(26, 0, 0));
    let (references, error) = read(bytes, &Options::default());
    assert!(error.is_none(), "{error:?}");
    let places: Vec<_> = references.iter().map(|r| (r.lane, r.space)).collect();
    assert_eq!(places, [(0, 0), (1, 1), (0, 0), (1, 1)]);
}

#[test]
fn threads_without_end_are_refused_before_memory_is() {
    let mut bytes = record(25, 0, 7);
    for thread in 0..70_000 {
        bytes.extend(record(22, 4, thread));
        bytes.extend(record(24, 4, thread));
    }
    let error = read(bytes, &Options::default()).1.unwrap();
    assert!(
        matches!(error.cause, Cause::Refused(_)) && error.to_string().contains("65535"),
        "{error}"
    );
}

#[test]
fn gem5_commands_that_are_no_accesses_are_counted() {
    let mut bytes = gem5(&accesses(3));
    let mut packet = Vec::new();
    for (number, value) in [(1, 9), (2, 2), (3, 0x1000), (4, 64), (9, 1)] {
        field(&mut packet, number, value);
    }
    delimited(&mut bytes, &packet);
    let source = Box::new(std::io::Cursor::new(bytes));
    let mut trace = Trace::from_reader(Path::new("sample"), source, &Options::default()).unwrap();
    assert_eq!(drain(&mut trace).0, accesses(3));
    assert!(trace.notes().join("; ").contains("1 packets"));
}

#[test]
fn gem5_lengths_beyond_reason_are_refused_before_memory_is_taken() {
    for length in
        [&[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0xff; 10], &[0x80, 0x80, 0x80, 0x80, 0x80, 1]]
    {
        let mut bytes = gem5(&accesses(2));
        let at = bytes.len() as u64;
        bytes.extend(length);
        bytes.extend([0; 64]);
        let (references, error) = read(bytes, &Options::default());
        assert_eq!(references, accesses(2));
        assert_eq!(error.unwrap().place, Place::Byte { offset: at, in_file: None });
    }
}

#[test]
fn an_instruction_trace_of_gem5_is_not_taken_for_packets() {
    let mut bytes = gem5(&[]);
    // Inst {pc, inst (fixed32)}: field 2 has another wire type.
    delimited(&mut bytes, &[0x08, 0x10, 0x15, 1, 2, 3, 4]);
    assert!(message(&bytes).contains("not instruction traces"));
}

#[test]
fn what_is_no_trace_is_said_so() {
    for (bytes, says) in [
        (&b""[..], "empty"),
        (b"   \n\n", "known are lackey"),
        (b"once upon a time\n", "`once upon a time`"),
        (&[0x80; 4096], "known are lackey"),
        (b"SLATREC\0\x01", "recording already"),
        (b"SIFT\0\0\0\0", "Sniper"),
        (b"PERFILE2....", "samples"),
        (b"\x7fELF\x02\x01", "program"),
    ] {
        let text = message(bytes);
        assert!(text.contains(says), "{text}");
    }
    for (bytes, says) in
        [(&b"\x04\x22\x4d\x18xxxx"[..], "lz4"), (b"\xff\x06\0\0sNaPpYxx", "snappy")]
    {
        let text = read_file(bytes).1.unwrap().to_string();
        assert!(text.contains(says), "{text}");
    }
    let missing = Trace::open(Path::new("no/such/trace"), &Options::default()).unwrap_err();
    assert!(missing.to_string().starts_with("no/such/trace: "));
}

#[test]
fn a_bomb_takes_time_but_no_memory() {
    // 64 MiB of one line without end, some 64 KiB packed.
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(b"R 0x1000\n").unwrap();
    for _ in 0..64 {
        packer.write_all(&vec![b'R'; 1 << 20]).unwrap();
    }
    let (references, error) = read_file(&packer.finish().unwrap());
    assert_eq!(references.len(), 1);
    assert_eq!(error.unwrap().place, Place::Line(2));
}

#[test]
fn an_xz_header_that_asks_for_gigabytes_is_refused() {
    let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
    options.dict_size(1 << 30);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    // The encoder would take that memory itself: write the header with a small dictionary, then raise it.
    options.dict_size(1 << 16);
    let mut small = liblzma::stream::Filters::new();
    small.lzma2(&options);
    let stream =
        liblzma::stream::Stream::new_stream_encoder(&small, liblzma::stream::Check::Crc32).unwrap();
    let mut packer = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    packer.write_all(&samples::plain(&accesses(50))).unwrap();
    let mut bytes = packer.finish().unwrap();
    // Block header behind the 12-byte stream header: size, flags, filter id 0x21, property size 1,
    // dictionary size (xz format 5.3.1), padding, CRC-32.
    assert_eq!(bytes[14..16], [0x21, 1]);
    bytes[16] = 40;
    let header = 4 * (usize::from(bytes[12]) + 1);
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..12 + header - 4]);
    bytes[12 + header - 4..12 + header].copy_from_slice(&crc.sum().to_le_bytes());
    let (references, error) = read_file(&bytes);
    assert!(references.is_empty());
    assert!(matches!(error.unwrap().cause, Cause::Io(_)));
}

#[test]
fn archives_that_lie_are_refused() {
    let bytes = samples::zip(&[("chunk.0000", &drmemtrace(1, 1, &accesses(30)), true)]);
    let end = bytes.len() - 22;
    let entry = u32::from_le_bytes(bytes[end + 16..end + 20].try_into().unwrap()) as usize;
    let lie = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        read_file(&bytes).1.expect("an error").to_string()
    };
    assert!(lie(entry + 16, &[0; 4]).contains("checksum"));
    assert!(lie(entry + 24, &[1, 0, 0, 0]).contains("more bytes than its entry says"));
    assert!(lie(entry + 24, &[0, 0, 1, 0]).contains("fewer bytes than its entry says"));
    assert!(lie(entry + 20, &[0xff, 0xff, 0, 0]).contains("outside the archive"));
    assert!(lie(entry + 10, &[14, 0]).contains("method 14"));
    assert!(lie(entry + 8, &[1, 0]).contains("encrypted"));
    assert!(lie(end + 10, &[0xff, 0xff]).contains("contradicts"));
    assert!(lie(end, b"XX").contains("directory"));
}

fn any_reference() -> impl Strategy<Value = Reference> {
    let kind = prop_oneof![Just(Kind::Load), Just(Kind::Store), Just(Kind::Fetch)];
    (kind, 1u64..1 << 47, 1u16..=512)
        .prop_map(|(kind, address, size)| reference(kind, address, size))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_accesses_survive(all in proptest::collection::vec(any_reference(), 1..200)) {
        for bytes in [samples::lackey(&all), samples::plain(&all), drmemtrace(3, 5, &all), gem5(&all)] {
            let (references, error) = read(bytes, &Options::default());
            prop_assert!(error.is_none(), "{:?}", error);
            prop_assert_eq!(&references, &all);
        }
        let (bytes, expected) = samples::champsim(&all);
        let (references, error) = read(bytes, &Options::default());
        prop_assert!(error.is_none(), "{:?}", error);
        prop_assert_eq!(&references, &expected);
        prop_assert!(without_sizes(&references) == references);
    }
}
