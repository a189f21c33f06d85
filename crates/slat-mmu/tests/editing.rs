//! Table-editing code under the stale-translation checker: every editing operation of the library,
//! with its own plans of invalidation, in random order; and bugs that real hypervisors had, planted.

use std::cell::RefCell;

use proptest::prelude::*;
use slat::edit::{
    Arena, Collapse, Encode, Error, Frame, FrameSource, Gather, Leaves, Live, Operation, Slots,
    Step, Tables, Verb, Word, arm64 as arm_entries, ept as ept_entries, riscv as riscv_entries,
    x86 as x86_entries,
};
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage1, Stage2};
use slat::format::ept::{self, Ept};
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::invalidate::{By, Context, LinearOwner, amd, arm64, intel, riscv};
use slat::memory_type::x86::Type;
use slat::{Access, Gpa, Kind, Permissions, Privilege, Regime, Spa, Updates, walk};
use slat_mmu::checker::{Checker, Finding, What, Why, Words};

const PAGE: u64 = 4096;
/// The window that operations fall into, in pages: 4 MiB.
const PAGES: u64 = 1024;
/// Its first address.
const BASE: u64 = (1 << 30) - (2 << 20);
/// Where the tables lie.
const TABLES: u64 = 0x10_0000;
/// Where pages are mapped to.
const OUTPUT: u64 = 1 << 33;

/// A frame source that asks the checker before a frame is used again.
struct Watched<'a, F: Encode> {
    arena: &'a Arena<'a, F::Word>,
    checker: &'a RefCell<Checker<F>>,
}

impl<F: Encode> FrameSource for Watched<'_, F> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        self.arena.take(bytes)
    }

    fn put(&self, frame: Frame) {
        let range = frame.address()..=frame.address() + (frame.bytes() - 1);
        let reaching = self.checker.borrow().freed(range);
        assert!(reaching.is_empty(), "a frame that is still reached was freed: {}", reaching[0]);
        self.arena.put(frame);
    }
}

/// A format with its id, its leaves, and how its gathers become instructions.
struct Subject<F: Encode> {
    format: F,
    context: Context,
    attributes: fn(Permissions, u8) -> F::Attributes,
    /// Carries a plan out.
    flush: fn(&mut Checker<F>, &Gather<'_>),
}

type Cursor<'t, 'g, F> = slat::edit::Cursor<
    't,
    'g,
    F,
    Gpa,
    Spa,
    &'t Arena<'t, <F as Encode>::Word>,
    Watched<'t, F>,
    Live,
>;

struct World<'a, F: Encode> {
    subject: &'a Subject<F>,
    source: &'a Watched<'a, F>,
    tables: Tables<F, Gpa, Spa, &'a Arena<'a, F::Word>>,
    root: u64,
}

impl<F: Encode> World<'_, F> {
    /// Runs an operation to its end, speculating wherever hardware could, and returns what was found
    /// stale after each completed gather.
    fn run<V: Verb<F>>(
        &mut self,
        start: u64,
        pages: u64,
        make: impl FnOnce(&Cursor<'_, '_, F>, Gpa, u64) -> Result<Operation<V>, Error>,
    ) -> Vec<Finding> {
        let arena = self.source.arena;
        let checker = self.source.checker;
        let Subject { format, context, flush, .. } = *self.subject;
        let others = Tables::<F, Gpa, Spa, _>::adopt(format, self.root, arena).unwrap();
        let speculate = || {
            checker.borrow_mut().speculate(&mut Words::<F::Word, Spa, _>::new(arena));
        };
        let mut findings = Vec::new();
        let invalidate = |gather: &Gather<'_>| flush(&mut checker.borrow_mut(), gather);
        let judge = || {
            let mut memory = Words::<F::Word, Spa, _>::new(arena);
            checker.borrow_mut().complete(&mut memory, context, 0..=u64::MAX)
        };
        let (mut ranges, mut detached, mut pending) =
            ([Default::default(); 3], [Default::default(); 2], [Default::default(); 2]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
        speculate();
        // SAFETY of lifetimes aside, the cursor borrows the tables alone.
        let mut cursor = self
            .tables
            .cursor::<_, Live>(self.source, context, slots, Gpa::new(BASE), PAGES * PAGE)
            .unwrap();
        let pages = pages.min(PAGES - start).max(1);
        let made = make(&cursor, Gpa::new(BASE + start * PAGE), pages * PAGE);
        if let Ok(mut operation) = made {
            // A page in several pieces, frames that run out: the rest is left as it is.
            while let Ok(step) = cursor.step(&mut operation, 1) {
                match step {
                    Step::Done => break,
                    Step::Yield => speculate(),
                    Step::Invalidate(gather) => {
                        speculate();
                        let completed = gather.complete(&mut By(&invalidate)).unwrap();
                        findings.extend(judge());
                        let reclaim = completed.reclaim(&others).unwrap();
                        cursor.resume(reclaim.into_source(self.source).unwrap()).unwrap();
                    }
                }
            }
        }
        speculate();
        let completed = cursor.finish().complete(&mut By(&invalidate)).unwrap();
        findings.extend(judge());
        let reclaim = completed.reclaim(&others).unwrap();
        let _ = reclaim.into_source(self.source).unwrap();
        findings
    }

    /// The guest uses a page: accessed and dirty bits are set where hardware sets them.
    fn touch(&self, page: u64, write: bool) {
        let stage = self.tables.stage().with_updates(Updates::OnSuccess);
        let kind = if write { Kind::Write } else { Kind::Read };
        let access = Access::new(kind, Privilege::User);
        let mut memory = Words::<F::Word, Spa, _>::new(self.source.arena);
        let gpa = Gpa::new(BASE + page * PAGE);
        let _ = walk(&stage, &mut memory, gpa, &access, &Regime::default(), &());
    }
}

