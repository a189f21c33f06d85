//! What goes into a recording comes out of it, and damage to the file is found where it is.

use proptest::prelude::*;
use slat_trace::recording::{Encoder, Error, Options, Packer, Recording};
use slat_trace::{
    Access, Arch, Batch, Control, Event, Exception, Invalidation, Kind, Machine, Root, Source,
};

/// A deterministic stand-in for a machine: mostly loops, some disorder.
struct Steps(u64);

impl Steps {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % below
    }
}

type Item = Result<Access, (u8, Event)>;

fn machine(vcpus: u8) -> Machine {
    Machine { arch: Arch::X86_64, vcpus, tables: true, memory: Some(0..1 << 29) }
}

/// Makes a recording of `steps` executed blocks, and the list of what is in it.
fn make(seed: u64, vcpus: u8, steps: u32, block_accesses: u64) -> (Vec<u8>, Vec<Item>) {
    let mut steps_of = Steps(seed);
    let mut encoder = Encoder::new(vcpus).with_block_accesses(block_accesses);
    let provenance = vec![("command".to_owned(), "none".to_owned())];
    let mut packer = Packer::new(Vec::new(), &machine(vcpus), &provenance, 1).unwrap();
    let mut items: Vec<Item> = Vec::new();
    let mut users = vec![false; usize::from(vcpus)];
    let mut frames_of = std::collections::HashMap::new();
    let mut vcpu = 0;
    for step in 0..steps {
        let s = &mut steps_of;
        if s.next(9) == 0 {
            vcpu = s.next(vcpus.into()) as u8;
        }
        if encoder.is_full() {
            packer.push(&encoder.cut()).unwrap();
        }
        if s.next(20) == 0 {
            let event = match s.next(9) {
                0 => Event::Root { root: Root::Cr3, value: s.next(1 << 30) << 12 },
                1 => Event::Control { register: Control::Cr4, value: s.next(1 << 22) },
                2 => Event::Invalidate(Invalidation::Invlpg { va: s.next(1 << 31) << 12 }),
                3 => Event::ExceptionReturn,
                4 => Event::Exception(Exception {
                    vector: s.next(256) as u8,
                    fault_va: s.next(1 << 31) << 17,
                    stack_or_syndrome: s.next(1 << 31),
                    frame: [0; 6].map(|_: u64| s.next(1 << 31) << 30),
                }),
                5 => {
                    let gpa = s.next(1 << 10) << 12;
                    let mut entries: Vec<(u16, u64)> = Vec::new();
                    for index in 0..512 {
                        if s.next(64) == 0 {
                            entries.push((index, s.next(1 << 31) << 20 | 0x67));
                        }
                    }
                    let page = Event::TablePage { gpa, level: s.next(5) as u8, fresh: true };
                    encoder.event(vcpu, &page, &entries);
                    items.push(Err((vcpu, page)));
                    for (index, value) in entries {
                        let gpa = gpa | u64::from(index) << 3;
                        items.push(Err((vcpu, Event::TableEntry { gpa, value })));
                    }
                    continue;
                }
                6 => Event::TableRelease { gpa: s.next(1 << 10) << 12 },
                7 => Event::Mode { user: s.next(2) == 0 },
                _ => Event::Io { va: s.next(1 << 31), gpa: 0xfee0_0000, len: 4, store: true },
            };
            if let Event::Mode { user } = event {
                users[usize::from(vcpu)] = user;
            }
            encoder.event(vcpu, &event, &[]);
            items.push(Err((vcpu, event)));
        }
        let user = users[usize::from(vcpu)];
        let number = if s.next(6) == 0 { s.next(200) } else { u64::from(step) % 5 };
        let gpa = number * 0x340;
        let bytes = 1 + (number % 90) as u16;
        let page = if number == 7 { s.next(3) } else { 0x7000 + (gpa >> 12) };
        let va = page << 12 | gpa & 0xfff;
        let block = encoder.define(gpa, bytes, 3);
        // Sometimes a loop of one block with one access.
        let runs = if s.next(25) == 0 { 1 + s.next(40) } else { 1 };
        for round in 0..runs {
            encoder.execute(vcpu, block, va);
            let fetch = Access::new(Kind::Fetch, va, bytes).on(vcpu).with_user(user);
            items.push(Ok(fetch.with_frame((gpa >> 12) as u32)));
            let count = match (runs, s.next(30)) {
                (1, 0) => s.next(700),
                (1, _) => number % 4,
                _ => 1,
            };
            for ordinal in 0..count {
                let va = match s.next(12) {
                    0 => s.next(1 << 31) << 33 | s.next(1 << 31),
                    1 => 0xffff_8880_0000_0000 | s.next(1 << 28),
                    _ => 0x10_0000 * (ordinal + 1) + (u64::from(step) + round) * 8,
                };
                let (store, log2) = (s.next(16) == 0, (number % 5) as u8);
                let moved = s.next(40) == 0;
                let frame = frames_of.entry(va >> 12).or_insert(va as u32 >> 13);
                *frame += u32::from(moved);
                encoder.access(vcpu, store, log2, va, *frame);
                let kind = if store { Kind::Store } else { Kind::Load };
                let access = Access::new(kind, va, 1 << log2).on(vcpu).with_user(user);
                items.push(Ok(access.with_frame(*frame)));
                if s.next(100) == 0 {
                    let event =
                        Event::TableStore { gpa: va & 0xf_fff8, value: s.next(1 << 31) << 25 };
                    encoder.event(vcpu, &event, &[]);
                    items.push(Err((vcpu, event)));
                }
            }
        }
    }
    packer.push(&encoder.finish()).unwrap();
    let (file, totals) = packer.finish().unwrap();
    assert_eq!(totals.bytes, file.len() as u64);
    assert_eq!(totals.accesses, items.iter().filter(|item| item.is_ok()).count() as u64);
    (file, items)
}

