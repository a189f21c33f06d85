//! Misses: walks natively, through a second stage, and of shadow tables.

use slat::format::Format;
use slat::{Gpa, Gva, Kind, Privilege, Spa, Stage, Updates};
use slat_mmu::shadow::{Exit, Filled};
use slat_mmu::tlb::Entry;
use slat_mmu::walker::{Context, Globals};
use slat_trace::{Access, Root};

use super::{Cause, Hypervisor, Machine, is_of, vm_tag};
use crate::guest::Guest;
use crate::native::Shifted;

/// The part of an entry that lies in one host page, of this size (log2).
fn within(entry: Entry, va: u64, backed: u8) -> Entry {
    let shift = entry.shift.min(backed);
    Entry { base: entry.place(va) >> shift << shift, shift, ..entry }
}

impl<G: Guest, F2: Format> Machine<G, F2> {
    pub(super) fn walk_off(&mut self, access: &Access, va: u64, kind: Kind) -> Option<Entry> {
        let core = self.cores.get_mut(usize::from(access.vcpu))?;
        let stage1 = core.stage1.as_ref()?;
        // Natively the guest's memory is the machine's, at its place in this simulation.
        let stage2 = Stage::<_, Gpa, Spa>::new(Shifted, self.memory.guest_base());
        let context = Context {
            stage1,
            stage2: &stage2,
            regime: &self.regime,
            space: core.space,
            vm: vm_tag(self.start.vm),
            globals: G::GLOBALS,
            dirty_tracked: true,
        };
        let gva = Gva::new(va);
        let walked = core
            .caches
            .walk(&context, &mut self.memory, gva, kind, access.user(), &self.grid)
            .ok()?;
        core.tlb.insert(va, core.space, kind, walked.entry);
        Some(walked.entry)
    }

    pub(super) fn walk_nested(
        &mut self,
        stage2: &Stage<F2, Gpa, Spa>,
        access: &Access,
        va: u64,
        kind: Kind,
    ) -> Option<Entry> {
        let core = self.cores.get_mut(usize::from(access.vcpu))?;
        let context = Context {
            stage1: core.stage1.as_ref()?,
            stage2,
            regime: &self.regime,
            space: core.space,
            vm: vm_tag(self.start.vm),
            globals: G::GLOBALS,
            dirty_tracked: true,
        };
        let gva = Gva::new(va);
        let walked = core
            .caches
            .walk(&context, &mut self.memory, gva, kind, access.user(), &self.grid)
            .ok()?;
        if walked.entry.shift < walked.guest_shift {
            self.counts.splintered += 1;
        }
        let entry = match self.start.cold {
            // An entry that joins pages would hide the first touch of some of them.
            true => within(walked.entry, va, self.memory.backed),
            false => walked.entry,
        };
        core.tlb.insert(va, core.space, kind, entry);
        let gpa = entry.base - self.memory.guest_base();
        self.touch_host_page(access.vcpu, gpa);
        Some(entry)
    }

    /// A host page's first touch is a violation: the hypervisor backs it then.
    fn touch_host_page(&mut self, vcpu: u8, gpa: u64) {
        if !self.start.cold {
            return;
        }
        let page = gpa >> self.memory.backed;
        let (word, bit) = ((page >> 6) as usize, page & 63);
        if self.touched.len() <= word {
            self.touched.resize(word + 1, 0);
        }
        if self.touched[word] >> bit & 1 == 0 {
            self.touched[word] |= 1 << bit;
            self.exit(vcpu, Cause::Violation);
        }
    }

    /// A trip of one vCPU to the hypervisor.
    pub(super) fn exit(&mut self, vcpu: u8, cause: Cause) {
        self.counts.exits[cause as usize] += 1;
        self.drop_untagged(vcpu);
    }

    /// Without VPID or ASID, entries of a core do not survive a trip to the hypervisor.
    pub(super) fn drop_untagged(&mut self, vcpu: u8) {
        if self.start.tagged {
            return;
        }
        let stays = matches!(self.hypervisor, Hypervisor::Nested { stays: true, .. });
        if let Some(core) = self.cores.get_mut(usize::from(vcpu)) {
            core.tlb.retain(|_| false);
            core.caches.retain_stage1(None, |_| false);
            if !stays {
                core.caches.retain_stage2(|_| false);
            }
        }
    }

