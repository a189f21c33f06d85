//! Sequences of edits on every format that can be edited: no panic, every page maps what a plain model
//! says, however often frames run out, budgets end and operations are abandoned, and every frame is
//! accounted for.
#![no_main]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use slat::edit::arm32::{ShortAttributes, Upper};
use slat::edit::{
    Arena, Detached, Encode, Error, Frame, FrameSource, Gather, Leaves, Live, Mode, Pending, Quiet,
    Served, Slots, Stale, Step, TableMemory, Tables, Word, arm64, ept, riscv, x86,
};
use slat::format::arm32::{self, Lpae, Short};
use slat::format::arm64::{Granule, Processor, Stage1, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor as X86};
use slat::format::x86::pae::Pae;
use slat::format::{Decoded, Format};
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

const PAGES: u64 = 2048;
const FRAMES: u64 = 40;
const TABLES: u64 = 0x10_0000;
const ALL: Permissions = Permissions { read: true, write: true, execute: true };

/// An arena that runs dry when the input says so, and knows which frames are out.
struct Source<'a, W: Word> {
    arena: &'a Arena<'a, W>,
    left: Cell<u8>,
    out: RefCell<BTreeSet<u64>>,
}

impl<W: Word> FrameSource for Source<'_, W> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        self.left.set(self.left.get().checked_sub(1)?);
        let frame = self.arena.take(bytes)?;
        assert!(self.out.borrow_mut().insert(frame.address()), "a frame was given out twice");
        Some(frame)
    }
    fn put(&self, frame: Frame) {
        assert!(self.out.borrow_mut().remove(&frame.address()), "a frame came back twice");
        self.arena.put(frame);
    }
}

/// One call.
type Call = [u8; 7];

