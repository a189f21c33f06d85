//! Made tables translate every access to the frame that goes with it, as the library's walker and, for
//! AArch64, a few lines from the manual see it.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{EntryLayout, Gpa, Gva, Memory, Outside, Privilege, Reached, Regime, Stage, Value};
use slat_trace::import::{Cause, Options, Place, Reference};
use slat_trace::made_tables::{Damage, MadeTables, Pages, Policy};
use slat_trace::{Access, Arch, Batch, Control, Event, Kind, Root, Source};

use crate::samples::{self, accesses, drmemtrace, plain, record, reference};

/// The guest's memory as the events tell it.
#[derive(Default)]
struct Replayed {
    entries: HashMap<u64, u64>,
    tables: HashMap<u64, u8>,
    roots: HashMap<u8, u64>,
    cr4: u64,
    stores: usize,
    leaves: [usize; 2],
    accesses: Vec<Access>,
    events: Vec<Event>,
}

impl Memory for &Replayed {
    type Address = Gpa;
    type Fault = Outside<Gpa>;

    fn read(
        &mut self,
        address: Gpa,
        _: EntryLayout,
        _: &slat::Access,
    ) -> Result<Value, Outside<Gpa>> {
        let raw = slat::Address::raw(address);
        if !self.tables.contains_key(&(raw & !0xfff)) {
            return Err(Outside { address, write: false });
        }
        Ok(Value {
            value: self.entries.get(&raw).copied().unwrap_or(0),
            reached: Reached::DIRECTLY,
        })
    }

    fn compare_exchange(
        &mut self,
        address: Gpa,
        _: EntryLayout,
        _: u64,
        _: u64,
        _: &slat::Access,
    ) -> Result<bool, Outside<Gpa>> {
        Err(Outside { address, write: true })
    }
}

impl Replayed {
    fn event(&mut self, vcpu: u8, event: Event, walks: bool) {
        self.events.push(event);
        match event {
            Event::Root { value, .. } => {
                self.roots.insert(vcpu, value & 0xffff_ffff_f000);
            }
            Event::Control { register: Control::Cr4, value } => self.cr4 = value,
            Event::TablePage { gpa, level, fresh } => {
                assert!(fresh && self.tables.insert(gpa, level).is_none(), "a table is made once");
            }
            Event::TableStore { gpa, value } => {
                self.stores += 1;
                let level = self.tables[&(gpa & !0xfff)];
                if level == 0 || (walks && level == 1 && value & 1 << 7 != 0) {
                    self.leaves[usize::from(level)] += 1;
                }
                assert!(self.entries.insert(gpa, value).is_none(), "an entry is written once");
            }
            _ => {}
        }
    }

    fn x86_walk(&self, access: &Access, va: u64) -> u64 {
        let controls = Controls { nxe: true, write_protect: true, ..Controls::default() };
        let format = match self.cr4 & 1 << 12 {
            0 => Long::four(controls, Processor::default()),
            _ => Long::five(controls, Processor::default()),
        };
        let stage = Stage::<_, Gva, Gpa>::new(format, self.roots[&access.vcpu]);
        let kind = match access.kind() {
            Kind::Load => slat::Kind::Read,
            Kind::Store => slat::Kind::Write,
            Kind::Fetch => slat::Kind::Execute,
        };
        let asked = slat::Access::new(kind, Privilege::User);
        let mapped = slat::walk(&stage, &mut &*self, Gva::new(va), &asked, &Regime::default(), &());
        slat::Address::raw(mapped.unwrap_or_else(|fault| panic!("{va:#x}: {fault:?}")).output)
    }

    /// Arm ARM D8.3.1: 4 KiB granule, four levels, this page's level numbers.
    fn arm_walk(&self, access: &Access, va: u64) -> u64 {
        let mut table = self.roots[&access.vcpu];
        for level in (0..4).rev() {
            assert_eq!(self.tables[&table], level);
            let index = va >> (12 + 9 * level) & 0x1ff;
            let descriptor = self.entries[&(table + 8 * index)];
            let output = descriptor & 0xffff_ffff_f000;
            match (level, descriptor & 3) {
                (0, 0b11) | (1, 0b01) => {
                    assert_eq!(descriptor >> 10 & 1, 1, "AF");
                    assert_eq!(descriptor >> 6 & 3, 0b01, "AP: EL0 reads and writes");
                    assert!(access.kind() != Kind::Fetch || descriptor >> 54 & 1 == 0, "UXN");
                    return output | va & ((1 << (12 + 9 * level)) - 1);
                }
                (1..4, 0b11) => table = output,
                _ => panic!("{va:#x}: descriptor {descriptor:#x} at level {level}"),
            }
        }
        unreachable!("level 0 holds only leaves")
    }
}

