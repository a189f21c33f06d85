//! User accesses and the page faults that they end in.

use slat_trace::{Event, Exception, Kind};

use super::process::{Area, Backing};
use super::tables::bits;
use super::{Kernel, OutOfMemory, Recent, Slot, recent_slot};
use crate::generated::costs;

/// Pages that a fault on a file maps at once (Linux's fault_around_bytes of 64 KiB).
const AROUND: u64 = 16;

impl Kernel {
    /// A load, store or fetch of the running process; faults are handled on the way.
    pub(crate) fn user(&mut self, kind: Kind, va: u64, len: u16) {
        // A fault leads to an entry; an entry that is too weak leads to one more.
        for _ in 0..4 {
            let recent = self.recent[recent_slot(self.current, va >> 12)];
            let known = recent.page == va >> 12 && recent.process == self.current as u32;
            if known && (recent.stores || kind != Kind::Store) {
                self.push(kind, va, len, u64::from(recent.frame), true);
                return;
            }
            if !self.translate(va, kind) {
                self.fault(va, kind);
                if self.failed.is_some() {
                    return;
                }
            }
        }
    }

    /// Walks for the running process as its processor would; false where that faults.
    fn translate(&mut self, va: u64, kind: Kind) -> bool {
        let root = self.processes[self.current].root;
        let leaf = self.tables.leaf(root, va);
        let store = kind == Kind::Store;
        if leaf.entry & bits::P == 0 || store && leaf.entry & bits::RW == 0 {
            return false;
        }
        self.tables.touch(root, va, if store { bits::D } else { 0 });
        let within = if leaf.level == 1 { va >> 12 & 0x1ff } else { 0 };
        self.recent[recent_slot(self.current, va >> 12)] = Recent {
            page: va >> 12,
            process: self.current as u32,
            frame: ((leaf.entry & bits::ADDRESS) >> 12 | within) as u32,
            stores: store,
        };
        true
    }

    /// An access that ends in a signal: nothing is mapped there, or not so.
    pub(crate) fn signalled(&mut self, va: u64, kind: Kind) {
        self.enter_fault(va, kind, false);
        self.path(costs::FAULT_SIGNAL, 1);
        self.leave_fault();
    }

    fn enter_fault(&mut self, va: u64, kind: Kind, present: bool) {
        let code = u64::from(present) | u64::from(kind == Kind::Store) << 1 | 4;
        // Error code, RIP, CS, RFLAGS, RSP, SS (Intel SDM 3A 6.14.2).
        let frame = [code, 0x40_1000, 0x33, 0x10202, 0x7fff_ffff_e000, 0x2b];
        let stack_or_syndrome = 0xffff_8880_0000_0000 + (self.processes[self.current].stack << 12);
        self.event(Event::Exception(Exception {
            vector: 14,
            fault_va: va,
            stack_or_syndrome,
            frame,
        }));
        self.event(Event::Mode { user: false });
    }

    fn leave_fault(&mut self) {
        self.event(Event::ExceptionReturn);
        self.event(Event::Mode { user: true });
    }

    /// The running process's page fault.
    fn fault(&mut self, va: u64, kind: Kind) {
        let process = self.current;
        let leaf = self.tables.leaf(self.processes[process].root, va);
        let present = leaf.entry & bits::P != 0;
        let area = self.processes[process].area(va);
        let Some(area) = area.filter(|area| area.writable || kind != Kind::Store) else {
            // A workload means it, or has a mistake: the guest goes on without the access.
            self.signalled(va, kind);
            return;
        };
        self.enter_fault(va, kind, present);
        if present {
            self.copy(area, va, leaf.slot, leaf.entry, leaf.level);
        } else if leaf.entry != 0 && leaf.level == 0 {
            self.swap_in(va, leaf.slot);
        } else {
            match area.backing {
                Backing::Anonymous { huge } => self.map_anonymous(area, va, kind, huge),
                Backing::File { file, first } => self.map_file(area, va, file, first, false),
                Backing::Shared { file, first } => self.map_file(area, va, file, first, true),
            }
        }
        self.leave_fault();
    }