const PERMISSIONS: [Permissions; 3] = [
    Permissions { read: true, write: true, execute: true },
    Permissions { read: true, write: false, execute: false },
    Permissions { read: true, write: true, execute: false },
];

#[derive(Clone, Copy, Debug)]
enum Op {
    Map { start: u64, pages: u64, output: u64, rights: usize, grouped: bool },
    Unmap { start: u64, pages: u64 },
    Protect { start: u64, pages: u64, rights: usize },
    Clean { start: u64, pages: u64 },
    Age { start: u64, pages: u64 },
    Split { start: u64, pages: u64 },
    Collapse { start: u64 },
    Remap { start: u64, pages: u64, output: u64 },
    Touch { page: u64, write: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let start = || prop_oneof![Just(0u64), Just(512), 0..PAGES];
    let pages = || prop_oneof![Just(1u64), Just(512), Just(1024), 1..64u64];
    let output = || prop_oneof![Just(0u64), Just(512), 0..64u64];
    prop_oneof![
        4 => (start(), pages(), output(), 0..3usize, any::<bool>()).prop_map(
            |(start, pages, output, rights, grouped)| Op::Map {
                start, pages, output, rights, grouped
            }),
        3 => (start(), pages()).prop_map(|(start, pages)| Op::Unmap { start, pages }),
        2 => (start(), pages(), 0..3usize)
            .prop_map(|(start, pages, rights)| Op::Protect { start, pages, rights }),
        1 => (start(), pages()).prop_map(|(start, pages)| Op::Clean { start, pages }),
        1 => (start(), pages()).prop_map(|(start, pages)| Op::Age { start, pages }),
        1 => (start(), pages()).prop_map(|(start, pages)| Op::Split { start, pages }),
        2 => start().prop_map(|start| Op::Collapse { start }),
        1 => (start(), pages(), output())
            .prop_map(|(start, pages, output)| Op::Remap { start, pages, output }),
        3 => (0..PAGES, any::<bool>()).prop_map(|(page, write)| Op::Touch { page, write }),
    ]
}

impl<F: Encode> World<'_, F> {
    fn apply(&mut self, op: Op) -> Vec<Finding> {
        let format = self.subject.format;
        let attributes = self.subject.attributes;
        match op {
            Op::Map { start, pages, output, rights, grouped } => {
                let attributes = attributes(PERMISSIONS[rights], 0);
                let leaves = Leaves::new(&format, &attributes).unwrap();
                let leaves = if grouped { leaves.up_to(0).grouped() } else { leaves };
                let spa = Spa::new(OUTPUT + output * PAGE);
                self.run(start, pages, |cursor, at, bytes| cursor.map(at, spa, bytes, &leaves))
            }
            Op::Unmap { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.unmap(at, bytes, ()))
            }
            Op::Protect { start, pages, rights } => self.run(start, pages, |cursor, at, bytes| {
                cursor.protect(at, bytes, PERMISSIONS[rights], ())
            }),
            Op::Clean { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.clean(at, bytes, ()))
            }
            Op::Age { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.age(at, bytes, ()))
            }
            Op::Split { start, pages } => {
                self.run(start, pages, |cursor, at, bytes| cursor.split(at, bytes, 0))
            }
            Op::Collapse { start } => {
                self.run::<Collapse>(start & 512, 512, |cursor, at, bytes| {
                    cursor.collapse(at, bytes, 1)
                })
            }
            Op::Remap { start, pages, output } => {
                let spa = Spa::new(OUTPUT + (1 << 30) + output * PAGE);
                self.run(start, pages, |cursor, at, bytes| cursor.remap(at, spa, bytes, ()))
            }
            Op::Touch { page, write } => {
                self.touch(page, write);
                Vec::new()
            }
        }
    }
}

