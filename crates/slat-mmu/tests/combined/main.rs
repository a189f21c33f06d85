//! Combined tables under the stale-translation checker: random edits of the guest hypervisor and of
//! the host, and after each the combined table against the composed walk; and bugs that hypervisors
//! had with their shadows of nested tables.

mod bugs;
mod world;

use proptest::prelude::*;
use slat::combined::{Combine, Pass};
use slat::edit::{
    Collapse, Encode, Error, Gather, Leaves, arm64 as arm_entries, ept as ept_entries,
    riscv as riscv_entries, x86 as x86_entries,
};
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage2};
use slat::format::ept::{self, Ept};
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::long::Processor;
use slat::invalidate::{Context, amd, arm64, intel, riscv};
use slat::memory_type::x86::Type;
use slat::{Gpa, Kind, Permissions, Spa};
use slat_mmu::checker::Checker;
use world::{OUTPUT, Outcome, PAGE, PAGES, Subject, Sync, WINDOW, World, access, with_world};

const RIGHTS: [Permissions; 4] = [
    Permissions { read: true, write: true, execute: true },
    Permissions { read: true, write: false, execute: false },
    Permissions { read: true, write: true, execute: false },
    Permissions { read: true, write: false, execute: true },
];

/// An edit of one half.
#[derive(Clone, Copy, Debug)]
enum Edit {
    Map { page: u64, pages: u64, to: u64, rights: usize },
    Unmap { page: u64, pages: u64 },
    Protect { page: u64, pages: u64, rights: usize },
    Clean { page: u64, pages: u64 },
    Age { page: u64, pages: u64 },
    Split { page: u64 },
    Collapse { page: u64 },
    Remap { page: u64, pages: u64, to: u64 },
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Guest(Edit),
    Host(Edit),
    Access { page: u64, kind: Kind, user: bool },
    Fill,
    Drop,
}

fn edit() -> impl Strategy<Value = Edit> {
    let page = || prop_oneof![Just(0u64), Just(512), 0..PAGES];
    let pages = || prop_oneof![Just(1u64), Just(512), Just(1024), 1..64u64];
    let to = || prop_oneof![3 => Just(0u64), 1 => Just(512), 1 => 0..64u64];
    prop_oneof![
        5 => (page(), pages(), to(), 0..4usize)
            .prop_map(|(page, pages, to, rights)| Edit::Map { page, pages, to, rights }),
        2 => (page(), pages()).prop_map(|(page, pages)| Edit::Unmap { page, pages }),
        2 => (page(), pages(), 0..4usize)
            .prop_map(|(page, pages, rights)| Edit::Protect { page, pages, rights }),
        1 => (page(), pages()).prop_map(|(page, pages)| Edit::Clean { page, pages }),
        1 => (page(), pages()).prop_map(|(page, pages)| Edit::Age { page, pages }),
        1 => page().prop_map(|page| Edit::Split { page }),
        1 => page().prop_map(|page| Edit::Collapse { page }),
        1 => (page(), pages(), to())
            .prop_map(|(page, pages, to)| Edit::Remap { page, pages, to }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Execute)];
    prop_oneof![
        4 => edit().prop_map(Op::Guest),
        3 => edit().prop_map(Op::Host),
        8 => (prop_oneof![0..PAGES, 0..16u64], kind, any::<bool>())
            .prop_map(|(page, kind, user)| Op::Access { page, kind, user }),
        1 => Just(Op::Fill),
        1 => Just(Op::Drop),
    ]
}

