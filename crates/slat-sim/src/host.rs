//! A host: a hypervisor on a processor, with partitions.
//!
//! The parent partition owns the system physical address space. A child partition has its memory
//! from power-on, from physical memory, in the largest pages that fit; it is never paged, and
//! where there is not enough it does not start. Its addresses are translated through real tables:
//! second-stage tables in the hypervisor's memory where the processor has a second stage that the
//! hypervisor uses, else shadow tables.

use std::collections::BTreeMap;

use slat::edit::Error;

use crate::hypervisor::{Hypervisor, Means, Refusal};
use crate::preset::{Processor, SecondStage};

mod digest;
mod dirty;
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
mod stage1;
mod text;
pub mod transport;
mod unpaged;
mod wire;

pub use digest::Digest;
pub use dirty::LoggedBy;
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
pub use stage1::Stage1;
pub use unpaged::{IDENTITY_MAP, Segment, Shown, Stretch, Unfit};
pub use wire::{CHUNK, Hello, Last, Message, PageOf, VERSION, WireError};

use spa::SHIFTS;

/// What a host is made of.
#[derive(Clone, PartialEq, Debug)]
pub struct HostSpec {
    /// Its name.
    pub name: String,
    /// Its processor.
    pub processor: Processor,
    /// What runs on it.
    pub hypervisor: Hypervisor,
    /// Memory of each NUMA node, in bytes.
    pub nodes: Vec<u64>,
    /// Where devices are instead of memory: start and size.
    pub holes: Vec<(u64, u64)>,
    /// The hypervisor's memory for tables; `None` is a 32nd of the memory, at least 2 MiB.
    pub tables: Option<u64>,
    /// What the parent partition uses, in bytes.
    pub parent: u64,
    /// Whether the parent may page its own memory to a file.
    pub parent_paging: bool,
    /// What is off by default.
    pub policies: Policies,
}

/// What a child partition is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionSpec {
    /// Its name.
    pub name: String,
    /// Its memory in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Where devices are instead of memory, in guest-physical addresses: start and size.
    pub holes: Vec<(u64, u64)>,
    /// The NUMA node that its memory comes from as long as that has some.
    pub node: usize,
    /// What its guest's arbitrary numbers begin with.
    pub seed: u64,
}

