//! What a TLB miss starts: a one- or two-dimensional walk through the caches of intermediate
//! entries.
//!
//! There is one walker for every scheme. A native machine, or one with shadow tables, is a two-stage
//! walk whose second stage is off.

use core::cell::Cell;

use slat::format::{Decoded, Format, Path};
use slat::{
    Access, Address, EntryLayout, Failed, Flavor, Gpa, Gva, Kind, Memory, Observer, Partial,
    Privilege, Reached, Regime, Spa, Stage, Step, Update, Value, walk_from,
};

use crate::array::{Array, BadGeometry, Geometry};
use crate::tlb::{Entry, Rights, Space, Tag};

/// The most levels whose tables a walk can pass.
const LEVELS: usize = 5;

/// Caches of intermediate entries, Intel style: each level's entries apart, found by input address
/// and tag, so that a hit skips all levels above (Intel SDM 3A 5.10.3, 3C 30.4). A guest's entry
/// also holds where stage 2 has placed the table (a combined mapping).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkCacheConfig {
    /// By level of the entries kept, from level 1 (which name the smallest tables) up.
    pub levels: [Geometry; LEVELS - 1],
}

impl WalkCacheConfig {
    /// No cache.
    pub const NONE: WalkCacheConfig = WalkCacheConfig { levels: [Geometry::NONE; LEVELS - 1] };
}

/// All caches behind the TLBs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkerConfig {
    /// Of stage 1's entries.
    pub stage1: WalkCacheConfig,
    /// Of stage 2's entries.
    pub stage2: WalkCacheConfig,
    /// Whole second-stage translations of guest tables' addresses.
    pub nested_tlb: Geometry,
    /// Whether the nested TLB also serves the final guest physical address.
    pub nested_tlb_holds_final: bool,
}

impl WalkerConfig {
    /// No caches: every walk is cold.
    pub const NONE: WalkerConfig = WalkerConfig {
        stage1: WalkCacheConfig::NONE,
        stage2: WalkCacheConfig::NONE,
        nested_tlb: Geometry::NONE,
        nested_tlb_holds_final: false,
    };
}

/// An intermediate entry: the table that it names.
#[derive(Clone, Copy, Debug)]
struct Table {
    from: Partial,
    /// Where stage 2 has placed the table's page; `u64::MAX` where it was not asked.
    placed: u64,
    /// log2 of the bytes that the entry translates.
    shift: u8,
}

/// Something that the caches hold, as maintenance sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Number of the tag it is stored under.
    pub tag: u16,
    /// A table entry; otherwise a translation of the nested TLB.
    pub is_table: bool,
    /// First input address that it translates.
    pub start: u64,
    /// log2 of how many bytes.
    pub shift: u8,
}

impl Default for Table {
    fn default() -> Self {
        Table {
            from: Partial { level: 0, table: 0, path: Path::START },
            placed: u64::MAX,
            shift: 0,
        }
    }
}

#[derive(Clone, Debug)]
struct WalkCache {
    levels: [Array<Table>; LEVELS - 1],
}

impl WalkCache {
    fn new(config: &WalkCacheConfig) -> Result<WalkCache, BadGeometry> {
        let [a, b, c, d] = config.levels;
        Ok(WalkCache { levels: [Array::new(a)?, Array::new(b)?, Array::new(c)?, Array::new(d)?] })
    }

    /// The lowest table that a cached entry names for this input.
    #[inline]
    fn find<F: Format>(&mut self, format: &F, input: u64, tags: [Tag; 2]) -> Option<Table> {
        for (below, array) in self.levels.iter_mut().enumerate() {
            if array.capacity() == 0 {
                continue;
            }
            let prefix = input >> format.shift(below as u8 + 1);
            let keys = tags.map(|tag| prefix << 16 | u64::from(tag.number()));
            if let Some(table) = array.find(prefix, keys) {
                return Some(*table);
            }
        }
        None
    }

    #[inline]
    fn insert<F: Format>(&mut self, format: &F, input: u64, tag: Tag, table: Table) {
        let level = table.from.level;
        if let Some(array) = self.levels.get_mut(usize::from(level))
            && array.capacity() != 0
        {
            let prefix = input >> format.shift(level + 1);
            let table = Table { shift: format.shift(level + 1) as u8, ..table };
            array.insert(prefix, prefix << 16 | u64::from(tag.number()), table);
        }
    }

    fn retain(&mut self, keep: &mut impl FnMut(&Kept) -> bool) {
        for array in &mut self.levels {
            array.retain(|key, &Table { shift, .. }| {
                keep(&Kept { tag: key as u16, is_table: true, start: key >> 16 << shift, shift })
            });
        }
    }
}

