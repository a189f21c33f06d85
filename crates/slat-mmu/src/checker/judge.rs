//! Whether the tables justify a copy.

use alloc::vec::Vec;

use slat::edit::Encode;
use slat::format::{Decoded, Found, Path};
use slat::memory_type::{StageType, TypeBits};
use slat::{Access, Address, Kind, Memory, Privilege, Purpose};

use super::{Checker, Key, What, Why, asked, parts, path};

/// Every access that rights tell apart.
const ACCESSES: [(Kind, Privilege); 6] = [
    (Kind::Read, Privilege::Supervisor),
    (Kind::Write, Privilege::Supervisor),
    (Kind::Execute, Privilege::Supervisor),
    (Kind::Read, Privilege::User),
    (Kind::Write, Privilege::User),
    (Kind::Execute, Privilege::User),
];

/// One entry of a descent.
struct Seen {
    level: u8,
    decoded: Decoded,
    path: Path,
}

impl<F: Encode> Checker<F> {
    /// What the tables say of `input` now: each entry on the way, and the leaf.
    fn descend<M: Memory>(
        &self,
        memory: &mut M,
        space: usize,
        input: u64,
    ) -> (Vec<Seen>, Option<(Found, u8)>) {
        let layout = self.format.layout();
        let mut seen = Vec::new();
        let Some(root) = self.spaces[space].1 else { return (seen, None) };
        let (mut table, mut level, mut path) = (root, self.format.top(), Path::START);
        loop {
            let index = (input >> self.format.shift(level)) & (self.entries(level) - 1);
            let at = M::Address::new(table.wrapping_add(index * layout.size.bytes()));
            let access = Access { purpose: Purpose::Table { level }, ..asked(Kind::Read, 0) };
            let Ok(read) = memory.read(at, layout, &access) else { return (seen, None) };
            let decoded = self.format.decode(read.value, level);
            let above = path;
            if let Decoded::Table { next } = decoded
                && level > 0
            {
                path = self.joined(path, read.value, level);
                seen.push(Seen { level, decoded, path });
                (table, level) = (next, level - 1);
                continue;
            }
            seen.push(Seen { level, decoded, path });
            let entry = self.with_group(memory, read.value, level, at);
            let found = self.found(entry, level, input, above);
            return (seen, found);
        }
    }

    /// The entry at `at` with the accessed and dirty state of the whole group that it belongs to.
    fn with_group<M: Memory>(&self, memory: &mut M, entry: u64, level: u8, at: M::Address) -> u64 {
        let Some(shift) = self.format.group(entry, level) else { return entry };
        let layout = self.format.layout();
        let (bytes, count) = (layout.size.bytes(), 1u64 << (shift - self.format.shift(level)));
        let first = at.raw() & !(bytes * count - 1);
        let access = Access { purpose: Purpose::Table { level }, ..asked(Kind::Read, 0) };
        (0..count).fold(entry, |sum, index| {
            match memory.read(M::Address::new(first + index * bytes), layout, &access) {
                Ok(read) if self.format.group(read.value, level) == Some(shift) => {
                    self.format.inherit(sum, read.value)
                }
                _ => sum,
            }
        })
    }

    fn found(&self, entry: u64, level: u8, input: u64, path: Path) -> Option<(Found, u8)> {
        let Decoded::Leaf { base, shift } = self.format.decode(entry, level) else { return None };
        let (base, shift) = match self.format.group(entry, level) {
            Some(shift) => (base >> shift << shift, shift as u8),
            None => (base, shift),
        };
        let found = Found { entry, level, base, shift, path, input, kind: Kind::Read };
        Some((found, shift))
    }

    /// Why the tables do not justify a copy.
    pub(super) fn judge<M: Memory>(&self, memory: &mut M, key: &Key) -> Option<Why> {
        match key.what {
            What::Root => None,
            What::Table => {
                let (seen, _) = self.descend(memory, key.space, key.start);
                let same = seen.iter().any(|seen| {
                    seen.level == key.level
                        && seen.decoded == Decoded::Table { next: key.entry }
                        && parts(seen.path) == key.path
                });
                (!same).then_some(Why::TableChanged)
            }
            What::Invalid => {
                let (seen, found) = self.descend(memory, key.space, key.start);
                let translates = match seen.iter().find(|seen| seen.level == key.level) {
                    Some(seen) => !matches!(seen.decoded, Decoded::Empty | Decoded::Reserved(_)),
                    None => found.is_some(),
                };
                translates.then_some(Why::NowMapped)
            }
            What::Translation | What::Combined => self.judge_leaf(memory, key),
        }
    }

    fn judge_leaf<M: Memory>(&self, memory: &mut M, key: &Key) -> Option<Why> {
        let last = key.start + ((1u64 << key.shift) - 1);
        let mut input = key.start;
        loop {
            let (held, _) = self.found(key.entry, key.level, input, path(key.path))?;
            let (_, now) = self.descend(memory, key.space, input);
            let Some((now, shift)) = now else { return Some(Why::Unmapped) };
            let output = |found: &Found| found.base | input & ((1u64 << found.shift) - 1);
            if output(&held) != output(&now) {
                return Some(Why::Moved);
            }
            if let Some(why) = self.judge_rights(&held, &now) {
                return Some(why);
            }
            let end = input | ((1u64 << shift) - 1);
            if end >= last {
                return None;
            }
            input = end + 1;
        }
    }

    /// Whether the tables give a page another memory type than a copy has. Where the registers that
    /// tell types are not known, other bits are another type.
    fn retyped(&self, held: &Found, now: &Found) -> bool {
        let (format, regime) = (&self.format, &self.regime);
        let type_of = |found| match format.memory_type(found, regime) {
            StageType::Unspecified => (StageType::Unspecified, format.type_bits(found)),
            known => (known, TypeBits::default()),
        };
        type_of(held) != type_of(now)
    }

    fn judge_rights(&self, held: &Found, now: &Found) -> Option<Why> {
        let stage = self.format.stage();
        let regime = &self.regime;
        for (kind, privilege) in ACCESSES {
            let access = Access { privilege, ..asked(kind, stage) };
            let held = Found { kind, ..*held };
            let now = Found { kind, ..*now };
            if self.format.check(&held, &access, regime).is_err() {
                continue;
            }
            if self.format.check(&now, &access, regime).is_err() {
                return Some(Why::Rights);
            }
            if self.retyped(&held, &now) {
                return Some(Why::MemoryType);
            }
            let settled = |found: &Found| {
                self.format.touched(found.entry, found.level, true, &access) == found.entry
            };
            if settled(&held) && !settled(&now) {
                return Some(if kind == Kind::Write { Why::Dirty } else { Why::Accessed });
            }
        }
        None
    }
}
