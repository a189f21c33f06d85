//! What a TLB miss starts: a one- or two-dimensional walk through the caches of intermediate
//! entries.
//!
//! There is one walker for every scheme, and it is [`slat::walk`]'s: a cache says only where a walk
//! begins. A native machine, or one with shadow tables, is a two-stage walk whose second stage is off.

use core::hint::cold_path;

use slat::format::{Format, Found};
use slat::{
    Access, Descent, Failed, Gpa, Gva, Kind, Memory, Next, Observer, Privilege, Regime, Spa, Stage,
};

use crate::array::{Array, BadGeometry};
use crate::tlb::{Entry, Level, Space, Tag};

mod coalesce;
mod config;
mod end;
mod guest;
mod log;
mod page_walk;
mod passed;
mod rest;
mod rights;
mod walk_cache;

pub use config::{Design, PageWalkConfig, WalkCacheConfig, WalkerConfig};
use end::End;
use guest::{Dirtied, GuestMemory, Places};
pub use log::{LOG_ENTRIES, Log, Stopped};
use page_walk::Cached;
pub use walk_cache::Kept;
use walk_cache::WalkCache;

/// The caches behind the TLBs of one core.
#[derive(Clone, Debug)]
pub struct Caches {
    stage1: WalkCache,
    stage2: WalkCache,
    nested_tlb: Level,
    holds_final: bool,
    page_walk: Array<Cached>,
    page_walk_nested: bool,
    coalesces: u8,
    dirtied: Dirtied,
    places: Places,
}

impl Caches {
    /// Empty caches.
    ///
    /// # Errors
    /// Where an array cannot have its geometry.
    pub fn new(config: &WalkerConfig) -> Result<Caches, BadGeometry> {
        Ok(Caches {
            stage1: WalkCache::new(&config.stage1)?,
            stage2: WalkCache::new(&config.stage2)?,
            nested_tlb: match config.nested_tlb.geometry.entries {
                0 => Level::new(&[])?,
                _ => Level::new(&[config.nested_tlb])?,
            },
            holds_final: config.nested_tlb_holds_final,
            page_walk: Array::new(config.page_walk.geometry)?,
            page_walk_nested: config.page_walk.nested && config.page_walk.geometry.entries != 0,
            // At most the pages whose entries lie in one line.
            coalesces: config.coalesces.min(3),
            dirtied: Dirtied::default(),
            places: Places::default(),
        })
    }

    /// Drops all that `keep` does not keep. The page walk cache, which knows no input addresses, is
    /// not asked about: see [`Caches::retain_page_walk`].
    pub fn retain(&mut self, mut keep: impl FnMut(&Kept) -> bool) {
        self.stage1.retain(&mut keep);
        self.retain_nested(&mut keep);
    }

    fn retain_nested(&mut self, keep: &mut impl FnMut(&Kept) -> bool) {
        self.stage2.retain(keep);
        self.nested_tlb.retain(&mut |held| {
            let Entry { shift, leaf, .. } = held.entry;
            keep(&Kept { tag: held.tag, is_table: false, start: held.va, shift, leaf })
        });
    }

    /// Drops cached stage-1 entries whose tag's number `keep` does not keep. They are of the machine
    /// whose stage-2 entries have the tag `vm`, or of any for `None`: what the page walk cache has of it
    /// goes too, of whatever address space.
    pub fn retain_stage1(&mut self, vm: Option<Tag>, mut keep: impl FnMut(u16) -> bool) {
        self.stage1.retain(&mut |kept| keep(kept.tag));
        match vm {
            Some(vm) => self.retain_page_walk(|tag| tag != vm.number()),
            None => self.clear_page_walk(),
        }
    }

    /// Drops cached stage-2 entries and nested translations whose tag's number `keep` does not
    /// keep, and what the page walk cache has of those machines.
    pub fn retain_stage2(&mut self, mut keep: impl FnMut(u16) -> bool) {
        self.retain_nested(&mut |kept| keep(kept.tag));
        self.retain_page_walk(keep);
    }

    /// Drops the table entries found by physical address that walks of machines have read whose tag's
    /// number (that of their stage-2 entries) `keep` does not keep.
    pub fn retain_page_walk(&mut self, mut keep: impl FnMut(u16) -> bool) {
        if self.page_walk.capacity() != 0 {
            self.page_walk.retain(|_, cached| cached.stays(&mut keep));
        }
    }

    /// Drops all table entries that are found by physical address.
    pub fn clear_page_walk(&mut self) {
        if self.page_walk.capacity() != 0 {
            self.page_walk.clear();
        }
    }

    /// The guest physical pages whose dirty flag of stage 2 the last walk has set, in the order it
    /// did: what a page-modification log records (Intel SDM 3C 30.3.6).
    pub fn dirtied(&self) -> &[u64] {
        self.dirtied.pages()
    }
}

