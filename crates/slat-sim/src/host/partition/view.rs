//! The guest's memory at guest-physical addresses, as the shadow pager and others see it, and the walk
//! through both stages.

use std::collections::BTreeMap;

use slat::format::Format;
use slat::{
    Access, EntryLayout, Failed, Gpa, Gva, Memory, Outside, Reached, Regime, Spa, Stage, Value,
    translate,
};
use slat_mmu::shadow::{GuestTables, Kept, Place};

use crate::host::dirty::DirtyBits;
use crate::host::spa::{Backing, PAGE, SHIFTS, SystemMemory};

/// The guest's memory at guest-physical addresses, as the shadow pager sees it.
pub(super) struct GuestView<'a> {
    pub(super) memory: &'a mut SystemMemory,
    pub(super) backing: &'a BTreeMap<u64, Backing>,
    pub(super) shared: &'a BTreeMap<u64, u64>,
    pub(super) log: Option<&'a mut DirtyBits>,
}

impl GuestView<'_> {
    fn shares(&self, gpa: u64) -> bool {
        self.shared.contains_key(&(gpa & !(PAGE - 1)))
    }
}

pub(super) fn locate(backing: &BTreeMap<u64, Backing>, gpa: u64) -> Option<(u64, u8)> {
    let (_, found) = backing.range(..=gpa).next_back()?;
    let offset = gpa - found.gpa;
    (offset < found.bytes).then(|| (found.spa + offset, found.level))
}

impl GuestTables for GuestView<'_> {
    fn entry(&self, gpa: u64) -> u64 {
        locate(self.backing, gpa).map_or(0, |(spa, _)| self.memory.load(spa & !7))
    }

    fn touch(&mut self, gpa: u64, bits: u64) -> Result<(), Kept> {
        if self.shares(gpa) {
            return Err(Kept(gpa));
        }
        if let Some((spa, _)) = locate(self.backing, gpa) {
            let value = self.memory.load(spa & !7) | bits;
            self.memory.store(spa & !7, value);
            if let Some(log) = &mut self.log {
                log.mark(gpa);
            }
        }
        Ok(())
    }

    fn place(&self, gpa: u64) -> Option<Place> {
        let (spa, level) = locate(self.backing, gpa)?;
        let unlogged = self.log.as_ref().is_some_and(|log| !log.has(gpa));
        // While writes are logged, they are logged by small pages.
        let level = if self.log.is_some() { 0 } else { level };
        let shift = SHIFTS[usize::from(level)] as u8;
        Some(Place { spa, shift, writable: !unlogged && !self.shares(gpa) })
    }
}

/// The guest's memory at guest-physical addresses, to look at.
pub(super) struct Looked<'a> {
    pub(super) memory: &'a SystemMemory,
    pub(super) backing: &'a BTreeMap<u64, Backing>,
}

impl Memory for Looked<'_> {
    type Address = Gpa;
    type Fault = Outside<Gpa>;

    fn read(&mut self, at: Gpa, layout: EntryLayout, _: &Access) -> Result<Value, Outside<Gpa>> {
        let (spa, _) =
            locate(self.backing, at.raw()).ok_or(Outside { address: at, write: false })?;
        let value = self.memory.load(spa & !7) >> (spa % 8 * 8);
        let mask = u64::MAX >> (64 - 8 * layout.size.bytes());
        Ok(Value { value: value & mask, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Gpa,
        _: EntryLayout,
        _: u64,
        _: u64,
        _: &Access,
    ) -> Result<bool, Outside<Gpa>> {
        Err(Outside { address, write: true })
    }
}

/// A two-stage walk, its failure in the hypervisor's words.
pub(super) fn nested<F1: Format, F2: Format>(
    stage1: &Stage<F1, Gva, Gpa>,
    stage2: &Stage<F2, Gpa, Spa>,
    memory: &mut SystemMemory,
    gva: u64,
    access: &Access,
    regime: &Regime,
) -> Result<(u64, u64), (u64, bool, bool)> {
    match translate(stage1, stage2, memory, Gva::new(gva), access, regime, &()) {
        Ok(found) => Ok((found.stage1.output.raw(), found.output().raw())),
        Err(Failed::Here(_)) => Err((0, false, true)),
        Err(Failed::Below(Failed::Here(fault))) => {
            let denied = matches!(fault.cause, slat::Cause::Permission(_));
            Err((fault.input.raw(), denied, false))
        }
        // A guest's tables lead where no memory is only through a second stage that says so.
        Err(Failed::Below(Failed::Below(_))) => Err((0, false, true)),
    }
}
