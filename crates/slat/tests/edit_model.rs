//! Random sequences of every operation on every format, against a model: a map from page to what it
//! is mapped to. Hardware sets accessed and dirty bits meanwhile, frames run out, budgets end and
//! operations are abandoned.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use slat::edit::{
    Arena, Encode, Error, Frame, FrameSource, Gather, Leaves, Live, Mode, Operation, Pending,
    Quiet, Served, Slots, Stale, Step, TableMemory, Tables, Verb, Watch, Word, arm32 as short,
    arm64, ept, riscv, x86,
};
use slat::format::Decoded;
use slat::format::arm32;
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage1, Stage2};
use slat::format::ept::Ept;
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::Pae;
use slat::invalidate::{By, Context};
use slat::memory_type::riscv::Pbmt;
use slat::memory_type::x86::Type;
use slat::{Gpa, Permissions, Spa};

const PAGE: u64 = 4096;
/// The window that operations fall into, in pages.
const PAGES: u64 = 2048;

/// What the harness must know of a format.
trait Subject: Encode {
    fn attributes_numbered(&self, n: u8) -> Self::Attributes;
    fn memory_numbered(&self, n: u8) -> Self::Memory;
    fn permissions_numbered(&self, n: u8) -> Permissions;
    /// With these permissions, as `protect` leaves them.
    fn protected(&self, attributes: Self::Attributes, to: Permissions) -> Self::Attributes;
    fn retyped(&self, attributes: Self::Attributes, to: Self::Memory) -> Self::Attributes;
    /// Without accessed and dirty state.
    fn timeless(&self, attributes: Self::Attributes) -> Self::Attributes;
    fn grants(&self, attributes: Self::Attributes) -> [bool; 5];
    /// All but the grants.
    fn rest(&self, attributes: Self::Attributes) -> Self::Attributes;
}

fn permissions(n: u8) -> Permissions {
    [(true, true, true), (true, false, false), (true, true, false), (true, false, true)]
        .map(|(read, write, execute)| Permissions { read, write, execute })[usize::from(n & 3)]
}

impl Subject for Ept {
    fn attributes_numbered(&self, n: u8) -> ept::Attributes {
        let memory_type = [Type::Wb, Type::Uc, Type::Wt, Type::Wp][usize::from(n >> 2 & 3)];
        let mut attributes = ept::Attributes::new(permissions(n), memory_type);
        attributes.user_execute = self.features().mode_based_execute && n & 16 != 0;
        attributes.suppress_ve = n & 32 != 0;
        attributes.memory.ignore_pat = n & 64 != 0;
        attributes
    }
    fn memory_numbered(&self, n: u8) -> ept::Memory {
        self.attributes_numbered(n).memory
    }
    fn permissions_numbered(&self, n: u8) -> Permissions {
        permissions(n)
    }
    fn protected(&self, mut attributes: ept::Attributes, to: Permissions) -> ept::Attributes {
        attributes.permissions = to;
        attributes.user_execute = self.features().mode_based_execute && to.execute;
        attributes
    }
    fn retyped(&self, mut attributes: ept::Attributes, to: ept::Memory) -> ept::Attributes {
        attributes.memory = to;
        attributes
    }
    fn timeless(&self, mut attributes: ept::Attributes) -> ept::Attributes {
        (attributes.accessed, attributes.dirty) = (false, false);
        attributes
    }
    fn grants(&self, attributes: ept::Attributes) -> [bool; 5] {
        let Permissions { read, write, execute } = attributes.permissions;
        [read, write, execute, attributes.user_execute, false]
    }
    fn rest(&self, mut attributes: ept::Attributes) -> ept::Attributes {
        attributes.permissions = Permissions::default();
        attributes.user_execute = false;
        self.timeless(attributes)
    }
}

macro_rules! x86_subject {
    ($format:ty, $nx:expr, $user_only:expr) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> x86::Attributes {
                let mut attributes = x86::Attributes::new(self.permissions_numbered(n));
                attributes.pat = x86::Pat(n >> 2 & 7);
                attributes.user = $user_only || n & 32 != 0;
                attributes.global = n & 64 != 0;
                attributes
            }
            fn memory_numbered(&self, n: u8) -> x86::Pat {
                x86::Pat(n & 7)
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                let permissions = permissions(n);
                Permissions { execute: permissions.execute || !$nx, ..permissions }
            }
            fn protected(&self, mut a: x86::Attributes, to: Permissions) -> x86::Attributes {
                a.permissions = to;
                a
            }
            fn retyped(&self, mut a: x86::Attributes, to: x86::Pat) -> x86::Attributes {
                a.pat = to;
                a
            }
            fn timeless(&self, mut a: x86::Attributes) -> x86::Attributes {
                (a.accessed, a.dirty) = (false, false);
                a
            }
            fn grants(&self, a: x86::Attributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, a.user, false]
            }
            fn rest(&self, mut a: x86::Attributes) -> x86::Attributes {
                a.permissions = Permissions::default();
                a.user = false;
                self.timeless(a)
            }
        }
    };
}

x86_subject!(Long, true, false);
x86_subject!(Pae, true, false);
x86_subject!(Legacy, false, false);
x86_subject!(Npt, true, true);

