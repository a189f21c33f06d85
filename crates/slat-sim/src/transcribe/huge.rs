//! What if an x86 guest used large pages where it fills them?
//!
//! A level-0 table at least half of whose entries are present, all of them with the rights of a
//! program's writable memory, becomes one 2 MiB page: in memory behind the guest's, since what it maps
//! lies scattered. A store that gives one entry other rights, or takes it away, makes it a table again,
//! until the conditions hold with more entries present than then, or in a new table. Copying is not
//! counted, and neither are the page faults that a large page saves: the guest is what was recorded.

use std::collections::HashMap;
use std::ops::Range;

use slat::format::x86::bits;
use slat_trace::{At, Event};

use super::{ADDRESS, LargePages, Rewrites};

/// Entries that make a table worth a large page: half of all.
const ENOUGH: usize = 256;
/// The bits in which all present entries must be equal.
const RIGHTS: u64 = bits::P | bits::RW | bits::US | bits::XD | bits::G;
/// Those of a program's writable memory, executable or not.
const OWN: u64 = bits::P | bits::RW | bits::US;

/// A level-0 table.
#[derive(Clone, Debug)]
struct Table {
    entries: Box<[u64; 512]>,
    present: usize,
    /// How many were present when it was last made a table again: it takes more to make it large.
    split: usize,
    /// The large page in its place: its address and its flags.
    block: Option<(u64, u64)>,
}

/// An x86 recording's events, with large pages.
#[derive(Clone, Debug)]
pub(super) struct Huge {
    memory: Range<u64>,
    levels: HashMap<u64, u8>,
    tables: HashMap<u64, Table>,
    /// The level-1 entry that names a table: where it is, and its value. And the way back.
    parents: HashMap<u64, (u64, u64)>,
    named: HashMap<u64, u64>,
    /// Large pages that nothing uses, and the first that was never used.
    free: Vec<u64>,
    next: u64,
    pages: LargePages,
    events: Vec<At>,
}

impl Huge {
    pub(super) fn new(memory: Range<u64>) -> Huge {
        Huge {
            next: memory.start,
            memory,
            levels: HashMap::new(),
            tables: HashMap::new(),
            parents: HashMap::new(),
            named: HashMap::new(),
            free: Vec::new(),
            pages: LargePages::default(),
            events: Vec::new(),
        }
    }

    fn push(&mut self, at: &At, event: Event) {
        self.events.push(At { event, ..*at });
    }

    fn one(&mut self, at: &At) {
        match at.event {
            Event::TablePage { gpa, level, fresh } => {
                self.page(gpa & ADDRESS, level, fresh);
                self.push(at, at.event);
            }
            Event::TableEntry { gpa, value } => {
                let value = self.before(at, gpa, value);
                self.push(at, Event::TableEntry { gpa, value });
                self.after(at, gpa);
            }
            Event::TableStore { gpa, value } => {
                let value = self.before(at, gpa, value);
                self.push(at, Event::TableStore { gpa, value });
                self.after(at, gpa);
            }
            Event::TableRelease { gpa } => {
                let table = gpa & ADDRESS;
                self.levels.remove(&table);
                // What it held counts if it becomes a table again.
                self.give_back(table);
                self.push(at, at.event);
            }
            _ => self.push(at, at.event),
        }
    }

    fn page(&mut self, table: u64, level: u8, fresh: bool) {
        self.levels.insert(table, level);
        if fresh && level == 1 {
            for entry in (0..512).map(|index| table + 8 * index) {
                self.name(entry, 0);
            }
        }
        if fresh || level != 0 {
            self.give_back(table);
            self.tables.remove(&table);
        }
        if fresh && level == 0 {
            let entries = Box::new([0; 512]);
            self.tables.insert(table, Table { entries, present: 0, split: 0, block: None });
        }
    }

    fn give_back(&mut self, table: u64) {
        let block = self.tables.get_mut(&table).and_then(|table| table.block.take());
        self.free.extend(block.map(|(block, _)| block));
    }

    /// The level-1 entry at `gpa` names another table, or none.
    fn name(&mut self, gpa: u64, value: u64) {
        if let Some(before) = self.named.remove(&gpa)
            && self.parents.get(&before).is_some_and(|(place, _)| *place == gpa)
        {
            self.parents.remove(&before);
        }
        if value & bits::P != 0 && value & bits::PS == 0 {
            self.named.insert(gpa, value & ADDRESS);
            self.parents.insert(value & ADDRESS, (gpa, value));
        }
    }

    /// Takes an entry's new value over; what the large-page guest's entry becomes.
    fn before(&mut self, at: &At, gpa: u64, value: u64) -> u64 {
        match self.levels.get(&(gpa & ADDRESS)) {
            Some(0) => self.leaf(at, gpa, value),
            Some(1) => {
                self.name(gpa, value);
                if let Some(&table) = self.named.get(&gpa)
                    && let Some(Table { block: Some((block, flags)), .. }) = self.tables.get(&table)
                {
                    return block | flags;
                }
            }
            _ => {}
        }
        value
    }