/// Applies one edit to a half by `$run`, to addresses that `$place` makes.
macro_rules! edited {
    ($world:ident, $run:ident, $format:ident, $edit:expr, $place:expr) => {{
        let format = $world.subject.$format;
        let attributes = $world.subject.attributes;
        match $edit {
            Edit::Map { page, pages, to, rights } => {
                let leaves = Leaves::new(&format, &attributes(RIGHTS[rights])).unwrap();
                let to = $place(page + to);
                $world.$run(page, pages, |cursor, at, bytes| cursor.map(at, to, bytes, &leaves));
            }
            Edit::Unmap { page, pages } => {
                $world.$run(page, pages, |cursor, at, bytes| cursor.unmap(at, bytes, ()));
            }
            Edit::Protect { page, pages, rights } => {
                let rights = RIGHTS[rights];
                $world.$run(page, pages, |cursor, at, bytes| cursor.protect(at, bytes, rights, ()));
            }
            Edit::Clean { page, pages } => {
                $world.$run(page, pages, |cursor, at, bytes| cursor.clean(at, bytes, ()));
            }
            Edit::Age { page, pages } => {
                $world.$run(page, pages, |cursor, at, bytes| cursor.age(at, bytes, ()));
            }
            Edit::Split { page } => {
                $world.$run(page, 1, |cursor, at, bytes| cursor.split(at, bytes, 0));
            }
            Edit::Collapse { page } => {
                $world.$run::<Collapse>(page & 512, 512, |cursor, at, bytes| {
                    cursor.collapse(at, bytes, 1)
                });
            }
            Edit::Remap { page, pages, to } => {
                let to = $place(page + to);
                $world.$run(page, pages, |cursor, at, bytes| cursor.remap(at, to, bytes, ()));
            }
        }
    }};
}

impl<F: Combine<Word = u64>> World<'_, F> {
    fn apply(&mut self, op: Op) {
        match op {
            // L2's window lies in the host's: at most its end sticks out.
            Op::Guest(edit) => {
                edited!(self, guest_edits, upper, edit, |page| Gpa::new(WINDOW + page * PAGE));
            }
            Op::Host(edit) => {
                edited!(self, host_edits, lower, edit, |page| Spa::new(OUTPUT + page * PAGE));
            }
            Op::Access { page, kind, user } => {
                let asked = access(kind, user);
                let at = slat::L2Gpa::new(world::BASE + page * PAGE + 0x18);
                let (expected, ..) = self.reference(at, &asked);
                assert_eq!(self.l2(page, &asked), expected, "{at:?} {asked:?}");
                if let Outcome::At(_) = expected {
                    let (again, due, _) = self.reference(at, &asked);
                    assert_eq!((again, due), (expected, false), "its bits are set");
                }
            }
            Op::Fill => {
                let mut pass = Pass::whole(&self.subject.target);
                let filled = self.nested(|combined, cursor, backed, track| {
                    combined.fill(cursor, backed, track, &mut pass, 100)
                });
                match filled {
                    Ok(()) if pass.is_done() => self.judge_full(),
                    Ok(()) => {}
                    Err(Error::NoFrame { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Drop => {
                self.nested(|combined, cursor, _, track| combined.drop_all(cursor, track)).unwrap();
                let whole = 1u64 << self.subject.target.input_bits();
                assert_eq!(self.tables.mappings(slat::L2Gpa::new(0), whole).unwrap().count(), 0);
            }
        }
        self.judge();
    }
}

fn on_intel<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    intel::plan(gather, &intel::Capabilities::default(), 0, |step| checker.intel(&step));
}

fn on_amd<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = amd::Capabilities {
        flush_by_asid: true,
        invlpgb: true,
        invlpgb_nested: true,
        invlpgb_most: 7,
        invpcid: true,
        global_pages: true,
        pae: false,
        most_pages: 64,
    };
    amd::plan(gather, &capabilities, 0, |step| checker.amd(&step));
}

fn on_arm<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = arm64::Capabilities {
        granule: Granule::Four,
        lpa2: false,
        ranges: true,
        level_hints: true,
        broadcast: true,
        global_pages: false,
        most_operations: 32,
    };
    arm64::plan(gather, &capabilities, |step| checker.arm64(&step, 3));
}

fn on_riscv<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities =
        riscv::Capabilities { svinval: true, sv32: false, global_pages: false, most_pages: 64 };
    riscv::plan(gather, &capabilities, |step| checker.riscv(&step, 3));
}

