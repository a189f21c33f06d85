//! What the recording says beside accesses: table stores, registers, invalidations, exceptions.

use slat::format::Format;
use slat_mmu::shadow::Pager;
use slat_trace::{At, Event, Invalidation, Root};

use super::{Cause, Core, Hypervisor, Machine, is_of, space_of, vm_tag};
use crate::guest::Guest;
use crate::memory::MemoryError;

/// Where CR3 has the root.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl<G: Guest, F2: Format> Machine<G, F2> {
    pub(super) fn event(&mut self, at: &At) -> Result<(), MemoryError> {
        match at.event {
            Event::TablePage { gpa, level, fresh } => {
                self.memory.table_page(gpa, fresh)?;
                if let Some((pager, _)) = self.pager() {
                    pager.renew(gpa);
                }
                if let Some(pcids) = &mut self.pcids {
                    pcids.table(gpa, level);
                }
            }
            Event::TableEntry { gpa, value } => {
                self.memory.store(gpa, value)?;
                if let Some(pcids) = &mut self.pcids {
                    pcids.entry(gpa, value);
                }
            }
            Event::TableStore { gpa, value } => {
                if let Some(pcids) = &mut self.pcids {
                    pcids.store(at.vcpu, gpa, self.memory.guest_entry(gpa).unwrap_or(0), value);
                }
                self.memory.store(gpa, value)?;
                self.shadow_store(at.vcpu, gpa);
            }
            Event::TableRelease { gpa } => {
                let vm = vm_tag(self.start.vm);
                for (vcpu, number) in self.pcids.iter_mut().flat_map(|pcids| pcids.release(gpa)) {
                    let own = space_of(self.start.vm, number).own.number();
                    if let Some(core) = self.cores.get_mut(usize::from(vcpu)) {
                        core.tlb.retain(|held| held.tag != own);
                        core.caches.retain_stage1(Some(vm), |tag| tag != own);
                    }
                }
                // No hypervisor is told: the shadow stays, and stores to the page trap.
                self.memory.release_table(gpa);
            }
            Event::Exception(exception) if exception.vector == 14 && self.shadow.is_some() => {
                self.exit(at.vcpu, Cause::TrueFault);
            }
            Event::Io { .. } if !matches!(self.hypervisor, Hypervisor::Native) => {
                self.exit(at.vcpu, Cause::Io);
            }
            Event::Invalidate(invalidation) => self.invalidate(at.vcpu, invalidation),
            _ => self.register(at),
        }
        Ok(())
    }

    fn pager(&mut self) -> Option<(&mut Pager, &mut Vec<slat_mmu::shadow::Table>)> {
        let pager = self.shadow.as_mut()?.pager.as_mut()?;
        Some((pager, &mut self.memory.host))
    }

    fn shadow_store(&mut self, vcpu: u8, gpa: u64) {
        let Some((pager, host)) = self.pager() else { return };
        let stored = pager.store(host, gpa);
        if stored.exits {
            self.exit(vcpu, Cause::TableWrite);
        }
        self.flush_if_due();
    }

    /// What shadow tables lost leaves the TLBs of all cores at once, as a hypervisor's remote flush. Each
    /// walk begins at the root that the pager has then.
    pub(super) fn flush_if_due(&mut self) {
        if self.pager().is_some_and(|(pager, _)| pager.take_flush().is_some()) {
            self.drop_own(Reach::All, |_| true);
        }
    }

    /// The cores that an operation reaches.
    fn cores(&mut self, reach: Reach) -> &mut [Core<G>] {
        match reach {
            Reach::All => &mut self.cores,
            Reach::One(vcpu) => {
                self.cores.get_mut(usize::from(vcpu)).map_or(&mut [], std::slice::from_mut)
            }
        }
    }

    /// Drops first-stage translations of this virtual machine whose tag's number `goes`. Those of
    /// others on the same cores have other tags, and no operation of this one reaches them (Intel SDM
    /// 3C 30.4.3.1, of the current VPID; Arm ARM D8.17, of the current VMID).
    fn drop_own(&mut self, reach: Reach, goes: impl Fn(u16) -> bool + Copy) {
        let vm = self.start.vm;
        let goes = move |tag: u16| is_of(vm, tag) && goes(tag);
        for core in self.cores(reach) {
            core.tlb.retain(|held| !goes(held.tag));
            core.caches.retain_stage1(Some(vm_tag(vm)), |tag| !goes(tag));
        }
    }

    /// Makes shadow tables true to the guest's; says whether there are any.
    fn synchronize(&mut self) -> bool {
        let Some(pager) = self.shadow.as_mut().and_then(|state| state.pager.as_mut()) else {
            return false;
        };
        let (host, guest) = self.memory.split();
        pager.synchronize(host, &guest);
        self.flush_if_due();
        true
    }

    fn register(&mut self, at: &At) {
        let Some(core) = self.cores.get_mut(usize::from(at.vcpu)) else { return };
        let before = core.registers;
        if !core.registers.apply(&at.event) {
            return;
        }
        let mut keeps = false;
        if let Event::Root { root: Root::Cr3, value } = at.event
            && G::has_pcids(&core.registers)
        {
            // Bit 63 is not kept: with it, a load drops nothing (Intel SDM 3A 4.10.4.1).
            keeps = value >> 63 == 1;
            core.registers.roots[Root::Cr3 as usize] &= !(1 << 63);
        }
        core.stage1 = G::stage(&core.registers);
        let mut address_space = G::address_space(&core.registers);
        if let (Some(pcids), Event::Root { root: Root::Cr3, value }) = (&mut self.pcids, at.event) {
            let loaded = pcids.load(at.vcpu, value);
            address_space = loaded.number;
            keeps = loaded.keeps;
        } else if let Some(pcids) = &self.pcids {
            address_space = pcids.current(at.vcpu);
        }
        core.space = space_of(self.start.vm, address_space);
        match at.event {
            // MOV to CR3 without PCIDs drops all but global entries (Intel SDM 3A 5.10.4.1).
            Event::Root { root: Root::Cr3, value } => {
                let own = core.space.own.number();
                if self.shadow.is_some() {
                    self.drop_own(Reach::One(at.vcpu), |_| true);
                    let first = before.roots[Root::Cr3 as usize] == 0;
                    self.shadow_cr3(at.vcpu, value, first);
                } else if !keeps {
                    // With `keeps` the PCID's translations are still true.
                    self.drop_own(Reach::One(at.vcpu), |tag| tag == own);
                }
            }
            // Changes of CR4.PGE and the like drop everything of the vCPU.
            Event::Control { .. } if core.registers.controls != before.controls => {
                if let Some(pcids) = &mut self.pcids {
                    pcids.invalidated(at.vcpu);
                }
                self.drop_own(Reach::One(at.vcpu), |_| true);
                self.synchronize();
            }
            _ => {}
        }
    }

    fn shadow_cr3(&mut self, vcpu: u8, cr3: u64, first: bool) {
        let root_level = match self.cores.iter().find_map(|core| core.stage1.as_ref()) {
            Some(stage) => G::root_level(&stage.format),
            None => return,
        };
        let Some(state) = &mut self.shadow else { return };
        let (discipline, limit) = (state.discipline, state.limit);
        let place = self.memory.host_base();
        let pager = state.pager.get_or_insert_with(|| {
            Pager::new(discipline, root_level, place).with_protection().with_limit(limit)
        });
        let (host, guest) = self.memory.split();
        pager.root(host, cr3);
        pager.synchronize_below(host, &guest, &[cr3]);
        if state.loaded.insert(cr3 & ADDRESS) && !self.start.cold {
            state.unfilled.push((vcpu, cr3));
        }
        self.flush_if_due();
        if !first {
            self.exit(vcpu, Cause::Cr3);
        }
    }

    fn invalidate(&mut self, vcpu: u8, invalidation: Invalidation) {
        match invalidation {
            Invalidation::Invlpg { va } => {
                if let Some(core) = self.cores.get_mut(usize::from(vcpu)) {
                    // Of the PCID the page, and all of the paging-structure caches; the page where it
                    // is global (Intel SDM 3A 5.10.4.1). A guest that had PCIDs in truth would drop what
                    // its other address spaces have of it, too: those of user mode beside a kernel that
                    // isolates its tables, and the kernel's own pages in all.
                    let (own, global) = (core.space.own.number(), core.space.global.number());
                    let (vm, of_all) = (self.start.vm, self.pcids.is_some());
                    let of = |tag: u16| tag == own || tag == global || of_all && is_of(vm, tag);
                    if let Some(pcids) = &mut self.pcids {
                        pcids.invalidated(vcpu);
                    }
                    core.tlb.retain(|held| !(of(held.tag) && held.covers(va)));
                    core.caches.retain_stage1(Some(vm_tag(vm)), |tag| !of(tag));
                    let cr3 = core.registers.roots[Root::Cr3 as usize];
                    if let Some(pager) = self.shadow.as_mut().and_then(|state| state.pager.as_mut())
                    {
                        let root = pager.root(&mut self.memory.host, cr3);
                        let (host, guest) = self.memory.split();
                        pager.invalidate(host, &guest, root, va);
                        self.flush_if_due();
                        self.exit(vcpu, Cause::Invlpg);
                    }
                }
            }
            Invalidation::Invpcid { kind, pcid, va } => {
                self.invpcid(vcpu, kind, pcid, va);
                if self.synchronize() {
                    self.exit(vcpu, Cause::Invlpg);
                }
            }
            Invalidation::Tlbi { operation, operand } => self.tlbi(vcpu, operation, operand),
        }
    }

    /// INVPCID (Intel SDM 3A 5.10.4.1): one address of a PCID, a PCID, everything, or all that is not
    /// global. Without PCIDs, and under shadow paging, all of this vCPU's goes.
    fn invpcid(&mut self, vcpu: u8, kind: u64, pcid: u64, va: u64) {
        let of = space_of(self.start.vm, (pcid & 0xfff) as u16);
        let (own, global) = (of.own.number(), of.global.number());
        let vm = vm_tag(self.start.vm);
        let tagged = self.shadow.is_none();
        let one = Reach::One(vcpu);
        match self.cores.get_mut(usize::from(vcpu)) {
            Some(core) if tagged && G::has_pcids(&core.registers) => match kind {
                0 => {
                    core.tlb.retain(|held| held.tag != own || !held.covers(va));
                    core.caches.retain_stage1(Some(vm), |tag| tag != own);
                }
                1 => self.drop_own(one, |tag| tag == own),
                3 => self.drop_own(one, |tag| tag != global),
                _ => self.drop_own(one, |_| true),
            },
            _ => self.drop_own(one, |_| true),
        }
    }

    /// TLBI of EL1 (Arm ARM D8.17): by address, by range, by ASID, or all; on this core, or broadcast.
    fn tlbi(&mut self, vcpu: u8, operation: u16, operand: u64) {
        let (crm, op2) = (operation >> 3 & 0xf, operation & 7);
        let space = space_of(self.start.vm, (operand >> 48) as u16);
        let (own, global) = (space.own.number(), space.global.number());
        let of_asid = |held: u16| held == own || held == global;
        // CRm 2, 5 and 6 are the forms by range (FEAT_TLBIRANGE), inner shareable, outer shareable
        // and local; the others name one page.
        let pages = match crm {
            2 | 5 | 6 => range_of(operand),
            _ => Range::page((operand & ((1 << 44) - 1)) << 12),
        };
        // CRm 6 and 7 are the forms that are not broadcast.
        let reach = if matches!(crm, 6 | 7) { Reach::One(vcpu) } else { Reach::All };
        match op2 {
            // VMALLE1
            0 => self.drop_own(reach, |_| true),
            // VAE1, VALE1: of one ASID, and global ones.
            1 | 5 => self.drop_pages(reach, pages, of_asid, op2 == 1),
            // ASIDE1
            2 => self.drop_own(reach, |tag| tag == own),
            // VAAE1, VAALE1: of every ASID.
            3 | 7 => self.drop_pages(reach, pages, |_| true, op2 == 3),
            _ => self.drop_own(reach, |_| true),
        }
    }

    /// As [`Machine::drop_own`], of these pages; `tables`: what caches hold of the tables above goes too.
    fn drop_pages(
        &mut self,
        reach: Reach,
        pages: Range,
        goes: impl Fn(u16) -> bool + Copy,
        tables: bool,
    ) {
        let vm = self.start.vm;
        let goes = move |tag: u16| is_of(vm, tag) && goes(tag);
        for core in self.cores(reach) {
            core.tlb.retain(|held| !(goes(held.tag) && pages.meets(held.va, held.entry.whole())));
            if tables {
                core.caches.retain_stage1(Some(vm_tag(vm)), |tag| !goes(tag));
            }
        }
    }
}