macro_rules! arm_subject {
    ($format:ty, $attributes:ident, $memories:expr, $plain:expr) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> arm64::$attributes {
                let plain: fn(Permissions, u8, u8) -> arm64::$attributes = $plain;
                let memory = n >> 2 & $memories;
                let mut attributes = plain(self.permissions_numbered(n), memory, n);
                if self.geometry().is_lpa2() {
                    attributes.memory.shareability = 0;
                }
                attributes.tracked = attributes.permissions.write && n & 64 != 0;
                attributes
            }
            fn memory_numbered(&self, n: u8) -> arm64::Memory {
                let shareability =
                    if self.geometry().is_lpa2() { 0 } else { [0, 2, 3, 3][n as usize & 3] };
                arm64::Memory { attributes: n >> 2 & $memories, shareability }
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                permissions(n)
            }
            fn protected(&self, mut a: arm64::$attributes, to: Permissions) -> arm64::$attributes {
                a.tracked &= to.write;
                a.permissions = to;
                self.executable(a, to.execute)
            }
            fn retyped(&self, mut a: arm64::$attributes, to: arm64::Memory) -> arm64::$attributes {
                a.memory = to;
                a
            }
            fn timeless(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                (a.accessed, a.dirty) = (false, false);
                a
            }
            fn grants(&self, a: arm64::$attributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, self.other_execution(a), false]
            }
            fn rest(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                a.permissions = Permissions::default();
                a.tracked = false;
                let a = self.executable(a, false);
                self.timeless(a)
            }
        }
    };
}

/// What the two stages name differently.
trait ArmExecution<A> {
    fn executable(&self, attributes: A, execute: bool) -> A;
    fn other_execution(&self, attributes: A) -> bool;
}

impl ArmExecution<arm64::Stage2Attributes> for Stage2 {
    fn executable(&self, mut a: arm64::Stage2Attributes, to: bool) -> arm64::Stage2Attributes {
        (a.permissions.execute, a.user_execute) = (to, to);
        a
    }
    fn other_execution(&self, a: arm64::Stage2Attributes) -> bool {
        a.user_execute
    }
}

impl ArmExecution<arm64::Stage1Attributes> for Stage1 {
    fn executable(&self, mut a: arm64::Stage1Attributes, to: bool) -> arm64::Stage1Attributes {
        (a.permissions.execute, a.privileged_execute) = (to, to);
        a
    }
    fn other_execution(&self, a: arm64::Stage1Attributes) -> bool {
        a.privileged_execute
    }
}

arm_subject!(Stage2, Stage2Attributes, 15, |permissions, attributes, n| {
    let memory = arm64::Memory { attributes, shareability: 3 };
    let mut attributes = arm64::Stage2Attributes::new(permissions, memory);
    attributes.user_execute ^= n & 128 != 0;
    attributes
});
arm_subject!(Stage1, Stage1Attributes, 7, |permissions, attributes, n| {
    let mut made = arm64::Stage1Attributes::new(permissions);
    made.memory.attributes = attributes;
    made.user = n & 32 != 0;
    made.privileged_execute = n & 128 != 0;
    made
});

/// AArch32's long descriptors, in the terms of AArch64's.
macro_rules! aarch32_subject {
    ($format:ty, $attributes:ident, $memories:expr, $other:ident, $plain:expr) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> arm64::$attributes {
                let plain: fn(Permissions, u8, u8) -> arm64::$attributes = $plain;
                plain(permissions(n), n >> 2 & $memories, n)
            }
            fn memory_numbered(&self, n: u8) -> arm64::Memory {
                let shareability = [0, 2, 3, 3][n as usize & 3];
                arm64::Memory { attributes: n >> 2 & $memories, shareability }
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                permissions(n)
            }
            fn protected(&self, mut a: arm64::$attributes, to: Permissions) -> arm64::$attributes {
                (a.permissions, a.$other) = (to, to.execute);
                a
            }
            fn retyped(&self, mut a: arm64::$attributes, to: arm64::Memory) -> arm64::$attributes {
                a.memory = to;
                a
            }
            fn timeless(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                a.accessed = false;
                a
            }
            fn grants(&self, a: arm64::$attributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, a.$other, false]
            }
            fn rest(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                (a.permissions, a.$other) = (Permissions::default(), false);
                self.timeless(a)
            }
        }
    };
}

aarch32_subject!(
    arm32::Stage2,
    Stage2Attributes,
    15,
    user_execute,
    |permissions, attributes, n| {
        let memory = arm64::Memory { attributes, shareability: 3 };
        let mut attributes = arm64::Stage2Attributes::new(permissions, memory);
        attributes.user_execute ^= n & 128 != 0;
        attributes
    }
);
aarch32_subject!(arm32::Lpae, Stage1Attributes, 7, privileged_execute, |permissions, index, n| {
    let mut made = arm64::Stage1Attributes::new(permissions);
    made.memory.attributes = index;
    made.user = n & 32 != 0;
    made.privileged_execute = n & 128 != 0;
    made
});

