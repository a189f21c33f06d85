//! What a TLB keeps of a translation, and under which tag.

use slat::format::Format;
use slat::memory_type::{MemoryType, TypeBits, effective};
use slat::{Kind, Regime};

/// A tag: not 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Tag(u16);

impl Tag {
    /// The tag of this number, or `None` for 0.
    pub const fn new(number: u16) -> Option<Tag> {
        if number == 0 { None } else { Some(Tag(number)) }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// On whose behalf an access is looked up. A tag of an address space goes with one tag of globals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Space {
    /// The tag of the current address space.
    pub own: Tag,
    /// The tag of global entries that it sees.
    pub global: Tag,
}

/// A translation as a TLB keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// First output address of the page that was kept.
    pub base: u64,
    /// What the leaves say of its memory type.
    pub types: Types,
    /// What it permits and how it was made.
    pub rights: Rights,
    /// log2 of its size.
    pub shift: u8,
    /// log2 of the size of the leaf that it was made from, by the tables that its input addresses are
    /// looked up in; 0 for a page of its own. It may be a piece of that, where the other stage's pages
    /// are smaller or the array has no larger size; or some such leaves joined.
    pub leaf: u8,
}

// A hit copies an entry: two words.
const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    /// The part of `1 << shift` bytes, which is no more than the page, that holds `va`.
    #[inline]
    pub(crate) fn part(self, va: u64, shift: u8) -> Entry {
        let within = va & ((1u64 << self.shift) - 1) & (!0 << shift);
        let leaf = if self.leaf == 0 { self.shift } else { self.leaf };
        Entry { base: self.base + within, shift, leaf, ..self }
    }

    /// A copy made field by field. A plain copy is one of bytes, for which the compiler keeps both in
    /// memory, and what was just stored as fields is not ready to be read as a whole.
    #[inline(always)]
    pub(crate) fn by_fields(self) -> Entry {
        let Entry { base, types: Types { stage1, stage2 }, rights: Rights(rights), shift, leaf } =
            self;
        Entry { base, types: Types { stage1, stage2 }, rights: Rights(rights), shift, leaf }
    }

    /// log2 of the aligned range that has to be named with any address of it: an invalidation of one
    /// address takes every piece that is held of the page that the tables give it (Intel SDM 3A 5.10.2.3,
    /// Arm ARM D8.16.5, the RISC-V privileged architecture's SFENCE.VMA: all entries of the leaf that
    /// contains the address).
    #[inline]
    pub fn whole(self) -> u8 {
        self.shift.max(self.leaf)
    }

    /// Where `va`, an address of the page, lies.
    #[inline]
    pub fn place(self, va: u64) -> u64 {
        self.base | va & ((1u64 << self.shift) - 1)
    }

    /// The effective memory type of an access of this kind to `va`, an address of the page:
    /// [`Translation::memory_type`](slat::Translation::memory_type) of the walk that filled the entry,
    /// with the registers in `regime` as they are now. Software that changes those flushes (Intel SDM 3A
    /// 13.12.4, `MAIR_EL1` in Arm ARM D24.2), so that a processor may keep the type or, as here, what gives it.
    pub fn memory_type<F1: Format, F2: Format>(
        self,
        va: u64,
        kind: Kind,
        stage1: &F1,
        stage2: &F2,
        regime: &Regime,
    ) -> MemoryType {
        let first = stage1.type_of(self.types.stage1, kind, regime);
        let second = stage2.type_of(self.types.stage2, kind, regime);
        effective(first, second, self.place(va), regime)
    }
}

/// The bits of both stages' leaves that say the memory type: in place of the type itself, since a fetch
/// and a load through one entry may have different ones (Arm), and both stages' are known only after
/// their walks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Types {
    /// Of stage 1.
    pub stage1: TypeBits,
    /// Of stage 2.
    pub stage2: TypeBits,
}

/// Rights and state of an entry: a set of flags, and its protection key. Right and wrong by the state of
/// the moment (`EFLAGS.AC`, `PSTATE.PAN`, `sstatus.SUM`, `CR0.WP`, `PKRU`) is for [`Asked`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Rights(u16);

impl Rights {
    /// The page can be read.
    pub const READ: Rights = Rights(1 << 0);
    /// The page is writable.
    pub const WRITE: Rights = Rights(1 << 1);
    /// Supervisors can fetch from it.
    pub const EXECUTE: Rights = Rights(1 << 2);
    /// Users can fetch from it.
    pub const USER_EXECUTE: Rights = Rights(1 << 3);
    /// It is a user page.
    pub const USER: Rights = Rights(1 << 4);
    /// Every dirty bit that a write would set is set.
    pub const DIRTY: Rights = Rights(1 << 5);
    /// The page is global.
    pub const GLOBAL: Rights = Rights(1 << 6);
    /// Walks may read table entries through it (of second-stage translations).
    pub const TABLES: Rights = Rights(1 << 7);
    /// Its rights to fetch hold for pages that are users' to stage 1 (of second-stage translations that
    /// a nested TLB keeps for final addresses).
    pub(crate) const FOR_USERS: Rights = Rights(1 << 8);
    /// The same for pages that are not.
    pub(crate) const FOR_SUPERVISORS: Rights = Rights(1 << 9);
    /// It is guarded as a user page ([`Format::guards`]): with enhanced PAN, users can fetch from it.
    pub const GUARDED: Rights = Rights(1 << 10);
    /// The page has a protection key: the four bits from [`Rights::KEY`] on.
    const KEYED: Rights = Rights(1 << 15);
    /// The first bit of the key.
    const KEY: u32 = 11;
    /// Every access is permitted.
    pub const ALL: Rights = Rights(0x1f);
    /// Fetches of either privilege.
    pub(crate) const FETCH: Rights = Rights(0xc);