/// Runs a sequence and gives what was found stale, by operation.
fn sequence<F: Encode>(subject: &Subject<F>, ops: &[Op]) -> Vec<(Op, Vec<Finding>)>
where
    <F::Word as Word>::Atomic: Default,
{
    let cells: Vec<_> = (0..64 * 512).map(|_| <F::Word as Word>::Atomic::default()).collect();
    let arena = Arena::<F::Word>::new(TABLES, &cells).unwrap();
    let checker = RefCell::new(Checker::new(subject.format));
    let source = Watched { arena: &arena, checker: &checker };
    let tables = Tables::create(subject.format, &arena, &source).unwrap();
    // The arena hands out its frames in order: the first is the root.
    let root = TABLES;
    checker.borrow_mut().run(subject.context, root);
    let mut world = World { subject, source: &source, tables, root };
    ops.iter().map(|&op| (op, world.apply(op))).collect()
}

fn on_intel<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    intel::plan(gather, &intel::Capabilities::default(), 0, |step| checker.intel(&step));
}

fn on_amd<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    amd::plan(gather, &BROADCASTS, |step| checker.amd(&step));
}

fn on_arm<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    arm64::plan(gather, &RANGES, |step| checker.arm64(&step, 3));
}

fn on_riscv<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    riscv::plan(gather, &SVINVAL, |step| checker.riscv(&step));
}

const BROADCASTS: amd::Capabilities = amd::Capabilities {
    flush_by_asid: true,
    invlpgb: true,
    invlpgb_nested: true,
    invlpgb_most: 7,
    most_pages: 64,
};
const RANGES: arm64::Capabilities = arm64::Capabilities {
    granule: Granule::Four,
    lpa2: false,
    ranges: true,
    level_hints: true,
    broadcast: true,
    global_pages: false,
    most_operations: 32,
};
const SVINVAL: riscv::Capabilities =
    riscv::Capabilities { svinval: true, sv32: false, global_pages: false, most_pages: 64 };

fn ept() -> Subject<Ept> {
    let features = ept::Features { accessed_dirty: true, ..Default::default() };
    Subject {
        format: Ept::four(features),
        context: Context::Ept { eptp: TABLES | 0x5e },
        attributes: |permissions, _| ept_entries::Attributes::new(permissions, Type::Wb),
        flush: on_intel,
    }
}

fn npt() -> Subject<Npt> {
    Subject {
        format: Npt::four(true, Processor::default()),
        context: Context::Npt { asid: 5 },
        attributes: |permissions, _| {
            let mut attributes = x86_entries::Attributes::new(permissions);
            attributes.user = true;
            attributes
        },
        flush: on_amd,
    }
}

fn arm() -> Subject<Stage2> {
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    Subject {
        format: Stage2::plain(Granule::Four, 39, &processor).unwrap(),
        context: Context::Stage2 { vmid: 3 },
        attributes: |permissions, _| arm_entries::Stage2Attributes::new(permissions, NORMAL),
        flush: on_arm,
    }
}

/// Normal memory, write-back, inner-shareable.
const NORMAL: arm_entries::Memory = arm_entries::Memory { attributes: 0xf, shareability: 3 };

fn riscv_g() -> Subject<Sv> {
    let features = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
    Subject {
        format: Sv::stage2(Scheme::Sv39, features),
        context: Context::GStage { vmid: 3 },
        attributes: |permissions, _| {
            let mut attributes = riscv_entries::Attributes::new(permissions);
            attributes.user = true;
            attributes
        },
        flush: on_riscv,
    }
}

