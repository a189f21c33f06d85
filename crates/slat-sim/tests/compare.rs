//! Comparisons of small made guests beside naive models, and of real recordings beside what has to
//! hold for them.

mod guest;
mod made;

use slat_mmu::shadow::Discipline;
use slat_sim::compare::{Options, Outcome, Scheme, WhatIf, compare};
use slat_sim::machine::Cause;
use slat_sim::preset::{Confidence, Param, Processor};
use slat_trace::recording::{self, Recording};
use slat_trace::{Access, Arch, Batch, Control, Event, Exception, Kind, Machine};

use self::guest::Guest;
use self::made::Made;

const DATA: u64 = 0x1000_0000;

fn run(batch: Batch, processor: &Processor, options: &Options) -> Vec<Outcome> {
    let machine = Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: Some(0..1 << 30) };
    let mut made = Made { machine, batch: Some(batch) };
    compare(&mut made, processor, options, |_| true).expect("the made guest runs")
}

fn of(outcomes: &[Outcome], scheme: Scheme) -> &Outcome {
    outcomes.iter().find(|outcome| outcome.scheme == scheme).expect("the scheme ran")
}

fn references(outcome: &Outcome) -> u64 {
    outcome.counts().grid.iter().flatten().sum()
}

/// Skylake-SP with these entries (and as many ways) in its data TLB and its PDE cache, and no other.
fn processor(data: u32, pde: u32) -> Processor {
    let mut processor = Processor::bundled("skylake-sp").expect("it is bundled");
    let tlb = &mut processor.tlb;
    for array in [&mut tlb.fetch_4k, &mut tlb.fetch_2m, &mut tlb.data_2m, &mut tlb.data_1g] {
        array.value.entries = 0;
    }
    for array in [&mut tlb.second, &mut tlb.second_1g] {
        array.value.entries = 0;
    }
    tlb.data_4k.value.entries = data;
    tlb.data_4k.value.ways = data.max(1);
    let caches = &mut processor.walk_caches;
    for array in [&mut caches.pdpte, &mut caches.pml4e, &mut caches.nested_tlb] {
        array.value.entries = 0;
    }
    caches.pde.value.entries = pde;
    caches.pde.value.ways = pde.max(1);
    processor
}

fn load(va: u64) -> Access {
    Access::new(Kind::Load, va, 8)
}

#[test]
fn a_cold_walk_reads_what_the_definition_says() {
    let sizes = [12, 21, 30];
    // g levels over h: g h + g + h.
    for (levels, shift, guest_reads) in [(4, 12, 4), (4, 21, 3), (4, 30, 2), (5, 12, 5)] {
        let mut guest = Guest::new(levels);
        let mut accesses = Vec::new();
        for page in 0..3u64 {
            let va = 0x1_0000_0000 + (page << shift);
            guest.map(va, (DATA >> shift << shift) + (page << shift), shift);
            // Away from the first 2 MiB, where the guest's tables are.
            accesses.push(load(va + 8 + if shift == 30 { 64 << 20 } else { 0 }));
        }
        // 1 GiB pages: only the first lies in the host's memory.
        if shift == 30 {
            accesses.truncate(1);
        }
        let walks = accesses.len() as u64;
        let outcomes = run(guest.batch(accesses), &processor(0, 0), &Options::default());
        for outcome in &outcomes {
            let nested = match outcome.scheme {
                Scheme::Native => 0,
                // A shadow's leaf is as large as both the guest's and the host's, 2 MiB here.
                Scheme::Shadow(_) => continue,
                Scheme::Ept(host) | Scheme::Npt(host) | Scheme::Arm(host) | Scheme::RiscV(host) => {
                    4 - sizes.iter().position(|&size| size == host).unwrap() as u64
                }
            };
            let expected = guest_reads * nested + guest_reads + nested;
            assert_eq!(outcome.counts().walks, walks, "{:?}", outcome.scheme);
            assert_eq!(
                references(outcome),
                walks * expected,
                "{levels} {shift} {:?}",
                outcome.scheme
            );
            assert_eq!(outcome.counts().unexplained, 0);
        }
        let shadow = of(&outcomes, Scheme::Shadow(Discipline::OutOfSync));
        let levels_read = u64::from(levels) - u64::from(shift.min(21) - 12) / 9;
        assert_eq!(references(shadow), walks * levels_read, "{levels} {shift} shadow");
    }
}

