//! One leaf out of two: what both stages permit, the smaller page, the types of both.

use core::cell::Cell;

use super::{Backed, Combined, Unserved};
use crate::access::{Access, Kind, Privilege, Stage1Page};
use crate::address::L2Gpa;
use crate::edit::{Encode, Error, Leaves, Refused};
use crate::fault::{Cause, Failed};
use crate::format::{Decoded, Format, Found, MAX_LEVELS, Path};
use crate::memory_type::StageType;
use crate::observe::{Observer, Step, Update};
use crate::regime::Regime;
use crate::translate::Permissions;
use crate::walk::{Updates, walk};

/// A second stage of which two can be made one.
pub trait Combine: Encode {
    /// Whether tables of this format can say what `upper` over `lower` says: why not, where they
    /// cannot.
    ///
    /// # Errors
    /// What is missing, in words.
    fn conforms(&self, upper: &Self, lower: &Self) -> Result<(), &'static str>;

    /// The access by which the lower stage has to permit what a processor asks of the combined
    /// table by `access`.
    fn lowered(&self, access: &Access) -> Access {
        *access
    }

    /// The memory type of a combined leaf: that which makes of every type of the nested guest what
    /// `upper`, and then `lower`, make of it. Where the format has none such, the most cached of
    /// those that are nowhere more cached.
    ///
    /// `regime` is the host's.
    fn memory(&self, upper: StageType, lower: StageType, regime: &Regime) -> Self::Memory;

    /// What a combined leaf says besides its address: accessed and dirty already, since hardware's
    /// marks belong into the tables that it was made from.
    fn attributes_of(&self, rights: &Rights, memory: Self::Memory) -> Self::Attributes;
}

/// What both stages permit as their entries are, with no bit left to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rights {
    /// What the nested guest's supervisor may do.
    pub permissions: Permissions,
    /// Whether its user mode may execute.
    pub user_execute: bool,
}

impl Rights {
    fn is_empty(&self) -> bool {
        *self == Rights::default()
    }
}

/// A combined leaf to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Composed {
    /// First nested guest-physical address that it maps.
    pub start: u64,
    /// First guest-physical address.
    pub between: u64,
    /// First system physical address.
    pub base: u64,
    pub level: u8,
    /// The leaf.
    pub entry: u64,
    /// The same without its address, at every level.
    pub leaves: Leaves,
}

/// Sees the upper stage's walk: which pages hold its tables, and whether bits remain to be set.
#[derive(Default)]
pub(super) struct Seen {
    /// By level: address of the entry.
    entries: Cell<[Option<u64>; MAX_LEVELS]>,
    due: Cell<bool>,
}

impl Seen {
    /// The entries by which the walk went: level and address.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u8, u64)> {
        let entries = self.entries.get();
        (0u8..).zip(entries).filter_map(|(level, address)| Some((level, address?)))
    }
}

impl Observer for Seen {
    fn step(&self, step: &Step) {
        let mut entries = self.entries.get();
        if let Some(slot) = entries.get_mut(usize::from(step.level)) {
            *slot = Some(step.entry_address);
        }
        self.entries.set(entries);
    }

    fn update(&self, update: &Update) {
        self.due.set(self.due.get() || !update.stored);
    }
}

/// Whether the leaf permits the access as it is, with no accessed or dirty bit to be set first.
fn grants<F: Format>(format: &F, found: &Found, access: &Access, regime: &Regime) -> bool {
    let found = Found { kind: access.kind, ..*found };
    format.check(&found, access, regime).is_ok()
        && (found.is_flat()
            || format.touched(found.entry, found.level, true, access) == found.entry)
}

/// The accesses that a second stage tells apart.
fn asked(kind: Kind, user: bool) -> Access {
    let privilege = if user { Privilege::User } else { Privilege::Supervisor };
    Access { page: Some(Stage1Page { user, ..Stage1Page::FLAT }), ..Access::new(kind, privilege) }
}

/// The accesses of which one finds a page that is permitted anything.
const PROBES: [(Kind, bool); 4] =
    [(Kind::Read, false), (Kind::Execute, false), (Kind::Execute, true), (Kind::Write, false)];

