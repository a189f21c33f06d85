//! mmap, munmap, fork, exec and exit: what changes many entries at once.

use slat_trace::{Event, Invalidation, Kind};

use super::process::{Area, Backing, Process};
use super::tables::{self, Slot, bits, index};
use super::{Kernel, fault::flags_of};
use crate::generated::costs;

/// More pages than this are invalidated as a whole (Linux's tlb_single_page_flush_ceiling).
const SINGLE_FLUSHES: u64 = 33;

impl Kernel {
    /// A new process with these areas and nothing mapped but what the kernel maps in all; not yet
    /// running. Its number.
    pub(crate) fn spawn(&mut self, areas: &[Area]) -> usize {
        let root = self.frame() << 12;
        self.tables.make(root);
        self.clear(root);
        for &(index, entry) in &self.kernel_entries.clone() {
            self.store(Slot { table: root, index }, entry);
        }
        let stack = self.frame();
        let mut process = Process { root, areas: Vec::new(), stack, alive: true };
        areas.iter().for_each(|&area| process.map(area));
        match self.processes.iter().position(|process| !process.alive) {
            Some(free) => {
                self.processes[free] = process;
                free
            }
            None => {
                self.processes.push(process);
                self.processes.len() - 1
            }
        }
    }

    /// The running process.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// mmap by the running process.
    pub(crate) fn map(&mut self, area: Area) {
        self.enter_call();
        self.path(costs::MAP, 1);
        self.processes[self.current].map(area);
        self.leave_call();
    }

    /// munmap by the running process; in areas with pages of 2 MiB, whole ones.
    pub(crate) fn unmap(&mut self, start: u64, end: u64) {
        self.enter_call();
        self.path(costs::MAP, 1);
        let process = self.current;
        self.processes[process].unmap(start, end);
        let removed = self.zap(process, start, end, true);
        if removed > 0 {
            if (end - start) >> 12 <= SINGLE_FLUSHES {
                for page in start >> 12..end >> 12 {
                    self.invalidate_page(page << 12);
                }
            } else {
                self.reload_root();
            }
        }
        self.leave_call();
    }

    /// Maps pages of an area before the recording begins, or as MAP_POPULATE does.
    pub(crate) fn populate(&mut self, process: usize, area: Area) {
        let running = std::mem::replace(&mut self.current, process);
        let mut va = area.start;
        while va < area.end {
            let leaf = self.tables.leaf(self.processes[process].root, va);
            if leaf.entry == 0 {
                match area.backing {
                    Backing::Anonymous { huge } => self.map_anonymous(area, va, Kind::Store, huge),
                    Backing::File { file, first } => self.map_file(area, va, file, first, false),
                    Backing::Shared { file, first } => self.map_file(area, va, file, first, true),
                }
            }
            va += 4096;
        }
        self.current = running;
    }

    /// INVLPG.
    pub(super) fn invalidate_page(&mut self, va: u64) {
        self.event(Event::Invalidate(Invalidation::Invlpg { va }));
        self.forget(self.current, va);
    }

    /// MOV to CR3 with its own value: what drops all of a process's translations without PCIDs.
    pub(super) fn reload_root(&mut self) {
        self.load_root();
        self.forget_all();
    }

    /// Unmaps pages of `start..end`, frees them, and with `tables` the tables that lie wholly inside.
    /// How many entries were unmapped.
    fn zap(&mut self, process: usize, start: u64, end: u64, free_tables: bool) -> u64 {
        let root = self.processes[process].root;
        let removed = self.zap_level(root, tables::ROOT_LEVEL, 0, start, end, free_tables);
        self.path(costs::UNMAP_ENTRY, removed);
        self.forget_all();
        removed
    }

    fn zap_level(
        &mut self,
        table: u64,
        level: u8,
        base: u64,
        start: u64,
        end: u64,
        free_tables: bool,
    ) -> u64 {
        let shift = 12 + 9 * level;
        let first = if base >= start { 0 } else { index(start, level) };
        let mut removed = 0;
        for index in first..512 {
            let at = base + ((index as u64) << shift);
            if at >= end {
                break;
            }
            let slot = Slot { table, index };
            let entry = self.tables.get(slot);
            if entry == 0 {
                continue;
            }
            if level == 0 || entry & bits::PS != 0 {
                self.store(slot, 0);
                removed += 1;
                if entry & bits::P != 0 {
                    self.frames.give_back((entry & bits::ADDRESS) >> 12, level == 1);
                }
                continue;
            }
            let next = entry & bits::ADDRESS;
            removed += self.zap_level(next, level - 1, at, start, end, free_tables);
            let whole = at >= start && at + (1 << shift) <= end;
            if free_tables && whole {
                self.store(slot, 0);
                self.free_table(next);
            }
        }
        removed
    }

