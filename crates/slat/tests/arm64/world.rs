//! Memory with tables in it.

use slat::format::Format;
use slat::format::arm64::{Root, Stage1, Stage2};
use slat::{
    Access, EntryLayout, Gpa, Gva, Kind, Memory, Outside, Privilege, References, Regime,
    SliceMemory, Spa, Stage, Translation, TwoStageFailure, Updates, translate,
};

/// The end of a translation.
pub(crate) type Outcome = Result<Translation, TwoStageFailure<Gva, Gpa, Outside<Spa>>>;

/// System memory from `base`, with a two-stage machine over it.
pub(crate) struct World {
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
    next: u64,
}

impl World {
    pub(crate) fn new(base: u64, size: usize) -> World {
        World { base, bytes: vec![0; size], next: base }
    }

    pub(crate) fn memory(&mut self) -> SliceMemory<'_, Spa> {
        SliceMemory::new(Spa::new(self.base), &mut self.bytes)
    }

    pub(crate) fn set(&mut self, address: u64, entry: u64) {
        self.memory().poke(Spa::new(address), EntryLayout::LE64, entry).unwrap();
    }

    pub(crate) fn get(&mut self, address: u64) -> u64 {
        let access = Access::default();
        self.memory().read(Spa::new(address), EntryLayout::LE64, &access).unwrap().value
    }

    /// Zeroed memory of `size` bytes, aligned to it.
    pub(crate) fn allocate(&mut self, size: u64) -> u64 {
        let at = self.next.next_multiple_of(size);
        self.next = at + size;
        at
    }

    pub(crate) fn walk(
        &mut self,
        (stage1, root1): (&Stage1, Root),
        (stage2, root2): (&Stage2, u64),
        address: u64,
        access: &Access,
        regime: &Regime,
    ) -> (Outcome, u64) {
        let stage1 = Stage::<_, Gva, Gpa>::new(*stage1, root1).with_updates(Updates::OnSuccess);
        let stage2 = Stage::<_, Gpa, Spa>::new(*stage2, root2).with_updates(Updates::OnSuccess);
        let counted = References::default();
        let outcome = translate(
            &stage1,
            &stage2,
            &mut self.memory(),
            Gva::new(address),
            access,
            regime,
            &counted,
        );
        (outcome, counted.count())
    }

    /// Maps `input` to itself by tables of `format` from `root_level` at `root` to `leaf_level`.
    /// `leaf` are the leaf's bits beside its address and type.
    pub(crate) fn identity<F: Format>(
        &mut self,
        format: &F,
        root: u64,
        root_level: u8,
        leaf_level: u8,
        input: u64,
        leaf: u64,
    ) {
        let mut table = root;
        for level in (leaf_level..=root_level).rev() {
            let shift = format.shift(level);
            let index = if level == root_level {
                input >> shift
            } else {
                input >> shift & ((1 << format.index_bits(level)) - 1)
            };
            let at = table + 8 * index;
            if level == leaf_level {
                let kind = if level == 0 { 3 } else { 1 };
                self.set(at, input >> shift << shift | leaf | kind);
                return;
            }
            table = match self.get(at) {
                0 => {
                    let next = self.allocate(8 << format.index_bits(level - 1));
                    self.set(at, next | 3);
                    next
                }
                entry => entry & !3,
            };
        }
    }
}

pub(crate) const fn read() -> Access {
    Access::new(Kind::Read, Privilege::Supervisor)
}

pub(crate) const fn write() -> Access {
    Access::new(Kind::Write, Privilege::Supervisor)
}

pub(crate) const fn execute() -> Access {
    Access::new(Kind::Execute, Privilege::Supervisor)
}
