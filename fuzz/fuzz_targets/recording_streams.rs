//! A recording whose checksums and compression are right and whose streams are of any content, so that
//! the fuzzer reaches what lies behind the checks.
//!
//! The bytes are pieces: the kind of a section (10 begins another block), its vCPU, the length, then
//! the section.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_trace::recording::{Options, Recording};
use slat_trace::replay::Verifier;
use slat_trace::{Batch, Source};

const MOST_VCPUS: u8 = 2;

/// One block of the file: its sections' kinds, vCPUs and contents.
type Block<'a> = Vec<(u8, u8, &'a [u8])>;

fn blocks(mut bytes: &[u8]) -> Vec<Block<'_>> {
    let mut blocks = vec![Block::new()];
    while let Some((&[kind, vcpu, low, high], rest)) = bytes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (section, rest) = rest.split_at(len);
        bytes = rest;
        match kind % 11 {
            10 => blocks.push(Block::new()),
            kind => {
                blocks.last_mut().expect("there is one").push((kind, vcpu % MOST_VCPUS, section))
            }
        }
    }
    blocks
}

/// The file, as `docs/recording-format.md` says.
fn file(blocks: &[Block<'_>], accesses: u64, flags: u8) -> Vec<u8> {
    let mut file = b"SLATREC\0\x01\0\0\0\x05\0\0\0".to_vec();
    // AArch64 or x86-64, the vCPUs, no memory and no provenance.
    file.extend([flags >> 1 & 1, MOST_VCPUS - (flags >> 2 & 1), 0, 0, 0]);
    file.extend(crc32fast::hash(&file).to_le_bytes());
    let mut first = 0u64;
    for (number, block) in blocks.iter().enumerate() {
        let (mut table, mut body) = (Vec::new(), Vec::new());
        for (kind, vcpu, section) in block {
            let stored = zstd::bulk::compress(section, 1).expect("memory");
            table.extend([*kind, *vcpu, 0, 0]);
            for word in [section.len(), stored.len()] {
                table.extend((word as u32).to_le_bytes());
            }
            table.extend(crc32fast::hash(&stored).to_le_bytes());
            body.extend(stored);
        }
        let mut head = b"SBLK".to_vec();
        let restart = u16::from(number == 0 || flags & 1 != 0);
        head.extend(restart.to_le_bytes());
        head.extend((block.len() as u16).to_le_bytes());
        for long in [first, accesses, 0] {
            head.extend(long.to_le_bytes());
        }
        head.extend((body.len() as u32).to_le_bytes());
        let sum = crc32fast::hash(&[&head[..], &table[..]].concat());
        head.extend(sum.to_le_bytes());
        file.extend([head, table, body].concat());
        first += accesses;
    }
    // Without an index the blocks are found one after the other.
    file
}

fuzz_target!(|data: &[u8]| {
    let Some((&[flags, low, high], data)) = data.split_first_chunk::<3>() else { return };
    let accesses = u64::from(u16::from_le_bytes([low, high]));
    let file = file(&blocks(data), accesses, flags);
    let recording = Recording::from_bytes(file).expect("a right header");
    for blocks in [0..usize::MAX, 1..2] {
        let options = Options { frames: flags >> 3 & 1 == 0, blocks };
        let mut reader = recording.reader(&options).expect("memory");
        let mut verifier = Verifier::new(recording.machine());
        let mut batch = Batch::default();
        while let Ok(true) = reader.next(&mut batch) {
            if verifier.check(&batch).is_err() {
                break;
            }
        }
    }
});