/// Runs a trace through made tables and walks them for every access, at the time of the access.
fn replay_with(path: &Path, options: &Options, policy: Policy) -> (Replayed, MadeTables) {
    let mut source = MadeTables::open(&[path], options, policy, Damage::Refuse).unwrap();
    let arch = source.machine().arch;
    let memory = source.machine().memory.clone().unwrap();
    let mut replayed = Replayed::default();
    let mut batch = Batch::default();
    while source.next(&mut batch).unwrap() {
        for run in batch.runs() {
            run.events
                .iter()
                .for_each(|at| replayed.event(at.vcpu, at.event, arch == Arch::X86_64));
            for access in run.accesses {
                let walk = |va| match arch {
                    Arch::X86_64 => replayed.x86_walk(access, va),
                    Arch::Aarch64 => replayed.arm_walk(access, va),
                };
                let gpa = walk(access.va);
                assert_eq!(access.gpa(), Some(gpa), "{access:?}");
                assert!(memory.contains(&gpa));
                if access.crosses() {
                    walk(access.va + u64::from(access.len()) - 1);
                }
            }
        }
        replayed.accesses.extend(&batch.accesses);
    }
    assert!(!source.next(&mut batch).unwrap());
    assert_eq!(source.counts().accesses(), replayed.accesses.len() as u64);
    (replayed, source)
}

fn replay(bytes: &[u8], policy: Policy) -> (Replayed, MadeTables) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    replay_with(file.path(), &Options::default(), policy)
}

fn same(accesses: &[Access], references: &[Reference]) -> bool {
    accesses.len() == references.len()
        && accesses.iter().zip(references).all(|(a, r)| {
            (a.kind(), a.va, a.len(), u16::from(a.vcpu)) == (r.kind, r.address, r.size, r.lane)
        })
}

const SMALL: Policy = Policy { pages: Pages::Small, fragmentation: 0, seed: 1, memory: 1 << 30 };
const TRANSPARENT: Policy = Policy { pages: Pages::Transparent, ..SMALL };

#[test]
fn every_access_translates_under_every_policy() {
    let all = accesses(3000);
    for pages in [Pages::Small, Pages::Transparent] {
        for fragmentation in [0, 30, 100, 255] {
            let policy = Policy { pages, fragmentation, ..SMALL };
            let (replayed, _) = replay(&plain(&all), policy);
            assert!(same(&replayed.accesses, &all));
        }
    }
}

#[test]
fn pages_are_mapped_by_first_touch_and_once() {
    let touches = [0x7000_0000, 0x40_1000, 0x7000_0008, 0x40_2000, 0x7fff_ffff_f000];
    let all = touches.map(|va| reference(Kind::Load, va, 8));
    let (replayed, source) = replay(&plain(&all), SMALL);
    let frames: Vec<_> = replayed.accesses.iter().map(|a| a.frame - 512).collect();
    // The root is frame 0; the first page comes behind its three tables, the second behind its own page
    // directory and table, the third is the first again, the fourth needs no table, the last three.
    assert_eq!(frames, [4, 7, 4, 8, 12]);
    assert_eq!((replayed.leaves, replayed.stores), ([4, 0], 4 + 3 + 2 + 3));
    let note = &source.notes()[0];
    assert!(note.contains("guest tables were made: x86-64, 4 levels, 4K pages"), "{note}");
}

#[test]
fn a_first_store_is_dirty_and_code_is_executable() {
    let all = [
        reference(Kind::Fetch, 0x40_0000, 4),
        reference(Kind::Store, 0x1000_0000, 4),
        reference(Kind::Load, 0x2000_0000, 4),
    ];
    let (replayed, _) = replay(&plain(&all), SMALL);
    let leaf = |access: &Access| {
        *replayed
            .entries
            .values()
            .find(|&&entry| entry >> 12 & 0xff_ffff == u64::from(access.frame))
            .unwrap()
    };
    let (accessed, dirty, execute_disable) = (1 << 5, 1 << 6, 1 << 63);
    let bits: Vec<_> =
        replayed.accesses.iter().map(|a| leaf(a) & (accessed | dirty | execute_disable)).collect();
    assert_eq!(bits, [accessed, accessed | dirty | execute_disable, accessed | execute_disable]);
}

