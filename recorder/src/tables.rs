//! Which pages of the guest's memory are translation tables, and what changes in them.
//!
//! From each root that is loaded the tree is followed: a page reachable as a table is marked, and
//! its content enters the recording when it is first linked. A store to a marked page enters as it
//! happens. A page that is no longer reachable is unmarked, so that its next use as plain data
//! costs nothing; what it held is kept, and only what differs is written should it be linked again,
//! which also covers what devices wrote to it in between.

use std::collections::HashMap;

use slat_trace::Event;

use crate::guest::Ram;

/// How a guest's table entries are encoded, as far as the tree is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Encoding {
    /// Intel SDM volume 3, 5.5: present, page size, address.
    X86,
    /// Arm ARM D8.3, 4 KiB granule: bits 1:0 are 3 for a table.
    Aarch64,
}

impl Encoding {
    /// The page that an entry of a table of `level` links as a table, if it does.
    pub(crate) fn child(self, entry: u64, level: u8) -> Option<u64> {
        let is_table = match self {
            Self::X86 => entry & 1 != 0 && (level > 2 || entry & 0x80 == 0),
            Self::Aarch64 => entry & 3 == 3,
        };
        (level > 0 && is_table).then_some(match self {
            Self::X86 => entry & 0x000f_ffff_ffff_f000,
            Self::Aarch64 => entry & 0x0000_ffff_ffff_f000,
        })
    }

    /// The bits that the processor sets by itself.
    fn accessed_and_dirty(self) -> u64 {
        match self {
            Self::X86 => 0x60,
            Self::Aarch64 => 1 << 10,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Mark {
    /// How many marked entries and roots link the page; 0 for a page that is no table.
    links: u32,
    level: u8,
}

/// A root is forgotten after this many loads of other roots.
const ROOTS_KEPT: u64 = 128;

/// What goes into the recording: an event, with the entries of a table page.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(Event, &[(u16, u64)]);

pub(crate) struct Tables {
    encoding: Encoding,
    marks: Vec<Mark>,
    /// A bit a page: whether it is marked. It is asked at each store.
    marked: Vec<u64>,
    content: HashMap<u64, Box<[u64; 512]>>,
    /// When a root was loaded last.
    roots: HashMap<u64, u64>,
    loads: u64,
    /// The roots of all vCPUs now.
    in_use: Vec<u64>,
}

impl Tables {
    pub(crate) fn new(encoding: Encoding, ram: &Ram) -> Self {
        Self {
            encoding,
            marks: vec![Mark::default(); ram.pages()],
            marked: vec![0; ram.pages().div_ceil(64)],
            content: HashMap::new(),
            roots: HashMap::new(),
            loads: 0,
            in_use: Vec::new(),
        }
    }

    /// The table at `gpa`, of `level`, is the root of a vCPU now. `in_use` are the roots of all.
    pub(crate) fn load_root(
        &mut self,
        ram: &Ram,
        gpa: u64,
        level: u8,
        in_use: Vec<u64>,
        sink: Sink<'_>,
    ) {
        self.in_use = in_use;
        self.loads += 1;
        if self.roots.insert(gpa, self.loads).is_none() {
            self.link(ram, gpa, level, sink);
        }
        if self.loads.is_multiple_of(ROOTS_KEPT / 2) {
            let oldest = self.loads.saturating_sub(ROOTS_KEPT);
            let unused = |(root, load): (&u64, &u64)| *load < oldest && !self.in_use.contains(root);
            let mut old: Vec<(u64, u64)> =
                self.roots.iter().filter(|&pair| unused(pair)).map(|(&r, &l)| (l, r)).collect();
            // The order of a hash table differs from run to run; the recording must not.
            old.sort_unstable();
            for (_, root) in old {
                self.roots.remove(&root);
                self.unlink(ram, root, sink);
            }
        }
    }

    fn link(&mut self, ram: &Ram, gpa: u64, level: u8, sink: Sink<'_>) {
        let Some(page) = ram.page(gpa) else { return };
        self.marks[page].links += 1;
        if self.marks[page].links > 1 {
            return;
        }
        self.marks[page].level = level;
        self.marked[page / 64] |= 1 << (page % 64);
        let mut now = Box::new([0; 512]);
        for (index, entry) in now.iter_mut().enumerate() {
            *entry = ram.word(gpa + 8 * index as u64).unwrap_or(0);
        }
        let hidden = self.encoding.accessed_and_dirty();
        let known = self.content.get(&gpa);
        let differs = |index: usize| match known {
            Some(known) => (known[index] ^ now[index]) & !hidden != 0,
            None => now[index] != 0,
        };
        let entries: Vec<(u16, u64)> =
            (0..512).filter(|&i| differs(i)).map(|i| (i as u16, now[i])).collect();
        sink(Event::TablePage { gpa, level, fresh: known.is_none() }, &entries);
        for &entry in now.iter() {
            if let Some(child) = self.encoding.child(entry, level) {
                self.link(ram, child, level - 1, sink);
            }
        }
        self.content.insert(gpa, now);
    }

    fn unlink(&mut self, ram: &Ram, gpa: u64, sink: Sink<'_>) {
        let Some(page) = ram.page(gpa) else { return };
        let mark = &mut self.marks[page];
        if mark.links == 0 {
            return;
        }
        mark.links -= 1;
        if mark.links != 0 {
            return;
        }
        let level = mark.level;
        self.marked[page / 64] &= !(1 << (page % 64));
        sink(Event::TableRelease { gpa }, &[]);
        let Some(content) = self.content.get(&gpa) else { return };
        let encoding = self.encoding;
        let children: Vec<u64> =
            content.iter().filter_map(|&entry| encoding.child(entry, level)).collect();
        for child in children {
            self.unlink(ram, child, sink);
        }
    }

    /// Whether a store to `gpa` is a store to a table.
    #[inline]
    pub(crate) fn is_table(&self, ram: &Ram, gpa: u64) -> bool {
        ram.page(gpa).is_some_and(|page| self.marked[page / 64] >> (page % 64) & 1 != 0)
    }

    /// The guest has stored `len` bytes to a table at `gpa`.
    pub(crate) fn stored(&mut self, ram: &Ram, gpa: u64, len: u64, sink: Sink<'_>) {
        let page = gpa & !0xfff;
        if !self.in_use.contains(&page) && self.roots.remove(&page).is_some() {
            // A root that no vCPU uses and that is written to belongs to an address space that
            // ends, and is about to be plain data. Should it be used again, it is linked again.
            self.unlink(ram, page, sink);
        }
        let mut at = gpa & !7;
        while at < gpa + len {
            let (Some(page), Some(value)) = (ram.page(at), ram.word(at)) else { return };
            let Mark { links, level } = self.marks[page];
            if links == 0 {
                return;
            }
            sink(Event::TableStore { gpa: at, value }, &[]);
            let Some(content) = self.content.get_mut(&(at & !0xfff)) else { return };
            let old = std::mem::replace(&mut content[(at >> 3 & 511) as usize], value);
            let before = self.encoding.child(old, level);
            let after = self.encoding.child(value, level);
            if before != after {
                // The new one first, so that what both reach stays marked.
                if let Some(child) = after {
                    self.link(ram, child, level - 1, sink);
                }
                if let Some(child) = before {
                    self.unlink(ram, child, sink);
                }
            }
            at += 8;
        }
    }
}
