//! The verifier agrees, access by access, with a flat model of tables that change between the accesses.

use std::collections::HashMap;

use slat_trace::replay::Verifier;
use slat_trace::{Access, Arch, Batch, Control, Event, Kind, Machine, Root};

struct Steps(u64);

impl Steps {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % below
    }
}

const ROOTS: usize = 3;
/// Regions of 2 MiB, each mapped by a last table or as one page.
const REGIONS: usize = 3;
/// The region behind them is a page of 1 GiB.
const GIANT: usize = REGIONS;
const LAST_TABLES: usize = 4;
const PAGES: usize = 6;

/// How an architecture writes entries: what is in one that links a table, in a last one, and in one of a large
/// page.
struct Encoding {
    arch: Arch,
    table: u64,
    page: u64,
    large: u64,
}

const ENCODINGS: [Encoding; 2] = [
    // Present, writable, user, accessed, dirty; page size (Intel SDM volume 3, 5.5.4).
    Encoding { arch: Arch::X86_64, table: FLAGS, page: FLAGS, large: FLAGS | 0x80 },
    // Valid, table or page; AF, inner shareable, EL0 may write (Arm ARM D8.3).
    Encoding { arch: Arch::Aarch64, table: 3, page: 0x743, large: 0x741 },
];

const FLAGS: u64 = 0x67;

impl Encoding {
    fn controls(&self) -> Vec<(Control, u64)> {
        match self.arch {
            // Paging, write protection and protection.
            Arch::X86_64 => vec![(Control::Cr0, 1 << 31 | 1 << 16 | 1)],
            // 48 bits and 4 KiB for both roots, 48 bits of output; the MMU on; Normal memory.
            Arch::Aarch64 => vec![
                (Control::Tcr, 16 | 16 << 16 | 2 << 30 | 5 << 32),
                (Control::Mair, 0xff),
                (Control::Sctlr, 1),
            ],
        }
    }

    fn root(&self, root: usize) -> Event {
        match self.arch {
            Arch::X86_64 => Event::Root { root: Root::Cr3, value: upper(root, 0) },
            // Each with an ASID of its own.
            Arch::Aarch64 => {
                Event::Root { root: Root::Ttbr0, value: upper(root, 0) | (root as u64 + 1) << 48 }
            }
        }
    }
}

/// The pages of the tables of a root: of its three upper levels.
fn upper(root: usize, level: usize) -> u64 {
    (0x10 + root as u64 * 4 + level as u64) << 12
}

fn last(table: usize) -> u64 {
    (0x100 + table as u64) << 12
}

/// What a region of 2 MiB is mapped by.
#[derive(Clone, Copy, Default)]
enum Region {
    #[default]
    Nothing,
    Table(usize),
    /// The first 4 KiB page of it.
    Page(u32),
}

/// Tables of four levels: roots that share last tables.
#[derive(Default)]
struct Model {
    regions: [[Region; REGIONS]; ROOTS],
    giants: [Option<u32>; ROOTS],
    tables: [[Option<u32>; PAGES]; LAST_TABLES],
    running: [usize; 2],
}

impl Model {
    /// The physical page, and the size of the page that it is in as a shift.
    fn frame(&self, vcpu: usize, region: usize, page: usize) -> Option<(u32, u8)> {
        let root = self.running[vcpu];
        if region == GIANT {
            return self.giants[root].map(|first| (first + page as u32, 30));
        }
        match self.regions[root][region] {
            Region::Nothing => None,
            Region::Table(table) => self.tables[table][page].map(|frame| (frame, 12)),
            Region::Page(first) => Some((first + page as u32, 21)),
        }
    }
}

fn address(region: usize, page: usize) -> u64 {
    (if region == GIANT { 1 << 30 } else { region << 21 } | page << 12) as u64
}

#[test]
fn what_has_changed_since_an_access_is_noticed_at_the_next() {
    for (seed, encoding) in (0..20).flat_map(|seed| ENCODINGS.iter().map(move |e| (seed, e))) {
        changes(seed, encoding);
    }
}