/// `marks`: accessed and dirty flags in both halves. `user_execute`: the host has mode-based
/// execute control.
fn of_ept(marks: bool, user_execute: bool) -> Subject<Ept> {
    let features = ept::Features { accessed_dirty: marks, ..Default::default() };
    let mode = ept::Features { mode_based_execute: user_execute, ..features };
    Subject {
        upper: Ept::four(features),
        lower: Ept::four(mode),
        target: Ept::four(mode),
        context: Context::Ept { eptp: 0x100_005e },
        attributes: |permissions| ept_entries::Attributes::new(permissions, Type::Wb),
        flush: on_intel,
    }
}

fn of_npt() -> Subject<Npt> {
    let format = Npt::four(true, Processor::default());
    Subject {
        upper: format,
        lower: format,
        target: format,
        context: Context::Npt { asid: 5 },
        attributes: x86_entries::Attributes::new,
        flush: on_amd,
    }
}

/// The guest hypervisor has 40 bits and two concatenated roots, the host 39; `marks`: hardware
/// updates in both halves.
fn of_arm(marks: bool) -> Subject<Stage2> {
    use slat::regime::arm::hcr;
    let processor = ArmProcessor {
        physical_bits: 40,
        hardware_access_flag: true,
        hardware_dirty_state: true,
        ..ArmProcessor::default()
    };
    let format = |bits| {
        let updates = if marks { 3 << 21 } else { 0 };
        let vtcr = Stage2::control(Granule::Four, bits, &processor) | updates;
        Stage2::new(vtcr, hcr::VM, 0, &processor).unwrap()
    };
    Subject {
        upper: format(39),
        lower: format(40),
        target: Stage2::plain(Granule::Four, 40, &processor).unwrap(),
        context: Context::Stage2 { vmid: 3 },
        attributes: |permissions| arm_entries::Stage2Attributes {
            accessed: false,
            tracked: true,
            ..arm_entries::Stage2Attributes::new(permissions, arm_entries::Memory::WRITE_BACK)
        },
        flush: on_arm,
    }
}

fn of_riscv() -> Subject<Sv> {
    let features = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
    Subject {
        upper: Sv::stage2(Scheme::Sv39, features),
        lower: Sv::stage2(Scheme::Sv48, features),
        target: Sv::stage2(Scheme::Sv39, features),
        context: Context::GStage { vmid: 3 },
        attributes: |permissions| riscv_entries::Attributes {
            accessed: false,
            dirty: false,
            ..riscv_entries::Attributes::new(permissions)
        },
        flush: on_riscv,
    }
}

fn check<F: Combine<Word = u64>>(subject: &Subject<F>, ops: &[Op], storage: usize) {
    // Without storage, with too little, with plenty; frames likewise.
    let (records, frames) = [(0, 48), (9, 48), (2048, 7), (2048, 48)][storage];
    let syncs: &[Sync] =
        if records == 0 { &[Sync::Invalidations] } else { &[Sync::Tracked, Sync::Invalidations] };
    for &sync in syncs {
        with_world(subject, sync, records, frames, |world| {
            for op in ops {
                world.apply(*op);
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn an_ept_pair(ops in prop::collection::vec(op(), 1..24), storage in 0..4usize) {
        check(&of_ept(true, false), &ops, storage);
    }

    #[test]
    fn an_ept_pair_without_marks(ops in prop::collection::vec(op(), 1..24), storage in 0..4usize) {
        check(&of_ept(false, true), &ops, storage);
    }

    #[test]
    fn an_npt_pair(ops in prop::collection::vec(op(), 1..24), storage in 0..4usize) {
        check(&of_npt(), &ops, storage);
    }

    #[test]
    fn a_stage2_pair(ops in prop::collection::vec(op(), 1..24), storage in 0..4usize) {
        check(&of_arm(true), &ops, storage);
    }

    #[test]
    fn a_g_stage_pair(ops in prop::collection::vec(op(), 1..24), storage in 0..4usize) {
        check(&of_riscv(), &ops, storage);
    }
}
