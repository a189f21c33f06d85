//! A small model of a guest's kernel, on one processor: processes, areas, page faults, fork with copy
//! on write, exec, exit, reclaim. It keeps real x86-64 tables in guest memory, and says what it does
//! as a recording does: accesses, table stores, root loads, invalidations, exceptions.
//!
//! What a path of the kernel costs is stated in [`super::costs`]; of its accesses so many are emitted
//! as [`Kernel::density`] says. Pages that are cleared, copied or edited are touched line by line and
//! entry by entry.

mod fault;
mod frames;
mod memory;
mod process;
mod reclaim;
mod schedule;
mod tables;

use std::collections::{HashMap, VecDeque};

use slat_trace::{Access, Batch, Control, Event, Kind, Root};

pub(crate) use self::process::{Area, Backing};

use self::frames::Frames;
use self::process::Process;
use self::tables::{Slot, Tables, bits, index};
use super::costs::Path;
use super::random::Random;

/// Where all of guest memory is mapped for the kernel, as Linux does (x86/x86_64/mm.rst).
const DIRECT: u64 = 0xffff_8880_0000_0000;
/// Where the kernel's code is mapped.
const TEXT: u64 = 0xffff_ffff_8100_0000;
/// Guest-physical place of the kernel's code and data.
const TEXT_GPA: u64 = 16 << 20;
/// Code and data of the kernel that its paths touch: so much that of all accesses about 92 % hit a
/// first cache level of 32 KiB, 6 % a second of 256 KiB and 2 % what is behind it, as on preset
/// nehalem in the recording fork.slat.
const TEXT_BYTES: u64 = 256 << 10;
const DATA_GPA: u64 = 24 << 20;
const DATA_BYTES: u64 = 512 << 10;
/// What lies below is the kernel's.
const FIRST_FRAME: u64 = 64 << 20 >> 12;

/// A user translation that was used lately.
#[derive(Clone, Copy)]
struct Recent {
    page: u64,
    process: u32,
    frame: u32,
    /// Stores go through, and have set the dirty bit.
    stores: bool,
}

const NONE: Recent = Recent { page: u64::MAX, process: 0, frame: 0, stores: false };
const RECENT: usize = 1 << 12;

/// The guest ran out of memory, and nothing was left to reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfMemory;

/// The kernel.
pub(crate) struct Kernel {
    /// What has happened since it was last taken.
    pub(crate) out: Batch,
    /// Chance, by the workload's seed.
    pub(crate) random: Random,
    /// Accesses emitted a thousand instructions of a path; the others are taken to touch lines that
    /// the last ones touched.
    density: u64,
    carry: u64,
    /// Where text was last fetched.
    block: u64,
    /// Nothing is emitted: what happened before the recording began.
    quiet: bool,
    frames: Frames,
    tables: Tables,
    processes: Vec<Process>,
    current: usize,
    /// The kernel's own entries in every root.
    kernel_entries: Vec<(usize, u64)>,
    files: HashMap<(u32, u64), u32>,
    recent: Box<[Recent]>,
    /// Mapped pages of processes, oldest first, for reclaim.
    pages: VecDeque<(u32, u64)>,
    /// Reclaim begins below this many free frames.
    watermark: u64,
    swapped: u64,
    waited: u64,
    memory: u64,
    failed: Option<OutOfMemory>,
}

impl Kernel {
    /// A guest with `memory` bytes (a multiple of 2 MiB, 128 MiB or more) and no process, of which
    /// nothing is emitted until [`Kernel::begin`].
    pub(crate) fn new(memory: u64, density: u64, seed: u64) -> Kernel {
        let mut kernel = Kernel {
            out: Batch::default(),
            random: Random::new(seed),
            density,
            carry: 0,
            block: 0,
            quiet: true,
            frames: Frames::new(FIRST_FRAME, memory >> 12),
            tables: Tables::default(),
            processes: Vec::new(),
            current: 0,
            kernel_entries: Vec::new(),
            files: HashMap::new(),
            recent: vec![NONE; RECENT].into_boxed_slice(),
            pages: VecDeque::new(),
            watermark: (memory >> 12) / 64,
            swapped: 0,
            waited: 0,
            memory,
            failed: None,
        };
        kernel.map_itself();
        kernel
    }