/// An LRU list of so many keys: says whether the key was there.
fn lru(list: &mut Vec<u64>, key: u64, most: usize) -> bool {
    let at = list.iter().position(|&held| held == key);
    if let Some(at) = at {
        list.remove(at);
    }
    list.push(key);
    if list.len() > most {
        list.remove(0);
    }
    at.is_some()
}

#[test]
fn warm_counts_are_those_of_a_naive_model() {
    const TLB: usize = 16;
    const PDES: usize = 4;
    let mut guest = Guest::new(4);
    let place = |page: u64| 0x4000_0000 + (page % 8) * (1 << 21) + page / 8 * 4096;
    for page in 0..64u64 {
        guest.map(place(page), DATA + page * 4096, 12);
    }
    let mut state = 1u64;
    let mut accesses = Vec::new();
    let (mut tlb, mut pdes) = (Vec::new(), Vec::new());
    let (mut walks, mut native, mut nested) = (0, 0, 0);
    for _ in 0..20_000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Mostly a few pages, so that all of hit, PDE hit and full walk occur.
        let page = if state >> 62 == 0 { state >> 33 & 63 } else { state >> 33 & 7 };
        let va = place(page);
        accesses.push(load(va + (state >> 40 & 0xff8)));
        if lru(&mut tlb, va >> 12, TLB) {
            continue;
        }
        walks += 1;
        let hit = lru(&mut pdes, va >> 21, PDES);
        native += if hit { 1 } else { 4 };
        // Host pages of 1 GiB: two reads for each address that is translated. A PDE that is held
        // names the leaf table's place too, so that only the final address is.
        nested += if hit { 1 + 2 } else { 4 + 5 * 2 };
    }
    assert!(walks > 1000 && native < 4 * walks && native > walks);
    let outcomes =
        run(guest.batch(accesses), &processor(TLB as u32, PDES as u32), &Options::default());
    let one = of(&outcomes, Scheme::Native);
    assert_eq!((one.counts().walks, references(one)), (walks, native));
    // Of the TLB alone, whatever the host's page: the guest's are the smaller ones.
    for host in [12, 21, 30] {
        assert_eq!(of(&outcomes, Scheme::Ept(host)).counts().walks, walks, "{host}");
    }
    // The nested dimension's PDE cache is of no use under 1 GiB leaves.
    assert_eq!(references(of(&outcomes, Scheme::Ept(30))), nested);
}

#[test]
fn only_page_faults_of_the_guest_are_true_faults() {
    let mut guest = Guest::new(4);
    guest.map(0x40_0000, DATA, 12);
    let mut batch = guest.batch([load(0x40_0000)]);
    for vector in [14, 13, 14, 32, 14] {
        let exception = Exception { vector, fault_va: 0, stack_or_syndrome: 0, frame: [0; 6] };
        batch.event(0, Event::Exception(exception));
    }
    let outcomes = run(batch, &processor(16, 4), &Options::default());
    for outcome in &outcomes {
        let shadow = matches!(outcome.scheme, Scheme::Shadow(_));
        let expected = if shadow { 3 } else { 0 };
        assert_eq!(outcome.counts().exits[Cause::TrueFault as usize], expected);
    }
}

#[test]
fn shadow_tables_are_over_the_hosts_pages() {
    // A 2 MiB page of the guest, two parts of which are 4 KiB apart.
    let mut guest = Guest::new(4);
    guest.map(0x4000_0000, DATA, 21);
    let walks = |host_pages: &[u8]| {
        let options = Options { host_pages: host_pages.to_vec(), ..Options::default() };
        let accesses = [load(0x4000_0000), load(0x4000_1000)];
        let mut processor = processor(16, 4);
        processor.tlb.data_2m = processor.tlb.data_4k.clone();
        let outcomes = run(guest.batch(accesses), &processor, &options);
        let shadow = of(&outcomes, Scheme::Shadow(Discipline::OutOfSync));
        (shadow.host_shift, shadow.counts().walks)
    };
    assert_eq!(walks(&[12]), (Some(12), 2));
    assert_eq!(walks(&[12, 21]), (Some(21), 1));
    assert_eq!(walks(&[30]), (Some(21), 1));
}

