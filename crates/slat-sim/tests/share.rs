//! Several vCPUs, and several virtual machines on the same cores: what one does drops nothing of
//! another's that it does not reach, and what it reaches it drops.

mod guest;
mod made;

use slat_mmu::shadow::Discipline;
use slat_sim::compare::{Facts, Options, Outcome, Scheme, compare, share};
use slat_sim::machine::Cause;
use slat_sim::preset::Processor;
use slat_trace::recording::{self, Reader, Recording};
use slat_trace::{Access, Arch, Batch, Control, Event, Invalidation, Kind, Machine};

use self::guest::Guest;
use self::made::Made;

const DATA: u64 = 0x1000_0000;
const CODE: u64 = 0x40_0000;
/// CR4 of [`Guest`], and the same with PGE clear (Intel SDM 3A 2.5).
const CR4: u64 = 0x6b0;
const WITHOUT_PGE: u64 = CR4 & !(1 << 7);
/// A page is global: in x86's entries.
const GLOBAL: u64 = 1 << 8;
const SHADOWS: [Scheme; 2] =
    [Scheme::Shadow(Discipline::TrapAll), Scheme::Shadow(Discipline::OutOfSync)];

fn made(arch: Arch, vcpus: u8, batch: &Batch) -> Made {
    let machine = Machine { arch, vcpus, tables: true, memory: Some(0..1 << 30) };
    Made { machine, batch: Some(batch.clone()) }
}

fn bundled(name: &str) -> Processor {
    Processor::bundled(name).expect("it is bundled")
}

fn only(schemes: &[Scheme]) -> Options {
    Options { schemes: Some(schemes.to_vec()), host_pages: vec![21], ..Options::default() }
}

/// Walks of a guest alone under each scheme.
fn walks(arch: Arch, vcpus: u8, batch: &Batch, options: &Options) -> Vec<u64> {
    compare(&mut made(arch, vcpus, batch), &bundled("skylake-sp"), options, |_| true)
        .expect("the made guest runs")
        .iter()
        .map(|outcome| {
            assert_eq!(outcome.counts().unexplained, 0, "{:?}", outcome.scheme);
            outcome.counts().walks
        })
        .collect()
}

fn load(vcpu: u8, va: u64) -> Access {
    Access::new(Kind::Load, va, 8).on(vcpu)
}

fn together(
    processor: &str,
    vcpus: u8,
    batches: [&Batch; 2],
    slice: usize,
    options: &Options,
) -> Vec<Vec<Outcome>> {
    let mut guests = batches.map(|batch| made(Arch::X86_64, vcpus, batch));
    share(&mut guests, slice, &bundled(processor), options, |_| Facts::RECORDED, |_| true)
        .expect("the made guests run")
}

#[test]
fn no_machine_walks_through_anothers_tables() {
    // Tables at the same guest physical places, of another shape.
    let mut one = Guest::new(4);
    one.map(CODE, DATA, 12);
    let mut other = Guest::new(4);
    other.map(0x80_4000_0000, DATA, 12);
    other.map(CODE, DATA + 4096, 12);
    let batches = [one, other].map(|guest| guest.batch((0..40).map(|_| load(0, CODE))));
    for processor in ["barcelona", "skylake-sp"] {
        for tagged in [None, Some(true), Some(false)] {
            let schemes = [Scheme::Native, SHADOWS[0], Scheme::Npt(21)];
            let options = Options { tagged, ..only(&schemes) };
            for outcome in together(processor, 1, [&batches[0], &batches[1]], 4, &options).concat()
            {
                let what = format!("{processor} {tagged:?} {:?}", outcome.scheme);
                assert_eq!(outcome.counts().unexplained, 0, "{what}");
            }
        }
    }
}

fn reader(name: &str) -> Reader {
    let path = format!("{}/../../recordings/{name}.slat", env!("CARGO_MANIFEST_DIR"));
    let recording = Recording::open(&path).expect("it is bundled");
    recording.reader(&recording::Options::default()).expect("it is readable")
}

#[test]
fn every_access_of_real_guests_translates_while_they_share_cores() {
    for tagged in [true, false] {
        let mut guests = ["fork", "fork-pti"].map(reader);
        let options = Options { tagged: Some(tagged), ..only(&[Scheme::Native, Scheme::Npt(21)]) };
        let facts = |_: &_| Facts::RECORDED;
        let barcelona = bundled("barcelona");
        let all = share(&mut guests, 5000, &barcelona, &options, facts, |done| done < 1_000_000);
        for outcome in all.expect("they run").concat() {
            assert_eq!(outcome.counts().unexplained, 0, "{tagged} {:?}", outcome.scheme);
        }
    }
}

