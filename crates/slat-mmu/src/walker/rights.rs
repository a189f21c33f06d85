//! What a leaf permits, as far as a TLB may rely on it.

use slat::format::{Format, Found};
use slat::{Access, Address, Kind, Mapped, Privilege, Regime};

use crate::tlb::{Entry, Rights};

/// log2 of the page that a stage that is off counts as.
const OFF_SHIFT: u8 = 30;

/// What a TLB may keep of one stage's leaf, which has just served `access`. Rights to fetch are worth
/// knowing where they are in `asked`.
#[inline(always)]
pub(super) fn entry_of<F: Format, O: Address>(
    format: &F,
    mapped: &Mapped<O>,
    access: &Access,
    regime: &Regime,
    asked: Rights,
) -> Entry {
    let found = &mapped.found;
    // A stage that is off moves nothing within a gigabyte: no page is larger in a TLB.
    if found.is_flat() {
        let base = mapped.output.raw() & !((1 << OFF_SHIFT) - 1);
        let rights = Rights::ALL.with(Rights::DIRTY, true).with(Rights::TABLES, true);
        return Entry { base, shift: OFF_SHIFT, rights };
    }
    let page = format.page(found, regime);
    let (fetch, write) = (access.kind == Kind::Execute, access.kind == Kind::Write);
    // Dirty: a write has just set it, or none would be set by one.
    let dirty = write || {
        let write = access.as_kind(Kind::Write);
        format.touched(found.entry, found.level, true, &write) == found.entry
    };
    // A write that stage 2 has served has proven its leaf writable, as read or made so (HD). Where no
    // dirty bit would be set, a clear one may be what denies a write (Svade).
    let writable = if write {
        page.writable || format.stage() == 2
    } else {
        page.writable && (!dirty || permits(format, found, access, regime, Kind::Write, None))
    };
    // What stage 2 does not let be written is not for CR0.WP to permit.
    let dirty = dirty && (writable || format.stage() == 1);
    let mut rights = Rights::default()
        .with(Rights::READ, !fetch || permits(format, found, access, regime, Kind::Read, None))
        .with(Rights::WRITE, writable)
        .with(Rights::USER, page.user)
        .with(Rights::DIRTY, dirty);
    if page.executable && (fetch || asked.both(Rights::FETCH) != Rights::default()) {
        for (right, by) in
            [(Rights::EXECUTE, Privilege::Supervisor), (Rights::USER_EXECUTE, Privilege::User)]
        {
            let proven = fetch && access.privilege == by;
            let may = || permits(format, found, access, regime, Kind::Execute, Some(by));
            rights = rights.with(right, proven || may());
        }
    }
    Entry { base: found.base, shift: found.shift, rights }
}

/// What the format's rules say of another access through the same leaf.
fn permits<F: Format>(
    format: &F,
    found: &Found,
    access: &Access,
    regime: &Regime,
    kind: Kind,
    by: Option<Privilege>,
) -> bool {
    let other = Access { kind, privilege: by.unwrap_or(access.privilege), ..*access };
    format.check(&Found { kind, ..*found }, &other, regime).is_ok()
}