fn items_of(batch: &Batch) -> Vec<Item> {
    let events = |run: &slat_trace::Run<'_>| -> Vec<Item> {
        run.events.iter().map(|at| Err((at.vcpu, at.event))).collect()
    };
    let mut items = Vec::new();
    for run in batch.runs() {
        items.extend(events(&run));
        items.extend(run.accesses.iter().map(|&access| Ok(access)));
    }
    items
}

/// Reads as far as it goes.
fn read(recording: &Recording, options: &Options) -> (Vec<Item>, Option<Error>) {
    let mut reader = recording.reader(options).unwrap();
    let (mut batch, mut items) = (Batch::default(), Vec::new());
    loop {
        let result = reader.next(&mut batch);
        items.extend(items_of(&batch));
        match result {
            Ok(true) => {}
            Ok(false) => return (items, None),
            Err(error) => return (items, Some(error)),
        }
    }
}

const FRAMES: Options = Options { frames: true, blocks: 0..usize::MAX };

fn without_frames(items: &[Item]) -> Vec<Item> {
    items.iter().map(|item| item.map(|access| access.with_frame(Access::NO_FRAME))).collect()
}

#[test]
fn what_goes_in_comes_out() {
    for (seed, vcpus, block) in [(1, 1, 1 << 22), (2, 1, 500), (3, 3, 1 << 22), (4, 4, 700)] {
        let (file, items) = make(seed, vcpus, 4000, block);
        let recording = Recording::from_bytes(file).unwrap();
        assert!(recording.damage().is_none());
        assert_eq!(recording.machine(), &machine(vcpus));
        assert_eq!(recording.provenance()[0].0, "command");
        let (got, error) = read(&recording, &FRAMES);
        assert!(error.is_none(), "{error:?}");
        for (at, (got, expected)) in got.iter().zip(&items).enumerate() {
            assert_eq!(got, expected, "item {at} of seed {seed}");
        }
        assert_eq!(got.len(), items.len());
        let (got, error) = read(&recording, &Options::default());
        assert!(error.is_none() && got == without_frames(&items), "without frames, seed {seed}");
    }
}

