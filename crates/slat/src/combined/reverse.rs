//! The reverse map: from the guest hypervisor's physical pages to what was made from them.
//!
//! One slice of records, lent by the caller, is both the hash table's buckets and its chains.

/// One slot of a reverse map's storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The chain of the bucket that this slot is: a record's index plus one, 0 at its end.
    bucket: u32,
    /// The next record of the chain that this one is in, or the next free one.
    next: u32,
    key: Key,
    /// First nested guest-physical address that follows from it.
    start: u64,
}

/// What a record is found by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Key {
    /// Guest-physical address: of the first byte that a leaf maps, or of a table's page.
    pub address: u64,
    pub what: What,
}

/// What was made from a guest-physical page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum What {
    /// The slot is free.
    #[default]
    Nothing,
    /// A combined leaf of this level maps it.
    Leaf(u8),
    /// It holds entries of this level that lead to combined leaves.
    Table(u8),
}

/// What became of a record to be noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Noted {
    New,
    Known,
    /// No slot is left.
    Full,
}

#[derive(Debug)]
pub(super) struct Reverse<'r> {
    records: &'r mut [Record],
    free: u32,
    /// How many are free.
    left: usize,
}

impl<'r> Reverse<'r> {
    pub(super) fn new(records: &'r mut [Record]) -> Self {
        let most = records.len().min(u32::MAX as usize - 1);
        let mut reverse = Reverse { records: &mut records[..most], free: 0, left: 0 };
        reverse.clear();
        reverse
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        let last = self.records.len();
        for (index, record) in self.records.iter_mut().enumerate() {
            let next = if index + 1 < last { index as u32 + 2 } else { 0 };
            *record = Record { next, ..Record::default() };
        }
        self.free = u32::from(last > 0);
        self.left = last;
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// How many more can be noted.
    pub(super) fn free(&self) -> usize {
        self.left
    }

    /// The record at `index`, where there is one.
    pub(super) fn at(&self, index: usize) -> Option<(Key, u64)> {
        let record = self.records.get(index)?;
        (record.key.what != What::Nothing).then_some((record.key, record.start))
    }

    fn bucket(&self, key: Key) -> usize {
        let what = match key.what {
            What::Nothing => 0,
            What::Leaf(level) => u64::from(level),
            What::Table(level) => u64::from(level) | 8,
        };
        let hash = ((key.address >> 12) ^ what << 59).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The high half of hash * length is an even share of the slots.
        ((u128::from(hash) * self.records.len() as u128) >> 64) as usize
    }

    /// The first record of `key` in its chain, from the link `from` on (a bucket's, at first).
    pub(super) fn first(&self, key: Key) -> Option<usize> {
        let link = self.records.get(self.bucket(key))?.bucket;
        self.along(link, key)
    }

    /// The next record of the same key.
    pub(super) fn after(&self, index: usize) -> Option<usize> {
        let record = self.records.get(index)?;
        self.along(record.next, record.key)
    }

    fn along(&self, mut link: u32, key: Key) -> Option<usize> {
        while let Some(index) = (link as usize).checked_sub(1) {
            let record = self.records.get(index)?;
            if record.key == key {
                return Some(index);
            }
            link = record.next;
        }
        None
    }

    /// Whether it is noted that what begins at `start` follows from `key`.
    pub(super) fn knows(&self, key: Key, start: u64) -> bool {
        let mut found = self.first(key);
        while let Some(index) = found {
            if self.records[index].start == start {
                return true;
            }
            found = self.after(index);
        }
        false
    }

    /// Notes that what begins at `start` follows from `key`.
    pub(super) fn note(&mut self, key: Key, start: u64) -> Noted {
        if self.records.is_empty() {
            return Noted::Full;
        }
        if self.knows(key, start) {
            return Noted::Known;
        }
        let Some(index) = (self.free as usize).checked_sub(1) else { return Noted::Full };
        let bucket = self.bucket(key);
        self.free = self.records[index].next;
        self.left -= 1;
        self.records[index].next = self.records[bucket].bucket;
        self.records[index].key = key;
        self.records[index].start = start;
        self.records[bucket].bucket = index as u32 + 1;
        Noted::New
    }

    /// Forgets the record at `index`.
    pub(super) fn forget(&mut self, index: usize) {
        let Some((key, _)) = self.at(index) else { return };
        let link = index as u32 + 1;
        let next = self.records[index].next;
        let bucket = self.bucket(key);
        if self.records[bucket].bucket == link {
            self.records[bucket].bucket = next;
        } else {
            let mut before = self.records[bucket].bucket;
            while let Some(at) = (before as usize).checked_sub(1) {
                if self.records[at].next == link {
                    self.records[at].next = next;
                    break;
                }
                before = self.records[at].next;
            }
        }
        self.records[index].key = Key::default();
        self.records[index].next = self.free;
        self.free = link;
        self.left += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    fn found(reverse: &Reverse<'_>, key: Key) -> BTreeSet<u64> {
        let mut starts = BTreeSet::new();
        let mut at = reverse.first(key);
        while let Some(index) = at {
            let (same, start) = reverse.at(index).unwrap();
            assert_eq!(same, key);
            assert!(starts.insert(start), "noted twice");
            at = reverse.after(index);
        }
        starts
    }

    /// Against a plain set, until it is full and after.
    #[test]
    fn the_map_holds_what_a_set_holds() {
        let mut records = vec![Record::default(); 37];
        let mut reverse = Reverse::new(&mut records);
        let mut model: BTreeSet<(u64, u8, u64)> = BTreeSet::new();
        let mut random = 1u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let key_of = |page: u64, level: u8| {
            let what = if level < 2 { What::Leaf(level) } else { What::Table(level) };
            Key { address: page << 12, what }
        };
        for _ in 0..20_000 {
            let (page, level, start) = (next(9), next(4) as u8, next(6) << 12);
            let key = key_of(page, level);
            if next(2) == 0 {
                let known = model.contains(&(page, level, start));
                let noted = reverse.note(key, start);
                let expected = match (known, model.len()) {
                    (true, _) => Noted::Known,
                    (false, 37) => Noted::Full,
                    (false, _) => Noted::New,
                };
                assert_eq!(noted, expected);
                if noted == Noted::New {
                    model.insert((page, level, start));
                }
            } else if let Some(index) = reverse.first(key) {
                let (_, start) = reverse.at(index).unwrap();
                reverse.forget(index);
                assert!(model.remove(&(page, level, start)));
            }
            let expected: BTreeSet<u64> = model
                .iter()
                .filter(|(p, l, _)| (*p, *l) == (page, level))
                .map(|(.., start)| *start)
                .collect();
            assert_eq!(found(&reverse, key), expected);
        }
        assert_eq!(reverse.free(), 37 - model.len());
        let all: Vec<_> = (0..reverse.len()).filter_map(|index| reverse.at(index)).collect();
        assert_eq!(all.len(), model.len());
        reverse.clear();
        assert!((0..9).all(|page| reverse.first(key_of(page, 0)).is_none()));
        assert!((0..37).all(|n| reverse.note(key_of(n, 0), 0) == Noted::New));
        assert_eq!(reverse.note(key_of(37, 0), 0), Noted::Full);
    }
}