    fn free_table(&mut self, table: u64) {
        if self.tables.is_tracked(table) {
            self.event(Event::TableRelease { gpa: table });
        }
        self.tables.unmake(table);
        self.frames.give_back(table >> 12, false);
    }

    /// fork by the running process: a child with the same areas, in which all private pages are
    /// shared until one of both stores to them. The child's number.
    pub(crate) fn fork(&mut self) -> usize {
        self.enter_call();
        self.path(costs::FORK, 1);
        let parent = self.current;
        let areas = self.processes[parent].areas.clone();
        let child = self.spawn(&areas);
        let mut copied = 0;
        for area in areas {
            // A file that nothing private was made of is mapped again when it is touched
            // (Linux's vma_needs_copy).
            let private = matches!(area.backing, Backing::Anonymous { .. }) || area.writable;
            let shared = matches!(area.backing, Backing::Shared { .. });
            if private && !shared {
                copied += self.copy_area(parent, child, &area);
            }
        }
        self.path(costs::FORK_ENTRY, copied);
        if copied > 0 {
            self.reload_root();
        }
        self.leave_call();
        child
    }

    /// Copies the entries of one area, both sides without the right to write.
    fn copy_area(&mut self, parent: usize, child: usize, area: &Area) -> u64 {
        let root = self.processes[parent].root;
        let mut copied = 0;
        let mut va = area.start;
        while va < area.end {
            let leaf = self.tables.leaf(root, va);
            let step = 1u64 << (12 + 9 * leaf.level);
            let here = va;
            va = (va & !(step - 1)) + step;
            if leaf.entry & bits::P == 0 {
                continue;
            }
            self.physical(Kind::Load, leaf.slot.gpa());
            if leaf.entry & bits::RW != 0 {
                self.store(leaf.slot, leaf.entry & !bits::RW);
            }
            let Some(slot) = self.slot(child, here, leaf.level) else { continue };
            self.store(slot, leaf.entry & !(bits::RW | bits::A));
            self.frames.share((leaf.entry & bits::ADDRESS) >> 12);
            copied += 1;
        }
        copied
    }

    /// exec by the running process: new tables with these areas, the first page of the last area (its
    /// stack) written, the old address space taken down.
    pub(crate) fn exec(&mut self, areas: &[Area]) {
        self.enter_call();
        self.path(costs::EXEC, 1);
        let process = self.current;
        let old = self.processes[process].clone();
        let root = self.frame() << 12;
        self.tables.make(root);
        self.clear(root);
        for &(index, entry) in &self.kernel_entries.clone() {
            self.store(Slot { table: root, index }, entry);
        }
        let new = &mut self.processes[process];
        new.root = root;
        new.areas.clear();
        areas.iter().for_each(|&area| new.map(area));
        if let Some(&stack) = areas.last()
            && let Some(slot) = self.slot(process, stack.end - 4096, 0)
        {
            let frame = self.frame();
            self.clear(frame << 12);
            self.store(slot, frame << 12 | flags_of(&stack) | bits::RW | bits::D);
        }
        self.reload_root();
        self.take_down(&old);
        self.leave_call();
    }

    /// exit by the running process, and `next` (its parent, waiting) goes on.
    pub(crate) fn exit_to(&mut self, next: usize) {
        self.enter_call();
        self.path(costs::EXIT, 1);
        let process = self.current;
        let gone = self.processes[process].clone();
        // Its tables are emptied while it still runs on them; the root goes after the switch.
        for area in &gone.areas {
            self.zap_area(gone.root, area);
        }
        self.forget_all();
        self.processes[process].alive = false;
        self.processes[process].areas.clear();
        self.current = next;
        self.load_root();
        self.free_root(gone.root);
        self.frames.give_back(gone.stack, false);
        self.leave_call();
    }

    fn take_down(&mut self, old: &Process) {
        for area in &old.areas {
            self.zap_area(old.root, area);
        }
        self.free_root(old.root);
        self.forget_all();
    }

    fn zap_area(&mut self, root: u64, area: &Area) {
        let removed = self.zap_level(root, tables::ROOT_LEVEL, 0, area.start, area.end, false);
        self.path(costs::UNMAP_ENTRY, removed);
    }

    /// Frees a root and what user tables are left below it, all empty.
    fn free_root(&mut self, root: u64) {
        for index in 0..256 {
            let entry = self.tables.get(Slot { table: root, index });
            if entry & bits::P != 0 {
                self.free_below(entry & bits::ADDRESS, tables::ROOT_LEVEL - 1);
            }
        }
        self.free_table(root);
    }

    fn free_below(&mut self, table: u64, level: u8) {
        for index in 0..512 {
            let entry = self.tables.get(Slot { table, index });
            if level > 0 && entry & bits::P != 0 && entry & bits::PS == 0 {
                self.free_below(entry & bits::ADDRESS, level - 1);
            }
        }
        self.free_table(table);
    }
}
