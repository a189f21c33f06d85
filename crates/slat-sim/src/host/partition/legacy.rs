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