fn run<F: Encode, X: Mode>(format: F, attributes: F::Attributes, first: u64, input: &[Call])
where
    <F::Word as Word>::Atomic: Default,
{
    let size = 1u64 << format.shift(0);
    let words = FRAMES * size / <F::Word as Word>::SIZE.bytes();
    let cells: Vec<_> = (0..words).map(|_| <F::Word as Word>::Atomic::default()).collect();
    let arena = Arena::<F::Word>::new(TABLES, &cells).unwrap();
    let source =
        Source { arena: &arena, left: Cell::new(u8::MAX), out: RefCell::new(BTreeSet::new()) };
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &source).unwrap();
    let root = *source.out.borrow().first().unwrap();
    let others = Tables::<F, Gpa, Spa, _>::adopt(format, root, &arena).unwrap();
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
    let whole = PAGES * size;
    let at = |page: u64| Gpa::new(first.wrapping_add(page * size));
    let mut cursor = tables.cursor::<_, X>(&source, Context::All, slots, at(0), whole).unwrap();
    macro_rules! settle {
        ($gather:expr) => {{
            let completed = $gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
            let reclaim = completed.reclaim(&others).expect("nobody else walks");
            cursor.resume(reclaim.into_source(&source).unwrap()).unwrap();
        }};
    }
    // Steps an operation at most `steps` times, and gives how many pages it has changed.
    macro_rules! drive {
        ($operation:expr, $budget:expr, $steps:expr) => {{
            let mut done = 0;
            if let Ok(mut operation) = $operation {
                for _ in 0..$steps {
                    match cursor.step(&mut operation, $budget) {
                        Ok(Step::Done) => break,
                        Ok(Step::Yield) => {}
                        Ok(Step::Invalidate(gather)) => settle!(gather),
                        Err(Error::NoFrame { .. } | Error::Occupied { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                done = operation.bytes_done() / size;
            }
            done
        }};
    }
    for &[verb, from, count, output, small, frames, limit] in input {
        source.left.set(if frames & 7 == 0 { frames >> 5 } else { u8::MAX });
        let from = u64::from(from) * 8 + u64::from(small & 7);
        let pages = (1 + u64::from(count) * if small & 8 != 0 { 8 } else { 1 }).min(PAGES - from);
        // In step with the input modulo a block, or not.
        let output = (1 << 16) + u64::from(output & 15) * 512 + from % 512 + u64::from(output >> 7);
        let (start, to, bytes) = (at(from), Spa::new(output * size), pages * size);
        let budget = 1 + u32::from(small >> 4);
        // Most operations are stepped to their end, some are abandoned on the way.
        let steps = if limit & 3 == 0 { usize::from(limit >> 2) } else { usize::MAX };
        let range = |done: u64| from as usize..(from + done) as usize;
        match verb % 11 {
            0 | 1 => {
                let leaves = if verb & 64 != 0 { leaves.grouped() } else { leaves };
                let leaves = if verb & 128 != 0 { leaves.up_to(0) } else { leaves };
                let done = drive!(cursor.map(start, to, bytes, &leaves), budget, steps);
                for (n, page) in model[range(done)].iter_mut().enumerate() {
                    assert_eq!(page.replace(output + n as u64), None, "mapped over");
                }
            }
            2 => {
                let done = drive!(cursor.unmap(start, bytes, ()), budget, steps);
                model[range(done)].fill(None);
            }
            3 => {
                let done = drive!(cursor.remap(start, to, bytes, ()), budget, steps);
                for (n, page) in model[range(done)].iter_mut().enumerate() {
                    if page.is_some() {
                        *page = Some(output + n as u64);
                    }
                }
            }
            4 => {
                let _ = drive!(cursor.split(start, bytes, 0), budget, steps);
            }
            5 => {
                let _ = drive!(cursor.collapse(start, bytes, 1), budget, steps);
            }
            6 => {
                let write = output & 1 != 0;
                let to = Permissions { write, ..ALL };
                let _ = drive!(cursor.protect(start, bytes, to, ()), budget, steps);
            }
            7 => {
                let _ = drive!(cursor.clean(start, bytes, ()), budget, steps);
            }
            8 => {
                let _ = drive!(cursor.age(start, bytes, ()), budget, steps);
            }
            9 => match cursor.fault(start, to, 0, &leaves) {
                Ok(Served::Installed { level: 0 }) => {
                    let page = model[from as usize].replace(output);
                    assert_eq!(page, None, "mapped over");
                }
                Ok(Served::Present { .. }) => assert!(model[from as usize].is_some()),
                Err(Error::NoFrame { .. }) => {}
                other => panic!("{other:?}"),
            },
            _ => match cursor.remove(start) {
                Ok(0) => assert_eq!(model[from as usize], None),
                Ok(_) => assert!(model[from as usize].take().is_some()),
                Err(Error::Occupied { .. }) => assert!(model[from as usize].is_some()),
                Err(error) => panic!("{error}"),
            },
        }
        if let Some(gather) = cursor.flush() {
            settle!(gather);
        }
        for page in [from, from + pages - 1, from.saturating_sub(1), (from + pages) % PAGES] {
            let found = others.translate(at(page)).map(|found| found.output.raw() / size);
            assert_eq!(found, model[page as usize], "page {page:#x}");
        }
    }
    for (page, expected) in (0..).zip(&model) {
        let found = others.translate(at(page)).map(|found| found.output.raw() / size);
        assert_eq!(found, *expected, "page {page:#x}");
    }
    source.left.set(u8::MAX);
    let _ = drive!(cursor.unmap(at(0), whole, ()), u32::MAX, usize::MAX);
    if let Some(gather) = cursor.flush() {
        settle!(gather);
    }
    drop(cursor.finish());
    assert_eq!(others.mappings(at(0), whole).unwrap().count(), 0);
    // What is out is reached, and nothing else is.
    let mut reached = BTreeSet::new();
    let mut due = vec![(root, format.top())];
    while let Some((table, level)) = due.pop() {
        assert!(reached.insert(table), "a table is linked twice");
        let bits = if level == format.top() {
            format.input_bits() - format.shift(level)
        } else {
            format.index_bits(level)
        };
        let entries = arena.table(table, 1 << bits).unwrap();
        due.extend(entries.iter().filter_map(|cell| {
            let entry = F::Word::load(cell, std::sync::atomic::Ordering::Relaxed);
            match format.decode(entry, level) {
                Decoded::Table { next } if level > 0 => Some((next, level - 1)),
                _ => None,
            }
        }));
    }
    assert_eq!(reached, *source.out.borrow(), "frames lost, or given back in use");
}

fn x86_user() -> x86::Attributes {
    let mut attributes = x86::Attributes::new(ALL);
    attributes.user = true;
    attributes
}

fn riscv_user() -> riscv::Attributes {
    let mut attributes = riscv::Attributes::new(ALL);
    attributes.user = true;
    attributes
}

fn stage2(granule: Granule, bits: u8, calls: &[Call]) {
    let processor = match bits {
        52 => Processor::default(),
        _ => Processor { physical_bits: 40, ..Processor::default() },
    };
    let format = Stage2::plain(granule, bits, &processor).unwrap();
    let memory = arm64::Memory {
        shareability: if bits == 52 { 0 } else { 3 },
        ..arm64::Memory::WRITE_BACK
    };
    run::<_, Live>(format, arm64::Stage2Attributes::new(ALL, memory), 0, calls);
}

fn short() -> Short {
    let registers = arm32::Registers {
        ttbcr: 2,
        sctlr: arm32::sctlr::M,
        dacr: 1,
        ..arm32::Registers::default()
    };
    Short::new(&registers, &arm32::Processor::default()).unwrap()
}

fn long() -> Lpae {
    let registers = arm32::Registers {
        ttbcr: arm32::ttbcr::EAE | 1 << 16,
        sctlr: arm32::sctlr::M,
        ..arm32::Registers::default()
    };
    Lpae::new(&registers, &arm32::Processor::default()).unwrap()
}

fuzz_target!(|input: (u8, Vec<Call>)| {
    let (which, calls) = input;
    let calls = &calls[..];
    let features = Features { accessed_dirty: which & 128 != 0, ..Features::default() };
    let controls = Controls { write_protect: true, nxe: true, ..Controls::default() };
    let processor = Processor { physical_bits: 40, ..Processor::default() };
    let adue = RiscvFeatures { hardware_ad: which & 128 != 0, ..RiscvFeatures::default() };
    let window = PAGES << 12;
    let upper = 0u64.wrapping_sub(window);
    let stage1 = Stage1::plain(Granule::Four, 39, &processor).unwrap();
    let of_el1 = arm64::Stage1Attributes::new(ALL);
    match which % 26 {
        0 => run::<_, Live>(Ept::four(features), ept::Attributes::new(ALL, Type::Wb), 0, calls),
        1 => run::<_, Quiet>(Ept::five(features), ept::Attributes::new(ALL, Type::Wb), 0, calls),
        2 => run::<_, Live>(Npt::four(true, X86::default()), x86_user(), 0, calls),
        3 => run::<_, Quiet>(Npt::five(true, X86::default()), x86_user(), 0, calls),
        4 => run::<_, Live>(Npt::pae(true, X86::default()), x86_user(), (1 << 32) - window, calls),
        5 => {
            let format = x86::Npt32::new(Npt::legacy(true, 40)).unwrap();
            run::<_, Live>(format, x86_user(), (1 << 32) - window, calls);
        }
        6 => run::<_, Live>(Long::four(controls, X86::default()), x86_user(), upper, calls),
        7 => run::<_, Live>(Long::five(controls, X86::default()), x86_user(), upper, calls),
        8 => run::<_, Live>(Pae::new(controls, X86::default()), x86_user(), 0, calls),
        9 => {
            let format = Legacy::new(Controls::default(), true, 40);
            run::<_, Live>(format, x86_user(), (1 << 32) - window, calls);
        }
        10 => stage2(Granule::Four, 39, calls),
        11 => stage2(Granule::Four, 40, calls),
        12 => stage2(Granule::Sixteen, 40, calls),
        13 => stage2(Granule::SixtyFour, 40, calls),
        14 => stage2(Granule::Four, 52, calls),
        15 => run::<_, Live>(stage1, of_el1, 0, calls),
        16 => run::<_, Live>(stage1.half(upper), of_el1, upper, calls),
        17 => {
            let control = arm32::Stage2::control(40);
            let hcr = slat::regime::arm::hcr::VM;
            let format =
                arm32::Stage2::new(control, hcr, 0, &arm32::Processor::default()).unwrap();
            let attributes = arm64::Stage2Attributes::new(ALL, arm64::Memory::WRITE_BACK);
            run::<_, Live>(format, attributes, 0, calls);
        }
        18 => run::<_, Live>(long(), of_el1, 0, calls),
        19 => run::<_, Live>(Upper::<Lpae>::new(long()).unwrap(), of_el1, 1 << 31, calls),
        20 => run::<_, Live>(short(), ShortAttributes::new(ALL), 0, calls),
        21 => {
            let format = Upper::<Short>::new(short()).unwrap();
            run::<_, Live>(format, ShortAttributes::new(ALL), 1 << 30, calls);
        }
        22 => run::<_, Live>(Sv::stage2(Scheme::Sv39, adue), riscv_user(), 0, calls),
        23 => run::<_, Live>(Sv::stage2(Scheme::Sv57, adue), riscv_user(), 0, calls),
        24 => {
            let format = riscv::Sv32::new(Sv::stage2(Scheme::Sv32, adue)).unwrap();
            run::<_, Live>(format, riscv_user(), (1 << 34) - window, calls);
        }
        _ => run::<_, Live>(Sv::stage1(Scheme::Sv39, adue), riscv_user(), upper, calls),
    }
});
