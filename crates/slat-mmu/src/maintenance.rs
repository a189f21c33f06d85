//! Maintenance with its architectural scope: what each instruction drops from the TLBs and caches of
//! a core.
//!
//! Each drops what its manual says must go, and keeps all that may stay: a model that kept less would
//! hide the cost of a flush, one that kept more would be wrong. What is held is judged by its
//! [`Item`]; the four files below say of each instruction which items it names.
//!
//! An instruction acts on one [`Core`]. One that is broadcast (INVLPGB, the inner-shareable forms of
//! TLBI) is executed on each; so is one that software sends by interrupt (a shoot-down).

use alloc::vec::Vec;

use crate::array::BadGeometry;
use crate::tlb::{Entry, Space, Tag, Tlb, TlbConfig};
use crate::walker::{Caches, Kept, WalkerConfig};

pub mod amd;
pub mod arm64;
pub mod intel;
pub mod riscv;

/// Whose translation it is: the ids that hardware compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Identity {
    /// VPID, AMD's ASID, or VMID; 0 is the host.
    pub vm: u32,
    /// Intel: the EP4TA (EPTP bits 51:12), where EPT is in use: the mapping is a combined one, or
    /// guest-physical. `None` elsewhere.
    pub ep4ta: Option<u64>,
    /// Which addresses it translates.
    pub addresses: Addresses,
}

/// What addresses a translation is found by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Addresses {
    /// Virtual ones of this address space: PCID, or the ASID of stage 1.
    Space(u16),
    /// Virtual ones of every address space of the machine.
    Global,
    /// Guest physical ones.
    GuestPhysical,
}

/// What is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum What {
    /// A translation.
    Translation,
    /// A table entry, in a walk cache.
    Table,
}

/// One thing that a core holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Whose.
    pub identity: Identity,
    /// What.
    pub what: What,
    /// First input address.
    pub start: u64,
    /// log2 of how many bytes it translates.
    pub shift: u8,
    /// log2 of the size of the leaf that a translation was made from, which it may be a piece of
    /// ([`Entry::leaf`]); 0 where it is none.
    pub leaf: u8,
}

/// Input addresses are compared without the bits that sign extension or a tag repeats.
const INPUT: u64 = (1 << 56) - 1;

impl Item {
    /// log2 of the aligned range that it has to be named with any address of
    /// ([`Entry::whole`]).
    pub fn whole(&self) -> u8 {
        self.shift.max(self.leaf)
    }

    /// Whether it translates this address, or is a piece of a leaf that does.
    pub fn covers(&self, address: u64) -> bool {
        (self.start ^ address) & INPUT & (!0 << self.whole()) == 0
    }

    /// Whether it translates any of `bytes` bytes from `start`, or is a piece of a leaf that does.
    pub fn overlaps(&self, start: u64, bytes: u64) -> bool {
        let (start, own) = (start & INPUT, self.start & INPUT & (!0 << self.whole()));
        own <= start.saturating_add(bytes - 1) && own + ((1u64 << self.whole()) - 1) >= start
    }

    /// Whether it is a translation of virtual addresses, or a table entry on the way to one.
    pub fn is_virtual(&self) -> bool {
        self.identity.addresses != Addresses::GuestPhysical
    }
}

/// The tags of a core: a small number for each identity.
#[derive(Clone, Debug, Default)]
pub struct Tags(Vec<Identity>);

impl Tags {
    /// The tag of an identity; `None` where 65,535 others have one.
    pub fn tag(&mut self, identity: Identity) -> Option<Tag> {
        let at = match self.0.iter().position(|known| *known == identity) {
            Some(at) => at,
            None if self.0.len() < usize::from(u16::MAX) => {
                self.0.push(identity);
                self.0.len() - 1
            }
            None => return None,
        };
        Tag::new(at as u16 + 1)
    }

    /// The identity that has the tag of this number.
    pub fn identity(&self, number: u16) -> Option<Identity> {
        self.0.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The tags by which an address space of a machine is looked up.
    pub fn space(&mut self, vm: u32, ep4ta: Option<u64>, space: u16) -> Option<Space> {
        let mut tag = |addresses| self.tag(Identity { vm, ep4ta, addresses });
        Some(Space { own: tag(Addresses::Space(space))?, global: tag(Addresses::Global)? })
    }
}

/// The translation hardware of one core, with the identities of what it holds.
#[derive(Clone, Debug)]
pub struct Core {
    /// Its TLBs.
    pub tlb: Tlb,
    /// The caches behind them.
    pub caches: Caches,
    /// Who its tags are.
    pub tags: Tags,
}

impl Core {
    /// An empty core.
    ///
    /// # Errors
    /// Where an array cannot have its geometry.
    pub fn new(tlb: &TlbConfig, walker: &WalkerConfig) -> Result<Core, BadGeometry> {
        Ok(Core { tlb: Tlb::new(tlb)?, caches: Caches::new(walker)?, tags: Tags::default() })
    }

    /// Drops every item that `names` names, and what has a tag that nobody was given.
    ///
    /// Entries of a page walk cache are found by physical address and know the virtual machine alone:
    /// all of a machine's go with any operation that names table entries of some id of it, whatever the
    /// address. The tag in its walks' `vm` is of the same machine as those of its address spaces.
    pub fn invalidate(&mut self, names: impl Fn(&Item) -> bool) {
        let Core { tlb, caches, tags } = self;
        let keep = |tag, what, start, shift, leaf| {
            let identity = tags.identity(tag);
            identity.is_some_and(|identity| !names(&Item { identity, what, start, shift, leaf }))
        };
        tlb.retain(|held| {
            let Entry { shift, leaf, .. } = held.entry;
            keep(held.tag, What::Translation, held.va, shift, leaf)
        });
        caches.retain(|kept: &Kept| {
            let what = if kept.is_table { What::Table } else { What::Translation };
            keep(kept.tag, what, kept.start, kept.shift, kept.leaf)
        });
        let everywhere = |identity| Item {
            identity,
            what: What::Table,
            start: 0,
            shift: INPUT.count_ones() as u8,
            leaf: 0,
        };
        let named = tags.0.iter().filter(|&&identity| names(&everywhere(identity)));
        let mut named: Vec<u32> = named.map(|identity| identity.vm).collect();
        named.sort_unstable();
        named.dedup();
        if !named.is_empty() {
            caches.retain_page_walk(|tag| {
                let vm = tags.identity(tag).map(|identity| identity.vm);
                vm.is_some_and(|vm| named.binary_search(&vm).is_err())
            });
        }
    }
}
