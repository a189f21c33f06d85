//! A host: a hypervisor on a processor, with partitions.
//!
//! The parent partition owns the system physical address space. A child partition has its memory
//! from power-on, from physical memory, in the largest pages that fit; it is never paged, and
//! where there is not enough it does not start. Its addresses are translated through real tables:
//! second-stage tables in the hypervisor's memory where the processor has a second stage that the
//! hypervisor uses, else shadow tables.

use std::collections::BTreeMap;

use slat::edit::Error;

use crate::hypervisor::Means;
use crate::preset::SecondStage;

mod digest;
mod dirty;
mod error;
mod exits;
mod guest;
pub mod migrate;
mod parent;
mod partition;
pub mod play;
pub mod played;
mod policy;
mod pool;
pub mod processes;
mod saved;
pub mod scenario;
mod second_stage;
mod shadow;
mod spa;
mod spec;
mod stage1;
#[cfg(test)]
pub(crate) mod tests;
mod text;
pub mod transport;
mod unpaged;
mod wire;

pub use digest::Digest;
pub use dirty::LoggedBy;
pub use error::HostError;
pub use exits::{Cause, Exits};
pub use guest::{DIRECT, LEAST, Vcpu, WINDOW};
pub use parent::{Parent, ParentError};
pub use partition::{Partition, Translation, Trap};
pub use policy::{Policies, Shared};
pub use pool::Pool;
pub use saved::SaveError;
pub use second_stage::{Built, SecondTables};
pub use shadow::Shadow;
pub use spa::{
    Backing, Extent, Frame, MAX_BYTES, Node, NotEnough, Owner, PAGE, SystemMemory, size,
};
pub use spec::{HostSpec, PartitionSpec};
pub use stage1::{Architecture, Stage1};
pub use unpaged::{IDENTITY_MAP, Segment, Shown, Stretch, Unfit};
pub use wire::{CHUNK, Hello, Last, Message, PageOf, VERSION, WireError};

use spa::SHIFTS;
use spec::ranges;

/// A hypervisor on a processor, with partitions.
#[derive(Debug)]
pub struct Host {
    /// What it was made of.
    pub spec: HostSpec,
    /// How it translates.
    pub means: Means,
    /// System physical memory.
    pub memory: SystemMemory,
    /// The parent partition.
    pub parent: Parent,
    partitions: BTreeMap<String, Partition>,
    next: u32,
}

