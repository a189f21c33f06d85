//! A walk that asks a format everything: what an entry decodes to, which rules deny the access, and
//! what accessed and dirty bits become.

use crate::address::Address;
use crate::fault::{Cause, Failed, Fault, Reserved, Why};
use crate::format::{Decoded, Format, Found, MAX_LEVELS, Path, Start};
use crate::memory::Memory;
use crate::observe::{Observer, Update};

use super::plain::Walk;
use super::{Mapped, Updates};

/// How often a walk starts over because another writer changed an entry under its update. Hardware
/// has no such bound; a hostile memory must not hold a software walker for ever.
const RESTARTS: u32 = 1024;

/// Where a walk met an entry that is not plain, and that entry: it is not read again.
pub(super) struct Met {
    pub(super) place: Place,
    pub(super) entry: u64,
}

/// The next entry of a walk.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) level: u8,
    pub(super) entry_address: u64,
    /// What the entries above said. Once the entry was read, how it was reached too.
    pub(super) path: Path,
}

/// Entries on the way that may have to be updated once the walk has succeeded.
#[derive(Clone, Copy)]
struct Trail {
    entries: [(u64, u64, u8); MAX_LEVELS],
    len: usize,
}

impl Trail {
    fn push(&mut self, entry_address: u64, entry: u64, level: u8) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = (entry_address, entry, level);
            self.len += 1;
        }
    }
}