/// A guest that reads its pages again and again.
fn idle(pages: u64) -> Batch {
    let mut guest = Guest::new(4);
    for page in 0..pages {
        guest.map(CODE + page * 4096, DATA + page * 4096, 12);
    }
    guest.batch((0..4000).map(|nth| load(0, CODE + nth % pages * 4096)))
}

/// A guest that drops all that it can, at the idle one's addresses too.
fn busy() -> Batch {
    let mut guest = Guest::new(4);
    let (leaf, value) = guest.map(CODE, DATA, 12);
    let mut batch = guest.batch([]);
    for nth in 0..2000u64 {
        let events = [
            Event::Invalidate(Invalidation::Invlpg { va: CODE + nth % 60 * 4096 }),
            Event::Invalidate(Invalidation::Invpcid { kind: 3, pcid: 0, va: 0 }),
            Event::Invalidate(Invalidation::Invpcid { kind: 2, pcid: 0, va: 0 }),
            Event::Control { register: Control::Cr4, value: WITHOUT_PGE },
            Event::Control { register: Control::Cr4, value: CR4 },
            Event::TableStore { gpa: leaf, value: 0 },
            Event::TableStore { gpa: leaf, value },
        ];
        match events.get(nth as usize % (events.len() + 1)) {
            Some(&event) => batch.event(0, event),
            None => guest.load(&mut batch, 0),
        }
        if !matches!(
            batch.events.last().map(|at| at.event),
            Some(Event::TableStore { value: 0, .. })
        ) {
            batch.accesses.push(load(0, CODE));
        }
    }
    batch.instructions = batch.accesses.len() as u64;
    batch
}

#[test]
fn with_tags_what_a_machine_drops_is_its_own() {
    let (idle, busy) = (idle(60), busy());
    let schemes = [SHADOWS[0], SHADOWS[1], Scheme::Ept(21), Scheme::Npt(21)];
    let options = Options { tagged: Some(true), ..only(&schemes) };
    let alone = [&idle, &busy].map(|batch| walks(Arch::X86_64, 1, batch, &options));
    for order in [[0, 1], [1, 0]] {
        let batches = order.map(|nth| [&idle, &busy][nth]);
        let shared = together("skylake-sp", 1, batches, 7, &options);
        for (outcomes, nth) in shared.iter().zip(order) {
            for (outcome, alone) in outcomes.iter().zip(&alone[nth]) {
                assert_eq!(outcome.counts().walks, *alone, "{nth} {:?}", outcome.scheme);
            }
        }
    }
    // Without tags every turn begins with nothing, while there are two.
    let options = Options { tagged: Some(false), ..options };
    let untagged = together("skylake-sp", 1, [&idle, &busy], 7, &options);
    let ept = untagged[0].iter().find(|outcome| outcome.scheme == Scheme::Ept(21)).unwrap();
    assert!(ept.counts().walks > 1500, "{}", ept.counts().walks);
}

#[test]
fn natively_there_are_no_tags_to_lack() {
    let (idle, busy) = (idle(60), busy());
    let native = |tagged| {
        let options = Options { tagged: Some(tagged), ..only(&[Scheme::Native]) };
        together("skylake-sp", 1, [&idle, &busy], 7, &options)
    };
    assert_eq!(native(true), native(false));
}

#[test]
fn an_exit_is_of_one_core() {
    let mut guest = Guest::new(4);
    guest.map(CODE, DATA, 12);
    let mut batch = Batch::default();
    guest.begin(&mut batch, 0);
    guest.begin(&mut batch, 1);
    guest.know(&mut batch);
    batch.accesses.extend([load(0, CODE), load(1, CODE)]);
    batch.event(0, Event::Io { va: 0, gpa: 0, len: 4, store: false });
    batch.accesses.push(load(1, CODE));
    let options = Options { tagged: Some(false), ..only(&[Scheme::Ept(21)]) };
    assert_eq!(walks(Arch::X86_64, 2, &batch, &options), [2], "the second vCPU did not exit");
    batch.accesses.push(load(0, CODE));
    assert_eq!(walks(Arch::X86_64, 2, &batch, &options), [3], "the first did");
}