impl Host {
    /// Starts the hypervisor.
    ///
    /// # Errors
    /// Where it does not start on this processor, or the memory is none.
    pub fn start(spec: HostSpec) -> Result<Host, HostError> {
        let means = spec.hypervisor.means(&spec.processor)?;
        let wrong = |text: String| HostError::Spec { name: spec.name.clone(), text };
        let total: u64 = spec.nodes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes));
        let tables = spec.tables.unwrap_or_else(|| (total / 32).next_multiple_of(2 << 20));
        let mut memory =
            SystemMemory::new(&spec.nodes, &spec.holes, tables.max(2 << 20)).map_err(&wrong)?;
        if !spec.parent.is_multiple_of(PAGE) {
            return Err(wrong("the parent's memory is a multiple of 4 KiB".to_owned()));
        }
        let parent = Parent::new(&mut memory, spec.parent, spec.parent_paging)
            .map_err(|error| HostError::Parent { host: spec.name.clone(), error })?;
        Ok(Host { spec, means, memory, parent, partitions: BTreeMap::new(), next: 0 })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// `ept`, `npt`, `stage-2` or `shadow`.
    pub fn means_name(&self) -> &'static str {
        match self.means {
            Means::SecondStage(SecondStage::Npt) => "npt",
            Means::SecondStage(SecondStage::Arm) => "stage-2",
            Means::SecondStage(_) => "ept",
            Means::Shadow(_) => "shadow",
        }
    }

    /// The partitions, by name.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.values()
    }

    /// The partition of this name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn partition(&self, name: &str) -> Result<&Partition, HostError> {
        self.partitions.get(name).ok_or_else(|| self.no_partition(name))
    }

    /// The partition of this name, with the memory.
    pub(crate) fn both(
        &mut self,
        name: &str,
    ) -> Result<(&mut Partition, &mut SystemMemory), HostError> {
        if !self.partitions.contains_key(name) {
            return Err(self.no_partition(name));
        }
        match self.partitions.get_mut(name) {
            Some(partition) => Ok((partition, &mut self.memory)),
            None => unreachable!("it was just looked for"),
        }
    }

    fn no_partition(&self, name: &str) -> HostError {
        HostError::NoPartition { host: self.spec.name.clone(), partition: name.to_owned() }
    }

    pub(crate) fn tables_error(&self, partition: &str) -> impl Fn(Error) -> HostError + use<> {
        let (host, partition) = (self.spec.name.clone(), partition.to_owned());
        move |error| HostError::Tables { host: host.clone(), partition: partition.clone(), error }
    }

    /// Starts a partition and boots its guest.
    ///
    /// # Errors
    /// Where there is not enough physical memory: nothing has changed then.
    pub fn power_on(&mut self, spec: &PartitionSpec) -> Result<&Partition, HostError> {
        self.create(spec)?;
        let (partition, memory) = self.both(&spec.name)?;
        guest::boot(partition, memory, spec.seed);
        Ok(partition)
    }

    /// Starts a partition without a guest, as for one that arrives or whose guest has no tables yet.
    ///
    /// # Errors
    /// As [`Host::power_on`].
    pub fn create(&mut self, spec: &PartitionSpec) -> Result<(), HostError> {
        let wrong = |text: String| HostError::Partition { partition: spec.name.clone(), text };
        if self.partitions.contains_key(&spec.name) {
            return Err(HostError::Taken {
                host: self.spec.name.clone(),
                partition: spec.name.clone(),
            });
        }
        let ranges = ranges(spec.bytes, &spec.holes).map_err(&wrong)?;
        if spec.node >= self.memory.nodes().len() {
            return Err(wrong(format!(
                "node {} is not there: the host has {}",
                spec.node,
                self.memory.nodes().len()
            )));
        }
        let stage1 = Stage1::of(&self.spec.processor).map_err(&wrong)?;
        let number = self.next;
        let owner = Owner::Partition(number);
        let largest = self.spec.hypervisor.largest_page(&self.spec.processor).level();
        let backings = if self.spec.policies.overcommit {
            Vec::new()
        } else {
            self.make_room(spec.bytes + self.shadow_bytes(spec.bytes))?;
            self.memory.allocate(owner, &ranges, largest, spec.node).map_err(|short| {
                HostError::NotEnough {
                    partition: spec.name.clone(),
                    host: self.spec.name.clone(),
                    short,
                    remedy: self.remedy(),
                }
            })?
        };
        let made = self.translation(number, spec.bytes);
        let made = made.and_then(|translation| {
            let mut partition = Partition::new(
                spec.name.clone(),
                number,
                ranges,
                Vec::new(),
                translation,
                stage1,
                self.spec.policies.overcommit,
                Vcpu::default(),
            );
            if let Err(error) = partition.add(&self.memory, backings.clone()) {
                partition.backing.clear();
                self.dissolve(&mut partition);
                return Err(error);
            }
            Ok(partition)
        });
        let made = made.map_err(|error| {
            for backing in &backings {
                self.memory.release(backing.spa, backing.bytes);
            }
            self.tables_error(&spec.name)(error)
        })?;
        self.next += 1;
        self.partitions.insert(spec.name.clone(), made);
        Ok(())
    }

    /// What a user without enough memory can do.
    fn remedy(&self) -> String {
        let mut ways = vec!["stop another partition", "give this one less"];
        if !self.parent.may_page() && self.parent.pages() > 0 {
            ways.push("let the parent page its own memory (parent_paging = true)");
        }
        ways.push("or allow overcommitment (policies.overcommit = true)");
        ways.join(", ")
    }

    /// Has the parent page its own memory out where that is needed and allowed.
    fn make_room(&mut self, bytes: u64) -> Result<(), HostError> {
        let unused = self.memory.owned(Owner::Unused);
        if unused >= bytes || !self.parent.may_page() {
            return Ok(());
        }
        let missing = bytes - unused;
        // Where even that is not enough, nothing is paged out for it.
        if self.parent.could_page_out() < missing {
            return Ok(());
        }
        self.parent
            .page_out(&mut self.memory, missing)
            .map(|_| ())
            .map_err(|error| HostError::Parent { host: self.spec.name.clone(), error })
    }

    /// Memory for the shadow tables of a guest with this much: a 16th of it, room for its tables and
    /// pieces of large pages. None where the processor walks a second stage.
    fn shadow_bytes(&self, bytes: u64) -> u64 {
        match self.means {
            Means::SecondStage(_) => 0,
            Means::Shadow(_) => (bytes / 16).next_multiple_of(PAGE).max(64 * PAGE),
        }
    }

    fn translation(&mut self, number: u32, bytes: u64) -> Result<Translation, Error> {
        match self.means {
            Means::SecondStage(_) => {
                SecondTables::create(&self.spec.processor, number, self.memory.pool())
                    .map(Translation::SecondStage)
            }
            Means::Shadow(discipline) => {
                let size = self.shadow_bytes(bytes);
                let got = self.memory.allocate(Owner::Hypervisor, &[(0, size)], 0, 0);
                match got.as_deref() {
                    Ok(&[one]) => Ok(Translation::Shadow(Shadow::new(discipline, one.spa, size))),
                    pieces => {
                        for piece in pieces.unwrap_or_default() {
                            self.memory.release(piece.spa, piece.bytes);
                        }
                        Err(Error::NoFrame { at: 0, bytes: size })
                    }
                }
            }
        }
    }

    /// Stops a partition: its memory is the parent's again.
    ///
    /// # Errors
    /// Where there is none of this name.
    pub fn stop(&mut self, name: &str) -> Result<(), HostError> {
        let Some(mut partition) = self.partitions.remove(name) else {
            return Err(self.no_partition(name));
        };
        self.dissolve(&mut partition);
        Ok(())
    }

    /// Takes everything back that a partition has.
    fn dissolve(&mut self, partition: &mut Partition) {
        match &partition.translation {
            Translation::SecondStage(tables) => {
                tables.free(self.memory.pool(), &mut partition.flushes);
            }
            Translation::Shadow(shadow) => {
                let (base, bytes) = shadow.place();
                self.memory.release(base, bytes);
            }
        }
        for backing in partition.backing.values() {
            match partition.shared.get(&backing.gpa) {
                Some(&spa) => self.memory.leave_share(spa),
                None => self.memory.release(backing.spa, backing.bytes),
            }
        }
    }

    /// Runs a partition's guest for so many steps.
    ///
    /// # Errors
    /// Where it cannot go on.
    pub fn run(&mut self, name: &str, steps: u64) -> Result<(), HostError> {
        let (partition, memory) = self.both(name)?;
        guest::run(partition, memory, steps).map_err(|trap| HostError::Guest {
            partition: name.to_owned(),
            steps: partition.vcpu.steps,
            text: match trap {
                Trap::Guest => "its own tables do not permit the access".to_owned(),
                Trap::Mmio(gpa) => format!("nothing is at guest-physical address {gpa:#x}"),
                Trap::NoMemory(gpa) => format!(
                    "the host has no memory left for guest-physical address {gpa:#x}: memory was \
                     overcommitted"
                ),
            },
        })
    }

    /// Follows one of a guest's addresses: guest-physical, then system physical.
    ///
    /// # Errors
    /// Where there is no such partition.
    pub fn follow(&self, name: &str, gva: u64) -> Result<Option<(u64, u64)>, HostError> {
        Ok(self.partition(name)?.follow(&self.memory, gva))
    }
}

/// The bytes of a page of this level.
pub const fn page_bytes(level: u8) -> u64 {
    1 << SHIFTS[level as usize]
}