    /// Maps a new zeroed page, of 2 MiB where that fits.
    pub(super) fn map_anonymous(&mut self, area: Area, va: u64, kind: Kind, huge: bool) {
        let block = va >> 21 << 21;
        let fits = huge && block >= area.start && block + (2 << 20) <= area.end;
        if fits
            && let Some(slot) = self.slot(self.current, va, 1)
            && self.tables.get(slot) == 0
            && let Some(frame) = self.frames.take_block()
        {
            // 512 pages are cleared; what else a fault does is done once.
            let clearing = costs::FAULT_ANONYMOUS.instructions / 2;
            self.kernel_runs(costs::FAULT_ANONYMOUS.instructions + 511 * clearing);
            for line in 0..512 * 8 {
                self.physical(Kind::Store, (frame << 12) + 512 * line);
            }
            let flags = bits::P | bits::RW | bits::US | bits::A | bits::D | bits::PS | bits::XD;
            self.store(slot, frame << 12 | flags);
            return;
        }
        self.path(costs::FAULT_ANONYMOUS, 1);
        let Some(slot) = self.slot(self.current, va, 0) else { return };
        let frame = self.frame();
        self.clear(frame << 12);
        let dirty = if kind == Kind::Store { bits::D } else { 0 };
        self.store(slot, frame << 12 | flags_of(&area) | bits::RW | dirty);
        self.pages.push_back((self.current as u32, va >> 12));
    }

    /// Maps the page of a file and its neighbours in the same 64 KiB that are not mapped yet.
    pub(super) fn map_file(&mut self, area: Area, va: u64, file: u32, first: u64, shared: bool) {
        self.path(costs::FAULT_FILE, 1);
        let around = va >> 12 & !(AROUND - 1);
        for page in around..around + AROUND {
            let at = page << 12;
            if at < area.start || at >= area.end {
                continue;
            }
            let Some(slot) = self.slot(self.current, at, 0) else { return };
            if self.tables.get(slot) != 0 {
                continue;
            }
            let frame = self.cached(file, first + (page - (area.start >> 12)));
            let writable = if shared && area.writable { bits::RW | bits::D } else { 0 };
            self.store(slot, frame << 12 | flags_of(&area) | writable);
        }
    }

    /// The page cache's frame of a file's page, with one more user.
    fn cached(&mut self, file: u32, page: u64) -> u64 {
        if let Some(&frame) = self.files.get(&(file, page)) {
            self.frames.share(u64::from(frame));
            return u64::from(frame);
        }
        let frame = self.frame();
        // The cache itself is a user.
        self.frames.share(frame);
        self.files.insert((file, page), frame as u32);
        frame
    }

    /// A store to a page that is not to be written: it is copied, or taken where nobody shares it.
    fn copy(&mut self, area: Area, va: u64, slot: Slot, entry: u64, level: u8) {
        self.path(costs::FAULT_COPY, 1);
        let frame = (entry & bits::ADDRESS) >> 12;
        let flags = bits::RW | bits::A | bits::D;
        self.forget(self.current, va);
        if self.frames.users(frame) == 1 {
            self.store(slot, entry | flags);
            return;
        }
        if level == 1 {
            self.copy_block(area, slot, entry);
            return;
        }
        self.copy_page(area, va, slot, entry);
    }

    fn copy_page(&mut self, area: Area, va: u64, slot: Slot, entry: u64) {
        let old = (entry & bits::ADDRESS) >> 12;
        let new = self.frame();
        for line in 0..64 {
            self.physical(Kind::Load, (old << 12) + 64 * line);
            self.physical(Kind::Store, (new << 12) + 64 * line);
        }
        // ptep_clear_flush, then the new entry.
        self.store(slot, 0);
        self.invalidate_page(va);
        self.store(slot, new << 12 | flags_of(&area) | bits::RW | bits::D);
        self.frames.give_back(old, false);
        self.pages.push_back((self.current as u32, va >> 12));
    }

    /// Copies a shared page of 2 MiB as a whole, as Linux did until 5.8.
    fn copy_block(&mut self, area: Area, slot: Slot, entry: u64) {
        let old = (entry & bits::ADDRESS) >> 12;
        let Some(new) = self.frames.take_block() else {
            self.failed = Some(OutOfMemory);
            return;
        };
        self.kernel_runs(511 * costs::FAULT_COPY.instructions / 2);
        for line in 0..512 * 8 {
            self.physical(Kind::Load, (old << 12) + 512 * line);
            self.physical(Kind::Store, (new << 12) + 512 * line);
        }
        self.store(slot, 0);
        self.invalidate_page(area.start);
        self.forget_all();
        let flags = flags_of(&area) | bits::RW | bits::D | bits::PS;
        self.store(slot, new << 12 | flags);
        self.frames.give_back(old, true);
    }
}

/// What an entry of the area holds beside its address and the right to write.
pub(super) fn flags_of(area: &Area) -> u64 {
    let executable = if area.executable { 0 } else { bits::XD };
    bits::P | bits::US | bits::A | executable
}