impl Subject for arm32::Short {
    fn attributes_numbered(&self, n: u8) -> short::ShortAttributes {
        let mut attributes = short::ShortAttributes::new(permissions(n));
        attributes.memory = self.memory_numbered(n >> 2);
        attributes.user = n & 64 != 0;
        attributes.not_global = n & 128 != 0;
        attributes
    }
    fn memory_numbered(&self, n: u8) -> short::Tex {
        short::Tex { encoding: n & 31, shareable: n & 32 != 0 }
    }
    fn permissions_numbered(&self, n: u8) -> Permissions {
        permissions(n)
    }
    fn protected(&self, mut a: short::ShortAttributes, to: Permissions) -> short::ShortAttributes {
        a.permissions = to;
        a
    }
    fn retyped(&self, mut a: short::ShortAttributes, to: short::Tex) -> short::ShortAttributes {
        a.memory = to;
        a
    }
    fn timeless(&self, a: short::ShortAttributes) -> short::ShortAttributes {
        a
    }
    fn grants(&self, a: short::ShortAttributes) -> [bool; 5] {
        let Permissions { read, write, execute } = a.permissions;
        [read, write, execute, a.user, false]
    }
    fn rest(&self, mut a: short::ShortAttributes) -> short::ShortAttributes {
        a.permissions = Permissions::default();
        a.user = false;
        a
    }
}

impl Subject for Sv {
    fn attributes_numbered(&self, n: u8) -> riscv::Attributes {
        let mut attributes = riscv::Attributes::new(permissions(n));
        attributes.memory = self.memory_numbered(n >> 2);
        attributes.user = self.scheme() == Scheme::Sv48 || n & 32 != 0;
        attributes.dirty = false;
        attributes
    }
    fn memory_numbered(&self, n: u8) -> Pbmt {
        [Pbmt::Pma, Pbmt::Nc, Pbmt::Io][usize::from(n % 3)]
    }
    fn permissions_numbered(&self, n: u8) -> Permissions {
        permissions(n)
    }
    fn protected(&self, mut a: riscv::Attributes, to: Permissions) -> riscv::Attributes {
        a.permissions = to;
        a
    }
    fn retyped(&self, mut a: riscv::Attributes, to: Pbmt) -> riscv::Attributes {
        a.memory = to;
        a
    }
    fn timeless(&self, mut a: riscv::Attributes) -> riscv::Attributes {
        (a.accessed, a.dirty) = (false, false);
        a
    }
    fn grants(&self, a: riscv::Attributes) -> [bool; 5] {
        let Permissions { read, write, execute } = a.permissions;
        [read, write, execute, a.user, false]
    }
    fn rest(&self, mut a: riscv::Attributes) -> riscv::Attributes {
        a.permissions = Permissions::default();
        a.user = false;
        self.timeless(a)
    }
}

/// A source that runs dry when it is told to, and knows which frames are out.
struct Counted<'a, W: Word> {
    arena: &'a Arena<'a, W>,
    left: Cell<u32>,
    out: RefCell<BTreeSet<u64>>,
}

impl<W: Word> FrameSource for Counted<'_, W> {
    fn take(&self, bytes: u64) -> Option<Frame> {
        if self.left.get() == 0 {
            return None;
        }
        self.left.set(self.left.get() - 1);
        let frame = self.arena.take(bytes)?;
        // What a frame holds does not matter: it is handed out dirty.
        let cells = self.arena.table(frame.address(), (bytes / W::SIZE.bytes()) as usize).unwrap();
        cells.iter().for_each(|cell| W::store(cell, 0xdead_beef_dead_bee7, Ordering::Relaxed));
        assert!(self.out.borrow_mut().insert(frame.address()), "a frame was handed out twice");
        Some(frame)
    }
    fn put(&self, frame: Frame) {
        assert!(self.out.borrow_mut().remove(&frame.address()), "a frame came back twice");
        self.arena.put(frame);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        at: u64,
        pages: u64,
        output: u64,
        attributes: u8,
        up_to: u8,
        grouped: bool,
    },
    Unmap {
        at: u64,
        pages: u64,
    },
    Protect {
        at: u64,
        pages: u64,
        permissions: u8,
    },
    Retype {
        at: u64,
        pages: u64,
        memory: u8,
    },
    Remap {
        at: u64,
        pages: u64,
        output: u64,
    },
    Split {
        at: u64,
        pages: u64,
        to: u8,
    },
    Collapse {
        at: u64,
        pages: u64,
        to: u8,
    },
    Clean {
        at: u64,
        pages: u64,
    },
    Age {
        at: u64,
        pages: u64,
    },
    /// One page is faulted in, by a cursor or without.
    Fault {
        at: u64,
        output: u64,
        attributes: u8,
        by_cursor: bool,
    },
    /// One page goes, by a cursor or without.
    Remove {
        at: u64,
        by_cursor: bool,
    },
    /// Hardware writes through a page.
    Write {
        at: u64,
    },
    /// The source runs dry after so many frames.
    Starve {
        frames: u32,
    },
}

fn position() -> impl Strategy<Value = u64> {
    prop_oneof![0..PAGES, (0..4u64).prop_map(|block| block * 512), (0..8u64).prop_map(|n| n * 255)]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..16u64, Just(512u64), Just(1024u64), 1..PAGES]
}

