//! What a leaf permits, as far as a TLB may rely on it.

use slat::format::{Format, Found};
use slat::{Access, Address, Flavor, Kind, Mapped, Privilege, Purpose, Regime, Stage1Page};

use crate::tlb::{Entry, Rights, Types};

/// log2 of the page that a stage that is off counts as.
const OFF_SHIFT: u8 = 30;
/// log2 of the page that an address of such a stage names.
const OFF_LEAF: u8 = 12;

/// What a TLB may keep of one stage's leaf, which has just served `access`; its memory type as that of
/// both stages. Rights to fetch are worth knowing where they are in `asked`.
#[inline(always)]
pub(super) fn entry_of<F: Format, O: Address>(
    format: &F,
    mapped: &Mapped<O>,
    access: &Access,
    regime: &Regime,
    asked: Rights,
) -> Entry {
    let found = &mapped.found;
    let bits = format.type_bits(found);
    let types = Types { stage1: bits, stage2: bits };
    // A stage that is off moves nothing within a gigabyte: no page is larger in a TLB.
    if found.is_flat() {
        let base = mapped.output.raw() & !((1 << OFF_SHIFT) - 1);
        let rights = Rights::ALL
            .with(Rights::DIRTY.or(Rights::TABLES), true)
            .with(Rights::FOR_USERS.or(Rights::FOR_SUPERVISORS), true);
        return Entry { base, shift: OFF_SHIFT, leaf: OFF_LEAF, rights, types };
    }
    // What keys deny now is for each access to ask (Intel SDM 3A 5.10.2.2).
    let without_keys;
    let regime = if format.key(found).is_some() && regime.x86.pkru | regime.x86.pkrs != 0 {
        let mut open = regime.clone();
        (open.x86.pkru, open.x86.pkrs) = (0, 0);
        without_keys = open;
        &without_keys
    } else {
        regime
    };
    let page = format.page(found, regime);
    let (fetch, write) = (access.kind == Kind::Execute, access.kind == Kind::Write);
    // Dirty: a write has just set it, or none would be set by one.
    let dirty = write || {
        let write = access.as_kind(Kind::Write);
        format.touched(found.entry, found.level, true, &write) == found.entry
    };
    // One flag stands for users and supervisors: a user page has a right of data where users do (Arm
    // short descriptors, AP 0b010, let supervisors alone write). Stage 2 knows no difference.
    let by = (format.stage() == 1 && page.user).then_some(Privilege::User);
    let is_theirs = by.is_none_or(|by| by == access.privilege);
    let Access { privilege, page: of_page, origin, .. } = *access;
    let (purpose, flavor) = (Purpose::Final, Flavor::Plain);
    let plain = Access { kind: access.kind, purpose, privilege, flavor, page: of_page, origin };
    let may = |kind| permits(format, found, &plain, regime, kind, by);
    // At stage 2 an update of a guest table may be served by what serves no other write (EPT's
    // paging-write access), and another by a leaf that hardware makes writable (HD). Where no dirty
    // bit would be set, a clear one may be what denies a write (Svade).
    let writable = match (write, format.stage()) {
        (true, 2) => page.writable || may(Kind::Write),
        (true, _) if is_theirs => page.writable,
        _ => page.writable && may(Kind::Write),
    };
    // A write does not prove a read (Arm stage 2, S2AP 0b10).
    let readable = access.kind == Kind::Read && is_theirs || may(Kind::Read);
    // What stage 2 does not let be written is not for CR0.WP to permit.
    let dirty = dirty && (writable || format.stage() == 1);
    let mut rights = Rights::default()
        .with(Rights::READ, readable)
        .with(Rights::WRITE, writable)
        .with(Rights::USER, page.user)
        .with(Rights::DIRTY, dirty);
    // EPT's page says what the control without modes lets be fetched: its rules decide.
    let executable = page.executable || format.stage() == 2;
    if executable && (fetch || asked.both(Rights::FETCH) != Rights::default()) {
        for (right, by) in
            [(Rights::EXECUTE, Privilege::Supervisor), (Rights::USER_EXECUTE, Privilege::User)]
        {
            let proven = fetch && access.privilege == by;
            let may = || permits(format, found, access, regime, Kind::Execute, Some(by));
            rights = rights.with(right, proven || may());
        }
    }
    // Under mode-based execute control EPT asks whether stage 1's page is a user's (Intel SDM 3C 30.3.2):
    // through the same leaf, another page may be fetched from or not.
    if asked.has(Rights::FOR_USERS)
        && let Some(page) = access.page
    {
        let other = Some(Stage1Page { user: !page.user, ..page });
        let other = Access { page: other, ..*access };
        let alike =
            [(Rights::EXECUTE, Privilege::Supervisor), (Rights::USER_EXECUTE, Privilege::User)]
                .into_iter()
                .all(|(right, by)| {
                    rights.has(right)
                        == permits(format, found, &other, regime, Kind::Execute, Some(by))
                });
        rights = rights
            .with(Rights::FOR_USERS, page.user || alike)
            .with(Rights::FOR_SUPERVISORS, !page.user || alike);
    }
    Entry { base: found.base, shift: found.shift, leaf: found.shift, rights, types }
}

/// What the format's rules say of another access through the same leaf. Of rules none asks for whose
/// access the leaf was found.
#[inline(always)]
fn permits<F: Format>(
    format: &F,
    found: &Found,
    access: &Access,
    regime: &Regime,
    kind: Kind,
    by: Option<Privilege>,
) -> bool {
    let Access { purpose, flavor, page, origin, .. } = *access;
    let privilege = by.unwrap_or(access.privilege);
    let other = Access { kind, purpose, privilege, flavor, page, origin };
    format.plainly_permits(found, &other, regime)
        || by_every_rule(format, found.by_fields(), other.by_fields(), regime)
}

/// What it takes is by value, so that what most leaves are asked need not be in memory.
#[cold]
#[inline(never)]
fn by_every_rule<F: Format>(format: &F, found: Found, access: Access, regime: &Regime) -> bool {
    format.check(&found, &access, regime).is_ok()
}