#[test]
fn a_reader_begins_at_any_block_with_the_state_of_there() {
    let (file, items) = make(5, 2, 3000, 1000);
    let recording = Recording::from_bytes(file).unwrap();
    assert!(recording.blocks().len() > 3);
    let (all, _) = read(&recording, &FRAMES);
    assert_eq!(all, items);
    for start in 0..recording.blocks().len() {
        let first = recording.blocks()[start].first_access;
        assert_eq!(recording.block_of(first), Some(start));
        let (got, error) = read(&recording, &Options { frames: true, blocks: start..start + 1 });
        assert!(error.is_none());
        let accesses =
            |items: &[Item]| -> Vec<Access> { items.iter().filter_map(|item| item.ok()).collect() };
        let count = recording.blocks()[start].accesses as usize;
        assert_eq!(accesses(&got), accesses(&items)[first as usize..][..count]);
        // The last root of each vCPU before the first access is what the whole stream says.
        let root = |items: &[Item], accesses: u64| {
            let mut root = [None; 2];
            let mut seen = 0;
            for item in items {
                match item {
                    Ok(_) if seen == accesses => break,
                    Ok(_) => seen += 1,
                    Err((vcpu, Event::Root { value, .. })) => {
                        root[usize::from(*vcpu)] = Some(*value);
                    }
                    Err(_) => {}
                }
            }
            root
        };
        assert_eq!(root(&got, 0), root(&items, first), "block {start}");
    }
    assert_eq!(recording.block_of(recording.accesses()), None);
}

#[test]
fn a_file_cut_anywhere_gives_what_is_whole_and_says_where_it_ends() {
    let (file, items) = make(6, 1, 400, 200);
    let whole = Recording::from_bytes(file.clone()).unwrap();
    let starts: Vec<u64> = whole.blocks().iter().map(|block| block.offset).collect();
    for len in (0..file.len()).step_by(41) {
        let recording = match Recording::from_bytes(&file[..len]) {
            Ok(recording) => recording,
            Err(error) => {
                assert!((len as u64) < starts[0], "{error}");
                continue;
            }
        };
        let (got, error) = read(&recording, &FRAMES);
        let error = error.expect("it is cut off");
        let offset = error.offset().expect("an offset");
        assert!(offset <= len as u64, "{error}");
        // A block is whole if the next one, or the index, begins within what is there.
        let index = whole.size() - 24 - 8 - 32 * starts.len() as u64;
        let ends = starts.iter().skip(1).copied().chain([index]);
        let blocks = ends.filter(|&end| end <= len as u64).count();
        let expected: u64 = whole.blocks()[..blocks].iter().map(|b| b.accesses).sum();
        let accesses = got.iter().filter(|item| item.is_ok()).count();
        assert_eq!(accesses as u64, expected, "cut at {len}");
        assert_eq!(got[..], items[..got.len()]);
    }
}

#[test]
fn a_flipped_bit_is_found_and_what_comes_before_is_right() {
    let (file, items) = make(7, 2, 300, 150);
    for at in (0..file.len()).step_by(23) {
        let mut file = file.clone();
        file[at] ^= 1 << (at % 8);
        let recording = match Recording::from_bytes(file) {
            Ok(recording) => recording,
            Err(error) => {
                assert!(error.offset().unwrap() <= at as u64);
                continue;
            }
        };
        let (got, error) = read(&recording, &FRAMES);
        let error = error.unwrap_or_else(|| panic!("the flip at {at} goes unseen"));
        assert!(error.offset().is_some(), "{error}");
        assert_eq!(got[..], items[..got.len()], "flip at {at}");
    }
}

#[test]
fn other_files_and_newer_versions_are_refused_with_the_remedy() {
    let refuse = |bytes: &[u8]| Recording::from_bytes(bytes).unwrap_err();
    assert!(matches!(refuse(b""), Error::NotARecording));
    assert!(matches!(refuse(b"I  04001000,3\n"), Error::NotARecording));
    let (mut file, _) = make(8, 1, 10, 100);
    file[8] = 2;
    let error = refuse(&file);
    assert!(matches!(error, Error::Newer { found: 2 }), "{error}");
    assert!(error.to_string().contains("newer slat"), "{error}");
    file[8] = 1;
    // A higher minor version only adds what may be skipped; the header's checksum covers it.
    file[10] = 1;
    assert!(matches!(refuse(&file), Error::Damaged { offset: 0, .. }));
}

