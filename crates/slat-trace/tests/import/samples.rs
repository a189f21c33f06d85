//! Writers of every format, byte by byte, so that no test depends on a file from elsewhere.

use std::io::Write;
use std::path::Path;

use slat_trace::Kind;
use slat_trace::import::{Format, ImportError, Options, Reference, References, Trace};

/// A reference of the only lane.
pub(crate) fn reference(kind: Kind, address: u64, size: u16) -> Reference {
    Reference { address, size, lane: 0, space: 0, kind }
}

/// A small program's accesses: fetches, loads and stores over a few pages, sizes from 1 to 64.
pub(crate) fn accesses(count: u64) -> Vec<Reference> {
    (0..count)
        .map(|i| {
            let scattered = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            match i % 3 {
                0 => reference(Kind::Fetch, 0x40_1000 + 4 * i, 4),
                1 => reference(Kind::Load, 0x7f12_3450_0000 + (scattered >> 44), 1 << (i % 7)),
                _ => reference(Kind::Store, 0x7ffe_0000_0000 + (scattered >> 48), 8),
            }
        })
        .collect()
}

/// As the formats without sizes give it back.
pub(crate) fn without_sizes(references: &[Reference]) -> Vec<Reference> {
    references.iter().map(|&r| Reference { size: 0, ..r }).collect()
}

pub(crate) fn lackey(references: &[Reference]) -> Vec<u8> {
    let mut text = b"==4242== Lackey, an example Valgrind tool\n==4242== \n".to_vec();
    for r in references {
        let letter = match r.kind {
            Kind::Fetch => "I ",
            Kind::Load => " L",
            Kind::Store => " S",
        };
        writeln!(text, "{letter} {:08x},{}", r.address, r.size).unwrap();
    }
    text
}

pub(crate) fn plain(references: &[Reference]) -> Vec<u8> {
    let mut text = b"# by hand\n".to_vec();
    for r in references {
        let letter = match r.kind {
            Kind::Fetch => 'I',
            Kind::Load => 'R',
            Kind::Store => 'W',
        };
        writeln!(text, "{letter} {:#x},{}", r.address, r.size).unwrap();
    }
    text
}

/// One instruction a record; a fetch opens a record, an access without fetch repeats the last one's.
///
/// Returns what the reader has to give back, too.
pub(crate) fn champsim(references: &[Reference]) -> (Vec<u8>, Vec<Reference>) {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    let mut ip = 0x40_0000;
    for r in references {
        let mut record = [0; 64];
        let mut put =
            |at: usize, value: u64| record[at..at + 8].copy_from_slice(&value.to_le_bytes());
        if r.kind == Kind::Fetch {
            ip = r.address;
        }
        put(0, ip);
        expected.push(reference(Kind::Fetch, ip, 0));
        match r.kind {
            Kind::Fetch => {}
            Kind::Load => put(32 + 8 * (r.address as usize % 4), r.address),
            Kind::Store => put(16 + 8 * (r.address as usize % 2), r.address),
        }
        if r.kind != Kind::Fetch {
            expected.push(Reference { size: 0, ..*r });
        }
        bytes.extend(record);
    }
    (bytes, expected)
}