#[test]
fn first_touches_count_only_from_a_cold_start() {
    let mut guest = Guest::new(4);
    let pages = 5;
    for page in 0..pages {
        guest.map(0x40_0000 + page * 4096, DATA + page * 4096, 12);
    }
    let accesses = || (0..pages).map(|page| load(0x40_0000 + page * 4096));
    let exits = |cold_start, scheme, cause: Cause| {
        let options = Options { cold_start, ..Options::default() };
        let outcomes = run(guest.batch(accesses()), &processor(16, 4), &options);
        of(&outcomes, scheme).counts().exits[cause as usize]
    };
    let shadow = Scheme::Shadow(Discipline::TrapAll);
    assert_eq!(exits(true, Scheme::Ept(12), Cause::Violation), pages);
    assert_eq!(exits(true, Scheme::Ept(21), Cause::Violation), 1);
    assert_eq!(exits(true, shadow, Cause::HiddenFault), pages);
    assert_eq!(exits(false, Scheme::Ept(12), Cause::Violation), 0);
    assert_eq!(exits(false, shadow, Cause::HiddenFault), 0);
}

#[test]
fn joined_pages_walk_once_and_are_touched_one_by_one() {
    let mut guest = Guest::new(4);
    let pages = 8;
    for page in 0..pages {
        guest.map(0x40_0000 + page * 4096, DATA + page * 4096, 12);
    }
    let accesses = || (0..pages).map(|page| load(0x40_0000 + page * 4096));
    let counts = |joins: Option<u32>, cold_start, scheme| {
        let options = Options { cold_start, ..Options::default() };
        let mut processor = processor(16, 4);
        let param = |value| Param { value, source: String::new(), confidence: Confidence::Assumed };
        processor.tlb.joins = joins.map(param);
        let outcomes = run(guest.batch(accesses()), &processor, &options);
        of(&outcomes, scheme).counts().clone()
    };
    for scheme in [Scheme::Native, Scheme::Ept(12), Scheme::Ept(21)] {
        assert_eq!(counts(None, false, scheme).walks, pages);
        assert_eq!(counts(Some(4), false, scheme).walks, pages / 4);
    }
    // The hypervisor backs one page at a time: each first touch is an exit of its own.
    let cold = counts(Some(4), true, Scheme::Ept(12));
    assert_eq!(cold.exits[Cause::Violation as usize], pages);
}

#[test]
fn a_table_written_as_a_whole_loses_its_shadow() {
    let mut guest = Guest::new(4);
    guest.map(0x40_0000, DATA, 12);
    let mut batch = guest.batch([load(0x40_0000)]);
    // The level-1 table, entry by entry, away from the entry in use.
    let (table, _) = *guest.tables.iter().find(|(_, level)| *level == 1).expect("one is there");
    for index in 256..512 {
        batch.event(0, Event::TableStore { gpa: table + 8 * index, value: 0 });
    }
    batch.accesses.push(load(0x40_0000));
    let outcomes = run(batch, &processor(16, 4), &Options::default());
    let shadow = of(&outcomes, Scheme::Shadow(Discipline::OutOfSync));
    assert_eq!(shadow.counts().exits[Cause::TableWrite as usize], 3);
    assert_eq!(shadow.counts().exits[Cause::HiddenFault as usize], 1, "linked again");
    assert_eq!(shadow.counts().unexplained, 0);
}

#[test]
fn a_warm_up_is_exactly_as_long_as_asked() {
    let mut guest = Guest::new(4);
    for page in 0..40u64 {
        guest.map(0x40_0000 + page * 4096, DATA + page * 4096, 12);
    }
    // Forty pages once, and the last of them again and again.
    let accesses = || (0..100u64).map(|nth| load(0x40_0000 + nth.min(39) * 4096));
    let counted = |warm_up| {
        let options = Options { warm_up, ..Options::default() };
        let outcomes = run(guest.batch(accesses()), &processor(64, 4), &options);
        let counts = of(&outcomes, Scheme::Ept(21)).counts();
        (counts.accesses, counts.walks, counts.instructions)
    };
    assert_eq!(counted(0), (100, 40, 100));
    assert_eq!(counted(1), (99, 39, 99));
    assert_eq!(counted(39), (61, 1, 61));
    assert_eq!(counted(40), (60, 0, 60));
    assert_eq!(counted(99), (1, 0, 1));
    for warm_up in [100, 101, u64::MAX] {
        let machine =
            Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: Some(0..1 << 30) };
        let mut made = Made { machine, batch: Some(guest.batch(accesses())) };
        let options = Options { warm_up, ..Options::default() };
        let error = compare(&mut made, &processor(64, 4), &options, |_| true).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&warm_up.to_string()) && text.contains("100"), "{text}");
    }
}