impl<F: Combine> Combined<'_, F> {
    /// Walks both stages for `access` and makes one leaf of theirs; `None` where they permit
    /// nothing before accessed bits are set, which `updates` may let the walk do.
    pub(super) fn compose<B: Backed>(
        &self,
        target: &F,
        backed: &mut B,
        address: L2Gpa,
        access: &Access,
        updates: Updates,
        seen: &Seen,
    ) -> Result<Option<Composed>, Unserved<B::Fault>> {
        let stage = self.stack.upper.with_updates(updates);
        let upper = walk(&stage, backed, address, access, &self.stack.upper_regime, seen);
        let mut upper = upper.map_err(|failed| match failed {
            Failed::Here(fault) if matches!(fault.cause, Cause::Reserved(_)) => {
                Unserved::Misconfigured(fault)
            }
            Failed::Here(fault) => Unserved::Violation(fault),
            Failed::Below(below) => Unserved::Host(below),
        })?;
        let lowered = target.lowered(access);
        let lower = backed.locate(upper.output, &lowered, updates);
        let mut lower = lower.map_err(Unserved::Host)?;
        if updates == Updates::Never {
            if seen.due.get() {
                return Ok(None);
            }
        } else {
            // What the walks have set is not in what they read.
            let set = |format: &F, found: &mut Found, access: &Access| {
                if !found.is_flat() {
                    found.entry = format.touched(found.entry, found.level, true, access);
                }
            };
            set(&stage.format, &mut upper.found, access);
            set(&self.stack.lower, &mut lower.found, &lowered);
        }
        let rights = self.rights(&upper.found, &lower.found);
        if rights.is_empty() {
            return Ok(None);
        }
        let type_of = |format: &F, found: &Found, regime: &Regime| {
            format.memory_type(&Found { kind: Kind::Read, ..*found }, regime)
        };
        let memory = target.memory(
            type_of(&stage.format, &upper.found, &self.stack.upper_regime),
            type_of(&self.stack.lower, &lower.found, &self.stack.lower_regime),
            &self.stack.lower_regime,
        );
        let edit = |error: Error| Unserved::Edit(error);
        let leaves = Leaves::new(target, &target.attributes_of(&rights, memory));
        let leaves = leaves.map_err(|refused| edit(refused.into()))?;
        let most = u32::from(upper.found.shift.min(lower.found.shift));
        let mut level = leaves.largest();
        while level > 0 && (target.shift(level) > most || !leaves.has(level)) {
            level -= 1;
        }
        let within = (1u64 << target.shift(level)) - 1;
        let base = lower.output.raw() & !within;
        let entry = leaves.at(level) | target.place(base, level);
        if !matches!(target.decode(entry, level), Decoded::Leaf { base: found, .. } if found == base)
        {
            return Err(edit(Error::OutsideOutput { output: base }));
        }
        // A processor that is refused what was asked for would come back for ever.
        let leaf = Found {
            entry,
            level,
            base,
            shift: target.shift(level) as u8,
            path: Path::START,
            input: address.raw(),
            kind: access.kind,
        };
        if target.check(&leaf, access, &self.stack.lower_regime).is_err() {
            return Err(edit(Refused::Permissions(rights.permissions).into()));
        }
        Ok(Some(Composed {
            start: address.raw() & !within,
            between: upper.output.raw() & !within,
            base,
            level,
            entry,
            leaves,
        }))
    }

    /// The leaf that the tables make of `address` as they are, whatever the access; `None` where
    /// they translate nothing, or do not before a bit is set. Also how far that holds at least: log2
    /// of an aligned range around `address`.
    pub(super) fn probe<B: Backed>(
        &self,
        target: &F,
        backed: &mut B,
        address: L2Gpa,
        seen: &Seen,
    ) -> Result<(Option<Composed>, u32), Error> {
        let mut reach = target.shift(0);
        for (kind, user) in PROBES {
            seen.due.set(false);
            let access = asked(kind, user);
            match self.compose(target, backed, address, &access, Updates::Never, seen) {
                Ok(Some(composed)) => {
                    let reach = target.shift(composed.level);
                    return Ok((Some(composed), reach));
                }
                Err(Unserved::Edit(Error::Refused(Refused::Permissions(_)))) | Ok(None) => {}
                Err(Unserved::Edit(error)) => return Err(error),
                Err(Unserved::Violation(fault) | Unserved::Misconfigured(fault)) => {
                    let upper = &self.stack.upper.format;
                    let least = match fault.cause {
                        Cause::Permission(_) => continue,
                        Cause::InputSize => upper.input_bits(),
                        _ if fault.entry_address != 0 => upper.shift(fault.level),
                        _ => 0,
                    };
                    reach = reach.max(least);
                    break;
                }
                Err(Unserved::Host(_)) => {}
            }
        }
        Ok((None, reach))
    }

    fn rights(&self, upper: &Found, lower: &Found) -> Rights {
        let stack = &self.stack;
        let may = |kind, user| {
            let access = asked(kind, user);
            grants(&stack.upper.format, upper, &access, &stack.upper_regime)
                && grants(&stack.lower, lower, &access, &stack.lower_regime)
        };
        Rights {
            permissions: Permissions {
                read: may(Kind::Read, false),
                write: may(Kind::Write, false),
                execute: may(Kind::Execute, false),
            },
            user_execute: may(Kind::Execute, true),
        }
    }
}

/// The first candidate that makes of every one of `guests` what is `wanted` of it, else the one that
/// comes nearest and is nowhere more cached: `order` says whether its first is at most as cached as
/// its second, and `rank` how cached one is.
pub(super) fn choose<C: Copy, G: Copy, T: PartialEq + Copy>(
    candidates: impl Iterator<Item = C>,
    guests: &[G],
    wanted: impl Fn(G) -> T,
    made: impl Fn(C, G) -> T,
    rank: impl Fn(T) -> u32,
) -> Option<C> {
    let mut best = None;
    for candidate in candidates {
        let mut sum = 0;
        let mut exact = true;
        let fits = guests.iter().all(|&guest| {
            let (wanted, made) = (wanted(guest), made(candidate, guest));
            sum += rank(made);
            exact &= wanted == made;
            wanted == made || rank(made) < rank(wanted)
        });
        if fits && exact {
            return Some(candidate);
        }
        if fits && best.is_none_or(|(_, most)| sum > most) {
            best = Some((candidate, sum));
        }
    }
    best.map(|(candidate, _)| candidate)
}