    /// Bytes of guest memory.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    /// Nanoseconds that the guest has waited for devices, with nothing to run.
    pub(crate) fn waited(&self) -> u64 {
        self.waited
    }

    /// Whether memory ran out.
    pub(crate) fn failed(&self) -> Option<OutOfMemory> {
        self.failed
    }

    /// What the processor's registers and tables hold when the recording begins; from now on all is
    /// emitted.
    pub(crate) fn begin(&mut self) {
        self.quiet = false;
        // CR0 with paging and write protection, CR4 with PAE, PGE and SSE, EFER with long mode,
        // no-execute and system calls.
        for (register, value) in
            [(Control::Cr0, 0x8005_0033), (Control::Cr4, 0x6b0), (Control::Efer, 0xd01)]
        {
            self.out.event(0, Event::Control { register, value });
        }
        self.load_root();
        self.event(Event::Mode { user: true });
    }

    fn event(&mut self, event: Event) {
        if !self.quiet {
            self.out.event(0, event);
        }
    }

    fn push(&mut self, kind: Kind, va: u64, len: u16, frame: u64, user: bool) {
        if !self.quiet {
            let access = Access::new(kind, va, len).with_user(user).with_frame(frame as u32);
            self.out.accesses.push(access);
        }
    }

    /// The kernel's own access to guest memory, through its direct map.
    fn physical(&mut self, kind: Kind, gpa: u64) {
        self.push(kind, DIRECT + gpa, 8, gpa >> 12, false);
    }

    /// A path of the kernel, taken `times` times.
    fn path(&mut self, path: Path, times: u64) {
        self.kernel_runs(path.instructions * times);
    }

    fn kernel_runs(&mut self, instructions: u64) {
        if self.quiet {
            return;
        }
        self.out.instructions += instructions;
        let stack = self.processes[self.current].stack;
        for nth in 0..self.emitted(instructions) {
            match nth % 3 {
                0 => {
                    let at = self.fetched(TEXT_BYTES);
                    self.push(Kind::Fetch, TEXT + at, 32, (TEXT_GPA + at) >> 12, false);
                }
                1 if self.random.one_in(9) => {
                    let at = self.random.skewed(DATA_BYTES / 64) * 64;
                    let kind = if self.random.one_in(3) { Kind::Store } else { Kind::Load };
                    self.physical(kind, DATA_GPA + at);
                }
                _ => {
                    let at = self.random.below(64) * 8;
                    let kind = if nth & 1 == 0 { Kind::Load } else { Kind::Store };
                    self.physical(kind, (stack << 12) + 0xe00 + at);
                }
            }
        }
    }

    /// Where in `bytes` of text the next block is fetched: behind the last one, back at the beginning
    /// of its KiB as loops go, or somewhere else.
    fn fetched(&mut self, bytes: u64) -> u64 {
        self.block = if self.random.one_in(28) {
            self.random.skewed(bytes / 64) * 64
        } else if self.random.one_in(4) {
            // The last block may be of another, larger text.
            (self.block & !1_023) % bytes
        } else {
            (self.block + 32) % bytes
        };
        self.block
    }

    /// How many accesses so many instructions emit.
    fn emitted(&mut self, instructions: u64) -> u64 {
        let whole = instructions * self.density + self.carry;
        self.carry = whole % 1_000;
        whole / 1_000
    }

    /// Maps the kernel: all of memory and its code, in global pages of 2 MiB.
    fn map_itself(&mut self) {
        // Its tables lie above its data.
        let mut next = 32u64 << 20;
        let mut table = |tables: &mut Tables| {
            tables.make(next);
            next += 4096;
            next - 4096
        };
        let tables = &mut self.tables;
        let parent = bits::P | bits::RW | bits::A;
        let leaf = parent | bits::D | bits::PS | bits::G;
        let direct = table(tables);
        for gigabyte in 0..self.memory.div_ceil(1 << 30) {
            let directory = table(tables);
            tables.set(Slot { table: direct, index: gigabyte as usize }, directory | parent);
            for nth in 0..512u64 {
                let gpa = (gigabyte << 30) + (nth << 21);
                if gpa < self.memory {
                    let slot = Slot { table: directory, index: nth as usize };
                    tables.set(slot, gpa | leaf | bits::XD);
                }
            }
        }
        let (upper, directory) = (table(tables), table(tables));
        tables.set(Slot { table: upper, index: index(TEXT, 2) }, directory | parent);
        tables.set(Slot { table: directory, index: index(TEXT, 1) }, TEXT_GPA | leaf);
        self.kernel_entries =
            vec![(index(DIRECT, 3), direct | parent), (index(TEXT, 3), upper | parent)];
    }