    pub(super) fn walk_shadow(&mut self, access: &Access, va: u64, kind: Kind) -> Option<Entry> {
        let vm = self.start.vm;
        // A walk, and one more after each fill.
        for _ in 0..3 {
            let core = self.cores.get_mut(usize::from(access.vcpu))?;
            let pager = self.shadow.as_mut()?.pager.as_mut()?;
            let cr3 = core.registers.roots[Root::Cr3 as usize];
            let root = pager.root(&mut self.memory.host, cr3);
            let guest = core.stage1.as_ref()?;
            let stage1 = Stage::<G::Format, Gva, Gpa>::new(guest.format, G::shadow_root(root)?)
                .with_updates(Updates::OnSuccess);
            let context = Context {
                stage1: &stage1,
                stage2: &self.off,
                regime: &self.regime,
                space: core.space,
                vm: vm_tag(self.start.vm),
                globals: Globals::None,
                dirty_tracked: true,
            };
            let gva = Gva::new(va);
            let walked =
                core.caches.walk(&context, &mut self.memory, gva, kind, access.user(), &self.grid);
            if let Ok(walked) = walked {
                core.tlb.insert(va, core.space, kind, walked.entry);
                if pager.is_split(&self.memory.host, root, va) {
                    self.counts.splintered += 1;
                }
                return Some(walked.entry);
            }
            let privilege = if access.user() { Privilege::User } else { Privilege::Supervisor };
            let asked = slat::Access::new(kind, privilege);
            let (host, mut half) = self.memory.split();
            let filled = pager.fill(host, &mut half, guest, &self.regime, va, &asked);
            // What the walk cache holds of this path may be of before.
            core.caches.retain_stage1(Some(vm_tag(vm)), |tag| !is_of(vm, tag));
            self.flush_if_due();
            match filled {
                Filled::Hidden(exit) => self.exit(access.vcpu, exit.into()),
                Filled::Carried { gpa, exit: Exit::TableWrite } => {
                    // Of a store to a table the recording says what it stores, and that exits.
                    if !self.memory.is_guest_table(gpa) {
                        let pager = self.shadow.as_mut()?.pager.as_mut()?;
                        let stored = pager.store_data(&mut self.memory.host, gpa);
                        self.flush_if_due();
                        if stored.exits {
                            self.exit(access.vcpu, Cause::TableWrite);
                        }
                    }
                    return Some(self.carried(gpa));
                }
                Filled::Carried { gpa, exit } => {
                    self.exit(access.vcpu, exit.into());
                    return Some(self.carried(gpa));
                }
                // The host of a recorded guest has put memory everywhere, to be written to.
                Filled::True | Filled::Host { .. } => return None,
            }
        }
        None
    }

    /// Where a store goes that the hypervisor carries out: no entry of the TLB.
    fn carried(&self, gpa: u64) -> Entry {
        let base = self.memory.guest_base() + (gpa >> 12 << 12);
        Entry { base, shift: 12, ..Entry::default() }
    }

    /// A recording is a window on a guest that has been running: what tables say was accessed before
    /// they were seen has long been filled into the shadow. Of a process that starts in the recording that
    /// is next to nothing: fork's copies are marked as not accessed, and the kernel's own tables, which all
    /// roots share, are left as they are.
    pub(super) fn fill_shadow(&mut self) {
        let Some(state) = &mut self.shadow else { return };
        let Some(pager) = &mut state.pager else { return };
        for (vcpu, root) in std::mem::take(&mut state.unfilled) {
            let core = self.cores.get(usize::from(vcpu));
            let Some(stage1) = core.and_then(|core| core.stage1) else { continue };
            // It may have loaded another root since.
            let Some(place) = G::shadow_root(root & !0xfff) else { continue };
            let stage1 = Stage::new(stage1.format, place).with_updates(stage1.updates);
            let (host, mut guest) = self.memory.split();
            pager.fill_accessed(host, &mut guest, &stage1, &self.regime, root);
        }
        self.flush_if_due();
    }
}