fn operation() -> impl Strategy<Value = Op> {
    let range = || (position(), length());
    // Outputs agree with inputs modulo 2 MiB or do not.
    let output = || prop_oneof![Just(0u64), Just(512u64), Just(4096u64), 0..4096u64];
    let blocks = || ((0..4u64).prop_map(|at| at * 512), Just(1024u64));
    prop_oneof![
        2 => (blocks(), any::<u8>(), 0..2u8, any::<bool>()).prop_map(
            |((at, pages), attributes, up_to, grouped)| Op::Map {
                at, pages, output: 0, attributes, up_to, grouped
            }),
        2 => (blocks(), 1..3u8).prop_map(|((at, pages), to)| Op::Collapse { at, pages, to }),
        4 => (range(), output(), any::<u8>(), 0..3u8, any::<bool>()).prop_map(
            |((at, pages), output, attributes, up_to, grouped)| Op::Map {
                at, pages, output, attributes, up_to, grouped
            }),
        3 => range().prop_map(|(at, pages)| Op::Unmap { at, pages }),
        2 => (range(), any::<u8>()).prop_map(|((at, pages), permissions)| Op::Protect {
            at, pages, permissions
        }),
        1 => (range(), any::<u8>()).prop_map(|((at, pages), memory)| Op::Retype {
            at, pages, memory
        }),
        1 => (range(), output()).prop_map(|((at, pages), output)| Op::Remap { at, pages, output }),
        1 => (range(), 0..2u8).prop_map(|((at, pages), to)| Op::Split { at, pages, to }),
        2 => (range(), 1..3u8).prop_map(|((at, pages), to)| Op::Collapse { at, pages, to }),
        1 => range().prop_map(|(at, pages)| Op::Clean { at, pages }),
        1 => range().prop_map(|(at, pages)| Op::Age { at, pages }),
        2 => (position(), 0..4096u64, any::<u8>(), any::<bool>()).prop_map(
            |(at, output, attributes, by_cursor)| Op::Fault { at, output, attributes, by_cursor }),
        2 => (position(), any::<bool>()).prop_map(|(at, by_cursor)| Op::Remove { at, by_cursor }),
        3 => (0..PAGES).prop_map(|at| Op::Write { at }),
        1 => (0..6u32).prop_map(|frames| Op::Starve { frames }),
    ]
}

/// How an operation is driven: the budget of a step, and after how many it is abandoned.
#[derive(Clone, Copy, Debug)]
struct Drive {
    budget: u32,
    steps: u32,
    slots: usize,
}

fn drive() -> impl Strategy<Value = Drive> {
    let budget = prop_oneof![Just(u32::MAX), 1..4u32];
    let steps = prop_oneof![3 => Just(u32::MAX), 1 => 0..4u32];
    (budget, steps, 1..5usize).prop_map(|(budget, steps, slots)| Drive { budget, steps, slots })
}

type CursorOf<'t, 'g, 'a, F, X> = slat::edit::Cursor<
    't,
    'g,
    F,
    Gpa,
    Spa,
    &'a Arena<'a, <F as Encode>::Word>,
    Counted<'a, <F as Encode>::Word>,
    X,
>;

type Model<F> = BTreeMap<u64, (u64, <F as Encode>::Attributes)>;

struct World<'a, F: Subject> {
    format: F,
    source: &'a Counted<'a, F::Word>,
    tables: Tables<F, Gpa, Spa, &'a Arena<'a, F::Word>>,
    model: Model<F>,
    /// Pages that hardware wrote through and nobody was told of yet.
    dirty: BTreeSet<u64>,
    base: u64,
    root: u64,
}

impl<'a, F: Subject> World<'a, F> {
    fn address(&self, page: u64) -> Gpa {
        Gpa::new(self.base + page * PAGE)
    }

    /// What the tables say, page by page, from one walk over them.
    fn observed(&self) -> Model<F> {
        let mut seen = Model::<F>::new();
        for mapping in self.tables.mappings(self.address(0), PAGES * PAGE).unwrap() {
            let first = (mapping.start.raw().wrapping_sub(self.base) as i64) / PAGE as i64;
            let attributes = self.format.attributes(mapping.entry, mapping.level);
            for page in 0..mapping.bytes / PAGE {
                let index = first + page as i64;
                if (0..PAGES as i64).contains(&index) {
                    let output = mapping.output.raw() / PAGE + page;
                    let value = (output, self.format.timeless(attributes));
                    assert!(seen.insert(index as u64, value).is_none(), "mapped twice");
                }
            }
        }
        seen
    }

    /// The size of the page or group that maps each page of a sample.
    fn sizes(&self) -> BTreeMap<u64, u64> {
        (0..PAGES)
            .step_by(61)
            .filter_map(|page| Some((page, self.tables.translate(self.address(page))?.bytes)))
            .collect()
    }