    fn leaf(&mut self, at: &At, gpa: u64, value: u64) {
        let table = gpa & ADDRESS;
        let Some(held) = self.tables.get_mut(&table) else { return };
        let entry = &mut held.entries[(gpa >> 3 & 0x1ff) as usize];
        let before = std::mem::replace(entry, value);
        held.present += usize::from(value & bits::P != 0);
        held.present -= usize::from(before & bits::P != 0);
        let Some((_, flags)) = held.block else { return };
        let taken = before & bits::P != 0 && (before ^ value) & (RIGHTS | ADDRESS) != 0;
        let other = value & bits::P != 0 && (value ^ flags) & RIGHTS != 0;
        if taken || other {
            held.split = held.present;
            self.pages.stay_split += 1;
            self.give_back(table);
            if let Some(&(gpa, value)) = self.parents.get(&table) {
                self.push(at, Event::TableEntry { gpa, value });
            }
        }
    }

    /// Makes a table a large page where that is due.
    fn after(&mut self, at: &At, gpa: u64) {
        let Some(table) = self.tables.get_mut(&(gpa & ADDRESS)) else { return };
        if table.block.is_some() || table.present < ENOUGH.max(table.split + 1) {
            return;
        }
        let Some(&(parent, _)) = self.parents.get(&(gpa & ADDRESS)) else { return };
        let mut present = table.entries.iter().filter(|&&entry| entry & bits::P != 0);
        let rights = present.next().map_or(0, |first| first & RIGHTS);
        let own = rights & (OWN | bits::G) == OWN;
        if !own || !present.all(|entry| entry & RIGHTS == rights) {
            return;
        }
        let block = match self.free.pop() {
            Some(block) => block,
            None if self.next + (1 << 21) <= self.memory.end => {
                self.next += 1 << 21;
                self.next - (1 << 21)
            }
            None => return,
        };
        let flags = rights | bits::PS | bits::A | bits::D;
        table.block = Some((block, flags));
        if table.split == 0 {
            self.pages.made += 1;
        } else {
            self.pages.stay_split -= 1;
        }
        self.push(at, Event::TableEntry { gpa: parent, value: block | flags });
    }
}

impl Rewrites for Huge {
    fn take(&mut self, events: &[At]) {
        self.events.clear();
        for at in events {
            self.one(at);
        }
    }

    fn events(&self) -> &[At] {
        &self.events
    }

    fn fails(&self) -> Option<&'static str> {
        (self.pages.made == 0).then_some("the guest fills no 2 MiB")
    }

    fn large_pages(&self) -> Option<LargePages> {
        Some(self.pages)
    }

    fn memory(&self) -> Range<u64> {
        self.memory.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: u64 = 0x1000;
    const TABLE: u64 = 0x2000;
    const PARENT: u64 = DIRECTORY + 8 * 5;
    const FLAGS: u64 = OWN | bits::A | bits::D;
    const NONE: [bool; 0] = [];

    /// What the directory's entry becomes with each of these stores to the table: a large page, or the
    /// table again.
    fn changes(huge: &mut Huge, stores: impl IntoIterator<Item = (u64, u64)>) -> Vec<bool> {
        let stores = stores.into_iter().map(|(index, value)| At {
            vcpu: 0,
            before: 0,
            event: Event::TableStore { gpa: TABLE + 8 * index, value },
        });
        huge.take(&stores.collect::<Vec<_>>());
        let large = |at: &At| match at.event {
            Event::TableEntry { gpa: PARENT, value } => Some(value & bits::PS != 0),
            _ => None,
        };
        huge.events().iter().filter_map(large).collect()
    }

    fn page(index: u64) -> (u64, u64) {
        (index, (0x10_0000 + index * 4096) | FLAGS)
    }

    fn fresh(huge: &mut Huge) {
        let events = [
            Event::TablePage { gpa: DIRECTORY, level: 1, fresh: true },
            Event::TablePage { gpa: TABLE, level: 0, fresh: true },
            Event::TableEntry { gpa: PARENT, value: TABLE | FLAGS },
        ];
        huge.take(&events.map(|event| At { vcpu: 0, before: 0, event }));
    }

    #[test]
    fn a_large_page_that_was_split_stays_split_until_the_table_is_fuller() {
        let mut huge = Huge::new(1 << 30..1 << 31);
        fresh(&mut huge);
        assert_eq!(changes(&mut huge, (0..255).map(page)), NONE);
        assert_eq!(changes(&mut huge, (255..300).map(page)), [true]);
        // One goes: 299 are left, more than enough, but they were just split.
        assert_eq!(changes(&mut huge, [(7, 0)]), [false]);
        assert_eq!(changes(&mut huge, [(8, 0), page(8)]), NONE);
        assert_eq!(changes(&mut huge, [page(7)]), [true]);
        // Another page in its place: no fuller.
        assert_eq!(changes(&mut huge, [(9, 0x90_0000 | FLAGS)]), [false]);
        assert_eq!(changes(&mut huge, [page(9)]), NONE);
        assert_eq!(changes(&mut huge, [page(300)]), [true]);
        // Other rights, and the old ones again.
        let (index, value) = page(20);
        assert_eq!(changes(&mut huge, [(index, value & !bits::RW)]), [false]);
        assert_eq!(changes(&mut huge, [page(20)]), NONE);
        // As a new table it is judged anew.
        fresh(&mut huge);
        assert_eq!(changes(&mut huge, (0..256).map(page)), [true]);
        // The one before it was split last, and never made again.
        assert_eq!(huge.large_pages(), Some(LargePages { made: 2, stay_split: 1 }));
    }
}
