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

/// Present, writable, user, accessed, dirty.
const FLAGS: u64 = 0x67;
const ROOTS: usize = 3;
const REGIONS: usize = 3;
const LAST_TABLES: usize = 4;
const PAGES: usize = 6;

/// The pages of the tables of a root: its PML4, its PDPT and its page directory.
fn upper(root: usize, level: usize) -> u64 {
    (0x10 + root as u64 * 4 + level as u64) << 12
}

fn last(table: usize) -> u64 {
    (0x100 + table as u64) << 12
}

/// Tables of four levels: roots that share last tables.
#[derive(Default)]
struct Model {
    directory: [[Option<usize>; REGIONS]; ROOTS],
    tables: [[Option<u32>; PAGES]; LAST_TABLES],
    running: [usize; 2],
}

impl Model {
    fn frame(&self, vcpu: usize, region: usize, page: usize) -> Option<u32> {
        self.directory[self.running[vcpu]][region].and_then(|table| self.tables[table][page])
    }
}

#[test]
fn what_has_changed_since_an_access_is_noticed_at_the_next() {
    let machine = Machine { arch: Arch::X86_64, vcpus: 2, tables: true, memory: None };
    for seed in 0..20 {
        let (mut s, mut model, mut batch) = (Steps(seed), Model::default(), Batch::default());
        let mut verifier = Verifier::new(&machine);
        for vcpu in 0..2 {
            batch.event(
                vcpu,
                Event::Control { register: Control::Cr0, value: 1 << 31 | 1 << 16 | 1 },
            );
            batch.event(vcpu, Event::Root { root: Root::Cr3, value: upper(0, 0) });
        }
        for root in 0..ROOTS {
            for level in 0..2 {
                let gpa = upper(root, level);
                let value = upper(root, level + 1) | FLAGS;
                batch.event(0, Event::TablePage { gpa, level: 3 - level as u8, fresh: true });
                batch.event(0, Event::TableEntry { gpa, value });
            }
            batch.event(0, Event::TablePage { gpa: upper(root, 2), level: 1, fresh: true });
        }
        for table in 0..LAST_TABLES {
            batch.event(0, Event::TablePage { gpa: last(table), level: 0, fresh: true });
        }
        let (mut wrong, mut right, mut used) = (0, 0, HashMap::new());
        for _ in 0..20_000 {
            let vcpu = s.next(2);
            let (region, page, table) = (s.next(REGIONS), s.next(PAGES), s.next(LAST_TABLES));
            match s.next(40) {
                0 => {
                    let frame = (s.next(3) > 0).then(|| 0x1000 + s.next(4) as u32);
                    model.tables[table][page] = frame;
                    let value = frame.map_or(0, |frame| u64::from(frame) << 12 | FLAGS);
                    let gpa = last(table) | (page as u64) << 3;
                    batch.event(vcpu as u8, Event::TableStore { gpa, value });
                }
                1 if s.next(3) == 0 => {
                    let root = s.next(ROOTS);
                    let to = (s.next(5) > 0).then_some(table);
                    model.directory[root][region] = to;
                    let value = to.map_or(0, |table| last(table) | FLAGS);
                    let gpa = upper(root, 2) | (region as u64) << 3;
                    batch.event(vcpu as u8, Event::TableStore { gpa, value });
                }
                2 => {
                    model.running[vcpu] = s.next(ROOTS);
                    let value = upper(model.running[vcpu], 0);
                    batch.event(vcpu as u8, Event::Root { root: Root::Cr3, value });
                }
                3 if s.next(8) == 0 => {
                    model.tables[table] = [None; PAGES];
                    batch.event(0, Event::TablePage { gpa: last(table), level: 0, fresh: true });
                }
                _ => {
                    let kind = [Kind::Load, Kind::Store, Kind::Fetch][s.next(3)];
                    let va = (region << 21 | page << 12 | (s.next(64) * 8)) as u64;
                    let true_one = model.frame(vcpu, region, page);
                    // Else the one that was right some time ago.
                    let stale = used.get(&(vcpu, region, page)).copied().filter(|_| s.next(3) == 0);
                    let frame = stale.or(true_one).unwrap_or(0x1000);
                    if let Some(frame) = true_one {
                        used.insert((vcpu, region, page), frame);
                    }
                    *if true_one == Some(frame) { &mut right } else { &mut wrong } += 1;
                    let access = Access::new(kind, va, 8).on(vcpu as u8).with_user(s.next(2) == 0);
                    batch.accesses.push(access.with_frame(frame));
                }
            }
            if s.next(200) == 0 {
                verifier.check(&batch).unwrap();
                batch.clear();
                assert_eq!((verifier.walked(), verifier.mismatches()), (right + wrong, wrong));
            }
        }
        assert!(right > 2_000 && wrong > 2_000, "{right} right, {wrong} wrong of seed {seed}");
    }
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
