//! The end of a walk: stage 1's leaf is known, and stage 2 translates what it says.

use slat::format::Format;
use slat::{
    Access, Descent, Failed, Flavor, Gpa, Gva, Kind, Mapped, Memory, Observer, Privilege, Spa,
};

use super::guest::GuestMemory;
use super::rest::rest;
use super::rights::entry_of;
use super::walk_cache::WalkCache;
use super::{Context, WalkFault, Walked, coalesce};
use crate::tlb::{Entry, Rights, Types};

/// What a walk is for.
pub(super) struct End<'a, 'b, F1: Format, F2: Format> {
    pub(super) context: &'a Context<'b, F1, F2>,
    pub(super) address: Gva,
    pub(super) kind: Kind,
    pub(super) privilege: Privilege,
    /// Whether final addresses are looked up in the nested TLB too.
    pub(super) holds_final: bool,
}

impl<F1: Format, F2: Format> End<'_, '_, F1, F2> {
    /// What stage 1's leaf comes to; `restarted` is the level of the entry that sent its walk to the
    /// ordinary root.
    #[inline(always)]
    pub(super) fn of<M: Memory<Address = Spa>, W: Observer>(
        &self,
        guest: &mut GuestMemory<'_, F1, F2, M, W>,
        mapped: &Mapped<Gpa>,
        restarted: Option<u8>,
    ) -> Result<Walked, WalkFault<M::Fault>> {
        let End { context, address, kind, privilege, holds_final } = *self;
        let access = &Access::new(kind, privilege);
        let (format, regime, found) = (guest.format, guest.regime, &mapped.found);
        let mut own = entry_of(format, mapped, access, regime, Rights::ALL);
        if guest.coalesces != 0 && found.level == 0 && !found.is_flat() {
            let (at, pages) = (guest.last, guest.coalesces);
            let (found, access) = (found.by_fields(), access.by_fields());
            own.shift = coalesce::joined(format, guest.memory, at, found, access, pages);
            own.base = found.base >> own.shift << own.shift;
        }
        // The hypervisor's tables send no more there than what their entry translates.
        if let Some(level) = restarted {
            let shift = own.shift.min(format.shift(level) as u8);
            own = own.part(address.raw(), shift);
        }
        // The final guest physical address.
        let purpose = access.purpose;
        let (page, origin) = (Some(format.page(found, regime)), Some(address.raw()));
        let through = Access { kind, purpose, privilege, flavor: Flavor::Plain, page, origin };
        let gpa = mapped.output;
        let user = privilege == Privilege::User;
        let right = Rights::may(kind, user).with(Rights::DIRTY, kind == Kind::Write);
        let held = holds_final && guest.has_nested_tlb();
        let asked =
            if holds_final { Rights::ALL.with(Rights::FOR_USERS, true) } else { own.rights };
        let host = guest.translate(gpa, &through, right, asked, held).map_err(Failed::Below)?;
        let shift = own.shift.min(host.shift);
        let spa = host.place(gpa.raw());
        let rights = own
            .rights
            .both(host.rights)
            .with(Rights::DIRTY, !context.dirty_tracked)
            .with(Rights::GLOBAL, !found.is_flat() && context.globals.has(found))
            .with(Rights::GUARDED, format.guards(found))
            .with_key(format.key(found));
        let types = Types { stage1: own.types.stage1, stage2: host.types.stage2 };
        let base = spa & !((1u64 << shift) - 1);
        Ok(Walked {
            entry: Entry { base, shift, leaf: own.leaf, rights, types },
            guest_shift: found.shift,
            host_shift: host.shift,
        })
    }

    /// The rest of a walk that has met this entry; `tables` is stage 1's cache.
    #[cold]
    #[inline(never)]
    pub(super) fn of_rest<M: Memory<Address = Spa>, W: Observer>(
        &self,
        guest: &mut GuestMemory<'_, F1, F2, M, W>,
        walk: Descent<'_, F1, Gva, Gpa, W>,
        entry: u64,
        tables: &mut WalkCache,
    ) -> Result<Walked, WalkFault<M::Fault>> {
        let End { context, address, kind, privilege, .. } = *self;
        let access = &Access::new(kind, privilege);
        let (format, observer) = (guest.format, guest.observer);
        let rest = rest(walk, format, entry, guest, access, observer, tables)?;
        let tag = context.space.own;
        tables.keep(format, address.raw(), tag, |page| guest.places.of(page));
        self.of(guest, &rest.mapped, rest.restarted)
    }
}