fn clean<F: Encode>(subject: &Subject<F>, ops: &[Op])
where
    <F::Word as Word>::Atomic: Default,
{
    for (op, findings) in sequence(subject, ops) {
        let name = slat::format::Format::name(&subject.format);
        assert!(findings.is_empty(), "{name}: {op:?}: {}", findings[0]);
    }
}

/// Stage 1 of x86, under a PCID of the host's.
fn x86_linear() -> Subject<Long> {
    let controls = Controls { write_protect: true, nxe: true, ..Controls::default() };
    Subject {
        format: Long::four(controls, Processor { physical_bits: 46, ..Processor::default() }),
        context: Context::Linear { owner: LinearOwner::Native, pcid: 3 },
        attributes: |permissions, _| x86_entries::Attributes::new(permissions),
        flush: |checker, gather| {
            intel::plan(gather, &intel::Capabilities::default(), 0, |step| checker.intel(&step));
        },
    }
}

/// Stage 1 of Arm's EL1&0.
fn arm_linear() -> Subject<Stage1> {
    let processor = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
    Subject {
        format: Stage1::plain(Granule::Four, 39, &processor).unwrap(),
        context: Context::Stage1 { asid: 3, vmid: Some(3) },
        attributes: |permissions, _| arm_entries::Stage1Attributes::new(permissions),
        flush: on_arm,
    }
}

