//! Sequences of edits on three second stages: no panic, every page maps what a plain model says, and
//! every frame comes back in the end.
#![no_main]

use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use libfuzzer_sys::fuzz_target;
use slat::edit::{
    Arena, Detached, Encode, Error, Frame, FrameSource, Gather, Leaves, Live, Pending, Slots,
    Stale, Step, Tables, arm64, ept, riscv,
};
use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

const PAGE: u64 = 4096;
const PAGES: u64 = 2048;
const FRAMES: usize = 40;

/// An arena that runs dry when the input says so.
struct Source<'a>(&'a Arena<'a, u64>, Cell<u8>);

impl FrameSource for Source<'_> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        self.1.set(self.1.get().checked_sub(1)?);
        self.0.take(bytes)
    }
    fn put(&self, frame: Frame) {
        self.0.put(frame);
    }
}

fn run<F: Encode<Word = u64>>(format: F, attributes: F::Attributes, input: &[[u8; 6]]) {
    let cells: Vec<AtomicU64> = (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0, &cells).unwrap();
    let source = Source(&arena, Cell::new(u8::MAX));
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let others = Tables::<F, Gpa, Spa, _>::adopt(format, 0, &arena);
    let others = others.expect("the root is the first frame");
    let leaves = Leaves::new(&format, &attributes).unwrap();
    let mut model = vec![None::<u64>; PAGES as usize];
    let (mut ranges, mut detached, mut pending) =
        ([Stale::default(); 2], [Detached::default(); 2], [Pending::default(); 2]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut pending,
        report: |leak| panic!("{leak}"),
    };
    let context = Context::All;
    let whole = PAGES * PAGE;
    let mut cursor = tables.cursor::<_, Live>(&source, context, slots, Gpa::new(0), whole).unwrap();
    macro_rules! settle {
        ($gather:expr) => {{
            let completed = $gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
            let reclaim = completed.reclaim(&others).expect("nobody else walks");
            cursor.resume(reclaim.into_source(&arena).unwrap()).unwrap();
        }};
    }
    macro_rules! drive {
        ($operation:expr, $budget:expr) => {{
            let mut operation = $operation.unwrap();
            loop {
                match cursor.step(&mut operation, $budget) {
                    Ok(Step::Done) => break,
                    Ok(Step::Yield) => {}
                    Ok(Step::Invalidate(gather)) => settle!(gather),
                    Err(Error::NoFrame { .. } | Error::Occupied { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            operation.bytes_done() / PAGE
        }};
    }
    for &[verb, at, size, output, small, frames] in input {
        source.1.set(if frames & 7 == 0 { frames >> 5 } else { u8::MAX });
        let at = u64::from(at) * 8 + u64::from(small & 7);
        let pages = (1 + u64::from(size) * if small & 8 != 0 { 8 } else { 1 }).min(PAGES - at);
        let start = Gpa::new(at * PAGE);
        // In step with the input modulo a block, or not.
        let output = (1 << 18) + u64::from(output & 15) * 512 + at % 512 + u64::from(output >> 7);
        let (to, bytes) = (Spa::new(output * PAGE), pages * PAGE);
        let budget = 1 + u32::from(small >> 4);
        let range = |done: u64| at as usize..(at + done) as usize;
        match verb % 7 {
            0 | 1 => {
                let done = drive!(cursor.map(start, to, bytes, &leaves), budget);
                for (n, page) in model[range(done)].iter_mut().enumerate() {
                    assert_eq!(page.replace(output + n as u64), None, "mapped over");
                }
            }
            2 => {
                let done = drive!(cursor.unmap(start, bytes, ()), budget);
                model[range(done)].fill(None);
            }
            3 => {
                let done = drive!(cursor.remap(start, to, bytes, ()), budget);
                for (n, page) in model[range(done)].iter_mut().enumerate() {
                    if page.is_some() {
                        *page = Some(output + n as u64);
                    }
                }
            }
            4 => {
                let _ = drive!(cursor.split(start, bytes, 0), budget);
            }
            5 => {
                let _ = drive!(cursor.collapse(start, bytes, 1), budget);
            }
            _ => {
                let write = output & 1 != 0;
                let to = Permissions { read: true, write, execute: true };
                let _ = drive!(cursor.protect(start, bytes, to, ()), budget);
            }
        }
        if let Some(gather) = cursor.flush() {
            settle!(gather);
        }
        for page in [at, at + pages - 1, at.saturating_sub(1), (at + pages) % PAGES] {
            let found =
                others.translate(Gpa::new(page * PAGE)).map(|found| found.output.raw() / PAGE);
            assert_eq!(found, model[page as usize], "page {page:#x}");
        }
    }
    source.1.set(u8::MAX);
    let _ = drive!(cursor.unmap(Gpa::new(0), whole, ()), u32::MAX);
    if let Some(gather) = cursor.flush() {
        settle!(gather);
    }
    drop(cursor.finish());
    assert_eq!(others.mappings(Gpa::new(0), whole).unwrap().count(), 0);
}

fuzz_target!(|input: Vec<[u8; 6]>| {
    let all = Permissions { read: true, write: true, execute: true };
    let epts = Ept::four(Features::default());
    run(epts, ept::Attributes::new(all, Type::Wb), &input);
    let processor = Processor { physical_bits: 40, ..Processor::default() };
    let stage2 = Stage2::plain(Granule::Four, 39, &processor).unwrap();
    let attributes = arm64::Stage2Attributes::new(all, arm64::Memory::WRITE_BACK);
    run(stage2, attributes, &input);
    let g_stage = Sv::stage2(Scheme::Sv39, RiscvFeatures::default());
    run(g_stage, riscv::Attributes::new(all), &input);
});