/// The caches behind the TLBs of one core.
#[derive(Clone, Debug)]
pub struct Caches {
    stage1: WalkCache,
    stage2: WalkCache,
    nested_tlb: Array<Entry>,
    holds_final: bool,
}

impl Caches {
    /// Empty caches.
    ///
    /// # Errors
    /// Where an array cannot have its geometry.
    pub fn new(config: &WalkerConfig) -> Result<Caches, BadGeometry> {
        Ok(Caches {
            stage1: WalkCache::new(&config.stage1)?,
            stage2: WalkCache::new(&config.stage2)?,
            nested_tlb: Array::new(config.nested_tlb)?,
            holds_final: config.nested_tlb_holds_final,
        })
    }

    /// Drops all that `keep` does not keep.
    pub fn retain(&mut self, mut keep: impl FnMut(&Kept) -> bool) {
        self.stage1.retain(&mut keep);
        self.retain_nested(&mut keep);
    }

    fn retain_nested(&mut self, keep: &mut impl FnMut(&Kept) -> bool) {
        self.stage2.retain(keep);
        self.nested_tlb.retain(|key, _| {
            keep(&Kept { tag: key as u16, is_table: false, start: key >> 16 << 12, shift: 12 })
        });
    }

    /// Drops cached stage-1 entries whose tag's number `keep` does not keep.
    pub fn retain_stage1(&mut self, mut keep: impl FnMut(u16) -> bool) {
        self.stage1.retain(&mut |kept| keep(kept.tag));
    }

    /// Drops cached stage-2 entries and nested translations whose tag's number `keep` does not
    /// keep.
    pub fn retain_stage2(&mut self, mut keep: impl FnMut(u16) -> bool) {
        self.retain_nested(&mut |kept| keep(kept.tag));
    }
}

/// The two stages of the current context.
pub struct Context<'a, F1: Format, F2: Format> {
    /// The guest's tables.
    pub stage1: &'a Stage<F1, Gva, Gpa>,
    /// The hypervisor's; a format that is off natively and under shadow tables.
    pub stage2: &'a Stage<F2, Gpa, Spa>,
    /// The state of no one stage.
    pub regime: &'a Regime,
    /// Tags of stage-1 entries.
    pub space: Space,
    /// Tag of stage-2 entries (EP4TA, the VM's ASID or VMID).
    pub vm: Tag,
    /// Whether stage 1's leaf entry (raw, level) makes a global page.
    pub global: fn(u64) -> bool,
    /// Whether the leaf entries of this context have had their dirty bits set by this access, or
    /// have none: formats whose software keeps dirty bits say so always.
    pub dirty_tracked: bool,
}

/// Why a walk found nothing: stage 1's fault, or stage 2's, or the memory's.
pub type WalkFault<B> = Failed<Gva, Failed<Gpa, B>>;

/// What a walk found.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    /// What a TLB may keep.
    pub entry: Entry,
    /// log2 of stage 1's page size (64 where it is off).
    pub guest_shift: u8,
    /// log2 of stage 2's page size (64 where it is off).
    pub host_shift: u8,
}

/// Sees the tables that stage 1 passes, for the caches, and hands all on to another observer.
struct Passed<'a, W> {
    tables: [Cell<(u64, u64)>; LEVELS],
    count: Cell<usize>,
    next: &'a W,
    stage: u8,
}

impl<W: Observer> Observer for Passed<'_, W> {
    const WATCHES: bool = W::WATCHES;

    #[inline]
    fn step(&self, step: &Step) {
        self.next.step(step);
        if step.stage == self.stage
            && let Decoded::Table { next } = step.decoded
            && let Some(slot) = self.tables.get(self.count.get())
        {
            slot.set((step.entry, next));
            self.count.set(self.count.get() + 1);
        }
    }

    #[inline]
    fn update(&self, update: &Update) {
        self.next.update(update);
    }
}

impl<'a, W: Observer> Passed<'a, W> {
    fn new(stage: u8, next: &'a W) -> Self {
        Passed { tables: [const { Cell::new((0, 0)) }; LEVELS], count: Cell::new(0), next, stage }
    }
}

/// Stage 1's memory: second-stage translations through the nested TLB and its walk cache.
struct GuestMemory<'a, F2: Format, M, W> {
    stage2: &'a Stage<F2, Gpa, Spa>,
    walk_cache: &'a mut WalkCache,
    nested_tlb: &'a mut Array<Entry>,
    memory: &'a mut M,
    regime: &'a Regime,
    vm: Tag,
    observer: &'a W,
    /// A table page whose place is known from a combined mapping: GPA and SPA of the page.
    known: Option<(u64, u64)>,
    /// Places of the table pages that were read, in order.
    places: [(u64, u64); LEVELS],
    read: usize,
}