fn changes(seed: u64, encoding: &Encoding) {
    let machine = Machine { arch: encoding.arch, vcpus: 2, tables: true, memory: None };
    let (mut s, mut model, mut batch) = (Steps(seed), Model::default(), Batch::default());
    let mut verifier = Verifier::new(&machine);
    for vcpu in 0..2 {
        for (register, value) in encoding.controls() {
            batch.event(vcpu, Event::Control { register, value });
        }
        batch.event(vcpu, encoding.root(0));
    }
    for root in 0..ROOTS {
        for level in 0..2 {
            let gpa = upper(root, level);
            let value = upper(root, level + 1) | encoding.table;
            batch.event(0, Event::TablePage { gpa, level: 3 - level as u8, fresh: true });
            batch.event(0, Event::TableEntry { gpa, value });
        }
        batch.event(0, Event::TablePage { gpa: upper(root, 2), level: 1, fresh: true });
    }
    for table in 0..LAST_TABLES {
        batch.event(0, Event::TablePage { gpa: last(table), level: 0, fresh: true });
    }
    let (mut wrong, mut right, mut used) = (0, [0; 64], HashMap::new());
    for _ in 0..20_000 {
        let vcpu = s.next(2);
        let (region, page, table) = (s.next(REGIONS + 1), s.next(PAGES), s.next(LAST_TABLES));
        let mut store = |gpa, value| batch.event(vcpu as u8, Event::TableStore { gpa, value });
        match s.next(40) {
            0 => {
                let frame = (s.next(3) > 0).then(|| 0x1000 + s.next(4) as u32);
                model.tables[table][page] = frame;
                let value = frame.map_or(0, |frame| u64::from(frame) << 12 | encoding.page);
                store(last(table) | (page as u64) << 3, value);
            }
            1 if s.next(3) == 0 => {
                let root = s.next(ROOTS);
                if region == GIANT {
                    let first = (s.next(4) > 0).then(|| (1 + s.next(3) as u32) << 18);
                    model.giants[root] = first;
                    let value = first.map_or(0, |first| u64::from(first) << 12 | encoding.large);
                    store(upper(root, 1) | 8, value);
                } else {
                    let (to, value) = match s.next(6) {
                        0 => (Region::Nothing, 0),
                        1 | 2 => {
                            let first = (8 + s.next(3) as u32) << 9;
                            (Region::Page(first), u64::from(first) << 12 | encoding.large)
                        }
                        _ => (Region::Table(table), last(table) | encoding.table),
                    };
                    model.regions[root][region] = to;
                    store(upper(root, 2) | (region as u64) << 3, value);
                }
            }
            2 => {
                model.running[vcpu] = s.next(ROOTS);
                batch.event(vcpu as u8, encoding.root(model.running[vcpu]));
            }
            3 if s.next(8) == 0 => {
                model.tables[table] = [None; PAGES];
                batch.event(0, Event::TablePage { gpa: last(table), level: 0, fresh: true });
            }
            _ => {
                let kind = [Kind::Load, Kind::Store, Kind::Fetch][s.next(3)];
                let va = address(region, page) + s.next(64) as u64 * 8;
                let truly = model.frame(vcpu, region, page);
                // Else the one that was right some time ago.
                let stale = used.get(&(vcpu, region, page)).copied().filter(|_| s.next(3) == 0);
                let frame = stale.or(truly.map(|(frame, _)| frame)).unwrap_or(0x1000);
                match truly {
                    Some((true_one, shift)) if true_one == frame => right[usize::from(shift)] += 1,
                    _ => wrong += 1,
                }
                if let Some((frame, _)) = truly {
                    used.insert((vcpu, region, page), frame);
                }
                // What EL0 may write, EL1 does not execute (Arm ARM D8.4.1).
                let user = encoding.arch == Arch::Aarch64 && kind == Kind::Fetch || s.next(2) == 0;
                let access = Access::new(kind, va, 8).on(vcpu as u8).with_user(user);
                batch.accesses.push(access.with_frame(frame));
            }
        }
        if s.next(200) == 0 {
            verifier.check(&batch).unwrap();
            batch.clear();
            let all: u64 = right.iter().sum();
            assert_eq!((verifier.walked(), verifier.mismatches()), (all + wrong, wrong));
            for shift in [12, 21, 30] {
                let through = verifier.through_pages_of(shift);
                assert_eq!(through, right[usize::from(shift)], "{shift}, seed {seed}");
            }
        }
    }
    let enough = right[12] > 1_000 && right[21] > 500 && right[30] > 500 && wrong > 2_000;
    assert!(enough, "{right:?} right, {wrong} wrong of seed {seed}");
}

/// Registers that are all zero are known, and those of which nothing was said are not.
#[test]
fn a_processor_that_was_not_told_of_is_not_walked_for_by_another() {
    let machine = Machine { arch: Arch::X86_64, vcpus: 2, tables: true, memory: None };
    let mut batch = Batch::default();
    for level in 0..4u8 {
        // Tables at page 0 to 3, whose first entries lead down to page 4.
        let gpa = u64::from(level) << 12;
        batch.event(0, Event::TablePage { gpa, level: 3 - level, fresh: true });
        batch.event(0, Event::TableEntry { gpa, value: (gpa + 0x1000) | FLAGS });
    }
    batch.event(0, Event::Root { root: Root::Cr3, value: 0 });
    let access = |vcpu| Access::new(Kind::Load, 0, 8).on(vcpu).with_frame(4);
    batch.accesses.extend([access(0), access(0), access(1)]);
    let mut verifier = Verifier::new(&machine);
    verifier.check(&batch).unwrap();
    assert_eq!((verifier.walked(), verifier.mismatches()), (3, 1));
}
