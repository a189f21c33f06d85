//! A guest whose own tables are 32-bit.

use slat::format::x86::legacy::Legacy;
use slat::{Access, Gpa, Gva, Kind, Stage, walk};
use slat_mmu::shadow::Widened;

use super::translate::OBSTACLES;
use super::view::{GuestView, Looked};
use super::{Partition, Translation, Trap};
use crate::host::exits::Cause;
use crate::host::spa::SystemMemory;

impl Partition {
    /// The guest's access through 32-bit tables.
    ///
    /// # Errors
    /// Where it lands in no memory.
    pub(in crate::host) fn resolve_legacy(
        &mut self,
        memory: &mut SystemMemory,
        stage1: &Stage<Legacy, Gva, Gpa>,
        linear: u64,
        access: &Access,
    ) -> Result<(u64, u64), Trap> {
        if let Some(done) = self.resolve_nested(memory, stage1, linear, access) {
            return done;
        }
        let mut counted = false;
        for _ in 0..OBSTACLES {
            // By the guest's own tables, without any effect.
            let mut looked = Looked { memory, backing: &self.backing };
            let look = Stage::<_, Gva, Gpa>::new(stage1.format, stage1.root);
            let read = Access::new(Kind::Read, access.privilege);
            let by_guest = walk(&look, &mut looked, Gva::new(linear), &read, &self.regime, &());
            let gpa = by_guest.ok().map(|mapped| mapped.output.raw());
            let Translation::Shadow(shadow) = &mut self.translation else { break };
            let log = self.log.as_mut();
            let mut guest = GuestView { memory, backing: &self.backing, shared: &self.shared, log };
            let mut widened = Widened::new(&mut guest, stage1.format);
            let seen = widened.stage(stage1.root);
            let found = shadow.walk(widened.walked(), seen.root, linear, access, &self.regime);
            if let (Some(spa), Some(gpa)) = (found, gpa) {
                return Ok((gpa, spa));
            }
            let filled = shadow.fill(&mut widened, &seen, linear, access, &self.regime);
            if let Some(carried) = self.filled(memory, filled, &mut counted)? {
                return Ok(carried);
            }
        }
        Err(Trap::Guest)
    }

    /// The guest, whose tables are 32-bit, stored at this guest-physical address.
    pub(in crate::host) fn stored_legacy(&mut self, gpa: u64) {
        if let Translation::Shadow(shadow) = &mut self.translation
            && shadow.store_legacy(gpa).exits
        {
            self.exits.count(Cause::TableWrite);
        }
    }

    /// The guest has another root of 32-bit tables from now on: by a load of CR3, or by turning paging
    /// on.
    pub(in crate::host) fn load_root_legacy(
        &mut self,
        memory: &mut SystemMemory,
        stage1: &Stage<Legacy, Gva, Gpa>,
    ) {
        if let Translation::Shadow(shadow) = &mut self.translation {
            let log = self.log.as_mut();
            let mut guest = GuestView { memory, backing: &self.backing, shared: &self.shared, log };
            let widened = Widened::new(&mut guest, stage1.format);
            shadow.load_root(&widened, widened.stage(stage1.root).root);
        }
    }
}

#[cfg(test)]
mod tests {
    use slat::format::x86::Controls;
    use slat::{Privilege, Updates};

    use super::*;
    use crate::host::spa::PAGE;
    use crate::host::tests::{host, partition};

    const DIRECTORY: u64 = 1 << 20;
    const TABLE: u64 = DIRECTORY + PAGE;
    const DATA: u64 = 2 << 20;
    const D: u64 = 1 << 6;
    /// The table's first two entries.
    const ENTRIES: u64 = DATA | 1 | ((DATA + PAGE) | 3) << 32;

    /// 32-bit paging with `CR0.WP` clear.
    fn paging() -> Stage<Legacy, Gva, Gpa> {
        let controls = Controls { write_protect: false, ..Controls::default() };
        let format = Legacy::new(controls, false, 32);
        Stage::new(format, DIRECTORY).with_updates(Updates::OnSuccess)
    }

    /// One table: of its pages the first is read-only, the second may be written to; both are the
    /// supervisor's.
    fn load(partition: &mut Partition, memory: &mut SystemMemory) {
        partition.poke(memory, DIRECTORY, TABLE | 3);
        partition.poke(memory, TABLE, ENTRIES);
    }

