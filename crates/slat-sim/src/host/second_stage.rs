//! A partition's second stage: real tables in the hypervisor's memory, made by slat's editor and
//! walked by slat's walker.

use slat::edit::{
    self, Cursor, Detached, Encode, Error, Gather, Leaves, Live, Operation, Pending, Slots, Stale,
    Step, Tables, Verb, Watch, arm64 as arm64_entries, ept as ept_entries, x86 as x86_entries,
};
use slat::format::arm32;
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::npt::Npt;
use slat::format::x86::Vendor;
use slat::format::x86::long::Processor as X86Processor;
use slat::invalidate::{By, Context};
use slat::memory_type::x86::Type;
use slat::regime::arm::hcr;
use slat::{Gpa, Permissions, Spa, Stage, Updates};

use super::pool::Pool;
use super::spa::{Backing, PAGE};
use crate::preset::{Extension, Processor, SecondStage};

/// Everything a guest may do with its memory.
const ALL: Permissions = Permissions { read: true, write: true, execute: true };
/// The same without writing: while the dirty log looks for writes.
const UNWRITABLE: Permissions = Permissions { read: true, write: false, execute: true };

/// Tables of one format.
#[derive(Clone, Copy, Debug)]
pub struct Built<F: Encode> {
    /// How they are encoded.
    pub format: F,
    /// Where their root table lies.
    pub root: u64,
    leaves: Leaves,
    context: Context,
    dirty_flags: bool,
}

/// The second-stage tables of one partition.
#[derive(Clone, Copy, Debug)]
pub enum SecondTables {
    /// Intel EPT.
    Ept(Built<Ept>),
    /// AMD NPT.
    Npt(Built<Npt>),
    /// Armv8's Stage-2.
    Arm(Built<Stage2>),
    /// ARMv7's Stage-2.
    Armv7(Built<arm32::Stage2>),
}

/// Runs the same code for the tables of each format.
macro_rules! each {
    ($tables:expr, $built:ident => $call:expr) => {
        match $tables {
            SecondTables::Ept($built) => $call,
            SecondTables::Npt($built) => $call,
            SecondTables::Arm($built) => $call,
            SecondTables::Armv7($built) => $call,
        }
    };
}
pub(super) use each;

type Edits<'t, 'g, 'p, F> = Cursor<'t, 'g, F, Gpa, Spa, edit::Cells<'p, u64>, Pool, Live>;

impl<F: Encode<Word = u64>> Built<F> {
    fn create(
        format: F,
        attributes: &F::Attributes,
        context: impl FnOnce(u64) -> Context,
        dirty_flags: bool,
        pool: &Pool,
    ) -> Result<Built<F>, Error> {
        let tables = Tables::<F, Gpa, Spa, _>::create(format, pool.lend(), pool)?;
        let leaves = Leaves::new(&format, attributes).map_err(Error::Refused)?;
        // The formats at hand keep the root's address in the bits of an address.
        let root = table_of(&format, &tables);
        Ok(Built { format, root, leaves, context: context(root), dirty_flags })
    }

    /// The stage, as the walker takes it.
    pub fn stage(&self) -> Stage<F, Gpa, Spa> {
        let updates = if self.dirty_flags { Updates::OnSuccess } else { Updates::Never };
        Stage::new(self.format, self.format.root(self.root)).with_updates(updates)
    }

