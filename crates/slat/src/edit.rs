//! Editing tables that hardware walks.
//!
//! [`Tables`] are one radix tree in lent memory. A [`Cursor`] over a range of them maps, unmaps,
//! protects, splits and collapses; exactly the requested range changes. What the change leaves to
//! be done is a [`Gather`]: invalidations, and frames that come free only after them.
//!
//! ```
//! use slat::edit::{Arena, Leaves, Live, Step, Tables, Slots, ept::Attributes};
//! use slat::format::ept::{Ept, Features};
//! use slat::invalidate::{By, Context};
//! use slat::{Gpa, Permissions, Spa, memory_type::x86::Type};
//! use core::sync::atomic::AtomicU64;
//!
//! let cells: Vec<AtomicU64> = (0..16 * 512).map(|_| AtomicU64::new(0)).collect();
//! let arena = Arena::<u64>::new(0x10_0000, &cells).unwrap();
//! let format = Ept::four(Features::default());
//! let mut tables = Tables::<_, Gpa, Spa, _>::create(format, &arena, &arena)?;
//!
//! let all = Permissions { read: true, write: true, execute: true };
//! let leaves = Leaves::new(&format, &Attributes::new(all, Type::Wb))?;
//!
//! // The storage of the gather is the caller's.
//! let (mut ranges, mut detached) = ([Default::default(); 8], [Default::default(); 8]);
//! let slots = Slots {
//!     ranges: &mut ranges,
//!     detached: &mut detached,
//!     pending: &mut [],
//!     report: |leak| panic!("{leak}"),
//! };
//! let context = Context::Ept { eptp: tables.root() | 0x1e };
//! let mut cursor = tables.cursor::<_, Live>(&arena, context, slots, Gpa::new(0), 1 << 39)?;
//!
//! let mut map = cursor.map(Gpa::new(0), Spa::new(1 << 30), 4 << 20, &leaves)?;
//! assert!(matches!(cursor.step(&mut map, u32::MAX)?, Step::Done));
//! let mut unmap = cursor.unmap(Gpa::new(0x1000), 0x1000, ())?; // splits one 2 MiB page
//! assert!(matches!(cursor.step(&mut unmap, u32::MAX)?, Step::Done));
//!
//! let gather = cursor.finish();
//! // Here `INVEPT` would be executed.
//! let completed = gather.complete(&mut By(|gather: &slat::edit::Gather<'_>| {
//!     assert_eq!(gather.context(), context);
//!     assert!(!gather.is_empty());
//! }));
//! let reclaim = completed.unwrap().reclaim(&tables).unwrap();
//! reclaim.into_source(&arena)?;
//!
//! assert_eq!(tables.translate(Gpa::new(0x2008)).unwrap().output, Spa::new((1 << 30) + 0x2008));
//! assert!(tables.translate(Gpa::new(0x1000)).is_none());
//! # Ok::<(), slat::edit::Error>(())
//! ```

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use crate::address::Address;
use crate::format::{Decoded, MAX_LEVELS};
use crate::invalidate::Context;
use crate::memory::ByteOrder;
use crate::walk::Stage;

mod adjust;
mod collapse;
mod cursor;
mod encode;
mod error;
#[cfg(all(test, not(loom)))]
mod failures;
mod fault;
mod fill;
mod frames;
mod gather;
mod group;
mod hollow;
#[cfg(all(test, loom))]
mod interleavings;
mod logging;
mod map;
mod mappings;
mod memory;
mod page;
mod pending;
mod reach;
mod remake;
mod remap;
mod rewrite;
mod split;
pub(crate) mod sync;
mod translate;
mod unmap;
mod views;
mod walkers;
mod witness;
mod word;

pub use adjust::{Adjust, Which};
pub use collapse::Collapse;
pub use cursor::{Cursor, NotResumed, Operation, Step, Verb};
pub use encode::{Change, Effect, Encode, Leaves, Refused, arm32, arm64, ept, riscv, x86};
pub use error::Error;
pub use fault::{Shared, Walker};
pub use frames::{Arena, Donated, Frame, FrameSource};
pub use gather::{Completed, Detached, Gather, Leak, Ready, Reclaim, Slots, Stale};
pub use logging::DirtyLog;
pub use map::Map;
pub use mappings::{Mapping, Mappings};
pub use memory::{Cells, TableMemory};
pub use page::{Removed, Served};
pub use pending::Pending;
pub use remake::{Broken, Remake};
pub use remap::Remap;
pub use split::Split;
pub use unmap::Unmap;
pub use views::{Counted, Ended, Own, Owned, Segment, View, ViewSet, Views};
pub use walkers::{Guard, Mark, Walkers};
pub use witness::{Watch, Witness};
pub use word::{Faulting, Live, Mode, Quiet, Word};