    /// Says of every table below `table` that a recorder did not see yet what it holds.
    fn show(&mut self, table: u64, level: u8) {
        if self.quiet || self.tables.is_tracked(table) {
            return;
        }
        let Some(entries) = self.tables.table(table).copied() else { return };
        self.tables.track(table);
        self.out.event(0, Event::TablePage { gpa: table, level, fresh: true });
        for (nth, &value) in entries.iter().enumerate() {
            if value != 0 {
                self.out.event(0, Event::TableEntry { gpa: table + 8 * nth as u64, value });
            }
        }
        if level == 0 {
            return;
        }
        for entry in entries {
            if entry & bits::P != 0 && entry & bits::PS == 0 {
                self.show(entry & bits::ADDRESS, level - 1);
            }
        }
    }

    /// The kernel's store to an entry.
    fn store(&mut self, slot: Slot, value: u64) {
        self.tables.set(slot, value);
        self.physical(Kind::Store, slot.gpa());
        if self.tables.is_tracked(slot.table) {
            self.event(Event::TableStore { gpa: slot.gpa(), value });
        }
    }

    /// The current process's root, as MOV to CR3 has it.
    fn load_root(&mut self) {
        let root = self.processes[self.current].root;
        self.event(Event::Root { root: Root::Cr3, value: root });
        self.show(root, tables::ROOT_LEVEL);
    }

    /// A frame, reclaimed if need be; frame 0 where memory ran out.
    fn frame(&mut self) -> u64 {
        if self.frames.left() < self.watermark {
            self.reclaim();
        }
        match self.frames.take() {
            Some(frame) => frame,
            None => {
                self.failed = Some(OutOfMemory);
                0
            }
        }
    }

    /// An empty table in a frame of its own, cleared line by line.
    fn new_table(&mut self) -> u64 {
        let gpa = self.frame() << 12;
        self.tables.make(gpa);
        self.clear(gpa);
        gpa
    }

    /// Clears a page.
    fn clear(&mut self, gpa: u64) {
        for line in 0..64 {
            self.physical(Kind::Store, gpa + 64 * line);
        }
    }

    /// The slot of `va`'s entry at `level` in the tables of `process`, tables above it made where
    /// there are none. `None` where a page of 2 MiB is in the way.
    fn slot(&mut self, process: usize, va: u64, level: u8) -> Option<Slot> {
        let mut slot =
            Slot { table: self.processes[process].root, index: index(va, tables::ROOT_LEVEL) };
        for below in (level..tables::ROOT_LEVEL).rev() {
            let entry = self.tables.get(slot);
            if entry & bits::PS != 0 {
                return None;
            }
            let next = if entry & bits::P != 0 {
                entry & bits::ADDRESS
            } else {
                let next = self.new_table();
                if self.tables.is_tracked(slot.table) {
                    self.show(next, below);
                }
                self.store(slot, next | bits::P | bits::RW | bits::US | bits::A);
                next
            };
            slot = Slot { table: next, index: index(va, below) };
        }
        Some(slot)
    }

    /// Drops what is remembered of one page.
    fn forget(&mut self, process: usize, va: u64) {
        let recent = &mut self.recent[recent_slot(process, va >> 12)];
        if recent.page == va >> 12 && recent.process == process as u32 {
            *recent = NONE;
        }
    }

    fn forget_all(&mut self) {
        self.recent.fill(NONE);
    }
}

fn recent_slot(process: usize, page: u64) -> usize {
    (page ^ page >> 9 ^ (process as u64) << 5) as usize & (RECENT - 1)
}