pub(crate) fn record(of_type: u16, size: u16, value: u64) -> Vec<u8> {
    let mut bytes = of_type.to_le_bytes().to_vec();
    bytes.extend(size.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

/// One thread's drmemtrace file: head, encodings before instructions, a time stamp every 50 accesses.
pub(crate) fn drmemtrace(thread: u64, first_time: u64, references: &[Reference]) -> Vec<u8> {
    let mut bytes = record(25, 0, 7);
    bytes.extend(record(28, 12, 7));
    bytes.extend(record(28, 9, 0xe40));
    bytes.extend(record(22, 4, thread));
    bytes.extend(record(24, 4, 100));
    for (i, r) in references.iter().enumerate() {
        if i % 50 == 0 {
            bytes.extend(record(28, 2, first_time + i as u64));
            bytes.extend(record(28, 3, thread % 2));
        }
        match r.kind {
            Kind::Load => bytes.extend(record(0, r.size, r.address)),
            Kind::Store => bytes.extend(record(1, r.size, r.address)),
            Kind::Fetch => {
                bytes.extend(record(47, r.size, 0x90));
                bytes.extend(record(
                    [10, 11, 12, 14, 15, 16, 31, 48, 49][i % 9],
                    r.size,
                    r.address,
                ));
            }
        }
    }
    bytes.extend(record(23, 4, thread));
    bytes.extend(record(26, 0, 0));
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A protobuf field of wire type 0.
pub(crate) fn field(bytes: &mut Vec<u8>, number: u64, value: u64) {
    varint(bytes, number << 3);
    varint(bytes, value);
}

/// A message behind its length.
pub(crate) fn delimited(bytes: &mut Vec<u8>, message: &[u8]) {
    varint(bytes, message.len() as u64);
    bytes.extend(message);
}

pub(crate) fn gem5(references: &[Reference]) -> Vec<u8> {
    let mut bytes = b"gem5".to_vec();
    let mut header = vec![0x0a, 4];
    header.extend(b"slat");
    field(&mut header, 2, 0);
    field(&mut header, 3, 1_000_000_000_000);
    delimited(&mut bytes, &header);
    for (i, r) in references.iter().enumerate() {
        let mut packet = Vec::new();
        field(&mut packet, 1, 500 * i as u64);
        field(&mut packet, 2, if r.kind == Kind::Store { 4 } else { 1 });
        field(&mut packet, 3, r.address);
        field(&mut packet, 4, r.size.into());
        if r.kind == Kind::Fetch {
            field(&mut packet, 5, 0x100);
        }
        field(&mut packet, 6, i as u64);
        delimited(&mut bytes, &packet);
    }
    bytes
}

/// Loads and stores only.
pub(crate) fn ramulator(references: &[Reference]) -> (Vec<u8>, Vec<Reference>) {
    let (mut text, mut expected) = (Vec::new(), Vec::new());
    for r in references.iter().filter(|r| r.kind != Kind::Fetch) {
        let word = if r.kind == Kind::Load { "LD" } else { "ST" };
        writeln!(text, "{word} {}", r.address).unwrap();
        expected.push(Reference { size: 0, ..*r });
    }
    (text, expected)
}

/// Every load and store at an instruction of its own.
pub(crate) fn pinatrace(references: &[Reference]) -> (Vec<u8>, Vec<Reference>) {
    let (mut text, mut expected) = (Vec::new(), Vec::new());
    for (i, r) in references.iter().filter(|r| r.kind != Kind::Fetch).enumerate() {
        let ip = 0x40_0000 + i as u64;
        let letter = if r.kind == Kind::Load { 'R' } else { 'W' };
        writeln!(text, "{ip:#x}: {letter} {:#x}", r.address).unwrap();
        expected.push(reference(Kind::Fetch, ip, 0));
        expected.push(Reference { size: 0, ..*r });
    }
    text.extend(b"#eof\n");
    (text, expected)
}

/// Every format that is detected: its bytes and what must come out.
pub(crate) fn every_format(count: u64) -> Vec<(Format, Vec<u8>, Vec<Reference>)> {
    let all = accesses(count);
    let (champsim, champsim_expected) = champsim(&all);
    let (ramulator, ramulator_expected) = ramulator(&all);
    let (pinatrace, pinatrace_expected) = pinatrace(&all);
    vec![
        (Format::Lackey, lackey(&all), all.clone()),
        (Format::Plain, plain(&all), all.clone()),
        (Format::ChampSim, champsim, champsim_expected),
        (Format::Drmemtrace, drmemtrace(7, 1000, &all), all.clone()),
        (Format::Gem5, gem5(&all), all),
        (Format::Ramulator, ramulator, ramulator_expected),
        (Format::Pinatrace, pinatrace, pinatrace_expected),
    ]
}

/// How a file can be packed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packing {
    Gzip,
    Xz,
    Bzip2,
    Zstd,
    Zip,
}

impl Packing {
    pub(crate) const ALL: [Packing; 5] =
        [Packing::Gzip, Packing::Xz, Packing::Bzip2, Packing::Zstd, Packing::Zip];

    pub(crate) fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Packing::Gzip => {
                let mut packer =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                packer.write_all(bytes).unwrap();
                packer.finish().unwrap()
            }
            Packing::Xz => {
                let mut packer = liblzma::write::XzEncoder::new(Vec::new(), 1);
                packer.write_all(bytes).unwrap();
                packer.finish().unwrap()
            }
            Packing::Bzip2 => {
                let mut packer =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                packer.write_all(bytes).unwrap();
                packer.finish().unwrap()
            }
            Packing::Zstd => {
                let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
                packer.include_checksum(true).unwrap();
                packer.write_all(bytes).unwrap();
                packer.finish().unwrap()
            }
            Packing::Zip => {
                let middle = bytes.len() / 2;
                zip(&[
                    ("chunk.0000", &bytes[..middle], true),
                    ("chunk.0001", &bytes[middle..], false),
                ])
            }
        }
    }
}