    fn edit<V: Verb<F>>(
        &self,
        pool: &Pool,
        (start, bytes): (u64, u64),
        flushes: &mut u64,
        make: impl for<'t, 'g, 'p> FnOnce(&Edits<'t, 'g, 'p, F>) -> Result<Operation<V>, Error>,
    ) -> Result<(), Error> {
        let mut tables = Tables::<F, Gpa, Spa, _>::adopt(self.format, self.root, pool.lend())?;
        let view = Tables::<F, Gpa, Spa, _>::adopt(self.format, self.root, pool.lend())?;
        let mut ranges = [Stale::default(); 16];
        let mut detached = [Detached::default(); 64];
        let mut pending = [Pending::default(); 64];
        let slots = Slots {
            ranges: &mut ranges,
            detached: &mut detached,
            pending: &mut pending,
            report: |_| {},
        };
        let mut cursor =
            tables.cursor::<_, Live>(pool, self.context, slots, Gpa::new(start), bytes)?;
        let mut operation = make(&cursor)?;
        let mut flush = |_: &Gather<'_>| *flushes += 1;
        loop {
            match cursor.step(&mut operation, u32::MAX)? {
                Step::Done => break,
                Step::Yield => {}
                Step::Invalidate(gather) => {
                    let completed = match gather.complete(&mut By(&mut flush)) {
                        Ok(completed) => completed,
                        Err((_, never)) => match never {},
                    };
                    let Ok(reclaim) = completed.reclaim(&view) else {
                        unreachable!("nobody else walks in software")
                    };
                    cursor.resume(reclaim.into_source(pool)?)?;
                }
            }
        }
        let completed = match cursor.finish().complete(&mut By(&mut flush)) {
            Ok(completed) => completed,
            Err((_, never)) => match never {},
        };
        let Ok(reclaim) = completed.reclaim(&view) else {
            unreachable!("nobody else walks in software")
        };
        let _: edit::Ready<'_> = reclaim.into_source(pool)?;
        Ok(())
    }

    fn map(&self, pool: &Pool, backing: &Backing, flushes: &mut u64) -> Result<(), Error> {
        let Backing { gpa, spa, bytes, level } = *backing;
        let leaves = self.leaves.up_to(level);
        self.edit(pool, (gpa, bytes), flushes, |cursor| {
            cursor.map(Gpa::new(gpa), Spa::new(spa), bytes, &leaves)
        })
    }

    fn unmap(&self, pool: &Pool, gpa: u64, bytes: u64, flushes: &mut u64) -> Result<(), Error> {
        self.edit(pool, (gpa, bytes), flushes, |cursor| cursor.unmap(Gpa::new(gpa), bytes, ()))
    }

    fn permit(
        &self,
        pool: &Pool,
        gpa: u64,
        bytes: u64,
        permissions: Permissions,
        flushes: &mut u64,
    ) -> Result<(), Error> {
        self.edit(pool, (gpa, bytes), flushes, |cursor| {
            cursor.protect(Gpa::new(gpa), bytes, permissions, ())
        })
    }

    fn split(&self, pool: &Pool, gpa: u64, bytes: u64, flushes: &mut u64) -> Result<(), Error> {
        self.edit(pool, (gpa, bytes), flushes, |cursor| cursor.split(Gpa::new(gpa), bytes, 0))
    }

    fn clean(
        &self,
        pool: &Pool,
        gpa: u64,
        bytes: u64,
        flushes: &mut u64,
        mut dirty: impl FnMut(u64),
    ) -> Result<(), Error> {
        self.edit(pool, (gpa, bytes), flushes, |cursor| {
            cursor.clean(Gpa::new(gpa), bytes, Watch(|at, _, _| dirty(at)))
        })
    }

    fn collapse(
        &self,
        pool: &Pool,
        gpa: u64,
        bytes: u64,
        level: u8,
        flushes: &mut u64,
    ) -> Result<(), Error> {
        self.edit(pool, (gpa, bytes), flushes, |cursor| {
            cursor.collapse(Gpa::new(gpa), bytes, level)
        })
    }

    /// Gives all tables back. Partitions' memory lies below 512 GiB.
    fn free(&self, pool: &Pool, flushes: &mut u64) {
        use slat::edit::FrameSource;
        // Nothing is split by this, so that it takes no frame and cannot fail.
        let _ = self.unmap(pool, 0, 1 << 39, flushes);
        let entries = 1u64 << (self.format.input_bits() - self.format.shift(self.format.top()));
        pool.put(edit::Frame::new(self.root, (entries * 8).max(PAGE)));
    }
}

/// Write-back memory, in either architecture's long descriptors.
fn arm_attributes() -> arm64_entries::Stage2Attributes {
    arm64_entries::Stage2Attributes::new(ALL, arm64_entries::Memory::WRITE_BACK)
}

fn table_of<F: Encode<Word = u64>>(
    format: &F,
    tables: &Tables<F, Gpa, Spa, edit::Cells<'_, u64>>,
) -> u64 {
    let start = format.begin(&tables.root(), 0, &slat::Access::default(), &slat::Regime::default());
    match start {
        Ok(slat::format::Start::Table { table, .. }) => table,
        _ => unreachable!("these formats have tables"),
    }
}