    /// What a page must be for this access.
    #[inline(always)]
    pub const fn may(kind: Kind, user: bool) -> Rights {
        match (kind, user) {
            (Kind::Read, _) => Rights::READ,
            (Kind::Write, _) => Rights::WRITE,
            (Kind::Execute, false) => Rights::EXECUTE,
            (Kind::Execute, true) => Rights::USER_EXECUTE,
        }
        .with(Rights::USER, user)
    }

    /// Whether all of `other` is in this set.
    #[inline(always)]
    pub const fn has(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set with `other` where `yes`.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, other: Rights, yes: bool) -> Rights {
        Rights(self.0 | if yes { other.0 } else { 0 })
    }

    /// This set, which has no key, with this one.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn with_key(self, key: Option<u8>) -> Rights {
        match key {
            Some(key) => Rights(self.0 | Rights::KEYED.0 | (key as u16 & 0xf) << Rights::KEY),
            None => self,
        }
    }

    /// What either set has.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn or(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// This set without `other`.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn without(self, other: Rights) -> Rights {
        Rights(self.0 & !other.0)
    }

    /// What both sets have.
    #[inline(always)]
    #[must_use]
    pub const fn both(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }
}

/// What an access asks of an entry that is to serve it without another walk. An entry that cannot is
/// passed over, and the walk decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Asked {
    have: Rights,
    lack: Rights,
    /// Keys that deny it, one a bit: of pages that are not the user's, and of those that are.
    denied: [u16; 2],
}

/// One bit of two for each of 16 keys: the lower ones.
const fn every_second(bits: u32) -> u16 {
    let (mut keys, mut key) = (0, 0);
    while key < 16 {
        keys |= ((bits >> (2 * key) & 1) as u16) << key;
        key += 1;
    }
    keys
}

impl Asked {
    /// What every entry serves.
    pub const NOTHING: Asked = Asked { have: Rights(0), lack: Rights(0), denied: [0; 2] };

    /// The plain access: a write needs a dirty writable page, a user access a user page.
    #[inline(always)]
    pub const fn new(kind: Kind, user: bool) -> Asked {
        let have = Rights::may(kind, user).with(Rights::DIRTY, matches!(kind, Kind::Write));
        Asked { have, ..Asked::NOTHING }
    }

    /// The same, of pages that are not the user's: a supervisor's data accesses under SMAP without
    /// `AC`, `PSTATE.PAN` or without `sstatus.SUM`, its fetches under SMEP and on RISC-V.
    #[inline(always)]
    #[must_use]
    pub const fn not_of_user(self, yes: bool) -> Asked {
        let lack = self.lack.with(Rights::USER.or(Rights::GUARDED), yes);
        Asked { lack, ..self }
    }

    /// The same, of pages that need not be writable: a supervisor's write with `CR0.WP` clear.
    #[inline(always)]
    #[must_use]
    pub const fn even_read_only(self, yes: bool) -> Asked {
        let have = if yes { Rights(self.have.0 & !Rights::WRITE.0) } else { self.have };
        Asked { have, ..self }
    }

    /// The same, of pages whose protection keys permit it (Intel SDM 3A 5.6.2): by these values of `PKRU` for
    /// user pages and of `IA32_PKRS` for others, 0 where `CR4.PKE` or `CR4.PKS` is clear. Fetches obey none; a
    /// supervisor's write with `CR0.WP` clear (`even_read_only`) does not obey write-disable.
    #[must_use]
    pub const fn by_keys(self, kind: Kind, pkru: u32, pkrs: u32, even_read_only: bool) -> Asked {
        let denied = match kind {
            Kind::Execute => [0; 2],
            Kind::Write if !even_read_only => {
                [every_second(pkrs | pkrs >> 1), every_second(pkru | pkru >> 1)]
            }
            Kind::Read | Kind::Write => [every_second(pkrs), every_second(pkru)],
        };
        let denied = [self.denied[0] | denied[0], self.denied[1] | denied[1]];
        Asked { lack: self.lack.with(Rights::KEYED, denied[0] | denied[1] != 0), denied, ..self }
    }

    /// What both accesses ask, of one entry.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Asked) -> Asked {
        let denied = [self.denied[0] | other.denied[0], self.denied[1] | other.denied[1]];
        Asked { have: self.have.or(other.have), lack: self.lack.or(other.lack), denied }
    }

    /// Whether an entry serves it.
    #[inline(always)]
    pub const fn of(self, rights: Rights) -> bool {
        rights.has(self.have) && (rights.0 & self.lack.0 == 0 || self.of_keyed(rights))
    }

    /// The same of a page with a key, where some keys deny the access.
    #[cold]
    #[inline(never)]
    const fn of_keyed(self, rights: Rights) -> bool {
        let denied = self.denied[rights.has(Rights::USER) as usize];
        let key = rights.0 >> Rights::KEY & 0xf;
        rights.without(Rights::KEYED).0 & self.lack.0 == 0 && denied >> key & 1 == 0
    }
}
