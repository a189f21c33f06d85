//! A child partition: its memory, how it is translated, and its one vCPU.

use std::collections::BTreeMap;

use slat::edit::{Encode, Error};
use slat::format::Format;
use slat::format::flat::Flat;
use slat::format::x86::legacy::Legacy;
use slat::{
    Access, EntryLayout, Failed, Gpa, Gva, Kind, Memory, Outside, Privilege, Reached, Regime, Spa,
    Stage, Updates, Value, translate, walk,
};
use slat_mmu::shadow::{Filled, GuestTables, Widened};

use super::dirty::DirtyBits;
use super::exits::{Cause, Exits};
use super::guest::Vcpu;
use super::second_stage::{SecondTables, each};
use super::shadow::Shadow;
use super::spa::{Backing, Frame, Owner, PAGE, SHIFTS, SystemMemory};
use super::stage1::Stage1;

/// How a partition's addresses are translated.
#[derive(Debug)]
pub enum Translation {
    /// By the processor, through second-stage tables.
    SecondStage(SecondTables),
    /// By the processor, through shadow tables.
    Shadow(Shadow),
}

impl Translation {
    /// `ept4`, `npt4`, `arm64-s2` or `shadow`.
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

/// Why a nested walk ended, as the hypervisor sees it.
enum Missed {
    Guest,
    Second { gpa: u64, denied: bool },
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
    /// How often the hypervisor invalidated translations of it.
    pub flushes: u64,
    /// Pages that were written since the log was last read, while it is on.
    pub(super) log: Option<DirtyBits>,
    /// Memory is given at the first touch.
    pub overcommitted: bool,
    /// Guest-physical pages that share their memory with others.
    pub(super) shared: BTreeMap<u64, u64>,
    regime: Regime,
}

/// The guest's memory at guest-physical addresses, as the shadow pager sees it.
pub(super) struct GuestView<'a> {
    memory: &'a mut SystemMemory,
    backing: &'a BTreeMap<u64, Backing>,
    log: Option<&'a mut DirtyBits>,
}

fn locate(backing: &BTreeMap<u64, Backing>, gpa: u64) -> Option<(u64, u8)> {
    let (_, found) = backing.range(..=gpa).next_back()?;
    let offset = gpa - found.gpa;
    (offset < found.bytes).then(|| (found.spa + offset, found.level))
}

impl GuestTables for GuestView<'_> {
    fn entry(&self, gpa: u64) -> u64 {
        locate(self.backing, gpa).map_or(0, |(spa, _)| self.memory.load(spa & !7))
    }

    fn touch(&mut self, gpa: u64, bits: u64) {
        if let Some((spa, _)) = locate(self.backing, gpa) {
            let value = self.memory.load(spa & !7) | bits;
            self.memory.store(spa & !7, value);
            if let Some(log) = &mut self.log {
                log.mark(gpa);
            }
        }
    }

    fn place(&self, gpa: u64) -> (u64, u8) {
        match locate(self.backing, gpa) {
            // While writes are logged, they are logged by small pages.
            Some((spa, _)) if self.log.is_some() => (spa, SHIFTS[0] as u8),
            Some((spa, level)) => (spa, SHIFTS[usize::from(level)] as u8),
            // Whoever fills the shadow has seen that it is there.
            None => (0, SHIFTS[0] as u8),
        }
    }
}

/// The guest's memory at guest-physical addresses, to look at.
struct Looked<'a> {
    memory: &'a SystemMemory,
    backing: &'a BTreeMap<u64, Backing>,
}

