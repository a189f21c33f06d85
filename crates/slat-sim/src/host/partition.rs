//! A child partition: its memory, how it is translated, and its one vCPU.

use std::collections::BTreeMap;

use slat::{Kind, Regime};

use super::dirty::DirtyBits;
use super::exits::{Cause, Exits};
use super::guest::Vcpu;
use super::second_stage::SecondTables;
use super::shadow::Shadow;
use super::spa::{Backing, Frame, PAGE, SystemMemory};
use super::stage1::Stage1;

mod backing;
mod legacy;
mod translate;
mod view;

use view::{GuestView, locate};

/// How a partition's addresses are translated.
#[derive(Debug)]
pub enum Translation {
    /// By the processor, through second-stage tables.
    SecondStage(SecondTables),
    /// By the processor, through shadow tables.
    Shadow(Shadow),
}

impl Translation {
    /// `ept4`, `npt4`, `arm64-s2`, `arm-lpae-s2` or `shadow`.
    pub fn name(&self) -> &'static str {
        match self {
            Translation::SecondStage(tables) => tables.name(),
            Translation::Shadow(_) => "shadow",
        }
    }
}

/// Why a guest's access did not reach memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// The guest's own tables do not permit it: a fault of the guest's.
    Guest,
    /// Nothing but a device is there.
    Mmio(u64),
    /// The host has no memory for it (overcommitment).
    NoMemory(u64),
}

/// A child partition.
#[derive(Debug)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Its number on its host.
    pub number: u32,
    /// Its guest-physical memory: start and size, in order.
    pub ranges: Vec<(u64, u64)>,
    /// The physical memory behind it, by guest-physical start.
    pub(super) backing: BTreeMap<u64, Backing>,
    /// How its addresses are translated.
    pub translation: Translation,
    /// Its vCPU's registers.
    pub vcpu: Vcpu,
    /// Its guest's own tables.
    pub stage1: Stage1,
    /// Why it left for the hypervisor.
    pub exits: Exits,
    /// How often the hypervisor invalidated translations of a second stage.
    pub(super) flushes: u64,
    /// Pages that were written since the log was last read, while it is on.
    pub(super) log: Option<DirtyBits>,
    /// Memory is given at the first touch.
    pub overcommitted: bool,
    /// Guest-physical pages that share their memory with others.
    pub(super) shared: BTreeMap<u64, u64>,
    regime: Regime,
}

impl Partition {
    #[expect(clippy::too_many_arguments, reason = "what a partition is made of")]
    pub(super) fn new(
        name: String,
        number: u32,
        ranges: Vec<(u64, u64)>,
        backings: Vec<Backing>,
        translation: Translation,
        stage1: Stage1,
        overcommitted: bool,
        vcpu: Vcpu,
    ) -> Partition {
        Partition {
            name,
            number,
            ranges,
            backing: backings.into_iter().map(|backing| (backing.gpa, backing)).collect(),
            translation,
            vcpu,
            stage1,
            exits: Exits::default(),
            flushes: 0,
            log: None,
            overcommitted,
            shared: BTreeMap::new(),
            regime: Regime::default(),
        }
    }

    /// Bytes of memory that the guest has.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, bytes)| bytes).sum()
    }

    /// How often the hypervisor invalidated translations of it.
    pub fn invalidations(&self) -> u64 {
        match &self.translation {
            Translation::SecondStage(_) => self.flushes,
            Translation::Shadow(shadow) => shadow.flushes,
        }
    }

    /// The physical memory behind it, in the order of guest-physical addresses.
    pub fn backing(&self) -> impl Iterator<Item = &Backing> {
        self.backing.values()
    }

    /// Where a guest-physical address lies, and the level of the pages there.
    pub fn locate(&self, gpa: u64) -> Option<(u64, u8)> {
        locate(&self.backing, gpa)
    }

    /// Whether the guest has memory at this guest-physical address.
    pub fn has(&self, gpa: u64) -> bool {
        self.ranges.iter().any(|(start, bytes)| (*start..start + bytes).contains(&gpa))
    }

    /// Guest-physical addresses of all pages that there are.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(start, bytes)| (*start..start + bytes).step_by(PAGE as usize))
    }

    /// The guest loads eight bytes.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn load(&mut self, memory: &mut SystemMemory, gva: u64) -> Result<u64, Trap> {
        let (_, spa) = self.resolve(memory, gva, Kind::Read)?;
        Ok(memory.load(spa))
    }

    /// The guest stores eight bytes.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn store(&mut self, memory: &mut SystemMemory, gva: u64, value: u64) -> Result<(), Trap> {
        let (gpa, spa) = self.resolve(memory, gva, Kind::Write)?;
        memory.store(spa, value);
        if let Translation::Shadow(shadow) = &mut self.translation
            && shadow.store(gpa).exits
        {
            self.exits.count(Cause::TableWrite);
        }
        Ok(())
    }

    /// Puts eight bytes at a guest-physical address, as a loader does before the guest runs.
    pub(super) fn poke(&mut self, memory: &mut SystemMemory, gpa: u64, value: u64) {
        if self.locate(gpa).is_none() && self.has(gpa) {
            let _ = self.back(memory, gpa & !(PAGE - 1));
        }
        if let Some((spa, _)) = self.locate(gpa) {
            memory.store(spa, value);
            if let Some(log) = &mut self.log {
                log.mark(gpa);
            }
        }
    }

    /// Puts a page's content, as it was saved or sent; says whether there is such a page.
    pub(super) fn put_page(
        &mut self,
        memory: &mut SystemMemory,
        gpa: u64,
        content: Option<&Frame>,
    ) -> bool {
        if !self.has(gpa) || !gpa.is_multiple_of(PAGE) {
            return false;
        }
        if self.locate(gpa).is_none() {
            if content.is_none() {
                return true;
            }
            if self.back(memory, gpa).is_err() {
                return false;
            }
        }
        if let Some((spa, _)) = self.locate(gpa) {
            memory.put_frame(spa, content);
        }
        true
    }

    /// What is at a guest-physical address.
    pub fn peek(&self, memory: &SystemMemory, gpa: u64) -> Option<u64> {
        self.locate(gpa).map(|(spa, _)| memory.load(spa & !7))
    }

    /// The guest loads its root register.
    pub(super) fn load_root(&mut self, memory: &mut SystemMemory, space: u8) {
        self.vcpu.active = space;
        let root = self.vcpu.root();
        if let Translation::Shadow(shadow) = &mut self.translation {
            let log = self.log.as_mut();
            let guest = GuestView { memory, backing: &self.backing, shared: &self.shared, log };
            shadow.load_root(&guest, root);
            self.exits.count(Cause::Cr3);
        }
    }

    /// The guest invalidates one page.
    pub(super) fn invalidate(&mut self, memory: &mut SystemMemory, gva: u64) {
        let root = self.vcpu.root();
        if let Translation::Shadow(shadow) = &mut self.translation {
            let log = self.log.as_mut();
            let guest = GuestView { memory, backing: &self.backing, shared: &self.shared, log };
            shadow.invalidate(&guest, root, gva);
            self.exits.count(Cause::Invlpg);
        }
    }
}