/// Which cores an operation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// That of the vCPU which carries it out.
    One(u8),
    /// Every one.
    All,
}

/// Input addresses that a TLBI names: `bytes` from `start` on, compared without the bits that sign
/// extension repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    start: u64,
    bytes: u64,
}

impl Range {
    /// Bits of an input address that are compared: 52, as the largest that there are.
    const BITS: u64 = (1 << 52) - 1;

    fn page(va: u64) -> Range {
        Range { start: va & Range::BITS, bytes: 4096 }
    }

    fn meets(self, va: u64, shift: u8) -> bool {
        let page = va & Range::BITS >> shift << shift;
        page < self.start.saturating_add(self.bytes) && self.start < page + (1 << shift)
    }
}

/// The operand of TLBI by range: BaseADDR in units of the granule TG, and (NUM + 1) x 2^(5 SCALE + 1)
/// granules from there (Arm ARM C5.5, TLBI RVAE1).
fn range_of(operand: u64) -> Range {
    let (start, bytes) = tlbi_range(operand);
    Range { start: start & Range::BITS, bytes }
}

/// The first address, sign-extended, and the bytes of the same.
pub(crate) fn tlbi_range(operand: u64) -> (u64, u64) {
    let granule = match operand >> 46 & 3 {
        2 => 14,
        3 => 16,
        _ => 12,
    };
    let base = operand & ((1 << 37) - 1);
    // Sign-extended from 37 bits of page number.
    let base = ((base << 27) as i64 >> 27) as u64;
    let pages = ((operand >> 39 & 0x1f) + 1) << (5 * (operand >> 44 & 3) + 1);
    (base << granule, pages << granule)
}