/// One radix tree in lent memory: from addresses `I` to addresses `O`, tables at addresses `O`.
///
/// Whoever owns it alone may change it. To change it while other threads map and walk, make it
/// [`Shared`].
#[derive(Debug)]
pub struct Tables<F: Encode, I, O, M> {
    pub(crate) format: F,
    /// Address of the root table.
    pub(crate) root: u64,
    pub(crate) top: u8,
    /// Entries of the root table, less one.
    root_mask: u32,
    /// An address below this is the tables' input as it stands.
    inputs: u64,
    /// An address below this is translated by four levels, as it stands.
    quick: u64,
    /// Bits that no output address of a smallest page has; bits that may have to be looked at closer
    /// are among them.
    pub(crate) beyond: u64,
    pub(crate) memory: M,
    spaces: PhantomData<fn(I) -> O>,
}

impl<F: Encode, I: Address, O: Address, M: TableMemory<F::Word>> Tables<F, I, O, M> {
    /// Empty tables, whose root comes from `source`.
    ///
    /// # Errors
    /// [`Error::NoFrame`], [`Error::OutOfReach`], [`Error::NotLent`] where the frame is not in
    /// `memory`, and [`Error::Layout`].
    pub fn create<S: FrameSource>(format: F, memory: M, source: &S) -> Result<Self, Error> {
        let mut tables = Self::describe(format, 0, memory)?;
        let frame = tables.take(source, 0, tables.top)?;
        tables.root = frame.address();
        if let Err(error) = tables.clear(&frame, tables.top) {
            source.put(frame);
            return Err(error);
        }
        tables.memory.publish(tables.root, frame.bytes());
        Ok(tables)
    }

    /// The tables whose root table is at `root` already.
    ///
    /// # Errors
    /// [`Error::OutOfReach`], [`Error::NotLent`] and [`Error::Layout`].
    pub fn adopt(format: F, root: u64, memory: M) -> Result<Self, Error> {
        let tables = Self::describe(format, root, memory)?;
        if !tables.roots_at(root) {
            return Err(Error::OutOfReach { frame: root });
        }
        tables.cells(root, tables.top)?;
        Ok(tables)
    }

    fn describe(format: F, root: u64, memory: M) -> Result<Self, Error> {
        let layout = format.layout();
        if layout.size != <F::Word as Word>::SIZE || layout.order != ByteOrder::Little {
            return Err(Error::Layout);
        }
        let top = format.top();
        let root_bits = format.input_bits().checked_sub(format.shift(top));
        let root_bits = root_bits.filter(|bits| (1..=20).contains(bits)).ok_or(Error::Layout)?;
        if usize::from(top) >= MAX_LEVELS {
            return Err(Error::Layout);
        }
        let root_mask = (1 << root_bits) - 1;
        // All inputs are such addresses, or the half of them that has no sign; else none is.
        let bits = format.input_bits();
        let own =
            [bits, bits - 1].into_iter().filter_map(|bits| 1u64.checked_shl(bits)).find(|inputs| {
                [0, inputs - 1].into_iter().all(|at| format.input(root, at) == Some(at))
            });
        let inputs = own.unwrap_or(0);
        let quick = if top == 3 { inputs } else { 0 };
        let beyond = !format.varying(0) | ((1u64 << format.shift(0)) - 1);
        let spaces = PhantomData;
        Ok(Tables { format, root, top, root_mask, inputs, quick, beyond, memory, spaces })
    }

    /// What the root register is to hold.
    pub fn root(&self) -> F::Root {
        self.format.root(self.root)
    }

    /// How the tables are encoded.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// The stage that [`walk`](crate::walk) takes.
    pub fn stage(&self) -> Stage<F, I, O> {
        Stage::new(self.format, self.root())
    }