impl<F2: Format, M: Memory<Address = Spa>, W: Observer> GuestMemory<'_, F2, M, W> {
    /// Walks stage 2 for one address, from the lowest table that its walk cache names.
    fn walk(&mut self, gpa: Gpa, access: &Access) -> Result<Entry, Failed<Gpa, M::Fault>> {
        let format = &self.stage2.format;
        let tags = [self.vm, self.vm];
        let from = self.walk_cache.find(format, gpa.raw(), tags).map(|table| table.from);
        let passed = Passed::new(self.stage2.number, self.observer);
        let mapped = match &from {
            Some(from) => {
                walk_from(self.stage2, from, self.memory, gpa, access, self.regime, &passed)?
            }
            None => slat::walk(self.stage2, self.memory, gpa, access, self.regime, &passed)?,
        };
        if !mapped.found.is_flat() {
            let start = from.map_or(Path::START, |from| from.path);
            let lowest = mapped.found.level;
            let mut path = start;
            let count = passed.count.get();
            for (nth, table) in passed.tables[..count].iter().enumerate() {
                let (entry, next) = table.get();
                // The last table that was passed is the leaf's own.
                let level = lowest + (count - 1 - nth) as u8;
                format.join(&mut path, entry, level + 1);
                let from = Partial { level, table: next, path };
                let table = Table { from, placed: u64::MAX, shift: 0 };
                self.walk_cache.insert(format, gpa.raw(), self.vm, table);
            }
        }
        Ok(entry_of(format, &mapped, access, self.regime))
    }

    /// The place of a table entry.
    #[inline]
    fn place(&mut self, gpa: Gpa, access: &Access) -> Result<Spa, Failed<Gpa, M::Fault>> {
        let raw = gpa.raw();
        if let Some((page, place)) = self.known
            && raw >> 12 == page >> 12
        {
            return Ok(Spa::new(place | raw & 0xfff));
        }
        let key = raw >> 12 << 16 | u64::from(self.vm.number());
        let kept = match self.nested_tlb.find(raw >> 12, [key, key]) {
            Some(entry)
                if access.kind != Kind::Write || entry.rights.serves(Kind::Write, false) =>
            {
                Some(entry.base)
            }
            _ => None,
        };
        let place = match kept {
            Some(place) => place,
            None => {
                let found = self.walk(gpa, access)?;
                let place = (found.base | raw & ((1u64 << found.shift.min(63)) - 1)) & !0xfff;
                let entry = Entry { base: place, shift: 12, rights: found.rights };
                self.nested_tlb.insert(raw >> 12, key, entry);
                place
            }
        };
        if let Some(slot) = self.places.get_mut(self.read) {
            *slot = (raw & !0xfff, place);
        }
        self.read += 1;
        Ok(Spa::new(place | raw & 0xfff))
    }
}

impl<F2: Format, M: Memory<Address = Spa>, W: Observer> Memory for GuestMemory<'_, F2, M, W> {
    type Address = Gpa;
    type Fault = Failed<Gpa, M::Fault>;

    #[inline]
    fn read(
        &mut self,
        gpa: Gpa,
        layout: EntryLayout,
        access: &Access,
    ) -> Result<Value, Self::Fault> {
        let spa = self.place(gpa, access)?;
        let read = self.memory.read(spa, layout, access).map_err(Failed::Below)?;
        Ok(Value { value: read.value, reached: Reached::DIRECTLY })
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        gpa: Gpa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Self::Fault> {
        let spa = self.place(gpa, access)?;
        self.memory.compare_exchange(spa, layout, current, new, access).map_err(Failed::Below)
    }
}

/// log2 of the page that a stage that is off counts as.
const OFF_SHIFT: u8 = 30;

/// What a TLB may keep of one stage's leaf.
fn entry_of<F: Format, O: Address>(
    format: &F,
    mapped: &slat::Mapped<O>,
    access: &Access,
    regime: &Regime,
) -> Entry {
    let found = &mapped.found;
    let page = format.page(found, regime);
    let write = access.kind == Kind::Write;
    // Dirty: a write has just set it, or none would be set by one.
    let as_write = access.as_kind(Kind::Write);
    let dirty = write
        || found.is_flat()
        || format.touched(found.entry, found.level, true, &as_write) == found.entry;
    // A stage that is off moves nothing within a gigabyte: no page is larger in a TLB.
    let (base, shift) = if found.is_flat() {
        (mapped.output.raw() & !((1 << OFF_SHIFT) - 1), OFF_SHIFT)
    } else {
        (found.base, found.shift)
    };
    Entry {
        base,
        shift,
        rights: Rights::default()
            .with(Rights::WRITE, page.writable)
            .with(Rights::EXECUTE, page.executable)
            .with(Rights::USER, page.user)
            .with(Rights::DIRTY, dirty),
    }
}

