//! A small file that lies does not make a reader of recordings fill the memory.
//!
//! Each file here is a few hundred kilobytes; what it asks for would be gigabytes, were it kept for each of
//! 64 vCPUs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use slat_trace::recording::{Options, Packer, Recording};
use slat_trace::{Arch, Batch, Machine, Source};

/// The system's allocator, counted.
struct Counted;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// One test at a time, as all count with the same counter.
static ALONE: Mutex<()> = Mutex::new(());

// Kinds of sections.
const TURNS: u8 = 0;
const DEFINITIONS: u8 = 1;
const EVENTS: u8 = 2;
const CODES: u8 = 3;
const SUCCESSORS: u8 = 4;
const SHAPES: u8 = 5;

const VCPUS: u8 = 64;

#[derive(Default)]
struct Block {
    accesses: u64,
    /// Kind, vCPU, content.
    sections: Vec<(u8, u8, Vec<u8>)>,
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A file of these blocks, without an index.
fn file(blocks: &[Block]) -> Vec<u8> {
    let machine = Machine { arch: Arch::X86_64, vcpus: VCPUS, tables: true, memory: None };
    let mut out = Vec::new();
    drop(Packer::new(&mut out, &machine, &vec![], 1).unwrap());
    let mut before = 0u64;
    for (number, block) in blocks.iter().enumerate() {
        let (mut table, mut stored) = (Vec::new(), Vec::new());
        for (kind, vcpu, raw) in &block.sections {
            let packed = zstd::bulk::compress(raw, 1).unwrap();
            table.extend([*kind, *vcpu, 0, 0]);
            for word in [raw.len() as u32, packed.len() as u32, crc32fast::hash(&packed)] {
                table.extend(word.to_le_bytes());
            }
            stored.extend(packed);
        }
        let mut header = b"SBLK".to_vec();
        header.extend(u16::from(number == 0).to_le_bytes());
        header.extend((block.sections.len() as u16).to_le_bytes());
        for word in [before, block.accesses, 0] {
            header.extend(word.to_le_bytes());
        }
        header.extend((stored.len() as u32).to_le_bytes());
        let sum = crc32fast::hash(&[&header[..], &table].concat());
        before += block.accesses;
        out.extend([&header[..], &sum.to_le_bytes(), &table, &stored].concat());
    }
    out
}

/// Reads from block `start` on to the end or to what is wrong; returns the accesses and the most bytes that
/// were in use beyond the file itself.
fn read(file: Vec<u8>, start: usize) -> (u64, usize) {
    let recording = Recording::from_bytes(file).unwrap();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let options = Options { frames: false, blocks: start..usize::MAX };
    let mut reader = recording.reader(&options).unwrap();
    let (mut batch, mut accesses) = (Batch::default(), 0);
    while let Ok(true) = reader.next(&mut batch) {
        accesses += batch.accesses.len() as u64;
    }
    (accesses, PEAK.load(Ordering::Relaxed) - before)
}

const MIB: usize = 1 << 20;

/// A turn of `vcpu` with all of its `codes`.
fn turn(vcpu: u8, codes: Vec<u8>) -> [(u8, u8, Vec<u8>); 2] {
    let turns = [varint(vcpu.into()), varint(codes.len() as u64)].concat();
    [(TURNS, 0, turns), (CODES, vcpu, codes)]
}

#[test]
fn every_vcpu_executes_the_last_of_a_million_blocks() {
    let _alone = ALONE.lock();
    // Length 1, one instruction, at the same address, without data accesses.
    let definitions = [1, 1, 0, 0].repeat(1 << 20);
    let mut blocks = vec![];
    for vcpu in 0..VCPUS {
        let mut sections = turn(vcpu, vec![1]).to_vec();
        sections.push((SUCCESSORS, vcpu, varint(1 << 20)));
        blocks.push(Block { accesses: 1, sections });
    }
    blocks[0].sections.insert(0, (DEFINITIONS, 0, definitions));
    let (accesses, peak) = read(file(&blocks), 0);
    assert!((1..64).contains(&accesses), "{accesses}");
    assert!(peak < 400 * MIB, "{} MiB", peak / MIB);
}

#[test]
fn every_vcpu_in_turn_knows_addresses_of_millions_of_accesses() {
    let _alone = ALONE.lock();
    const COUNT: u64 = 8000;
    let mut definition = vec![1, 1, 0];
    definition.extend(varint(256));
    definition.extend([6; 256]);
    let mut blocks = vec![];
    for vcpu in 0..VCPUS {
        // Which block is said, and that none of its accesses was made this time.
        let mut sections = turn(vcpu, vec![1 | 4; COUNT as usize]).to_vec();
        sections.push((SUCCESSORS, vcpu, (1..=COUNT).flat_map(varint).collect()));
        sections.push((SHAPES, vcpu, vec![0; COUNT as usize]));
        blocks.push(Block { accesses: COUNT, sections });
    }
    blocks[0].sections.insert(0, (DEFINITIONS, 0, definition.repeat(COUNT as usize)));
    let (accesses, peak) = read(file(&blocks), 0);
    assert_eq!(accesses, COUNT * u64::from(VCPUS), "each block for itself is fine");
    assert!(peak < 400 * MIB, "{} MiB", peak / MIB);
}

#[test]
fn every_vcpu_in_turn_has_long_streams() {
    let _alone = ALONE.lock();
    let blocks = |vcpu| {
        let mut sections = turn(vcpu, vec![0x81]).to_vec();
        sections.push((EVENTS, 0, vec![vcpu, 10]));
        for kind in SUCCESSORS..=SUCCESSORS + 5 {
            sections.push((kind, vcpu, vec![0; 4 * MIB]));
        }
        Block { accesses: 0, sections }
    };
    let (_, peak) = read(file(&(0..VCPUS).map(blocks).collect::<Vec<_>>()), 0);
    assert!(peak < 200 * MIB, "{} MiB", peak / MIB);
}

#[test]
fn millions_of_changes_of_privilege_lie_before_the_block_that_is_wanted() {
    let _alone = ALONE.lock();
    let events = Block { accesses: 0, sections: vec![(EVENTS, 0, [3, 10, 5, 11].repeat(MIB))] };
    let mut wanted = turn(5, vec![0x81]).to_vec();
    wanted.push((EVENTS, 0, vec![5, 9]));
    let wanted = Block { accesses: 0, sections: wanted };
    let (_, peak) = read(file(&[events, wanted]), 1);
    assert!(peak < 64 * MIB, "{} MiB", peak / MIB);
}