#[test]
fn entries_read_are_those_of_the_grid_but_for_a_page_walk_cache() {
    let mut guest = Guest::new(4);
    for page in 0..64u64 {
        guest.map(0x40_0000 + page * 4096, DATA + page * 4096, 12);
    }
    let accesses = || (0..64u64).map(|page| load(0x40_0000 + page * 4096));
    for name in ["skylake-sp", "zen-4"] {
        let processor = Processor::bundled(name).expect("it is bundled");
        for outcome in run(guest.batch(accesses()), &processor, &Options::default()) {
            assert_eq!(outcome.reads(), references(&outcome), "{name} {:?}", outcome.scheme);
        }
    }
    // One cold walk reads 24; then a page walk cache that holds all tables leaves the leaves: one of
    // the guest's, and those of the nested tables for four tables and the page.
    let barcelona = Processor::bundled("barcelona").expect("it is bundled");
    let processor = barcelona.with_design(slat_mmu::walker::Design::TwoD);
    let outcomes = run(guest.batch(accesses()), &processor, &Options::default());
    let nested = of(&outcomes, Scheme::Npt(12));
    assert_eq!(references(nested), 64 * 24);
    assert!(nested.reads() < 64 * 7, "{}", nested.reads());
    assert!(nested.reads() >= 64 * 6, "{}", nested.reads());
}

fn recorded(name: &str, threads: usize) -> Vec<Outcome> {
    let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
    let recording = Recording::open(&path).expect("it is bundled");
    let mut reader = recording.reader(&recording::Options::default()).expect("it is readable");
    let processor = Processor::bundled("skylake-sp").expect("it is bundled");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    pool.install(|| compare(&mut reader, &processor, &Options::default(), |_| true))
        .expect("the recording runs")
}

#[test]
fn numbers_do_not_depend_on_threads() {
    let one = recorded("clear-refs", 1);
    assert_eq!(one, recorded("clear-refs", 2));
    assert_eq!(one, recorded("clear-refs", 7));
}

#[test]
fn every_access_of_a_real_guest_translates() {
    for name in ["clear-refs", "chase-4k", "fork-aarch64"] {
        for outcome in recorded(name, 2) {
            assert_eq!(outcome.counts().unexplained, 0, "{name} {:?}", outcome.scheme);
        }
    }
}

/// A recording under the schemes of every architecture.
fn transcribed(name: &str) -> Vec<Outcome> {
    let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
    let recording = Recording::open(&path).expect("it is bundled");
    let mut reader = recording.reader(&recording::Options::default()).expect("it is readable");
    let processor = Processor::bundled("skylake-sp").expect("it is bundled");
    let options =
        Options { host_pages: vec![21], transcribed: true, what_ifs: true, ..Options::default() };
    compare(&mut reader, &processor, &options, |done| done < 2_500_000).expect("it runs")
}

#[test]
fn every_access_translates_in_another_architectures_tables_too() {
    let shadows = [Discipline::TrapAll, Discipline::OutOfSync].map(Scheme::Shadow);
    let others = [
        (
            "fork-aarch64",
            vec![shadows[0], shadows[1], Scheme::Ept(21), Scheme::Npt(21), Scheme::RiscV(21)],
        ),
        ("clear-refs", vec![Scheme::Arm(21), Scheme::RiscV(21)]),
        ("chase-2m", vec![Scheme::Arm(21), Scheme::RiscV(21)]),
        // Two vCPUs, each with registers of its own.
        ("fork-smp2", vec![Scheme::Arm(21), Scheme::RiscV(21)]),
        // Arm has no five levels of nine bits; RISC-V has.
        ("fork-5-level", vec![Scheme::RiscV(21)]),
    ];
    for (name, expected) in others {
        let outcomes = transcribed(name);
        let made: Vec<Scheme> =
            outcomes.iter().filter(|one| one.transcribed).map(|one| one.scheme).collect();
        assert_eq!(made, expected, "{name}");
        let native = of(&outcomes, Scheme::Native).counts();
        for outcome in &outcomes {
            let counts = outcome.counts();
            assert_eq!(counts.unexplained, 0, "{name} {:?} {:?}", outcome.scheme, outcome.what_if);
            assert_eq!((counts.accesses, counts.lookups), (native.accesses, native.lookups));
            // The same pages and rights: about as many misses where no shadow is between.
            if outcome.transcribed && !matches!(outcome.scheme, Scheme::Shadow(_)) {
                let ratio = counts.walks as f64 / native.walks as f64;
                assert!((0.8..1.25).contains(&ratio), "{name} {:?}: {ratio}", outcome.scheme);
            }
        }
    }
}