/// An archive of members: name, content, whether deflated.
pub(crate) fn zip(members: &[(&str, &[u8], bool)]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for &(name, content, deflated) in members {
        let header_at = archive.len() as u32;
        let packed = if deflated {
            let mut packer =
                flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(content).unwrap();
            packer.finish().unwrap()
        } else {
            content.to_vec()
        };
        let mut crc = flate2::Crc::new();
        crc.update(content);
        // From "version needed" to "extra field length", the same in both headers.
        let mut fields = Vec::new();
        for half in [20u16, 0, if deflated { 8 } else { 0 }, 0, 0x21] {
            fields.extend(half.to_le_bytes());
        }
        for word in [crc.sum(), packed.len() as u32, content.len() as u32] {
            fields.extend(word.to_le_bytes());
        }
        for half in [name.len() as u16, 0] {
            fields.extend(half.to_le_bytes());
        }
        archive.extend(b"PK\x03\x04");
        archive.extend(&fields);
        archive.extend(name.as_bytes());
        archive.extend(&packed);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend(header_at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = archive.len() as u32;
    archive.extend(&directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    let count = (members.len() as u16).to_le_bytes();
    archive.extend(count.repeat(2));
    archive.extend((directory.len() as u32).to_le_bytes());
    archive.extend(start.to_le_bytes());
    archive.extend([0, 0]);
    archive
}

/// Everything a trace gives, and the error that ended it.
pub(crate) fn drain(trace: &mut Trace) -> (Vec<Reference>, Option<ImportError>) {
    let (mut all, mut batch) = (Vec::new(), References::default());
    loop {
        let more = trace.next(&mut batch);
        all.extend(batch.as_slice());
        match more {
            Ok(true) => {}
            Ok(false) => return (all, None),
            Err(error) => {
                assert!(!trace.next(&mut batch).unwrap(), "a trace has ended after its error");
                return (all, Some(error));
            }
        }
    }
}

/// Reads bytes that are not packed.
pub(crate) fn read(bytes: Vec<u8>, options: &Options) -> (Vec<Reference>, Option<ImportError>) {
    let source = Box::new(std::io::Cursor::new(bytes));
    match Trace::from_reader(Path::new("sample"), source, options) {
        Ok(mut trace) => drain(&mut trace),
        Err(error) => (Vec::new(), Some(error)),
    }
}

/// Reads bytes from a file, packed or not.
pub(crate) fn read_file(bytes: &[u8]) -> (Vec<Reference>, Option<ImportError>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    match Trace::open(file.path(), &Options::default()) {
        Ok(mut trace) => drain(&mut trace),
        Err(error) => (Vec::new(), Some(error)),
    }
}