impl Caches {
    /// Translates a missing access: walks both stages as far as the caches do not know them, fills
    /// the caches, and says what a TLB may keep. The caller's stages decide about accessed and dirty
    /// bits.
    ///
    /// # Errors
    /// The fault of either stage, or of `memory`.
    pub fn walk<F1, F2, M, W>(
        &mut self,
        context: &Context<'_, F1, F2>,
        memory: &mut M,
        address: Gva,
        kind: Kind,
        user: bool,
        observer: &W,
    ) -> Result<Walked, WalkFault<M::Fault>>
    where
        F1: Format,
        F2: Format,
        M: Memory<Address = Spa>,
        W: Observer,
    {
        let Context { stage1, stage2, regime, space, .. } = *context;
        let privilege = if user { Privilege::User } else { Privilege::Supervisor };
        let access = Access::new(kind, privilege);
        let format = stage1.format.half(address.raw());
        let tags = [space.own, space.global];
        let cached = self.stage1.find(&format, address.raw(), tags);
        let holds_final = self.holds_final;
        let mut guest = GuestMemory {
            stage2,
            walk_cache: &mut self.stage2,
            nested_tlb: &mut self.nested_tlb,
            memory,
            regime,
            vm: context.vm,
            observer,
            known: cached
                .filter(|table| table.placed != u64::MAX)
                .map(|table| (table.from.table, table.placed)),
            places: [(0, 0); LEVELS],
            read: 0,
        };
        let passed = Passed::new(stage1.number, observer);
        let mapped = match &cached {
            Some(table) => {
                walk_from(stage1, &table.from, &mut guest, address, &access, regime, &passed)?
            }
            None => slat::walk(stage1, &mut guest, address, &access, regime, &passed)?,
        };
        let found = mapped.found;
        // Fill stage 1's walk cache with the tables that were passed and their places.
        let count = passed.count.get();
        let places = guest.places;
        if !found.is_flat() {
            let mut path = cached.map_or(Path::START, |table| table.from.path);
            for (nth, table) in passed.tables[..count].iter().enumerate() {
                let (entry, next) = table.get();
                let level = found.level + (count - 1 - nth) as u8;
                format.join(&mut path, entry, level + 1);
                let placed = places
                    .iter()
                    .find(|(gpa, spa)| *gpa == next & !0xfff && *spa != 0)
                    .map_or(u64::MAX, |(_, spa)| *spa);
                let from = Partial { level, table: next, path };
                self.stage1.insert(
                    &format,
                    address.raw(),
                    space.own,
                    Table { from, placed, shift: 0 },
                );
            }
        }
        // The final guest physical address.
        let through = Access {
            page: Some(format.page(&found, regime)),
            origin: Some(address.raw()),
            flavor: Flavor::Plain,
            ..access
        };
        let gpa = mapped.output;
        guest.known = None;
        let host = if holds_final {
            let key = gpa.raw() >> 12 << 16 | u64::from(context.vm.number());
            let kept = guest.nested_tlb.find(gpa.raw() >> 12, [key, key]).copied();
            match kept {
                Some(entry) if entry.rights.serves(kind, false) => entry,
                _ => {
                    let entry = guest.walk(gpa, &through).map_err(Failed::Below)?;
                    let page = Entry {
                        base: (entry.base | gpa.raw() & ((1u64 << entry.shift) - 1)) & !0xfff,
                        shift: 12,
                        ..entry
                    };
                    guest.nested_tlb.insert(gpa.raw() >> 12, key, page);
                    entry
                }
            }
        } else {
            guest.walk(gpa, &through).map_err(Failed::Below)?
        };
        let own = entry_of(&format, &mapped, &access, regime);
        let shift = own.shift.min(host.shift);
        let inside = (1u64 << host.shift) - 1;
        let spa = host.base & !inside | gpa.raw() & inside;
        let both = |right: Rights| own.rights.has(right) && host.rights.has(right);
        let rights = Rights::default()
            .with(Rights::WRITE, both(Rights::WRITE))
            .with(Rights::EXECUTE, both(Rights::EXECUTE))
            .with(Rights::USER, own.rights.has(Rights::USER))
            .with(Rights::DIRTY, both(Rights::DIRTY) || !context.dirty_tracked)
            .with(Rights::GLOBAL, !found.is_flat() && (context.global)(found.entry));
        Ok(Walked {
            entry: Entry { base: spa & !((1u64 << shift) - 1), shift, rights },
            guest_shift: found.shift,
            host_shift: host.shift,
        })
    }
}