    fn check(&self) {
        let seen = self.observed();
        for page in 0..PAGES {
            assert_eq!(seen.get(&page), self.model.get(&page), "page {page:#x}");
        }
        for page in [0, 1, 255, 511, 512, PAGES - 1] {
            let found = self.tables.translate(self.address(page));
            let output = found.map(|mapping| mapping.output.raw() / PAGE);
            assert_eq!(output, self.model.get(&page).map(|value| value.0), "translate {page:#x}");
        }
        for &page in &self.dirty {
            let mapping = self.tables.translate(self.address(page)).expect("a dirty page is gone");
            assert!(self.format.is_dirty(mapping.entry), "dirty state of page {page:#x} was lost");
        }
        // Every frame that is out is a table that the root reaches, and the reverse.
        let mut reached = BTreeSet::new();
        self.reach(self.tables_root(), self.format.top(), &mut reached);
        assert_eq!(reached, *self.source.out.borrow(), "frames lost or freed in use");
    }

    fn tables_root(&self) -> u64 {
        self.root
    }

    fn reach(&self, table: u64, level: u8, reached: &mut BTreeSet<u64>) {
        assert!(reached.insert(table), "a table is linked twice");
        let bits = if level == self.format.top() {
            self.format.input_bits() - self.format.shift(level)
        } else {
            self.format.index_bits(level)
        };
        for cell in self.source.arena.table(table, 1 << bits).unwrap() {
            let entry = F::Word::load(cell, Ordering::Relaxed);
            assert_ne!(entry, self.format.frozen(), "left frozen");
            match self.format.decode(entry, level) {
                Decoded::Table { next } => self.reach(next, level - 1, reached),
                Decoded::Reserved(reserved) => panic!("a reserved entry was written: {reserved}"),
                _ => {}
            }
        }
    }

    /// Hardware writes through a page: sets accessed and dirty bits in the leaf's own cell.
    fn write(&mut self, page: u64) {
        let Some(mapping) = self.tables.translate(self.address(page)) else { return };
        if !self.format.permissions_of(mapping.entry, mapping.level).write {
            return;
        }
        let input = (self.base + page * PAGE) & ((1u64 << self.format.input_bits()) - 1);
        let (mut table, mut level) = (self.tables_root(), self.format.top());
        loop {
            let bits = if level == self.format.top() {
                self.format.input_bits() - self.format.shift(level)
            } else {
                self.format.index_bits(level)
            };
            let cells = self.source.arena.table(table, 1 << bits).unwrap();
            let index = (input >> self.format.shift(level)) as usize & (cells.len() - 1);
            let entry = F::Word::load(&cells[index], Ordering::Relaxed);
            match self.format.decode(entry, level) {
                Decoded::Table { next } => (table, level) = (next, level - 1),
                _ => {
                    let soil = self.format.soil();
                    let untracked = !self.format.is_dirty(soil.apply(entry));
                    if untracked {
                        return;
                    }
                    F::Word::fetch_or(&cells[index], soil.set);
                    F::Word::fetch_and(&cells[index], !soil.clear);
                    break;
                }
            }
        }
        self.dirty.insert(page);
    }

    /// Which pages may be stale: their translation is gone, moved, of another type or narrower.
    fn narrowed(&self, before: &Model<F>) -> BTreeSet<u64> {
        let after = self.observed();
        before
            .iter()
            .filter(|(page, (output, attributes))| match after.get(page) {
                None => true,
                Some((now, then)) => {
                    let lost = self.format.grants(*attributes);
                    let kept = self.format.grants(*then);
                    now != output
                        || self.format.rest(*attributes) != self.format.rest(*then)
                        || lost.iter().zip(kept).any(|(had, has)| *had && !has)
                }
            })
            .map(|(page, _)| *page)
            .collect()
    }