impl SecondTables {
    /// Empty tables as this processor walks them, for the partition of this number.
    pub(super) fn create(
        processor: &Processor,
        partition: u32,
        pool: &Pool,
    ) -> Result<SecondTables, Error> {
        let bits = processor.virtualization.as_ref().map_or(40, |can| can.physical_bits.value);
        let extension = processor.virtualization.as_ref().map(|can| can.extension.value);
        let dirty_flags = processor.second_stage_dirty.value;
        let arm_context = |_| Context::Stage2 { vmid: partition as u16 + 1 };
        let gigabyte_pages = processor
            .virtualization
            .as_ref()
            .is_some_and(|can| can.largest_page.value == crate::preset::PageSize::Huge);
        Ok(match processor.second_stage.value {
            SecondStage::Npt => {
                let host = X86Processor {
                    physical_bits: bits,
                    gigabyte_pages,
                    vendor: Vendor::Amd,
                    encryption_bit: None,
                };
                let format = Npt::four(true, host);
                let attributes = x86_entries::Attributes::new(ALL);
                let context = |_| Context::Npt { asid: partition + 1 };
                SecondTables::Npt(Built::create(format, &attributes, context, true, pool)?)
            }
            SecondStage::Arm if extension == Some(Extension::Armv7) => {
                let cpu = arm32::Processor::V7;
                let format = arm32::Stage2::new(arm32::Stage2::control(40), hcr::VM, 0, &cpu);
                let format = format.map_err(|_| Error::Layout)?;
                let built = Built::create(format, &arm_attributes(), arm_context, false, pool)?;
                SecondTables::Armv7(built)
            }
            SecondStage::Arm => {
                let cpu = ArmProcessor {
                    physical_bits: bits,
                    lpa2: false,
                    large_virtual_addresses: false,
                    ..ArmProcessor::default()
                };
                // As much input as the output has, up to what one start level gives.
                let format =
                    Stage2::plain(Granule::Four, bits.min(40), &cpu).map_err(|_| Error::Layout)?;
                let built = Built::create(format, &arm_attributes(), arm_context, false, pool)?;
                SecondTables::Arm(built)
            }
            SecondStage::Ept | SecondStage::None => {
                let features = Features {
                    physical_bits: bits,
                    gigabyte_pages,
                    accessed_dirty: dirty_flags,
                    ..Features::default()
                };
                let format = Ept::four(features);
                let attributes = ept_entries::Attributes::new(ALL, Type::Wb);
                // EPTP: 4 levels, write-back, and the flags where the processor has them.
                let flags = if dirty_flags { 1 << 6 } else { 0 };
                let context = |root| Context::Ept { eptp: root | 3 << 3 | 6 | flags };
                SecondTables::Ept(Built::create(format, &attributes, context, dirty_flags, pool)?)
            }
        })
    }

    /// The format's name.
    pub fn name(&self) -> &'static str {
        use slat::format::Format;
        each!(self, built => built.format.name())
    }

    /// Whether the tables tell of writes by dirty flags.
    pub fn has_dirty_flags(&self) -> bool {
        each!(self, built => built.dirty_flags)
    }

    /// Maps memory, by pages of its level.
    pub(super) fn map(
        &self,
        pool: &Pool,
        backing: &Backing,
        flushes: &mut u64,
    ) -> Result<(), Error> {
        each!(self, built => built.map(pool, backing, flushes))
    }

    /// Removes a range.
    pub(super) fn unmap(
        &self,
        pool: &Pool,
        gpa: u64,
        bytes: u64,
        flushes: &mut u64,
    ) -> Result<(), Error> {
        each!(self, built => built.unmap(pool, gpa, bytes, flushes))
    }

    /// Allows or denies writing.
    pub(super) fn let_write(
        &self,
        pool: &Pool,
        gpa: u64,
        bytes: u64,
        allowed: bool,
        flushes: &mut u64,
    ) -> Result<(), Error> {
        let permissions = if allowed { ALL } else { UNWRITABLE };
        each!(self, built => built.permit(pool, gpa, bytes, permissions, flushes))
    }

    /// Splits into the smallest pages.
    pub(super) fn split(
        &self,
        pool: &Pool,
        gpa: u64,
        bytes: u64,
        flushes: &mut u64,
    ) -> Result<(), Error> {
        each!(self, built => built.split(pool, gpa, bytes, flushes))
    }

    /// Clears dirty flags, and tells `dirty` where one was set.
    pub(super) fn clean(
        &self,
        pool: &Pool,
        gpa: u64,
        bytes: u64,
        flushes: &mut u64,
        dirty: impl FnMut(u64),
    ) -> Result<(), Error> {
        each!(self, built => built.clean(pool, gpa, bytes, flushes, dirty))
    }

    /// Makes large pages again.
    pub(super) fn collapse(
        &self,
        pool: &Pool,
        backing: &Backing,
        flushes: &mut u64,
    ) -> Result<(), Error> {
        let Backing { gpa, bytes, level, .. } = *backing;
        each!(self, built => built.collapse(pool, gpa, bytes, level, flushes))
    }

    /// Gives all tables back.
    pub(super) fn free(&self, pool: &Pool, flushes: &mut u64) {
        each!(self, built => built.free(pool, flushes));
    }

    /// The level and address of the leaf for a guest-physical address.
    pub fn translate(&self, pool: &Pool, gpa: u64) -> Option<(u64, u8)> {
        each!(self, built => {
            let tables =
                Tables::<_, Gpa, Spa, _>::adopt(built.format, built.root, pool.lend()).ok()?;
            let found = tables.translate(Gpa::new(gpa))?;
            Some((found.output.raw(), found.level))
        })
    }
}