#[test]
fn a_reader_that_is_rewound_reads_the_same_again() {
    let (file, _) = make(5, 2, 3000, 700);
    let recording = Recording::from_bytes(file).unwrap();
    assert!(recording.blocks().len() > 3);
    for blocks in [0..usize::MAX, 2..4] {
        let options = Options { frames: true, blocks };
        let mut reader = recording.reader(&options).unwrap();
        let mut whole = |batches: usize| {
            let (mut all, mut batch) = (Vec::new(), Batch::default());
            for _ in 0..batches {
                if !reader.next(&mut batch).unwrap() {
                    break;
                }
                all.push(batch.clone());
            }
            reader.rewind();
            all.iter().map(|b| (b.accesses.clone(), b.events.clone())).collect::<Vec<_>>()
        };
        let first = whole(usize::MAX);
        // From the end, and from the middle.
        assert_eq!(whole(2), first[..2]);
        assert_eq!(whole(usize::MAX), first);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_machine_reads_back(
        seed: u64,
        vcpus in 1u8..5,
        steps in 0u32..400,
        block in 1u64..4000,
    ) {
        let (file, items) = make(seed, vcpus, steps, block);
        let recording = Recording::from_bytes(file).unwrap();
        let (got, error) = read(&recording, &FRAMES);
        prop_assert!(error.is_none());
        prop_assert_eq!(got, items);
    }

    #[test]
    fn garbage_is_never_a_panic(bytes: Vec<u8>, flips in prop::collection::vec(any::<(u16, u8)>(), 1..9)) {
        prop_assert!(Recording::from_bytes(bytes).is_err());
        let (mut file, _) = make(1, 2, 60, 90);
        for (at, value) in flips {
            let at = usize::from(at) % file.len();
            file[at] = value;
        }
        if let Ok(recording) = Recording::from_bytes(file) {
            read(&recording, &FRAMES);
        }
    }
}

#[test]
fn a_reader_that_is_rewound_over_damage_meets_it_again() {
    let (file, items) = make(6, 2, 6000, 1500);
    let whole = Recording::from_bytes(file.clone()).unwrap();
    let middle = whole.blocks()[whole.blocks().len() / 2].offset as usize;
    let mut damaged = file;
    damaged[middle + 200] ^= 1;
    let recording = Recording::from_bytes(damaged).unwrap();
    let options = Options { frames: true, ..Options::default() };
    let mut reader = recording.reader(&options).unwrap();
    let mut pass = || {
        let (mut read, mut batch) = (Vec::new(), Batch::default());
        let error = loop {
            let more = reader.next(&mut batch);
            read.extend(items_of(&batch));
            match more {
                Ok(more) => assert!(more, "the damage went unnoticed"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(!reader.next(&mut batch).unwrap() && batch.is_empty(), "over after an error");
        reader.rewind();
        (read, error)
    };
    let first = pass();
    assert!(!first.0.is_empty() && items.starts_with(&first.0));
    assert_eq!(pass(), first);
}

#[test]
fn more_events_than_a_batch_takes_are_taken_up_again_where_they_were_left() {
    for vcpus in [1, 2] {
        let mut encoder = Encoder::new(vcpus);
        let block = encoder.define(0x3000, 16, 4);
        let mut expected: Vec<Item> = Vec::new();
        for step in 0..2000u64 {
            let vcpu = (step / 50 % u64::from(vcpus)) as u8;
            encoder.execute(vcpu, block, 0x40_3000);
            expected.push(Ok(Access::new(Kind::Fetch, 0x40_3000, 16)
                .on(vcpu)
                .with_user(false)
                .with_frame(3)));
            for (ordinal, va) in [0x7000 + 8 * step, 0x9000 + step * step].into_iter().enumerate() {
                // In the middle of what the block does.
                if step % 900 == 450 && ordinal == 1 {
                    for number in 0..10_000 {
                        let event = Event::Msr { number, value: step };
                        encoder.event(vcpu, &event, &[]);
                        expected.push(Err((vcpu, event)));
                    }
                }
                encoder.access(vcpu, false, 3, va, 7);
                let access = Access::new(Kind::Load, va, 8).on(vcpu);
                expected.push(Ok(access.with_user(false).with_frame(7)));
            }
        }
        let mut packer = Packer::new(Vec::new(), &machine(vcpus), &vec![], 1).unwrap();
        packer.push(&encoder.finish()).unwrap();
        let recording = Recording::from_bytes(packer.finish().unwrap().0).unwrap();
        let (read, error) = read(&recording, &Options { frames: true, ..Options::default() });
        assert!(error.is_none(), "{error:?}");
        assert!(read == expected, "with {vcpus} vCPUs");
    }
}