#[test]
fn transparent_pages_are_used_where_a_mapping_covers_them() {
    // 8 MiB of data from 1 MiB into a region on, one touch a page, in a scattered order; code elsewhere.
    let data =
        (0..2048u64).map(|i| reference(Kind::Store, 0x1010_0000 + (i * 1031 % 2048) * 4096, 8));
    let all: Vec<_> = data.chain([reference(Kind::Fetch, 0x40_0000, 4)]).collect();
    let (small, _) = replay(&plain(&all), SMALL);
    assert_eq!(small.leaves, [2049, 0]);
    let (transparent, source) = replay(&plain(&all), TRANSPARENT);
    // Half a region, three whole ones, half a region, the code.
    assert_eq!(transparent.leaves, [256 + 256 + 1, 3]);
    assert!(source.notes()[0].contains("2M pages"));
    let aligned = transparent.accesses.iter().filter(|a| a.va >> 21 == 0x81);
    assert!(aligned.clone().all(|a| a.frame % 512 == (a.va >> 12 & 511) as u32));
    assert_eq!(aligned.count(), 512);

    let all_fail = Policy { fragmentation: 100, ..TRANSPARENT };
    assert_eq!(replay(&plain(&all), all_fail).0.leaves, [2049, 0]);
    let some_fail = Policy { fragmentation: 50, seed: 5, ..TRANSPARENT };
    let leaves = replay(&plain(&all), some_fail).0.leaves;
    assert!(leaves[1] < 3 && leaves[0] == 513 + 512 * (3 - leaves[1]), "{leaves:?}");
}

#[test]
fn the_same_policy_gives_the_same_stream_and_another_seed_does_not() {
    let bytes = plain(&accesses(2000));
    let stream = |seed| {
        let (replayed, _) = replay(&bytes, Policy { fragmentation: 20, seed, ..TRANSPARENT });
        (replayed.accesses, replayed.events)
    };
    assert!(stream(1) == stream(1));
    assert!(stream(1) != stream(2));
}

#[test]
fn an_access_across_pages_maps_all_of_them() {
    let all = [reference(Kind::Load, 0x1f_fffc, 8), reference(Kind::Store, 0x3f_f000, 10_000)];
    let (replayed, _) = replay(&plain(&all), SMALL);
    assert_eq!(replayed.leaves, [2 + 3, 0]);
}

#[test]
fn both_halves_and_five_levels() {
    let vsyscall = reference(Kind::Fetch, 0xffff_ffff_ff60_0000, 1);
    let (replayed, source) = replay(&plain(&[vsyscall, reference(Kind::Load, 0x1000, 1)]), SMALL);
    assert!(source.notes()[0].contains("4 levels"));
    assert_eq!(replayed.tables.values().filter(|&&level| level == 3).count(), 1);

    let far = [vsyscall, reference(Kind::Store, 0x00ab_cdef_0123_4567, 8)];
    let (replayed, source) = replay(&plain(&far), SMALL);
    assert!(source.notes()[0].contains("5 levels"));
    assert_eq!(replayed.tables.values().filter(|&&level| level == 4).count(), 1);
}

#[test]
fn an_address_of_no_program_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"R 1000\nR 2000\nR 8000000000000000\n").unwrap();
    let error =
        MadeTables::open(&[file.path()], &Options::default(), SMALL, Damage::Refuse).unwrap_err();
    assert_eq!(error.place, Place::Access(2));
    assert!(error.to_string().contains("0x8000000000000000 is no canonical address"), "{error}");
}

