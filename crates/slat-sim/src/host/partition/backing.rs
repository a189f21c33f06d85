//! The physical memory behind a partition: given, mapped, taken apart.

use slat::edit::Error;

use super::{Partition, Translation, Trap};
use crate::host::exits::Cause;
use crate::host::spa::{Backing, Owner, PAGE, SystemMemory};

impl Partition {
    /// The second stage did not let an access through: what the hypervisor does about it.
    pub(super) fn serve(
        &mut self,
        memory: &mut SystemMemory,
        gpa: u64,
        denied: bool,
    ) -> Result<(), Trap> {
        let page = gpa & !(PAGE - 1);
        if !self.has(gpa) {
            self.exits.count(Cause::Mmio);
            return Err(Trap::Mmio(gpa));
        }
        // Logged before anything else: memory that is given here, as its own or in place of shared
        // memory, is writable, and no later write to it would be seen.
        if let Some(log) = &mut self.log {
            log.mark(page);
        }
        if denied {
            self.exits.count(Cause::WriteProtected);
            if self.shared.contains_key(&page) {
                return self.unshare(memory, page).map_err(|_| Trap::NoMemory(gpa));
            }
            return self.let_write(memory, page).map_err(|_| Trap::NoMemory(gpa));
        }
        self.exits.count(Cause::Violation);
        self.back(memory, page).map_err(|()| Trap::NoMemory(gpa))
    }

    fn let_write(&mut self, memory: &SystemMemory, page: u64) -> Result<(), Error> {
        match &self.translation {
            Translation::SecondStage(tables) => {
                tables.let_write(memory.pool(), page, PAGE, true, &mut self.flushes)
            }
            Translation::Shadow(_) => Ok(()),
        }
    }

    /// The shadow cannot be filled before the host lets an access through ([`Filled::Host`]). Says whether
    /// the exit was counted; where not, what is filled next counts it.
    ///
    /// [`Filled::Host`]: slat_mmu::shadow::Filled::Host
    pub(super) fn serve_shadow(
        &mut self,
        memory: &mut SystemMemory,
        gpa: u64,
    ) -> Result<bool, Trap> {
        let there = self.locate(gpa).is_some();
        if there
            && !self.shared.contains_key(&(gpa & !(PAGE - 1)))
            && let Some(log) = &mut self.log
        {
            log.mark(gpa);
            return Ok(false);
        }
        self.serve(memory, gpa, there).map(|()| true)
    }

    /// Gives memory to a page that has none.
    pub(super) fn back(&mut self, memory: &mut SystemMemory, page: u64) -> Result<(), ()> {
        let owner = Owner::Partition(self.number);
        let got = memory.allocate(owner, &[(page, PAGE)], 0, 0).map_err(|_| ())?;
        let spa = got[0].spa;
        self.add(memory, got).map_err(|_| memory.release(spa, PAGE))
    }

    /// Maps new backing.
    pub(in crate::host) fn add(
        &mut self,
        memory: &SystemMemory,
        backings: Vec<Backing>,
    ) -> Result<(), Error> {
        for backing in backings {
            if let Translation::SecondStage(tables) = &self.translation {
                tables.map(memory.pool(), &backing, &mut self.flushes)?;
            }
            self.backing.insert(backing.gpa, backing);
        }
        Ok(())
    }

    /// Makes one 4 KiB page a backing of its own, and returns it.
    pub(in crate::host) fn carve(&mut self, page: u64) -> Option<Backing> {
        let (&start, &whole) = self.backing.range(..=page).next_back()?;
        let before = page - start;
        if before >= whole.bytes {
            return None;
        }
        if whole.bytes == PAGE {
            return Some(whole);
        }
        self.backing.remove(&start);
        let part = |from: u64, bytes: u64| Backing {
            gpa: start + from,
            spa: whole.spa + from,
            bytes,
            level: 0,
        };
        if before > 0 {
            self.backing.insert(start, part(0, before));
        }
        let after = before + PAGE;
        if after < whole.bytes {
            self.backing.insert(start + after, part(after, whole.bytes - after));
        }
        let one = part(before, PAGE);
        self.backing.insert(page, one);
        Some(one)
    }

    /// Makes one page's translation another one, or none.
    pub(in crate::host) fn remap(
        &mut self,
        memory: &SystemMemory,
        page: u64,
        to: Option<(u64, bool)>,
    ) -> Result<(), Error> {
        let was = self.locate(page);
        match &mut self.translation {
            Translation::SecondStage(tables) => {
                let pool = memory.pool();
                tables.unmap(pool, page, PAGE, &mut self.flushes)?;
                if let Some((spa, writable)) = to {
                    let backing = Backing { gpa: page, spa, bytes: PAGE, level: 0 };
                    tables.map(pool, &backing, &mut self.flushes)?;
                    if !writable {
                        tables.let_write(pool, page, PAGE, false, &mut self.flushes)?;
                    }
                }
            }
            // The next access fills in what there is then.
            Translation::Shadow(shadow) => {
                if let Some((spa, _)) = was {
                    shadow.unmap(spa);
                }
            }
        }
        match to {
            Some((spa, _)) => {
                self.backing.insert(page, Backing { gpa: page, spa, bytes: PAGE, level: 0 });
            }
            None => {
                self.backing.remove(&page);
            }
        }
        Ok(())
    }
}