#[test]
fn five_levels_are_walked_under_every_scheme() {
    let outcomes = transcribed("fork-5-level");
    for scheme in [
        Scheme::Native,
        Scheme::Shadow(Discipline::TrapAll),
        Scheme::Shadow(Discipline::OutOfSync),
        Scheme::Ept(21),
        Scheme::Npt(21),
        Scheme::RiscV(21),
    ] {
        let counts = of(&outcomes, scheme).counts();
        assert_eq!(counts.unexplained, 0, "{scheme:?}");
        // The fifth level is read by cold walks.
        assert!(counts.grid[4].iter().sum::<u64>() > 0, "{scheme:?}");
    }
}

#[test]
fn large_pages_of_the_guest_are_tried_where_it_fills_them() {
    let huge = |name: &str| {
        let outcomes = transcribed(name);
        let huge = outcomes.iter().find(|outcome| outcome.what_if == Some(WhatIf::HugePages));
        let time = |outcome: &Outcome| outcome.time.expect("counted").value;
        huge.map(|huge| (time(huge), time(of(&outcomes, Scheme::Ept(21)))))
    };
    // The chase touches all of its memory, by small pages or by large ones already.
    let (with, without) = huge("chase-4k").expect("it fills 2 MiB");
    assert!(with < 0.9 * without, "{with} {without}");
    assert_eq!(huge("chase-2m"), None);
}

#[test]
fn slat_loses_on_random_access_and_wins_on_forks() {
    let time = |outcomes: &[Outcome], scheme| of(outcomes, scheme).time.expect("counted").value;
    let shadow = Scheme::Shadow(Discipline::OutOfSync);
    let trap = Scheme::Shadow(Discipline::TrapAll);
    let chase = recorded("chase-4k", 2);
    let ept = [12, 21, 30].map(|shift| time(&chase, Scheme::Ept(shift)));
    assert!(time(&chase, shadow) < ept[2], "few table changes, many misses");
    assert!(ept[2] <= ept[1] && ept[1] < ept[0], "larger host pages, shorter walks: {ept:?}");
    let large = recorded("chase-2m", 2);
    let closed = time(&large, Scheme::Ept(21)) - time(&large, shadow);
    assert!(closed < ept[1] - time(&chase, shadow), "2M pages of both close the gap");
    let refs = recorded("clear-refs", 2);
    assert!(time(&refs, trap) > time(&refs, shadow));
    assert!(time(&refs, shadow) > time(&refs, Scheme::Ept(21)));
}

/// Two processes with pages that were touched before the recording began, which take turns.
fn two_processes(switches: u64) -> Batch {
    let guests =
        [Guest::at(0x10_0000, 4, false), Guest::at(0x20_0000, 4, false)].map(|mut guest| {
            for page in 0..50u64 {
                guest.map(0x40_0000 + page * 4096, DATA + (guest.root << 4) + page * 4096, 12);
            }
            guest
        });
    let mut batch = Batch::default();
    guests[0].begin(&mut batch, 0);
    guests[0].know(&mut batch);
    for turn in 0..switches {
        let guest = &guests[turn as usize % 2];
        if turn > 0 {
            guest.load(&mut batch, 0);
        }
        if turn == 1 {
            // A recorder sees these tables now.
            guest.know(&mut batch);
        }
        for page in 0..50u64 {
            batch.accesses.push(Access::new(Kind::Store, 0x40_0000 + page * 4096, 8));
        }
    }
    batch.instructions = batch.accesses.len() as u64;
    batch
}