/// How leaves of stage 1 say that a page is global.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Globals {
    /// No page is, or global pages are off (`CR4.PGE` clear).
    #[default]
    None,
    /// x86: G, bit 8 of the leaf (Intel SDM 3A 5.10.2.4).
    X86,
    /// Arm: not nG, bit 11 of the leaf (Arm ARM D8.16.4).
    Arm,
    /// RISC-V: G, bit 5 of the leaf or of an entry above it (privileged architecture, "Sv32").
    RiscV,
}

impl Globals {
    #[inline(always)]
    fn has(self, found: &Found) -> bool {
        match self {
            Globals::None => false,
            Globals::X86 => found.entry & 1 << 8 != 0,
            Globals::Arm => found.entry & 1 << 11 == 0,
            Globals::RiscV => (found.entry | found.path.or) & 1 << 5 != 0,
        }
    }
}

/// The two stages of the current context.
pub struct Context<'a, F1: Format, F2: Format> {
    /// The guest's tables.
    pub stage1: &'a Stage<F1, Gva, Gpa>,
    /// The hypervisor's; a format that is off natively and under shadow tables.
    pub stage2: &'a Stage<F2, Gpa, Spa>,
    /// The state of no one stage.
    pub regime: &'a Regime,
    /// Tags of stage-1 entries.
    pub space: Space,
    /// Tag of stage-2 entries (EP4TA, the VM's ASID or VMID).
    pub vm: Tag,
    /// How stage 1's leaves make global pages.
    pub globals: Globals,
    /// Whether the leaf entries of this context have had their dirty bits set by this access, or
    /// have none: formats whose software keeps dirty bits say so always.
    pub dirty_tracked: bool,
}

/// Why a walk found nothing: stage 1's fault, or stage 2's, or the memory's.
pub type WalkFault<B> = Failed<Gva, Failed<Gpa, B>>;

/// What a walk found.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    /// What a TLB may keep.
    pub entry: Entry,
    /// log2 of stage 1's page size (64 where it is off).
    pub guest_shift: u8,
    /// log2 of stage 2's page size (64 where it is off).
    pub host_shift: u8,
}

impl Caches {
    /// Translates a missing access: walks both stages as far as the caches do not know them, fills
    /// the caches, and says what a TLB may keep. The caller's stages decide about accessed and dirty
    /// bits.
    ///
    /// # Errors
    /// The fault of either stage, or of `memory`.
    pub fn walk<F1, F2, M, W>(
        &mut self,
        context: &Context<'_, F1, F2>,
        memory: &mut M,
        address: Gva,
        kind: Kind,
        user: bool,
        observer: &W,
    ) -> Result<Walked, WalkFault<M::Fault>>
    where
        F1: Format,
        F2: Format,
        M: Memory<Address = Spa>,
        W: Observer,
    {
        let Context { stage1, stage2, regime, space, .. } = *context;
        let privilege = if user { Privilege::User } else { Privilege::Supervisor };
        let half;
        let format = if F1::HALVES {
            half = stage1.format.half(address.raw());
            &half
        } else {
            &stage1.format
        };
        let cached = self.stage1.find(format, address.raw(), [space.own, space.global]);
        let from = cached.as_ref().map(|table| &table.from);
        self.dirtied.clear();
        self.places.clear();
        let mut guest = GuestMemory {
            format,
            stage2,
            walk_cache: &mut self.stage2,
            nested_tlb: &mut self.nested_tlb,
            page_walk: &mut self.page_walk,
            page_walk_nested: self.page_walk_nested,
            memory,
            regime,
            vm: context.vm,
            observer,
            dirtied: &mut self.dirtied,
            coalesces: self.coalesces,
            known: cached
                .as_ref()
                .filter(|table| table.placed != u64::MAX)
                .map(|table| (table.from.table, table.placed)),
            places: &mut self.places,
            last: Spa::new(0),
        };
        self.stage1.begin();
        let tables = &mut self.stage1;
        let end = End { context, address, kind, privilege, holds_final: self.holds_final };
        let access = Access::new(kind, privilege);
        let Some(mut walk) = Descent::new(stage1, format, from, address, &access, regime, observer)
        else {
            let access = Access::new(kind, privilege);
            let mapped = slat::walk(stage1, &mut guest, address, &access, regime, observer)?;
            return end.of(&mut guest, &mapped, None);
        };
        loop {
            match walk.step(&mut guest) {
                Ok(Next::Table(partial)) => tables.pass(partial),
                Ok(Next::Leaf(mapped)) => {
                    tables.keep(format, address.raw(), space.own, |page| guest.places.of(page));
                    return end.of(&mut guest, &mapped, None);
                }
                Ok(Next::Other(entry)) => {
                    return end.of_rest(&mut guest, walk.by_fields(), entry, tables);
                }
                Err(below) => {
                    cold_path();
                    return Err(Failed::Below(below));
                }
            }
        }
    }
}
