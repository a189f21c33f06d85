//! The rest of a walk that has met an entry which is not plain.

use slat::format::Format;
use slat::{Access, Address, Descent, Failed, Kind, Mapped, Memory, Observer, Partial, Purpose};

use super::passed::Passed;
use super::walk_cache::WalkCache;

/// What it came to.
pub(super) struct Rest<O> {
    pub(super) mapped: Mapped<O>,
    /// Where the leaf was read.
    pub(super) at: u64,
    /// The access has set a dirty flag.
    pub(super) dirtied: bool,
    /// Level of the entry that sent the walk to the ordinary root (HLAT, Intel SDM 3A 5.5.5).
    pub(super) restarted: Option<u8>,
}

/// Goes on with `walk`, which has met `entry`; `cache` is told of the tables that it passes.
#[cold]
#[inline(never)]
pub(super) fn rest<F, I, O, M, W>(
    walk: Descent<'_, F, I, O, W>,
    format: &F,
    entry: u64,
    memory: &mut M,
    access: &Access,
    observer: &W,
    cache: &mut WalkCache,
) -> Result<Rest<O>, Failed<I, M::Fault>>
where
    F: Format,
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    let (passed, from) = (Passed::new(observer), walk.from());
    let mapped = walk.finish(entry, memory, &passed)?;
    // After another processor changed an entry under an update, the walk has started over.
    if let Some(level) = passed.highest() {
        cache.pass_again(level);
    }
    let mut path = cache.path(from);
    for (level, entry, table) in passed.tables() {
        format.join(&mut path, entry, level);
        cache.pass(Partial { level: level - 1, table, path });
    }
    let dirtied = passed.updated().is_some_and(|(old, new, level)| {
        // What a read would not have set is the dirty flag.
        let read = Access { kind: Kind::Read, purpose: Purpose::Final, ..*access };
        format.touched(old, level, true, &read) != new
    });
    let (at, restarted) = (passed.leaf_at(), passed.restarted());
    Ok(Rest { mapped, at, dirtied, restarted })
}