#[test]
fn another_machines_turn_is_an_exit_of_each_core() {
    let mut guest = Guest::new(4);
    guest.map(CODE, DATA, 12);
    let mut batch = Batch::default();
    guest.begin(&mut batch, 0);
    guest.begin(&mut batch, 1);
    guest.know(&mut batch);
    batch.accesses.extend((0..20).map(|nth| load(nth % 2, CODE)));
    let options = only(&[Scheme::Ept(21)]);
    let outcomes = together("skylake-sp", 2, [&batch, &batch], 10, &options);
    // Two turns each, and one in which the first guest finds that it has ended: then it exits no more.
    let switches = |vm: usize| outcomes[vm][0].counts().exits[Cause::Switch as usize];
    assert_eq!((switches(0), switches(1)), (2 * 2, 2 * 2));
}

#[test]
fn each_vcpu_has_numbers_of_its_own_for_address_spaces() {
    let spaces: Vec<Guest> = (1..=7)
        .map(|nth| {
            let mut guest = Guest::at(nth << 20, 4, false);
            guest.map(CODE, DATA + (nth << 12), 12);
            guest
        })
        .collect();
    let mut batch = Batch::default();
    for vcpu in 0..2 {
        spaces[0].begin(&mut batch, vcpu);
    }
    spaces.iter().for_each(|space| space.know(&mut batch));
    batch.accesses.push(load(1, CODE));
    // The seventh takes the number that the first has on the other vCPU.
    spaces[1..].iter().for_each(|space| space.load(&mut batch, 0));
    spaces[6].load(&mut batch, 1);
    batch.accesses.push(load(1, CODE));
    let options = Options { pcid: true, ..only(&[Scheme::Native, Scheme::Ept(21)]) };
    assert_eq!(walks(Arch::X86_64, 2, &batch, &options), [2, 2]);
    // And a return finds the first one's translation.
    spaces[0].load(&mut batch, 1);
    batch.accesses.push(load(1, CODE));
    assert_eq!(walks(Arch::X86_64, 2, &batch, &options), [2, 2]);
}

#[test]
fn a_store_makes_an_address_space_stale_on_every_vcpu() {
    let [mut one, mut other] = [1, 2].map(|nth| Guest::at(nth << 20, 4, false));
    let (leaf, value) = one.map(CODE, DATA, 12);
    other.map(CODE, DATA + 4096, 12);
    let mut batch = Batch::default();
    for vcpu in 0..2 {
        one.begin(&mut batch, vcpu);
    }
    one.know(&mut batch);
    other.know(&mut batch);
    batch.accesses.extend([load(0, CODE), load(1, CODE)]);
    (0..2).for_each(|vcpu| other.load(&mut batch, vcpu));
    batch.event(0, Event::TableStore { gpa: leaf, value: value + (8 << 12) });
    // The load on one vCPU makes it true again there, and on no other.
    one.load(&mut batch, 0);
    batch.accesses.push(load(0, CODE));
    other.load(&mut batch, 0);
    one.load(&mut batch, 1);
    batch.accesses.push(load(1, CODE));
    let options = Options { pcid: true, ..only(&[Scheme::Native, Scheme::Ept(21)]) };
    assert_eq!(walks(Arch::X86_64, 2, &batch, &options), [4, 4]);
}

#[test]
fn only_broadcast_invalidations_of_arm_reach_other_cores() {
    // CRm, op2 and what the operand names: VMALLE1, VAE1, ASIDE1, VAAE1, RVAAE1.
    let page = CODE >> 12;
    for (local, broadcast, op2, operand) in
        [(7, 3, 0, 0), (7, 3, 1, page), (7, 1, 2, 0), (7, 3, 3, page), (6, 2, 3, page | 1 << 46)]
    {
        for (crm, expected) in [(local, 3), (broadcast, 4)] {
            let mut guest = Guest::at(0x10_0000, 4, true);
            guest.map(CODE, DATA, 12);
            let mut batch = Batch::default();
            (0..2).for_each(|vcpu| guest.begin(&mut batch, vcpu));
            guest.know(&mut batch);
            let both = [load(0, CODE), load(1, CODE)];
            batch.accesses.extend(both);
            let operation = 8 << 7 | crm << 3 | op2;
            batch.event(0, Event::Invalidate(Invalidation::Tlbi { operation, operand }));
            batch.accesses.extend(both);
            let options = only(&[Scheme::Native, Scheme::Arm(21)]);
            let counted = walks(Arch::Aarch64, 2, &batch, &options);
            assert_eq!(counted, [expected, expected], "CRm {crm} op2 {op2}");
        }
    }
}