#[test]
fn shadows_of_all_processes_that_ran_before_are_filled() {
    let exits = |cold_start, cause: Cause| {
        let options = Options { cold_start, ..Options::default() };
        let outcomes = run(two_processes(6), &processor(64, 4), &options);
        let counts = of(&outcomes, Scheme::Shadow(Discipline::OutOfSync)).counts().clone();
        assert_eq!(counts.unexplained, 0);
        counts.exits[cause as usize]
    };
    assert_eq!(exits(false, Cause::HiddenFault), 0);
    assert_eq!(exits(false, Cause::Dirty), 0);
    assert_eq!(exits(false, Cause::Cr3), 5);
    assert_eq!(exits(true, Cause::HiddenFault), 100);
}

/// A guest frees a table, clears its page through a mapping of its own, and uses it as data.
#[test]
fn a_freed_table_traps_until_the_hypervisor_gives_it_up() {
    const VA: u64 = 0x40_0000;
    // Where the guest maps its first 2 MiB of memory, in which its tables are, by one large page.
    const DIRECT: u64 = 0x8000_0000;
    for (level, discipline, stores, faults) in [
        (0u8, Discipline::OutOfSync, 1, 0),
        (1, Discipline::OutOfSync, 3, 1),
        (0, Discipline::TrapAll, 3, 1),
        (1, Discipline::TrapAll, 3, 1),
    ] {
        let mut guest = Guest::new(4);
        guest.map(DIRECT, 0, 21);
        guest.map(VA, DATA, 12);
        let lowest = |wanted: u8| {
            let found = guest.tables.iter().rfind(|(_, level)| *level == wanted);
            found.expect("one is there").0
        };
        let (freed, above) = (lowest(level), lowest(level + 1));
        let index = VA >> (12 + 9 * (level + 1)) & 0x1ff;
        let mut batch = guest.batch([load(VA), load(DIRECT + freed)]);
        batch.event(0, Event::TableStore { gpa: above + 8 * index, value: 0 });
        batch.event(0, Event::TableRelease { gpa: freed });
        let line = |nth: u64| Access::new(Kind::Store, DIRECT + freed + 64 * nth, 8);
        batch.accesses.extend((0..64).map(line));
        // A load of CR3 makes no table of it again.
        guest.load(&mut batch, 0);
        batch.accesses.extend((0..64).map(line));
        batch.instructions = batch.accesses.len() as u64;
        let outcomes = run(batch, &processor(16, 4), &Options::default());
        let counts = of(&outcomes, Scheme::Shadow(discipline)).counts();
        let exits = |cause: Cause| counts.exits[cause as usize];
        // The store to the entry above is an exit of its own.
        assert_eq!(exits(Cause::TableWrite), 1 + stores, "{level} {discipline:?}");
        let fills = exits(Cause::HiddenFault) + exits(Cause::Dirty);
        assert_eq!(fills, faults, "{level} {discipline:?}");
        assert_eq!(counts.unexplained, 0);
        // Natively and under SLAT it is data like other data.
        for scheme in [Scheme::Native, Scheme::Ept(21)] {
            assert_eq!(of(&outcomes, scheme).exits(), 0);
        }
    }
}

#[test]
fn a_supervisors_store_to_a_page_that_it_may_not_write_is_carried_out_once() {
    let mut guest = Guest::new(4);
    let (at, entry) = guest.map(0x40_0000, DATA, 12);
    let mut batch = guest.batch([]);
    // Read-only, not accessed yet, and CR0.WP clear.
    batch.event(0, Event::TableEntry { gpa: at, value: entry & !0x62 });
    batch.event(0, Event::Control { register: Control::Cr0, value: 0x8004_0033 });
    batch.accesses.extend([Access::new(Kind::Store, 0x40_0000, 8).with_user(false); 4]);
    let outcomes = run(batch, &processor(16, 4), &Options::default());
    for outcome in &outcomes {
        let shadow = matches!(outcome.scheme, Scheme::Shadow(_));
        let expected = if shadow { 4 } else { 0 };
        let counts = outcome.counts();
        assert_eq!(counts.exits[Cause::Emulation as usize], expected, "{:?}", outcome.scheme);
        assert_eq!(counts.unexplained, 0, "{:?}", outcome.scheme);
    }
}

