//! What hypervisors may do beyond giving memory at power-on, each off unless it is asked for:
//! overcommitment, ballooning, page sharing.

use std::collections::BTreeMap;

use super::partition::Partition;
use super::spa::{Frame, NotEnough, Owner, PAGE, SystemMemory};
use super::{Host, HostError};

/// What is allowed on a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policies {
    /// A partition starts without memory and gets each page at its first touch; together they may
    /// have been promised more than there is, and one that touches a page when there is none left
    /// stops.
    pub overcommit: bool,
    /// Guests may be asked to give pages back.
    pub balloon: bool,
    /// Pages with the same content may be kept once, until one is written to.
    pub share: bool,
}

/// What sharing found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shared {
    /// Pages that were looked at.
    pub scanned: u64,
    /// Pages whose memory came free.
    pub freed: u64,
}

impl Partition {
    /// A shared page is written to: it gets memory of its own.
    pub(super) fn unshare(
        &mut self,
        memory: &mut SystemMemory,
        page: u64,
    ) -> Result<(), NotEnough> {
        let owner = Owner::Partition(self.number);
        let got = memory.allocate(owner, &[(page, PAGE)], 0, 0)?;
        let Some(spa) = self.shared.remove(&page) else { return Ok(()) };
        let content = memory.frame(spa).copied();
        memory.put_frame(got[0].spa, content.as_ref());
        // Nothing but the pool's tables can be missing, and this page had its table.
        let _ = self.remap(memory, page, Some((got[0].spa, true)));
        memory.leave_share(spa);
        Ok(())
    }
}

impl Host {
    fn allowed(&self, policy: bool, name: &str, field: &str) -> Result<(), HostError> {
        if policy {
            return Ok(());
        }
        Err(HostError::Spec {
            name: self.spec.name.clone(),
            text: format!("{name} is off; policies.{field} = true allows it"),
        })
    }

    /// Asks a guest to give back so many bytes: it takes pages that it has no use for (the last of
    /// its memory) and the hypervisor takes what is behind them. Returns how many bytes came free.
    ///
    /// # Errors
    /// Where the policy is off.
    pub fn balloon(&mut self, name: &str, bytes: u64) -> Result<u64, HostError> {
        self.allowed(self.spec.policies.balloon, "ballooning", "balloon")?;
        let failed = self.tables_error(name);
        let (partition, memory) = self.both(name)?;
        let in_use = partition.pages_in_use();
        let mut taken = 0;
        let pages: Vec<u64> = partition.pages().collect();
        for page in pages.into_iter().rev().filter(|page| *page >= in_use) {
            if taken >= bytes {
                break;
            }
            if partition.shared.contains_key(&page) {
                continue;
            }
            let Some(backing) = partition.carve(page) else { continue };
            partition.remap(memory, page, None).map_err(&failed)?;
            memory.release(backing.spa, PAGE);
            taken += PAGE;
        }
        // A guest that touches what its balloon holds gets memory for it again.
        Ok(taken)
    }

    /// Looks for pages with the same content in all partitions and keeps each once, read-only.
    ///
    /// # Errors
    /// Where the policy is off, or the hypervisor has no memory for tables of small pages.
    pub fn share(&mut self) -> Result<Shared, HostError> {
        self.allowed(self.spec.policies.share, "page sharing", "share")?;
        let mut shared = Shared::default();
        let mut known: BTreeMap<Box<Frame>, (String, u64, u64)> = BTreeMap::new();
        let names: Vec<String> = self.partitions().map(|one| one.name.clone()).collect();
        for name in names {
            let (partition, _) = self.both(&name)?;
            let pages: Vec<u64> = partition.pages().collect();
            for page in pages {
                let (partition, memory) = self.both(&name)?;
                let Some((spa, _)) = partition.locate(page) else { continue };
                if partition.shared.contains_key(&page) {
                    continue;
                }
                shared.scanned += 1;
                let content = memory.frame(spa).copied().unwrap_or([0; 512]);
                let Some((first, at, keep)) = known.get(&content).cloned() else {
                    known.insert(Box::new(content), (name.clone(), page, spa));
                    continue;
                };
                // The first of its content becomes shared with the second. Where the second cannot be
                // mapped, the first alone shares it, and gets it back whole when it stops or writes.
                self.join(&first, at, keep)?;
                self.join(&name, page, keep)?;
                self.memory.release(spa, PAGE);
                shared.freed += 1;
            }
        }
        Ok(shared)
    }