/// Two threads of one process and one of another, in turns.
fn processes(arch: u64) -> (Vec<u8>, usize) {
    let mut bytes = record(25, 0, 7);
    bytes.extend(record(28, 9, arch));
    let mut count = 0;
    for round in 0..4u64 {
        for (thread, process) in [(1, 10), (2, 10), (3, 20)] {
            bytes.extend(record(22, 4, thread));
            bytes.extend(record(24, 4, process));
            bytes.extend(record(28, 3, thread % 2));
            for i in 0..5 {
                bytes.extend(record(1, 8, 0x5000_0000 + (round + i) * 4096));
                bytes.extend(record(10, 4, 0x40_0000 + i));
                count += 2;
            }
        }
    }
    bytes.extend(record(26, 0, 0));
    (bytes, count)
}

#[test]
fn processes_have_tables_of_their_own() {
    let (bytes, count) = processes(0x40);
    let (replayed, source) = replay(&bytes, SMALL);
    assert_eq!((replayed.accesses.len(), source.machine().vcpus), (count, 3));
    let roots: HashSet<_> = replayed.roots.values().collect();
    assert_eq!(roots.len(), 2);
    assert_eq!(replayed.roots[&0], replayed.roots[&1], "threads of a process share its tables");
    assert_eq!(
        replayed.events.iter().filter(|event| matches!(event, Event::Root { .. })).count(),
        3
    );

    // By CPU, threads 1 and 3 share CPU 1: a switch each time.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let options = Options { lanes: slat_trace::import::LaneBy::Cpu, ..Options::default() };
    let (replayed, source) = replay_with(file.path(), &options, SMALL);
    assert_eq!(source.machine().vcpus, 2);
    assert_eq!(
        replayed.events.iter().filter(|event| matches!(event, Event::Root { .. })).count(),
        2 + 7
    );
}

#[test]
fn aarch64_traces_get_tables_of_their_own_kind() {
    let (bytes, count) = processes(0x08);
    let (replayed, source) = replay(&bytes, TRANSPARENT);
    assert_eq!((source.machine().arch, replayed.accesses.len()), (Arch::Aarch64, count));
    assert!(source.notes()[0].contains("AArch64"));
    let asids: HashSet<_> = replayed
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Root { root: Root::Ttbr0, value } => Some(value >> 48),
            _ => None,
        })
        .collect();
    assert_eq!(asids, HashSet::from([1, 2]));
    assert!(source.machine().memory.as_ref().unwrap().start == 1 << 30);
}

#[test]
fn limits_are_kept() {
    let open = |bytes: &[u8], policy, damage| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        MadeTables::open(&[file.path()], &Options::default(), policy, damage)
    };
    let scattered: Vec<_> = (0..4000).map(|i| reference(Kind::Load, i << 30, 1)).collect();
    let little = Policy { memory: 16 << 20, ..SMALL };
    let error = open(&plain(&scattered), little, Damage::Refuse).unwrap_err().to_string();
    assert!(error.contains("guest's 16 MiB") && error.contains("access 20"), "{error}");
    let error = open(&plain(&scattered[..1500]), little, Damage::Refuse).unwrap_err().to_string();
    assert!(error.contains("MiB are allowed"), "{error}");

    let mut crowd = record(25, 0, 7);
    for thread in 0..256 {
        crowd.extend(record(22, 4, thread));
        crowd.extend(record(0, 8, 0x1000));
    }
    crowd.extend(record(26, 0, 0));
    let error = open(&crowd, SMALL, Damage::Refuse).unwrap_err().to_string();
    assert!(error.contains("more than 255 threads"), "{error}");

    let error = open(&samples::lackey(&[]), SMALL, Damage::Refuse).unwrap_err();
    assert!(matches!(error.cause, Cause::Unknown(_)), "{error}");
}

#[test]
fn what_precedes_the_damage_is_taken_when_asked() {
    let all = accesses(40_000);
    let mut bytes = drmemtrace(5, 5, &all);
    bytes.truncate(bytes.len() - 30);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let open = |damage| MadeTables::open(&[file.path()], &Options::default(), SMALL, damage);
    let error = open(Damage::Refuse).unwrap_err();
    assert!(matches!(error.cause, Cause::Truncated(_)), "{error}");

    let mut source = open(Damage::TakeWhatPrecedes).unwrap();
    let (mut count, mut batch) = (0, Batch::default());
    while source.next(&mut batch).unwrap() {
        count += batch.accesses.len();
    }
    assert!(count >= all.len() - 1);
    assert!(source.notes().last().unwrap().contains("precedes the damage"));
}