    fn access(
        partition: &mut Partition,
        memory: &mut SystemMemory,
        page: u64,
        kind: Kind,
    ) -> Result<(u64, u64), Trap> {
        let access = Access::new(kind, Privilege::Supervisor);
        partition.resolve_legacy(memory, &paging(), page * PAGE, &access)
    }

    /// The processor has `CR0.WP` set where the guest has not, so that each store to a read-only page exits
    /// and is carried out, and none goes by the dirty bit or the log.
    #[test]
    fn stores_with_write_protect_clear_are_noticed() {
        let mut host = host("vt-x-2005", "kvm-3.0", &[32 << 20]);
        host.create(&partition("a", 8 << 20)).unwrap();
        let (one, memory) = host.both("a").unwrap();
        load(one, memory);
        for logged in [false, true] {
            for round in 1..3 {
                for page in 0..2 {
                    let of = [Cause::Emulation, Cause::Dirty][page as usize];
                    let (entry, gpa) = (TABLE, DATA + page * PAGE);
                    let shift = 32 * page;
                    if !logged {
                        // As software that ages its pages does.
                        let aged = one.peek(memory, entry).unwrap() & !(D << shift);
                        let (_, spa) = access(one, memory, page, Kind::Read).unwrap();
                        let at = one.locate(entry).unwrap().0;
                        memory.store(at, aged);
                        one.stored_legacy(entry + 4 * page);
                        one.load_root_legacy(memory, &paging());
                        assert_eq!(one.locate(gpa).unwrap().0, spa);
                    } else {
                        one.dirty(memory).unwrap();
                    }
                    access(one, memory, page, Kind::Read).unwrap();
                    let before = one.exits.of(of);
                    assert_eq!(access(one, memory, page, Kind::Write).unwrap().0, gpa);
                    assert_eq!(one.exits.of(of), before + 1, "{logged} {round} {page}");
                    assert_ne!(one.peek(memory, entry).unwrap() & D << shift, 0, "{page}");
                    if logged {
                        assert!(one.dirty(memory).unwrap().contains(&gpa), "{round} {page}");
                    }
                }
            }
            if !logged {
                one.start_log(memory).unwrap();
            }
        }
    }

    /// What is carried out is so in the partition's own memory.
    #[test]
    fn a_store_that_is_carried_out_leaves_shared_pages_alone() {
        let mut host = host("vt-x-2005", "kvm-3.0", &[64 << 20]);
        host.spec.policies.share = true;
        for name in ["a", "b"] {
            host.create(&partition(name, 8 << 20)).unwrap();
            let (one, memory) = host.both(name).unwrap();
            load(one, memory);
            one.poke(memory, DATA, 5);
        }
        host.share().unwrap();
        let (one, memory) = host.both("a").unwrap();
        access(one, memory, 0, Kind::Read).unwrap();
        let (gpa, spa) = access(one, memory, 0, Kind::Write).unwrap();
        memory.store(spa, 7);
        assert_eq!(one.locate(gpa).unwrap().0, spa);
        assert_eq!(one.peek(memory, DATA), Some(7));
        let (other, memory) = host.both("b").unwrap();
        assert_eq!(other.peek(memory, DATA), Some(5));
        // Its tables were shared too, and the accessed and dirty bits are the first guest's alone.
        assert_eq!(other.peek(memory, TABLE), Some(ENTRIES));
    }

    /// With paging off nothing of the guest's keeps it from a page that others have too.
    #[test]
    fn a_store_before_paging_leaves_shared_pages_alone() {
        let mut host = host("vt-x-2005", "kvm-3.0", &[64 << 20]);
        host.spec.policies.share = true;
        for name in ["a", "b"] {
            host.create(&partition(name, 8 << 20)).unwrap();
        }
        host.share().unwrap();
        let (one, memory) = host.both("a").unwrap();
        let write = Access::new(Kind::Write, Privilege::Supervisor);
        let (_, spa) = one.resolve_unpaged(memory, DATA, &write).unwrap();
        memory.store(spa, 7);
        assert_eq!(host.partition("b").unwrap().peek(&host.memory, DATA), Some(0));
    }
}
