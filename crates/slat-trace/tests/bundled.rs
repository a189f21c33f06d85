//! The recordings that come with the repository: the tables in them, walked by the library and by the
//! plainest walk there is, say for every access what the recorded machine did.

use std::path::PathBuf;

use slat_trace::recording::{Options, Recording};
use slat_trace::replay::{Counts, TableMemory, Verifier};
use slat_trace::{Arch, Batch, Control, Event, Root, Source};

/// Accesses of each recording that are checked here; all of them are by `slat replay --verify` where
/// the recordings are made.
const MOST: u64 = 6_000_000;

fn bundled() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recordings");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("recordings/")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slat"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// Intel SDM volume 3, 5.5, and Arm ARM D8.2 with the 4 KiB granule and 48 bits: no rights, no
/// reserved bits, addresses alone.
struct Naive {
    arch: Arch,
    memory: TableMemory,
    roots: Vec<[u64; 3]>,
    levels: u32,
}

impl Naive {
    fn apply(&mut self, vcpu: u8, event: &Event) {
        self.memory.apply(event).unwrap();
        match *event {
            Event::Root { root, value } => {
                self.roots[usize::from(vcpu)][root as usize] = value;
            }
            Event::Control { register: Control::Cr4, value } => {
                self.levels = if value >> 12 & 1 != 0 { 5 } else { 4 };
            }
            _ => {}
        }
    }

    fn walk(&self, vcpu: u8, va: u64) -> Option<u64> {
        let root = match self.arch {
            Arch::X86_64 => Root::Cr3,
            Arch::Aarch64 if va >> 55 & 1 != 0 => Root::Ttbr1,
            Arch::Aarch64 => Root::Ttbr0,
        };
        let address = match self.arch {
            Arch::X86_64 => 0x000f_ffff_ffff_f000,
            Arch::Aarch64 => 0x0000_ffff_ffff_f000,
        };
        let mut table = self.roots[usize::from(vcpu)][root as usize] & address;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let entry = self.memory.entry(table + 8 * (va >> shift & 511))?;
            if entry & 1 == 0 {
                return None;
            }
            let leaf = match self.arch {
                Arch::X86_64 => entry & 0x80 != 0,
                Arch::Aarch64 => entry & 2 == 0,
            };
            if level == 0 || leaf {
                let offset = (1 << shift) - 1;
                return Some(entry & address & !offset | va & offset);
            }
            table = entry & address;
        }
        None
    }
}

#[test]
fn the_library_and_a_naive_walk_agree_with_the_machine_on_every_access() {
    for path in bundled() {
        let name = path.display();
        let recording = Recording::open(&path).unwrap();
        assert!(recording.damage().is_none(), "{name}");
        let mut reader = recording.reader(&Options { frames: true, ..Options::default() }).unwrap();
        let machine = recording.machine();
        let mut verifier = Verifier::new(machine);
        let mut naive = Naive {
            arch: machine.arch,
            memory: TableMemory::new(),
            roots: vec![[0; 3]; usize::from(machine.vcpus)],
            levels: 4,
        };
        let mut counts = Counts::default();
        let mut batch = Batch::default();
        while counts.accesses() < MOST && reader.next(&mut batch).unwrap() {
            counts.add(&batch);
            verifier.check(&batch).unwrap();
            for run in batch.runs() {
                for at in run.events {
                    naive.apply(at.vcpu, &at.event);
                }
                for access in run.accesses {
                    assert_eq!(naive.walk(access.vcpu, access.va), access.gpa(), "{name}");
                }
            }
        }
        assert_eq!(verifier.first_mismatches(), [], "{name}");
        assert_eq!(verifier.walked(), counts.accesses(), "{name}");
        assert!(counts.loads > 0 && counts.stores > 0 && counts.instructions > 0, "{name}");
    }
}

#[test]
fn a_wrong_table_entry_is_found() {
    let path = bundled().into_iter().find(|path| path.ends_with("clear-refs.slat")).unwrap();
    let recording = Recording::open(path).unwrap();
    let mut reader = recording.reader(&Options { frames: true, ..Options::default() }).unwrap();
    let mut verifier = Verifier::new(recording.machine());
    let mut batch = Batch::default();
    // One bit of the address in every entry of a leaf table.
    let mut flipped = 0;
    while verifier.mismatches() == 0 && reader.next(&mut batch).unwrap() {
        for at in &mut batch.events {
            if let Event::TableEntry { value, .. } = &mut at.event
                && *value & 0x81 == 1
            {
                *value ^= 1 << 20;
                flipped += 1;
            }
        }
        verifier.check(&batch).unwrap();
    }
    assert!(flipped > 0);
    assert!(verifier.mismatches() > 0);
    assert!(verifier.first_mismatches()[0].to_string().contains("the machine used"));
}