#[test]
fn a_global_flush_by_cr4_is_transcribed() {
    let mut guest = Guest::new(4);
    let (leaf, value) = guest.map(CODE, DATA, 12);
    let mut batch = guest.batch([]);
    batch.event(0, Event::TableStore { gpa: leaf, value: value | GLOBAL });
    batch.accesses.push(load(0, CODE));
    batch.event(0, Event::TableStore { gpa: leaf, value: (value | GLOBAL) + 4096 });
    // A load of CR3 leaves what is global.
    guest.load(&mut batch, 0);
    batch.accesses.push(load(0, CODE));
    let options = only(&[Scheme::Native, Scheme::Arm(21), Scheme::RiscV(21)]);
    assert_eq!(walks(Arch::X86_64, 1, &batch, &options), [1, 1, 1]);
    for value in [WITHOUT_PGE, CR4] {
        batch.event(0, Event::Control { register: Control::Cr4, value });
    }
    batch.accesses.push(load(0, CODE));
    assert_eq!(walks(Arch::X86_64, 1, &batch, &options), [2, 2, 2]);
}

/// Linux lets a vCPU that only has an address space loaded go without an invalidation, since its next
/// load of another drops all; with PCIDs it drops when the space is loaded again.
#[test]
fn a_vcpu_that_was_not_told_of_a_store_drops_the_space_when_it_comes_back() {
    const SECOND: u64 = CODE + 4096;
    for told in [false, true] {
        let [mut one, mut other] = [1, 2].map(|nth| Guest::at(nth << 20, 4, false));
        let (leaf, value) = one.map(CODE, DATA, 12);
        one.map(SECOND, DATA + 4096, 12);
        other.map(CODE, DATA + 8192, 12);
        let mut batch = Batch::default();
        (0..2).for_each(|vcpu| one.begin(&mut batch, vcpu));
        one.know(&mut batch);
        other.know(&mut batch);
        batch.accesses.extend([load(1, CODE), load(1, SECOND)]);
        batch.event(0, Event::TableStore { gpa: leaf, value: value + (8 << 12) });
        if told {
            batch.event(1, Event::Invalidate(Invalidation::Invlpg { va: CODE }));
        }
        other.load(&mut batch, 1);
        one.load(&mut batch, 1);
        batch.accesses.extend([load(1, CODE), load(1, SECOND)]);
        let options = Options { pcid: true, ..only(&[Scheme::Native, Scheme::Ept(21)]) };
        let again = if told { 1 } else { 2 };
        assert_eq!(walks(Arch::X86_64, 2, &batch, &options), [2 + again; 2], "told: {told}");
    }
}

/// A kernel that isolates its tables has two roots over the same tables of user memory.
#[test]
fn an_invalidation_is_of_the_isolated_twin_too() {
    let mut one = Guest::at(1 << 20, 4, false);
    let (leaf, value) = one.map(CODE, DATA, 12);
    let twin = 2 << 20;
    let mut batch = Batch::default();
    one.begin(&mut batch, 0);
    batch.event(0, Event::TablePage { gpa: twin, level: 3, fresh: true });
    batch.event(0, Event::TableEntry { gpa: twin, value: 0x10_1000 | 0x67 });
    one.know(&mut batch);
    let to_twin = Event::Root { root: slat_trace::Root::Cr3, value: twin };
    batch.event(0, to_twin);
    batch.accesses.push(load(0, CODE));
    one.load(&mut batch, 0);
    batch.event(0, Event::TableStore { gpa: leaf, value: value + 4096 });
    batch.event(0, Event::Invalidate(Invalidation::Invlpg { va: CODE }));
    batch.event(0, to_twin);
    batch.accesses.push(load(0, CODE));
    let options = Options { pcid: true, ..only(&[Scheme::Native, Scheme::Ept(21)]) };
    assert_eq!(walks(Arch::X86_64, 1, &batch, &options), [2, 2]);
}

#[test]
fn machines_that_share_cores_have_as_many_vcpus() {
    let batch = idle(4);
    let mut guests = [2, 1].map(|vcpus| made(Arch::X86_64, vcpus, &batch));
    let options = only(&[Scheme::Native]);
    let facts = |_: &_| Facts::RECORDED;
    let shared = share(&mut guests, 10, &bundled("skylake-sp"), &options, facts, |_| true);
    assert_eq!(
        shared.err().map(|error| error.to_string()).as_deref(),
        Some(
            "virtual machines that share cores must have the same number of virtual processors, and \
         these have 2 and 1"
        )
    );
}