    /// A cursor over `bytes` bytes from `start`: the only one, since the tables are borrowed for
    /// it. `X` says whether hardware may set bits meanwhile ([`Quiet`] or [`Live`]); frames come
    /// from `source`; the gather has `context` and `slots`.
    ///
    /// A cursor does not know of gathers that earlier ones left. Without break-before-make that is
    /// no matter: any number may be under way. With it (Arm ARM D8.17.1) what an earlier cursor
    /// removed may be mapped again only after the earlier gather has been completed: complete it
    /// first, or keep one cursor for both, which knows.
    ///
    /// # Errors
    /// [`Error::OutsideInput`] where the range is not wholly translatable by these tables.
    #[inline(always)]
    pub fn cursor<'t, 'g, S: FrameSource, X: Mode>(
        &'t mut self,
        source: &'t S,
        context: Context,
        slots: Slots<'g>,
        start: I,
        bytes: u64,
    ) -> Result<Cursor<'t, 'g, F, I, O, M, S, X>, Error> {
        Cursor::new(self, source, context, slots, None, start.raw(), bytes)
    }

    /// Whether the address is the tables' input as it stands.
    #[inline(always)]
    pub(crate) fn is_input(&self, address: u64) -> bool {
        address < self.inputs
    }

    /// The input of these tables that `address` is, without tags and sign extension.
    #[inline(always)]
    pub(crate) fn strip(&self, address: u64) -> Option<u64> {
        if self.is_input(address) {
            return Some(address);
        }
        self.format.input(self.root, address)
    }
}

impl<F: Encode, I, O, M: TableMemory<F::Word>> Tables<F, I, O, M> {
    /// How software writes an input of the tables: with the sign of an upper half, of 64 or of 32 bits.
    #[cold]
    pub(crate) fn address_of(&self, input: u64) -> u64 {
        let upper = input | u64::MAX.checked_shl(self.format.input_bits()).unwrap_or(0);
        [input, upper, upper & 0xffff_ffff]
            .into_iter()
            .find(|&address| self.format.input(self.root, address) == Some(input))
            .unwrap_or(input)
    }

    /// The table of `level` that translates `input`, if there is one.
    pub(crate) fn table_on_the_way(&self, input: u64, level: u8) -> Result<Option<u64>, Error> {
        let (mut table, mut at) = (self.root, self.top);
        while at > level {
            let cells = self.cells(table, at)?;
            let index = (input >> self.format.shift(at)) as usize & (cells.len() - 1);
            match self.format.decode(F::Word::load(&cells[index], Ordering::Acquire), at) {
                Decoded::Table { next } => (table, at) = (next, at - 1),
                _ => return Ok(None),
            }
        }
        Ok(Some(table))
    }

    /// Number of entries of a table of this level.
    #[inline(always)]
    pub(crate) fn entries(&self, level: u8) -> usize {
        if level == self.top {
            self.root_mask as usize + 1
        } else {
            1 << self.format.index_bits(level)
        }
    }

    /// Size of a table of this level in bytes.
    #[inline(always)]
    pub(crate) fn table_bytes(&self, level: u8) -> u64 {
        self.entries(level) as u64 * <F::Word as Word>::SIZE.bytes()
    }

    /// log2 of the bytes that a table of this level translates.
    #[inline(always)]
    pub(crate) fn reach(&self, level: u8) -> u32 {
        self.format.shift(level) + self.entries(level).trailing_zeros()
    }

    /// The entries of the table at `table`.
    #[inline(always)]
    pub(crate) fn cells(
        &self,
        table: u64,
        level: u8,
    ) -> Result<&[<F::Word as Word>::Atomic], Error> {
        self.memory.table(table, self.entries(level)).ok_or(Error::NotLent { table })
    }

    /// The entries of a frame that is to be a table of this level, all empty.
    pub(crate) fn clear(
        &self,
        frame: &Frame,
        level: u8,
    ) -> Result<&[<F::Word as Word>::Atomic], Error> {
        let cells = self.cells(frame.address(), level)?;
        if !frame.is_zeroed() {
            for cell in cells {
                F::Word::store(cell, 0, Ordering::Relaxed);
            }
        }
        Ok(cells)
    }
}