/// Stage 1 of RISC-V.
fn riscv_linear() -> Subject<Sv> {
    let features = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
    Subject {
        format: Sv::stage1(Scheme::Sv48, features),
        context: Context::SStage { asid: 3, vmid: None },
        attributes: |permissions, _| riscv_entries::Attributes::new(permissions),
        flush: on_riscv,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn nothing_stale_remains_and_no_freed_frame_is_reached(
        ops in prop::collection::vec(op(), 1..16),
    ) {
        clean(&ept(), &ops);
        clean(&npt(), &ops);
        clean(&arm(), &ops);
        clean(&riscv_g(), &ops);
        clean(&x86_linear(), &ops);
        clean(&arm_linear(), &ops);
        clean(&riscv_linear(), &ops);
    }
}

fn found(all: &[(Op, Vec<Finding>)], why: Why, what: What) -> bool {
    all.iter().flat_map(|(_, findings)| findings).any(|f| f.why == why && f.copy.what == what)
}

const MAP: Op = Op::Map { start: 0, pages: 4, output: 0, rights: 0, grouped: false };
const UNMAP: Op = Op::Unmap { start: 0, pages: 4 };

/// A leaf is cleared and the flag that asks for a flush is not set (pKVM-IA#18, XSA-366).
#[test]
fn xsa_366_forgotten_flush() {
    let subject = Subject { flush: |_, _| {}, ..ept() };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// The flush names another guest.
#[test]
fn flush_of_another_id() {
    let subject = Subject {
        flush: |checker, _| checker.amd(&amd::Instruction::TlbControl { asid: Some(6), value: 3 }),
        ..npt()
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// The requested length is flushed, not what changed (generic_pt, unmap of a large entry).
#[test]
fn generic_pt_short_range() {
    let subject = Subject {
        flush: |checker, gather| {
            let rs1 = Some(gather.ranges()[0].start >> 2);
            let rs2 = Some(3);
            checker.riscv(&riscv::Instruction::Gvma { invalidate_only: false, rs1, rs2 });
        },
        ..riscv_g()
    };
    let ops = [MAP, Op::Protect { start: 0, pages: 4, rights: 1 }];
    assert!(found(&sequence(&subject, &ops), Why::Rights, What::Translation));
}

/// Leaves are flushed and the walk caches are not, although a table went.
#[test]
fn pkvm_ia_41_walk_caches_not_flushed() {
    let subject = Subject {
        flush: |checker, gather| {
            for range in gather.ranges() {
                for page in range.start >> 12..=range.last >> 12 {
                    let operation = arm64::Operation::Ipas2le1;
                    let tlbi = arm64::Instruction::Tlbi { operation, operand: page };
                    checker.arm64(&tlbi, 3);
                }
            }
            checker.arm64(&arm64::Instruction::Dsb, 3);
            let operation = arm64::Operation::Vmalle1;
            checker.arm64(&arm64::Instruction::Tlbi { operation, operand: 0 }, 3);
            checker.arm64(&arm64::Instruction::Dsb, 3);
        },
        ..arm()
    };
    let map = Op::Map { start: 0, pages: 512, output: 1, rights: 0, grouped: false };
    let ops = [map, Op::Unmap { start: 0, pages: 512 }];
    let run = std::panic::catch_unwind(|| sequence(&subject, &ops));
    // The table is freed while it is still held: the frame source notices that.
    let message = *run.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("a frame that is still reached was freed"), "{message}");
    assert!(message.contains("table entry"), "{message}");
}

/// The stage-2 translations are dropped, the combined ones made from them are not.
#[test]
fn optee_os_5803_combined_translations_not_flushed() {
    let subject = Subject {
        flush: |checker, gather| {
            let mut combined = false;
            arm64::plan(gather, &RANGES, |step| {
                let arm64::Instruction::Tlbi { operation, .. } = step else {
                    return checker.arm64(&step, 3);
                };
                combined |= operation == arm64::Operation::Vmalle1;
                if operation != arm64::Operation::Vmalle1 {
                    checker.arm64(&step, 3);
                }
            });
            assert!(combined, "the plan has the instruction that is left out");
        },
        ..arm()
    };
    let all = sequence(&subject, &[MAP, UNMAP]);
    assert!(found(&all, Why::Unmapped, What::Combined));
    assert!(!found(&all, Why::Unmapped, What::Translation));
}

/// No DSB between the two: combined translations are made again from stage 2's.
#[test]
fn no_barrier_between_the_two_stages() {
    let subject = Subject {
        flush: |checker, gather| {
            arm64::plan(gather, &RANGES, |step| {
                if step != arm64::Instruction::Dsb {
                    checker.arm64(&step, 3);
                }
            });
            checker.arm64(&arm64::Instruction::Dsb, 3);
        },
        ..arm()
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Combined));
}

/// A new mapping without a fence, on harts that cache invalid entries (the P550).
#[test]
fn bao_378_invalid_entries_not_fenced() {
    let subject = Subject { flush: |_, _| {}, ..riscv_g() };
    assert!(found(&sequence(&subject, &[UNMAP, MAP]), Why::NowMapped, What::Invalid));
    assert!(!found(
        &sequence(&Subject { flush: |_, _| {}, ..ept() }, &[UNMAP, MAP]),
        Why::NowMapped,
        What::Invalid
    ));
}

/// The broadcast is not waited for (CVE-2025-10263 is the Arm erratum of this kind).
#[test]
fn cve_2025_10263_broadcast_not_waited_for() {
    let subject = Subject {
        flush: |checker, gather| {
            amd::plan(gather, &BROADCASTS, |step| {
                if step != amd::Instruction::Tlbsync {
                    checker.amd(&step);
                }
            });
        },
        ..npt()
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// A dirty bit is cleared and the translation that was made while it was set stays.
#[test]
fn cleaned_without_a_flush() {
    let subject = Subject { flush: |_, _| {}, ..ept() };
    let ops = [MAP, Op::Touch { page: 0, write: true }, Op::Clean { start: 0, pages: 4 }];
    assert!(found(&sequence(&subject, &ops), Why::Dirty, What::Translation));
}

/// A table page is used again before the walk caches are flushed (XSA-480, CVE-2026-23554): the
/// flush is deferred, the free is not.
#[test]
fn xsa_480_freed_before_the_flush() {
    use slat::{EntryLayout, SliceMemory};
    let mut bytes = vec![0; 5 * 4096];
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    for (at, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x55_5037)] {
        memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    }
    let context = Context::Ept { eptp: 0x1e };
    let mut checker = Checker::new(Ept::four(ept::Features::default()));
    checker.run(context, 0);
    checker.speculate(&mut memory);
    memory.poke(Spa::new(0x2000), EntryLayout::LE64, 0).unwrap();
    let reaching = checker.freed(0x3000..=0x3fff);
    assert_eq!(reaching.len(), 1);
    assert_eq!((reaching[0].copy.what, reaching[0].why), (What::Table, Why::Freed));
    // Its new owner writes what looks like a mapping, and the guest gets it.
    memory.poke(Spa::new(0x3008), EntryLayout::LE64, 0xbad_0037).unwrap();
    checker.speculate(&mut memory);
    assert!(!checker.freed(0xbad_0000..=0xbad_0fff).is_empty());
    checker.intel(&intel::Instruction::Invept { kind: 1, descriptor: [0x1e, 0] });
    assert!(checker.freed(0x3000..=0x3fff).is_empty());
    assert!(checker.freed(0xbad_0000..=0xbad_0fff).is_empty());
}

/// EPT tables in plain memory, for bugs that are planted store by store: a root at 0, and one table of
/// each level below.
struct Plain {
    bytes: Vec<u8>,
    checker: Checker<Ept>,
}

const PLAIN: Context = Context::Ept { eptp: 0x1e };
const FLUSH: intel::Instruction = intel::Instruction::Invept { kind: 1, descriptor: [0x1e, 0] };

impl Plain {
    fn new() -> Plain {
        let features = ept::Features { accessed_dirty: true, ..Default::default() };
        let mut plain =
            Plain { bytes: vec![0; 6 * 4096], checker: Checker::new(Ept::four(features)) };
        plain.checker.run(PLAIN, 0);
        for (at, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007)] {
            plain.store(at, entry);
        }
        plain
    }

    fn store(&mut self, at: u64, entry: u64) {
        self.bytes[at as usize..][..8].copy_from_slice(&entry.to_le_bytes());
    }

    fn load(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes[at as usize..][..8].try_into().unwrap())
    }

    fn speculate(&mut self) {
        let mut memory = slat::SliceMemory::new(Spa::new(0), &mut self.bytes);
        self.checker.speculate(&mut memory);
    }

    fn complete(&mut self) -> Vec<Finding> {
        let mut memory = slat::SliceMemory::new(Spa::new(0), &mut self.bytes);
        self.checker.complete(&mut memory, PLAIN, 0..=u64::MAX)
    }
}

/// A live entry is built in pieces: between two stores it names a table that nobody made (XSA-328).
#[test]
fn xsa_328_entry_built_in_pieces() {
    for pieces in [true, false] {
        let mut plain = Plain::new();
        // A 2 MiB page at 5 GiB becomes a table at 0x3000.
        plain.store(0x2000, 0x1_4000_00b7);
        plain.speculate();
        let table = 0x3007;
        if pieces {
            let half = plain.load(0x2000) & !0xffff_ffff | table;
            plain.store(0x2000, half);
            plain.speculate();
        }
        plain.store(0x2000, table);
        plain.speculate();
        let reached = plain.checker.freed(0x1_0000_3000..=0x1_0000_3fff);
        assert_eq!(!reached.is_empty(), pieces, "a processor walks what was never a table");
        assert!(reached.iter().all(|finding| finding.copy.what == What::Table));
    }
}

/// An update reads an entry, and stores it anew: a dirty bit that hardware set in between is gone
/// (KVM 4f510c8bb1dd). The processor's translation is dirty, so that it never says so again.
#[test]
fn kvm_4f510c8bb1dd_dropped_dirty_bit() {
    for planted in [true, false] {
        let mut plain = Plain::new();
        plain.store(0x3000, 0x55_5133);
        plain.speculate();
        let read = plain.load(0x3000);
        // Hardware writes through the page.
        plain.store(0x3000, read | 0x200);
        plain.speculate();
        // A change that needs no flush: execution is permitted.
        let old = if planted { read } else { plain.load(0x3000) };
        plain.store(0x3000, old | 4);
        let lost = plain.complete().iter().any(|finding| finding.why == Why::Dirty);
        assert_eq!(lost, planted);
    }
}

/// An unmap that looks for valid entries passes over what is occupied and not valid; made valid again,
/// it maps a page that has been given away (XSA-393, CVE-2022-23033).
#[test]
fn xsa_393_unmap_of_valid_entries_only() {
    const OCCUPIED: u64 = 0x55_5030; // its permissions are taken for a while
    for planted in [true, false] {
        let mut plain = Plain::new();
        plain.store(0x3000, OCCUPIED);
        for at in (0x3000..0x4000).step_by(8) {
            let gone = if planted { plain.load(at) & 7 != 0 } else { plain.load(at) != 0 };
            if gone {
                plain.store(at, 0);
            }
        }
        plain.checker.intel(&FLUSH);
        assert!(plain.complete().is_empty());
        // Whoever gives permissions back finds the entry.
        if plain.load(0x3000) != 0 {
            plain.store(0x3000, OCCUPIED | 7);
        }
        plain.speculate();
        let reaching = plain.checker.freed(0x55_5000..=0x55_5fff);
        assert_eq!(!reaching.is_empty(), planted, "the guest keeps a page that was freed");
    }
    // The library's removal is over occupied entries.
    let cells: Vec<_> = (0..8 * 512).map(|_| std::sync::atomic::AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(TABLES, &cells).unwrap();
    let format = ept().format;
    let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let permissions = PERMISSIONS[0];
    let leaves =
        Leaves::new(&format, &ept_entries::Attributes::new(permissions, Type::Wb)).unwrap();
    let served = tables.fault::<_, Live>(&arena, Gpa::new(0), Spa::new(0x55_5000), 0, &leaves);
    assert!(served.is_ok());
    let leaf = cells.iter().find(|cell| u64::load(cell, RELAXED) == 0x55_5037).unwrap();
    u64::store(leaf, OCCUPIED, RELAXED);
    let removed = tables.remove::<Live>(Gpa::new(0), PLAIN, |leak| panic!("{leak}")).unwrap();
    removed.unwrap().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
    assert_eq!(u64::load(leaf, RELAXED), 0);
}

const RELAXED: std::sync::atomic::Ordering = std::sync::atomic::Ordering::Relaxed;

/// A block whose permissions are all taken becomes, where that is how a pointer looks, a table whose
/// entries the guest writes (pKVM-IA#104).
#[test]
fn pkvm_ia_104_data_page_read_as_a_table() {
    use slat::{EntryLayout, SliceMemory};
    let format = riscv_g().format;
    let block = 0x20_0000u64;
    let leaf = (block >> 2) | 0xf; // a 2 MiB page, readable, writable, executable
    for planted in [true, false] {
        let mut bytes = vec![0; 0x5000];
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        memory.poke(Spa::new(0), EntryLayout::LE64, 0x4000 >> 2 | 1).unwrap();
        let entry = if planted {
            leaf & !0xe
        } else {
            // What the library answers is no entry.
            let none = Permissions { read: false, write: false, execute: false };
            assert!(format.permit(none, 1).is_err());
            0
        };
        memory.poke(Spa::new(0x4000), EntryLayout::LE64, entry).unwrap();
        let mut checker = Checker::new(format);
        checker.run(Context::GStage { vmid: 3 }, 0);
        checker.speculate(&mut memory);
        let walked = checker.freed(block..=block + 0xfff);
        assert_eq!(!walked.is_empty(), planted);
        assert!(walked.iter().all(|finding| finding.copy.what == What::Table));
    }
}

/// Pages become a larger one although they do not begin where it would (XSA-388): hardware sees a
/// reserved entry, or another place.
#[test]
fn xsa_388_misaligned_superpage() {
    let mut plain = Plain::new();
    for page in 0..512 {
        plain.store(0x3000 + page * 8, 0x4000_1037 + page * 4096);
    }
    plain.speculate();
    plain.store(0x2000, 0x4000_10b7);
    plain.checker.intel(&FLUSH);
    plain.speculate();
    assert!(plain.checker.freed(0x4000_1000..=0x4000_1fff).is_empty(), "nothing translates");
    // The library leaves such pages as they are.
    let subject = ept();
    let map = Op::Map { start: 0, pages: 512, output: 1, rights: 0, grouped: false };
    let ops = [map, Op::Collapse { start: 0 }, Op::Touch { page: 7, write: true }];
    assert!(sequence(&subject, &ops).iter().all(|(_, findings)| findings.is_empty()));
}

/// A group is changed entry by entry and flushed by one of its pages alone: where the instruction
/// reaches by page, what was kept of the others stays.
#[test]
fn group_flushed_by_one_page() {
    let subject = Subject {
        flush: |checker, gather| {
            let rs1 = Some(gather.ranges()[0].start >> 2);
            checker.riscv(&riscv::Instruction::Gvma { invalidate_only: false, rs1, rs2: Some(3) });
        },
        ..riscv_g()
    };
    let map = Op::Map { start: 0, pages: 32, output: 0, rights: 0, grouped: true };
    let ops = [map, Op::Protect { start: 0, pages: 32, rights: 1 }];
    // The second group is as stale as before.
    assert!(found(&sequence(&subject, &ops), Why::Rights, What::Translation));
}