impl Memory for Looked<'_> {
    type Address = Gpa;
    type Fault = Outside<Gpa>;

    fn read(&mut self, at: Gpa, layout: EntryLayout, _: &Access) -> Result<Value, Outside<Gpa>> {
        let (spa, _) =
            locate(self.backing, at.raw()).ok_or(Outside { address: at, write: false })?;
        let value = self.memory.load(spa & !7) >> (spa % 8 * 8);
        let mask = u64::MAX >> (64 - 8 * layout.size.bytes());
        Ok(Value { value: value & mask, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Gpa,
        _: EntryLayout,
        _: u64,
        _: u64,
        _: &Access,
    ) -> Result<bool, Outside<Gpa>> {
        Err(Outside { address, write: true })
    }
}

/// A two-stage walk, its failure in the hypervisor's words.
pub(super) fn nested<F1: Format, F2: Format>(
    stage1: &Stage<F1, Gva, Gpa>,
    stage2: &Stage<F2, Gpa, Spa>,
    memory: &mut SystemMemory,
    gva: u64,
    access: &Access,
    regime: &Regime,
) -> Result<(u64, u64), (u64, bool, bool)> {
    match translate(stage1, stage2, memory, Gva::new(gva), access, regime, &()) {
        Ok(found) => Ok((found.stage1.output.raw(), found.output().raw())),
        Err(Failed::Here(_)) => Err((0, false, true)),
        Err(Failed::Below(Failed::Here(fault))) => {
            let denied = matches!(fault.cause, slat::Cause::Permission(_));
            Err((fault.input.raw(), denied, false))
        }
        // A guest's tables lead where no memory is only through a second stage that says so.
        Err(Failed::Below(Failed::Below(_))) => Err((0, false, true)),
    }
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

    /// Where the guest's page lies, without any effect: by its own tables and the host's backing.
    pub(super) fn look(&self, memory: &SystemMemory, root: u64, gva: u64) -> Option<u64> {
        let mut looked = Looked { memory, backing: &self.backing };
        let access = Access::new(Kind::Read, Privilege::Supervisor);
        let gva = Gva::new(gva);
        let output = match &self.stage1 {
            Stage1::X86(format) => {
                let stage = Stage::<_, Gva, Gpa>::new(*format, format.root(root));
                walk(&stage, &mut looked, gva, &access, &self.regime, &()).ok()?.output
            }
            Stage1::Arm(format) => {
                let stage = Stage::<_, Gva, Gpa>::new(*format, format.root(root));
                walk(&stage, &mut looked, gva, &access, &self.regime, &()).ok()?.output
            }
        };
        Some(output.raw())
    }

    /// What the guest's virtual address leads to now: guest-physical and system physical.
    pub(super) fn follow(&self, memory: &SystemMemory, gva: u64) -> Option<(u64, u64)> {
        let gpa = self.look(memory, self.vcpu.root(), gva)?;
        Some((gpa, self.locate(gpa)?.0))
    }

    /// Where an access of the guest lands, the hypervisor doing its part: the guest-physical and
    /// the system physical address.
    ///
    /// # Errors
    /// Where it lands in no memory.
    pub(super) fn resolve(
        &mut self,
        memory: &mut SystemMemory,
        gva: u64,
        kind: Kind,
    ) -> Result<(u64, u64), Trap> {
        let access = Access::new(kind, Privilege::Supervisor);
        // An access may meet one obstacle a table and one at its end; each is met once.
        for _ in 0..16 {
            let missed = match self.walk(memory, gva, &access) {
                Ok(found) => return Ok(found),
                Err(missed) => missed,
            };
            match missed {
                Missed::Guest => return Err(Trap::Guest),
                Missed::Second { gpa, denied } => self.serve(memory, gpa, denied)?,
            }
        }
        Err(Trap::Guest)
    }

    fn walk(
        &mut self,
        memory: &mut SystemMemory,
        gva: u64,
        access: &Access,
    ) -> Result<(u64, u64), Missed> {
        let root = self.vcpu.root();
        let Translation::SecondStage(tables) = &self.translation else {
            return self.walk_shadow(memory, root, gva, access);
        };
        let found = each!(tables, built => match &self.stage1 {
            Stage1::X86(format) => {
                let stage = Stage::new(*format, format.root(root)).with_updates(Updates::OnSuccess);
                nested(&stage, &built.stage(), memory, gva, access, &self.regime)
            }
            Stage1::Arm(format) => {
                let stage = Stage::new(*format, format.root(root)).with_updates(Updates::OnSuccess);
                nested(&stage, &built.stage(), memory, gva, access, &self.regime)
            }
        });
        found.map_err(missed)
    }

    /// Through a stage 1 of the caller's and the second stage; `None` on shadow tables.
    fn resolve_nested<F: Format>(
        &mut self,
        memory: &mut SystemMemory,
        stage1: &Stage<F, Gva, Gpa>,
        linear: u64,
        access: &Access,
    ) -> Option<Result<(u64, u64), Trap>> {
        for _ in 0..16 {
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
    pub(super) fn resolve_unpaged(
        &mut self,
        memory: &mut SystemMemory,
        linear: u64,
        access: &Access,
    ) -> Result<(u64, u64), Trap> {
        let off = Stage::<_, Gva, Gpa>::new(Flat::X86_UNPAGED, ());
        if let Some(done) = self.resolve_nested(memory, &off, linear, access) {
            return done;
        }
        if self.locate(linear).is_none() {
            self.serve(memory, linear, false)?;
        }
        let (spa, _) = self.locate(linear).ok_or(Trap::NoMemory(linear))?;
        if let (Kind::Write, Some(log)) = (access.kind, &mut self.log) {
            log.mark(linear);
        }
        Ok((linear, spa))
    }

    /// The guest's access through 32-bit tables.
    ///
    /// # Errors
    /// Where it lands in no memory.
    pub(super) fn resolve_legacy(
        &mut self,
        memory: &mut SystemMemory,
        stage1: &Stage<Legacy, Gva, Gpa>,
        linear: u64,
        access: &Access,
    ) -> Result<(u64, u64), Trap> {
        if let Some(done) = self.resolve_nested(memory, stage1, linear, access) {
            return done;
        }
        for _ in 0..16 {
            // By the guest's own tables, without any effect.
            let mut looked = Looked { memory, backing: &self.backing };
            let look = Stage::<_, Gva, Gpa>::new(stage1.format, stage1.root);
            let read = Access::new(Kind::Read, access.privilege);
            let by_guest = walk(&look, &mut looked, Gva::new(linear), &read, &self.regime, &());
            let gpa = by_guest.ok().map(|mapped| mapped.output.raw());
            // The shadow leads to memory that is there.
            if let Some(gpa) = gpa.filter(|gpa| self.locate(*gpa).is_none()) {
                self.serve(memory, gpa, false)?;
                continue;
            }
            let Translation::Shadow(shadow) = &mut self.translation else { break };
            let logging = self.log.is_some();
            let mut guest = GuestView { memory, backing: &self.backing, log: self.log.as_mut() };
            let mut widened = Widened::new(&mut guest, stage1.format);
            let seen = widened.stage(stage1.root);
            let found = shadow.walk(seen.format, seen.root, linear, access, &self.regime);
            if let (Some(spa), Some(gpa)) = (found, gpa) {
                return Ok((gpa, spa));
            }
            let filled = shadow.fill(&mut widened, &seen, linear, access, &self.regime, logging);
            let (Filled::Hidden(exit), Some(gpa)) = (filled, gpa) else {
                self.exits.count(Cause::TrueFault);
                return Err(Trap::Guest);
            };
            self.exits.count(exit.into());
            if let (Kind::Write, Some(log)) = (access.kind, &mut self.log) {
                log.mark(gpa);
            }
        }
        Err(Trap::Guest)
    }

    /// The guest, whose tables are 32-bit, stored at this guest-physical address.
    pub(super) fn stored_legacy(&mut self, gpa: u64) {
        if let Translation::Shadow(shadow) = &mut self.translation
            && shadow.store_legacy(gpa).exits
        {
            self.exits.count(Cause::TableWrite);
        }
    }

    /// The guest has another root of 32-bit tables from now on: by a load of CR3, or by turning paging
    /// on.
    pub(super) fn load_root_legacy(&mut self, memory: &mut SystemMemory, cr3: u64) {
        if let Translation::Shadow(shadow) = &mut self.translation {
            let guest = GuestView { memory, backing: &self.backing, log: self.log.as_mut() };
            shadow.load_root(&guest, Widened::<GuestView<'_>>::root(cr3));
        }
    }

    fn walk_shadow(
        &mut self,
        memory: &mut SystemMemory,
        root: u64,
        gva: u64,
        access: &Access,
    ) -> Result<(u64, u64), Missed> {
        let Some(stage1) = self.stage1.x86(root) else { return Err(Missed::Guest) };
        for _ in 0..4 {
            let Translation::Shadow(shadow) = &mut self.translation else { break };
            if let Some(spa) = shadow.walk(stage1.format, root, gva, access, &self.regime) {
                let gpa = self.look(memory, root, gva).unwrap_or_default();
                return Ok((gpa, spa));
            }
            // Where it leads by the guest's tables: a device is not for the shadow.
            if let Some(gpa) = self.look(memory, root, gva)
                && self.locate(gpa).is_none()
            {
                return Err(Missed::Second { gpa, denied: false });
            }
            let logging = self.log.is_some();
            let Translation::Shadow(shadow) = &mut self.translation else { break };
            let mut guest = GuestView { memory, backing: &self.backing, log: self.log.as_mut() };
            match shadow.fill(&mut guest, &stage1, gva, access, &self.regime, logging) {
                Filled::True => {
                    self.exits.count(Cause::TrueFault);
                    return Err(Missed::Guest);
                }
                Filled::Hidden(exit) => self.exits.count(exit.into()),
            }
            if access.kind == Kind::Write
                && let Some(gpa) = self.look(memory, root, gva)
                && let Some(log) = &mut self.log
            {
                log.mark(gpa);
            }
        }
        Err(Missed::Guest)
    }

    /// The second stage did not let an access through: what the hypervisor does about it.
    fn serve(&mut self, memory: &mut SystemMemory, gpa: u64, denied: bool) -> Result<(), Trap> {
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

    /// Gives memory to a page that has none.
    fn back(&mut self, memory: &mut SystemMemory, page: u64) -> Result<(), ()> {
        let owner = Owner::Partition(self.number);
        let got = memory.allocate(owner, &[(page, PAGE)], 0, 0).map_err(|_| ())?;
        self.add(memory, got).map_err(|_| ())
    }

    /// Maps new backing.
    pub(super) fn add(
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
    pub(super) fn carve(&mut self, page: u64) -> Option<Backing> {
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
    pub(super) fn remap(
        &mut self,
        memory: &SystemMemory,
        page: u64,
        to: Option<(u64, bool)>,
    ) -> Result<(), Error> {
        if let Translation::SecondStage(tables) = &self.translation {
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
            let guest = GuestView { memory, backing: &self.backing, log: self.log.as_mut() };
            shadow.load_root(&guest, root);
            self.exits.count(Cause::Cr3);
        }
    }

    /// The guest invalidates one page.
    pub(super) fn invalidate(&mut self, memory: &mut SystemMemory, gva: u64) {
        let root = self.vcpu.root();
        if let Translation::Shadow(shadow) = &mut self.translation {
            let guest = GuestView { memory, backing: &self.backing, log: self.log.as_mut() };
            shadow.invalidate(&guest, root, gva);
            self.exits.count(Cause::Invlpg);
        }
    }
}

fn missed((gpa, denied, guest): (u64, bool, bool)) -> Missed {
    if guest { Missed::Guest } else { Missed::Second { gpa, denied } }
}