#[test]
fn an_address_that_cannot_be_is_damage_like_any_other() {
    let mut all = accesses(40_000);
    all.insert(30_000, reference(Kind::Load, 0x8000_0000_0000_0000, 8));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&plain(&all)).unwrap();
    let open = |damage| MadeTables::open(&[file.path()], &Options::default(), SMALL, damage);
    let error = open(Damage::Refuse).unwrap_err();
    assert_eq!(error.place, Place::Access(30_000), "{error}");
    assert!(matches!(error.cause, Cause::Malformed(_)), "{error}");

    let mut source = open(Damage::TakeWhatPrecedes).unwrap();
    let (mut count, mut batch) = (0, Batch::default());
    while source.next(&mut batch).unwrap() {
        count += batch.accesses.len();
    }
    assert_eq!((count, source.counts().accesses()), (30_000, 30_000));
    assert!(source.notes().last().unwrap().contains("access 30000"));
}

/// Its first byte needs five levels, its last has no address at all: neither may shape the guest.
#[test]
fn a_refused_access_shapes_nothing() {
    let mut all = accesses(100);
    all.push(reference(Kind::Load, 0x00ff_ffff_ffff_fffc, 8));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&plain(&all)).unwrap();
    let damage = Damage::TakeWhatPrecedes;
    let mut source = MadeTables::open(&[file.path()], &Options::default(), SMALL, damage).unwrap();
    assert!(source.notes()[0].contains("4 levels"), "{:?}", source.notes());
    let (mut count, mut batch) = (0, Batch::default());
    while source.next(&mut batch).unwrap() {
        count += batch.accesses.len();
    }
    assert_eq!((count, source.counts().accesses()), (100, 100));
}

#[test]
fn a_trace_that_was_cut_before_its_first_access_says_where() {
    let bytes = b"gem5\x05\x0a\x01x\x18\x01";
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let open = |damage| MadeTables::open(&[file.path()], &Options::default(), SMALL, damage);
    let error = open(Damage::Refuse).unwrap_err();
    let place = Place::Byte { offset: bytes.len() as u64, in_file: None };
    assert_eq!(error.place, place, "{error}");
}

#[test]
fn real_traces_translate() {
    for name in ["gups_head100k.lk.gz", "gups_100k.champsim.xz"] {
        for policy in [SMALL, Policy { fragmentation: 25, ..TRANSPARENT }] {
            let path = crate::counts::fixtures().join(name);
            let (replayed, source) = replay_with(&path, &Options::default(), policy);
            assert_eq!(replayed.accesses.len() as u64, source.counts().accesses(), "{name}");
        }
    }
}

#[test]
fn sample_traces_translate() {
    let Some(samples) = crate::counts::samples() else { return };
    for name in [
        "mm_1M.champsim.xz",
        "tgen-simple-mem.trc",
        "ramulator2_example_inst.trace",
        "drmemtrace/drmemtrace.simple_app.trace.zip",
        "drmemtrace/offline-legacy-trace.gz",
        "drmemtrace/drmemtrace.threadsig.x64.tracedir",
    ] {
        for policy in [SMALL, Policy { fragmentation: 25, ..TRANSPARENT }] {
            let (replayed, source) = replay_with(&samples.join(name), &Options::default(), policy);
            assert_eq!(replayed.accesses.len() as u64, source.counts().accesses(), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_trace_translates_under_any_policy(
        places in proptest::collection::vec((0u64..6, 0u64..3000, 0u64..4096, 0u16..300, 0u8..3), 1..400),
        transparent in any::<bool>(),
        fragmentation in 0u8..=100,
        seed in any::<u64>(),
    ) {
        let bases = [0, 0x40_0000, 0x5555_5555_4000, 0x7fff_ff00_0000, 0xffff_8000_0000_0000, 0x1_0000_0000];
        let kinds = [Kind::Load, Kind::Store, Kind::Fetch];
        let all: Vec<_> = places
            .iter()
            .map(|&(base, page, offset, size, kind)| {
                reference(kinds[usize::from(kind)], bases[base as usize] + page * 4096 + offset, size.max(1))
            })
            .collect();
        let pages = if transparent { Pages::Transparent } else { Pages::Small };
        let (replayed, _) = replay(&plain(&all), Policy { pages, fragmentation, seed, memory: 1 << 32 });
        prop_assert!(same(&replayed.accesses, &all));
    }
}
