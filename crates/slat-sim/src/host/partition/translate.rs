//! Where an access of the guest lands: through the second stage or the shadow, the hypervisor doing its
//! part.

use slat::edit::Encode;
use slat::format::Format;
use slat::format::flat::Flat;
use slat::{Access, Gpa, Gva, Kind, Privilege, Stage, Updates, walk};
use slat_mmu::shadow::Filled;

use super::view::{GuestView, Looked, nested};
use super::{Partition, Translation, Trap};
use crate::host::exits::Cause;
use crate::host::second_stage::{SecondTables, each};
use crate::host::spa::{PAGE, SystemMemory};
use crate::host::stage1::{Stage1, each_stage1};

/// An access may meet one obstacle a table and one at its end; each is met once.
pub(super) const OBSTACLES: u32 = 16;

/// Why a nested walk ended, as the hypervisor sees it.
enum Missed {
    Guest,
    Second { gpa: u64, denied: bool },
}

impl Partition {
    /// Where the guest's page lies, without any effect: by its own tables and the host's backing.
    pub(in crate::host) fn look(&self, memory: &SystemMemory, root: u64, gva: u64) -> Option<u64> {
        let mut looked = Looked { memory, backing: &self.backing };
        let access = Access::new(Kind::Read, Privilege::Supervisor);
        let gva = Gva::new(gva);
        let output = each_stage1!(&self.stage1, format => {
            let stage = Stage::<_, Gva, Gpa>::new(*format, format.root(root));
            walk(&stage, &mut looked, gva, &access, &self.regime, &()).ok()?.output
        });
        Some(output.raw())
    }

    /// What the guest's virtual address leads to now: guest-physical and system physical.
    pub(in crate::host) fn follow(&self, memory: &SystemMemory, gva: u64) -> Option<(u64, u64)> {
        let gpa = self.look(memory, self.vcpu.root(), gva)?;
        Some((gpa, self.locate(gpa)?.0))
    }

    /// Where an access of the guest lands, the hypervisor doing its part: the guest-physical and
    /// the system physical address.
    ///
    /// # Errors
    /// Where it lands in no memory.
    pub(in crate::host) fn resolve(
        &mut self,
        memory: &mut SystemMemory,
        gva: u64,
        kind: Kind,
    ) -> Result<(u64, u64), Trap> {
        let access = Access::new(kind, Privilege::Supervisor);
        let root = self.vcpu.root();
        for _ in 0..OBSTACLES {
            let Translation::SecondStage(tables) = &self.translation else {
                return self.resolve_shadow(memory, root, gva, &access);
            };
            let found = each!(tables, built => each_stage1!(&self.stage1, format => {
                let stage = Stage::new(*format, format.root(root)).with_updates(Updates::OnSuccess);
                nested(&stage, &built.stage(), memory, gva, &access, &self.regime)
            }));
            match found.map_err(missed) {
                Ok(found) => return Ok(found),
                Err(Missed::Guest) => return Err(Trap::Guest),
                Err(Missed::Second { gpa, denied }) => self.serve(memory, gpa, denied)?,
            }
        }
        Err(Trap::Guest)
    }

    /// Through a stage 1 of the caller's and the second stage; `None` on shadow tables.
    pub(super) fn resolve_nested<F: Format>(
        &mut self,
        memory: &mut SystemMemory,
        stage1: &Stage<F, Gva, Gpa>,
        linear: u64,
        access: &Access,
    ) -> Option<Result<(u64, u64), Trap>> {
        for _ in 0..OBSTACLES {
            let Translation::SecondStage(tables) = &self.translation else { return None };
            let found = each!(tables, built => {
                nested(stage1, &built.stage(), memory, linear, access, &self.regime)
            });
            match found.map_err(missed) {
                Ok(found) => return Some(Ok(found)),
                Err(Missed::Guest) => return Some(Err(Trap::Guest)),
                Err(Missed::Second { gpa, denied }) => {
                    if let Err(trap) = self.serve(memory, gpa, denied) {
                        return Some(Err(trap));
                    }
                }
            }
        }
        Some(Err(Trap::Guest))
    }

    /// The guest's access with its stage 1 off, or one that is emulated: a linear address is
    /// guest-physical.
    ///
    /// # Errors
    /// Where it lands in no memory.
    pub(in crate::host) fn resolve_unpaged(
        &mut self,
        memory: &mut SystemMemory,
        linear: u64,
        access: &Access,
    ) -> Result<(u64, u64), Trap> {
        let off = Stage::<_, Gva, Gpa>::new(Flat::X86_UNPAGED, ());
        if let Some(done) = self.resolve_nested(memory, &off, linear, access) {
            return done;
        }
        let write = access.kind == Kind::Write;
        let there = self.locate(linear).is_some();
        if !there || write && self.shared.contains_key(&(linear & !(PAGE - 1))) {
            self.serve(memory, linear, there)?;
        }
        let (spa, _) = self.locate(linear).ok_or(Trap::NoMemory(linear))?;
        if write && let Some(log) = &mut self.log {
            log.mark(linear);
        }
        Ok((linear, spa))
    }

    fn resolve_shadow(
        &mut self,
        memory: &mut SystemMemory,
        root: u64,
        gva: u64,
        access: &Access,
    ) -> Result<(u64, u64), Trap> {
        let Some(stage1) = self.stage1.x86(root) else { return Err(Trap::Guest) };
        let mut counted = false;
        for _ in 0..OBSTACLES {
            let Translation::Shadow(shadow) = &mut self.translation else { break };
            if let Some(spa) = shadow.walk(stage1.format, root, gva, access, &self.regime) {
                let gpa = self.look(memory, root, gva).unwrap_or_default();
                return Ok((gpa, spa));
            }
            let log = self.log.as_mut();
            let mut guest = GuestView { memory, backing: &self.backing, shared: &self.shared, log };
            let filled = shadow.fill(&mut guest, &stage1, gva, access, &self.regime);
            if let Some(carried) = self.filled(memory, filled, &mut counted)? {
                return Ok(carried);
            }
        }
        Err(Trap::Guest)
    }

    /// The hypervisor's part of an exit after the shadow was filled: where the store goes that it carries
    /// out at once, or nothing where the guest tries again. `counted`: the exit has been already.
    pub(super) fn filled(
        &mut self,
        memory: &mut SystemMemory,
        filled: Filled,
        counted: &mut bool,
    ) -> Result<Option<(u64, u64)>, Trap> {
        let cause = match filled {
            Filled::Host { gpa } => {
                *counted |= self.serve_shadow(memory, gpa)?;
                return Ok(None);
            }
            Filled::True => Cause::TrueFault,
            Filled::Hidden(exit) | Filled::Carried { exit, .. } => exit.into(),
        };
        if !core::mem::take(counted) {
            self.exits.count(cause);
        }
        match filled {
            Filled::True => Err(Trap::Guest),
            Filled::Carried { gpa, .. } => Ok(self.locate(gpa).map(|(spa, _)| (gpa, spa))),
            _ => Ok(None),
        }
    }
}

fn missed((gpa, denied, guest): (u64, bool, bool)) -> Missed {
    if guest { Missed::Guest } else { Missed::Second { gpa, denied } }
}