#[test]
fn pieces_of_the_guests_large_pages_are_splintered_under_shadow_tables_too() {
    let splintered = |host_pages: &[u8]| {
        let mut guest = Guest::new(4);
        guest.map(0x4000_0000, DATA, 21);
        let accesses = [load(0x4000_0000), load(0x4000_1000)];
        let options = Options { host_pages: host_pages.to_vec(), ..Options::default() };
        let outcomes = run(guest.batch(accesses), &processor(16, 4), &options);
        let shadow = of(&outcomes, Scheme::Shadow(Discipline::OutOfSync)).counts().splintered;
        let nested = outcomes.iter().find(|outcome| matches!(outcome.scheme, Scheme::Ept(_)));
        (shadow, nested.map(|outcome| outcome.counts().splintered))
    };
    assert_eq!(splintered(&[12]), (2, Some(2)));
    assert_eq!(splintered(&[21]), (0, Some(0)));
}

#[test]
fn what_ept_alone_translates_survives_an_exit_without_tags() {
    let reads = |tagged, scheme| {
        let mut guest = Guest::new(4);
        for page in 0..64u64 {
            guest.map(0x40_0000 + (page << 21), DATA + (page << 21), 12);
        }
        let mut batch = guest.batch([]);
        for page in 0..64u64 {
            batch.accesses.push(load(0x40_0000 + (page << 21)));
            batch.event(0, Event::Io { va: 0, gpa: 0xfebd_1000, len: 2, store: true });
        }
        batch.instructions = 64;
        let options = Options { tagged: Some(tagged), ..Options::default() };
        let outcomes = run(batch, &processor(16, 4), &options);
        let outcome = of(&outcomes, scheme);
        assert_eq!(outcome.counts().exits[Cause::Io as usize], 64, "each access has its exit");
        // By the guest's own entry, and by the nested tables.
        let own: u64 = outcome.counts().grid.iter().map(|row| row[5]).sum();
        (own, references(outcome) - own)
    };
    // No caches of the guest's own levels but of PDEs, of which no two accesses share one.
    let (own, nested) = reads(true, Scheme::Ept(12));
    assert_eq!(reads(false, Scheme::Ept(12)), (own, nested));
    // With AMD's tags an exit without them drops all.
    let (amd, amd_nested) = reads(false, Scheme::Npt(12));
    assert_eq!(amd, own);
    assert!(amd_nested > nested, "{amd_nested} {nested}");
}

#[test]
fn without_instruction_counts_there_are_cycles_an_access() {
    let outcomes = |instructions| {
        let mut batch = two_processes(6);
        batch.instructions = instructions;
        run(batch, &processor(16, 4), &Options::default())
    };
    for (with, without) in outcomes(300).iter().zip(&outcomes(0)) {
        assert!(with.time.is_some() && without.time.is_none(), "{:?}", with.scheme);
        assert_eq!(with.per_access, without.per_access);
        let each = without.cycles.overhead() / without.counts().accesses as f64;
        assert!((without.per_access.value - each).abs() < 1e-9 && each > 0.0);
        assert!(without.per_access.low < each && each < without.per_access.high);
    }
}

#[test]
fn each_vcpu_has_a_first_cache_level_of_its_own() {
    // 24 KiB each, by turns, of a first level of 32 KiB.
    let mut guest = Guest::new(4);
    for page in 0..12u64 {
        guest.map(0x40_0000 + page * 4096, DATA + page * 4096, 12);
    }
    let mut batch = Batch::default();
    (0..2).for_each(|vcpu| guest.begin(&mut batch, vcpu));
    guest.know(&mut batch);
    for nth in 0..20 * 384u64 {
        for vcpu in 0..2u8 {
            let va = 0x40_0000 + u64::from(vcpu) * 6 * 4096 + nth % 384 * 64;
            batch.accesses.push(load(va).on(vcpu));
        }
    }
    batch.instructions = 1;
    let machine = Machine { arch: Arch::X86_64, vcpus: 2, tables: true, memory: Some(0..1 << 30) };
    let mut made = Made { machine, batch: Some(batch) };
    let skylake = Processor::bundled("skylake-sp").expect("it is bundled");
    let outcomes = compare(&mut made, &skylake, &Options::default(), |_| true).expect("it runs");
    for outcome in &outcomes {
        let beyond: u64 = outcome.events.data[1..].iter().sum();
        // Only the first use of each line, and what tables displace.
        assert!((768..1100).contains(&beyond), "{:?}: {beyond}", outcome.scheme);
    }
}