impl<I, O, M, W> Walk<'_, I, M, W>
where
    I: Address,
    O: Address,
    M: Memory<Address = O>,
    W: Observer,
{
    /// The whole walk, or the rest of it from the entry that was `met`, without updates.
    #[cold]
    #[inline(never)]
    pub(super) fn exact<F: Format>(
        mut self,
        format: &F,
        root: &F::Root,
        met: Option<Met>,
    ) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        let outcome = self.attempt::<F, false>(format, root, met);
        self.conclude(format, root, outcome)
    }

    /// The whole walk, or the rest of it from the entry that was `met`, with updates made or watched:
    /// those above it had nothing to update.
    #[inline(never)]
    pub(super) fn with_updates<F: Format>(
        mut self,
        format: &F,
        root: &F::Root,
        met: Option<Met>,
    ) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        let mut outcome = self.attempt::<F, true>(format, root, met);
        for _ in 1..RESTARTS {
            match outcome {
                // An update met a changed entry: the walk starts over.
                Err(Failed::Here(Fault { cause: Cause::Contended, .. })) => {
                    outcome = self.attempt::<F, true>(format, root, None);
                }
                _ => break,
            }
        }
        self.conclude(format, root, outcome)
    }

    /// Follows an entry's wish to start over at the ordinary root, which comes true once.
    fn conclude<F: Format>(
        mut self,
        format: &F,
        root: &F::Root,
        outcome: Result<Mapped<O>, Failed<I, M::Fault>>,
    ) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        match (outcome, format.after_restart()) {
            (Err(Failed::Here(Fault { cause: Cause::Restart, .. })), Some(ordinary)) => {
                self.from = None;
                if self.updates == Updates::Never && !W::WATCHES {
                    self.exact(&ordinary, root, None)
                } else {
                    self.with_updates(&ordinary, root, None)
                }
            }
            (outcome, _) => outcome,
        }
    }

    fn attempt<F: Format, const UPDATES: bool>(
        &mut self,
        format: &F,
        root: &F::Root,
        met: Option<Met>,
    ) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        let half;
        let format = if F::HALVES {
            half = format.half(self.input.raw());
            &half
        } else {
            format
        };
        let layout = format.layout();
        let start = format.begin(root, self.input.raw(), &self.access, self.regime);
        let (table, level, input) = match start {
            Ok(Start::Table { table, level, input }) => (table, level, input),
            Ok(Start::Flat { output }) => return self.flat(format, output),
            Err((level, cause)) => return Err(Failed::Here(self.fault_at(level, cause))),
        };
        let (mut place, mut met) = match met {
            Some(Met { place, entry }) => (place, Some(entry)),
            None => (Place::first(format, self.from, table, level, input), None),
        };
        let mut trail = Trail { entries: [(0, 0, 0); MAX_LEVELS], len: 0 };
        loop {
            let Place { level, entry_address, .. } = place;
            let entry = match met.take() {
                Some(entry) => entry,
                None => {
                    let access = self.access.table_read(level, self.input.raw());
                    let read = self
                        .memory
                        .read(O::new(entry_address), layout, &access)
                        .map_err(Failed::Below)?;
                    place.path.via &= read.reached.leaf;
                    read.value
                }
            };
            let decoded = format.decode(entry, level);
            self.saw(level, entry_address, entry, decoded);
            let path = place.path;
            let cause = match decoded {
                Decoded::Table { next } if level > 0 => {
                    if UPDATES {
                        if self.updates == Updates::AsWalked {
                            self.update(format, entry_address, entry, level, false)?;
                        } else {
                            trail.push(entry_address, entry, level);
                        }
                    }
                    place.descend(format, layout, entry, next, input);
                    continue;
                }
                Decoded::Leaf { base, shift } => {
                    let kind = self.access.kind;
                    let found =
                        Found { entry, level, base, shift, path, input: self.input.raw(), kind };
                    match format.check(&found, &self.access, self.regime) {
                        Ok(()) => {
                            if UPDATES {
                                for &(address, entry, level) in &trail.entries[..trail.len] {
                                    self.update(format, address, entry, level, false)?;
                                }
                                self.update(format, entry_address, entry, level, true)?;
                            }
                            let output = O::new(base | (input & ((1u64 << shift) - 1)));
                            return Ok(Mapped { output, found });
                        }
                        Err(cause) => cause,
                    }
                }
                Decoded::Empty => Cause::Empty,
                Decoded::Reserved(reserved) => Cause::Reserved(reserved),
                Decoded::Restart => Cause::Restart,
                // No format decodes so; a walk must be bounded even if one did.
                Decoded::Table { .. } => {
                    Cause::Reserved(Reserved { why: Why::Encoding, bits: entry })
                }
            };
            return Err(Failed::Here(Fault {
                stage: *self.number,
                input: self.input,
                level,
                entry,
                entry_address,
                path,
                cause,
                access: self.access,
            }));
        }
    }

    /// The stage is off: nothing is read, the output is the input.
    fn flat<F: Format>(&self, format: &F, output: u64) -> Result<Mapped<O>, Failed<I, M::Fault>> {
        let found = Found::flat(self.input.raw(), self.access.kind);
        match format.check(&found, &self.access, self.regime) {
            Ok(()) => Ok(Mapped { output: O::new(output), found }),
            Err(cause) => Err(Failed::Here(self.fault_at(0, cause))),
        }
    }

    /// Sets accessed and dirty bits of one entry, or reports what would be set.
    fn update<F: Format>(
        &mut self,
        format: &F,
        entry_address: u64,
        old: u64,
        level: u8,
        is_leaf: bool,
    ) -> Result<(), Failed<I, M::Fault>> {
        let new = format.touched(old, level, is_leaf, &self.access);
        if new == old {
            return Ok(());
        }
        let stored = self.updates != Updates::Never;
        if stored {
            let access = self.access.table_update(level, self.input.raw());
            let won = self
                .memory
                .compare_exchange(O::new(entry_address), format.layout(), old, new, &access)
                .map_err(Failed::Below)?;
            if !won {
                return Err(Failed::Here(self.fault_at(level, Cause::Contended)));
            }
        }
        let stage = *self.number;
        self.observer.update(&Update { stage, level, entry_address, old, new, stored });
        Ok(())
    }

    /// A fault without an entry.
    fn fault_at(&self, level: u8, cause: Cause) -> Fault<I> {
        Fault {
            stage: *self.number,
            input: self.input,
            level,
            entry: 0,
            entry_address: 0,
            path: Path::START,
            cause,
            access: self.access,
        }
    }
}