/// Why a host does not do something.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The hypervisor does not start on the processor.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The sizes make no host.
    #[error("host {name}: {text}")]
    Spec {
        /// The host.
        name: String,
        /// What is wrong.
        text: String,
    },
    /// There is not enough physical memory.
    #[error(
        "partition {partition} does not start on host {host}: {short}. Memory is given at power-on \
         and not oversubscribed; {remedy}"
    )]
    NotEnough {
        /// The partition.
        partition: String,
        /// The host.
        host: String,
        /// How much is missing.
        short: NotEnough,
        /// What can be done.
        remedy: String,
    },
    /// There is one of this name.
    #[error("host {host} has a partition {partition} already")]
    Taken {
        /// The host.
        host: String,
        /// The partition.
        partition: String,
    },
    /// There is none of this name.
    #[error("host {host} has no partition {partition}")]
    NoPartition {
        /// The host.
        host: String,
        /// The partition.
        partition: String,
    },
    /// What was asked of a partition makes none.
    #[error("partition {partition}: {text}")]
    Partition {
        /// The partition.
        partition: String,
        /// What is wrong.
        text: String,
    },
    /// The hypervisor's memory for tables is full, or an edit failed otherwise.
    #[error("host {host}, tables of partition {partition}: {error}")]
    Tables {
        /// The host.
        host: String,
        /// The partition.
        partition: String,
        /// Why.
        error: Error,
    },
    /// The guest cannot go on.
    #[error("the guest of partition {partition} stopped after {steps} steps: {text}")]
    Guest {
        /// The partition.
        partition: String,
        /// How far it came.
        steps: u64,
        /// Why.
        text: String,
    },
    /// The parent.
    #[error("host {host}: {error}")]
    Parent {
        /// The host.
        host: String,
        /// Why.
        error: ParentError,
    },
}

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
            self.make_room(spec.bytes)?;
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

    fn translation(&mut self, number: u32, bytes: u64) -> Result<Translation, Error> {
        match self.means {
            Means::SecondStage(_) => {
                SecondTables::create(&self.spec.processor, number, self.memory.pool())
                    .map(Translation::SecondStage)
            }
            Means::Shadow(discipline) => {
                // A 16th of the guest's memory: room for its tables and pieces of large pages.
                let size = (bytes / 16).next_multiple_of(PAGE).max(64 * PAGE);
                let got = self
                    .memory
                    .allocate(Owner::Hypervisor, &[(0, size)], 0, 0)
                    .ok()
                    .filter(|got| got.len() == 1)
                    .ok_or(Error::NoFrame { at: 0, bytes: size })?;
                let shadow = Shadow::new(discipline, got[0].spa, size);
                Ok(Translation::Shadow(shadow))
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

/// Guest-physical memory of so many bytes around holes.
fn ranges(bytes: u64, holes: &[(u64, u64)]) -> Result<Vec<(u64, u64)>, String> {
    if bytes < LEAST || !bytes.is_multiple_of(PAGE) || bytes > MAX_BYTES {
        return Err(format!(
            "a partition has from {} to {} of memory, a multiple of 4 KiB; this has {bytes} bytes",
            size(LEAST),
            size(MAX_BYTES)
        ));
    }
    let mut holes = holes.to_vec();
    holes.sort_unstable();
    let (mut at, mut left) = (0u64, bytes);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (start, bytes) in holes {
        if (start | bytes) % PAGE != 0 || bytes == 0 {
            return Err("a hole begins and ends at a multiple of 4 KiB".to_owned());
        }
        if start < LEAST || start < at {
            return Err(format!("a hole lies above {} and apart from others", size(LEAST)));
        }
        if start - at >= left {
            break;
        }
        if start > at {
            ranges.push((at, start - at));
            left -= start - at;
        }
        at = start.saturating_add(bytes).min(2 * MAX_BYTES);
    }
    ranges.push((at, left));
    Ok(ranges)
}

/// The bytes of a page of this level.
pub const fn page_bytes(level: u8) -> u64 {
    1 << SHIFTS[level as usize]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A host without a parent's use of memory.
    pub(crate) fn host(processor: &str, hypervisor: &str, nodes: &[u64]) -> Host {
        Host::start(HostSpec {
            name: "test".to_owned(),
            processor: Processor::bundled(processor).unwrap(),
            hypervisor: Hypervisor::bundled(hypervisor).unwrap(),
            nodes: nodes.to_vec(),
            holes: Vec::new(),
            tables: None,
            parent: 0,
            parent_paging: false,
            policies: Policies::default(),
        })
        .unwrap()
    }

    pub(crate) fn partition(name: &str, bytes: u64) -> PartitionSpec {
        PartitionSpec { name: name.to_owned(), bytes, holes: Vec::new(), node: 0, seed: 1 }
    }

    /// Hosts of every means.
    pub(crate) const HOSTS: [(&str, &str); 8] = [
        ("nehalem", "kvm-2.6.26"),
        ("haswell", "kvm-3.0"),
        ("barcelona", "xen-3.2"),
        ("zen-4", "kvm-3.0"),
        ("core-2", "kvm-2.6.26"),
        ("core-2", "kvm-3.0"),
        ("vt-x-2005", "hyper-v-2008"),
        ("amd-v-2006", "virtualbox-2.0"),
    ];

    #[test]
    fn a_guest_leaves_the_same_memory_whatever_translates() {
        let mut digests = Vec::new();
        for (processor, hypervisor) in HOSTS {
            let mut host = host(processor, hypervisor, &[64 << 20]);
            host.power_on(&partition("a", 16 << 20)).unwrap();
            host.run("a", 20_000).unwrap();
            let one = host.partition("a").unwrap();
            digests.push((one.digest(&host.memory), one.translations(&host.memory)));
            let shadowed = matches!(one.translation, Translation::Shadow(_));
            assert_eq!(one.exits.of(Cause::HiddenFault) > 0, shadowed, "{processor}");
            assert_eq!(one.exits.of(Cause::TableWrite) > 0, shadowed, "{processor}");
            host.stop("a").unwrap();
            assert_eq!(host.memory.pool().used(), 0, "{processor}: every table came back");
        }
        for pair in digests.windows(2) {
            assert!(pair[0] == pair[1]);
        }
    }

    #[test]
    fn arm_guests_run_through_stage_2() {
        for processor in ["cortex-a15", "cortex-a57", "neoverse-v2"] {
            let mut host = host(processor, "kvm-3.11", &[64 << 20]);
            host.power_on(&partition("a", 16 << 20)).unwrap();
            host.run("a", 5_000).unwrap();
            let one = host.partition("a").unwrap();
            assert_eq!(one.translation.name(), "arm64-s2");
            assert_eq!(one.exits.total(), 0);
            host.stop("a").unwrap();
            assert_eq!(host.memory.pool().used(), 0);
        }
    }

    #[test]
    fn power_on_is_refused_without_enough_memory_and_changes_nothing() {
        let mut host = host("westmere", "hyper-v-2008-r2", &[32 << 20, 32 << 20]);
        host.power_on(&partition("a", 40 << 20)).unwrap();
        let before: Vec<Extent> = host.memory.extents().collect();
        let used = host.memory.pool().used();
        let refused = host.power_on(&partition("b", 32 << 20)).unwrap_err().to_string();
        assert!(refused.contains("32 MiB") && refused.contains("22 MiB"), "{refused}");
        assert_eq!(host.memory.extents().collect::<Vec<_>>(), before);
        assert_eq!(host.memory.pool().used(), used);
        host.stop("a").unwrap();
        host.power_on(&partition("b", 32 << 20)).unwrap();
    }

    #[test]
    fn every_page_of_a_partition_is_translated_to_where_it_lies() {
        for (processor, hypervisor) in [("nehalem", "kvm-3.0"), ("barcelona", "kvm-3.0")] {
            let mut host = host(processor, hypervisor, &[32 << 20, 32 << 20]);
            let spec = PartitionSpec {
                holes: vec![(9 << 20, 1 << 20), (12 << 20, 4096)],
                node: 1,
                ..partition("a", 20 << 20)
            };
            host.power_on(&spec).unwrap();
            let one = host.partition("a").unwrap();
            let Translation::SecondStage(tables) = &one.translation else { unreachable!() };
            for gpa in (0..24u64 << 20).step_by(PAGE as usize) {
                let found = tables.translate(host.memory.pool(), gpa);
                assert_eq!(found.map(|(spa, _)| spa), one.locate(gpa).map(|(spa, _)| spa));
                assert_eq!(one.has(gpa), one.locate(gpa).is_some(), "{gpa:#x}");
                if let Some((spa, _)) = found {
                    assert_eq!(host.memory.owner(spa), Some(Owner::Partition(one.number)));
                }
            }
            assert_eq!(host.memory.node_of(one.locate(0).unwrap().0), Some(1));
        }
    }

    #[test]
    fn a_device_is_no_memory() {
        for (processor, hypervisor) in [("nehalem", "kvm-3.0"), ("core-2", "kvm-3.0")] {
            let mut host = host(processor, hypervisor, &[64 << 20]);
            let spec =
                PartitionSpec { holes: vec![(10 << 20, 2 << 20)], ..partition("a", 20 << 20) };
            host.power_on(&spec).unwrap();
            let (one, memory) = host.both("a").unwrap();
            // The guest maps the device in place of its first page.
            let entry = DIRECT + one.vcpu.tables[0];
            let page = one.stage1.page(10 << 20, 0);
            one.store(memory, entry, page).unwrap();
            one.invalidate(memory, WINDOW);
            assert_eq!(one.load(memory, WINDOW + 8), Err(Trap::Mmio((10 << 20) + 8)));
            assert_eq!(one.exits.of(Cause::Mmio), 1);
        }
    }

    #[test]
    fn dirty_pages_are_exactly_those_that_changed() {
        for (processor, hypervisor) in HOSTS {
            let mut host = host(processor, hypervisor, &[64 << 20]);
            host.power_on(&partition("a", 16 << 20)).unwrap();
            host.run("a", 3_000).unwrap();
            let (one, memory) = host.both("a").unwrap();
            one.start_log(memory).unwrap();
            for round in 0..4 {
                let before: Vec<Option<Frame>> = frames(&host);
                host.run("a", 400).unwrap();
                let after = frames(&host);
                let (one, memory) = host.both("a").unwrap();
                let dirty = one.dirty(memory).unwrap();
                let changed = before.iter().zip(&after).enumerate();
                let changed = changed.filter(|(_, (before, after))| before != after);
                for (page, _) in changed {
                    let gpa = page as u64 * PAGE;
                    assert!(dirty.contains(&gpa), "{processor} round {round}: {gpa:#x} is missed");
                }
                assert!(dirty.len() < 1000, "{processor}: {} pages", dirty.len());
            }
            let (one, memory) = host.both("a").unwrap();
            one.stop_log(memory).unwrap();
            host.run("a", 400).unwrap();
        }
    }

    fn frames(host: &Host) -> Vec<Option<Frame>> {
        let one = host.partition("a").unwrap();
        one.pages().map(|gpa| host.memory.frame(one.locate(gpa).unwrap().0).copied()).collect()
    }

    #[test]
    fn the_parent_pages_itself_out_for_a_partition() {
        let mut spec = host("nehalem", "kvm-3.0", &[4 << 20]).spec;
        spec.nodes = vec![32 << 20];
        spec.parent = 16 << 20;
        let mut host = Host::start(spec.clone()).unwrap();
        let refused = host.power_on(&partition("a", 24 << 20)).unwrap_err().to_string();
        assert!(refused.contains("parent_paging"), "{refused}");
        spec.parent_paging = true;
        let mut host = Host::start(spec).unwrap();
        host.power_on(&partition("a", 24 << 20)).unwrap();
        assert!(host.parent.paged_out > 0);
        host.run("a", 1000).unwrap();
        for number in 0..host.parent.pages() {
            assert!(host.parent.touch(&mut host.memory, number).unwrap());
        }
        let digest = host.partition("a").unwrap().digest(&host.memory);
        for number in (0..host.parent.pages()).rev() {
            assert!(host.parent.touch(&mut host.memory, number).unwrap());
        }
        assert_eq!(host.partition("a").unwrap().digest(&host.memory), digest);
        assert_eq!(host.memory.owned(Owner::Partition(0)), 24 << 20, "a child is never paged");
    }
}
