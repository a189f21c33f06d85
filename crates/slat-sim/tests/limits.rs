//! What comparisons refuse, and what they leave out and say so.

mod made;

use slat_sim::compare::{
    CompareError, Compared, Discipline, Facts, Options, Outcome, Scheme, compare_with, share,
};
use slat_sim::preset::Processor;
use slat_trace::recording::{self, Reader, Recording};
use slat_trace::{Access, Arch, Batch, Control, Event, Kind, Machine, Root};

use self::made::Made;

/// A guest that does next to nothing, of memory that lies here.
fn guest(arch: Arch, memory: std::ops::Range<u64>) -> Made {
    let mut batch = Batch::default();
    // A root for each half of an AArch64 address space: 48 bits, 4K granules.
    batch.event(0, Event::Control { register: Control::Tcr, value: 16 | 16 << 16 | 2 << 30 });
    let page = |nth: u64| (memory.start & !0xfff).wrapping_add(nth << 12);
    for (root, table) in [(Root::Ttbr1, page(0)), (Root::Ttbr0, page(1))] {
        batch.event(0, Event::TablePage { gpa: table, level: 3, fresh: true });
        batch.event(0, Event::TableEntry { gpa: table, value: page(2) | 3 });
        batch.event(0, Event::Root { root, value: table });
    }
    batch.accesses.push(Access::new(Kind::Load, 0x1000, 8));
    batch.instructions = 1;
    let machine = Machine { arch, vcpus: 1, tables: true, memory: Some(memory) };
    Made { machine, batch: Some(batch) }
}

fn skylake() -> Processor {
    Processor::bundled("skylake-sp").expect("it is bundled")
}

fn run(made: &mut Made, options: &Options) -> Result<Compared, CompareError> {
    compare_with(made, &skylake(), options, |_| Facts::RECORDED, |_| true)
}

fn reader(name: &str) -> Reader {
    let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
    let recording = Recording::open(&path).expect("it is bundled");
    recording.reader(&recording::Options::default()).expect("it is readable")
}

#[test]
fn memory_that_is_not_simulated_is_refused_whatever_the_header_says() {
    const MOST: u64 = 1 << 36;
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for memory in [u64::MAX - 8192..u64::MAX - 1, MOST..MOST + 4096, 0..MOST + 1] {
            let end = memory.end;
            let options = Options { transcribed: true, what_ifs: true, ..Options::default() };
            let error = run(&mut guest(arch, memory), &options).unwrap_err().to_string();
            assert!(error.contains(&format!("{:#x}", end - 1)), "{error}");
            assert!(error.contains("64 GiB"), "{error}");
        }
    }
}

#[test]
fn tables_outside_memory_and_more_than_there_can_be_are_refused() {
    let refused = |events: &mut dyn FnMut(&mut Batch)| {
        let mut made = guest(Arch::X86_64, 0..1 << 34);
        let batch = made.batch.as_mut().expect("one");
        batch.events.clear();
        events(batch);
        run(&mut made, &Options::default()).unwrap_err().to_string()
    };
    for event in [
        Event::TablePage { gpa: 1 << 34, level: 0, fresh: true },
        Event::TableStore { gpa: (1 << 34) + 8, value: 7 },
        Event::TableEntry { gpa: 1 << 40, value: 7 },
    ] {
        let error = refused(&mut |batch| batch.event(0, event));
        assert!(error.contains("outside the guest's memory, 0x0 to 0x400000000"), "{error}");
    }
    let error = refused(&mut |batch| {
        for nth in 0..1_000_000 {
            batch.event(0, Event::TablePage { gpa: nth << 12, level: 0, fresh: true });
        }
    });
    assert!(error.contains("more than 65536 page tables"), "{error}");
}

#[test]
fn an_arm_guest_without_room_for_more_tables_is_not_transcribed() {
    let options = Options { host_pages: vec![21], transcribed: true, ..Options::default() };
    let schemes = |memory| {
        let compared = run(&mut guest(Arch::Aarch64, memory), &options).expect("it runs");
        let schemes: Vec<Scheme> = compared.outcomes.iter().map(|outcome| outcome.scheme).collect();
        (schemes, compared.notes)
    };
    let (all, notes) = schemes((1 << 36) - (8 << 20)..(1 << 36) - (4 << 20));
    assert_eq!((all.len(), notes.len()), (7, 0), "{notes:?}");
    let (left, notes) = schemes((1 << 36) - (8 << 20)..1 << 36);
    assert_eq!(left, [Scheme::Native, Scheme::Arm(21)]);
    assert_eq!(notes.len(), 5, "{notes:?}");
    assert!(notes.iter().all(|note| note.contains("64 GiB")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("no g-stage: ")), "{notes:?}");
}

#[test]
fn machines_that_share_cores_run_under_no_scheme_that_transcribes() {
    let together = |name: &str, scheme| {
        let options = Options { schemes: Some(vec![Scheme::Native, scheme]), ..Options::default() };
        let mut sources = [reader(name), reader(name)];
        let facts = |_: &_| Facts::RECORDED;
        share(&mut sources, 50_000, &skylake(), &options, facts, |done| done < 200_000)
    };
    for (name, scheme) in [
        ("clear-refs", Scheme::Arm(21)),
        ("clear-refs", Scheme::RiscV(21)),
        ("fork-aarch64", Scheme::Ept(21)),
        ("fork-aarch64", Scheme::Shadow(Discipline::OutOfSync)),
    ] {
        let error = together(name, scheme).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(scheme.name()) && error.contains("transcri"), "{error}");
    }
    for (name, scheme) in [("clear-refs", Scheme::Ept(21)), ("fork-aarch64", Scheme::Arm(21))] {
        let outcomes: Vec<Outcome> = together(name, scheme).expect("it runs").concat();
        assert_eq!(outcomes.len(), 4);
        for outcome in outcomes {
            assert_eq!(outcome.counts().unexplained, 0, "{name} {:?}", outcome.scheme);
        }
    }
}

#[test]
fn pcids_are_no_matter_of_an_arm_guest() {
    let outcomes = |pcid| {
        let schemes = Some(vec![Scheme::Native, Scheme::Arm(21), Scheme::Ept(21)]);
        let options = Options { schemes, pcid, ..Options::default() };
        let facts = |_: &_| Facts::RECORDED;
        compare_with(&mut reader("fork-aarch64"), &skylake(), &options, facts, |_| true)
            .expect("it runs")
            .outcomes
    };
    let with = outcomes(true);
    for outcome in &with {
        assert_eq!(outcome.counts().unexplained, 0, "{:?}", outcome.scheme);
    }
    assert_eq!(with, outcomes(false));
}