    /// Makes one page of a partition one of those that lie at `keep`, unless it is.
    fn join(&mut self, name: &str, page: u64, keep: u64) -> Result<(), HostError> {
        let failed = self.tables_error(name);
        let (partition, memory) = self.both(name)?;
        if partition.shared.contains_key(&page) {
            return Ok(());
        }
        partition.carve(page);
        // Counted when it is mapped: where the tables have no room, it keeps what it has.
        partition.remap(memory, page, Some((keep, false))).map_err(&failed)?;
        partition.shared.insert(page, keep);
        memory.join_share(keep);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{host, partition};
    use super::super::{Cause, Translation};
    use super::*;

    #[test]
    fn policies_are_off_by_default() {
        let mut host = host("westmere", "kvm-3.0", &[64 << 20]);
        host.power_on(&partition("a", 16 << 20)).unwrap();
        assert!(host.balloon("a", 1 << 20).unwrap_err().to_string().contains("policies.balloon"));
        assert!(host.share().unwrap_err().to_string().contains("policies.share"));
        let too_much = host.power_on(&partition("b", 64 << 20)).unwrap_err();
        assert!(matches!(too_much, HostError::NotEnough { .. }), "{too_much}");
    }

    /// With a second stage, and with shadow tables of both disciplines.
    const MEANS: [(&str, &str); 3] =
        [("westmere", "kvm-3.0"), ("core-2", "kvm-3.0"), ("vt-x-2005", "hyper-v-2008")];

    /// What the shadow lets the guest reach is the partition's own, or shared and read-only.
    fn reaches_its_own(host: &Host, name: &str) {
        let partition = host.partition(name).unwrap();
        let Translation::Shadow(shadow) = &partition.translation else { return };
        let mut leaves = 0;
        for (spa, bytes, writable) in shadow.mapped() {
            leaves += 1;
            for spa in (spa..spa + bytes).step_by(PAGE as usize) {
                match host.memory.owner(spa) {
                    Some(Owner::Shared) => {
                        assert!(!writable, "{name}: {spa:#x} is others' too");
                        assert!(partition.shared.values().any(|shared| *shared == spa));
                    }
                    owner => assert_eq!(owner, Some(Owner::Partition(partition.number))),
                }
            }
        }
        assert!(leaves > 0);
    }

    #[test]
    fn shared_pages_are_copied_when_written() {
        for (processor, hypervisor) in MEANS {
            let mut host = host(processor, hypervisor, &[64 << 20]);
            host.spec.policies.share = true;
            for name in ["a", "b"] {
                host.power_on(&partition(name, 8 << 20)).unwrap();
                host.run(name, 500).unwrap();
            }
            let digest = |host: &Host, name| host.partition(name).unwrap().digest(&host.memory);
            let before = [digest(&host, "a"), digest(&host, "b")];
            assert_eq!(before[0], before[1], "the same guest, the same steps");
            let unused = host.memory.owned(Owner::Unused);
            let shared = host.share().unwrap();
            assert!(shared.freed >= 2048, "{shared:?}");
            assert_eq!(host.memory.owned(Owner::Unused), unused + shared.freed * PAGE);
            assert_eq!([digest(&host, "a"), digest(&host, "b")], before);
            // One runs on: the other does not see it.
            host.run("a", 2000).unwrap();
            assert_eq!(digest(&host, "b"), before[1], "{processor}");
            reaches_its_own(&host, "a");
            let written = host.partition("a").unwrap();
            assert!(written.exits.of(Cause::WriteProtected) > 0);
            for gva in (0..written.vcpu.pages).map(|page| super::super::WINDOW + page * PAGE) {
                let (gpa, spa) = written.follow(&host.memory, gva).unwrap();
                assert_eq!(written.locate(gpa).map(|(spa, _)| spa), Some(spa));
            }
            host.run("b", 2000).unwrap();
            reaches_its_own(&host, "b");
            assert_eq!(digest(&host, "a"), digest(&host, "b"));
            host.stop("a").unwrap();
            host.stop("b").unwrap();
            assert_eq!(host.memory.owned(Owner::Shared), 0);
            assert_eq!(host.memory.pool().used(), 0);
        }
    }

    /// Stores to shared pages are logged as well, and pages that are shared while the log is on keep what
    /// was logged.
    #[test]
    fn stores_to_shared_pages_are_logged() {
        for (processor, hypervisor) in MEANS {
            let mut host = host(processor, hypervisor, &[64 << 20]);
            host.spec.policies.share = true;
            for name in ["a", "b"] {
                host.power_on(&partition(name, 8 << 20)).unwrap();
                host.run(name, 500).unwrap();
            }
            let (one, memory) = host.both("a").unwrap();
            one.start_log(memory).unwrap();
            host.share().unwrap();
            let frames = |host: &Host| {
                let one = host.partition("a").unwrap();
                let frame = |gpa| host.memory.frame(one.locate(gpa).unwrap().0).copied();
                one.pages().map(|gpa| (gpa, frame(gpa))).collect::<Vec<_>>()
            };
            for _ in 0..2 {
                let before = frames(&host);
                host.run("a", 300).unwrap();
                let after = frames(&host);
                let (one, memory) = host.both("a").unwrap();
                let dirty = one.dirty(memory).unwrap();
                for ((gpa, before), (_, after)) in before.iter().zip(&after) {
                    assert!(before == after || dirty.contains(gpa), "{processor}: {gpa:#x}");
                }
            }
        }
    }

    #[test]
    fn sharing_that_the_tables_have_no_room_for_takes_nothing_away() {
        use slat::edit::FrameSource;
        // How many splits succeed: none, the first partition's alone, both.
        for frames in 0..3 {
            let mut host = host("westmere", "kvm-3.0", &[64 << 20]);
            host.spec.policies.share = true;
            for name in ["a", "b"] {
                host.power_on(&partition(name, 8 << 20)).unwrap();
                host.run(name, 500).unwrap();
            }
            let digest = |host: &Host, name| host.partition(name).unwrap().digest(&host.memory);
            let before = digest(&host, "a");
            let unused = host.memory.owned(Owner::Unused);
            let pool = host.memory.pool();
            let mut taken: Vec<_> = std::iter::from_fn(|| pool.take(PAGE)).collect();
            for frame in taken.drain(..frames) {
                pool.put(frame);
            }
            host.share().unwrap_err();
            assert_eq!([digest(&host, "a"), digest(&host, "b")], [before; 2]);
            host.stop("b").unwrap();
            assert_eq!(digest(&host, "a"), before, "{frames}: what b had was a's too");
            for frame in taken {
                host.memory.pool().put(frame);
            }
            host.run("a", 500).unwrap();
            host.stop("a").unwrap();
            assert_eq!(host.memory.owned(Owner::Shared), 0);
            assert_eq!(host.memory.owned(Owner::Unused), unused + (16 << 20));
        }
    }

    #[test]
    fn a_balloon_gives_memory_back_and_gets_it_again() {
        for (processor, hypervisor) in MEANS {
            let mut host = host(processor, hypervisor, &[64 << 20]);
            host.spec.policies.balloon = true;
            host.power_on(&partition("a", 16 << 20)).unwrap();
            let last = super::super::DIRECT + (16 << 20) - 8;
            let (partition_a, memory) = host.both("a").unwrap();
            partition_a.store(memory, last, 5).unwrap();
            let (_, was) = partition_a.follow(memory, last).unwrap();
            let unused = host.memory.owned(Owner::Unused);
            assert_eq!(host.balloon("a", 1 << 20).unwrap(), 1 << 20);
            assert_eq!(host.memory.owned(Owner::Unused), unused + (1 << 20));
            assert_eq!(host.follow("a", last).unwrap(), None);
            // Others get what it gave back.
            while host.memory.owner(was) == Some(Owner::Unused) {
                host.memory.allocate(Owner::Parent, &[(0, PAGE)], 0, 0).unwrap();
            }
            host.memory.store(was, 9);
            host.run("a", 1000).unwrap();
            reaches_its_own(&host, "a");
            let (partition, memory) = host.both("a").unwrap();
            partition.store(memory, last, 7).unwrap();
            assert_eq!(partition.exits.of(Cause::Violation), 1);
            assert_eq!(partition.load(memory, last), Ok(7));
            assert_ne!(partition.follow(memory, last).unwrap().1, was);
            assert_eq!(memory.load(was), 9, "{processor}: it is another's");
            reaches_its_own(&host, "a");
        }
    }

    #[test]
    fn overcommitted_memory_is_given_at_the_first_touch_until_none_is_left() {
        let mut host = host("westmere", "kvm-3.0", &[16 << 20]);
        host.spec.policies.overcommit = true;
        host.power_on(&partition("a", 1 << 30)).unwrap();
        let stopped = host.run("a", 100_000).unwrap_err().to_string();
        assert!(stopped.contains("overcommitted"), "{stopped}");
    }
}