    /// Runs one operation and returns how many bytes of it were done.
    fn run<X: Mode, V: Verb<F>>(
        &mut self,
        how: Drive,
        make: impl FnOnce(&CursorOf<'_, '_, 'a, F, X>) -> Result<Operation<V>, Error>,
        reported: &RefCell<BTreeSet<u64>>,
    ) -> Result<u64, Error> {
        let (before, sizes) = (self.observed(), self.sizes());
        let mut ranges = vec![Stale::default(); how.slots];
        let mut detached = vec![Default::default(); how.slots];
        let mut pending = vec![Pending::default(); how.slots];
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |leak| panic!("{leak}"),
        };
        let covered: RefCell<Vec<Stale>> = RefCell::default();
        let mut invalidate = By(|gather: &Gather<'_>| covered.borrow_mut().extend(gather.ranges()));
        let base = self.base;
        let format = self.format;
        // The bits that hardware left in detached tables at the very last.
        let mut seen_late = Watch(|start: u64, level: u8, entry: u64| {
            if format.is_dirty(entry) {
                let first = (start.wrapping_sub(base)) / PAGE;
                for page in 0..(1u64 << format.shift(level)) / PAGE {
                    reported.borrow_mut().insert(first.wrapping_add(page));
                }
            }
        });

        // Reclaiming looks at tables that the cursor has borrowed: by another name for them.
        let root = self.tables_root();
        let arena = self.source.arena;
        let others = Tables::<F, Gpa, Spa, _>::adopt(self.format, root, arena).unwrap();
        let start = self.address(0);
        let context = Context::Ept { eptp: root };
        let mut cursor =
            self.tables.cursor::<_, X>(self.source, context, slots, start, PAGES * PAGE).unwrap();
        let mut operation = make(&cursor)?;
        let mut outcome = Ok(());
        let mut steps = 0;
        while steps < how.steps {
            steps += 1;
            match cursor.step(&mut operation, how.budget) {
                Ok(Step::Done) => break,
                Ok(Step::Yield) => {}
                Ok(Step::Invalidate(gather)) => {
                    let completed = gather.complete(&mut invalidate).unwrap();
                    let mut reclaim = completed.reclaim(&others).unwrap();
                    while let Some(frame) = reclaim.next_frame(&mut seen_late).unwrap() {
                        self.source.put(frame);
                    }
                    cursor.resume(reclaim.finish().unwrap()).unwrap();
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let done = operation.bytes_done();
        // An abandoned operation may have broken entries: they are made once the gather is done.
        if let Some(gather) = cursor.flush() {
            let completed = gather.complete(&mut invalidate).unwrap();
            let mut reclaim = completed.reclaim(&others).unwrap();
            while let Some(frame) = reclaim.next_frame(&mut seen_late).unwrap() {
                self.source.put(frame);
            }
            cursor.resume(reclaim.finish().unwrap()).unwrap();
        }
        let gather = cursor.finish();
        let completed = gather.complete(&mut invalidate).unwrap();
        let mut reclaim = completed.reclaim(&others).unwrap();
        while let Some(frame) = reclaim.next_frame(&mut seen_late).unwrap() {
            self.source.put(frame);
        }
        let ready = reclaim.finish().unwrap();
        drop(ready);

        // What may be stale has been invalidated.
        let covered = covered.into_inner();
        let resized = self.sizes();
        let resized =
            sizes.iter().filter(|(page, bytes)| resized.get(page).is_some_and(|now| now != *bytes));
        for page in self.narrowed(&before).into_iter().chain(resized.map(|(page, _)| *page)) {
            let at = self.address(page).raw();
            let hit = covered.iter().any(|range| range.start <= at && at <= range.last);
            assert!(hit, "page {page:#x} was never invalidated: {covered:x?}");
        }
        match outcome {
            Err(
                error @ (Error::NoFrame { at, .. }
                | Error::Occupied { at, .. }
                | Error::OutsideOutput { output: at }),
            ) => {
                let _ = (error, at);
                Ok(done)
            }
            Err(error) => panic!("{error}"),
            Ok(()) => Ok(done),
        }
    }

    /// Runs one call on a cursor and completes its gather.
    fn single<X: Mode, R>(&mut self, act: impl FnOnce(&mut CursorOf<'_, '_, 'a, F, X>) -> R) -> R {
        let (mut ranges, mut detached) = ([Stale::default()], [Default::default()]);
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut [],
            report: |leak| panic!("{leak}"),
        };
        let context = Context::Ept { eptp: self.root };
        let start = self.address(0);
        let mut cursor =
            self.tables.cursor::<_, X>(self.source, context, slots, start, PAGES * PAGE).unwrap();
        let result = act(&mut cursor);
        let completed = cursor.finish().complete(&mut By(|_: &Gather<'_>| ())).unwrap();
        let _ = completed.ready().unwrap();
        result
    }

    fn apply<X: Mode>(&mut self, op: &Op, how: Drive) {
        let clip = |at: u64, pages: u64| pages.min(PAGES - at).max(1);
        let output_of = |output: u64| Spa::new((1 << 30) + output * PAGE);
        let format = self.format;
        let base = self.base;
        let reported = RefCell::new(BTreeSet::new());
        let witness = || {
            Watch(|start: u64, level: u8, entry: u64| {
                if format.is_dirty(entry) {
                    // A leaf seen for a part of it counts for that part alone: it was split first.
                    let first = start.wrapping_sub(base) / PAGE;
                    for page in 0..(1u64 << format.shift(level)) / PAGE {
                        reported.borrow_mut().insert(first.wrapping_add(page));
                    }
                }
            })
        };
        match *op {
            Op::Map { at, pages, output, attributes, up_to, grouped } => {
                let pages = clip(at, pages);
                let attributes = self.format.attributes_numbered(attributes);
                let leaves = Leaves::new(&self.format, &attributes).unwrap().up_to(up_to);
                let leaves = if grouped { leaves.grouped() } else { leaves };
                let start = self.address(at);
                // Blocks need inputs and outputs that agree.
                let output = output + at % 512;
                let taken = (at..at + pages).any(|page| self.model.contains_key(&page));
                let done = self
                    .run::<X, _>(
                        how,
                        |cursor| cursor.map(start, output_of(output), pages * PAGE, &leaves),
                        &reported,
                    )
                    .unwrap();
                assert!(!taken || done == 0, "mapping over something changed a part");
                for page in 0..done / PAGE {
                    let value = ((1 << 18) + output + page, self.format.timeless(attributes));
                    self.model.insert(at + page, value);
                }
            }
            Op::Unmap { at, pages } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done = self
                    .run::<X, _>(how, |c| c.unmap(start, pages * PAGE, witness()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if self.model.remove(&page).is_some() && self.dirty.remove(&page) {
                        assert!(reported.borrow().contains(&page), "dirty {page:#x} unreported");
                    }
                }
            }
            Op::Protect { at, pages, permissions } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let to = self.format.permissions_numbered(permissions);
                let done = self
                    .run::<X, _>(how, |c| c.protect(start, pages * PAGE, to, witness()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if let Some(value) = self.model.get_mut(&page) {
                        value.1 = self.format.protected(value.1, to);
                    }
                    // Where write permission is the dirty state (Arm), it may go with a report.
                    let mapping = self.tables.translate(self.address(page));
                    let clean = mapping.is_some_and(|m| !self.format.is_dirty(m.entry));
                    if clean && self.dirty.remove(&page) {
                        assert!(reported.borrow().contains(&page), "dirty {page:#x} unreported");
                    }
                }
            }
            Op::Retype { at, pages, memory } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let to = self.format.memory_numbered(memory);
                let done = self
                    .run::<X, _>(how, |c| c.retype(start, pages * PAGE, to, ()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if let Some(value) = self.model.get_mut(&page) {
                        value.1 = self.format.retyped(value.1, to);
                    }
                }
            }
            Op::Remap { at, pages, output } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done = self
                    .run::<X, _>(
                        how,
                        |c| c.remap(start, output_of(output), pages * PAGE, witness()),
                        &reported,
                    )
                    .unwrap();
                for page in 0..done / PAGE {
                    if let Some(value) = self.model.get_mut(&(at + page)) {
                        value.0 = (1 << 18) + output + page;
                    }
                }
            }
            Op::Split { at, pages, to } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done =
                    self.run::<X, _>(how, |c| c.split(start, pages * PAGE, to), &reported).unwrap();
                for page in at..at + done / PAGE {
                    let found = self.tables.translate(self.address(page));
                    let page = |level| 1u64 << self.format.shift(level);
                    assert!(found.is_none_or(|mapping| mapping.bytes <= page(to)), "still large");
                }
            }
            Op::Collapse { at, pages, to } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                self.run::<X, _>(how, |c| c.collapse(start, pages * PAGE, to), &reported).unwrap();
            }
            Op::Clean { at, pages } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done = self
                    .run::<X, _>(how, |c| c.clean(start, pages * PAGE, witness()), &reported)
                    .unwrap();
                for page in at..at + done / PAGE {
                    if let Some(mapping) = self.tables.translate(self.address(page)) {
                        assert!(!self.format.is_dirty(mapping.entry), "still dirty");
                    }
                    if self.dirty.remove(&page) {
                        assert!(reported.borrow().contains(&page), "dirty {page:#x} unreported");
                    }
                }
            }
            Op::Age { at, pages } => {
                let (start, pages) = (self.address(at), clip(at, pages));
                let done =
                    self.run::<X, _>(how, |c| c.age(start, pages * PAGE, ()), &reported).unwrap();
                for page in at..at + done / PAGE {
                    if let Some(mapping) = self.tables.translate(self.address(page)) {
                        // Short descriptors do not age: their leaves are accessed for good.
                        let ages = self.format.age() != Default::default();
                        assert!(!ages || !self.format.is_accessed(mapping.entry), "still young");
                    }
                }
            }
            Op::Fault { at, output, attributes, by_cursor } => {
                let attributes = self.format.attributes_numbered(attributes);
                let leaves = Leaves::new(&self.format, &attributes).unwrap();
                let (address, to) = (self.address(at), output_of(output));
                let served = if by_cursor {
                    self.single::<X, _>(|cursor| cursor.fault(address, to, 0, &leaves))
                } else {
                    self.tables.fault::<_, X>(self.source, address, to, 0, &leaves)
                };
                match served {
                    Ok(Served::Installed { level }) => {
                        assert_eq!(level, 0);
                        let value = ((1 << 18) + output, self.format.timeless(attributes));
                        assert!(self.model.insert(at, value).is_none(), "mapped over a page");
                    }
                    Ok(Served::Present { .. }) => assert!(self.model.contains_key(&at)),
                    Err(error) => assert!(matches!(error, Error::NoFrame { .. }), "{error}"),
                }
            }
            Op::Remove { at, by_cursor } => {
                let address = self.address(at);
                let removed = if by_cursor {
                    self.single::<X, _>(|cursor| cursor.remove(address))
                } else {
                    let context = Context::Ept { eptp: self.root };
                    let removed = self.tables.remove::<X>(address, context, |l| panic!("{l}"));
                    removed.map(|removed| {
                        removed.map_or(0, |removed| {
                            let entry = removed.entry();
                            let mut invalidate = By(|gather: &Gather<'_>| {
                                let [range] = gather.ranges() else { panic!("one page") };
                                assert_eq!(range.start, address.raw());
                                assert_eq!(range.last - range.start, PAGE - 1);
                            });
                            removed.complete(&mut invalidate).unwrap();
                            entry
                        })
                    })
                };
                match removed {
                    Ok(0) => assert!(!self.model.contains_key(&at)),
                    Ok(entry) => {
                        assert!(self.model.remove(&at).is_some());
                        assert!(!self.dirty.remove(&at) || self.format.is_dirty(entry));
                    }
                    Err(Error::Occupied { .. }) => {
                        let found = self.tables.translate(address).unwrap();
                        assert!(found.bytes > PAGE, "a page by itself was refused");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            // While no operation is under way, whichever the mode.
            Op::Write { at } => self.write(at),
            Op::Starve { frames } => self.source.left.set(frames),
        }
        if !matches!(op, Op::Starve { .. }) {
            self.source.left.set(u32::MAX);
        }
        self.check();
    }
}

fn sequence<F: Subject, X: Mode>(format: F, base: u64, ops: &[(Op, Drive)])
where
    <F::Word as Word>::Atomic: Default,
{
    let words = 40 * PAGE / F::Word::SIZE.bytes();
    let cells: Vec<_> = (0..words).map(|_| <F::Word as Word>::Atomic::default()).collect();
    let arena = Arena::<F::Word>::new(0x1000, &cells).unwrap();
    let source = Counted { arena: &arena, left: Cell::new(u32::MAX), out: RefCell::default() };
    let tables = Tables::create(format, &arena, &source).unwrap();
    let root = *source.out.borrow().first().unwrap();
    let (model, dirty) = (BTreeMap::new(), BTreeSet::new());
    let mut world = World { format, source: &source, tables, model, dirty, base, root };
    world.check();
    for (op, how) in ops {
        world.apply::<X>(op, *how);
    }
}

fn ept_with(mode_based_execute: bool) -> Ept {
    Ept::four(slat::format::ept::Features {
        physical_bits: 40,
        accessed_dirty: true,
        mode_based_execute,
        ..Default::default()
    })
}

fn long() -> Long {
    let controls = Controls { write_protect: true, nxe: true, ..Controls::default() };
    Long::four(controls, Processor { physical_bits: 46, ..Processor::default() })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_on_every_format(ops in prop::collection::vec((operation(), drive()), 1..40)) {
        // The window lies across the end of a top-level entry, where the format has room for that.
        sequence::<_, Live>(ept_with(false), (1 << 39) - (4 << 20), &ops);
        sequence::<_, Quiet>(ept_with(true), (1 << 30) - (2 << 20), &ops);
        let five = Ept::five(Default::default());
        sequence::<_, Quiet>(five, (1 << 48) - (4 << 20), &ops);
        let npt = Npt::four(true, Processor::default());
        sequence::<_, Live>(npt, 0, &ops);
        // The top of the address space: nothing may be computed beyond its last byte.
        sequence::<_, Live>(long(), 0u64.wrapping_sub(PAGES * PAGE), &ops);
        sequence::<_, Live>(Npt::pae(true, Processor::default()), (1 << 32) - PAGES * PAGE, &ops);
        let controls = Controls { nxe: true, ..Controls::default() };
        sequence::<_, Live>(Pae::new(controls, Processor::default()), (1 << 30) - (4 << 20), &ops);
        let arm = ArmProcessor { physical_bits: 40, ..ArmProcessor::default() };
        // Concatenated roots; hardware dirty state.
        let vtcr = Stage2::control(Granule::Four, 40, &arm) | 3 << 21;
        let tracked = Stage2::new(vtcr, slat::regime::arm::hcr::VM, 0, &arm).unwrap();
        assert!(tracked.sets_dirty_state());
        sequence::<_, Live>(tracked, (1 << 39) - (4 << 20), &ops);
        let plain = Stage2::plain(Granule::Four, 39, &arm).unwrap();
        sequence::<_, Live>(plain, (1 << 30) - (4 << 20), &ops);
        // 52-bit output addresses, in two pieces.
        let wide = Stage2::plain(Granule::Four, 52, &ArmProcessor::default()).unwrap();
        sequence::<_, Live>(wide, (1 << 48) - (4 << 20), &ops);
        let lower = Stage1::plain(Granule::Four, 48, &arm).unwrap();
        sequence::<_, Live>(lower, (1 << 39) - (4 << 20), &ops);
        let top = 0u64.wrapping_sub(PAGES * PAGE);
        sequence::<_, Quiet>(slat::format::Format::half(&lower, top), top, &ops);
        let adue = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
        sequence::<_, Live>(Sv::stage2(Scheme::Sv48, adue), (1 << 49) - (4 << 20), &ops);
        sequence::<_, Live>(Sv::stage1(Scheme::Sv39, adue), top, &ops);
        // AArch32: stage 2, long and short descriptors.
        let v8 = arm32::Processor::default();
        let hcr = slat::regime::arm::hcr::VM;
        let second = arm32::Stage2::new(arm32::Stage2::control(40), hcr, 0, &v8).unwrap();
        sequence::<_, Live>(second, (1 << 39) - (4 << 20), &ops);
        let long = arm32::Registers {
            ttbcr: arm32::ttbcr::EAE,
            sctlr: arm32::sctlr::M,
            ..arm32::Registers::default()
        };
        sequence::<_, Live>(arm32::Lpae::new(&long, &v8).unwrap(), (1 << 31) - (4 << 20), &ops);
        let registers = arm32::Registers { ttbcr: 0, dacr: 1, ..long };
        let short = arm32::Short::new(&registers, &v8).unwrap();
        sequence::<_, Live>(short, (1 << 32) - PAGES * PAGE, &ops);
        sequence::<_, Live>(Legacy::new(Controls::default(), true, 40), (1 << 32) - PAGES * PAGE, &ops);
    }
}
